"""Reads what bootc-image-builder prints."""

from __future__ import annotations

import re

from poclab import events

# `--progress=debug` of osbuild/images' progress package: `[done / total] text`, two blanks
# before it a level, `pulse: text` for a step of unknown length and `msg: text` for details.
_STEP = re.compile(r"^( *)\[([0-9]+) / ([0-9]+)\] ?(.*)$")
_TEXT = re.compile(r"^(pulse|msg): (.+)$")


class Lines:
    """Reads the builder's lines: progress becomes events, errors are kept.

    Attributes:
        error: the last line that begins with `error: `, without that.
        tail: the last line that says anything.
    """

    def __init__(self) -> None:
        self.error = ""
        self.tail = ""
        self._done: float | None = None
        self._total: float | None = None

    def see(self, line: str) -> None:
        """Take one line."""
        text = line.rstrip()
        if not text.strip():
            return
        self.tail = text.strip()
        if step := _STEP.match(text):
            if not step[1]:
                self._done, self._total = float(step[2]), float(step[3])
            events.progress(step[4].strip(), self._done, self._total)
        elif note := _TEXT.match(text):
            if note[1] == "pulse":
                self._done = self._total = None
            events.progress(note[2].strip(), self._done, self._total)
        # The builder writes `error: `, podman itself `Error: `.
        elif text.lower().startswith("error: "):
            self.error = text[len("error: ") :].strip()
