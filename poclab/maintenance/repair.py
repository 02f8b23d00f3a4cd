"""What `poclab doctor` finds amiss on a host and `poclab doctor --fix` puts right.

Each repair looks and mends by itself; `REPAIRS` lists them all. A look changes nothing.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from poclab.core import events, lock_directory, paths
from poclab.core.errors import PoclabError
from poclab.model import volumes
from poclab.model.volumes import Kind
from poclab.virt import kvm
from poclab.virt.host import Host, connect
from poclab.virt.pool import PRIVATE_MODE
from poclab.virt.pool_local import close_base

Mended = Iterator[str | PoclabError]
"""A line for each thing that was changed, and an error for each that could not be."""


@dataclass(frozen=True)
class Repair:
    """One thing that can be put right.

    Attributes:
        name: the check's name in `poclab doctor`.
        applies: whether the host can have it.
        look: the check's result and its help, as `poclab.maintenance.doctor.Check` has them.
        mend: puts it right; what it raises counts like an error that it yields.
    """

    name: str
    applies: Callable[[Host], bool]
    look: Callable[[Host], tuple[str, str]]
    mend: Callable[[Host], Mended]


def mend(uri: str | None, accel: str) -> Mended:
    """Put right what can be put right on a host; one failure does not stop the rest.

    Args:
        uri: the libvirt URI, None for libvirt's choice.
        accel: "auto", "kvm" or "tcg".
    """
    if os.geteuid() == 0:
        yield from _carried_out("lock directory", lock_directory.install())  # takes no libvirt
    with ExitStack() as stack:
        try:
            host = stack.enter_context(connect(uri, accel))
        except PoclabError:
            return  # the checks say so
        for repair in REPAIRS:
            if repair.applies(host):
                yield from _carried_out(repair.name, repair.mend(host))


def _carried_out(name: str, work: Iterator[str] | Mended) -> Mended:
    """Do a repair to its end, or to the error that ends it."""
    try:
        yield from work
    except PoclabError as error:
        yield error
    except OSError as error:
        yield _refused(f"cannot repair: {name}", error)


# --- the lock directory -------------------------------------------------------------------


def _has_locks(host: Host) -> bool:
    return host.local and not host.session


def _look_at_locks(_host: Host) -> tuple[str, str]:
    try:
        with lock_directory.shared(make=False) as directory:
            closed = lock_directory.closed_files(directory)
    except PoclabError as error:
        return "missing", f"{error.what}: {error.fix}"
    if closed:
        what = f"{len(closed)} lock files are closed to group {lock_directory.GROUP}"
        return "missing", f"{what}: run `{lock_directory.REPAIR}`"
    if not lock_directory.made_at_boot():
        return "note", f"{lock_directory.SHARED} is not made at boot: run `{lock_directory.REPAIR}`"
    return "ok", str(lock_directory.SHARED)


def _mend_locks(host: Host) -> Mended:
    # Root's is done before libvirt is asked for anything.
    if os.geteuid() != 0 and _look_at_locks(host)[0] == "missing":
        yield _needs_root(f"cannot set up {lock_directory.SHARED}")


# --- access to KVM ------------------------------------------------------------------------


def _has_kvm(host: Host) -> bool:
    return host.local and not host.session and kvm.DEVICE.exists()


def _look_at_kvm(host: Host) -> tuple[str, str]:
    why = host.kvm_denied()
    return ("missing", f"{why}: run `{kvm.REPAIR}`") if why else ("ok", "QEMU may open it")


def _mend_kvm(host: Host) -> Mended:
    user = host.qemu_user()
    if user is None or not host.kvm_denied():
        return
    if os.geteuid() != 0:
        raise _needs_root(f"cannot set group and mode of {kvm.DEVICE}")
    yield from kvm.give(user)


# --- permissions in the pool --------------------------------------------------------------


def _look_at_pool(host: Host) -> tuple[str, str]:
    try:
        with _pool_directory(host.pool.directory) as directory:
            found = list(_too_open(host, directory))
    except PoclabError as error:
        return "note", "; ".join((error.what, error.why, error.fix))
    if not found:
        return "ok", "volumes are private"
    name, mode = found[0]
    sudo = "" if host.session else "sudo "
    what = f"{len(found)} in {host.pool.directory} are open to other users"
    return "note", f"{what}, e.g. {name} (mode {mode:04o}): run `{sudo}poclab doctor --fix`"


def _mend_pool(host: Host) -> Mended:
    """Close what is too open, by the descriptor that it was found with."""
    with _pool_directory(host.pool.directory) as directory:
        found = [name for name, _ in _too_open(host, directory)]
        if found and not (host.session or os.geteuid() == 0):
            raise _needs_root(f"cannot change permissions in {host.pool.directory}")
        if directory is not None:
            for name in found:
                yield from _close_one(host, directory, name)


def _close_one(host: Host, directory: int, name: str) -> Mended:
    what = host.pool.directory if name == "." else name
    try:
        if name == ".":
            mode, group = host.directory_access
            events.step("close", directory=what)
            _set(directory, mode, group)
        elif not _close(directory, name, host.readers()):
            return
        yield f"closed {what} to other users"
    except OSError as error:
        if error.errno == errno.EMLINK:
            yield f"left {what} open to other users: {error.strerror}"
        else:
            yield _refused(f"cannot close {what} to other users", error)


@contextmanager
def _pool_directory(path: str) -> Iterator[int | None]:
    """Open the pool's directory for all that is done in it; None if this user may not list it.

    Raises:
        PoclabError: if it is missing or a link, or a neighbour can put another in its place.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except PermissionError:
        yield None
        return
    except OSError as error:
        link = isinstance(error, NotADirectoryError)  # O_DIRECTORY with O_NOFOLLOW: open(2)
        raise PoclabError(
            f"cannot check permissions in {path}",
            why="it is a symbolic link, or not a directory" if link else _reason(error),
            fix="name the directory itself in the pool: `virsh pool-edit poclab`",
        ) from error
    try:
        # The parent is that of what was opened, whatever the path leads to by now.
        why = exposed(os.fstat(fd), os.stat("..", dir_fd=fd), os.geteuid())
        if why:
            raise PoclabError(
                f"permissions in {path} were left alone",
                why=why,
                fix="move the pool below directories of root or your own: `virsh pool-edit poclab`",
            )
        yield fd
    finally:
        os.close(fd)


