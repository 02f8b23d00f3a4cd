"""When a guest answers after it was reset: the same look for all that reset guests."""

from __future__ import annotations

import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.measure import MeasurementError
from poclab.guest.probe import ssh_banner

_MARK = "/run/bench-before"  # a file that only the guest before the reset has
_LOGIN = 8.0  # seconds for a login; an emulated guest is slow


@dataclass(frozen=True)
class Guest:
    """A guest to look at.

    Attributes:
        domain: its domain.
        address: its address.
        key: the private key that it lets in.
    """

    domain: str
    address: str
    key: Path

    def ssh(self, command: str, *, timeout: float = _LOGIN) -> int:
        """Run a command in it as root; the exit status, 255 when it does not answer."""
        options = {
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "BatchMode": "yes",
            "ConnectTimeout": "2",
            "LogLevel": "ERROR",
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        argv = ["ssh", "-F", "none", "-n", "-i", str(self.key), *words, "-l", "root", self.address]
        with suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                [*argv, command], capture_output=True, timeout=timeout, check=False
            )
            return done.returncode
        return 255

    def answers(self) -> bool:
        """Whether it runs a command, and is not the guest from before."""
        # Where the guest is off a connection is given up soon, since its first packet is lost; a
        # server that took it is waited for, or an emulated guest has only ever new ones to serve.
        if not ssh_banner(self.address, 22, 0.25, patience=5.0):
            return False
        return self.ssh(f"test ! -e {_MARK}") == 0

    def wait(self, timeout: float) -> None:
        """Wait until it answers."""
        limit = time.monotonic() + timeout
        while not self.answers():
            if time.monotonic() > limit:
                raise MeasurementError(f"{self.domain} did not answer within {timeout:.0f} s")
            time.sleep(0.1)


@dataclass(frozen=True)
class Took:
    """What a reset took, in seconds.

    Attributes:
        ready: until every guest answered, each at its own time.
        returned: until the command ended.
        said: what it printed.
    """

    ready: tuple[float, ...]
    returned: float
    said: str


def measured(
    argv: Sequence[str],
    guests: Sequence[Guest],
    *,
    timeout: float = 300,
    env: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Took:
    """Run what resets guests, and look when they answer.

    A guest is looked at from the moment on when its old QEMU is gone, or the command has ended: the
    old one would answer too, and be slowed down by it.

    Raises:
        MeasurementError: the command failed, or a guest did not answer in time.
    """
    before = {guest.domain: _qemu(guest.domain) for guest in guests}
    for guest in guests:
        if before[guest.domain] and guest.ssh(f"touch {_MARK}") != 0:
            raise MeasurementError(f"{guest.domain} did not answer before its reset")
    ended: list[float] = []
    stop = threading.Event()
    ready: dict[str, float] = {}
    with tempfile.TemporaryFile("w+") as said:
        began = time.perf_counter()
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=env, cwd=directory
        )

        def watch(guest: Guest) -> None:
            old = before[guest.domain]
            while not ended and old and Path(f"/proc/{old}").exists():
                time.sleep(0.005)
            while time.perf_counter() - began < timeout and not stop.is_set():
                if guest.answers():
                    ready[guest.domain] = time.perf_counter() - began
                    return
                time.sleep(0.02)

        threads = [threading.Thread(target=watch, args=(guest,), daemon=True) for guest in guests]
        for thread in threads:
            thread.start()
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        ended.append(time.perf_counter() - began)
        said.seek(0)
        text = said.read()
        if code != 0:
            stop.set()
            raise MeasurementError(f"{' '.join(argv)}: exit status {code}\n{text}")
        for thread in threads:
            thread.join()
    missing = [guest.domain for guest in guests if guest.domain not in ready]
    if missing:
        raise MeasurementError(f"{', '.join(missing)} did not answer in {timeout:.0f} s\n{text}")
    return Took(tuple(ready[guest.domain] for guest in guests), ended[0], text)


def _qemu(domain: str) -> str:
    """The process of a domain, as this process numbers it, or an empty string."""
    wanted = f"guest={domain},".encode()
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and wanted in (entry / "cmdline").read_bytes():
                return entry.name
    return ""
