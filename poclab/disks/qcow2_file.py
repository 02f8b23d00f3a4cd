"""qcow2 files of poclab's own, made and named without a word on a command line.

Every user of a machine can read the command lines of all processes (proc_pid_cmdline(5)), and the
names of poclab's disks tell of labs, VMs and versions. So qemu-img gets such a file as a
descriptor, and the name of the disk below is written here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from poclab.core.errors import PoclabError
from poclab.core.plaintext import shown
from poclab.core.process import runner
from poclab.core.sparse import write_all
from poclab.core.units import MIB

_MAGIC = b"QFI\xfb"
_LARGEST_CLUSTER = 2 * MIB
_LONGEST_NAME = 1023  # bytes


def create(path: Path, size: int, backing: str = "", backing_format: str = "") -> None:
    """Make an empty file that only its owner can read, whatever the umask is.

    It is byte for byte what `qemu-img create -b BACKING` makes.

    Args:
        path: the file to make.
        size: bytes a guest sees.
        backing: the name of the disk below, or an empty string for none; it is not looked at.
        backing_format: that disk's format.

    Raises:
        FileExistsError: if there is such a file.
        CommandFailed: if qemu-img fails.
        OSError: if it cannot be written.
    """
    options = ["-u", "-b", "/", "-F", backing_format] if backing else []
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", *options, _descriptor(fd), str(size)]
        runner().run(argv, pass_fds=(fd,))
        if backing:
            rename_backing(fd, backing)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def rename_backing(fd: int, name: str) -> None:
    """Have a file that qemu-img made name its disk below in another way.

    What `qemu-img rebase -u` does. The header has the name's offset in bytes 8 to 15, its length in
    16 to 19 and the cluster's bits in 20 to 23; the name lies in the first cluster, 1023 bytes at
    most, and QEMU writes it behind everything else there (QEMU, docs/interop/qcow2.txt;
    qcow2_update_header() in block/qcow2.c).

    Args:
        fd: the file, open for reading and writing; nobody else may be at it.
        name: the new name.

    Raises:
        PoclabError: if the file names no disk below, or has no room for the name.
        OSError: if it cannot be written.
    """
    text = os.fsencode(name)
    head = os.pread(fd, _LARGEST_CLUSTER, 0)
    offset, length = int.from_bytes(head[8:16]), int.from_bytes(head[16:20])
    end = 1 << min(int.from_bytes(head[20:24]), 21)
    known = head[:4] == _MAGIC and 0 < offset < offset + length <= end <= len(head)
    fits = len(text) <= _LONGEST_NAME and offset + len(text) <= end
    if not known or not fits or any(head[offset + length : end]):
        raise PoclabError("cannot name the disk below in a qcow2 header", why=shown(name, 200))
    write_all(fd, text.ljust(length, b"\0"), offset)
    write_all(fd, len(text).to_bytes(4), 16)


@contextmanager
def unnamed(path: Path, below: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Give a file a name that tells nothing to who lists processes.

    A file whose disk below is named relative to it keeps its own name: QEMU goes by that.

    Args:
        path: the file.
        below: what the file calls the disk below, or an empty string.

    Yields:
        The name, and the descriptors to start a process with.

    Raises:
        OSError: if it cannot be opened.
    """
    if below and not below.startswith("/"):
        yield str(path.absolute()), ()
        return
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield _descriptor(fd), (fd,)
    finally:
        os.close(fd)


def _descriptor(fd: int) -> str:
    return f"/proc/self/fd/{fd}"  # proc(5): opening it opens the file anew
