"""Timing, and the table of what came out."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench import results
from bench.results import Result, verdict

# A program's error as poclab and virsh print it, or as Ruby does above its traceback.
_ERROR = re.compile(r"^error: (.+)$|(?<=': )(.+ \([\w:]*Error\))$")


class MeasurementError(Exception):
    """What was to be measured did not work, so there is no figure."""

    @property
    def words(self) -> str:
        """What the failing program itself said: its error, else its last line."""
        lines = [line.strip() for line in str(self).splitlines() if line.strip()]
        errors = [found[1] or found[2] for line in lines if (found := _ERROR.search(line))]
        return (errors or lines[-1:] or ["it does not say why"])[0]


@dataclass(frozen=True)
class Series:
    """The runs of one thing.

    Attributes:
        name: what was run.
        seconds: how long each run took.
    """

    name: str
    seconds: tuple[float, ...]

    @property
    def middle(self) -> float:
        """The median in seconds."""
        return median(self.seconds)

    def __str__(self) -> str:
        low, high = min(self.seconds), max(self.seconds)
        return f"{_ms(self.middle)} ms  ({_ms(low)} - {_ms(high)}, n={len(self.seconds)})"

    @property
    def brief(self) -> str:
        """Median and spread for the table, in milliseconds below two seconds."""
        low, high, count = min(self.seconds), max(self.seconds), len(self.seconds)
        unit, scale, digits = ("ms", 1000, 0) if self.middle < 2 else ("s", 1, 1)
        first, last, middle = (f"{scale * x:.{digits}f}" for x in (low, high, self.middle))
        return f"{middle} {unit} ({first} - {last}, n={count})"


@dataclass(frozen=True)
class Comparison:
    """One series beside what it is measured against.

    Attributes:
        of: what is measured.
        against: the measure.
        bar: the ratio it is meant to stay below, or None where there is none.
    """

    of: Series
    against: Series
    bar: float | None = None

    @property
    def ratio(self) -> float:
        """How many times the measure it takes."""
        return self.of.middle / self.against.middle

    @property
    def met(self) -> bool | None:
        """Whether it stays below the bar; None without one."""
        return None if self.bar is None else self.ratio <= self.bar

    def line(self, width: int) -> str:
        """The line of the report: figures, ratio, bar."""
        bar = f" (bar {self.bar:g}x: {verdict(self.met)})" if self.bar is not None else ""
        return f"{self.of.name:{width}}  {self.of}  {self.ratio:.2f}x{bar}"

    def result(self, group: str) -> Result:
        """The line of the table."""
        bar = "" if self.bar is None else f"{self.bar:g}x"
        return Result(group, self.of.name, self.of.brief, f"{self.ratio:.2f}x", bar, self.met)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:7.1f}"


def interleaved(
    tasks: Mapping[str, Callable[[], float]], runs: int, *, before: int = 1
) -> dict[str, Series]:
    """Run every task in turn (A B A B ...).

    What disturbs the machine for a while then disturbs all of them.

    Args:
        tasks: by name, what to run; each returns the seconds it took.
        runs: how often each is run.
        before: rounds before that, which are not counted.
    """
    found: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(before + runs):
        for name, task in tasks.items():
            seconds = task()
            if number >= before:
                found[name].append(seconds)
    return {name: Series(name, tuple(seconds)) for name, seconds in found.items()}


def report(title: str, against: Series, comparisons: Sequence[Comparison]) -> None:
    """Print a group of comparisons with the same measure."""
    width = max(len(series.name) for series in (against, *(item.of for item in comparisons)))
    print(f"\n{title}")
    print(f"  {against.name:{width}}  {against}  1x")
    results.add(Result(title, against.name, against.brief, "1x"))
    for item in comparisons:
        print(f"  {item.line(width)}")
        results.add(item.result(title))


def timed(argv: Sequence[str], *, timeout: float = 120) -> float:
    """Run a command and return the seconds it took.

    Raises:
        MeasurementError: it failed.
    """
    return output(argv, timeout=timeout)[0]


def output(argv: Sequence[str], *, timeout: float = 120) -> tuple[float, str]:
    """Run a command; returns the seconds it took and all that it printed.

    Raises:
        MeasurementError: it failed.
    """
    began = time.perf_counter()
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MeasurementError(f"{' '.join(argv)}: {error}") from error
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise MeasurementError(f"{' '.join(argv)}: exit status {done.returncode}\n{done.stdout}")
    return seconds, done.stdout
