"""From the beginning of a reset until SSH answers in the guest, by poclab and by others.

All ways reset guests of one kind that have the same disk, memory and processor, in turn. When these
answer is looked at in one way (`probe`), from outside of the tools.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from bench import results
from bench.measure import MeasurementError, Series, interleaved
from bench.reset import disk, guests, many, peers
from bench.reset.guests import Kind
from bench.reset.peers import Kcli, Vagrant
from bench.reset.probe import Took
from bench.reset.ways import ColdByHand, Poclab, Snapshot, WarmByHand, Way, remove
from bench.results import Result, verdict

COLD = "poclab reset, boots"
WARM = "poclab reset, warm"
COLD_HAND = "by hand: virsh, qemu-img"
WARM_HAND = "by hand: virsh restore"
REVERT = "virsh snapshot-revert, with memory"


def _peer(name: str) -> str:
    return f"{name}: delete and create"


@dataclass(frozen=True)
class Timed:
    """A way whose two times are kept apart.

    Attributes:
        way: the way.
        returned: seconds until its command ended, of each run.
    """

    way: Way
    returned: list[float]

    def __call__(self) -> float:
        """Reset; the seconds until the guest answered."""
        took: Took = self.way()
        self.returned.append(took.returned)
        return max(took.ready)


def run(runs: int) -> None:
    """Measure and report."""
    names = os.environ["POCLAB_BENCH_GUESTS"].split()
    with guests.host():
        peers.storage()
        for name in names:
            kind = guests.KINDS[name]
            guests.build(kind)
            guests.up(kind)
            # A boot of Debian takes half a minute where it is emulated, so it has fewer.
            if name == "tiny":
                _reset(kind, runs, max(2, runs // 3))
            else:
                _reset(kind, (runs + 1) // 2, max(1, runs // 7))
            if name == "tiny":
                disk.run()
            guests.down()
            if name == "tiny":
                many.run(max(2, runs // 3))


def _reset(kind: Kind, warm: int, cold: int) -> None:
    faults: dict[str, str] = {}
    with _by_libvirt(kind, faults) as (booting, restoring):
        others = _others(kind, faults)
        quick: dict[str, Way] = {WARM: Poclab(kind, warm=True), **restoring}
        restored, more = _measured(quick, warm, faults)
        slow: dict[str, Way] = {COLD: Poclab(kind, warm=False), **booting, **others}
        found, ends = _measured(slow, cold, faults)
        for tool in others.values():
            tool.remove()
    _report(kind, found | restored, ends | more, faults)


def _measured(
    ways: Mapping[str, Way], runs: int, faults: dict[str, str]
) -> tuple[dict[str, Series], dict[str, Series]]:
    """The times until ready and until the command ended; a way that fails drops out."""
    timed = {name: Timed(way, []) for name, way in ways.items()}
    failed: set[str] = set()

    def task(name: str) -> Callable[[], float]:
        def once() -> float:
            if name in failed:
                return 0.0
            try:
                return timed[name]()
            except MeasurementError as error:
                if name in (COLD, WARM, COLD_HAND, WARM_HAND):
                    raise
                failed.add(name)
                faults[name] = error.words
                return 0.0

        return once

    found = interleaved({name: task(name) for name in ways}, runs, before=0)
    good = {name: series for name, series in found.items() if name not in failed}
    return good, {name: Series(name, tuple(timed[name].returned)) for name in good}


@contextmanager
def _by_libvirt(
    kind: Kind, faults: dict[str, str]
) -> Iterator[tuple[dict[str, Way], dict[str, Way]]]:
    """The ways by hand: those that boot, and those that restore."""
    try:
        cold = ColdByHand(kind)
        revert = Snapshot(kind) if guests.ROM.exists() else None
        cold.guest.wait(kind.boot)
        restoring: dict[str, Way] = {WARM_HAND: WarmByHand(kind, cold)}
        if revert is None:
            faults[REVERT] = f"there is no {guests.ROM}"
        else:
            try:
                revert.guest.wait(kind.boot)
                revert.keep()
                restoring[REVERT] = revert
            except MeasurementError as error:
                faults[REVERT] = error.words
        cold.guest.wait(kind.boot)
        yield {COLD_HAND: cold}, restoring
    finally:
        for name in ("hand", "snapshots"):
            remove(name)
            for file in guests.DIRECTORY.glob(f"{name}.*"):
                file.unlink()


def _others(kind: Kind, faults: dict[str, str]) -> dict[str, Kcli | Vagrant]:
    """The other tools that run here."""
    found: dict[str, Kcli | Vagrant] = {}
    for tool in peers.PEERS:
        try:
            made = tool(kind)
            print(f"{made.name}: {made.version()}")
            found[_peer(made.name)] = made
        except MeasurementError as error:
            faults[_peer(tool.name)] = error.words
    return found


def _report(
    kind: Kind, found: Mapping[str, Series], ends: Mapping[str, Series], faults: Mapping[str, str]
) -> None:
    title = f"reset until SSH answers: {kind.title}"
    width = max(map(len, (*found, *faults)))
    print(f"\n{title}")
    for name, series in found.items():
        print(f"  {name:{width}}  {series}  command ended after {_seconds(ends[name].middle)}")
        results.add(Result(title, name, series.brief))
    for name, why in faults.items():
        print(f"  {name:{width}}  does not run here: {why}")
        results.add(Result(title, name, "does not run here", why))
    for against, bar in _bars(found):
        of = COLD if against == COLD_HAND else WARM
        ratio = found[of].middle / found[against].middle
        met = None if bar is None else ratio <= bar
        limit = "" if bar is None else f"{bar:g}x"
        words = f"{of} / {against}"
        print(f"  {words} = {ratio:.2f}x" + (f" (bar {limit}: {verdict(met)})" if limit else ""))
        results.add(Result(title, words, "", f"{ratio:.2f}x", limit, met))


def _bars(found: Mapping[str, Series]) -> Iterator[tuple[str, float | None]]:
    """What poclab is held against, and how many times as long it may take."""
    yield COLD_HAND, None
    yield WARM_HAND, 1.3
    yield COLD, 1 / 5
    yield from ((name, 1.0) for name in found if name == REVERT or name.endswith(_peer("")))


def _seconds(value: float) -> str:
    return f"{value:.2f} s"
