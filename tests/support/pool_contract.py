"""What every storage pool must do, as checks that one process runs on a real libvirt.

    python -m tests.support.pool_contract local|stream CHECK

runs one check on the pool `poclab` of the connection in LIBVIRT_DEFAULT_URI, with the class that
is asked for, and fails with a traceback. tests/integration/test_pool.py runs every check of
`CHECKS` for both classes, as the account whose session it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest

from poclab.core.errors import PoclabError
from poclab.virt.host import Host, connect
from poclab.virt.pool import SMALL
from poclab.virt.pool_local import LocalPool
from poclab.virt.pool_stream import StreamPool
from tests.hostile import records

MIB = 1024**2
BASE, NO_BASE = f"base.{'1' * 64}.qcow2", f"base.{'0' * 64}.qcow2"
OVERLAY, SCRATCH = "overlay.t.vm.1.qcow2", "scratch.t.vm.d.2.qcow2"
OLD, NEW = "scratch.t.vm.d.1.qcow2", "data.t.vm.d.qcow2"
AnyPool = LocalPool | StreamPool
CHECKS: dict[str, Callable[[AnyPool], None]] = {}


def check(function: Callable[[AnyPool], None]) -> Callable[[AnyPool], None]:
    """Take a function into `CHECKS`."""
    CHECKS[function.__name__] = function
    return function


def refused(action: Callable[[], object], words: str) -> PoclabError:
    """The error that an action ends with."""
    with pytest.raises(PoclabError) as caught:
        action()
    assert words in str(caught.value), str(caught.value)
    return caught.value


def file(pool: AnyPool, content: bytes) -> Path:
    """A file outside the pool."""
    handle, name = tempfile.mkstemp()
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
    return Path(name)


def base(pool: AnyPool, name: str = BASE, size: int = 8 * MIB) -> str:
    """A base disk in the pool."""
    path = file(pool, b"")
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size)], check=True, timeout=60
    )
    pool.adopt(name, path)
    return name


def info(pool: AnyPool, name: str) -> str:
    """What qemu-img says of a volume and what it stands on."""
    return subprocess.run(
        ["qemu-img", "info", "--backing-chain", pool.path(name)],
        check=True, timeout=60, capture_output=True, text=True,
    ).stdout  # fmt: skip


@check
def small_volumes_come_back(pool: AnyPool) -> None:
    """What is written is read, whatever its size, and another content replaces it."""
    for content in (b"", b"x", b"\0" * 4096, os.urandom(70_000), b"short again", b"{}" * 500_000):
        pool.write("manifest.t.v1.json", content)
        assert pool.read("manifest.t.v1.json") == content
        assert pool.stat("manifest.t.v1.json").size == len(content)
    assert pool.names().count("manifest.t.v1.json") == 1


@check
def no_manifest_is_cut(pool: AnyPool) -> None:
    """One that is larger than any can be is refused: half of it might be read as another."""
    pool.write("manifest.t.v1.json", b" " * SMALL)
    assert len(pool.read("manifest.t.v1.json")) == SMALL
    pool.write("manifest.t.v1.json", b" " * (SMALL + 1))
    refused(partial(pool.read, "manifest.t.v1.json"), "is larger than a manifest can be")
    refused(partial(pool.read, "manifest.t.v1.json"), "fix: ")


@check
def small_volumes_are_replaced_in_one_go(pool: AnyPool) -> None:
    """The new content is there, longer or shorter; at most blanks follow it."""
    pool.write("manifest.t.v1.json", b"0123456789")
    for content in (b"0123456789abc", b"short", b"{}" * 5000):
        pool.rewrite("manifest.t.v1.json", content)
        assert pool.read("manifest.t.v1.json").rstrip(b" ") == content


@check
def names_are_sorted_and_complete(pool: AnyPool) -> None:
    """Every volume is listed once, and nothing else."""
    before = set(pool.names())
    names = {"mark.t.b.json", "mark.t.a.json", "mark.t.with-dots_and.UPPER.json"}
    for name in names:
        pool.write(name, b"")
    found = pool.names()
    assert found == sorted(found)
    assert set(found) - before == names


@check
def only_its_own_names_are_taken(pool: AnyPool) -> None:
    """Every door refuses a name that is none of poclab's, before anything is touched."""
    before = files(pool)
    for name in records.BAD_NAMES:
        doors: list[Callable[[], object]] = [
            partial(pool.path, name),
            partial(pool.stat, name),
            partial(pool.read, name),
            partial(pool.digest, name, "blake3"),
            partial(pool.write, name, b"x"),
            partial(pool.rewrite, name, b"x"),
            partial(pool.overlay, name, BASE, MIB),
            partial(pool.overlay, OVERLAY, name, MIB),
            partial(pool.blank, name, MIB),
            partial(pool.grow, name, MIB),
            partial(pool.capacity, name),
            partial(pool.rename, name, NEW),
            partial(pool.delete, name),
        ]
        for door in doors:
            refused(door, "invalid volume name")
        content = file(pool, b"x")
        refused(partial(pool.adopt, name, content), "invalid volume name")
        content.unlink(missing_ok=True)
    assert files(pool) == before


