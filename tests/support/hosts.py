"""Real libvirt hosts for tests: a session of an ordinary user, and a system without an uplink.

`session()` and `system()` make one and take everything away again; the fixtures in
tests/conftest.py hand them out. Both give a `Host`:

    host.poclab("status", "-o", "json").stdout
    host.virsh("list", "--all")
    host.stop_at(["up", "customer-a"], step=3, how="kill")
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.support import accounts
from tests.support.accounts import Account, Place, as_root

SYSTEM_HOST = Path(__file__).parent / "system-host"
Completed = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Stopped:
    """How a run with a stop in it went.

    Attributes:
        reached: whether the step was reached; if not, the command ran to its end.
        steps: what the steps called themselves, in order, that of the stop included.
        result: how the process ended (`returncode` -9 after SIGKILL).
    """

    reached: bool
    steps: tuple[str, ...]
    result: Completed


@dataclass(frozen=True)
class Host:
    """One libvirt host and an account on it.

    Attributes:
        uri: how the account connects (also POCLAB_CONNECT and LIBVIRT_DEFAULT_URI in `env`).
        place: the account with its private directories.
    """

    uri: str
    place: Place

    @property
    def account(self) -> Account:
        """Who the commands run as."""
        return self.place.account

    @property
    def env(self) -> dict[str, str]:
        """The complete environment of the commands."""
        return dict(self.place.env)

    @property
    def scratch(self) -> Path:
        """A directory for a test's own files, readable and writable by the account.

        What a root test writes here belongs to root: `give` hands it over.
        """
        return self.place.root / "tmp"

    def give(self, path: Path) -> Path:
        """Make a file or tree in `scratch` the account's own."""
        if os.getuid() == 0:
            for entry in [path, *path.rglob("*")]:
                os.chown(entry, self.account.uid, self.account.gid, follow_symlinks=False)
        return path

    def write(self, name: str, text: str) -> Path:
        """Write a file of the account in `scratch`, e.g. a lab file, and return its path."""
        path = self.scratch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.give(self.scratch / Path(name).parts[0])
        return path

    def run(
        self,
        *argv: str,
        check: bool = True,
        timeout: float = 120,
        input: str | None = None,  # noqa: A002 - subprocess's own name
        **env: str,
    ) -> Completed:
        """Run a command as the account, in the host's namespaces.

        Args:
            argv: the command.
            check: raise when it fails.
            timeout: seconds before it is killed.
            input: text for its standard input; without, that is empty.
            env: variables added to the environment.

        Raises:
            AssertionError: it failed and `check` is set; the message holds its output.
            subprocess.TimeoutExpired: it took too long.
        """
        done = _run(self.place.argv(*argv, **env), timeout, input)
        if check and done.returncode != 0:
            raise AssertionError(
                f"{' '.join(argv)}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def popen(self, *argv: str, **env: str) -> subprocess.Popen[str]:
        """Start a command as `run` does and return it running, in a process group of its own."""
        return subprocess.Popen(
            self.place.argv(*argv, **env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def poclab(
        self,
        *args: str,
        check: bool = True,
        timeout: float = 300,
        input: str | None = None,  # noqa: A002
        **env: str,
    ) -> Completed:
        """Run poclab as a process of its own; arguments as in `run`."""
        return self.run(*self._program(), *args, check=check, timeout=timeout, input=input, **env)

    def popen_poclab(self, *args: str, **env: str) -> subprocess.Popen[str]:
        """Start poclab and return it running, to interrupt it or to run two at once."""
        return self.popen(*self._program(), *args, **env)

    def _program(self) -> tuple[str, ...]:
        return (self.place.installation.python, "-m", "poclab")

    def virsh(self, *args: str, check: bool = True) -> str:
        """Run virsh on the host and return what it printed."""
        return self.run("virsh", "--quiet", *args, check=check, timeout=60).stdout

    def stop_at(
        self,
        args: Sequence[str],
        step: int,
        how: str = "kill",
        *,
        timeout: float = 300,
        env: Mapping[str, str] | None = None,
    ) -> Stopped:
        """Run poclab with a stop at its n-th step.

        Args:
            args: poclab's arguments.
            step: the step to stop at, from 1.
            how: `kill`, `interrupt` or `enospc` (see tests/support/kill.py).
            timeout: seconds before it is killed.
            env: variables added to the environment.
        """
        report = self.write(f"steps.{threading.get_ident()}", "")
        program = str(self.place.installation.checkout / "tests/support/kill.py")
        python = self.place.installation.python
        argv = self.place.argv(python, program, str(report), str(step), how, *args, **(env or {}))
        done = _run(argv, timeout, None)
        steps = tuple(report.read_text().splitlines())
        # A parallel step may still be counted after the one that stops.
        return Stopped(how != "none" and len(steps) >= step, steps, done)

    def count_steps(
        self, args: Sequence[str], *, timeout: float = 300, env: Mapping[str, str] | None = None
    ) -> Stopped:
        """Run poclab to its end and say what its steps were."""
        return self.stop_at(args, 0, "none", timeout=timeout, env=env)

    def domains(self) -> set[str]:
        """Names of all domains, running or not."""
        return set(self.virsh("list", "--all", "--name").split())

    def networks(self) -> set[str]:
        """Names of all networks, active or not."""
        return set(self.virsh("net-list", "--all", "--name").split())

    def volumes(self, pool: str = "poclab") -> set[str]:
        """Names of the volumes of a pool; none where there is no such pool."""
        if pool not in self.virsh("pool-list", "--all", "--name").split():
            return set()
        lines = self.virsh("vol-list", pool).splitlines()
        return {line.split()[0] for line in lines if line.strip()}

    def remove_domain(self, name: str) -> None:
        """Take a domain away, whatever state it is in."""
        self.virsh("destroy", name, check=False)
        self.virsh("undefine", "--nvram", "--managed-save", "--snapshots-metadata", name)

    def remove_network(self, name: str) -> None:
        """Take a network away."""
        self.virsh("net-destroy", name, check=False)
        self.virsh("net-undefine", name, check=False)

    def daemons(self) -> list[int]:
        """Process ids (the tests' own numbering) of the host's libvirt daemons, logging apart."""
        found = _inside(self.place) if self.place.enter else accounts.processes(self.place.root)
        # A daemon's name is cut to 15 bytes by the kernel, which fits all of these.
        return [pid for pid, name in found.items() if name in ("libvirtd", "virtqemud")]

    def restart_daemon(self, patience: float = 30) -> None:
        """End libvirtd as a package upgrade would, and wait until it answers again."""
        before = [Path(f"/proc/{pid}") for pid in self.daemons()]
        for entry in before:
            _kill(int(entry.name), signal.SIGTERM)
        _wait_for(lambda: not any(entry.exists() for entry in before), patience)
        # A session's daemon is started by the client that asks.
        _wait_for(lambda: self.run("virsh", "uri", check=False).returncode == 0, patience)


@contextmanager
def session(account: Account | None = None) -> Iterator[Host]:
    """A qemu:///session of its own, its libvirtd started by the first client as usual."""
    uri = "qemu:///session"
    with accounts.place(account or accounts.ordinary(), _connect(uri)) as place:
        yield Host(uri, place)


@contextmanager
def system() -> Iterator[tuple[Host, Host]]:
    """A qemu:///system in namespaces of its own: for root, and for a member of group libvirt.

    Raises:
        RuntimeError: libvirtd did not start; the message holds what it said.
    """
    uri = "qemu:///system"
    with _holder() as pid:
        enter = (*as_root(), "nsenter", "--net", "--mount", f"--target={pid}")
        with (
            accounts.place(accounts.root(), _connect(uri), enter) as root,
            accounts.place(accounts.member(), _connect(uri), enter) as member,
        ):
            yield Host(uri, root), Host(uri, member)


@contextmanager
def _holder() -> Iterator[int]:
    # It lives as long as its standard input is open: even a killed pytest leaves nothing.
    command = [*as_root(), str(SYSTEM_HOST), "sh", "-c", 'echo "$POCLAB_TEST_PID"; exec cat']
    holder = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert holder.stdin
    assert holder.stdout
    assert holder.stderr
    try:
        line = holder.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"no qemu:///system for tests: {holder.stderr.read().strip()}")
        yield int(line)
    finally:
        holder.stdin.close()
        try:
            holder.wait(30)
        except subprocess.TimeoutExpired:
            holder.kill()
            holder.wait(10)
        _close(holder.stdout, holder.stderr)


def _close(*streams: IO[str]) -> None:
    for stream in streams:
        stream.close()


def _connect(uri: str) -> dict[str, str]:
    # virsh reads libvirt's variable, poclab its own first.
    return {"POCLAB_CONNECT": uri, "LIBVIRT_DEFAULT_URI": uri}


def _inside(place: Place) -> dict[int, str]:
    """Processes in the network namespace of a system host."""
    target = place.enter[-1].partition("=")[2]
    script = (
        f"want=$(readlink /proc/{target}/ns/net); for p in /proc/[0-9]*; do "
        '[ "$(readlink "$p/ns/net")" = "$want" ] && echo "${p#/proc/} $(cat "$p/comm")"; done; true'
    )
    done = _run([*as_root(), "sh", "-c", script], 30, None)
    rows = [line.split(" ", 1) for line in done.stdout.splitlines()]
    return {int(pid): name for pid, name in rows}


def _kill(pid: int, signum: int) -> None:
    if os.getuid() == 0:
        with suppress(ProcessLookupError):
            os.kill(pid, signum)
    else:
        try:
            os.kill(pid, signum)
        except PermissionError:
            _run([*as_root(), "kill", f"-{signum}", str(pid)], 10, None)


def _wait_for(condition: Callable[[], bool], patience: float) -> None:
    limit = time.monotonic() + patience
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError(f"not within {patience:.0f} s")
        time.sleep(0.1)


def _run(argv: Sequence[str], timeout: float, text: str | None) -> Completed:
    """Run to the end with a limit that holds for children too: a group of its own is killed."""
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL if text is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        out, err = process.communicate(text, timeout=timeout)
    except BaseException as error:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            out, err = process.communicate(timeout=5)
            print(out, err, file=sys.stderr)
        raise error
    return subprocess.CompletedProcess(list(argv), process.returncode, out, err)
