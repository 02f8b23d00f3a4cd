"""Versions that share their equal blocks, on real XFS and btrfs; what ext4 cannot share stays."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from poclab.disks.fingerprints import BLOCK
from poclab.model.version_volumes import base_volume
from tests.support import filesystems, labs
from tests.support.b3sum import digest
from tests.support.hosts import Host
from tests.support.labs import MIB, Vm
from tests.support.stops import told
from tests.support.trees import SIZE, trees, used


@pytest.fixture(scope="module", params=["xfs", "btrfs"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with filesystems.session(request.param, "400m") as found:
        yield found


def base(host: Host, ref: str) -> Path:
    return Path(host.env["POCLAB_POOL_DIR"]) / labs.base(host, ref)


def content(host: Host, path: Path) -> bytes:
    copy = host.scratch / "copy"
    host.run(
        "cp", "--remove-destination", "--sparse=never", "--reflink=never", str(path), str(copy)
    )
    return copy.read_bytes()


def block_set(data: bytes) -> set[bytes]:
    starts = range(0, len(data), BLOCK)
    return {sha256(data[at : at + BLOCK]).digest() for at in starts if any(data[at : at + BLOCK])}


def test_versions_take_the_space_of_what_is_new(host: Host) -> None:
    sizes, known, new = [], set[bytes](), []
    for number, file in enumerate(trees(host, "tree"), 1):
        before = used(host)
        done = host.poclab("image", "import", f"tree:v{number}", str(file), "--profile", "legacy")
        assert ("shares" in done.stderr) == (number > 1), done.stderr
        sizes.append(used(host) - before)
        path = base(host, f"tree:v{number}")
        data = content(host, path)
        assert base_volume(digest(data)) == path.name
        new.append(len(block_set(data) - known) * BLOCK)
        known |= block_set(data)
    assert sum(sizes) <= 1.15 * (sizes[0] + sum(new[1:])), (sizes, new)
    assert sizes[0] > SIZE - 3 * MIB
    # What is removed takes nothing from the others.
    host.poclab("image", "rm", "--yes", "tree:v1")
    for tag in ("v2", "v3"):
        path = base(host, f"tree:{tag}")
        assert base_volume(digest(content(host, path))) == path.name
    host.poclab("image", "rm", "--yes", "tree:v2", "tree:v3")


def test_a_running_vm_sees_nothing_of_it(host: Host) -> None:
    files = trees(host, "live", 2)
    host.poclab("image", "import", "live:v1", str(files[0]), "--profile", "legacy")
    path = base(host, "live:v1")
    lab = labs.lab_file(host, "calm", Vm("a", image="live:v1"))
    host.poclab("up", lab)
    before = (host.run("stat", "-c", "%i %Y %Z %a %s", str(path)).stdout, labs.rows(host, "calm"))
    host.poclab("image", "import", "live:v2", str(files[1]), "--profile", "legacy")
    assert host.run("stat", "-c", "%i %Y %Z %a %s", str(path)).stdout == before[0]
    (row,) = labs.rows(host, "calm")
    assert row["state"] == "running"
    assert row["version"] == "live:v1"
    host.poclab("reset", "calm/a", "--to", "v2")
    assert [row["version"] for row in labs.rows(host, "calm")] == ["live:v2"]
    host.poclab("down", "calm", "--yes")
    host.poclab("image", "rm", "--yes", "live:v1", "live:v2")


def test_every_byte_is_the_same(host: Host) -> None:
    directory = Path(host.env["POCLAB_POOL_DIR"]) / "property"
    host.run("mkdir", str(directory))
    python = host.place.installation.python
    host.run(python, "-m", "tests.support.shared_bytes", str(directory))
    host.run("rmdir", str(directory))


@pytest.mark.parametrize("how", ["kill", "interrupt"])
def test_a_stop_before_or_after_loses_nothing(host: Host, how: str) -> None:
    files = trees(host, "stop", 2)
    host.poclab("image", "import", "stop:v1", str(files[0]), "--profile", "legacy")
    add = ("image", "import", "stop:v2", str(files[1]), "--profile", "legacy")
    step = host.count_steps(add).steps.index("share blocks") + 1
    for at in (step, step + 1):
        host.poclab("image", "rm", "--yes", "stop:v2")
        stopped = host.stop_at(add, at, how)
        assert stopped.reached
        told(stopped, how)
        assert "manifest.stop.v2.json" not in labs.look(host)["files"]
        host.poclab(*add)
        assert labs.leftovers(host) == []
        path = base(host, "stop:v2")
        assert base_volume(digest(content(host, path))) == path.name
    host.poclab("image", "rm", "--yes", "stop:v1", "stop:v2")


def test_without_a_cache_nothing_is_shared_and_the_version_is_stored(host: Host) -> None:
    files = trees(host, "bare", 2)
    cache = str(host.write("no-directory", ""))
    for number, file in enumerate(files, 1):
        add = ("-v", "image", "import", f"bare:v{number}", str(file), "--profile", "legacy")
        done = host.poclab(*add, XDG_CACHE_HOME=cache)
    assert "bare:v2 shares no blocks" in done.stderr
    assert used(host) > 2 * (SIZE - 3 * MIB)
    host.poclab("image", "rm", "--yes", "bare:v1", "bare:v2")
