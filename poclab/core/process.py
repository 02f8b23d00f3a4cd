"""The only place that starts processes: argv lists, logged, with limits of time and output.

A test (or a dry run) puts another `Runner` in with `using`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import join
from typing import IO, NoReturn

from poclab.core import events, process_groups, resource_limits
from poclab.core.background import repeating
from poclab.core.capture import Drain, Lines, Log, TimeIsUp, taken
from poclab.core.errors import PoclabError
from poclab.core.outcomes import CommandFailed as CommandFailed
from poclab.core.outcomes import Result as Result
from poclab.core.outcomes import TimedOut as TimedOut
from poclab.core.outcomes import TooMuchOutput as TooMuchOutput
from poclab.core.process_groups import end_group, keep
from poclab.core.programs import missing
from poclab.core.units import MIB

OUTPUT = 8 * MIB  # bytes a program may print; podman's description of an image is well below one
_LONG = 7200.0  # seconds for a program whose work has no natural limit
_CLOSE = 5.0  # seconds for what an ended program left behind to close its output

_LOOK_EVERY = 0.2  # seconds between two looks of `Runner.stream`'s watch


class Runner:
    """Starts real processes."""

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        input: str | None = None,  # noqa: A002 - subprocess's own name
        timeout: float | None = 600,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        limits: Mapping[int, int] | None = None,
        most: int = OUTPUT,
        pass_fds: Sequence[int] = (),
    ) -> Result:
        """Run a command to its end and capture what it prints.

        On an exception (Ctrl-C included) the process group is ended first.

        Args:
            argv: the command and its arguments; never a shell.
            check: raise when the status is not 0.
            input: text for its standard input.
            timeout: seconds before its process group is ended.
            env: variables added to the environment.
            cwd: the directory it runs in.
            limits: resource limits of the command (`resource.RLIMIT_*` to a value).
            most: bytes it may print, output and errors together, before its group is ended.
            pass_fds: descriptors that the child has by the same numbers.

        Raises:
            PoclabError: the program is missing.
            TimedOut: it did not end in time.
            TooMuchOutput: it printed too much.
            CommandFailed: it failed and `check` is set.
        """
        events.debug(f"run: {join(argv)}")
        stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
        pipe = subprocess.PIPE
        process = _started(
            argv,
            stdin,
            pipe,
            pipe,
            env=env,
            cwd=cwd,
            limits=limits,
            pass_fds=pass_fds,
            waits=True,
        )
        data = b"" if input is None else input.encode()
        until = None if timeout is None else time.monotonic() + timeout
        found: dict[IO[bytes], bytearray] = {_pipe(process.stdout): bytearray()}
        found[_pipe(process.stderr)] = bytearray()
        with _ended_on_error(process):
            try:
                for stream, chunk in taken(list(found), until, process.stdin, data):
                    found[stream] += chunk
                    if sum(map(len, found.values())) > most:
                        raise TooMuchOutput(argv, most)
                code = process.wait(None if until is None else max(0, until - time.monotonic()))
            except (TimeIsUp, subprocess.TimeoutExpired):
                raise TimedOut(argv, timeout or 0) from None
        stdout, stderr = (_text(data) for data in found.values())
        result = Result(tuple(argv), code, stdout, stderr)
        if check and result.code != 0:
            raise CommandFailed(result)
        return result

    def stream(
        self,
        argv: Sequence[str],
        on_line: Callable[[str], None],
        *,
        log: Path | None = None,
        timeout: float = _LONG,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        limits: Mapping[int, int] | None = None,
        pass_fds: Sequence[int] = (),
        watch: Callable[[], None] | None = None,
    ) -> int:
        r"""Run a long command, standard output and errors together, a line at a time.

        How much it prints does not matter: a line is cut (`capture.LINE`), and so is the log
        (`capture.LOG`), while the command goes on.

        Args:
            argv: the command and its arguments.
            on_line: called for each line, without its end; `\r` ends a line too.
            log: a file that gets the output.
            timeout: seconds before the process group is ended.
            env: variables added to the environment.
            cwd: the directory it runs in.
            limits: resource limits of the command (`resource.RLIMIT_*` to a value).
            pass_fds: descriptors it gets, with the same numbers.
            watch: called again and again meanwhile; what it raises ends the process group, and
                is raised.

        Returns:
            The exit status. On an exception (Ctrl-C included) the process group is ended first.

        Raises:
            PoclabError: the program is missing.
            TimedOut: it did not end in time.
        """
        events.debug(f"run: {join(argv)}")
        output, both = subprocess.PIPE, subprocess.STDOUT
        until, lines = time.monotonic() + timeout, Lines(on_line)
        none = subprocess.DEVNULL
        process = _started(
            argv, none, output, both, env=env, cwd=cwd, limits=limits, pass_fds=pass_fds
        )
        with _ended_on_error(process), Log.at(log) as file, _looking(process, watch):
            copy = Log(file)
            try:
                for _, chunk in taken([_pipe(process.stdout)], until):
                    copy.take(chunk)
                    lines.take(chunk)
                lines.end()
                return process.wait(max(0, until - time.monotonic()))
            except (TimeIsUp, subprocess.TimeoutExpired):
                raise TimedOut(argv, timeout) from None

    @contextmanager
    def reading(self, argv: Sequence[str], *, timeout: float = _LONG) -> Iterator[IO[bytes]]:
        """Start a command and read what it prints as it comes.

        What the block does not read is thrown away. On an exception (Ctrl-C included) the
        process group is ended first.

        Args:
            argv: the command and its arguments.
            timeout: seconds before the process group is ended.

        Raises:
            PoclabError: the program is missing.
            TimedOut: it did not end in time.
            TooMuchOutput: its errors are without end; how much it prints is the caller's to bound.
            CommandFailed: it failed.
        """
        events.debug(f"run: {join(argv)}")
        process = _started(argv, subprocess.DEVNULL, subprocess.PIPE, subprocess.PIPE)
        with (
            _pipe(process.stdout) as output,
            _watched(argv, process, _pipe(process.stderr), timeout) as watch,
        ):
            yield output
            while output.read(65536):
                pass
            watch.finish()

    @contextmanager
    def writing(self, argv: Sequence[str], *, timeout: float = _LONG) -> Iterator[IO[bytes]]:
        """Start a command and write what it reads as it goes.

        On an exception (Ctrl-C included) the process group is ended first.

        Args:
            argv: the command and its arguments.
            timeout: seconds before the process group is ended.

        Raises:
            PoclabError: the program is missing.
            TimedOut: it did not end in time.
            TooMuchOutput: it prints without end.
            CommandFailed: it failed, or ended before it had read everything.
        """
        events.debug(f"run: {join(argv)}")
        process = _started(argv, subprocess.PIPE, subprocess.PIPE, subprocess.STDOUT)
        stdin, whole = _pipe(process.stdin), False
        try:
            with _watched(argv, process, _pipe(process.stdout), timeout) as watch:
                with suppress(BrokenPipeError):  # its own words say why
                    yield stdin
                    stdin.close()
                    whole = True
                watch.finish(whole=whole)
        finally:
            with suppress(OSError):
                stdin.close()

    def exec(self, argv: Sequence[str]) -> NoReturn:
        """Become the command: terminal, signals and exit status are its own.

        Raises:
            PoclabError: the program is missing.
        """
        events.debug(f"exec: {join(argv)}")
        try:
            os.execvp(argv[0], list(argv))  # noqa: S606 - no shell is the point
        except FileNotFoundError as error:
            raise missing(argv[0]) from error

    def which(self, program: str) -> str | None:
        """The path of a program, looked for in PATH and the sbin directories."""
        sbin = "/usr/local/sbin:/usr/sbin:/sbin"
        return shutil.which(program) or shutil.which(program, path=sbin)


def _started(
    argv: Sequence[str],
    stdin: int,
    stdout: int | IO[bytes],
    stderr: int | IO[bytes],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    limits: Mapping[int, int] | None = None,
    pass_fds: Sequence[int] = (),
    waits: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a program; what its streams are is subprocess's to say.

    Args:
        argv: the command and its arguments.
        stdin: see subprocess, like the next two.
        stdout: where its output goes.
        stderr: where its errors go.
        env: variables added to the environment.
        cwd: the directory it runs in.
        limits: its resource limits.
        waits: the user waits for it alone, so sudo may ask for a password.
    """
    # Outside of the terminal's foreground group sudo would be stopped when it asks (SIGTTIN), and
    # a group of root's processes is not ours to end in any case.
    group = None if waits and argv[0] == "sudo" else 0
    try:
        process = subprocess.Popen(  # noqa: S603 - no shell, and argv comes from this program
            _limited(argv, limits),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=_environment(env),
            cwd=cwd,
            # A group of its own, to be ended as a whole; not a session of its own, which would
            # have no terminal, and sudo remembers a password by terminal.
            process_group=group,
            pass_fds=pass_fds,
        )
    except FileNotFoundError as error:
        # Under limits the program was looked for before.
        raise missing("prlimit" if limits else argv[0]) from error
    keep(process)
    return process


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    # The C locale: texts of other programs are matched, and sbin holds mke2fs on Debian.
    env = dict(os.environ) | {"LC_ALL": "C.UTF-8"}
    env["PATH"] = env.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    return env | dict(extra or {})


