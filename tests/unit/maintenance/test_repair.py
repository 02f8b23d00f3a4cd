"""`doctor --fix`: every repair is tried, and none goes where a neighbour leads it."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
import typer

from poclab.cli import doctor
from poclab.core import lock_directory
from poclab.core.errors import PoclabError
from poclab.maintenance import repair
from poclab.maintenance.repair import REPAIRS, Repair
from poclab.virt import kvm
from poclab.virt.host import Host
from tests.hostile import races
from tests.support.accounts import as_root

OVERLAY = "overlay.acme.vm1.00000001.qcow2"
DATA = "data.acme.vm1.db.qcow2"
LOCKS, KVM, POOL = "lock directory", "/dev/kvm", "permissions"


@dataclass(frozen=True)
class FakePool:
    """The pool's directory."""

    directory: str

    def names(self) -> list[str]:
        return [OVERLAY, DATA]


@dataclass(frozen=True)
class FakeHost:
    """A stand-in: a system host whose pool is a directory of the test's."""

    pool: FakePool
    session: bool = True
    local: bool = True
    denied: str = ""
    meanwhile: list[Callable[[], None]] = field(default_factory=list)

    @property
    def directory_access(self) -> tuple[int, int | None]:
        return 0o700, None

    def readers(self) -> int | None:
        """Called for each file that is looked at: a neighbour acts in that moment, once."""
        if self.meanwhile:
            self.meanwhile.pop()()
        return None

    def qemu_user(self) -> tuple[int, int]:
        return 54321, 54321

    def kvm_denied(self) -> str:
        return self.denied


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return volumes_in(tmp_path / "pool")


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's is repaired by a test."""
    monkeypatch.setattr(lock_directory, "SHARED", tmp_path / "locks")
    monkeypatch.setattr(lock_directory, "TMPFILES", tmp_path / "tmpfiles.d/poclab.conf")
    monkeypatch.setattr(lock_directory, "_OWNER", os.getuid())
    device = tmp_path / "kvm"
    device.touch(mode=0o600)
    monkeypatch.setattr(kvm, "DEVICE", device)
    monkeypatch.setattr(kvm, "GROUP", "no-such-group")


def volumes_in(directory: Path) -> Path:
    """Make a directory with volumes as an earlier poclab left them."""
    directory.mkdir()
    for name in (OVERLAY, DATA):
        (directory / name).write_text("a guest's")
        (directory / name).chmod(0o644)
    directory.chmod(0o755)
    return directory


def named(name: str) -> Repair:
    (found,) = [one for one in REPAIRS if one.name == name]
    return found


def the_host(directory: Path, **more: object) -> Host:
    return cast(Host, FakeHost(FakePool(str(directory)), **more))  # type: ignore[arg-type]


def modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


