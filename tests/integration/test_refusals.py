"""Whatever the commands about images refuse, every file of the pool stays as it was."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hostile.disks import CLAIMS
from tests.support import disks, hosts, labs
from tests.support.disks import made, qemu_img
from tests.support.hosts import Host
from tests.support.labs import Vm
from tests.support.pool_files import files
from tests.unit.disks.test_formats import HOSTILE
from tests.unit.disks.test_ova import REFUSED

FOREIGN = """
<domain type='qemu'><name>stranger</name><memory>32768</memory><os><type>hvm</type></os><devices>
  <disk type='file'><driver name='qemu' type='qcow2'/><source file='{}'/><target dev='hda'/></disk>
</devices></domain>
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended, and which files of the pool it changed."""

    code: int
    out: str
    err: str
    changed: list[str]


@dataclass(frozen=True)
class WarmStates:
    """A host with versions of every sort."""

    host: Host
    pool: str

    def run(self, commands: list[tuple[list[str], str]]) -> list[Ended]:
        """Run commands with their standard input in the directory with the definitions."""
        host = self.host
        program = str(host.place.installation.checkout / "tests/support/many.py")
        task = {"directory": str(host.scratch), "pool": self.pool, "commands": commands}
        done = host.run(host.place.installation.python, program, input=json.dumps(task))
        ended = [Ended(*row) for row in json.loads(done.stdout)]
        assert len(ended) == len(commands)
        return ended


@pytest.fixture(scope="module")
def shelf() -> Iterator[WarmStates]:
    """thing:v1 is packed, v2 in use by VMs that are off, safe protected; lent:v1 a stranger's."""
    with hosts.session() as host:
        for ref in ("thing:v1", "thing:v2", "lent:v1", "safe:v1", "free:v1"):
            labs.store(host, ref)
        host.poclab("image", "protect", "safe:v1")
        lab = labs.lab_file(host, "busy", Vm("a", image="thing:v2"), net=None)
        host.poclab("up", lab, POCLAB_ACCEL="tcg")
        host.virsh("destroy", "busy.a")
        host.poclab("image", "pack", "thing:v1")
        directory = labs.look(host)["directory"]
        base = f"{directory}/{labs.base(host, 'lent:v1')}"
        host.virsh("define", str(host.write("stranger.xml", FOREIGN.format(base))))
        definitions(host)
        before = files(host)
        assert f"{labs.base(host, 'thing:v1')}.zst" in before
        yield WarmStates(host, directory)
        assert files(host) == before
        assert labs.leftovers(host) == []
        host.virsh("undefine", "stranger")
        host.poclab("down", "busy", "--yes")


def definitions(host: Host) -> None:
    """Files for the commands below, in the account's directory."""
    disks.raw(host.scratch / "new.raw")
    host.give(host.scratch / "new.raw")
    host.write("images/thing/image.yaml", "container: localhost/none:1\n")
    host.write("images/key/image.yaml", "rootfz: ext4\n")
    host.write("images/none/image.yaml", "rootfs: ext4\n")
    host.write("images/yaml/image.yaml", "rootfs: [ext4\n")
    host.write("images/fails/image.yaml", "builder: direct\n")
    host.write("images/fails/Containerfile", "FROM scratch\nCOPY nothing-of-this-name /\n")


@dataclass(frozen=True)
class Refusal:
    """A command that is refused.

    Attributes:
        command: its arguments.
        said: what it says.
        code: its exit status.
        text: its standard input.
    """

    command: str
    said: str
    code: int = 1
    text: str = ""


