"""`gc`: garbage and old versions go, what anybody reaches stays, wherever it is stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poclab.model.record import Frozen
from poclab.model.version import Origin, Ref
from poclab.model.version_volumes import manifest_volume
from poclab.store import warm_states
from poclab.store.manifest import decode, encode
from poclab.store.warm_states import WarmState
from tests.support import filesystems, hosts, labs
from tests.support.hosts import Host
from tests.support.labs import MIB, Vm
from tests.support.stops import told
from tests.support.trees import settled, trees, used

ALL = ("gc", "--keep", "1", "--precious", "--yes")
FOREIGN = """
<domain type='qemu'><name>theirs</name><memory unit='MiB'>32</memory><os><type>hvm</type></os>
<devices><disk type='file'><driver name='qemu' type='qcow2'/><source file='{}'/>
<target dev='hda' bus='ide'/></disk></devices></domain>
"""


def removals(host: Host, *options: str) -> list[dict[str, Any]]:
    """What `gc` would remove."""
    done = host.poclab("gc", *options, "--dry-run", "-o", "json")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    if found:
        assert "would free" in done.stderr
    return found


def old(host: Host, *options: str) -> list[str]:
    """The versions that `gc` would remove, in order."""
    return [item["name"] for item in removals(host, *options) if item["kind"] == "version"]


class World:
    """A session with something of every kind; `restore` brings it back after a `gc`.

    Attributes:
        host: where it is.
        bases: the base disk of each version, by its tag.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        tags = ("built", "old", "vm", "theirs", "below", "new")
        for tag in tags:
            labs.store(host, f"tiny:{tag}")
        self.bases = {tag: labs.base(host, f"tiny:{tag}") for tag in tags}
        self._pool = Path(labs.look(host)["directory"])
        self._rewrite("built", origin=Origin("built", "localhost/tiny"))
        # The newest is layered on another: qcow2 does not mind for these tests.
        below = self.bases["below"].removeprefix("base.").removesuffix(".qcow2")
        self._rewrite("new", parents=(f"blake3:{below}",), created="2099-01-01T00:00:00Z")
        host.poclab("up", labs.lab_file(host, "calm", Vm("a", image="tiny:vm", kept=True)))
        theirs = FOREIGN.format(self._pool / self.bases["theirs"])
        host.virsh("define", str(host.write("theirs.xml", theirs)))
        self.garbage = {
            f"base.{'0' * 64}.qcow2",
            "manifest.tiny.cut.json",
            "overlay.calm.a.ffffffff.qcow2",
            "overlay.gone.b.ffffffff.qcow2",
            "scratch.gone.b.data.ffffffff.qcow2",
        }
        for name in self.garbage:
            self._write(name)
        self._write("tmp.4194305.x/disk")
        self.state = self._warm("old")
        self._saved = str(host.scratch / "saved")
        host.run("cp", "-a", str(self._pool), self._saved)

    def _rewrite(self, tag: str, **change: Any) -> None:
        path = self._pool / manifest_volume(Ref("tiny", tag))
        path.write_bytes(encode(replace(decode(path.read_bytes()), **change)))

    def _write(self, name: str) -> None:
        path = self._pool / name
        script = 'mkdir -p "$(dirname "$1")" && head -c 100000 /dev/urandom >"$1"'
        self.host.run("sh", "-c", script, "sh", str(path))

    def _warm(self, tag: str) -> set[str]:
        """Write a warm state of a version, with no memory in it; its volumes."""
        disk = Frozen("", "overlay.calm.a.eeeeeeee.qcow2")
        version = decode((self._pool / manifest_volume(Ref("tiny", tag))).read_bytes())
        state = WarmState(
            "calm", "a", version.ref, version.digest, (), {}, (disk,),
            "overlay.calm.a.dddddddd.qcow2", "2026-01-01T00:00:00Z", complete=True,
        )  # fmt: skip
        for name in (disk.volume, state.memory):
            self._write(name)
        (self._pool / state.manifest).write_bytes(warm_states.encode(state))
        return set(state.volumes)

    def restore(self) -> None:
        """Put back what was removed; the running VM's disks were not."""
        self.host.run("cp", "-an", f"{self._saved}/.", str(self._pool))

    def files(self) -> set[str]:
        """All there is in the pool."""
        return {path.name for path in self._pool.iterdir()}

    def versions(self) -> set[str]:
        """The versions there are."""
        return set(self.host.poclab("image", "ls", "-o", "name").stdout.split())

    def check(self, left: set[str]) -> None:
        """See that all is there that somebody needs."""
        assert left <= self.files()
        (domain,) = (
            item for name, item in labs.look(self.host)["domains"].items() if name == "calm.a"
        )
        assert (domain["active"], domain["missing"], domain["lost"]) == (True, [], [])
        for tag, base in self.bases.items():
            assert base in self.files() or f"manifest.tiny.{tag}.json" not in self.files()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with hosts.session() as host:
        quick = replace(host, place=replace(host.place, env=host.env | {"POCLAB_ACCEL": "tcg"}))
        quick = replace(quick, place=replace(quick.place, env=quick.env | {"POCLAB_PACK": "0"}))
        yield World(quick)


