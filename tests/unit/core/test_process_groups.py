"""Ending programs that run as another account, as sudo and what it starts do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from poclab.core import process_groups
from tests.support import accounts
from tests.support.accounts import Place, as_root
from tests.support.waiting import wait_for

# Ends process argv[1], which is root's and leads a group, as a user who may not.
END = """
import sys, time
from poclab.core import events, process_groups as groups, process as run

class Roots:
    pid, returncode = int(sys.argv[1]), None
    def poll(self):
        try:
            with open(f"/proc/{self.pid}/stat") as file:
                ended = file.read().rpartition(")")[2].split()[0] in "ZX"
        except FileNotFoundError:
            ended = True
        self.returncode = 0 if ended else None
        return self.returncode
    def send_signal(self, number):
        raise PermissionError

heard = []
began = time.monotonic()
with events.listening(heard.append):
    groups.end_group(Roots(), patience=30)
print(f"{time.monotonic() - began:.1f}", *(event.text for event in heard), sep="|")
"""
# A stand-in for sudo, which no test machine has to have: it asks root outside, by a FIFO.
SUDO = """#!/bin/sh
echo "$*" > {asked}.new && mv {asked}.new {asked}
n=0
while [ ! -e {done} ] && [ $n -lt 200 ]; do sleep 0.05; n=$((n + 1)); done
test -e {done}
"""


@pytest.fixture(scope="module")
def user() -> Iterator[Place]:
    """An ordinary user, as whom root's processes cannot be ended."""
    with accounts.place(accounts.ordinary(), {}) as made:
        yield made


@pytest.fixture
def roots() -> Iterator[subprocess.Popen[bytes]]:
    """A process of root's in a group of its own."""
    process = subprocess.Popen([*as_root(), "sleep", "300"], start_new_session=True)
    yield process
    subprocess.run([*as_root(), "kill", "-KILL", "--", f"-{process.pid}"], check=False)
    process.wait(10)


def ending(user: Place, pid: int) -> subprocess.Popen[str]:
    argv = user.argv(user.installation.python, "-c", END, str(pid))
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


def test_what_is_out_of_reach_is_not_waited_for_but_named(
    user: Place, roots: subprocess.Popen[bytes]
) -> None:
    said, _ = ending(user, roots.pid).communicate(timeout=100)
    seconds, warning = said.strip().split("|")
    assert float(seconds) < 15
    assert warning == (
        f"process {roots.pid} runs as another user and goes on;"
        f" to end it: sudo kill -- -{roots.pid}"
    )
    assert roots.poll() is None


def test_sudo_ends_what_sudo_started(user: Place, roots: subprocess.Popen[bytes]) -> None:
    asked, done = (user.root / "tmp" / name for name in ("asked", "done"))
    sudo = user.root / "bin/sudo"
    sudo.write_text(SUDO.format(asked=asked, done=done))
    sudo.chmod(0o755)
    process = ending(user, roots.pid)
    try:
        wait_for(asked.exists, 60)
        assert asked.read_text() == f"-n kill -15 -- -{roots.pid}\n"
        subprocess.run([*as_root(), "kill", "-15", "--", f"-{roots.pid}"], check=True)
        assert roots.wait(10) != 0
        done.touch()
        said, _ = process.communicate(timeout=60)
        seconds, *warnings = said.strip().split("|")
        assert warnings == []
        assert float(seconds) < 15
    finally:
        sudo.unlink()


def test_a_group_that_is_gone_is_nobodys_to_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(_signum: int, _target: int) -> bool:
        raise AssertionError("no need for root")

    monkeypatch.setattr(process_groups, "as_root", asked)
    process = subprocess.Popen([sys.executable, "-c", "0"], start_new_session=True)
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    process_groups.end_group(process, 1)
    assert not Path(f"/proc/{process.pid}").exists()


def test_nobody_is_asked_to_end_the_number_of_a_process_that_was_reaped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may be another account's by now."""

    def denied(*_: int) -> None:
        raise PermissionError

    def ask(*_: int) -> bool:
        raise AssertionError("root was asked to end it")

    monkeypatch.setattr(os, "killpg", denied)
    monkeypatch.setattr(process_groups, "as_root", ask)
    with subprocess.Popen(["true"], start_new_session=True) as process:
        process.wait(10)
        assert process_groups._send(process, process.pid, signal.SIGTERM)
