"""Programs that print without end, or keep a pipe open: memory, time and processes stay bounded."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from poclab.core import process, process_groups
from poclab.core.errors import PoclabError
from poclab.core.process import Runner, TooMuchOutput
from poclab.core.units import MIB
from tests.hostile import floods
from tests.support.accounts import CHECKOUT

# Runs a command as poclab does, in a process whose memory is limited, and says how that went.
CLIENT = """
import resource, sys
from poclab.core.process import runner

resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
try:
    exec(sys.argv[1])
except Exception as error:
    print(type(error).__name__, error, sep="\\n")
# Not getrusage(2): its figure includes that of the process that started this one.
print(next(x.split()[1] for x in open("/proc/self/status") if x.startswith("VmHWM")))
"""
MEMORY = 80  # MiB; Python alone has 15


def client(script: str, *argv: str) -> tuple[list[str], int]:
    """What a client said of a command (`ARGV` in its script), and the MiB that it took."""
    program = [sys.executable, "-c", CLIENT, f"argv = {list(argv)!r}\n{script}"]
    *said, memory = process.run(program, cwd=CHECKOUT, timeout=60).stdout.splitlines()
    return said, int(memory) // 1024


def ends(pid: int) -> bool:
    """Whether a process is gone within some seconds; a zombie counts as gone."""
    limit = time.monotonic() + 10
    while time.monotonic() < limit:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(
    "argv", [floods.zeros(), floods.lines(), floods.errors()], ids=["zeros", "lines", "errors"]
)
@pytest.mark.parametrize("way", ["run", "reading", "writing"])
def test_what_floods_takes_little_memory_and_is_ended(way: str, argv: list[str]) -> None:
    if way == "reading" and argv != floods.errors():
        argv = ["sh", "-c", f"{' '.join(argv)} >&2"]  # its output is the caller's to bound
    script = {
        "run": "runner().run(argv, timeout=20)",
        "reading": "with runner().reading(argv) as stream: stream.read()",
        "writing": "with runner().writing(argv) as into:\n  while True: into.write(bytes(9999))",
    }[way]
    began = time.monotonic()
    said, memory = client(script, *argv)
    assert said[0] == "TooMuchOutput"
    assert f"{argv[0]} printed more than 8 MiB" in said[1]
    assert memory < MEMORY
    assert time.monotonic() - began < 15


def test_lines_without_an_end_are_cut(tmp_path: Path) -> None:
    log = tmp_path / "log"
    argv = ["sh", "-c", "head -c 300000000 /dev/zero | tr '\\0' x; echo; echo end"]
    script = f"""
from pathlib import Path
lines = []
assert runner().stream(argv, lines.append, log=Path({str(log)!r})) == 0
print([len(line) for line in lines], lines[-1])
"""
    said, memory = client(script, *argv)
    assert said == ["[65536, 3] end"]
    assert memory < MEMORY
    assert log.stat().st_size < 257 * MIB
    with log.open("rb") as file:
        file.seek(-200, os.SEEK_END)
        assert file.read().endswith(b"x\n[poclab: the log ends here, at 256 MiB]\n")


def test_a_line_that_is_no_text_is_cut_between_bytes() -> None:
    lines: list[str] = []
    argv = ["sh", "-c", "head -c 70000 /dev/zero; printf '\\nb\\r\\nc'"]
    assert Runner().stream(argv, lines.append) == 0
    assert ([len(line) for line in lines], lines[-1]) == ([65536, 1, 0, 1], "c")


def test_the_bound_is_the_callers() -> None:
    kept = process.run(["head", "-c", "1000", "/dev/zero"], most=1000)
    assert len(kept.stdout) == 1000
    with pytest.raises(TooMuchOutput, match="head printed more than 1000 B"):
        process.run(["head", "-c", "1001", "/dev/zero"], most=1000)
    with pytest.raises(TooMuchOutput):  # both streams together
        process.run(["sh", "-c", "printf 123456; printf 123456 >&2"], most=10)


def test_a_child_that_floods_ends_after_its_parent(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with pytest.raises(TooMuchOutput):
        process.run(floods.orphan(note), most=100_000)
    assert ends(int(note.read_text()))


def test_a_child_that_keeps_the_pipe_open_ends_when_the_time_is_up() -> None:
    began = time.monotonic()
    with pytest.raises(PoclabError, match="sh did not end within 1 s"):
        process.run(floods.holder(), timeout=1)
    pids: list[int] = []
    with pytest.raises(PoclabError, match="sh did not end within 1 s"):
        Runner().stream(floods.holder(), lambda line: pids.append(int(line)), timeout=1)
    assert ends(pids[0])
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("way", ["reading", "writing"])
def test_what_hangs_is_ended_when_the_time_is_up(way: str) -> None:
    def hang() -> None:
        if way == "reading":
            with Runner().reading(["sleep", "1000"], timeout=0.5) as source:
                source.read()
        else:
            with Runner().writing(["sleep", "1000"], timeout=0.5) as target:
                while True:
                    target.write(bytes(65536))

    began = time.monotonic()
    with pytest.raises(PoclabError, match="sleep did not end within"):
        hang()
    assert time.monotonic() - began < 10


def test_much_input_and_much_output_at_once() -> None:
    text = "x" * (3 * MIB)
    assert process.run(["cat"], input=text, timeout=30).stdout == text
    # One that reads nothing of it, or ends first.
    assert process.run(["true"], input=text, timeout=30).code == 0
    assert len(process.run(["head", "-c", "2000000", "/dev/zero"], input=text).stdout) == 2_000_000


@pytest.mark.parametrize(
    "start",
    [
        lambda argv: process.run(argv),
        lambda argv: Runner().stream(argv, lambda _: None),
    ],
    ids=["run", "stream"],
)
def test_an_interruption_ends_what_does_not_listen(
    start: Callable[[list[str]], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_groups.end_group, "__defaults__", (0.5,))
    note = tmp_path / "pid"
    argv = ["sh", "-c", f"trap '' TERM; echo $$ >{note}; while :; do sleep 1; done"]

    def interrupt() -> None:
        while not note.exists() or not note.read_text().strip():
            time.sleep(0.01)
        os.kill(os.getpid(), 2)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with suppress(KeyboardInterrupt):
        start(argv)
        pytest.fail("it was not interrupted")
    thread.join()
    assert ends(int(note.read_text()))
