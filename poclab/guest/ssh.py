"""Logging in to VMs with OpenSSH: a key a lab, host keys pinned a VM and system disk.

Neither the user's nor the system's ssh_config, agent or known_hosts is read: whether a VM is
reached must not depend on them. The host key is pinned at first contact, in a file that
belongs to one VM on one overlay: a reset makes a new overlay and so starts from no pin, while a
changed key on the same overlay is refused.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from shlex import join
from tempfile import mkdtemp

from poclab.core import events, paths
from poclab.core.errors import PoclabError
from poclab.core.files import sync
from poclab.core.locks import guard
from poclab.core.process import CommandFailed, TimedOut, TooMuchOutput, run
from poclab.core.units import MIB

# Bytes that a guest may print for one command: `bootc status` prints some KiB, and a login shell
# its message of the day.
ANSWER = MIB
_KEY = "id_ed25519"
_NEW = ".new-"  # what a key is called while it is made
_REMOTE_ERROR = 255  # ssh's own exit status for its own errors, ssh(1)
_GRACE = 5.0  # seconds beyond ConnectTimeout for a server that hangs after its banner


# --- files ------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabFiles:
    """What the client keeps for a lab: its key pair and the VMs' pinned host keys.

    Attributes:
        uri: the libvirt connection; labs of one name on two hosts have nothing in common.
        lab: the lab's name.
    """

    uri: str
    lab: str

    @property
    def directory(self) -> Path:
        """Where they are; it need not exist."""
        return paths.data_dir() / "hosts" / _slug(self.uri) / _slug(self.lab)

    def private_key(self) -> Path | None:
        """The private key's file, or None when this user has none for the lab."""
        path = self.directory / _KEY
        return path if path.is_file() else None

    def public_key(self) -> str:
        """The public key, one line; the pair is made on first use.

        Safe against another process doing the same and against being killed at any point: the
        private key appears under its name when it is complete, and a broken one is made anew.

        Raises:
            PoclabError: ssh-keygen is missing or fails.
        """
        directory = self._made()
        private, public = directory / _KEY, directory / f"{_KEY}.pub"
        with guard(directory):
            # Only the lock's holder makes such directories: these are of killed processes.
            for left in directory.glob(f"{_NEW}*"):
                shutil.rmtree(left, ignore_errors=True)
            text = _read(public)
            if _is_key(text) and private.is_file() and private.stat().st_size > 0:
                return text
            # The old public key goes first: it must never stand beside another private key.
            public.unlink(missing_ok=True)
            text = _derive(private, f"poclab {self.lab}")
            if not text:
                text = _make(private, f"poclab {self.lab}")
            _publish(public, text + "\n")
        return text

    def known_hosts(self, vm: str, overlay: str) -> Path:
        """The file for a VM's host key while it runs on an overlay; ssh makes it.

        Args:
            vm: the VM's name.
            overlay: the volume of its system disk.
        """
        directory = self._made() / "known_hosts.d"
        paths.private_dir(directory)
        return directory / _pin_name(vm, overlay)

    def carry(self, vm: str, overlay: str, to: str) -> None:
        """Have the host key that is pinned for one overlay pinned for another as well."""
        old, new = self.known_hosts(vm, overlay), self.known_hosts(vm, to)
        if old.is_file():
            shutil.copyfile(old, new)

    def forget(self, vm: str, keep: str | None = None) -> None:
        """Drop a VM's pinned host keys.

        Args:
            vm: the VM's name.
            keep: the overlay whose pin stays, or None to drop all.
        """
        kept = _pin_name(vm, keep) if keep is not None else None
        # A VM's name has no dot, so the prefix is its own.
        for path in (self.directory / "known_hosts.d").glob(f"{_slug(vm)}.*"):
            if path.name != kept:
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Drop everything of the lab, the private key included."""
        shutil.rmtree(self.directory, ignore_errors=True)
        with suppress(OSError):
            self.directory.parent.rmdir()  # the last lab of that host

    def _made(self) -> Path:
        directory = paths.private_dir(self.directory)
        directory.chmod(0o700)
        return directory


def _slug(text: str) -> str:
    """A text as one safe part of a path; the text itself where it is one already."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", text):
        return text
    shown = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:60]
    return f"{shown}-{sha256(text.encode()).hexdigest()[:8]}"


def _pin_name(vm: str, overlay: str) -> str:
    return f"{_slug(vm)}.{_slug(overlay)}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return ""


def _is_key(text: str) -> bool:
    return text.startswith("ssh-") and "\n" not in text and len(text.split()) >= 2


def _derive(private: Path, comment: str) -> str:
    """The public key of a private one, or an empty string when that is missing or broken."""
    if not private.is_file():
        return ""
    private.chmod(0o600)  # ssh-keygen refuses a key that others can read
    # An empty passphrase: without -P it would ask for one.
    result = run(["ssh-keygen", "-y", "-P", "", "-f", str(private)], check=False, timeout=30)
    words = result.stdout.split()
    if result.code != 0 or len(words) < 2:
        return ""
    return f"{words[0]} {words[1]} {comment}"


