"""From an exported container image to an ext4 file system, without any privilege.

The image's files are never unpacked. mke2fs makes an empty file system inside the disk file, and
a process of poclab's own (`ext4writer`) writes each file of the archive straight into it with
libext2fs: names, targets, attributes and content are data all the way, and nothing an image holds
is ever a path, a command or a link on this host. Owners, modes, capabilities and device nodes are
written as numbers, so nobody needs to be root, and every user gets the same bytes.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
from base64 import b64encode
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from poclab.core import events, free_space
from poclab.core.errors import PoclabError
from poclab.core.plaintext import plain, shown
from poclab.core.process import runner
from poclab.core.tar_reader import Held, Member, TarError, TarReader, encoded
from poclab.core.units import GIB, MIB, format_size

_BLOCK = 4096
_INODE = 256
# Directories a container runtime makes for itself and a kernel or an init mounts on.
_MOUNT_POINTS = {"dev": 0o755, "proc": 0o555, "run": 0o755, "sys": 0o555, "tmp": 0o1777}
# What ext4 can carry (kernel: Documentation/filesystems/ext4, fs/ext4/ext4.h, limits.h).
_NAME_MAX, _TARGET_MAX, _LINK_MAX = 255, 4095, 65000
_PATH_MAX = 4095  # limits.h: PATH_MAX, without the NUL at its end; longer ones nobody can open
_XATTR_NAME_MAX = 255
_ID_MAX = (1 << 32) - 2  # the largest number says "nobody is set" (chown(2))
_MAJOR_MAX, _MINOR_MAX = (1 << 12) - 1, (1 << 20) - 1
# Attribute names ext4 stores (fs/ext4/xattr.c): `system.` has these two and nothing else.
_XATTR_PREFIXES = (b"user.", b"trusted.", b"security.")
_XATTR_WHOLE = (b"system.posix_acl_access", b"system.posix_acl_default")

Members = dict[str, Member]


@dataclass
class Tree:
    """The files of a root file system to be.

    Attributes:
        tar: the archive most of the content is in.
        members: the files by path, without `/` before it; the root directory is "".
        added: the content of files that are not in the archive, by path.
    """

    tar: Path
    members: Members
    added: dict[str, bytes] = field(default_factory=dict)

    def add(self, name: str, content: bytes, mtime: int, like: Member | None = None) -> None:
        """Add or replace a small file, with the directories above it.

        Args:
            name: its path.
            content: what is in it.
            mtime: seconds since 1970.
            like: a file whose owner and mode it takes; root's and 0644 otherwise.
        """
        above = name.split("/")[:-1]
        for depth in range(1, len(above) + 1):
            parent = "/".join(above[:depth])
            if parent not in self.members:
                self.members[parent] = directory(parent, 0o755, mtime)
        made = Member(name, "file", mtime=mtime * 10**9)
        if like is not None:
            made = replace(like, name=name)
        self.members[name] = replace(made, size=len(content))
        self.added[name] = content

    def read(self, name: str, most: int) -> bytes:
        """Read the beginning of a file of the archive."""
        with self.tar.open("rb") as tar:
            member = self.members[name]
            tar.seek(member.offset)
            return tar.read(min(member.size, most))

    def copy(self, name: str, target: Path) -> None:
        """Copy a file's content out of the archive into a new file.

        Raises:
            OSError: there is no room, or the file exists.
        """
        member = self.members[self.resolved(name)]
        with self.tar.open("rb") as tar, target.open("xb") as copy:
            tar.seek(member.offset)
            left = member.size
            while left and (piece := tar.read(min(left, MIB))):
                copy.write(piece)
                left -= len(piece)

    def resolved(self, name: str) -> str:
        """Give the name a hard link stands for; for any other file, its own."""
        member = self.members[name]
        return _safe(member.target) if member.kind == "hardlink" else name


def check_library() -> None:
    """Check that the library that writes ext4 can be loaded.

    Raises:
        PoclabError: it is missing, or too old.
    """
    from poclab.builders import ext2fs

    try:
        ext2fs.Library()
    except OSError as error:
        raise PoclabError(
            f"{ext2fs.LIBRARY} cannot be loaded",
            why=plain(str(error)),
            fix="install the package e2fsprogs, version 1.46 or later",
        ) from error


def listing(tar: Path) -> Members:
    """List what a tar file contains, by path without a leading `./`; the root directory is "".

    Raises:
        PoclabError: it is damaged, or holds a file that ext4 cannot carry or that leads out of
            the tree.
    """
    members: Members = {}
    with tar.open("rb") as stream:
        reader = TarReader(stream, seekable=True)
        try:
            for member in reader:
                name = _safe(member.name)
                before = members.get(name)
                if before is not None and not before.kind == member.kind == "directory":
                    raise _odd(member.name, "duplicate name")
                _check_one(name, member)
                members[name] = member
            _add_parents(members, reader.held)
        except TarError as error:
            raise PoclabError("the exported image cannot be read", why=str(error)) from error
    _check_tree(members)
    return members


def kinds(members: Members, *wanted: str) -> list[str]:
    """Give the names of the files of some kinds."""
    return [name for name, member in members.items() if member.kind in wanted]


def _safe(raw: str) -> str:
    if raw.startswith("/"):
        raise _odd(raw, "it begins with /")
    parts = [part for part in raw.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _odd(raw, "it contains ..")
    return "/".join(parts)


def _odd(name: str, why: str) -> PoclabError:
    return PoclabError(
        f"the container image has a file that cannot be put on a disk: {shown(name, 120)}",
        why=why,
        fix="remove or rename it in the Containerfile",
    )


def _check_one(name: str, member: Member) -> None:
    """Check that ext4 can carry a file."""
    if "\0" in member.name or "\0" in member.target:
        raise _odd(member.name, "its name or target contains a NUL byte")
    if len(encoded(name)) > _PATH_MAX:
        # Each directory above it has a path of its own: together they take the square of this.
        raise _odd(member.name, f"its path is longer than {_PATH_MAX:,} bytes")
    if any(len(encoded(part)) > _NAME_MAX for part in name.split("/")):
        raise _odd(member.name, f"a part of its name is longer than {_NAME_MAX} bytes")
    if not (0 <= member.uid <= _ID_MAX and 0 <= member.gid <= _ID_MAX):
        raise _odd(member.name, f"invalid owner {member.uid}:{member.gid}")
    if member.kind == "other":
        raise _odd(member.name, "unknown file type")
    major, minor = member.device
    if not (0 <= major <= _MAJOR_MAX and 0 <= minor <= _MINOR_MAX):
        raise _odd(member.name, f"invalid device number {major}:{minor}")
    if member.kind == "symlink" and not 1 <= len(encoded(member.target)) <= _TARGET_MAX:
        raise _odd(member.name, f"its target is empty or longer than {_TARGET_MAX} bytes")
    if name in ("", "lost+found") and member.kind != "directory":
        raise _odd(member.name, "this name belongs to a directory that every ext4 has")
    for key in member.xattrs:
        _check_xattr(member, key)
    if sum(len(key) + len(value) for key, value in member.xattrs.items()) > _BLOCK + _INODE:
        raise _odd(member.name, f"its extended attributes take more than {_BLOCK} bytes")


def _check_xattr(member: Member, key: bytes) -> None:
    text = shown(key.decode("utf-8", "surrogateescape"), 120)
    prefix = next((p for p in _XATTR_PREFIXES if key.startswith(p)), None)
    if prefix is None and key not in _XATTR_WHOLE:
        raise _odd(member.name, f"ext4 cannot store its extended attribute {text}")
    if prefix is not None and not len(prefix) < len(key) <= _XATTR_NAME_MAX:
        raise _odd(member.name, f"its extended attribute {text} has a name of {len(key)} bytes")
    if b"\0" in key:
        raise _odd(member.name, f"its extended attribute {text} contains a NUL byte")


def _add_parents(members: Members, held: Held) -> None:
    """Add the directories that are only parts of paths.

    Raises:
        TarError: if there are more than memory is given for.
    """
    for name, member in list(members.items()):
        parent = os.path.dirname(name)  # noqa: PTH120 - text, not a path of this host
        while parent and parent not in members:
            held.add(len(parent))
            members[parent] = directory(parent, 0o755, member.mtime // 10**9)
            parent = os.path.dirname(parent)  # noqa: PTH120


def _check_tree(members: Members) -> None:
    """Check that every parent is a directory and every hard link has its file."""
    links: dict[str, int] = {}
    for name, member in members.items():
        parent = os.path.dirname(name)  # noqa: PTH120
        if parent and members[parent].kind != "directory":
            raise _odd(member.name, f"{shown(parent)} is not a directory")
        if member.kind == "hardlink":
            target = _safe(member.target)
            if target not in members or members[target].kind in ("directory", "hardlink"):
                raise _odd(member.name, f"it is a hard link to {shown(member.target)}")
            links[target] = links.get(target, 1) + 1
    for name, member in members.items():
        if member.kind == "directory" and name:
            parent = os.path.dirname(name)  # noqa: PTH120
            links[parent] = links.get(parent, 2) + 1
    for name, count in links.items():
        if count > _LINK_MAX:
            raise _odd(f"/{name}", f"it has more than {_LINK_MAX:,} links")


def directory(name: str, mode: int, mtime: int) -> Member:
    """A directory of root's; the time in seconds."""
    return Member(name, "directory", mode, mtime=mtime * 10**9)


