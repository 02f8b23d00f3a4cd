"""libvirtd ends amid a command: that fails with a clear message, and the next one converges."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.support import hosts, labs
from tests.support.hosts import Completed, Host
from tests.support.labs import Vm

# A listener ends the session's libvirtd at a step and waits until it is gone.
PROGRAM = """
import os, signal, sys, time
from poclab.core import events
from poclab.cli import main
from tests.support import kill

if os.environ.get("POCLAB_TEST_READY"):
    kill.all_are_ready()
pid, wanted = int(sys.argv[1]), sys.argv[2]
sys.argv = ["poclab", *sys.argv[3:]]

def listen(event):
    if event.kind == "step" and event.text == wanted and os.path.exists(f"/proc/{pid}"):
        os.kill(pid, signal.SIGTERM)
        while os.path.exists(f"/proc/{pid}"):
            time.sleep(0.02)

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


def without_daemon_at(host: Host, step: str, *args: str, ready: str = "") -> Completed:
    """Run poclab and end libvirtd at a step; with `ready` every VM that runs counts as ready."""
    host.virsh("uri")
    (pid,) = host.daemons()
    python = host.place.installation.python
    done = host.run(
        python, "-c", PROGRAM, str(pid), step, *args, check=False, POCLAB_TEST_READY=ready
    )
    assert pid not in host.daemons()
    return done


def test_between_two_steps(host: Host) -> None:
    file = labs.lab_file(host, "dae", Vm("db", kept=True), Vm("web", kept=False))
    up, down = ("up", file), ("down", "dae", "--yes")
    reset = ("reset", "--lab", "dae", "--all", "--to", "v2")
    moves = ((up, "define"), (reset, "define"), (down, "delete"), (up, "start"), (reset, "start"))
    for args, step in moves:
        done = without_daemon_at(host, step, *args)
        assert "Traceback" not in done.stderr
        if done.returncode:
            assert done.returncode == 1
            assert "again" in done.stderr
            assert "poclab failed" not in done.stderr, done.stderr
        for name, domain in labs.look(host)["domains"].items():
            assert domain["lost"] == [], name
            assert args is down or domain["missing"] in ([], ["data.dae.db.data.qcow2"]), domain
        again = host.poclab(*args, check=False)
        if labs.robbed(again):
            again = host.poclab(*args, check=False)
        assert again.returncode == 0, again.stderr
        assert labs.leftovers(host) == []
    host.poclab(*down, "--volumes")
    assert labs.state(labs.look(host), "dae") == {"domains": {}, "networks": {}, "files": []}


def test_between_two_steps_of_a_reset_and_its_undoing(host: Host) -> None:
    host.poclab("up", labs.lab_file(host, "und", Vm("web", kept=False)))
    before = labs.look(host)["domains"]["und.web"]["defined"]
    for first, second in (("park", "define"), ("define", "start"), ("start", "delete")):
        there = ("reset", "und/web", "--keep-old")
        done = without_daemon_at(host, first, *there)
        if done.returncode:
            assert "again" in done.stderr
            host.poclab(*there)
        (oldest, *_) = host.poclab("parked", "ls", "-o", "name").stdout.split()
        done = without_daemon_at(host, second, "restore", oldest)
        if done.returncode:
            assert "again" in done.stderr
            # Nothing may have been left to do but to list the VM.
            more = host.poclab("restore", oldest, check=False)
            assert more.returncode == 0 or "is parked" in more.stderr, more.stderr
        domain = labs.look(host)["domains"]["und.web"]
        assert (domain["defined"], domain["missing"], domain["lost"]) == (before, [], [])
        assert labs.leftovers(host) == []
        # What a reset that was stopped late put the VM on for a moment had run, and is kept too.
        for name in host.poclab("parked", "ls", "-o", "name").stdout.split():
            host.poclab("parked", "drop", name, "--yes")
    host.poclab("down", "und", "--yes")


