"""The lock: who gets it, who is named, and what it does not trust."""

from __future__ import annotations

import errno
import grp
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from poclab.core import events, lock_directory, locks
from poclab.core.errors import PoclabError
from tests.hostile import neighbours

SESSION = "qemu:///session"
SYSTEM = "qemu:///system"
HOLD = """
import grp, os, sys
from pathlib import Path
from poclab.core import locks as lock, lock_directory as lockdir
lockdir.SHARED, lockdir._OWNER = Path(sys.argv[3]), os.getuid()
lockdir.GROUP = grp.getgrgid(os.getgid()).gr_name
with lock.hold(sys.argv[1], uri=sys.argv[2], doing="poclab up x", shared=sys.argv[4] == "shared"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("SUDO_USER", "alice")
    monkeypatch.setattr(lock_directory, "SHARED", tmp_path / "shared")
    monkeypatch.setattr(lock_directory, "TMPFILES", tmp_path / "tmpfiles.d/poclab.conf")
    # A developer is not root, and need not be in group libvirt.
    monkeypatch.setattr(lock_directory, "_OWNER", os.getuid())
    monkeypatch.setattr(lock_directory, "GROUP", grp.getgrgid(os.getgid()).gr_name)


@contextmanager
def _other(
    name: str, directory: Path, *, uri: str = SESSION, mode: str = "exclusive"
) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it is told to end."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, name, uri, str(directory), mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.stdin.close()
            process.wait(10)


def _take(name: str, uri: str = SESSION, *, shared: bool = False, wait: float = 0) -> None:
    with locks.hold(name, uri=uri, doing="poclab down x", shared=shared, wait=wait):
        pass


def test_the_holder_is_named(tmp_path: Path) -> None:
    with _other("customer-a", tmp_path / "shared") as process:
        with pytest.raises(PoclabError) as caught:
            _take("customer-a")
        what, why, fix = caught.value.lines()
        assert what == "lab customer-a is busy"
        assert why.startswith(f"why: `poclab up x` of alice (pid {process.pid}) holds it since ")
        assert fix == "fix: wait for it to end, or end it"
        _take("customer-b")
        _take("customer-a", "qemu+ssh://host/system")
    _take("customer-a")


def test_shared_holders_share_and_keep_an_exclusive_one_out(tmp_path: Path) -> None:
    with _other("a", tmp_path / "shared", mode="shared"):
        _take("a", shared=True)
        with pytest.raises(PoclabError) as caught:
            _take("a")
        assert caught.value.why == "another poclab command holds it"


def test_an_exclusive_holder_keeps_shared_ones_out(tmp_path: Path) -> None:
    with _other("a", tmp_path / "shared"), pytest.raises(PoclabError, match="busy"):
        _take("a", shared=True)


def test_a_killed_holder_leaves_no_lock_and_is_never_named(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    with _other("a", shared) as process:
        process.kill()
        process.wait(10)
        (file,) = (tmp_path / "run/poclab").iterdir()
        assert json.loads(file.read_text())["pid"] == process.pid
        with _other("a", shared, mode="shared"):
            with pytest.raises(PoclabError) as caught:
                _take("a")
            assert caught.value.why == "another poclab command holds it"
        _take("a")


def test_a_later_process_of_the_same_number_is_not_named(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    with _other("a", shared, mode="shared"):
        (file,) = (tmp_path / "run/poclab").iterdir()
        text = {"pid": os.getpid(), "born": 1, "user": "eve", "doing": "x", "since": 1}
        file.write_text(json.dumps(text))
        with pytest.raises(PoclabError) as caught:
            _take("a")
        assert caught.value.why == "another poclab command holds it"


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", '{"pid": "x"}', '{"pid": 1e999}', "\0" * 9),
        *("[" * 4096, '{"pid":' * 585, '{"pid": ' + "[" * 2000 + "]" * 2000 + "}"),
    ],
)
def test_any_text_in_the_file_is_survived(tmp_path: Path, text: str) -> None:
    with _other("a", tmp_path / "shared", mode="shared"):
        (file,) = (tmp_path / "run/poclab").iterdir()
        file.write_text(text)
        with pytest.raises(PoclabError, match="lab a is busy"):
            _take("a")


def test_a_holders_text_cannot_move_the_cursor(tmp_path: Path) -> None:
    with _other("a", tmp_path / "shared"):
        (file,) = (tmp_path / "run/poclab").iterdir()
        text = json.loads(file.read_text())
        file.write_text(json.dumps(text | {"doing": "\x1b[2Jx\n" + "y" * 999}))
        with pytest.raises(PoclabError) as caught:
            _take("a")
        assert caught.value.why.isprintable()
        assert len(caught.value.why) < 300


def test_it_waits_and_says_for_whom(tmp_path: Path) -> None:
    heard: list[events.Event] = []
    with _other("a", tmp_path / "shared") as process, events.listening(heard.append):
        assert process.stdin is not None
        timer = threading.Timer(0.3, process.stdin.close)
        timer.start()
        start = time.monotonic()
        _take("a", wait=20)
        assert 0.1 < time.monotonic() - start < 15
        timer.join()
    assert [(e.kind, e.text[:24]) for e in heard] == [("note", "waiting: `poclab up x` o")]


def test_it_waits_no_longer_than_asked(tmp_path: Path) -> None:
    with _other("a", tmp_path / "shared"), pytest.raises(PoclabError, match="busy"):
        _take("a", wait=0.2)


@pytest.mark.parametrize("shared", [False, True])
def test_asking_twice_in_one_process_raises_at_once(shared: bool) -> None:
    with locks.hold("a", uri=SESSION, doing="x", shared=shared):
        with pytest.raises(RuntimeError, match="holds the lock of lab a already"):
            _take("a", shared=shared, wait=60)
        _take("b")
    _take("a")


def test_kinds_are_apart() -> None:
    with (
        locks.hold("a", uri=SESSION, doing="x"),
        locks.hold("a", uri=SESSION, doing="x", kind="image"),
    ):
        assert len(locks._held) == 2
    assert not locks._held


def test_it_is_released_when_the_block_fails() -> None:
    with pytest.raises(ZeroDivisionError), locks.hold("a", uri=SESSION, doing="x"):
        _ = 1 // 0
    _take("a")


def test_a_child_process_does_not_keep_it() -> None:
    with locks.hold("a", uri=SESSION, doing="x"):
        child = subprocess.Popen(["sleep", "30"], close_fds=False)
    forked = None
    try:
        with locks.hold("a", uri=SESSION, doing="x"):
            forked = os.fork()
            if forked == 0:
                time.sleep(30)
                os._exit(0)
        _take("a")
    finally:
        child.kill()
        child.wait()
        if forked:
            os.kill(forked, 9)
            os.waitpid(forked, 0)


def test_system_connections_meet_in_one_place(tmp_path: Path) -> None:
    with _other("a", tmp_path / "shared", uri=SYSTEM):
        (file,) = (tmp_path / "shared").iterdir()
        assert file.stat().st_mode & 0o7777 == 0o660
        for uri in (SYSTEM, "qemu+unix:///system", "qemu:///system?mode=legacy"):
            with pytest.raises(PoclabError, match="busy"):
                _take("a", uri)
        _take("a", SESSION)
        _take("a", "qemu+ssh://h/system")
    assert (tmp_path / "run/poclab").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_umask_does_not_matter(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        _take("a", SYSTEM)
    finally:
        os.umask(before)
    (file,) = (tmp_path / "shared").iterdir()
    assert file.stat().st_mode & 0o7777 == 0o660


@pytest.mark.parametrize("uri", [SYSTEM, SESSION])
@pytest.mark.parametrize("kind", neighbours.FILES)
def test_a_planted_file_is_refused_and_its_victim_untouched(
    tmp_path: Path, kind: str, uri: str
) -> None:
    _take("a", uri)
    (file,) = (tmp_path / ("shared" if uri == SYSTEM else "run/poclab")).iterdir()
    file.unlink()
    victim = tmp_path / "victim"
    neighbours.plant_file(kind, file, victim)
    with pytest.raises(PoclabError, match="cannot use") as caught:
        _take("a", uri)
    assert str(file) in caught.value.fix
    assert victim.exists() is (kind != "dangling")
    if victim.exists():
        assert victim.read_text() == "precious"
        assert victim.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("kind", ["symlink", "file", "fifo", "open"])
def test_a_planted_private_directory_is_refused(tmp_path: Path, kind: str) -> None:
    neighbours.plant_directory(kind, tmp_path / "run/poclab", tmp_path / "victim", (1, 1))
    with pytest.raises(PoclabError, match="cannot use") as caught:
        _take("a")
    assert str(tmp_path / "run/poclab") in caught.value.fix
    assert not list((tmp_path / "victim").iterdir())


def test_a_directory_that_is_swapped_after_its_check_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    with lock_directory.shared() as directory:
        (tmp_path / "shared").rename(tmp_path / "away")
        (tmp_path / "shared").symlink_to(tmp_path / "victim")
        os.close(locks._open(directory, "a.lock"))
    assert [path.name for path in (tmp_path / "away").iterdir()] == ["a.lock"]
    assert not list((tmp_path / "victim").iterdir())


@pytest.mark.parametrize("access", ["mode", "group"])
def test_lock_files_follow_the_directory(
    tmp_path: Path, access: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a time when the group did not exist would shut its members out for ever."""
    _take("a", SYSTEM)
    shared = tmp_path / "shared"
    (file,) = shared.iterdir()
    if access == "mode":  # as root's umask had it
        file.chmod(0o600)
    else:
        other = next((gid for gid in os.getgroups() if gid != os.getgid()), None)
        if os.getuid() == 0:
            other = 54321
        assert other is not None, "run the tests as a user with a second group"
        os.chown(file, -1, other)
    _plant_locks(shared, tmp_path / "victim")
    before = _access(tmp_path / "victim")
    shared.chmod(0o700)
    with locks.hold("b", uri=SYSTEM, doing="x"):
        assert _access(file) == (os.getgid(), 0o660)
    assert _access(tmp_path / "victim") == before
    assert {path.name for path in shared.iterdir() if path.is_symlink()} == {
        "symlink.lock",
        "dangling.lock",
    }