def _make(private: Path, comment: str) -> str:
    directory = Path(mkdtemp(prefix=_NEW, dir=private.parent))
    try:
        new = directory / "key"
        try:
            run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(new)],
                timeout=30,
            )
        except CommandFailed as error:
            raise PoclabError("cannot make an SSH key", why=error.why) from error
        text = _read(directory / "key.pub")
        sync(new)
        events.step("ssh key", path=str(private))
        new.replace(private)
        return text
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _publish(path: Path, text: str) -> None:
    directory = Path(mkdtemp(prefix=_NEW, dir=path.parent))
    try:
        new = directory / path.name
        new.write_text(text, encoding="utf-8")
        sync(new)
        new.replace(path)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


# --- logging in -------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A VM to log in to.

    Attributes:
        host: its address, or 127.0.0.1 for a forwarded port.
        port: the port.
        user: the user to log in as.
        key: the private key's file.
        known_hosts: the file for its host key.
        alias: what its host key is filed under, whatever address it has: `LAB.VM`.
    """

    host: str
    port: int
    user: str
    key: Path
    known_hosts: Path
    alias: str = "poclab"


class LoginState(StrEnum):
    """What came of an attempt to log in."""

    OK = "ok"
    REFUSED = "refused"
    CHANGED_KEY = "changed key"
    NOISY = "noisy"
    DOWN = "down"


def argv(
    target: Target,
    command: Sequence[str] = (),
    options: Sequence[str] = (),
    *,
    batch: bool = False,
    connect_timeout: int = 10,
) -> list[str]:
    """The command line that logs in and runs a command, or a shell without one.

    One word is shell text, as with ssh itself (`'cd /tmp; ls | wc -l'`). Several words reach
    the remote program as they are, blanks and quotes included (`cat "a b"`), which ssh itself
    would tear apart.

    Args:
        target: the VM.
        command: the command's words.
        options: more options of ssh, before the host.
        batch: never ask for anything.
        connect_timeout: seconds for the connection and the server's banner.
    """
    settings = {
        "StrictHostKeyChecking": "accept-new",
        "UserKnownHostsFile": _quoted(target.known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
        "HostKeyAlias": target.alias,
        "CheckHostIP": "no",
        "UpdateHostKeys": "no",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "IdentityFile": _quoted(target.key),
        "ConnectTimeout": str(max(1, connect_timeout)),
        "LogLevel": "ERROR",
    }
    if batch:
        # A guest that went away without a word ends the login within a minute.
        settings |= {"BatchMode": "yes", "ServerAliveInterval": "15", "ServerAliveCountMax": "4"}
    words = ["ssh", "-F", "none"]
    for name, value in settings.items():
        words += ["-o", f"{name}={value}"]
    words += ["-p", str(target.port), "-l", target.user, *options, "--", target.host]
    if len(command) == 1:
        words.append(command[0])
    elif command:
        words.append(join(command))
    return words


def as_root(user: str, script: str) -> tuple[str, ...]:
    """The words that have root run shell text in a guest, whatever the user's shell is.

    Another user than root goes through sudo, which must not ask.
    """
    become = () if user == "root" else ("sudo", "-n")
    # Not every login that is given a command has the sbin directories.
    return (*become, "sh", "-c", f"PATH=$PATH:/usr/sbin:/sbin; {script}")


def login(target: Target, timeout: float) -> LoginState:
    """Try to log in.

    Args:
        target: the VM.
        timeout: seconds for the connection; a server that hangs later gets a little more.

    Returns:
        OK; REFUSED when a server is there but the key or the user's shell is not accepted;
        CHANGED_KEY when the host key is another than at first contact; NOISY when the login prints
        without end; DOWN otherwise.

    Raises:
        PoclabError: ssh is not installed.
    """
    words = argv(target, ["true"], ["-n", "-T"], batch=True, connect_timeout=round(timeout))
    try:
        result = run(words, check=False, timeout=timeout + _GRACE, most=ANSWER)
    except TooMuchOutput:
        return LoginState.NOISY
    except TimedOut:
        return LoginState.DOWN
    if result.code == 0:
        return LoginState.OK
    # OpenSSH's own texts, of the C locale; sshconnect.c and sshconnect2.c.
    if "HOST IDENTIFICATION HAS CHANGED" in result.stderr:
        return LoginState.CHANGED_KEY
    if "Host key verification failed" in result.stderr:
        return LoginState.CHANGED_KEY
    if "Permission denied" in result.stderr or "Too many authentication" in result.stderr:
        return LoginState.REFUSED
    return LoginState.DOWN if result.code == _REMOTE_ERROR else LoginState.REFUSED


def _quoted(path: Path) -> str:
    """A path as a value in ssh_config(5): blanks kept, no tokens expanded."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"'
