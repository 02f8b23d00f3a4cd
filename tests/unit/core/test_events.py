"""Events reach whoever listens, while they listen."""

from __future__ import annotations

import pytest

from poclab.core import events
from poclab.core.events import Event


def test_each_kind() -> None:
    heard: list[Event] = []
    with events.listening(heard.append):
        events.step("overlay", vm="vm1")
        events.note("made")
        events.warning("no KVM")
        events.debug("run: true")
        events.progress("copying", 1, 2, vm="vm1")
    assert heard == [
        Event("step", "overlay", {"vm": "vm1"}),
        Event("note", "made"),
        Event("warning", "no KVM"),
        Event("debug", "run: true"),
        Event("progress", "copying", {"done": 1, "total": 2, "vm": "vm1"}),
    ]


def test_nobody_listens_before_and_after() -> None:
    heard: list[Event] = []
    events.note("before")
    with events.listening(heard.append):
        pass
    events.note("after")
    assert heard == []


def test_every_listener_hears() -> None:
    first: list[Event] = []
    second: list[Event] = []
    with events.listening(first.append):
        events.note("one")
        with events.listening(second.append):
            events.note("two")
        events.note("three")
    assert [e.text for e in first] == ["one", "two", "three"]
    assert [e.text for e in second] == ["two"]


def test_a_listener_can_stop_the_program_between_two_steps() -> None:
    done: list[str] = []

    def stop(event: Event) -> None:
        if event.text == "second":
            raise KeyboardInterrupt

    def work() -> None:
        for name in ("first", "second", "third"):
            events.step(name)
            done.append(name)

    with pytest.raises(KeyboardInterrupt), events.listening(stop):
        work()
    assert done == ["first"]
    events.step("second")  # nobody listens any more


def test_a_listener_may_stop_listening_while_it_is_called() -> None:
    heard: list[str] = []

    def once(event: Event) -> None:
        heard.append(event.text)
        inner.__exit__(None, None, None)

    inner = events.listening(once)
    inner.__enter__()
    events.note("one")
    events.note("two")
    assert heard == ["one"]
