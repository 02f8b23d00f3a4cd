"""Another version in place, in a real guest over real SSH; its `bootc` is a stand-in.

One VM goes through the module's tests in their order; tests/support/bootc_standin/README.md says
how much like bootc it is.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from poclab.guest import probe
from tests.hostile import floods
from tests.support import bootc_standin, labs, shop
from tests.support.hosts import Completed, Host
from tests.support.onelab import OneLab, free_port, one_lab

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

CARRIED = "/var/lib/poclab-switch"


class Site:
    """The module's VM."""

    def __init__(self, lab: OneLab, port: int) -> None:
        self.lab, self.host, self.port = lab, lab.host, port
        self.vm = f"{lab.name}/web"
        self.switch = ("switch", self.vm, "--to", "v3", "--yes")
        self.rollback = ("rollback", self.vm)

    def ssh(self, command: str) -> str:
        return shop.ssh(self.host, self.vm, command)

    def deployments(self) -> dict[str, Any]:
        """What the guest's bootc says."""
        found = json.loads(self.ssh("bootc status --format=json --format-version=1"))
        status: dict[str, Any] = found["status"]
        return status

    def boot(self) -> str:
        return self.ssh("cat /proc/sys/kernel/random/boot_id")

    def shown(self) -> tuple[str, str]:
        """The versions that `status` has: of the disk, and in place."""
        row = self.lab.status()["web"]
        return row["version"], row["in_place"]

    def page(self) -> str:
        return shop.page(self.host, f"127.0.0.1:{self.port}").version

    def history(self) -> list[tuple[str, str]]:
        return self.lab.history("web")

    def stop(self, args: tuple[str, ...], step: int, name: str, how: str = "kill") -> None:
        """Stop a command at a step, which is that of this name."""
        stopped = self.host.stop_at(args, step, how)
        assert stopped.steps[step - 1 :] == (name,), stopped.steps


@pytest.fixture(scope="module")
def site(module_session: Host) -> Iterator[Site]:
    bootc_standin.build(module_session, ("v1", "v3"))
    with one_lab(module_session) as lab:
        port = free_port()
        lab.write(
            f"web: {{image: 'site:v1', networks: [lan], ports: ['{port}:80']}}",
            networks="lan: {mode: nat, cidr: 10.77.1.0/24}",
            defaults=shop.DEFAULTS,
        )
        lab.up()
        yield Site(lab, port)
    assert labs.leftovers(module_session) == []


def left(site: Site) -> list[str]:
    """Work directories of exports, and what was carried in."""
    files = [name for name in labs.look(site.host)["files"] if name.startswith("tmp.")]
    return files + site.ssh(f"ls -d {CARRIED} 2>/dev/null; true").split()


def refused(site: Site, *args: str) -> str:
    """What is said of a command that changes nothing."""
    before, boot = site.deployments(), site.boot()
    done = site.host.poclab(*args, check=False)
    assert done.returncode in (1, 2)
    assert (site.deployments(), site.boot()) == (before, boot)
    assert left(site) == []
    return done.stderr


def test_what_cannot_be_done_touches_nothing(site: Site) -> None:
    assert "site:v9 is not there" in refused(site, "switch", site.vm, "--to", "v9")
    registry = refused(site, *site.switch, "--transport", "registry")
    assert "site:v3 is in no registry" in registry
    site.ssh("dd if=/dev/zero of=/var/fill bs=1M count=100 2>/dev/null")
    assert f"there is no room in {site.vm}" in refused(site, *site.switch)
    site.ssh("rm /var/fill")
    disk = labs.disk_file(site.host, "disk.raw")
    site.host.poclab("image", "import", "site:disk", str(disk), "--profile", "legacy")
    imported = refused(site, "switch", site.vm, "--to", "disk")
    assert "it was imported" in imported
    assert "poclab reset VM --to disk" in imported


def test_a_guest_that_fills_up_meanwhile_is_left_with_nothing(site: Site) -> None:
    site.ssh("dd if=/dev/zero of=/var/fill bs=1M count=100 2>/dev/null")
    said = refused(site, *site.switch)
    needed = re.search(r"/var/lib has (\d+) MiB left, the image (\d+) MiB", said)
    assert needed, said
    # All but what is looked for goes; the rest as soon as something is carried in.
    more = int(needed[2]) + 4 - int(needed[1])
    site.ssh(f"dd if=/dev/null of=/var/fill bs=1M seek={100 - more} 2>/dev/null; sync")
    fill = f"until [ -d {CARRIED} ]; do sleep 0.05; done; dd if=/dev/zero of=/var/rest bs=1M"
    site.ssh(f"({fill}) </dev/null >/dev/null 2>&1 &")
    said = refused(site, *site.switch)
    site.ssh("rm /var/fill /var/rest")
    assert re.search(f"(tar|bootc switch) failed in {site.vm}", said), said
    assert f"it runs what it ran; see it there: poclab ssh {site.vm}" in said


