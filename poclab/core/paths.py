"""Where the client keeps its few files: keys, known hosts, logs, locks.

XDG base directories, each overridable by its own variable. Nothing in here is state that
poclab could not do without: labs live in libvirt.
"""

from __future__ import annotations

import os
from pathlib import Path

from poclab.core.plaintext import plain


def _base(variable: str, default: str) -> Path:
    value = os.environ.get(variable, "")
    return (Path(value) if value.startswith("/") else Path.home() / default) / "poclab"


def data_dir() -> Path:
    """Keys and the pool of qemu:///session (`$XDG_DATA_HOME/poclab`)."""
    return _base("XDG_DATA_HOME", ".local/share")


def state_dir() -> Path:
    """Logs and known hosts (`$XDG_STATE_HOME/poclab`)."""
    return _base("XDG_STATE_HOME", ".local/state")


def cache_dir() -> Path:
    """Build directories (`$XDG_CACHE_HOME/poclab`)."""
    return _base("XDG_CACHE_HOME", ".cache")


def private_dir(path: Path) -> Path:
    """Make a directory that only this user can read, with its parents."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def user_name() -> str:
    """Who runs poclab, for history and lock holders: the user behind sudo where there is one.

    Anybody can set the variables it comes from, and it goes into XML and onto terminals: it is
    a short line without control characters.
    """
    import getpass

    try:
        name = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        name = ""
    return plain(name, 64) or str(os.getuid())


def group_name(gid: int) -> str:
    """Give the name of a group, or its number where it has none."""
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def account_name(uid: int) -> str:
    """Give the name of an account, or `user UID` where it has none."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
