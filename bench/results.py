"""What came out, collected over all processes of a run, as a table for the documentation."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "POCLAB_BENCH_RESULTS"


@dataclass(frozen=True)
class Result:
    """A line of the table.

    Attributes:
        group: what it belongs to.
        what: what was measured.
        figure: what came out.
        ratio: how that compares, in words, or an empty string.
        bar: what it was to be, or an empty string.
        met: whether it is; None without a bar, and where it does not apply.
    """

    group: str
    what: str
    figure: str
    ratio: str = ""
    bar: str = ""
    met: bool | None = None


def add(result: Result) -> None:
    """Put a line into the table of the whole run, if somebody collects them."""
    if path := os.environ.get(FILE):
        with Path(path).open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")


def collected(path: Path) -> list[Result]:
    """The lines that all processes of a run put in."""
    return [Result(**json.loads(line)) for line in path.read_text().splitlines()]


def table(results: Iterable[Result]) -> list[str]:
    """The lines as a table in Markdown."""
    lines = ["| what | median (min - max) | against | bar |", "|---|---|---|---|"]
    group = ""
    for item in results:
        if item.group != group:
            group = item.group
            lines.append(f"| **{group}** | | | |")
        bar = f"{item.bar}: {verdict(item.met)}" if item.bar else ""
        lines.append(f"| {item.what} | {item.figure} | {item.ratio} | {bar} |")
    return lines


def verdict(met: bool | None) -> str:
    """Whether a bar is met, in words."""
    return {True: "met", False: "**missed**", None: "does not apply"}[met]
