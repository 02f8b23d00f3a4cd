"""The ways to reset a guest that are measured: by poclab, by hand, by libvirt's snapshots."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Protocol
from xml.etree.ElementTree import fromstring, tostring

from bench import session
from bench.measure import MeasurementError, output
from bench.reset import guests
from bench.reset.guests import Kind
from bench.reset.probe import Took, measured

_SCRIPT = Path(__file__).with_name("by-hand.sh")
_BASH = shutil.which("bash") or "/bin/bash"
_RESTORE = """\
set -e
rm -f "$2"
qemu-img create -q -f qcow2 -b "$3" -F qcow2 "$2"
virsh -q restore "$4"
"""


class Way(Protocol):
    """One way to reset a guest, ready to be used."""

    def __call__(self) -> Took:
        """Reset the guest."""


class Poclab:
    """`poclab reset`."""

    def __init__(self, kind: Kind, *, warm: bool) -> None:
        self.guest = guests.guest()
        self._kind = kind
        self._warm = warm

    def __call__(self) -> Took:
        """Reset the VM; a boot where a warm reset was asked for is no figure."""
        words = ["reset", f"{guests.LAB}/{guests.VM}", "--to", "v1"]
        words += [] if self._warm else ["--no-warm"]
        took = measured([*session.poclab(), *words], [self.guest], timeout=self._kind.boot)
        if ("from its warm state" in took.said) != self._warm:
            raise MeasurementError(f"poclab {' '.join(words)}:\n{took.said}")
        return took


class ColdByHand:
    """A new overlay, the domain defined with it, the old QEMU ended, a new one started."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._count = 0
        self._old = ""
        self._base = guests.base()
        self.first = guests.DIRECTORY / "hand.0.qcow2"
        self.guest = guests.define_copy("hand", self.first)
        output(["virsh", "-q", "start", self.guest.domain])

    def __call__(self) -> Took:
        """Reset the domain."""
        self._count += 1
        new = str(guests.DIRECTORY / f"hand.{self._count}.qcow2")
        argv = [_BASH, str(_SCRIPT), self.guest.domain, self._base, new, self._old]
        took = measured(argv, [self.guest], timeout=self._kind.boot)
        self._old = new
        return took


class WarmByHand:
    """The domain's saved memory restored onto a new overlay over the disk it was saved with."""

    def __init__(self, kind: Kind, cold: ColdByHand) -> None:
        self._kind = kind
        self.guest = cold.guest
        self._frozen = cold.first
        self._overlay = guests.DIRECTORY / "hand.warm.qcow2"
        self._state = guests.DIRECTORY / "hand.save"
        output(["virsh", "-q", "save", self.guest.domain, str(self._state)])
        dump = ["virsh", "-q", "save-image-dumpxml", "--security-info", str(self._state)]
        root = fromstring(output(dump)[1])
        guests.put_disk(root, (str(self._overlay), str(self._frozen), guests.base()))
        text = tostring(root, encoding="unicode")
        guests.virsh_xml("save-image-define", text, str(self._state))
        output(self._argv("true"))

    def _argv(self, end: str) -> list[str]:
        """The command, with what ends the domain that runs."""
        files = [str(self._overlay), str(self._frozen), str(self._state)]
        return [_BASH, "-c", f"{end}\n{_RESTORE}", "restore", self.guest.domain, *files]

    def __call__(self) -> Took:
        """Reset the domain."""
        argv = self._argv('virsh -q destroy "$1"')
        return measured(argv, [self.guest], timeout=self._kind.boot)


class Snapshot:
    """`virsh snapshot-revert` to an internal snapshot with memory; its firmware has no flash."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self.guest = guests.define_copy("snapshots", guests.DIRECTORY / "snapshots.qcow2", rom=True)
        output(["virsh", "-q", "start", self.guest.domain])

    def keep(self) -> None:
        """Make the snapshot; the guest must be ready."""
        output(["virsh", "-q", "snapshot-create-as", self.guest.domain, "clean"], timeout=300)

    def __call__(self) -> Took:
        """Revert to it."""
        argv = ["virsh", "-q", "snapshot-revert", self.guest.domain, "clean"]
        return measured(argv, [self.guest], timeout=self._kind.boot)


def remove(domain: str) -> None:
    """Take a domain away, whatever state it is in; none is fine."""
    for words in (
        ["destroy", domain],
        ["undefine", "--nvram", "--managed-save", "--snapshots-metadata", domain],
    ):
        with suppress(MeasurementError):
            output(["virsh", "-q", *words])