def test_a_guest_without_bootc_is_sent_to_reset(site: Site) -> None:
    site.ssh("mv /usr/bin/bootc /usr/bin/bootc.off")
    done = site.host.poclab(*site.switch, check=False)
    site.ssh("mv /usr/bin/bootc.off /usr/bin/bootc")
    assert done.returncode == 1
    assert "there is no bootc in it" in done.stderr
    assert f"poclab reset {site.vm} --to TAG" in done.stderr


# --- a hostile guest ----------------------------------------------------------------------

# Runs poclab with an agent given up early, and says how much memory it took, in KiB.
CLIENT = """
import re, sys
from poclab.cli import main
from poclab.virt import agent

agent.FREEZE = int(sys.argv[1])
sys.argv = ["poclab", *sys.argv[2:]]
try:
    main()
finally:
    with open("/proc/self/status") as status:
        print("peak", re.search("VmHWM:\\\\s+([0-9]+)", status.read())[1], file=sys.stderr)
"""
MEMORY = 100_000  # KiB; a client that does nothing has 40,000


def client(site: Site, *args: str, freeze: int = 3) -> tuple[Completed, int]:
    """Run poclab; how it ended, and the KiB it took."""
    argv = (site.host.place.installation.python, "-c", CLIENT, str(freeze), *args)
    done = site.host.run(*argv, check=False)
    peak = re.search(r"^peak (\d+)$", done.stderr, re.MULTILINE)
    assert peak, done.stderr
    return done, int(peak[1])


def put(site: Site, path: str, script: str) -> None:
    """Write a program into the guest."""
    write = f"cat >{path}.new && chmod +x {path}.new && mv {path}.new {path}"
    site.host.poclab("ssh", site.vm, write, input=script)


def test_a_bootc_that_prints_without_end(site: Site) -> None:
    site.ssh("mv /usr/bin/bootc /usr/bin/bootc.off")
    put(site, "/usr/bin/bootc", floods.bootc())
    done, peak = client(site, *site.switch)
    site.ssh("mv /usr/bin/bootc.off /usr/bin/bootc; killall cat 2>/dev/null; true")
    assert done.returncode == 1
    assert f"{site.vm} prints without end" in done.stderr
    assert "why: ssh printed more than 1 MiB" in done.stderr
    assert f"poclab ssh {site.vm}" in done.stderr
    assert peak < MEMORY
    assert left(site) == []


def test_a_login_shell_that_prints_without_end(site: Site) -> None:
    put(site, "/usr/bin/flood", floods.login_shell(calm="/etc/passwd"))
    site.ssh("printf '/bin/sh\\n/usr/bin/flood\\n' >/etc/shells")
    site.ssh("cp /etc/passwd /root/passwd; sed -i '/^root:/s,:[^:]*$,:/usr/bin/flood,' /etc/passwd")
    done, peak = client(site, *site.switch)
    site.ssh("cat /root/passwd >/etc/passwd; rm /root/passwd /etc/shells")
    assert done.returncode == 1
    assert f"{site.vm} does not answer" in done.stderr
    assert "why: a login to it prints without end" in done.stderr
    assert "pwned" not in done.stderr
    assert peak < MEMORY
    assert site.ssh("echo calm") == "calm\n"


def seen(site: Site) -> tuple[str, list[str], set[str]]:
    return site.lab.run_id("web"), site.lab.disks("web"), site.lab.volumes()


def test_an_agent_that_answers_ping_and_never_freezes(site: Site) -> None:
    find = "cd /sys/class/virtio-ports; for p in *; do grep -q guest_agent $p/name && echo $p; done"
    put(site, "/usr/bin/agent", floods.agent(f"/dev/{site.ssh(find).strip()}"))
    site.ssh("/usr/bin/agent </dev/null >/dev/null 2>&1 &")
    ping = ("qemu-agent-command", site.lab.domain("web"), '{"execute": "guest-ping"}')
    probe.wait_until(lambda: "return" in site.host.virsh(*ping, check=False), 30)
    before, boot = seen(site), site.boot()
    commit = ("commit", site.vm, "--as", "site:deaf")
    done, _ = client(site, *commit)
    assert done.returncode == 1, done.stderr
    assert "did not hold its file systems still within 3 s" in done.stderr, done.stderr
    assert "--no-quiesce" in done.stderr
    assert "--shutdown" in done.stderr
    assert (seen(site), site.boot()) == (before, boot)
    assert labs.leftovers(site.host) == []
    # Nor does it keep anybody from stopping, and the lab is free afterwards.
    python = site.host.place.installation.python
    process = site.host.popen(python, "-c", CLIENT, "10", "-v", *commit)
    assert process.stderr is not None
    while "snapshot" not in process.stderr.readline():
        assert process.poll() is None
    began = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert (process.returncode, time.monotonic() - began < 8) == (130, True)
    # What libvirt is still at is waited for; no overlay is taken away beneath it.
    site.host.poclab(*commit, "--no-quiesce")
    assert site.boot() == boot
    assert labs.leftovers(site.host) == []
    site.ssh("killall agent; rm /usr/bin/agent")
    site.lab.reset("web", "--to", "v1")
    site.host.poclab("image", "rm", "site:deaf")


