"""libext2fs, the library of e2fsprogs, as far as writing files into a new ext4 needs it.

Prototypes and constants: lib/ext2fs/ext2fs.h and ext2_fs.h of e2fsprogs 1.46 and later; the
on-disk format: Documentation/filesystems/ext4 of the kernel. Everything that comes from an image
(names, targets, attributes, content) goes in as bytes; no text is ever parsed by the library.

A fault in C ends the whole process, so `ext4writer` uses this in one of its own.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char_p, c_int, c_long, c_size_t, c_uint, c_void_p
from ctypes import c_uint16 as u16
from ctypes import c_uint32 as u32
from ctypes import c_uint64 as u64

LIBRARY = "libext2fs.so.2"
_COM_ERR = "libcom_err.so.2"

BLOCK = 4096
INODE = 256
ROOT = 2  # EXT2_ROOT_INO
_RW, _64BITS = 0x1, 0x20000  # EXT2_FLAG_*
_FILE_WRITE = 0x1  # EXT2_FILE_WRITE
_EXTENTS = 0x80000  # EXT4_EXTENTS_FL
# struct ext3_extent_header: magic 0xf30a, no entries, room for 4 in an inode, depth 0.
_NO_EXTENTS = (0x0000F30A, 0x00000004, 0)
# ext2_err.et: the table's base, and places in it that its order keeps.
_BASE = 2133571328
_DIR_NO_SPACE, _BLOCK_ALLOC, _INODE_ALLOC, _EA_NO_SPACE = (_BASE + n for n in (38, 72, 73, 163))

# i_mode's file types (inode(7)) and the types in directory entries (EXT2_FT_*).
MODES = {
    "file": (0o100000, 1),
    "directory": (0o040000, 2),
    "char": (0o020000, 3),
    "block": (0o060000, 4),
    "fifo": (0o010000, 5),
    "symlink": (0o120000, 7),
}


class Inode(ctypes.Structure):
    """struct ext2_inode_large, with the room for attributes that follows it on disk."""

    _fields_ = (
        ("mode", u16),
        ("uid", u16),
        ("size", u32),
        ("atime", u32),
        ("ctime", u32),
        ("mtime", u32),
        ("dtime", u32),
        ("gid", u16),
        ("links", u16),
        ("blocks", u32),
        ("flags", u32),
        ("version", u32),
        ("block", u32 * 15),
        ("generation", u32),
        ("file_acl", u32),
        ("size_high", u32),
        ("faddr", u32),
        ("blocks_high", u16),
        ("file_acl_high", u16),
        ("uid_high", u16),
        ("gid_high", u16),
        ("checksum_low", u16),
        ("reserved", u16),
        ("extra_isize", u16),
        ("checksum_high", u16),
        ("ctime_extra", u32),
        ("mtime_extra", u32),
        ("atime_extra", u32),
        ("crtime", u32),
        ("crtime_extra", u32),
        ("version_high", u32),
        ("projid", u32),
        ("attributes", ctypes.c_uint8 * (INODE - 160)),
    )


class Ext2Error(Exception):
    """The library refused, or could not write.

    Attributes:
        code: its code: an errno, or one of its own table.
        text: its words.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text

    @property
    def full(self) -> bool:
        """Whether the file system (not the host's) has no room left."""
        return self.code in (_BLOCK_ALLOC, _INODE_ALLOC)

    @property
    def attributes_full(self) -> bool:
        """Whether an inode has no room for another extended attribute."""
        return self.code == _EA_NO_SPACE


_INO = u32
_PROTOTYPES: dict[str, tuple[object, ...]] = {
    "ext2fs_open2": (c_char_p, c_char_p, c_int, c_int, c_uint, c_void_p, POINTER(c_void_p)),
    "ext2fs_read_bitmaps": (c_void_p,),
    "ext2fs_close_free": (POINTER(c_void_p),),
    "ext2fs_new_inode": (c_void_p, _INO, c_int, c_void_p, POINTER(_INO)),
    "ext2fs_read_inode_full": (c_void_p, _INO, POINTER(Inode), c_int),
    "ext2fs_write_inode_full": (c_void_p, _INO, POINTER(Inode), c_int),
    "ext2fs_link": (c_void_p, _INO, c_char_p, _INO, c_int),
    "ext2fs_expand_dir": (c_void_p, _INO),
    "ext2fs_lookup": (c_void_p, _INO, c_char_p, c_int, c_void_p, POINTER(_INO)),
    "ext2fs_mkdir": (c_void_p, _INO, _INO, c_char_p),
    "ext2fs_symlink": (c_void_p, _INO, _INO, c_char_p, c_char_p),
    "ext2fs_file_open": (c_void_p, _INO, c_int, POINTER(c_void_p)),
    "ext2fs_file_llseek": (c_void_p, u64, c_int, c_void_p),
    "ext2fs_file_write": (c_void_p, c_void_p, c_uint, POINTER(c_uint)),
    "ext2fs_file_close": (c_void_p,),
    "ext2fs_xattrs_open": (c_void_p, _INO, POINTER(c_void_p)),
    "ext2fs_xattrs_read": (c_void_p,),
    "ext2fs_xattr_set": (c_void_p, c_char_p, c_char_p, c_size_t),
    "ext2fs_xattrs_close": (POINTER(c_void_p),),
}


