"""The clock of a guest that came back: what the shell in the guest does, and who is asked."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.core.events import Event
from poclab.core.process import CommandFailed, Result, Runner, using
from poclab.guest import clock, readiness, ssh
from poclab.guest.ssh import LabFiles, Target
from poclab.model.lab import Ready
from poclab.virt.host import Host
from tests.support import make

RECORD = make.record("web", ready=Ready("ssh"))


# --- the watch ------------------------------------------------------------------------------


class Guest:
    """A directory with the files that the watch reads, and a hwclock that notes its calls."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls = root / "calls"
        self.calls.touch()
        self.stand(rtc=1_800_000_000, up=50)
        self.program("hwclock", f'echo "$*" >>{self.calls}')
        self.program("sleep", 'exec /bin/sleep "$@"')

    def program(self, name: str, text: str) -> None:
        file = self.root / name
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)

    def stand(self, *, rtc: int, up: int) -> None:
        for name, text in (("rtc", f"{rtc}\n"), ("up", f"{up}.07 {up}.00\n")):
            (self.root / "new").write_text(text)
            (self.root / "new").replace(self.root / name)  # never seen half-written

    def watch(
        self, shell: Sequence[str], user: str = "root", left: int = 300
    ) -> subprocess.Popen[bytes]:
        """Start it, as a login does."""
        *become, _, _, text = ssh.as_root(user, clock._WATCH)
        become = [str(self.root / word) if word == "sudo" else word for word in become]
        text = text.replace("/sys/class/rtc/rtc0/since_epoch", str(self.root / "rtc"))
        text = text.replace("/proc/uptime", str(self.root / "up")).replace("=300", f"={left}")
        for name in ("hwclock", "sleep"):  # busybox has some built in
            text = re.sub(rf"\b{name}\b", str(self.root / name), text)
        return subprocess.Popen(
            [*become, *shell, "-c", text],
            stdout=subprocess.DEVNULL,
            env={"PATH": f"{self.root}:/usr/bin:/bin"},
            start_new_session=True,
        )

    def sets(self) -> int:
        """How often the clock was set; it is UTC wherever the guest is."""
        return self.calls.read_text().count("-s -u\n")


def eventually(check: Callable[[], bool]) -> bool:
    limit = time.monotonic() + 10
    while not check() and time.monotonic() < limit:
        time.sleep(0.05)
    return check()


@pytest.fixture(params=[["sh"], ["busybox", "sh"]], ids=["sh", "busybox"])
def shell(request: pytest.FixtureRequest) -> list[str]:
    words: list[str] = request.param
    assert shutil.which(words[0]), f"{words[0]} is not installed (.ci/setup test)"
    return words


def test_the_watch_sets_the_clock_once_when_the_hardware_clock_jumps(
    shell: list[str], tmp_path: Path
) -> None:
    guest = Guest(tmp_path)
    assert guest.watch(shell).wait(10) == 0  # the login ends, the watch goes on
    guest.stand(rtc=1_800_000_001, up=50)  # they do not tick at the same moment
    time.sleep(0.6)
    assert guest.sets() == 0
    guest.stand(rtc=1_800_000_301, up=51)
    assert eventually(lambda: guest.sets() == 1)
    guest.stand(rtc=1_800_009_999, up=52)
    time.sleep(0.6)
    assert guest.sets() == 1


def test_the_watch_tries_again_when_the_clock_cannot_be_set(
    shell: list[str], tmp_path: Path
) -> None:
    guest = Guest(tmp_path)
    assert guest.watch(shell).wait(10) == 0
    once = f"mkdir {tmp_path}/busy 2>/dev/null && exit 1"
    guest.program("hwclock", f'{once}\necho "$*" >>{guest.calls}')
    guest.stand(rtc=1_800_000_301, up=51)
    assert eventually(lambda: guest.sets() == 1)
    assert (tmp_path / "busy").exists()


def test_the_watch_sees_a_hardware_clock_that_was_put_back(
    shell: list[str], tmp_path: Path
) -> None:
    guest = Guest(tmp_path)
    assert guest.watch(shell).wait(10) == 0
    guest.stand(rtc=1_800_000_000 - 3600, up=51)
    assert eventually(lambda: guest.sets() == 1)


