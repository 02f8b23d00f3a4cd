"""Stopped between any two steps, the same command again converges and nothing is left over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from tests.support import hosts, labs
from tests.support.hosts import Host
from tests.support.labs import Vm
from tests.support.stops import Move, Scene

# --- labs in a session --------------------------------------------------------------------


@pytest.fixture(scope="module")
def session() -> Iterator[Host]:
    with hosts.session() as host:
        quick = replace(host, place=replace(host.place, env=host.env | {"POCLAB_ACCEL": "tcg"}))
        for tag in ("v1", "v2"):
            labs.store(quick, f"tiny:{tag}")
        yield quick


DB = Vm("db", kept=True)
WEB = Vm("web", kept=False, more="after: [db]")


def lab(host: Host, name: str) -> Scene:
    """A lab that is down, with a kept data disk that has content."""
    file = labs.lab_file(host, name, DB, WEB)
    host.poclab("up", file)
    host.poclab("down", name, "--yes")
    kept = labs.scribble(host, f"data.{name}.db.data.qcow2", 7)
    up = Move(("up", file, "--yes"))
    down = Move(("down", name, "--yes"), removes=(f"{name}.db", f"{name}.web"))
    return Scene(host, name, (up, down), kept)


def gone(host: Host, name: str) -> None:
    host.poclab("down", name, "--yes", "--volumes")
    seen = labs.look(host)
    assert labs.state(seen, name) == {"domains": {}, "networks": {}, "files": []}


def reset(host: Host, name: str) -> Scene:
    scene = lab(host, name)
    host.poclab(*scene.moves[0].args)
    host.poclab("mark", name, "start")
    command = ("reset", name, "--to")
    return replace(scene, moves=(Move((*command, "v2")), Move((*command, "start"))))


def changes(host: Host, name: str) -> Scene:
    """Memory changes, a VM comes, a VM goes, a data disk is kept from now on, and back."""
    scene = lab(host, name)
    one = labs.lab_file(host, name, DB, WEB, Vm("old"), file=f"{name}-1")
    other_db, other_web = replace(DB, memory=48, kept=False), replace(WEB, memory=48)
    two = labs.lab_file(host, name, other_db, other_web, Vm("new"), file=f"{name}-2")
    host.poclab("up", one, "--yes")
    there = Move(("up", two, "--yes"), removes=(f"{name}.old",))
    back = Move(("up", one, "--yes"), removes=(f"{name}.new",))
    return replace(scene, moves=(there, back))


def warm(host: Host, name: str) -> Scene:
    """Memory is kept, used, and dropped; the VM's data disk goes with it."""
    file = labs.lab_file(host, name, replace(WEB, more="ready: {tcp: 22}, warm: true"))
    web = f"{name}/web"
    moves = (
        Move(("reset", web, "--to", "v2")),
        Move(("reset", web, "--to", "v2")),
        Move(("warm", "drop", web)),
        Move(("reset", web, "--to", "v1", "--no-warm")),
    )
    scene = Scene(host, name, moves, ready=True)
    assert scene.again(Move(("up", file, "--no-warm"))).returncode == 0
    return scene


def tpm(host: Host, name: str) -> Scene:
    """Each reset gives the VM a new TPM, for which its domain goes for a moment."""
    host.poclab("up", labs.lab_file(host, name, Vm("a", more="tpm: true"), net=None))
    command = ("reset", f"{name}/a", "--to")
    return Scene(host, name, (Move((*command, "v2")), Move((*command, "v1"))))


# The strides for kills; Ctrl-C and a full disk go the same ways, so four times as far.
SCENES: tuple[tuple[Callable[[Host, str], Scene], str, int], ...] = (
    (lab, "updown", 1),
    (reset, "reset", 2),
    (changes, "change", 2),
    (warm, "warm", 3),
    (tpm, "tpm", 2),
)


@pytest.mark.parametrize(("how", "far"), [("kill", 1), ("interrupt", 4), ("enospc", 4)])
def test_labs(session: Host, how: str, far: int) -> None:
    """All labs at once: the commands mostly wait for QEMU to end."""

    def play(make: Callable[[Host, str], Scene], name: str, every: int) -> None:
        scene = make(session, f"{name}-{how}")
        scene.survive(how, every=every * far)
        session.poclab("down", scene.lab, "--yes", "--volumes")
        session.poclab("unmark", scene.lab, "start", check=False)  # one of them has a mark
        nothing: dict[str, Any] = {"rows": [], "domains": {}, "networks": {}, "files": []}
        assert scene.seen() == nothing

    with ThreadPoolExecutor() as pool:
        plays = [pool.submit(play, *scene) for scene in SCENES]
    failed = [error for item in plays if (error := item.exception())]
    assert failed == [], "\n\n".join(map(str, failed))
    assert labs.leftovers(session) == []


# --- networks of a system -----------------------------------------------------------------


@pytest.mark.parametrize(("how", "every"), [("kill", 3), ("interrupt", 9)])
def test_networks(module_system: tuple[Host, Host], how: str, every: int) -> None:
    root, _ = module_system
    host = replace(root, place=replace(root.place, env=root.env | {"POCLAB_ACCEL": "tcg"}))
    if "manifest.tiny.v1.json" not in labs.look(host)["files"]:
        labs.store(host, "tiny:v1")
    scene = lab(host, f"net-{how}")
    network = f"{scene.lab}.lan"
    host.poclab(*scene.moves[0].args)
    assert labs.look(host)["networks"][network] is True
    host.poclab(*scene.moves[1].args)
    assert network not in labs.look(host)["networks"]
    scene.survive(how, every=every)
    host.poclab("down", scene.lab, "--yes", "--volumes")
    assert scene.seen() == {"rows": [], "domains": {}, "networks": {}, "files": []}
    assert labs.leftovers(host) == []
