"""Probes of ports, waiting, and QEMU's table of connections (captured and live)."""

from __future__ import annotations

import errno
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path

import pytest

from poclab.core.errors import PoclabError
from poclab.guest.probe import (
    Cancelled,
    Deadline,
    TimedOut,
    free_ports,
    port_free,
    reaches,
    ssh_banner,
    tcp_answers,
    usernet_established,
    wait_until,
)

# --- ports --------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def _serve(server: socket.socket, talk: Callable[[socket.socket], None]) -> threading.Thread:
    def accept() -> None:
        connection, _ = server.accept()
        with connection, suppress(OSError):
            talk(connection)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    return thread


def _port(server: socket.socket) -> int:
    return int(server.getsockname()[1])


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", True),
        (b"Authorized use only\r\nSSH-2.0-dropbear\r\n", True),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False),
        (b"xSSH-2.0\r\n", False),
        (b"", False),
        (b"y" * 20000, False),
    ],
)
def test_banner(server: socket.socket, said: bytes, expected: bool) -> None:
    thread = _serve(server, lambda connection: connection.sendall(said))
    assert ssh_banner("127.0.0.1", _port(server), 5) is expected
    thread.join(5)


def test_banner_in_pieces(server: socket.socket) -> None:
    def talk(connection: socket.socket) -> None:
        for piece in (b"hello\nS", b"S", b"H-", b"2.0"):
            connection.sendall(piece)
            time.sleep(0.02)

    _serve(server, talk)
    assert ssh_banner("127.0.0.1", _port(server), 5)


def test_a_port_that_accepts_and_is_silent_has_no_banner(server: socket.socket) -> None:
    start = time.monotonic()
    assert tcp_answers("127.0.0.1", _port(server), 1)
    assert not ssh_banner("127.0.0.1", _port(server), 0.3)
    assert 0.25 < time.monotonic() - start < 3


def test_a_slow_dripping_server_cannot_hold_us(server: socket.socket) -> None:
    def talk(connection: socket.socket) -> None:
        while True:
            connection.sendall(b".")
            time.sleep(0.05)

    _serve(server, talk)
    start = time.monotonic()
    assert not ssh_banner("127.0.0.1", _port(server), 0.4)
    assert time.monotonic() - start < 3


def test_nobody_listens() -> None:
    port = next(free_ports(40000, 60000))
    assert not tcp_answers("127.0.0.1", port, 1)
    assert not ssh_banner("127.0.0.1", port, 1)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_with_a_listener_is_not_free(address: str) -> None:
    with closing(socket.socket()) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((address, 0))
        other.listen()
        port = _port(other)
        assert not port_free(port)
    assert port_free(port)


