"""Histories of VMs: what is added to a record when something happens. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from poclab.model.record import HistoryEntry, VmRecord


@dataclass(frozen=True)
class Stamp:
    """What goes into new records: when, by whom, with which key."""

    time: str
    by: str
    ssh_key: str


def remade(record: VmRecord, action: str, stamp: Stamp) -> VmRecord:
    """The record with a new system disk to come: fresh firmware, today's key, history."""
    fresh = replace(
        record,
        overlay="",
        frozen=(),
        in_place=(),
        fresh=True,
        used=False,
        ssh_key=stamp.ssh_key,
    )
    return replace(fresh, history=(*record.history, entry(fresh, action, stamp)))


def entry(record: VmRecord, action: str, stamp: Stamp) -> HistoryEntry:
    """A line of a VM's history."""
    return HistoryEntry(stamp.time, action, record.version, record.digest, stamp.by)


def became_ready(record: VmRecord, start: str, seconds: float) -> VmRecord:
    """The record whose latest entry says how and when the VM became ready, to a tenth."""
    if not record.history:
        return record
    *before, last = record.history
    noted = replace(last, start=start, seconds=round(seconds, 1))
    return replace(record, history=(*before, noted))


def previous(record: VmRecord) -> HistoryEntry | None:
    """The latest entry of another version than the one a VM is on now, None without one."""
    now = (record.version, record.digest)
    others = (item for item in reversed(record.history) if (item.version, item.digest) != now)
    return next(others, None)
