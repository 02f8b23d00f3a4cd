"""Domain and network XML from frozen specifications, and a pool's. Pure: no policy, no libvirt.

What the elements mean: https://libvirt.org/formatdomain.html, formatnetwork.html and
formatstorage.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from xml.etree.ElementTree import (
    Element,
    SubElement,
    indent,
    register_namespace,
    tostring,
)

from poclab.core import safe_xml
from poclab.model.record import HostEntry

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
register_namespace("qemu", QEMU_NAMESPACE)


@dataclass(frozen=True)
class DiskSpec:
    """A disk of a domain; qcow2 throughout.

    Attributes:
        path: the disk's file.
        backing: the files below it, top first; the chain is complete.
        target: the name libvirt knows it by: `vda`.
        bus: "virtio", "sata" or "ide".
        serial: the serial number the guest sees, or None.
        boot: whether the firmware boots from it.
    """

    path: str
    target: str
    bus: str
    backing: tuple[str, ...] = ()
    serial: str | None = None
    boot: bool = False


@dataclass(frozen=True)
class InterfaceSpec:
    """A network card on a libvirt network."""

    network: str
    mac: str
    model: str


@dataclass(frozen=True)
class DomainSpec:
    """All that the XML of a domain says.

    Attributes:
        name: the domain's name.
        uuid: its UUID, or None to have libvirt make one.
        type: "kvm" or "qemu" (TCG).
        machine: "q35" or "pc".
        uefi: firmware is UEFI without secure boot; else the machine's BIOS.
        cpu_mode: a mode of the `<cpu>` element.
        cpus: virtual CPUs.
        memory: bytes.
        clock: "utc" or "localtime".
        disks: the disks, in order.
        interfaces: network cards on libvirt networks.
        qemu_args: arguments handed to QEMU as they are.
        oem_strings: SMBIOS type 11 strings.
        console_log: the file the serial console is copied to, or None.
        usb: whether there is a USB controller with a tablet.
        virtio: whether random-number generator, agent channel and balloon are virtio devices.
        tpm: how its TPM 2.0 is wired ("tpm-crb" or "tpm-tis"), or None for none.
        genid: the VM generation ID, which is another after every reset, or None for no such device.
        metadata: elements of `<metadata>`.
    """

    name: str
    uuid: str | None
    type: str
    machine: str
    uefi: bool
    cpu_mode: str
    cpus: int
    memory: int
    disks: tuple[DiskSpec, ...]
    interfaces: tuple[InterfaceSpec, ...] = ()
    qemu_args: tuple[str, ...] = ()
    oem_strings: tuple[str, ...] = ()
    console_log: str | None = None
    clock: str = "utc"
    usb: bool = False
    virtio: bool = True
    tpm: str | None = None
    genid: str | None = None
    metadata: tuple[Element, ...] = ()


@dataclass(frozen=True)
class NetworkSpec:
    """All that the XML of a network says.

    Attributes:
        name: the network's name.
        bridge: the bridge's name, 15 characters at most (IFNAMSIZ).
        nat: whether guests reach the world through the host; else the network is isolated.
        gateway: the host's address on it, or None for a network without addresses.
        cidr: its addresses.
        domain: the DNS domain, answered locally only.
        hosts: reserved addresses.
        metadata: elements of `<metadata>`.
    """

    name: str
    bridge: str
    nat: bool
    gateway: IPv4Address | None
    cidr: IPv4Network
    domain: str
    hosts: tuple[HostEntry, ...] = ()
    metadata: tuple[Element, ...] = ()


def domain_xml(spec: DomainSpec) -> str:
    """The XML of a domain."""
    root = Element("domain", {"type": spec.type})
    _text(root, "name", spec.name)
    if spec.uuid:
        _text(root, "uuid", spec.uuid)
    if spec.genid:
        _text(root, "genid", spec.genid)
    if spec.metadata:
        SubElement(root, "metadata").extend(spec.metadata)
    _text(root, "memory", str(spec.memory // 1024), unit="KiB")
    _text(root, "vcpu", str(spec.cpus), placement="static")
    _os(root, spec)
    if spec.oem_strings:
        strings = SubElement(SubElement(root, "sysinfo", {"type": "smbios"}), "oemStrings")
        for entry in spec.oem_strings:
            _text(strings, "entry", entry)
    features = SubElement(root, "features")
    SubElement(features, "acpi")
    SubElement(features, "apic")
    SubElement(root, "cpu", {"mode": spec.cpu_mode})
    SubElement(root, "clock", {"offset": spec.clock})
    _text(root, "on_poweroff", "destroy")
    _text(root, "on_reboot", "restart")
    _text(root, "on_crash", "destroy")
    _devices(SubElement(root, "devices"), spec)
    if spec.qemu_args:
        line = SubElement(root, f"{{{QEMU_NAMESPACE}}}commandline")
        for argument in spec.qemu_args:
            SubElement(line, f"{{{QEMU_NAMESPACE}}}arg", {"value": argument})
    return _pretty(root)


def network_xml(spec: NetworkSpec) -> str:
    """The XML of a network."""
    root = Element("network")
    _text(root, "name", spec.name)
    if spec.metadata:
        SubElement(root, "metadata").extend(spec.metadata)
    if spec.nat:
        SubElement(root, "forward", {"mode": "nat"})
    # With a spanning tree a guest that comes back from its memory in a second would be cut off for
    # another four: a new port listens and learns first, 2 s each (BR_MIN_FORWARD_DELAY of Linux).
    SubElement(root, "bridge", {"name": spec.bridge, "stp": "off", "delay": "0"})
    if spec.gateway is None:
        return _pretty(root)
    SubElement(root, "domain", {"name": spec.domain, "localOnly": "yes"})
    ip = SubElement(root, "ip", {"address": str(spec.gateway), "prefix": str(spec.cidr.prefixlen)})
    dhcp = SubElement(ip, "dhcp")
    dhcp.extend(_host(entry) for entry in spec.hosts)
    return _pretty(root)


def host_xml(entry: HostEntry) -> str:
    """The XML of one reservation, for virNetworkUpdate."""
    return tostring(_host(entry), encoding="unicode")


def capture_xml(memory: str, disks: Mapping[str, str]) -> str:
    """The XML of an external snapshot (formatsnapshot.html).

    Args:
        memory: the file for the guest's memory.
        disks: the overlay that each disk goes on on, by the name libvirt knows the disk by.
    """
    root = Element("domainsnapshot")
    SubElement(root, "memory", {"snapshot": "external", "file": memory})
    listed = SubElement(root, "disks")
    for target, path in disks.items():
        attributes = {"name": target, "snapshot": "external", "type": "file"}
        disk = SubElement(listed, "disk", attributes)
        SubElement(disk, "driver", {"type": "qcow2"})
        SubElement(disk, "source", {"file": path})
    return tostring(root, encoding="unicode")


def restored_xml(saved: str, spec: DomainSpec) -> str:
    """The XML to restore a guest's memory with: as it was saved, on other disks.

    Args:
        saved: the XML that is kept with the memory.
        spec: the domain that it is to be; its disks and metadata are taken.
    """
    root = safe_xml.parse(saved)
    disks = {disk.target: disk for disk in spec.disks}
    for element in root.iterfind("devices/disk"):
        target = element.find("target")
        disk = disks.get(target.get("dev", "")) if target is not None else None
        if disk is None:
            continue
        for name in ("source", "backingStore"):
            for old in element.findall(name):
                element.remove(old)
        new = _disk(disk)
        element.extend(child for child in new if child.tag in ("source", "backingStore"))
    for old in root.findall("metadata"):
        root.remove(old)
    SubElement(root, "metadata").extend(spec.metadata)
    return tostring(root, encoding="unicode")


def volume_xml(
    name: str,
    kind: str,
    size: int,
    *,
    backing: str = "",
    mode: int = 0o600,
    group: int | None = None,
) -> str:
    """The XML of a new volume.

    Args:
        name: its name.
        kind: "qcow2" or "raw".
        size: bytes a guest sees of it.
        backing: the file below it, or an empty string.
        mode: its permission bits.
        group: the ID of its group, or None for the daemon's.
    """
    root = Element("volume")
    SubElement(root, "name").text = name
    SubElement(root, "capacity", {"unit": "bytes"}).text = str(size)
    SubElement(root, "allocation").text = "0"
    target = SubElement(root, "target")
    SubElement(target, "format", {"type": kind})
    _permissions(target, mode, group)
    if kind == "qcow2":
        SubElement(target, "compat").text = "1.1"
    if backing:
        below = SubElement(root, "backingStore")
        SubElement(below, "path").text = backing
        SubElement(below, "format", {"type": "qcow2"})
    return tostring(root, encoding="unicode")


def pool_xml(name: str, directory: str) -> str:
    """The XML of a directory pool."""
    root = Element("pool", {"type": "dir"})
    SubElement(root, "name").text = name
    target = SubElement(root, "target")
    SubElement(target, "path").text = directory
    return tostring(root, encoding="unicode")


def closed_pool_xml(xml: str, mode: int, group: int | None) -> str:
    """The XML of a pool whose directory gets a mode and group when it is built.

    Args:
        xml: the pool's XML.
        mode: the directory's permission bits.
        group: the ID of its group, or None for the one it has.
    """
    root = safe_xml.parse(xml)
    target = root.find("target")
    if target is None:  # every pool has one: formatstorage.html
        raise ValueError("the XML of a storage pool has no target")
    for old in target.findall("permissions"):
        target.remove(old)
    _permissions(target, mode, group)
    return tostring(root, encoding="unicode")


def pool_directory(xml: str) -> str:
    """The directory that a pool's XML names."""
    return safe_xml.parse(xml).findtext("target/path", "")


