"""VMs and networks as they are recorded on the host."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from poclab.model.lab import DataDisk, Forward, Mode, Ready
from poclab.model.version import Profile, Ref


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
