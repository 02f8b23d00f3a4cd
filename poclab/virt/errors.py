"""libvirt's errors as errors a user can act on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import libvirt

from poclab.core.errors import PoclabError
from poclab.core.plaintext import plain

# Pieces of libvirt's and QEMU's messages, and what helps.
_HELP = (
    ("is already in use by interface", "choose another cidr for the network in the lab file"),
    ("Could not set up host forwarding", "another program took the port: run `poclab up` again"),
    ("client socket is closed", "libvirtd ended meanwhile: run the same command again"),
    ("End of file while reading data", "libvirtd ended meanwhile: run the same command again"),
    ("Cannot write data: Broken pipe", "libvirtd ended meanwhile: run the same command again"),
    ("No space left on device", "free some disk space: `poclab doctor` shows how much there is"),
    ("Permission denied", "run `poclab doctor`: it says which permission is missing"),
    ("Unable to find any firmware", "install ovmf (Debian, Ubuntu) or edk2-ovmf (Fedora)"),
    ("Unable to find 'swtpm", "install swtpm and swtpm-tools, for VMs with tpm: true"),
    ("Could not access KVM", "`poclab doctor` says who may not open it; or use --accel tcg"),
    ("Failed to get \"write\" lock", "another QEMU uses the disk: end it first"),
)  # fmt: skip


# QEMU's net/slirp.c, of a port on which another program listens already.
_PORT_TAKEN = re.compile(r"Could not set up host forwarding rule 'tcp:127\.0\.0\.1:(\d+)-")


class GoneError(PoclabError):
    """The object is not there any more."""


class PortTakenError(PoclabError):
    """A VM does not start because another program listens on a port forwarded to it.

    Attributes:
        port: the port of 127.0.0.1.
    """

    port = 0


@contextmanager
def libvirt_errors(what: str) -> Iterator[None]:
    """Turn a libvirt error inside the block into a `PoclabError`.

    Args:
        what: what failed, in one line: "customer-a/vm1 did not start".

    Raises:
        GoneError: the domain, network, pool or volume does not exist.
        PoclabError: anything else libvirt says.
    """
    try:
        yield
    except libvirt.libvirtError as error:
        raise translated(what, error) from error


def translated(what: str, error: libvirt.libvirtError) -> PoclabError:
    """The error in our words."""
    message = plain(str(error), 10_000)
    gone = {
        libvirt.VIR_ERR_NO_DOMAIN,
        libvirt.VIR_ERR_NO_NETWORK,
        libvirt.VIR_ERR_NO_STORAGE_POOL,
        libvirt.VIR_ERR_NO_STORAGE_VOL,
    }
    if error.get_error_code() in gone:
        return GoneError(what, why=message)
    fix = next((help_ for text, help_ in _HELP if text in message), "")
    if taken := _PORT_TAKEN.search(message):
        found = PortTakenError(what, why=message[:400], fix=fix)
        found.port = int(taken[1])
        return found
    return PoclabError(what, why=message[:400], fix=fix)
