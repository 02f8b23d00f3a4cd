"""Reads what the disk builders say about how far they are."""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from poclab.core import events
from poclab.core.background import repeating

# `--progress=debug` of osbuild/images' progress package: `[done / total] text`, two blanks
# before it a level, `pulse: text` for a step of unknown length and `msg: text` for details.
_STEP = re.compile(r"^( *)\[([0-9]+) / ([0-9]+)\] ?(.*)$")
_TEXT = re.compile(r"^(pulse|msg): (.+)$")
# The builders write `error: `, bootc-image-builder after Go's log time; podman, which they run too,
# writes `Error: `.
_ERROR = re.compile(r"^(?:[0-9/]{10} [0-9:]{8} )?error: *(.*)$")
_PODMAN = re.compile(r"^Error: *(.*)$")
# bootc-image-builder (image-builder 79.0.0, pkg/manifestgen) prints its warnings without an end of
# line, so the next line follows at once.
_REFUSED = re.compile(
    r'blueprint validation failed for image type "[^"]{0,80}": '
    r"(customizations[\w.\[\]-]{0,200}): not supported"
)
# What poclab asks for itself: bootc-image-builder warns of it, and does it.
_DONE_ANYWAY = "customizations.filesystem"
_NOISE = ("Start progressbar", "Stop progressbar")
# After `error running osbuild` the builders print osbuild's messages, all stages' after this line.
_LOG = "BuildLog:"
_STAGE = re.compile(r"^Starting (?:module|pipeline)(?: source)? ([\w.-]{1,100})$")
# What follows an error as a matter of routine: osbuild 191 (main_cli.py, monitor.py) ends with
# `Failed` whatever happened, and has its frames and notes indented; clap's and podman's headings.
_ROUTINE = re.compile(
    r"\s|(?:Failed|Output:|BuildLog:|stderr:)$|manifest \S+ failed$|(?:Finished|Starting|starting) "
    r"|Traceback \(|Usage: |For more information, try "
)
# The last line of a traceback, or a program's own error.
_EXCEPTION = re.compile(r"(?:[A-Za-z_][\w.]*(?:Error|Exception)|[Ee]rror): ")
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")  # osbuild colours its last line
_AFTER = 200  # lines kept of what follows an error
_LONGEST = 2000  # characters kept of a line
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
        self._text = ""

    def tell(self, text: str, done: float | None = None, total: float | None = None) -> None:
        """Emit one progress event; a step without a name keeps the name of the last one."""
        self._text = text or self._text
        elapsed = time.monotonic() - self._began
        if not total and self._expected and elapsed < self._expected:
            done, total = elapsed, self._expected
        more = {"elapsed": elapsed, "expected": self._expected}
        events.progress(self._text[:_MAX_TEXT], done, total, **more)


class Lines:
    """Reads a builder's lines: progress becomes events, errors are kept.

    Args:
        progress: who tells of it.
        plain: whether lines without a mark are progress too (`bootc install` has no marks).

    Attributes:
        error: the builder's last `error: ` line, without that; until there is one, podman's.
        stage: the stage of osbuild that failed, when the error is of one.
        after: the last lines that follow the error, only that stage's when it is of one.
        tail: the last line that says anything.
    """

    def __init__(self, progress: Progress | None = None, *, plain: bool = False) -> None:
        self.error = ""
        self.stage = ""
        self.after: deque[str] = deque(maxlen=_AFTER)
        self.tail = ""
        self._progress = progress or Progress()
        self._plain = plain
        self._done: float | None = None
        self._total: float | None = None
        self._own = False  # whether the error is the builder's
        self._log = False  # whether osbuild's messages follow

    def see(self, line: str) -> None:
        """Take one line."""
        text = _ESCAPES.sub("", line[:_LONGEST]).rstrip()
        if not self._own and (refused := _REFUSED.match(text)):
            _warn_of(refused[1])
            text = text[refused.end() :]
        if not text.strip() or text in _NOISE:
            return
        self.tail = text.strip()
        if self._own and self._log:
            self._see_log(text)
        elif step := _STEP.match(text):
            if not step[1]:
                self._done, self._total = float(step[2]), float(step[3])
            self._progress.tell(step[4].strip(), self._done, self._total)
        elif note := _TEXT.match(text):
            if note[1] == "pulse":
                self._done = self._total = None
            self._progress.tell(note[2].strip(), self._done, self._total)
        elif not self._see_error(text):
            self._log = text == _LOG
            self.after.append(text)
            if self._plain:
                self._progress.tell(self.tail)

    def _see_error(self, text: str) -> bool:
        """Take a line that is an error and counts as the one."""
        own = _ERROR.match(text)
        found = own or (None if self._own else _PODMAN.match(text))
        if found is None:
            return False
        self.error, self._own = found[1].strip(), own is not None
        self.after.clear()
        return True

    def _see_log(self, text: str) -> None:
        """Take a line of what osbuild said: the last stage that began is the one that failed."""
        if stage := _STAGE.match(text):
            self.stage = stage[1]
            self.after.clear()
        else:
            self.after.append(text)

    @property
    def said(self) -> str:
        """Why it failed, in its own words: the error, and the line after it that says the most."""
        if not self.error:
            return self.tail
        why = reason(self.after)
        heading = re.sub(r",? *(?:stderr)?:$", "", self.error)
        return ": ".join(text for text in (heading, self.stage if why else "", why) if text)


def _warn_of(key: str) -> None:
    """Tell of a key of the blueprint that a builder does not refuse, but leaves out."""
    if key == _DONE_ANYWAY:
        events.debug(f"the builder warns of {key}, and does it")
        return
    events.warning(
        f"the builder ignores {key} of the blueprint: set it in the Containerfile",
    )


def reason(after: Iterable[str]) -> str:
    """Pick the line that says why out of those that follow an error; empty when none does. Pure.

    Args:
        after: the lines, their indentation kept.
    """
    told = [line.strip() for line in after if not _ROUTINE.match(line)]
    errors = [line for line in told if _EXCEPTION.match(line)]
    return next(reversed(errors or told), "")


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
