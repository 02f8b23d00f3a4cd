"""The command `poclab reset` against the same done by hand with virsh and qemu-img.

Both move a VM of the same lab to the other version each time: poclab vm1, the hand vm2. The
VMs have no operating system, so what is measured ends when QEMU runs.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from xml.etree.ElementTree import fromstring

from bench import session
from bench.measure import Comparison, MeasurementError, Series, interleaved, output, report

HAND = "virsh and qemu-img, by hand"
OURS = "poclab reset --to TAG --no-wait"
BAR = 1.25
_SCRIPT = Path(__file__).with_name("by-hand.sh")
# A line of `poclab -v`: "[   0.123] step: power off domain=bench.vm1".
_STEP = re.compile(r"^\[ *([\d.]+)\] step: ([a-z ]+?)(?: \w+=.*)?$", re.MULTILINE)
_STOP = re.compile(r"^virsh destroy took ([\d.]+)$", re.MULTILINE)


class _Hand:
    """vm2, reset by the script; its disks are in a directory that poclab does not look at."""

    def __init__(self, bases: dict[str, str], directory: Path) -> None:
        self._bases = cycle([bases["v2"], bases["v1"]])
        self._directory = directory
        self._count = 0
        self._old = ""
        self.stops: list[float] = []

    def __call__(self) -> float:
        self._count += 1
        new = str(self._directory / f"vm2.{self._count}.qcow2")
        bash = shutil.which("bash") or "/bin/bash"
        argv = [bash, str(_SCRIPT), f"{session.LAB}.vm2", next(self._bases), new, self._old]
        seconds, text = output(argv)
        self._old = new
        found = _STOP.search(text)
        if found is None:
            raise MeasurementError(f"{_SCRIPT} did not say how long virsh destroy took:\n{text}")
        self.stops.append(float(found[1]))
        return seconds


class _Ours:
    """vm1, reset by poclab."""

    def __init__(self) -> None:
        self._tags = cycle(["v2", "v1"])
        self.stops: list[float] = []

    def __call__(self) -> float:
        words = ["-v", "reset", f"{session.LAB}/vm1", "--to", next(self._tags), "--no-wait"]
        seconds, text = output([*session.poclab(), *words])
        steps = [(float(stamp), name) for stamp, name in _STEP.findall(text)]
        names = [name for _, name in steps]
        try:
            stop = names.index("power off")
            self.stops.append(steps[stop + 1][0] - steps[stop][0])
        except (ValueError, IndexError):
            raise MeasurementError(f"no step after `power off` in:\n{text}") from None
        return seconds


def run(runs: int) -> None:
    """Measure and report."""
    with session.lab(["vm1", "vm2"], profile="linux"), _disks() as directory:
        ours, hand = _Ours(), _Hand(_bases(), directory)
        found = interleaved({HAND: hand, OURS: ours}, runs)
        # The script's VM stands on files of its own, which poclab's `down` leaves alone.
    report(
        "reset, the guest's boot aside", found[HAND], [Comparison(found[OURS], found[HAND], BAR)]
    )
    rest = {
        HAND: _without(found[HAND], hand.stops),
        OURS: _without(found[OURS], ours.stops),
    }
    report(
        "the same without the end of the old QEMU", rest[HAND], [Comparison(rest[OURS], rest[HAND])]
    )


def _without(whole: Series, stops: list[float]) -> Series:
    # The first stop belongs to the round that is not counted.
    return Series(whole.name, tuple(a - b for a, b in zip(whole.seconds, stops[1:], strict=True)))


def _bases() -> dict[str, str]:
    """The base disk of each version: what vm1 stands on when it is on it."""
    found = {}
    for tag in ("v2", "v1"):
        output([*session.poclab(), "-q", "reset", f"{session.LAB}/vm1", "--to", tag, "--no-wait"])
        _, xml = output(["virsh", "-q", "dumpxml", "--inactive", f"{session.LAB}.vm1"])
        source = fromstring(xml).find("devices/disk/backingStore/source")
        if source is None:
            raise MeasurementError("vm1 has no backing file")
        found[tag] = source.attrib["file"]
    return found


@contextmanager
def _disks() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)
