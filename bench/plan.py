"""How long it takes to read a lab file and to plan the lab, by the number of VMs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from bench.measure import MeasurementError, Series, interleaved
from poclab.model.host import Observed
from poclab.model.lab import Lab
from poclab.schema.lab import load_lab
from tests.support.make import applied, observed, planned

SIZES = (50, 100, 200, 400)
BAR = {200: 2.0}  # seconds


def run(runs: int) -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as directory:
        for session, kind in ((False, "networks of libvirt"), (True, "session, with ports")):
            files = {size: _write(Path(directory), size, ports=session) for size in SIZES}
            _report(kind, _measured(files, runs, session=session))


def _measured(files: dict[int, Path], runs: int, *, session: bool) -> dict[str, Series]:
    tasks: dict[str, Callable[[], float]] = {}
    for size, path in files.items():
        lab = load_lab(path)
        empty = observed(session=session)
        full = applied(planned(lab, empty), empty)
        if planned(lab, full).actions:
            raise MeasurementError(f"{path}: there is something to do on the applied host")
        tasks[f"load {size}"] = _timer(lambda path=path: load_lab(path))  # type: ignore[misc]
        tasks[f"empty {size}"] = _planner(lab, empty)
        tasks[f"applied {size}"] = _planner(lab, full)
    return interleaved(tasks, runs)


def _planner(lab: Lab, host: Observed) -> Callable[[], float]:
    return _timer(lambda: planned(lab, host))


def _timer(work: Callable[[], object]) -> Callable[[], float]:
    def task() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return task


def _report(kind: str, found: dict[str, Series]) -> None:
    print(f"\nplanning a lab, {kind}: median (min - max) in ms, n={len(found['load 50'].seconds)}")
    print(
        "  VMs  read the file           plan, empty host        plan, applied host      all, a VM"
    )
    costs: dict[int, float] = {}
    for size in SIZES:
        parts = [found[f"{part} {size}"] for part in ("load", "empty", "applied")]
        # A first `up` reads the file and plans on an empty host; a second one on the applied.
        whole = parts[0].middle + max(parts[1].middle, parts[2].middle)
        costs[size] = whole / size
        bar = f"  {whole:.2f} s (bar {BAR[size]:g} s)" if size in BAR else ""
        cells = "  ".join(_cell(part) for part in parts)
        print(f"  {size:3}  {cells}  {1000 * costs[size]:6.2f} ms{bar}")
    ratio = costs[SIZES[-1]] / costs[SIZES[0]]
    print(f"  a VM among {SIZES[-1]} costs {ratio:.2f}x of a VM among {SIZES[0]} (linear: 1x)")


def _cell(series: Series) -> str:
    low, middle, high = (
        1000 * value for value in (min(series.seconds), median(series.seconds), max(series.seconds))
    )
    return f"{middle:7.1f} ({low:.1f} - {high:.1f})".ljust(22)


def _write(directory: Path, size: int, *, ports: bool) -> Path:
    """A lab file: a database for every ten VMs that come after it, data disks, addresses."""
    lines = [
        "name: large",
        "networks:",
        "  lan: {mode: nat, cidr: 10.77.0.0/20}",
        "  back: {mode: isolated, cidr: 10.78.0.0/20}",
        "defaults: {cpus: 2, memory: 2GiB}",
        "vms:",
    ]
    for number in range(size):
        base = number // 10 * 10
        lines += [f"  vm{number}:", f"    image: shop:v{number % 3 + 1}"]
        if number == base:
            address = f"10.77.8.{number // 10 + 2}"
            lines.append(f"    networks: [{{name: lan, ip: {address}}}, back]")
            lines.append("    disks: [{name: data, size: 5GiB, keep: true}]")
        else:
            lines += ["    networks: [lan]", f"    after: [vm{base}]", "    ready: {ssh: true}"]
        if ports:
            lines.append(f'    ports: ["{10000 + number}:80"]')
    path = directory / f"large-{size}{'-ports' if ports else ''}.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path