KEPT = {"tiny:vm", "tiny:theirs", "tiny:below", "tiny:new"}


def test_garbage_alone_goes_unless_more_is_asked_for(world: World) -> None:
    world.restore()
    before = world.files()
    lost = {*world.garbage, "tmp.4194305.x"}
    assert {item["name"] for item in removals(world.host)} == lost
    table = world.host.poclab("gc", "--dry-run")
    assert table.stdout.splitlines()[0].split() == ["KIND", "NAME", "FREES", "WHY"]
    # Nothing but garbage and what can be built again, then all that may go, in that order.
    assert old(world.host, "--keep", "1") == ["tiny:built"]
    assert old(world.host, "--keep", "1", "--precious") == ["tiny:built", "tiny:old"]
    assert old(world.host, "--keep", "9", "--precious") == []
    found = removals(world.host, "--keep", "1", "--precious")
    assert all(item["frees"] > 4096 for item in found)
    # What was kept for resets to it is of no use without it.
    assert found[-1]["why"].endswith("cannot be built again; warm states on it: 1")
    assert found[-1]["frees"] > 200_000
    assert world.files() == before
    done = world.host.poclab("gc")
    assert "freed " in done.stderr
    assert before - world.files() == lost
    world.check(before - lost)
    again = world.host.poclab("gc")
    assert (again.stdout, again.stderr) == ("", "there is nothing to remove\n")
    assert labs.leftovers(world.host) == []


def test_what_is_protected_or_wanted_stays(world: World) -> None:
    world.restore()
    world.host.poclab("image", "protect", "tiny:built")
    assert old(world.host, "--keep", "1", "--precious") == ["tiny:old"]
    world.host.poclab("image", "unprotect", "tiny:built")
    # The lab file asks for it, though the VM is on another one now.
    lab = labs.lab_file(world.host, "calm2", Vm("a", image="tiny:old"))
    world.host.poclab("up", lab)
    world.host.poclab("reset", "calm2/a", "--to", "vm")
    assert old(world.host, "--keep", "1", "--precious") == ["tiny:built"]
    world.host.poclab("down", "calm2", "--yes")


