"""What is on the host under poclab's names and belongs to nothing."""

from __future__ import annotations

from dataclasses import dataclass

from poclab.model.ownership import garbage
from poclab.model.volumes import PASSING, known
from poclab.store.parked import ParkedDisks
from poclab.store.usage import used_volumes
from poclab.store.versions import Store
from poclab.store.warm_states import WarmStates
from poclab.virt.host import Host


@dataclass(frozen=True)
class Orphan:
    """Something that no lab and no version owns.

    Attributes:
        kind: "volume" or "work directory".
        name: its name.
        why: why nobody owns it.
    """

    kind: str
    name: str
    why: str


def orphans(host: Host) -> list[Orphan]:
    """All that interrupted commands left; after a rerun of the command there is nothing."""
    vms = host.vms()
    names = host.pool.names()
    foreign = host.foreign()
    labs = {name.lab for name in known(names, *PASSING)}
    lot = ParkedDisks.of(host.pool)
    held = WarmStates.of(host.pool).held(vms) | lot.held(vms)
    disks = [volume for lab in sorted(labs) for volume in garbage(lab, names, vms, foreign, held)]
    store = Store(host.pool, host.uri)
    bases_ = store.garbage(used_volumes(vms, foreign, lot))
    return [
        *(Orphan("volume", name, "no VM uses it") for name in disks),
        *(Orphan("volume", name, "no version has it") for name in bases_),
        *(Orphan("volume", new, "a rename was cut short") for new in host.pool.moves().values()),
        *(Orphan("work directory", name, "its command is gone") for name in host.pool.leftovers()),
    ]