def test_the_watch_ends_by_itself(shell: list[str], tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    guest.program("sleep", f"echo sleep >>{guest.calls}; exec /bin/sleep 0.01")
    assert guest.watch(shell, left=3).wait(10) == 0
    assert eventually(lambda: guest.calls.read_text().count("sleep") == 3)
    time.sleep(0.3)
    assert guest.calls.read_text().count("sleep") == 3


def test_a_shell_whose_sleep_knows_no_fractions_has_one(shell: list[str], tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    guest.program("sleep", 'case $1 in *.*) exit 1 ;; *) exec /bin/sleep "$1" ;; esac')
    assert guest.watch(shell).wait(10) == 0
    guest.stand(rtc=1_800_000_301, up=51)
    assert eventually(lambda: guest.sets() == 1)


@pytest.mark.parametrize("user", ["root", "admin"])
def test_a_user_who_may_not_set_the_clock_gets_no_watch(
    shell: list[str], tmp_path: Path, user: str
) -> None:
    guest = Guest(tmp_path)
    guest.program("hwclock", "exit 1")
    guest.program("sudo", "echo 'sudo: a password is required' >&2; exit 1")
    assert guest.watch(shell, user).wait(10) != 0


def test_a_user_with_sudo_gets_one(shell: list[str], tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    guest.program("hwclock", f'test -n "$AS_ROOT" && echo "$*" >>{guest.calls}')
    guest.program("sudo", 'shift; AS_ROOT=1 exec "$@"')
    assert guest.watch(shell, "admin").wait(10) == 0
    guest.stand(rtc=1_800_000_301, up=51)
    assert eventually(lambda: guest.sets() == 1)


def test_a_guest_without_a_hardware_clock_gets_no_watch(shell: list[str], tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    (tmp_path / "rtc").unlink()
    assert guest.watch(shell).wait(10) != 0


# --- who is asked ---------------------------------------------------------------------------


class Ssh(Runner):
    """Takes the place of ssh."""

    def __init__(self, *results: Result) -> None:
        self.results = list(results)
        self.commands: list[str] = []

    def run(self, argv: Sequence[str], **_: Any) -> Result:
        self.commands.append(argv[-1])
        result = self.results.pop(0) if self.results else answer("")
        if result.code != 0:
            raise CommandFailed(result)
        return result


def answer(stdout: str, code: int = 0, stderr: str = "") -> Result:
    return Result(("ssh",), code, stdout, stderr)


FILES = LabFiles("qemu:///session", "acme")


def host(monkeypatch: pytest.MonkeyPatch, agent: Any) -> Host:
    """A host whose guest has this agent."""
    target = Target("127.0.0.1", 22, "root", Path("key"), Path("known"))
    monkeypatch.setattr(readiness, "target", lambda *_: target)
    return cast(Host, SimpleNamespace(guest=lambda _: agent))


def agent(*, connected: bool = True, broken: bool = False) -> Any:
    asked: list[float] = []

    def set_clock(seconds: float) -> None:
        asked.append(seconds)
        if broken:
            raise PoclabError("it does not")

    return SimpleNamespace(agent_connected=lambda: connected, set_clock=set_clock, asked=asked)


def warnings(run: Callable[[], None]) -> list[str]:
    found: list[Event] = []
    with events.listening(found.append):
        run()
    return [event.text for event in found if event.kind == "warning"]


def test_the_agent_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with using(Ssh()) as runner:
        has = agent()
        assert warnings(lambda: clock.set_now(host(monkeypatch, has), RECORD, FILES)) == []
    assert abs(has.asked[0] - time.time()) < 5
    assert cast(Ssh, runner).commands == []


@pytest.mark.parametrize("has", [agent(connected=False), agent(broken=True)])
def test_without_an_agent_a_login_sets_the_clock(monkeypatch: pytest.MonkeyPatch, has: Any) -> None:
    with using(Ssh()) as runner:
        assert warnings(lambda: clock.set_now(host(monkeypatch, has), RECORD, FILES)) == []
    assert ["hwclock -s" in text for text in cast(Ssh, runner).commands] == [True]


def test_a_clock_that_nobody_can_set_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    without = host(monkeypatch, agent(connected=False))
    refused = answer("", 1, "sudo: a password is required\n")
    with using(Ssh(refused, refused)):
        (text,) = warnings(lambda: clock.set_now(without, RECORD, FILES))
        assert not clock.leave_watch(without, RECORD, FILES)
    assert text == (
        "web: its clock stands at the time its memory was kept:"
        " no guest agent is connected; sudo: a password is required"
    )
    deaf = replace(RECORD, ready=Ready("tcp", 80))
    (text,) = warnings(lambda: clock.set_now(host(monkeypatch, agent(broken=True)), deaf, FILES))
    assert "kept: it does not; its lab file does not say that it is reached over SSH" in text
    assert not clock.leave_watch(without, deaf, FILES)


def test_a_key_that_is_elsewhere_costs_no_warm_state(monkeypatch: pytest.MonkeyPatch) -> None:
    without = host(monkeypatch, agent(connected=False))

    def nowhere(*_: object) -> Target:
        raise PoclabError("the key of lab acme is not on this machine", why="it stays there")

    monkeypatch.setattr(readiness, "target", nowhere)
    assert not clock.leave_watch(without, RECORD, FILES)


@pytest.mark.parametrize("lives", [True, False])
def test_a_watch_that_ends_with_its_login_is_none(
    monkeypatch: pytest.MonkeyPatch, lives: bool
) -> None:
    at = host(monkeypatch, agent(connected=False))
    alive = answer("") if lives else answer("", 1, "kill: (4711): No such process\n")
    with using(Ssh(answer("4711\n"), alive)) as runner:
        assert clock.leave_watch(at, RECORD, FILES) is lives
    assert "kill -0 4711" in cast(Ssh, runner).commands[1]


def test_a_shell_that_says_other_things_has_no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    at = host(monkeypatch, agent(connected=False))
    with using(Ssh(answer("Welcome\n4711\n"))):
        assert not clock.leave_watch(at, RECORD, FILES)
