"""Use case: a disk file from elsewhere becomes a version."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from poclab import disk, events
from poclab.errors import PoclabError, UsageError
from poclab.model import Origin, Profile, Ref, Version
from poclab.names import shown
from poclab.units import format_size

if TYPE_CHECKING:
    from poclab.store import Store

FORMATS = ("qcow2", "raw")
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-fA-F]{64})")


def import_disk(
    store: Store,
    ref: Ref,
    file: Path,
    *,
    profile: Profile,
    user: str,
    format: str | None = None,  # noqa: A002 - the option's name
    sha256: str | None = None,
) -> Version:
    """Publish a copy of a disk file as a version; the file itself is left alone.

    The copy is made anew by qemu-img, a qcow2 too: internal snapshots, unused space and
    whatever else its header carried stay behind.

    Args:
        store: where the version goes.
        ref: its name.
        file: a qcow2 or raw disk.
        profile: which devices the guest can drive.
        user: the user to log in as.
        format: "qcow2" or "raw" to insist on it; a raw file without a partition table
            must be called raw.
        sha256: the digest the file must have, with or without `sha256:` before it.

    Raises:
        UsageError: the format or the digest is not well-formed.
        PoclabError: the version exists, the file is no disk poclab takes or not the one
            that was meant, or there is no room.
    """
    wanted = _wanted_digest(sha256)
    if format is not None and format not in FORMATS:
        raise UsageError(
            f"poclab imports no {shown(format)}",
            why=f"it imports {' and '.join(FORMATS)}",
            fix="convert it: qemu-img convert -O qcow2 FILE NEW.qcow2",
        )
    store.refuse_existing(ref)
    events.step("inspect", file=str(file))
    found = disk.inspect(file, format)
    before = _identity(file)
    events.step("digest", file=str(file))
    digest = disk.sha256(file)
    if wanted not in (None, digest):
        raise PoclabError(
            f"{shown(file.name, 200)} is not the file that was meant",
            why=f"its digest is {digest}",
            fix="download it again, or check the digest",
        )
    with store.workdir() as work:
        _check_room(file, work)
        target = work / "disk.qcow2"
        events.step("convert to qcow2", file=str(file))
        disk.convert_to_qcow2(file.absolute(), found.format, target)
        if _identity(file) != before:
            raise PoclabError(
                f"{shown(file.name, 200)} changed while it was read",
                fix="stop the VM or the download that writes to it, then import it again",
            )
        disk.check(target)
        origin = Origin("imported", source=file.name, digest=digest)
        events.step("publish", version=str(ref))
        return store.publish(
            ref,
            target,
            virtual_size=found.virtual_size,
            profile=profile,
            origin=origin,
            user=user,
        )


def _wanted_digest(text: str | None) -> str | None:
    if text is None:
        return None
    match = _DIGEST.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{shown(text)} is no SHA-256 digest", why="it has 64 hexadecimal digits")
    return f"sha256:{match[1].lower()}"


def _identity(file: Path) -> tuple[int, int, int, int]:
    """What changes when a file is replaced or written to."""
    found = file.stat()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _check_room(file: Path, work: Path) -> None:
    source = file.stat()
    # st_blocks: what is stored, holes left out.
    needed = min(source.st_blocks * 512, source.st_size)
    free = shutil.disk_usage(work).free
    if free < needed:
        raise PoclabError(
            f"there is no room for {shown(file.name, 200)}",
            why=f"{work.parent} has {format_size(free)}, it may take {format_size(needed)}",
            fix="make room there: poclab image rm, or another pool",
        )
