"""Labs as their files ask for them: networks, VMs, disks.

Plain frozen dataclasses without behaviour of their own beyond spelling; sizes are bytes,
times RFC 3339 in UTC.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network

from poclab.model.version import Ref


class Mode(StrEnum):
    """How a lab network reaches the world."""

    NAT = "nat"
    ISOLATED = "isolated"


# --- the lab as asked for ---------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A network of a lab.

    Attributes:
        name: its name in the lab.
        mode: how it reaches the world.
        cidr: its addresses; the first usable one is the host's.
    """

    name: str
    mode: Mode
    cidr: IPv4Network


@dataclass(frozen=True)
class Nic:
    """A VM's place on a network, as asked for.

    Attributes:
        network: the network's name.
        ip: the address, or None to have one assigned.
        mac: the MAC address (lower case), or None to have one derived.
    """

    network: str
    ip: IPv4Address | None = None
    mac: str | None = None


@dataclass(frozen=True)
class DataDisk:
    """A disk beside the system disk; empty when new.

    Attributes:
        name: its name, also the serial number the guest sees.
        size: bytes.
        keep: whether `reset` and `down` leave it alone.
    """

    name: str
    size: int
    keep: bool = False


@dataclass(frozen=True)
class Ready:
    """When a VM counts as ready.

    Attributes:
        kind: "ssh" (a login works), "tcp" (the port answers) or "agent" (it is connected).
        port: the port for "tcp", else 0.
        timeout: seconds to wait.
    """

    kind: str
    port: int = 0
    timeout: int = 300


@dataclass(frozen=True, order=True)
class Forward:
    """A port on 127.0.0.1 of the host that leads to a port of the guest (qemu:///session).

    Attributes:
        host: the host's port.
        guest: the guest's port.
    """

    host: int
    guest: int


@dataclass(frozen=True)
class Vm:
    """A VM of a lab, as asked for, defaults filled in."""

    name: str
    image: Ref
    cpus: int = 2
    memory: int = 2 * 1024**3
    networks: tuple[Nic, ...] = ()
    disks: tuple[DataDisk, ...] = ()
    after: tuple[str, ...] = ()
    ready: Ready | None = None
    ports: tuple[Forward, ...] = ()
    user: str | None = None
    disk_size: int | None = None
    warm: bool = False
    tpm: bool = False


@dataclass(frozen=True)
class Lab:
    """A lab, as asked for."""

    name: str
    description: str = ""
    networks: tuple[Network, ...] = ()
    vms: tuple[Vm, ...] = ()


# --- versions ---------------------------------------------------------------------------


# --- what is recorded on the host -------------------------------------------------------
