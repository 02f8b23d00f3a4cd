"""The devices each kind of guest gets, by its profile. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from poclab.model.version import Profile

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Devices:
    """The devices a profile means.

    Attributes:
        machine: the machine type's alias.
        uefi: UEFI or BIOS.
        disk_bus: the bus of every disk.
        disk_prefix: how disks are named on that bus.
        nic: the network card in libvirt's words.
        nic_device: the same as a QEMU device.
        virtio: whether the guest drives virtio devices from the first boot on.
        clock: what the guest takes the hardware clock for.
        tpm: how a TPM is wired to it.
    """

    machine: str
    uefi: bool
    disk_bus: str
    disk_prefix: str
    nic: str
    nic_device: str
    virtio: bool
    clock: str
    tpm: str


DEVICES = {
    Profile.LINUX: Devices(
        "q35", True, "virtio", "vd", "virtio", "virtio-net-pci", True, "utc", "tpm-crb"
    ),
    # Windows has no virtio drivers before someone installs them.
    Profile.WINDOWS: Devices(
        "q35", True, "sata", "sd", "e1000e", "e1000e", False, "localtime", "tpm-crb"
    ),
    Profile.LEGACY: Devices("pc", False, "ide", "hd", "e1000", "e1000", False, "utc", "tpm-tis"),
}  # fmt: skip


# IDE has four places, SATA on q35 six, virtio-blk one a PCI slot: this is what a lab may ask for.
DISK_LIMIT = {Profile.LINUX: 20, Profile.WINDOWS: 6, Profile.LEGACY: 4}


@dataclass(frozen=True)
class HostTraits:
    """What the design depends on besides the record.

    Attributes:
        session: qemu:///session (user networking) or a system daemon (libvirt networks).
        kvm: whether domains use KVM.
        owner: who the host belongs to, so that two users' segments differ.
    """

    session: bool
    kvm: bool
    owner: str
