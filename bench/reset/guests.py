"""The guests that are reset: images, a lab, and copies of its VM for those without poclab."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, fromstring, tostring

from bench import session
from bench.measure import MeasurementError, output
from bench.reset.probe import Guest
from poclab.guest.ssh import LabFiles
from tests.support import shop
from tests.support.accounts import CHECKOUT

LAB = "bench"
VM = "vm1"
URI = "qemu:///system"
NETWORK = "bench-peers"
# Everything that is not poclab's: disks, saved memory, keys. QEMU's account must reach it.
DIRECTORY = Path("/var/lib/libvirt/images/bench")
# The firmware as one read-only file, without flash: libvirt makes internal snapshots of no other.
ROM = Path("/usr/share/ovmf/OVMF.fd")
# Each makes a container image; what it fetched stays in the checkout's .cache.
_TINY = CHECKOUT / "images/shop/base"
_SYSTEMD = CHECKOUT / "tests/support/debian_guest/build"
_MAC = "52:54:00:77:00:{:02x}"
_ADDRESS = "10.77.9.{}"


@dataclass(frozen=True)
class Kind:
    """A kind of guest.

    Attributes:
        name: "tiny" or "systemd"; also its image's name.
        title: what it is.
        memory: MiB.
        boot: seconds that a boot takes at most.
    """

    name: str
    title: str
    memory: int
    boot: float


KINDS = {
    "tiny": Kind("tiny", "tiny guest (Linux, busybox, dropbear)", 256, 120),
    "systemd": Kind("systemd", "Debian 12 with systemd", 512, 600),
}
# The others than poclab, by what stands for them in addresses.
OTHERS = {"hand": 11, "snapshots": 12, "kcli": 13, "vagrant": 14, "external": 15}


def mac(name: str) -> str:
    """The MAC address of a guest without poclab."""
    return _MAC.format(OTHERS[name])


def address(name: str) -> str:
    """Its address."""
    return _ADDRESS.format(OTHERS[name])


def key() -> Path:
    """The private key that the images themselves let in."""
    return DIRECTORY / "key"


def lab_key(lab: str = LAB) -> Path:
    """The private key that the guests of a lab let in."""
    found = LabFiles(URI, lab).private_key()
    if found is None:
        raise MeasurementError(f"lab {lab} has no key")
    return found


@contextmanager
def host() -> Iterator[None]:
    """The directory, the key and the network that all need."""
    DIRECTORY.mkdir(mode=0o755, parents=True)
    output(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key())])
    root = Element("network")
    SubElement(root, "name").text = NETWORK
    # Like poclab's networks: libvirt's default would hold each new card back for 4 s.
    SubElement(root, "bridge", {"name": "virbench", "stp": "off", "delay": "0"})
    ip = SubElement(root, "ip", {"address": _ADDRESS.format(1), "netmask": "255.255.255.0"})
    dhcp = SubElement(ip, "dhcp")
    for name in OTHERS:
        SubElement(dhcp, "host", {"mac": mac(name), "ip": address(name)})
    virsh_xml("net-define", tostring(root, encoding="unicode"))
    output(["virsh", "-q", "net-start", NETWORK])
    try:
        yield
    finally:
        output(["virsh", "-q", "net-destroy", NETWORK])


def virsh_xml(command: str, xml: str, *words: str) -> None:
    """Run a command of virsh that reads a file of XML."""
    with tempfile.NamedTemporaryFile("w", suffix=".xml") as file:
        file.write(xml)
        file.flush()
        output(["virsh", "-q", command, *words, file.name])


def prepare() -> None:
    """Fetch what the images are made of, where there is a network; quick when that is there."""
    for program in (_TINY, _SYSTEMD):
        output([str(program)], timeout=1200)


def build(kind: Kind, tag: str = "v1") -> None:
    """Build a version of the kind's image, which lets our key in."""
    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory) / kind.name
        _tiny(where) if kind.name == "tiny" else _systemd(where)
        shutil.copyfile(key().with_suffix(".pub"), where / "authorized_keys")
        (where / "authorized_keys").chmod(0o600)
        (where / "bench-version").write_text(tag)
        with (where / "Containerfile").open("a") as file:
            file.write("COPY authorized_keys /root/.ssh/authorized_keys\n")
            file.write("COPY bench-version /etc/bench-version\n")
        output([*session.poclab(), "-q", "image", "build", str(where), "--tag", tag], timeout=600)


def _tiny(where: Path) -> None:
    output([str(_TINY)])
    shutil.copytree(CHECKOUT / "images/shop", where)
    text = (where / "Containerfile").read_text().replace("${VERSION}/", "v1/")
    (where / "Containerfile").write_text(text)