def test_doctor_mends_lock_files_of_a_directory_that_is_as_it_should(tmp_path: Path) -> None:
    _take("a", SYSTEM)
    (file,) = (tmp_path / "shared").iterdir()
    file.chmod(0o600)
    with lock_directory.shared(make=False) as directory:
        assert lock_directory.closed_files(directory) == [file.name]
    done = [line for line in lock_directory.install() if "lock files" in line]
    assert done == [f"set group and mode of 1 lock files in {tmp_path / 'shared'}"]
    assert _access(file) == (os.getgid(), 0o660)
    with lock_directory.shared(make=False) as directory:
        assert lock_directory.closed_files(directory) == []


def test_a_kill_between_files_and_directory_is_mended(tmp_path: Path) -> None:
    """The directory gets its mode last, so that it tells whether the files have theirs."""
    _take("a", SYSTEM)
    (file,) = (tmp_path / "shared").iterdir()
    file.chmod(0o600)
    (tmp_path / "shared").chmod(0o700)

    def stop(event: events.Event) -> None:
        if "lock" in event.data:
            raise KeyboardInterrupt

    with events.listening(stop), pytest.raises(KeyboardInterrupt):
        _take("b", SYSTEM)
    assert _access(tmp_path / "shared")[1] == 0o700
    _take("b", SYSTEM)
    assert (_access(file)[1], _access(tmp_path / "shared")[1]) == (0o660, 0o2770)


