"""What a full run leaves on the machine, and that no other user can read any of it.

A lab's life is: versions, disks with data, a mark, a commit, a kept old disk. It is lived by an
ordinary user, by root and by a member of group libvirt, and with POCLAB_POOL_DIR in a directory
that everybody can look into. `nobody` then tries to read each file.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import fromstring

import pytest

from tests.support import hosts, labs
from tests.support.accounts import as_root
from tests.support.hosts import Host

FILE = """\
name: acme
defaults: {cpus: 1, memory: 32MiB}
vms:
  a: {image: 'tiny:v1', disks: [{name: data, size: 1MiB, keep: true}]}
"""
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all")


@dataclass(frozen=True)
class Found:
    """A file or directory.

    Attributes:
        mode: its permission bits.
        owner: user and group ID.
        kind: `f` or `d`, as find(1) has it.
        path: its absolute path.
    """

    mode: int
    owner: tuple[int, int]
    kind: str
    path: str


@dataclass(frozen=True)
class World:
    """Somebody with a pool.

    Attributes:
        who: which of them.
        host: their host.
        directory: the pool's.
        group: the group that QEMU runs with there.
        pool: their POCLAB_POOL_DIR, or an empty string.
    """

    who: str
    host: Host
    directory: str
    group: int
    pool: str

    def poclab(self, *args: str) -> str:
        """Run poclab and return all that it said, each process that it started included."""
        done = self.host.poclab(*args, POCLAB_POOL_DIR=self.pool)
        return done.stdout + done.stderr

    def as_root(self, *argv: str) -> str:
        """Run a command as root beside the host, and return what it printed."""
        command = [*(self.host.place.enter or as_root()), *argv]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def as_nobody(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command as a user who has nothing to do with poclab."""
        command = [*(self.host.place.enter or as_root()), *NOBODY, *argv]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def files(self) -> list[Found]:
        """All that is in the pool and in the account's directories, and what libvirt keeps."""
        places = [self.directory, str(self.host.place.root)]
        if self.host.place.enter:
            places += ["/var/lib/libvirt/qemu", "/var/log/libvirt/qemu", "/run/poclab"]
        form = "%m %U %G %y %p\\n"
        lines = self.as_root("find", *places, "-type", "f,d", "-printf", form).splitlines()
        rows = [line.split(" ", 4) for line in lines]
        return [Found(int(m, 8), (int(u), int(g)), kind, path) for m, u, g, kind, path in rows]

    def volumes(self) -> dict[str, Found]:
        """The files of the pool, by name."""
        top = self.directory + "/"
        return {x.path[len(top) :]: x for x in self.files() if x.path.startswith(top)}


def _world(who: str, host: Host, pool: str = "") -> World:
    host.poclab("image", "ls", POCLAB_POOL_DIR=pool)  # makes it
    labs.store(host, "small:v1")
    xml = fromstring(host.virsh("pool-dumpxml", "poclab"))
    capabilities = fromstring(host.virsh("capabilities"))
    label = capabilities.findtext("host/secmodel[model='dac']/baselabel", "")
    group = int(label.rpartition("+")[2]) if host.place.enter else host.account.gid
    return World(who, host, xml.findtext("target/path", ""), group, pool)


@contextmanager
def _open_directory(host: Host) -> Iterator[Path]:
    """A directory that everybody can list, with one in it that is to become the pool's."""
    top = Path(tempfile.mkdtemp(prefix="poclab-open-", dir="/var/tmp"))
    top.chmod(0o755)
    (top / "pool").mkdir()
    (top / "pool").chmod(0o755)
    subprocess.run([*as_root(), "chown", "-R", str(host.account.uid), str(top)], check=True)
    try:
        yield top / "pool"
    finally:
        subprocess.run([*as_root(), "rm", "-rf", str(top)], check=True)


WORLDS = ["session", "session-open", "root", "member", "member-open"]


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    who, _, opened = str(request.param).partition("-")
    with hosts.session() if who == "session" else _system(who) as host:
        if not opened:
            yield _world(who, host)
            return
        with _open_directory(host) as directory:
            yield _world(who, host, str(directory))


@contextmanager
def _system(who: str) -> Iterator[Host]:
    with hosts.system() as (root, member):
        yield root if who == "root" else member


