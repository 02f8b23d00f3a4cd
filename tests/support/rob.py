"""Runs poclab, and takes the ports it chose between plan and start, as another program would.

    python rob.py TIMES GUEST_PORT ARGUMENT...

At each of the first TIMES steps `start` this program listens on the port of 127.0.0.1 that is
forwarded to GUEST_PORT of the domain about to start. The file imports nothing of the tests, so
any account can run it alone.
"""

from __future__ import annotations

import re
import socket
import sys
import threading

import libvirt


class Robber:
    """A listener that takes ports.

    Attributes:
        times: how many it still takes.
        guest: the port of the guest.
        sockets: what it has taken.
    """

    def __init__(self, times: int, guest: int) -> None:
        self.times = times
        self.guest = guest
        self.sockets: list[socket.socket] = []
        self.lock = threading.Lock()

    def __call__(self, event: object) -> None:
        """Take the port of a domain that is about to start."""
        data = getattr(event, "data", {})
        if getattr(event, "text", "") != "start" or "domain" not in data:
            return
        with self.lock:
            if not self.times:
                return
            self.times -= 1
            xml = libvirt.open().lookupByName(data["domain"]).XMLDesc()
            rule = re.search(rf"hostfwd=tcp:127\.0\.0\.1:(\d+)-:{self.guest}\b", xml)
            assert rule, xml
            taken = socket.socket()
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", int(rule[1])))
            taken.listen(1)
            self.sockets.append(taken)


def main() -> None:
    """Run poclab under a robber; see the module."""
    times, guest, *arguments = sys.argv[1:]
    from poclab.cli import main as program
    from poclab.core import events

    sys.argv = ["poclab", *arguments]
    with events.listening(Robber(int(times), int(guest))):
        program()


if __name__ == "__main__":
    main()
