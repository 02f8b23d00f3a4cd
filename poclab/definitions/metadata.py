"""Records as XML metadata of domains and networks, and back. Pure.

libvirt keeps one element per XML namespace in a domain's or network's `<metadata>`
(https://libvirt.org/formatdomain.html#general-metadata). Ours is in `NAMESPACE`; it is the
only state poclab has of a VM beside the disks.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Interface, IPv4Network
from typing import TYPE_CHECKING, TypeVar
from xml.etree.ElementTree import Element, SubElement, register_namespace, tostring

from poclab.core import safe_xml
from poclab.core.errors import NewerFormatError
from poclab.core.plaintext import shown, stored
from poclab.model import shapes, volumes
from poclab.model.lab import DataDisk, Forward, Mode, Ready
from poclab.model.names import is_name
from poclab.model.record import Deployment, Frozen, HistoryEntry, NetworkRecord, NicRecord, VmRecord
from poclab.model.version import Profile, Ref
from poclab.model.volumes import VolumeName

if TYPE_CHECKING:
    from collections.abc import Callable

NAMESPACE = "https://poclab.dev/xmlns/1"
PREFIX = "poclab"
FORMAT = "1"
HISTORY_LIMIT = 50
# Beside the record, in the running domain only: it goes with the QEMU process, so it is true.
STARTED = "started"

T = TypeVar("T")

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
            by=stored(entry.by),
            start=entry.start or None,
            seconds=None if entry.seconds is None else f"{entry.seconds:.1f}",
        )
    return root


def vm_record(element: Element) -> VmRecord:
    """Read a VM's metadata element.

    Raises:
        NewerFormatError: a newer program wrote it.
        ValueError: it is not one this program wrote (another format, a part missing or of
            another type or range, a disk that is not the VM's own and that must not be deleted
            with it).
    """
    return shapes.at("metadata", _vm, _root(element, "vm"))


def _vm(element: Element) -> VmRecord:
    own = shapes.Fields(element.attrib)
    lab, name = own("lab", shapes.NAME), own("name", shapes.NAME)
    version, hardware, login = (_one(element, tag) for tag in ("version", "hardware", "login"))
    record = VmRecord(
        lab=lab,
        name=name,
        wanted=_ref(_one(element, "wanted")),
        version=_ref(version),
        digest=version("digest", shapes.DISK_DIGEST),
        parents=tuple(map(shapes.DISK_DIGEST, version("parents", _PARENTS, "").split())),
        overlay=version("overlay", shapes.parsed(volumes.system_disk, "a system disk's name")),
        disk_size=version("size", shapes.maybe(_SIZE), None),
        fresh=version("fresh", shapes.yes, False),
        used=version("used", shapes.yes, False),
        warm=version("warm", shapes.yes, False),
        frozen=_all(element, "frozen", _frozen),
        in_place=_all(element, "deployment", _deployment),
        cpus=hardware("cpus", _CPUS),
        memory=hardware("memory", _MEMORY),
        profile=hardware("profile", shapes.one_of(Profile)),
        tpm=hardware("tpm", shapes.yes, False),
        user=login("user", shapes.USER),
        ssh_key=login("key", shapes.line(), ""),
        nics=_all(element, "nic", _nic),
        disks=_all(element, "disk", _disk),
        forwards=_all(element, "forward", _forward),
        after=_all(element, "after", lambda item: item("vm", shapes.NAME)),
        ready=next(iter(_all(element, "ready", _ready)), None),
        history=_all(element, "event", _event),
    )
    _check_own(record)
    return record


def _check_own(record: VmRecord) -> None:
    """Check that a record names disks of the VM's own only, each once."""
    disks = [record.overlay, *(item.volume for item in record.frozen)]
    for disk in disks:
        if not VolumeName.parse(disk).of(record.lab, record.name):
            raise ValueError(f"another VM's disk: {disk}")
    for names in (disks, [item.disk for item in record.frozen], [x.name for x in record.disks]):
        if len(set(names)) != len(names):
            raise ValueError(f"one disk twice: {' '.join(names)}")


def started(element: Element) -> str | None:
    """When poclab started a running domain, from its metadata element; None if it did not.

    Raises:
        ValueError: it is not a time.
    """
    return shapes.Fields(element.attrib)(STARTED, shapes.maybe(shapes.TIME), None)


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
    return shapes.at("metadata", _network, _root(element, "network"))


# What comes after the name of a network that is there for a moment (`design.detour`);
# no lab file can name one with a dot.
DETOUR = ".detour"
_NETWORK = shapes.that(lambda name: is_name(name.removesuffix(DETOUR)), "a network's name", 47)


def _network(element: Element) -> NetworkRecord:
    own = shapes.Fields(element.attrib)
    cidr = shapes.parsed(IPv4Network, "an IPv4 network")
    return NetworkRecord(
        own("lab", shapes.NAME),
        own("name", _NETWORK),
        own("mode", shapes.one_of(Mode)),
        own("cidr", cidr),
    )


