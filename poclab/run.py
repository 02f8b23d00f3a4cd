"""The only place that starts processes: argv lists, logged, with time limits.

A test (or a dry run) puts another `Runner` in with `using`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import join
from typing import IO, NoReturn

from poclab import events
from poclab.beside import repeating
from poclab.errors import PoclabError

_LOOK_EVERY = 0.2  # seconds between two looks of `Runner.stream`'s watch


@dataclass(frozen=True)
class Result:
    """How a process ended.

    Attributes:
        argv: the command.
        code: its exit status; negative for a signal.
        stdout: what it printed.
        stderr: what it printed as errors.
    """

    argv: tuple[str, ...]
    code: int
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        """The last line it printed as an error, or else at all."""
        for text in (self.stderr, self.stdout):
            lines = text.strip().splitlines()
            if lines:
                return lines[-1].strip()
        return f"exit status {self.code}"


class CommandFailed(PoclabError):
    """A command ended with a status other than 0.

    Attributes:
        result: how it ended.
    """

    def __init__(self, result: Result, *, fix: str = "") -> None:
        super().__init__(f"{result.argv[0]} failed", why=result.last_line, fix=fix)
        self.result = result


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
        pass_fds: Sequence[int] = (),
    ) -> Result:
        """Run a command to its end and capture what it prints.

        Args:
            argv: the command and its arguments; never a shell.
            check: raise when the status is not 0.
            input: text for its standard input.
            timeout: seconds before it is killed.
            env: variables added to the environment.
            cwd: the directory it runs in.
            limits: resource limits (`resource.RLIMIT_*` to a value) set in the child.
            pass_fds: descriptors that the child has by the same numbers.

        Raises:
            PoclabError: the program is missing, or timed out.
            CommandFailed: it failed and `check` is set.
        """
        events.debug(f"run: {join(argv)}")
        try:
            done = subprocess.run(
                list(argv),
                input=input,
                stdin=None if input is not None else subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                env=_environment(env),
                cwd=cwd,
                check=False,
                preexec_fn=_limiter(limits),
                pass_fds=tuple(pass_fds),
            )
        except FileNotFoundError as error:
            raise _missing(argv[0]) from error
        except subprocess.TimeoutExpired as error:
            raise PoclabError(
                f"{argv[0]} did not end within {timeout:.0f} s", why=join(argv)[:300]
            ) from error
        result = Result(tuple(argv), done.returncode, done.stdout, done.stderr)
        if check and result.code != 0:
            raise CommandFailed(result)
        return result

    def stream(
        self,
        argv: Sequence[str],
        on_line: Callable[[str], None],
        *,
        log: Path | None = None,
        timeout: float = 7200,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        limits: Mapping[int, int] | None = None,
        pass_fds: Sequence[int] = (),
        watch: Callable[[], None] | None = None,
    ) -> int:
        """Run a long command, standard output and errors together, a line at a time.

        Args:
            argv: the command and its arguments.
            on_line: called for each line, without its end; `\r` ends a line too.
            log: a file that gets all of the output.
            timeout: seconds before the process group is killed.
            env: variables added to the environment.
            cwd: the directory it runs in.
            limits: resource limits (`resource.RLIMIT_*` to a value) set in the child.
            pass_fds: descriptors it gets, with the same numbers.
            watch: called again and again meanwhile; what it raises ends the process group, and
                is raised.

        Returns:
            The exit status. On an exception (Ctrl-C included) the process group is ended first.

        Raises:
            PoclabError: the program is missing, or timed out.
        """
        events.debug(f"run: {join(argv)}")
        output, both = subprocess.PIPE, subprocess.STDOUT
        process = _started(
            argv,
            subprocess.DEVNULL,
            output,
            both,
            env=env,
            cwd=cwd,
            limits=limits,
            pass_fds=pass_fds,
        )
        timed_out = threading.Event()

        def expire() -> None:
            timed_out.set()
            _end_group(process)

        timer = threading.Timer(timeout, expire)
        timer.start()
        try:
            assert process.stdout is not None
            with _watched(process, watch):
                _pump(process.stdout, on_line, log)
                code = process.wait()
        except BaseException:
            _end_group(process)
            raise
        finally:
            timer.cancel()
        if timed_out.is_set():
            raise PoclabError(f"{argv[0]} did not end within {timeout:.0f} s", why=join(argv)[:300])
        return code

    @contextmanager
    def reading(self, argv: Sequence[str]) -> Iterator[IO[bytes]]:
        """Start a command and read what it prints as it comes.

        What the block does not read is thrown away. On an exception (Ctrl-C included) the
        process group is ended first.

        Args:
            argv: the command and its arguments.

        Raises:
            PoclabError: the program is missing.
            CommandFailed: it failed.
        """
        events.debug(f"run: {join(argv)}")
        with tempfile.TemporaryFile() as errors:
            process = _started(argv, subprocess.DEVNULL, subprocess.PIPE, errors)
            assert process.stdout is not None
            try:
                with process.stdout as output:
                    yield output
                    while output.read(65536):
                        pass
                code = process.wait()
            except BaseException:
                _end_group(process)
                raise
            errors.seek(0)
            said = errors.read(65536).decode(errors="replace")
        if code != 0:
            raise CommandFailed(Result(tuple(argv), code, "", said))

    @contextmanager
    def writing(self, argv: Sequence[str]) -> Iterator[IO[bytes]]:
        """Start a command and write what it reads as it goes.

        On an exception (Ctrl-C included) the process group is ended first.

        Args:
            argv: the command and its arguments.

        Raises:
            PoclabError: the program is missing.
            CommandFailed: it failed, or ended before it had read everything.
        """
        events.debug(f"run: {join(argv)}")
        with tempfile.TemporaryFile() as output:
            process = _started(argv, subprocess.PIPE, output, output)
            assert process.stdin is not None
            whole = False
            try:
                with suppress(BrokenPipeError):  # its own words say why
                    yield process.stdin
                    process.stdin.close()
                    whole = True
                code = process.wait()
            except BaseException:
                _end_group(process)
                raise
            finally:
                with suppress(OSError):
                    process.stdin.close()
            output.seek(0)
            said = output.read(65536).decode(errors="replace")
        if code != 0 or not whole:
            raise CommandFailed(Result(tuple(argv), code or 1, "", said))

    def exec(self, argv: Sequence[str]) -> NoReturn:
        """Become the command: terminal, signals and exit status are its own.

        Raises:
            PoclabError: the program is missing.
        """
        events.debug(f"exec: {join(argv)}")
        try:
            os.execvp(argv[0], list(argv))
        except FileNotFoundError as error:
            raise _missing(argv[0]) from error

    def which(self, program: str) -> str | None:
        """The path of a program, looked for in PATH and the sbin directories."""
        sbin = "/usr/local/sbin:/usr/sbin:/sbin"
        return shutil.which(program) or shutil.which(program, path=sbin)


_PACKAGES = {
    "podman": "podman",
    "qemu-img": "qemu-utils (Debian, Ubuntu) or qemu-img (Fedora)",
    "ssh": "openssh-client (Debian, Ubuntu) or openssh-clients (Fedora)",
    "ssh-keygen": "openssh-client (Debian, Ubuntu) or openssh-clients (Fedora)",
    "mke2fs": "e2fsprogs",
    "mcopy": "mtools",
    "mformat": "mtools",
    "mmd": "mtools",
    "e2fsck": "e2fsprogs",
    "sfdisk": "fdisk (Debian, Ubuntu) or util-linux (Fedora)",
    "prlimit": "util-linux",
    "losetup": "util-linux",
    "sudo": "sudo",
}


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
) -> subprocess.Popen[bytes]:
    """Start a program; what its streams are is subprocess's to say."""
    try:
        return subprocess.Popen(
            list(argv),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=_environment(env),
            cwd=cwd,
            # A group of its own, to be ended as a whole; not a session of its own, which would
            # have no terminal, and sudo remembers a password by terminal.
            process_group=0,
            preexec_fn=_limiter(limits),
            pass_fds=pass_fds,
        )
    except FileNotFoundError as error:
        raise _missing(argv[0]) from error


