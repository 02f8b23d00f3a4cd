"""An image's files as a tar file, with the blueprint's users added."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

_ACCOUNTS = ("passwd", "group", "shadow")


def write(tree: Path, target: Path, users: list[dict[str, Any]]) -> None:
    """Write a tree as a tar file, extended attributes and hard links included."""
    changed = accounts(tree, users) if users else {}

    def keep(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if member.name in changed:
            return None
        for name in os.listxattr(tree / member.name, follow_symlinks=False):
            if not name.startswith(("trusted.overlay.", "security.selinux")):
                value = os.getxattr(tree / member.name, name, follow_symlinks=False)
                text = value.decode("utf-8", "surrogateescape")
                member.pax_headers = {**member.pax_headers, f"SCHILY.xattr.{name}": text}
        return member

    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for child in sorted(tree.iterdir()):
            archive.add(child, arcname=child.name, filter=keep)
        for name, text in changed.items():
            data = text.encode()
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o600 if name == "etc/shadow" else 0o644
            archive.addfile(member, io.BytesIO(data))
        for user, (uid, home, key) in _homes(tree, users).items():
            _add_home(archive, user, uid, home, key)


def accounts(tree: Path, users: list[dict[str, Any]]) -> dict[str, str]:
    """etc/passwd, etc/group and etc/shadow with the users in them."""
    texts = {}
    for name in _ACCOUNTS:
        path = tree / "etc" / name
        texts[f"etc/{name}"] = path.read_text() if path.is_file() else ""
    for user, (uid, home, _) in _homes(tree, users).items():
        entry = next(x for x in users if x["name"] == user)
        shell = entry.get("shell", "/bin/sh")
        texts["etc/passwd"] += f"{user}:x:{uid}:{uid}::{home}:{shell}\n"
        texts["etc/shadow"] += f"{user}:{entry.get('password', '*')}:19000:0:99999:7:::\n"
        groups = [line.split(":") for line in texts["etc/group"].splitlines() if line]
        for group in groups:
            if group[0] in entry.get("groups", []):
                group[3] = ",".join(filter(None, [group[3], user]))
        groups.append([user, "x", str(uid), ""])
        texts["etc/group"] = "".join(":".join(group) + "\n" for group in groups)
    return texts


def _homes(tree: Path, users: list[dict[str, Any]]) -> dict[str, tuple[int, str, str]]:
    """Each new user's ID, home and key."""
    path = tree / "etc/passwd"
    lines = path.read_text().splitlines() if path.is_file() else []
    present = {line.partition(":")[0] for line in lines}
    new = [user for user in users if user["name"] not in present]
    return {
        user["name"]: (1000 + i, user.get("home", f"/home/{user['name']}"), user.get("key", ""))
        for i, user in enumerate(new)
    }


def _add_home(archive: tarfile.TarFile, user: str, uid: int, home: str, key: str) -> None:
    names = [home.lstrip("/")] + ([home.lstrip("/") + "/.ssh"] if key else [])
    for name in names:
        member = tarfile.TarInfo(name)
        member.type, member.mode, member.uid, member.gid = tarfile.DIRTYPE, 0o700, uid, uid
        archive.addfile(member)
    if key:
        data = key.encode() + b"\n"
        member = tarfile.TarInfo(names[1] + "/authorized_keys")
        member.size, member.mode, member.uid, member.gid = len(data), 0o600, uid, uid
        archive.addfile(member, io.BytesIO(data))
