"""The lock: who gets it, who is named, and what it does not trust."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from poclab import events, lock
from poclab.errors import PoclabError

SESSION = "qemu:///session"
SYSTEM = "qemu:///system"
HOLD = """
import sys
from pathlib import Path
from poclab import lock
lock._RUN_LOCK = Path(sys.argv[3])
with lock.hold(sys.argv[1], uri=sys.argv[2], doing="poclab up x", shared=sys.argv[4] == "shared"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    public = tmp_path / "public"
    public.mkdir()
    public.chmod(0o1777)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("SUDO_USER", "alice")
    monkeypatch.setattr(lock, "_RUN_LOCK", public)
    monkeypatch.setattr(lock, "_TMP_LOCK", tmp_path / "tmp-lock")


@contextmanager
def _other(
    name: str, public: Path, *, uri: str = SESSION, mode: str = "exclusive"
) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it is told to end."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, name, uri, str(public), mode],
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
    with lock.hold(name, uri=uri, doing="poclab down x", shared=shared, wait=wait):
        pass


def test_the_holder_is_named(tmp_path: Path) -> None:
    with _other("customer-a", tmp_path / "public") as process:
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
    with _other("a", tmp_path / "public", mode="shared"):
        _take("a", shared=True)
        with pytest.raises(PoclabError) as caught:
            _take("a")
        assert caught.value.why == "another poclab command holds it"


def test_an_exclusive_holder_keeps_shared_ones_out(tmp_path: Path) -> None:
    with _other("a", tmp_path / "public"), pytest.raises(PoclabError, match="busy"):
        _take("a", shared=True)


def test_a_killed_holder_leaves_no_lock_and_is_never_named(tmp_path: Path) -> None:
    public = tmp_path / "public"
    with _other("a", public) as process:
        process.kill()
        process.wait(10)
        (file,) = (tmp_path / "run/poclab").iterdir()
        assert json.loads(file.read_text())["pid"] == process.pid
        with _other("a", public, mode="shared"):
            with pytest.raises(PoclabError) as caught:
                _take("a")
            assert caught.value.why == "another poclab command holds it"
        _take("a")


def test_a_later_process_of_the_same_number_is_not_named(tmp_path: Path) -> None:
    public = tmp_path / "public"
    with _other("a", public, mode="shared"):
        (file,) = (tmp_path / "run/poclab").iterdir()
        text = {"pid": os.getpid(), "born": 1, "user": "eve", "doing": "x", "since": 1}
        file.write_text(json.dumps(text))
        with pytest.raises(PoclabError) as caught:
            _take("a")
        assert caught.value.why == "another poclab command holds it"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"pid": "x"}', '{"pid": 1e999}', "\0" * 9]
)
def test_any_text_in_the_file_is_survived(tmp_path: Path, text: str) -> None:
    with _other("a", tmp_path / "public", mode="shared"):
        (file,) = (tmp_path / "run/poclab").iterdir()
        file.write_text(text)
        with pytest.raises(PoclabError, match="lab a is busy"):
            _take("a")


def test_a_holders_text_cannot_move_the_cursor(tmp_path: Path) -> None:
    with _other("a", tmp_path / "public"):
        (file,) = (tmp_path / "run/poclab").iterdir()
        text = json.loads(file.read_text())
        file.write_text(json.dumps(text | {"doing": "\x1b[2Jx\n" + "y" * 999}))
        with pytest.raises(PoclabError) as caught:
            _take("a")
        assert caught.value.why.isprintable()
        assert len(caught.value.why) < 300


def test_it_waits_and_says_for_whom(tmp_path: Path) -> None:
    heard: list[events.Event] = []
    with _other("a", tmp_path / "public") as process, events.listening(heard.append):
        assert process.stdin is not None
        timer = threading.Timer(0.3, process.stdin.close)
        timer.start()
        start = time.monotonic()
        _take("a", wait=20)
        assert 0.1 < time.monotonic() - start < 15
        timer.join()
    assert [(e.kind, e.text[:24]) for e in heard] == [("note", "waiting: `poclab up x` o")]


def test_it_waits_no_longer_than_asked(tmp_path: Path) -> None:
    with _other("a", tmp_path / "public"), pytest.raises(PoclabError, match="busy"):
        _take("a", wait=0.2)


@pytest.mark.parametrize("shared", [False, True])
def test_asking_twice_in_one_process_raises_at_once(shared: bool) -> None:
    with lock.hold("a", uri=SESSION, doing="x", shared=shared):
        with pytest.raises(RuntimeError, match="holds the lock of lab a already"):
            _take("a", shared=shared, wait=60)
        _take("b")
    _take("a")


def test_kinds_are_apart() -> None:
    with (
        lock.hold("a", uri=SESSION, doing="x"),
        lock.hold("a", uri=SESSION, doing="x", kind="image"),
    ):
        assert len(lock._held) == 2
    assert not lock._held


