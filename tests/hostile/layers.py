"""File systems of container images made to harm whoever builds a disk of them.

Each maker writes a whole tar archive as `podman export` would hand it over: a tree that boots
(`tests.support.oddtree`), and the harm. `CARRIED` are odd, but a disk can hold them: they must
arrive as they are. `REFUSED` are what no disk can hold, or what is no archive at all.
"""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support import oddtree

MTIME = oddtree.MTIME
XATTR = "SCHILY.xattr."
# What the old way of building, a debugfs script, took for a command: it writes a file on the host.
INJECTED = "dump /etc/payload ../../../../../../../../INJECTED"
F, D, S, H = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


class Archive:
    """A tar archive being written."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar

    def add(
        self,
        name: str,
        kind: bytes = F,
        data: bytes = b"",
        *,
        xattrs: Mapping[str, bytes] | None = None,
        **more: object,
    ) -> None:
        """Add a member; `more` are attributes of tarfile's TarInfo."""
        member = tarfile.TarInfo(name)
        member.type, member.mtime, member.size = kind, MTIME, len(data)
        member.mode = 0o755 if kind == D else 0o644
        for key, value in more.items():
            setattr(member, key, value)
        if xattrs:
            # tarfile writes no keys but ASCII.
            names = ((XATTR + key).encode("utf-8", "surrogateescape") for key in xattrs)
            self.raw(extended(pax(*zip(names, xattrs.values(), strict=True))))
        self._tar.addfile(member, io.BytesIO(data))

    def raw(self, data: bytes) -> None:
        """Add bytes that tarfile would not write."""
        assert self._tar.fileobj is not None
        self._tar.fileobj.write(data)
        self._tar.offset += len(data)


Maker = Callable[[Archive], None]


def write(path: Path, maker: Maker, *, systemd: bool = True) -> Path:
    """Write an archive: a tree that boots, then what the maker adds."""
    oddtree.write(path, systemd=systemd)
    with tarfile.open(path, "a", format=tarfile.PAX_FORMAT) as tar:
        maker(Archive(tar))
    return path