@check
def strays_are_left_alone(pool: AnyPool) -> None:
    """What poclab gives no name is in no listing of volumes, and nothing clears it away."""
    root = Path(pool.directory)
    before = pool.names()
    made = records.strays(root)
    pool.refresh()
    try:
        assert pool.names() == before
        assert set(pool.strays()) <= {path.name for path in made}
        assert "data.acme.vm1.db.qcow2.bak" in pool.strays()
        pool.sweep()
        assert pool.moves() == {}
        assert all(os.path.lexists(path) for path in made)
    finally:
        for path in made:
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


@check
def a_marker_that_names_another_disk_is_not_believed(pool: AnyPool) -> None:
    """Nothing is hidden, renamed or deleted by it; it is listed as damaged."""
    scribbled(pool, OLD)
    victim = Path(pool.directory).parent / "victim"
    victim.write_bytes(b"precious")
    pool.blank("data.t.other.d.qcow2", MIB)
    for content in records.bad_moves("data.t.other.d.qcow2"):
        pool.write(f"move.{OLD}", content)
        assert pool.moves() == {}
        assert list(pool.damaged_moves()) == [f"move.{OLD}"]
        assert {OLD, "data.t.other.d.qcow2"} <= set(pool.names())
        pool.undo(OLD)
        pool.sweep()
        assert victim.read_bytes() == b"precious"
        assert {OLD, "data.t.other.d.qcow2"} <= set(pool.names())
    assert holds_its_content(pool, OLD)


@check
def a_directory_is_never_deleted(pool: AnyPool) -> None:
    """Also one that is called like a volume, and no command ends by it."""
    path = Path(pool.path(OVERLAY))
    path.mkdir()
    (path / "theirs").write_bytes(b"x")
    try:
        pool.refresh()
        pool.delete(OVERLAY)
        assert (path / "theirs").exists()
    finally:
        (path / "theirs").unlink()
        path.rmdir()


@check
def no_link_is_followed(pool: AnyPool) -> None:
    """A manifest that is a link to another file is not read, nor is a FIFO waited for."""
    if not isinstance(pool, LocalPool):
        return  # the daemon opens volumes: nobody but root can put a link into its directory
    root = Path(pool.directory)
    link, fifo = root / "manifest.t.link.json", root / "manifest.t.fifo.json"
    link.symlink_to("/etc/hostname")
    os.mkfifo(fifo)
    try:
        for path in (link, fifo):
            assert path.name not in pool.names()
            refused(partial(pool.read, path.name), "cannot be read")
            refused(partial(pool.digest, path.name, "sha256"), "cannot be read")
        disk = root / OVERLAY
        disk.symlink_to(base(pool))
        refused(lambda: pool.grow(OVERLAY, 64 * MIB), "is a link")
        refused(lambda: pool.overlay("overlay.t.vm.3.qcow2", OVERLAY, 64 * MIB), "is a link")
        refused(lambda: pool.capacity(OVERLAY), "cannot be read")
        disk.unlink()
    finally:
        link.unlink()
        fifo.unlink()


