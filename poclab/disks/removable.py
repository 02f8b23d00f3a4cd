"""USB sticks and memory cards: which disks of this host may be written over, and writing them.

What the kernel says in sysfs decides, never a name. Anything in doubt is refused: a disk that is
built in, mounted, used as swap or by another device above it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from poclab.core import events, hints
from poclab.core.errors import PoclabError, UsageError
from poclab.core.plaintext import plain
from poclab.core.units import MIB, format_size

_SECTOR = 512  # /sys/block/DISK/size counts these, whatever the disk's own are (sysfs-block)
_CHUNK = 4 * MIB
_SYNC = 64 * MIB  # written to the disk this often, so that progress is real
_BUS = re.compile("usb[0-9]+")
_CD = "5"  # SCSI peripheral device type of CD drives (SPC-4, table 143)


@dataclass(frozen=True)
class Roots:
    """Where the kernel tells of disks (sysfs(5), proc(5))."""

    sys: Path = Path("/sys")
    mountinfo: Path = Path("/proc/self/mountinfo")
    swaps: Path = Path("/proc/swaps")


ROOTS = Roots()


@dataclass(frozen=True)
class Stick:
    """A disk that may be written over.

    Attributes:
        path: its device node, links resolved.
        number: major and minor of it.
        size: bytes.
        model: what it says it is, or an empty string.
        serial: its serial number, or an empty string.
        sequence: the kernel's count of disks, new whenever one is plugged in; empty before 5.15.
    """

    path: Path
    number: tuple[int, int]
    size: int
    model: str
    serial: str
    sequence: str

    def __str__(self) -> str:
        serial = f"serial {self.serial}" if self.serial else "no serial number"
        return f"{self.path} ({self.model or 'no model'}, {format_size(self.size)}, {serial})"


def find(path: Path, roots: Roots = ROOTS) -> Stick:
    """The disk at a path, when it may be written over.

    Raises:
        UsageError: the path is no block device, or a partition.
        PoclabError: the disk must not be written over, or not by this user.
    """
    try:
        node = path.resolve(strict=True)
        status = node.stat()
    except OSError as error:
        raise UsageError(f"{path} cannot be found", why=f"{error.strerror}") from error
    if not stat.S_ISBLK(status.st_mode):
        raise UsageError(f"{path} is no disk", fix="see which disks there are: lsblk")
    number = os.major(status.st_rdev), os.minor(status.st_rdev)
    stick = describe(node, number, roots)
    if not os.access(node, os.R_OK | os.W_OK):
        raise _denied(node)
    return stick


def describe(node: Path, number: tuple[int, int], roots: Roots = ROOTS) -> Stick:
    """What the kernel says of a disk, when it may be written over.

    Args:
        node: its device node.
        number: major and minor.
        roots: where the kernel tells of it.

    Raises:
        UsageError: it is a partition.
        PoclabError: it must not be written over.
    """
    link = roots.sys / "dev/block" / "{}:{}".format(*number)
    directory = link.resolve()
    if not directory.is_dir():
        raise PoclabError(f"{node} is unknown to the kernel", why=f"{link} is not there")
    if (directory / "partition").exists():
        raise UsageError(
            f"{node} is a partition",
            why="an ISO has a partition table of its own",
            fix=f"name the whole disk: /dev/{directory.parent.name}",
        )
    _check_kind(node, directory)
    size = int(_text(directory / "size") or 0) * _SECTOR
    if size == 0:
        raise _refused(node, "there is no medium in it", "put one in")
    _check_unused(node, directory, roots)
    model = " ".join(filter(None, (_text(directory / f"device/{x}") for x in ("vendor", "model"))))
    return Stick(node, number, size, model, _serial(directory), _text(directory / "diskseq"))


def write(source: Path, stick: Stick, roots: Roots = ROOTS) -> str:
    """Write a file over a disk, and read it back to see that it is there.

    Args:
        source: the file.
        stick: what `find` gave; whatever is at that place by now must still be the same.
        roots: where the kernel tells of it.

    Returns:
        The digest of what was written, `sha256:HEX`.

    Raises:
        PoclabError: the disk is another one by now, too small, in use, failed, or does not hold
            what was written.
    """
    if find(stick.path, roots) != stick:
        raise PoclabError(f"{stick.path} is another disk by now", fix="look again: lsblk")
    with _opened(source) as file, _claimed(stick) as fd:
        size = os.fstat(file.fileno()).st_size
        if size > stick.size:
            why = f"it has {format_size(stick.size)}, {source.name} has {format_size(size)}"
            raise PoclabError(f"{stick.path} is too small", why=why)
        try:
            events.step("write over the disk", device=str(stick.path), size=size)
            written = _copy(file, fd, size, stick)
            events.step("read the disk back", device=str(stick.path))
            found = _digest(fd, size, stick)
        except BaseException:
            events.warning(f"{stick.path} is not whole: write it again before you use it")
            raise
    if found != written:
        raise PoclabError(
            f"{stick.path} does not hold what was written to it",
            why=f"sha256 {found}, not {written}",
            fix="try once more; then it is broken, or not as large as it says",
        )
    return f"sha256:{written}"


# --- what it is -------------------------------------------------------------------------


def _check_kind(node: Path, directory: Path) -> None:
    # A disk on USB has the bus in the path of its device: .../usb1/1-2/...
    usb = any(_BUS.fullmatch(part) for part in directory.parts)
    # A card in a slot of its own calls itself fixed, but says what it is (mmc-dev-attrs).
    card = _text(directory / "device/type") == "SD"
    if _text(directory / "removable") != "1" and not usb and not card:
        raise _refused(
            node,
            "it is neither removable nor on USB",
            f"if you are sure, write it by hand: sudo dd if=FILE of={node}",
        )
    if _text(directory / "device/type") == _CD:
        raise _refused(node, "it is a drive for discs", "burn the ISO with another program")
    if _text(directory / "ro") == "1":
        raise _refused(node, "it is read-only", "unlock it, where it has a switch")


def _check_unused(node: Path, directory: Path, roots: Roots) -> None:
    parts = [path.parent for path in directory.glob("*/partition")]
    for part in (directory, *parts):
        if above := sorted(path.name for path in (part / "holders").glob("*")):
            raise _refused(
                node,
                f"{part.name} is part of {', '.join(above)} (LVM, RAID, encryption)",
                "take that apart first",
            )
    names = {f"/dev/{part.name}" for part in (directory, *parts)} | {str(node)}
    numbers = {_text(part / "dev") for part in (directory, *parts)} - {""}
    for number, source, target in _mounts(roots.mountinfo):
        if number in numbers or source in names:
            raise _refused(
                node, f"{source} is mounted on {target}", hints.command("sudo", "umount", target)
            )
    for line in _lines(roots.swaps)[1:]:
        if line.split()[:1] and line.split()[0] in names:
            raise _refused(
                node,
                f"{line.split()[0]} is swap",
                hints.command("sudo", "swapoff", line.split()[0]),
            )


def _mounts(path: Path) -> Iterator[tuple[str, str, str]]:
    """Device number, source and mount point of each mount (proc(5), mountinfo)."""
    for line in _lines(path):
        fields, _, rest = line.partition(" - ")
        words, source = fields.split(), rest.split()[1:2]
        if len(words) >= 5 and source:
            target = words[4].replace("\\040", " ")
            yield words[2], source[0], plain(target)


def _serial(directory: Path) -> str:
    """The serial number: the disk's own, else that of the USB device it is in."""
    for parent in (directory / "device", *directory.parents):
        if _BUS.fullmatch(parent.name):
            break  # its serial number is the host controller's
        if serial := _text(parent / "serial"):
            return serial
    return ""


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines()


