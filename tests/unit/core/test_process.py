"""The one place that starts processes."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from poclab.core import events, process_groups
from poclab.core import process as processes
from poclab.core.errors import PoclabError
from poclab.core.process import CommandFailed, Result, Runner


def test_output_and_status() -> None:
    done = processes.run(["sh", "-c", "echo out; echo err >&2; exit 3"], check=False)
    assert (done.code, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert done.argv == ("sh", "-c", "echo out; echo err >&2; exit 3")


def test_a_failure_says_the_last_line() -> None:
    with pytest.raises(CommandFailed) as caught:
        processes.run(["sh", "-c", "echo one >&2; echo 'two: no space' >&2; exit 1"])
    assert caught.value.lines() == ["sh failed", "why: two: no space"]
    assert caught.value.result.code == 1


@pytest.mark.parametrize(
    ("stdout", "stderr", "line"),
    [("a\nb\n", "c\nd\n\n", "d"), ("a\nb\n", " \n", "b"), ("", "", "exit status 9")],
)
def test_last_line(stdout: str, stderr: str, line: str) -> None:
    assert Result(("x",), 9, stdout, stderr).last_line == line


def test_no_shell_and_no_terminal_input() -> None:
    assert processes.run(["printf", "%s", "$HOME; `id`"]).stdout == "$HOME; `id`"
    assert processes.run(["cat"], timeout=10).stdout == ""
    assert processes.run(["cat"], input="text", timeout=10).stdout == "text"


def test_bytes_that_are_no_text_are_survived() -> None:
    assert processes.run(["printf", r"a\377b"]).stdout == "a\ufffdb"


def test_environment_directory_and_locale(tmp_path: Path) -> None:
    done = processes.run(["sh", "-c", "echo $LC_ALL $X; pwd"], env={"X": "y"}, cwd=tmp_path)
    assert done.stdout == f"C.UTF-8 y\n{tmp_path}\n"
    path = processes.run(["sh", "-c", "echo $PATH"]).stdout.strip().split(":")
    assert path[-1] == "/sbin"


def test_limits_hold_in_the_child_alone() -> None:
    before = resource.getrlimit(resource.RLIMIT_CPU)
    done = processes.run(["sh", "-c", "ulimit -t"], limits={resource.RLIMIT_CPU: 7})
    assert done.stdout == "7\n"
    assert resource.getrlimit(resource.RLIMIT_CPU) == before


def test_a_missing_program_names_its_package() -> None:
    with pytest.raises(PoclabError) as caught:
        processes.run(["no-such-program-here"])
    assert caught.value.lines() == [
        "no-such-program-here is not installed",
        "fix: install the package no-such-program-here",
    ]
    for start in (processes.runner().exec, lambda argv: processes.runner().stream(argv, print)):
        with pytest.raises(PoclabError, match="is not installed"):
            start(["no-such-program-here"])


def test_a_time_limit() -> None:
    start = time.monotonic()
    with pytest.raises(PoclabError, match="sleep did not end within 0 s"):
        processes.run(["sleep", "60"], timeout=0.3)
    assert time.monotonic() - start < 10


def test_commands_are_logged_as_they_could_be_typed() -> None:
    heard: list[events.Event] = []
    with events.listening(heard.append):
        processes.run(["true", "a b"])
    assert [(e.kind, e.text) for e in heard] == [("debug", "run: true 'a b'")]


def test_which_looks_into_sbin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    found = processes.runner().which("mke2fs")
    assert found is not None
    assert found.endswith("sbin/mke2fs")
    assert processes.runner().which("no-such-program-here") is None


# --- stream ---------------------------------------------------------------------------------


def test_stream_gives_lines_and_keeps_all_of_it(tmp_path: Path) -> None:
    lines: list[str] = []
    log = tmp_path / "log"
    log.write_bytes(b"before\n")
    script = r"printf 'one\n10%%\r20%%\r\ntwo\n'; echo three >&2; printf 'no end'; exit 4"
    assert processes.runner().stream(["sh", "-c", script], lines.append, log=log) == 4
    assert [line for line in lines if line] == ["one", "10%", "20%", "two", "three", "no end"]
    assert log.read_bytes() == b"before\none\n10%\r20%\r\ntwo\nthree\nno end"


def test_stream_shows_lines_when_they_are_printed() -> None:
    times: list[float] = []
    processes.runner().stream(
        ["sh", "-c", "echo a; sleep 0.4; echo b"], lambda _: times.append(time.time())
    )
    assert times[1] - times[0] > 0.3


def _gone(pid: int) -> bool:
    """Whether a process has ended; what nobody has waited for yet counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def _ends(pid: int) -> bool:
    limit = time.monotonic() + 10
    while not _gone(pid) and time.monotonic() < limit:
        time.sleep(0.02)
    return _gone(pid)


def test_stream_times_out_and_ends_grandchildren_too() -> None:
    pids: list[int] = []
    with pytest.raises(PoclabError, match="did not end within 1 s"):
        processes.runner().stream(
            ["sh", "-c", "sleep 60 & echo $!; wait"], lambda line: pids.append(int(line)), timeout=1
        )
    assert len(pids) == 1
    assert _ends(pids[0])


def test_stream_ends_the_process_group_when_interrupted() -> None:
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        processes.runner().stream(["sh", "-c", "sleep 60 & echo $!; wait"], interrupt)
    assert _ends(pids[0])


