"""The parsers of strangers' bytes, each as a function that may refuse its input, and only that."""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import ParseError, fromstring

from poclab.builders import rootfs
from poclab.containers import packages, rpm_database
from poclab.core.errors import PoclabError
from poclab.definitions import metadata
from poclab.disks import iso9660, ova
from poclab.disks.formats import Window
from poclab.disks.formats import read as read_disk
from poclab.guest import bootc_status
from poclab.model.record import Frozen
from poclab.model.version import Ref
from poclab.schema.image import load_image
from poclab.schema.lab import parse_lab
from poclab.store import manifest, marks, parked, sealed, warm_states
from poclab.virt.disk_users import named_files
from tests.fuzz.sparse import in_memory, packed, path_of, unpacked
from tests.support import disks, make


@dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        name: what it is called on the command line.
        run: has it read an input.
        seeds: good inputs, made when they are asked for.
        words: what a text of its format is made of.
        refusal: what it raises for an input that it does not take; anything else is a finding.
    """

    name: str
    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    words: tuple[bytes, ...] = ()
    refusal: type[Exception] = PoclabError


def outcome(target: Target, data: bytes) -> str:
    """Have a target read an input; gives the refusal's text, or an empty string.

    Raises:
        Exception: anything that is no refusal, which is what a fuzzer looks for.
    """
    try:
        target.run(data)
    except target.refusal as refusal:
        return str(refusal) or type(refusal).__name__
    return ""


# --- disks ------------------------------------------------------------------------------------


def _disk(data: bytes) -> None:
    with unpacked(data) as descriptor:
        read_disk(Window(descriptor, "disk", 0, os.fstat(descriptor).st_size))


def _disks(*kinds: str) -> Callable[[], list[bytes]]:
    def make_them() -> list[bytes]:
        with _scratch() as work:
            return [packed(disks.made(work / kind, kind).read_bytes()) for kind in kinds]

    return make_them


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as work:
        yield Path(work)


def _compressed() -> list[bytes]:
    with _scratch() as work:
        source = disks.raw(work / "raw")
        for number, options in enumerate(("compat=0.10", "cluster_size=512", "extended_l2=on")):
            target = work / f"{number}"
            disks.qemu_img("convert", "-O", "qcow2", "-o", options, source, target)
        disks.qemu_img("convert", "-c", "-O", "qcow2", source, work / "3")
        return [packed((work / f"{number}").read_bytes()) for number in range(4)]


# --- archives ---------------------------------------------------------------------------------


def _with_file(read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def run(data: bytes) -> object:
        with _opened(data) as descriptor:
            return read(path_of(descriptor))

    return run


@contextmanager
def _opened(data: bytes) -> Iterator[int]:
    descriptor = in_memory(data)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _ova(data: bytes) -> None:
    with _opened(data) as descriptor:
        ova.look(Window(descriptor, "ova", 0, len(data)))


def _ovas() -> list[bytes]:
    with _scratch() as work:
        found = []
        for number, form in enumerate((tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT)):
            disk = ("d" * (90 + 60 * number) + ".vmdk", b"KDMV" * 8)
            text = ("a.ovf", disks.ovf(disk[0]))
            path = disks.packed(work / f"{number}", text, disk, form=form)
            found.append(path.read_bytes().rstrip(b"\0") + bytes(1024))
        return found


def _layers() -> list[bytes]:
    """Tar files as container images are exported: links, devices, attributes, long names."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind in (("etc", tarfile.DIRTYPE), ("dev/null", tarfile.CHRTYPE)):
            archive.addfile(disks.member(name, kind=kind))
        member = disks.member("etc/passwd", 5)
        member.pax_headers = {"SCHILY.xattr.user.a": "b", "mtime": "1.5"}
        archive.addfile(member, io.BytesIO(b"root\n"))
        link = disks.member("etc/link", kind=tarfile.SYMTYPE)
        link.linkname = "passwd"
        archive.addfile(link)
        hard = disks.member("etc/hard", kind=tarfile.LNKTYPE)
        hard.linkname = "etc/passwd"
        archive.addfile(hard)
        archive.addfile(disks.member("usr/" + "n" * 200))
        archive.addfile(disks.member("var/lib/dpkg/status", len(_STATUS)), io.BytesIO(_STATUS))
    data = target.getvalue().rstrip(b"\0")
    # The last member's padding, then the end: two blocks of zeros.
    return [data + bytes(-len(data) % 512 + 1024)]


