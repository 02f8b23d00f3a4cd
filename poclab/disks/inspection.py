"""A stranger's disk: what it is, and a copy of it, all by one open file.

A disk from outside is hostile until shown otherwise: its header may name other files that
QEMU would open. So the header is read first (`poclab.disks.formats`), and only a disk that stands
by itself ever reaches qemu-img, always as one given format (no probing) and under resource limits.

Names can lead to another file from one moment to the next. So a disk is opened once, and qemu-img
gets that descriptor (/proc/self/fd/N opens the same file, whatever became of its name), with
`"backing": null`: what a header says of a backing file is then not followed, also when it was
written there after the look at it (QEMU, docs/about/deprecated.rst: the way to keep QEMU from
opening a backing chain).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poclab.core.plaintext import shown
from poclab.core.units import MIB
from poclab.disks import qemu_img

if TYPE_CHECKING:
    from poclab.disks.formats import DiskInfo, Window

# Formats whose metadata qemu-img can check; the readers of poclab.disks.formats check vpc's.
_CHECKED = ("qcow2", "vmdk", "vdi", "vhdx")


def inspect(window: Window, expected: str | None = None) -> DiskInfo:
    """Find out what a disk is, without letting it reach any other file.

    A raw file has no signature of its own. It is taken for a disk when it has an MBR or a
    GPT, or when the caller says `expected="raw"`; a size that is no multiple of 512 is
    rounded up, as QEMU does.

    Args:
        window: the disk.
        expected: QEMU's name of a format to insist on.

    Raises:
        PoclabError: if it is no disk, a format poclab does not take, damaged, or refers to
            another file.
    """
    from poclab.disks.formats import read  # a reset makes overlays, and needs none of it

    found = read(window, expected)
    agree(window, found)
    return found


def inspect_file(path: Path, expected: str | None = None) -> DiskInfo:
    """Find out what a disk file is; see `inspect`.

    Raises:
        PoclabError: as there, or if it cannot be read or is no regular file.
    """
    from poclab.disks.formats import opened

    with opened(path, shown(path.name, 200)) as window:
        return inspect(window, expected)


def agree(window: Window, found: DiskInfo) -> None:
    """Have qemu-img read a disk too: it must see the same one, by itself and whole.

    Raises:
        PoclabError: if it does not.
    """
    disk, fds = [_named(window, found.format)], (window.descriptor,)
    result = qemu_img.info(disk, fds)
    if result.code != 0:
        raise window.refused(f"qemu-img cannot read it: {qemu_img.reason(result.last_line)}")
    info = json.loads(result.stdout)
    details = info.get("format-specific", {}).get("data", {})
    if (
        info.get("backing-filename")
        or details.get("data-file")
        or info.get("encrypted")
        or len(details.get("extents", [])) > 1
    ):
        raise window.refused("it refers to another file or is encrypted")
    size = info["virtual-size"]
    if size != found.virtual_size:
        raise window.refused(f"its size is unclear: {found.virtual_size} or {size}")
    if found.format in _CHECKED:
        again = ", or try: qemu-img check -r all -f qcow2 FILE" if found.format == "qcow2" else ""
        qemu_img.check(disk, window.name, fds, fix=f"copy it again{again}")


def copy(window: Window, found: DiskInfo, target: Path) -> None:
    """Copy an inspected disk into a new qcow2 file.

    Raises:
        PoclabError: if qemu-img fails, the copy becomes larger than the disk allows, the target
            exists, or there is no room for it.
    """
    qemu_img.convert(
        [_named(window, found.format)],
        target,
        window.name,
        at_most=largest_copy(found),
        pass_fds=(window.descriptor,),
    )


def largest_copy(found: DiskInfo) -> int:
    """Bytes that a qcow2 copy of a disk has at most, by what its tables lead to."""
    # qcow2's own tables: 8 bytes a cluster of 64 KiB for its place and 2 for its use.
    return found.data + found.data // 4096 + found.virtual_size // 4096 + 16 * MIB


def _named(window: Window, form: str) -> str:
    """How qemu-img gets a disk as the one format it has, by a descriptor it inherits."""
    file: dict[str, Any] = {"driver": "file", "filename": f"/proc/self/fd/{window.descriptor}"}
    if not window.whole:
        file = {"driver": "raw", "offset": window.offset, "size": window.size, "file": file}
    options: dict[str, Any] = {"driver": form, "backing": None, "file": file}
    if form == "vpc":
        # Without this QEMU goes by the geometry for some programs' disks, and cuts their end.
        options["force_size_calc"] = "current_size"
    return f"json:{json.dumps(options)}"