def test_it_is_released_when_the_block_fails() -> None:
    with pytest.raises(ZeroDivisionError), lock.hold("a", uri=SESSION, doing="x"):
        _ = 1 // 0
    _take("a")


def test_a_child_process_does_not_keep_it() -> None:
    with lock.hold("a", uri=SESSION, doing="x"):
        child = subprocess.Popen(["sleep", "30"], close_fds=False)
    forked = None
    try:
        with lock.hold("a", uri=SESSION, doing="x"):
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


def test_system_connections_meet_in_one_public_place(tmp_path: Path) -> None:
    with _other("a", tmp_path / "public", uri=SYSTEM):
        (file,) = (tmp_path / "public/poclab").iterdir()
        assert file.parent.stat().st_mode & 0o7777 == 0o1777
        assert file.stat().st_mode & 0o7777 == 0o666
        for uri in (SYSTEM, "qemu+unix:///system", "qemu:///system?mode=legacy"):
            with pytest.raises(PoclabError, match="busy"):
                _take("a", uri)
        _take("a", SESSION)
        _take("a", "qemu+ssh://h/system")
    assert (tmp_path / "run/poclab").stat().st_mode & 0o777 == 0o700


def test_tmp_serves_where_run_lock_is_roots_alone(tmp_path: Path) -> None:
    (tmp_path / "public").chmod(0o755)
    _take("a", SYSTEM)
    assert len(list((tmp_path / "tmp-lock").iterdir())) == 1


def test_a_directory_left_half_made_is_mended(tmp_path: Path) -> None:
    (tmp_path / "public/poclab").mkdir(mode=0o700)
    _take("a", SYSTEM)
    assert (tmp_path / "public/poclab").stat().st_mode & 0o7777 == 0o1777


def test_a_link_for_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "public/poclab").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PoclabError, match="cannot use"):
        _take("a", SYSTEM)
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("kind", ["symlink", "dangling", "hardlink", "fifo", "directory"])
def test_a_planted_file_is_refused_and_its_victim_untouched(tmp_path: Path, kind: str) -> None:
    _take("a", SYSTEM)
    (file,) = (tmp_path / "public/poclab").iterdir()
    file.unlink()
    victim = tmp_path / "victim"
    if kind != "dangling":
        victim.write_text("precious")
    if kind in ("symlink", "dangling"):
        file.symlink_to(victim)
    elif kind == "hardlink":
        file.hardlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(file)
    else:
        file.mkdir()
    with pytest.raises(PoclabError, match="cannot use"):
        _take("a", SYSTEM)
    assert victim.exists() is (kind != "dangling")
    if victim.exists():
        assert victim.read_text() == "precious"


def test_a_removed_lock_file_does_not_make_two_holders(tmp_path: Path) -> None:
    """The waiter gets the lock of a file that is gone: it must take the new one's instead."""
    with _other("a", tmp_path / "public") as process:
        (file,) = (tmp_path / "run/poclab").iterdir()
        got = threading.Event()
        leave = threading.Event()

        def waiter() -> None:
            with lock.hold("a", uri=SESSION, doing="waiter", wait=20):
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
            "from poclab import lock\nwith lock.hold('a', uri='qemu:///session', doing='x'): pass"
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


def test_another_user_gets_the_lock_of_a_file_that_is_not_theirs(tmp_path: Path) -> None:
    """Root made the file; an ordinary user must find it busy, then get it."""
    assert os.getuid() == 0, "this test changes its user: run it as root"
    script = (
        "import getpass, os, sys, pathlib\nfrom poclab import lock\n"
        "lock._RUN_LOCK = pathlib.Path(sys.argv[1])\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "with lock.hold('a', uri='qemu:///system', doing='x'): print('got it')\n"
    )
    # pytest's own directories are closed to other users.
    with _public_directory() as public:
        lock_run, lock._RUN_LOCK = lock._RUN_LOCK, public
        try:
            command = [sys.executable, "-c", script, str(public)]
            with lock.hold("a", uri=SYSTEM, doing="poclab up a"):
                busy = subprocess.run(command, capture_output=True, text=True, timeout=30)
            free = subprocess.run(command, capture_output=True, text=True, timeout=30)
        finally:
            lock._RUN_LOCK = lock_run
    assert f"`poclab up a` of alice (pid {os.getpid()})" in busy.stderr
    assert free.stdout == "got it\n", free.stderr


@contextmanager
def _public_directory() -> Iterator[Path]:
    import shutil
    import tempfile

    path = Path(tempfile.mkdtemp())
    path.chmod(0o1777)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def test_guard_lets_one_at_a_time(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with lock.guard(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    with lock.guard(tmp_path):
        thread.start()
        time.sleep(0.1)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