def _host(entry: HostEntry) -> Element:
    return Element("host", {"mac": entry.mac, "name": entry.name, "ip": str(entry.ip)})


def _os(root: Element, spec: DomainSpec) -> None:
    os = SubElement(root, "os", {"firmware": "efi"} if spec.uefi else {})
    _text(os, "type", "hvm", arch="x86_64", machine=spec.machine)
    if spec.uefi:
        # Left alone, autoselection takes the secure-boot build, which refuses unsigned loaders.
        firmware = SubElement(os, "firmware")
        SubElement(firmware, "feature", {"enabled": "no", "name": "secure-boot"})
    if spec.oem_strings:
        SubElement(os, "smbios", {"mode": "sysinfo"})


def _devices(devices: Element, spec: DomainSpec) -> None:
    for disk in spec.disks:
        devices.append(_disk(disk))
    for interface in spec.interfaces:
        devices.append(_interface(interface))
    _console(devices, spec)
    if spec.virtio:
        channel = SubElement(devices, "channel", {"type": "unix"})
        SubElement(channel, "target", {"type": "virtio", "name": "org.qemu.guest_agent.0"})
        rng = SubElement(devices, "rng", {"model": "virtio"})
        _text(rng, "backend", "/dev/urandom", model="random")
    if spec.usb:
        SubElement(devices, "input", {"type": "tablet", "bus": "usb"})
    else:
        SubElement(devices, "controller", {"type": "usb", "model": "none"})
    if spec.tpm:
        tpm = SubElement(devices, "tpm", {"model": spec.tpm})
        SubElement(tpm, "backend", {"type": "emulator", "version": "2.0"})
    # No TCP port: a viewer gets its connection from libvirt (virt-viewer --attach).
    graphics = SubElement(devices, "graphics", {"type": "vnc"})
    SubElement(graphics, "listen", {"type": "none"})
    SubElement(SubElement(devices, "video"), "model", {"type": "vga"})
    balloon = {"model": "virtio", "freePageReporting": "on"} if spec.virtio else {"model": "none"}
    SubElement(devices, "memballoon", balloon)


