"""Commit a VM that runs, without a stop.

1. `freeze`: a new overlay takes all that the guest writes from now on; what is below it no longer
   changes, and the version is made of that.
2. `put_on`: the VM moves to another new overlay, over the version, that what was written
   meanwhile is copied to. Then its records follow.

In between, the VM runs on disks that libvirt knows and its records do not; nothing that a domain
stands on is ever deleted. `settle` finds such a VM and finishes the work, or undoes it.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path

from poclab.core import events, hints
from poclab.core.errors import PoclabError
from poclab.disks import pool_disks
from poclab.disks.qcow2_header import backing_file
from poclab.guest import probe
from poclab.labs.chain import system_chain
from poclab.labs.lab_host import LabHost
from poclab.model import volumes
from poclab.model.history import entry
from poclab.model.host import ObservedVm
from poclab.model.record import VmRecord
from poclab.model.version import Version
from poclab.model.version_volumes import base_volume
from poclab.model.vm_volumes import next_mark, overlay_volume
from poclab.model.volumes import Kind
from poclab.virt.agent import FREEZE
from poclab.virt.block_jobs import Blocks
from poclab.virt.pool_local import LocalPool

# Seconds for libvirt to be done with a snapshot: it may wait for the agent to freeze, then to thaw.
_PATIENCE = 2.0 * FREEZE


def refuse_silent(lab: LabHost, vm: ObservedVm, *, quiesce: bool, otherwise: str) -> None:
    """See that the guest agent of a running VM answers, where it is needed.

    Args:
        lab: the VM's lab.
        vm: the VM.
        quiesce: whether it is needed.
        otherwise: what else helps.

    Raises:
        PoclabError: it does not.
    """
    silence = _blocks(lab, vm.record).agent_silence() if quiesce else ""
    if silence:
        raise PoclabError(
            f"{vm.record.path} runs, and its guest agent does not answer",
            why=f"nobody else can have it write everything to its disk ({silence})",
            fix=f"start qemu-guest-agent in it, or {otherwise}",
        )


def refuse_foreign_disk(lab: LabHost, vm: ObservedVm) -> None:
    """See that a VM's system disk is the one that poclab gave it.

    Raises:
        PoclabError: somebody else put another one on it.
    """
    found, own = _blocks(lab, vm.record).disk(), lab.host.pool.path(vm.running.overlay)
    if found is not None and found.chain[0] == own:
        return
    fix = f"start it anew from a version: poclab reset {vm.record.path}"
    if found is not None and own in found.chain and vm.active:
        merge = ("blockcommit", vm.record.domain, found.target, "--base", own)
        where = ("-c", lab.host.uri)
        fix = hints.command("virsh", *where, *merge, "--active", "--pivot")
    raise PoclabError(
        f"{vm.record.path} stands on {found.chain[0] if found else 'no disk of its own'}",
        why="somebody made a snapshot of it, or changed its definition",
        fix=fix,
    )


def freeze(lab: LabHost, record: VmRecord, *, quiesce: bool) -> None:
    """Have all that a running VM writes go to a new overlay; its disk no longer changes.

    Raises:
        PoclabError: it cannot be done.
    """
    pool = lab.host.pool
    mark = next_mark(record.overlay, secrets.token_hex(4))
    top = overlay_volume(lab.lab, record.name, mark)
    events.step("overlay", vm=record.name)
    pool.overlay(top, record.overlay, pool.capacity(record.overlay))
    _blocks(lab, record).snapshot(pool.path(top), quiesce=quiesce)


def put_on(lab: LabHost, vm: ObservedVm, version: Version, *, live: bool) -> VmRecord:
    """Put a VM on the version that was made of it; its data disks and firmware stay.

    Args:
        lab: its lab.
        vm: the VM.
        version: what its disk holds, or held when it was frozen.
        live: the VM runs, on a disk that was frozen.

    Returns:
        Its record from now on.

    Raises:
        PoclabError: it cannot be done; the VM is as before, or `settle` puts it right.
    """
    with lab.store.reading():
        moved = _moved(lab, vm.record, version)
        lab.bases_ready(moved)
        made = lab.new_overlay(moved, after=vm.record.overlay)
        if live:
            _blocks(lab, made).move(lab.host.pool.path(made.overlay))
        return _recorded(lab, vm, made, live=live)


def _moved(lab: LabHost, record: VmRecord, version: Version) -> VmRecord:
    moved = replace(
        record,
        version=version.ref,
        digest=version.digest,
        parents=version.parents,
        frozen=tuple(item for item in record.frozen if item.disk),  # the version has the other's
        in_place=(),  # the version is what was switched to
    )
    line = entry(moved, "commit", lab.stamp(key=False))
    return replace(moved, history=(*record.history, line))


def _recorded(lab: LabHost, vm: ObservedVm, made: VmRecord, *, live: bool) -> VmRecord:
    """Have a VM's definitions say what it stands on."""
    lab.files.carry(made.name, vm.record.overlay, made.overlay)
    guest = lab.define(made, vm.uuid)
    if live:
        guest.set_live_record(made)
    return made


def _blocks(lab: LabHost, record: VmRecord) -> Blocks:
    return lab.host.guest(record).blocks


# --- what was interrupted -----------------------------------------------------------------


