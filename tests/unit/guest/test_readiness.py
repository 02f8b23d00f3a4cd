"""What is looked at until a VM counts as ready; the answers are made up."""

from __future__ import annotations

from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import cast

import pytest

from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.core.events import Event
from poclab.guest import probe, readiness
from poclab.guest.ssh import LabFiles, LoginState
from poclab.model.lab import Ready
from poclab.virt.host import Host
from tests.support import make

RECORD = make.record("web", ready=Ready("ssh", timeout=5))


class Looks:
    """Notes what is asked of a guest."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, reached: bool) -> None:
        self.asked: list[str] = []

        def answer(name: str, value: object) -> object:
            self.asked.append(name)
            return value

        address = (IPv4Address("10.77.1.10"), 22)
        monkeypatch.setattr(readiness, "_endpoint", lambda *_: address)
        monkeypatch.setattr(readiness, "target", lambda *_: None)
        monkeypatch.setattr(probe, "reaches", lambda *_: answer("network", reached))
        monkeypatch.setattr(probe, "ssh_banner", lambda *_: answer("banner", True))
        monkeypatch.setattr(readiness, "login", lambda *_: answer("login", LoginState.OK))

    def wait(self, *, session: bool, woke: bool) -> list[str]:
        guest = SimpleNamespace(active=lambda: True)
        host = cast(Host, SimpleNamespace(session=session, guest=lambda _: guest))
        readiness.wait(host, RECORD, cast(LabFiles, None), woke=woke)
        return self.asked


def test_a_guest_that_booted_must_let_us_in(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch, reached=True)
    assert looks.wait(session=False, woke=False) == ["banner", "login"]


def test_the_server_of_one_that_came_back_is_left_in_peace(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Looks(monkeypatch, reached=True).wait(session=False, woke=True) == ["network"]


def test_behind_a_firewall_the_server_is_asked_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = Looks(monkeypatch, reached=False)
    assert looks.wait(session=False, woke=True) == ["network", "banner"]


def test_one_without_an_address_is_asked_in_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: object) -> None:
        raise PoclabError("acme/web cannot be reached from here")

    monkeypatch.setattr(readiness, "_endpoint", nowhere)
    host = cast(Host, SimpleNamespace(session=False))
    assert not readiness._reached(host, RECORD)


def test_the_agent_of_one_that_came_back_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch, reached=True)
    connected = iter([False, True])
    guest = SimpleNamespace(active=lambda: True, agent_connected=lambda: next(connected))
    host = cast(Host, SimpleNamespace(session=False, guest=lambda _: guest))
    record = make.record("web", ready=Ready("agent", timeout=5))
    readiness.wait(host, record, cast(LabFiles, None), woke=True)
    assert (looks.asked, list(connected)) == ([], [])


@pytest.mark.parametrize(
    ("session", "woke", "said"),
    [(False, True, "the guest to answer"), (True, True, "SSH"), (False, False, "SSH")],
)
def test_it_says_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, session: bool, woke: bool, said: str
) -> None:
    found: list[Event] = []
    with events.listening(found.append):
        Looks(monkeypatch, reached=True).wait(session=session, woke=woke)
    assert [event.text for event in found] == [f"web: waiting for {said}"]


def test_in_a_session_it_is_qemu_that_would_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Looks(monkeypatch, reached=True).wait(session=True, woke=True) == ["banner"]