def test_a_port_is_free_right_after_its_last_connection() -> None:
    """TIME_WAIT keeps a plain bind out, but not a server."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = _port(server)
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()  # the side that closes first keeps TIME_WAIT: the server's port
        client.recv(1)
        client.close()
    with closing(socket.socket()) as plain, pytest.raises(OSError, match="in use"):
        plain.bind(("127.0.0.1", port))
    assert port_free(port)


def test_free_ports_leaves_out_the_taken_and_the_busy() -> None:
    start = next(p for p in range(41000, 60000, 10) if all(map(port_free, range(p, p + 5))))
    with socket.create_server(("127.0.0.1", start + 1)):
        assert list(free_ports(start, start + 5, {start + 3})) == [start, start + 2, start + 4]
    assert list(free_ports(start, start)) == []


# --- waiting ------------------------------------------------------------------------------


def test_wait_until_returns_the_seconds_it_took() -> None:
    answers = iter([False, False, True])
    assert 0.03 < wait_until(lambda: next(answers), 5, interval=0.02, backoff=1.5) < 2


def test_wait_until_checks_once_more_at_the_end() -> None:
    calls: list[float] = []

    def check() -> bool:
        calls.append(time.monotonic())
        return False

    with pytest.raises(TimedOut, match="vm1's SSH server did not come within 0 s"):
        wait_until(check, 0.2, interval=0.15, what="vm1's SSH server")
    assert 0.19 < calls[-1] - calls[0] < 2
    assert 3 <= len(calls) <= 4


def test_wait_until_backs_off_to_the_longest_interval() -> None:
    calls: list[float] = []

    def check() -> bool:
        calls.append(time.monotonic())
        return len(calls) == 5

    wait_until(check, 10, interval=0.02, backoff=3, longest=0.1)
    gaps = [b - a for a, b in pairwise(calls)]
    assert gaps[0] < gaps[1] < gaps[2]
    assert gaps[3] < 0.5


def test_wait_until_is_cancelled_at_once() -> None:
    cancel = threading.Event()
    timer = threading.Timer(0.1, cancel.set)
    timer.start()
    start = time.monotonic()
    with pytest.raises(Cancelled):
        wait_until(lambda: False, 60, interval=30, longest=30, cancel=cancel)
    assert time.monotonic() - start < 5
    timer.join()


def test_wait_until_passes_errors_on() -> None:
    def check() -> bool:
        raise PoclabError("the VM crashed")

    with pytest.raises(PoclabError, match="crashed"):
        wait_until(check, 60)


def test_deadline() -> None:
    deadline = Deadline(0.05)
    assert not deadline.passed
    assert 0 < deadline.left <= 0.05
    time.sleep(0.06)
    assert deadline.passed
    assert deadline.left == 0
    assert deadline.elapsed >= 0.05


# --- info usernet: captured from QEMU 7.2 (libslirp 4.7) ------------------------------------

HEADER = (
    "Hub -1 (n):\r\n"
    "  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n"
)
FORWARDS = (
    "  TCP[HOST_FORWARD]   9       127.0.0.1 52143       10.0.2.15    22     0     0\r\n"
    "  TCP[HOST_FORWARD]   8       127.0.0.1 50727       10.0.2.15    80     0     0\r\n"
)
SYN = "  TCP[SYN_SENT]      10       127.0.0.1 52143       10.0.2.15    22     0     0\r\n"
UP = "  TCP[ESTABLISHED]   11       127.0.0.1 52143       10.0.2.15    22     0     0\r\n"
UDP = "  UDP[223 sec]      168       10.0.2.15  5678 255.255.255.255  5678     0     0\r\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEADER + FORWARDS, None),
        (HEADER + SYN + FORWARDS, False),
        (HEADER + UP + FORWARDS, True),
        (HEADER + UP + SYN + FORWARDS, True),  # an older probe was never answered
        (HEADER + SYN + UP + FORWARDS, False),  # an older connection outlived the server
        (HEADER + UP.replace("ESTABLISHED", "CLOSE_WAIT") + FORWARDS, True),
        (HEADER + UP.replace("52143", "50727").replace("22 ", "80 ") + FORWARDS, None),
        (HEADER + FORWARDS + UDP, None),
        ((HEADER + UP + FORWARDS).replace("\r\n", "\n"), True),
        ("", None),
        ("unknown command: 'info usernet'\r\n", None),
    ],
)
def test_usernet_table(text: str, expected: bool | None) -> None:
    assert usernet_established(text, 52143, 22) is expected


# --- info usernet: live ---------------------------------------------------------------------

ETHERNET_ARP, ETHERNET_IP = 0x0806, 0x0800
GUEST_MAC = bytes.fromhex("525400123456")
SYN_FLAG, RST_ACK, SYN_ACK = 0x02, 0x14, 0x12


class Wire:
    """QEMU without a machine: its user network, with this test as a stand-in for the guest.

    Frames come and go as UDP datagrams on 127.0.0.1 (`-netdev socket,udp=`).
    """

    def __init__(self, directory: Path) -> None:
        self.frames = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.frames.bind(("127.0.0.1", 0))
        self.frames.settimeout(10)
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as spare:
            spare.bind(("127.0.0.1", 0))
            self.qemu_port = _port(spare)
        self.port = next(free_ports(42000, 60000))
        self.monitor = directory / "monitor"
        mine = f"127.0.0.1:{_port(self.frames)}"
        self.process = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none"),
                *("-monitor", f"unix:{self.monitor},server=on,wait=off"),
                *("-netdev", f"user,id=u,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:80"),
                *("-netdev", f"socket,id=s,udp={mine},localaddr=127.0.0.1:{self.qemu_port}"),
                *("-netdev", "hubport,id=a,hubid=0,netdev=u"),
                *("-netdev", "hubport,id=b,hubid=0,netdev=s"),
            ]
        )
        wait_until(lambda: tcp_answers("127.0.0.1", self.port, 1), 20, what="QEMU")
        # That probe was a connection too: its SYN is never answered.
        self.syn()

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self.frames.close()

    def info(self) -> str:
        """What `info usernet` prints."""
        with closing(socket.socket(socket.AF_UNIX)) as monitor:
            monitor.settimeout(10)
            monitor.connect(str(self.monitor))
            self._prompt(monitor)
            monitor.sendall(b"info usernet\n")
            return self._prompt(monitor)

    @staticmethod
    def _prompt(monitor: socket.socket) -> str:
        text = b""
        while not text.endswith(b"(qemu) "):
            text += monitor.recv(4096)
        return text.decode()

    def syn(self) -> tuple[bytes, bytes]:
        """Answer ARP until a SYN comes; its IP and TCP headers."""
        while True:
            frame: bytes = self.frames.recv(2048)
            kind = int.from_bytes(frame[12:14])
            if kind == ETHERNET_ARP and frame[20:22] == b"\0\1":
                reply = frame[14:20] + b"\0\2" + GUEST_MAC + frame[38:42] + frame[22:32]
                self._send(frame[6:12], ETHERNET_ARP, reply)
            elif kind == ETHERNET_IP and frame[23] == 6 and frame[47] & SYN_FLAG:
                self.peer = frame[6:12]
                return frame[14:34], frame[34:54]

    def answer(self, syn: tuple[bytes, bytes], flags: int) -> None:
        """Answer a SYN as a guest's kernel does."""
        ip, tcp = syn
        source, dest = struct.unpack("!HH", tcp[:4])
        ack = int.from_bytes(tcp[4:8]) + 1
        head = struct.pack("!HHIIBBHHH", dest, source, 1000, ack, 0x50, flags, 65535, 0, 0)
        pseudo = ip[16:20] + ip[12:16] + b"\0\6" + len(head).to_bytes(2)
        head = head[:16] + _checksum(pseudo + head) + head[18:]
        packet = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0) + ip[16:20] + ip[12:16]
        packet = packet[:10] + _checksum(packet) + packet[12:]
        self._send(self.peer, ETHERNET_IP, packet + head)

    def _send(self, to: bytes, kind: int, data: bytes) -> None:
        frame = to + GUEST_MAC + kind.to_bytes(2) + data
        self.frames.sendto(frame, ("127.0.0.1", self.qemu_port))


