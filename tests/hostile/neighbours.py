"""What another account of the machine can put where poclab takes its locks.

Three sorts: a thing in the place of the lock directory, a thing in the place of a lock file, and a
program that keeps swapping names while root works.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

# Things in the place of a lock file; `victim` is a file the neighbour wants written to.
FILES = ("symlink", "dangling", "hardlink", "fifo", "socket", "directory")
# Things in the place of the lock directory.
DIRECTORIES = ("symlink", "file", "fifo", "foreign", "open", "sticky", "group")


def plant_file(kind: str, path: Path, victim: Path) -> None:
    """Put something in the place of a lock file.

    Args:
        kind: one of `FILES`.
        path: the lock file's name; nothing of that name exists.
        victim: what a link leads to; made here, except for `dangling`.
    """
    if kind != "dangling":
        victim.write_text("precious")
    if kind in ("symlink", "dangling"):
        path.symlink_to(victim)
    elif kind == "hardlink":
        path.hardlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "directory":
        path.mkdir()
    else:
        raise ValueError(kind)


def plant_directory(kind: str, path: Path, victim: Path, stranger: tuple[int, int]) -> None:
    """Put something in the place of the lock directory, as root.

    Args:
        kind: one of `DIRECTORIES`: a link to a directory, no directory, a directory of somebody
            else, one of root's that everybody may write to, or that another group may write to.
        path: the lock directory's name; nothing of that name exists.
        victim: the directory that a link leads to; made here.
        stranger: user and group ID of the neighbour.
    """
    victim.mkdir(mode=0o700)
    if kind == "symlink":
        path.symlink_to(victim)
        return
    if kind == "file":
        path.touch()
        return
    if kind == "fifo":
        os.mkfifo(path)
        return
    path.mkdir()
    modes = {"foreign": 0o2770, "open": 0o777, "sticky": 0o1777, "group": 0o2770}
    if kind == "foreign":
        os.chown(path, stranger[0], -1)
    if kind == "group":
        os.chown(path, -1, stranger[1])
    path.chmod(modes[kind])


# Python for the neighbour: python -c SWAP VICTIM PLACE... It makes each place a directory of its
# own whenever it can, then a link to the victim and back, for as long as it runs; a line on
# standard output says that it began, and standard input's end ends it.
SWAP = """
import os, select, sys
victim, places = sys.argv[1], sys.argv[2:]
def attempt(call, *args):
    try:
        call(*args)
    except OSError:
        pass
print("at it", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    for place in places:
        attempt(os.mkdir, place, 0o777)
        attempt(os.chmod, place, 0o1777)
        attempt(os.rename, place, place + ".away")
        attempt(os.symlink, victim, place)
        attempt(os.unlink, place)
        attempt(os.rename, place + ".away", place)
"""

# Python for the neighbour: python -c GRAB DIRECTORY. It deletes every lock it finds, and takes and
# signs what it can open; what it managed is on standard output, a word each.
GRAB = """
import fcntl, os, sys
directory = sys.argv[1]
def attempt(word, call, *args):
    try:
        result = call(*args)
    except OSError:
        return None
    print(word)
    return result
attempt("enter", os.chdir, directory)
for name in attempt("list", os.listdir, directory) or sys.argv[2:]:
    path = os.path.join(directory, name)
    fd = attempt("open", os.open, path, os.O_RDWR)
    if fd is None:
        fd = attempt("open-read-only", os.open, path, os.O_RDONLY)
    if fd is not None:
        attempt("hold", fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        attempt("sign", os.write, fd, b'{"doing": "mine"}')
    attempt("delete", os.unlink, path)
attempt("plant", os.mkdir, os.path.join(directory, "planted"))
"""
