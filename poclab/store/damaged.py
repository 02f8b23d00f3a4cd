"""Damaged records: what is on the host under poclab's names and cannot be understood.

None of it stops a command for the rest: listings leave it out and say so in one line, whatever
deletes takes for needed all that it might be about, and `poclab doctor` names each with what
helps. What was merely cut short as it was made is no damage but garbage; what a newer poclab wrote
is neither.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from poclab.core import events, hints
from poclab.core.plaintext import plain, shown
from poclab.model import volumes
from poclab.model.version_volumes import manifest_volume
from poclab.store.marks import Marks, mark_volume
from poclab.store.parked import ParkedDisks
from poclab.store.versions import Store
from poclab.store.warm_states import WarmStates
from poclab.virt.host import Host

_NAMED = 3  # in the one line of a listing


@dataclass(frozen=True)
class Damaged:
    """A record that cannot be understood.

    Attributes:
        name: what it is: a volume, or `domain NAME`, `network NAME`.
        why: what is wrong with it.
        fix: what to do.
    """

    name: str
    why: str
    fix: str

    def __str__(self) -> str:
        return f"{self.name}: {plain(self.why)}; {self.fix}"


def find(host: Host) -> list[Damaged]:
    """All that is damaged on a host."""
    parts = (domains, networks, versions, marks, warm_states, parked, moves)
    return [item for part in parts for item in part(host)]


def warn(host: Host, *parts: Callable[[Host], Iterable[Damaged]]) -> None:
    """Say in one line what a listing leaves out, if anything.

    Args:
        host: the host.
        parts: what of this module to look for.
    """
    say(item.name for part in parts for item in part(host))


def say(names: Iterable[str]) -> None:
    """Say in one line that things are damaged, if any are."""
    found = list(dict.fromkeys(names))
    if found:
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        named = ", ".join(found[:_NAMED])
        events.warning(f"damaged: {named}{more}; `poclab doctor` says what to do")


def domains(host: Host) -> Iterator[Damaged]:
    """Domains whose metadata is poclab's and cannot be understood."""
    ours = {vm.record.domain for vm in host.vms()}
    for name, why in host.damaged_domains.items():
        instead = _by_uuid(host, "list")
        again = hints.virsh("undefine", "--nvram", names=[name], uri=host.uri, otherwise=instead)
        fix = f"put its metadata back, or remove the domain: {again}"
        if name in ours:  # what runs says something else than what is defined
            fix = "shut it down and start it again: its next start writes that anew"
        yield Damaged(f"domain {_named(name)}", why, fix)


def domains_of(labs: Collection[str]) -> Callable[[Host], Iterator[Damaged]]:
    """`domains` of some labs, or of all when empty."""

    def found(host: Host) -> Iterator[Damaged]:
        for item in domains(host):
            lab = item.name.removeprefix("domain ").partition(".")[0]
            if not labs or lab in labs:
                yield item

    return found


def networks(host: Host) -> Iterator[Damaged]:
    """Networks whose metadata is poclab's and cannot be understood."""
    host.networks()
    for name, why in host.damaged_networks.items():
        instead = _by_uuid(host, "net-list")
        first, second = (
            hints.virsh(word, names=[name], uri=host.uri, otherwise=instead)
            for word in ("net-destroy", "net-undefine")
        )
        fix = f"remove it: {first}" + (f"; {second}" if second != first else "")
        yield Damaged(f"network {_named(name)}", why, fix)


def versions(host: Host) -> Iterator[Damaged]:
    """Manifests of versions that were not cut short."""
    store = Store(host.pool, host.uri)
    for item in store.manifests():
        if item.holds and not item.newer:
            fix = f"put it back from a backup, or remove it: {store.removal(item.ref)}"
            yield Damaged(manifest_volume(item.ref), item.fault, fix)


def marks(host: Host) -> Iterator[Damaged]:
    """Marks that cannot be read."""
    for item in Marks.of(host.pool).unreadable:
        if not item.newer:
            yield Damaged(mark_volume(item.lab, item.name), item.fault, item.error().fix)


def warm_states(host: Host) -> Iterator[Damaged]:
    """Warm states whose manifests were not cut short."""
    for item in WarmStates.of(host.pool).unread:
        if not item.newer:
            fix = f"poclab warm drop {item.path}"
            yield Damaged(str(item.name), item.fault, fix)


def parked(host: Host) -> Iterator[Damaged]:
    """Manifests of parked disks that hold something and do not tell what."""
    for item in ParkedDisks.of(host.pool).damaged(host.vms()):
        yield Damaged(item.manifest, item.fault, "`poclab gc` removes it and its disk")


def moves(host: Host) -> Iterator[Damaged]:
    """Markers of renames that name anything but the disk that is renamed."""
    for name, why in host.pool.damaged_moves().items():
        yield Damaged(name, why, f"remove it: {volumes.removal(name, host.uri)}")


def _named(name: str) -> str:
    """A name that poclab did not give, as it may be printed."""
    return name if hints.command(name) == name else shown(name)


def _by_uuid(host: Host, listing: str) -> str:
    found = hints.virsh(listing, "--all", "--uuid", "--name", names=[], uri=host.uri)
    return f"use its UUID in place of its name, from {found}"
