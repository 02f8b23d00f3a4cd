"""OVA files: what is read of them, and everything an archive can hold that is refused."""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from poclab.core.errors import PoclabError, UsageError
from poclab.disks import ova
from poclab.disks.formats import opened
from tests.support.disks import member, ovf, packed, patched

DATA = os.urandom(3000)
DTD = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>'


def look(path: Path, wanted: str | None = None) -> ova.Ova:
    """What an archive holds."""
    with opened(path, path.name) as window:
        return ova.look(window, wanted)


def sums(*members: tuple[str, bytes], algorithm: str = "sha256") -> bytes:
    """A manifest."""
    lines = [
        f"{algorithm.upper()}({name})= {hashlib.new(algorithm, data).hexdigest()}\n"
        for name, data in members
    ]
    return "".join(lines).encode()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512"])
def test_finds_the_disk(form: int, algorithm: str, tmp_path: Path) -> None:
    name = "d" * 120 + ".vmdk" if form != tarfile.USTAR_FORMAT else "d.vmdk"
    text = ovf(name, text="Microsoft Windows Server 2019 (64-bit)")
    members = (("a.ovf", text), (name, DATA))
    path = packed(
        tmp_path / "a.ova", *members, ("a.mf", sums(*members, algorithm=algorithm)), form=form
    )
    found = look(path)
    assert found.disk.name == name
    assert path.read_bytes()[found.disk.offset :][: found.disk.size] == DATA
    assert found.disk.part.size == 3072
    assert found.system == "Microsoft Windows Server 2019 (64-bit)"
    assert [(one.member.name, one.algorithm) for one in found.digests] == [
        ("a.ovf", algorithm),
        (name, algorithm),
    ]
    assert found.digests[1].value == hashlib.new(algorithm, DATA).hexdigest()


def test_chooses_a_disk_of_several(tmp_path: Path) -> None:
    path = packed(
        tmp_path / "a.ova",
        ("a.ovf", ovf("one.vmdk", "two.vmdk")),
        ("one.vmdk", b"1"),
        ("two.vmdk", b"2"),
    )
    with pytest.raises(UsageError, match="several disks") as error:
        look(path)
    assert "'one.vmdk', 'two.vmdk'" in error.value.why
    assert look(path, "two.vmdk").disk.name == "two.vmdk"
    assert look(path, "vmdisk0").disk.name == "one.vmdk"
    with pytest.raises(UsageError, match=r"no disk 'three.vmdk'"):
        look(path, "three.vmdk")