def find(xml: str, kind: str) -> Element | None:
    """Find our metadata element in the XML of a whole domain or network.

    Args:
        xml: what libvirt describes the object with.
        kind: "vm" or "network".
    """
    return safe_xml.parse(xml).find(f"metadata/{_q(kind)}")


def text(element: Element) -> str:
    """The element as text for virDomainSetMetadata, which puts the namespace in itself."""
    return tostring(_bare(element), encoding="unicode")


def _bare(element: Element) -> Element:
    """The element without namespaces: virDomainGetMetadata takes them away, the XML has them."""
    root = _without_namespace(element)
    left = [(element, root)]
    # Not one call in another: whoever made the element decides how deep it is.
    while left:
        given, bare = left.pop()
        for child in given:
            made = _without_namespace(child)
            bare.append(made)
            left.append((child, made))
    return root


def _without_namespace(element: Element) -> Element:
    bare = Element(element.tag.rpartition("}")[2], element.attrib)
    bare.text = element.text
    return bare


# --- the parts --------------------------------------------------------------------------

_MOST = 1000  # parts of a kind: more than any lab has
# What an entry of the history says was done: `reset to`, and a mark's name of 128 characters.
_ACTION = shapes.text(256)
# As many as a version may have (`manifest.PARENTS`), each a digest of 71 characters and a blank.
_PARENTS = shapes.text(_MOST * 72)
_SIZE = shapes.digits(shapes.SIZE)
_PORT = shapes.digits(shapes.PORT)
_MEMORY = shapes.digits(shapes.whole(1, shapes.LARGEST))
_CPUS = shapes.digits(shapes.whole(1, 4096))  # QEMU's largest machine has fewer
_SECONDS = shapes.digits(shapes.whole(0, 10**9))
_READY = shapes.text(5, re.compile("ssh|tcp|agent"), "ssh, tcp or agent")
_START = shapes.text(4, re.compile("warm|cold|"), "warm or cold")


def _root(element: Element, tag: str) -> Element:
    """The element without namespaces, of the format that this program writes."""
    element = _bare(element)
    form = element.get("format", "none")
    if element.tag == tag and form == FORMAT:
        return element
    text = f"metadata of another format: {shown(form)}"
    newer = element.tag == tag and re.fullmatch("[0-9]{1,9}", form) and int(form) > int(FORMAT)
    raise NewerFormatError(text) if newer else ValueError(text)


def _all(element: Element, tag: str, read: Callable[[shapes.Fields], T]) -> tuple[T, ...]:
    found = element.findall(tag)
    if len(found) > _MOST:
        raise shapes.ShapeError(f"expected at most {_MOST}, found {len(found)}", tag)
    return tuple(shapes.at(tag, read, shapes.Fields(item.attrib)) for item in found)


def _one(element: Element, tag: str) -> shapes.Fields:
    found = element.find(tag)
    if found is None:
        raise shapes.ShapeError("missing", tag)
    return shapes.Fields(found.attrib, tag)


def _ref(item: shapes.Fields) -> Ref:
    return Ref(item("image", shapes.NAME), item("tag", shapes.TAG))


def _nic(item: shapes.Fields) -> NicRecord:
    return NicRecord(
        item("network", shapes.NAME),
        item("mac", shapes.MAC),
        item("ip", shapes.maybe(shapes.parsed(IPv4Interface, "an IPv4 address/prefix")), None),
        item("mode", shapes.one_of(Mode)),
    )


def _frozen(item: shapes.Fields) -> Frozen:
    disk = item("disk", shapes.NAME, "")
    volume = shapes.parsed(lambda text: volumes.frozen_disk(text, disk), "the disk's volume")
    return Frozen(disk, item("volume", volume))


def _deployment(item: shapes.Fields) -> Deployment:
    digest = item("digest", shapes.DISK_DIGEST)
    return Deployment(_ref(item), digest, item("container", shapes.DIGEST, ""))


def _disk(item: shapes.Fields) -> DataDisk:
    return DataDisk(item("name", shapes.NAME), item("size", _SIZE), item("keep", shapes.yes, False))


def _forward(item: shapes.Fields) -> Forward:
    return Forward(item("host", _PORT), item("guest", _PORT))


def _ready(item: shapes.Fields) -> Ready:
    kind = item("kind", _READY)
    port = item("port", _PORT, 0)
    if (kind == "tcp") != (port != 0):
        raise ValueError("a port belongs to tcp, and tcp needs one")
    return Ready(kind, port, item("timeout", _SECONDS))


def _event(item: shapes.Fields) -> HistoryEntry:
    return HistoryEntry(
        item("time", shapes.TIME),
        item("action", _ACTION),
        _ref(item),
        item("digest", shapes.DISK_DIGEST),
        item("by", shapes.text()),
        item("start", _START, ""),
        item("seconds", shapes.maybe(shapes.decimal(shapes.real(0, 10**9))), None),
    )
