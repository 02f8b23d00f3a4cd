"""Labs in qemu:///system without an uplink: as root, and as a member of group libvirt.

Nothing in the namespace leads anywhere: that all of this works shows that up, reset and down
need no network. Guests that need no operating system are a boot sector.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from xml.etree.ElementTree import fromstring, tostring

import pytest

from tests.support import labs, podman, shop
from tests.support.builder_standin import make
from tests.support.hosts import Host
from tests.support.onelab import OneLab, one_lab, up_together

TINY = "a: {{image: 'tiny:v1', networks: [{}]}}"


@pytest.fixture(scope="module")
def both(module_system: tuple[Host, Host]) -> tuple[Host, Host]:
    """Root and the member, with versions that the member stored through libvirt alone."""
    member = module_system[1]
    for ref in ("tiny:v1", "tiny:v2"):
        labs.store(member, ref)
    return module_system


@pytest.fixture(params=["root", "member"])
def lab(both: tuple[Host, Host], request: pytest.FixtureRequest) -> Iterator[OneLab]:
    """A lab as root, and once more as the member."""
    host = both[0] if request.param == "root" else both[1]
    before = host.domains(), host.networks()
    with one_lab(host, both[0]) as made:
        yield made
    assert (host.domains(), host.networks()) == before


@pytest.fixture
def member_lab(both: tuple[Host, Host]) -> Iterator[OneLab]:
    with one_lab(both[1], both[0]) as made:
        yield made


def network(host: Host, name: str) -> dict[str, str]:
    """The addresses a network reserves, by host name; and its own as `gateway`."""
    root = fromstring(host.virsh("net-dumpxml", name))
    found = {item.get("name", ""): item.get("ip", "") for item in root.iter("host")}
    ip = root.find("ip")
    assert ip is not None
    return {**found, "gateway": f"{ip.get('address')}/{ip.get('prefix')}"}


def leases(host: Host) -> str:
    """Everything that dnsmasq, which gives out addresses, was told."""
    return host.run("sh", "-c", "cat /var/lib/libvirt/dnsmasq/*.hostsfile", check=False).stdout


def addresses(host: Host) -> str:
    return host.run("ip", "-brief", "address").stdout


# --- networks -----------------------------------------------------------------------------


def test_up_makes_network_and_reservations_and_down_leaves_nothing(lab: OneLab) -> None:
    before = addresses(lab.host)
    lab.write(TINY.format("{name: lan, ip: 10.77.40.33}"),
              networks="lan: {mode: nat, cidr: 10.77.40.0/24}")  # fmt: skip
    lab.up()
    assert network(lab.host, f"{lab.name}.lan") == {"gateway": "10.77.40.1/24", "a": "10.77.40.33"}
    assert "10.77.40.1/24" in addresses(lab.host)
    assert lab.status()["a"]["address"] == "10.77.40.33"
    assert "nothing to do" in lab.up().stderr
    lab.down()
    assert f"{lab.name}.lan" not in lab.host.networks()
    assert addresses(lab.host) == before


def test_reset_and_kept_disks_work_through_both_ways_to_the_pool(
    lab: OneLab, both: tuple[Host, Host]
) -> None:
    lab.write("a: {image: 'tiny:v1', disks: [{name: data, size: 1MiB, keep: false}]}")
    lab.up()
    lab.off("a")
    # Root may look into and write the files; the member's poclab cannot.
    labs.scribble(both[0], lab.disks("a")[1], 0x33)
    lab.write("a: {image: 'tiny:v1', disk: 5MiB, disks: [{name: data, size: 2MiB, keep: true}]}")
    lab.up()
    directory = labs.look(both[0])["directory"]
    system = f"{directory}/{lab.disks('a')[0]}"
    assert "5 MiB" in both[0].run("qemu-img", "info", "-U", system).stdout
    kept = lab.disks("a")[1]
    lab.reset("a", "--to", "v2")
    assert lab.status()["a"]["version"] == "tiny:v2"
    assert lab.disks("a")[1] == kept == f"data.{lab.name}.a.data.qcow2"
    lab.off("a")
    path = f"{directory}/{kept}"
    assert "2 MiB" in both[0].run("qemu-img", "info", path).stdout
    read = both[0].run("qemu-io", "-r", "-f", "qcow2", "-c", "read -P 0x33 0 64k", path).stdout
    assert "verification failed" not in read
    assert "read 65536/65536 bytes" in read
    lab.down("--volumes")
    assert lab.volumes() == set()
    assert labs.leftovers(lab.host) == []


def test_status_shows_drift_through_both_ways_to_the_pool(
    lab: OneLab, both: tuple[Host, Host]
) -> None:
    image = lab.name
    for tag in ("v1", "v2"):
        lab.host.poclab("image", "tag", f"tiny:{tag}", f"{image}:{tag}")
    disks = "[{name: data, size: 1MiB, keep: true}, {name: tmp, size: 1MiB}]"
    lab.write(f"a: {{image: '{image}:v1', disks: {disks}}}")
    lab.up()

    def drift() -> tuple[str, str, str, int]:
        row = lab.status()["a"]
        same = {"": "gone", row["tag_digest"]: "same"}
        return (row["drift"], row["wanted"], same.get(row["stored_digest"], "other"),
                row["written"])  # fmt: skip

    asked = f"{image}:v1"
    assert drift() == ("", asked, "same", 0)
    lab.reset("a", "--to", "v2")
    assert drift() == ("file asks v1", asked, "same", 0)
    lab.off("a")
    system, kept, tmp = lab.disks("a")
    written = []
    for disk in (system, tmp, kept):
        labs.scribble(both[0], disk, 0x33)
        written.append(drift()[3])
    assert 65536 <= written[0] <= written[1] - 65536 < 2**20
    assert written[2] == written[1]  # a reset leaves that disk alone
    lab.host.virsh("vol-delete", "--pool", "poclab", f"manifest.{image}.v2.json")
    assert drift() == ("file asks v1; v2 is gone", asked, "gone", written[1])
    lab.host.poclab("image", "tag", "tiny:v1", f"{image}:v2")
    assert drift()[:3] == ("file asks v1; v2 is another disk now", asked, "other")
    heading, line = lab.host.poclab("status", lab.name).stdout.splitlines()
    assert heading.split()[-2:] == ["WRITTEN", "DRIFT"]
    assert line.endswith("file asks v1; v2 is another disk now")
    assert [action["action"] for action in lab.plan()] == ["start"]  # no reset
    lab.reset("a")
    assert drift() == ("file asks v1", asked, "same", 0)
    lab.down("--volumes")
    lab.host.poclab("image", "rm", "--yes", f"{image}:v1", f"{image}:v2")


def test_keep_that_is_said_later_survives_a_stop_where_libvirt_has_to_copy(
    member_lab: OneLab, both: tuple[Host, Host]
) -> None:
    lab, (root, _) = member_lab, both

    def written(keep: str) -> None:
        lab.write(f"a: {{image: 'tiny:v1', disks: [{{name: data, size: 1MiB, keep: {keep}}}]}}")

    written("false")
    lab.up()
    lab.off("a")
    content = labs.scribble(root, lab.disks("a")[1], 0x44)
    kept = f"data.{lab.name}.a.data.qcow2"
    written("true")
    steps = lab.host.count_steps(["up", lab.path, "--yes"]).steps
    at = steps.index("delete the old name") + 1
    assert labs.content(root, kept) == content
    written("false")
    lab.up()
    # Both are there and whole: the next one goes on.
    written("true")
    assert lab.host.stop_at(["up", lab.path, "--yes"], at).reached
    lab.up()
    assert labs.content(root, kept) == content
    assert lab.volumes() == set(lab.disks("a")) == {lab.disks("a")[0], kept}
    # Or it was no longer meant to be kept: nothing of it stays.
    written("false")
    lab.up()
    written("true")
    assert lab.host.stop_at(["up", lab.path, "--yes"], at).reached
    lab.down()
    assert lab.volumes() == set()


def test_what_a_renamed_domain_stands_on_is_seen_without_reading_the_files(
    member_lab: OneLab, both: tuple[Host, Host]
) -> None:
    lab, (root, _) = member_lab, both
    labs.store(lab.host, "lent:v1")
    lab.write("a: {image: 'lent:v1'}")
    lab.up()
    lab.off("a")
    lab.host.virsh("domrename", lab.domain("a"), "stranger")
    # As somebody writes it: what is below the disk is in its own header alone.
    xml = fromstring(lab.host.virsh("dumpxml", "stranger"))
    for disk in xml.iterfind("devices/disk"):
        for below in disk.findall("backingStore"):
            disk.remove(below)
    lab.host.virsh("define", str(lab.host.write("stranger.xml", tostring(xml, "unicode"))))
    (overlay,) = labs.look(root)["domains"]["stranger"]["defined"]
    lab.down()
    assert lab.volumes() == {overlay}
    for host in (lab.host, root):
        done = host.poclab("image", "rm", "--yes", "lent:v1", check=False)
        assert "why: domain stranger stands on it" in done.stderr
    lab.host.virsh("undefine", "stranger")
    lab.host.poclab("image", "rm", "--yes", "lent:v1")
    lab.down()
    assert lab.volumes() == set()


def test_libvirt_says_who_its_guests_run_as(both: tuple[Host, Host]) -> None:
    root, member = both
    with one_lab(member, root) as lab:
        lab.write("a: {image: 'tiny:v1'}")
        lab.up()
        # A running guest's disk is made over to whom it runs as.
        disk = f"{labs.look(root)['directory']}/{lab.disks('a')[0]}"
        runs_as = root.run("stat", "-c", "%u %g", disk).stdout.split()
    assert runs_as != ["0", "0"]
    code = (
        "from poclab.virt.host import connect\n"
        "with connect() as host:\n    print(*host.qemu_user())\n"
    )
    for host in both:
        assert host.run(host.place.installation.python, "-c", code).stdout.split() == runs_as


def test_a_member_cannot_write_the_pool_and_needs_no_root(both: tuple[Host, Host]) -> None:
    _, member = both
    directory = labs.look(both[0])["directory"]
    assert member.run("test", "-w", directory, check=False).returncode == 1
    rows = json.loads(member.poclab("image", "ls", "-o", "json").stdout)
    assert [row["tag"] for row in rows] == ["v1", "v2"]
    # Who cannot read the pool's files does not learn what they share.
    assert [row["unique"] for row in rows] == [None, None]
    own = json.loads(both[0].poclab("image", "ls", "-o", "json").stdout)
    assert all(row["unique"] > 0 for row in own)
    assert [row | {"unique": None} for row in own] == rows


def test_a_new_network_is_planned_and_made(member_lab: OneLab) -> None:
    lab = member_lab
    lab.write(TINY.format("lan"), networks="lan: {mode: nat, cidr: 10.77.41.0/24}")
    lab.up()
    both = "lan: {mode: nat, cidr: 10.77.41.0/24}, back: {mode: isolated, cidr: 10.77.42.0/24}"
    lab.write(TINY.format("lan, back"), networks=both)
    assert [(row["action"], row["target"]) for row in lab.plan()] == [
        ("make network", "back"),
        ("change", "a"),
    ]
    lab.up()
    assert network(lab.host, f"{lab.name}.back") == {"gateway": "10.77.42.1/24", "a": "10.77.42.10"}
    assert "<forward" not in lab.host.virsh("net-dumpxml", f"{lab.name}.back")
    assert lab.host.virsh("domiflist", lab.domain("a")).count(f"{lab.name}.") == 2
    # Taken out of the file again it goes.
    lab.write(TINY.format("lan"), networks="lan: {mode: nat, cidr: 10.77.41.0/24}")
    assert {row["action"] for row in lab.plan()} == {"change", "remove network"}
    lab.up()
    assert {n for n in lab.host.networks() if n.startswith(f"{lab.name}.")} == {f"{lab.name}.lan"}
    assert "10.77.42.1" not in addresses(lab.host)


def test_other_addresses_are_planned_as_a_reboot_and_applied(member_lab: OneLab) -> None:
    lab = member_lab
    lab.write(TINY.format("lan"), networks="lan: {mode: nat, cidr: 10.77.43.0/24}")
    lab.up()
    lab.write(TINY.format("lan"), networks="lan: {mode: isolated, cidr: 10.77.44.0/24}")
    remake, change = lab.plan()
    assert remake["action"] == "remake network"
    assert remake["reason"] == "nat 10.77.43.0/24 -> isolated 10.77.44.0/24"
    assert (change["action"], change["reboots"]) == ("change", True)
    lab.up()
    assert network(lab.host, f"{lab.name}.lan") == {"gateway": "10.77.44.1/24", "a": "10.77.44.10"}
    assert "10.77.43.1" not in addresses(lab.host)
    assert lab.status()["a"]["address"] == "10.77.44.10"
    assert lab.plan() == []


def test_a_new_vm_gets_its_address_while_the_network_runs(
    member_lab: OneLab, both: tuple[Host, Host]
) -> None:
    lab = member_lab
    lan = "lan: {mode: nat, cidr: 10.77.45.0/24}"
    lab.write(TINY.format("lan"), networks=lan)
    lab.up()
    before = lab.run_id("a")
    lab.write(TINY.format("lan"), "b: {image: 'tiny:v1', networks: [lan]}", networks=lan)
    lab.up()
    assert network(lab.host, f"{lab.name}.lan")["b"] == "10.77.45.11"
    assert "10.77.45.11,b" in leases(both[0])
    assert lab.run_id("a") == before
    lab.write(TINY.format("lan"), networks=lan)
    lab.up()
    assert "b" not in network(lab.host, f"{lab.name}.lan")
    assert "10.77.45.11" not in leases(both[0])


def test_up_starts_a_network_that_was_stopped(member_lab: OneLab) -> None:
    lab = member_lab
    lab.write(TINY.format("lan"), networks="lan: {mode: nat, cidr: 10.77.46.0/24}")
    lab.up()
    lab.off("a")
    lab.host.virsh("net-destroy", f"{lab.name}.lan")
    assert [row["action"] for row in lab.plan()] == ["start network", "start"]
    lab.up()
    assert "10.77.46.1/24" in addresses(lab.host)
    assert lab.status()["a"]["state"] == "running"


def plugged(host: Host, name: str) -> int:
    """How many cards are plugged into a network, as libvirt has it."""
    return len(host.virsh("net-port-list", name).split())


def test_a_network_that_was_removed_is_made_again_under_vms_that_run(
    member_lab: OneLab, both: tuple[Host, Host]
) -> None:
    lab, (root, _) = member_lab, both
    name = f"{lab.name}.lan"
    lab.write(TINY.format("lan"), networks="lan: {mode: nat, cidr: 10.77.53.0/24}")
    lab.up()
    before = lab.run_id("a")
    lab.host.remove_network(name)
    make_it, reconnect = lab.plan()
    assert make_it["action"] == "make network"
    assert (reconnect["action"], reconnect["target"]) == ("reconnect", "a")
    assert (reconnect["reason"], reconnect["reboots"]) == (
        "network lan was stopped while it ran",
        False,
    )
    lab.up()
    card = lab.host.virsh("domiflist", lab.domain("a")).split()[0]
    link = root.run("ip", "-o", "link", "show", card).stdout
    assert " master poc" in link
    assert plugged(lab.host, name) == 1
    assert lab.run_id("a") == before
    assert lab.plan() == []


def test_a_reconnect_that_is_stopped_is_finished_by_the_next_up(member_lab: OneLab) -> None:
    lab = member_lab
    name = f"{lab.name}.lan"
    lab.write(TINY.format("lan"), networks="lan: {mode: nat, cidr: 10.77.54.0/24}")
    lab.up()
    before = lab.run_id("a")

    def cut() -> None:
        lab.host.virsh("net-destroy", name)
        lab.host.virsh("net-start", name)
        assert plugged(lab.host, name) == 0

    cut()
    steps = lab.host.count_steps(["up", lab.path]).steps
    assert plugged(lab.host, name) == 1
    for step in range(steps.index("plug") + 1, len(steps) + 1):
        cut()
        assert lab.host.stop_at(["up", lab.path], step).reached
        lab.up()
        assert plugged(lab.host, name) == 1
        assert {x for x in lab.host.networks() if x.startswith(f"{lab.name}.")} == {name}
        assert lab.plan() == []
    assert lab.run_id("a") == before


def test_a_foreign_network_with_our_name_is_refused_and_untouched(member_lab: OneLab) -> None:
    lab = member_lab
    name = f"{lab.name}.lan"
    path = lab.host.write("foreign-net.xml", f"<network><name>{name}</name></network>")
    lab.host.virsh("net-define", "--validate", str(path))
    before = lab.host.virsh("net-dumpxml", name)
    lab.write(TINY.format("lan"), networks="lan: {mode: nat, cidr: 10.77.47.0/24}")
    done = lab.up(check=False)
    assert done.returncode == 2
    assert f"a network {name} exists that is not poclab's" in done.stderr
    assert lab.volumes() == set()
    lab.down()
    assert lab.host.virsh("net-dumpxml", name) == before
    lab.host.remove_network(name)


OUT = """
chain out { type filter hook output priority 0;
    ip daddr 10.77.0.0/16 counter comment "probes"
}
"""


def test_status_sends_nothing_while_the_network_is_down(
    member_lab: OneLab, both: tuple[Host, Host]
) -> None:
    lab, (root, _) = member_lab, both
    lab.write(
        "a: {image: 'tiny:v1', networks: [lan], ready: {tcp: 80, timeout: 1}}",
        networks="lan: {mode: nat, cidr: 10.77.48.0/24}",
    )
    assert lab.up(check=False).returncode == 1
    # A way out, so that a probe would go there instead of being refused.
    root.run("ip", "link", "add", "office", "type", "veth", "peer", "name", "street")
    root.run("ip", "link", "set", "office", "up")
    root.run("ip", "link", "set", "street", "up")
    root.run("ip", "route", "add", "default", "dev", "office")
    shop.count(root, "strangers", OUT)
    try:
        assert lab.status()["a"]["ready"] == "no"
        seen = shop.counter(root, "probes")
        assert seen > 0, "with its network up the guest is asked"
        lab.host.virsh("net-destroy", f"{lab.name}.lan")
        assert lab.status()["a"]["ready"] == "no"
        done = lab.host.poclab("ssh", f"{lab.name}/a", "true", check=False)
        assert "none of its networks is up on this host" in done.stderr
        assert shop.counter(root, "probes") == seen
    finally:
        root.run("nft", "delete", "table", "inet", "strangers")
        root.run("ip", "link", "delete", "office")


# --- guests -------------------------------------------------------------------------------

WEB = "web: {image: 'shop:v1', networks: [{name: lan, ip: 10.77.50.40}], memory: 256MiB}"
PEER = "peer: {image: 'shop:v1', networks: [lan], memory: 256MiB}"


@pytest.fixture(scope="module")
def guests(both: tuple[Host, Host]) -> Iterator[tuple[OneLab, OneLab]]:
    """Two labs of the member: two VMs on one network, and one VM on another's."""
    shop.give(both[1], ["v1"])
    with one_lab(both[1], both[0]) as near, one_lab(both[1], both[0]) as far:
        near.write(WEB, PEER, networks="lan: {mode: nat, cidr: 10.77.50.0/24}",
                   defaults=shop.DEFAULTS)  # fmt: skip
        far.write("far: {image: 'shop:v1', networks: [lan]}",
                  networks="lan: {mode: nat, cidr: 10.77.51.0/24}",
                  defaults=shop.DEFAULTS)  # fmt: skip
        up_together(near, far)
        yield near, far


