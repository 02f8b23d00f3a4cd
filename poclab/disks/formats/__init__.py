"""Disk files from strangers: what they are, read from their headers alone.

A disk's header may name other files that QEMU would open, or promise tables that fill the
memory. The readers here see that a file stands alone, that its tables lie within it, and
that it is one format and no other, before any other program gets it.
"""

from __future__ import annotations

from poclab.core.units import MIB, format_size
from poclab.disks.formats import qcow2, vdi, vhd, vhdx, vmdk
from poclab.disks.formats.base import SECTOR, DiskInfo, Part, Window, opened
from poclab.disks.formats.detect import (
    DRIVERS,
    KINDS,
    detect,
    refuse_wrapped,
    violations,
    wrong_format,
)

__all__ = ["DRIVERS", "SECTOR", "DiskInfo", "Part", "Window", "detect", "opened", "read"]

MIN_RAW_SIZE = MIB

_READERS = {
    "qcow2": qcow2.read,
    "vdi": vdi.read,
    "vhd": vhd.read,
    "vhdx": vhdx.read,
    "vmdk": vmdk.read,
}


def read(window: Window, expected: str | None = None) -> DiskInfo:
    """Find out what a disk file is from its header.

    A raw file has no signature of its own. It is taken for a disk when it has an MBR or a
    GPT, or when the caller says `expected="raw"`; a size that is no multiple of 512 is
    rounded up, as QEMU does.

    Args:
        window: the file.
        expected: QEMU's name of a format to insist on.

    Raises:
        PoclabError: it is no disk, a format poclab does not take, damaged, or it refers to
            another file.
    """
    kind = detect(window)
    if kind == "tar":
        raise window.refused(f"it is {KINDS[kind]}, which holds files and is no disk itself")
    if expected is not None and DRIVERS[kind] != expected:
        # A raw disk is whatever its guest wrote; one that begins like another format
        # must never be opened by something that guesses.
        raise wrong_format(window, kind, expected)
    if kind in _READERS:
        return _READERS[kind](window)
    return _raw(window, kind, expected)


def _raw(window: Window, kind: str, expected: str | None) -> DiskInfo:
    if expected is None and kind == "raw":
        refuse_wrapped(window)
    if window.size < MIN_RAW_SIZE:
        least = format_size(MIN_RAW_SIZE)
        raise window.refused(f"{window.size} bytes is too small for a disk (at least {least})")
    why = "it has no partition table" if kind == "raw" else ""
    if kind == "gpt":
        why = "; ".join(violations("gpt", window).values())
    if why and expected != "raw":
        raise window.refused(why, "if it is a raw disk all the same, say --format raw")
    size = window.check_size(-(-window.size // SECTOR) * SECTOR)
    return DiskInfo("raw", size, size)
