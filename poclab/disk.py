"""Disk files: what a stranger's file is, and what qemu-img does for poclab.

A disk from outside is hostile until shown otherwise: its header may name other files that
QEMU would open. So the header is read first, by oslo.utils' format inspector and by the
checks below, and only a file that stands alone ever reaches qemu-img, always with `-f FORMAT`
(no probing) and under resource limits.

Paths are handed to qemu-img absolute: block.c's path_has_protocol() looks for a `:` before
the first `/`, and `json:` counts at the very beginning only, so a path that begins with `/`
is a path and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from poclab import events
from poclab.errors import PoclabError
from poclab.names import shown
from poclab.run import CommandFailed, runner
from poclab.units import MIB, TIB, format_size

MAX_VIRTUAL_SIZE = 64 * TIB
MIN_RAW_SIZE = MIB
SECTOR = 512

# All the inspectors find what they need in the first MiB or give up.
_HEAD = 2 * MIB
_INFO_LIMITS = {resource.RLIMIT_AS: 1024 * MIB, resource.RLIMIT_CPU: 30}
# A check walks all of the metadata: 1 GiB holds the reference counts of about 30 TiB of data.
_CHECK_LIMITS = {resource.RLIMIT_AS: 1024 * MIB, resource.RLIMIT_CPU: 600}
_HOURS = 6 * 3600.0


@dataclass(frozen=True)
class DiskInfo:
    """What a disk file is.

    Attributes:
        format: "qcow2" or "raw".
        virtual_size: bytes the guest sees.
    """

    format: str
    virtual_size: int


# --- inspection -------------------------------------------------------------------------


def inspect(path: Path, expected: str | None = None) -> DiskInfo:
    """Find out what a disk file is, without letting it reach any other file.

    A raw file has no signature of its own. It is taken for a disk when it has an MBR or a
    GPT, or when the caller says `expected="raw"`; a size that is no multiple of 512 is
    rounded up, as QEMU does.

    Args:
        path: the file.
        expected: "qcow2" or "raw" to insist on that format.

    Raises:
        PoclabError: it is no file, no disk, a format poclab does not take, damaged, or it
            refers to another file.
    """
    name = shown(path.name, 200)
    with _opened(path, name) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(_HEAD)
        kind = _kind(head, _tail(file, size), name)
        if expected is not None and kind not in (expected, "gpt" if expected == "raw" else ""):
            # A raw disk is whatever its guest wrote; one that begins like another format
            # must never be opened by something that guesses.
            raise _refused(name, f"it is {_KINDS[kind]}, not {expected}")
        if kind == "qcow2":
            virtual_size = _qcow2_size(head, size, name)
        else:
            _check_raw(kind, head, size, expected, name)
            virtual_size = -(-size // SECTOR) * SECTOR
    if not 0 < virtual_size <= MAX_VIRTUAL_SIZE:
        raise _refused(
            name,
            f"its size would be {virtual_size} bytes",
            f"a disk has at least one byte and at most {format_size(MAX_VIRTUAL_SIZE)}",
        )
    found = DiskInfo("qcow2" if kind == "qcow2" else "raw", virtual_size)
    _agree(path, found, name)
    return found


# What the inspectors of oslo.utils call things, for people.
_KINDS = {
    "raw": "raw data without a partition table",
    "gpt": "a raw disk",
    "qcow2": "a qcow2 disk",
    "vhd": "a VHD disk",
    "vhdx": "a VHDX disk",
    "vmdk": "a VMDK disk",
    "vdi": "a VDI disk",
    "qed": "a QED disk",
    "iso": "an ISO image",
    "luks": "a LUKS volume",
}
_CONVERTIBLE = {"vhd": "vpc", "vhdx": "vhdx", "vmdk": "vmdk", "vdi": "vdi"}


def _refused(name: str, why: str, fix: str = "") -> PoclabError:
    return PoclabError(f"{name} is not a disk poclab takes", why=why, fix=fix)


@contextmanager
def _opened(path: Path, name: str) -> Iterator[BinaryIO]:
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise PoclabError(f"{name} cannot be read", why=f"{why}") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        what = "a directory" if stat.S_ISDIR(mode) else "a device, pipe or socket"
        raise _refused(name, f"it is {what}, not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        yield file


def _tail(file: BinaryIO, size: int) -> bytes:
    file.seek(max(0, size - SECTOR))
    return file.read(SECTOR)


def _kind(head: bytes, tail: bytes, name: str) -> str:
    """The one format the file has, by oslo.utils' name; refuses the ones not taken."""
    kinds = _detected(head)
    # Signatures the inspectors leave out: a qcow2 cut short, a VMDK descriptor whose text
    # they could not read, and the footer of a fixed VHD.
    if head.startswith(b"QFI\xfb"):
        kinds.add("qcow2")
    if head[:64].lower().startswith(b"# disk descriptorfile"):
        kinds.add("vmdk")
    if tail.startswith(b"conectix"):
        kinds.add("vhd")
    if "iso" in kinds:
        # A bootable ISO has a partition table too; it is still no disk to install on.
        kinds.discard("gpt")
    if len(kinds) > 1:
        raise _refused(name, f"it is several formats at once: {', '.join(sorted(kinds))}")
    kind = kinds.pop() if kinds else "raw"
    if kind in _CONVERTIBLE:
        raise _refused(
            name,
            f"{_KINDS[kind]} is not supported yet",
            f"convert it: qemu-img convert -f {_CONVERTIBLE[kind]} -O qcow2 FILE NEW.qcow2",
        )
    if kind in ("qed", "luks", "iso"):
        raise _refused(name, f"it is {_KINDS[kind]}", "give a qcow2 or raw disk")
    return kind