def _access(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_gid, found.st_mode & 0o7777


def _plant_locks(directory: Path, victim: Path) -> None:
    """Put what a member can make in the place of lock files there."""
    for kind in neighbours.FILES:
        name = directory / f"{kind}.lock"
        neighbours.plant_file(kind, name, directory / "gone" if kind == "dangling" else victim)
    (directory / "notes.txt").touch(mode=0o600)


def test_what_the_boot_does_is_not_this_users_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that an earlier version made for root only, and things that are not files."""
    (tmp_path / "tmpfiles.d").mkdir()
    monkeypatch.setattr(lock_directory, "TMPFILES", tmp_path / "tmpfiles.d")
    assert not lock_directory.made_at_boot()
    monkeypatch.setattr(lock_directory, "TMPFILES", tmp_path / "tmpfiles.d/x/poclab.conf")
    (tmp_path / "tmpfiles.d/x").touch()
    assert not lock_directory.made_at_boot()

    def refused(_path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refused)
    assert lock_directory.made_at_boot()


def test_a_home_without_unnamed_files_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for NFS, which no test machine has: O_TMPFILE is refused as open(2) says."""
    plain_open = os.open

    def refusing(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return plain_open(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refusing)
    _take("a")
    (file,) = (tmp_path / "run/poclab").iterdir()
    assert file.stat().st_mode & 0o7777 == 0o600


def test_a_removed_lock_file_does_not_make_two_holders(tmp_path: Path) -> None:
    """The waiter gets the lock of a file that is gone: it must take the new one's instead."""
    with _other("a", tmp_path / "shared") as process:
        (file,) = (tmp_path / "run/poclab").iterdir()
        got = threading.Event()
        leave = threading.Event()

        def waiter() -> None:
            with locks.hold("a", uri=SESSION, doing="waiter", wait=20):
                got.set()
                leave.wait(20)

        thread = threading.Thread(target=waiter)
        thread.start()
        time.sleep(0.2)
        file.unlink()
        assert process.stdin is not None
        process.stdin.close()
        assert got.wait(20)
        code = (
            "from poclab.core import locks\n"
            "with locks.hold('a', uri='qemu:///session', doing='x'): pass"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        leave.set()
        thread.join()
        assert "lab a is busy" in done.stderr


def test_another_users_runtime_directory_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    _take("a")
    assert len(list((tmp_path / "state/poclab/locks").iterdir())) == 1


def test_guard_lets_one_at_a_time(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with locks.guard(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    with locks.guard(tmp_path):
        thread.start()
        time.sleep(0.1)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
