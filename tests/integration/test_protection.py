"""`image show`, `protect` and `unprotect` on a real host."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import hosts, labs
from tests.support.hosts import Host


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with hosts.session() as found:
        labs.store(found, "thing:v1")
        found.poclab("image", "tag", "thing:v1", "thing:stable")
        yield found


def files(host: Host) -> str:
    """The pool's files with their digests."""
    return host.run("sh", "-c", f"cd {labs.look(host)['directory']} && sha256sum *").stdout


def shown(host: Host, ref: str) -> dict[str, Any]:
    (row,) = json.loads(host.poclab("image", "show", ref, "-o", "json").stdout)
    assert isinstance(row, dict)
    return row


def protected(host: Host) -> list[str]:
    rows = json.loads(host.poclab("image", "ls", "-o", "json").stdout)
    return sorted(f"{row['name']}:{row['tag']}" for row in rows if row["protected"])


def test_show(host: Host) -> None:
    row = shown(host, "thing:v1")
    base = Path(labs.look(host)["directory"]) / f"base.{row['digest'].partition(':')[2]}.qcow2"
    assert row["size"] == int(host.run("stat", "-c", "%s", str(base)).stdout)
    assert (row["origin"], row["source"], row["profile"]) == ("imported", "thing-v1.raw", "legacy")
    assert row["virtual_size"] == 2 * 1024**2
    assert (row["same_disk"], row["parents"], row["used_by"]) == (["thing:stable"], [], [])
    assert host.poclab("image", "show", "thing:v1", "-o", "name").stdout == "thing:v1\n"
    table = host.poclab("image", "show", "thing:v1").stdout
    assert row["digest"] in table
    assert "profile=given" in table.replace(" ", "")
    done = host.poclab("image", "show", "thing:v9", check=False)
    assert done.returncode == 1
    assert "thing:v9 is not there" in done.stderr


def test_a_protected_version_stays_until_it_is_unprotected(host: Host) -> None:
    done = host.poclab("image", "protect", "thing:v1")
    assert "thing:v1 is protected\n" in done.stderr
    assert protected(host) == ["thing:v1"]
    before = files(host)
    done = host.poclab("image", "rm", "thing:v1", "--yes", check=False)
    assert done.returncode == 1
    assert "fix: if it may go after all: poclab image unprotect thing:v1" in done.stderr
    assert "already" in host.poclab("image", "protect", "thing:v1").stderr
    assert files(host) == before
    # A second name does not take that along.
    host.poclab("image", "tag", "thing:v1", "thing:spare")
    assert protected(host) == ["thing:v1"]
    host.poclab("image", "rm", "thing:spare", "--yes")
    assert files(host) == before
    host.poclab("image", "unprotect", "thing:v1")
    assert protected(host) == []
    host.poclab("image", "rm", "thing:v1", "--yes")
    assert shown(host, "thing:stable")["same_disk"] == []


@pytest.mark.parametrize("command", ["protect", "unprotect"])
def test_one_that_is_not_there_changes_none(host: Host, command: str) -> None:
    before = files(host)
    done = host.poclab("image", command, "thing:stable", "thing:v9", check=False)
    assert done.returncode == 1
    assert "thing:v9 is not there" in done.stderr
    assert files(host) == before


@pytest.mark.parametrize("how", ["kill", "interrupt", "enospc"])
def test_stopped(host: Host, how: str) -> None:
    labs.store(host, "two:v1")
    command = ("image", "protect", "two:v1", "thing:stable")
    stopped = host.stop_at(command, 2, how)
    assert stopped.reached
    assert stopped.result.returncode != 0
    assert protected(host) == ["two:v1"]
    host.poclab(*command)
    assert protected(host) == ["thing:stable", "two:v1"]
    host.poclab("image", "unprotect", "two:v1", "thing:stable")
    host.poclab("image", "rm", "two:v1", "--yes")
    assert labs.leftovers(host) == []
