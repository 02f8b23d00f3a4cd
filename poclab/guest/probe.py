"""Does it answer yet? Probes of ports, and waiting for them.

With QEMU's user networking a connection to a forwarded port proves nothing: QEMU accepts it
first and tries the guest afterwards. `ssh_banner` therefore reads, and `usernet_established`
reads QEMU's own table of connections.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator

from poclab.core.errors import PoclabError

_UNUSED = 1  # a port that nobody listens on: tcpmux, RFC 1078, historic since RFC 7805
_BANNER_MAX = 8192  # bytes read before the identification; RFC 4253, 4.2 allows lines before it


class TimedOut(PoclabError):
    """Something did not happen in time."""


class Cancelled(PoclabError):
    """Waiting was called off."""


class Deadline:
    """A point in time some seconds from now, by the monotonic clock."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._start = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since it was set."""
        return time.monotonic() - self._start

    @property
    def left(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self.seconds - self.elapsed)

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self.left <= 0


def wait_until(
    check: Callable[[], bool],
    timeout: float,
    *,
    interval: float = 0.2,
    backoff: float = 1.3,
    longest: float = 2.0,
    cancel: threading.Event | None = None,
    what: str = "the condition",
) -> float:
    """Call a check until it is true.

    It is called at least once, and once more when the time is up.

    Args:
        check: the check; what it raises ends the waiting.
        timeout: seconds to wait.
        interval: seconds between the first two calls.
        backoff: what the interval is multiplied by each time.
        longest: seconds that the interval never exceeds.
        cancel: ends the waiting at once when set.
        what: what is waited for, for the error.

    Returns:
        The seconds it took.

    Raises:
        TimedOut: it did not become true in time.
        Cancelled: `cancel` was set.
    """
    deadline = Deadline(timeout)
    stop = cancel or threading.Event()
    while True:
        if stop.is_set():
            raise Cancelled(f"waiting for {what} was called off")
        last = deadline.passed
        if check():
            return deadline.elapsed
        if last:
            raise TimedOut(f"{what} did not come within {timeout:.0f} s")
        stop.wait(min(interval, deadline.left))
        interval = min(interval * backoff, longest)


def tcp_answers(host: str, port: int, timeout: float) -> bool:
    """Whether a TCP connection is accepted.

    Args:
        host: an address.
        port: the port.
        timeout: seconds to wait for it.
    """
    return _fault(host, port, timeout) is None


def reaches(host: str, timeout: float) -> bool:
    """Whether a host's network answers at all, without work for a program on it.

    A connection to a port that nobody listens on is refused by the kernel. A firewall there that
    drops or prohibits it makes a host that answers look like one that does not. One on this host
    that refuses connections to its own VMs would make it look the other way round.

    Args:
        host: an address of a network that is up here.
        timeout: seconds to wait for it.
    """
    fault = _fault(host, _UNUSED, timeout)
    return fault is None or isinstance(fault, ConnectionRefusedError)


def _fault(host: str, port: int, timeout: float) -> OSError | None:
    """What keeps a TCP connection from being made, None when it is accepted."""
    try:
        with socket.create_connection((host, port), timeout):
            return None
    except OSError as error:
        return error


def ssh_banner(host: str, port: int, timeout: float, patience: float = 0.0) -> bool:
    """Whether an SSH server identifies itself (`SSH-2.0-...`, RFC 4253, 4.2).

    Poll it until it is true and then log in; servers may hold connections without a login
    against the client (OpenSSH's PerSourcePenalties).

    Args:
        host: an address.
        port: the port.
        timeout: seconds for the connection and the identification together.
        patience: seconds more for the identification of a server that took the connection: a slow
            one would never come to it while new connections give it more to do.
    """
    deadline = Deadline(timeout + patience)
    try:
        with socket.create_connection((host, port), timeout) as connection:
            received = b""
            while len(received) < _BANNER_MAX and not deadline.passed:
                connection.settimeout(max(deadline.left, 0.001))
                chunk = connection.recv(1024)
                if not chunk:
                    return False
                received += chunk
                if received.startswith(b"SSH-") or b"\nSSH-" in received:
                    return True
    except OSError:
        return False
    return False


def port_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on a port now.

    It does what QEMU does for a forwarded port: SO_REUSEADDR, bind, listen. Without
    SO_REUSEADDR a port would look taken for a minute after its last connection (TIME_WAIT);
    without listen, a port that another program has bound would look free, because Linux lets
    two sockets with SO_REUSEADDR share it until one listens. Servers on the wildcard address
    count. The answer may be old by the time it is used.

    Args:
        port: the port.
        host: the address to listen on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as server:
        try:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((host, port))
            server.listen(1)
        except OSError:
            return False
    return True


def free_ports(start: int, end: int, taken: Collection[int] = ()) -> Iterator[int]:
    """The free ports of a range on 127.0.0.1, lowest first, tested as they are asked for.

    Args:
        start: the first port.
        end: the first port beyond the range.
        taken: ports to leave out, free or not.
    """
    return (port for port in range(start, end) if port not in taken and port_free(port))


# --- QEMU user networking ---------------------------------------------------------------

# A row of `info usernet`, from libslirp's slirp_connection_info (the table has looked like this
# since QEMU 0.15): `TCP[ESTABLISHED]   10   127.0.0.1 52143   10.0.2.15   22   0   0`.
# The source is the forwarded port itself, not the client's.
_ROW = re.compile(
    r"^\s*TCP\[(?P<state>[A-Z0-9_]+)\]\s+-?\d+\s+\S+\s+(?P<source>\d+)\s+\S+\s+(?P<dest>\d+)\s",
    re.MULTILINE,
)
_UNANSWERED = frozenset({"CLOSED", "LISTEN", "SYN_SENT", "SYN_RCVD"})


def usernet_established(text: str, host_port: int, guest_port: int) -> bool | None:
    """Whether the guest answered the newest connection to a forwarded port.

    To probe a port: connect to it, keep the connection open, ask QEMU's monitor for
    `info usernet`, close. A connection that was closed without an answer stays in the table
    for a while, so only the first row counts: libslirp lists the newest connection first.

    Args:
        text: what `info usernet` printed.
        host_port: the forwarded port on the host.
        guest_port: the guest's port it leads to.

    Returns:
        True when the guest completed the handshake (whatever came after it), False while it has
        not answered, None when there is no connection: the guest refused it, or there was none.
    """
    for row in _ROW.finditer(text.replace("\r", "")):
        if row["state"] == "HOST_FORWARD":
            continue
        if (int(row["source"]), int(row["dest"])) == (host_port, guest_port):
            return row["state"] not in _UNANSWERED
    return None
