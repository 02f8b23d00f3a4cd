"""What the program is doing, told to whoever listens.

Use cases and adapters say `emit("step", "overlay", vm="vm1")` between two effects; the
command line turns that into progress and logs, tests use it to stop the program between
any two steps. A listener may raise: that is how an interruption is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: "step" (an effect is about to happen or has just happened), "progress" (a long
            step goes on), "warning" (worth a line to the user), "note" (a line unless -q), "debug".
        text: for people.
        data: the details, flat.
    """

    kind: str
    text: str
    data: dict[str, Any] = field(default_factory=dict)


Listener = Callable[[Event], None]
_listeners: list[Listener] = []


def emit(kind: str, text: str, **data: Any) -> None:
    """Tell every listener."""
    event = Event(kind, text, data)
    for listener in list(_listeners):
        listener(event)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have the listener called for every event inside the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def step(text: str, **data: Any) -> None:
    """An effect on the host begins; a kill here must be mendable."""
    emit("step", text, **data)


def note(text: str, **data: Any) -> None:
    """A line for the user unless they asked for quiet."""
    emit("note", text, **data)


def warning(text: str, **data: Any) -> None:
    """A line the user should read."""
    emit("warning", text, **data)


def debug(text: str, **data: Any) -> None:
    """A line for -v."""
    emit("debug", text, **data)


def progress(text: str, done: float | None = None, total: float | None = None, **data: Any) -> None:
    """A long step goes on: what it does now and, where known, how far it is."""
    emit("progress", text, done=done, total=total, **data)
