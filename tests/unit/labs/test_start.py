"""Starting VMs, several at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Lock, Thread
from types import SimpleNamespace
from typing import Any, cast

import pytest

from poclab.labs import start, warm
from poclab.labs.lab_host import LabHost
from poclab.model.record import Frozen, VmRecord
from poclab.store.versions import Store
from tests.support import make
from tests.support.dirpool import DirectoryPool


def test_two_warm_states_of_no_use_at_once_make_two_boots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each VM gets a clean disk with the store held, and a process can hold that only once."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(warm, "restore", lambda *_: None)
    booted: list[str] = []
    failed: list[Exception] = []
    beside = Thread(target=lambda: begin("b"))
    once = Lock()

    class Lab:
        store = Store(cast(Any, DirectoryPool(tmp_path / "pool")), "test:///default")
        guest = SimpleNamespace(uuid="a uuid", forget_memory=lambda: None)
        host = SimpleNamespace(guest=lambda _: Lab.guest)

        def new_overlay(self, record: VmRecord) -> VmRecord:
            if once.acquire(blocking=False):
                beside.start()
                beside.join(0.3)  # it gets as far as it can
            return replace(record, overlay="new")

        def bases_ready(self, record: VmRecord) -> None: ...

        def start(self, record: VmRecord) -> None:
            booted.append(record.name)

        def data_disks(self, record: VmRecord) -> None: ...

        def define(self, record: VmRecord, uuid: str) -> None: ...

        def renew_tpm(self, record: VmRecord) -> None: ...

    def begin(name: str) -> None:
        record = make.record(name, fresh=True, frozen=(Frozen("", "an old disk"),))
        try:
            start.begin(cast(LabHost, Lab()), record, new=True)
        except Exception as error:
            failed.append(error)

    begin("a")
    beside.join(30)
    assert (failed, sorted(booted)) == ([], ["a", "b"])
