"""Text from elsewhere made plain: for records, for messages, for a terminal. Pure."""

from __future__ import annotations


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
