"""Make a version of a VM's system disk, and put the VM on it.

First the disk becomes a version, then the VM gets a new overlay over that version, then its
definition, and only then the old overlay goes. Whatever the moment the program dies at, the VM
stands on its old disk or on its new one; the same command again goes on, because a version notes
which disk it was made of and when that was written last. How a VM that runs gets from one to the
other is in `livecommit`.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from poclab.core import events, hints
from poclab.core.errors import PoclabError
from poclab.core.units import format_seconds
from poclab.disks import pool_disks
from poclab.disks.qcow2_header import virtual_size
from poclab.guest import readiness
from poclab.images.lifecycle import collect
from poclab.labs import chain, live_commit, recovery
from poclab.labs.lab_host import LabHost
from poclab.labs.selectors import find_vm
from poclab.model.host import ObservedVm, State
from poclab.model.record import VmRecord
from poclab.model.version import Origin, Ref, Version
from poclab.model.version_volumes import base_volume, bases
from poclab.model.volumes import find
from poclab.virt.host import Host
from poclab.virt.pool_local import LocalPool

# Disks of a version, its own and all below it. QEMU opens each, and a read that finds nothing
# goes through all of them.
CHAIN_LIMIT = 8
PATIENCE = 300.0  # seconds a guest gets to shut down: Windows may finish an update first


@dataclass(frozen=True)
class CommitRequest:
    """What is to be made.

    Attributes:
        ref: the new version's name.
        message: a line about it, or an empty string.
        shut_down: shut the VM down first if it runs, and start it afterwards.
        flatten: make a disk that stands alone.
        quiesce: have a guest that runs write everything out first.
        otherwise: what else helps when its agent does not do that; by default to shut it down.
    """

    ref: Ref
    message: str = ""
    shut_down: bool = False
    flatten: bool = False
    quiesce: bool = True
    otherwise: str = ""


def commit(host: Host, target: ObservedVm, request: CommitRequest) -> Version:
    """Make a version of a VM's system disk; the VM is on that version afterwards.

    Args:
        host: the host.
        target: the VM.
        request: what is to be made.

    Raises:
        PoclabError: the VM runs and its guest agent does not answer, the name is taken, or the
            pool's directory cannot be written.
    """
    lab = target.record.lab
    with recovery.locked(host, lab, f"poclab commit in {lab}"):
        # Once more, now that the lab is locked.
        return commit_held(host, find_vm(host.vms(), target.record.path), request)


def commit_held(host: Host, vm: ObservedVm, request: CommitRequest) -> Version:
    """Do what `commit` does, with the VM's lab locked by the caller."""
    return _Commit(host, vm, request).run()


def check(host: Host, vm: ObservedVm, request: CommitRequest) -> None:
    """See that a VM can be committed, with its lab locked and what was interrupted put right.

    Raises:
        PoclabError: it cannot.
    """
    _Commit(host, vm, request).check()


def begun(host: Host, vm: ObservedVm, ref: Ref) -> bool:
    """Whether a version was made of a VM as it is now, and the VM is still to be put on it."""
    return _Commit(host, vm, CommitRequest(ref)).begun()


def room(host: Host, record: VmRecord) -> int:
    """Bytes that a version of a VM's system disk takes in the pool, at most."""
    below = [item.volume for item in record.frozen if not item.disk]
    if 1 + len(bases(record)) > CHAIN_LIMIT:
        below += bases(record)
    return sum(host.pool.stat(name).allocated for name in (record.overlay, *below))