IMPORT = "image import new:v1"
REFUSALS = [
    Refusal(f"{IMPORT} absent.raw", "absent.raw"),
    Refusal(f"{IMPORT} .", "is not a"),
    Refusal(f"{IMPORT} new.raw --sha256 " + "0" * 64, "is not the file that was meant"),
    Refusal(f"{IMPORT} new.raw --sha256 12", "is no digest", 2),
    Refusal(f"{IMPORT} new.raw --digest md5:00", "is no digest", 2),
    Refusal(f"{IMPORT} new.raw --digest blake3:" + "0" * 64, "is not the file that was meant"),
    Refusal(f"{IMPORT} new.raw --sha256 12 --digest 12", "say the same twice", 2),
    Refusal(f"{IMPORT} new.raw --format cow", "poclab imports no 'cow'", 2),
    Refusal(f"{IMPORT} new.raw --format vmdk", "vmdk"),
    Refusal(f"{IMPORT} new.raw --format ova", "is no OVA"),
    Refusal(f"{IMPORT} new.raw --disk a", "--disk chooses a disk of an OVA", 2),
    Refusal(f"{IMPORT} new.raw --profile dos", "profile", 2),
    Refusal(f"{IMPORT} - --size-limit many", "is no size", 2),
    Refusal(f"{IMPORT} -", "standard input is empty"),
    Refusal(f"{IMPORT} -", "standard input", text="no disk"),
    Refusal(f"{IMPORT} -", "it has no partition table", text="y\n" * 2**20),
    Refusal(f"{IMPORT} - --format vmdk", "not vmdk", text="y\n" * 2**20),
    Refusal(f"{IMPORT} - --size-limit 1MiB --format raw", "is longer than 1 MiB", text="x" * 2**21),
    Refusal("image import thing:v1 new.raw", "thing:v1 exists already"),
    Refusal("image import Thing:v1 new.raw", "is no image name", 2),
    Refusal("image import thing new.raw", "names no tag", 2),
    Refusal("image rm thing:v9", "thing:v9 is not there"),
    Refusal("image rm thing:v2", "busy/a stands on it"),
    Refusal("image rm lent:v1", "domain stranger stands on it"),
    Refusal("image rm safe:v1", "safe:v1 is protected"),
    # All are looked at before the first one goes.
    Refusal("image rm free:v1 thing:v9", "thing:v9 is not there"),
    Refusal("image rm free:v1 thing:v2", "thing:v2 is in use"),
    Refusal("image rm thing:v1 free:v1 safe:v1", "safe:v1 is protected"),
    Refusal("image rm free:v1 thing", "names no tag", 2),
    Refusal("image tag thing:v9 new:v1", "thing:v9 is not there"),
    Refusal("image tag free:v1 thing:v1", "thing:v1 exists already"),
    Refusal("image tag free:v1 new:-", "is no tag", 2),
    Refusal("image pack thing:v2", "thing:v2 stays as it is"),
    Refusal("image pack thing:v9", "thing:v9 is not there"),
    Refusal("image unpack thing:v9", "thing:v9 is not there"),
    Refusal("image protect free:v1 thing:v9", "thing:v9 is not there"),
    Refusal("image unprotect safe:v1 thing:v9", "thing:v9 is not there"),
    Refusal("image show thing:v9", "thing:v9 is not there"),
    Refusal("image diff thing:v1 thing:v9", "thing:v9 is not there"),
    Refusal("image diff thing:v1 thing", "names no tag", 2),
    Refusal("image verify thing:v1 thing:v9", "thing:v9 is not there"),
    Refusal("image verify think", "there is no image think; did you mean thing?"),
    Refusal("image iso thing:v9 -o x.iso", "thing:v9 is not there"),
    Refusal("image iso thing:v1 -o x.iso", "thing:v1"),
    Refusal("gc --precious", "--precious alone removes nothing", 2),
    Refusal("gc --keep 0 --yes", "--keep", 2),
    Refusal("gc --keep many --yes", "--keep", 2),
    Refusal("commit busy/a --as thing:v1", "thing:v1 exists already"),
    Refusal("commit busy/a --as thing:v1 --flatten", "thing:v1 exists already"),
    Refusal("commit busy/z --as new:v1", "busy/z"),
    Refusal("commit busy/a --as new", "names no tag", 2),
    Refusal("image build thing --tag v1", "thing:v1 exists already"),
    Refusal("image build thing --tag v1 --build-arg A", "is not KEY=VALUE", 2),
    Refusal("image build absent --tag v1", "there is no image definition 'absent'", 2),
    Refusal("image build key --tag v1", "did you mean 'rootfs'", 2),
    Refusal("image build yaml --tag v1", "image.yaml:", 2),
    Refusal("image build none --tag v1", "none", 2),
    Refusal("image build none --tag .v1", "is no tag", 2),
    Refusal("image build fails --tag v1 --builder magic", "magic", 2),
    Refusal("image build fails --tag v1", "podman build of localhost/poclab/fails:v1 failed"),
]


def first_of(commands: Sequence[str], text: str) -> str:
    """The first of some commands that a text begins with."""
    return next(each for each in commands if text.startswith(f"{each} "))


COMMANDS = ("image import", "image rm", "image tag", "image build", "commit", "gc", "image")