def settle(lab: LabHost, patience: float = _PATIENCE) -> None:
    """Finish, or undo, what was cut short when a VM of the lab was committed as it ran.

    Args:
        lab: the lab.
        patience: seconds for libvirt to be done with a snapshot that nobody waits for any more;
            the overlay that it puts on top belongs to nobody until then.

    Raises:
        PoclabError: it cannot be done; the VM goes on as it is.
    """
    for vm in lab.host.vms():
        if vm.record.lab == lab.lab:
            _let_end(lab, vm, patience)
            _settle(lab, vm)


def _let_end(lab: LabHost, vm: ObservedVm, patience: float) -> None:
    if not vm.active:
        return
    guest = lab.host.guest(vm.record)
    try:
        probe.wait_until(lambda: not guest.snapshotting(), patience)
    except probe.TimedOut as error:
        raise PoclabError(
            f"{vm.record.path} is busy",
            why="libvirt is at a snapshot of it, or waits for its guest agent",
            fix="run the same command again in a minute",
        ) from error


def _settle(lab: LabHost, vm: ObservedVm) -> None:
    found, pool = _blocks(lab, vm.record).disk(), lab.host.pool
    if found is None:
        return
    own = pool.path(vm.record.overlay)
    directory, _, top = found.chain[0].rpartition("/")
    name = volumes.find(top)
    ours = name and name.kind is Kind.OVERLAY and name.of(lab.lab, vm.record.name)
    if directory != pool.directory or not ours:
        return  # nobody's business but who did it
    if vm.live and vm.live.overlay != vm.record.overlay:
        if found.chain[0] == own:
            lab.host.guest(vm.record).set_live_record(vm.record)
        return  # else a reset was interrupted
    if found.chain[0] == own:
        return
    events.note(f"{vm.record.path}: a commit was interrupted; it is put right")
    if own in found.chain:
        _between(lab, vm, found.chain[0], busy=found.job)
    else:
        _arrived(lab, vm, top, found.chain)


def _between(lab: LabHost, vm: ObservedVm, top: str, *, busy: bool) -> None:
    """The VM has what it wrote meanwhile over its frozen disk."""
    blocks, own = _blocks(lab, vm.record), lab.host.pool.path(vm.record.overlay)
    if busy:
        blocks.abort()
    version = _made_of(lab, vm) if vm.active else None
    if version:
        put_on(lab, vm, version, live=True)
    elif vm.active:
        blocks.merge(own)
    else:
        _refuse_far(lab, vm)
        lab.check_chain(vm.record, (Path(top).name, *system_chain(vm.record)))
        events.step("merge", domain=vm.record.domain)
        pool_disks.merge(Path(top))
        lab.define(vm.record, vm.uuid)


def _arrived(lab: LabHost, vm: ObservedVm, top: str, chain: tuple[str, ...]) -> None:
    """The VM is over the version already, and its records do not say so."""
    if len(chain) > 1:
        below = chain[1].rpartition("/")[2]
    else:
        _refuse_far(lab, vm)
        below = _below(lab, vm, top)
    made = [item for item in lab.store.versions() if base_volume(item.digest) == below]
    if not made:
        raise PoclabError(
            f"{vm.record.path} stands on {below}",
            why="a commit was interrupted, and no version has that disk any more",
            fix=f"start it anew from a version: poclab reset {vm.record.path} --to TAG",
        )
    record = replace(_moved(lab, vm.record, made[-1]), overlay=top)
    lab.check_chain(record, system_chain(record))
    _recorded(lab, vm, record, live=vm.active)


def _below(lab: LabHost, vm: ObservedVm, top: str) -> str:
    """The volume below a system disk, by its header; only the name, which is looked up."""
    try:
        named = backing_file(Path(lab.host.pool.path(top)))
    except OSError as error:
        raise PoclabError(f"{top} cannot be read", why=str(error.strerror)) from error
    return Path(named).name or f"nothing: {vm.record.overlay} is gone"


def _made_of(lab: LabHost, vm: ObservedVm) -> Version | None:
    """The version that was made of a VM's frozen disk, if that is as it was then."""
    if not isinstance(lab.host.pool, LocalPool):
        return None
    path = Path(lab.host.pool.path(vm.record.overlay))
    for version in lab.store.versions():
        if is_made_of(version, vm.record, path):
            return version
    return None


def is_made_of(version: Version, record: VmRecord, overlay: Path) -> bool:
    """Whether a version was made of a VM's disk as that is now."""
    origin = version.origin
    if (origin.kind, origin.source) != ("committed", record.path):
        return False
    return overlay.exists() and state_of(overlay).items() <= origin.inputs.items()


def state_of(overlay: Path) -> dict[str, str]:
    """Which disk a version is made of, and what changes when it is written to."""
    return {"overlay": overlay.name, "written": str(overlay.stat().st_mtime_ns)}


def _refuse_far(lab: LabHost, vm: ObservedVm) -> None:
    if not isinstance(lab.host.pool, LocalPool):
        raise PoclabError(
            f"{vm.record.path} was committed, and that was interrupted",
            why=f"this user cannot write {lab.host.pool.directory} on this host",
            fix=f"as root: poclab -c qemu:///system up {vm.record.lab}",
        )
