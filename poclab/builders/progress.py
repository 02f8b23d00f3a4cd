"""Reads what the disk builders say about how far they are."""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from poclab import events
from poclab.beside import repeating

# `--progress=debug` of osbuild/images' progress package: `[done / total] text`, two blanks
# before it a level, `pulse: text` for a step of unknown length and `msg: text` for details.
_STEP = re.compile(r"^( *)\[([0-9]+) / ([0-9]+)\] ?(.*)$")
_TEXT = re.compile(r"^(pulse|msg): (.+)$")
# The builders write `error: `, bootc-image-builder after Go's log time, podman itself `Error: `.
_ERROR = re.compile(r"^(?:[0-9/]{10} [0-9:]{8} )?error: *(.*)$", re.IGNORECASE)
_NOISE = ("Start progressbar", "Stop progressbar")
_AFTER = 50  # lines kept of what follows an error
_POLL = 0.5  # seconds between two looks at a progress file
_MAX_FILE = 65536
_MAX_TEXT = 200


class Progress:
    """Tells how far a build is: by what the builder says, else by how long the last one took.

    Args:
        expected: seconds the last build took, or None.
    """

    def __init__(self, expected: float | None = None) -> None:
        self._expected = expected
        self._began = time.monotonic()

    def tell(self, text: str, done: float | None = None, total: float | None = None) -> None:
        """Emit one progress event."""
        elapsed = time.monotonic() - self._began
        if not total and self._expected and elapsed < self._expected:
            done, total = elapsed, self._expected
        more = {"elapsed": elapsed, "expected": self._expected}
        events.progress(text[:_MAX_TEXT], done, total, **more)


class Lines:
    """Reads a builder's lines: progress becomes events, errors are kept.

    Args:
        progress: who tells of it.
        plain: whether lines without a mark are progress too (`bootc install` has no marks).

    Attributes:
        error: the last line that begins with `error: `, without that.
        after: the last lines that follow it; of osbuild's programs, as a rule.
        tail: the last line that says anything.
    """

    def __init__(self, progress: Progress | None = None, *, plain: bool = False) -> None:
        self.error = ""
        self.after: deque[str] = deque(maxlen=_AFTER)
        self.tail = ""
        self._progress = progress or Progress()
        self._plain = plain
        self._done: float | None = None
        self._total: float | None = None

    def see(self, line: str) -> None:
        """Take one line."""
        text = line.rstrip()
        if not text.strip() or text in _NOISE:
            return
        self.tail = text.strip()
        self.after.append(self.tail)
        if step := _STEP.match(text):
            if not step[1]:
                self._done, self._total = float(step[2]), float(step[3])
            self._progress.tell(step[4].strip(), self._done, self._total)
        elif note := _TEXT.match(text):
            if note[1] == "pulse":
                self._done = self._total = None
            self._progress.tell(note[2].strip(), self._done, self._total)
        elif error := _ERROR.match(text):
            self.error = error[1].strip()
            self.after.clear()
        elif self._plain:
            self._progress.tell(self.tail)

    @property
    def said(self) -> str:
        """Why it failed, in its own words: the error, and the last line of what follows it."""
        if not self.error:
            return self.tail
        return f"{self.error}: {self.after[-1]}" if self.after else self.error


@contextmanager
def watching(path: Path, progress: Progress) -> Iterator[None]:
    """Tell of what a progress file says while the block runs.

    The file is image-builder's (`--progress=file`, pkg/progress/progress.go): one object with
    message, done, total and subprogress, replaced as a whole. What a listener raises about it
    is raised at the end of the block.
    """
    last = None

    def look() -> None:
        nonlocal last
        found = read(path)
        if found and found != last:
            progress.tell(*found)
        last = found

    with repeating(look, _POLL):
        yield


def read(path: Path) -> tuple[str, float, float] | None:
    """What a progress file says: the innermost step's name, and the outermost's done and total.

    None where there is no such file, or none that can be understood.
    """
    try:
        with path.open("rb") as file:
            data: Any = json.loads(file.read(_MAX_FILE))
        done, total = float(data["done"]), float(data["total"])
        text = str(data["message"])
        while isinstance(data.get("subprogress"), dict):
            data = data["subprogress"]
            text = str(data.get("message") or text)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return text, done, total