def test_the_stand_in_refuses_what_bootc_refuses(site: Site) -> None:
    for words, fault in (
        ("switch --transport oci /nowhere", "open /nowhere/index.json: no such file or directory"),
        ("switch --transport registry quay.io/x@y", "network is unreachable"),
        ("rollback", "No rollback available"),
        ("status --format=json --format-version=2", "unexpected argument"),
    ):
        done = site.host.poclab("ssh", site.vm, f"bootc {words}", check=False)
        assert (done.returncode, done.stderr.startswith("error: ")) == (1, True)
        assert fault in done.stderr


def test_stopped_at_any_step_the_same_command_goes_on(site: Site) -> None:
    site.ssh("echo 'written on v1' >/var/lib/note")
    boot, installed = site.boot(), site.deployments()["booted"]
    site.stop(site.switch, 2, "carry the image in", "interrupt")
    assert left(site) == []
    site.ssh(f"mkdir -p {CARRIED}/half; echo half >{CARRIED}/half/index.json")
    site.stop(site.switch, 3, "bootc switch")
    assert site.deployments()["staged"] is None
    (carried,) = site.ssh(f"ls {CARRIED}").split()
    assert carried != "half"
    assert site.shown() == ("site:v1", "")
    site.stop(site.switch, 5, "reboot")
    staged = site.deployments()["staged"]
    assert staged["image"]["image"] == {"image": f"{CARRIED}/{carried}", "transport": "oci"}
    assert left(site) == []
    assert (site.boot(), site.page()) == (boot, "v1")
    # What is staged is neither carried in nor staged again.
    site.stop(site.switch, 3, "record")
    found = site.deployments()
    assert found["booted"] == staged
    assert found["rollback"] == installed
    assert site.shown() == ("site:v1", "")
    boot = site.boot()
    last = site.host.count_steps(site.switch)
    assert last.steps == ("remove what was carried in", "record", "live record")
    assert site.boot() == boot


def test_it_runs_the_other_version_on_its_own_disk(site: Site) -> None:
    assert site.page() == "v3"
    assert site.ssh("cat /var/lib/note") == "written on v1\n"
    assert left(site) == []
    argv = ("podman", "image", "inspect", "--format", "{{.Digest}}")
    image = site.host.run(*argv, inputs(site, "site:v3")["image_id"]).stdout.strip()
    assert site.deployments()["booted"]["image"]["imageDigest"] == image
    assert site.shown() == ("site:v1", "site:v3")
    table = site.host.poclab("status", site.lab.name).stdout
    assert "site:v1 -> v3 in place" in table
    history = site.history()
    assert (history[0], history[-1]) == (("create", "site:v1"), ("switch", "site:v3"))
    assert history.count(("switch", "site:v3")) == 1
    again = site.host.poclab(*site.switch)
    assert "web runs site:v3 already" in again.stderr
    assert site.history() == history
    assert site.lab.plan() == []


def inputs(site: Site, ref: str) -> dict[str, str]:
    """What went into a version."""
    (shown,) = json.loads(site.host.poclab("image", "show", ref, "-o", "json").stdout)
    found: dict[str, str] = shown["inputs"]
    return found


def test_its_disk_still_stands_on_the_version_it_was_made_from(site: Site) -> None:
    rows = json.loads(site.host.poclab("image", "ls", "site", "-o", "json").stdout)
    used = {row["tag"]: row["used_by"] for row in rows}
    assert used == {"v1": site.vm, "v3": "", "disk": ""}


