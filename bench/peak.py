"""How much memory a command and all that it starts hold at most."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.measure import MeasurementError

_EVERY = 0.02  # seconds between two looks


@dataclass(frozen=True)
class Peak:
    """What a command took.

    Attributes:
        seconds: how long it ran.
        largest: bytes that the largest of its processes held, as the kernel says at the end.
        together: bytes that all of them held at once, looked at every 20 ms; pages that two
            processes share count twice.
    """

    seconds: float
    largest: int
    together: int


def measured(argv: Sequence[str]) -> Peak:
    """Run a command.

    Raises:
        MeasurementError: it failed.
    """
    began = time.perf_counter()
    together = 0
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        while True:
            # Of the process and of all it has waited for (getrusage(2), wait4(2)).
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            together = max(together, sum(_held(process.pid)))
            time.sleep(_EVERY)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - began
        said.seek(0)
        if process.returncode != 0:
            text = said.read().decode(errors="replace")
            raise MeasurementError(f"{' '.join(argv)}: exit status {process.returncode}\n{text}")
    return Peak(seconds, usage.ru_maxrss * 1024, together)


def _held(root: int) -> Iterator[int]:
    """Bytes that a process and its descendants hold now (proc(5): the 24th field is pages)."""
    fields = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields[int(path.parent.name)] = path.read_text().rpartition(")")[2].split()
    page = os.sysconf("SC_PAGE_SIZE")
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        if pid in fields:
            yield int(fields[pid][21]) * page
        waiting += [child for child, found in fields.items() if int(found[1]) == pid]
