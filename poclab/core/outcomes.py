"""How programs that `run` started ended, or why they were ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from shlex import join

from poclab.core import hints
from poclab.core.errors import PoclabError
from poclab.core.units import format_size


@dataclass(frozen=True)
class Result:
    """How a process ended.

    Attributes:
        argv: the command.
        code: its exit status; negative for a signal.
        stdout: what it printed.
        stderr: what it printed as errors.
    """

    argv: tuple[str, ...]
    code: int
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        """The last line it printed as an error, or else at all."""
        for text in (self.stderr, self.stdout):
            lines = text.strip().splitlines()
            if lines:
                return lines[-1].strip()
        return f"exit status {self.code}"


class CommandFailed(PoclabError):
    """A command ended with a status other than 0.

    Attributes:
        result: how it ended.
    """

    def __init__(self, result: Result, *, fix: str = "") -> None:
        super().__init__(f"{result.argv[0]} failed", why=result.last_line, fix=fix)
        self.result = result


class TooMuchOutput(PoclabError):
    """A command printed more than it may, and was ended."""

    def __init__(self, argv: Sequence[str], most: int) -> None:
        again = hints.command(*argv, otherwise="`poclab -v` shows the command")
        super().__init__(
            f"{argv[0]} printed more than {format_size(most)}",
            why="poclab expects far less, and ended it",
            fix=f"see what it prints: {again}",
        )


class TimedOut(PoclabError):
    """A command went on beyond its time, and was ended."""

    def __init__(self, argv: Sequence[str], seconds: float) -> None:
        super().__init__(
            f"{argv[0]} did not end within {seconds:.0f} s",
            why=join(argv)[:300],
            fix="run the same command again; `poclab -v` shows what it starts",
        )
