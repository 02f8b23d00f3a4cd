"""The directories that lock files live in, opened once and checked before anything is done there.

The labs of qemu:///system are shared by root and group libvirt, and so are their locks: in
/run/poclab, which only root makes and only they can enter. Whoever may not talk to the host's
libvirt can neither hold a lock nor name a holder. All other locks are one user's own.

Paths are looked up once. What follows goes by the descriptor of the directory that was checked,
so swapping the name for something else leads nowhere.
"""

from __future__ import annotations

import grp
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from poclab.core import events, files, hints, paths
from poclab.core.errors import PoclabError

SHARED = Path("/run/poclab")
GROUP = "libvirt"  # who may use qemu:///system (libvirt's polkit rule, and its socket's group)
TMPFILES = Path("/etc/tmpfiles.d/poclab.conf")  # an administrator's directory: tmpfiles.d(5)
SHIPPED = Path(__file__).parents[1] / "data/tmpfiles.d/poclab.conf"
REPAIR = "sudo poclab doctor --fix"

SUFFIX = ".lock"
FILE_MODE = 0o660  # of a lock file in the shared directory

_OWNER = 0  # only root can make something in /run
_SHARED_MODE = 0o2770  # setgid: a file in there belongs to the group, whoever makes it
_ROOTS_MODE = 0o700  # without that group root is the only user of qemu:///system


@dataclass(frozen=True)
class LockDirectory:
    """A directory that was checked.

    Attributes:
        fd: its open descriptor; everything below goes through it.
        path: its name, for messages.
        file_mode: the mode of a lock file in it.
    """

    fd: int
    path: Path
    file_mode: int


@contextmanager
def shared(*, make: bool = True) -> Iterator[LockDirectory]:
    """Open the directory for the locks of qemu:///system.

    Args:
        make: whether root makes it if it is missing, or mends what an interrupted command left.

    Raises:
        PoclabError: if it is missing, not root's, open to others, or closed to this user.
    """
    root = make and os.geteuid() == _OWNER
    try:
        fd = _made() if root else _open(SHARED)
    except FileNotFoundError as error:
        raise PoclabError(
            f"lock directory {SHARED} not found",
            why="root makes it at boot, or the first time root runs poclab",
            fix=f"run `{REPAIR}`",
        ) from error
    except PermissionError as error:
        raise _closed() from error
    except OSError as error:  # ELOOP, ENOTDIR: a link, or no directory
        raise _not_roots(_reason(error)) from error
    try:
        found = os.fstat(fd)
        if found.st_uid != _OWNER:
            raise _not_roots(f"it belongs to {paths.account_name(found.st_uid)}")
        if _open_to_others(found):
            access = (
                f"group {paths.group_name(found.st_gid)}, mode {stat.S_IMODE(found.st_mode):04o}"
            )
            raise PoclabError(
                f"lock directory {SHARED} is open to others",
                why=f"users outside group {GROUP} have access ({access})",
                fix=f"run `{REPAIR}`",
            )
        if root:
            _set_access(fd)
        yield LockDirectory(fd, SHARED, FILE_MODE)
    finally:
        os.close(fd)