@pytest.mark.guest
def test_a_guest_gets_the_address_that_was_reserved(guests: tuple[OneLab, OneLab]) -> None:
    near, _ = guests
    assert near.status()["web"]["address"] == "10.77.50.40"
    assert near.status()["web"]["ready"] == "yes"
    shown = shop.ssh(near.host, f"{near.name}/web", "ip", "-o", "-4", "address")
    assert "10.77.50.40/24" in shown
    assert shop.page(near.host, "10.77.50.40").version == "v1"


@pytest.mark.guest
def test_guests_of_a_lab_reach_each_other_by_name(guests: tuple[OneLab, OneLab]) -> None:
    near, _ = guests
    assert shop.pings(near.host, f"{near.name}/peer", "10.77.50.40")
    found = shop.ssh(near.host, f"{near.name}/peer", "busybox nslookup web 10.77.50.1; true")
    assert "10.77.50.40" in found


@pytest.mark.guest
def test_guests_are_reached_again_after_their_network_was_stopped(
    guests: tuple[OneLab, OneLab],
) -> None:
    near, _ = guests
    before = near.run_id("web"), near.run_id("peer")
    near.host.virsh("net-destroy", f"{near.name}.lan")
    near.host.virsh("net-start", f"{near.name}.lan")
    assert near.status()["web"]["ready"] == "no"
    near.up()
    assert near.status()["web"]["ready"] == "yes"
    assert shop.page(near.host, "10.77.50.40").version == "v1"
    assert shop.pings(near.host, f"{near.name}/peer", "10.77.50.40")
    assert (near.run_id("web"), near.run_id("peer")) == before


