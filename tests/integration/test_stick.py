"""An ISO onto a stick: a real loop device, of which sysfs is made to say that it is a stick.

Loop devices are not removable, so the real sysfs has them refused; that is tried as well.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import pytest

from poclab.cli import output
from poclab.cli.app import run
from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.disks import removable
from poclab.disks.removable import Roots, Stick
from tests.support.sysfs import MIB, Sysfs

SIZE = 160 * MIB


@dataclass(frozen=True)
class Loop:
    """A loop device.

    Attributes:
        node: its device node.
        file: what it shows.
        sysfs: a tree in which it is a stick.
    """

    node: Path
    file: Path
    sysfs: Sysfs

    @property
    def roots(self) -> Roots:
        """The tree in which it is a stick, and the machine's real mounts and swaps."""
        return replace(Roots(), sys=self.sysfs.roots.sys)

    def find(self) -> Stick:
        return removable.find(self.node, self.roots)

    def holds(self, data: bytes) -> bool:
        with self.file.open("rb") as file:
            return file.read(len(data)) == data


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    if os.geteuid() != 0:
        pytest.fail("these tests need root, as loop devices do: sudo make test")
    file = tmp_path / "stick"
    with file.open("wb") as stick:
        stick.truncate(SIZE)
    node = Path(tool("losetup", "--find", "--show", str(file)).strip())
    number = node.stat().st_rdev
    sysfs = Sysfs(tmp_path / "fake")
    sysfs.disk(node.name, f"{os.major(number)}:{os.minor(number)}", size=SIZE)
    yield Loop(node, file, sysfs)
    tool("losetup", "--detach", str(node))