def connected(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def connect(_uri: str | None, _accel: str) -> Iterator[Host]:
        yield host

    monkeypatch.setattr(repair, "connect", connect)


# --- all repairs --------------------------------------------------------------------------


def test_what_cannot_be_repaired_does_not_stop_the_rest(
    pool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The group of /dev/kvm is missing, and something else lies where the locks go."""
    lock_directory.SHARED.touch()
    host = the_host(pool, session=False, denied="QEMU may not open it")
    connected(host, monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(typer.Exit) as ended:
        doctor._fix(None, "auto")
    assert ended.value.exit_code == 1
    assert modes(pool) == {OVERLAY: 0o600, DATA: 0o600}
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [f"closed {x} to other users" for x in (pool, DATA, OVERLAY)]
    errors = [line for line in lines if line.startswith("error: ")]
    assert errors == [
        f"error: cannot use {lock_directory.SHARED} for locks",
        "error: group no-such-group not found",
    ]
    assert len(lines) == 3 + 3 * len(errors)


def test_an_account_without_rights_is_told_of_all_that_it_may_not(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected(the_host(pool, session=False, denied="QEMU may not open it"), monkeypatch)
    me = os.getuid()
    monkeypatch.setattr(repair, "exposed", lambda *_: "")  # the files are root's to the tests
    monkeypatch.setattr(os, "geteuid", lambda: me or 54321)
    found = [item for item in repair.mend(None, "auto") if isinstance(item, PoclabError)]
    assert [error.what.partition(" in ")[0] for error in found] == [
        "cannot change permissions",
        f"cannot set up {lock_directory.SHARED}",
        f"cannot set group and mode of {kvm.DEVICE}",
    ]
    assert all(error.fix for error in found)


def test_a_volume_that_cannot_be_closed_does_not_stop_the_others(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for one that is immutable (chattr +i), which takes a capability to make."""
    plain_fchmod = os.fchmod

    def refusing(fd: int, mode: int) -> None:
        if os.path.samestat(os.fstat(fd), (pool / DATA).stat()):
            raise PermissionError(1, "Operation not permitted")
        plain_fchmod(fd, mode)

    monkeypatch.setattr(os, "fchmod", refusing)
    first, error, last = named(POOL).mend(the_host(pool))
    assert (first, last) == (f"closed {pool} to other users", f"closed {OVERLAY} to other users")
    assert isinstance(error, PoclabError)
    assert error.what == f"cannot close {DATA} to other users"
    assert error.why == "operation not permitted"
    assert error.fix
    assert modes(pool) == {OVERLAY: 0o600, DATA: 0o644}


def test_what_others_can_read_is_closed_first() -> None:
    assert [one.name for one in REPAIRS] == [POOL, LOCKS, KVM]


# --- a neighbour in the pool's parent directory -----------------------------------------------


@pytest.mark.parametrize("kind", races.DIRECTORY_SWAPS)
def test_a_directory_that_is_swapped_after_the_look_leads_nowhere(
    tmp_path: Path, pool: Path, kind: str
) -> None:
    victim = volumes_in(tmp_path / "victim")
    host = the_host(pool, meanwhile=[lambda: races.swap_directory(kind, pool, victim)])
    assert f"closed {OVERLAY} to other users" in list(named(POOL).mend(host))
    assert modes(victim) == {OVERLAY: 0o644, DATA: 0o644}
    assert stat.S_IMODE(victim.stat().st_mode) == 0o755
    assert modes(tmp_path / "away") == {OVERLAY: 0o600, DATA: 0o600}


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    victim = volumes_in(tmp_path / "victim")
    (tmp_path / "pool").symlink_to(victim)
    refused(tmp_path / "pool", "it is a symbolic link, or not a directory")
    assert modes(victim) == {OVERLAY: 0o644, DATA: 0o644}


@pytest.mark.parametrize("whose", ["pool", "."])
def test_a_directory_that_a_neighbour_can_replace_is_left_alone(tmp_path: Path, whose: str) -> None:
    (tmp_path / "there").mkdir()
    pool = volumes_in(tmp_path / "there/pool")
    owned = pool if whose == "pool" else pool.parent
    subprocess.run([*as_root(), "chown", "65534", str(owned)], check=True)
    try:
        what = "it" if whose == "pool" else "its parent directory"
        refused(pool, f"{what} belongs to nobody, who can replace it")
        assert modes(pool) == {OVERLAY: 0o644, DATA: 0o644}
    finally:
        subprocess.run([*as_root(), "chown", str(os.getuid()), str(owned)], check=True)


@pytest.mark.parametrize(("mode", "safe"), [(0o1777, True), (0o777, False), (0o775, True)])
def test_a_parent_that_everybody_can_write_to(tmp_path: Path, mode: int, safe: bool) -> None:
    (tmp_path / "there").mkdir()
    pool = volumes_in(tmp_path / "there/pool")
    pool.parent.chmod(mode)
    if safe:
        assert len(list(named(POOL).mend(the_host(pool)))) == 3
        assert named(POOL).look(the_host(pool)) == ("ok", "volumes are private")
    else:
        refused(pool, "every user can write to its parent directory and replace it")


def refused(pool: Path, why: str) -> None:
    """Whoever looks is told, and whoever repairs gets three lines."""
    with pytest.raises(PoclabError) as caught:
        list(named(POOL).mend(the_host(pool)))
    what, said, fix = caught.value.lines()
    assert str(pool) in what
    assert said == f"why: {why}"
    assert fix.startswith("fix: ")
    result, help_ = named(POOL).look(the_host(pool))
    assert result == "note"
    assert why in help_