# The second hook is reached by what the forward chain let pass, before its source is rewritten.
COUNT = """
chain pass { type filter hook forward priority -300;
    ip saddr 10.77.50.0/23 ip daddr 10.77.50.0/23 counter comment "tried"
}
chain arrive { type filter hook postrouting priority 0;
    iifname "poc*" ip saddr 10.77.50.0/23 ip daddr 10.77.50.0/23 counter comment "passed"
}
"""


@pytest.mark.guest
def test_networks_of_different_labs_do_not_reach_each_other(
    guests: tuple[OneLab, OneLab], both: tuple[Host, Host]
) -> None:
    near, far = guests
    root, _ = both
    other = far.status()["far"]["address"]
    shop.count(root, "labs", COUNT)
    assert not shop.pings(near.host, f"{near.name}/peer", other, count=2)
    tried = shop.counter(root, "tried")
    assert tried > 0
    assert not shop.pings(far.host, f"{far.name}/far", "10.77.50.40", count=2)
    assert shop.counter(root, "tried") > tried
    assert shop.counter(root, "passed") == 0
    # The host, which has a foot in both, reaches either.
    assert shop.page(root, other).version == "v1"
    root.run("nft", "delete", "table", "inet", "labs")


# --- bootc-image-builder ------------------------------------------------------------------


