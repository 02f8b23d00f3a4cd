"""Calls to libvirt: interruptible, bounded, and from one thread to another without a difference.

A stand-in hangs in place of libvirt here; a daemon that hangs is in
tests/integration/test_daemon_hangs.py.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import libvirt
import pytest

from poclab import events, interrupts
from poclab.virt import remote
from poclab.virt.host import connect
from poclab.virt.remote import Line, Remote, StuckError


class Domain:
    """What hangs until it is let go, and counts the calls."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.called: list[str] = []
        self.threads: set[int] = set()

    def name(self) -> str:
        return f"in {threading.get_ident()}"

    def hang(self) -> str:
        self.called.append("hang")
        self.gate.wait(60)
        return "went on"

    def quick(self) -> str:
        self.called.append("quick")
        self.threads.add(threading.get_ident())
        return "here"


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> Iterator[Domain]:
    monkeypatch.setattr(interrupts, "_left_behind", False)
    monkeypatch.setattr(interrupts, "_heard", 0)
    found = Domain()
    yield found
    found.gate.set()


def took(work: Callable[[], object], error: type[BaseException]) -> float:
    began = time.monotonic()
    with pytest.raises(error):
        work()
    return time.monotonic() - began


def interrupt(after: Callable[[], bool], signum: int = signal.SIGINT) -> None:
    def send() -> None:
        while not after():
            time.sleep(0.01)
        os.kill(os.getpid(), signum)

    threading.Thread(target=send, daemon=True).start()


def test_a_signal_gets_through_while_a_call_is_out(domain: Domain) -> None:
    line = Line()
    proxy = Remote(domain, line)
    interrupt(lambda: domain.called == ["hang"])
    assert took(proxy.hang, KeyboardInterrupt) < 2
    assert line.hangs
    assert interrupts.left_behind()


def test_cleaning_up_does_not_hang_again(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_BRIEF", 0.5)
    proxy = Remote(domain, Line())
    interrupt(lambda: domain.called == ["hang"])
    with suppress(KeyboardInterrupt):
        proxy.hang()
    assert proxy.quick() == "here"  # what does answer is still asked
    assert 0.4 < took(proxy.hang, StuckError) < 2
    # Now it is given up, at once, and nothing reaches libvirt.
    before = list(domain.called)
    assert took(proxy.quick, StuckError) < 0.1
    assert domain.called == before
    remote.close(proxy)
    # What answers after all is trusted again, on a line that is not given up.
    other = Remote(domain, Line())
    other._line.left = proxy._line.left
    domain.gate.set()
    while other._line.hangs:
        time.sleep(0.01)
    assert other.hang() == "went on"


def test_a_deadline_says_what_was_asked(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(remote._DEADLINES, "hang", 1.0)
    monkeypatch.setattr(remote, "_NOTICE", 0.2)
    heard: list[events.Event] = []
    proxy = Remote(domain, Line())
    with events.listening(heard.append), pytest.raises(StuckError) as error:
        proxy.hang()
    assert [(item.kind, item.text) for item in heard] == [
        ("note", "waiting for libvirt ... (hang)")
    ]
    assert error.value.lines()[:2] == [
        "libvirt did not answer within 1.0s",
        "why: it was asked for: hang",
    ]
    assert "systemctl restart libvirtd" in error.value.fix
    assert error.value.exit_code == 1


def test_who_asks_twice_waits_for_nothing(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Remote(domain, Line())
    monkeypatch.setattr(interrupts, "_heard", 2)
    assert took(proxy.hang, StuckError) < 2
    assert took(proxy.hang, StuckError) < 0.1


def test_threads_have_their_own_deadlines(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(remote._DEADLINES, "hang", 0.5)
    line, raised = Line(), []

    def task() -> None:
        try:
            Remote(domain, line).hang()
        except StuckError as error:
            raised.append(error)

    threads = [threading.Thread(target=task) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(raised) == 8
    assert line.dead


def test_many_calls_take_one_thread(domain: Domain) -> None:
    proxy = Remote(domain, Line())
    for _ in range(50):
        proxy.quick()
    assert len(domain.threads) < 10  # workers that earlier tests left join in
    assert threading.get_ident() not in domain.threads
    assert proxy.name() == f"in {threading.get_ident()}"  # asks the daemon for nothing


def test_together_is_one_call(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line()
    proxy = Remote(domain, line)
    found = remote.together(proxy, "all of it", lambda: [proxy.quick() for _ in range(9)])
    assert found == ["here"] * 9
    assert len(domain.threads) == 1
    # One that is given up asks for nothing more.
    monkeypatch.setitem(remote._DEADLINES, "all of it", 0.5)
    ended = threading.Event()

    def work() -> None:
        try:
            proxy.hang()
            proxy.quick()
        finally:
            ended.set()

    with pytest.raises(StuckError):
        remote.together(proxy, "all of it", work)
    before = domain.called.count("quick")
    domain.gate.set()
    assert ended.wait(5)
    assert domain.called.count("quick") == before


# --- libvirt's own objects, of its test driver -------------------------------------------------


def test_objects_and_errors_are_libvirts() -> None:
    with connect("test:///default") as host:
        conn: Any = host.conn
        (domain,) = conn.listAllDomains(0)
        assert type(domain) is Remote
        assert domain.name() == conn.lookupByName("test").name() == "test"
        assert domain.state() == [libvirt.VIR_DOMAIN_RUNNING, 0]
        with pytest.raises(libvirt.libvirtError, match="Domain not found") as error:
            conn.lookupByName("none")
        assert error.value.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN
        with pytest.raises(AttributeError):
            _ = domain.no_such_call
        pool = conn.storagePoolLookupByName("default-pool")
        assert pool.listAllVolumes(0) == []
        # An object that is passed on goes bare.
        xml = "<volume><name>{}</name><capacity>4096</capacity></volume>"
        volume = pool.createXML(xml.format("a"), 0)
        assert pool.createXMLFrom(xml.format("b"), volume, 0).name() == "b"
        assert {item.name() for item in pool.listAllVolumes(0)} == {"a", "b"}
    assert conn._target._o is None
