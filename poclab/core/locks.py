"""One lock a lab and host, so that two commands never work on one lab at a time.

The lock is flock(2) on a small file: the kernel drops it when its holder ends, however it
ends, so there are no stale locks. The file's text only names the holder for the message of
whoever finds the lab busy.

All users of a host must meet at the same file when they share a libvirt (qemu:///system), so
that file lives in a directory of root's which group libvirt may write to
(`poclab.core.lock_directory`). Files that are links, or have a second name, are refused all the
same.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

from poclab.core import events, lock_directory, paths
from poclab.core.errors import PoclabError
from poclab.core.lock_directory import LockDirectory
from poclab.core.plaintext import plain

_POLL = 0.1  # seconds between two attempts
_NAME_MAX = 100  # characters of a lock's name that its file's name shows

_held: set[tuple[int, str]] = set()
_held_guard = threading.Lock()


@contextmanager
def hold(
    name: str,
    *,
    uri: str,
    doing: str,
    shared: bool = False,
    wait: float = 0,
    kind: str = "lab",
) -> Iterator[None]:
    """Hold a lock while the block runs.

    It is not re-entrant: a process (any of its threads) that holds a lock and asks for it
    again gets a RuntimeError at once, since waiting for itself would never end.

    Args:
        name: what is locked, as the user knows it.
        uri: the libvirt connection; the same name on two hosts is two locks.
        doing: the command, shown to whoever finds it busy (`poclab up customer-a`).
        shared: let other shared holders in, keep exclusive ones out.
        wait: seconds to wait for it.
        kind: what sort of thing the name names; a word of the message, and part of the lock.

    Raises:
        PoclabError: somebody else holds it, or the lock file cannot be used.
        RuntimeError: this process holds it already.
    """
    file = _file_name(kind, name, uri)
    # With the pid: a forked child does not hold what its parent holds.
    key = (os.getpid(), file)
    with _held_guard:
        if key in _held:
            raise RuntimeError(f"this process holds the lock of {kind} {name} already")
        _held.add(key)
    try:
        with _directory(uri) as directory:
            fd = _acquire(directory, file, f"{kind} {name}", shared, wait)
        try:
            if not shared:
                _sign(fd, doing)
            yield
        finally:
            if not shared:
                _wipe(fd)
            # Unlocked before it is closed: a child made by fork alone shares the open file.
            fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)
    finally:
        with _held_guard:
            _held.discard(key)


@contextmanager
def guard(directory: Path) -> Iterator[None]:
    """Keep other processes of this user out of a private directory for a moment.

    Waits as long as it takes; for work of well below a second.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


# --- where ------------------------------------------------------------------------------


def _directory(uri: str) -> AbstractContextManager[LockDirectory]:
    return lock_directory.shared() if _is_local_system(uri) else lock_directory.private()


def _is_local_system(uri: str) -> bool:
    parts = urlsplit(uri)
    return not parts.netloc and parts.path == "/system"


def _canonical(uri: str) -> str:
    # qemu+unix:///system and qemu:///system?socket=... reach the same labs.
    if _is_local_system(uri):
        return f"{urlsplit(uri).scheme.partition('+')[0]}:///system"
    return uri


def _file_name(kind: str, name: str, uri: str) -> str:
    digest = sha256("\0".join((kind, name, _canonical(uri))).encode()).hexdigest()[:12]
    shown = re.sub(r"[^A-Za-z0-9.-]", "_", f"{kind}-{name}")[:_NAME_MAX]
    return f"{shown}-{digest}{lock_directory.SUFFIX}"


# --- the lock itself --------------------------------------------------------------------


def _acquire(directory: LockDirectory, file: str, what: str, shared: bool, wait: float) -> int:
    limit = time.monotonic() + wait
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    told = False
    while True:
        fd = _open(directory, file)
        keep = False
        try:
            fcntl.flock(fd, operation)
            # Somebody may have removed the file meanwhile: then others lock a new one.
            keep = _is_at(fd, directory, file)
        except BlockingIOError:
            why = _holder(fd)
            if time.monotonic() >= limit:
                raise PoclabError(
                    f"{what} is busy", why=why, fix="wait for it to end, or end it"
                ) from None
            if not told:
                events.note(f"waiting: {why}")
                told = True
            time.sleep(_POLL)
        finally:
            if not keep:
                os.close(fd)
        if keep:
            return fd


