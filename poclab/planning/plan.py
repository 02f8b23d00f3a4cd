"""From what is asked for and what is there to what is to be done, with reasons. Pure.

`plan` compares three things: the lab file, what the host shows, and what the file asked for
when it was last applied (kept in each record as `wanted`). The third is why a VM that was
reset to another version is left alone by `up`, while a changed image in the file is applied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from poclab.core.errors import Problems
from poclab.definitions.network import SESSION_NIC_LIMIT, reservations
from poclab.definitions.profiles import DISK_LIMIT
from poclab.model.history import Stamp, entry, remade
from poclab.model.host import Observed, ObservedNetwork, ObservedVm, State
from poclab.model.lab import Lab, Network, Vm
from poclab.model.ownership import lost
from poclab.model.record import HostEntry, NetworkRecord, NicRecord, VmRecord
from poclab.model.version import Ref, Version
from poclab.planning.addresses import assign
from poclab.planning.checks import borrowed, overwritten, returning, shrunk, thawed
from poclab.planning.differences import cold_because, differences, hardware, record_differences
from poclab.planning.ports import PortBook


class Verb(StrEnum):
    """What an action does."""

    REMOVE = "remove"
    MAKE_NETWORK = "make network"
    REMAKE_NETWORK = "remake network"
    START_NETWORK = "start network"
    RESERVE = "reserve addresses"
    CREATE = "create"
    RESET = "reset"
    CHANGE = "change"
    RECORD = "record"
    START = "start"
    RESUME = "resume"
    RECONNECT = "reconnect"
    REMOVE_NETWORK = "remove network"


@dataclass(frozen=True)
class Action:
    """One thing to do.

    Attributes:
        verb: what.
        target: the VM or network, by its name in the lab.
        reasons: why, each a few words.
        record: what the VM is to be.
        before: the VM as it was found.
        network: what the network is to be.
        hosts: the addresses to reserve on it.
        reboots: whether a running guest is shut down for it.
        discards: what is lost by it, in words, or an empty string.
        cut: the networks that a running VM is to be plugged into again.
    """

    verb: Verb
    target: str
    reasons: tuple[str, ...]
    record: VmRecord | None = None
    before: ObservedVm | None = None
    network: NetworkRecord | None = None
    hosts: tuple[HostEntry, ...] = ()
    reboots: bool = False
    discards: str = ""
    cut: tuple[str, ...] = ()

    def __str__(self) -> str:
        notes = ["reboots"] if self.reboots else []
        if self.discards:
            notes.append(f"discards {self.discards}")
        tail = f" [{', '.join(notes)}]" if notes else ""
        return f"{self.verb} {self.target}: {'; '.join(self.reasons)}{tail}"


@dataclass(frozen=True)
class Plan:
    """What is to be done for a lab, in order.

    Attributes:
        lab: the lab's name.
        actions: what to do; none means that all is as asked for.
        order: every VM of the lab with the VMs that must be ready before it.
        records: what every VM of the lab is to be.
        notes: lines for the user that are no actions.
    """

    lab: str
    actions: tuple[Action, ...]
    order: Mapping[str, tuple[str, ...]]
    records: Mapping[str, VmRecord]
    notes: tuple[str, ...] = ()

    def of(self, *verbs: Verb) -> list[Action]:
        """The actions with one of these verbs."""
        return [action for action in self.actions if action.verb in verbs]


def versions_needed(lab: Lab, observed: Observed) -> list[Ref]:
    """The versions that planning a lab will make disks of."""
    existing = observed.of(lab.name)
    needed: set[Ref] = set()
    for vm in lab.vms:
        found = existing.get(vm.name)
        if found is None or vm.image != found.record.wanted:
            needed.add(vm.image)
        elif lost(found.record, observed.volumes):
            needed.add(found.record.version)
    return sorted(needed)


def plan(lab: Lab, observed: Observed, versions: Mapping[Ref, Version], stamp: Stamp) -> Plan:
    """Work out what makes the host show what the lab file asks for.

    Args:
        lab: the lab as asked for.
        observed: what the host shows.
        versions: at least the ones `versions_needed` names.
        stamp: what goes into new records.

    Raises:
        UsageError: the file asks for what cannot be done (a smaller data disk, a taken port,
            the name of somebody else's domain).
    """
    existing = observed.of(lab.name)
    nics = assign(lab, {name: vm.record for name, vm in existing.items()})
    planner = _Planner(lab, observed, versions, stamp, existing, nics)
    problems = planner.problems()
    if problems:
        raise Problems(f"lab {lab.name} cannot be brought up as it is", problems)
    vm_actions = [action for vm in lab.vms if (action := planner.vm(vm))]
    actions = [
        *planner.removals(),
        *planner.networks(),
        *vm_actions,
        *planner.network_removals(),
    ]
    return Plan(
        lab.name,
        tuple(actions),
        {vm.name: vm.after for vm in lab.vms},
        planner.targets,
        tuple(planner.notes()),
    )


class _Planner:
    def __init__(
        self,
        lab: Lab,
        observed: Observed,
        versions: Mapping[Ref, Version],
        stamp: Stamp,
        existing: Mapping[str, ObservedVm],
        nics: Mapping[str, tuple[NicRecord, ...]],
    ) -> None:
        self.lab = lab
        self.observed = observed
        self.versions = versions
        self.stamp = stamp
        self.existing = existing
        self.ports = (
            PortBook(lab, observed.vms, existing, observed.port_free, observed.pool)
            if observed.session
            else None
        )
        self.targets = {vm.name: self._target(vm, nics[vm.name]) for vm in lab.vms}
        self.remade = {
            record.name
            for record in self._wanted_networks()
            if (found := self._network(record.name)) and found.record != record
        }

    # --- what cannot be done -------------------------------------------------------------

    def problems(self) -> list[str]:
        found: list[str] = []
        for vm in self.lab.vms:
            target = self.targets[vm.name]
            if target.domain in self.observed.foreign.domains:
                found.append(f"{vm.name}: a domain {target.domain} exists that is not poclab's")
            limit = DISK_LIMIT[target.profile]
            if len(target.disks) >= limit:
                found.append(
                    f"{vm.name}: profile {target.profile.value} has room for {limit - 1} data disks"
                )
            if self.observed.session and len(target.nics) > SESSION_NIC_LIMIT:
                found.append(
                    f"{vm.name}: qemu:///session has room for {SESSION_NIC_LIMIT} networks"
                )
            there = self.existing.get(vm.name)
            lines = [
                *shrunk(there, vm, new_disk=self._new_disk(target, there)),
                *thawed(there, vm, new_disk=self._new_disk(target, there)),
                *returning(target, there, self.observed.kept),
                *overwritten(there, vm, self.observed.volumes),
                *borrowed(target, self.observed.foreign.volumes, self.observed.uri),
            ]
            found += [f"{vm.name}: {line}" for line in lines]
        if not self.observed.session:
            names = (f"{self.lab.name}.{network.name}" for network in self.lab.networks)
            taken = [name for name in names if name in self.observed.foreign.networks]
            found += [f"a network {name} exists that is not poclab's" for name in taken]
        return found + (self.ports.problems if self.ports else [])

    def notes(self) -> Iterator[str]:
        if not self.observed.session:
            for vm in self.lab.vms:
                if vm.ports:
                    yield f"{vm.name}: ports are for qemu:///session; here it has its own address"
        for vm in self.lab.vms:
            if vm.warm and (why := cold_because(vm)):
                yield f"{vm.name}: no warm resets: {why}"

    # --- VMs -----------------------------------------------------------------------------

    def _target(self, vm: Vm, nics: tuple[NicRecord, ...]) -> VmRecord:
        """What the VM is to be; an existing one keeps its version, its overlay and its key."""
        found = self.existing.get(vm.name)
        before = found.record if found else None
        if before and vm.image == before.wanted:
            version, profile = before.version, before.profile
            digest, parents = before.digest, before.parents
            user = vm.user or before.user
        else:
            manifest = self.versions[vm.image]
            version, profile = vm.image, manifest.profile
            digest, parents = manifest.digest, manifest.parents
            user = vm.user or manifest.user
        return VmRecord(
            lab=self.lab.name,
            name=vm.name,
            wanted=vm.image,
            version=version,
            digest=digest,
            parents=parents,
            overlay=before.overlay if before else "",
            cpus=vm.cpus,
            memory=vm.memory,
            profile=profile,
            user=user,
            nics=nics,
            disks=vm.disks,
            disk_size=vm.disk_size,
            forwards=self.ports.of(vm) if self.ports else (),
            after=vm.after,
            ready=vm.ready,
            ssh_key=before.ssh_key if before else self.stamp.ssh_key,
            fresh=before.fresh if before else True,
            used=before.used if before else False,
            warm=vm.warm and not cold_because(vm),
            frozen=before.frozen if before else (),
            in_place=before.in_place if before else (),
            tpm=vm.tpm,
            history=before.history if before else (),
        )

    def _new_disk(self, target: VmRecord, found: ObservedVm | None) -> bool:
        """Whether the VM gets a new system disk."""
        if found is None or lost(found.record, self.observed.volumes):
            return True
        before = found.record
        return (target.version, target.digest) != (before.version, before.digest)

    def vm(self, vm: Vm) -> Action | None:
        target = self.targets[vm.name]
        found = self.existing.get(vm.name)
        if found is None:
            record = remade(target, "create", self.stamp)
            return Action(Verb.CREATE, vm.name, (f"not there yet, from {vm.image}",), record)
        before = found.record
        if lost(before, self.observed.volumes):
            return self._reset(target, found, "its system disk is missing", ())
        if self._new_disk(target, found):
            reason = f"image {before.wanted} -> {vm.image}"
            return self._reset(target, found, reason, ("its system disk",))
        reasons = differences(before, target)
        pending = found.live is not None and hardware(found.live) != hardware(before)
        if pending and not reasons:
            reasons = ["defined anew since it started"]
        stale = self.remade & {nic.network for nic in target.nics}
        reasons += [f"network {name} is remade" for name in sorted(stale)]
        if reasons:
            return self._change(target, found, tuple(reasons))
        return self._settle(target, found)

    def _reset(
        self, target: VmRecord, found: ObservedVm, reason: str, lost: tuple[str, ...]
    ) -> Action:
        kept = {disk.name for disk in target.disks if disk.keep}
        # A data disk without `keep` goes with the system disk.
        gone = [x.name for x in found.record.disks if not x.keep and x.name not in kept]
        record = remade(target, "reset", self.stamp)
        return Action(
            Verb.RESET,
            target.name,
            (reason,),
            record,
            before=found,
            reboots=found.active,
            discards=", ".join([*lost, *(f"data disk {name}" for name in gone)]),
        )

    def _change(self, target: VmRecord, found: ObservedVm, reasons: tuple[str, ...]) -> Action:
        wanted = {disk.name for disk in target.disks}
        gone = [x.name for x in found.record.disks if x.name not in wanted and not x.keep]
        record = replace(target, history=(*target.history, entry(target, "change", self.stamp)))
        return Action(
            Verb.CHANGE,
            target.name,
            reasons,
            record,
            before=found,
            reboots=found.active,
            discards=", ".join(f"data disk {name}" for name in gone),
        )

    def _settle(self, target: VmRecord, found: ObservedVm) -> Action | None:
        """The definition is right; see that it runs and that the record is up to date."""
        cut = self._cut(found)
        why = tuple(f"network {name} was stopped while it ran" for name in cut)
        if found.state in (State.PAUSED, State.IO_ERROR, State.SUSPENDED):
            reasons = (f"it is {found.state}", *why)
            return Action(Verb.RESUME, target.name, reasons, target, found, cut=cut)
        if not found.active:
            return Action(Verb.START, target.name, (f"it is {found.state}",), target, found)
        if cut:
            return Action(Verb.RECONNECT, target.name, why, target, found, cut=cut)
        if target != found.record:
            reasons = tuple(sorted(record_differences(found.record, target)))
            return Action(Verb.RECORD, target.name, reasons, target, found)
        return None

    def _cut(self, found: ObservedVm) -> tuple[str, ...]:
        """The networks of a running VM that its cards are not plugged into."""
        if self.observed.session or found.live is None:
            return ()
        there = {net.record.name: net.connected for net in self._present() if net.active}
        cards = ((nic.network, nic.mac) for nic in found.live.nics)
        return tuple(name for name, mac in cards if mac not in there.get(name, frozenset()))

    def removals(self) -> Iterator[Action]:
        for name, found in self.existing.items():
            if name not in self.targets:
                gone = [disk.name for disk in found.record.disks if not disk.keep]
                yield Action(
                    Verb.REMOVE,
                    name,
                    ("no longer in the lab file",),
                    before=found,
                    discards=", ".join(["its system disk", *(f"data disk {x}" for x in gone)]),
                )

    # --- networks ------------------------------------------------------------------------

    def _wanted_networks(self) -> list[NetworkRecord]:
        if self.observed.session:
            return []
        return [_network_record(self.lab.name, network) for network in self.lab.networks]

    def _network(self, name: str) -> ObservedNetwork | None:
        return next((net for net in self._present() if net.record.name == name), None)

    def _present(self) -> list[ObservedNetwork]:
        return [net for net in self.observed.networks if net.record.lab == self.lab.name]

    def networks(self) -> Iterator[Action]:
        for record in self._wanted_networks():
            hosts = tuple(reservations(record.name, self.targets.values()))
            found = self._network(record.name)
            name = record.name
            if found is None:
                reason = f"not there yet, {record.cidr}"
                yield Action(Verb.MAKE_NETWORK, name, (reason,), network=record, hosts=hosts)
            elif found.record != record:
                reasons = (
                    f"{found.record.mode} {found.record.cidr} -> {record.mode} {record.cidr}",
                )
                yield Action(Verb.REMAKE_NETWORK, name, reasons, network=record, hosts=hosts)
            else:
                if not found.active:
                    reason = "it is not active"
                    yield Action(Verb.START_NETWORK, name, (reason,), network=record, hosts=hosts)
                if set(hosts) != set(found.reservations):
                    reason = "VMs came, went or moved"
                    yield Action(Verb.RESERVE, name, (reason,), network=record, hosts=hosts)

    def network_removals(self) -> Iterator[Action]:
        wanted = {record.name for record in self._wanted_networks()}
        for found in self._present():
            if found.record.name not in wanted:
                reason = "no longer in the lab file"
                name = found.record.name
                yield Action(Verb.REMOVE_NETWORK, name, (reason,), network=found.record)


def _network_record(lab: str, network: Network) -> NetworkRecord:
    return NetworkRecord(lab, network.name, network.mode, network.cidr)
