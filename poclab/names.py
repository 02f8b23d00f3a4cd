"""The names poclab gives and takes, and how they are put together.

Lab, VM, network and image names are `[a-z][a-z0-9-]*`, 40 characters at most, so that no
separator used here (`.`, `:`, `/`) can stand in one. Tags follow the OCI distribution
specification: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
"""

from __future__ import annotations

import re

from poclab.errors import UsageError

NAME_PATTERN = r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?"
TAG_PATTERN = r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}"

_NAME = re.compile(NAME_PATTERN)
_TAG = re.compile(TAG_PATTERN)

NAME_RULE = "a-z, 0-9 and -, beginning with a letter, 40 characters at most"
TAG_RULE = "letters, digits, _ . -, not beginning with . or -, 128 characters at most"


def is_name(text: str) -> bool:
    """Whether the text can name a lab, a VM, a network, an image or a disk."""
    return _NAME.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Whether the text can be a tag."""
    return _TAG.fullmatch(text) is not None


def is_user(text: str) -> bool:
    """Whether the text can name the user to log in as: it becomes an argument of ssh."""
    return text.isprintable() and 0 < len(text) <= 256 and not text.startswith("-")


def check_name(kind: str, text: str) -> str:
    """Return the text when it is a name.

    Args:
        kind: what it names, for the message ("lab", "image", ...).
        text: what the user wrote.

    Raises:
        UsageError: it is not a name.
    """
    if is_name(text):
        return text
    raise UsageError(f"{shown(text)} is no {kind} name", why=f"a {kind} name is {NAME_RULE}")


def check_tag(text: str) -> str:
    """Return the text when it is a tag.

    Raises:
        UsageError: it is not a tag.
    """
    if is_tag(text):
        return text
    raise UsageError(f"{shown(text)} is no tag", why=f"a tag is {TAG_RULE}")


def plain(text: str, limit: int = 400) -> str:
    """Make a program's or a system's text part of a line: one line, printable, cut to a length."""
    return printable(" ".join(text.split()))[:limit]


def printable(text: str) -> str:
    """Make a text fit for a terminal, blanks kept: what is not printable becomes `?`.

    That is what Python calls so (`str.isprintable`): control characters, escape sequences, marks
    that turn the direction of writing, lone surrogates of bytes that are not UTF-8.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def stored(text: str, limit: int = 4096) -> str:
    """A stranger's text as it may be kept in a record: printable, in one line, cut, valid UTF-8.

    Escape sequences, line ends, bidirectional controls and bytes that are no UTF-8 would reach
    every later listing. Text that has none of these stays as it is, blanks included.
    """
    return text if text.isprintable() and len(text) <= limit else plain(text, limit)


def shown(text: str, limit: int = 60) -> str:
    """The text as it may be printed: quoted, control characters escaped, cut to a length."""
    if len(text) > limit:
        text = text[:limit] + "…"
    return ascii(text) if not text.isprintable() or not text.isascii() else f"'{text}'"
