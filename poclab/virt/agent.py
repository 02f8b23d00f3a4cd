"""The guest agent: a program of the guest's, so nobody may wait for it without a limit.

libvirt's own limit for most of what it asks an agent is none: it is given one for each request
(https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainAgentSetResponseTimeout).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import libvirt

from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.core.plaintext import plain
from poclab.virt import remote

_PING = 5  # seconds; what libvirt itself waits for an agent to be in step
ANSWER = 10  # seconds for what an agent does at once
# Seconds for all file systems to be written out and held still. Windows' agent gives up after 60
# itself (VSS_TIMEOUT_FREEZE_MSEC in qga/vss-win32/requester.cpp), and its answer is to be heard.
FREEZE = 70
# The last is of libvirt 11.2.
_SILENT = tuple(
    getattr(libvirt, f"VIR_ERR_AGENT_{name}", libvirt.VIR_ERR_AGENT_UNRESPONSIVE)
    for name in ("UNRESPONSIVE", "UNSYNCED", "COMMAND_TIMEOUT")
)


class SilentError(PoclabError):
    """The guest agent did not answer a request."""


def silence(domain: Any) -> str:
    """Why the agent does not answer, or an empty string when it does.

    Args:
        domain: the domain, in a `Remote`.
    """
    import libvirt_qemu

    ping, ask = '{"execute": "guest-ping"}', libvirt_qemu.qemuAgentCommand
    try:
        remote.call("guest-ping", ask, domain, ping, _PING, 0)
    except libvirt.libvirtError as error:
        return plain(str(error))
    return ""


@contextmanager
def answering(domain: Any, seconds: int, what: str, fix: str) -> Iterator[None]:
    """Have libvirt give up waiting for the agent while the block runs.

    Args:
        domain: the domain, in a `Remote`.
        seconds: how long it may wait for an answer.
        what: what failed if the agent does not answer.
        fix: what helps.

    Raises:
        SilentError: it did not answer.
        libvirt.libvirtError: something else failed.
    """
    domain.agentSetResponseTimeout(seconds, 0)
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() not in _SILENT:
            raise
        raise SilentError(what, why=f"its guest agent: {plain(str(error))}", fix=fix) from error
    finally:
        with suppress(libvirt.libvirtError, PoclabError):
            default = libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK
            domain.agentSetResponseTimeout(default, 0)


def thaw(domain: Any) -> None:
    """Let a guest write again whose agent may have held it still too late; best effort."""
    try:
        domain.agentSetResponseTimeout(ANSWER, 0)
        domain.fsThaw()
    except (libvirt.libvirtError, PoclabError) as error:
        events.debug(f"{domain.name()} was not thawed: {plain(str(error))}")