def test_takes_names_as_archives_have_them(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.ova", ("./a.ovf", ovf("my%20disk.vmdk")), ("./my disk.vmdk", DATA))
    assert look(path).disk.name == "my disk.vmdk"


GOOD = ("a.ovf", ovf("d.vmdk"))
DISK = ("d.vmdk", DATA)


def of(*members: tuple[str, bytes] | tarfile.TarInfo) -> Callable[[Path], Path]:
    return lambda path: packed(path, *members)


def typed(kind: bytes, name: str = "x") -> Callable[[Path], Path]:
    return of(GOOD, DISK, member(name, 0, kind))


def lying(size: int) -> Callable[[Path], Path]:
    """A member whose header promises more than there is."""

    def make(path: Path) -> Path:
        packed(path, GOOD)
        header = member("d.vmdk", size).tobuf(tarfile.GNU_FORMAT)
        with path.open("r+b") as file:
            file.seek(512 + -(-len(GOOD[1]) // 512) * 512)
            file.write(header + bytes(10240))
        return path

    return make


def pax(**headers: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        info = member("d.vmdk", 0)
        info.pax_headers = headers
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            archive.addfile(info)
        return path

    return make


def global_path(path: Path) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"path": "d"}) as archive:
        archive.addfile(member("x"))
    return path


def damaged(path: Path) -> Path:
    packed(path, GOOD, DISK)
    return patched(path, 512 + -(-len(GOOD[1]) // 512) * 512 + 3, b"X")


def manifest(text: bytes) -> Callable[[Path], Path]:
    return of(GOOD, DISK, ("a.mf", text))


REFUSED: list[tuple[str, Callable[[Path], Path], str]] = [
    ("no OVF", of(DISK), "without an OVF"),
    ("two OVFs", of(GOOD, ("b.OVF", ovf("d.vmdk")), DISK), "several .ovf"),
    ("no disk", of(("a.ovf", ovf())), "describes no disk"),
    ("absent disk", of(GOOD), "which is not in it"),
    ("twice", of(GOOD, DISK, DISK), "twice"),
    ("twice by ./", of(GOOD, DISK, ("./d.vmdk", b"")), "twice"),
    ("symlink", typed(tarfile.SYMTYPE), "no regular file"),
    ("hard link", typed(tarfile.LNKTYPE), "no regular file"),
    ("device", typed(tarfile.CHRTYPE), "no regular file"),
    ("block device", typed(tarfile.BLKTYPE), "no regular file"),
    ("FIFO", typed(tarfile.FIFOTYPE), "no regular file"),
    ("directory", typed(tarfile.DIRTYPE), "no regular file"),
    ("GNU sparse", typed(tarfile.GNUTYPE_SPARSE), "no regular file"),
    ("../", typed(tarfile.REGTYPE, "../x"), "name is '../x'"),
    ("absolute", typed(tarfile.REGTYPE, "/etc/x"), "name is"),
    ("..", typed(tarfile.REGTYPE, ".."), "name is"),
    ("control character", typed(tarfile.REGTYPE, "a\nb"), "name is"),
    ("truncated", lying(1 << 20), "goes beyond its end"),
    ("8 EiB", lying((1 << 63) - 1), "goes beyond its end"),
    ("pax size", pax(size=str(1 << 50)), "goes beyond its end"),
    ("pax size of words", pax(size="1e9"), "size is '1e9'"),
    ("pax sparse", pax(**{"GNU.sparse.major": "1"}), "GNU.sparse"),
    ("pax path", pax(path="../d"), "name is '../d'"),
    ("long pax header", pax(comment="x" * 100_000), "too long"),
    ("global path", global_path, "has 'path'"),
    ("damaged header", damaged, "damaged at byte"),
    ("many members", of(*[(f"{n}", b"") for n in range(1001)]), "more than 1000"),
    ("huge OVF", of(("a.ovf", b" " * (2 << 20)), DISK), "too large"),
    ("bomb", of(("a.ovf", DTD + ovf("d.vmdk")[39:]), DISK), "document type"),
    ("bomb in UTF-16", of(("a.ovf", DTD.decode().encode("utf-16")), DISK), "not UTF-8"),
    ("no XML", of(("a.ovf", b"hello"), DISK), "not well-formed"),
    ("another XML", of(("a.ovf", b"<a/>"), DISK), "is no OVF"),
    ("deep XML", of(("a.ovf", b"<a>" * 100_000), DISK), "nested more than"),
    ("compressed member", of(("a.ovf", ovf("d.vmdk", extra='ovf:compression="gzip"')), DISK),
     "compressed or split"),
    ("split member", of(("a.ovf", ovf("d.vmdk", extra='ovf:chunkSize="9"')), DISK),
     "compressed or split"),
    ("difference", of(("a.ovf", ovf("d.vmdk", parent='ovf:parentRef="x"')), DISK), "differences"),
    ("href elsewhere", of(("a.ovf", ovf("../d.vmdk")), DISK), "which is not in it"),
    ("href URL", of(("a.ovf", ovf("http://127.0.0.1/d.vmdk")), DISK), "which is not in it"),
    ("manifest of nothing", manifest(b""), "does not name"),
    ("manifest without the OVF", manifest(sums(DISK)), "does not name 'a.ovf'"),
    ("manifest of an absent file", manifest(sums(GOOD, DISK, ("b", b""))), "which is not in it"),
    ("manifest naming twice", manifest(sums(GOOD, DISK, DISK)), "twice"),
    ("manifest of words", manifest(b"hello\n"), "the line 'hello'"),
    ("manifest of a short digest", manifest(b"SHA256(d.vmdk)= 00\n"), "the line"),
    ("two manifests", of(GOOD, DISK, ("a.mf", b""), ("b.mf", b"")), "several .mf"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "expected"), [x[1:] for x in REFUSED], ids=[x[0] for x in REFUSED]
)
def test_refuses(make: Callable[[Path], Path], expected: str, tmp_path: Path) -> None:
    path = make(tmp_path / "evil.ova")
    with pytest.raises(PoclabError) as refusal:
        look(path)
    assert expected in str(refusal.value)
    assert "evil.ova" in refusal.value.what
    assert len(refusal.value.lines()) <= 3
    assert all("\n" not in line for line in refusal.value.lines())
    assert list(tmp_path.iterdir()) == [path]


def test_never_unpacks_what_is_compressed(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.ova", GOOD, DISK)
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(PoclabError, match="damaged at byte 0"):
        look(path)