def header(name: bytes, kind: bytes, size: int, **fields: bytes) -> bytes:
    """A ustar header block; `fields` replaces fields by their raw bytes."""
    values = {
        "mode": b"0000644\0",
        "uid": b"0000000\0",
        "gid": b"0000000\0",
        "size": b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big"),
        "mtime": b"00000000000\0",
        "link": b"",
    } | fields
    block = struct.pack(
        "100s8s8s8s12s12s8s1s100s8s64x8s8s155s12x",
        name,
        values["mode"],
        values["uid"],
        values["gid"],
        values["size"],
        values["mtime"],
        b" " * 8,
        kind,
        values["link"],
        b"ustar\x0000",
        b"",
        b"",
        b"",
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def padded(data: bytes) -> bytes:
    """Content as an archive holds it: whole blocks of 512 bytes."""
    return data + bytes(-len(data) % 512)


def pax(*records: tuple[bytes, bytes]) -> bytes:
    """The content of an extended header."""
    made = b""
    for key, value in records:
        body = b" " + key + b"=" + value + b"\n"
        length = len(body) + 1
        while len(b"%d" % length) + len(body) != length:
            length = len(b"%d" % length) + len(body)
        made += b"%d" % length + body
    return made


def extended(data: bytes, kind: bytes = b"x") -> bytes:
    """An extended header, with any content."""
    return header(b"PaxHeaders/x", kind, len(data)) + padded(data)


# --- what a disk can hold -----------------------------------------------------------------------


def commands_in_attribute_names(tar: Archive) -> None:
    """Attribute names with line breaks and debugfs commands between them."""
    names = [f"user.a\n{INJECTED}\nuser.b", f'user."\n{INJECTED}', f"user.\r{INJECTED}", "user.-f"]
    tar.add("etc/payload", data=b"PAYLOAD", xattrs=dict.fromkeys(names, b"x"))


def commands_in_names(tar: Archive) -> None:
    """File names that are commands, options, quotes and line breaks."""
    for name in (f"a\n{INJECTED.replace('/', '_')}", 'q"\nquit\n"', "-w", "a\rb", "\x1b[2J", "#x"):
        tar.add(f"odd/{name}", data=b"x")
    tar.add("odd/d\nsif", D)
    tar.add("odd/d\nsif/<2>", data=b"x", xattrs={"user.x": b"y"})


def commands_in_targets(tar: Archive) -> None:
    """The same where symbolic links point."""
    tar.add("odd/link", S, linkname=f'"\n{INJECTED}\n"')
    tar.add("odd/outside", S, linkname="../../../../../../../../etc/passwd")


def longest_names(tar: Archive) -> None:
    """A name and an attribute's name of 255 bytes, a target and a path of 4,095."""
    tar.add("odd/" + "n" * 255, data=b"x", xattrs={"user." + "x" * 250: b"value"})
    tar.add("odd/target", S, linkname="t/" * 2047 + "t")
    tar.add("/".join(["deep" * 63 + "abc"] * 16)[:4095], data=b"x")


def not_utf8(tar: Archive) -> None:
    """Bytes that are no UTF-8 in a name, a target and an attribute's name."""
    tar.add("odd/\udcff\udcfe", data=b"x", xattrs={"user.\udcff": bytes(range(256))})
    tar.add("odd/\udc80", S, linkname="\udcff")


def links_where_poclab_adds(tar: Archive) -> None:
    """Symbolic links at the names of the files that the builder adds."""
    drop_in = "usr/lib/systemd/system/systemd-networkd.service.d"
    tar.add(f"{drop_in}/50-poclab.conf", S, linkname="/VICTIM")
    tar.add("usr/lib/repart.d/50-root.conf", S, linkname="../../../../../../../VICTIM")
    tar.add("etc/fstab", S, linkname="/VICTIM")


def link_above_what_poclab_adds(tar: Archive) -> None:
    """A symbolic link for the directory such a file would be in."""
    tar.add("usr/lib/systemd/system/systemd-networkd.service.d", S, linkname="/")
    tar.add("usr/lib/repart.d", S, linkname="../../../../../../../..")


def directory_where_poclab_adds(tar: Archive) -> None:
    """Directories and a device there."""
    drop_in = "usr/lib/systemd/system/systemd-networkd.service.d"
    tar.add(f"{drop_in}/50-poclab.conf", D)
    tar.add("usr/lib/repart.d/50-root.conf", tarfile.CHRTYPE, devmajor=1, devminor=3)
    tar.add("etc/fstab", D)


def hard_links(tar: Archive) -> None:
    """Second names of a setuid file, a symbolic link, a device and a FIFO."""
    tar.add("odd/suid", data=b"suid", mode=0o6755)
    tar.add("odd/sym", S, linkname="/etc/shadow")
    tar.add("odd/dev", tarfile.BLKTYPE, devmajor=8, devminor=0, mode=0o660)
    tar.add("odd/pipe", tarfile.FIFOTYPE)
    for name in ("suid", "sym", "dev", "pipe"):
        tar.add(f"odd/{name}-2", H, linkname=f"./odd/{name}")


def devices(tar: Archive) -> None:
    """Devices with the largest numbers there are, and modes for everybody."""
    tar.add("odd/mem", tarfile.CHRTYPE, devmajor=1, devminor=1, mode=0o666)
    tar.add("odd/large", tarfile.BLKTYPE, devmajor=259, devminor=4096, mode=0o777)


def owners(tar: Archive) -> None:
    """Owners beyond 16 and 31 bits, as numbers in the header and in an extended one."""
    tar.add("odd/owner", data=b"x", uid=100_000, gid=2**32 - 2, mode=0o7777)
    data = pax((b"uid", b"4294967294"), (b"gid", b"65536"))
    tar.raw(extended(data) + header(b"odd/owner-2", b"0", 1) + padded(b"x"))


def times(tar: Archive) -> None:
    """Times before 1970 and after 2038, fractions, and ones beyond what ext4 has."""
    for number, time in enumerate((b"-1.5", b"4102444800.123456789", b"0", b"1" + b"0" * 18)):
        name = b"odd/time-%d" % number
        tar.raw(extended(pax((b"mtime", time))) + header(name, b"0", 0))


def attributes(tar: Archive) -> None:
    """Capabilities, POSIX ACLs, labels, an empty value, values that need a block."""
    entries = ((1, 7, 0xFFFFFFFF), (2, 6, 1000), (4, 5, 0xFFFFFFFF), (16, 7, 0xFFFFFFFF))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    acl += struct.pack("<HHI", 32, 5, 0xFFFFFFFF)
    tar.add("odd/acl", D, xattrs={"system.posix_acl_access": acl, "system.posix_acl_default": acl})
    label = b"system_u:object_r:etc_t:s0\0"
    many = {"security.selinux": label, "user.empty": b"", "user.large": b"v" * 3000}
    tar.add("odd/many", data=b"x", xattrs=many)
    tar.add("odd/labelled", S, linkname="many", xattrs={"security.selinux": label})
    tar.add("odd/cap", xattrs={"security.capability": oddtree.CAPABILITY, "trusted.t": b"\0\n"})


def sparse_content(tar: Archive) -> None:
    """Long runs of zeros at the beginning, in between and at the end."""
    zeros = bytes(3 << 20)
    tar.add("odd/holes", data=zeros + b"data" + zeros + b"more" + zeros)
    tar.add("odd/zeros", data=zeros)


def ends_and_slashes(tar: Archive) -> None:
    """Names with `./`, double slashes and a slash at the end; a directory twice."""
    tar.add("./odd//./twice/", D, mode=0o700)
    tar.add("odd/twice", D, mode=0o711)
    tar.raw(header(b"odd/old-directory/", b"\0", 0))


def directories_of_ext4(tar: Archive) -> None:
    """Owners, modes and attributes of the two directories that every ext4 has."""
    tar.add(".", D, mode=0o1711, uid=7, xattrs={"user.root": b"x"})
    tar.add("lost+found", D, mode=0o2755, gid=9, xattrs={"security.selinux": b"label"})
    tar.add("lost+found/x", data=b"found")


def large_directory(tar: Archive) -> None:
    """A directory of many blocks."""
    for number in range(1500):
        tar.add(f"odd/large/{number:0200}", data=b"x" * (number % 2))


CARRIED: tuple[Maker, ...] = (
    directories_of_ext4,
    large_directory,
    commands_in_attribute_names,
    commands_in_names,
    commands_in_targets,
    longest_names,
    not_utf8,
    links_where_poclab_adds,
    link_above_what_poclab_adds,
    directory_where_poclab_adds,
    hard_links,
    devices,
    owners,
    times,
    attributes,
    sparse_content,
    ends_and_slashes,
)


def deep(tar: Archive, size: int = 400_000) -> None:
    """A path of so many bytes: with all the directories above it, it takes their square."""
    tar.add("d/" * (size // 2) + "f", data=b"x")


def deep_paths(tar: Archive, count: int = 10) -> None:
    """Paths as long as Linux takes them, each with 2,047 directories of its own above it."""
    for number in range(count):
        tar.add(f"{number:05}/" + "d/" * 2044 + "f")


def short_attributes(tar: Archive, files: int = 10, each: int = 500) -> None:
    """Files with many attributes that have next to no text, and take much memory all the same."""
    xattrs = {f"user.{number:x}": b"" for number in range(each)}
    for number in range(files):
        tar.add(f"odd/{number}", xattrs=xattrs)


# --- what is refused ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Refused:
    """An archive that must be refused.

    Attributes:
        name: what it is.
        maker: adds the harm.
        why: words of the message.
    """

    name: str
    maker: Maker
    why: str


def _member(*arguments: object, **more: object) -> Maker:
    return lambda tar: tar.add(*arguments, **more)  # type: ignore[arg-type]


def _raw(data: bytes) -> Maker:
    return lambda tar: tar.raw(data)


def _several(*makers: Maker) -> Maker:
    def run(tar: Archive) -> None:
        for maker in makers:
            maker(tar)

    return run


def _file(records: bytes, kind: bytes = b"x") -> Maker:
    return _raw(extended(records, kind) + header(b"odd/x", b"0", 0))


def _xattr(name: str, value: bytes = b"x") -> Maker:
    return _member("odd/x", xattrs={name: value})


REFUSED: tuple[Refused, ...] = (
    Refused("dots", _member("../INJECTED"), "contains .."),
    Refused("dots inside", _member("odd/../../INJECTED"), "contains .."),
    Refused("absolute", _member("/INJECTED"), "begins with /"),
    Refused("name of 256 bytes", _member("odd/" + "n" * 256), "longer than 255"),
    Refused("path of 4,096 bytes", _member("odd/" + "n/" * 2045 + "nn"), "longer than 4,095"),
    Refused("path of 400 KiB", deep, "longer than 4,095"),
    Refused("NUL in a name", _file(pax((b"path", b"odd/a\0b"))), "NUL"),
    Refused("through a link", _several(_member("l", S, linkname="/"), _member("l/x")), "directory"),
    Refused("below a file", _several(_member("f"), _member("f/x")), "not a directory"),
    Refused("duplicate name", _several(_member("odd/t"), _member("./odd/t")), "duplicate name"),
    Refused(
        "file, then link", _several(_member("o"), _member("o", S, linkname="/")), "duplicate name"
    ),
    Refused("hard link out", _member("odd/h", H, linkname="../../etc/shadow"), "contains .."),
    Refused("absolute hard link", _member("odd/h", H, linkname="/etc/shadow"), "begins with /"),
    Refused("hard link to nothing", _member("odd/h", H, linkname="none"), "hard link"),
    Refused("hard link to itself", _member("odd/h", H, linkname="odd/h"), "hard link"),
    Refused("hard link to a directory", _member("odd/h", H, linkname="odd"), "hard link"),
    Refused("target of 4,096 bytes", _member("odd/s", S, linkname="t" * 4096), "longer than 4095"),
    Refused("empty target", _member("odd/s", S), "empty"),
    Refused("unknown file type", _raw(header(b"odd/x", b"V", 0)), "unknown file type"),
    Refused("old sparse file", _raw(header(b"odd/x", b"S", 0)), "unknown file type"),
    Refused("sparse file", _file(pax((b"GNU.sparse.size", b"1" + b"0" * 15))), "GNU.sparse"),
    Refused("owner beyond 32 bits", _file(pax((b"uid", b"4294967296"))), "invalid owner"),
    Refused("owner nobody has", _file(pax((b"gid", b"4294967295"))), "invalid owner"),
    Refused("owner below 0", _file(pax((b"uid", b"-1"))), "invalid owner"),
    Refused("owner of letters", _file(pax((b"uid", b"root"))), "uid is"),
    Refused("time of letters", _file(pax((b"mtime", b"now"))), "mtime is"),
    Refused("device beyond", _member("odd/d", tarfile.CHRTYPE, devmajor=4096), "device number"),
    Refused("root as a file", _member("."), "every ext4 has"),
    Refused("lost+found as a link", _member("lost+found", S, linkname="/"), "every ext4 has"),
    Refused("attribute of no kind", _xattr("system.data"), "cannot store"),
    Refused("attribute of another", _xattr("btrfs.compression"), "cannot store"),
    Refused("attribute without a name", _xattr("user."), "bytes"),
    Refused("attribute name of 256", _xattr("user." + "x" * 251), "256 bytes"),
    Refused("attribute line of 9 KiB", _xattr("user." + "x" * 9000 + INJECTED), "bytes"),
    Refused("NUL in an attribute", _file(pax((b"SCHILY.xattr.user.a\0b", b"x"))), "NUL"),
    Refused("attribute of 5 KiB", _xattr("user.x", b"v" * 5000), "take more than"),
    Refused("attribute just too large", _xattr("user.x", b"v" * 4090), "attributes do not fit"),
    Refused("an invalid ACL", _xattr("system.posix_acl_access", b"x" * 11), "written"),
    Refused("PAX bomb", _raw(header(b"x", b"x", 1 << 40)), "too long"),
    Refused(
        "PAX bomb in parts",
        _raw(b"".join(extended(pax((b"comment", b"c" * 300_000))) for _ in range(4))),
        "too long",
    ),
    Refused("PAX without sense", _raw(extended(b"99 path=x\n")), "is invalid"),
    Refused("PAX without a key", _raw(extended(b"5 =x\n")), "is invalid"),
    Refused("PAX of length 0", _raw(extended(b"0 path=x\n" * 3)), "is invalid"),
    Refused("global path", _file(pax((b"path", b"etc/shadow")), b"g"), "has 'path'"),
    Refused("long name bomb", _raw(header(b"x", b"L", 1 << 33)), "too long"),
    Refused("size that lies", _raw(header(b"odd/x", b"0", 1 << 50)), "truncated"),
    Refused("size beyond files", _raw(header(b"odd/x", b"0", 1 << 80)), "truncated"),
    Refused("size below 0", _file(pax((b"size", b"-512"))), "size is"),
    Refused("a wrong checksum", _raw(b"x" * 512), "damaged at byte"),
)
