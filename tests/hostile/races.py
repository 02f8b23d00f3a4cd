"""A file that is not what it was a moment ago: attacks on whoever looks at one before using it.

An attacker owns the directory in which the file lies, and has the name of a file that only the
victim can read.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.disks import made, raw

ROUNDS = """
import os, random, sys, time
directory, kind = sys.argv[1:]
os.chdir(directory)
good, evil = open("good", "rb").read(), open("evil", "rb").read()
print("ready", flush=True)
while True:
    for name, data in (("good", good), ("evil", evil)):
        time.sleep(random.random() / 20)
        if kind == "write":
            with open("disk", "r+b") as file:
                file.write(data[:200_000])
            continue
        if kind == "symlink":
            os.symlink(name if name == "good" else open("secret").read(), "next")
        else:
            os.link(name, "next")
        os.rename("next", "disk")
"""


def prepared(directory: Path, secret: Path) -> Path:
    """Make a sound disk, and one of the same size whose backing file is a secret one.

    Args:
        directory: where they go, as `good` and `evil`; `disk` is a copy of the first.
        secret: the other file.
    """
    raw(directory / "raw")
    made(directory / "good", "qcow2", directory / "raw")
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", str(secret), "-F", "raw"]
    subprocess.run([*argv, str(directory / "evil"), "8M"], check=True, timeout=60)
    os.truncate(directory / "evil", (directory / "good").stat().st_size)
    (directory / "secret").write_text(str(secret))
    disk = directory / "disk"
    disk.write_bytes((directory / "good").read_bytes())
    return disk


def renamed(disk: Path) -> None:
    """Put the evil disk in its place."""
    os.link(disk.with_name("evil"), disk.with_name("next"))
    disk.with_name("next").replace(disk)


def linked(disk: Path) -> None:
    """Put a symlink to the secret in its place."""
    disk.with_name("next").symlink_to(disk.with_name("secret").read_text())
    disk.with_name("next").replace(disk)


def written(disk: Path) -> None:
    """Write the evil disk's header and tables into it, and set its times back."""
    found = disk.stat()
    with disk.open("r+b") as file:
        file.write(disk.with_name("evil").read_bytes()[:200_000])
    os.utime(disk, ns=(found.st_atime_ns, found.st_mtime_ns))


SWAPS: dict[str, Callable[[Path], None]] = {
    "rename": renamed,
    "symlink": linked,
    "write": written,
}
"""What an attacker does once, at the right moment."""


# What the owner of a directory's parent can put in its place: a link, or a directory of a victim's.
DIRECTORY_SWAPS = ("symlink", "rename")


def swap_directory(kind: str, directory: Path, victim: Path) -> None:
    """Move a directory to `away` beside it, and have its name lead to the victim's.

    Args:
        kind: one of `DIRECTORY_SWAPS`.
        directory: the directory that somebody looked at a moment ago.
        victim: another directory; with `rename` a link with its old name leads there afterwards.
    """
    directory.rename(directory.with_name("away"))
    if kind == "symlink":
        directory.symlink_to(victim)
    else:
        victim.rename(directory)
        victim.symlink_to(directory)


def attacker(directory: Path, kind: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Start a process that does it again and again, the good disk and the evil one in turn.

    Args:
        directory: as `prepared` left it; the account must be able to write there.
        kind: a key of `SWAPS`.
        prefix: what goes before a command to run it as the attacker.
    """
    argv = [*prefix, sys.executable, "-c", ROUNDS, str(directory), kind]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process
