"""Imports, builds and removals stopped at each step: the same command again ends as ever."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from tests.support import hosts, labs, oddtree
from tests.support.hosts import Host
from tests.support.imagestops import survive
from tests.support.stops import STATUS


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with hosts.session() as found:
        labs.store(found, "other:v1")
        yield found


@pytest.mark.parametrize("how", STATUS)
def test_import(host: Host, how: str) -> None:
    file = labs.disk_file(host, "thing.raw")
    file.chmod(0o666)  # others can write to it, so a copy is made first
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
    assert min(times) < 5, times  # nothing was built
    assert labs.leftovers(host) == []
