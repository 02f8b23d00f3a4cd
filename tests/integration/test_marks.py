"""Marks of labs, on guests of one boot sector; QEMU writes to their disks for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from poclab.model.version_volumes import base_volume
from tests.support import hosts, labs
from tests.support.hosts import Completed, Host
from tests.support.onelab import OneLab, one_lab
from tests.support.stops import told


def quick(host: Host) -> Host:
    return replace(host, place=replace(host.place, env=host.env | {"POCLAB_ACCEL": "tcg"}))


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with hosts.session() as found:
        for tag in ("v1", "v2"):
            labs.store(quick(found), f"tiny:{tag}")
            quick(found).poclab("image", "protect", f"tiny:{tag}")
        yield quick(found)


@pytest.fixture
def lab(host: Host) -> Iterator[OneLab]:
    with one_lab(host) as made:
        yield made


def mark(lab: OneLab, *args: str, check: bool = True) -> Completed:
    return lab.host.poclab("mark", lab.name, *args, check=check)


def marks(host: Host) -> dict[str, dict[str, Any]]:
    rows = json.loads(host.poclab("marks", "-o", "json").stdout)
    return {f"{row['lab']}@{row['name']}": row for row in rows}


def versions(lab: OneLab) -> dict[str, str]:
    return {vm: row["version"] for vm, row in lab.status().items()}


def write(lab: OneLab, vm: str, pattern: int) -> str:
    """Write to a VM's system disk as its guest would, whether it runs or not; what it holds."""
    volume = lab.disks(vm)[0]
    if lab.status()[vm]["state"] != "running":
        path = f"{labs.look(lab.host)['directory']}/{volume}"
        lab.host.run("qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} 1M 512k", path)
    else:
        for command in (f"write -P {pattern} 1M 512k", "flush"):
            io = f'qemu-io -d ide0-0-0 "{command}"'
            lab.host.virsh("qemu-monitor-command", lab.domain(vm), "--hmp", io)
    return labs.content(lab.host, volume)


def test_a_mark_names_versions_and_brings_exactly_these_back(lab: OneLab) -> None:
    name, host = f"{lab.name}@demo-start", lab.host
    one, two = "a: {image: 'tiny:v1'}", "b: {image: 'tiny:v2'}"
    lab.write(one, two)
    lab.up()
    refused = mark(lab, "v2", check=False)
    assert refused.returncode == 1
    assert "v2 is a tag of tiny" in refused.stderr
    done = mark(lab, "demo-start", "--message", "as the customer sees it")
    assert "demo-start of " + lab.name + " is a tiny:v1, b tiny:v2" in done.stderr
    assert "warning" not in done.stderr
    row = marks(host)[name]
    assert row["versions"] == {"a": "tiny:v1", "b": "tiny:v2"}
    assert (row["state"], row["message"]) == ("whole", "as the customer sees it")
    assert row["by"] == host.account.name
    assert "names these versions already" in mark(lab, "demo-start").stderr

    lab.host.poclab("reset", lab.name, "--to", "v2")
    assert versions(lab) == {"a": "tiny:v2", "b": "tiny:v2"}
    refused = mark(lab, "demo-start", check=False)
    assert f"{lab.name} has a mark demo-start already" in refused.stderr
    # Nobody runs v1, and the mark names it.
    host.poclab("image", "unprotect", "tiny:v1")
    refused = host.poclab("image", "rm", "tiny:v1", "--yes", check=False)
    assert refused.returncode == 1
    assert f"the mark demo-start of {lab.name} names it" in refused.stderr
    used = {row["tag"]: row["used_by"] for row in json.loads(
        host.poclab("image", "ls", "tiny", "-o", "json").stdout
    )}  # fmt: skip
    assert used == {"v1": name, "v2": f"{lab.name}/a {lab.name}/b {name}"}
    host.poclab("gc", "--keep", "1", "--precious", "--yes")
    host.poclab("image", "protect", "tiny:v1")

    done = host.poclab("reset", lab.name, "--to", "demo-start")
    assert versions(lab) == {"a": "tiny:v1", "b": "tiny:v2"}
    assert lab.history("a")[-1] == ("reset to demo-start", "tiny:v1")
    # Another lab than it was: what is in one of the two is named.
    lab.write(one, "new: {image: 'tiny:v1'}")
    lab.up()
    lab.reset("a", "--to", "v2")
    done = host.poclab("reset", lab.name, "--to", "demo-start")
    assert f"{lab.name}/new stays on tiny:v1: the mark demo-start does not" in done.stderr
    assert f"{lab.name}/b is in the mark demo-start, and not there" in done.stderr
    assert versions(lab) == {"a": "tiny:v1", "new": "tiny:v1"}
    before = lab.run_id("a")
    for vm, told_ in (("new", "is not in the mark demo-start"), ("a", "")):
        done = host.poclab("reset", f"{lab.name}/{vm}", "--to", "demo-start", check=not told_)
        assert told_ in done.stderr
        assert (lab.run_id("a") == before) == bool(told_)
    # A mark outlives its lab, and is nothing left over.
    lab.down()
    assert name in marks(host)
    assert labs.leftovers(host) == []
    assert f"marks {lab.name}" in " ".join(host.poclab("df").stdout.split())
    lab.write(one.replace("v1", "v2"), two)
    lab.up()
    host.poclab("reset", lab.name, "--to", "demo-start")
    assert versions(lab) == {"a": "tiny:v1", "b": "tiny:v2"}
    host.poclab("unmark", lab.name, "demo-start")
    assert marks(host) == {}
    done = host.poclab("unmark", lab.name, "demo-start", check=False)
    assert f"{lab.name} has no mark demo-start" in done.stderr
    done = host.poclab("reset", lab.name, "--to", "demo-start", check=False)
    assert f"no image of {lab.name} has demo-start" in done.stderr


