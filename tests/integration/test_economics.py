"""`df` and the UNIQUE of `image ls` against what the file systems themselves say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import filesystems, labs
from tests.support.hosts import Host
from tests.support.labs import MIB, Vm
from tests.support.trees import SIZE, settled, trees, used

# What file systems take besides: trees of extents and of references, directories.
SLACK = MIB
TAGS = ("v1", "v2", "v3")


@pytest.fixture(scope="module")
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with filesystems.session(request.param, "400m") as found:
        found.poclab("image", "ls")  # makes the pool
        yield found


def df(host: Host) -> dict[tuple[str, str], dict[str, Any]]:
    rows = json.loads(host.poclab("df", "-o", "json").stdout)
    for row in rows:
        if row["unique"] is not None:
            assert row["allocated"] == row["shared"] + row["unique"]
    return {(row["kind"], row["name"]): row for row in rows}


def ls(host: Host) -> dict[str, Any]:
    rows = json.loads(host.poclab("image", "ls", "-o", "json").stdout)
    return {f"{row['name']}:{row['tag']}": row["unique"] for row in rows}


@pytest.mark.parametrize("host", ["btrfs", "xfs"], indirect=True)
def test_the_figures_are_the_file_system_s(host: Host) -> None:
    empty = used(host)
    for tag, file in zip(TAGS, trees(host, "tree"), strict=True):
        add = ("image", "import", f"tree:{tag}", str(file), "--profile", "legacy")
        host.poclab(*add, POCLAB_PACK="0")
    vms = Vm("a", image="tree:v1", kept=True), Vm("b", image="tree:v3", kept=False)
    host.poclab("up", labs.lab_file(host, "calm", *vms))
    found = df(host)
    total = found["total", "all"]["allocated"]
    assert abs(used(host) - empty - total) < SLACK
    versions = [found["version", f"tree:{tag}"] for tag in TAGS]
    assert total < SIZE + 6 * MIB
    assert all(row["shared"] > SIZE - 4 * MIB for row in versions)
    assert all(0 < row["unique"] < 3 * MIB for row in versions)
    assert all(row["full"] > SIZE - 3 * MIB for row in versions)
    disks = found["system disks", "calm"]
    assert disks["allocated"] == disks["unique"] < MIB
    assert disks["full"] == disks["allocated"] + versions[0]["full"] + versions[2]["full"]
    assert found["data disks", "calm"]["allocated"] == found["data disks", "calm"]["full"] > 0
    assert found["total", "all"]["full"] == sum(row["full"] for row in found.values()) / 2
    assert list(ls(host).values()) == [row["unique"] for row in versions]

    # What a version alone has is what its removal gives back.
    before = used(host)
    host.poclab("image", "rm", "--yes", "tree:v2")
    expected = before - versions[1]["unique"]
    assert abs(settled(host, expected, SLACK) - expected) < SLACK
    host.poclab("down", "calm", "--yes")
    left = df(host)
    assert ("system disks", "calm") not in left
    assert left["data disks", "calm"]["allocated"] > 0  # kept
    host.poclab("down", "calm", "--volumes", "--yes")
    # A second name: the disk is shared, and goes with the last of the two.
    host.poclab("image", "tag", "tree:v3", "tree:stable")
    found = df(host)
    assert found["version", "tree:v3"]["unique"] < 8192
    host.poclab("image", "rm", "--yes", "tree:v1", "tree:v3", "tree:stable")
    assert df(host)["total", "all"]["allocated"] == 0
    assert settled(host, empty, SLACK) < empty + SLACK


@pytest.mark.parametrize("host", ["ext4"], indirect=True)
def test_a_packed_version_as_a_full_copy_is_what_it_was(host: Host) -> None:
    for tag in TAGS[:2]:
        labs.store(host, f"tiny:{tag}")  # which packs the first
    packed, plain = (df(host)["version", f"tiny:{tag}"] for tag in TAGS[:2])
    assert packed["allocated"] < plain["allocated"] / 2
    assert packed["full"] == json.loads(host.poclab("image", "ls", "-o", "json").stdout)[0]["size"]
    assert plain["shared"] == packed["shared"] == 0
    host.poclab("image", "rm", "--yes", "tiny:v1", "tiny:v2")


def noise(host: Host, name: str, size: int) -> None:
    """Write a file of so many bytes into the pool."""
    path = f"{host.env['POCLAB_POOL_DIR']}/{name}"
    script = 'mkdir -p "$(dirname "$1")" && head -c "$2" /dev/urandom >"$1"'
    host.run("sh", "-c", script, "sh", path, str(size))


@pytest.mark.parametrize("host", ["ext4"], indirect=True)
def test_what_a_command_left_is_garbage(host: Host) -> None:
    labs.store(host, "tiny:v1")
    noise(host, "tmp.4194305.a/x", 1_000_000)  # of a process that cannot be
    noise(host, f"base.{'0' * 64}.qcow2", 500_000)
    noise(host, "stray", 300_000)
    found = df(host)
    assert 1_500_000 <= found["garbage", "poclab gc"]["unique"] < 1_600_000
    assert 300_000 <= found["other", "stray"]["unique"] < 350_000
    assert "`poclab gc` would free 1.4 MiB" in host.poclab("df").stderr
    host.run("rm", f"{host.env['POCLAB_POOL_DIR']}/stray")
    labs.store(host, "tiny:v2")  # a command that stores a version clears up first
    host.poclab("image", "rm", "--yes", "tiny:v1", "tiny:v2")
    found = df(host)
    assert found["garbage", "poclab gc"]["allocated"] == 0
    assert found["total", "all"]["allocated"] == 0


def test_through_libvirt_alone_it_is_not_known_what_is_shared(
    system_host: Host, libvirt_member: Host
) -> None:
    labs.store(system_host, "tiny:v1")
    seen = df(system_host)["version", "tiny:v1"]
    found = df(libvirt_member)["version", "tiny:v1"]
    assert (found["shared"], found["unique"]) == (None, None)
    assert found["allocated"] == seen["allocated"]
    assert ls(libvirt_member) == {"tiny:v1": None}
    table = libvirt_member.poclab("df")
    assert "cannot be looked into" in table.stderr
    (line,) = [line for line in table.stdout.splitlines() if "tiny:v1" in line]
    assert line.split().count("-") == 2
    assert "-" in libvirt_member.poclab("image", "ls").stdout.splitlines()[1].split()
    system_host.poclab("image", "rm", "--yes", "tiny:v1")
