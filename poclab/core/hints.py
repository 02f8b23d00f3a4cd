"""Commands that messages suggest, written so that a user can paste them into a shell.

Names of domains, volumes and files may be a stranger's. Each stays one word of the command,
whatever is in it, or the command is not shown: what a terminal prints of it would name something
else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from shlex import quote

from poclab.core.plaintext import plain

_LONGEST = 600  # characters of a command: more than one with the longest file name (255) has
_UUID = re.compile("[0-9A-Fa-f]{32}")
_CANNOT = "run `poclab doctor`: the command cannot be shown, as a name in it is not printable text"


def command(*words: str, otherwise: str = _CANNOT) -> str:
    """Write a command for a user to paste, each word quoted where a shell would change it.

    Args:
        words: the command and its arguments.
        otherwise: what to suggest instead where a word does not survive being printed (control
            characters, bytes that are not UTF-8, several blanks in a row) or the command is so
            long that it would be cut.
    """
    text = " ".join(map(quote, words))
    return text if plain(text, _LONGEST) == text else otherwise


def _is_misread(name: str) -> bool:
    """Whether virsh takes a name for an ID or UUID, which it tries first (tools/virsh-util.c)."""
    # virStrToLong_i() takes blanks and a sign, virUUIDParse() dashes and blanks anywhere.
    digits = name.strip().lstrip("+")
    return digits.isdecimal() or _UUID.fullmatch(re.sub(r"[-\s]", "", name)) is not None


def virsh(*words: str, names: Sequence[str], uri: str, otherwise: str = _CANNOT) -> str:
    """Write a command of virsh's on things whose names come last; see `command`.

    Args:
        words: virsh's command and its options.
        names: what it is for; one that begins with `-` is not taken for an option of virsh's, and
            none that virsh would take for another thing's ID or UUID is suggested.
        uri: the libvirt connection.
        otherwise: see `command`.
    """
    if any(_is_misread(name) for name in names):
        return otherwise
    end = ("--",) if any(name.startswith("-") for name in names) else ()
    return command("virsh", "-c", uri, *words, *end, *names, otherwise=otherwise)