def test_a_mark_that_is_in_doubt_is_refused(lab: OneLab) -> None:
    host, volume = lab.host, f"mark.{lab.name}.then.json"
    labs.store(host, "odd:v1")
    lab.write("a: {image: 'odd:v1'}", "b: {image: 'tiny:v1'}")
    lab.up()
    mark(lab, "then")
    lab.reset("a", "b")
    before = lab.run_id("a"), lab.run_id("b")

    def refused(*args: str, told: str) -> None:
        done = host.poclab(*args, check=False)
        assert (done.returncode, told in done.stderr) == (1, True), done.stderr
        assert (lab.run_id("a"), lab.run_id("b")) == before

    # A tag of that name that came later.
    host.poclab("image", "tag", "tiny:v2", "tiny:then")
    both = f"then is a mark of {lab.name} and a tag of tiny"
    refused("reset", lab.name, "--to", "then", told=both)
    host.poclab("image", "rm", "tiny:then", "--yes")
    # A version that was made anew, behind our back.
    directory = labs.look(host)["directory"]
    host.run("rm", f"{directory}/manifest.odd.v1.json")
    refused("reset", lab.name, "--to", "then", told="odd:v1 is not what the mark then")
    path = labs.disk_file(host, "another-odd.raw")
    host.poclab("image", "import", "odd:v1", str(path), "--profile", "legacy")
    refused("reset", lab.name, "--to", "then", told="the one it names was removed; it was made")
    refused("mark", lab.name, "now", told=f"{lab.name}/a runs a version that cannot be marked")
    # A mark that was cut short.
    host.run("truncate", "-s", "-9", f"{directory}/{volume}")
    refused("reset", lab.name, "--to", "then", told=f"the mark then of {lab.name} cannot be read")
    refused("image", "rm", "odd:v1", "--yes", told=f"fix: poclab unmark {lab.name} then")
    done = host.poclab("gc", "--keep", "1", "--precious", "--yes")
    assert f"no version is removed: the mark then of {lab.name}" in done.stderr
    done = host.poclab("marks", lab.name, "-o", "json")
    assert [row["state"] for row in json.loads(done.stdout)] == ["damaged"]
    assert f"warning: the mark then of {lab.name} cannot be read: {volume}" in done.stderr
    assert f"poclab unmark {lab.name} then" in host.poclab("doctor", check=False).stdout
    host.poclab("unmark", lab.name, "then")
    assert volume not in lab.volumes()
    lab.down()
    host.poclab("image", "rm", "odd:v1", "--yes")


def test_what_changed_is_committed_on_request(lab: OneLab) -> None:
    host = lab.host
    lab.write(*(f"{vm}: {{image: 'tiny:v1'}}" for vm in ("a", "b", "c")))
    lab.up()
    lab.off("c")
    first = write(lab, "a", 0x11), write(lab, "c", 0x12)
    done = mark(lab, "plain")
    assert f"{lab.name}@plain does not hold what a, c wrote since" in done.stderr
    assert set(marks(host)[f"{lab.name}@plain"]["versions"].values()) == {"tiny:v1"}

    before = labs.look(host)
    done = mark(lab, "demo", "--commit", check=False)
    assert "its guest agent does not answer" in done.stderr
    assert "or take the disk as after a power cut: --no-quiesce" in done.stderr
    assert labs.look(host) == before

    running = lab.run_id("a"), lab.run_id("b")
    mark(lab, "demo", "--commit", "--no-quiesce")
    made = {"a": "tiny:demo-a", "b": "tiny:v1", "c": "tiny:demo-c"}
    assert marks(host)[f"{lab.name}@demo"]["versions"] == made
    assert (versions(lab), (lab.run_id("a"), lab.run_id("b"))) == (made, running)
    write(lab, "a", 0x21)
    refused = mark(lab, "demo-a", check=False)
    assert "demo-a is a tag of tiny" in refused.stderr
    refused = mark(lab, "demo", "--commit", "--no-quiesce", check=False)
    assert f"{lab.name} has a mark demo already" in refused.stderr
    host.poclab("reset", lab.name, "--to", "plain")
    assert set(versions(lab).values()) == {"tiny:v1"}
    host.poclab("reset", lab.name, "--to", "demo")
    assert versions(lab) == made
    assert tuple(labs.content(host, lab.disks(vm)[0]) for vm in "ac") == first
    # Moved, it is of versions of its own; those it named before stay as they are.
    second = write(lab, "a", 0x31)
    mark(lab, "demo", "--commit", "--no-quiesce", "--force")
    assert versions(lab) == made | {"a": "tiny:demo-a-2"}
    host.poclab("reset", lab.name, "--to", "demo")
    assert labs.content(host, lab.disks("a")[0]) == second
    lab.down()
    for name in ("plain", "demo"):
        host.poclab("unmark", lab.name, name)
    host.poclab("image", "rm", "--yes", "tiny:demo-a-2", "tiny:demo-a", "tiny:demo-c")
    assert labs.leftovers(host) == []