def _limited(argv: Sequence[str], limits: Mapping[int, int] | None) -> list[str]:
    if limits and runner().which(argv[0]) is None:  # prlimit would be the one to complain
        raise missing(argv[0])
    return [*resource_limits.prefix(limits or {}), *argv]


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("no pipe was asked for")
    return stream


def _text(data: bytes | bytearray) -> str:
    text = data.decode(errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


# --- the end of a process -------------------------------------------------------------------


_ROOT_PATIENCE = 5.0  # seconds for sudo and kill(1), which ask nobody anything


def _signal_as_root(signum: int, target: int) -> bool:
    """Have sudo send a signal where it gives root without a question; see `process_groups.as_root`.

    kill(1) gets a process group of its own: sudo ignores what comes from a process of the group
    that it is in itself, as its command may be (sudo(8), Signal handling).
    """
    if os.geteuid() == 0 or runner().which("sudo") is None:
        return False
    argv = ["sudo", "-n", "kill", f"-{signum}", "--", str(target)]
    none = subprocess.DEVNULL
    process = subprocess.Popen(  # noqa: S603 - no shell, and argv comes from this program
        argv, stdin=none, stdout=none, stderr=none, env=_environment(None), process_group=0
    )
    try:
        return process.wait(_ROOT_PATIENCE) == 0
    except subprocess.TimeoutExpired:  # sudo is root's: to end it is what is being tried
        return False


process_groups.as_root = _signal_as_root


@contextmanager
def _ended_on_error(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        end_group(process)
        raise
    finally:
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


class _Watch:
    """A process whose words are taken in, and whose time is measured, beside other work."""

    def __init__(
        self,
        argv: Sequence[str],
        process: subprocess.Popen[bytes],
        words: IO[bytes],
        timeout: float,
    ) -> None:
        self._argv, self._process, self._timeout = argv, process, timeout
        self._late = False
        self._drain = Drain(words, OUTPUT, lambda: end_group(process))
        self._timer = threading.Timer(timeout, self._expire)
        self._timer.daemon = True

    def begin(self) -> None:
        self._drain.start()
        self._timer.start()

    def finish(self, *, whole: bool = True) -> None:
        """Wait for its end.

        Raises:
            CommandFailed: it failed, or did not do `whole` of its work.
        """
        code = self._process.wait()
        self.refuse()
        if code != 0 or not whole:
            said = self._drain.said(_CLOSE)
            self.refuse()
            raise CommandFailed(Result(tuple(self._argv), code or 1, "", said))

    def refuse(self) -> None:
        """Raise what it was ended for, if it was."""
        if self._drain.flooded:
            raise TooMuchOutput(self._argv, OUTPUT)
        if self._late:
            raise TimedOut(self._argv, self._timeout)

    def end(self) -> None:
        self._timer.cancel()

    def _expire(self) -> None:
        self._late = True
        end_group(self._process)


@contextmanager
def _watched(
    argv: Sequence[str], process: subprocess.Popen[bytes], words: IO[bytes], timeout: float
) -> Iterator[_Watch]:
    watch = _Watch(argv, process, words, timeout)
    watch.begin()
    try:
        yield watch
    except BaseException as error:
        end_group(process)
        if isinstance(error, Exception) and not isinstance(error, PoclabError):
            watch.refuse()  # what the block made of it comes of its being ended
        raise
    finally:
        watch.end()


@contextmanager
def _looking(process: subprocess.Popen[bytes], watch: Callable[[], None] | None) -> Iterator[None]:
    """Look at something else while a process runs; what that raises ends the group."""
    if watch is None:
        yield
        return

    def look() -> None:
        try:
            watch()
        except BaseException:
            if process.returncode is None:
                end_group(process)
            raise

    with repeating(look, _LOOK_EVERY):
        yield


_current: Runner = Runner()


def runner() -> Runner:
    """The runner in use."""
    return _current


@contextmanager
def using(other: Runner) -> Iterator[Runner]:
    """Use another runner inside the block."""
    global _current
    before, _current = _current, other
    try:
        yield other
    finally:
        _current = before


def run(argv: Sequence[str], **options: object) -> Result:
    """`Runner.run` of the runner in use; see there."""
    return _current.run(argv, **options)  # type: ignore[arg-type]
