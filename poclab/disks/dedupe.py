"""Disks that share their equal blocks, on file systems that can: XFS and btrfs.

Two builds of one tree have nearly the same content, but at other places, so no backing chain
saves anything. Here the new disk's blocks are looked up by their digests, and the kernel is
asked to have both files use one copy (FIDEDUPERANGE, ioctl_fideduperange(2)). It compares the
bytes under its own lock first and shares nothing that differs, so nothing can be damaged: not
by a wrong digest, nor by a kill at any moment. Who reads or runs on a disk sees no change.
"""

from __future__ import annotations

import errno
import os
import struct
import tempfile
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fcntl import ioctl
from hashlib import sha256
from pathlib import Path

from poclab.core import events, paths
from poclab.core.files import data_ranges
from poclab.core.sparse import write_all
from poclab.core.units import MIB
from poclab.disks import fingerprints
from poclab.disks.fingerprints import BLOCK, DIGEST, WINDOW, Run, Window

# linux/fs.h: _IOWR(0x94, 54, struct file_dedupe_range), which is this with one
# file_dedupe_range_info at its end: src_offset, src_length, dest_count, two that are reserved;
# dest_fd, dest_offset, bytes_deduped, status, reserved.
_FIDEDUPERANGE = 0xC0189436
_RANGE = struct.Struct("=QQHHI" + "qQQiI")
_SAME = 0  # FILE_DEDUPE_RANGE_SAME; 1 is FILE_DEDUPE_RANGE_DIFFERS
# linux/fs.h: _IOW(0x94, 13, struct file_clone_range): src_fd, src_offset, src_length, dest_offset.
_FICLONERANGE = 0x4020940D
_CLONE = struct.Struct("=qQQQ")
# linux/btrfs.h: _IOR(0x94, 31, struct btrfs_ioctl_fs_info_args), of 1024 bytes.
_BTRFS_FS_INFO = 0x8400941F
# ioctl_fideduperange(2): "dependent on the filesystem and is typically 16 MiB".
_MOST = 16 * MIB
_WORTH = 0.1  # the part of a disk that must be shared before the rest is written again
_OTHERS = 64  # disks that are looked at
_YOUNG = 24 * 3600.0  # seconds that digests of an unknown disk stay in the cache


@dataclass(frozen=True)
class Disk:
    """A disk file that does not change.

    Attributes:
        digest: the file's, its name in the cache.
        path: the file.
    """

    digest: str
    path: Path


def possible(directory: Path) -> bool:
    """Whether files of a directory can share blocks; found out by having two blocks do so."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"\x01" * 2 * BLOCK)
            file.flush()
            return _dedupe(file.fileno(), 0, file.fileno(), BLOCK, BLOCK) == BLOCK
    except OSError as error:
        events.debug(f"no blocks can be shared in {directory}: {error.strerror}")
        return False


def share(disk: Disk, others: Sequence[Disk], pool: str) -> int:
    """Have a disk share blocks with others; what cannot be shared stays as it is.

    Args:
        disk: a new disk, whole and writable for this user.
        others: disks on the same file system, those to look at first in front.
        pool: the pool's directory, which tells this cache from another pool's.

    Returns:
        Bytes that are shared now.

    Raises:
        OSError: a file cannot be read, or the cache not be written.
    """
    with ExitStack() as stack:
        cache = _Cache(pool)
        descriptor = stack.enter_context(_opened(disk.path, os.O_RDWR))
        os.fsync(descriptor)  # at once; the kernel would do so run by run
        prints = cache.of(disk)
        sources: list[tuple[int, Path]] = []
        for other in others[:_OTHERS]:
            try:
                source = stack.enter_context(_opened(other.path, os.O_RDONLY))
                sources.append((source, cache.of(other)))
            except OSError as error:
                events.debug(f"{other.path.name} is not looked at: {error.strerror}")
        shared = _Shared()
        for run in _runs(prints, sources):
            shared.add(run.block * BLOCK, _apply(descriptor, sources, run))
        worth = shared.bytes >= os.fstat(descriptor).st_size * _WORTH
        if worth and _keeps_whole_extents(descriptor):
            _rewrite(disk.path, descriptor, shared)
    cache.prune([disk, *others])
    return shared.bytes


class _Shared:
    """The ranges of a file that are shared now: pairs of begin and end, in order, in bytes.

    An array: a list of pairs would take ten times the memory.
    """

    def __init__(self) -> None:
        self._ends = array("Q")
        self.bytes = 0

    def add(self, begin: int, size: int) -> None:
        """Note a range that is behind all others."""
        if not size:
            return
        self.bytes += size
        if self._ends and self._ends[-1] == begin:
            self._ends[-1] += size
        else:
            self._ends.extend((begin, begin + size))

    def pieces(self, size: int) -> Iterator[tuple[int, int, bool]]:
        """The whole file of so many bytes: begin, end, and whether it is shared."""
        done = 0
        ends = iter(self._ends)
        for begin, end in zip(ends, ends, strict=True):
            if done < begin:
                yield done, begin, False
            yield begin, end, True
            done = end
        if done < size:
            yield done, size, False


def _keeps_whole_extents(descriptor: int) -> bool:
    """Whether the file system is btrfs, which frees an extent when nobody has any block of it.

    An extent has up to 128 MiB: a block here and there that is not shared keeps all of it.
    """
    try:
        ioctl(descriptor, _BTRFS_FS_INFO, bytearray(1024))
    except OSError:
        return False
    return True


def _rewrite(path: Path, descriptor: int, shared: _Shared) -> None:
    """Put a copy in the file's place: shared ranges by reference, the others written anew.

    Not in place: with `chattr +C`, which libvirt gives to a pool's directory, btrfs would write
    into the old extents.
    """
    copy = path.with_name(f"{path.name}.shared")
    size = os.fstat(descriptor).st_size
    with _opened(copy, os.O_RDWR | os.O_CREAT | os.O_EXCL) as target:
        try:
            os.ftruncate(target, size)
            for begin, end, cloned in shared.pieces(size):
                if cloned:
                    request = _CLONE.pack(descriptor, begin, end - begin, begin)
                    ioctl(target, _FICLONERANGE, request)
                else:
                    for first, last in data_ranges(descriptor, end, begin):
                        _copy(descriptor, target, first, last)
            copy.replace(path)
        except BaseException:
            copy.unlink(missing_ok=True)
            raise


def _copy(source: int, target: int, begin: int, end: int) -> None:
    """Copy bytes through memory: copy_file_range(2) would share them."""
    while begin < end:
        data = os.pread(source, min(MIB, end - begin), begin)
        if not data:
            raise OSError(errno.EIO, "it became shorter while it was read")
        write_all(target, data, begin)
        begin += len(data)


def _runs(prints: Path, sources: Sequence[tuple[int, Path]]) -> Iterator[Run]:
    """Where others have the disk's blocks; a window at a time, so that memory is bounded."""
    first = 0
    with prints.open("rb") as file:
        while len(window := Window(fingerprints.digests(file, WINDOW), first)):
            for number, (_, other) in enumerate(sources):
                with other.open("rb") as theirs:
                    window.look_in(number, fingerprints.digests(theirs))
            yield from window.runs()
            first += len(window)


