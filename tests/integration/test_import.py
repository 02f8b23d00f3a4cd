"""`import_disk` with the real store on a pool that is a directory."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from poclab.core import events
from poclab.core.errors import PoclabError, UsageError
from poclab.core.units import GIB, MIB
from poclab.disks.digest import file_digest
from poclab.images.import_disk import ImportRequest, import_disk
from poclab.model.version import Profile, Ref, Version
from poclab.model.version_volumes import base_volume
from poclab.store.versions import Store
from tests.support.dirpool import DirectoryPool

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
    return Store(pool, "test:///import")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw disk with an MBR, an odd length and data."""
    path = tmp_path / "appliance.img"
    entry = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0x83, b"\0\0\0", 2048, 4096)
    with path.open("wb") as file:
        file.write(b"\0" * 446 + entry + b"\0" * 48 + b"\x55\xaa")
        file.seek(MIB)
        file.write(os.urandom(MIB))
        file.truncate(8 * MIB)
    return path


def qemu_img(*argv: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, argv)], check=True, capture_output=True, timeout=60)


def do(store: Store, source: Path | BinaryIO, **options: Any) -> Version:
    options = {"profile": Profile.LEGACY, "user": "admin"} | options
    return import_disk(store, REF, ImportRequest(source, **options))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_raw_disk_becomes_a_version(store: Store, pool: DirectoryPool, raw: Path) -> None:
    before = digest(raw)
    version = do(store, raw, digest=before.upper())
    assert store.get(REF) == version
    assert version.virtual_size == 8 * MIB
    assert (version.profile, version.user) == (Profile.LEGACY, "admin")
    assert version.origin.kind == "imported"
    assert version.origin.source == "appliance.img"
    assert version.origin.digest == f"sha256:{before}"
    base = pool.root / base_volume(version.digest)
    assert file_digest(base) == version.digest
    qemu_img("compare", "-f", "raw", "-F", "qcow2", raw, base)
    assert digest(raw) == before
    assert len(list(pool.root.iterdir())) == 2


def test_a_qcow2_disk_loses_its_snapshots(
    store: Store, pool: DirectoryPool, raw: Path, tmp_path: Path
) -> None:
    source = tmp_path / "-c:x.qcow2"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, source)
    qemu_img("snapshot", "-c", "old", source)
    version = do(store, source, format="qcow2")
    base = pool.root / base_volume(version.digest)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", raw, base)
    # QEMU's docs/interop/qcow2.txt: offset 60 of the header counts the snapshots.
    assert source.read_bytes()[60:64] == struct.pack(">I", 1)
    assert base.read_bytes()[60:64] == struct.pack(">I", 0)


def test_hostile_disks_create_nothing(store: Store, pool: DirectoryPool, tmp_path: Path) -> None:
    evil = tmp_path / "evil.qcow2"
    qemu_img("create", "-f", "qcow2", "-u", "-b", "/etc/shadow", "-F", "raw", evil, "8M")
    with pytest.raises(PoclabError, match="backing file"):
        do(store, evil)
    with pytest.raises(PoclabError, match="a qcow2 disk, not raw"):
        do(store, evil, format="raw")
    assert list(pool.root.iterdir()) == []


def test_an_existing_version_is_refused_before_anything_is_read(store: Store, raw: Path) -> None:
    do(store, raw)
    seen: list[str] = []
    with (
        events.listening(lambda event: seen.append(event.text)),
        pytest.raises(PoclabError, match="win:v1 exists already"),
    ):
        do(store, raw)
    assert "inspect" not in seen


def test_another_file_than_the_one_meant(store: Store, pool: DirectoryPool, raw: Path) -> None:
    with pytest.raises(PoclabError, match="not the file that was meant") as error:
        do(store, raw, digest="sha256:" + "0" * 64)
    assert digest(raw) in error.value.why
    assert list(pool.root.iterdir()) == []


def test_a_file_of_holes_is_digested_only_when_that_is_asked_for(
    store: Store, pool: DirectoryPool, raw: Path
) -> None:
    os.truncate(raw, 2 * GIB)
    assert do(store, raw).origin.digest == ""
    with pytest.raises(PoclabError, match="not the file that was meant"):
        import_disk(store, Ref("win", "v2"), ImportRequest(raw, digest="0" * 64))
    known = file_digest(raw, "sha256")
    assert (
        import_disk(store, Ref("win", "v2"), ImportRequest(raw, digest=known)).origin.digest
        == known
    )
    os.truncate(raw, GIB)
    assert import_disk(store, Ref("win", "v3"), ImportRequest(raw)).origin.digest == file_digest(
        raw
    )


@pytest.mark.parametrize(
    "wrong",
    [{"digest": "abc"}, {"digest": "x" * 64}, {"digest": "md5:" + "0" * 64}, {"format": "vmdq"}],
)
def test_wrong_usage(wrong: dict[str, str], store: Store, raw: Path) -> None:
    with pytest.raises(UsageError):
        do(store, raw, **wrong)


def test_a_file_that_changes_meanwhile_is_not_published(
    store: Store, pool: DirectoryPool, raw: Path
) -> None:
    def write(event: events.Event) -> None:
        if event.text == "convert to qcow2":
            with raw.open("r+b") as file:
                file.seek(5 * MIB)
                file.write(b"the VM still runs")

    with events.listening(write), pytest.raises(PoclabError, match="changed while it was read"):
        do(store, raw)
    assert list(pool.root.iterdir()) == []


def test_no_room(
    store: Store, pool: DirectoryPool, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(raw)._replace(free=MIB // 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(PoclabError, match="no room") as error:
        do(store, raw)
    assert "512 KiB" in error.value.why
    assert list(pool.root.iterdir()) == []


def test_interrupted_at_any_step_a_second_import_succeeds(
    store: Store, pool: DirectoryPool, raw: Path
) -> None:
    steps = ["inspect", "digest", "convert to qcow2", "publish", "base", "manifest"]
    for wanted in steps:

        def interrupt(event: events.Event, wanted: str = wanted) -> None:
            if event.kind == "step" and event.text == wanted:
                raise KeyboardInterrupt

        with events.listening(interrupt), pytest.raises(KeyboardInterrupt):
            do(store, raw)
        assert store.versions() == []
        assert not any(path.is_dir() for path in pool.root.iterdir())
    version = do(store, raw)
    assert store.versions() == [version]
    assert len(pool.names()) == 2
