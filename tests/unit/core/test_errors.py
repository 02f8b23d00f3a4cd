"""What a user sees of an error."""

from __future__ import annotations

import libvirt
import pytest

from poclab.core.errors import PoclabError, Problems, UsageError
from poclab.virt.errors import PortTakenError, translated


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (PoclabError("what"), "what"),
        (PoclabError("what", why="y"), "what\nwhy: y"),
        (PoclabError("what", fix="z"), "what\nfix: z"),
        (PoclabError("what", why="y", fix="z"), "what\nwhy: y\nfix: z"),
        (Problems("2 faults", ["f:1:2: a", "f:3:4: b"]), "f:1:2: a\nf:3:4: b\n2 faults"),
        (Problems("1 fault", ["f:1:2: a"], fix="z"), "f:1:2: a\n1 fault\nfix: z"),
    ],
)
def test_lines(error: PoclabError, shown: str) -> None:
    assert str(error) == shown
    assert error.lines() == shown.split("\n")


def test_exit_codes() -> None:
    assert PoclabError("x").exit_code == 1
    assert UsageError("x").exit_code == 2
    assert Problems("x", []).exit_code == 2


def said(message: str) -> libvirt.libvirtError:
    """An error of libvirt's with a message of ours; its constructor takes the last real one's."""
    error = libvirt.libvirtError("")
    error.args, error.err = (message,), None
    return error


def test_a_port_that_was_taken_is_told_from_other_failures_to_start() -> None:
    message = (
        "internal error: process exited while connecting to monitor: qemu-system-x86_64: -netdev "
        "user,id=poclabuser,hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=tcp:127.0.0.1:22007-:22: "
        "Could not set up host forwarding rule 'tcp:127.0.0.1:22007-:22'"
    )
    found = translated("acme.vm1 does not start", said(message))
    assert isinstance(found, PortTakenError)
    assert found.port == 22007
    assert found.fix
    other = translated("acme.vm1 does not start", said("Could not access KVM"))
    assert not isinstance(other, PortTakenError)


def test_a_program_that_is_missing_is_named() -> None:
    message = "unsupported configuration: Unable to find 'swtpm' binary in $PATH"
    assert "install swtpm" in translated("acme.vm1 does not start", said(message)).fix


def test_every_one_is_caught_as_one() -> None:
    for error in (UsageError("x"), Problems("x", ["y"])):
        with pytest.raises(PoclabError, match="x"):
            raise error
