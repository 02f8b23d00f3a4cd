"""Whether a VM is ready, and waiting for it.

No packet goes to a lab address while the lab's network is not up on this host: it would leave
by the default route, to a stranger.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address

from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.core.units import format_seconds
from poclab.guest import probe
from poclab.guest.ssh import LabFiles, LoginState, Target, login
from poclab.model.lab import Ready
from poclab.model.record import VmRecord
from poclab.virt.host import Host

_GLANCE = 0.4  # seconds that `status` gives a VM to answer
_BANNER = 5.0  # seconds more that waiting gives a server to identify itself
_LOGIN = 15.0  # seconds for one attempt to log in; an emulated guest is slow


def target(host: Host, record: VmRecord, files: LabFiles) -> Target:
    """Where and how to log in to a VM.

    Raises:
        PoclabError: it has no address, its network is not up here, or the key is elsewhere.
    """
    address, port = _endpoint(host, record, 22)
    key = files.private_key()
    if key is None:
        raise PoclabError(
            f"the key of lab {record.lab} is not on this machine",
            why="it was made where the lab was brought up, and stays there",
            fix=f"work from there, or `poclab reset {record.path}`: that puts a new key in",
        )
    known = files.known_hosts(record.name, record.overlay)
    return Target(str(address), port, record.user, key, known, alias=record.domain)


def glance(host: Host, record: VmRecord, patience: float = 0.0) -> bool | None:
    """Whether a running VM is ready, at one quick look; None when nothing was asked for.

    Args:
        host: its host.
        record: the VM.
        patience: seconds more for an SSH server that takes the connection and says nothing yet.
    """
    ready = record.ready
    if ready is None:
        return None
    try:
        if ready.kind == "agent":
            return host.guest(record).agent_connected()
        if ready.kind == "ssh":
            address, port = _endpoint(host, record, 22)
            return probe.ssh_banner(str(address), port, _GLANCE, patience)
        return _tcp(host, record, ready.port, _GLANCE)
    except PoclabError:
        return False


def wait(host: Host, record: VmRecord, files: LabFiles, *, woke: bool = False) -> float:
    """Wait until a VM is ready.

    Args:
        host: its host.
        record: the VM.
        files: what its lab's client has.
        woke: it came back with its memory, and was ready when that was kept. That it goes on and
            can be reached is all that there is to see: each connection to its SSH server is work
            for an emulated guest, just when it is wanted. An agent costs it nothing, and its
            connection is there a moment later than the guest.

    Returns:
        The seconds it took; 0 when nothing was asked for.

    Raises:
        PoclabError: it did not become ready in time, or does not run any more.
    """
    ready = record.ready
    if ready is None:
        return 0.0
    events.progress(f"{record.name}: waiting for {_awaited(host, ready, woke)}", vm=record.name)
    state = LoginState.DOWN

    def check() -> bool:
        nonlocal state
        if not host.guest(record).active():
            raise PoclabError(f"{record.path} stopped by itself", fix=_console(host, record))
        if woke and ready.kind != "agent" and _reached(host, record):
            return True
        # QEMU's user network takes connections for a guest that is still off: no answer means less.
        if glance(host, record, 1.0 if host.session else _BANNER) is not True:
            return False
        if ready.kind == "ssh" and not woke:
            state = login(target(host, record, files), _LOGIN)
            return state is LoginState.OK
        return True

    try:
        return probe.wait_until(check, ready.timeout, interval=0.2, longest=1.0)
    except probe.TimedOut as error:
        raise PoclabError(
            f"{record.path} was not ready after {format_seconds(ready.timeout)}",
            why=_why(ready, state, record),
            fix=_console(host, record),
        ) from error


def _why(ready: Ready, state: LoginState, record: VmRecord) -> str:
    if ready.kind == "ssh" and state is LoginState.REFUSED:
        return f"its SSH server answers, but does not let {record.user} in with the lab's key"
    if ready.kind == "ssh" and state is LoginState.CHANGED_KEY:
        return "its host key is another than at first contact"
    if ready.kind == "ssh" and state is LoginState.NOISY:
        return "a login to it prints without end"
    return f"no answer: {_wanted(ready)}"


def _wanted(ready: Ready) -> str:
    return {"ssh": "SSH", "tcp": f"port {ready.port}", "agent": "the guest agent"}[ready.kind]


def _awaited(host: Host, ready: Ready, woke: bool) -> str:
    by_kernel = woke and ready.kind != "agent" and not host.session  # see `_reached`
    return "the guest to answer" if by_kernel else _wanted(ready)


def _console(host: Host, record: VmRecord) -> str:
    return f"see its console log: {host.console_log(record)}"


def _endpoint(host: Host, record: VmRecord, port: int) -> tuple[IPv4Address, int]:
    """The address and port that reach a port of the guest from this host."""
    if host.session:
        forwarded = next((f.host for f in record.forwards if f.guest == port), None)
        if forwarded is None:
            raise PoclabError(f"port {port} of {record.path} is not forwarded")
        return IPv4Address("127.0.0.1"), forwarded
    for nic in record.nics:
        if nic.ip is not None and host.network_up(record.lab, nic.network):
            return nic.ip.ip, port
    raise PoclabError(
        f"{record.path} cannot be reached from here",
        why="none of its networks is up on this host",
        fix=f"`poclab up` starts the networks of {record.lab}",
    )


def _reached(host: Host, record: VmRecord) -> bool:
    """Whether a guest's kernel answers; where it cannot be told apart from QEMU's, False."""
    if host.session:
        return False
    try:
        address, _ = _endpoint(host, record, 0)
    except PoclabError:  # it has no address, and is asked in another way
        return False
    return probe.reaches(str(address), _GLANCE)


def _tcp(host: Host, record: VmRecord, port: int, timeout: float) -> bool:
    address, outside = _endpoint(host, record, port)
    if not host.session:
        return probe.tcp_answers(str(address), outside, timeout)
    # QEMU accepts for the guest; only its own table says whether the guest answered.
    try:
        with socket.create_connection((str(address), outside), timeout) as connection:
            connection.settimeout(timeout)
            try:
                if connection.recv(1) == b"":
                    return False
            except TimeoutError:
                table = host.guest(record).user_network()
                return probe.usernet_established(table, outside, port) is True
            return True
    except OSError:
        return False