@check
def what_is_not_there_is_said(pool: AnyPool) -> None:
    """Reading, measuring and the like of no volume is an error; deleting it is fine."""
    refused(lambda: pool.read(OLD), OLD)
    refused(lambda: pool.stat(OLD), OLD)
    refused(lambda: pool.capacity(OLD), OLD)
    refused(lambda: pool.grow(OLD, MIB), OLD)
    refused(lambda: pool.rename(OLD, NEW), "")
    pool.delete(OLD)
    assert NEW not in pool.names()


@check
def deleting_deletes(pool: AnyPool) -> None:
    """A deleted volume is gone, and its name is free."""
    name = "mark.t.x.json"
    pool.write(name, b"1")
    pool.delete(name)
    assert name not in pool.names()
    assert not Path(pool.path(name)).exists()
    pool.write(name, b"2")
    assert pool.read(name) == b"2"
    base(pool)
    pool.delete(BASE)
    assert BASE not in pool.names()


@check
def an_adopted_file_is_used_up_and_read_only(pool: AnyPool) -> None:
    """The volume has the file's bytes, nobody else can read or change it, the file is gone."""
    content = os.urandom(3 * MIB + 17)
    path = file(pool, content)
    pool.adopt(BASE, path)
    assert not path.exists()
    target = Path(pool.path(BASE))
    assert pool.stat(BASE).size == len(content)
    if not os.environ["LIBVIRT_DEFAULT_URI"].endswith("/session"):
        # Who is no root reaches it through libvirt alone; tests/integration/test_private_files.py.
        assert not os.access(target, os.R_OK)
        return
    assert target.read_bytes() == content
    # A session's daemon is no root: it could not fill a file that it may not write.
    expected = 0o600 if isinstance(pool, StreamPool) else 0o400
    assert target.stat().st_mode & 0o777 == expected, oct(target.stat().st_mode)
    pool.adopt(BASE, file(pool, b"another"))
    assert target.read_bytes() == b"another"


@check
def a_digest_is_of_all_bytes(pool: AnyPool) -> None:
    """Of the algorithm that is asked for, wherever the bytes are read."""
    content = os.urandom(5 * MIB + 1)
    pool.adopt(BASE, file(pool, content))
    assert pool.digest(BASE, "sha256") == f"sha256:{sha256(content).hexdigest()}"
    assert pool.digest(BASE, "sha256:") != pool.digest(BASE, "blake3")
    refused(lambda: pool.digest(NO_BASE, "sha256"), NO_BASE)


@check
def what_guests_and_poclab_write_is_private(pool: AnyPool) -> None:
    """Whatever the umask is; a session's daemon has its own."""
    base(pool)
    before = os.umask(0)
    try:
        pool.write("manifest.t.v1.json", b"content")
        pool.rewrite("manifest.t.v1.json", b"written")
        pool.blank("data.t.a.db.qcow2", MIB)
        pool.grow("data.t.a.db.qcow2", 2 * MIB)
        pool.overlay(OVERLAY, BASE, 16 * MIB)
        pool.rename("data.t.a.db.qcow2", "scratch.t.a.db.1.qcow2")
    finally:
        os.umask(before)
    for name in ("manifest.t.v1.json", "scratch.t.a.db.1.qcow2", OVERLAY):
        mode = Path(pool.path(name)).stat().st_mode & 0o777
        assert mode == 0o600, (name, oct(mode))


@check
def an_overlay_stands_on_its_base(pool: AnyPool) -> None:
    """It has the size asked for, and a backing format, so that nothing is guessed."""
    base(pool)
    pool.overlay(OVERLAY, BASE, 16 * MIB)
    assert pool.capacity(OVERLAY) == 16 * MIB
    text = info(pool, OVERLAY)
    assert f"backing file: {pool.path(BASE)}" in text, text
    assert "backing file format: qcow2" in text, text
    assert pool.capacity(BASE) == 8 * MIB


@check
def an_overlay_is_never_made_over_another(pool: AnyPool) -> None:
    """A name that is taken, and a base that is not there, are errors."""
    base(pool)
    refused(lambda: pool.overlay(OVERLAY, NO_BASE, 16 * MIB), "")
    assert OVERLAY not in pool.names()