_STATUS = b"Package: a\nVersion: 1\nStatus: install ok installed\nArchitecture: amd64\n\n"


def _rpm_headers() -> list[bytes]:
    # rpm's header: counts of entries and of bytes, entries of tag, type, offset, count, the bytes.
    texts = {1000: b"bash", 1001: b"5.2", 1002: b"1", 1022: b"x86_64"}
    entries, store = b"", b""
    for tag, text in texts.items():
        entries += b"".join(n.to_bytes(4) for n in (tag, 6, len(store), 1))
        store += text + b"\0"
    return [len(texts).to_bytes(4) + len(store).to_bytes(4) + entries + store]


def _isos() -> list[bytes]:
    sectors = bytearray(20 * 2048)
    for number, kind in ((16, 1), (17, 0), (18, 255)):
        sectors[number * 2048 : number * 2048 + 6] = bytes([kind]) + b"CD001"
    sectors[16 * 2048 + 40 : 16 * 2048 + 45] = b"LABEL"
    sectors[17 * 2048 + 7 : 17 * 2048 + 30] = b"EL TORITO SPECIFICATION"
    return [packed(bytes(sectors))]


def _iso(data: bytes) -> None:
    with unpacked(data) as descriptor:
        iso9660.read(path_of(descriptor))


# --- records ----------------------------------------------------------------------------------


def _resealed(decode: Callable[[bytes], object]) -> Callable[[bytes], object]:
    """Read a manifest whose checksum is made right first: a forger would do so too."""

    def run(data: bytes) -> object:
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            return decode(data)
        if isinstance(body, dict):
            body.pop("checksum", None)
            data = sealed.seal(body)
        return decode(data)

    return run


def _record(data: bytes) -> None:
    try:
        element = fromstring(data)
    except (ParseError, LookupError):
        return  # libvirt hands out well-formed XML only
    (metadata.network_record if element.tag == "network" else metadata.vm_record)(element)


def _records() -> list[bytes]:
    record = make.record()
    return [metadata.text(metadata.vm_element(record)).encode(), _NETWORK]


_NETWORK = (
    b'<network format="1" lab="acme" name="lan" mode="nat" cidr="10.77.1.0/24"/>'  # see metadata
)


def _manifests() -> list[bytes]:
    labels = {"message": "before the demo"}
    parents = (make.digest(Ref("shop", "v0")),)
    return [manifest.encode(make.version()), manifest.encode(make.version(labels=labels)),
            manifest.encode(make.version(parents=parents, protected=True))]  # fmt: skip


def _marks() -> list[bytes]:
    shop = Ref("shop", "v1")
    vms = (marks.Marked("vm1", shop, make.digest(shop)),)
    pending = (marks.Pending("vm1", Ref("shop", "v2"), "overlay.acme.vm1.00000001.qcow2"),)
    mark = marks.Mark("acme", "demo", "2026-01-01T00:00:00Z", "ann", "a line", vms, pending)
    return [marks.encode(mark)]


def _parked() -> list[bytes]:
    time = "2026-01-01T00:00:00Z"
    return [parked.encode(parked.Parked(make.record(), time, "ann", expires))
            for expires in (parked.START, parked.NEVER, time)]  # fmt: skip


def _warm() -> list[bytes]:
    record = make.record()
    state = warm_states.WarmState(
        lab=record.lab,
        vm=record.name,
        version=record.version,
        digest=record.digest,
        parents=(),
        needs={"its version": "0a" * 32},
        disks=(Frozen("", record.overlay),),
        onto=record.overlay,
        created="2026-01-01T00:00:00Z",
        complete=True,
    )
    return [warm_states.encode(state)]