def _wrong(world: World, found: dict[str, Found]) -> list[str]:
    """The volumes that have another mode or group than they should, one line each."""
    readers = (0o440, world.group) if world.who != "session" else (0o400, None)
    wrong = []
    for name, file in found.items():
        mode, group = readers if name.startswith(("base.", "packed.")) else (0o600, None)
        if file.mode != mode or (group is not None and file.owner[1] != group):
            wrong.append(f"{name}: {file.mode:04o} {file.owner}")
    return wrong


def _readable(world: World) -> list[str]:
    """What another user can read, one line each: by the modes, and by trying."""
    closed = [x for x in world.files() if x.kind == "f"]
    assert closed
    found = []
    for file in closed:
        if world.as_nobody("cat", file.path).returncode == 0:
            found.append(f"{file.mode:04o} {file.path}")
    return found


def _open_of_their_own(world: World) -> list[str]:
    """Keys, logs and the like that are private by their directory only, one line each."""
    tops = [world.host.env[f"XDG_{name}"] for name in ("DATA_HOME", "STATE_HOME", "CACHE_HOME")]
    own = tuple(f"{top}/poclab/" for top in tops)
    found = [x for x in world.files() if x.path.startswith(own)]
    assert found
    return [f"{x.mode:04o} {x.path}" for x in found if x.mode & 0o077]


@pytest.mark.parametrize("world", WORLDS, indirect=True, scope="module")
def test_nobody_else_can_read_what_a_full_run_leaves(world: World) -> None:
    host = world.host
    said: list[str] = []

    def poclab(*args: str) -> None:
        said.append(world.poclab("-v", *args))

    lab = str(host.write("acme.yaml", FILE))
    poclab("image", "import", "tiny:v1", str(labs.disk_file(host, "tiny.img")))
    poclab("up", lab, "--yes")
    poclab("mark", "acme", "before")
    if world.who == "member":  # cannot commit: that takes the pool's directory
        poclab("image", "import", "tiny:v2", str(labs.disk_file(host, "other.img")))
    else:
        poclab("commit", "acme/a", "--as", "tiny:v2", "--no-quiesce", "--yes")
    poclab("reset", "acme/a", "--to", "v2", "--keep-old", "--yes")
    found = world.volumes()
    kinds = {name.split(".")[0] for name in found}
    assert {"base", "manifest", "overlay", "data", "mark", "parked"} <= kinds, sorted(found)
    assert _wrong(world, found) == []
    assert _readable(world) == []
    assert _open_of_their_own(world) == []
    top = {x.path: x for x in world.files()}[world.directory]
    if world.who == "session":
        assert (top.mode, top.owner[0]) == (0o700, host.account.uid)
    else:
        assert (top.mode, top.owner[1]) == (0o710, world.group)

    poclab("down", "acme", "--yes", "--parked")
    assert _wrong(world, world.volumes()) == []
    assert _readable(world) == []
    assert not [name for name in world.volumes() if name.startswith("overlay.acme")]

    # Nor does a process that poclab starts tell which disks there are; what is left is the copy
    # that a commit makes of a layer, and QEMU itself, whose command line libvirt writes.
    names = re.compile(r"run: .*/(base|overlay|data|mark|parked|manifest)\.\S+")
    told = [line for line in "".join(said).splitlines() if names.search(line)]
    assert [line for line in told if " convert " not in line or " -B " not in line] == []


@pytest.mark.parametrize("world", ["session", "root"], indirect=True, scope="module")
def test_down_deletes_the_rotated_parts_of_a_console_log(world: World) -> None:
    """virtlogd calls them NAME.0, NAME.1 and so on; nothing of another name goes with them."""
    lab = str(world.host.write("acme.yaml", FILE.replace("tiny:v1", "small:v1")))
    world.poclab("up", lab, "--yes")
    xml = fromstring(world.host.virsh("dumpxml", "acme.a"))
    log = xml.find("devices/serial/log")
    assert log is not None
    path = log.get("file", "")
    parts = [f"{path}{end}" for end in (".0", ".1", ".12")]
    others = [f"{path}{end}" for end in (".0.gz", ".x", ".", "0", ".-1")]
    others.append(path.replace("acme.a.", "acme.ab.") + ".0")
    world.as_root("touch", *parts, *others)
    owner = f"{world.host.account.uid}:{world.host.account.gid}"
    world.as_root("chown", owner, *parts, *others)
    world.poclab("down", "acme", "--yes", "--volumes")
    left = world.as_root("find", str(Path(path).parent), "-type", "f").splitlines()
    world.as_root("rm", *others)
    assert not {path, *parts} & set(left)
    assert set(others) <= set(left)


