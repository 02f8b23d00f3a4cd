"""Committing VMs that run, on guests of one boot sector; QEMU writes to their disks for them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import hosts, labs
from tests.support.b3sum import hex_of
from tests.support.hosts import Completed, Host
from tests.support.onelab import OneLab, one_lab
from tests.support.stops import told


def quick(host: Host) -> Host:
    return replace(host, place=replace(host.place, env=host.env | {"POCLAB_ACCEL": "tcg"}))


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with hosts.session() as found:
        labs.store(quick(found), "tiny:v1")
        quick(found).poclab("image", "protect", "tiny:v1")
        yield quick(found)


@contextmanager
def running(host: Host) -> Iterator[OneLab]:
    with one_lab(host) as made:
        made.write("a: {image: 'tiny:v1', disks: [{name: data, size: 1MiB}]}")
        made.up()
        yield made


@pytest.fixture
def lab(host: Host) -> Iterator[OneLab]:
    with running(host) as made:
        yield made


def commit(lab: OneLab, ref: str, *options: str, check: bool = True) -> Completed:
    args = ("commit", f"{lab.name}/a", "--as", ref, "--no-quiesce", *options)
    return lab.host.poclab(*args, check=check)


def seen(lab: OneLab) -> dict[str, Any]:
    """What libvirt shows of the VM, and what the disk that it runs on holds."""
    found = labs.look(lab.host)
    shown: dict[str, Any] = found["domains"][lab.domain("a")]
    assert (shown["missing"], shown["lost"]) == ([], [])
    top = Path(found["directory"], (shown["live"] or shown["defined"])[0])
    raw = lab.host.scratch / "content.raw"
    argv = ("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", str(top), str(raw))
    lab.host.run(*argv)
    content = hashlib.sha256(raw.read_bytes()).hexdigest()
    backing = lab.host.run("qemu-img", "info", "-U", str(top)).stdout
    files = {name for name in found["files"] if f".{lab.name}." in name}
    return {
        **shown,
        "content": content,
        "files": files,
        "directory": found["directory"],
        "backing": backing,
    }


def write(lab: OneLab, pattern: int, at: str = "1M") -> str:
    """Write to the system disk of the running VM as the guest would; what it holds then."""
    for command in (f"write -P {pattern} {at} 64k", "flush"):
        io = f'qemu-io -d ide0-0-0 "{command}"'
        lab.host.virsh("qemu-monitor-command", lab.domain("a"), "--hmp", io)
    return holds(lab)


def holds(lab: OneLab) -> str:
    content: str = seen(lab)["content"]
    return content


def is_whole(lab: OneLab, ref: str, content: str = "") -> None:
    """See that the VM runs on a version, knows it, and that nothing else is left."""
    row, found = lab.status()["a"], seen(lab)
    assert (row["version"], row["state"]) == (ref, "running")
    assert found["live"] == found["defined"]
    assert found["files"] == set(found["defined"])
    assert content in ("", found["content"])
    assert labs.leftovers(lab.host) == []
    (below,) = re.findall(r"/base\.([0-9a-f]{64})\.qcow2", found["backing"])
    disk = f"{found['directory']}/base.{below}.qcow2"
    assert hex_of(lab.host, disk) == below


@pytest.mark.parametrize("options", [(), ("--flatten",)], ids=["thin", "flat"])
def test_a_vm_that_runs_goes_on_on_its_version(lab: OneLab, options: tuple[str, ...]) -> None:
    ref = f"tiny:{'flat' if options else 'thin'}-{lab.name}"
    content = write(lab, 0x21)
    before = lab.run_id("a"), lab.disks("a")[1:], lab.status()["a"]["uptime"]
    done = commit(lab, ref, "--message", "as it ran", *options)
    assert f"committed {lab.name}/a as {ref}" in done.stderr
    assert ("a layer on tiny:v1" in done.stderr) == (not options)
    is_whole(lab, ref, content)
    assert (lab.run_id("a"), lab.disks("a")[1:]) == before[:2]
    assert lab.status()["a"]["uptime"] >= before[2]
    assert lab.history("a")[-1] == ("commit", ref)
    assert labs.content(lab.host, labs.base(lab.host, ref)) == content
    # What is written from now on is the VM's alone, until it is committed again.
    more = write(lab, 0x22, "1280k")
    assert more != content
    assert labs.content(lab.host, labs.base(lab.host, ref)) == content
    commit(lab, f"{ref}-2")
    is_whole(lab, f"{ref}-2", more)
    assert labs.content(lab.host, labs.base(lab.host, f"{ref}-2")) == more
    lab.reset("a", "--to", ref.partition(":")[2])
    assert holds(lab) == content


def test_without_an_answer_of_its_agent_a_vm_is_left_alone(lab: OneLab) -> None:
    write(lab, 0x31)
    before = labs.look(lab.host), holds(lab)
    args = ("commit", f"{lab.name}/a", "--as", "tiny:deaf")
    refused = lab.host.poclab(*args, check=False)
    assert refused.returncode == 1
    assert f"{lab.name}/a runs, and its guest agent does not answer" in refused.stderr
    assert f"poclab {' '.join(args)} --shutdown" in refused.stderr
    assert (labs.look(lab.host), holds(lab)) == before
    lab.host.virsh("suspend", lab.domain("a"))
    paused = commit(lab, "tiny:deaf", check=False)
    assert f"{lab.name}/a is paused" in paused.stderr
    lab.host.virsh("resume", lab.domain("a"))
    assert (labs.look(lab.host), holds(lab)) == before


def test_the_snapshot_of_somebody_else_is_left_alone(lab: OneLab) -> None:
    before = write(lab, 0x40)
    domain, path = lab.domain("a"), str(lab.host.scratch / "mine.qcow2")
    spec = ("--diskspec", f"hda,file={path}", "--diskspec", "hdb,snapshot=no")
    lab.host.virsh("snapshot-create-as", domain, "mine", "--disk-only", "--no-metadata", *spec)
    for options in ((), ("--shutdown", "--yes")):
        refused = commit(lab, "tiny:foreign", *options, check=False)
        assert f"{lab.name}/a stands on {path}" in refused.stderr
    assert lab.disks("a")[0] == "mine.qcow2"
    helps = "virsh " + refused.stderr.partition("fix: virsh ")[2].strip()
    lab.host.run("sh", "-c", f"{helps}")
    commit(lab, "tiny:foreign")
    is_whole(lab, "tiny:foreign", before)


def test_on_a_system_root_commits_and_a_member_is_told_so(
    module_system: tuple[Host, Host],
) -> None:
    root, member = map(quick, module_system)
    labs.store(root, "tiny:v1")
    with running(root) as lab:
        content, before = write(lab, 0x45), lab.run_id("a")
        refused = member.poclab(*args_for(lab, "far"), check=False)
        assert f"{lab.name}/a cannot be committed from here" in refused.stderr
        assert "sudo poclab -c qemu:///system commit" in refused.stderr
        root.poclab(*args_for(lab, "near"))
        is_whole(lab, f"tiny:{lab.name}-near", content)
        assert lab.run_id("a") == before
        steps = steps_of(lab)
        # What a commit of root's left is put right by whoever is next, also without the directory.
        for number, name in enumerate(("convert", "define")):
            content = write(lab, 0x46 + number)
            root.stop_at(args_for(lab, f"cut{number}"), steps.index(name) + 1)
            member.poclab("up", str(member.write("lab.yaml", Path(lab.path).read_text())))
            assert holds(lab) == content
            lab.up()  # root's work directory is root's
            is_whole(lab, lab.history("a")[-1][1], content)


def args_for(lab: OneLab, tag: str) -> tuple[str, ...]:
    return ("commit", f"{lab.name}/a", "--no-quiesce", "--as", f"tiny:{lab.name}-{tag}")


def steps_of(lab: OneLab) -> tuple[str, ...]:
    """Commit once to see which steps there are."""
    counted = lab.host.count_steps(args_for(lab, "count"))
    assert counted.result.returncode == 0, counted.result.stderr
    assert {"snapshot", "convert", "manifest", "copy", "pivot", "define"} <= set(counted.steps)
    return counted.steps


@pytest.mark.parametrize(("how", "every"), [("kill", 1), ("interrupt", 5), ("enospc", 5)])
def test_stopped_at_any_step_the_same_command_goes_on(lab: OneLab, how: str, every: int) -> None:
    last, running = len(steps_of(lab)), lab.run_id("a")
    for step in range(1, last + 1, every):
        content = write(lab, step)
        args = args_for(lab, f"{how}{step}")
        stopped = lab.host.stop_at(args, step, how)
        told(stopped, how)
        where = f"stopped ({how}) at {stopped.steps}"
        assert (lab.run_id("a"), holds(lab)) == (running, content), where
        done = lab.host.poclab(*args, check=False)
        if done.returncode:
            assert f"{args[-1]} exists already" in done.stderr, f"{where}\n{done.stderr}"
        is_whole(lab, args[-1], content)
        assert labs.content(lab.host, labs.base(lab.host, args[-1])) == content, where


def test_killed_anywhere_the_next_command_puts_it_right(lab: OneLab) -> None:
    """The VM wrote more meanwhile, or went off, before somebody found it."""
    steps = steps_of(lab)
    cases = [(name, off) for name in ("convert", "pivot", "define") for off in (False, True)]
    for number, (name, goes_off) in enumerate([*cases, ("live record", True)]):
        content = write(lab, 2 * number + 1)
        lab.host.stop_at(args_for(lab, f"up{number}"), steps.index(name) + 1)
        if goes_off:
            lab.off("a")
        else:
            content = write(lab, 2 * number + 2, "1280k")
        lab.host.poclab("gc", "--keep", "1", "--precious", "--yes")  # takes nothing that it needs
        lab.up()
        is_whole(lab, lab.history("a")[-1][1], content)
    assert lab.plan() == []


def test_mending_may_be_cut_short_as_well(lab: OneLab) -> None:
    step = steps_of(lab).index("convert") + 1
    for number, name in enumerate(("merge", "pivot")):
        content = write(lab, 0x51 + number)
        before = lab.status()["a"]["version"]
        lab.host.stop_at(args_for(lab, f"cut{number}"), step)
        stopped = lab.host.stop_at(("up", lab.path), number + 1)
        assert stopped.steps[-1] == name
        assert holds(lab) == content
        lab.up()
        is_whole(lab, before, content)


def test_killed_anywhere_a_reset_or_down_needs_no_mending(lab: OneLab) -> None:
    steps = steps_of(lab)
    for name in ("convert", "pivot", "define"):
        lab.host.stop_at(args_for(lab, name), steps.index(name) + 1)
        lab.reset("a", "--to", "v1")
        is_whole(lab, "tiny:v1")
    lab.host.stop_at(args_for(lab, "end"), steps.index("pivot") + 1)
    lab.down()
    assert lab.volumes() == set()
    assert labs.leftovers(lab.host) == []
