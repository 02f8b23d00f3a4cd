"""How long poclab takes before it does anything, against the imports it cannot do without."""

from __future__ import annotations

import sys
from collections.abc import Callable

from bench import session
from bench.measure import Comparison, Series, interleaved, report, timed

BASE = 'python -c "import libvirt, typer"'
VERSION = "poclab --version"
EMPTY = "poclab status, no lab"
FULL = "poclab status, 2 VMs run"


def run(runs: int) -> None:
    """Measure and report."""

    def task(*words: str) -> Callable[[], float]:
        argv = [*session.poclab(), *words]
        return lambda: timed(argv)

    base = [sys.executable, "-c", "import libvirt, typer"]
    tasks = {BASE: lambda: timed(base), VERSION: task("--version"), EMPTY: task("status")}
    found = interleaved(tasks, runs)
    _report("start-up", found, {VERSION: 2.0, EMPTY: 3.0})
    # BIOS guests: they find nothing to boot and halt, where UEFI would go on searching.
    with session.lab(["vm1", "vm2"], profile="legacy"):
        found = interleaved({BASE: lambda: timed(base), FULL: task("status")}, runs)
    _report("start-up with a lab", found, {FULL: 3.0})


def _report(title: str, found: dict[str, Series], bars: dict[str, float]) -> None:
    base = found[BASE]
    report(title, base, [Comparison(found[name], base, bar) for name, bar in bars.items()])
