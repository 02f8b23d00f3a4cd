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

from poclab.core import events, interrupts
from poclab.virt import remote, worker
from poclab.virt.host import connect
from poclab.virt.remote import Line, Remote, StuckError
from tests.support.waiting import wait_for


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

    def slow(self) -> str:
        self.called.append("slow")
        self.gate.wait(0.4)
        return "at last"

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


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what else takes a minute take a second."""
    monkeypatch.setattr(remote, "_NOTICE", 0.2)
    monkeypatch.setattr(remote, "_LOOK", 0.1)
    monkeypatch.setattr(remote, "_PROBE_EVERY", 0.1)
    monkeypatch.setattr(remote, "_SILENCE", 1.0)


def together(*work: Callable[[], object]) -> list[object]:
    """Do things in threads at once; what each gave or raised, in the order they ended."""
    found: list[object] = []

    def do(what: Callable[[], object]) -> None:
        try:
            found.append(what())
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=do, args=(what,)) for what in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


def took(work: Callable[[], object], error: type[BaseException]) -> float:
    began = time.monotonic()
    with pytest.raises(error):
        work()
    return time.monotonic() - began


def interrupt(after: Callable[[], bool], signum: int = signal.SIGINT) -> None:
    def send() -> None:
        wait_for(after)
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
    other._line._left = proxy._line._left
    domain.gate.set()
    wait_for(lambda: not other._line.hangs)
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
        "why: libvirt gave no answer to: hang",
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


def test_together_is_given_up_when_nothing_comes_of_it(
    domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(remote._DEADLINES, "all of it", 1.0)
    monkeypatch.setattr(remote, "_LOOK", 0.1)
    proxy = Remote(domain, Line())
    found = remote.together(proxy, "all of it", lambda: [proxy.slow() for _ in range(4)])
    assert found == ["at last"] * 4
    assert 0.8 < took(lambda: remote.together(proxy, "all of it", proxy.hang), StuckError) < 3


def test_a_call_that_was_answered_does_not_hang(
    domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = Line._wait

    def interrupted(line: Line, *args: Any) -> None:
        wait(line, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(Line, "_wait", interrupted)
    line = Line()
    with pytest.raises(KeyboardInterrupt):
        Remote(domain, line).quick()
    assert not line.hangs
    assert not interrupts.left_behind()


# --- many calls at once ------------------------------------------------------------------------


def test_not_more_calls_are_out_than_a_daemon_takes(domain: Domain) -> None:
    out, most, guard, line = 0, 0, threading.Lock(), Line()
    four = threading.Barrier(4)  # all that may be out are, before one ends

    def work() -> str:
        nonlocal out, most
        with guard:
            out += 1
            most = max(most, out)
        four.wait(10)
        with guard:
            out -= 1
        return "done"

    found = together(*[lambda: line.call("it", work)] * 12)
    assert found == ["done"] * 12
    assert most == 4  # libvirtd reads nothing more of a client with 5 (max_client_requests)


def test_waiting_for_others_does_not_count(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(remote._DEADLINES, "slow", 0.9)
    monkeypatch.setattr(remote, "_LOOK", 0.1)
    proxy = Remote(domain, Line())
    began = time.monotonic()
    assert together(*[proxy.slow] * 12) == ["at last"] * 12
    assert time.monotonic() - began > 1.1


def test_long_calls_leave_room_for_short_ones(
    domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(remote._DEADLINES, "hang", 3600.0)
    proxy = Remote(domain, Line())
    threads = [threading.Thread(target=proxy.hang) for _ in range(6)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(domain.called) == 3)
    assert proxy.quick() == "here"
    assert domain.called == ["hang"] * 3 + ["quick"]
    domain.gate.set()
    for thread in threads:
        thread.join(10)
    assert domain.called.count("hang") == 6


def test_a_signal_gets_through_while_others_are_waited_for(
    domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    monkeypatch.setattr(remote, "_LOOK", 0.1)
    monkeypatch.setattr(Line, "_look", lambda _, name, __: looks.append(name))
    proxy = Remote(domain, Line())
    for _ in range(4):
        threading.Thread(target=proxy.hang, daemon=True).start()
    wait_for(lambda: len(domain.called) == 4)
    interrupt(lambda: "quick" in looks)
    assert took(proxy.quick, KeyboardInterrupt) < 2
    assert proxy.quick() == "here"  # what cleans up does not wait for the others
    domain.gate.set()


@pytest.mark.usefixtures("hasty")
def test_calls_that_were_all_given_up_make_no_other_wait_for_ever(
    domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(remote._DEADLINES, "hang", 0.3)
    monkeypatch.setitem(remote._DEADLINES, "quick", 0.5)
    line = Line(lambda: None)
    proxy = Remote(domain, line)
    together(*[proxy.hang] * 4)
    assert not line.dead
    assert 0.4 < took(proxy.quick, StuckError) < 2
    domain.gate.set()
    wait_for(lambda: not line.hangs)
    assert proxy.quick() == "here"


# --- whether the daemon lives ------------------------------------------------------------------


@pytest.mark.usefixtures("hasty")
def test_a_slow_call_harms_no_other_while_the_daemon_answers(
    domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(remote._DEADLINES, "hang", 1.5)
    monkeypatch.setattr(remote, "_BRIEF", 0.2)
    asked: list[int] = []
    line = Line(lambda: asked.append(1))
    proxy = Remote(domain, line)
    found = together(proxy.hang, proxy.hang)
    assert [type(item) for item in found] == [StuckError] * 2
    assert 1 < len(asked) < 20
    assert not line.dead
    assert proxy.slow() == "at last"


@pytest.mark.usefixtures("hasty")
def test_a_daemon_that_is_silent_ends_all_waiting(domain: Domain) -> None:
    gate = threading.Event()
    line = Line(lambda: gate.wait(30))
    proxy = Remote(domain, line)
    began = time.monotonic()
    found = together(*[proxy.hang] * 6)
    assert [type(item) for item in found] == [StuckError] * 6
    assert 1 < time.monotonic() - began < 4
    assert line.dead
    assert domain.called == ["hang"] * 4
    gate.set()


@pytest.mark.usefixtures("hasty")
def test_an_error_is_an_answer_too(domain: Domain) -> None:
    asked: list[int] = []

    def refused() -> None:
        asked.append(1)
        if len(asked) == 5:
            domain.gate.set()
        raise libvirt.libvirtError("too many clients")

    assert Remote(domain, Line(refused)).hang() == "went on"


@pytest.mark.usefixtures("hasty")
def test_time_that_the_program_was_stopped_for_does_not_count(
    domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(remote, "_SILENCE", 100.0)
    proxy = Remote(domain, Line(lambda: gate.wait(30)))

    def later() -> None:
        wait_for(lambda: domain.called == ["hang"])
        real = time.monotonic
        monkeypatch.setattr(worker, "monotonic", lambda: real() + 10_000)  # as after Ctrl-Z, fg
        threading.Timer(0.5, domain.gate.set).start()

    threading.Thread(target=later).start()
    assert proxy.hang() == "went on"
    gate.set()


# --- libvirt's own objects, of its test driver -------------------------------------------------


def test_objects_and_errors_are_libvirts() -> None:
    with connect("test:///default") as host:
        conn: Any = host.conn
        # With an event loop libvirtd would ask for keepalive, and hang up on a client that is
        # stopped for half a minute.
        assert "libvirt events" not in {thread.name for thread in threading.enumerate()}
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