class Library:
    """The loaded library.

    Raises:
        OSError: it, or a function of it, is missing on this host.
    """

    def __init__(self) -> None:
        self._ext2fs = ctypes.CDLL(LIBRARY)
        self._com_err = ctypes.CDLL(_COM_ERR)
        try:
            for name, arguments in _PROTOTYPES.items():
                function = getattr(self._ext2fs, name)
                function.argtypes, function.restype = list(arguments), c_long
            self.alloc_stats = self._ext2fs.ext2fs_inode_alloc_stats2
            self.manager = c_void_p.in_dll(self._ext2fs, "unix_io_manager")
            self._ext2fs.initialize_ext2_error_table()
        except (AttributeError, ValueError) as error:
            raise OSError(f"{LIBRARY} of this host is too old: {error}") from error
        self.alloc_stats.argtypes, self.alloc_stats.restype = [c_void_p, _INO, c_int, c_int], None
        self._message = self._com_err.error_message
        self._message.argtypes, self._message.restype = [c_long], c_char_p

    def call(self, name: str, *arguments: object, fine: int = 0) -> int:
        """Call a function.

        Args:
            name: the function.
            arguments: its arguments.
            fine: a code beside 0 to return instead of raising.

        Raises:
            Ext2Error: it returned another code.
        """
        code: int = getattr(self._ext2fs, name)(*arguments)
        if code and code != fine:
            raise Ext2Error(code, (self._message(code) or b"").decode("ascii", "replace"))
        return code


class FileSystem:
    """An ext4 inside a file, open for writing.

    Args:
        library: the library.
        disk: the file.
        offset: where in it the file system begins, in bytes.

    Raises:
        Ext2Error: it cannot be opened.
    """

    def __init__(self, library: Library, disk: bytes, offset: int) -> None:
        self._library = library
        self._call = library.call
        self._fs = c_void_p()
        options = b"offset=%d" % offset
        flags = _RW | _64BITS
        self._call("ext2fs_open2", disk, options, flags, 0, 0, library.manager, byref(self._fs))
        self._call("ext2fs_read_bitmaps", self._fs)

    def close(self) -> None:
        """Write what is held in memory.

        Raises:
            Ext2Error: it could not be written.
        """
        self._call("ext2fs_close_free", byref(self._fs))

    def lookup(self, parent: int, name: bytes) -> int:
        """The inode of a name in a directory.

        Raises:
            Ext2Error: it is not there.
        """
        found = _INO()
        self._call("ext2fs_lookup", self._fs, parent, name, len(name), None, byref(found))
        return found.value

    def make(self, parent: int, name: bytes, kind: str, inode: Inode, target: bytes = b"") -> int:
        """Make a file in a directory.

        Args:
            parent: the directory's inode.
            name: 1 to 255 bytes without `/` and NUL, not there yet.
            kind: a key of `MODES`.
            inode: owner, mode, times, and a file's size or a device's numbers.
            target: where a symbolic link points: 1 to 4095 bytes without NUL.

        Returns:
            Its inode.
        """
        kind_bits, entry = MODES[kind]
        new = _INO()
        self._call("ext2fs_new_inode", self._fs, parent, kind_bits, None, byref(new))
        number = new.value
        if kind == "directory":
            self._call("ext2fs_mkdir", self._fs, parent, number, None)
            self.change(number, inode)
        elif kind == "symlink":
            self._call("ext2fs_symlink", self._fs, parent, number, None, target)
            self.change(number, inode)
        else:
            self._library.alloc_stats(self._fs, number, 1, 0)
            inode.links = 1
            if kind == "file":
                inode.flags |= _EXTENTS
                inode.block[:3] = _NO_EXTENTS
            self._call("ext2fs_write_inode_full", self._fs, number, byref(inode), INODE)
        self._link(parent, name, number, entry)
        return number

    def change(self, number: int, wanted: Inode) -> None:
        """Give a file that is there owner, mode and times."""
        found = Inode()
        self._call("ext2fs_read_inode_full", self._fs, number, byref(found), INODE)
        for field in _CHANGED:
            setattr(found, field, getattr(wanted, field))
        self._call("ext2fs_write_inode_full", self._fs, number, byref(found), INODE)

    def hard_link(self, parent: int, name: bytes, number: int, kind: str) -> None:
        """Give a file another name."""
        self._link(parent, name, number, MODES[kind][1])
        found = Inode()
        self._call("ext2fs_read_inode_full", self._fs, number, byref(found), INODE)
        found.links += 1
        self._call("ext2fs_write_inode_full", self._fs, number, byref(found), INODE)

    def _link(self, parent: int, name: bytes, number: int, entry: int) -> None:
        arguments = (self._fs, parent, name, number, entry)
        if self._call("ext2fs_link", *arguments, fine=_DIR_NO_SPACE) == _DIR_NO_SPACE:
            self._call("ext2fs_expand_dir", self._fs, parent)
            self._call("ext2fs_link", *arguments)

    def open_file(self, number: int) -> File:
        """Open a file for its content."""
        handle = c_void_p()
        self._call("ext2fs_file_open", self._fs, number, _FILE_WRITE, byref(handle))
        return File(self._library, handle)

    def set_xattrs(self, number: int, xattrs: dict[bytes, bytes]) -> None:
        """Set extended attributes of a file that has none.

        Args:
            number: the file's inode.
            xattrs: values by whole name, without NUL. POSIX ACLs in the form of setxattr(2).
        """
        handle = c_void_p()
        self._call("ext2fs_xattrs_open", self._fs, number, byref(handle))
        self._call("ext2fs_xattrs_read", handle)
        for name, value in sorted(xattrs.items()):
            self._call("ext2fs_xattr_set", handle, name, value, len(value))
        self._call("ext2fs_xattrs_close", byref(handle))


