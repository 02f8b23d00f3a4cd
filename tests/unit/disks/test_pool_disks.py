"""Disk files from strangers, and qemu-img on files with strange names."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.core.units import GIB, MIB, TIB
from poclab.disks import pool_disks
from poclab.disks.digest import file_digest
from poclab.disks.formats import DiskInfo
from poclab.disks.formats.qcow2 import is_written
from poclab.disks.inspection import inspect_file
from poclab.disks.qcow2_header import backing_file, virtual_size
from tests.hostile import disks as hostile


def qemu_img(*argv: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, argv)], check=True, capture_output=True, timeout=60)


def qcow2(path: Path, *options: str, size: str = "8M") -> Path:
    qemu_img("create", "-q", "-f", "qcow2", *options, path, size)
    return path


def patched(path: Path, offset: int, data: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    return path


def raw(path: Path, size: int = 4 * MIB) -> Path:
    """A raw disk with an MBR of one partition."""
    entry = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0x83, b"\0\0\0", 2048, 4096)
    with path.open("wb") as file:
        file.write(b"\0" * 446 + entry + b"\0" * 48 + b"\x55\xaa")
        file.truncate(size)
    return path


def u32(value: int) -> bytes:
    return struct.pack(">I", value)


def u64(value: int) -> bytes:
    return struct.pack(">Q", value)


def backing(path: Path) -> Path:
    return qcow2(path, "-u", "-b", "/etc/shadow", "-F", "raw")


def backing_json(path: Path) -> Path:
    text = 'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/shadow"}}'
    return qcow2(path, "-u", "-b", text, "-F", "raw")


def backing_loop(path: Path) -> Path:
    other = path.with_name("other.qcow2")
    return qcow2(other, "-u", "-b", str(path), "-F", "qcow2").rename(path)


def backing_chain(path: Path) -> Path:
    """300 overlays, each a copy of the first with another number in its backing file's name."""
    first = path.with_name("001.qcow2")
    qcow2(first, "-u", "-b", str(path.with_name("000.qcow2")), "-F", "qcow2")
    data = first.read_bytes()
    for number in range(1, 300):
        above = path.with_name(f"{number + 1:03}.qcow2")
        above.write_bytes(data.replace(b"/000.qcow2", b"/%03d.qcow2" % number))
    return above.rename(path)


def data_file(path: Path) -> Path:
    return qcow2(path, "-o", f"data_file={path.with_name('data.raw')},data_file_raw=on")


def data_file_name_alone(path: Path) -> Path:
    """The name of a data file without the feature bit that announces it."""
    data_file(path)
    return patched(path, 72, u64(0))


def luks(path: Path) -> Path:
    return _file(path, b"LUKS\xba\xbe\0\1aes" + b"\0" * 4 * MIB)


def iso(path: Path) -> Path:
    path.write_bytes(b"\0" * 32768 + b"\1CD001\1\0" + b"\0" * 2 * MIB)
    return path


def iso_and_qcow2(path: Path) -> Path:
    qcow2(path, size="1G")
    return patched(path, 32768, b"\1CD001\1\0")