def _open(directory: LockDirectory, file: str) -> int:
    safe = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    for _ in range(100):
        try:
            fd = os.open(file, safe, dir_fd=directory.fd)
        except FileNotFoundError:
            with suppress(FileExistsError):  # another one was faster: that file is opened next
                _create(directory, file)
            continue
        except OSError as error:  # ELOOP: a symbolic link; ENXIO: a FIFO or socket
            raise _planted(directory, file, error.strerror or str(error)) from error
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
            return fd
        os.close(fd)
        raise _planted(directory, file, "not a regular file, or it has a second name")
    raise _planted(directory, file, "another program keeps removing it")


def _create(directory: LockDirectory, file: str) -> None:
    """Make a lock file that has its mode as soon as it has its name, whatever the umask is.

    Raises:
        FileExistsError: if there is such a file.
        PoclabError: if it cannot be made.
    """
    try:
        try:
            fd = os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=directory.fd)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):  # see O_TMPFILE in open(2)
                raise
            # A home on NFS. There all lock files are one user's, and a umask cannot go between.
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(file, flags, directory.file_mode, dir_fd=directory.fd))
            return
        try:
            os.fchmod(fd, directory.file_mode)
            link = f"/proc/self/fd/{fd}"  # how a file without a name gets one: open(2)
            os.link(link, file, dst_dir_fd=directory.fd, follow_symlinks=True)
        finally:
            os.close(fd)
    except FileExistsError:
        raise
    except OSError as error:
        raise _planted(directory, file, error.strerror or str(error)) from error


def _planted(directory: LockDirectory, file: str, why: str) -> PoclabError:
    path = directory.path / file
    return lock_directory.unusable(path, why.lower(), f"look at what it is, then remove {path}")


def _is_at(fd: int, directory: LockDirectory, file: str) -> bool:
    try:
        found = os.stat(file, dir_fd=directory.fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), found)


# --- the holder's name ------------------------------------------------------------------


def _sign(fd: int, doing: str) -> None:
    holder = {
        "pid": os.getpid(),
        "born": _born(os.getpid()),
        "user": paths.user_name(),
        "doing": doing,
        "since": int(time.time()),
    }
    _write(fd, json.dumps(holder).encode())


def _wipe(fd: int) -> None:
    _write(fd, b"")


def _write(fd: int, data: bytes) -> None:
    # A courtesy: a full disk or a read-only descriptor must not keep the work from being done.
    with suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, data, 0)


def _holder(fd: int) -> str:
    """Who holds the lock, as far as the file tells and it is true.

    The text of a holder that was killed stays in the file, so the process has to be alive and
    to be the one that wrote it (its start time tells it from a later one of that number).
    """
    unknown = "another poclab command holds it"
    try:
        holder = json.loads(os.pread(fd, 4096, 0))
        pid, since = int(holder["pid"]), float(holder["since"])
        if holder["born"] is None or _born(pid) != holder["born"]:
            return unknown
        doing, user = _plain(holder["doing"]), _plain(holder["user"])
        started = time.localtime(since)
    # RecursionError: JSON that is nested some hundred times (Python's limit, not the format's).
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return unknown
    form = "%H:%M:%S" if time.time() - since < 12 * 3600 else "%Y-%m-%d %H:%M:%S"
    return f"`{doing}` of {user} (pid {pid}) holds it since {time.strftime(form, started)}"


def _plain(text: object) -> str:
    # Anybody can write the file: nothing in it may move a terminal's cursor.
    return plain(str(text), 200)


def _born(pid: int) -> int | None:
    """When a process started, in clock ticks since boot: field 22 of proc_pid_stat(5)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        # The second field, in parentheses, may hold blanks and parentheses.
        return int(text.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