def _detected(head: bytes) -> set[str]:
    import io
    import logging

    from oslo_utils.imageutils import format_inspector

    # The library logs each refusal as a warning; the error says it already.
    logging.getLogger("oslo_utils").addHandler(logging.NullHandler())
    source = format_inspector.InspectWrapper(io.BytesIO(head))
    while source.read(64 * 1024):
        pass
    source.close()
    return {str(found) for found in source.formats or []} - {"raw"}


def _violations(format_name: str, head: bytes) -> dict[str, str]:
    """oslo.utils' safety checks that fail, by name."""
    from oslo_utils.imageutils import format_inspector

    inspector = format_inspector.ALL_FORMATS[format_name]()
    inspector.eat_chunk(head)
    inspector.finish()
    try:
        inspector.safety_check()
    except format_inspector.SafetyCheckFailed as error:
        return {name: str(failure) for name, failure in error.failures.items()}
    except format_inspector.ImageFormatError as error:
        return {"header": str(error)}
    return {}


def _check_raw(kind: str, head: bytes, size: int, expected: str | None, name: str) -> None:
    if size < MIN_RAW_SIZE:
        raise _refused(
            name, f"{size} bytes is too small for a disk (at least {format_size(MIN_RAW_SIZE)})"
        )
    why = "it has no partition table" if kind == "raw" else ""
    if kind == "gpt":
        why = "; ".join(_violations("gpt", head).values())
    if why and expected != "raw":
        raise _refused(name, why, "if it is a raw disk all the same, say --format raw")


# docs/interop/qcow2.txt in QEMU's source: the header's fields, big-endian.
_QCOW2 = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_QCOW2_V2_LENGTH = 72
# Header extensions: end of the list, and the name of an external data file.
_EXTENSION_END, _EXTENSION_DATA_FILE = 0, 0x44415441
# block/qcow2.h: QCOW_MAX_L1_SIZE, QCOW_MAX_REFTABLE_SIZE
_MAX_L1, _MAX_REFCOUNT_TABLE = 32 * MIB, 8 * MIB
_VIOLATIONS = {
    "backing_file": ("it has a backing file", "flatten it: qemu-img convert -O qcow2 FILE NEW"),
    "data_file": ("its data is in another file", "flatten it: qemu-img convert -O qcow2 FILE NEW"),
    "unknown_features": (
        "it uses qcow2 features poclab does not know",
        "convert it: qemu-img convert -O qcow2 FILE NEW",
    ),
}


