"""Reset, history and down in qemu:///session, on guests of one boot sector."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from xml.etree.ElementTree import Element, SubElement, fromstring, tostring

import pytest

from tests.support import labs
from tests.support.hosts import Host
from tests.support.onelab import OneLab, free_port, on_a_terminal, one_lab, up_together

KEPT = "disks: [{name: data, size: 1MiB, keep: true}]"


@pytest.fixture(scope="module")
def tiny(module_session: Host) -> Host:
    """The host with an image in two versions and another in one."""
    for ref in ("tiny:v1", "tiny:v2", "other:v1"):
        labs.store(module_session, ref)
    return module_session


@pytest.fixture
def lab(tiny: Host, session_host: Host) -> Iterator[OneLab]:
    with one_lab(session_host) as made:
        yield made


# --- reset --------------------------------------------------------------------------------


def test_reset_puts_one_vm_on_another_version_and_leaves_the_rest(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}", "b: {image: 'tiny:v1'}")
    lab.up()
    a, b = lab.run_id("a"), lab.run_id("b")
    lab.reset("a", "--to", "v2")
    versions = {vm: row["version"] for vm, row in lab.status().items()}
    assert versions == {"a": "tiny:v2", "b": "tiny:v1"}
    assert (lab.run_id("a") != a, lab.run_id("b")) == (True, b)
    overlay = f"{labs.look(lab.host)['directory']}/{lab.disks('a')[0]}"
    info = lab.host.run("qemu-img", "info", "-U", "--output=json", overlay).stdout
    assert lab.status()["a"]["tag_digest"][7:] in json.loads(info)["backing-filename"]
    assert lab.volumes() == {*lab.disks("a"), *lab.disks("b")}


def test_up_leaves_a_vm_on_the_version_it_was_reset_to(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}")
    lab.up()
    lab.reset("a", "--to", "v2")
    before = lab.run_id("a")
    assert "nothing to do" in lab.up().stderr
    assert lab.status()["a"]["version"] == "tiny:v2"
    assert lab.run_id("a") == before


def test_reset_without_a_tag_is_the_same_version_clean(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}")
    lab.up()
    lab.reset("a", "--to", "v2")
    lab.off("a")
    old = lab.disks("a")[0]
    dirty = labs.scribble(lab.host, old, 0x99)
    lab.reset("a")
    new = lab.disks("a")[0]
    assert new != old
    assert labs.content(lab.host, new) != dirty
    assert lab.status()["a"]["version"] == "tiny:v2"
    assert lab.status()["a"]["state"] == "running"


def test_memory_that_waits_for_the_next_start_goes_with_its_disks(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}")
    lab.up()
    lab.host.virsh("managedsave", lab.domain("a"))
    done = lab.reset("a", "--to", "v2", "--keep-old")
    assert "as after a power cut: poclab restore" in done.stderr
    listed = lab.host.virsh("list", "--all", "--managed-save")
    assert "saved" not in listed
    found = labs.look(lab.host)["domains"][lab.domain("a")]
    assert found["live"] == found["defined"]
    assert lab.status()["a"]["version"] == "tiny:v2"
    lab.host.virsh("managedsave", lab.domain("a"))
    lab.host.poclab("restore", f"{lab.name}/a")
    found = labs.look(lab.host)["domains"][lab.domain("a")]
    assert found["live"] == found["defined"]
    assert lab.status()["a"]["version"] == "tiny:v1"


def test_reset_keeps_what_is_to_be_kept_and_renews_the_rest(lab: OneLab) -> None:
    lab.write(f"a: {{image: 'tiny:v1', {KEPT[:-1]}, {{name: tmp, size: 1MiB}}]}}")
    lab.up()
    lab.off("a")
    _, kept, passing = lab.disks("a")
    blank = labs.content(lab.host, passing)
    content = labs.scribble(lab.host, kept, 0x11)
    labs.scribble(lab.host, passing, 0x22)
    lab.reset("a", "--to", "v2")
    assert lab.disks("a")[1] == kept
    assert labs.content(lab.host, kept) == content
    assert lab.disks("a")[2] != passing
    assert labs.content(lab.host, lab.disks("a")[2]) == blank
    assert lab.volumes() == set(lab.disks("a"))


def test_a_missing_tag_names_those_there_are_and_touches_nothing(lab: OneLab) -> None:
    lab.write(f"a: {{image: 'tiny:v1', {KEPT}}}", "b: {image: 'other:v1'}")
    lab.up()
    before = lab.digests(), labs.look(lab.host), lab.run_id("a"), lab.run_id("b")
    done = lab.reset("a", "--to", "v9", check=False)
    assert done.returncode == 1
    assert "tiny:v9 is not there" in done.stderr
    assert "tiny has v1, v2" in done.stderr
    # The first of the two has the version, the second has not.
    done = lab.reset("a", "b", "--to", "v2", check=False)
    assert done.returncode == 1
    assert "other has v1" in done.stderr
    assert (lab.digests(), labs.look(lab.host), lab.run_id("a"), lab.run_id("b")) == before


def test_several_vms_and_whole_labs_are_reset_at_once(lab: OneLab) -> None:
    lab.write(*(f"{vm}: {{image: 'tiny:v1'}}" for vm in ("a", "b", "c")))
    lab.up()
    lab.host.poclab("reset", f"{lab.name}/a", f"{lab.name}/b", "--to", "v2")
    versions = {vm: row["version"] for vm, row in lab.status().items()}
    assert versions == {"a": "tiny:v2", "b": "tiny:v2", "c": "tiny:v1"}
    lab.reset("--all", "--to", "v1")
    assert {row["version"] for row in lab.status().values()} == {"tiny:v1"}
    assert lab.history("a") == [("create", "tiny:v1"), ("reset", "tiny:v2"), ("reset", "tiny:v1")]
    assert lab.history("c") == [("create", "tiny:v1"), ("reset", "tiny:v1")]


def test_labs_are_reset_by_their_names_and_all_that_is_asked_for_is_checked_first(
    lab: OneLab, tiny: Host
) -> None:
    with one_lab(tiny) as more:
        lab.write("a: {image: 'tiny:v1'}", "o: {image: 'other:v1'}")
        more.write("m: {image: 'tiny:v1'}", f"{lab.name}: {{image: 'tiny:v1'}}")
        up_together(lab, more)
        done = tiny.poclab("reset", lab.name, "--to", "v2", check=False)
        assert done.returncode == 2
        assert f"write {more.name}/{lab.name} for the VM, --lab {lab.name} --all" in done.stderr
        before = lab.run_id("o"), more.run_id("m")
        done = tiny.poclab("reset", f"{lab.name}/a", more.name, "--to", "v2")
        assert lab.run_id("o") == before[0]
        done = lab.reset("--all", "--to", "v2")
        assert f"{lab.name}/o stays on other:v1: its image has no v2" in done.stderr
        assert lab.run_id("o") == before[0]
        assert [row["version"] for row in [*lab.status().values(), *more.status().values()]] == [
            "tiny:v2", "other:v1", "tiny:v2", "tiny:v2",
        ]  # fmt: skip
        # One disk that is cut short, of all those that are wanted: nothing is touched.
        seen = labs.look(tiny)
        path = f"{seen['directory']}/{labs.base(tiny, 'other:v1')}"
        tiny.run("sh", "-c", 'cp "$0" "$0.whole" && chmod +w "$0" && truncate -s -1 "$0"', path)
        done = tiny.poclab("reset", "--all", check=False)
        assert "the disk of other:v1 is damaged" in done.stderr
        tiny.run("mv", f"{path}.whole", path)
        assert labs.look(tiny) == seen
        code, shown = on_a_terminal(tiny, "n", "reset", "--all", "--to", "v1")
        assert (code, labs.look(tiny) == seen) == (1, True)
        assert f"Reset 4 VMs of {', '.join(sorted((lab.name, more.name)))}? [y/N]" in shown
        tiny.poclab("reset", "--all", "--to", "v1")
        rows = [*lab.status().values(), *more.status().values()]
        assert {row["version"] for row in rows} == {
            "tiny:v1", "other:v1",
        }  # fmt: skip


def test_one_vm_that_fails_keeps_back_only_those_that_come_after_it(lab: OneLab) -> None:
    port = free_port()
    lab.write(
        f"a: {{image: 'tiny:v1', ports: ['{port}:80']}}",
        "b: {image: 'tiny:v1', after: [a]}",
        "c: {image: 'tiny:v1'}",
    )
    lab.up()
    lab.off("a")
    with closing(socket.create_server(("127.0.0.1", port))):
        done = lab.host.poclab("reset", lab.name, "--to", "v2", check=False)
    assert done.returncode == 1
    assert f"{lab.name}/b was not started" in done.stderr
    states = {vm: (row["version"], row["state"]) for vm, row in lab.status().items()}
    off = ("tiny:v2", "shut off")
    assert states == {"a": off, "b": off, "c": ("tiny:v2", "running")}
    lab.host.poclab("reset", lab.name)
    assert {row["state"] for row in lab.status().values()} == {"running"}


def test_a_name_in_two_labs_must_be_said_in_full(lab: OneLab, tiny: Host) -> None:
    with one_lab(tiny) as other:
        for each in (lab, other):
            each.write("same: {image: 'tiny:v1'}")
            each.up()
        done = tiny.poclab("reset", "same", "--to", "v2", check=False)
        assert done.returncode == 2
        assert ", ".join(sorted((f"{lab.name}/same", f"{other.name}/same"))) in done.stderr
        tiny.poclab("reset", f"{other.name}/same", "--to", "v2")
        assert lab.status()["same"]["version"] == "tiny:v1"
        assert other.status()["same"]["version"] == "tiny:v2"
    # Alone again the short name is enough.
    tiny.poclab("reset", "same", "--to", "v2")
    assert lab.status()["same"]["version"] == "tiny:v2"


def test_rollback_refuses_what_it_cannot_bring_back(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}")
    lab.up()
    done = lab.host.poclab("rollback", f"{lab.name}/a", check=False)
    assert done.returncode == 1
    assert f"there is nothing to roll {lab.name}/a back to" in done.stderr
    lab.host.poclab("image", "tag", "tiny:v2", "tiny:passing")
    lab.reset("a", "--to", "passing")
    lab.reset("a", "--to", "v1")
    lab.host.poclab("image", "rm", "tiny:passing", "--yes")
    for change, told in (
        ((), "tiny:passing is not there"),
        (("image", "tag", "tiny:v1", "tiny:passing"), "tiny:passing is not what"),
    ):
        if change:
            lab.host.poclab(*change)
        before, disks = lab.run_id("a"), lab.disks("a")
        done = lab.host.poclab("rollback", f"{lab.name}/a", check=False)
        assert (done.returncode, told in done.stderr) == (1, True), done.stderr
        assert (lab.run_id("a"), lab.disks("a")) == (before, disks)
    lab.host.poclab("image", "rm", "tiny:passing", "--yes")


def test_memory_is_kept_only_where_it_is_known_when(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}")
    lab.up()
    done = lab.reset("a", "--warm")
    assert "its memory is not kept: without `ready` nobody knows when" in done.stderr
    done = lab.host.poclab("warm", "drop", f"{lab.name}/a", "--to", "no tag", check=False)
    assert done.returncode == 2
    assert [x for x in lab.volumes() if x.startswith("warm.")] == []


def test_history_is_in_the_domain_and_tells_who(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}")
    lab.up()
    lab.reset("a", "--to", "v2")
    rows = json.loads(lab.host.poclab("history", f"{lab.name}/a", "-o", "json").stdout)
    assert [list(row) for row in rows] == [
        ["time", "lab", "vm", "action", "version", "digest", "by", "start", "seconds"]
    ] * 2
    assert [(row["start"], row["seconds"]) for row in rows] == [("", None)] * 2  # no `ready`
    assert {row["by"] for row in rows} == {lab.host.account.name}
    assert rows[1]["digest"] == lab.status()["a"]["tag_digest"]
    xml = lab.host.virsh("metadata", lab.domain("a"), "https://poclab.dev/xmlns/1")
    assert [item.get("tag") for item in fromstring(xml).iter() if item.tag.endswith("event")] == [
        "v1",
        "v2",
    ]


def test_reset_makes_the_firmware_variables_anew(lab: OneLab) -> None:
    disk = labs.disk_file(lab.host, "uefi.raw")
    lab.host.poclab("image", "import", "uefi:v1", str(disk), "--profile", "linux")
    lab.write("a: {image: 'uefi:v1'}", defaults="memory: 64MiB")
    lab.up()
    nvram = fromstring(lab.host.virsh("dumpxml", lab.domain("a"))).findtext("os/nvram", "")
    lab.off("a")
    # A variable store ends in 0xff; the firmware gets as far as its own in a moment.
    lab.host.run("dd", "if=/dev/zero", f"of={nvram}", "bs=1", "seek=100000", "count=64",
                 "conv=notrunc")  # fmt: skip

    def mark() -> bytes:
        text = lab.host.run("od", "-An", "-tx1", "-v", "-j100000", "-N64", nvram).stdout
        return bytes.fromhex(text)

    assert mark() == bytes(64)
    lab.up()
    assert mark() == bytes(64), "a start alone keeps them"
    lab.reset("a")
    assert mark() == b"\xff" * 64
    lab.down()
    lab.host.poclab("image", "rm", "--yes", "uefi:v1")


# --- down ---------------------------------------------------------------------------------


def test_down_needs_no_file_and_takes_nothing_else(lab: OneLab, tiny: Host) -> None:
    with one_lab(tiny) as other:
        for each in (lab, other):
            each.write(f"a: {{image: 'tiny:v1', {KEPT}}}")
            each.up()
        running, volumes = other.run_id("a"), other.volumes()
        tiny.run("rm", lab.path)
        done = lab.down()
        assert f"{lab.name} is down" in done.stderr
        assert lab.status() == {}
        assert lab.volumes() == {f"data.{lab.name}.a.data.qcow2"}
        assert (other.run_id("a"), other.volumes()) == (running, volumes)


def test_a_kept_disk_survives_down_and_is_found_again(lab: OneLab) -> None:
    lab.write(f"a: {{image: 'tiny:v1', {KEPT}}}")
    lab.up()
    lab.off("a")
    content = labs.scribble(lab.host, lab.disks("a")[1], 0x42)
    done = lab.down()
    assert f"kept: data disk a/data (`poclab down {lab.name} --volumes` removes it)" in done.stderr
    lab.up()
    assert labs.content(lab.host, lab.disks("a")[1]) == content
    lab.down("--volumes")
    assert lab.volumes() == set()


def test_down_twice_says_that_there_was_nothing(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}")
    lab.up()
    lab.down()
    done = lab.down()
    assert done.returncode == 0
    assert f"{lab.name} was not up: nothing to do" in done.stderr


def test_down_asks_on_a_terminal(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}")
    lab.up()
    before = lab.run_id("a")
    code, shown = on_a_terminal(lab.host, "n", "down", lab.name)
    assert (code, lab.run_id("a")) == (1, before)
    assert f"Remove VMs a of {lab.name}? [y/N]" in shown
    code, shown = on_a_terminal(lab.host, "y", "down", lab.name)
    assert code == 0
    assert lab.domain("a") not in lab.host.domains()


def test_up_asks_on_a_terminal_before_a_reboot(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}")
    lab.up()
    before = lab.run_id("a")
    lab.write("a: {image: 'tiny:v1', memory: 48MiB}")
    code, shown = on_a_terminal(lab.host, "n", "up", lab.path)
    assert (code, lab.run_id("a")) == (1, before)
    assert "[reboots]" in shown


# --- what is somebody else's --------------------------------------------------------------


def foreign(host: Host, name: str, metadata: Element | None = None) -> None:
    """Define a domain that poclab did not make, perhaps with metadata that it wrote."""
    root = Element("domain", {"type": "qemu"})
    SubElement(root, "name").text = name
    SubElement(root, "memory", {"unit": "MiB"}).text = "32"
    kind = SubElement(SubElement(root, "os"), "type", {"arch": "x86_64", "machine": "pc"})
    kind.text = "hvm"
    if metadata is not None:
        SubElement(root, "metadata").append(metadata)
    path = host.write("foreign.xml", tostring(root, "unicode"))
    host.virsh("define", "--validate", str(path))


def test_a_foreign_domain_with_our_name_is_refused_and_untouched(lab: OneLab) -> None:
    foreign(lab.host, lab.domain("a"))
    before = lab.host.virsh("dumpxml", lab.domain("a"))
    lab.write("a: {image: 'tiny:v1'}", "b: {image: 'tiny:v1'}")
    done = lab.up(check=False)
    assert done.returncode == 2
    assert f"a domain {lab.domain('a')} exists that is not poclab's" in done.stderr
    assert lab.volumes() == set()
    assert lab.domain("b") not in lab.host.domains()
    assert lab.down().returncode == 0
    assert lab.host.virsh("dumpxml", lab.domain("a")) == before
    lab.host.remove_domain(lab.domain("a"))


def test_a_clone_that_carries_our_metadata_is_not_ours(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}")
    lab.up()
    xml = fromstring(lab.host.virsh("dumpxml", lab.domain("a")))
    metadata = xml.find("metadata")
    assert metadata is not None
    clone = f"{lab.name}-clone"
    foreign(lab.host, clone, metadata[0])
    before = lab.host.virsh("dumpxml", clone)
    assert "poclab.dev" in before
    assert list(lab.status()) == ["a"]
    lab.reset("a", "--to", "v2")
    lab.down()
    assert lab.host.virsh("dumpxml", clone) == before
    lab.host.remove_domain(clone)