def _apply(descriptor: int, sources: Sequence[tuple[int, Path]], run: Run) -> int:
    """Have the kernel share a run; returns the bytes that it did share."""
    done, size = 0, run.count * BLOCK
    source = sources[run.source][0]
    while done < size:
        part = min(_MOST, size - done)
        origin, target = run.origin * BLOCK + done, run.block * BLOCK + done
        try:
            shared = _dedupe(source, origin, descriptor, target, part)
        except OSError as error:
            events.debug(f"{part} bytes at {target} are not shared: {error.strerror}")
            break
        if not shared:
            break
        done += shared
    return done


def _dedupe(source: int, origin: int, target: int, offset: int, size: int) -> int:
    """One call of FIDEDUPERANGE; returns the bytes that are shared, 0 when they differ."""
    request = bytearray(_RANGE.pack(origin, size, 1, 0, 0, target, offset, 0, 0, 0))
    ioctl(source, _FIDEDUPERANGE, request)
    *_, shared, status, _ = _RANGE.unpack(request)
    if status < 0:
        raise OSError(-status, os.strerror(-status))
    return int(shared) if status == _SAME else 0


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class _Cache:
    """Digests of disks' blocks: 2 MiB for a disk of 1 GiB, made anew when they are not there."""

    def __init__(self, pool: str) -> None:
        name = sha256(os.fsencode(os.path.realpath(pool))).hexdigest()[:16]
        self._root = paths.private_dir(paths.cache_dir() / "blocks" / name)

    def of(self, disk: Disk) -> Path:
        """The file with a disk's digests."""
        found = self._root / _hex(disk)
        with _opened(disk.path, os.O_RDONLY) as descriptor:
            size = os.fstat(descriptor).st_size // BLOCK * DIGEST
            if not (found.exists() and found.stat().st_size == size):
                self._make(descriptor, found)
        return found

    def _make(self, descriptor: int, target: Path) -> None:
        handle, name = tempfile.mkstemp(dir=self._root, prefix="tmp.")
        try:
            with os.fdopen(handle, "wb") as file:
                fingerprints.fingerprint(descriptor, file, _tell)
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def prune(self, kept: Iterable[Disk]) -> None:
        """Forget disks that are gone; what is new may be another command's."""
        names = {_hex(disk) for disk in kept}
        for path in self._root.iterdir():
            with suppress(OSError):
                if path.name not in names and time.time() - path.stat().st_mtime > _YOUNG:
                    path.unlink()


def _tell(done: int, size: int) -> None:
    events.progress("compare blocks", done, size)


def _hex(disk: Disk) -> str:
    return disk.digest.rpartition(":")[2]
