"""`image diff` of versions built with real podman, and of versions without a container image."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import hosts, labs, shop
from tests.support.hosts import Host
from tests.support.labs import Vm
from tests.support.pool_files import files

STATUS = "Package: {}\nStatus: install ok installed\nVersion: {}\n\n"
TREES = {
    "v1": {"gone": "1", "same": "2", "web": "3.0-1"},
    "v3": {"same": "2", "web": "3.1-1", "new": "1:4"},
}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """web:v1 and v3, built on the demo's base with a list of packages each."""
    with hosts.session() as found:
        shop.base(found)
        found.write("web/image.yaml", "builder: direct\nbuild_args: {V: '{tag}'}\n")
        text = "FROM localhost/poclab/shop-base:latest\nARG V\nCOPY ${V}/ /\n"
        directory = str(found.write("web/Containerfile", text).parent)
        for tag, packages in TREES.items():
            status = "".join(STATUS.format(*item) for item in packages.items())
            found.write(f"web/{tag}/var/lib/dpkg/status", status)
            found.write(f"web/{tag}/etc/{tag}.conf", "x" * 100)
            found.write(f"web/{tag}/etc/web.conf", tag * (3 if tag == "v3" else 2))
        for tag in TREES:
            found.poclab("image", "build", directory, "--tag", tag, POCLAB_PACK="0")
        yield found


def diff(host: Host, old: str, new: str) -> tuple[dict[str, list[Any]], str]:
    """What changed by kind and name, and the notes; the pool is left as it is."""
    before = files(host)
    done = host.poclab("image", "diff", old, new, "-o", "json")
    assert files(host) == before
    assert host.run("podman", "ps", "--all", "--quiet").stdout == ""
    rows = json.loads(done.stdout)
    found = {
        f"{row['kind']} {row['name']}": [row["change"], row["old"], row["new"]] for row in rows
    }
    assert len(found) == len(rows)
    return found, done.stderr


def test_packages_and_files_of_what_was_built(host: Host) -> None:
    found, notes = diff(host, "web:v1", "web:v3")
    assert {key: value for key, value in found.items() if key.startswith("package ")} == {
        "package gone": ["removed", "1", ""],
        "package new": ["added", "", "1:4"],
        "package web": ["changed", "3.0-1", "3.1-1"],
    }
    status = found.pop("file var/lib/dpkg/status")
    assert status[0] == "changed"
    assert {key: value for key, value in found.items() if key.startswith("file ")} == {
        "file etc/v1.conf": ["removed", 100, ""],
        "file etc/v3.conf": ["added", "", 100],
        "file etc/web.conf": ["changed", 4, 6],
    }
    assert "disk in one only" not in found
    assert "not shown" not in notes
    table = host.poclab("image", "diff", "web:v1", "web:v3").stdout
    assert ["package", "web", "changed", "3.0-1", "3.1-1"] in map(str.split, table.splitlines())
    done = host.poclab("image", "diff", "web:v1", "web:v1")
    assert (done.stdout, done.stderr) == ("", "they are the same\n")


def test_a_container_image_that_is_gone(host: Host) -> None:
    host.run("podman", "tag", "localhost/poclab/web:v3", "localhost/kept:v3")
    host.run("podman", "save", "-q", "-o", f"{host.scratch}/v3.tar", "localhost/kept:v3")
    host.run("podman", "rmi", "localhost/poclab/web:v3", "localhost/kept:v3")
    found, notes = diff(host, "web:v1", "web:v3")
    why = "the container image of web:v3 is not in this user's storage"
    assert f"packages and files are not shown: {why}\n" in notes
    assert {key.split()[0] for key in found} == {"version", "disk"}
    change, old, new = found["disk in one only"]
    assert (change, old % 4096, new % 4096) == ("changed", 0, 0)
    assert 0 < old < 4 * labs.MIB
    assert 0 < new < 4 * labs.MIB
    # Packed, its blocks are the same.
    host.poclab("image", "pack", "web:v1")
    assert diff(host, "web:v1", "web:v3")[0] == found
    host.poclab("image", "unpack", "web:v1")
    host.run("podman", "load", "-q", "-i", f"{host.scratch}/v3.tar")
    assert "package web" in diff(host, "web:v1", "web:v3")[0]


def test_imported_and_committed_versions(host: Host) -> None:
    labs.store(host, "tiny:v1")
    lab = labs.lab_file(host, "maker", Vm("a"), net=None)
    host.poclab("up", lab, POCLAB_ACCEL="tcg")
    host.virsh("destroy", "maker.a")
    (overlay,) = (name for name in labs.look(host)["files"] if name.startswith("overlay.maker."))
    path = f"{labs.look(host)['directory']}/{overlay}"
    host.run("qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 64k", path)
    host.poclab("commit", "maker/a", "--as", "tiny:v2", "--message", "more")
    found, notes = diff(host, "tiny:v1", "tiny:v2")
    assert "not shown: tiny:v1 was imported, and has no container image" in notes
    assert found["version origin"][1:] == ["imported tiny-v1.raw", "committed maker/a"]
    base = labs.base(host, "tiny:v1").removeprefix("base.").removesuffix(".qcow2")
    assert found["version parents"] == ["added", "", f"blake3:{base}"]
    # The layer is all that is new: 64 KiB of one pattern, whose blocks are equal, and tables.
    change, old, new = found["disk in one only"]
    assert (change, old) == ("changed", 0)
    assert 64 * 1024 <= new < 512 * 1024
    host.poclab("down", "maker", "--yes")


@pytest.mark.parametrize("refs", [("web:v1", "web:v9"), ("web:v9", "web:v1")])
def test_one_that_is_not_there(host: Host, refs: tuple[str, str]) -> None:
    done = host.poclab("image", "diff", *refs, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "web:v9 is not there" in done.stderr


@pytest.mark.parametrize("how", ["kill", "interrupt"])
def test_stopped_it_leaves_nothing(host: Host, how: str) -> None:
    args = ("image", "diff", "web:v1", "web:v3")
    steps = len(host.count_steps(args).steps)
    assert steps >= 2
    before = files(host)
    for step in range(1, steps + 1):
        stopped = host.stop_at(args, step, how)
        assert stopped.reached
        assert stopped.result.returncode != 0
        assert files(host) == before
        assert host.run("podman", "ps", "--all", "--quiet").stdout == ""
    assert "package web" in diff(host, "web:v1", "web:v3")[0]
