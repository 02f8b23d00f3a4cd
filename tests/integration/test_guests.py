"""Guests that boot, in qemu:///session: a lab of two shops.

The lab is up once for the module and its tests go through it in their order, as a user would.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import labs, shop
from tests.support.hosts import Host
from tests.support.onelab import OneLab, free_port, listens, one_lab
from tests.support.shop import ssh

pytestmark = pytest.mark.guest

DB = "10.77.1.20"


@dataclass(frozen=True)
class Web:
    """The module's lab.

    Attributes:
        lab: its file and commands.
        port: the port that leads to the shop's page.
        log: what `up` said, steps included.
    """

    lab: OneLab
    port: int
    log: str

    @property
    def host(self) -> Host:
        return self.lab.host

    @property
    def vm(self) -> str:
        return f"{self.lab.name}/web"

    def page(self) -> shop.Page:
        return shop.page(self.host, f"127.0.0.1:{self.port}")

    def pins(self) -> dict[str, str]:
        """The pinned host keys of the shop's VM, by file."""
        top = self.host.env["XDG_DATA_HOME"]
        listed = self.host.run("find", top, "-path", f"*/{self.lab.name}/known_hosts.d/web.*")
        return {path: self.host.run("cat", path).stdout for path in listed.stdout.split()}


def write(lab: OneLab, port: int, ready: str = "{ssh: true, timeout: 120}") -> None:
    lab.write(
        f"db: {{image: 'shop:v1', networks: [{{name: lan, ip: {DB}}}]}}",
        f"web: {{image: 'shop:v2', networks: [lan], after: [db], disk: 512MiB, ready: {ready},"
        f" ports: ['{port}:80'], disks: [{{name: data, size: 64MiB, keep: true}}]}}",
        networks="lan: {mode: nat, cidr: 10.77.1.0/24}",
        defaults=shop.DEFAULTS,
    )


@pytest.fixture(scope="module")
def web(module_session: Host) -> Iterator[Web]:
    shop.build(module_session)
    with one_lab(module_session) as lab:
        port = free_port()
        write(lab, port)
        done = module_session.poclab("-v", "up", lab.path)
        yield Web(lab, port, done.stderr)


# --- the lab is up ------------------------------------------------------------------------


def test_the_versions_were_built_by_an_ordinary_user(web: Web) -> None:
    rows = json.loads(web.host.poclab("image", "ls", "shop", "-o", "json").stdout)
    assert {row["tag"] for row in rows} == {"v1", "v2", "v3"}
    assert len({row["digest"] for row in rows}) == 3
    assert all(row["origin"].startswith("built ") for row in rows)
    assert web.host.account.uid != 0


def test_a_vm_starts_when_the_one_it_is_after_is_ready(web: Web) -> None:
    db_ready = web.log.index("db: ready after")
    assert web.log.index(f"start domain={web.lab.domain('web')}") > db_ready
    assert web.log.index(f"start domain={web.lab.domain('db')}") < db_ready
    assert {vm: row["ready"] for vm, row in web.lab.status().items()} == {"db": "yes", "web": "yes"}


def test_a_forwarded_port_shows_the_version(web: Web) -> None:
    first, second = web.page(), web.page()
    assert first.version == second.version == "v2"
    assert second.visits == first.visits + 1


def test_vms_reach_each_other_by_their_static_addresses(web: Web) -> None:
    assert shop.pings(web.host, web.vm, DB)
    assert shop.ssh(web.host, web.vm, "hostname").strip() == "web"
    assert "10.77.1.10/24" in ssh(web.host, web.vm, "ip", "-o", "address")


def test_ssh_passes_words_and_the_exit_status_on(web: Web) -> None:
    assert ssh(web.host, web.vm, "printf", "%s|", "a b", "it's", "$HOME") == "a b|it's|$HOME|"
    assert ssh(web.host, web.vm, "echo one; echo two | cat") == "one\ntwo\n"
    done = web.host.poclab("ssh", web.vm, "--", "sh", "-c", "exit 7", check=False)
    assert done.returncode == 7
    piped = web.host.poclab("ssh", web.vm, "--", "cat", input="through\n")
    assert piped.stdout == "through\n"


def test_the_root_file_system_grows_with_the_disk(web: Web) -> None:
    assert int(ssh(web.host, web.vm, "cat", "/sys/block/vda/size")) * 512 == 512 * 1024**2
    kib = int(ssh(web.host, web.vm, "df -k / | tail -n 1").split()[1])
    assert kib > 400 * 1024


def test_the_guest_has_uefi_virtio_rng_and_an_agent_channel(web: Web) -> None:
    xml = web.host.virsh("dumpxml", web.lab.domain("web"))
    assert "pc-q35" in xml
    assert ssh(web.host, web.vm, "cat /sys/class/virtio-ports/*/name").split() == [
        "org.qemu.guest_agent.0"
    ]
    # What the guest found on the bus, by virtio's own numbers: 1 net, 2 block, 4 entropy.
    found = ssh(web.host, web.vm, "cat /sys/bus/virtio/devices/*/device").split()
    assert {"0x0001", "0x0002", "0x0004"} <= set(found)
    assert ssh(web.host, web.vm, "[ -d /sys/firmware/efi ] && echo uefi").strip() == "uefi"


def test_the_serial_console_is_logged(web: Web) -> None:
    state = web.host.env["XDG_STATE_HOME"]
    log = web.host.run("cat", f"{state}/poclab/console/{web.lab.domain('web')}.log").stdout
    assert "shop v2 is up" in log


# --- ready --------------------------------------------------------------------------------


