"""What ten versions of an image and a VM take on the disk, against ten snapshots of a VM.

The guests write 8 MiB that nothing can shorten before each one. What is counted is all that is kept
for it, in blocks that the file system has given, the disk that all of them stand on included.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from bench import results, session
from bench.measure import MeasurementError, output
from bench.reset import guests
from bench.reset.peers import PEERS, Kcli, Vagrant
from bench.reset.probe import Guest
from bench.reset.ways import remove
from bench.results import Result

COUNT = 10
MIB = 1024**2
WRITTEN = 8  # MiB before each one
LAB = "grown"
_TITLE = f"disk used after {COUNT} versions or snapshots, {WRITTEN} MiB written before each"


def run() -> None:
    """Measure and report; the lab's VM is there to be copied."""
    print(f"\n{_TITLE}")
    _line("poclab commit, 10 versions", _committed)
    _line("poclab image build, 10 versions of 40 MiB", _built)
    _line("internal snapshots with memory", _internal)
    _line("external snapshots without memory", _external)
    for tool in PEERS:
        _line(f"{tool.name}: its snapshots", partial(_tool, tool))


def _line(name: str, measure: Callable[[], int]) -> None:
    try:
        figure, why = f"{measure() / MIB:.0f} MiB", ""
    except MeasurementError as error:
        figure, why = "does not run here", error.words
    print(f"  {name:42} {figure}{f': {why}' if why else ''}")
    results.add(Result(_TITLE, name, figure, why))


def _used(paths: Iterable[Path]) -> int:
    """Bytes that files take; what hard links share counts once."""
    found = {(stat.st_dev, stat.st_ino): stat.st_blocks for stat in (p.stat() for p in paths)}
    return 512 * sum(found.values())


def _grow(guest: Guest, number: int) -> None:
    command = f"dd if=/dev/urandom of=/root/data.{number} bs=1M count={WRITTEN} 2>/dev/null; sync"
    if guest.ssh(command, timeout=120) != 0:
        raise MeasurementError(f"{guest.domain} cannot write")


def _kept(name: str) -> int:
    """Bytes of a guest without poclab: its own files, and the disk that they are on."""
    return _used([*guests.DIRECTORY.glob(f"{name}.*"), Path(guests.base(name))])


def _counted() -> int:
    """Bytes of all that poclab has, blocks that versions share counted once."""
    _, text = output([*session.poclab(), "df", "-o", "json"])
    rows = json.loads(text[text.index("[") : text.rindex("]") + 1])
    return next(int(row["allocated"]) for row in rows if row["kind"] == "total")


def _committed() -> int:
    before = _counted() - _tiny()
    refs = [f"{LAB}:v{number}" for number in range(COUNT)]
    with _lab(refs):
        guest = guests.guest(lab=LAB)
        for number, ref in enumerate(refs):
            _grow(guest, number)
            words = ["commit", f"{LAB}/{guests.VM}", "--as", ref, "--no-quiesce", "--yes"]
            output([*session.poclab(), "-q", *words])
        output([*session.poclab(), "-q", "warm", "drop", "--lab", LAB, "--all"])
        return _counted() - before


@contextmanager
def _lab(versions: Sequence[str]) -> Iterator[None]:
    """A lab of one VM, which goes with some versions."""
    guests.up(guests.KINDS["tiny"], lab=LAB, net=6)
    try:
        yield
    finally:
        guests.down(LAB)
        for ref in versions:
            with suppress(MeasurementError):  # it was not made
                output([*session.poclab(), "-q", "image", "rm", "--yes", ref])


def _tiny() -> int:
    """Bytes of the version that all guests stand on."""
    _, text = output([*session.poclab(), "image", "ls", "tiny", "-o", "json"])
    return next(int(row["size"]) for row in json.loads(text) if row["tag"] == "v1")


def _built() -> int:
    kind = guests.KINDS["tiny"]
    before = _counted() - _tiny()
    tags = [f"v{number}" for number in range(2, COUNT + 1)]
    with _lab([f"tiny:{tag}" for tag in tags]):
        for tag in tags:
            guests.build(kind, tag)
        words = ["reset", f"{LAB}/{guests.VM}", "--to", tags[-1], "--no-wait"]
        output([*session.poclab(), "-q", *words])
        output([*session.poclab(), "-q", "warm", "drop", "--lab", LAB, "--all"])
        return _counted() - before


def _internal() -> int:
    if not guests.ROM.exists():
        raise MeasurementError(f"there is no {guests.ROM}")
    with _copy("snapshots", rom=True) as guest:
        for number in range(COUNT):
            _grow(guest, number)
            output(["virsh", "-q", "snapshot-create-as", guest.domain, f"s{number}"], timeout=300)
        return _kept(guest.domain)


def _external() -> int:
    with _copy("external") as guest:
        for number in range(COUNT):
            _grow(guest, number)
            words = ["snapshot-create-as", guest.domain, f"s{number}", "--disk-only"]
            output(["virsh", "-q", *words])
        return _kept(guest.domain)


@contextmanager
def _copy(name: str, *, rom: bool = False) -> Iterator[Guest]:
    """A guest without poclab, ready."""
    try:
        guest = guests.define_copy(name, guests.DIRECTORY / f"{name}.qcow2", rom=rom)
        output(["virsh", "-q", "start", name])
        guest.wait(guests.KINDS["tiny"].boot)
        yield guest
    finally:
        remove(name)
        for file in guests.DIRECTORY.glob(f"{name}.*"):
            file.unlink()


def _tool(tool: type[Kcli] | type[Vagrant]) -> int:
    made = tool(guests.KINDS["tiny"])
    try:
        made()
        for number in range(COUNT):
            made.snapshot(number)
            _grow(made.guest, number)
        return _kept(made.guest.domain)
    finally:
        made.remove()