def _qcow2_size(head: bytes, file_size: int, name: str) -> int:
    """Check a qcow2 header, and give the virtual size."""
    if file_size < SECTOR:
        raise _refused(name, "it is a truncated qcow2 file", "copy it again")
    for check, text in _violations("qcow2", head).items():
        why, fix = _VIOLATIONS.get(check, (text, ""))
        raise _refused(name, why, fix)
    (_, version, _, _, cluster_bits, size, crypt, l1_entries, l1_offset, refcount_offset,
     refcount_clusters, _, _, incompatible, _, _, refcount_order, length) = (
        _QCOW2.unpack_from(head)
    )  # fmt: skip
    if version == 2:
        incompatible, refcount_order, length = 0, 4, _QCOW2_V2_LENGTH
    if not 9 <= cluster_bits <= 21 or refcount_order > 6 or not 72 <= length <= 1 << cluster_bits:
        raise _refused(name, "its qcow2 header makes no sense", "copy it again")
    if crypt:
        raise _refused(name, "it is encrypted", "decrypt it: qemu-img convert --object secret,...")
    if incompatible & 0b11:
        state = "marked as corrupt" if incompatible & 0b10 else "not closed properly"
        raise _refused(name, f"it is {state}", "repair it: qemu-img check -r all -f qcow2 FILE")
    _check_extensions(head, length, name)
    refcount_table = refcount_clusters << cluster_bits
    if l1_entries * 8 > _MAX_L1 or refcount_table > _MAX_REFCOUNT_TABLE:
        raise _refused(name, "its tables are larger than qcow2 allows")
    end = max(l1_offset + l1_entries * 8, refcount_offset + refcount_table)
    if end > file_size or file_size < 1 << cluster_bits:
        raise _refused(name, "it is truncated: its tables lie beyond its end", "copy it again")
    return int(size)


def _check_extensions(head: bytes, offset: int, name: str) -> None:
    while offset + 8 <= len(head):
        kind, length = struct.unpack_from(">II", head, offset)
        if kind == _EXTENSION_END:
            return
        if kind == _EXTENSION_DATA_FILE:
            raise _refused(name, *_VIOLATIONS["data_file"])
        offset += 8 + (length + 7) // 8 * 8
    raise _refused(name, "its qcow2 header has no end", "copy it again")


def _agree(path: Path, found: DiskInfo, name: str) -> None:
    """Have qemu-img read the file too: it must see the same disk, standing alone and whole."""
    argv = ["qemu-img", "info", "-f", found.format, "--output=json", _plain(path)]
    result = runner().run(argv, check=False, timeout=120, limits=_INFO_LIMITS)
    if result.code != 0:
        raise _refused(name, f"qemu-img cannot read it: {_reason(result.last_line)}")
    info = json.loads(result.stdout)
    details = info.get("format-specific", {}).get("data", {})
    if info.get("backing-filename") or details.get("data-file") or info.get("encrypted"):
        raise _refused(name, "it refers to another file or is encrypted")
    if info["virtual-size"] != found.virtual_size:
        raise _refused(name, f"its size is unclear: {found.virtual_size} or {info['virtual-size']}")
    if found.format == "qcow2":
        check(path)


def check(path: Path) -> None:
    """Check the metadata of a qcow2 file; its data is not looked at (see `sha256`).

    Raises:
        PoclabError: it is damaged or truncated.
    """
    argv = ["qemu-img", "check", "-f", "qcow2", _plain(path)]
    result = runner().run(argv, check=False, timeout=1200, limits=_CHECK_LIMITS)
    # qemu-img(1): 0 fine, 2 corrupt, 3 leaked clusters, which waste space and harm nothing.
    if result.code not in (0, 3):
        lines = (result.stdout + result.stderr).splitlines()
        why = next((x for x in lines if x.startswith("ERROR")), result.last_line)
        raise PoclabError(
            f"{shown(path.name, 200)} is damaged",
            why=_reason(why),
            fix="copy it again, or try: qemu-img check -r all -f qcow2 FILE",
        )


