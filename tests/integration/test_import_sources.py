"""`import_disk` from every format, OVAs and standard input, with the real store."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from poclab.core import events
from poclab.core.errors import PoclabError, UsageError
from poclab.core.units import GIB, KIB, MIB
from poclab.disks.profile_guess import Guess
from poclab.images.import_disk import ImportRequest, import_disk
from poclab.model.version import Profile, Ref, Version
from poclab.model.version_volumes import base_volume
from poclab.store.versions import Store
from tests.support import disks
from tests.support.dirpool import DirectoryPool
from tests.support.disks import made, ovf, packed, patched, qemu_img
from tests.unit.disks.test_formats import HOSTILE
from tests.unit.disks.test_ova import REFUSED, sums

REF = Ref("win", "v1")


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DirectoryPool:
    for name in ("STATE", "CACHE", "DATA", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "xdg"))
    (tmp_path / "xdg").mkdir(mode=0o700)
    return DirectoryPool(tmp_path / "pool")


@pytest.fixture
def store(pool: DirectoryPool) -> Store:
    return Store(pool, "test:///import-sources")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return disks.raw(tmp_path / "source.raw")


def do(store: Store, source: Path | BinaryIO, **options: Any) -> Version:
    return import_disk(store, REF, ImportRequest(source, **({"profile": Profile.LINUX} | options)))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def listing(pool: DirectoryPool) -> dict[str, tuple[str, int, int]]:
    """Everything in the pool: name, digest, mode and time of change of each file."""
    found = {}
    for path in sorted(pool.root.rglob("*")):
        state = path.lstat()
        found[str(path)] = (
            digest(path) if path.is_file() else "",
            state.st_mode,
            state.st_mtime_ns,
        )
    return found


def same_content(pool: DirectoryPool, version: Version, raw: Path) -> None:
    base = pool.root / base_volume(version.digest)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", raw, base)
    qemu_img("check", "-f", "qcow2", base)


@pytest.mark.parametrize("kind", sorted(disks.WHOLE))
def test_every_format(
    kind: str, store: Store, pool: DirectoryPool, raw: Path, tmp_path: Path
) -> None:
    source = made(tmp_path / "appliance, the:first.img", kind, raw)
    version = do(store, source, digest=digest(source), profile=None)
    same_content(pool, version, raw)
    assert version.origin.digest == f"sha256:{digest(source)}"
    assert version.origin.inputs["format"] in ("vmdk", "vdi", "vpc", "vhdx", "qcow2")
    assert version.profile is Profile.LEGACY
    assert version.origin.inputs["profile"].startswith("guessed: ")
    assert len(list(pool.root.iterdir())) == 2


@pytest.mark.parametrize("kind", ["raw", *sorted(disks.WHOLE)])
def test_standard_input(
    kind: str, store: Store, pool: DirectoryPool, raw: Path, tmp_path: Path
) -> None:
    source = raw if kind == "raw" else made(tmp_path / "a.img", kind, raw)
    with source.open("rb") as file:
        version = do(store, file, digest=digest(source))
    same_content(pool, version, raw)
    assert version.origin.digest == f"sha256:{digest(source)}"
    assert version.origin.source == "standard input"
    assert len(list(pool.root.iterdir())) == 2


def ova(path: Path, disk: Path, *, wrong: bool = False, text: str = "Linux") -> Path:
    data = disk.read_bytes()
    members = (("a.ovf", ovf("disk 1.vmdk", text=text)), ("disk 1.vmdk", data))
    manifest = sums(members[0], ("disk 1.vmdk", data + b"x" if wrong else data))
    return packed(path, members[0], ("a.mf", manifest), members[1])


@pytest.mark.parametrize("make", [made, disks.footed], ids=["header", "footer"])
@pytest.mark.parametrize("stdin", [False, True])
def test_an_ova_is_read_where_it_lies(
    make: Callable[..., Path], stdin: bool, store: Store, pool: DirectoryPool, tmp_path: Path
) -> None:
    inside = tmp_path / "disk"
    make(*((inside, "stream") if make is made else (inside,)))
    package = ova(tmp_path / "a,b.ova", inside)
    before = digest(package)
    with package.open("rb") as file:
        version = do(store, file if stdin else package, digest=before)
    same_content(pool, version, Path(f"{inside}.raw"))
    assert version.origin.digest == f"sha256:{before}"
    assert version.origin.inputs["disk"] == "disk 1.vmdk"
    assert digest(package) == before
    assert len(list(pool.root.iterdir())) == 2


def test_a_disk_that_its_manifest_does_not_know(
    store: Store, pool: DirectoryPool, tmp_path: Path
) -> None:
    package = ova(tmp_path / "a.ova", made(tmp_path / "disk", "stream"), wrong=True)
    with pytest.raises(PoclabError, match=r"'disk 1.vmdk' in 'a.ova' is damaged"):
        do(store, package)
    assert listing(pool) == {}


def test_wrong_usage(store: Store, pool: DirectoryPool, raw: Path, tmp_path: Path) -> None:
    package = ova(tmp_path / "a.ova", made(tmp_path / "disk", "stream"))
    with pytest.raises(UsageError, match="no disk 'other'"):
        do(store, package, disk="other")
    with pytest.raises(UsageError, match="--disk"):
        do(store, raw, disk="other")
    with pytest.raises(PoclabError, match="no OVA"):
        do(store, raw, format="ova")
    with pytest.raises(PoclabError, match="not a disk"):
        do(store, package, format="vmdk")
    with pytest.raises(PoclabError, match="longer than 1 MiB"):
        do(store, io.BytesIO(raw.read_bytes()), size_limit=MIB)
    assert listing(pool) == {}


EVIL = [(f"disk: {name}", make) for name, make, _ in HOSTILE] + [
    (f"OVA: {name}", make) for name, make, _ in REFUSED
]


@pytest.mark.parametrize("stdin", [False, True], ids=["file", "stdin"])
def test_every_refusal_leaves_the_store_as_it_was(
    stdin: bool, store: Store, pool: DirectoryPool, raw: Path, tmp_path: Path
) -> None:
    import_disk(store, Ref("other", "v1"), ImportRequest(raw, profile=Profile.LINUX))
    before = listing(pool)
    assert len(before) == 2
    for number, (name, make) in enumerate(EVIL):
        directory = tmp_path / f"{number}"
        directory.mkdir()
        path = make(directory / "evil.img")
        with pytest.raises(PoclabError), path.open("rb") as file:
            do(store, file if stdin else path)
        assert listing(pool) == before, name


def test_hostile_disks_in_an_ova(store: Store, pool: DirectoryPool, tmp_path: Path) -> None:
    for number, (name, make, _) in enumerate(HOSTILE):
        if not name.startswith("VMDK"):
            continue
        directory = tmp_path / f"{number}"
        directory.mkdir()
        disk = make(directory / "evil.vmdk")
        package = packed(directory / "a.ova", ("a.ovf", ovf("evil.vmdk")), ("evil.vmdk", disk))
        with pytest.raises(PoclabError) as refusal:
            do(store, package)
        assert "a.ova" in refusal.value.what
        assert listing(pool) == {}, name


def test_data_named_many_times_does_not_fill_the_pool(
    store: Store, pool: DirectoryPool, tmp_path: Path
) -> None:
    path = made(tmp_path / "a.vdi", "vdi", disks.raw(tmp_path / "source", 512 * MIB))
    patched(path, 512, (1).to_bytes(4, "little") * 512)
    with pytest.raises(PoclabError):
        do(store, path)
    assert listing(pool) == {}


def test_interrupted_at_any_step_leaves_nothing(
    store: Store, pool: DirectoryPool, tmp_path: Path
) -> None:
    package = ova(tmp_path / "a.ova", made(tmp_path / "disk", "stream"))
    seen: list[str] = []
    with events.listening(lambda event: seen.append(event.text) if event.kind == "step" else None):
        do(store, io.BytesIO(package.read_bytes()), profile=None)
    for path in pool.root.iterdir():
        path.unlink()
    assert {"read standard input", "convert to qcow2", "digest", "look at the disk"} < set(seen)
    for wanted in seen:

        def interrupt(event: events.Event, wanted: str = wanted) -> None:
            if event.kind == "step" and event.text == wanted:
                raise KeyboardInterrupt

        with events.listening(interrupt), pytest.raises(KeyboardInterrupt):
            do(store, io.BytesIO(package.read_bytes()), profile=None)
        assert listing(pool) == {}, wanted
    assert do(store, package).ref == REF


def test_the_profile_is_asked_for_when_the_disk_does_not_show_it(
    store: Store, pool: DirectoryPool, tmp_path: Path
) -> None:
    blank = tmp_path / "blank.raw"
    blank.write_bytes(bytes(2 * MIB))
    asked: list[Guess] = []

    def choose(guess: Guess) -> Profile:
        asked.append(guess)
        return Profile.WINDOWS

    version = do(store, blank, profile=None, format="raw", choose=choose)
    assert version.profile is Profile.WINDOWS
    assert version.origin.inputs["profile"] == "asked"
    assert [guess.profile for guess in asked] == [Profile.LINUX]


def test_nobody_to_ask_means_linux_and_a_note(store: Store, tmp_path: Path, raw: Path) -> None:
    blank = tmp_path / "blank.raw"
    blank.write_bytes(bytes(2 * MIB))
    notes: list[str] = []
    with events.listening(lambda event: notes.append(event.text) if event.kind == "note" else None):
        version = do(store, blank, profile=None, format="raw")
        import_disk(
            store, Ref("win", "v2"), ImportRequest(raw, choose=lambda guess: Profile.WINDOWS)
        )
    assert version.profile is Profile.LINUX
    assert "--profile" in notes[0]
    # What the disk shows is not asked for.
    assert store.get(Ref("win", "v2")).profile is Profile.LEGACY


def test_an_ova_s_description_tells_windows(
    store: Store, pool: DirectoryPool, tmp_path: Path
) -> None:
    blank = tmp_path / "blank.raw"
    blank.write_bytes(bytes(2 * MIB))
    disk = made(tmp_path / "disk", "stream", blank)
    package = ova(tmp_path / "a.ova", disk, text="Microsoft Windows Server 2022 (64-bit)")
    assert do(store, package, profile=None).profile is Profile.WINDOWS


CHILD = """
import resource, sys
from pathlib import Path
from poclab.images.import_disk import ImportRequest, import_disk
from poclab.model.version import Profile, Ref
from poclab.store.versions import Store
from tests.support.dirpool import DirectoryPool

