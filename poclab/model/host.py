"""What is found on a host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from poclab.model.record import HostEntry, NetworkRecord, VmRecord


@dataclass(frozen=True)
class ObservedNetwork:
    """A lab network as found on the host.

    Attributes:
        record: what its metadata says.
        active: whether its bridge is there.
        reservations: the addresses it reserves.
        connected: the MAC addresses of the cards that are plugged into it.
    """

    record: NetworkRecord
    active: bool
    reservations: tuple[HostEntry, ...] = ()
    connected: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Foreign:
    """What is on the host and in no record of poclab's.

    Attributes:
        domains: names of domains that are not VMs of a lab: others', or no longer by their record.
        networks: names of networks that are no lab's.
        volumes: volumes of the pool that domains stand on though no record says so, with the
            name of such a domain.
    """

    domains: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()
    volumes: Mapping[str, str] = field(default_factory=dict)


class State(StrEnum):
    """A domain's state, in libvirt's words."""

    RUNNING = "running"
    PAUSED = "paused"
    SHUTOFF = "shut off"
    CRASHED = "crashed"
    SHUTDOWN = "in shutdown"
    SUSPENDED = "pmsuspended"
    IO_ERROR = "paused (I/O error)"


@dataclass(frozen=True)
class ObservedVm:
    """A VM as found on the host.

    Attributes:
        record: what its persistent definition says.
        uuid: the domain's UUID.
        state: its state.
        live: what the running domain's definition says, or None when it does not run.
        started: when poclab started the running domain, or None if it did not.
    """

    record: VmRecord
    uuid: str
    state: State
    live: VmRecord | None = None
    started: str | None = None

    @property
    def active(self) -> bool:
        """Whether a QEMU process runs for it."""
        return self.live is not None

    @property
    def running(self) -> VmRecord:
        """What it runs: the live record if it runs, else the defined one."""
        return self.live or self.record


@dataclass(frozen=True)
class Observed:
    """What the host shows.

    Attributes:
        session: qemu:///session or a system daemon.
        vms: all VMs of all labs.
        networks: all lab networks.
        volumes: the pool's volumes.
        foreign: names that are somebody else's.
        port_free: whether nothing listens on a port of 127.0.0.1.
        pool: the pool's directory.
        uri: the libvirt connection.
        kept: bytes that a guest sees of the kept data disks, by volume.
    """

    session: bool
    vms: tuple[ObservedVm, ...]
    networks: tuple[ObservedNetwork, ...]
    volumes: frozenset[str]
    foreign: Foreign = field(default_factory=Foreign)
    port_free: Callable[[int], bool] = lambda _port: True
    pool: str = ""
    uri: str = "qemu:///system"
    kept: Mapping[str, int] = field(default_factory=dict)

    def of(self, lab: str) -> dict[str, ObservedVm]:
        """The VMs of a lab, by name."""
        return {vm.record.name: vm for vm in self.vms if vm.record.lab == lab}
