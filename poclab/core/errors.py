"""Errors that a user can act on: what happened, why, what to do.

Everything below the command line raises one of these for a condition that is the
user's or the host's; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations


class PoclabError(Exception):
    """A condition to tell the user, on at most three short lines.

    Attributes:
        what: what happened, in one line.
        why: the cause, or an empty string.
        fix: what to do about it, or an empty string.
        exit_code: the exit status of the program (1 failed, 2 usage or lab file).
    """

    exit_code = 1

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """The message as it is shown: one to three lines."""
        rows = [self.what]
        if self.why:
            rows.append(f"why: {self.why}")
        if self.fix:
            rows.append(f"fix: {self.fix}")
        return rows


class UsageError(PoclabError):
    """The command line or a file the user wrote is wrong (exit status 2)."""

    exit_code = 2


class Problems(UsageError):
    """Several faults of one input, reported in one go.

    Attributes:
        problems: one line a fault, each beginning with `file:line:column:` where known.
    """

    def __init__(self, what: str, problems: list[str], *, fix: str = "") -> None:
        super().__init__(what, fix=fix)
        self.problems = problems

    def lines(self) -> list[str]:
        """Every fault, then the summary."""
        return [*self.problems, *super().lines()]


class NewerFormatError(ValueError):
    """A manifest that a newer poclab wrote: it holds, but cannot be understood here."""
