"""Sessions whose pool is on a file system of its own, which nobody else on the machine sees."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.support import accounts
from tests.support.accounts import Account
from tests.support.hosts import Host

# How each is made in a file. Small ones: mkfs.xfs wants 300 MiB, mkfs.btrfs 109 MiB.
_MAKE = {
    "xfs": ("mkfs.xfs", "-q", "-m", "reflink=1"),
    "btrfs": ("mkfs.btrfs", "-q"),
    "ext4": ("mkfs.ext4", "-q", "-m", "0"),
}


@contextmanager
def session(kind: str, size: str, account: Account | None = None) -> Iterator[Host]:
    """A qemu:///session of the ordinary user with its pool on a new file system.

    Args:
        kind: tmpfs, xfs, btrfs or ext4.
        size: as truncate(1) and tmpfs read it, such as 12m or 400m; sparse.
        account: whose session it is, instead.
    """
    user = account or accounts.ordinary()
    uri = "qemu:///session"
    env = {"POCLAB_CONNECT": uri, "LIBVIRT_DEFAULT_URI": uri, "POCLAB_ACCEL": "tcg"}
    with (
        _mount_namespace() as enter,
        tempfile.TemporaryDirectory(dir="/var/tmp") as images,
        accounts.place(user, env, enter) as place,
    ):
        pool = place.root / "tmp/pool"
        pool.mkdir()
        if kind == "tmpfs":
            options = f"size={size},uid={user.uid},gid={user.gid},mode=0700"
            _run(*enter, "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(pool))
        else:
            image = Path(images) / "image"
            _run("truncate", "-s", size.upper(), str(image))
            path = os.environ["PATH"] + ":/usr/sbin:/sbin"
            _run("env", f"PATH={path}", *_MAKE[kind], str(image))
            _run(*enter, "mount", "-o", "loop", str(image), str(pool))
            _run(*enter, "chown", f"{user.uid}:{user.gid}", str(pool))
            _run(*enter, "chmod", "0700", str(pool))
            # What mkfs.ext4 makes is no volume, and the pool is poclab's only if it is empty.
            _run(*enter, "rm", "-rf", str(pool / "lost+found"))
        yield Host(uri, replace(place, env={**place.env, "POCLAB_POOL_DIR": str(pool)}))


@contextmanager
def _mount_namespace() -> Iterator[tuple[str, ...]]:
    """A mount namespace, which ends with this process; gives the command that enters it."""
    holder = subprocess.Popen(
        [*accounts.as_root(), "unshare", "--mount", "sh", "-c", "echo $$; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdin
    assert holder.stdout
    try:
        pid = holder.stdout.readline().strip()
        yield (*accounts.as_root(), "nsenter", "--mount", f"--target={pid}")
    finally:
        holder.stdin.close()
        holder.wait(10)
        holder.stdout.close()


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, timeout=60, capture_output=True)
