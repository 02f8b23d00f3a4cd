"""Disk files of poclab's own, and what qemu-img does with them.

What comes from elsewhere is `poclab.disks.inspection`'s.

Paths are handed to qemu-img absolute: block.c's path_has_protocol() looks for a `:` before
the first `/`, and `json:` counts at the very beginning only, so a path that begins with `/`
is a path and nothing else.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from poclab.core.errors import PoclabError
from poclab.core.plaintext import shown
from poclab.core.process import CommandFailed, runner
from poclab.disks import qcow2_file, qemu_img
from poclab.disks.qcow2_header import backing_file, virtual_size
from poclab.disks.qemu_img import HOURS as _HOURS
from poclab.disks.qemu_img import plain as _plain
from poclab.disks.qemu_img import reason as _reason

_DAMAGED = "check the disk that the pool is on; `poclab image verify` reads all versions"
_SECTOR = 512


# --- reading -------------------------------------------------------------------------------


def check(path: Path) -> None:
    """Check the metadata of a qcow2 file; its data is not looked at (see `digest.file_digest`).

    Raises:
        PoclabError: it is damaged or truncated, or another program holds it.
    """
    qemu_img.check(["-f", "qcow2", _plain(path)], shown(path.name, 200), fix=_DAMAGED)


def read_sectors(path: Path, sector: int, count: int) -> bytes:
    """Sectors of 512 bytes as a guest sees them of a qcow2 file of poclab's own.

    Raises:
        PoclabError: they are not there, or qemu-img cannot read them.
    """
    name = _plain(path).replace(",", ",,")
    options = f"driver=raw,offset={sector * _SECTOR},size={count * _SECTOR},"
    options += f"file.driver=qcow2,file.file.driver=file,file.file.filename={name}"
    with tempfile.NamedTemporaryFile(dir=path.parent) as target:
        argv = ["qemu-img", "convert", "--image-opts", "-O", "raw", options, target.name]
        try:
            runner().run(argv, timeout=60)
        except CommandFailed as error:
            raise PoclabError(
                f"{shown(path.name, 200)} cannot be read", why=_reason(error.result.last_line)
            ) from error
        # qemu-img writes to the file in place, so the open one has it.
        return Path(target.name).read_bytes()


# --- making -----------------------------------------------------------------------------


def convert_to_qcow2(
    source: Path, source_format: str, target: Path, *, backing: Path | None = None
) -> None:
    """Copy a disk of poclab's own into a new qcow2 file; see `qemu_img.convert`.

    Args:
        source: the disk, with whatever it stands on.
        source_format: QEMU's name of its format.
        target: the file to make; must not exist.
        backing: the qcow2 disk that the source stands on directly, for a copy that stands on
            it too and holds no more than the source itself.

    Raises:
        PoclabError: if qemu-img fails, the target exists, or there is no room for it.
    """
    below = [] if backing is None else ["-B", _plain(backing), "-F", "qcow2"]
    name = shown(source.name, 200)
    qemu_img.convert([*below, "-f", source_format, _plain(source)], target, name)


def copy_layer(source: Path, base: Path, target: Path) -> None:
    """Copy all that a disk holds above another one into a new qcow2 file over that one.

    The new file names the disk below without a directory: both are to lie side by side.

    Args:
        source: a qcow2 file of poclab's own that no VM runs on.
        base: a qcow2 file below it, directly or not.
        target: the file to make; must not exist.

    Raises:
        PoclabError: qemu-img failed, the copy is damaged, or the target exists.
    """
    below = Path(source.parent, backing_file(source))
    convert_to_qcow2(source, "qcow2", target, backing=below)
    try:
        if below != base:
            # With -B convert takes the topmost file alone (img_convert() in qemu-img.c), whatever
            # is named: what lies between comes by comparing.
            _rebase(target, base)
        check(target)
        with target.open("r+b", buffering=0) as file:
            qcow2_file.rename_backing(file.fileno(), base.name)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _rebase(path: Path, backing: Path) -> None:
    argv = ["qemu-img", "rebase", "-f", "qcow2", "-F", "qcow2", "-b", _plain(backing)]
    try:
        runner().run([*argv, _plain(path)], timeout=_HOURS)
    except CommandFailed as error:
        raise PoclabError(
            f"{shown(path.name, 200)} cannot be put on {shown(backing.name, 200)}",
            why=_reason(error.result.last_line),
            fix=_room(path, error.result.last_line),
        ) from error


def merge(path: Path) -> None:
    """Write all that an overlay holds into the disk that it is on; no VM may run on it.

    The overlay stays as it is: until nothing names it any more, both have the same content.

    Raises:
        PoclabError: qemu-img failed; it can be done again.
    """
    try:
        with qcow2_file.unnamed(path, backing_file(path)) as (name, fds):
            argv = ["qemu-img", "commit", "-q", "-d", "-f", "qcow2", name]
            runner().run(argv, timeout=_HOURS, pass_fds=fds)
    except CommandFailed as error:
        raise PoclabError(
            f"{shown(path.name, 200)} cannot be merged into the disk below",
            why=_reason(error.result.last_line),
            fix=_room(path, error.result.last_line),
        ) from error


def is_blank(path: Path) -> bool:
    """Whether nothing was ever written to a qcow2 file; no VM may run on it.

    Raises:
        PoclabError: it is damaged.
    """
    with qcow2_file.unnamed(path, backing_file(path)) as (name, fds):
        found = qemu_img.check(["-f", "qcow2", name], shown(path.name, 200), fds, fix=_DAMAGED)
    return not found.get("allocated-clusters")  # left out when there is none


def create_empty(path: Path, size: int) -> None:
    """Make an empty qcow2 file.

    Args:
        path: the file to make; must not exist.
        size: bytes the guest sees.

    Raises:
        PoclabError: it exists, or cannot be made.
    """
    _create(path, size)


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
    # qemu-img is not told of the disk below, and so cannot say that it is missing.
    found = virtual_size(backing) if backing_format == "qcow2" else backing.stat().st_size
    _create(path, found if size is None else size, _plain(backing), backing_format)


def resize(path: Path, size: int) -> None:
    """Enlarge a qcow2 file; never shrinks one.

    Args:
        path: the file.
        size: bytes the guest is to see.

    Raises:
        PoclabError: qemu-img refuses.
    """
    try:
        with qcow2_file.unnamed(path, backing_file(path)) as (name, fds):
            argv = ["qemu-img", "resize", "-q", "-f", "qcow2", name, str(size)]
            runner().run(argv, pass_fds=fds)
    except CommandFailed as error:
        raise PoclabError(
            f"{shown(path.name, 200)} cannot be enlarged",
            why=_reason(error.result.last_line),
            fix=_room(path, error.result.last_line),
        ) from error


def _create(path: Path, size: int, backing: str = "", backing_format: str = "") -> None:
    try:
        qcow2_file.create(path, size, backing, backing_format)
    except FileExistsError as error:
        raise PoclabError(f"{path} exists already") from error
    except CommandFailed as error:
        raise PoclabError(
            f"{shown(path.name, 200)} cannot be made",
            why=_reason(error.result.last_line),
            fix=_room(path, error.result.last_line),
        ) from error


def _room(path: Path, text: str) -> str:
    """What to do about a disk that is full, where a message is about that."""
    return f"make room in {path.absolute().parent}" if "No space left" in text else ""
