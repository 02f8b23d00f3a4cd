"""What `image import` does with its arguments and the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from poclab.cli import output
from poclab.core.errors import UsageError
from poclab.core.plaintext import shown
from poclab.core.units import parse_size
from poclab.disks.profile_guess import Guess
from poclab.model.version import Profile


def source(file: str) -> Path | BinaryIO:
    """The file, or standard input for `-`.

    Raises:
        UsageError: standard input is a terminal.
    """
    if file != "-":
        return Path(file)
    if sys.stdin.isatty():
        raise UsageError(
            "standard input is a terminal",
            fix="pipe a disk in: ssh HOST cat DISK | poclab image import NAME:TAG -",
        )
    return sys.stdin.buffer


def size(text: str) -> int:
    """Read --size-limit.

    Raises:
        UsageError: it is no size.
    """
    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(f"--size-limit {shown(text)} is no size", why=str(error)) from error


def chooser() -> Callable[[Guess], Profile] | None:
    """Who to ask for a profile, or None when nobody can answer."""
    return _choose if output.interactive() else None


def _choose(guess: Guess) -> Profile:
    """Ask for the profile of a disk that does not show it; Enter takes the guess."""
    names = [profile.value for profile in Profile]
    output.tell(f"the disk does not show which devices it can drive: {guess.reason}")
    while True:
        output.tell(f"profile ({', '.join(names)}) [{guess.profile}]:")
        line = sys.stdin.readline()
        answer = line.strip().lower() or guess.profile.value
        if answer in names:
            return Profile(answer)
        if not line:
            return guess.profile
