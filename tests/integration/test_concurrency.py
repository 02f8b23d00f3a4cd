"""Several commands at once: one wins, the others say who holds the lock, nothing breaks."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from tests.support import hosts, labs
from tests.support.hosts import Completed, Host
from tests.support.labs import Vm

BUSY = re.compile(
    r"error: lab (\S+) is busy\nwhy: (`poclab .+` of .+ \(pid [0-9]+\) holds|another)"
)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with hosts.session() as found:
        quick = replace(found, place=replace(found.place, env=found.env | {"POCLAB_ACCEL": "tcg"}))
        for tag in ("v1", "v2"):
            labs.store(quick, f"tiny:{tag}")
        yield quick


def at_once(host: Host, *commands: Sequence[str]) -> list[Completed]:
    """Run commands side by side to their ends."""
    running = [host.popen_poclab(*args) for args in commands]
    results = []
    for args, process in zip(commands, running, strict=True):
        try:
            out, err = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        results.append(Completed(list(args), process.returncode, out, err))
        assert "Traceback" not in err, err
    return results


def busy(done: Completed, lab: str) -> bool:
    """Whether a command failed for the lock alone, and said so."""
    if done.returncode == 0:
        return False
    found = BUSY.search(done.stderr)
    assert done.returncode == 1, done.stderr
    assert found, done.stderr
    assert found[1] == lab
    return True


def whole(host: Host) -> None:
    """Every domain stands on disks that are there, and nothing is left over."""
    for name, domain in labs.look(host)["domains"].items():
        assert domain["missing"] == [], name
        assert domain["lost"] == [], name
    assert labs.leftovers(host) == []


def test_one_lab(host: Host) -> None:
    file = labs.lab_file(host, "one", Vm("db", kept=True), Vm("web"))
    ups = at_once(host, *[("up", file)] * 4)
    lost = [busy(done, "one") for done in ups]
    # Who comes when the winner is done finds nothing to do.
    assert lost.count(False) >= 1
    assert lost.count(True) >= 1
    assert len(labs.rows(host, "one")) == 2
    whole(host)
    mixed = at_once(
        host,
        ("reset", "--lab", "one", "--all", "--to", "v2"),
        ("up", file),
        ("reset", "one/db", "--to", "v2"),
        ("down", "one", "--yes"),
    )
    assert [done for done in mixed if done.returncode == 0]
    for done in mixed:
        # After `down` there is no lab to reset.
        if "is not up" not in done.stderr and "there is no VM" not in done.stderr:
            busy(done, "one")
    whole(host)
    host.poclab("down", "one", "--yes", "--volumes")
    downs = at_once(host, *[("down", "one", "--yes")] * 3)
    assert [busy(done, "one") for done in downs].count(False) >= 1
    assert labs.look(host)["domains"] == {}


def test_several_labs(host: Host) -> None:
    names = [f"many{number}" for number in range(4)]
    files = [labs.lab_file(host, name, Vm("a"), net=number) for number, name in enumerate(names)]
    for file, done in zip(files, at_once(host, *[("up", file) for file in files]), strict=True):
        last = host.poclab("up", file, check=False) if labs.robbed(done) else done
        assert last.returncode == 0, last.stderr
    rows = json.loads(host.poclab("status", "-o", "json").stdout)
    assert [row["state"] for row in rows] == ["running"] * 4
    assert len({row["address"] for row in rows}) == 4
    resets = [("reset", f"{name}/a", "--to", "v2") for name in names[:2]]
    downs = [("down", name, "--yes") for name in names[2:]]
    for done in at_once(host, *resets, *downs):
        assert done.returncode == 0, done.stderr
    whole(host)
    for done in at_once(host, *[("down", name, "--yes") for name in names[:2]]):
        assert done.returncode == 0, done.stderr
    assert labs.look(host)["domains"] == {}


def test_no_base_goes_while_a_lab_comes_up(host: Host) -> None:
    file = labs.lab_file(host, "race", Vm("a", image="race:v1"))
    for delay in range(4):
        labs.store(host, "race:v1")
        rm = ("image", "rm", "race:v1", "--yes")
        # Now the one is a little earlier, now the other.
        commands = [("up", file), rm] if delay % 2 else [rm, ("up", file)]
        done = {
            args[0]: result for args, result in zip(commands, at_once(host, *commands), strict=True)
        }
        whole(host)
        removed, up = done["image"].returncode == 0, done["up"].returncode == 0
        up = up or labs.robbed(done["up"])
        assert removed != up, (done["image"].stderr, done["up"].stderr)
        if up:
            assert "in use" in done["image"].stderr
            host.poclab("down", "race", "--yes")
            host.poclab(*rm)
        else:
            assert "race:v1 is not there" in done["up"].stderr
    assert not [name for name in labs.look(host)["files"] if "race" in name]


def test_imports_of_one_name(host: Host) -> None:
    files = [str(labs.disk_file(host, f"same-{number}.raw")) for number in range(3)]
    done = at_once(host, *[("image", "import", "same:v1", file) for file in files])
    assert sorted(item.returncode for item in done) == [0, 1, 1]
    for item in done:
        if item.returncode:
            assert "same:v1 exists already" in item.stderr
    assert len([name for name in labs.look(host)["files"] if name.startswith("base.")]) == 3
    assert labs.leftovers(host) == []


def test_gc_takes_nothing_from_anybody(host: Host) -> None:
    file = labs.lab_file(host, "tidy", Vm("a", kept=True))
    lab = [("up", file), ("reset", "tidy/a", "--to", "v2"), ("down", "tidy", "--yes")]
    for number, command in enumerate(lab):
        disk = str(labs.disk_file(host, f"fresh-{number}.raw"))
        add = ("image", "import", f"fresh:v{number}", disk, "--profile", "legacy")
        done = at_once(host, command, ("gc",), add, ("gc", "--keep", "1"))
        if labs.robbed(done[0]):
            host.poclab(*command)
            done = done[1:]
        for item in done:
            assert item.returncode == 0, item.stderr
        whole(host)
    refs = [f"fresh:v{number}" for number in range(len(lab))]
    listed = host.poclab("image", "ls", "-o", "name").stdout.split()
    assert {*refs, "tiny:v1", "tiny:v2"} <= {*listed}
    host.poclab("down", "tidy", "--yes", "--volumes")
    host.poclab("image", "rm", "--yes", *refs)


def test_what_is_not_poclabs_survives(host: Host) -> None:
    directory = labs.look(host)["directory"]
    foreign = f"{directory}/theirs.qcow2"
    host.run("qemu-img", "create", "-q", "-f", "qcow2", foreign, "1M")
    digest = host.run("sha256sum", foreign).stdout
    file = labs.lab_file(host, "beside", Vm("a", kept=True))
    host.poclab("up", file)
    host.poclab("reset", "beside/a", "--to", "v2")
    host.poclab("down", "beside", "--yes", "--volumes")
    labs.store(host, "beside:v1")
    host.poclab("image", "rm", "beside:v1", "--yes")
    assert host.run("sha256sum", foreign).stdout == digest
    assert labs.leftovers(host) == []
    host.run("rm", foreign)


def test_a_pool_of_somebody_else_is_left_alone() -> None:
    with hosts.session() as found:
        directory = found.scratch / "theirs"
        directory.mkdir()
        (directory / "disk.qcow2").write_bytes(b"theirs")
        found.give(directory)
        found.virsh("pool-define-as", "poclab", "dir", "--target", str(directory))
        found.virsh("pool-start", "poclab")
        file = str(labs.disk_file(found, "tiny.raw"))
        lab = labs.lab_file(found, "guest", Vm("a"))
        for args in (("image", "import", "tiny:v1", file), ("up", lab), ("image", "ls")):
            done = found.poclab(*args, check=False)
            assert done.returncode == 1
            assert "is not poclab's" in done.stderr
            assert "disk.qcow2" in done.stderr
        assert [path.name for path in directory.iterdir()] == ["disk.qcow2"]
        assert (directory / "disk.qcow2").read_bytes() == b"theirs"
