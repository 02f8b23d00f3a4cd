"""A file that is exchanged or rewritten while it is imported: what was checked is stored."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.core.units import MIB
from poclab.disks import inspection
from poclab.disks.formats import DiskInfo, opened
from poclab.images.import_disk import ImportRequest, import_disk
from poclab.model.version import Profile, Ref
from poclab.store.versions import Store
from tests.hostile import races
from tests.support import accounts
from tests.support.dirpool import DirectoryPool
from tests.support.disks import qemu_img

SECRET = b"root's own secret. " * 1000
RACE = 6.0  # seconds of each race


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DirectoryPool:
    for name in ("STATE", "CACHE", "DATA", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "xdg"))
    (tmp_path / "xdg").mkdir(mode=0o700)
    return DirectoryPool(tmp_path / "pool")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file that only its owner can read, large enough for a disk."""
    path = tmp_path / "secret"
    path.write_bytes(SECRET.ljust(8 * MIB, b"\0"))
    path.chmod(0o600)
    return path


@pytest.fixture
def lair() -> Iterator[Path]:
    """A directory that the attacker's account can reach."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="poclab-race.") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def do(pool: DirectoryPool, disk: Path, tag: str = "v1") -> str:
    """Import a disk, and see that nothing of the secret came with it; gives how it ended."""
    store, ref = Store(pool, "test:///races"), Ref("x", tag)
    try:
        import_disk(store, ref, ImportRequest(disk, profile=Profile.LINUX))
        ended = "stored"
    except PoclabError as error:
        ended = error.why or error.what
    for path in pool.root.iterdir():
        assert SECRET[:19] not in path.read_bytes(), ended
    assert store.has(ref) == (ended == "stored")
    return ended


def moments(disk: Path, pool: DirectoryPool) -> int:
    """How many steps and programs an import has."""
    seen: list[str] = []
    with events.listening(lambda event: seen.append(event.kind)):
        assert do(pool, disk) == "stored"
    return len([kind for kind in seen if kind in ("step", "debug")])


@pytest.mark.parametrize("foreign", [False, True], ids=["own", "another's"])
@pytest.mark.parametrize("kind", races.SWAPS)
def test_exchanged_at_every_moment(
    kind: str, foreign: bool, pool: DirectoryPool, secret: Path, lair: Path
) -> None:
    swap = races.SWAPS[kind]

    def prepared() -> Path:
        shutil.rmtree(lair)
        lair.mkdir()
        disk = races.prepared(lair, secret)
        disk.chmod(0o666 if foreign else 0o600)
        return disk

    ended = []
    for moment in range(moments(prepared(), pool)):
        shutil.rmtree(pool.root)
        pool.root.mkdir()
        disk = prepared()
        with events.listening(at(moment, partial(swap, disk))):
            ended.append(do(pool, disk))
    assert len(ended) > 5
    # Whoever writes into a disk of their own is told; a copy is not changed any more.
    assert ended.count("stored") >= (1 if kind == "write" and not foreign else 3), ended


def at(moment: int, act: Callable[[], None]) -> Callable[[events.Event], None]:
    """A listener that does something at the n-th step or program."""
    count = 0

    def listen(event: events.Event) -> None:
        nonlocal count
        if event.kind in ("step", "debug"):
            if count == moment:
                act()
            count += 1

    return listen


@pytest.mark.parametrize("kind", races.SWAPS)
def test_against_somebody_who_never_stops(
    kind: str, pool: DirectoryPool, secret: Path, lair: Path
) -> None:
    """When root runs the tests, the attacker is an ordinary user, and root imports."""
    races.prepared(lair, secret)
    account = accounts.ordinary()
    for path in (lair, *lair.iterdir()):
        os.chown(path, account.uid, account.gid)
    attacker = races.attacker(lair, kind, account.prefix)
    ended: Counter[str] = Counter()
    try:
        limit = time.monotonic() + RACE
        while time.monotonic() < limit:
            ended[do(pool, lair / "disk", f"v{ended.total()}")] += 1
            for path in pool.root.iterdir():
                path.unlink()
    finally:
        attacker.kill()
        attacker.wait(10)
        assert attacker.stdout is not None
        attacker.stdout.close()
    assert ended.total() > 10, ended


def test_a_header_written_after_the_look_names_nothing_to_qemu(
    tmp_path: Path, secret: Path
) -> None:
    """The barrier behind the others: QEMU itself opens no backing file."""
    (tmp_path / "lair").mkdir()
    disk = races.prepared(tmp_path / "lair", secret)
    with opened(disk, "disk") as window:
        found = inspection.inspect(window)
        races.written(disk)
        inspection.copy(window, DiskInfo("qcow2", found.virtual_size, MIB), tmp_path / "copy")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", tmp_path / "copy", tmp_path / "copy.raw")
    assert SECRET[:19] not in (tmp_path / "copy.raw").read_bytes()
