"""What `poclab doctor` finds amiss on a host and `poclab doctor --fix` puts right.

Each repair looks and mends by itself; `REPAIRS` lists them all. A look changes nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from poclab import events, lockdir, volumes
from poclab.errors import PoclabError
from poclab.virt import kvm
from poclab.virt.host import Host, connect
from poclab.virt.localpool import close_base
from poclab.virt.pool import PRIVATE_MODE
from poclab.volumes import Kind


@dataclass(frozen=True)
class Repair:
    """One thing that can be put right.

    Attributes:
        name: the check's name in `poclab doctor`.
        applies: whether the host can have it.
        look: the check's result and its help, as `poclab.doctor.Check` has them.
        mend: puts it right; yields a line for each thing that it changed.
    """

    name: str
    applies: Callable[[Host], bool]
    look: Callable[[Host], tuple[str, str]]
    mend: Callable[[Host], Iterator[str]]


def mend(uri: str | None, accel: str) -> Iterator[str]:
    """Put right what can be put right on a host.

    Args:
        uri: the libvirt URI, None for libvirt's choice.
        accel: "auto", "kvm" or "tcg".

    Yields:
        A line for each thing that was changed.

    Raises:
        PoclabError: if this user may not.
    """
    if os.geteuid() == 0:
        yield from lockdir.install()  # takes no libvirt
    with ExitStack() as stack:
        try:
            host = stack.enter_context(connect(uri, accel))
        except PoclabError:
            return  # the checks say so
        for repair in REPAIRS:
            if repair.applies(host):
                yield from repair.mend(host)


# --- the lock directory -------------------------------------------------------------------


def _has_locks(host: Host) -> bool:
    return host.local and not host.session


def _look_at_locks(_host: Host) -> tuple[str, str]:
    try:
        with lockdir.shared(make=False):
            pass
    except PoclabError as error:
        return "missing", f"{error.what}: {error.fix}"
    if not lockdir.made_at_boot():
        return "note", f"{lockdir.SHARED} is not made at boot: run `{lockdir.REPAIR}`"
    return "ok", str(lockdir.SHARED)


def _mend_locks(host: Host) -> Iterator[str]:
    if os.geteuid() == 0:
        yield from lockdir.install()
    elif _look_at_locks(host)[0] == "missing":
        raise _needs_root(f"cannot set up {lockdir.SHARED}")


# --- access to KVM ------------------------------------------------------------------------


def _has_kvm(host: Host) -> bool:
    return host.local and not host.session and kvm.DEVICE.exists()


def _look_at_kvm(host: Host) -> tuple[str, str]:
    why = host.kvm_denied()
    return ("missing", f"{why}: run `{kvm.REPAIR}`") if why else ("ok", "QEMU may open it")


def _mend_kvm(host: Host) -> Iterator[str]:
    user = host.qemu_user()
    if user is None or not host.kvm_denied():
        return
    if os.geteuid() != 0:
        raise _needs_root(f"cannot set group and mode of {kvm.DEVICE}")
    yield from kvm.give(user)


# --- permissions in the pool --------------------------------------------------------------


def _look_at_pool(host: Host) -> tuple[str, str]:
    found = list(_too_open(host))
    if not found:
        return "ok", "volumes are private"
    name, mode = found[0]
    sudo = "" if host.session else "sudo "
    what = f"{len(found)} in {host.pool.directory} are open to other users"
    return "note", f"{what}, e.g. {name} (mode {mode:04o}): run `{sudo}poclab doctor --fix`"


def _mend_pool(host: Host) -> Iterator[str]:
    found = [name for name, _ in _too_open(host)]
    if not found:
        return
    if not (host.session or os.geteuid() == 0):
        raise _needs_root(f"cannot change permissions in {host.pool.directory}")
    with _opened(host.pool.directory) as directory:
        for name in found:
            if name == ".":
                mode, group = host.directory_access
                events.step("close", directory=host.pool.directory)
                _set(directory, mode, group)
                yield f"closed {host.pool.directory} to other users"
            elif _close(directory, name, host.readers()):
                yield f"closed {name} to other users"


def _too_open(host: Host) -> Iterator[tuple[str, int]]:
    """What others may look into: names and modes, `.` for the directory itself."""
    try:
        with _opened(host.pool.directory) as directory:
            names = sorted(os.listdir(directory))  # noqa: PTH208 - a descriptor
            # Somebody else's directory, in which poclab's files are guests, keeps its mode.
            if all(volumes.find(name) for name in names):
                yield from _if_open(".", os.fstat(directory), host)
            for name in names:
                yield from _volume_if_open(name, host, directory)
    except PermissionError:
        # Not for this user to list; what can be reached by its name is open to others as well.
        for name in host.pool.names():
            yield from _volume_if_open(f"{host.pool.directory}/{name}", host)


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
        # A file with a second name may be somebody else's.
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            return False
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


@contextmanager
def _opened(directory: str) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _needs_root(what: str) -> PoclabError:
    return PoclabError(what, why="permission denied", fix=f"run `{lockdir.REPAIR}`")


REPAIRS = (
    Repair("lock directory", _has_locks, _look_at_locks, _mend_locks),
    Repair("/dev/kvm", _has_kvm, _look_at_kvm, _mend_kvm),
    Repair("permissions", lambda host: host.local, _look_at_pool, _mend_pool),
)
