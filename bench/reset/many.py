"""A warm reset of a whole lab against that of its slowest VM alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from bench import results, session
from bench.measure import MeasurementError, Series, interleaved
from bench.reset import guests
from bench.reset.probe import Guest, measured
from bench.results import Result, verdict

LAB = "four"
VMS = ("a", "b", "c", "d")
BAR = 1.5


def run(runs: int) -> None:
    """Measure and report."""
    kind = guests.KINDS["tiny"]
    guests.up(kind, lab=LAB, vms=VMS, net=7)
    found = {vm: guests.guest(vm, LAB) for vm in VMS}
    tasks: dict[str, Callable[[], float]] = {
        vm: partial(_reset, [f"{LAB}/{vm}"], [guest]) for vm, guest in found.items()
    }
    tasks["all"] = partial(_reset, ["--lab", LAB, "--all", "--yes"], list(found.values()))
    series = interleaved(tasks, runs, before=0)
    guests.down(LAB)
    _report(series)


def _reset(words: list[str], targets: list[Guest]) -> float:
    took = measured([*session.poclab(), "reset", *words], targets, timeout=300)
    if took.said.count("from its warm state") != len(targets):
        raise MeasurementError(f"poclab reset {' '.join(words)}:\n{took.said}")
    return max(took.ready)


def _report(series: dict[str, Series]) -> None:
    title = f"warm reset of {len(VMS)} tiny guests at once, until SSH answers in all"
    slowest = max((series[vm] for vm in VMS), key=lambda item: item.middle)
    whole, cores = series["all"], len(os.sched_getaffinity(0))
    ratio = whole.middle / slowest.middle
    met = ratio <= BAR if cores >= len(VMS) or ratio <= BAR else None
    print(f"\n{title}")
    print(f"  the slowest one alone  {slowest}")
    print(f"  the whole lab          {whole}")
    why = "" if met is not None else f": {cores} cores do not allow it"
    print(f"  = {ratio:.2f}x (bar {BAR:g}x: {verdict(met)}{why})")
    results.add(Result(title, "the slowest one alone", slowest.brief))
    words = f"{ratio:.2f}x on {cores} cores"
    results.add(Result(title, "the whole lab", whole.brief, words, f"{BAR:g}x", met))