def test_ready_by_port_means_that_the_guest_answers(web: Web) -> None:
    before = web.lab.run_id("web")
    write(web.lab, web.port, "{tcp: 80, timeout: 30}")
    assert [(row["action"], row["reboots"]) for row in web.lab.plan()] == [("record", False)]
    web.lab.up()
    assert web.lab.status()["web"]["ready"] == "yes"
    ssh(web.host, web.vm, "kill $(pidof httpd)")
    # QEMU accepts for the guest all the same.
    assert listens(web.port)
    assert web.lab.status()["web"]["ready"] == "no"
    ssh(web.host, web.vm, "httpd -p 80 -h /usr/share/shop/www")
    assert web.lab.status()["web"]["ready"] == "yes"
    assert web.lab.run_id("web") == before


def test_ready_by_agent_means_that_it_holds_its_channel_open(web: Web) -> None:
    write(web.lab, web.port, "{agent: true, timeout: 2}")
    done = web.lab.up(check=False)
    assert done.returncode == 1
    assert "no answer: the guest agent" in done.stderr
    assert web.lab.status()["web"]["ready"] == "no"
    # The shop has no agent: somebody who holds its port open will do.
    find = "cd /sys/class/virtio-ports; for p in *; do grep -q guest_agent $p/name && echo $p; done"
    port = ssh(web.host, web.vm, find).strip()
    ssh(web.host, web.vm, f"sleep 1000 <>/dev/{port} >/dev/null 2>&1 &")
    web.lab.up()
    assert web.lab.status()["web"]["ready"] == "yes"
    write(web.lab, web.port)
    web.lab.up()


# --- host keys ----------------------------------------------------------------------------


def test_a_host_key_that_changed_is_refused(web: Web) -> None:
    ((path, pinned),) = web.pins().items()
    assert pinned.startswith(f"{web.lab.domain('web')} ssh-ed25519 ")
    top = web.host.env["XDG_DATA_HOME"]
    listed = web.host.run("find", top, "-path", f"*/{web.lab.name}/known_hosts.d/db.*")
    other = web.host.run("cat", listed.stdout.strip()).stdout.replace(".db ", ".web ")
    web.host.run("tee", path, input=other)
    done = web.host.poclab("ssh", web.vm, "true", check=False)
    assert done.returncode == 255
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in done.stderr
    web.host.run("tee", path, input=pinned)
    ssh(web.host, web.vm, "true")


# --- reset --------------------------------------------------------------------------------


def test_reset_goes_to_another_version_and_keeps_the_data_disk(web: Web) -> None:
    ssh(web.host, web.vm, "echo 'written on v2' >/srv/data/note")
    assert web.page().visits > 1
    pins, db = web.pins(), web.lab.run_id("db")
    done = web.lab.reset("web", "--to", "v1")
    assert "yes" in done.stdout
    assert web.page() == shop.Page("v1", 1)
    assert ssh(web.host, web.vm, "cat", "/srv/data/note") == "written on v2\n"
    assert shop.pings(web.host, web.vm, DB)
    assert web.lab.run_id("db") == db
    # A new disk makes a new host key: it is pinned anew, and the old pin is gone.
    assert len(web.pins()) == 1
    assert set(web.pins().values()).isdisjoint(pins.values())


def test_reset_goes_on_to_a_third_version(web: Web) -> None:
    ssh(web.host, web.vm, "touch /root/dirt")
    web.lab.reset("web", "--to", "v3")
    assert web.page() == shop.Page("v3", 1)
    assert ssh(web.host, web.vm, "ls", "/root") == ""
    assert ssh(web.host, web.vm, "cat", "/srv/data/note") == "written on v2\n"
    assert [entry for entry in web.lab.history("web") if entry[0] == "reset"] == [
        ("reset", "shop:v1"),
        ("reset", "shop:v3"),
    ]


def test_a_mark_brings_the_whole_lab_back_as_it_was(web: Web) -> None:
    name, running = web.lab.name, [web.lab.run_id(vm) for vm in ("db", "web")]
    for vm in ("db", "web"):
        ssh(web.host, f"{name}/{vm}", f"echo 'ready on {vm}' >/root/demo; sync")
    done = web.host.poclab("mark", name, "demo", "--commit", "--no-quiesce")
    assert f"demo of {name} is db shop:demo-db, web shop:demo-web" in done.stderr
    assert [web.lab.run_id(vm) for vm in ("db", "web")] == running
    for vm in ("db", "web"):
        ssh(web.host, f"{name}/{vm}", "rm /root/demo; touch /root/dirt; sync")
    done = web.host.poclab("-v", "reset", name, "--to", "demo")
    steps = [done.stderr.index(f"start domain={name}.{vm}") for vm in ("db", "web")]
    assert steps[0] < done.stderr.index("db: ready after") < steps[1]
    for vm in ("db", "web"):
        words = ("cd /root; cat demo; ls",)
        assert ssh(web.host, f"{name}/{vm}", *words) == f"ready on {vm}\ndemo\n"
        assert web.lab.history(vm)[-1] == ("reset to demo", f"shop:demo-{vm}")
    assert ssh(web.host, web.vm, "cat", "/srv/data/note") == "written on v2\n"
    web.host.poclab("unmark", name, "demo")


def test_a_change_shuts_the_guest_down_and_loses_nothing(web: Web) -> None:
    visits = web.page().visits
    path = Path(web.lab.path)
    web.host.write(path.name, path.read_text().replace("disk: 512MiB,", "disk: 512MiB, cpus: 2,"))
    done = web.lab.up()
    assert "did not shut down" not in done.stderr
    assert ssh(web.host, web.vm, "grep -c ^processor /proc/cpuinfo").strip() == "2"
    assert web.page() == shop.Page("v3", visits + 1)
    web.lab.down("--volumes")
    assert labs.leftovers(web.host) == []