def _text(path: Path) -> str:
    """A short attribute, or an empty string."""
    try:
        with path.open("rb") as file:
            return plain(file.read(256).decode(errors="replace"))
    except OSError:
        return ""


def _refused(node: Path, why: str, fix: str) -> PoclabError:
    return PoclabError(f"{node} must not be written over", why=why, fix=fix)


def _denied(node: Path) -> PoclabError:
    return PoclabError(
        f"{node} cannot be written by this user",
        why="permission denied",
        fix=f"run it as root, or by hand: sudo dd if=FILE of={node} bs=4M oflag=direct conv=fsync",
    )


# --- the bytes --------------------------------------------------------------------------


@contextmanager
def _opened(source: Path) -> Iterator[BinaryIO]:
    try:
        file = source.open("rb", buffering=0)
    except OSError as error:
        raise PoclabError(f"{source} cannot be read", why=f"{error.strerror}") from error
    with file:
        yield file


@contextmanager
def _claimed(stick: Stick) -> Iterator[int]:
    """The disk, open for this process alone; its end reaches the disk before it is closed."""
    try:
        # O_EXCL without O_CREAT (open(2)): the kernel refuses a disk that anything uses, mounts of
        # other namespaces among it.
        fd = os.open(stick.path, os.O_RDWR | os.O_EXCL | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise _refused(stick.path, "something uses it", "see what: lsblk, lsof") from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise _denied(stick.path) from error
        raise PoclabError(f"{stick.path} cannot be opened", why=f"{error.strerror}") from error
    try:
        device = os.fstat(fd).st_rdev
        if (os.major(device), os.minor(device)) != stick.number:
            raise PoclabError(f"{stick.path} is another disk by now", fix="look again: lsblk")
        yield fd
    finally:
        os.close(fd)


def _copy(file: BinaryIO, fd: int, size: int, stick: Stick) -> str:
    digest = hashlib.sha256()
    done = 0
    with _io_errors(stick):
        while done < size:
            chunk = file.read(min(_CHUNK, size - done))
            if not chunk:
                raise PoclabError("the ISO became shorter while it was written")
            digest.update(chunk)
            view = memoryview(chunk)
            while view:
                view = view[os.write(fd, view) :]
            before, done = done, done + len(chunk)
            if before // _SYNC != done // _SYNC:
                os.fdatasync(fd)
            events.progress(f"write {stick.path}", done, size)
        os.fsync(fd)
    return digest.hexdigest()


def _digest(fd: int, size: int, stick: Stick) -> str:
    digest = hashlib.sha256()
    done = 0
    with _io_errors(stick):
        # What is in memory of it says nothing of the disk.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.lseek(fd, 0, os.SEEK_SET)
        while done < size and (chunk := os.read(fd, min(_CHUNK, size - done))):
            digest.update(chunk)
            done += len(chunk)
            events.progress(f"read {stick.path} back", done, size)
    return digest.hexdigest()


@contextmanager
def _io_errors(stick: Stick) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PoclabError(
            f"{stick.path} failed",
            why=f"{error.strerror}",
            fix="plug it in again and try once more; else take another one",
        ) from error
