"""What poclab talks about: labs as asked for, versions, and VMs as recorded on the host.

Plain frozen dataclasses without behaviour of their own beyond spelling; sizes are bytes,
times RFC 3339 in UTC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from poclab.errors import UsageError
from poclab.names import check_name, check_tag, shown


@dataclass(frozen=True, order=True)
class Ref:
    """A version's name: `shop:v2`."""

    image: str
    tag: str

    def __str__(self) -> str:
        return f"{self.image}:{self.tag}"

    @classmethod
    def parse(cls, text: str) -> Ref:
        """Read `IMAGE:TAG`.

        Raises:
            UsageError: a part is missing or is no name.
        """
        image, colon, tag = text.partition(":")
        if not colon:
            raise UsageError(f"{shown(text)} names no tag", fix=f"write {shown(text + ':TAG')}")
        return cls(check_name("image", image), check_tag(tag))


class Profile(StrEnum):
    """Which devices a guest can drive."""

    LINUX = "linux"
    WINDOWS = "windows"
    LEGACY = "legacy"


class Mode(StrEnum):
    """How a lab network reaches the world."""

    NAT = "nat"
    ISOLATED = "isolated"


class Transport(StrEnum):
    """How a guest gets a container image; bootc's words."""

    OCI = "oci"
    REGISTRY = "registry"


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


@dataclass(frozen=True)
class Origin:
    """Where a version comes from.

    Attributes:
        kind: "built" (from a container image, can be built again), "imported" or "committed"
            (precious).
        source: the container image's name, the imported file's, or the VM as `LAB/VM`.
        digest: the container image's digest, or the imported file's: `ALGORITHM:HEX`.
        builder: the disk builder's name for a built one.
        inputs: what else went in (builder version, rootfs, size, kernel arguments ...).
    """

    kind: str
    source: str
    digest: str = ""
    builder: str = ""
    inputs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Version:
    """A version of an image, as its manifest says.

    Attributes:
        ref: its name.
        digest: that of the base disk's file, `blake3:HEX`.
        size: bytes of the base disk's file.
        virtual_size: bytes the guest sees.
        profile: which devices the guest can drive.
        origin: where it comes from.
        created: when it was published.
        user: the user to log in as over SSH.
        labels: free text by key.
        parents: digests of the bases it is layered on, nearest first; none when it stands alone.
        protected: whether it must not be removed.
    """

    ref: Ref
    digest: str
    size: int
    virtual_size: int
    profile: Profile
    origin: Origin
    created: str
    user: str = "root"
    labels: dict[str, str] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    protected: bool = False


# --- what is recorded on the host -------------------------------------------------------


@dataclass(frozen=True)
class NicRecord:
    """A VM's place on a network, as defined."""

    network: str
    mac: str
    ip: IPv4Interface | None
    mode: Mode = Mode.NAT


@dataclass(frozen=True)
class Frozen:
    """A disk as it was when a VM's memory was kept; the VM's own disk lies over it.

    Attributes:
        disk: the data disk's name, or an empty string for the system disk.
        volume: its volume.
    """

    disk: str
    volume: str


@dataclass(frozen=True)
class HistoryEntry:
    """One thing that was done to a VM.

    Attributes:
        time: when.
        action: "create", "reset", "change" ...
        version: the version it ran from then on.
        digest: that version's digest.
        by: who did it.
        start: "warm" or "cold", how it then became ready; empty where that was not waited for.
        seconds: how long that took.
    """

    time: str
    action: str
    version: Ref
    digest: str
    by: str
    start: str = ""
    seconds: float | None = None


@dataclass(frozen=True)
class Deployment:
    """An operating system on a VM's disk that bootc can boot.

    Attributes:
        version: the version whose container image it is.
        digest: the digest of that version's base disk.
        image: the digest of the container image, as the guest's bootc says it, or empty.
    """

    version: Ref
    digest: str
    image: str


