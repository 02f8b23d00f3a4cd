"""Committing a VM's disk as a version, on guests of one boot sector."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poclab.model.version_volumes import base_volume
from tests.support import hosts, labs
from tests.support.hosts import Completed, Host
from tests.support.onelab import OneLab, one_lab
from tests.support.stops import told


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with hosts.session() as found:
        quick = replace(found, place=replace(found.place, env=found.env | {"POCLAB_ACCEL": "tcg"}))
        for tag in ("v1", "v2"):
            labs.store(quick, f"tiny:{tag}")
        yield quick


@pytest.fixture
def lab(host: Host) -> Iterator[OneLab]:
    with one_lab(host) as made:
        yield made


def commit(lab: OneLab, ref: str, *options: str, check: bool = True) -> Completed:
    return lab.host.poclab("commit", f"{lab.name}/a", "--as", ref, *options, check=check)


def write(host: Host, volume: str, pattern: int) -> str:
    """Write past the boot sector of a disk that no VM has open; its content's digest."""
    path = f"{labs.look(host)['directory']}/{volume}"
    host.run("qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} 1M 64k", path)
    return labs.content(host, volume)


def chain(host: Host, volume: str) -> list[str]:
    """A volume and all below it, as QEMU follows it, by their bare names."""
    path = f"{labs.look(host)['directory']}/{volume}"
    out = host.run("qemu-img", "info", "-U", "--backing-chain", "--output=json", path).stdout
    return [Path(item["filename"]).name for item in json.loads(out)]


def images(host: Host) -> dict[str, dict[str, Any]]:
    rows = json.loads(host.poclab("image", "ls", "tiny", "-o", "json").stdout)
    return {row["tag"]: row for row in rows}


def base(host: Host, tag: str) -> str:
    return base_volume(images(host)[tag]["digest"])


def backing(host: Host, volume: str) -> str:
    path = f"{labs.look(host)['directory']}/{volume}"
    out = host.run("qemu-img", "info", "-U", "--output=json", path).stdout
    return str(json.loads(out).get("backing-filename", ""))


def ready_to_commit(lab: OneLab, more: str = "", pattern: int = 0x11) -> str:
    """A VM that is off and has written to its disk; the digest of what it has."""
    lab.write(f"a: {{image: 'tiny:v1'{more}}}")
    lab.up()
    lab.off("a")
    return write(lab.host, lab.disks("a")[0], pattern)


def test_a_thin_version_serves_vms_and_outlives_the_name_below_it(lab: OneLab) -> None:
    host = lab.host
    more = ", disks: [{name: data, size: 1MiB}, {name: kept, size: 1MiB, keep: true}]"
    content = ready_to_commit(lab, more)
    old, *data = lab.disks("a")
    passing = labs.scribble(host, data[0], 0x33)
    done = commit(lab, "tiny:thin", "--message", "as the customer saw it")
    assert f"committed {lab.name}/a as tiny:thin" in done.stderr
    assert "a layer on tiny:v1" in done.stderr
    new, *same = lab.disks("a")
    assert new != old
    assert same == data
    assert labs.content(host, data[0]) == passing
    assert lab.volumes() == {new, *data}
    assert chain(host, new) == [new, base(host, "thin"), base(host, "v1")]
    assert backing(host, base(host, "thin")) == base(host, "v1")
    assert labs.content(host, new) == labs.content(host, base(host, "thin")) == content
    row = images(host)["thin"]
    assert row["origin"] == f"committed {lab.name}/a"
    assert row["used_by"] == f"{lab.name}/a"
    assert row["size"] < 1024**2
    assert lab.history("a")[-1] == ("commit", "tiny:thin")
    # The lab file asks for what it asked for before: nothing but the start is left to do.
    assert [action["action"] for action in lab.plan()] == ["start"]
    lab.up()
    xml = host.virsh("dumpxml", lab.domain("a"))
    assert xml.count(base(host, "v1")) == 1
    # Another VM, and the same one anew, run on the thin version.
    with one_lab(host) as other:
        other.write("b: {image: 'tiny:thin'}")
        other.up()
        assert other.status()["b"]["state"] == "running"
        assert chain(host, other.disks("b")[0])[1:] == chain(host, new)[1:]
    lab.off("a")
    write(host, new, 0x44)
    lab.reset("a")
    assert labs.content(host, lab.disks("a")[0]) == content
    # The name below may go, its disk stays while something is layered on it.
    labs.store(host, "tiny:below")
    lab.reset("a", "--to", "below")
    lab.off("a")
    commit(lab, "tiny:above")
    below = base(host, "below")
    host.poclab("image", "rm", "tiny:below", "--yes")
    assert below in labs.look(host)["files"]
    assert labs.leftovers(host) == []
    lab.up()
    assert lab.status()["a"]["state"] == "running"
    refused = host.poclab("image", "rm", "tiny:above", "--yes", check=False)
    assert "tiny:above is in use" in refused.stderr
    above = base(host, "above")
    lab.reset("a", "--to", "v1")
    host.poclab("image", "rm", "tiny:above", "--yes")
    assert {above, below}.isdisjoint(labs.look(host)["files"])
    assert base(host, "v1") in labs.look(host)["files"]