def other(kind: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        qemu_img("create", "-q", "-f", kind, path, "8M")
        return path

    make.__name__ = kind
    return make


def vmdk_descriptor(path: Path) -> Path:
    lines = ("# Disk DescriptorFile", 'createType="monolithicFlat"', 'RW 99 FLAT "/etc/shadow" 0')
    path.write_text("\n".join(lines) + "\n" * 2 * MIB)
    return path


def cut(path: Path) -> Path:
    qcow2(path, "-o", "preallocation=full")
    os.truncate(path, path.stat().st_size - 3 * MIB)
    return path


def header_only(path: Path) -> Path:
    os.truncate(qcow2(path), 200)
    return path


def no_tables(path: Path) -> Path:
    os.truncate(qcow2(path), 65536)
    return path


def at(offset: int, data: bytes, *options: str) -> Callable[[Path], Path]:
    return lambda path: patched(qcow2(path, *options), offset, data)


# Offsets: docs/interop/qcow2.txt of QEMU.
HOSTILE: list[tuple[str, Callable[[Path], Path], str]] = [
    ("backing file", backing, "backing file"),
    ("backing json", backing_json, "backing file"),
    ("backing loop", backing_loop, "backing file"),
    ("300-deep chain", backing_chain, "backing file"),
    ("data file", data_file, "another file"),
    ("data file without its bit", data_file_name_alone, "another file"),
    ("LUKS", luks, "LUKS"),
    ("qcow2 with LUKS inside", at(32, u32(2)), "encrypted"),
    ("qcow2 with AES", at(32, u32(1)), "encrypted"),
    ("QED", other("qed"), "QED"),
    ("VMDK descriptor", vmdk_descriptor, "other files (monolithicFlat)"),
    ("ISO", iso, "ISO"),
    ("ISO and qcow2", iso_and_qcow2, "several formats"),
    ("truncated data", cut, "damaged"),
    ("truncated header", header_only, "truncated"),
    ("truncated tables", no_tables, "truncated"),
    ("dirty", at(72, u64(1)), "not closed properly"),
    ("corrupt", at(72, u64(2)), "corrupt"),
    ("unknown feature", at(72, u64(1 << 40)), "does not know"),
    ("version 9", at(4, u32(9)), "does not know"),
    ("8 EiB", at(24, u64(1 << 63)), "at most 64.0 TiB"),
    ("65 TiB", at(24, u64(65 * TIB)), "at most 64.0 TiB"),
    ("no size", at(24, u64(0)), "at least one byte"),
    ("huge L1", at(36, u32(0xFFFFFFFF)), "larger than qcow2 allows"),
    ("L1 beyond the end", at(40, u64(1 << 40)), "beyond its end"),
    ("huge refcount table", at(56, u32(0xFFFFFFFF)), "larger than qcow2 allows"),
    ("cluster bits", at(20, u32(63)), "makes no sense"),
    ("endless extensions", at(112, u32(1) + u32(0xFFFFFFF0)), "no end"),
    ("zeros", lambda path: _file(path, b"\0" * 4 * MIB), "no partition table"),
    ("text", lambda path: _file(path, b"hello\n"), "too small"),
    ("empty", lambda path: _file(path, b""), "too small"),
    ("directory", lambda path: _after(path.mkdir, path), "a directory"),
    ("FIFO", lambda path: _after(lambda: os.mkfifo(path), path), "not a regular file"),
    (
        "device",
        lambda path: _after(lambda: path.symlink_to("/dev/zero"), path),
        "not a regular file",
    ),
    ("symlink loop", lambda path: _after(lambda: path.symlink_to(path), path), "symbolic links"),
    ("missing", lambda path: path, "No such file"),
]


def _after(make: Callable[[], None], path: Path) -> Path:
    make()
    return path


def _file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("make", "expected"), [x[1:] for x in HOSTILE], ids=[x[0] for x in HOSTILE]
)
def test_refuses(make: Callable[[Path], Path], expected: str, tmp_path: Path) -> None:
    path = make(tmp_path / "evil.img")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(PoclabError) as refusal:
        inspect_file(path)
    lines = refusal.value.lines()
    assert expected in str(refusal.value)
    assert "evil.img" in lines[0]
    assert len(lines) <= 3
    assert all("\n" not in line for line in lines)
    assert sorted(tmp_path.iterdir()) == before


def test_the_logging_library_stays_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = backing(tmp_path / "evil.img")
    with pytest.raises(PoclabError):
        inspect_file(path)
    assert capfd.readouterr() == ("", "")


QCOW2 = ("compat=0.10", "compression_type=zstd", "extended_l2=on", "lazy_refcounts=on")


def test_takes_qcow2(tmp_path: Path) -> None:
    for options in ([], *(["-o", each] for each in QCOW2)):
        path = qcow2(tmp_path / f"{options[-1:]}.img", *options, size="3G")
        assert inspect_file(path) == DiskInfo("qcow2", 3 * GIB, 0)


def test_takes_qcow2_with_internal_snapshots_and_drops_them(tmp_path: Path) -> None:
    path = qcow2(tmp_path / "a.qcow2")
    qemu_img("snapshot", "-c", "before", path)
    assert inspect_file(path).format == "qcow2"
    pool_disks.convert_to_qcow2(path, "qcow2", tmp_path / "b.qcow2")
    done = subprocess.run(
        ["qemu-img", "info", "--output=json", tmp_path / "b.qcow2"], capture_output=True, check=True
    )
    assert "snapshots" not in json.loads(done.stdout)


