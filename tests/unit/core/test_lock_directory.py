"""The directory of locks for qemu:///system, with real accounts and a /run of its own.

Four users of one machine: root, a member of group libvirt, an ordinary user, and the same user as
an attacker. Their /run is a fresh one in a mount namespace, as it is after a boot.
"""

from __future__ import annotations

import grp
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from tests.hostile import neighbours
from tests.support import accounts
from tests.support.accounts import Place, as_root

SHARED = "/run/poclab"
GID = grp.getgrnam("libvirt").gr_gid

TAKE = """
import sys
from poclab.core import locks as lock
from poclab.core.errors import PoclabError
try:
    for _ in range(int(sys.argv[2])):
        with lock.hold(sys.argv[1], uri="qemu:///system", doing="poclab up " + sys.argv[1]):
            if sys.argv[3:]:
                print("held", flush=True)
                sys.stdin.read()
except PoclabError as error:
    print("|".join(error.lines()))
    sys.exit(1)
"""
INSTALL = """
import sys
from poclab.core import lock_directory as lockdir
from poclab.core.errors import PoclabError
try:
    print(list(lockdir.install()))
except PoclabError as error:
    print("|".join(error.lines()))
    sys.exit(1)
"""
PLANT = """
import sys
from pathlib import Path
from tests.hostile.neighbours import plant_directory
plant_directory(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), (int(sys.argv[4]), 65534))
"""


