"""A lab on a host: what the use cases share.

`observe` reads everything the planner wants to know; the other functions are the few effects
on a VM that more than one use case has: its disks, its definition, its start, its clean-up.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from poclab.core import events, locks, paths
from poclab.core.errors import PoclabError
from poclab.core.timestamps import now
from poclab.definitions.domain import domain_spec, stand_in
from poclab.definitions.network import detour, detour_spec
from poclab.definitions.xml import DomainSpec, domain_xml, network_xml
from poclab.disks.pool_disks import is_blank
from poclab.guest import credentials, probe
from poclab.guest.ssh import LabFiles
from poclab.images import pack
from poclab.labs import chain
from poclab.model.history import Stamp
from poclab.model.host import Observed, ObservedVm
from poclab.model.ownership import garbage, volumes
from poclab.model.record import Frozen, VmRecord
from poclab.model.version_volumes import base_volume, bases
from poclab.model.vm_volumes import data_volume, next_mark, overlay_volume
from poclab.model.volumes import Kind, VolumeName, of_lab
from poclab.store import parked
from poclab.store.parked import Lifetime, Parked, ParkedDisks
from poclab.store.versions import Store
from poclab.store.warm_states import WarmStates
from poclab.virt.domain import Guest
from poclab.virt.host import Host
from poclab.virt.pool_local import LocalPool

# Seconds that a guest with data to keep gets to shut down before a reset or `down` ends it.
_PATIENCE = 30.0


class LabHost:
    """One lab on one host."""

    def __init__(self, host: Host, lab: str) -> None:
        self.host = host
        self.lab = lab
        self.store = Store(host.pool, host.uri)
        self.files = LabFiles(host.uri, lab)

    def stamp(self, *, key: bool = True) -> Stamp:
        """What goes into records made now; makes the lab's key on first use unless told not to."""
        return Stamp(now(), paths.user_name(), self.files.public_key() if key else "")

    def observe(self) -> Observed:
        """What the host shows, of all labs."""
        return observe(self.host, self.lab)

    def giving_ports(self) -> AbstractContextManager[None]:
        """Hold the list of ports: no other `up` gives one until the definitions name ours."""
        return locks.hold("ports", uri=self.host.uri, doing="poclab up", wait=120, kind="list of")

    # --- a VM's disks ----------------------------------------------------------------------

    def new_overlay(
        self, record: VmRecord, *, after: str = "", over: Sequence[Frozen] = ()
    ) -> VmRecord:
        """Make a system disk for the record's version; returns the record that names it.

        Args:
            record: what the VM is to be; see `bases_ready` first.
            after: the system disk whose data disks stay, or an empty string for new ones.
            over: the disks of a warm state that its disks are to lie over, or none.
        """
        base = base_volume(record.digest)
        mark = secrets.token_hex(4)
        mark = next_mark(after, mark) if after else mark
        made = self.marked(record, mark)
        if over:
            return self.overlays(made, over)
        size = max(self.host.pool.capacity(base), record.disk_size or 0)
        events.step("overlay", vm=record.name)
        self.host.pool.overlay(made.overlay, base, size)
        return made

    def marked(self, record: VmRecord, mark: str = "") -> VmRecord:
        """The record with a system disk to come, of a mark of its own."""
        mark = mark or secrets.token_hex(4)
        return replace(record, overlay=overlay_volume(self.lab, record.name, mark))

    def overlays(self, record: VmRecord, over: Sequence[Frozen]) -> VmRecord:
        """Make a record's disks over those of a warm state; returns the record that says so."""
        disks = {disk.name: data_volume(record, disk) for disk in record.disks}
        for item in over:
            below = () if item.disk else bases(record)
            self.check_chain(record, (item.volume, *below))
            events.step("overlay", vm=record.name, disk=item.disk)
            name = disks[item.disk] if item.disk else record.overlay
            self.host.pool.overlay(name, item.volume, self.host.pool.capacity(item.volume))
        return replace(record, frozen=tuple(over))

    def bases_ready(self, record: VmRecord) -> None:
        """See that the bases of a record's version can be used: not packed, and not cut short.

        Call it with the store held.

        Raises:
            PoclabError: one is damaged, or there is no room to unpack it.
        """
        pack.bring_back(self.host, self.store.get(record.version))
        self.check_sizes(record)

    def check_sizes(self, record: VmRecord) -> None:
        """See that no base was cut short: QEMU gives zeros for what is missing, or fails late.

        The size alone: the digest of gigabytes takes seconds, and a start should not.
        """
        versions = [self.store.get(record.version)]
        if record.parents:
            versions += self.store.versions()
        stored = {base_volume(version.digest): version.size for version in versions}
        for base in bases(record):
            size = self.host.pool.stat(base).size
            # A parent whose names were removed has no size to compare with.
            if size != stored.get(base, size):
                raise PoclabError(
                    f"the disk of {record.version} is damaged",
                    why=f"{base} has {size} bytes, and had {stored[base]} when it was stored",
                    fix="check the pool's file system, then build or import it again"
                    " with another tag",
                )

    def fit_system_disk(self, record: VmRecord) -> None:
        """See that the system disk is as large as recorded; the VM must be off."""
        pool = self.host.pool
        if record.disk_size and pool.capacity(record.overlay) < record.disk_size:
            self.check_chain(record, chain.system_chain(record))
            events.step("grow system disk", vm=record.name)
            pool.grow(record.overlay, record.disk_size)

    def data_disks(self, record: VmRecord, before: VmRecord | None = None) -> None:
        """See that the data disks are there, named and sized as recorded; the VM must be off."""
        pool = self.host.pool
        names = set(pool.names())
        old = {disk.name: data_volume(before, disk) for disk in before.disks} if before else {}
        for disk in record.disks:
            volume = data_volume(record, disk)
            previous = old.get(disk.name, "")
            same_disk = before is not None and before.overlay == record.overlay
            if previous != volume and previous in names and (same_disk or disk.keep):
                events.step("rename data disk", vm=record.name, disk=disk.name)
                pool.rename(previous, volume)
            elif volume not in names:
                events.step("data disk", vm=record.name, disk=disk.name)
                pool.blank(volume, disk.size)
                continue
            if pool.capacity(volume) < disk.size:
                below = (item.volume for item in record.frozen if item.disk == disk.name)
                self.check_chain(record, (volume, *below))
                events.step("grow data disk", vm=record.name, disk=disk.name)
                pool.grow(volume, disk.size)

    def check_chain(self, record: VmRecord, names: Sequence[str]) -> None:
        """Check that disks name each other as recorded, before a program opens them all.

        Where the pool is reached through libvirt alone nothing here opens them.

        Args:
            record: whose disks they are.
            names: the volumes, the top first.

        Raises:
            PoclabError: one names something else.
        """
        if isinstance(self.host.pool, LocalPool):
            chain.check(Path(self.host.pool.directory), names, record.path)

    def untouched(self, record: VmRecord) -> bool:
        """Whether nothing was ever written to a VM's disks, as far as can be seen; it is off."""
        pool = self.host.pool
        if not isinstance(pool, LocalPool):
            return False
        chains = (chain.system_chain(record), *chain.data_chains(record))
        for names in chains:
            self.check_chain(record, names)
        return all(is_blank(Path(pool.path(names[0]))) for names in chains)

    def sweep(self) -> None:
        """Delete system disks and passing data disks of this lab that no VM stands on."""
        vms = self.host.vms()
        foreign = self.host.foreign()
        self.host.pool.sweep()
        for old, new in self.host.pool.moves().items():
            if VolumeName.parse(old).lab == self.lab:  # nobody is at it: the lab is locked
                events.step("delete", volume=new)
                self.host.pool.undo(old)
        shelf, lot = (
            WarmStates.of(self.host.pool, self.lab),
            ParkedDisks.of(self.host.pool, self.lab),
        )
        held = shelf.held(vms) | lot.held(vms)
        found = garbage(self.lab, sorted(shelf.names), vms, foreign, held)
        for name in sorted(found, key=lambda name: lot.last(name, vms)):
            events.step("delete", volume=name)
            self.host.pool.delete(name)
        for vm in vms:
            if vm.record.lab == self.lab:
                self.files.forget(vm.record.name, keep=vm.record.overlay)

    # --- a VM's domain ---------------------------------------------------------------------

    def define(self, record: VmRecord, uuid: str | None = None) -> Guest:
        """Define a VM's domain, or define it anew; a running guest notices with its next start."""
        return self.host.define_guest(domain_xml(self.spec(record, uuid)), record.domain)

    def spec(self, record: VmRecord, uuid: str | None) -> DomainSpec:
        """A VM's domain."""
        return domain_spec(
            record,
            self.host.traits,
            uuid=uuid,
            bases=bases(record),
            path=self.host.pool.path,
            console_log=self.host.console_log(record),
            oem_strings=self._credentials(record),
        )

    def put_on_new_disk(
        self,
        record: VmRecord,
        before: ObservedVm | None,
        over: Sequence[Frozen] = (),
        keep: Lifetime = None,
    ) -> VmRecord:
        """Give a VM a new system disk of its record's version; it is off afterwards.

        The new disk comes first, then the old one is parked, then the definition, then the
        running guest ends; the old disk goes with `sweep`, after the new one has started.

        Args:
            record: what the VM is to be.
            before: the VM as it was found.
            over: the disks of a warm state that its disks are to lie over, or none.
            keep: how long the old disk is kept.

        Returns:
            The record, which now names the new disk.
        """
        record = self.new_overlay(record, over=over)
        self.change_over(record, before, keep)
        if before:
            self.renew_tpm(record)
        self.data_disks(record, before.record if before else None)
        return record

    def change_over(self, record: VmRecord, before: ObservedVm | None, keep: Lifetime) -> None:
        """Park the disks that a VM is on, define it on others that are there, end its guest.

        Args:
            record: what the VM is to be.
            before: the VM as it was found.
            keep: how long the old disks are kept.
        """
        left = self.park(before, keep) if before else None
        guest = self.define(record, before.uuid if before else None)
        if before:
            self.leave(guest, before, left)

    def park(self, vm: ObservedVm, keep: Lifetime) -> Parked | None:
        """Keep the disks that a VM is to be taken off; see `parked.park`."""
        lot = ParkedDisks.of(self.host.pool, self.lab)
        return parked.park(self.host.pool, lot, vm, paths.user_name(), keep)

    def leave(self, guest: Guest, before: ObservedVm, left: Parked | None) -> None:
        """End a guest whose disks it is taken off.

        Args:
            guest: its domain.
            before: the VM as it was found.
            left: what of these disks is parked.
        """
        asked = left is not None and left.lasting
        ran, saved = guest.active(), guest.saved()
        clean = self._end(guest, before.record, gently=asked)
        if left and asked:
            how = ", as after a power cut" if saved or (ran and not clean) else ""
            until = "" if left.expires == parked.NEVER else f" until {left.expires}"
            back = f"poclab restore {left.name}"
            events.note(f"{before.record.name}: its old disk is kept{until}{how}: {back}")

    def tell_waiting(self, failed: Collection[str]) -> None:
        """Say which VMs that did not start can go back to the disk they were on.

        Args:
            failed: these VMs, as `LAB/VM`.
        """
        vms = self.host.vms() if failed else []
        for item in ParkedDisks.of(self.host.pool, self.lab).kept(vms):
            path = item.record.path
            if path in failed and not item.lasting:
                events.note(f"{path}: its old disk is still there: poclab restore {item.name}")

    def renew_tpm(self, record: VmRecord) -> None:
        """Give a VM that is off a TPM that nothing was ever stored in, if it has one.

        libvirt keeps the state of a TPM as long as its domain is defined, and has no other way to
        part with it: the domain goes for a moment. Another one stands in for it meanwhile.
        """
        if not record.tpm:
            return
        guest = self.host.guest(record)
        uuid, autostart = guest.uuid, guest.autostart
        spec = stand_in(self.spec(record, uuid))
        beside = self.host.define_guest(domain_xml(spec), spec.name)
        guest.remove()
        again = self.define(record, uuid)
        if autostart:
            again.set_autostart(True)
        beside.remove()

    def remove(self, record: VmRecord) -> None:
        """Remove a VM and its disks, kept data disks aside; the domain goes last.

        As long as the domain is there its record says what belongs to the VM, so a removal
        that was interrupted is finished by the next one.
        """
        guest = self.host.guest(record)
        self._end(guest, record)
        for volume in sorted(volumes(record)):
            if VolumeName.parse(volume).kind is not Kind.DATA:
                self.delete(volume)
        guest.remove()
        self.files.forget(record.name)
        self.host.drop_console_log(record)

    def delete(self, volume: str, step: str = "delete") -> None:
        """Delete a volume of the lab's, unless a domain that is not the lab's stands on it.

        Args:
            volume: the volume.
            step: what the step is called.
        """
        if volume in self._parked:
            return  # a disk that is parked lies over it
        user = self._elsewhere.get(volume)
        if user:
            events.warning(f"{volume} stays: domain {user} stands on it")
            return
        events.step(step, volume=volume)
        self.host.pool.delete(volume)

    @cached_property
    def _elsewhere(self) -> Mapping[str, str]:
        """The volumes that domains stand on which are no VMs by their record."""
        return self.host.foreign().volumes

    @cached_property
    def _parked(self) -> frozenset[str]:
        """The volumes of this lab that are parked."""
        return ParkedDisks.of(self.host.pool, self.lab).held(self.host.vms())

    def _end(self, guest: Guest, record: VmRecord, *, gently: bool = False) -> bool:
        """End a guest whose system disk goes; one with a disk to keep may write it out first.

        Args:
            guest: its domain.
            record: what it is.
            gently: its system disk is kept.

        Returns:
            Whether it shut down by itself.
        """
        if gently or any(disk.keep for disk in record.disks):
            return guest.shut_down(_PATIENCE)
        guest.power_off()
        return False

    def _credentials(self, record: VmRecord) -> tuple[str, ...]:
        # A session's segments have no DHCP server: the guest is told its addresses.
        cards = record.nics if self.host.session else ()
        static = [(nic.mac, str(nic.ip)) for nic in cards if nic.ip]
        return credentials.oem_strings(record.name, record.user, record.ssh_key, static)

    def reconnect(self, record: VmRecord, networks: Iterable[str]) -> None:
        """Plug a running VM into networks that were stopped while it ran.

        libvirt plugs a running guest's card into a bridge only when that is another one than
        before, so the card takes a detour over a bridge that is made for it.
        """
        for nic in record.nics:
            if nic.network not in networks:
                continue
            network = self.host.network(self.lab, nic.network)
            beside = detour(network.record)
            self.remove_network(beside.name)  # of a command that was interrupted
            made = self.host.define_network(network_xml(detour_spec(beside)), beside)
            try:
                guest = self.host.guest(record)
                guest.plug(nic.mac, beside.libvirt_name)
                guest.plug(nic.mac, network.record.libvirt_name)
            finally:
                made.remove()

    def remove_network(self, name: str) -> None:
        """Remove one of the lab's networks; gone already is fine."""
        for found in self.host.networks():
            if (found.record.lab, found.record.name) == (self.lab, name):
                found.remove()

    def start(self, record: VmRecord) -> None:
        """Boot a VM; its next start keeps the state of its firmware."""
        self.start_networks(record)
        self.host.guest(record).start(fresh=record.fresh, started=now())
        if record.fresh:
            self.host.guest(record).set_record(replace(record, fresh=False))

    def start_networks(self, record: VmRecord) -> None:
        """See that the networks are up that a VM is to be plugged into."""
        for nic in record.nics if not self.host.session else ():
            network = self.host.network(self.lab, nic.network)
            if not network.active:
                network.start()

    def has_run(self, record: VmRecord) -> None:
        """Write down that a guest runs on its disks from now on."""
        record = replace(record, fresh=False)
        guest = self.host.guest(record)
        guest.set_record(record)
        guest.note_start(record, now())


def observe(host: Host, lab: str) -> Observed:
    """What the host shows, of all labs; sizes of kept data disks of one."""
    names = frozenset(host.pool.names())
    kept: dict[str, int] = {}
    for name in map(str, of_lab(names, lab, Kind.DATA)):
        with contextlib.suppress(PoclabError):  # damaged: QEMU has better words for it
            kept[name] = host.pool.capacity(name)
    return Observed(
        session=host.session,
        vms=tuple(host.vms()),
        networks=tuple(network.observe() for network in host.networks()),
        volumes=names,
        foreign=host.foreign(),
        port_free=probe.port_free,
        pool=host.pool.directory,
        uri=host.uri,
        kept=kept,
    )
