"""Whether QEMU may open /dev/kvm, which libvirtd, being root, can open in any case.

Where QEMU's account may not, libvirtd finds each time that KVM was there when it probed QEMU and is
not there now, throws away what it knew of QEMU, and probes again: half a second at every look, so
that a definition takes 13 s and a warm reset 32 s.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from poclab.core import events, files, hints, paths
from poclab.core.errors import PoclabError

DEVICE = Path("/dev/kvm")
GROUP = "kvm"  # what udev gives the device to (systemd's 50-udev-default.rules)
RULE = Path("/etc/udev/rules.d/65-poclab-kvm.rules")
_RULE_TEXT = b'KERNEL=="kvm", GROUP="kvm", MODE="0660"\n'
_NUMBER = os.makedev(10, 232)  # Documentation/admin-guide/devices.txt of Linux
REPAIR = "sudo poclab doctor --fix"


def denied(user: tuple[int, int] | None) -> str:
    """Say why QEMU may not open the device; an empty string when it may, or there is none.

    Args:
        user: the user and group ID that QEMU runs as; None for this user.
    """
    if user is not None:
        with suppress(OSError):
            return judged(DEVICE.stat(), *user)
    return ""


def judged(device: os.stat_result, uid: int, gid: int) -> str:
    """Say why an account may not open the device; an empty string when it may.

    QEMU has the groups of its account besides the one it is given (libvirt's virGetGroupList).

    Args:
        device: the device's status.
        uid: the user that QEMU runs as.
        gid: its group.
    """
    name, groups = _account(uid, gid)
    mode = stat.S_IMODE(device.st_mode)
    bits = mode >> 6 if device.st_uid == uid else mode >> 3 if device.st_gid in groups else mode
    if uid == 0 or bits & 0o6 == 0o6:
        return ""
    group = paths.group_name(device.st_gid)
    return f"QEMU runs as {name} and may not open {DEVICE} (group {group}, mode {mode:04o})"


def give(user: tuple[int, int]) -> Iterator[str]:
    """Give the device to its group, now and at every boot; as root.

    Args:
        user: the user and group ID that QEMU runs as.

    Yields:
        A line for each thing that was changed.

    Raises:
        PoclabError: if that does not let QEMU open it.
    """
    try:
        group = grp.getgrnam(GROUP).gr_gid
    except KeyError:
        raise PoclabError(
            f"group {GROUP} not found",
            why=f"{DEVICE} is given to it",
            fix=f"groupadd --system {GROUP}, then run `{REPAIR}`",
        ) from None
    fd = os.open(DEVICE, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISCHR(found.st_mode) or found.st_rdev != _NUMBER:
            raise PoclabError(
                f"{DEVICE} is not the kernel's device", fix=f"look at it: ls -l {DEVICE}"
            )
        events.step("give to its group", device=str(DEVICE))
        path = f"/proc/self/fd/{fd}"  # O_PATH: the device is not opened, so fchmod(2) has nothing
        os.chown(path, -1, group)
        os.chmod(path, 0o660)  # noqa: PTH101 - of a descriptor
    finally:
        os.close(fd)
    yield f"gave {DEVICE} to group {GROUP}"
    if RULE.parent.is_dir():
        events.step("write", file=str(RULE))
        files.write_configuration(RULE, _RULE_TEXT)
        yield f"wrote {RULE}"
    if denied(user):
        name, _ = _account(*user)
        raise PoclabError(
            f"{name} is not in group {GROUP}",
            why=f"QEMU runs as {name}",
            fix=f"{hints.command('usermod', '-aG', GROUP, name)}, then restart libvirtd",
        )


def _account(uid: int, gid: int) -> tuple[str, set[int]]:
    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        return str(uid), {gid}
    return account.pw_name, {gid, *os.getgrouplist(account.pw_name, account.pw_gid)}