def test_takes_raw_with_a_partition_table_and_rounds_its_size_up(tmp_path: Path) -> None:
    assert inspect_file(raw(tmp_path / "a.img")) == DiskInfo("raw", 4 * MIB, 4 * MIB)
    size = 4 * MIB + 512
    assert inspect_file(raw(tmp_path / "b.img", size - 511)) == DiskInfo("raw", size, size)


def test_takes_raw_without_a_partition_table_when_told(tmp_path: Path) -> None:
    path = _file(tmp_path / "a.img", b"\0" * 2 * MIB)
    assert inspect_file(path, "raw") == DiskInfo("raw", 2 * MIB, 2 * MIB)


def test_raw_that_begins_like_another_format_is_refused_even_when_told(tmp_path: Path) -> None:
    with pytest.raises(PoclabError, match="a qcow2 disk, not raw"):
        inspect_file(qcow2(tmp_path / "a.img"), "raw")
    with pytest.raises(PoclabError, match="a raw disk, not qcow2"):
        inspect_file(raw(tmp_path / "b.img"), "qcow2")


STRANGE = [
    "-rf",
    "a:b",
    "nbd:1.2.3.4:5",
    "nbd://x",
    'json:{"driver":"null-co"}',
    "a,b=c",
    "x y",
    "%n",
]


