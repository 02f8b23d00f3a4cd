"""Versions from the user's side: remove, tag, and clear what interrupted commands left."""

from __future__ import annotations

from dataclasses import dataclass

from poclab import events
from poclab.errors import PoclabError
from poclab.model import Ref, Version
from poclab.records import garbage
from poclab.status import users
from poclab.store import Store
from poclab.virt.host import Host


def remove(host: Host, ref: Ref) -> bool:
    """Remove a version that no VM stands on.

    Returns:
        Whether disk space was freed; not when another version has the same disk.

    Raises:
        PoclabError: there is none, or VMs stand on it.
    """
    store = Store(host.pool, host.uri)
    with store.changing():
        _collect(host, store)  # what a removal that was interrupted left goes, whatever follows
        version = store.get(ref)
        used = [vm.record.path for vm in users(version, host.vms())]
        if used:
            raise PoclabError(
                f"{ref} is in use",
                why=f"{', '.join(used)} {'stands' if len(used) == 1 else 'stand'} on it",
                fix=f"reset to another version first: poclab reset {used[0]} --to TAG",
            )
        freed = store.remove(ref, _digests(host))
    host.settle()
    return freed


def tag(host: Host, source: Ref, target: Ref) -> Version:
    """Give a version a second name; the disk is shared.

    Raises:
        PoclabError: there is no such version, or the name is another version's.
    """
    version = Store(host.pool, host.uri).tag(source, target)
    host.settle()
    return version


def collect(host: Host) -> list[str]:
    """Delete volumes that an interrupted build, import or removal left."""
    store = Store(host.pool, host.uri)
    with store.changing():
        host.pool.sweep()
        return _collect(host, store)


def _collect(host: Host, store: Store) -> list[str]:
    found = store.garbage(_digests(host))
    for name in found:
        events.step("delete", volume=name)
        host.pool.delete(name)
    return found


def _digests(host: Host) -> frozenset[str]:
    vms = host.vms()
    return frozenset(digest for vm in vms for digest in (vm.record.digest, vm.running.digest))


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
    foreign = host.foreign().domains
    labs = {name.split(".")[1] for name in names if name.startswith(("overlay.", "scratch."))}
    disks = [volume for lab in sorted(labs) for volume in garbage(lab, names, vms, foreign)]
    store = Store(host.pool, host.uri)
    return [
        *(Orphan("volume", name, "no VM stands on it") for name in disks),
        *(Orphan("volume", name, "no version has it") for name in store.garbage(_digests(host))),
        *(Orphan("work directory", name, "its command is gone") for name in host.pool.leftovers()),
    ]