@check
def blank_disks_grow_and_are_renamed(pool: AnyPool) -> None:
    """A data disk is made, enlarged and renamed; its content goes along."""
    pool.blank(SCRATCH, 8 * MIB)
    assert pool.capacity(SCRATCH) == 8 * MIB
    subprocess.run(
        ["qemu-io", "-c", "write -P 0x5a 1M 64k", pool.path(SCRATCH)],
        check=True, timeout=60, capture_output=True,
    )  # fmt: skip
    pool.grow(SCRATCH, 32 * MIB)
    assert pool.capacity(SCRATCH) == 32 * MIB
    pool.rename(SCRATCH, NEW)
    assert SCRATCH not in pool.names()
    assert pool.capacity(NEW) == 32 * MIB
    done = subprocess.run(
        ["qemu-io", "-c", "read -P 0x5a 1M 64k", pool.path(NEW)],
        check=True, timeout=60, capture_output=True, text=True,
    )  # fmt: skip
    assert "verification failed" not in done.stdout, done.stdout
    assert "backing file" not in info(pool, NEW)


def scribbled(pool: AnyPool, name: str) -> None:
    """A data disk with content."""
    pool.blank(name, 8 * MIB)
    argv = ["qemu-io", "-c", "write -P 0x5a 1M 64k", pool.path(name)]
    subprocess.run(argv, check=True, timeout=60, capture_output=True)


def holds_its_content(pool: AnyPool, name: str) -> bool:
    """Whether a disk has what `scribbled` wrote."""
    argv = ["qemu-io", "-r", "-c", "read -P 0x5a 1M 64k", pool.path(name)]
    done = subprocess.run(argv, timeout=60, capture_output=True, text=True, check=False)
    return done.returncode == 0 and "verification failed" not in done.stdout


def kind(pool: AnyPool) -> str:
    """How `opened` names the pool's class."""
    return "local" if isinstance(pool, LocalPool) else "stream"


def killed_rename(pool: AnyPool, old: str, new: str, step: int) -> bool:
    """Rename in a process that is killed at a step; whether it got that far."""
    code = (
        "import os, sys\n"
        "from poclab.core import events\n"
        "from tests.support.pool_contract import opened\n"
        "kind, old, new, left = *sys.argv[1:4], [int(sys.argv[4])]\n"
        "def listener(event):\n"
        "    left[0] -= event.kind == 'step'\n"
        "    if left[0] == 0:\n"
        "        os.kill(os.getpid(), 9)\n"
        "with opened(kind) as pool, events.listening(listener):\n"
        "    pool.rename(old, new)\n"
    )
    argv = [sys.executable, "-c", code, kind(pool), old, new, str(step)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, -9), done.stderr
    pool.refresh()
    return done.returncode == -9


@check
def a_rename_cut_short_loses_and_doubles_nothing(pool: AnyPool) -> None:
    """Whatever step it ends at one name counts, and the same again, or a deletion, goes on."""
    before = set(files(pool))
    step, reached = 1, True
    while reached:
        for go_on in ("rename", "delete", "undo"):
            scribbled(pool, OLD)
            reached = killed_rename(pool, OLD, NEW, step)
            (name,) = {OLD, NEW}.intersection(pool.names())
            assert holds_its_content(pool, name), f"{name}, stopped at {step}"
            pool.sweep()
            if go_on == "rename" and name == OLD:
                pool.rename(OLD, NEW)
                assert {OLD, NEW}.intersection(pool.names()) == {NEW}
                assert holds_its_content(pool, NEW)
            elif go_on == "undo":
                for old in pool.moves():
                    pool.undo(old)
                assert {OLD, NEW}.intersection(pool.names()) == {name}
                assert holds_its_content(pool, name)
            pool.delete(OLD)
            pool.delete(NEW)
            assert set(files(pool)) == before, f"stopped at {step}, then {go_on}"
        step += 1
    # A file's rename has no step in between; that of a volume four.
    assert step == (2 if isinstance(pool, LocalPool) else 6)


def files(pool: AnyPool) -> list[str]:
    """What the pool's directory really holds."""
    pool.refresh()
    return sorted(path.name for path in Path(pool.directory).iterdir())