def test_stream_kills_what_does_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_groups.end_group, "__defaults__", (0.5,))
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    script += "import os; print(os.getpid(), flush=True); time.sleep(60)"
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        processes.runner().stream([sys.executable, "-c", script], interrupt)
    assert _ends(pids[0])


# --- exec and stand-ins ---------------------------------------------------------------------


def test_exec_becomes_the_command() -> None:
    pid = os.fork()
    if pid == 0:
        processes.runner().exec(["sh", "-c", "kill -TERM $$"])
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM


def test_another_runner_inside_the_block() -> None:
    class Recorder(Runner):
        def __init__(self) -> None:
            self.seen: list[tuple[str, ...]] = []

        def run(self, argv: Sequence[str], **options: object) -> Result:
            self.seen.append(tuple(argv))
            return Result(tuple(argv), 0, "", "")

    before = processes.runner()
    recorder = Recorder()
    with processes.using(recorder):
        assert processes.run(["false", "x"]).code == 0
    assert recorder.seen == [("false", "x")]
    with pytest.raises(ZeroDivisionError), processes.using(recorder):
        _ = 1 // 0
    assert processes.runner() is before


def test_reading_gives_what_comes_and_throws_the_rest_away() -> None:
    with Runner().reading(["sh", "-c", "printf abc; head -c 1000000 /dev/zero"]) as output:
        assert output.read(3) == b"abc"
    with (
        pytest.raises(CommandFailed, match="sh failed") as error,
        Runner().reading(["sh", "-c", "echo out; echo why >&2; exit 3"]) as output,
    ):
        assert output.read() == b"out\n"
    assert (error.value.result.code, error.value.why) == (3, "why")
    with pytest.raises(PoclabError, match="poclab-no-such"), Runner().reading(["poclab-no-such"]):
        pass


def test_reading_ends_the_process_group_when_interrupted() -> None:
    began = time.monotonic()
    with (
        suppress(KeyboardInterrupt),
        Runner().reading(["sh", "-c", "echo $$; sleep 100 & wait"]) as output,
    ):
        group = int(output.readline())
        raise KeyboardInterrupt
    assert time.monotonic() - began < 50
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)


# --- writing to a command ------------------------------------------------------------------


def test_what_is_written_reaches_the_command(tmp_path: Path) -> None:
    with Runner().writing(["sh", "-c", f"cat >{tmp_path}/got"]) as stream:
        stream.write(b"x" * 1_000_000)
    assert (tmp_path / "got").read_bytes() == b"x" * 1_000_000


@pytest.mark.parametrize("code", [0, 3])
def test_a_command_that_ends_early_failed_in_its_own_words(code: int) -> None:
    argv = ["sh", "-c", f"head -c 1 >/dev/null; echo 'no space' >&2; exit {code}"]

    def write() -> None:
        with Runner().writing(argv) as stream:
            stream.write(b"x" * 10_000_000)

    with pytest.raises(CommandFailed) as caught:
        write()
    assert caught.value.result.last_line == "no space"
    assert caught.value.result.code == (code or 1)


def test_a_command_that_is_written_to_ends_with_an_interruption(tmp_path: Path) -> None:
    def write() -> None:
        with Runner().writing(["sh", "-c", f"echo $$ >{tmp_path}/pid; exec cat >/dev/null"]):
            while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_a_missing_program_cannot_be_written_to() -> None:
    with pytest.raises(PoclabError, match="is not installed"), Runner().writing(["no-such"]):
        pass


def test_a_program_inherits_only_the_descriptors_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("inherited")
    with (tmp_path / "a").open("rb") as file:
        fd = file.fileno()
        argv = ["sh", "-c", f"cat /proc/self/fd/{fd}"]
        assert processes.run(argv, pass_fds=[fd]).stdout == "inherited"
        assert processes.run(argv, check=False).code != 0
        lines: list[str] = []
        assert Runner().stream(argv, lines.append, pass_fds=[fd]) == 0
        assert lines == ["inherited"]


def test_what_a_watch_raises_ends_the_program() -> None:
    looks = 0

    def watch() -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise PoclabError("enough")

    began = time.monotonic()
    with pytest.raises(PoclabError, match="enough"):
        Runner().stream(["sleep", "60"], lambda _: None, watch=watch)
    assert time.monotonic() - began < 30
    assert Runner().stream(["true"], lambda _: None, watch=lambda: None) == 0


INTERRUPTED = """
import sys
from poclab.core import process as run, scheduler as schedule
from poclab.cli import app

def task(name):
    run.run(["sh", "-c", sys.argv[1], "sh", sys.argv[2]])

app.app = lambda: schedule.run_in_order({"a": ()}, task)
app.run()
"""


@pytest.mark.parametrize("deaf", ["", "trap '' TERM; "])
def test_what_threads_run_ends_with_an_interruption(deaf: str, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = deaf + "sleep 300 & echo $$ $! > $1.new; mv $1.new $1; wait"
    argv = [sys.executable, "-c", INTERRUPTED, script, str(note)]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 20
    while not note.exists():
        assert time.monotonic() < limit
        time.sleep(0.02)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert said.startswith("interrupted:")
    assert time.monotonic() - began < 5
    assert all(_ends(int(pid)) for pid in note.read_text().split())
