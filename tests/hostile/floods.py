"""Floods and silences: programs that print without end, and partners that never answer.

Each function gives the command (or the text of a shell script) that behaves so; nothing is started
here. The scripts for guests need no more than busybox has.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def zeros() -> list[str]:
    """Print zero bytes without end: one line that never ends."""
    return ["cat", "/dev/zero"]


def lines(text: str = "flood") -> list[str]:
    """Print a line without end."""
    return ["yes", text]


def errors() -> list[str]:
    """Print lines as errors without end, and nothing else."""
    return ["sh", "-c", "yes flood >&2"]


def orphan(note: Path) -> list[str]:
    """Leave a child behind that floods, its PID in a file."""
    return ["sh", "-c", 'yes flood & echo $! >"$0"', str(note)]


def holder() -> list[str]:
    """Print the PID of a child that keeps the pipe open and says nothing, and leave it behind."""
    return ["sh", "-c", "sleep 1000 & echo $!"]


def deaf() -> list[str]:
    """Print the own PID, then ignore SIGTERM and print without end."""
    return ["sh", "-c", "trap '' TERM; echo $$; while :; do echo flood; done"]


def bootc(after: str = "") -> str:
    """A `bootc` for a guest that prints zeros without end.

    Args:
        after: the word it floods at ("status"); by default at every one.
    """
    test = f'[ "$1" = {after} ] || exit 0\n' if after else ""
    return f"#!/bin/sh\n{test}exec cat /dev/zero\n"


def login_shell(calm: str = "") -> str:
    """A login shell for a guest that prints without end, whatever it is asked to run.

    Args:
        calm: a word; a command that has it in it is run, so that the guest can be mended.
    """
    but = f"""case $2 in *{calm}*) exec /bin/sh "$@" ;; esac\n""" if calm else ""
    return f"#!/bin/sh\n{but}exec yes 'Welcome! \033]0;pwned\007'\n"


def agent(port: str, answers: Mapping[str, str] | None = None) -> str:
    r"""A guest agent that answers the requests that keep a host content, and no other.

    It speaks the protocol of the QEMU guest agent (docs/interop/qemu-ga.rst in QEMU): one JSON
    object a line; the answer to guest-sync carries the number it was asked with. libvirt writes
    a byte 0xFF first to have half a request thrown away, which is skipped with the rest of a line
    that is before the first brace.

    Args:
        port: the device in the guest, `/dev/vport1p1`.
        answers: what is answered to which request, as the JSON of `return`; by default to
            guest-ping only.
    """
    cases = "".join(
        f"""        *'"{name}"'*) echo '{{"return": {value}}}' >&3 ;;\n"""
        for name, value in ({"guest-ping": "{}"} if answers is None else answers).items()
    )
    return f"""#!/bin/sh
exec 3<>{port}
while :; do
    # There is an end of file until libvirt has connected, which it does when the port is open.
    read -r line <&3 || {{ sleep 1; continue; }}
    case $line in
        *'"guest-sync'*)
            id=${{line##*\\"id\\"}}
            id=$(echo "$id" | tr -cd 0-9)
            echo "{{\\"return\\": $id}}" >&3 ;;
{cases}    esac
done
"""
