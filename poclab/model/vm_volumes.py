"""The volumes of VMs: what their disks are called. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poclab.model import volumes
from poclab.model.lab import DataDisk
from poclab.model.record import VmRecord

if TYPE_CHECKING:
    pass


def data_volume(record: VmRecord, disk: DataDisk) -> str:
    """The volume of a data disk.

    A kept one has a name that lasts. One that goes with the system disk carries the overlay's
    own mark, so that a reset makes a new one beside the old, and never mixes the two up. What
    the mark has after a `-` tells overlays apart that have the same data disks (see `next_mark`).
    """
    if disk.keep:
        return str(volumes.data(record.lab, record.name, disk.name))
    mark = volumes.generation(record.overlay)
    return str(volumes.scratch(record.lab, record.name, disk.name, mark))


def next_mark(overlay: str, more: str) -> str:
    """The mark of a system disk that takes another's place and keeps its data disks."""
    return f"{volumes.generation(overlay).partition('-')[0]}-{more}"


def overlay_volume(lab: str, vm: str, mark: str) -> str:
    """The volume of a system disk; the mark tells it from the one before."""
    return str(volumes.overlay(lab, vm, mark))