@pytest.mark.guest
def test_a_disk_of_the_builders_stand_in_boots(both: tuple[Host, Host]) -> None:
    root, _ = both
    with podman.working():
        make.make()
    shop.base(root)
    definition = root.scratch / "shopbib"
    root.run("cp", "-r", "images/shop", str(definition))
    text = (definition / "image.yaml").read_text()
    text = text.replace("builder: direct", "builder: bootc-image-builder")
    text = text.replace("disk: 256MiB", f"disk: 10GiB\nbuilder_image: {make.IMAGE}")
    (definition / "image.yaml").write_text(text)
    root.poclab("image", "build", str(definition), "--tag", "v2", timeout=300)
    (row,) = json.loads(root.poclab("image", "ls", "shopbib", "-o", "json").stdout)
    assert row["origin"].startswith("built ")
    with one_lab(root) as lab:
        lab.write("vm: {image: 'shopbib:v2', networks: [lan]}",
                  networks="lan: {mode: nat, cidr: 10.77.52.0/24}",
                  defaults=shop.DEFAULTS)  # fmt: skip
        lab.up()
        assert shop.page(root, lab.status()["vm"]["address"]).version == "v2"
        lab.down()
    root.poclab("image", "rm", "--yes", "shopbib:v2")
    podman.run("rmi", "--force", "--ignore", "localhost/poclab/shopbib:v2")
