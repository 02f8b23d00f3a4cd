"""Warm states: keeping a VM's memory when it is ready, and bringing it back in place of a boot.

To keep it, the VM's disks become the state's and the VM goes on on overlays over them, within one
pause. To bring it back, new overlays are made over the same disks and the memory is restored onto
them, standing still until the record says that these disks have been run on: memory must never
meet a disk that changed meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import PurePath

from poclab.core import events, locks
from poclab.core.errors import PoclabError
from poclab.core.timestamps import now
from poclab.core.units import format_seconds, format_size
from poclab.guest import clock
from poclab.labs.lab_host import LabHost
from poclab.model.host import ObservedVm
from poclab.model.names import check_tag
from poclab.model.record import Frozen, VmRecord
from poclab.planning.differences import cold_because
from poclab.store import damaged
from poclab.store.warm_states import Unread, WarmState, WarmStates, encode, frozen_disks, needs
from poclab.virt.errors import PortTakenError
from poclab.virt.host import Host

_JOBS = 60.0  # seconds that libvirt gets to finish what an ended command began


def find(lab: LabHost, record: VmRecord, before: ObservedVm | None) -> tuple[Frozen, ...]:
    """The disks of the warm state that a VM can be brought back from, none for a boot.

    Args:
        lab: the VM's lab.
        record: what the VM is to be; its system disk is still to come.
        before: the VM as it is.
    """
    if before is None:
        return ()
    found = _of_version(lab, record)
    wanted = _needs(lab, record, before.uuid) if found else {}
    state = next((item for item in found if item.needs == wanted), None)
    if state:
        return state.disks
    if found:
        other = [name for name, digest in wanted.items() if found[0].needs.get(name) != digest]
        events.note(
            f"{record.name}: boots, its warm state is of no use: {', '.join(other)} changed"
        )
    return ()


def _of_version(lab: LabHost, record: VmRecord) -> list[WarmState]:
    """The VM's states of the record's version, the newest first."""
    shelf = WarmStates.of(lab.host.pool, lab.lab)
    states = [x for x in shelf.whole() if (x.vm, x.digest) == (record.name, record.digest)]
    return states[::-1]


def _needs(lab: LabHost, record: VmRecord, uuid: str) -> dict[str, str]:
    marked = record if record.overlay else lab.marked(record)
    return needs(record, lab.spec(marked, uuid), lab.host.runs_guests_with)


# --- bringing it back -----------------------------------------------------------------------


def restore(lab: LabHost, record: VmRecord) -> WarmState | None:
    """Bring a VM back on the new disks that it is defined with.

    Returns:
        The state that it runs from. None when it is off after all; a line says why.

    Raises:
        PortTakenError: another program listens on a port of it.
    """
    guest = lab.host.guest(record)
    spec = lab.spec(record, guest.uuid)
    wanted = _needs(lab, record, guest.uuid)
    found = (x for x in _of_version(lab, record) if (x.disks, x.needs) == (record.frozen, wanted))
    state = next(found, None)
    if state is None:
        return None
    try:
        lab.start_networks(record)
        guest = lab.host.restore(state.memory, spec)
        lab.has_run(record)
        guest.resume()
        return state
    except PortTakenError:
        raise
    except PoclabError as error:
        events.warning(f"{record.name}: boots, as its warm state fails: {error.why or error.what}")
        guest.power_off()
        drop(lab, state)
        return None


# --- keeping it -----------------------------------------------------------------------------


def keep(lab: LabHost, record: VmRecord) -> VmRecord:
    """Keep the memory of a VM that just became ready; returns the record of what it goes on on.

    That it cannot be kept is a warning: the VM runs all the same.
    """
    if record.frozen or record.used:
        return record
    if why := cold_because(record):
        events.warning(f"{record.name}: its memory is not kept: {why}")
        return record
    free = lab.host.pool.free()
    if free < record.memory:
        text = f"{format_size(free)} free in the pool, {format_size(record.memory)} needed"
        events.warning(f"{record.name}: its memory is not kept: {text}")
        return record
    try:
        return _keep(lab, record)
    except PoclabError as error:
        events.warning(f"{record.name}: its memory is not kept: {error.why or error.what}")
        mend(lab)
        return record


def _keep(lab: LabHost, record: VmRecord) -> VmRecord:
    events.progress(f"{record.name}: a short pause, to keep its memory", vm=record.name)
    guest = lab.host.guest(record)
    disks = frozen_disks(record)
    onto = lab.marked(record)
    state = WarmState(
        lab=lab.lab,
        vm=record.name,
        version=record.version,
        digest=record.digest,
        parents=record.parents,
        needs=_needs(lab, record, guest.uuid),
        disks=disks,
        onto=onto.overlay,
        created=now(),
    )
    events.step("warm state", vm=record.name)
    lab.host.pool.write(state.manifest, encode(state))
    moved = lab.overlays(onto, disks)
    targets = lab.spec(moved, guest.uuid).disks
    watched = clock.leave_watch(lab.host, record, lab.files)
    began = time.monotonic()
    guest.capture(lab.host.pool.path(state.memory), {disk.target: disk.path for disk in targets})
    seconds = time.monotonic() - began
    _finish(lab, replace(state, watched=watched), moved)
    size = format_size(lab.host.pool.stat(state.memory).allocated)
    events.note(f"{record.name}: its memory is kept ({size}; paused {format_seconds(seconds)})")
    return moved


def _finish(lab: LabHost, state: WarmState, moved: VmRecord) -> None:
    """Have everything say what the VM goes on on, then that the state is whole."""
    lab.files.carry(moved.name, state.disks[0].volume, moved.overlay)
    guest = lab.host.guest(moved)
    lab.define(moved, guest.uuid)
    lab.host.settle()  # libvirt made the memory's volume
    if guest.active():
        guest.set_live_record(moved)
    events.step("warm state", vm=moved.name)
    lab.host.pool.rewrite(state.manifest, encode(replace(state, complete=True)))


def mend(lab: LabHost) -> None:
    """Finish or undo what a command that was interrupted while it kept a memory left."""
    states = [x for x in WarmStates.of(lab.host.pool, lab.lab).states if not x.complete]
    if not states:
        return
    vms = {vm.record.name: vm for vm in lab.host.vms() if vm.record.lab == lab.lab}
    for state in states:
        vm = vms.get(state.vm)
        if vm is None:
            continue  # `sweep` takes it
        guest = lab.host.guest(vm.record)
        guest.wait_for_jobs(_JOBS)
        disk = guest.blocks.disk()
        if disk and PurePath(disk.chain[0]).name == state.onto:
            record = vm.record
            _finish(lab, state, replace(record, overlay=state.onto, frozen=state.disks))
        else:
            drop(lab, state)


def drop(lab: LabHost, state: WarmState | Unread) -> None:
    """Forget a state; its disks go with `sweep` once no VM stands on them."""
    for volume in state.own:
        events.step("delete", volume=volume)
        lab.host.pool.delete(volume)


# --- what there is --------------------------------------------------------------------------


@dataclass(frozen=True)
class StateRow:
    """A line of `poclab warm ls`; the fields are the JSON's keys.

    Attributes:
        lab: the lab.
        vm: the VM.
        version: the version it ran.
        digest: that version's digest.
        created: when it was kept.
        memory: bytes that its memory takes.
        disks: bytes that its disks take.
        in_use: whether the VM's own disks lie over them now.
    """

    lab: str
    vm: str
    version: str
    digest: str
    created: str
    memory: int
    disks: int
    in_use: bool


def rows(host: Host) -> list[StateRow]:
    """All warm states that can be restored."""
    vms = host.vms()
    damaged.warn(host, damaged.warm_states)
    records = [record for vm in vms for record in (vm.record, vm.running)]
    used = {item.volume for record in records for item in record.frozen}
    kept = sorted(WarmStates.of(host.pool).kept(vms), key=lambda x: (x.path, x.created))
    return [
        StateRow(
            lab=state.lab,
            vm=state.vm,
            version=str(state.version),
            digest=state.digest,
            created=state.created,
            memory=host.pool.stat(state.memory).allocated,
            disks=sum(host.pool.stat(item.volume).allocated for item in state.disks),
            in_use=any(item.volume in used for item in state.disks),
        )
        for state in kept
    ]


def drop_states(host: Host, paths: Collection[str], tag: str | None = None) -> int:
    """Delete the warm states of VMs.

    Args:
        host: the host.
        paths: the VMs, as `LAB/VM`.
        tag: the tag of the version whose states go, or None for all.

    Returns:
        How many there were.

    Raises:
        UsageError: the text is no tag.
    """
    if tag is not None:
        check_tag(tag)
    count = 0
    for name in sorted({path.partition("/")[0] for path in paths}):
        with locks.hold(name, uri=host.uri, doing=f"poclab warm drop in {name}"):
            lab = LabHost(host, name)
            mend(lab)
            shelf = WarmStates.of(host.pool, name)
            for state in shelf.states:
                if state.path in paths and tag in (None, state.version.tag):
                    drop(lab, state)
                    count += 1
            for unread in shelf.unread if tag is None else ():
                if unread.path in paths:
                    drop(lab, unread)
                    count += 1
            lab.sweep()
    host.settle()
    return count
