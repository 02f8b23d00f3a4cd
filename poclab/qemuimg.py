"""What every use of qemu-img has in common: how files are named, what it says, how it converts.

A conversion never fills a file system: the copy is bounded by what is free there less a reserve,
before it begins (RLIMIT_FSIZE) and while it runs, since others write as well.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from pathlib import Path

from poclab import events, room
from poclab.errors import PoclabError
from poclab.files import writing_out
from poclab.run import runner
from poclab.units import GIB, format_size

HOURS = 6 * 3600.0
# Address space: buffers, thread stacks and the tables, which the readers have bounded.
_MEMORY = 2 * GIB
_PERCENT = re.compile(r"\(([0-9.]+)/100%\)")


def plain(path: Path) -> str:
    """A path that qemu-img takes for a path, whatever characters it has."""
    return str(path.absolute())


def reason(text: str) -> str:
    """The end of a qemu-img message: what is wrong, without the program and the file."""
    return text.removeprefix("qemu-img: ").strip()[:300]


def convert(
    source: Sequence[str],
    target: Path,
    name: str,
    *,
    at_most: int | None = None,
    pass_fds: Sequence[int] = (),
) -> None:
    """Copy a disk into a new qcow2 file: sparse, uncompressed, without internal snapshots.

    Progress is told as events. The target is removed again when anything goes wrong.

    Args:
        source: the arguments that name the disk.
        target: the file to make; must not exist.
        name: what to call the disk in messages.
        at_most: bytes the target may have, for a disk that is not trusted; qemu-img's memory is
            limited as well then.
        pass_fds: descriptors that the arguments name.

    Raises:
        PoclabError: if qemu-img fails, the target exists, or there is no room for it.
    """
    if target.exists():
        raise PoclabError(f"{target} exists already")
    left = room.check(target.parent, name)
    limit = min(left, at_most if at_most is not None else left)
    # prlimit(1), not limits set between fork and exec: other threads may run here.
    # No core: the name of a core file is not ours to clean up.
    limits = ["prlimit", f"--fsize={limit}", "--core=0"]
    limits += [] if at_most is None else [f"--as={_MEMORY}"]
    argv = [*limits, "qemu-img", "convert", "-p", "-O", "qcow2", "-o", "compat=1.1"]
    last = [""]

    def line(text: str) -> None:
        match = _PERCENT.search(text)
        if match:
            events.progress("convert", float(match[1]), 100.0)
        elif text.strip():
            last[0] = text.strip()

    try:
        with writing_out(target):
            code = runner().stream(
                [*argv, *source, plain(target)],
                line,
                timeout=HOURS,
                env={"MALLOC_ARENA_MAX": "4"},
                pass_fds=pass_fds,
                watch=room.watch(target.parent, name),
            )
        if code == -signal.SIGXFSZ or (code and "File too large" in last[0]):
            raise _too_large(name, target, limit, at_most)
        if code != 0:
            raise _failed(name, target, code, last[0])
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _too_large(name: str, target: Path, limit: int, at_most: int | None) -> PoclabError:
    if limit != at_most:
        return room.of(target.parent).refused(name, target.parent)
    return PoclabError(
        f"{name} cannot be converted",
        why=f"it would become larger than the {format_size(limit)} that it can hold",
        fix="copy it again; it is damaged, or was made to fill the disk",
    )


def _failed(name: str, target: Path, code: int, text: str) -> PoclabError:
    full = "No space left" in text
    return PoclabError(
        f"{name} cannot be converted",
        why=reason(text) or f"exit status {code}",
        fix=f"make room in {target.parent}" if full else "",
    )