@pytest.mark.parametrize("name", STRANGE)
def test_a_name_is_never_a_protocol_or_an_option(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(name.replace("/", "_"))
    pool_disks.create_empty(path, 8 * MIB)
    overlay = Path(f"over{path}")
    pool_disks.create_overlay(overlay, path, "qcow2", 16 * MIB)
    target = Path(f"to{path}")
    pool_disks.convert_to_qcow2(path, "qcow2", target)
    pool_disks.check(target)
    assert sorted(x.name for x in tmp_path.iterdir()) == sorted(map(str, (path, overlay, target)))
    assert virtual_size(path) == virtual_size(target) == 8 * MIB
    assert virtual_size(overlay) == 16 * MIB
    # The overlay is readable only if QEMU finds the disk below under its strange name.
    qemu_img("check", "-f", "qcow2", tmp_path / overlay)


def test_convert_keeps_the_data_and_tells_progress(tmp_path: Path) -> None:
    path = patched(raw(tmp_path / "a.img", 8 * MIB), 5 * MIB, os.urandom(MIB))
    seen: list[events.Event] = []
    with events.listening(seen.append):
        pool_disks.convert_to_qcow2(path, "raw", tmp_path / "b.qcow2")
    qemu_img("compare", "-f", "raw", "-F", "qcow2", path, tmp_path / "b.qcow2")
    done = [event.data["done"] for event in seen if event.kind == "progress"]
    assert done
    assert done[-1] == 100.0


def test_convert_leaves_nothing_behind(tmp_path: Path) -> None:
    broken = _file(tmp_path / "broken", b"QFI\xfb")
    target = tmp_path / "b.qcow2"
    with pytest.raises(PoclabError, match="cannot be converted"):
        pool_disks.convert_to_qcow2(broken, "qcow2", target)
    assert not target.exists()

    def interrupt(event: events.Event) -> None:
        if event.kind == "progress":
            raise KeyboardInterrupt

    with events.listening(interrupt), pytest.raises(KeyboardInterrupt):
        pool_disks.convert_to_qcow2(raw(tmp_path / "a.img"), "raw", target)
    assert not target.exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    there = _file(tmp_path / "there", b"precious")
    makers: list[Callable[[], None]] = [
        lambda: pool_disks.create_empty(there, MIB),
        lambda: pool_disks.create_overlay(there, there, "raw"),
        lambda: pool_disks.convert_to_qcow2(raw(tmp_path / "a.img"), "raw", there),
    ]
    for make in makers:
        with pytest.raises(PoclabError, match="exists already"):
            make()
    assert there.read_bytes() == b"precious"


def test_resize_enlarges_and_never_shrinks(tmp_path: Path) -> None:
    path = qcow2(tmp_path / "a:b.qcow2", size="8M")
    pool_disks.resize(path, 16 * MIB)
    assert virtual_size(path) == 16 * MIB
    with pytest.raises(PoclabError, match="cannot be enlarged"):
        pool_disks.resize(path, 4 * MIB)
    assert virtual_size(path) == 16 * MIB


def test_check_finds_damage(tmp_path: Path) -> None:
    path = qcow2(tmp_path / "a.qcow2", "-o", "preallocation=full")
    pool_disks.check(path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(PoclabError, match="damaged"):
        pool_disks.check(path)


def test_a_check_that_prints_without_end_finds_damage(tmp_path: Path) -> None:
    path = hostile.qcow2_of_endless_errors(tmp_path / "a.qcow2")
    with pytest.raises(PoclabError, match="is damaged") as error:
        pool_disks.check(path)
    assert error.value.why.startswith("ERROR offset=")


def test_lost_clusters_are_no_damage_however_many(tmp_path: Path) -> None:
    """A power cut leaves them: a line for each is all that is said of them."""
    path = tmp_path / "a.qcow2"
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata"]
    subprocess.run([*argv, str(path), "13G"], check=True)
    with path.open("r+b") as file:
        header = file.read(72)  # docs/interop/qcow2.txt
        (entries,), (table,) = (
            struct.unpack_from(">I", header, 36),
            struct.unpack_from(">Q", header, 40),
        )
        file.seek(table)
        file.write(bytes(8 * entries))
    pool_disks.check(path)


def test_what_cannot_be_checked_is_not_called_damaged(tmp_path: Path) -> None:
    path = qcow2(tmp_path / "a.qcow2")
    argv = ["qemu-io", "-f", "qcow2", str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(b"write 0 64k\n")
        holder.stdin.flush()
        assert b"wrote" in holder.stdout.readline()
        with pytest.raises(PoclabError, match="cannot check") as error:
            pool_disks.check(path)
        assert "another process" in error.value.why
        holder.stdin.close()


# --- layers -------------------------------------------------------------------------------


def layered(path: Path, below: Path | None, pattern: int, at: str, size: str = "8M") -> Path:
    """A qcow2 file, above another one or not, with 64 KiB of one byte somewhere."""
    below_it: list[str | Path] = ["-b", below, "-F", "qcow2"] if below else []
    qemu_img("create", "-q", "-f", "qcow2", *below_it, path, size)
    argv = ["qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} {at} 64k", str(path)]
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
    return path


@pytest.mark.parametrize("between", [0, 1, 2])
def test_a_copied_layer_has_all_above_its_base_and_nothing_of_it(
    tmp_path: Path, between: int
) -> None:
    base = layered(tmp_path / "base.qcow2", None, 1, "0")
    below = base
    for number in range(between):
        below = layered(tmp_path / f"{number}.qcow2", below, 2 + number, f"{number + 1}M")
    top = layered(tmp_path / "top.qcow2", below, 9, "6M", "16M")
    before = file_digest(top)
    target = tmp_path / "layer.qcow2"
    pool_disks.copy_layer(top, base, target)
    assert backing_file(target) == "base.qcow2"
    qemu_img("compare", "-f", "qcow2", "-F", "qcow2", top, target)
    lengths = json.loads(
        subprocess.run(
            ["qemu-img", "map", "--output=json", target], check=True, capture_output=True
        ).stdout
    )
    own = sum(item["length"] for item in lengths if item["depth"] == 0 and item["data"])
    assert own == (1 + between) * 64 * 1024
    assert file_digest(top) == before


def test_a_layer_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    base = layered(tmp_path / "base.qcow2", None, 1, "0")
    top = layered(tmp_path / "top.qcow2", layered(tmp_path / "mid.qcow2", base, 2, "1M"), 3, "2M")
    with pytest.raises(PoclabError, match="cannot be put on"):
        pool_disks.copy_layer(top, tmp_path / "gone.qcow2", tmp_path / "layer.qcow2")
    assert not (tmp_path / "layer.qcow2").exists()


def test_a_disk_is_blank_until_it_is_written_to(tmp_path: Path) -> None:
    base = layered(tmp_path / "base.qcow2", None, 1, "0")
    top = qcow2(tmp_path / "top.qcow2", "-b", str(base), "-F", "qcow2")
    assert pool_disks.is_blank(top)
    assert not pool_disks.is_blank(base)
    assert (is_written(top), is_written(base)) == (False, True)
    pool_disks.resize(top, 3 * GIB)
    assert not is_written(top)
    for command in ("discard 1M 64k", "write 7M 512"):
        qcow2(top, "-b", str(base), "-F", "qcow2")
        argv = ["qemu-io", "-f", "qcow2", "-c", command, str(top)]
        subprocess.run(argv, check=True, capture_output=True, timeout=60)
        assert is_written(top), command
