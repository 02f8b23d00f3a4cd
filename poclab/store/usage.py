"""Who uses versions and volumes. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from poclab.model.host import Foreign, ObservedVm
from poclab.model.version import Version
from poclab.model.version_volumes import bases
from poclab.store.marks import Marks
from poclab.store.parked import Parked, ParkedDisks


def used_volumes(vms: Collection[ObservedVm], foreign: Foreign, lot: ParkedDisks) -> frozenset[str]:
    """The volumes that versions must not take along."""
    records = [record for vm in vms for record in (vm.record, vm.running)]
    below = {name for record in records for name in bases(record)}
    return frozenset({*below, *foreign.volumes, *lot.bases(vms)})


def users(
    version: Version, vms: list[ObservedVm], marks: Marks, parked: Iterable[Parked] = ()
) -> list[str]:
    """What uses a version: VMs as `LAB/VM`, marks as `LAB@MARK`, parked disks as `LAB/VM@TIME`."""
    return [
        *(vm.record.path for vm in standing_on(version, vms)),
        *(str(mark) for mark in marks.naming(version)),
        *(item.name for item in on_version(version, parked)),
    ]


def standing_on(version: Version, vms: list[ObservedVm]) -> list[ObservedVm]:
    """The VMs that stand on a version, by its name: defined or running."""
    return [
        vm
        for vm in vms
        if version.ref in (vm.record.version, vm.running.version)
        and version.digest in (vm.record.digest, vm.running.digest)
    ]


def on_version(version: Version, parked: Iterable[Parked]) -> list[Parked]:
    """The parked disks that stand on a version, by its name."""
    own = (version.ref, version.digest)
    return [item for item in parked if (item.record.version, item.record.digest) == own]
