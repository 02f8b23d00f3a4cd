"""Put a running VM on another version in place, as a machine at a customer's is upgraded.

bootc in the guest does it: it stages the version's container image for the next boot, and the next
boot runs it, with the same /var and a merged /etc. The disk stays the VM's own, so what it was made
from is still its `version`; what it runs is recorded beside that (`in_place`). Everything is
checked before the guest is touched. A system that the guest ran before is booted by `bootc
rollback`: with composefs, bootc stages nothing that it has already. Whatever the moment the program
dies at, the guest runs its old system or its new one; the same command again asks the guest where
it stands, and goes on there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from poclab.containers import podman
from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.core.units import MIB, format_seconds
from poclab.guest import probe, readiness
from poclab.guest.bootc import CARRIED, BootcGuest, SameContent
from poclab.guest.bootc_status import Entry, Status
from poclab.labs import recovery
from poclab.labs.lab_host import LabHost
from poclab.labs.selectors import find_vm
from poclab.model.history import became_ready
from poclab.model.host import ObservedVm, State
from poclab.model.names import check_tag
from poclab.model.record import Deployment, HistoryEntry
from poclab.model.version import Ref, Transport, Version
from poclab.virt.host import Host

_REBOOT = 300  # seconds for a reboot of a VM whose lab file does not say how long to wait
_SPARE = 64 * MIB  # bytes that stay free in the guest when an image was carried in


@dataclass(frozen=True)
class Source:
    """A container image in the words of `bootc switch`.

    Attributes:
        transport: how it is fetched.
        reference: its name there. It holds what the image is (its ID or digest): bootc does nothing
            when it is asked for the name it has, whatever is behind that name by then.
        digest: the digest of its manifest as far as it is known, `sha256:HEX`.
        deployed: digests by which the guest's bootc knows it, as recorded when it booted it.
    """

    transport: Transport
    reference: str
    digest: str
    deployed: frozenset[str] = frozenset()

    def known_as(self, in_place: Iterable[Deployment], version: Version) -> Source:
        """Add what a VM's record says of a version's deployments in the guest."""
        same = [item for item in in_place if item.version == version.ref]
        digests = {item.image for item in same if item.digest == version.digest}
        return replace(self, deployed=frozenset(digests - {""}))

    def is_of(self, entry: Entry | None) -> bool:
        """Whether a deployment in the guest is of this image."""
        if entry is None:
            return False
        named = (entry.transport, entry.reference) == (self.transport.value, self.reference)
        return named or entry.digest in {self.digest, *self.deployed} - {""}


def source_of(version: Version, transport: Transport) -> Source:
    """Where a version's container image is to be had from.

    Raises:
        PoclabError: it is of none, or its image is in no registry.
    """
    origin, reset = version.origin, f"a clean disk of it: poclab reset VM --to {version.ref.tag}"
    image_id = origin.inputs.get("image_id", "")
    if origin.kind != "built" or not re.fullmatch(r"[0-9a-f]{64}", image_id):
        raise PoclabError(
            f"{version.ref} cannot be switched to in place",
            why=f"it was {origin.kind}, not built of a container image that is known",
            fix=reset,
        )
    if transport is Transport.OCI:
        return Source(transport, str(CARRIED / image_id), origin.digest)
    name = re.sub(r":[^:/]*$", "", origin.inputs.get("container", "").partition("@")[0])
    if not re.fullmatch(r"[a-z0-9][a-zA-Z0-9._:/-]*", name) or name.startswith("localhost/"):
        raise PoclabError(
            f"{version.ref} is in no registry",
            why="its container image was built here: its image file names none with `container`",
            fix=f"leave --transport registry out, to carry it in; or {reset}",
        )
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", origin.digest):
        raise PoclabError(f"the digest of {version.ref} in its registry is not known", fix=reset)
    return Source(transport, f"{name}@{origin.digest}", origin.digest)


@dataclass(frozen=True)
class Switched:
    """How a switch or rollback in place ended.

    Attributes:
        path: `LAB/VM`.
        version: the version it runs.
        seconds: from the reboot until it was ready; None when it had booted that already.
    """

    path: str
    version: Ref
    seconds: float | None


def switch(host: Host, target: ObservedVm, tag: str, transport: Transport) -> Switched:
    """Put a running VM on another version of its image, in place.

    Args:
        host: the host.
        target: the VM.
        tag: the version's tag.
        transport: how the guest gets the version's container image.

    Raises:
        PoclabError: it cannot be done, and the VM runs what it ran; or it did not come back on
            that version.
    """
    check_tag(tag)
    with _held(host, target, "switch") as (lab, vm):
        return _Switching(lab, vm).switch(Ref(vm.record.version.image, tag), transport)


def rollback(host: Host, target: ObservedVm) -> Switched:
    """Have a VM that was switched in place boot what it booted before.

    Raises:
        PoclabError: the guest does not answer, or has nothing to go back to.
    """
    with _held(host, target, "rollback") as (lab, vm):
        return _Switching(lab, vm).rollback()


@contextmanager
def _held(host: Host, target: ObservedVm, doing: str) -> Iterator[tuple[LabHost, ObservedVm]]:
    name = target.record.lab
    with recovery.locked(host, name, f"poclab {doing} in {name}") as lab:
        # Once more, now that the lab is locked.
        yield lab, find_vm(host.vms(), target.record.path)


class _Switching:
    def __init__(self, lab: LabHost, vm: ObservedVm) -> None:
        self._host = lab.host
        self._record = vm.record
        self._lab = lab
        _check_state(vm)
        # The ports it started with are the ones to reach it by.
        target = readiness.target(lab.host, vm.running, self._lab.files)
        self._running = vm.running
        self._guest = BootcGuest(target, vm.record.path)

    # --- to another version ------------------------------------------------------------------

    def switch(self, ref: Ref, transport: Transport) -> Switched:
        """See `switch` of the module."""
        version = self._lab.store.get(ref)
        source = source_of(version, transport).known_as(self._record.in_place, version)
        if transport is Transport.OCI:
            _check_image(version)
        self._guest.check_login()
        status = self._guest.status()
        if source.is_of(status.booted):
            return self._there(version, status)
        seconds = self._to(source, status, ref)
        booted = self._verified(source, ref)
        old = status.booted.digest if status.booted else ""
        self._note("switch", self._moved(version, booted, old), seconds)
        return Switched(self._record.path, ref, seconds)

    def _to(self, source: Source, status: Status, ref: Ref) -> float:
        """Have the guest boot an image that it does not run."""
        if source.is_of(status.rollback) and not source.is_of(status.staged):
            name = self._record.name
            events.note(f"{name}: /etc becomes what it was when it ran {ref} last; /var stays")
            self._queue(status)
        elif not source.is_of(status.staged):
            self._stage(source, ref)
            if not source.is_of(self._guest.status().staged):
                raise PoclabError(
                    f"bootc in {self._record.path} did not stage the image",
                    why="`bootc switch` ended well, and status.staged is another one or none",
                    fix=f"see `bootc status` there: poclab ssh {self._record.path}",
                )
        # What is staged is in bootc's own storage: the copy is of no use any more.
        self._guest.drop_carried()
        return self._reboot()

    def _queue(self, status: Status) -> None:
        """Have the guest's next boot run what it ran before, unless that is asked for already.

        Asked for twice, bootc takes it back.

        Raises:
            PoclabError: if the next boot would be of something else.
        """
        if status.queued:
            return
        self._guest.rollback()
        found = self._guest.status()
        if not found.queued or found.staged is not None:
            path = self._record.path
            raise PoclabError(
                f"bootc in {path} did not queue the rollback",
                why="another image is staged" if found.staged else "rollbackQueued is not set",
                fix=f"see `bootc status` there: poclab ssh {path}",
            )

    def _stage(self, source: Source, ref: Ref) -> None:
        if source.transport is Transport.REGISTRY:
            self._switch(source, ref)
            return
        name = CARRIED / source.reference.rpartition("/")[2]
        with self._lab.store.workdir() as work:
            layout = work / "image"
            podman.save_layout(name.name, layout)
            size = sum(path.stat().st_size for path in layout.rglob("*") if path.is_file())
            self._guest.check_room(size + _SPARE)
            with self._forgotten_if_that_fails():
                self._guest.carry(layout, name)
        with self._forgotten_if_that_fails():
            self._switch(source, ref)

    def _switch(self, source: Source, ref: Ref) -> None:
        """Stage an image that the guest can fetch.

        Raises:
            PoclabError: if bootc refuses, or has a deployment of that content.
        """
        path = self._record.path
        try:
            self._guest.switch(source.transport, source.reference)
        except SameContent as error:
            # Another image, by its labels or times for one; else it would have been found above.
            known = {"booted": f"what {path} runs", "rollback": f"what {path} ran before"}
            back = error.slot == "rollback" and len(self._record.in_place) > 1
            raise PoclabError(
                f"{ref} has the same content as {known.get(error.slot, f'a system of {path}')}",
                why="bootc keeps each content once, so there is nothing to switch to",
                fix=(f"go back to that with `poclab rollback {path}`; or " if back else "")
                + f"a clean disk of it: poclab reset {path} --to {ref.tag}",
            ) from error

    @contextmanager
    def _forgotten_if_that_fails(self) -> Iterator[None]:
        """Have the guest drop what was carried in, which may have filled its disk."""
        try:
            yield
        except PoclabError:
            try:
                self._guest.drop_carried()
            except PoclabError as error:  # what went wrong first is what matters
                events.debug(str(error))
            raise

    def _there(self, version: Version, status: Status) -> Switched:
        """The guest runs it: an interrupted command came this far, or there is nothing to do."""
        record, booted = self._record, status.booted
        self._guest.drop_carried()
        known = (record.in_place[0].version, record.in_place[0].digest) if record.in_place else None
        now = known or (record.version, record.digest)
        if now == (version.ref, version.digest):
            events.note(f"{record.name} runs {version.ref} already")
            return Switched(record.path, version.ref, None)
        readiness.wait(self._host, self._running, self._lab.files)
        old = status.rollback.digest if status.rollback else ""
        self._note("switch", self._moved(version, booted, old), None)
        return Switched(record.path, version.ref, None)

    def _verified(self, source: Source, ref: Ref) -> Entry:
        booted = self._guest.status().booted
        if booted is None or not source.is_of(booted):
            raise PoclabError(
                f"{self._record.path} did not come back on {ref}",
                why=f"bootc says that it booted {booted.digest if booted else 'nothing'}",
                fix=f"see why there: poclab ssh {self._record.path} -- bootc status",
            )
        return booted

    def _moved(self, version: Version, booted: Entry | None, old: str) -> tuple[Deployment, ...]:
        """What the disk has when it boots a version in place of what it booted."""
        record = self._record
        before = record.in_place[0] if record.in_place else None
        before = before or Deployment(record.version, record.digest, "")
        new = Deployment(version.ref, version.digest, booted.digest if booted else "")
        return new, replace(before, image=old)

    # --- and back ------------------------------------------------------------------------------

    def rollback(self) -> Switched:
        """See `rollback` of the module."""
        current, old = self._both()
        self._guest.check_login()
        status = self._guest.status()
        self._guest.drop_carried()  # of a switch that was interrupted
        seconds = None
        if _is(status.booted, old) and not _is(status.booted, current):
            # An interrupted command came this far.
            readiness.wait(self._host, self._running, self._lab.files)
        else:
            seconds = self._back(status, old)
        self._note("rollback", (old, current), seconds)
        return Switched(self._record.path, old.version, seconds)

    def _both(self) -> tuple[Deployment, Deployment]:
        """What the disk boots, and what it booted before.

        Raises:
            PoclabError: it has one system only; a reset may have come first.
        """
        path, found = self._record.path, self._record.in_place
        if len(found) != 2:
            raise PoclabError(
                f"{path} was not switched in place since its disk was made",
                why=f"its disk was made from {self._record.version}",
                fix=f"see what was done to it: poclab history {path}",
            )
        return found[0], found[1]

    def _back(self, status: Status, old: Deployment) -> float:
        path = self._record.path
        if not _is(status.rollback, old):
            raise PoclabError(
                f"{path} cannot go back to {old.version} in place",
                why="bootc in it has another system to go back to, or none",
                fix=f"a clean disk of it: poclab reset {path} --to {old.version.tag}",
            )
        self._queue(status)
        seconds = self._reboot()
        if not _is(self._guest.status().booted, old):
            raise PoclabError(
                f"{path} did not come back on {old.version}",
                fix=f"see why there: poclab ssh {path} -- bootc status",
            )
        return seconds

    # --- what both do ----------------------------------------------------------------------------

    def _reboot(self) -> float:
        """Reboot the guest and wait until it is ready; returns the seconds that took."""
        record = self._running
        patience = record.ready.timeout if record.ready else _REBOOT
        before = self._guest.boot_id()
        self._guest.reboot()
        events.progress(f"{record.name}: rebooting", vm=record.name)
        deadline = probe.Deadline(patience)

        def up() -> bool:
            if not self._host.guest(record).active():
                raise PoclabError(
                    f"{record.path} went off in place of a reboot",
                    fix=f"`poclab up {record.lab}`, then the same command again",
                )
            return self._guest.boot_id() not in ("", before)

        try:
            probe.wait_until(up, patience, interval=0.5)
        except probe.TimedOut as error:
            raise PoclabError(
                f"{record.path} did not come back after {format_seconds(patience)}",
                why="no SSH after the reboot",
                fix=f"see its console log: {self._host.console_log(record)};"
                f" `poclab reset {record.path}` gives it a clean disk",
            ) from error
        readiness.wait(self._host, record, self._lab.files)
        return deadline.elapsed

    def _note(self, action: str, in_place: tuple[Deployment, ...], seconds: float | None) -> None:
        """Write down what the VM runs now, for its next start and for this one."""
        stamp = self._lab.stamp(key=False)
        now = in_place[0]
        line = HistoryEntry(stamp.time, action, now.version, now.digest, stamp.by)
        history = (*self._record.history, line)
        record = replace(self._record, in_place=in_place, history=history)
        record = record if seconds is None else became_ready(record, "cold", seconds)
        guest = self._host.guest(record)
        guest.set_record(record)
        guest.set_live_record(replace(self._running, in_place=in_place, history=record.history))
        how = "" if seconds is None else f", ready after {format_seconds(seconds)}"
        events.note(f"{record.name}: runs {now.version} in place{how}")


def _check_state(vm: ObservedVm) -> None:
    record = vm.record
    if vm.live is None or vm.state is not State.RUNNING:
        raise PoclabError(
            f"{record.path} does not run",
            why=f"it is {vm.state}",
            fix=f"`poclab up {record.lab}` has it run",
        )
    if vm.live.overlay != record.overlay:
        raise PoclabError(
            f"{record.path} runs on a disk it is to leave",
            why="a reset was interrupted",
            fix=f"finish it first: poclab reset {record.path}",
        )


def _check_image(version: Version) -> None:
    """See that this user's container storage has a version's image."""
    if not podman.exists(version.origin.inputs["image_id"]):
        raise PoclabError(
            f"the container image of {version.ref} is not in this user's storage",
            why=f"it was {version.origin.source}, and is carried in from there",
            fix=f"load it with podman, or: poclab reset VM --to {version.ref.tag}",
        )


def _is(entry: Entry | None, deployment: Deployment) -> bool:
    return entry is not None and entry.digest != "" and entry.digest == deployment.image