def _systemd(where: Path) -> None:
    output([str(_SYSTEMD)])
    where.mkdir()
    (where / "Containerfile").write_text(f"FROM {shop.DEBIAN}\n")
    (where / "image.yaml").write_text(
        "builder: direct\nrootfs: ext4\ndisk: 2GiB\nkernel_args: [console=ttyS0]\nuser: root\n"
    )


def up(kind: Kind, *, lab: str = LAB, vms: tuple[str, ...] = (VM,), net: int = 8) -> None:
    """Bring up a lab whose memory is kept."""
    lines = [f"  {vm}: {{image: '{kind.name}:v1', networks: [lan]}}\n" for vm in vms]
    file = DIRECTORY / f"{lab}.yaml"
    file.write_text(
        f"name: {lab}\n"
        f"networks: {{lan: {{mode: isolated, cidr: 10.77.{net}.0/24}}}}\n"
        f"defaults: {{cpus: 1, memory: {kind.memory}MiB, warm: true,"
        f" ready: {{ssh: true, timeout: {kind.boot:.0f}}}}}\n"
        f"vms:\n{''.join(lines)}"
    )
    _, text = output([*session.poclab(), "up", str(file)], timeout=len(vms) * kind.boot + 60)
    for vm in vms:
        if f"{vm}: its memory is kept" not in text:
            raise MeasurementError(f"poclab kept no memory of {vm}:\n{text}")


def down(lab: str = LAB) -> None:
    """Take a lab down."""
    output([*session.poclab(), "-q", "down", lab, "--yes"])


def guest(vm: str = VM, lab: str = LAB) -> Guest:
    """A VM of poclab's, to look at."""
    domain = f"{lab}.{vm}"
    addresses = definition(domain).findall("devices/interface/mac")
    _, table = output(["virsh", "-q", "net-dumpxml", f"{lab}.lan"])
    hosts = {item.get("mac"): item.get("ip", "") for item in fromstring(table).iter("host")}
    return Guest(domain, hosts[addresses[0].get("address")], lab_key(lab))


def definition(domain: str) -> Element:
    """A domain's definition."""
    _, text = output(["virsh", "-q", "dumpxml", "--inactive", "--security-info", domain])
    return fromstring(text)


def base(domain: str = f"{LAB}.{VM}") -> str:
    """The file that a VM's version is."""
    chain = definition(domain).find("devices/disk")
    files = [] if chain is None else [source.get("file", "") for source in chain.iter("source")]
    return files[-1]


def define_copy(name: str, overlay: Path, *, rom: bool = False) -> Guest:
    """Define a domain like the lab's VM, on a disk of its own over the same version.

    Args:
        name: one of `OTHERS`.
        overlay: its disk, which is made.
        rom: give it firmware without flash.
    """
    bottom = base()
    output(["qemu-img", "create", "-q", "-f", "qcow2", "-b", bottom, "-F", "qcow2", str(overlay)])
    root = copied(definition(f"{LAB}.{VM}"), name)
    put_disk(root, (str(overlay), bottom))
    if rom:
        _use_rom(root)
    virsh_xml("define", tostring(root, encoding="unicode"))
    return Guest(name, address(name), lab_key())


def copied(source: Element, name: str) -> Element:
    """A domain's XML as that of another one, on the peers' network."""
    root = deepcopy(source)
    for parent, tag in (("", "uuid"), ("", "metadata"), ("", "genid"), ("os", "nvram")):
        within = root.find(parent) if parent else root
        for old in within.findall(tag) if within is not None else ():
            within.remove(old)  # type: ignore[union-attr]
    _set(root, "name", name)
    for card in root.findall("devices/interface"):
        card.find("mac").set("address", mac(name))  # type: ignore[union-attr]
        card.find("source").set("network", NETWORK)  # type: ignore[union-attr]
    for log in root.iterfind("devices/*/log"):
        log.set("file", f"/var/log/libvirt/qemu/{name}.console.log")
    return root


def put_disk(root: Element, chain: tuple[str, ...]) -> None:
    """Have a domain's system disk consist of files, the top one first."""
    disk = root.find("devices/disk")
    assert disk is not None
    for tag in ("source", "backingStore"):
        for old in disk.findall(tag):
            disk.remove(old)
    level = disk
    for number, file in enumerate(chain):
        if number:
            level = SubElement(level, "backingStore", {"type": "file"})
            SubElement(level, "format", {"type": "qcow2"})
        SubElement(level, "source", {"file": file})
    SubElement(level, "backingStore")


def _use_rom(root: Element) -> None:
    system = root.find("os")
    assert system is not None
    system.attrib.pop("firmware", None)
    for tag in ("firmware", "loader", "nvram"):
        for old in system.findall(tag):
            system.remove(old)
    SubElement(system, "loader", {"type": "rom"}).text = str(ROM)


def _set(root: Element, tag: str, text: str) -> None:
    found = root.find(tag)
    assert found is not None
    found.text = text
