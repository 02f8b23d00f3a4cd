"""A process of its own: writes files into an ext4 as a plan says, see `rootfs.fill`.

    python -m poclab.builders.ext4writer PLAN

The plan is a file of JSON, a value a line: first the disk, the place of the file system in it and
the archive; then the files, parents before what is in them and hard links last. Its texts are
bytes in UTF-8 with surrogate escapes; content and the values of attributes are base64. `rootfs`
checks what it puts in; a plan that breaks a rule of `ext2fs` harms nobody but this process.

Prints `progress DONE`, and on failure one line `failed` with an object: `path`, `why`, and `kind`
("full" for the file system, "attributes" or "other").
"""

from __future__ import annotations

import json
import sys
from base64 import b64decode
from typing import IO, Any

from poclab.builders import ext2fs
from poclab.builders.ext2fs import BLOCK, Ext2Error, FileSystem
from poclab.core.tar_reader import encoded

_PIECE = 1 << 20
_ZEROS = bytes(BLOCK)


class _Writer:
    def __init__(self, fs: FileSystem, tar: IO[bytes]) -> None:
        self._fs = fs
        self._tar = tar
        self._directories = {b"": ext2fs.ROOT}
        # The inode and kind of each name that a hard link may point to.
        self._files: dict[bytes, tuple[int, str]] = {}
        self._buffer = bytearray(_PIECE)

    def write(self, entry: dict[str, Any]) -> None:
        path, kind = encoded(entry["path"]), entry["kind"]
        parent, _, name = path.rpartition(b"/")
        directory = self._directories[parent]
        target = encoded(entry["target"])
        if kind == "hardlink":
            number, kind = self._files[target]
            self._fs.hard_link(directory, name, number, kind)
            return
        fields = ("mode", "uid", "gid", "mtime", "size", "device")
        inode = ext2fs.inode(kind, **{field: entry[field] for field in fields})
        if path in (b"", b"lost+found"):  # mke2fs makes these
            number = self._fs.lookup(ext2fs.ROOT, name) if path else ext2fs.ROOT
            self._fs.change(number, inode)
        else:
            number = self._fs.make(directory, name, kind, inode, target)
        if kind == "directory":
            self._directories[path] = number
        else:
            self._files[path] = (number, kind)
        if entry["size"]:
            self._content(number, entry)
        if entry["xattrs"]:
            xattrs = {encoded(k): b64decode(v) for k, v in entry["xattrs"].items()}
            self._fs.set_xattrs(number, xattrs)

    def _content(self, number: int, entry: dict[str, Any]) -> None:
        file = self._fs.open_file(number)
        if entry["content"] is not None:
            self._piece(file, 0, memoryview(bytearray(b64decode(entry["content"]))))
        else:
            self._tar.seek(entry["offset"])
            position, size = 0, entry["size"]
            while position < size:
                view = memoryview(self._buffer)[: min(_PIECE, size - position)]
                if self._tar.readinto(view) != len(view):  # type: ignore[attr-defined]
                    raise OSError("the exported image is truncated")
                self._piece(file, position, view)
                position += len(view)
        file.close()

    def _piece(self, file: ext2fs.File, position: int, view: memoryview) -> None:
        """Write the runs of blocks that are not all zeros; the others stay holes."""
        begin = None
        for at in range(0, len(view), BLOCK):
            block = view[at : at + BLOCK]
            if block != _ZEROS[: len(block)]:
                begin = at if begin is None else begin
            elif begin is not None:
                file.write(position + begin, view[begin:at])
                begin = None
        if begin is not None:
            file.write(position + begin, view[begin:])


def main(argv: list[str]) -> int:
    """Write what the plan says.

    Returns:
        The exit status.
    """
    path, done = "", 0
    try:
        with open(argv[1], "rb") as plan:  # noqa: PTH123 - a name in this directory
            head = json.loads(plan.readline())
            fs = FileSystem(ext2fs.Library(), encoded(head["disk"]), head["offset"])
            with open(head["tar"], "rb") as tar:  # noqa: PTH123
                writer = _Writer(fs, tar)
                for line in plan:
                    entry = json.loads(line)
                    path = entry["path"]
                    writer.write(entry)
                    done += 1
                    if done % 500 == 0:
                        _say(f"progress {done}")
            path = ""
            fs.close()
    except Ext2Error as error:
        kind = "full" if error.full else "attributes" if error.attributes_full else "other"
        _say("failed " + json.dumps({"path": path, "why": error.text, "kind": kind}))
        return 1
    except OSError as error:
        why = error.strerror or str(error)
        _say("failed " + json.dumps({"path": path, "why": why, "kind": "other"}))
        return 1
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
