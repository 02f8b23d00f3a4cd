"""Versions from the user's side: remove, tag, and clear what interrupted commands left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.images.protection import refuse_protected
from poclab.model.host import Foreign, ObservedVm
from poclab.model.version import Ref, Version
from poclab.model.version_volumes import base_volume, bases
from poclab.store.marks import Marks
from poclab.store.parked import Parked, ParkedDisks
from poclab.store.usage import on_version, standing_on, used_volumes
from poclab.store.versions import Store
from poclab.virt.host import Host


def remove(host: Host, refs: Sequence[Ref]) -> None:
    """Remove versions that no VM stands on; all of them, or none when one is to stay.

    Raises:
        PoclabError: one of them is not there, it is protected, VMs stand on it or a mark names it.
    """
    store = Store(host.pool, host.uri)
    with store.changing():
        _collect(host, store)  # what a removal that was interrupted left goes, whatever follows
        versions = [store.get(ref) for ref in refs]
        vms, foreign, lot = host.vms(), host.foreign(), ParkedDisks.of(host.pool)
        stay = [other for other in store.versions() if other.ref not in refs]
        marks = Marks.of(host.pool)
        for version in versions:
            _refuse_needed(version, vms, foreign, stay)
            _refuse_marked(version, marks)
            _refuse_parked(version, lot.kept(vms))
        for ref in refs:
            store.remove(ref, used_volumes(vms, foreign, lot))
            events.note(f"{ref} is removed")
        _collect(host, store)  # what they were layered on and nothing else is
    host.settle()


def _refuse_needed(
    version: Version, vms: list[ObservedVm], foreign: Foreign, stay: list[Version]
) -> None:
    """See that a version may be removed; `stay` are the versions that will be there then."""
    refuse_protected(version)
    used = [vm.record.path for vm in standing_on(version, vms)]
    if used:
        raise PoclabError(
            f"{version.ref} is in use",
            why=f"{', '.join(used)} {'stands' if len(used) == 1 else 'stand'} on it",
            fix=f"reset to another version first: poclab reset {used[0]} --to TAG",
        )
    base = base_volume(version.digest)
    domain = foreign.volumes.get(base)
    if domain and not any(base in bases(other) for other in stay):
        raise PoclabError(
            f"{version.ref} is in use",
            why=f"domain {domain} stands on it",
            fix="remove that domain first, or, if it was renamed, give it its name back",
        )


def _refuse_marked(version: Version, marks: Marks) -> None:
    """See that no mark names a version; one that cannot be read may."""
    if marks.unreadable:
        raise marks.unreadable[0].error()
    for mark in marks.naming(version):
        raise PoclabError(
            f"{version.ref} is in use",
            why=f"the mark {mark.name} of {mark.lab} names it",
            fix=f"if nobody goes back to it: poclab unmark {mark.lab} {mark.name}",
        )


def _refuse_parked(version: Version, parked: Iterable[Parked]) -> None:
    found = [item.name for item in on_version(version, parked)]
    if found:
        raise PoclabError(
            f"{version.ref} is in use",
            why=f"the parked disk{'s' if len(found) > 1 else ''} of {', '.join(found)}"
            f" {'stand' if len(found) > 1 else 'stands'} on it",
            fix=f"poclab parked drop {found[0]}",
        )


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
    found = store.garbage(used_volumes(host.vms(), host.foreign(), ParkedDisks.of(host.pool)))
    for name in found:
        events.step("delete", volume=name)
        host.pool.delete(name)
    return found
