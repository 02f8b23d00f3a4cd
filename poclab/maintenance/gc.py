"""Make room: remove what nobody reaches and, when asked to, old versions that nobody uses.

What is garbage, and how it goes, is as for every other command that clears up behind interrupted
ones: a lab's disks with the lab locked, bases with the store held alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby

from poclab.core import events, locks
from poclab.core.errors import PoclabError
from poclab.disks import extents
from poclab.images.lifecycle import collect
from poclab.labs import parked
from poclab.labs.lab_host import LabHost
from poclab.maintenance.orphans import Orphan, orphans
from poclab.model.ownership import volumes
from poclab.model.version import Ref, Version
from poclab.model.version_volumes import base_volume, bases, version_volumes
from poclab.model.volumes import find
from poclab.store import damaged
from poclab.store.marks import Marks
from poclab.store.parked import ParkedDisks
from poclab.store.usage import used_volumes
from poclab.store.versions import Store
from poclab.store.warm_states import WarmStates
from poclab.virt import allocation
from poclab.virt.host import Host

VERSION = "version"
PARKED = "parked disk"


@dataclass(frozen=True)
class CleanUp:
    """What is to be removed besides garbage.

    Attributes:
        keep: how many versions of each image stay in any case; None for all.
        precious: whether versions may go that cannot be built again.
    """

    keep: int | None = None
    precious: bool = False


@dataclass(frozen=True)
class Removal:
    """A line of `poclab gc`; the fields are the JSON's keys.

    Attributes:
        kind: "volume", "work directory", "parked disk" or "version".
        name: its name.
        frees: bytes on the disk that are free when it and all before it are gone.
        why: why it may go.
    """

    kind: str
    name: str
    frees: int
    why: str


def look(host: Host, request: CleanUp) -> list[Removal]:
    """What there is to remove, in the order in which it goes: garbage, parked disks, versions.

    What is left of a lab that another command is at does not count: it may be just being made.
    """
    store = Store(host.pool, host.uri)
    damaged.warn(host, damaged.find)
    with store.reading():
        waste = orphans(host)
        stale = parked.stale(host)
        labs = {*map(_lab, waste), *(item.lab for item in stale)} - {""}
        busy = {lab for lab in labs if not _idle(host, lab)}
        waste = [item for item in waste if _lab(item) not in busy]
        stale = [item for item in stale if item.lab not in busy]
        versions, old, used = _old(host, store, request)
        staying = used.union(*(version_volumes(item) for item in versions if item not in old))
        states = _fallen(host, old, staying)
        names = host.pool.names()
        lost = dict.fromkeys(item.name for item in waste)
        where = allocation.find(host.pool, dict.fromkeys([*names, *lost]))
    going = [
        *((item.kind, item.name, item.why, frozenset({item.name})) for item in waste),
        *((PARKED, item.name, item.why, item.volumes) for item in stale),
        *(
            (
                VERSION,
                str(item.ref),
                _why(item, len(states[item.ref])),
                version_volumes(item).union(*states[item.ref]).difference(lost),
            )
            for item in old
        ),
    ]
    parts = [part for *_, part in going]
    staying = staying.union(set(names).difference(*parts)).difference(lost)
    sizes = extents.freed([where.of(part) for part in parts], where.of(staying))
    return [
        Removal(kind, name, size, why)
        for (kind, name, why, _), size in zip(going, sizes, strict=True)
    ]


def _fallen(
    host: Host, old: Iterable[Version], staying: Collection[str]
) -> dict[Ref, list[frozenset[str]]]:
    """What of each warm state goes with versions that go, as it is of no use without them."""
    vms = host.vms()
    states = WarmStates.of(host.pool).kept(vms)
    below = {
        state.manifest: {base_volume(digest) for digest in (state.digest, *state.parents)}
        for state in states
    }
    lost = [state for state in states if not below[state.manifest] <= set(staying)]
    in_use = {name for vm in vms for record in (vm.record, vm.running) for name in volumes(record)}
    held = in_use.union(*(state.volumes for state in states if state not in lost))
    held |= ParkedDisks.of(host.pool).held(vms)
    return {
        item.ref: [x.volumes - held for x in lost if below[x.manifest].intersection(bases(item))]
        for item in old
    }


def _lab(item: Orphan) -> str:
    """The lab that something left over is of, or an empty string."""
    name = find(item.name) if item.kind == "volume" else None
    return name.lab if name else ""


def _idle(host: Host, lab: str) -> bool:
    """Whether no other command is at a lab."""
    with ExitStack() as stack:
        return _locked(stack, host, lab)


def _locked(stack: ExitStack, host: Host, lab: str) -> bool:
    """Hold a lab as long as the stack, if nobody else does."""
    try:
        stack.enter_context(locks.hold(lab, uri=host.uri, doing="poclab gc"))
    except PoclabError as error:
        events.note(f"what is left of {lab} stays for now: {error.why or error.what}")
        return False
    return True


def _why(version: Version, states: int) -> str:
    again = "can" if _rebuildable(version) else "cannot"
    text = f"old, and nobody uses it; {version.origin.kind}: {again} be built again"
    return f"{text}; warm states on it: {states}" if states else text


def remove(host: Host, request: CleanUp, shown: Iterable[Removal]) -> list[Removal]:
    """Remove what was shown and still may go.

    Killed at any moment, the next `gc` goes on: garbage is what is left of a version.

    Args:
        host: the host.
        request: what `look` was asked for.
        shown: what `look` found.

    Returns:
        What of it is gone.

    Raises:
        PoclabError: something cannot be deleted.
    """
    lines = list(shown)
    _expire(host, {item.name for item in lines if item.kind == PARKED})
    _clear(host)
    refs = {item.name for item in lines if item.kind == VERSION}
    store = Store(host.pool, host.uri)
    if refs:
        with store.changing():
            _, old, used = _old(host, store, request)  # somebody may use one by now
            for version in old:
                if str(version.ref) in refs:
                    store.remove(version.ref, used)
        _clear(host)
    host.settle()
    left = {str(item.ref) for item in store.versions()}
    left.update(item.name for item in ParkedDisks.of(host.pool).kept(host.vms()))
    left.update(host.pool.names(), host.pool.leftovers(), host.pool.moves().values())
    return [item for item in lines if item.name not in left]


def _expire(host: Host, names: Collection[str]) -> None:
    """Delete parked disks whose time is up, those of labs which somebody is at aside."""
    for lab in sorted({item.lab for item in parked.stale(host) if item.name in names}):
        with ExitStack() as stack:
            if _locked(stack, host, lab):
                parked.remove(LabHost(host, lab), names)


def _clear(host: Host) -> None:
    """Remove all garbage, that of labs which somebody is at aside.

    Bases first: what is left of a warm state counts as one as long as its base is there.
    """
    collect(host)
    for lab in sorted({_lab(item) for item in orphans(host)} - {""}):
        with ExitStack() as stack:
            if _locked(stack, host, lab):
                LabHost(host, lab).sweep()


# --- which versions -----------------------------------------------------------------------


def _old(
    host: Host, store: Store, request: CleanUp
) -> tuple[list[Version], list[Version], frozenset[str]]:
    """All versions, those of them that may go, and the volumes that are in use."""
    vms, versions = host.vms(), store.versions()
    used = used_volumes(vms, host.foreign(), ParkedDisks.of(host.pool))
    if request.keep is None:
        return versions, [], used
    if store.holds_all():
        events.warning(
            "no version is removed: some cannot be read: a newer poclab made them, or they are"
            " damaged (`poclab doctor` names those)"
        )
        return versions, [], used
    marks = Marks.of(host.pool)
    if marks.unreadable:
        error = marks.unreadable[0].error()
        events.warning(f"no version is removed: {error.what}: {error.why}; {error.fix}")
        return versions, [], used
    wanted = {record.wanted for vm in vms for record in (vm.record, vm.running)}
    wanted |= {item.ref for item in versions if any(marks.naming(item))}
    return versions, excess(versions, used, wanted, request.keep, precious=request.precious), used


def excess(
    versions: Iterable[Version],
    used: Collection[str],
    wanted: Collection[Ref],
    keep: int,
    *,
    precious: bool = False,
) -> list[Version]:
    """The versions that may go, in the order in which they go. Pure.

    Those stay that are among the newest of their image, protected, in use, or what a version
    that stays is layered on; several names of one disk count as one.

    Args:
        versions: all versions.
        used: volumes that domains stand on.
        wanted: versions that VMs were asked to be on, wherever they are now, or that marks name.
        keep: how many disks of each image stay in any case.
        precious: whether versions may go that cannot be built again.
    """
    known = sorted(versions, key=lambda item: (item.ref.image, item.created, item.ref))
    newest: set[tuple[str, str]] = set()
    for image, items in groupby(known, key=lambda item: item.ref.image):
        digests = list(dict.fromkeys(item.digest for item in reversed(list(items))))
        newest.update((image, digest) for digest in digests[:keep])
    going = {
        item.ref: item
        for item in known
        if (item.ref.image, item.digest) not in newest
        and not item.protected
        and bases(item)[0] not in used
        and item.ref not in wanted
        and (precious or _rebuildable(item))
    }
    while True:
        needed = {base for item in known if item.ref not in going for base in bases(item)}
        back = [ref for ref, item in going.items() if bases(item)[0] in needed]
        if not back:
            break
        for ref in back:
            del going[ref]
    return sorted(going.values(), key=lambda item: (not _rebuildable(item), item.created, item.ref))


def _rebuildable(version: Version) -> bool:
    return version.origin.kind == "built"