@dataclass(frozen=True)
class Machine:
    """One /run, and the accounts that meet there."""

    root: Place
    member: Place
    outsider: Place

    def run(self, who: Place, *argv: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command as one of them."""
        return subprocess.run(
            who.argv(*argv), input=text, capture_output=True, text=True, timeout=60, check=False
        )

    def python(self, who: Place, code: str, *args: str) -> subprocess.CompletedProcess[str]:
        """Run Python as one of them."""
        return self.run(who, who.installation.python, "-c", code, *args)

    def take(self, who: Place, name: str = "a", times: int = 1) -> str:
        """Take a lock and drop it again; what is said if that fails."""
        return self.python(who, TAKE, name, str(times)).stdout

    @contextmanager
    def running(self, who: Place, code: str, *args: str) -> Iterator[subprocess.Popen[str]]:
        """Python that has said its first word, until its standard input ends."""
        argv = who.argv(who.installation.python, "-c", code, *args)
        with subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                assert process.stdout.readline()
                yield process
            finally:
                process.stdin.close()
                process.wait(20)

    def access(self, path: str = SHARED) -> str:
        """Owner, group, mode and kind of a path."""
        return self.run(self.root, "stat", "-c", "%u:%g %a %F", path).stdout.strip()

    def reset(self) -> None:
        """Empty /run, as a boot does."""
        script = "rm -rf /run/* /etc/tmpfiles.d/poclab.conf; mkdir -m 1777 /run/lock"
        assert self.run(self.root, "sh", "-c", script).returncode == 0


@pytest.fixture(scope="module")
def module_machine() -> Iterator[Machine]:
    script = "mount -t tmpfs -o mode=0755 tmpfs /run && mkdir -p /etc/tmpfiles.d"
    script += " && mount -t tmpfs -o mode=0755 tmpfs /etc/tmpfiles.d && echo $$ && exec cat"
    holder = subprocess.Popen(
        [*as_root(), "unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    try:
        enter = (*as_root(), "nsenter", "--mount", f"--target={holder.stdout.readline().strip()}")
        with ExitStack() as stack:
            yield Machine(
                *(
                    stack.enter_context(accounts.place(account, {}, enter))
                    for account in (accounts.root(), accounts.member(), accounts.ordinary())
                )
            )
    finally:
        holder.stdin.close()
        holder.wait(20)
        holder.stdout.close()


@pytest.fixture
def machine(module_machine: Machine) -> Machine:
    module_machine.reset()
    return module_machine


# --- who may lock -------------------------------------------------------------------------


def test_root_makes_the_directory_and_members_meet_there(machine: Machine) -> None:
    assert machine.take(machine.root) == ""
    assert machine.access() == f"0:{GID} 2770 directory"
    with machine.running(machine.member, TAKE, "a", "1", "hold"):
        said = machine.take(machine.root)
        assert said.startswith("lab a is busy|why: `poclab up a` of ")
        assert machine.take(machine.root, "b") == ""
    with machine.running(machine.root, TAKE, "b", "1", "hold"):
        assert machine.take(machine.member, "b").startswith("lab b is busy|")
    assert machine.take(machine.member, "b") == ""
    files = machine.run(machine.root, "find", SHARED, "-type", "f", "-printf", "%G %m\n").stdout
    assert set(files.splitlines()) == {f"{GID} 660"}


def test_a_member_is_told_what_helps_when_it_is_missing(machine: Machine) -> None:
    said = machine.take(machine.member)
    assert said.startswith(f"lock directory {SHARED} not found|why: ")
    assert said.endswith("fix: run `sudo poclab doctor --fix`\n")
    assert machine.run(machine.root, "ls", SHARED).returncode != 0


def test_who_may_not_use_the_system_may_not_lock_it(machine: Machine) -> None:
    """Neither hold a lock for ever, nor sign it, nor delete one."""
    with machine.running(machine.root, TAKE, "a", "1", "hold"):
        said = machine.take(machine.outsider)
        assert said.startswith(f"cannot open lock directory {SHARED}: permission denied|why: only ")
        assert "fix: join group libvirt (`sudo usermod -aG libvirt " in said
        names = machine.run(machine.root, "ls", SHARED).stdout.split()
        grabbed = machine.python(machine.outsider, neighbours.GRAB, SHARED, *names)
        assert (grabbed.returncode, grabbed.stdout) == (0, "")
        assert machine.run(machine.root, "ls", SHARED).stdout.split() == names
        assert "`poclab up a` of " in machine.take(machine.member)
    assert machine.take(machine.root) == ""


def test_a_directory_left_half_made_is_finished_by_root(machine: Machine) -> None:
    machine.run(machine.root, "mkdir", "-m", "0700", SHARED)
    assert "fix: run `sudo poclab doctor --fix`" in machine.take(machine.member)
    assert machine.take(machine.root) == ""
    assert machine.access() == f"0:{GID} 2770 directory"
    assert machine.take(machine.member) == ""


# --- what a neighbour may put there -------------------------------------------------------


@pytest.mark.parametrize("kind", neighbours.DIRECTORIES)
def test_a_planted_directory_is_refused(machine: Machine, kind: str) -> None:
    uid = machine.outsider.account.uid
    place = "/run/victim"
    assert machine.python(machine.root, PLANT, kind, SHARED, place, str(uid)).returncode == 0
    before = machine.access(), machine.access(place)
    for who in (machine.root, machine.member):
        said = machine.take(who)
        assert "lock directory" in said or "cannot use" in said or "cannot open" in said
        assert "|fix: " in said
    assert (machine.access(), machine.access(place)) == before
    assert machine.run(machine.root, "find", place, SHARED + "/", "-mindepth", "1").stdout == ""

    # What is root's own is mended when asked for, and nothing else.
    done = machine.python(machine.root, INSTALL)
    if kind in ("open", "sticky", "group"):
        assert done.stdout.startswith(f"['set group and mode of {SHARED}'")
        assert machine.access() == f"0:{GID} 2770 directory"
        assert machine.take(machine.member) == ""
    else:
        assert done.returncode == 1
        assert done.stdout.startswith(f"cannot use {SHARED} for locks|")
        assert (machine.access(), machine.access(place)) == before


def test_swapping_names_leads_root_nowhere(machine: Machine) -> None:
    """The neighbour is first after the boot, and at it all the while."""
    machine.run(machine.root, "mkdir", "-m", "0755", "/run/victim")
    places = ("/run/lock/poclab", SHARED)
    with machine.running(machine.outsider, neighbours.SWAP, "/run/victim", *places):
        assert machine.take(machine.root, times=1000) == ""
    assert machine.access("/run/victim") == "0:0 755 directory"
    assert machine.run(machine.root, "ls", "-A", "/run/victim").stdout == ""
    assert machine.access() == f"0:{GID} 2770 directory"


# --- installing it ------------------------------------------------------------------------


def test_it_is_installed_for_every_boot(machine: Machine) -> None:
    config = "/etc/tmpfiles.d/poclab.conf"
    done = machine.python(machine.root, INSTALL)
    assert done.stdout == f"['made {SHARED}', 'wrote {config}']\n"
    assert machine.access() == f"0:{GID} 2770 directory"
    assert machine.access(config) == "0:0 644 regular file"
    text = machine.run(machine.root, "cat", config).stdout
    # tmpfiles.d(5): type, path, mode, user, group, age
    assert text.splitlines()[-1] == "d /run/poclab 2770 root libvirt -"
    assert machine.python(machine.root, INSTALL).stdout == "[]\n"
    assert machine.take(machine.member) == ""


def test_doctor_installs_it_without_libvirt(machine: Machine) -> None:
    poclab = (machine.root.installation.python, "-m", "poclab")
    done = machine.run(machine.root, *poclab, "doctor", "--fix")
    assert done.stderr.splitlines() == [f"made {SHARED}", "wrote /etc/tmpfiles.d/poclab.conf"]
    assert machine.access() == f"0:{GID} 2770 directory"
    assert machine.take(machine.member) == ""
    done = machine.run(machine.root, *poclab, "doctor", "--fix")
    assert done.stderr == "nothing to repair\n"
