"""Records as XML metadata of domains and networks, and back. Pure.

libvirt keeps one element per XML namespace in a domain's or network's `<metadata>`
(https://libvirt.org/formatdomain.html#general-metadata). Ours is in `NAMESPACE`; it is the
only state poclab has of a VM beside the disks.
"""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv4Network
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, fromstring, register_namespace, tostring

from poclab.model import (
    DataDisk,
    Deployment,
    Forward,
    Frozen,
    HistoryEntry,
    Mode,
    NetworkRecord,
    NicRecord,
    Profile,
    Ready,
    Ref,
    VmRecord,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

NAMESPACE = "https://poclab.dev/xmlns/1"
PREFIX = "poclab"
FORMAT = "1"
HISTORY_LIMIT = 50

register_namespace(PREFIX, NAMESPACE)


def _q(name: str) -> str:
    return f"{{{NAMESPACE}}}{name}"


def _child(parent: Element, tag: str, /, **attributes: str | int | None) -> Element:
    given = {key: str(value) for key, value in attributes.items() if value is not None}
    return SubElement(parent, _q(tag), given)


def _yes(value: bool) -> str | None:
    return "yes" if value else None


def vm_element(record: VmRecord) -> Element:
    """The metadata element of a VM's domain."""
    root = Element(_q("vm"), {"format": FORMAT, "lab": record.lab, "name": record.name})
    _child(root, "wanted", image=record.wanted.image, tag=record.wanted.tag)
    _child(
        root,
        "version",
        image=record.version.image,
        tag=record.version.tag,
        digest=record.digest,
        parents=" ".join(record.parents) or None,
        overlay=record.overlay,
        size=record.disk_size,
        fresh=_yes(record.fresh),
        used=_yes(record.used),
        warm=_yes(record.warm),
    )
    for frozen in record.frozen:
        _child(root, "frozen", disk=frozen.disk or None, volume=frozen.volume)
    for item in record.in_place:
        named = {"image": item.version.image, "tag": item.version.tag, "digest": item.digest}
        _child(root, "deployment", **named, container=item.image or None)
    _child(
        root,
        "hardware",
        cpus=record.cpus,
        memory=record.memory,
        profile=record.profile.value,
        tpm=_yes(record.tpm),
    )
    _child(root, "login", user=record.user, key=record.ssh_key or None)
    for nic in record.nics:
        ip = str(nic.ip) if nic.ip else None
        _child(root, "nic", network=nic.network, mac=nic.mac, ip=ip, mode=nic.mode.value)
    for disk in record.disks:
        _child(root, "disk", name=disk.name, size=disk.size, keep=_yes(disk.keep))
    for forward in record.forwards:
        _child(root, "forward", host=forward.host, guest=forward.guest)
    for name in record.after:
        _child(root, "after", vm=name)
    if record.ready:
        port = record.ready.port or None
        _child(root, "ready", kind=record.ready.kind, port=port, timeout=record.ready.timeout)
    for entry in record.history[-HISTORY_LIMIT:]:
        _child(
            root,
            "event",
            time=entry.time,
            action=entry.action,
            image=entry.version.image,
            tag=entry.version.tag,
            digest=entry.digest,
            by=entry.by,
            start=entry.start or None,
            seconds=None if entry.seconds is None else f"{entry.seconds:.1f}",
        )
    return root


def vm_record(element: Element) -> VmRecord:
    """Read a VM's metadata element.

    Raises:
        ValueError: it is not one this program wrote (another format, a part missing, a disk
            that is not the VM's own and that must not be deleted with it).
    """
    element = _bare(element)
    if element.tag != "vm" or element.get("format") != FORMAT:
        raise ValueError(f"metadata of another format: {element.get('format')}")
    version = _one(element, "version")
    hardware = _one(element, "hardware")
    login = _one(element, "login")
    try:
        own = f"overlay.{element.attrib['lab']}.{element.attrib['name']}."
        if not version.attrib["overlay"].startswith(own):
            raise ValueError(f"metadata with another VM's disk: {version.attrib['overlay']}")
        frozen = tuple(_frozen(item) for item in _all(element, "frozen"))
        passing = (own, own.replace("overlay.", "scratch.", 1))
        for item in frozen:
            if not item.volume.startswith(passing):
                raise ValueError(f"metadata with another VM's disk: {item.volume}")
        return VmRecord(
            lab=element.attrib["lab"],
            name=element.attrib["name"],
            wanted=_ref(_one(element, "wanted")),
            version=_ref(version),
            digest=version.attrib["digest"],
            parents=tuple(version.get("parents", "").split()),
            overlay=version.attrib["overlay"],
            disk_size=int(version.attrib["size"]) if "size" in version.attrib else None,
            fresh=version.get("fresh") == "yes",
            used=version.get("used") == "yes",
            warm=version.get("warm") == "yes",
            frozen=frozen,
            in_place=tuple(_deployment(item) for item in _all(element, "deployment")),
            cpus=int(hardware.attrib["cpus"]),
            memory=int(hardware.attrib["memory"]),
            profile=Profile(hardware.attrib["profile"]),
            tpm=hardware.get("tpm") == "yes",
            user=login.attrib["user"],
            ssh_key=login.get("key", ""),
            nics=tuple(_nic(item) for item in _all(element, "nic")),
            disks=tuple(_disk(item) for item in _all(element, "disk")),
            forwards=tuple(
                Forward(int(item.attrib["host"]), int(item.attrib["guest"]))
                for item in _all(element, "forward")
            ),
            after=tuple(item.attrib["vm"] for item in _all(element, "after")),
            ready=next((_ready(item) for item in _all(element, "ready")), None),
            history=tuple(_event(item) for item in _all(element, "event")),
        )
    except KeyError as error:
        raise ValueError(f"metadata without {error}") from error


def network_element(record: NetworkRecord) -> Element:
    """The metadata element of a lab network."""
    return Element(
        _q("network"),
        {
            "format": FORMAT,
            "lab": record.lab,
            "name": record.name,
            "mode": record.mode.value,
            "cidr": str(record.cidr),
        },
    )


def network_record(element: Element) -> NetworkRecord:
    """Read a lab network's metadata element.

    Raises:
        ValueError: it is not one this program wrote.
    """
    element = _bare(element)
    if element.tag != "network" or element.get("format") != FORMAT:
        raise ValueError(f"metadata of another format: {element.get('format')}")
    try:
        return NetworkRecord(
            element.attrib["lab"],
            element.attrib["name"],
            Mode(element.attrib["mode"]),
            IPv4Network(element.attrib["cidr"]),
        )
    except KeyError as error:
        raise ValueError(f"metadata without {error}") from error


def find(xml: str, kind: str) -> Element | None:
    """Find our metadata element in the XML of a whole domain or network.

    Args:
        xml: what libvirt describes the object with.
        kind: "vm" or "network".
    """
    return fromstring(xml).find(f"metadata/{_q(kind)}")  # noqa: S314 - libvirtd wrote it


def text(element: Element) -> str:
    """The element as text for virDomainSetMetadata, which puts the namespace in itself."""
    return tostring(_bare(element), encoding="unicode")


def _bare(element: Element) -> Element:
    """The element without namespaces: virDomainGetMetadata takes them away, the XML has them."""
    bare = Element(element.tag.rpartition("}")[2], element.attrib)
    bare.text = element.text
    bare.extend(_bare(child) for child in element)
    return bare


def _all(element: Element, name: str) -> Iterable[Element]:
    return element.iterfind(name)


def _one(element: Element, name: str) -> Element:
    found = element.find(name)
    if found is None:
        raise ValueError(f"metadata without {name}")
    return found


def _ref(element: Element) -> Ref:
    return Ref(element.attrib["image"], element.attrib["tag"])


def _nic(element: Element) -> NicRecord:
    ip = element.get("ip")
    return NicRecord(
        element.attrib["network"],
        element.attrib["mac"],
        IPv4Interface(ip) if ip else None,
        Mode(element.attrib["mode"]),
    )


def _frozen(element: Element) -> Frozen:
    return Frozen(element.get("disk", ""), element.attrib["volume"])


def _deployment(element: Element) -> Deployment:
    return Deployment(_ref(element), element.attrib["digest"], element.get("container", ""))


def _disk(element: Element) -> DataDisk:
    return DataDisk(
        element.attrib["name"], int(element.attrib["size"]), element.get("keep") == "yes"
    )


def _ready(element: Element) -> Ready:
    return Ready(
        element.attrib["kind"], int(element.get("port", "0")), int(element.attrib["timeout"])
    )


def _event(element: Element) -> HistoryEntry:
    return HistoryEntry(
        element.attrib["time"],
        element.attrib["action"],
        _ref(element),
        element.attrib["digest"],
        element.attrib["by"],
        element.get("start", ""),
        float(element.attrib["seconds"]) if "seconds" in element.attrib else None,
    )