@dataclass(frozen=True)
class VmRecord:
    """All that poclab knows of a VM; kept as metadata in its domain.

    Attributes:
        lab: the lab's name.
        name: the VM's name.
        wanted: the version the lab file asked for when it was last applied.
        version: the version the system disk was made from (`reset --to` moves it).
        digest: the digest of that version's base disk.
        parents: digests of the bases below that one, nearest first.
        overlay: the volume of the system disk.
        cpus: virtual CPUs.
        memory: bytes.
        profile: which devices the guest gets.
        user: the user to log in as over SSH.
        nics: the places on lab networks.
        disks: the data disks.
        disk_size: bytes of the system disk, or None for the version's own size.
        forwards: ports forwarded from 127.0.0.1 (qemu:///session only).
        after: VMs that must be ready first.
        ready: when it counts as ready.
        ssh_key: the lab's public key, one line, or an empty string.
        fresh: whether the firmware variables must be made anew at the next start.
        used: whether its system disk had run before it was put on it (`poclab restore`): no
            memory is kept of it or brought back onto it.
        warm: whether its memory is to be kept for warm resets.
        frozen: disks of a warm state that its own disks lie over.
        in_place: when it was switched in place: what it boots, and what it booted before.
        tpm: whether it has a TPM; a reset gives it a new one.
        history: what was done to it, oldest first.
    """

    lab: str
    name: str
    wanted: Ref
    version: Ref
    digest: str
    overlay: str
    cpus: int
    memory: int
    profile: Profile
    user: str = "root"
    nics: tuple[NicRecord, ...] = ()
    disks: tuple[DataDisk, ...] = ()
    disk_size: int | None = None
    forwards: tuple[Forward, ...] = ()
    after: tuple[str, ...] = ()
    ready: Ready | None = None
    ssh_key: str = ""
    fresh: bool = True
    used: bool = False
    parents: tuple[str, ...] = ()
    warm: bool = False
    frozen: tuple[Frozen, ...] = ()
    in_place: tuple[Deployment, ...] = ()
    tpm: bool = False
    history: tuple[HistoryEntry, ...] = ()

    @property
    def domain(self) -> str:
        """The domain's name: `LAB.VM`."""
        return f"{self.lab}.{self.name}"

    @property
    def path(self) -> str:
        """How a user names it: `LAB/VM`."""
        return f"{self.lab}/{self.name}"

    @property
    def runs(self) -> Ref:
        """The version it runs, which another one's disk may have been switched to in place."""
        return self.in_place[0].version if self.in_place else self.version

    @property
    def ssh_port(self) -> int | None:
        """The forwarded port that leads to the guest's SSH server, if any."""
        return next((f.host for f in self.forwards if f.guest == 22), None)

    @property
    def address(self) -> IPv4Address | None:
        """The first static address."""
        return next((nic.ip.ip for nic in self.nics if nic.ip is not None), None)


@dataclass(frozen=True)
class NetworkRecord:
    """A lab network as recorded in a libvirt network's metadata."""

    lab: str
    name: str
    mode: Mode
    cidr: IPv4Network

    @property
    def libvirt_name(self) -> str:
        """The libvirt network's name: `LAB.NET`."""
        return f"{self.lab}.{self.name}"


@dataclass(frozen=True)
class HostEntry:
    """An address reserved for a network card."""

    mac: str
    name: str
    ip: IPv4Address


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
        kept: bytes that a guest sees of the kept data disks, by volume.
    """

    session: bool
    vms: tuple[ObservedVm, ...]
    networks: tuple[ObservedNetwork, ...]
    volumes: frozenset[str]
    foreign: Foreign = field(default_factory=Foreign)
    port_free: Callable[[int], bool] = lambda _port: True
    pool: str = ""
    kept: Mapping[str, int] = field(default_factory=dict)

    def of(self, lab: str) -> dict[str, ObservedVm]:
        """The VMs of a lab, by name."""
        return {vm.record.name: vm for vm in self.vms if vm.record.lab == lab}
