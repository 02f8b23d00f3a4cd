"""Questions to the user, and when they are asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poclab.cli import output
from poclab.cli.context import end_progress
from poclab.core.errors import UsageError

if TYPE_CHECKING:
    pass


def confirmed(question: str, *, yes: bool) -> bool:
    """Ask where somebody can answer; a script that says nothing means yes."""
    if yes or not output.interactive():
        return True
    end_progress()
    return output.ask(question)


def check_terminal() -> None:
    """Check that somebody can answer a question that no option answers.

    Raises:
        UsageError: nobody can.
    """
    if not output.interactive():
        raise UsageError(
            "that wants an answer on a terminal",
            why="standard input or standard error is none",
            fix="run it in a terminal, or write the ISO by hand with dd",
        )


def insisted(question: str, *words: str) -> bool:
    """Have one of some words typed; no option and no script can answer instead.

    Raises:
        UsageError: nobody can answer.
    """
    check_terminal()
    end_progress()
    return output.typed(question) in words