# --- texts ------------------------------------------------------------------------------------


def _bootc() -> list[bytes]:
    image = {
        "image": {"image": "quay.io/shop/site:v1", "transport": "registry"},
        "imageDigest": f"sha256:{'0a' * 32}",
    }
    status = {"staged": None, "booted": {"image": image}, "rollback": {"image": None}}
    body = {
        "apiVersion": "org.containers.bootc/v1",
        "spec": {"bootOrder": "default"},
        "status": status | {"rollbackQueued": False},
    }
    return [json.dumps(body).encode()]


def _lab(data: bytes) -> None:
    # A file that is not UTF-8 does not get this far (`yamltree.read`).
    parse_lab(data.decode(errors="surrogateescape"), "lab.yaml")


def _labs() -> list[bytes]:
    return [path.read_bytes() for path in sorted(_CHECKOUT.glob("labs/*.yaml"))]


def _image(data: bytes) -> None:
    with _scratch() as work:
        (work / "shop").mkdir()
        (work / "shop/Containerfile").write_text("FROM scratch\n")
        (work / "shop/image.yaml").write_bytes(data)
        load_image(work / "shop")


def _images() -> list[bytes]:
    return [path.read_bytes() for path in sorted(_CHECKOUT.glob("images/*/image.yaml"))]


_CHECKOUT = Path(__file__).parents[2]
_JSON = (b'"', b"{", b"}", b"[", b"]", b":", b",", b"null", b"true", b"1e400", b"NaN", b"-1")
_YAML = (b": ", b"- ", b"\n  ", b"&a ", b"*a", b"<<: ", b"!!python/object:os.system ", b"|\n", b"'")
_XML = (b'"', b"<vm/>", b"&amp;", b"overlay.", b"/../", b'format="1"', b' started="x"')

_TEXTS = (
    Target("dpkg", lambda data: packages.dpkg(data.decode(errors="replace")), lambda: [_STATUS]),
    Target("rpm", rpm_database.header, _rpm_headers, refusal=ValueError),
    Target(
        "bootc",
        lambda data: bootc_status.parse(data.decode(errors="replace")),
        *(_bootc, _JSON, ValueError),
    ),
    Target("lab", _lab, _labs, _YAML),
    Target("image", _image, _images, _YAML),
    Target(
        "backing-name",
        lambda data: named_files(os.fsdecode(data), "/pool"),
        lambda: [b"/pool/base.qcow2", b'json:{"file": {"filename": "/x"}}'],
        _JSON,
    ),
)
_DISKS = (
    Target("qcow2", _disk, lambda: [*_disks("qcow2")(), *_compressed()]),
    Target("vmdk", _disk, _disks("vmdk", "stream"), (b"createType=", b"RW 1 FLAT", b"KDMV")),
    Target("vhd", _disk, _disks("vhd", "vhd-fixed"), (b"conectix", b"cxsparse")),
    Target("vhdx", _disk, _disks("vhdx"), (b"head", b"regi", b"metadata")),
    Target("vdi", _disk, _disks("vdi", "vdi-static")),
    Target("iso", _iso, _isos),
)
_ARCHIVES = (
    Target("ova", _ova, _ovas, (b"path=", b"size=", b"../", b"<File ", b"GNU.")),
    Target("layers", _with_file(rootfs.listing), _layers, (b"SCHILY.xattr.", b"../", b"path=")),
    Target("packages", lambda data: packages.read_tree(io.BytesIO(data)), _layers),
)
_RECORDS = (
    Target("manifest", _resealed(manifest.decode), _manifests, _JSON, ValueError),
    Target("mark", _resealed(marks.decode), _marks, _JSON, ValueError),
    Target("parked", _resealed(parked.decode), _parked, (*_JSON, *_XML), ValueError),
    Target("warm", _resealed(warm_states.decode), _warm, _JSON, ValueError),
    Target("metadata", _record, _records, _XML, ValueError),
)
TARGETS = {one.name: one for one in (*_DISKS, *_ARCHIVES, *_RECORDS, *_TEXTS)}