class _Commit:
    def __init__(self, host: Host, vm: ObservedVm, request: CommitRequest) -> None:
        self._host = host
        self._vm = vm
        self._record = vm.record
        self._request = request
        self._lab = LabHost(host, vm.record.lab)
        self._store = self._lab.store

    def run(self) -> Version:
        directory = self._directory()
        if self._request.shut_down or self._vm.active:
            _ = self._host.traits  # says, before anything is touched, that KVM is not to be had
        collect(self._host)
        version = self._interrupted(directory)
        if version is None:
            self._lab.sweep()
            self._refuse()
            if self._vm.active and not self._request.shut_down:
                version = self._made_live(directory)
            else:
                version = self._made(directory)
        if self._record.version != version.ref:
            self._record = live_commit.put_on(self._lab, self._vm, version, live=False)
        self._lab.sweep()
        self._host.settle()
        if self._request.shut_down:
            self._start()
        return version

    def check(self) -> None:
        if self._interrupted(self._directory()) is None:
            self._refuse()
            self._lab.check_sizes(self._record)

    def begun(self) -> bool:
        return self._interrupted(self._directory()) is not None

    # --- what is there -------------------------------------------------------------------

    def _refuse(self) -> None:
        self._store.refuse_existing(self._request.ref)
        self._check_state()
        self._check_chain()

    def _directory(self) -> Path:
        if not isinstance(self._host.pool, LocalPool):
            raise PoclabError(
                f"{self._record.path} cannot be committed from here",
                why=f"this user cannot write {self._host.pool.directory} on this host",
                fix="run it on the VM's host as root: sudo poclab -c qemu:///system commit ...",
            )
        return Path(self._host.pool.directory)

    def _interrupted(self, directory: Path) -> Version | None:
        """The version, if this command made it before, was stopped, and can go on."""
        record, ref = self._record, self._request.ref
        version = self._store.get(ref) if self._store.has(ref) else None
        if version is None or version.origin.source != record.path:
            return None
        overlay = directory / record.overlay
        if not overlay.exists():
            return None
        self._check_chain()
        if (record.version, record.digest) == (version.ref, version.digest):
            before = find(version.origin.inputs.get("overlay", ""))
            if before and str(before) != record.overlay and (directory / str(before)).exists():
                return version  # the VM is on it, and what it was on is still to go
            return version if not self._vm.active and pool_disks.is_blank(overlay) else None
        if self._vm.active:
            return None
        return version if live_commit.is_made_of(version, record, overlay) else None

    def _check_state(self) -> None:
        record, vm = self._record, self._vm
        again = f"poclab commit {record.path} --as {self._request.ref} --shutdown"
        otherwise = self._request.otherwise or f"shut it down for this: {again}"
        if vm.live and vm.live.overlay != record.overlay:
            raise PoclabError(
                f"{record.path} runs on a disk it is to leave",
                why="a reset was interrupted",
                fix=f"finish it first: poclab reset {record.path}",
            )
        live_commit.refuse_foreign_disk(self._lab, vm)
        live = vm.active and not self._request.shut_down
        if vm.state in (State.PAUSED, State.IO_ERROR) or (live and vm.state is not State.RUNNING):
            raise PoclabError(
                f"{record.path} is {vm.state}",
                why="its disk lacks what is still in its memory, and it cannot write that out",
                fix=f"`poclab up {record.lab}` has it go on",
            )
        if self._host.guest(record).saved():
            raise PoclabError(
                f"{record.path} was saved to a file while it ran",
                why="its disk lacks what is still in its memory",
                fix="start it, so that it goes on: "
                + hints.virsh("start", names=[record.domain], uri=self._host.uri),
            )
        if live:
            quiesce = self._request.quiesce
            live_commit.refuse_silent(self._lab, vm, quiesce=quiesce, otherwise=otherwise)

    # --- the version ---------------------------------------------------------------------

    def _made(self, directory: Path) -> Version:
        self._lab.check_sizes(self._record)
        if self._vm.active:
            self._host.guest(self._record).shut_down(PATIENCE, gently=True)
        try:
            return self._publish(directory)
        except (PoclabError, OSError):
            if self._vm.active:
                self._lab.start(self._record)  # as it was
            raise

    def _made_live(self, directory: Path) -> Version:
        self._lab.check_sizes(self._record)
        try:
            live_commit.freeze(self._lab, self._record, quiesce=self._request.quiesce)
            version = self._publish(directory)
            self._record = live_commit.put_on(self._lab, self._vm, version, live=True)
        except BaseException:  # Ctrl-C too
            self._put_right()
            raise
        return version

    def _put_right(self) -> None:
        """After a failure, have the VM on its own disk again, or on the version if that is there.

        What cannot be done now is done by the next command: nothing is lost.
        """
        with contextlib.suppress(PoclabError, OSError):
            live_commit.settle(self._lab, patience=1.0)
            if not self._store.has(self._request.ref):
                self._lab.sweep()

    def _publish(self, directory: Path) -> Version:
        record, request = self._record, self._request
        self._check_chain()
        overlay = directory / record.overlay
        inputs = {"version": str(record.version), "version_digest": record.digest}
        inputs |= live_commit.state_of(overlay)
        if record.runs != record.version:
            inputs |= {"switched": str(record.runs), "switched_image": record.in_place[0].image}
        parents = () if self._alone() else (record.digest, *record.parents)
        with self._store.workdir() as work:
            file = work / "disk.qcow2"
            events.step("convert", vm=record.path)
            if parents:
                pool_disks.copy_layer(overlay, directory / base_volume(record.digest), file)
            else:
                pool_disks.convert_to_qcow2(overlay, "qcow2", file)
                pool_disks.check(file)
            return self._store.publish(
                request.ref,
                file,
                virtual_size=virtual_size(file),
                profile=record.profile,
                origin=Origin("committed", record.path, inputs=inputs),
                user=record.user,
                labels={"message": request.message} if request.message else {},
                parents=parents,
            )

    def _check_chain(self) -> None:
        self._lab.check_chain(self._record, chain.system_chain(self._record))

    def _alone(self) -> bool:
        """Whether the version is to stand alone: it was asked for, or the chain is long."""
        count = 1 + len(bases(self._record))
        if count > CHAIN_LIMIT and not self._request.flatten:
            events.note(
                f"{self._request.ref} stands alone: it would be {count} disks deep,"
                f" and {CHAIN_LIMIT} is the limit"
            )
        return self._request.flatten or count > CHAIN_LIMIT

    def _start(self) -> None:
        record = self._record
        self._lab.start(record)
        seconds = readiness.wait(self._host, record, self._lab.files)
        if record.ready:
            events.note(f"{record.path}: ready after {format_seconds(seconds)}")