@pytest.mark.parametrize("command", COMMANDS)
def test_refusals_leave_the_store_as_it_was(shelf: WarmStates, command: str) -> None:
    refusals = [item for item in REFUSALS if command == first_of(COMMANDS, item.command)]
    yes = ["--yes"] if command == "image rm" else []
    commands = [(item.command.split() + yes, item.text) for item in refusals]
    for item, ended in zip(refusals, shelf.run(commands), strict=True):
        assert item.said in ended.err, item
        assert (ended.code, ended.out, ended.changed) == (item.code, "", []), item
        if item.code == 1 and "podman" in item.said:
            assert "\nwhy: " in ended.err
            assert "nothing-of-this-name" in ended.err
            assert "fix: correct 'images/fails/Containerfile'; the log has" in ended.err


def qcow2(*options: str) -> Callable[[Path], Path]:
    """A qcow2 disk made with options of qemu-img's."""

    def make(path: Path) -> Path:
        qemu_img("create", "-f", "qcow2", *options, path, "8M")
        return path

    return make


def encrypted(path: Path) -> Path:
    """A qcow2 disk with LUKS in it.

    QEMU measures the processor to choose a number of iterations, and gives up where other
    programs keep it too busy ("Unable to get accurate CPU usage").
    """
    for _ in range(100):
        with suppress(subprocess.CalledProcessError):
            return qcow2(*SECRET)(path)
    raise AssertionError("qemu-img makes no disk with LUKS")


def patched(offset: int, data: bytes) -> Callable[[Path], Path]:
    """A qcow2 disk with some bytes of its header replaced."""
    return lambda path: disks.patched(made(path, "qcow2"), offset, data)


def written(data: bytes) -> Callable[[Path], Path]:
    """A file."""

    def make(path: Path) -> Path:
        path.write_bytes(data)
        return path

    return make


def cut(path: Path) -> Path:
    """A qcow2 disk without its end."""
    made(path, "qcow2")
    with path.open("r+b") as file:
        file.truncate(300_000)
    return path


SECRET = (
    "--object",
    "secret,id=s,data=s",
    "-o",
    "encrypt.format=luks,encrypt.iter-time=10,encrypt.key-secret=s",
)
OTHERS: list[tuple[str, Callable[[Path], Path]]] = [
    ("qcow2 backing", qcow2("-u", "-b", "/etc/shadow", "-F", "raw")),
    (
        "qcow2 json",
        qcow2("-u", "-F", "raw", "-b", 'json:{"driver":"file","filename":"/etc/shadow"}'),
    ),
    ("qcow2 url", qcow2("-u", "-F", "raw", "-b", "nbd://127.0.0.1:9/x")),
    ("qcow2 encrypted", encrypted),
    ("qcow2 cut", cut),
    ("qcow2 dirty", patched(79, b"\1")),  # incompatible feature bits: bytes 72 to 79
    ("qcow2 corrupt", patched(79, b"\2")),
    ("qcow2 data file", patched(79, b"\4")),
    ("qcow2 unknown feature", patched(72, b"\x80")),
    ("qcow2 version", patched(7, b"\x09")),
    ("qcow2 huge size", patched(24, b"\x7f" + b"\xff" * 7)),
    ("qcow2 huge table", patched(36, b"\x7f\xff\xff\xff")),
    ("other empty", written(b"")),
    ("other text", written(b"# not a disk\n" * 1000)),
    ("other zeros", written(bytes(2**20))),
    ("other QED", written(b"QED\0" + bytes(2**20))),
    ("other LUKS", written(b"LUKS\xba\xbe\0\1" + bytes(2**20))),
]
KINDS: dict[str, Callable[[Path], Path]] = {
    **{name: make for name, make, _ in HOSTILE},
    **{f"OVA {name}": make for name, make, _ in REFUSED},
    **{f"claims {name}": make for name, make, _ in CLAIMS},
    **dict(OTHERS),
}
FAMILIES = sorted({name.split()[0] for name in KINDS})


@pytest.mark.parametrize("family", FAMILIES)
def test_bad_disks_leave_the_store_as_it_was(shelf: WarmStates, family: str) -> None:
    host = shelf.host
    root = host.scratch / f"bad-{family}"
    names = [name for name in KINDS if name.split()[0] == family]
    commands = []
    for number, name in enumerate(names):
        directory = root / f"{number}"
        directory.mkdir(parents=True)
        file = str(KINDS[name](directory / "x"))
        commands.append((["image", "import", f"bad:v{number}", file], ""))
    host.give(root)
    for name, ended in zip(names, shelf.run(commands), strict=True):
        assert ended.code in (1, 2), name
        assert "error: " in ended.err, name
        assert (ended.out, ended.changed) == ("", []), name
    host.run("rm", "-rf", str(root))
