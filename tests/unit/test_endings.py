"""A test run that is ended leaves nothing running, whichever way it is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.waiting import wait_for

ROOT = Path(__file__).parents[2]

# A place with a process in it that left its session, as libvirtd, QEMU and virtlogd do.
TESTS = """
import signal, subprocess
from pathlib import Path
import pytest
from tests.support import accounts
from tests.support.waiting import wait_for
NOTE = Path(__file__).parent / "note"

@pytest.fixture
def place():
    with accounts.place(accounts.current(), {}) as made:
        yield made

def test_waits(place):
    argv = place.argv("setsid", "--fork", "sh", "-c", 'echo $$ >"$1.new"; exec sleep 300', "sh")
    subprocess.run([*argv, str(NOTE)], check=True)
    new = Path(f"{NOTE}.new")
    wait_for(lambda: new.exists() and bool(new.read_text()))
    text = Path(f"{NOTE}.new").read_text()
    NOTE.with_name("note.whole").write_text(f"{text} {place.root}")
    NOTE.with_name("note.whole").rename(NOTE)
    signal.pause()
"""
# Ignores SIGINT before it becomes the tests, as a shell has a background job do.
DEAF = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
DEAF += "os.execv(sys.argv[1], sys.argv[1:])"


@pytest.fixture
def tests(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], int, Path]]]:
    """Starts tests and waits until their process runs: the tests, its ID, and its place."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> tuple[subprocess.Popen[str], int, Path]:
        (tmp_path / "test_it.py").write_text(TESTS)
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        plugins = ("-p", "tests.support.endings", "-p", "no:cacheprovider")
        argv = [sys.executable, "-c", DEAF, sys.executable, "-m", "pytest", *plugins, *options]
        env = {key: value for key, value in os.environ.items() if "PYTEST" not in key}
        process = subprocess.Popen(
            [*argv, str(tmp_path)], cwd=tmp_path, env=env | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        wait_for((tmp_path / "note").exists)
        pid, root = (tmp_path / "note").read_text().split()
        return process, int(pid), Path(root)

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=20)


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left(
    tests: Callable[..., tuple[subprocess.Popen[str], int, Path]],
    signum: signal.Signals,
    workers: str,
) -> None:
    process, pid, root = tests("-n", workers)
    assert Path(f"/proc/{pid}").exists()
    if signum == signal.SIGINT:
        os.killpg(process.pid, signum)  # as a terminal does
    else:
        process.send_signal(signum)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == (-9 if signum == signal.SIGKILL else 2), said
    wait_for(lambda: not Path(f"/proc/{pid}").exists() and not root.exists())


def test_all_at_once(tests: Callable[..., tuple[subprocess.Popen[str], int, Path]]) -> None:
    """The whole group is killed, as `timeout -s KILL` and a closed container do."""
    process, pid, root = tests("-n", "1")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    wait_for(lambda: not Path(f"/proc/{pid}").exists() and not root.exists())
