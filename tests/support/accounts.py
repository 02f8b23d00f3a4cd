"""Accounts that tests run poclab as, and a Python with poclab that each of them can read.

Root has no qemu:///session of its own (libvirt takes root to the system daemon), so when the
tests run as root, sessions belong to the account `poclab-test` that `.ci/setup` makes. An
ordinary developer is such a user already.

    python -m tests.support.accounts COMMAND...

runs a command as an ordinary user with XDG directories of its own under /tmp, with `poclab` on
PATH, and ends whatever it left running. The demo uses it when root runs it.
"""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.support import podman, watcher

CHECKOUT = Path(__file__).resolve().parents[2]
ORDINARY = "poclab-test"
MEMBER = "poclab-test-lv"
GROUP = "libvirt"

# What poclab never imports; not worth copying.
_NOT_COPIED = ("mypy*", "ruff*", "*.dist-info", "pip", "__pycache__", "pre_commit", "hypothesis")


@dataclass(frozen=True)
class Account:
    """Who a command runs as.

    Attributes:
        name: the account.
        uid: its number.
        gid: its primary group.
        prefix: what goes before a command to run it so, empty for the tests' own account.
    """

    name: str
    uid: int
    gid: int
    prefix: tuple[str, ...] = ()


def current() -> Account:
    """The account the tests run as."""
    entry = pwd.getpwuid(os.getuid())
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def as_root() -> tuple[str, ...]:
    """What goes before a command that needs root: nothing, or sudo without a question."""
    return () if os.getuid() == 0 else ("sudo", "-n")


def root() -> Account:
    """The superuser."""
    return Account("root", 0, 0, as_root())


def ordinary() -> Account:
    """An ordinary user: `poclab-test` for root, otherwise whoever runs the tests."""
    return _other(ORDINARY, "--init-groups") if os.getuid() == 0 else current()


def member() -> Account:
    """An ordinary user in group libvirt: `poclab-test-lv` for root, otherwise oneself in it."""
    if os.getuid() == 0:
        return _other(MEMBER, "--init-groups")
    me = current()
    groups = f"{me.gid},{grp.getgrnam(GROUP).gr_gid}"
    prefix = _setpriv(me.uid, me.gid, f"--groups={groups}")
    return Account(me.name, me.uid, me.gid, (*as_root(), *prefix))


def _other(name: str, groups: str) -> Account:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise RuntimeError(f"there is no account {name}: run .ci/setup test") from None
    return Account(name, entry.pw_uid, entry.pw_gid, _setpriv(entry.pw_uid, entry.pw_gid, groups))


def _setpriv(uid: int, gid: int, groups: str) -> tuple[str, ...]:
    # No PAM, no login session, no terminal of its own: works in any container.
    return ("setpriv", f"--reuid={uid}", f"--regid={gid}", groups, "--inh-caps=-all")


@dataclass(frozen=True)
class Installation:
    """A Python that can import poclab.

    Attributes:
        python: the interpreter.
        path: its PYTHONPATH.
        checkout: the tree poclab is imported from, with labs/, images/ and tests/.
    """

    python: str
    path: str
    checkout: Path


@cache
def installation(account: Account) -> Installation:
    """What the account can run poclab with: the checkout where it can read it, else a copy.

    Raises:
        RuntimeError: neither works, e.g. because the account can read no fitting Python.
    """
    packages = Path(sysconfig.get_path("purelib"))
    found = _first_working(account, CHECKOUT, packages)
    if found is None:
        copy = Path(tempfile.mkdtemp(prefix="poclab-copy-", dir="/tmp"))
        _at_exit_remove(copy)
        copy.chmod(0o755)
        _copy_readable(copy, packages)
        found = _first_working(account, copy / "checkout", copy / "packages")
    if found is None:
        raise RuntimeError(
            f"{account.name} can read no Python {sys.version_info[0]}.{sys.version_info[1]} "
            f"that runs poclab (tried {sys.executable} and /usr/bin): run .ci/setup test"
        )
    return found


def _first_working(account: Account, checkout: Path, packages: Path) -> Installation | None:
    # The same minor version: libvirt's extension module fits no other.
    minor = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    path = f"{checkout}:{packages}"
    for python in (sys.executable, f"/usr/bin/{minor}"):
        code = "import poclab.core.errors, libvirt, typer"
        argv = [*account.prefix, "env", "-C", "/", f"PYTHONPATH={path}", python, "-c", code]
        with suppress(OSError):
            done = subprocess.run(argv, capture_output=True, timeout=60, check=False)
            if done.returncode == 0:
                return Installation(python, path, checkout)
    return None


def _copy_readable(copy: Path, packages: Path) -> None:
    ignore = shutil.ignore_patterns(*_NOT_COPIED)
    shutil.copytree(packages, copy / "packages", symlinks=True, ignore=ignore)
    for part in ("poclab", "tests", "labs", "images"):
        source = CHECKOUT / part
        shutil.copytree(source, copy / "checkout" / part, symlinks=True, ignore=ignore)
    for path in [copy, *copy.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))