def exposed(directory: os.stat_result, parent: os.stat_result, uid: int) -> str:
    """Say why a neighbour could change what a directory's name leads to, or an empty string.

    Args:
        directory: the directory's status.
        parent: that of the directory that holds its name.
        uid: the user who is about to work in it.
    """
    for found, what in ((directory, "it"), (parent, "its parent directory")):
        if found.st_uid not in (0, uid):
            return f"{what} belongs to {paths.account_name(found.st_uid)}, who can replace it"
    # With the sticky bit only the owner of a name may rename it (inode(7)).
    if parent.st_mode & stat.S_IWOTH and not parent.st_mode & stat.S_ISVTX:
        return "every user can write to its parent directory and replace it"
    return ""


def _too_open(host: Host, directory: int | None) -> Iterator[tuple[str, int]]:
    """What others may look into: names and modes, `.` for the directory itself."""
    if directory is None:
        # Not for this user to list; what can be reached by its name is open to others as well.
        for name in host.pool.names():
            yield from _volume_if_open(f"{host.pool.directory}/{name}", host)
        return
    names = sorted(os.listdir(directory))  # noqa: PTH208 - a descriptor
    # Somebody else's directory, in which poclab's files are guests, keeps its mode.
    if all(volumes.find(name) for name in names):
        yield from _if_open(".", os.fstat(directory), host)
    for name in names:
        yield from _volume_if_open(name, host, directory)


def _volume_if_open(
    path: str, host: Host, directory: int | None = None
) -> Iterator[tuple[str, int]]:
    name = path.rpartition("/")[2]
    own = volumes.find(name)
    if own and own.kind != Kind.STAGING:
        # Deleted by another command meanwhile, or in a directory that is closed.
        with suppress(FileNotFoundError, PermissionError):
            found = os.stat(path, dir_fd=directory, follow_symlinks=False)
            yield from _if_open(name, found, host)


def _if_open(name: str, found: os.stat_result, host: Host) -> Iterator[tuple[str, int]]:
    mode = stat.S_IMODE(found.st_mode)
    readers = host.readers()
    shared = 0o010 if name == "." else 0o040 if _is_base(name) else 0
    allowed = shared if readers is not None and found.st_gid == readers else 0
    if mode & 0o077 & ~allowed and (name == "." or stat.S_ISREG(found.st_mode)):
        yield name, mode


def _close(directory: int, name: str, readers: int | None) -> bool:
    """Give a volume the mode that a new one has; a guest that runs on it has it open already."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=directory)
    except FileNotFoundError:
        return False  # another command deleted it
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return False
        if found.st_nlink > 1:  # under the other name it may be somebody else's
            raise OSError(errno.EMLINK, "it has a second name (see it with `find -samefile`)")
        events.step("close", volume=name)
        if _is_base(name):
            close_base(fd, readers)
        else:
            _set(fd, PRIVATE_MODE, None)
    finally:
        os.close(fd)
    return True


def _is_base(name: str) -> bool:
    own = volumes.find(name)
    return own is not None and own.kind == Kind.BASE


def _set(fd: int, mode: int, group: int | None) -> None:
    if group is not None:
        os.fchown(fd, -1, group)
    os.fchmod(fd, mode)


def _needs_root(what: str) -> PoclabError:
    return PoclabError(what, why="permission denied", fix=f"run `{lock_directory.REPAIR}`")


def _refused(what: str, error: OSError) -> PoclabError:
    fix = "look at it, e.g. with `lsattr` and `findmnt`, then run `poclab doctor --fix` again"
    return PoclabError(what, why=_reason(error), fix=fix)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


# What others can read comes first: it is open for as long as this takes.
REPAIRS = (
    Repair("permissions", lambda host: host.local, _look_at_pool, _mend_pool),
    Repair("lock directory", _has_locks, _look_at_locks, _mend_locks),
    Repair("/dev/kvm", _has_kvm, _look_at_kvm, _mend_kvm),
)
