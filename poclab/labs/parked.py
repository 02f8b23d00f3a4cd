"""Parked disks: what there is, and what of it goes: by name, or because its time is up."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from poclab.core import events, locks
from poclab.core.errors import PoclabError, UsageError
from poclab.core.plaintext import shown
from poclab.core.timestamps import now
from poclab.labs.lab_host import LabHost
from poclab.model.ownership import volumes
from poclab.store import damaged
from poclab.store.parked import Parked, ParkedDisks
from poclab.store.warm_states import WarmStates
from poclab.virt.host import Host


@dataclass(frozen=True)
class ParkedRow:
    """A line of `poclab parked ls`; the fields are the JSON's keys.

    Attributes:
        lab: the lab.
        vm: the VM.
        time: when it was taken off the disks.
        version: the version of the system disk.
        digest: that version's digest.
        size: bytes that the disks take, the version's aside.
        expires: from when on `gc` deletes them; `never`; or `start`, when the VM has run on the
            disk that took their place.
        by: who took it off.
    """

    lab: str
    vm: str
    time: str
    version: str
    digest: str
    size: int
    expires: str
    by: str


def rows(host: Host, names: Sequence[str] = ()) -> list[ParkedRow]:
    """What is parked.

    Args:
        host: the host.
        names: labs, or VMs as `VM` or `LAB/VM`; none for all.
    """
    vms = host.vms()
    lot = ParkedDisks.of(host.pool)
    damaged.say(item.manifest for item in lot.damaged(vms))
    kept = lot.kept(vms)
    found = kept if not names else [x for name in names for x in named(kept, name)]
    sizes = {name: host.pool.stat(name).allocated for x in found for name in x.disks & lot.names}
    return [
        ParkedRow(
            lab=item.record.lab,
            vm=item.record.name,
            time=item.time,
            version=str(item.record.version),
            digest=item.record.digest,
            size=sum(sizes.get(name, 0) for name in item.disks),
            expires=item.expires,
            by=item.by,
        )
        for item in sorted(dict.fromkeys(found), key=lambda x: (x.record.path, x.time))
    ]


def named(items: Iterable[Parked], name: str) -> list[Parked]:
    """What is parked of a lab or VM, by what a user calls it."""
    return [x for x in items if name in (x.record.lab, x.record.name, x.record.path)]


def meant(items: Iterable[Parked], text: str) -> Parked:
    """The one that `VM@TIME` or `LAB/VM@TIME` means; TIME may be cut short. Pure.

    Raises:
        UsageError: it names none, or several.
    """
    vm, at, time = text.partition("@")
    if not (at and time):
        raise UsageError(f"{shown(text)} names no parked disk", fix="write VM@TIME")
    own = [x for x in items if vm in (x.record.name, x.record.path)]
    found = [x for x in own if x.time.startswith(time)]
    if len(found) == 1:
        return found[0]
    there = ", ".join(x.name for x in found or own) or "none of that VM"
    if found:
        raise UsageError(f"{shown(text)} means several parked disks", why=there)
    raise PoclabError(
        f"there is no parked disk {shown(text)}", why=f"there is {there}", fix="poclab parked ls"
    )


def drop(host: Host, names: Iterable[str]) -> None:
    """Delete parked disks, by name.

    Raises:
        PoclabError: one is not there; then none is deleted.
    """
    kept = ParkedDisks.of(host.pool).kept(host.vms())
    found = [meant(kept, name) for name in dict.fromkeys(names)]
    for lab in sorted({item.record.lab for item in found}):
        with locks.hold(lab, uri=host.uri, doing=f"poclab parked drop in {lab}"):
            forget(LabHost(host, lab), [item for item in found if item.record.lab == lab])
    host.settle()


def forget(lab: LabHost, items: Iterable[Parked]) -> None:
    """Delete parked disks of a lab that is locked; a VM may have been put on one meanwhile.

    The manifest goes first: what is left of an interrupted deletion is garbage.
    """
    there = {item.manifest for item in ParkedDisks.of(lab.host.pool, lab.lab).kept(lab.host.vms())}
    for item in items:
        if item.manifest in there:
            events.step("delete", volume=item.manifest)
            lab.host.pool.delete(item.manifest)
    lab.sweep()


# --- what gc may delete ---------------------------------------------------------------------


@dataclass(frozen=True)
class Stale:
    """A parked disk that may go.

    Attributes:
        name: `LAB/VM@TIME`, or the manifest's volume where that does not tell.
        lab: the lab.
        why: why it may go.
        volumes: what goes with it.
    """

    name: str
    lab: str
    why: str
    volumes: frozenset[str]


def stale(host: Host) -> list[Stale]:
    """What may go, in the order in which it was parked."""
    vms, lot, at = host.vms(), ParkedDisks.of(host.pool), now()
    kept = lot.kept(vms)
    needed = {name for item in kept if not item.expired(at) for name in item.disks}
    needed.update(WarmStates.of(host.pool).held(vms), host.foreign().volumes)
    for vm in vms:
        needed |= volumes(vm.record) | volumes(vm.running)
    going = [
        Stale(
            item.name,
            item.record.lab,
            f"its time was up {item.expires}; parked by {item.by}",
            (item.disks | {item.manifest}) - needed,
        )
        for item in kept
        if item.expired(at)
    ]
    why = "it is damaged: what it holds cannot be restored"
    lost = lot.damaged(vms)
    return [*going, *(Stale(x.manifest, x.lab, why, frozenset({x.manifest})) for x in lost)]


def remove(lab: LabHost, names: Collection[str]) -> None:
    """Delete what of a locked lab was found to be stale and still is."""
    found = [item for item in stale(lab.host) if item.name in names and item.lab == lab.lab]
    lot = ParkedDisks.of(lab.host.pool, lab.lab)
    for item in found:
        if item.name in lot.names:  # a manifest that does not tell
            events.step("delete", volume=item.name)
            lab.host.pool.delete(item.name)
    named = {item.name for item in found}
    forget(lab, [item for item in lot.items if item.name in named])