def _checksum(data: bytes) -> bytes:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return (~(total + (total >> 16)) & 0xFFFF).to_bytes(2)


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    wire = Wire(tmp_path)
    try:
        yield wire
    finally:
        wire.close()


def test_live_a_silent_guest_is_told_from_one_that_answers(wire: Wire) -> None:
    with socket.create_connection(("127.0.0.1", wire.port), 5):
        syn = wire.syn()
        assert usernet_established(wire.info(), wire.port, 80) is False
        wire.answer(syn, SYN_ACK)
        wait_until(lambda: usernet_established(wire.info(), wire.port, 80) is True, 10)
    # The next probe is judged by itself, not by the one before.
    with socket.create_connection(("127.0.0.1", wire.port), 5):
        assert wire.syn() != syn
        assert usernet_established(wire.info(), wire.port, 80) is False


def test_live_a_guest_that_refuses_ends_the_connection(wire: Wire) -> None:
    with socket.create_connection(("127.0.0.1", wire.port), 5) as probe:
        probe.settimeout(10)
        wire.answer(wire.syn(), RST_ACK)
        with suppress(ConnectionResetError):
            assert probe.recv(1) == b""
        assert usernet_established(wire.info(), wire.port, 80) is not True
    assert usernet_established(wire.info(), wire.port + 1, 80) is None


@pytest.mark.parametrize(
    ("outcome", "reached"),
    [
        (None, True),
        (ConnectionRefusedError(), True),
        (TimeoutError(), False),
        (OSError(errno.EHOSTUNREACH, "No route to host"), False),
    ],
)
def test_a_host_answers_by_refusing(
    monkeypatch: pytest.MonkeyPatch, outcome: OSError | None, reached: bool
) -> None:
    def connect(*_: object) -> socket.socket:
        if outcome:
            raise outcome
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", connect)
    assert reaches("10.77.1.10", 0.1) is reached


def test_this_very_host_answers() -> None:
    assert reaches("127.0.0.1", 5)