def test_a_vm_that_runs_is_refused_or_shut_down_and_started_again(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}")
    lab.up()
    before = labs.look(lab.host), lab.run_id("a")
    refused = commit(lab, "tiny:busy", check=False)
    assert refused.returncode == 1
    assert f"{lab.name}/a runs, and its guest agent does not answer" in refused.stderr
    assert f"poclab commit {lab.name}/a --as tiny:busy --shutdown" in refused.stderr
    taken = commit(lab, "tiny:v2", "--shutdown", check=False)
    assert "tiny:v2 exists already" in taken.stderr
    assert (labs.look(lab.host), lab.run_id("a")) == before
    done = commit(lab, "tiny:busy", "--shutdown")
    assert "powered off" not in done.stderr
    assert lab.run_id("a") not in ("-", before[1])
    assert lab.status()["a"]["version"] == "tiny:busy"
    lab.host.virsh("suspend", lab.domain("a"))
    paused = commit(lab, "tiny:paused", "--shutdown", check=False)
    assert f"{lab.name}/a is paused" in paused.stderr
    assert f"`poclab up {lab.name}` has it go on" in paused.stderr


def test_a_flat_version_stands_alone_and_a_grown_disk_keeps_its_size(lab: OneLab) -> None:
    content = ready_to_commit(lab, ", disk: 5MiB")
    commit(lab, "tiny:flat", "--flatten")
    flat = base(lab.host, "flat")
    assert chain(lab.host, flat) == [flat]
    assert chain(lab.host, lab.disks("a")[0])[1:] == [flat]
    assert labs.content(lab.host, flat) == content
    assert labs.content(lab.host, lab.disks("a")[0]) == content
    lab.up()
    assert lab.plan() == []


def test_a_chain_is_flattened_when_it_gets_long(lab: OneLab) -> None:
    ready_to_commit(lab)
    for number in range(2, 9):  # v1 is the first disk of eight
        assert "stands alone" not in commit(lab, f"tiny:c{number}").stderr
    content = write(lab.host, lab.disks("a")[0], 0x55)
    assert len(chain(lab.host, base(lab.host, "c8"))) == 8
    lab.up()
    lab.off("a")
    done = commit(lab, "tiny:c9")
    assert "tiny:c9 stands alone: it would be 9 disks deep, and 8 is the limit" in done.stderr
    assert chain(lab.host, base(lab.host, "c9")) == [base(lab.host, "c9")]
    assert labs.content(lab.host, lab.disks("a")[0]) == content


def test_who_cannot_write_the_pool_is_told_what_to_do(lab: OneLab) -> None:
    ready_to_commit(lab)
    directory = labs.look(lab.host)["directory"]
    lab.host.run("chmod", "a-w", directory)
    try:
        done = commit(lab, "tiny:far", check=False)
    finally:
        lab.host.run("chmod", "u+w", directory)
    assert done.returncode == 1
    assert f"this user cannot write {directory} on this host" in done.stderr
    assert "far" not in images(lab.host)


def test_what_changed_since_an_interruption_is_not_lost(lab: OneLab) -> None:
    """The version is there, the VM not yet on it, and then the VM wrote more."""
    ready_to_commit(lab, pattern=0x77)
    args = ("commit", f"{lab.name}/a", "--as", "tiny:late")
    stopped = lab.host.stop_at(args, steps_until(lab, "tiny:probe", "overlay"))
    assert stopped.steps[-1] == "overlay", stopped.steps
    (overlay,) = lab.disks("a")
    content = write(lab.host, overlay, 0x66)
    refused = lab.host.poclab(*args, check=False)
    assert "tiny:late exists already" in refused.stderr
    assert lab.disks("a") == [overlay]
    assert labs.content(lab.host, overlay) == content


def steps_until(lab: OneLab, ref: str, step: str) -> int:
    """Commit once to see as which step one comes."""
    steps = lab.host.count_steps(("commit", f"{lab.name}/a", "--as", ref)).steps
    write(lab.host, lab.disks("a")[0], 0x12)
    return steps.index(step) + 1


@pytest.mark.parametrize(("how", "every"), [("kill", 1), ("interrupt", 7), ("enospc", 7)])
def test_stopped_at_any_step_it_goes_on(host: Host, how: str, every: int) -> None:
    with one_lab(host) as lab:
        ready_to_commit(lab, pattern=ord(how[0]))
        lab.up()
        options = ("--shutdown", "--yes")
        counted = host.count_steps(("commit", f"{lab.name}/a", "--as", f"tiny:{how}0", *options))
        assert counted.result.returncode == 0, counted.result.stderr
        assert {"convert", "base", "manifest", "overlay", "define"} <= set(counted.steps)
        for step in range(1, len(counted.steps) + 1, every):
            lab.off("a")
            content = write(host, lab.disks("a")[0], step)
            host.virsh("start", lab.domain("a"))
            ref = f"tiny:{how}{step}"
            args = ("commit", f"{lab.name}/a", "--as", ref, *options)
            stopped = host.stop_at(args, step, how)
            told(stopped, how)
            where = f"stopped ({how}) at {stopped.steps}"
            domain = labs.look(host)["domains"][lab.domain("a")]
            assert (domain["missing"], domain["lost"]) == ([], []), where
            assert labs.content(host, domain["defined"][0]) == content, where
            done = host.poclab(*args, check=False)
            if done.returncode:
                assert f"{ref} exists already" in done.stderr, f"{where}\n{done.stderr}"
            row = lab.status()["a"]
            assert (row["version"], row["state"]) == (ref, "running"), f"{where}\n{done.stderr}"
            assert labs.content(host, lab.disks("a")[0]) == content, where
            assert lab.volumes() == set(lab.disks("a")), where
            assert labs.leftovers(host) == [], where