pool, source = map(Path, sys.argv[1:])
request = ImportRequest(sys.stdin.buffer if str(source) == "-" else source, profile=Profile.LINUX)
import_disk(Store(DirectoryPool(pool), "test:///rss"), Ref("big", "v1"), request)
# Not RUSAGE_SELF: its figure counts what the test run held when it forked this process.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(status["VmHWM"].split()[0])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peaks(pool: DirectoryPool, source: Path, stdin: Path | None = None) -> list[int]:
    """Bytes of memory that an import and its children held at most."""
    with open(stdin or os.devnull, "rb") as file:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-c", CHILD, pool.root, source],
            stdin=file,
            capture_output=True,
            text=True,
            check=True,
            timeout=500,
            cwd=Path(__file__).parents[2],
        )
    return [int(line) * KIB for line in done.stdout.split()]


def test_a_disk_of_20_gib_is_not_held_in_memory(pool: DirectoryPool, raw: Path) -> None:
    os.truncate(raw, 20 * GIB)
    for offset in (7 * GIB, 20 * GIB - 4096):
        patched(raw, offset, os.urandom(4096))
    assert raw.stat().st_blocks * 512 < 2 * MIB
    found = peaks(pool, raw)
    assert len(found) == 2
    assert max(found) < 200 * MIB
    base = next(path for path in pool.root.iterdir() if path.name.startswith("base."))
    assert base.stat().st_blocks * 512 < 4 * MIB
    with base.open("rb") as file:
        assert file.read(32)[24:] == (20 * GIB).to_bytes(8, "big")


def test_a_stream_is_not_held_in_memory(pool: DirectoryPool, raw: Path) -> None:
    os.truncate(raw, 2 * GIB)
    patched(raw, GIB, os.urandom(64 * MIB))
    assert max(peaks(pool, Path("-"), raw)) < 200 * MIB
