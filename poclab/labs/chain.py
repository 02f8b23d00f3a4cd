"""Whether a disk of the pool stands on what its record says, before anything reads through it.

QEMU's tools open what a header names, whatever that is: a file of root's, a device, a server.
poclab writes the headers of its disks, but others may write into the pool; so the whole chain is
read by the bounded reader of headers and compared with the record first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from poclab.core import files
from poclab.core.errors import PoclabError
from poclab.core.plaintext import shown
from poclab.disks.qcow2_header import head_of
from poclab.model.record import VmRecord
from poclab.model.version_volumes import bases
from poclab.model.vm_volumes import data_volume


def system_chain(record: VmRecord) -> tuple[str, ...]:
    """The volumes that a VM's system disk consists of, the top first."""
    frozen = (item.volume for item in record.frozen if not item.disk)
    return (record.overlay, *frozen, *bases(record))


def data_chains(record: VmRecord) -> Iterator[tuple[str, ...]]:
    """The volumes that each data disk of a VM consists of, the top first."""
    for disk in record.disks:
        frozen = (item.volume for item in record.frozen if item.disk == disk.name)
        yield (data_volume(record, disk), *frozen)


def check(directory: Path, names: Sequence[str], owner: str) -> None:
    """Check that each disk of a chain stands on the next, and the last on nothing.

    Args:
        directory: where the disks are.
        names: the volumes as they are recorded, the top first.
        owner: whose disk it is, as `LAB/VM`, for the message.

    Raises:
        PoclabError: one stands on something else; nothing of that was opened.
    """
    for name, below in zip(names, (*names[1:], ""), strict=True):
        fault = _fault(directory, name, below)
        if fault:
            raise PoclabError(
                f"the disk of {owner} is not what its record says, so it is not read",
                why=f"{name} {fault}",
                fix=f"start it anew from a version: poclab reset {owner} --to TAG",
            )


def _fault(directory: Path, name: str, below: str) -> str:
    """What is wrong with one disk, or an empty string."""
    try:
        head = head_of(files.below(directory, name))
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if head is None:
        return "is not a qcow2 disk"
    if head.elsewhere:
        return "has its data in another file, or encrypted"
    # A base names the one below without a directory; an overlay names it with one.
    wanted = {below, str(files.below(directory, below))} if below else {""}
    if head.backing not in wanted and not _same(directory, head.backing, below):
        return f"stands on {shown(head.backing, 200) if head.backing else 'nothing'}"
    # Left out, QEMU looks for itself: what is below was found to be qcow2, or will be.
    if head.backing_format not in ("", "qcow2"):
        return f"takes the disk below for {shown(head.backing_format)}"
    return ""


def _same(directory: Path, backing: str, below: str) -> bool:
    """Whether an absolute path means the volume below by another way to the same directory."""
    parent, _, last = backing.rpartition("/")
    if not below or last != below or not parent.startswith("/"):
        return False
    return os.path.realpath(parent) == os.path.realpath(directory)
