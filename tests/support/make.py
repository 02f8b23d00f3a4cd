"""Labs, records and observed VMs for tests, with everything optional but what a test is about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from poclab.model.history import Stamp
from poclab.model.host import Foreign, Observed, ObservedNetwork, ObservedVm, State
from poclab.model.lab import DataDisk, Lab, Mode, Network, Nic, Vm
from poclab.model.ownership import volumes
from poclab.model.record import HistoryEntry, NetworkRecord, NicRecord, VmRecord
from poclab.model.version import Origin, Profile, Ref, Version
from poclab.model.vm_volumes import data_volume, overlay_volume
from poclab.planning.plan import Plan, Verb, plan
from tests.support import b3sum

GIB = 1024**3
STAMP = Stamp("2026-01-02T03:04:05Z", "tester", "ssh-ed25519 AAAA lab")


def digest(ref: Ref) -> str:
    """A digest that differs from version to version."""
    return b3sum.digest(str(ref).encode())


def version(name: str = "shop:v1", **given: Any) -> Version:
    """A version as the store has it."""
    ref = Ref.parse(name)
    known: dict[str, Any] = {
        "ref": ref,
        "digest": digest(ref),
        "size": 1000,
        "virtual_size": 2 * GIB,
        "profile": Profile.LINUX,
        "origin": Origin("built", "localhost/shop", "sha256:" + "1" * 64, "direct"),
        "created": "2026-01-01T00:00:00Z",
    }
    return Version(**(known | given))


def versions(*names: str) -> dict[Ref, Version]:
    """Versions by name."""
    return {Ref.parse(name): version(name) for name in names}


class AnyVersion(dict[Ref, Version]):
    """A store that has whatever is asked for."""

    def __missing__(self, ref: Ref) -> Version:
        return version(str(ref))


def vm(name: str = "vm1", image: str = "shop:v1", **given: Any) -> Vm:
    """A VM as a lab file asks for it; networks by name."""
    nics = tuple(Nic(item) if isinstance(item, str) else item for item in given.pop("nics", ()))
    return Vm(name, Ref.parse(image), networks=nics, **given)


def network(name: str = "lan", cidr: str = "10.77.1.0/24", mode: Mode = Mode.NAT) -> Network:
    """A network as a lab file asks for it."""
    return Network(name, mode, IPv4Network(cidr))


def lab(*vms: Vm, networks: Iterable[Network] = (), name: str = "acme") -> Lab:
    """A lab as its file asks for it."""
    return Lab(name, networks=tuple(networks), vms=vms)


def nic(network: str = "lan", ip: str | None = "10.77.1.10/24", **given: Any) -> NicRecord:
    """A network card as recorded."""
    mac = given.pop("mac", "52:54:00:00:00:01")
    return NicRecord(network, mac, IPv4Interface(ip) if ip else None, **given)


def record(name: str = "vm1", lab: str = "acme", image: str = "shop:v1", **given: Any) -> VmRecord:
    """A VM as recorded on the host."""
    ref = Ref.parse(image)
    known: dict[str, Any] = {
        "lab": lab,
        "name": name,
        "wanted": ref,
        "version": ref,
        "digest": digest(ref),
        "overlay": overlay_volume(lab, name, "00000001"),
        "cpus": 2,
        "memory": 2 * GIB,
        "profile": Profile.LINUX,
        "fresh": False,
        "history": (HistoryEntry("2026-01-01T00:00:00Z", "create", ref, digest(ref), "tester"),),
    }
    return VmRecord(**(known | given))


def observed_vm(found: VmRecord, **given: Any) -> ObservedVm:
    """A VM as found on the host, running what it is defined as unless told otherwise."""
    known: dict[str, Any] = {
        "record": found,
        "uuid": str(uuid5(NAMESPACE_URL, found.domain)),
        "state": State.RUNNING,
        "live": found,
        "started": "2026-01-01T00:00:00Z",
    }
    return ObservedVm(**(known | given))


def off(found: VmRecord, state: State = State.SHUTOFF) -> ObservedVm:
    """A VM that does not run."""
    return observed_vm(found, state=state, live=None, started=None)


def observed(
    *vms: ObservedVm,
    session: bool = False,
    networks: Iterable[ObservedNetwork] = (),
    volumes: Iterable[str] | None = None,
    foreign: Foreign | None = None,
    port_free: Callable[[int], bool] = lambda _port: True,
) -> Observed:
    """A host; left out, its volumes are those its VMs stand on."""
    names = volumes_of(vms) if volumes is None else frozenset(volumes)
    found = foreign or Foreign()
    return Observed(session, vms, tuple(networks), names, found, port_free)


def volumes_of(vms: Iterable[ObservedVm]) -> frozenset[str]:
    """The volumes that VMs stand on, defined and running."""
    records = [each for item in vms for each in (item.record, item.running)]
    return frozenset(name for each in records for name in volumes(each))


def applied(found: Plan, before: Observed, mark: str = "00000002") -> Observed:
    """What the host shows when a plan was carried out, as `poclab.labs.up` carries it out."""
    there = {item.record.path: item for item in before.vms}
    for action in found.actions:
        path = f"{found.lab}/{action.target}"
        if action.verb is Verb.REMOVE:
            del there[path]
        elif action.record:
            there[path] = _applied_vm(action.verb, action.record, there.get(path), mark)
    vms = tuple(there.values())
    records = [item.record for item in vms]
    sizes = {data_volume(each, x): x.size for each in records for x in each.disks if x.keep}
    return replace(
        before,
        kept={**before.kept, **sizes},
        vms=vms,
        networks=tuple(_plugged(item, vms) for item in _applied_networks(found, before.networks)),
        volumes=before.volumes | volumes_of(vms),
    )


def _applied_vm(verb: Verb, wanted: VmRecord, found: ObservedVm | None, mark: str) -> ObservedVm:
    if not wanted.overlay:
        wanted = replace(wanted, overlay=overlay_volume(wanted.lab, wanted.name, mark))
    if verb in (Verb.RECORD, Verb.RESUME, Verb.RECONNECT):
        assert found
        return replace(found, record=wanted, state=State.RUNNING)
    live = wanted
    return observed_vm(replace(wanted, fresh=False), live=live)


def _applied_networks(
    found: Plan, before: tuple[ObservedNetwork, ...]
) -> tuple[ObservedNetwork, ...]:
    there: dict[tuple[str, str], ObservedNetwork] = {
        (item.record.lab, item.record.name): item for item in before
    }
    for action in found.actions:
        key = (found.lab, action.target)
        if action.verb is Verb.REMOVE_NETWORK:
            del there[key]
        elif action.verb is Verb.START_NETWORK:
            there[key] = replace(there[key], active=True)
        elif action.verb is Verb.RESERVE:
            there[key] = replace(there[key], reservations=action.hosts)
        elif action.network:
            there[key] = ObservedNetwork(action.network, active=True, reservations=action.hosts)
    return tuple(there.values())


def _plugged(network: ObservedNetwork, vms: Iterable[ObservedVm]) -> ObservedNetwork:
    """The network with the cards of the VMs that run on it."""
    records = [item.live for item in vms if item.live and item.live.lab == network.record.lab]
    cards = {nic.mac for each in records for nic in each.nics if nic.network == network.record.name}
    return replace(network, connected=frozenset(cards)) if network.active else network


def planned(wanted: Lab, host: Observed, store: Mapping[Ref, Version] | None = None) -> Plan:
    """Plan with a store that has whatever is asked for."""
    return plan(wanted, host, AnyVersion() if store is None else store, STAMP)


def brought_up(wanted: Lab, *, session: bool = False) -> Observed:
    """The host after the first `up` of a lab."""
    empty = observed(session=session)
    return applied(planned(wanted, empty), empty, mark="00000001")


def network_record(name: str = "lan", cidr: str = "10.77.1.0/24", **given: Any) -> NetworkRecord:
    """A network as recorded."""
    known: dict[str, Any] = {"lab": "acme", "mode": Mode.NAT}
    return NetworkRecord(name=name, cidr=IPv4Network(cidr), **(known | given))


def disk(name: str = "data", size: int = GIB, *, keep: bool = False) -> DataDisk:
    """A data disk."""
    return DataDisk(name, size, keep)


def address(text: str) -> IPv4Address:
    """An address."""
    return IPv4Address(text)