@pytest.fixture
def iso(tmp_path: Path) -> Path:
    """A real ISO that starts from a stick, longer than what is written between two syncs."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "data").write_bytes(os.urandom(70 * MIB + 12345))
    target = tmp_path / "out.iso"
    argv = ["xorriso", "-as", "mkisofs", "-quiet", "-V", "STICK", "-R", "-partition_offset", "16"]
    tool(*argv, "-o", str(target), str(tree))
    return target


def tool(*argv: str) -> str:
    env = dict(os.environ, PATH=os.environ["PATH"] + ":/usr/sbin:/sbin")
    done = subprocess.run(argv, env=env, check=True, capture_output=True, text=True, timeout=60)
    return done.stdout


def test_it_is_written_and_read_back(loop: Loop, iso: Path) -> None:
    stick = loop.find()
    assert (stick.size, stick.path) == (SIZE, loop.node)
    seen: list[events.Event] = []
    with events.listening(seen.append):
        digest = removable.write(iso, stick, loop.roots)
    data = iso.read_bytes()
    assert digest == "sha256:" + sha256(data).hexdigest()
    assert loop.holds(data)
    assert loop.file.stat().st_size == SIZE
    for what in (f"write {loop.node}", f"read {loop.node} back"):
        done = [event.data["done"] for event in seen if event.text == what]
        assert done == sorted(done)
        assert done[-1] == len(data)
    assert not [event for event in seen if event.kind == "warning"]


def test_the_real_sysfs_says_that_it_is_no_stick(loop: Loop) -> None:
    with pytest.raises(PoclabError, match="must not be written over") as caught:
        removable.find(loop.node)
    assert caught.value.why == "it is neither removable nor on USB"


def test_a_link_leads_to_the_disk(loop: Loop, tmp_path: Path) -> None:
    (tmp_path / "by-id").symlink_to(loop.node)
    assert removable.find(tmp_path / "by-id", loop.roots) == loop.find()


def test_one_that_is_mounted(loop: Loop, iso: Path, tmp_path: Path) -> None:
    tool("mkfs.ext4", "-q", str(loop.node))
    stick = loop.find()
    target = tmp_path / "mnt"
    target.mkdir()
    tool("mount", str(loop.node), str(target))
    try:
        with pytest.raises(PoclabError) as caught:
            loop.find()
        assert caught.value.why == f"{loop.node} is mounted on {target}"
        # Mounted where this process cannot see it, as in another namespace: the kernel knows.
        with pytest.raises(PoclabError, match="must not be written over") as caught:
            removable.write(iso, stick, loop.sysfs.roots)
        assert caught.value.why == "something uses it"
    finally:
        tool("umount", str(target))
    assert "clean" in tool("tune2fs", "-l", str(loop.node))


def test_one_that_is_too_small(loop: Loop, iso: Path) -> None:
    stick = loop.find()
    with iso.open("ab") as file:
        file.truncate(SIZE + 1)
    with pytest.raises(PoclabError, match="is too small"):
        removable.write(iso, stick, loop.roots)
    assert loop.holds(bytes(MIB))


def test_another_one_in_its_place(loop: Loop, iso: Path) -> None:
    stick = loop.find()
    (loop.sysfs.roots.sys / "dev/block").joinpath("{}:{}".format(*stick.number)).resolve().joinpath(
        "diskseq"
    ).write_text("8\n")
    with pytest.raises(PoclabError, match="is another disk by now"):
        removable.write(iso, stick, loop.roots)
    assert loop.holds(bytes(MIB))


def test_one_that_forgets(loop: Loop, iso: Path) -> None:
    def forget(event: events.Event) -> None:
        if event.text == "read the disk back":
            with loop.file.open("r+b") as file:
                file.seek(5 * MIB)
                file.write(b"other")

    with (
        events.listening(forget),
        pytest.raises(PoclabError, match="does not hold what was written"),
    ):
        removable.write(iso, loop.find(), loop.roots)


def test_one_that_is_interrupted(loop: Loop, iso: Path) -> None:
    seen: list[events.Event] = []

    def press(event: events.Event) -> None:
        seen.append(event)
        if event.kind == "progress" and event.data["done"] > 8 * MIB:
            os.kill(os.getpid(), signal.SIGINT)

    with events.listening(press), pytest.raises(KeyboardInterrupt):
        removable.write(iso, loop.find(), loop.roots)
    assert seen[-1].kind == "warning"
    assert "is not whole" in seen[-1].text
    # The next one may begin at once.
    removable.write(iso, loop.find(), loop.roots)
    assert loop.holds(iso.read_bytes())


# --- the command ------------------------------------------------------------------------


@dataclass
class Terminal:
    """poclab in this process, at a terminal where the loop device is a stick."""

    loop: Loop
    patch: pytest.MonkeyPatch
    capture: pytest.CaptureFixture[str]

    def __call__(self, *argv: str, answer: str | None) -> tuple[object, str]:
        """Run it; gives its exit status and what it says. No answer: there is no terminal."""
        real_find, real_write, roots = removable.find, removable.write, self.loop.roots
        with self.patch.context() as patch:
            patch.setattr(removable, "find", lambda path, _=None: real_find(path, roots))
            patch.setattr(removable, "write", lambda file, disk: real_write(file, disk, roots))
            patch.setattr(output, "interactive", lambda: answer is not None)
            patch.setattr(sys, "stdin", io.StringIO(f"{answer}\n"))
            patch.setattr(sys, "argv", ["poclab", *argv])
            before = signal.getsignal(signal.SIGTERM)
            with pytest.raises(SystemExit) as end:
                run()
            signal.signal(signal.SIGTERM, before)
        return end.value.code, self.capture.readouterr().err


@pytest.fixture
def terminal(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Terminal:
    return Terminal(loop, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("answer", "code"), [("{name}", 0), ("/dev/{name}", 0), ("yes", 1), ("", 1)]
)
def test_the_name_has_to_be_typed(
    loop: Loop, iso: Path, terminal: Terminal, answer: str, code: int
) -> None:
    text = answer.format(name=loop.node.name)
    ended, said = terminal("image", "write", str(iso), str(loop.node), answer=text)
    assert ended == code
    assert f"{loop.node} (SanDisk Ultra Fit, 160 MiB, serial 4C530001) will be lost" in said
    assert ("nothing was written" in said) is (code == 1)
    assert loop.holds(iso.read_bytes()) is (code == 0)


def test_no_terminal_no_answer(loop: Loop, iso: Path, terminal: Terminal) -> None:
    ended, said = terminal("image", "write", str(iso), str(loop.node), answer=None)
    assert ended == 2
    assert "wants an answer on a terminal" in said
    assert loop.holds(bytes(MIB))


def test_a_file_that_starts_from_no_stick(loop: Loop, iso: Path, terminal: Terminal) -> None:
    with iso.open("r+b") as file:
        file.write(bytes(512))
    ended, said = terminal("image", "write", str(iso), str(loop.node), answer=loop.node.name)
    assert ended == 2
    assert "does not start from a stick" in said
    with iso.open("r+b") as file:
        file.write(bytes(MIB))
    ended, said = terminal("image", "write", str(iso), str(loop.node), answer=loop.node.name)
    assert ended == 1
    assert "is no ISO image" in said
    assert loop.holds(bytes(MIB))
