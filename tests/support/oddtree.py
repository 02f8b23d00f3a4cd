"""A small root file system with everything that is easily lost on the way to a disk."""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path

from poclab.builders.esp import LOADER_DIR

KVER = "6.1.0-test"
# linux/capability.h: VFS_CAP_REVISION_2 with the effective bit, cap_net_raw permitted.
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
XATTR = "SCHILY.xattr."
ODD_NAMES = [
    "with space",
    'say "hi"',
    "back\\slash",
    "<12>",
    "-rf",
    "#comment",
    "tab\there",
    "ünï",
    "json:{}",
    "a,b?offset=1",
    "x" * 255,
    "latin\udcff",
]
MTIME = 1_700_000_000


def write(
    path: Path, *, extra: int = 0, kernel: bool = True, systemd: bool = False, machine_id: str = ""
) -> Path:
    """Write the tree as a tar file.

    The kernel and the systemd-boot in it are stand-ins that nothing starts: a disk made of
    them is looked at, never booted.
    """
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:

        def add(
            name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **more: object
        ) -> None:
            member = tarfile.TarInfo(name)
            member.type, member.mtime, member.size = kind, MTIME, len(data)
            member.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
            for key, value in more.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(data))

        for name in (
            "usr",
            "usr/lib",
            "usr/bin",
            "usr/sbin",
            "etc",
            "boot",
            "odd",
            "home",
            "home/u",
        ):
            owner = 60000 if name == "home/u" else 0
            add(name, tarfile.DIRTYPE, uid=owner, gid=owner)
        if kernel:
            add(f"boot/vmlinuz-{KVER}", data=b"MZ" + b"kernel" * 1000)
            add(f"boot/initrd.img-{KVER}", data=b"initrd" * 1000)
        add("usr/sbin/init", data=b"#!/bin/sh\n", mode=0o755)
        add("sbin", tarfile.SYMTYPE, linkname="usr/sbin", mode=0o777)
        add(f"{LOADER_DIR}/systemd-bootx64.efi", data=b"MZ systemd-boot of the image")
        add("usr/bin/sudo", data=b"suid", mode=0o4755)
        add("usr/bin/wall", data=b"sgid", mode=0o2755, gid=5)
        capability = {XATTR + "security.capability": CAPABILITY.decode(errors="surrogateescape")}
        add("usr/bin/ping", data=b"cap", mode=0o755, pax_headers=capability)
        add("etc/shadow", data=b"secret", mode=0o000, gid=42)
        add("etc/gshadow", tarfile.LNKTYPE, linkname="etc/shadow", gid=42, mode=0)
        add("etc/machine-id", data=machine_id.encode())
        add("home/u/file", data=b"mine", uid=60000, gid=60000, mode=0o600)
        add(
            "home/u/dangling",
            tarfile.SYMTYPE,
            linkname="/nowhere/else",
            uid=60000,
            gid=60000,
            mode=0o777,
        )
        add("odd/fifo", tarfile.FIFOTYPE, mode=0o622)
        add("odd/null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
        add("odd/tmp", tarfile.DIRTYPE, mode=0o1777)
        for name in ODD_NAMES:
            add(f"odd/{name}", data=name.encode("utf-8", "surrogateescape"), uid=7)
        if systemd:
            add("usr/lib/systemd/systemd", data=b"systemd", mode=0o755)
            add("usr/lib/systemd/system/systemd-networkd.service", data=b"[Unit]\n")
        for number in range(extra):
            add(f"many/{number % 97}/{number}", data=b"y" * (number % 5000))
    return path
