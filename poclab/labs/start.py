"""Starting a VM on its disk and seeing it ready: from its warm state, or by booting."""

from __future__ import annotations

from dataclasses import dataclass, replace
from threading import Lock

from poclab.core import events
from poclab.core.units import format_seconds
from poclab.guest import clock, readiness
from poclab.labs import warm
from poclab.labs.lab_host import LabHost
from poclab.model.history import became_ready
from poclab.model.record import VmRecord
from poclab.store.warm_states import WarmState

_one_at_a_time = Lock()  # a process holds the store once, and VMs are started in threads


@dataclass(frozen=True)
class Started:
    """How a VM was started.

    Attributes:
        record: what it is; another system disk than before when its warm state was of no use.
        state: the warm state that it was brought back from, None when it booted.
        first: whether this is the first start since it was put on its disk.
    """

    record: VmRecord
    state: WarmState | None = None
    first: bool = False


def begin(lab: LabHost, record: VmRecord, *, new: bool) -> Started:
    """Start a VM: on new disks over those of a warm state from that, else by booting.

    Args:
        lab: its lab.
        record: the VM.
        new: its disks were made a moment ago; a VM that an interrupted command left is looked at,
            since memory must not be restored onto disks that it ran on.

    Raises:
        PoclabError: it does not start.
    """
    if record.fresh:
        lab.host.guest(record).forget_memory()  # it knows the disks of before
    clean = record.fresh and not record.used
    if clean and record.frozen and (new or lab.untouched(record)):
        if state := warm.restore(lab, record):
            return Started(replace(record, fresh=False), state, first=True)
        record = _cold(lab, record)
    lab.start(record)
    first = record.fresh and (record.used or not record.frozen)
    return Started(replace(record, fresh=False), first=first)


def _cold(lab: LabHost, record: VmRecord) -> VmRecord:
    """Give a VM that is off a clean disk after all; what it was to go on on is no clean one."""
    uuid = lab.host.guest(record).uuid
    with _one_at_a_time, lab.store.reading():
        lab.bases_ready(record)
        record = lab.new_overlay(replace(record, overlay="", frozen=()))
        lab.data_disks(record)
        lab.define(record, uuid)
    lab.renew_tpm(record)
    return record


def settle(lab: LabHost, started: Started, *, keep: bool) -> float:
    """Wait until a VM is ready, and set its clock or keep its memory.

    Args:
        lab: its lab.
        started: how it was started.
        keep: whether its memory is to be kept, if it booted on a new disk.

    Returns:
        The seconds until it was ready; 0 when nothing was asked for.

    Raises:
        PoclabError: it is not ready in time.
    """
    record, state = started.record, started.state
    seconds = readiness.wait(lab.host, record, lab.files, woke=state is not None)
    if record.ready and started.first:
        record = became_ready(record, "warm" if state else "cold", seconds)
        lab.host.guest(record).set_record(record)
    if record.ready:
        how = ", from its warm state" if state else ""
        events.note(f"{record.name}: ready after {format_seconds(seconds)}{how}")
    else:
        events.note(f"{record.name}: started")
    if state:
        if not state.watched:
            clock.set_now(lab.host, record, lab.files)
    elif keep and started.first:
        warm.keep(lab, record)
    return seconds