@contextmanager
def _watched(process: subprocess.Popen[bytes], watch: Callable[[], None] | None) -> Iterator[None]:
    """Have a look at something while a process runs; what that raises ends its group."""

    def look() -> None:
        assert watch is not None
        try:
            watch()
        except BaseException:
            if process.returncode is None:
                _end_group(process)
            raise

    with repeating(look, _LOOK_EVERY) if watch else nullcontext():
        yield


def _missing(program: str) -> PoclabError:
    package = _PACKAGES.get(program, program)
    return PoclabError(f"{program} is not installed", fix=f"install the package {package}")


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    # The C locale: texts of other programs are matched, and sbin holds mke2fs on Debian.
    env = dict(os.environ) | {"LC_ALL": "C.UTF-8"}
    env["PATH"] = env.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    return env | dict(extra or {})


def _limiter(limits: Mapping[int, int] | None) -> Callable[[], None] | None:
    if not limits:
        return None

    def apply() -> None:
        import resource

        for name, value in limits.items():
            resource.setrlimit(name, (value, value))

    return apply


def _pump(stream: IO[bytes], on_line: Callable[[str], None], log: Path | None) -> None:
    with open(log, "ab") if log else open(os.devnull, "wb") as copy:  # noqa: PTH123
        pending = b""
        # read1 returns what is there, so progress is shown when it is printed.
        while chunk := stream.read1(65536):  # type: ignore[attr-defined]
            copy.write(chunk)
            copy.flush()
            *lines, pending = (pending + chunk.replace(b"\r", b"\n")).split(b"\n")
            for line in lines:
                on_line(line.decode(errors="replace"))
        if pending:
            on_line(pending.decode(errors="replace"))


def _end_group(process: subprocess.Popen[bytes], patience: float = 10) -> None:
    """End every process of the group, also those that outlive their leader."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signum)
        limit = time.monotonic() + patience
        while time.monotonic() < limit:
            process.poll()
            if not _group_lives(process.pid):
                return
            time.sleep(0.05)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # members run as another user (sudo)
        return True
    return True


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
