"""All that is printed: data to standard output, everything else to standard error."""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TextIO

from poclab.cli.tables import Column
from poclab.core.errors import PoclabError
from poclab.core.events import Event
from poclab.core.plaintext import plain, printable
from poclab.core.units import format_seconds, format_size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Format(StrEnum):
    """How a listing is printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


def listing(
    rows: Sequence[Any],
    columns: Sequence[Column],
    form: Format,
    name: Callable[[Any], str],
    empty: str = "",
) -> None:
    """Print rows to standard output.

    Args:
        rows: dataclass instances; their fields are the keys of JSON and YAML.
        columns: the table's columns.
        form: how to print.
        name: a row's name, for `-o name`.
        empty: a line for standard error when a table has no rows.
    """
    if form is Format.JSON:
        import json

        say(json.dumps([asdict(row) for row in rows], indent=2))
    elif form is Format.YAML:
        import yaml

        say(yaml.safe_dump([asdict(row) for row in rows], sort_keys=False).rstrip())
    elif form is Format.NAME:
        for row in rows:
            say(plain(name(row), 1000))
    elif rows:
        from tabulate import tabulate

        # Names, labels and messages come from files, images and guests: JSON has them as they are,
        # a terminal gets what it can show.
        table = [
            [plain(column.show(getattr(row, column.key)), column.limit) for column in columns]
            for row in rows
        ]
        titles = [column.title for column in columns]
        # Without disable_numparse a tag 1.10 would be printed as 1.1.
        say(tabulate(table, titles, tablefmt="plain", disable_numparse=True))
    elif empty:
        tell(empty)


def say(text: str) -> None:
    """Print data to standard output."""
    print(text)


def tell(text: str) -> None:
    """Print lines to standard error, with nothing in them that a terminal acts on."""
    print(_lines(text), file=sys.stderr)


def _lines(text: str) -> str:
    return "\n".join(map(printable, text.expandtabs().split("\n")))


def accept_any_text() -> None:
    """Have standard output and error escape what their encoding lacks instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def show_error(error: PoclabError) -> None:
    """Print an error: what, why, what to do."""
    first, *rest = error.lines()
    lines = [f"error: {first}" if not getattr(error, "problems", None) else first, *rest]
    tell("\n".join(lines))


def interactive() -> bool:
    """Whether somebody can answer a question."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: str) -> bool:
    """Ask on the terminal; anything but yes is no."""
    print(f"{_lines(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def typed(question: str) -> str:
    """Ask for a word on the terminal; gives what was typed, without blanks around it."""
    print(f"{_lines(question)} ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()


class Reporter:
    """Turns events into lines or, on a terminal, a progress bar; from any thread, one at a time."""

    def __init__(self, *, verbose: bool = False, quiet: bool = False) -> None:
        self._verbose = verbose
        self._quiet = quiet
        self._err: TextIO = sys.stderr
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not verbose
        self._lock = threading.RLock()  # `_progress` closes the bar as `close` does
        self._bar: tuple[Progress, TaskID] | None = None
        self._ended = False
        self._timed = False
        self._last = ("", 0.0)
        self._began = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Listen to one event."""
        with self._lock:
            self._report(event)

    def close(self) -> None:
        """Take the progress bar away; the next event of progress opens another."""
        with self._lock:
            if self._bar:
                self._bar[0].stop()
                self._bar = None

    def end(self) -> None:
        """Take the progress bar away for good: what threads still tell opens none."""
        with self._lock:
            self._ended = True
            self.close()

    def _report(self, event: Event) -> None:
        if event.kind == "warning":
            self._line(f"warning: {event.text}")
        elif event.kind == "note" and not self._quiet:
            self._line(event.text)
        elif event.kind == "progress" and not self._quiet:
            self._progress(event)
        elif self._verbose:
            details = " ".join(f"{key}={value}" for key, value in event.data.items())
            stamp = time.monotonic() - self._began
            self._line(f"[{stamp:8.3f}] {event.kind}: {event.text} {details}".rstrip())

    def _line(self, text: str) -> None:
        text = _lines(text)
        if self._bar:
            self._bar[0].console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._err, flush=True)

    def _progress(self, event: Event) -> None:
        done, total = event.data.get("done"), event.data.get("total")
        elapsed, expected = event.data.get("elapsed"), event.data.get("expected")
        estimate = f"of about {format_seconds(expected)}" if expected else ""
        if event.data.get("bytes"):
            estimate = " of ".join(format_size(int(value)) for value in (done, total) if value)
        if self._terminal:
            if self._ended:
                return
            if self._timed != (elapsed is not None):
                self.close()  # another piece of work: the time begins anew
                self._timed = elapsed is not None
            bar, task = self._bar or self._open()
            text = printable(event.text)
            bar.update(task, description=text, completed=done or 0, total=total, estimate=estimate)
            return
        # In a pipe: a line when the step changes, and one every ten seconds of a long one.
        text, when = self._last
        now = time.monotonic()
        if event.text == text and now - when < 10:
            return
        self._last = (event.text, now)
        part = f" {100 * done / total:.0f}%" if done and total else ""
        words = [format_seconds(elapsed)] if elapsed is not None else []
        words += [estimate] if estimate else []
        part += f" ({' '.join(words)})" if words else ""
        self._line(f"{event.text}{part}")

    def _open(self) -> tuple[Progress, TaskID]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[estimate]}", markup=False),
            console=Console(file=self._err),
            transient=True,
        )
        bar.start()
        self._bar = (bar, bar.add_task("", total=None, estimate=""))
        return self._bar
