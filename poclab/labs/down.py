"""Take a lab down: everything of it, nothing else. Works from what the host records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from poclab.core.errors import PoclabError
from poclab.core.scheduler import run_in_order
from poclab.labs import recovery
from poclab.labs.lab_host import LabHost
from poclab.labs.parked import forget
from poclab.model.names import check_name
from poclab.model.volumes import Kind, of_lab
from poclab.store import damaged
from poclab.store.parked import ParkedDisks
from poclab.virt.host import Host


@dataclass(frozen=True)
class Downfall:
    """What a lab leaves behind, or would take along.

    Attributes:
        lab: the lab's name.
        vms: its VMs.
        networks: its networks.
        kept: volumes of kept data disks.
        parked: parked disks, `LAB/VM@TIME`; they stay unless they are asked for.
    """

    lab: str
    vms: tuple[str, ...]
    networks: tuple[str, ...]
    kept: tuple[str, ...]
    parked: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing of the lab is there, kept data disks and parked disks aside."""
        return not self.vms and not self.networks


def down(
    host: Host,
    lab: str,
    *,
    volumes: bool = False,
    parked: bool = False,
    confirm: Callable[[Downfall], bool] = lambda _what: True,
) -> Downfall | None:
    """Remove a lab's VMs, disks and networks.

    Args:
        host: the host.
        lab: the lab's name.
        volumes: remove the kept data disks too.
        parked: remove the parked disks too.
        confirm: called with what is about to go.

    Returns:
        What was found, or None when the user said no.

    Raises:
        PoclabError: something could not be removed; the next `down` goes on from there.
    """
    check_name("lab", lab)
    with recovery.locked(host, lab, f"poclab down {lab}", drops_disks=True) as at:
        found = look(host, lab)
        damaged.warn(host, damaged.domains_of([lab]))  # these stay, with their disks
        if not found.empty or (volumes and found.kept) or (parked and found.parked):
            if not confirm(found):
                return None
            _remove(at, found, volumes)
        if parked:
            forget(at, [x for x in ParkedDisks.of(host.pool, lab).items if x.name in found.parked])
        at.sweep()
        if not ((found.kept and not volumes) or (found.parked and not parked)):
            at.files.remove()
        host.settle()
        return found


def look(host: Host, lab: str) -> Downfall:
    """What there is of a lab."""
    there = host.vms()
    vms = tuple(vm.record.name for vm in there if vm.record.lab == lab)
    networks = tuple(net.record.name for net in host.networks() if net.record.lab == lab)
    kept = tuple(map(str, of_lab(host.pool.names(), lab, Kind.DATA)))
    parked = tuple(x.name for x in ParkedDisks.of(host.pool, lab).kept(there) if x.lasting)
    return Downfall(lab, vms, networks, kept, parked)


def _remove(at: LabHost, found: Downfall, volumes: bool) -> None:
    records = {vm.record.name: vm.record for vm in at.host.vms() if vm.record.lab == found.lab}
    results = run_in_order(dict.fromkeys(records, ()), lambda name: at.remove(records[name]))
    failed = {name: error for name, error in results.items() if error is not None}
    if failed:
        name, error = next(iter(failed.items()))
        if not isinstance(error, PoclabError):
            raise error
        raise PoclabError(
            f"{found.lab}/{name} could not be removed",
            why=error.why or error.what,
            fix=f"run `poclab down {found.lab}` again: it goes on from here",
        )
    for network in found.networks:
        at.host.network(found.lab, network).remove()
    if volumes:
        for volume in found.kept:
            at.delete(volume, "delete data disk")
