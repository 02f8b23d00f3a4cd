"""libvirtd hangs: commands say so, end on a signal or by themselves, and the next one converges."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import IO

import pytest

from tests.support import hosts, labs
from tests.support.hosts import Completed, Host
from tests.support.labs import Vm

# A listener stops the session's libvirtd (SIGSTOP) at a step; it is taken for dead sooner here.
PROGRAM = """
import os, signal, sys
from poclab.core import events
from poclab.cli import main
from poclab.virt import remote

remote._PROBE_EVERY, remote._SILENCE = 1.0, 2.0
pid, wanted = int(sys.argv[1]), sys.argv[2]
sys.argv = ["poclab", *sys.argv[3:]]

def listen(event):
    if event.kind == "step" and event.text == wanted:
        os.kill(pid, signal.SIGSTOP)

with events.listening(listen):
    main()
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with hosts.session() as found:
        quick = replace(found, place=replace(found.place, env=found.env | {"POCLAB_ACCEL": "tcg"}))
        for tag in ("v1", "v2"):
            labs.store(quick, f"tiny:{tag}")
        yield quick


def daemon(host: Host) -> int:
    host.virsh("uri")
    (pid,) = host.daemons()
    return pid


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A daemon that takes connections and answers nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def read_until(stream: IO[str], text: str) -> str:
    """Read lines to one with a text in it."""
    said = ""
    for line in stream:
        said += line
        if text in line:
            return said
    raise AssertionError(f"{text!r} is not in {said!r}")


def interrupted(process: subprocess.Popen[str], signum: int) -> tuple[str, float]:
    """Send a signal to poclab itself; what it said, and the seconds until it ended."""
    began = time.monotonic()
    os.kill(process.pid, signum)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, out + err
    return err, time.monotonic() - began


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_is_said_and_a_signal_ends_it(host: Host, signum: int) -> None:
    with stopped(daemon(host)):
        process = host.popen_poclab("status")
        assert process.stderr is not None
        read_until(process.stderr, "waiting for libvirt ... (open)")
        said, seconds = interrupted(process, signum)
    assert seconds < 2
    assert said.startswith("interrupted:")
    assert "Traceback" not in said


def test_a_command_goes_on_when_the_daemon_does(host: Host) -> None:
    pid = daemon(host)
    with stopped(pid):
        process = host.popen_poclab("status")
        assert process.stderr is not None
        read_until(process.stderr, "waiting for libvirt")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "no lab is up on this host\n"), out


def test_a_daemon_that_never_answers_is_given_up(host: Host) -> None:
    patch = "from poclab.virt import remote; remote._DEADLINES['open'] = 4.0"
    program = f"import sys; {patch}; from poclab.cli import main; sys.argv[0] = 'poclab'; main()"
    with stopped(daemon(host)):
        began = time.monotonic()
        done = host.run(host.place.installation.python, "-c", program, "status", check=False)
        assert time.monotonic() - began < 20
    assert done.returncode == 1
    assert "waiting for libvirt" in done.stderr
    assert "libvirt did not answer within 4" in done.stderr
    assert "systemctl restart libvirtd" in done.stderr


def hung_at(host: Host, step: str, *args: str) -> Completed:
    """Run poclab with a daemon that hangs from a step on, until poclab has ended."""
    pid = daemon(host)
    try:
        argv = (host.place.installation.python, "-c", PROGRAM, str(pid), step, *args)
        return host.run(*argv, check=False)
    finally:
        os.kill(pid, signal.SIGCONT)


def converge(host: Host, *args: str) -> None:
    """Run a command again that was given up, until it went through; nothing is left over."""
    again = host.poclab(*args, check=False)
    # What was asked before still happens now that the daemon goes on, beside the next command.
    if again.returncode:
        again = host.poclab(*args, check=False)
    assert again.returncode == 0, again.stderr
    assert labs.leftovers(host) == []


def test_hanging_between_two_steps(host: Host) -> None:
    file = labs.lab_file(host, "han", Vm("db", kept=True), Vm("web", kept=False))
    up, down = ("up", file), ("down", "han", "--yes")
    reset = ("reset", "--lab", "han", "--all", "--to", "v2")
    for args, step in ((up, "define"), (reset, "start"), (reset, "define"), (down, "undefine")):
        began = time.monotonic()
        done = hung_at(host, step, *args)
        assert time.monotonic() - began < 60
        assert done.returncode == 1, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert "poclab failed" not in done.stderr
        words = ("libvirt did not answer", "libvirt gave no answer")
        assert any(text in done.stderr for text in words), done.stderr
        assert "again" in done.stderr.splitlines()[-1]
        converge(host, *args)
    host.poclab(*down, "--volumes")


@pytest.mark.parametrize("step", ["define", "start"])
def test_a_signal_in_the_middle_of_an_up(host: Host, step: str) -> None:
    name = f"mid-{step}"
    file, pid = labs.lab_file(host, name, Vm("web", kept=False)), daemon(host)
    program = PROGRAM.replace("1.0, 2.0", "10.0, 60.0")  # no probe comes to help
    try:
        argv = (host.place.installation.python, "-c", program, str(pid), step, "up", file)
        process = host.popen(*argv)
        assert process.stderr is not None
        read_until(process.stderr, "waiting for libvirt")
        said, seconds = interrupted(process, signal.SIGTERM)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert seconds < 12  # closing is tried once
    assert "interrupted:" in said
    converge(host, "up", file)
    host.poclab("down", name, "--yes", "--volumes")


def test_who_asks_twice_ends_it_at_once(host: Host) -> None:
    file, pid = labs.lab_file(host, "twice", Vm("web", kept=False)), daemon(host)
    program = PROGRAM.replace("1.0, 2.0", "10.0, 60.0")
    try:
        argv = (host.place.installation.python, "-c", program, str(pid), "start", "up", file)
        process = host.popen(*argv)
        assert process.stderr is not None
        read_until(process.stderr, "waiting for libvirt")
        os.kill(process.pid, signal.SIGINT)
        said, seconds = interrupted(process, signal.SIGINT)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert seconds < 2
    assert "Traceback" not in said
    converge(host, "up", file)
    host.poclab("down", "twice", "--yes", "--volumes")
