"""What happens between a command's lock and its work; the repairs themselves are made up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import cast

import pytest

from poclab.core import locks
from poclab.labs import live_commit, recovery, warm
from poclab.labs.lab_host import LabHost
from poclab.virt.host import Host

HOST = cast(Host, SimpleNamespace(uri="qemu:///session", pool=None, stand_ins=lambda _: []))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done, in order."""
    found: list[str] = []

    @contextmanager
    def hold(name: str, *, uri: str, doing: str) -> Iterator[None]:
        assert (uri, doing.startswith("poclab")) == (HOST.uri, True)
        found.append(f"lock {name}")
        try:
            yield
        finally:
            found.append(f"unlock {name}")

    def note(what: str, lab: LabHost) -> None:
        found.append(f"{what} {lab.lab}")

    monkeypatch.setattr(locks, "hold", hold)
    monkeypatch.setattr(warm, "mend", lambda lab: note("memory", lab))
    monkeypatch.setattr(live_commit, "settle", lambda lab: note("commit", lab))
    return found


def test_what_was_interrupted_is_put_right_under_the_lock(told: list[str]) -> None:
    with recovery.locked(HOST, "acme", "poclab up acme") as lab:
        told.append(f"work {lab.lab}")
    assert told == ["lock acme", "memory acme", "commit acme", "work acme", "unlock acme"]


def test_a_command_that_drops_the_disks_waits_for_no_commit(told: list[str]) -> None:
    with recovery.locked(HOST, "acme", "poclab down acme", drops_disks=True):
        pass
    assert told == ["lock acme", "memory acme", "unlock acme"]


def test_a_command_that_only_looks_changes_nothing(told: list[str]) -> None:
    with recovery.locked(HOST, "acme", "poclab up acme", only_looks=True):
        pass
    assert told == ["lock acme", "unlock acme"]


def test_several_labs_are_locked_in_one_order(told: list[str]) -> None:
    """Else two commands would wait for each other."""
    with recovery.all_locked(HOST, ["web", "acme", "web"], "poclab reset") as labs:
        assert sorted(labs) == ["acme", "web"]
    assert [line for line in told if "lock" in line] == [
        "lock acme",
        "lock web",
        "unlock web",
        "unlock acme",
    ]


def test_a_lab_that_cannot_be_put_right_is_unlocked(
    told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: LabHost) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(warm, "mend", broken)
    with (
        pytest.raises(RuntimeError, match="broken"),
        recovery.locked(HOST, "acme", "poclab up acme"),
    ):
        pass
    assert told == ["lock acme", "unlock acme"]