class File:
    """The content of a file, written from front to back in runs of whole blocks.

    Args:
        library: the library.
        handle: its handle.
    """

    def __init__(self, library: Library, handle: c_void_p) -> None:
        self._call = library.call
        self._handle = handle
        self._written = c_uint()

    def write(self, position: int, data: memoryview) -> None:
        """Write at a position, which is a multiple of `BLOCK`."""
        self._call("ext2fs_file_llseek", self._handle, position, 0, None)
        while data:
            pointer = (ctypes.c_char * len(data)).from_buffer(data)
            self._call("ext2fs_file_write", self._handle, pointer, len(data), byref(self._written))
            data = data[self._written.value :]

    def close(self) -> None:
        """Write the rest."""
        self._call("ext2fs_file_close", self._handle)


_CHANGED = (
    *("mode", "uid", "uid_high", "gid", "gid_high"),
    *("atime", "ctime", "mtime", "atime_extra", "ctime_extra", "mtime_extra", "extra_isize"),
)
_SECONDS_MIN, _SECONDS_MAX = -(1 << 31), (1 << 34) - (1 << 31) - 1


def inode(
    kind: str,
    *,
    mode: int = 0,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 0,
    size: int = 0,
    device: tuple[int, int] = (0, 0),
) -> Inode:
    """Fill an inode in.

    Args:
        kind: a key of `MODES`.
        mode: permission bits.
        uid: the owner, below 2^32.
        gid: the group, below 2^32.
        mtime: nanoseconds since 1970; a time ext4 has no bits for becomes the nearest that it
            has, as in the kernel (timestamp_truncate).
        size: bytes of a file's content.
        device: a device's major (below 2^12) and minor number (below 2^20).
    """
    made = Inode(mode=MODES[kind][0] | mode, extra_isize=160 - 128)
    made.uid, made.uid_high = uid & 0xFFFF, uid >> 16
    made.gid, made.gid_high = gid & 0xFFFF, gid >> 16
    made.size, made.size_high = size & 0xFFFFFFFF, size >> 32
    seconds, rest = divmod(mtime, 10**9)
    if not _SECONDS_MIN <= seconds <= _SECONDS_MAX:
        seconds, rest = max(_SECONDS_MIN, min(seconds, _SECONDS_MAX)), 0
    # 32 bits with a sign, and two bits more beside the nanoseconds (kernel: Inode Timestamps).
    low = seconds & 0xFFFFFFFF
    signed = low - (1 << 32) if low >> 31 else low
    made.atime = made.ctime = made.mtime = low
    extra = rest << 2 | (seconds - signed) >> 32 & 3
    made.atime_extra = made.ctime_extra = made.mtime_extra = extra
    if kind in ("char", "block"):
        major, minor = device
        # old_encode_dev and new_encode_dev of the kernel (linux/kdev_t.h).
        if major < 256 and minor < 256:
            made.block[0] = major << 8 | minor
        else:
            made.block[1] = minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
    return made