def _disk(disk: DiskSpec) -> Element:
    element = Element("disk", {"type": "file", "device": "disk"})
    SubElement(element, "driver", {"name": "qemu", "type": "qcow2", "discard": "unmap"})
    SubElement(element, "source", {"file": disk.path})
    level = element
    for path in disk.backing:
        level = SubElement(level, "backingStore", {"type": "file"})
        SubElement(level, "format", {"type": "qcow2"})
        SubElement(level, "source", {"file": path})
    SubElement(level, "backingStore")  # ends the chain: nothing is probed
    SubElement(element, "target", {"dev": disk.target, "bus": disk.bus})
    if disk.serial:
        _text(element, "serial", disk.serial)
    if disk.boot:
        SubElement(element, "boot", {"order": "1"})
    return element


def _interface(interface: InterfaceSpec) -> Element:
    element = Element("interface", {"type": "network"})
    SubElement(element, "mac", {"address": interface.mac})
    SubElement(element, "source", {"network": interface.network})
    SubElement(element, "model", {"type": interface.model})
    SubElement(element, "rom", {"enabled": "no"})  # no network boot: it only costs time
    return element


def _console(devices: Element, spec: DomainSpec) -> None:
    serial = SubElement(devices, "serial", {"type": "pty"})
    if spec.console_log:
        SubElement(serial, "log", {"file": spec.console_log, "append": "off"})
    SubElement(serial, "target", {"port": "0"})
    console = SubElement(devices, "console", {"type": "pty"})
    SubElement(console, "target", {"type": "serial", "port": "0"})


def _permissions(target: Element, mode: int, group: int | None) -> None:
    permissions = SubElement(target, "permissions")
    SubElement(permissions, "mode").text = f"{mode:04o}"
    if group is not None:
        SubElement(permissions, "group").text = str(group)


def _text(parent: Element, name: str, text: str, **attributes: str) -> Element:
    element = SubElement(parent, name, attributes)
    element.text = text
    return element


def _pretty(root: Element) -> str:
    indent(root)
    return tostring(root, encoding="unicode") + "\n"