@pytest.mark.parametrize("world", ["session-open", "root", "member"], indirect=True, scope="module")
def test_an_older_pool_is_found_and_closed(world: World) -> None:
    """As earlier versions left it; with what a neighbour could have put there while it was open."""
    host = world.host
    lab = str(host.write("old.yaml", FILE.replace("acme", "old").replace("tiny:v1", "small:v1")))
    world.poclab("up", lab, "--yes")
    victim, second = "/var/tmp/poclab-victim", f"{world.directory}/overlay.old.b.00000000.qcow2"
    pipe = f"base.{'0' * 64}.qcow2"
    script = f"""
        cd {world.directory} && chmod 0644 ./*.json ./overlay.* ./data.* && chmod 0444 ./base.*
        chmod 0755 . && echo precious > {victim} && chmod 0644 {victim}
        ln -s {victim} overlay.old.a.00000000.qcow2
        ln poclab.json {second}
        mkfifo -m 0666 {pipe}
    """
    owner = world.volumes()["poclab.json"].owner
    world.as_root("sh", "-c", script)
    try:
        assert world.as_nobody("cat", f"{world.directory}/poclab.json").returncode == 0
        found = _check(world)
        assert found["result"] == "note"
        assert " are open to other users, e.g. . (mode 0755): run `" in found["help"]
        done = host.poclab("doctor", "--fix", check=False)
        if world.who == "member":
            assert done.stderr.splitlines()[0].startswith("error: cannot change permissions in ")
            assert "fix: run `sudo poclab doctor --fix`" in done.stderr
            by_root = (host.place.installation.python, "-m", "poclab", "-c", host.uri)
            path = f"PYTHONPATH={host.place.installation.path}"
            world.as_root("env", path, *by_root, "doctor", "--fix")
        else:
            assert f"closed {world.directory} to other users" in done.stderr
            assert re.search("closed base.* to other users", done.stderr)
        assert world.as_root("cat", victim) == "precious\n"
        assert world.as_root("stat", "-c", "%a", victim) == "644\n"
        world.as_root("rm", second, f"{world.directory}/overlay.old.a.00000000.qcow2")
        world.as_root("rm", f"{world.directory}/{pipe}")
        # A file with a second name may be somebody else's, and was left.
        assert _wrong(world, world.volumes()) == [f"poclab.json: 0644 {owner}"]
        world.as_root("chmod", "0600", f"{world.directory}/poclab.json")
        assert _wrong(world, world.volumes()) == []
        assert _readable(world) == []
        assert _check(world)["result"] == "ok"
        # What runs was not disturbed, and what is off starts.
        assert host.virsh("domstate", "old.a").strip() == "running"
        host.virsh("destroy", "old.a")
        world.poclab("up", lab, "--yes")
        assert _wrong(world, world.volumes()) == []
    finally:
        world.poclab("down", "old", "--yes", "--volumes")
        world.as_root("rm", "-f", victim)


def _check(world: World) -> dict[str, str]:
    done = world.host.poclab("doctor", "-o", "json", check=False)
    (row,) = [row for row in json.loads(done.stdout) if row["check"] == "permissions"]
    return dict(row)


def test_a_first_command_that_is_killed_leaves_no_open_pool(session_host: Host) -> None:
    """The next one closes the directory, whatever the step was that the first died at."""
    host = session_host

    def directory(number: int) -> tuple[Path, dict[str, str]]:
        for command in ("pool-destroy", "pool-undefine"):
            host.virsh(command, "poclab", check=False)
        path = host.scratch / f"pool{number}"
        path.mkdir()
        path.chmod(0o755)
        return host.give(path), {"POCLAB_POOL_DIR": str(path)}

    _, env = directory(0)
    steps = host.count_steps(["image", "ls"], env=env).steps
    assert len(steps) >= 2, steps
    for number in range(1, len(steps) + 1):
        path, env = directory(number)
        assert host.stop_at(["image", "ls"], number, env=env).reached
        host.poclab("image", "ls", POCLAB_POOL_DIR=str(path))
        assert path.stat().st_mode & 0o777 == 0o700
        assert [x.name for x in path.iterdir()] == ["poclab.json"]
        assert "running" in host.virsh("pool-info", "poclab")
    for command in ("pool-destroy", "pool-undefine"):
        host.virsh(command, "poclab")
