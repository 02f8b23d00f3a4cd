"""From an exported container image to an ext4 file system, without any privilege.

The files are unpacked as the calling user and copied into the file system by
`mke2fs -d`; what that user may not set on the host (owners, modes, capabilities, device
nodes) is then written straight into the file system by one run of debugfs. Root takes the
same way, so that both get the same bytes. 50,000 files take debugfs about two seconds.
"""

from __future__ import annotations

import copy
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from poclab import events
from poclab.errors import PoclabError
from poclab.names import shown
from poclab.run import runner
from poclab.units import MIB, format_size

_XATTR = "SCHILY.xattr."
_BLOCK = 4096
_INODE = 256
# i_mode's file types (inode(7)).
_REGULAR, _DIRECTORY, _SYMLINK = 0o100000, 0o040000, 0o120000
_TYPES = {tarfile.DIRTYPE: _DIRECTORY, tarfile.SYMTYPE: _SYMLINK}
_NODES = {
    tarfile.CHRTYPE: (0o020000, "c"),
    tarfile.BLKTYPE: (0o060000, "b"),
    tarfile.FIFOTYPE: (0o010000, "p"),
}
# Directories a container runtime makes for itself and a kernel or an init mounts on.
_MOUNT_POINTS = {"dev": 0o755, "proc": 0o555, "run": 0o755, "sys": 0o555, "tmp": 0o1777}

Members = dict[str, tarfile.TarInfo]


@contextmanager
def opened(tar: Path) -> Iterator[tarfile.TarFile]:
    """Open an uncompressed tar file.

    Raises:
        PoclabError: it is none, or is cut off.
    """
    try:
        with tarfile.open(tar, "r:", errorlevel=2) as archive:
            yield archive
    except tarfile.TarError as error:
        raise PoclabError("the exported image cannot be read", why=str(error)) from error


def listing(tar: Path) -> Members:
    """What a tar file holds, by path without a leading `./`; the root directory is "".

    Raises:
        PoclabError: a name could lead out of the tree, occurs twice or cannot be handled.
    """
    members: Members = {}
    _check_end(tar)
    with opened(tar) as archive:
        for member in archive:
            name = _safe(member.name)
            before = members.get(name)
            if before is not None and not (before.isdir() and member.isdir()):
                raise _odd(member.name, "it occurs twice")
            members[name] = member
    _check(members)
    return members


def _check_end(tar: Path) -> None:
    """A tar file ends with two blocks of zeros (POSIX pax); tarfile does without them."""
    with tar.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1024))
        if file.read() != bytes(1024):
            raise PoclabError("the exported image cannot be read", why="it is cut off")


