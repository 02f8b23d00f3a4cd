"""What every use of qemu-img has in common: how files are named, what it says, how it converts.

A conversion never fills a file system: the copy is bounded by what is free there less a reserve,
before it begins (RLIMIT_FSIZE) and while it runs, since others write as well.
"""

from __future__ import annotations

import json
import re
import resource
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poclab.core import events, free_space
from poclab.core.errors import PoclabError
from poclab.core.files import writing_out
from poclab.core.process import Result, TooMuchOutput, runner
from poclab.core.units import GIB, MIB, format_size

HOURS = 6 * 3600.0
# Address space: buffers, thread stacks and the tables, which the readers have bounded.
_MEMORY = 2 * GIB
# On a busy machine one request after the other each finds no idle thread and starts another, up
# to 64 (thread_pool_submit_aio() in util/thread-pool.c). Each has a stack of RLIMIT_STACK, and
# malloc gives each an arena of 64 MiB: a gigabyte was used up by 14 of them (pthread_create then
# fails, and QEMU aborts). With these, 64 threads take a quarter of it.
_FEW_ARENAS = {"MALLOC_ARENA_MAX": "1"}
_STACK = {resource.RLIMIT_STACK: 2 * MIB}
_INFO_LIMITS = {resource.RLIMIT_AS: 1024 * MIB, resource.RLIMIT_CPU: 30, **_STACK}
# A check walks all of the metadata: 1 GiB holds the reference counts of about 30 TiB of data.
_CHECK_LIMITS = {resource.RLIMIT_AS: 1024 * MIB, resource.RLIMIT_CPU: 600, **_STACK}
# qemu-img(1), check: fine; corrupt; leaked clusters, which waste space and harm nothing. Any other
# status, or a signal, says nothing of the disk.
_FINE, _CORRUPT, _LEAKS = 0, 2, 3
_PERCENT = re.compile(r"\(([0-9.]+)/100%\)")


def plain(path: Path) -> str:
    """A path that qemu-img takes for a path, whatever characters it has."""
    return str(path.absolute())


def reason(text: str) -> str:
    """The end of a qemu-img message: what is wrong, without the program and the file."""
    words = re.sub(r"/proc/self/fd/[0-9]+", "the disk", text.removeprefix("qemu-img: "))
    return words.strip()[:300]


def info(disk: Sequence[str], pass_fds: Sequence[int] = ()) -> Result:
    """Have qemu-img describe a disk; see `ImageInfo` in qapi/block-core.json.

    Args:
        disk: the arguments that name it.
        pass_fds: descriptors that these name.
    """
    argv = ["qemu-img", "info", "--output=json", *disk]
    return runner().run(
        argv, check=False, timeout=120, limits=_INFO_LIMITS, env=_FEW_ARENAS, pass_fds=pass_fds
    )


def check(
    disk: Sequence[str], name: str, pass_fds: Sequence[int] = (), *, fix: str = ""
) -> dict[str, Any]:
    """Check the metadata of a disk; its data is not looked at.

    Args:
        disk: the arguments that name it.
        name: what to call it in messages.
        pass_fds: descriptors that the arguments name.
        fix: what to do about a damaged one.

    Returns:
        What was found: `ImageCheck` in qapi/block-core.json.

    Raises:
        PoclabError: if it is damaged, or cannot be checked.
    """
    argv = ["qemu-img", "check", "--output=json", *disk]
    for _ in range(2):  # a second time, for what was wrong with the machine at that moment
        try:
            result = runner().run(
                argv,
                check=False,
                timeout=1200,
                limits=_CHECK_LIMITS,
                env=_FEW_ARENAS,
                pass_fds=pass_fds,
            )
        except TooMuchOutput:
            result = _checked_by_line(argv, pass_fds)
        if result.code in (_FINE, _LEAKS):
            return dict(json.loads(result.stdout or "{}"))
        if result.code == _CORRUPT:
            lines = result.stderr.splitlines()
            why = next((line for line in lines if line.startswith("ERROR")), "see qemu-img check")
            raise PoclabError(f"{name} is damaged", why=reason(why), fix=fix)
        events.debug(f"qemu-img check ended with status {result.code}: {result.last_line}")
    raise PoclabError(
        f"cannot check {name}",
        why=reason(result.last_line),
        fix="run it again; if it stays so, the disk is damaged or qemu-img too old for it",
    )


def _checked_by_line(argv: Sequence[str], pass_fds: Sequence[int]) -> Result:
    """Check a disk of which a line is printed for each of very many errors or lost clusters."""
    first: list[str] = []

    def note(line: str) -> None:
        if not first and line.startswith("ERROR"):
            first.append(line)

    code = runner().stream(
        argv, note, timeout=1200, limits=_CHECK_LIMITS, env=_FEW_ARENAS, pass_fds=pass_fds
    )
    return Result(tuple(argv), code, "", "\n".join(first))


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
    left = free_space.check(target.parent, name)
    limit = min(left, at_most if at_most is not None else left)
    # No core: the name of a core file is not ours to clean up.
    limits = {resource.RLIMIT_FSIZE: limit, resource.RLIMIT_CORE: 0, **_STACK}
    if at_most is not None:
        limits[resource.RLIMIT_AS] = _MEMORY
    argv = ["qemu-img", "convert", "-p", "-O", "qcow2", "-o", "compat=1.1"]
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
                env=_FEW_ARENAS,
                limits=limits,
                pass_fds=pass_fds,
                watch=free_space.watch(target.parent, name),
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
        return free_space.of(target.parent).refused(name, target.parent)
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