@check
def half_a_copy_does_not_count(pool: AnyPool) -> None:
    """A copy is nothing while what it is copied from is there, and gives way to another disk."""
    scribbled(pool, OLD)
    pool.write(f"move.{OLD}", NEW.encode())
    pool.write(NEW, b"half a co")
    with opened("stream" if isinstance(pool, LocalPool) else "local") as other:
        for each in (pool, other):
            assert {OLD, NEW}.intersection(each.names()) == {OLD}
            assert each.moves() == {OLD: NEW}
            assert f"move.{OLD}" not in each.names()
    pool.blank(NEW, 4 * MIB)
    assert {OLD, NEW} <= set(pool.names())
    assert pool.capacity(NEW) == 4 * MIB
    assert holds_its_content(pool, OLD)
    pool.delete(OLD)
    assert NEW in pool.names()


@check
def sparse_disks_stay_sparse(pool: AnyPool) -> None:
    """A large empty disk takes next to nothing."""
    pool.blank(SCRATCH, 1024 * MIB)
    assert pool.stat(SCRATCH).allocated < 2 * MIB
    assert pool.capacity(SCRATCH) == 1024 * MIB


@check
def staging_is_private_and_goes(pool: AnyPool) -> None:
    """Files to adopt have a directory of their own; it is no volume and does not stay."""
    before = pool.names()
    with pool.staging() as directory:
        assert directory.stat().st_mode & 0o077 == 0
        (directory / "disk").write_bytes(b"content")
        assert pool.names() == before
        assert pool.leftovers() == []
        pool.adopt(BASE, directory / "disk")
    assert not directory.exists()
    assert Path(pool.path(BASE)).read_bytes() == b"content"


@check
def what_a_killed_command_left_is_swept(pool: AnyPool) -> None:
    """Staging of a process that is gone is a leftover; that of a living one is not."""
    code = (
        "import os, sys\n"
        "from tests.support.pool_contract import opened\n"
        "with opened(sys.argv[1]) as pool, pool.staging() as directory:\n"
        "    (directory / 'disk').write_bytes(b'x')\n"
        "    print(directory, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, kind(pool)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -9, done.stderr
    left = Path(done.stdout.strip())
    with pool.staging() as own:
        assert left.exists()
        assert [Path(name).name for name in pool.leftovers()] == [left.name]
        pool.sweep()
        assert own.exists()
    assert not left.exists()
    assert pool.leftovers() == []


@check
def both_classes_see_the_same(pool: AnyPool) -> None:
    """What one writes the other lists and reads, once it looked again."""
    pool.write("manifest.t.v1.json", b"written")
    base(pool)
    pool.overlay(OVERLAY, BASE, 16 * MIB)
    pool.refresh()
    other_kind = "stream" if isinstance(pool, LocalPool) else "local"
    with opened(other_kind) as other:
        assert other.names() == pool.names()
        assert other.path(BASE) == pool.path(BASE)
        assert other.read("manifest.t.v1.json") == b"written"
        assert other.capacity(OVERLAY) == 16 * MIB
        other.delete(OVERLAY)
        other.refresh()
    pool.refresh()
    assert OVERLAY not in pool.names()
    assert pool.free() > 0


class opened:  # noqa: N801 - used like a function
    """The pool of the connection's host, as the class that is asked for."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._connection = connect(os.environ.get("LIBVIRT_DEFAULT_URI"), "tcg")

    def __enter__(self) -> AnyPool:
        host: Host = self._connection.__enter__()
        directory = host.pool.directory
        found = host.conn.storagePoolLookupByName("poclab")
        if self._kind == "local":
            return LocalPool(found, directory, host.readers)
        return StreamPool(host.conn, found, directory, host.readers)

    def __exit__(self, *error: object) -> None:
        self._connection.__exit__(None, None, None)


def main() -> None:
    """Run one check, on an empty pool; see the module."""
    kind, name = sys.argv[1:]
    with opened(kind) as pool:
        kept = set(pool.names())
        try:
            CHECKS[name](pool)
        finally:
            pool.refresh()
            for volume in set(pool.names()) - kept:
                pool.delete(volume)
            pool.refresh()


if __name__ == "__main__":
    main()