def test_a_lab_that_somebody_is_at_is_left_alone(world: World) -> None:
    world.restore()
    python = world.host.place.installation.python
    code = (
        "import time; from poclab.core import locks as lock\n"
        f"with lock.hold('gone', uri='{world.host.uri}', doing='a test'):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    holder = world.host.popen(python, "-c", code)
    try:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        done = world.host.poclab("gc")
        assert "what is left of gone stays for now: `a test`" in done.stderr
        assert "overlay.calm.a.ffffffff.qcow2" not in world.files()
        assert "overlay.gone.b.ffffffff.qcow2" in world.files()
    finally:
        holder.kill()
        holder.communicate(timeout=10)
    world.host.poclab("gc")
    assert labs.leftovers(world.host) == []


@pytest.mark.parametrize(("how", "every"), [("kill", 1), ("interrupt", 3), ("enospc", 3)])
def test_stopped_anywhere_the_next_one_goes_on(world: World, how: str, every: int) -> None:
    world.restore()
    whole = world.host.count_steps(ALL)
    assert whole.result.returncode == 0, whole.result.stderr
    final = world.files()
    assert not world.state & final
    assert world.versions() == KEPT
    steps = whole.steps
    assert steps.index("remove manifest") < steps.index("remove base")
    assert labs.leftovers(world.host) == []
    for step in range(every, len(steps) + 1, every):
        world.restore()
        stopped = world.host.stop_at(ALL, step, how)
        assert stopped.reached
        told(stopped, how)
        world.check(final)
        world.host.poclab(*ALL)
        assert world.files() == final, f"stopped at {stopped.steps}"


def test_a_newer_poclab_s_versions_are_not_guessed_at(world: World) -> None:
    world.restore()
    path = Path(labs.look(world.host)["directory"]) / "manifest.tiny.next.json"
    program = (
        "import json, sys; from poclab.store import sealed\n"
        "body = {'format': 2}; body['checksum'] = sealed._checksum(body)\n"
        "open(sys.argv[1], 'w').write(json.dumps(body))"
    )
    world.host.run(world.host.place.installation.python, "-c", program, str(path))
    done = world.host.poclab("gc", "--keep", "1", "--precious", "--dry-run", "-o", "name")
    assert "a newer poclab" in done.stderr
    assert "tiny:" not in done.stdout
    assert f"base.{'0' * 64}.qcow2" not in done.stdout
    path.unlink()


def test_wrong_use(world: World) -> None:
    for wrong in (("--precious",), ("--keep", "0"), ("--keep", "x")):
        assert world.host.poclab("gc", *wrong, check=False).returncode == 2


def test_what_it_frees_is_what_the_file_system_gets_back() -> None:
    with filesystems.session("xfs", "400m") as host:
        for number, file in enumerate(trees(host, "tree"), 1):
            host.poclab("image", "import", f"tree:v{number}", str(file), "--profile", "legacy")
        before = used(host)
        found = removals(host, "--keep", "1", "--precious")
        assert [item["name"] for item in found] == ["tree:v1", "tree:v2"]
        # What the two have in common goes with the second; most is the third's too.
        frees = [item["frees"] for item in found]
        assert all(0 < size < 6 * MIB for size in frees)
        done = host.poclab(*ALL)
        assert "freed " in done.stderr
        expected = before - sum(frees)
        assert abs(settled(host, expected, MIB // 2) - expected) < MIB // 2
        assert host.poclab("image", "ls", "-o", "name").stdout == "tree:v3\n"


def test_a_member_of_the_group(system_host: Host, libvirt_member: Host) -> None:
    for tag in ("v1", "v2"):
        labs.store(system_host, f"tiny:{tag}")
    lone = f"base.{'1' * 64}.qcow2"
    system_host.virsh("vol-create-as", "poclab", lone, "1M")
    found = removals(libvirt_member, "--keep", "1", "--precious")
    assert [item["name"] for item in found] == [lone, "tiny:v1"]
    assert found[0]["frees"] >= 0
    assert found[1]["frees"] > 4096
    libvirt_member.poclab(*ALL)
    assert system_host.poclab("image", "ls", "-o", "name").stdout == "tiny:v2\n"
    assert labs.leftovers(system_host) == []
    system_host.poclab("image", "rm", "--yes", "tiny:v2")
