"""A host that lacks a part: one message that names what helps, and nothing is made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import accounts, hosts, labs
from tests.support.hosts import Completed, Host
from tests.support.labs import Vm


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with hosts.session() as found:
        quick = replace(found, place=replace(found.place, env=found.env | {"POCLAB_ACCEL": "tcg"}))
        labs.store(quick, "tiny:v1")
        yield quick


def without(host: Host, *missing: str) -> str:
    """A PATH on which all programs are but some."""
    directory = host.scratch / f"without-{'-'.join(missing)}"
    directory.mkdir(exist_ok=True)
    for part in [*host.env["PATH"].split(":"), "/usr/sbin", "/sbin"]:
        for program in Path(part).glob("*") if Path(part).is_dir() else ():
            link = directory / program.name
            if program.name not in missing and not link.is_symlink():
                link.symlink_to(program)
    host.give(directory)
    return str(directory)


def refused(done: Completed, *words: str) -> None:
    """See that it failed with one message of three lines at most that holds the words."""
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert 1 <= len(lines) <= 3, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def test_no_system_daemon(host: Host) -> None:
    if Path("/run/libvirt/libvirt-sock").exists():
        # A machine of a developer has one; a socket of nobody's shows the same.
        uri = "qemu+unix:///system?socket=/nonexistent/libvirt-sock"
    else:
        uri = "qemu:///system"
    refused(host.poclab("-c", uri, "status", check=False), "cannot connect", "systemctl start")
    doctor = host.poclab("-c", uri, "doctor", check=False)
    assert doctor.returncode == 1
    assert "systemctl start" in doctor.stdout


def test_no_permission_on_the_system_daemon() -> None:
    with hosts.system() as (system, _):
        uri = "qemu:///system"
        env = {"POCLAB_CONNECT": uri, "LIBVIRT_DEFAULT_URI": uri}
        user = accounts.ordinary()
        # Whoever runs the tests may be in the group.
        bare = accounts._setpriv(user.uid, user.gid, "--clear-groups")
        user = replace(user, prefix=(*accounts.as_root(), *bare))
        with accounts.place(user, env, system.place.enter) as place:
            outsider = Host(uri, place)
            refused(outsider.poclab("status", check=False), "ermission denied", "group libvirt")
            assert "group libvirt" in outsider.poclab("doctor", check=False).stdout
        assert labs.look(system)["directory"] == ""


def test_root_has_no_session() -> None:
    root = accounts.root()
    with accounts.place(root, {"POCLAB_CONNECT": "qemu:///session"}) as place:
        host = Host("qemu:///session", place)
        refused(host.poclab("status", check=False), "root has no session", "qemu:///system")


def test_no_qemu_img(host: Host) -> None:
    path = without(host, "qemu-img")
    before = labs.look(host)
    file = labs.disk_file(host, "new.raw")
    done = host.poclab("image", "import", "other:v1", str(file), check=False, PATH=path)
    refused(done, "qemu-img is not installed", "qemu-utils")
    lab = labs.lab_file(host, "noimg", Vm("a"))
    up = host.poclab("-q", "up", lab, check=False, PATH=path)
    assert up.returncode == 1
    assert "qemu-img is not installed" in up.stderr
    assert "Traceback" not in up.stderr
    assert labs.look(host) == before
    assert "qemu-utils" in host.poclab("doctor", check=False, PATH=path).stdout


@pytest.mark.parametrize(("program", "package"), [("podman", "podman"), ("mcopy", "mtools")])
def test_no_program_for_builds(host: Host, program: str, package: str) -> None:
    path = without(host, program)
    doctor = host.poclab("doctor", "-o", "json", check=False, PATH=path)
    assert doctor.returncode == 1
    assert f"install {package}" in doctor.stdout


def test_no_podman(host: Host) -> None:
    host.write("bare/image.yaml", "builder: direct\n")
    host.write("bare/Containerfile", "FROM scratch\n")
    before = labs.look(host)
    directory = str(host.scratch / "bare")
    done = host.poclab(
        "image", "build", directory, "--tag", "v1", check=False, PATH=without(host, "podman")
    )
    refused(done, "podman is not installed", "install the package podman")
    assert labs.look(host) == before
