"""A large file that appears under its name whole or not at all.

The work goes into a directory beside it, so that its end is one rename. A process that is killed
leaves that directory, and the next one that writes a file beside it removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from poclab.builders import privileged
from poclab.containers import podman
from poclab.core import events
from poclab.core.errors import PoclabError, UsageError
from poclab.core.files import share_as_usual, sync
from poclab.core.plaintext import shown

WORK = ".poclab-iso"


def check(target: Path, *, force: bool) -> None:
    """See that a file can be written under a name.

    Args:
        target: the file.
        force: whether one that is there may be replaced.

    Raises:
        UsageError: the name is a directory's or a device's, or its directory is not there.
        PoclabError: there is such a file, or its directory cannot be written.
    """
    if not target.parent.is_dir():
        raise UsageError(f"the directory {target.parent} is not there")
    if target.exists() and not target.is_file():
        kind = "directory" if target.is_dir() else "device"
        raise UsageError(
            f"{target} is a {kind}",
            fix="name a file; --write DEVICE writes the ISO onto a stick afterwards",
        )
    if os.path.lexists(target) and not force:
        raise PoclabError(f"{target} is there already", fix="use another name, or --force")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PoclabError(f"{target.parent} cannot be written", why="permission denied")


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """An empty directory on the file system of a file to be, gone after the block.

    Raises:
        PoclabError: another process is at work there, or it cannot be made.
    """
    root = target.parent.absolute() / WORK
    fd = _held(root)
    try:
        if left := list(root.iterdir()):
            events.step("remove what an interrupted command left", directory=str(root))
            # A container outlives the command that was killed, and would go on writing.
            podman.remove_leftovers(root=True)
            for path in left:
                privileged.clean(path)
        work = root / "work"
        work.mkdir(mode=0o700)
        try:
            yield work
        finally:
            privileged.clean(work)
    finally:
        with suppress(OSError):
            root.rmdir()
        os.close(fd)


def publish(file: Path, target: Path, *, force: bool) -> None:
    """Give a finished file its name; it is on the disk before it has it.

    Raises:
        PoclabError: there is such a file meanwhile.
    """
    share_as_usual(file)
    sync(file)
    check(target, force=force)
    events.step("name the file", file=str(target))
    file.replace(target)
    sync(target.parent)


def _held(root: Path) -> int:
    """Make the directory and hold it; gives its descriptor, whose end is the lock's."""
    while True:
        with suppress(FileExistsError):
            root.mkdir(mode=0o700)
        try:
            fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # another one was ready in between
        except OSError as error:
            raise PoclabError(f"{root} is no directory of poclab's", fix="remove it") from error
        try:
            if os.fstat(fd).st_uid != os.geteuid():
                raise PoclabError(f"{root} belongs to another user", fix="use another directory")
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if root.exists() and os.path.samestat(os.fstat(fd), root.stat()):
                return fd
        except OSError as error:
            os.close(fd)
            if error.errno != errno.EWOULDBLOCK:
                raise
            raise PoclabError(
                f"another poclab is making an ISO in {shown(str(root.parent), 200)}",
                fix="wait for it, or use another directory",
            ) from error
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