def _at_exit_remove(path: Path) -> None:
    import atexit

    watcher.watch(path)
    atexit.register(shutil.rmtree, path, ignore_errors=True)


@dataclass(frozen=True)
class Place:
    """An account's private directories for one run.

    Attributes:
        account: whose.
        root: the directory of all of it, short, because UNIX socket paths end at 107 bytes.
        env: the complete environment of commands in it.
        enter: what goes before a command to enter the namespaces it belongs in.
    """

    account: Account
    root: Path
    env: Mapping[str, str]
    enter: tuple[str, ...] = ()
    installation: Installation = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "installation", installation(self.account))

    def argv(self, *command: str, **extra: str) -> list[str]:
        """A complete command line, usable from any directory and environment."""
        settings = [f"{key}={value}" for key, value in {**self.env, **extra}.items()]
        where = ["-C", str(self.installation.checkout)]
        # sudo is in front once: nsenter as root can become anybody.
        who = self.account.prefix
        if self.enter and who[: len(as_root())] == as_root():
            who = who[len(as_root()) :]
        return [*self.enter, *who, "env", "-i", *where, *settings, *command]


@contextmanager
def place(account: Account, env: Mapping[str, str], enter: tuple[str, ...] = ()) -> Iterator[Place]:
    """Make private directories for an account; at the end end its processes and remove them.

    Args:
        account: whose directories.
        env: variables added to the environment.
        enter: a command prefix that enters namespaces (nsenter ...).
    """
    top = Path(tempfile.mkdtemp(prefix="pl-", dir="/tmp"))
    watcher.watch(top)
    try:
        made = Place(account, top, _environment(account, top) | dict(env), enter)
        _fill(made)
        yield made
    finally:
        end_processes(top)
        _remove(account, top)
        watcher.forget(top)


def take_away(top: Path) -> None:
    """End what runs in a place whose tests were killed, and remove it."""
    with suppress(FileNotFoundError):
        found = top.stat()
        end_processes(top)
        _remove(Account("", found.st_uid, found.st_gid), top)


def _environment(account: Account, top: Path) -> dict[str, str]:
    install = installation(account)
    path = os.environ.get("PATH", os.defpath)
    odd: dict[str, str] = {}
    if not podman.plain_works():
        path = f"{install.checkout}/tests/support/{podman.WRAPPERS.name}:{path}"
        odd = {"BUILDAH_ISOLATION": "chroot"}
    env = {
        "HOME": str(top / "home"),
        "USER": account.name,
        "LOGNAME": account.name,
        "PATH": f"{top}/bin:{path}:/usr/local/sbin:/usr/sbin:/sbin",
        "LANG": "C.UTF-8",
        "TERM": os.environ.get("TERM", "dumb"),
        "TMPDIR": str(top / "tmp"),
        "PYTHONPATH": install.path,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    for name in ("runtime_dir", "config_home", "data_home", "state_home", "cache_home"):
        env[f"XDG_{name.upper()}"] = str(top / name.split("_")[0])
    return env | odd


def _fill(made: Place) -> None:
    # When sudo is needed for another account, the directories are one's own all the same.
    owner = made.account if os.getuid() == 0 else current()
    for name in ("home", "runtime", "config", "data", "state", "cache", "tmp", "bin"):
        (made.root / name).mkdir(mode=0o700)
    wrapper = made.root / "bin/poclab"
    python = shlex.quote(made.installation.python)
    wrapper.write_text(f'#!/bin/sh\nexec {python} -m poclab "$@"\n')
    wrapper.chmod(0o755)
    for path in [made.root, *made.root.rglob("*")]:
        os.chown(path, owner.uid, owner.gid)


def _remove(account: Account, top: Path) -> None:
    who = as_root() if account.uid != os.getuid() else ()
    # podman's storage has files of subordinate ids, which only its user namespace can remove.
    for tool in ((), ("podman", "unshare")):
        if top.exists():
            argv = [*who, *tool, "rm", "-rf", str(top)]
            subprocess.run(argv, capture_output=True, timeout=120, check=False)


def processes(top: Path) -> dict[int, str]:
    """Every process of the place, by its environment: libvirtd, QEMU, podman and their like.

    libvirt gives QEMU XDG directories below those of the session, so the path is in there too.
    """
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            if f"={top}/".encode() in (entry / "environ").read_bytes():
                found[int(entry.name)] = (entry / "comm").read_text().strip()
    return found


def end_processes(top: Path, patience: float = 10) -> None:
    """End every process of the place: first asked, then killed."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        limit = time.monotonic() + patience
        left = processes(top)
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signum)
        while left and time.monotonic() < limit:
            time.sleep(0.05)
            left = processes(top)
        if not left:
            return


def main() -> int:
    """Run a command as an ordinary user; see the module."""
    command = sys.argv[1:]
    if not command:
        print("usage: python -m tests.support.accounts COMMAND...", file=sys.stderr)
        return 2
    passed = {key: value for key, value in os.environ.items() if key.startswith("POCLAB_")}
    passed |= {key: os.environ[key] for key in ("CONNECT",) if key in os.environ}
    with place(ordinary(), passed) as made:
        return subprocess.run(made.argv(*command), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