@pytest.mark.parametrize(("how", "every"), [("kill", 4), ("interrupt", 14), ("enospc", 14)])
def test_stopped_at_any_step_the_same_command_goes_on(lab: OneLab, how: str, every: int) -> None:
    """A VM that runs and one that is off are committed; what is made already is used.

    A mark that is being moved is what it was until all that it will name is there.
    """
    host = lab.host
    lab.write("a: {image: 'tiny:v1'}", "b: {image: 'tiny:v1'}", "c: {image: 'tiny:v2'}")
    lab.up()
    lab.off("b")
    running = lab.run_id("a")

    def args(name: str) -> tuple[str, ...]:
        return ("mark", lab.name, name, "--commit", "--no-quiesce", *more)

    more = () if how == "kill" else ("--force",)

    def prepared(number: int) -> list[str]:
        return [write(lab, "a", number), write(lab, "b", number + 100)]

    def checked(name: str, holds: list[str], where: str) -> None:
        made = {"a": f"tiny:{name}-a", "b": f"tiny:{name}-b", "c": "tiny:v2"}
        row = marks(host)[f"{lab.name}@{name}"]
        assert (row["state"], row["versions"], versions(lab)) == ("whole", made, made), where
        assert lab.run_id("a") == running, where
        bases = (base_volume(row["digests"][vm]) for vm in "ab")
        assert [labs.content(host, base) for base in bases] == holds, where
        names = host.poclab("image", "ls", "tiny", "-o", "name").stdout.split()
        assert [x for x in names if f":{name}-" in x] == [made["a"], made["b"]], where
        assert labs.leftovers(host) == [], where

    holds = prepared(0)
    steps = host.count_steps(args(f"{how}0")).steps
    checked(f"{how}0", holds, "not stopped")
    for step in range(1, len(steps) + 1, every):
        name, holds, before = f"{how}{step}", prepared(step), {}
        if more:
            mark(lab, name)
            before = versions(lab)
        stopped = host.stop_at(args(name), step, how)
        assert stopped.reached
        told(stopped, how)
        where = f"stopped ({how}) at {stopped.steps}"
        if found := marks(host).get(f"{lab.name}@{name}"):
            assert found["versions"] == before, where
            assert more or found["state"] == "incomplete", where
        if found and not more:
            done = host.poclab("reset", lab.name, "--to", name, check=False)
            assert f"the mark {name} of {lab.name} is incomplete" in done.stderr, where
        done = host.poclab(*args(name), check=False)
        assert done.returncode == 0, f"{where}\n{done.stderr}"
        checked(name, holds, where)


def test_every_client_of_a_system_sees_a_mark(module_system: tuple[Host, Host]) -> None:
    root, member = map(quick, module_system)
    labs.store(root, "tiny:v1")
    labs.store(root, "tiny:v2")
    with one_lab(root) as lab:
        lab.write("a: {image: 'tiny:v1'}")
        lab.up()
        member.poclab("mark", lab.name, "start", "--message", "by a member")
        write(lab, "a", 0x51)
        done = member.poclab("mark", lab.name, "more", "--commit", "--no-quiesce", check=False)
        assert "sudo poclab -c qemu:///system" in done.stderr
        assert list(marks(root)) == [f"{lab.name}@start"]
        root.poclab("reset", lab.name, "--to", "v2")
        member.poclab("reset", lab.name, "--to", "start")
        assert lab.history("a")[-1] == ("reset to start", "tiny:v1")
        lab.reset("a", "--to", "v2")
        member.poclab("mark", lab.name, "start", "--force")
        assert marks(root)[f"{lab.name}@start"]["versions"] == {"a": "tiny:v2"}
        member.poclab("unmark", lab.name, "start")
        assert marks(root) == {}
