"""Imports, builds and removals stopped at each step: the same command again ends as ever."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support import hosts, labs, oddtree
from tests.support.hosts import Host
from tests.support.stops import STATUS, told


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with hosts.session() as found:
        labs.store(found, "other:v1")
        yield found


@dataclass(frozen=True)
class Images:
    """A pool of versions."""

    host: Host

    def seen(self) -> tuple[list[dict[str, Any]], list[str]]:
        """The versions without their times, and every file of the pool."""
        rows = json.loads(self.host.poclab("image", "ls", "-o", "json").stdout)
        for row in rows:
            del row["created"]
        return rows, labs.look(self.host)["files"]

    def sound(self) -> None:
        """Every version that is listed has its base, and it is the one that was stored."""
        rows, files = self.seen()
        for row in rows:
            base = f"base.{row['digest'].removeprefix('sha256:')}.qcow2"
            assert base in files
            path = f"{labs.look(self.host)['directory']}/{base}"
            assert self.host.run("sha256sum", path).stdout.split()[0] in base


def survive(host: Host, add: tuple[str, ...], ref: str, how: str, every: int = 1) -> None:
    """Stop what adds a version at every step, and then what removes it."""
    images = Images(host)
    remove = ("image", "rm", ref, "--yes")
    empty = images.seen()
    added = host.count_steps(add)
    assert added.result.returncode == 0, added.result.stderr
    stored = images.seen()
    removed = host.count_steps(remove)
    assert images.seen() == empty
    for step in range(1, len(added.steps) + 1, every):
        stopped = host.stop_at(add, step, how)
        assert stopped.reached
        told(stopped, how)
        images.sound()
        done = host.poclab(*add, check=False)
        assert done.returncode == 0, f"stopped at {stopped.steps}\n{done.stderr}"
        assert images.seen() == stored, stopped.steps
        assert labs.leftovers(host) == []
        if step <= len(removed.steps):
            stopped = host.stop_at(remove, step, how)
            assert stopped.reached
            assert stopped.result.returncode == STATUS[how]
            images.sound()
        again = host.poclab(*remove, check=False)
        # The version went first: then there is nothing to remove but what is left over.
        assert again.returncode == 0 or f"{ref} is not there" in again.stderr, again.stderr
        assert images.seen() == empty, stopped.steps
        assert labs.leftovers(host) == []


@pytest.mark.parametrize("how", STATUS)
def test_import(host: Host, how: str) -> None:
    file = labs.disk_file(host, "thing.raw")
    add = ("image", "import", "thing:v1", str(file), "--profile", "legacy")
    survive(host, add, "thing:v1", how)


@pytest.fixture(scope="module")
def container(host: Host) -> Iterator[str]:
    """A tiny container image in the account's own storage."""
    tar = host.give(oddtree.write(host.scratch / "t.tar"))
    name = f"localhost/poclab-test/stops-{os.getpid()}"
    host.run("podman", "import", "--quiet", str(tar), name)
    yield name
    host.run("podman", "rmi", "--force", name, check=False)


@pytest.mark.parametrize(("how", "every"), [("kill", 2), ("interrupt", 6), ("enospc", 6)])
def test_build(host: Host, container: str, how: str, every: int) -> None:
    host.write("odd/image.yaml", "builder: direct\ndisk: 128MiB\n")
    host.write("odd/Containerfile", f"FROM {container}\n")
    add = ("image", "build", str(host.scratch / "odd"), "--tag", "v1")
    survive(host, add, "odd:v1", how, every)
    left = host.run("podman", "ps", "--all", "--format", "{{.Names}}").stdout
    assert "poclab-" not in left


def test_two_builds_of_one_version(host: Host, container: str) -> None:
    host.write("twice/image.yaml", "builder: direct\ndisk: 128MiB\n")
    host.write("twice/Containerfile", f"FROM {container}\n")
    command = ("image", "build", str(host.scratch / "twice"), "--tag", "v1")
    running = [host.popen_poclab(*command) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    # One built it, the other waited (or came later) and took the result.
    assert sorted("twice:v1 is already built" in text for text in said) == [False, True], said
    assert sum("built twice:v1, " in text for text in said) == 1, said
    times = []
    for _ in range(3):
        begin = time.monotonic()
        assert "twice:v1 is already built" in host.poclab(*command).stderr
        times.append(time.monotonic() - begin)
    assert min(times) < 1, times
    assert labs.leftovers(host) == []
