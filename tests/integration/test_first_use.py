"""The first commands on a host, several at once: one makes the pool, and all of them work."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree.ElementTree import fromstring

import pytest

from tests.support.hosts import Host

_AT_ONCE = 4
_ROUNDS = 3


def _listings(host: Host, **env: str) -> list[str]:
    """Run the same listing several times side by side; what went wrong, one text each."""
    running = [host.popen_poclab("image", "ls", **env) for _ in range(_AT_ONCE)]
    ended = [(process.communicate(timeout=120)[1], process.returncode) for process in running]
    return [said for said, code in ended if code]


def _forget(host: Host) -> None:
    """Take the pool from libvirt, as on a host where poclab never ran."""
    for command in ("pool-destroy", "pool-undefine"):
        host.virsh(command, "poclab", check=False)


def _directory(host: Host) -> str:
    return fromstring(host.virsh("pool-dumpxml", "poclab")).findtext("target/path", "")


def _is_running(host: Host) -> bool:
    return re.search(r"State:\s+running", host.virsh("pool-info", "poclab")) is not None


def test_first_commands_of_a_user_meet(session_host: Host) -> None:
    host = session_host
    for number in range(_ROUNDS):
        _forget(host)
        path = host.scratch / f"first{number}"
        assert _listings(host, POCLAB_POOL_DIR=str(path)) == []
        assert path.stat().st_mode & 0o777 == 0o700
        assert [x.name for x in path.iterdir()] == ["poclab.json"]
        assert _is_running(host)
    _forget(host)


@pytest.mark.parametrize("who", ["member", "root"])
def test_first_commands_of_a_system_meet(system_host: Host, libvirt_member: Host, who: str) -> None:
    root = system_host
    host = libvirt_member if who == "member" else root
    for _ in range(_ROUNDS):
        _forget(root)
        root.run("rm", "-rf", "/var/lib/libvirt/images/poclab")
        assert _listings(host) == []
        directory = _directory(root)
        assert root.run("stat", "-c", "%a %F", directory).stdout == "710 directory\n"
        assert root.run("ls", "-A", directory).stdout == "poclab.json\n"
        assert _is_running(root)


def test_a_pool_that_is_there_takes_no_lock(session_host: Host) -> None:
    """A listing works though another command is at the pool and its locks cannot be reached."""
    host = session_host
    host.poclab("image", "ls")
    place = host.scratch / "closed"
    place.write_text("not a directory")
    done = host.poclab("image", "ls", XDG_RUNTIME_DIR="", XDG_STATE_HOME=str(place))
    assert done.returncode == 0
    assert Path(_directory(host), "poclab.json").exists()
