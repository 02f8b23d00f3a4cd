"""What `status` looks at, and what it takes as seen."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Collection
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from poclab.core.errors import PoclabError
from poclab.labs import status
from poclab.model.host import ObservedVm, State
from poclab.model.lab import Ready
from poclab.model.record import VmRecord
from poclab.virt.host import Host
from tests.support import make


class Looks:
    """A host with VMs, none of which answers; notes which are asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *vms: ObservedVm) -> None:
        self.asked: list[str] = []
        monkeypatch.setattr(status, "_stored", lambda *_: None)  # as of a store that is not there
        self.host = cast(Host, SimpleNamespace(session=False, vms=lambda: vms, damaged_domains={}))

        def glance(_: Host, record: VmRecord) -> bool | None:
            self.asked.append(record.name)
            return False if record.ready else None

        monkeypatch.setattr(status, "glance", glance)

    def ready(self, vms: Collection[str] = (), ready: Collection[str] = ()) -> dict[str, str]:
        rows = status.status(self.host, ["acme"], vms, ready)
        return {row.vm: row.ready for row in rows}


def vm(name: str, state: State = State.RUNNING, *, ready: str = "ssh") -> ObservedVm:
    record = make.record(name, ready=Ready(ready) if ready else None)
    return ObservedVm(record, f"uuid of {name}", state, live=record)


def test_what_was_seen_ready_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch, vm("a"), vm("b"))
    path = vm("a").record.path
    assert looks.ready(ready=[path]) == {"a": "yes", "b": "no"}
    assert looks.asked == ["b"]


def test_only_what_was_asked_for_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch, vm("a"), vm("b"))
    assert looks.ready([vm("b").record.path]) == {"b": "no"}
    assert looks.asked == ["b"]


def test_one_that_stopped_since_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, off = vm("a", State.IO_ERROR), replace(vm("b", State.SHUTOFF), live=None)
    looks = Looks(monkeypatch, stuck, off)
    paths = [item.record.path for item in (stuck, off)]
    assert looks.ready(ready=paths) == {"a": "no", "b": "-"}


def test_one_of_which_nothing_is_known_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch, vm("a", ready=""))
    assert looks.ready(ready=[vm("a").record.path]) == {"a": "-"}


def test_an_interruption_waits_for_no_vm(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, gate, asked = Looks(monkeypatch, vm("a"), vm("b")), threading.Event(), threading.Event()

    def glance(*_: object) -> bool:
        asked.set()
        gate.wait(10)
        return False

    def interrupt() -> None:
        asked.wait(10)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(status, "glance", glance)
    threading.Thread(target=interrupt).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        looks.ready()
    assert time.monotonic() - began < 3
    gate.set()


def test_what_goes_wrong_with_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch, vm("a"), vm("b"))

    def glance(*_: object) -> bool:
        raise PoclabError("no")

    monkeypatch.setattr(status, "glance", glance)
    with pytest.raises(PoclabError, match="no"):
        looks.ready()
