"""The names poclab gives and takes, and how they are put together.

Lab, VM, network and image names are `[a-z][a-z0-9-]*`, 40 characters at most, so that no
separator used here (`.`, `:`, `/`) can stand in one. Tags follow the OCI distribution
specification: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
"""

from __future__ import annotations

import re

from poclab.core.errors import UsageError
from poclab.core.plaintext import shown

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