def complete(members: Members, mtime: int) -> None:
    """Add the root directory and the mount points that an image may lack."""
    members.setdefault("", directory("", 0o755, mtime))
    for name, mode in _MOUNT_POINTS.items():
        members.setdefault(name, directory(name, mode, mtime))


def content_size(members: Members) -> int:
    """Estimate the bytes that the files take in ext4: whole blocks, inodes, directories."""
    size = 0
    for member in members.values():
        size += _INODE + 64
        size += -(-member.size // _BLOCK) * _BLOCK
        if member.kind == "directory":
            size += _BLOCK
        if len(member.target) > 59 or member.text_size > _INODE:
            size += _BLOCK
    return size


# The features of an ext4 made by e2fsprogs 1.43 to 1.46: every kernel since 4.4 mounts it,
# whatever the host's /etc/mke2fs.conf says.
_MKE2FS_CONF = """[defaults]
base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
default_mntopts = acl,user_xattr
enable_periodic_fsck = 0
blocksize = 4096
inode_size = 256
inode_ratio = 16384
[fs_types]
ext4 = {
features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
}
"""


def make_ext4(
    work: Path, disk: str, *, offset: int, size: int, uuid: str, files: int, epoch: int
) -> None:
    """Make an empty ext4 inside a disk file.

    Args:
        work: the directory the disk is in; programs run in it, so that no character of its
            path can be taken for an option.
        disk: the disk file's name.
        offset: where in the disk the file system begins, in bytes.
        size: its size in bytes.
        uuid: its UUID; also seeds its directory hashes.
        files: how many files it must have room for.
        epoch: the time it is made at.

    Raises:
        PoclabError: mke2fs failed.
    """
    config = work / "mke2fs.conf"
    config.write_text(_MKE2FS_CONF)
    extended = f"offset={offset},hash_seed={uuid},root_owner=0:0"
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-U", uuid, "-m", "1"]
    argv += ["-E", extended]
    inodes = files + files // 4 + 64
    if inodes > size // 16384:
        argv += ["-N", str(inodes)]
    env = _environment(epoch) | {"MKE2FS_CONFIG": str(config)}
    result = runner().run(
        [*argv, disk, f"{size // 1024}k"], cwd=work, env=env, check=False, timeout=3600
    )
    text = result.stdout + result.stderr
    if result.code != 0 or "while writing" in text:
        if "Not enough space" in text or "too small" in text or "too big" in text:
            raise too_small(size)
        raise PoclabError("mke2fs failed", why=result.last_line)


def too_small(size: int, needed: int = 0) -> PoclabError:
    """The error for files that do not fit."""
    fix = f"give the image a disk size of at least {format_size(needed)}" if needed else ""
    return PoclabError(
        f"the files do not fit in a root file system of {format_size(size)}",
        fix=fix or "give the image a larger disk size, or none",
    )


def fill(work: Path, disk: str, tree: Tree, *, offset: int, size: int, epoch: int) -> None:
    """Write a tree's files into the empty ext4 inside a disk file.

    The order is that of the names, so that the same tree gives the same bytes.

    Args:
        work: the directory the disk is in.
        disk: the disk file's name.
        tree: the files.
        offset: where in the disk the file system begins, in bytes.
        size: its size in bytes.
        epoch: the time of the file system.

    Raises:
        PoclabError: the files do not fit, could not be written, or leave no room on the host.
    """
    plan = work / "root.plan"
    with os.fdopen(os.open(plan, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        _write_plan(file, disk, tree, offset)
    # -P: no modules from the work directory. PYTHONPATH: of this very poclab instead.
    argv = [sys.executable, "-P", "-s", "-m", "poclab.builders.ext4writer", plan.name]
    env = _environment(epoch) | {"PYTHONPATH": str(Path(__file__).absolute().parents[2])}
    reader = _Reader(len(tree.members))
    # Memory is some 100 MiB; the disk is the only file it may write, and not beyond its end.
    limits = {
        resource.RLIMIT_AS: 4 * GIB,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: offset + size,
    }
    # The disk's file is sparse: its blocks are taken as they are written.
    watch = free_space.watch(work, "the image's files", place=work.parent)
    code = runner().stream(
        argv, reader.line, env=env, cwd=work, timeout=3600, limits=limits, watch=watch
    )
    if code != 0:
        raise reader.error(size, code)
    plan.unlink()


def _environment(epoch: int) -> dict[str, str]:
    # libext2fs takes the time from here (openfs.c, initialize.c).
    return {"E2FSPROGS_FAKE_TIME": str(epoch), "TZ": "UTC"}


def _write_plan(file: IO[str], disk: str, tree: Tree, offset: int) -> None:
    head = {"disk": disk, "offset": offset, "tar": str(tree.tar.absolute())}
    for row in (head, *_rows(tree)):
        file.write(json.dumps(row) + "\n")


def _rows(tree: Tree) -> Iterator[dict[str, object]]:
    def order(item: tuple[str, Member]) -> tuple[bool, bytes]:
        return item[1].kind == "hardlink", encoded(item[0])

    for name, member in sorted(tree.members.items(), key=order):
        content = tree.added.get(name)
        xattrs = {
            key.decode("utf-8", "surrogateescape"): b64encode(value).decode()
            for key, value in member.xattrs.items()
        }
        yield {
            "path": name,
            "kind": member.kind,
            "mode": 0o777 if member.kind == "symlink" else member.mode,
            "uid": member.uid,
            "gid": member.gid,
            "mtime": member.mtime,
            "size": member.size,
            "offset": member.offset,
            "content": None if content is None else b64encode(content).decode(),
            "target": _safe(member.target) if member.kind == "hardlink" else member.target,
            "device": member.device,
            "xattrs": xattrs,
        }


class _Reader:
    """Reads the lines of `ext4writer`; a line of another form counts as its last words."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._failure: dict[str, object] = {}
        self._last = ""

    def line(self, text: str) -> None:
        if match := re.fullmatch(r"progress ([0-9]{1,9})", text):
            events.progress("write the files", int(match[1]), self._total)
        elif text.startswith("failed {"):
            with suppress(ValueError):
                self._failure = json.loads(text.removeprefix("failed "))
        elif text.strip():
            self._last = text

    def error(self, size: int, code: int) -> PoclabError:
        why = plain(str(self._failure.get("why", self._last)))
        path = str(self._failure.get("path", ""))
        if self._failure.get("kind") == "full":
            return too_small(size)
        if self._failure.get("kind") == "attributes":
            return _odd(path, "its extended attributes do not fit into a block")
        where = f"{shown(f'/{path}', 120)}: " if path else ""
        return PoclabError(
            "the root file system could not be written",
            why=where + (why or f"the process that writes it ended with status {code}"),
            fix="remove or change that file in the Containerfile"
            if path
            else "build again with -v, which shows the programs that are started",
        )


def check_ext4(work: Path, disk: str, offset: int, epoch: int) -> None:
    """Have e2fsck look at the file system inside a disk file, changing nothing.

    Raises:
        PoclabError: it found something.
    """
    argv = ["e2fsck", "-f", "-n", f"{disk}?offset={offset}"]
    result = runner().run(argv, cwd=work, env=_environment(epoch), check=False, timeout=3600)
    if result.code != 0:
        lines = [x for x in result.stdout.splitlines() if x and not x.startswith("Pass ")]
        why = lines[0] if lines else result.last_line
        raise PoclabError("the root file system that was made is damaged", why=why[:300])


def newest(members: Iterable[Member]) -> int:
    """Find the newest file's time, in seconds since 1970."""
    return max((member.mtime // 10**9 for member in members), default=0)
