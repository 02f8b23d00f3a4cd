"""Put a VM back on disks that it was taken off: what undoes a reset.

The order is that of a reset: the disks that the VM is on are parked, then the definition, then the
running guest ends, the start, and only then the replaced disks go. The parked disks' manifest goes
last of all: as long as it is there, the same command goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from poclab.core import events
from poclab.core.errors import PoclabError, UsageError
from poclab.core.plaintext import shown
from poclab.definitions.profiles import DISK_LIMIT
from poclab.labs import live_commit, recovery, start
from poclab.labs.lab_host import LabHost
from poclab.labs.parked import named
from poclab.labs.reset import Reset
from poclab.labs.selectors import find_vm
from poclab.model.history import Stamp, entry
from poclab.model.host import ObservedVm
from poclab.model.lab import DataDisk
from poclab.model.record import VmRecord
from poclab.model.version_volumes import bases, with_packed
from poclab.store.parked import Lifetime, Parked, ParkedDisks, has_run
from poclab.virt.host import Host


def restore(host: Host, text: str, *, keep_old: Lifetime = None, wait: bool = True) -> list[Reset]:
    """Put a VM back on parked disks.

    Args:
        host: the host.
        text: `VM`, `LAB/VM`, or one of these with `@TIME`; see `choose`.
        keep_old: how long the disks that it is on are kept.
        wait: wait until it is ready.

    Returns:
        How it ended, for the one VM.

    Raises:
        PoclabError: there is no such VM or parked disk, or it does not fit the VM any more.
    """
    name, _, time = text.partition("@")
    vm = _find(host, name)
    path = vm.record.path
    doing = f"poclab restore in {vm.record.lab}"
    with recovery.locked(host, vm.record.lab, doing, drops_disks=not keep_old) as lab:
        vm = find_vm(host.vms(), path)
        if keep_old:
            live_commit.refuse_foreign_disk(lab, vm)
        item = choose(ParkedDisks.of(host.pool, lab.lab), vm, time)
        _ = host.traits  # says, before anything is touched, that KVM is not to be had
        return [_Restoring(lab, vm, item, keep_old).run(wait=wait)]


def _find(host: Host, name: str) -> ObservedVm:
    """The VM; one that is not there, of which something is parked, has words of its own."""
    vms = host.vms()
    try:
        return find_vm(vms, name)
    except UsageError:
        raise
    except PoclabError:
        waiting = named(ParkedDisks.of(host.pool).kept(vms), name)
        if not waiting:
            raise
        lab = waiting[-1].record.lab
        raise PoclabError(
            f"{waiting[-1].record.path} is not there",
            why=f"a disk of it is parked ({waiting[-1].name}), and needs a VM to be put on",
            fix=f"`poclab up {lab}` makes the VM again; then the same command",
        ) from None


def choose(lot: ParkedDisks, vm: ObservedVm, time: str = "") -> Parked:
    """The parked disks that are meant. Pure.

    Args:
        lot: what is parked of the lab.
        vm: the VM.
        time: the beginning of their time; empty for the latest, or for those that an interrupted
            restore was putting the VM on.

    Raises:
        PoclabError: there are none.
        UsageError: there are several.
    """
    path = vm.record.path
    begun = [x for x in lot.items if x.record.overlay == vm.record.overlay]
    kept = [x for x in lot.kept([vm]) if x.record.path == path]
    found = [x for x in (*kept, *begun) if x.time.startswith(time)]
    if not time:
        found = begun or kept[-1:]
    if len(found) == 1:
        return found[0]
    there = ", ".join(x.time for x in kept) or "none"
    if found:
        raise UsageError(f"several disks of {path} were parked at {shown(time)}", why=there)
    at = f" of {shown(time)}" if time else ""
    raise PoclabError(
        f"no disk{at} of {path} is parked",
        why=f"there is {there}" if kept else "`reset --keep-old` parks one; plain `reset` does not",
        fix="`poclab parked ls` lists them",
    )


def returned(now: VmRecord, then: VmRecord, stamp: Stamp) -> VmRecord:
    """What a VM is to be on its parked disks. Pure.

    It is as its lab file has it now, on the disks of then. A data disk that the file no longer
    has comes back all the same, and disks keep the size they have.

    Args:
        now: the VM as it is.
        then: as it was.
        stamp: what goes into the record.

    Raises:
        PoclabError: the disks do not fit the VM.
    """
    passing = {disk.name: disk for disk in then.disks if not disk.keep}
    clash = [disk.name for disk in now.disks if disk.keep and disk.name in passing]
    if clash:
        raise PoclabError(
            f"{now.path} cannot be put back on that disk",
            why=f"data disk {clash[0]} was parked with it, and has keep: true now",
            fix="give the kept one another name in the lab file, and `poclab up` it first",
        )
    disks = (*_sized(now.disks, passing), *_gone(now.disks, passing))
    limit = DISK_LIMIT[then.profile]
    if len(disks) >= limit:
        raise PoclabError(
            f"{now.path} cannot be put back on that disk",
            why=f"with it the VM has {len(disks)} data disks, and profile"
            f" {then.profile.value} has room for {limit - 1}",
            fix="take some out of the lab file, and `poclab up` it first",
        )
    sizes = [size for size in (now.disk_size, then.disk_size) if size]
    record = replace(
        now,
        version=then.version,
        digest=then.digest,
        parents=then.parents,
        profile=then.profile,
        user=then.user,
        overlay=then.overlay,
        frozen=then.frozen,
        in_place=then.in_place,
        disks=disks,
        disk_size=max(sizes, default=None),
        fresh=True,
        used=True,
        ssh_key=stamp.ssh_key,
    )
    return replace(record, history=(*now.history, entry(record, "restore", stamp)))


def _sized(disks: Sequence[DataDisk], passing: dict[str, DataDisk]) -> Iterator[DataDisk]:
    for disk in disks:
        before = passing.get(disk.name, disk)
        yield replace(disk, size=max(disk.size, before.size))


def _gone(disks: Sequence[DataDisk], passing: dict[str, DataDisk]) -> Iterator[DataDisk]:
    names = {disk.name for disk in disks}
    return (disk for name, disk in passing.items() if name not in names)


class _Restoring:
    def __init__(self, lab: LabHost, vm: ObservedVm, item: Parked, keep: Lifetime) -> None:
        self._lab = lab
        self._host = lab.host
        self._vm = vm
        self._item = item
        self._keep = keep

    def run(self, *, wait: bool) -> Reset:
        with self._lab.store.reading():
            self._check()
            record = self._put()
        events.note(f"{record.name}: back on its disk of {self._item.time}")
        try:
            began = self._started(record)
            seconds = start.settle(self._lab, began, keep=False) if wait else 0.0
        except PoclabError as error:
            if not has_run(find_vm(self._host.vms(), record.path)):
                self._lab.tell_waiting([record.path])
                raise  # nothing is swept: the same command goes on
            self._finish()
            return Reset(record.path, record.version, error=error)
        self._finish()
        return Reset(record.path, record.version, seconds)

    def _check(self) -> None:
        """See that all is there, before anything is touched."""
        names = with_packed(self._host.pool.names())
        record = self._item.record
        lost = sorted(self._item.disks.union(bases(record)).difference(names))
        if lost:
            raise PoclabError(
                f"{self._item.name} is not whole", why=f"{lost[0]} is gone from the storage pool"
            )
        self._lab.bases_ready(record)

    @property
    def _on_it(self) -> bool:
        """Whether a guest runs on the disks already: a reset was cut short, or this command."""
        return self._vm.live is not None and self._vm.live.overlay == self._item.record.overlay

    def _put(self) -> VmRecord:
        """Have the VM defined on the parked disks, and no guest run on others."""
        vm, overlay = self._vm, self._item.record.overlay
        guest = self._host.guest(vm.record)
        if vm.record.overlay != overlay:
            record = returned(vm.record, self._item.record, self._lab.stamp())
            if not self._on_it:
                self._lab.change_over(record, vm, self._keep)
                return record
            # It never stopped.
            record = replace(record, fresh=False, ssh_key=vm.running.ssh_key)
            self._lab.define(record, vm.uuid)
            return record
        # This command was interrupted, or a reset before it took the VM off.
        if vm.active and not self._on_it:
            self._lab.leave(guest, vm, self._lab.park(vm, self._keep))
        return vm.record

    def _started(self, record: VmRecord) -> start.Started:
        if self._host.guest(record).active():
            return start.Started(record)
        if record.fresh:
            self._lab.renew_tpm(record)
        self._lab.fit_system_disk(record)
        self._lab.data_disks(record)
        return start.begin(self._lab, record, new=False)

    def _finish(self) -> None:
        self._lab.sweep()
        self._host.settle()