def test_while_a_memory_is_kept_or_brought_back(host: Host) -> None:
    web = Vm("web", kept=False, more="ready: {tcp: 22}, warm: true")
    file = labs.lab_file(host, "mem", web)
    reset = ("reset", "mem/web")

    def run(*args: str) -> Completed:
        done = host.count_steps(args, env={"POCLAB_TEST_READY": "1"}).result
        if labs.robbed(done):
            done = host.count_steps(args, env={"POCLAB_TEST_READY": "1"}).result
        assert done.returncode == 0, done.stderr
        return done

    run("up", file, "--no-warm")
    for step in ("warm state", "capture", "live record", "restore", "resume"):
        done = without_daemon_at(host, step, *reset, ready="1")
        assert "Traceback" not in done.stderr
        assert "poclab failed" not in done.stderr, done.stderr
        if done.returncode:
            assert "again" in done.stderr
        domain = labs.look(host)["domains"]["mem.web"]
        assert (domain["missing"], domain["lost"]) == ([], []), step
        if done.returncode or "its memory is kept" not in done.stderr:
            run(*reset)
        (state,) = json.loads(host.poclab("warm", "ls", "-o", "json").stdout)
        assert (state["vm"], state["in_use"]) == ("web", True)
        assert "from its warm state" in run(*reset).stderr
        assert labs.leftovers(host) == []
        if step not in ("live record", "restore"):
            host.poclab("warm", "drop", "mem/web")
            run(*reset, "--no-warm")
    host.poclab("down", "mem", "--yes", "--volumes")


def test_while_a_mark_is_made(host: Host) -> None:
    host.poclab("up", labs.lab_file(host, "mar", Vm("web", kept=False)))
    (overlay,) = labs.look(host)["domains"]["mar.web"]["defined"][:1]
    host.virsh("destroy", "mar.web")
    labs.scribble(host, overlay, 7)
    mark = ("mark", "mar", "start", "--commit")
    for number, step in enumerate(("mark", "convert", "manifest", "define")):
        done = without_daemon_at(host, step, *mark)
        assert "Traceback" not in done.stderr
        if done.returncode:
            assert "again" in done.stderr
            assert "poclab failed" not in done.stderr, done.stderr
            host.poclab(*mark)
        host.poclab("reset", "mar", "--to", "start", "--no-wait")
        (row,) = labs.rows(host, "mar")
        assert row["version"] == "tiny:start-web", number
        host.poclab("unmark", "mar", "start")
        host.poclab("reset", "mar", "--to", "v1", "--no-wait")
        host.poclab("image", "rm", "tiny:start-web", "--yes")
        host.virsh("destroy", "mar.web")
        (overlay,) = labs.look(host)["domains"]["mar.web"]["defined"][:1]
        labs.scribble(host, overlay, 8 + number)
        assert labs.leftovers(host) == []
    host.poclab("down", "mar", "--yes", "--volumes")


def test_while_up_waits_for_a_guest(host: Host) -> None:
    # Nothing answers in this guest, so `up` waits all of the time.
    ready = "ready: {ssh: true, timeout: 20}"
    file = labs.lab_file(host, "wait", Vm("a", more=ready))
    running = host.popen_poclab("up", file)
    limit = time.monotonic() + 60
    while "wait.a" not in host.virsh("list", "--name") and time.monotonic() < limit:
        time.sleep(0.1)
    time.sleep(0.5)
    for pid in host.daemons():
        os.kill(pid, signal.SIGTERM)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "Traceback" not in said
    assert "poclab failed" not in said, said
    assert "wait" in said
    # The guest did not notice.
    assert labs.look(host)["domains"]["wait.a"]["active"]
    labs.lab_file(host, "wait", Vm("a"))
    assert host.poclab("up", file).returncode == 0
    assert labs.leftovers(host) == []
    host.poclab("down", "wait", "--yes")


def test_a_base_outlives_a_daemon_that_ends_while_versions_go(host: Host) -> None:
    file = labs.lab_file(host, "base", Vm("a"))
    host.poclab("up", file)
    done = without_daemon_at(host, "remove manifest", "image", "rm", "tiny:v2", "--yes")
    assert "Traceback" not in done.stderr
    labs.look(host)
    host.poclab("image", "ls")
    (domain,) = labs.look(host)["domains"].values()
    assert domain["missing"] == []
    assert domain["lost"] == []
    host.poclab("down", "base", "--yes")