def _safe(raw: str) -> str:
    if raw.startswith("/"):
        raise _odd(raw, "it begins with /")
    parts = [part for part in raw.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _odd(raw, "it holds ..")
    # debugfs reads its commands line by line and has no way to write these.
    if any(char in raw for char in "\n\r\0"):
        raise _odd(raw, "it holds a line break")
    return "/".join(parts)


def _odd(name: str, why: str) -> PoclabError:
    return PoclabError(f"the container image has a file called {shown(name, 120)}", why=why)


def _check(members: Members) -> None:
    """Every parent is a directory (a missing one is added), every hard link has its file."""
    for name, member in list(members.items()):
        parent = os.path.dirname(name)  # noqa: PTH120 - text, not a path of this host
        while parent and parent not in members:
            members[parent] = directory(parent, 0o755, int(member.mtime))
            parent = os.path.dirname(parent)  # noqa: PTH120
        if parent and not members[parent].isdir():
            raise _odd(member.name, f"{shown(parent)} is not a directory")
        if member.islnk():
            target = members.get(_safe(member.linkname))
            if target is None or not (target.isreg() or target.issym()):
                raise _odd(member.name, f"it is a hard link to {shown(member.linkname)}")
            if target.issym():
                # mke2fs copies each name of a symbolic link as a link of its own.
                members[name] = _renamed(target, name)
        elif not (member.isreg() or member.type in _TYPES or member.type in _NODES):
            raise _odd(member.name, f"its type is {member.type!r}")


def _renamed(member: tarfile.TarInfo, name: str) -> tarfile.TarInfo:
    made = copy.copy(member)
    made.name = name
    return made


def directory(name: str, mode: int, mtime: int) -> tarfile.TarInfo:
    """A directory of root's."""
    made = tarfile.TarInfo(name)
    made.type, made.mode, made.mtime = tarfile.DIRTYPE, mode, mtime
    return made


def complete(members: Members, mtime: int) -> None:
    """Add the root directory and the mount points that an image may lack."""
    members.setdefault("", directory("", 0o755, mtime))
    for name, mode in _MOUNT_POINTS.items():
        members.setdefault(name, directory(name, mode, mtime))


def content_size(members: Members) -> int:
    """Bytes that the files take in ext4: whole blocks, inodes, directories."""
    size = 0
    for member in members.values():
        size += _INODE + 64
        if member.isreg():
            size += -(-member.size // _BLOCK) * _BLOCK
        elif member.isdir():
            size += _BLOCK
    return size


def unpack(tar: Path, members: Members, tree: Path) -> None:
    """Unpack the files, as this user's own and readable by this user alone.

    Nothing is ever written through a link: `listing` saw to it that every parent is a
    directory, and each file is made new.

    Raises:
        PoclabError: the tar file is damaged.
        OSError: there is no room.
    """
    tree.mkdir(mode=0o700)
    for name in sorted(name for name, member in members.items() if member.isdir() and name):
        (tree / name).mkdir(mode=0o700)
    # In the order of their names: mke2fs gives inodes in the order it finds files, which
    # for some host file systems is the order they were made in.
    wanted = sorted(name for name, m in members.items() if m.isreg() or m.issym())
    total = len(wanted)
    with opened(tar) as archive:
        for count, name in enumerate(wanted):
            _unpack_one(archive, members[name], tree / name)
            if count % 1000 == 0:
                events.progress("unpack", count, total)
    _link(members, tree)


def _unpack_one(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    if member.issym():
        path.symlink_to(member.linkname)
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as target:
        source = archive.extractfile(member)
        assert source is not None
        shutil.copyfileobj(source, target, MIB)
        if target.tell() != member.size:
            raise PoclabError("the exported image is cut off")


def _link(members: Members, tree: Path) -> None:
    for name in sorted(name for name, member in members.items() if member.islnk()):
        target = tree / _safe(members[name].linkname)
        os.link(target, tree / name, follow_symlinks=False)


def add_file(members: Members, tree: Path, name: str, text: str, mtime: int) -> None:
    """Add a small file of root's to an unpacked tree, with the directories above it."""
    above = name.split("/")[:-1]
    for depth in range(1, len(above) + 1):
        parent = "/".join(above[:depth])
        if parent not in members:
            members[parent] = directory(parent, 0o755, mtime)
            (tree / parent).mkdir(mode=0o700)
    (tree / name).write_bytes(text.encode(errors="surrogateescape"))
    member = tarfile.TarInfo(name)
    member.mode, member.mtime, member.size = (
        0o644,
        mtime,
        len(text.encode(errors="surrogateescape")),
    )
    members[name] = member


def debugfs_script(members: Members, tree: Path, values: Path) -> list[str]:
    """The debugfs commands that give the files their owners, modes, xattrs and nodes.

    Args:
        members: the files.
        tree: where they are unpacked; xattrs the host put on them (SELinux labels, ACLs
            inherited from a directory) are removed again.
        values: a directory for the values of xattrs, which may hold any byte.
    """
    commands: list[str] = []
    numbers: dict[bytes, Path] = {}
    inodes = [(name, m) for name, m in sorted(members.items()) if not m.islnk()]
    # All nodes first: making one changes the time of the directory it is in.
    for name, member in inodes:
        if member.type in _NODES:
            commands += _make_node(name, member)
    for name, member in inodes:
        path = _quoted(f"/{name}")
        commands += _set_inode(path, member)
        wanted = _xattrs(member)
        if member.type not in _NODES:
            present = os.listxattr(tree / name, follow_symlinks=False)
            commands += [f"ea_rm {path} {_quoted(x)}" for x in present if x not in wanted]
        for key, value in sorted(wanted.items()):
            file = numbers.get(value)
            if file is None:
                file = numbers[value] = values / str(len(numbers))
                file.write_bytes(value)
            commands.append(f"ea_set -f {values.name}/{file.name} {path} {_quoted(key)}")
    return commands


def _make_node(name: str, member: tarfile.TarInfo) -> list[str]:
    letter = _NODES[member.type][1]
    parent, _, base = name.rpartition("/")
    device = "" if letter == "p" else f" {member.devmajor} {member.devminor}"
    # mknod takes a name in the current directory, not a path.
    return [f"cd {_quoted('/' + parent)}", f"mknod {_quoted(base)} {letter}{device}"]


def _set_inode(path: str, member: tarfile.TarInfo) -> list[str]:
    node = _NODES.get(member.type)
    kind = node[0] if node else _TYPES.get(member.type, _REGULAR)
    mode = 0o777 if member.issym() else member.mode & 0o7777
    fields = {"mode": f"0{kind | mode:o}", "uid": str(member.uid), "gid": str(member.gid)}
    # The host's files have the time of unpacking.
    fields |= dict.fromkeys(("atime", "ctime", "mtime"), f"@{int(member.mtime)}")
    return [f"sif {path} {field} {value}" for field, value in fields.items()]


def _xattrs(member: tarfile.TarInfo) -> dict[str, bytes]:
    return {
        key.removeprefix(_XATTR): value.encode("utf-8", "surrogateescape")
        for key, value in member.pax_headers.items()
        if key.startswith(_XATTR)
    }


def _quoted(text: str) -> str:
    # lib/ss/parse.c: a string in double quotes, in which two of them stand for one.
    return '"' + text.replace('"', '""') + '"'


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
    work: Path, disk: str, tree: str, *, offset: int, size: int, uuid: str, files: int, epoch: int
) -> None:
    """Make an ext4 with a tree's files inside a disk file.

    Args:
        work: the directory both are in; programs run in it, so that no character of its
            path can be taken for an option.
        disk: the disk file's name.
        tree: the tree's name.
        offset: where in the disk the file system begins, in bytes.
        size: its size in bytes.
        uuid: its UUID; also seeds its directory hashes.
        files: how many files it must have room for.
        epoch: the time it is made at.

    Raises:
        PoclabError: the files do not fit, or mke2fs failed.
    """
    config = work / "mke2fs.conf"
    config.write_text(_MKE2FS_CONF)
    extended = f"offset={offset},hash_seed={uuid},root_owner=0:0"
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-U", uuid, "-m", "1"]
    argv += ["-E", extended, "-d", tree]
    inodes = files + files // 4 + 64
    if inodes > size // 16384:
        argv += ["-N", str(inodes)]
    env = {"MKE2FS_CONFIG": str(config), "E2FSPROGS_FAKE_TIME": str(epoch), "TZ": "UTC"}
    result = runner().run(
        [*argv, disk, f"{size // 1024}k"], cwd=work, env=env, check=False, timeout=3600
    )
    text = result.stdout + result.stderr
    if result.code != 0 or "while populating" in text or "while writing" in text:
        # ext2_err.et: what libext2fs says when the file system, not the host's, is full.
        if "Could not allocate" in text or "No free" in text:
            raise too_small(size)
        raise PoclabError("mke2fs failed", why=result.last_line)


def too_small(size: int, needed: int = 0) -> PoclabError:
    """The error for files that do not fit."""
    fix = f"give the image a disk size of at least {format_size(needed)}" if needed else ""
    return PoclabError(
        f"the files do not fit in a root file system of {format_size(size)}",
        fix=fix or "give the image a larger disk size, or none",
    )


def apply_script(work: Path, disk: str, offset: int, commands: list[str], epoch: int) -> None:
    """Run debugfs commands on the file system inside a disk file.

    Raises:
        PoclabError: one of them failed.
    """
    script = work / "debugfs.cmd"
    script.write_bytes(b"".join(os.fsencode(command) + b"\n" for command in commands))
    env = {"E2FSPROGS_FAKE_TIME": str(epoch), "TZ": "UTC"}
    argv = ["debugfs", "-w", "-f", script.name, f"{disk}?offset={offset}"]
    result = runner().run(argv, cwd=work, env=env, timeout=3600)
    # debugfs ends with 0 whatever its commands do; its first line is its version.
    complaints = [x for x in result.stderr.splitlines() if x and not x.startswith("debugfs ")]
    if complaints:
        raise PoclabError("debugfs failed", why=complaints[0][:300])


def check_ext4(work: Path, disk: str, offset: int, epoch: int) -> None:
    """Have e2fsck look at the file system inside a disk file, changing nothing.

    Raises:
        PoclabError: it found something.
    """
    env = {"E2FSPROGS_FAKE_TIME": str(epoch), "TZ": "UTC"}
    argv = ["e2fsck", "-f", "-n", f"{disk}?offset={offset}"]
    result = runner().run(argv, cwd=work, env=env, check=False, timeout=3600)
    if result.code != 0:
        lines = [x for x in result.stdout.splitlines() if x and not x.startswith("Pass ")]
        why = lines[0] if lines else result.last_line
        raise PoclabError("the root file system that was made is damaged", why=why[:300])