@contextmanager
def private() -> Iterator[LockDirectory]:
    """Open the directory for the locks that only this user takes; make it if it is missing.

    Raises:
        PoclabError: if it belongs to somebody else, or others may write to it.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    # After `su` the variable may name another user's directory.
    if runtime.startswith("/") and _owned(Path(runtime)):
        path = Path(runtime) / "poclab"
    else:
        path = paths.state_dir() / "locks"
    with suppress(FileExistsError):  # by something that is refused below
        paths.private_dir(path)
    try:
        fd = _open(path)
    except OSError as error:
        raise unusable(path, _reason(error), f"remove {path}") from error
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid():
            raise unusable(
                path, f"it belongs to {paths.account_name(found.st_uid)}", f"remove {path}"
            )
        if found.st_mode & 0o022:
            raise unusable(
                path,
                "other users may write to it",
                f"run `{hints.command('chmod', '700', str(path))}`",
            )
        yield LockDirectory(fd, path, 0o600)
    finally:
        os.close(fd)


def install() -> Iterator[str]:
    """Make the shared directory now and at every boot, with its owner, group and mode; as root.

    Yields:
        A line for each thing that was changed.

    Raises:
        PoclabError: if something else is in its place.
        OSError: if a file cannot be written.
    """
    missing = not os.path.lexists(SHARED)
    try:
        fd = _made()
    except OSError as error:
        raise _not_roots(_reason(error)) from error
    if missing:
        yield f"made {SHARED}"
    try:
        owner = os.fstat(fd).st_uid
        if owner != _OWNER:
            raise _not_roots(f"it belongs to {paths.account_name(owner)}")
        if _set_access(fd) and not missing:
            yield f"set group and mode of {SHARED}"
        count = _open_files(fd)
        if count:
            yield f"set group and mode of {count} lock files in {SHARED}"
    finally:
        os.close(fd)
    if not made_at_boot():
        events.step("write", file=str(TMPFILES))
        files.write_configuration(TMPFILES, SHIPPED.read_bytes())
        yield f"wrote {TMPFILES}"


def made_at_boot() -> bool:
    """Whether systemd-tmpfiles makes the shared directory, or nobody but root needs it.

    What this user may not read counts as well: root, who may, is told the truth.
    """
    if _group() is None:
        return True  # tmpfiles.d would complain of the group at every boot
    try:
        return TMPFILES.read_bytes() == SHIPPED.read_bytes()
    except PermissionError:
        return True
    except OSError:
        return False


def closed_files(directory: LockDirectory) -> list[str]:
    """List the lock files in the shared directory that its group cannot take."""
    return list(_closed_to(_wanted()[0], directory.fd))


def unusable(path: Path, why: str, fix: str) -> PoclabError:
    """Say that something cannot be used for locks."""
    return PoclabError(f"cannot use {path} for locks", why=why, fix=fix)


# --- the shared directory -----------------------------------------------------------------


def _made() -> int:
    """Open the shared directory, made with access for root only where it is missing."""
    with suppress(FileExistsError):
        os.mkdir(SHARED, _ROOTS_MODE)  # noqa: PTH102 - nothing but mkdir(2)
        events.step("make", directory=str(SHARED))
    return _open(SHARED)


def _set_access(fd: int) -> bool:
    """Give root's directory its group and mode; say whether it had others."""
    wanted = _wanted()
    found = os.fstat(fd)
    if (found.st_gid, stat.S_IMODE(found.st_mode)) == wanted:
        return False
    events.step("set group and mode", directory=str(SHARED))
    # Closed to all in between: neither the old group nor the new one has more than it should.
    os.fchmod(fd, _ROOTS_MODE)
    os.fchown(fd, _OWNER, wanted[0])
    _open_files(fd)
    os.fchmod(fd, wanted[1])
    return True


def _wanted() -> tuple[int, int]:
    """The group and the mode that the shared directory should have."""
    group = _group()
    return (_OWNER, _ROOTS_MODE) if group is None else (group, _SHARED_MODE)


def _open_files(directory: int) -> int:
    """Give lock files of another group to the directory's; say how many.

    A lock may be held meanwhile: flock(2) belongs to an open file, whatever its group and mode.
    """
    count = 0
    group = _wanted()[0]
    for name in list(_closed_to(group, directory)):
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, dir_fd=directory)
        except OSError:
            continue  # it went, or became something else: whoever takes the lock is told
        try:
            if _is_lock(os.fstat(fd)):
                events.step("set group and mode", lock=name)
                os.fchown(fd, -1, group)
                os.fchmod(fd, FILE_MODE)
                count += 1
        finally:
            os.close(fd)
    return count


def _closed_to(group: int, directory: int) -> Iterator[str]:
    for name in sorted(os.listdir(directory)):
        if name.endswith(SUFFIX):
            with suppress(FileNotFoundError):
                found = os.stat(name, dir_fd=directory, follow_symlinks=False)
                access = (found.st_gid, stat.S_IMODE(found.st_mode))
                if _is_lock(found) and access != (group, FILE_MODE):
                    yield name


def _is_lock(found: os.stat_result) -> bool:
    # A file with a second name may be somebody else's.
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1


def _open_to_others(found: os.stat_result) -> bool:
    """Whether more than root and the group may look into root's directory or change it."""
    if found.st_mode & 0o007:
        return True
    return bool(found.st_mode & 0o070) and found.st_gid not in (_OWNER, _group())


def _closed() -> PoclabError:
    group = _group()
    if group is not None and group in (os.getegid(), *os.getgroups()):
        fix = f"run `{REPAIR}`"
    else:
        join = hints.command("sudo", "usermod", "-aG", GROUP, paths.user_name())
        fix = f"join group {GROUP} (`{join}`) and log in again"
    why = f"only root and members of group {GROUP} may lock the labs of qemu:///system"
    return PoclabError(f"cannot open lock directory {SHARED}: permission denied", why=why, fix=fix)


def _not_roots(why: str) -> PoclabError:
    fix = f"look at what it is, remove it as root, then run `{REPAIR}`"
    return unusable(SHARED, why, fix)


# --- any directory ------------------------------------------------------------------------


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _owned(path: Path) -> bool:
    try:
        return path.stat().st_uid == os.geteuid()
    except OSError:
        return False


def _group() -> int | None:
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None


def _reason(error: OSError) -> str:
    if isinstance(error, NotADirectoryError):  # a link as well, by O_DIRECTORY with O_NOFOLLOW
        return "not a directory"
    return (error.strerror or str(error)).lower()