def test_rollback_boots_what_it_booted_before(site: Site) -> None:
    site.ssh("echo 'written on v3' >>/var/lib/note")
    done = site.host.poclab(*site.rollback, "--no-warm", check=False)
    assert done.returncode == 2
    assert "goes back in place" in done.stderr
    site.stop(site.rollback, 3, "reboot")
    assert site.deployments()["rollbackQueued"] is True
    # Asked for twice bootc would take it back.
    site.stop(site.rollback, 3, "record")
    assert site.deployments()["rollbackQueued"] is False
    assert site.shown() == ("site:v1", "site:v3")
    boot = site.boot()
    done = site.host.poclab(*site.rollback)
    assert "web: runs site:v1 in place" in done.stderr
    assert (site.boot(), site.page(), site.shown()) == (boot, "v1", ("site:v1", ""))
    assert site.ssh("cat /var/lib/note") == "written on v1\nwritten on v3\n"
    assert site.history()[-1] == ("rollback", "site:v1")
    # To and fro, as bootc has it: with the same two systems.
    assert site.deployments()["rollback"]["image"]["image"]["transport"] == "oci"


def test_switching_to_what_it_ran_before_is_a_rollback(site: Site) -> None:
    running = site.deployments()["booted"]
    site.stop(site.switch, 1, "bootc rollback")
    assert site.deployments()["rollbackQueued"] is False
    site.stop(site.switch, 3, "reboot")
    assert site.deployments()["rollbackQueued"] is True
    # Asked for twice bootc would take it back.
    site.stop(site.switch, 3, "record")
    assert site.deployments()["rollback"] == running
    assert site.shown() == ("site:v1", "")
    done = site.host.poclab(*site.switch)
    assert (site.page(), site.shown()) == ("v3", ("site:v1", "site:v3"))
    assert site.history()[-1] == ("switch", "site:v3")
    # The first system is of no image of poclab's storage: its record says what it is.
    done = site.host.poclab("switch", site.vm, "--to", "v1", "--yes")
    assert "web: /etc becomes what it was when it ran site:v1 last" in done.stderr
    assert (site.page(), site.shown()) == ("v1", ("site:v1", ""))
    assert site.deployments()["booted"] == running
    assert left(site) == []


def test_an_image_of_the_same_content(site: Site) -> None:
    bootc_standin.build_twin(site.host, "same1", "v1")
    bootc_standin.build_twin(site.host, "same3", "v3")
    said = refused(site, "switch", site.vm, "--to", "same1", "--yes")
    assert f"site:same1 has the same content as what {site.vm} runs" in said
    assert f"poclab reset {site.vm} --to same1" in said
    said = refused(site, "switch", site.vm, "--to", "same3", "--yes")
    assert f"site:same3 has the same content as what {site.vm} ran before" in said
    assert f"poclab rollback {site.vm}" in said
    for tag in ("same1", "same3"):
        site.host.poclab("image", "rm", f"site:{tag}", "--yes")


def test_a_commit_says_what_was_switched_to(site: Site) -> None:
    site.host.poclab(*site.rollback)
    assert site.shown() == ("site:v1", "site:v3")
    site.host.poclab("commit", site.vm, "--as", "site:kept", "--no-quiesce")
    found = inputs(site, "site:kept")
    assert (found["version"], found["switched"]) == ("site:v1", "site:v3")
    image = site.deployments()["booted"]["image"]["imageDigest"]
    assert found["switched_image"] == image
    assert site.shown() == ("site:kept", "")


def test_a_switch_after_a_commit_that_was_cut_short_is_not_forgotten(site: Site) -> None:
    """The commit had put the VM over its version, and no record said so yet."""
    whole = site.host.count_steps(("commit", site.vm, "--as", "site:whole", "--no-quiesce"))
    step = whole.steps.index("define") + 1
    site.stop(("commit", site.vm, "--as", "site:cut", "--no-quiesce"), step, "define")
    assert site.shown()[0] == "site:whole"
    site.host.poclab(*site.switch)  # what it booted already is only written down
    site.lab.up()
    assert site.shown() == ("site:cut", "site:v3")
    assert site.history()[-2:] == [("commit", "site:cut"), ("switch", "site:v3")]


def test_a_guest_that_does_not_answer_is_sent_to_reset(site: Site) -> None:
    site.host.run("podman", "rmi", "--force", inputs(site, "site:v3")["image_id"])
    gone = refused(site, *site.switch)
    assert "the container image of site:v3 is not in this user's storage" in gone
    site.host.poclab("ssh", site.vm, "killall dropbear", check=False)
    done = site.host.poclab("switch", site.vm, "--to", "v1", "--yes", check=False)
    assert done.returncode == 1
    assert f"{site.vm} does not answer" in done.stderr
    assert f"`poclab reset {site.vm}` gives it a clean disk" in done.stderr
    site.lab.reset("web", "--to", "v1")
    assert site.ssh("ls /var/lib/note 2>/dev/null; true") == ""
    assert site.deployments()["rollback"] is None
    assert site.history()[-2:] == [("switch", "site:v3"), ("reset", "site:v1")]
    site.lab.off("web")
    off = site.host.poclab(*site.switch, check=False)
    assert f"{site.vm} does not run" in off.stderr