def virtual_size(path: Path) -> int:
    """The bytes a guest sees of a qcow2 file of poclab's own.

    Read from the header: bytes 24 to 31, big-endian (QEMU, docs/interop/qcow2.txt).

    Raises:
        PoclabError: it is no qcow2 file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise PoclabError(f"{path} cannot be read", why=f"{error.strerror}") from error
    if len(head) < 32 or head[:4] != b"QFI\xfb":
        raise PoclabError(f"{path} is no qcow2 disk")
    return int.from_bytes(head[24:32])


def sha256(path: Path) -> str:
    """The digest of a file's bytes, as `sha256:HEX`.

    Read in chunks of 1 MiB: as fast as hashlib.file_digest (1.4 s for 2 GiB), with progress,
    and without the bus error that a mapped file gives when it shrinks.

    Raises:
        PoclabError: the file cannot be read.
    """
    digest = hashlib.sha256()
    buffer = bytearray(MIB)
    view = memoryview(buffer)
    done = 0
    try:
        with path.open("rb", buffering=0) as file:
            total = os.fstat(file.fileno()).st_size
            while count := file.readinto(buffer):
                digest.update(view[:count])
                done += count
                if done % (64 * MIB) == 0:
                    events.progress("digest", done, total)
    except OSError as error:
        raise PoclabError(
            f"{shown(path.name, 200)} cannot be read", why=f"{error.strerror}"
        ) from error
    return f"sha256:{digest.hexdigest()}"


# --- making -----------------------------------------------------------------------------


def convert_to_qcow2(source: Path, source_format: str, target: Path) -> None:
    """Copy a disk into a new qcow2 file: sparse, uncompressed, without internal snapshots.

    Progress is told as events. The target is removed again when anything goes wrong.

    Args:
        source: an inspected disk.
        source_format: "qcow2" or "raw".
        target: the file to make; must not exist.

    Raises:
        PoclabError: qemu-img failed, or the target exists.
    """
    if target.exists():
        raise PoclabError(f"{target} exists already")
    argv = ["qemu-img", "convert", "-p", "-f", source_format, "-O", "qcow2", "-o", "compat=1.1"]
    argv += [_plain(source), _plain(target)]
    last = [""]

    def line(text: str) -> None:
        match = _PERCENT.search(text)
        if match:
            events.progress("convert", float(match[1]), 100.0)
        elif text.strip():
            last[0] = text.strip()

    try:
        code = runner().stream(argv, line, timeout=_HOURS)
        if code != 0:
            raise PoclabError(
                f"{shown(source.name, 200)} cannot be converted",
                why=_reason(last[0]) or f"exit status {code}",
                fix=f"make room in {target.parent}" if "No space left" in last[0] else "",
            )
    except BaseException:
        target.unlink(missing_ok=True)
        raise


_PERCENT = re.compile(r"\(([0-9.]+)/100%\)")


def create_empty(path: Path, size: int) -> None:
    """Make an empty qcow2 file.

    Args:
        path: the file to make; must not exist.
        size: bytes the guest sees.

    Raises:
        PoclabError: it exists, or cannot be made.
    """
    _create(path, [], size)


def create_overlay(path: Path, backing: Path, backing_format: str, size: int | None = None) -> None:
    """Make a qcow2 file that holds what differs from another disk.

    Args:
        path: the file to make; must not exist.
        backing: the disk below; its absolute path is recorded.
        backing_format: its format.
        size: bytes the guest sees, or None for as many as the disk below has.

    Raises:
        PoclabError: it exists, or cannot be made.
    """
    _create(path, ["-b", _plain(backing), "-F", backing_format], size)


def resize(path: Path, size: int) -> None:
    """Enlarge a qcow2 file; never shrinks one.

    Args:
        path: the file.
        size: bytes the guest is to see.

    Raises:
        PoclabError: qemu-img refuses.
    """
    try:
        runner().run(["qemu-img", "resize", "-q", "-f", "qcow2", _plain(path), str(size)])
    except CommandFailed as error:
        raise PoclabError(
            f"{shown(path.name, 200)} cannot be enlarged", why=_reason(error.result.last_line)
        ) from error


def _create(path: Path, options: list[str], size: int | None) -> None:
    if path.exists():
        raise PoclabError(f"{path} exists already")
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", *options, _plain(path)]
    try:
        runner().run(argv if size is None else [*argv, str(size)])
    except CommandFailed as error:
        raise PoclabError(
            f"{shown(path.name, 200)} cannot be made", why=_reason(error.result.last_line)
        ) from error


def _plain(path: Path) -> str:
    """A path that qemu-img takes for a path, whatever characters it has."""
    return str(path.absolute())


def _reason(text: str) -> str:
    """The end of a qemu-img message: what is wrong, without the program and the file."""
    return text.removeprefix("qemu-img: ").strip()[:300]
