"""Memory that import, commit and verify of a large disk take, and how fast an import is.

The disk has 20 GiB, of which 2 GiB are data that no program can shorten. The measure of an import
is `qemu-img convert -t writeback` of the same file, which has the copy on the disk when it ends, as
an import has. Without that option it leaves the copy in the page cache, to be lost with the power;
what it takes then is printed as well. An import also reads the whole copy to digest it. A second
file, of 2 GiB of data without holes, shows what the digest of the file besides costs.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench import session
from bench.measure import Comparison, interleaved, output, report
from bench.peak import Peak, measured

GIB = 1024**3
MIB = 1024**2
SIZE, DATA, WRITTEN = 20 * GIB, 2 * GIB, GIB
BAR = 200  # MiB of memory
SLOWER = 1.25  # seconds of an import by those of qemu-img convert: 0.8 of its throughput
FORM = ("--profile", "legacy", "--format", "raw")
LAB = "large"


def run(runs: int) -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as directory:
        sparse = _raw(Path(directory) / "sparse.raw", SIZE)
        dense = _raw(Path(directory) / "dense.raw", DATA)
        for file, kind in ((sparse, "20 GiB with 2 GiB of data"), (dense, "2 GiB, all data")):
            _throughput(file, kind, runs)
        dense.unlink()
        _memory(sparse, Path(directory))


def _raw(path: Path, size: int) -> Path:
    """A raw disk with its data in pieces of 64 MiB, as far from each other as they can be."""
    count = DATA // (64 * MIB)
    with path.open("wb") as file:
        for number in range(count):
            file.seek(size // count * number)
            for _ in range(64):
                file.write(os.urandom(MIB))
        file.truncate(size)
    return path


def _throughput(file: Path, kind: str, runs: int) -> None:
    target = file.with_suffix(".qcow2")
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2"]
    files = [str(file), str(target)]
    add = [*session.poclab(), "-q", "image", "import", f"{LAB}:v1", str(file), *FORM]
    remove = [*session.poclab(), "-q", "image", "rm", f"{LAB}:v1", "--yes"]

    def timed(argv: list[str], clear: Callable[[], object]) -> Callable[[], float]:
        def task() -> float:
            os.sync()  # what an earlier run wrote is not this one's affair
            seconds, _ = output(argv, timeout=900)
            clear()
            return seconds

        return task

    names = (
        "qemu-img convert",
        "qemu-img convert -t writeback",
        "poclab image import",
    )
    tasks = {
        names[0]: timed([*convert, *files], target.unlink),
        names[1]: timed([*convert, "-t", "writeback", *files], target.unlink),
        names[2]: timed(add, lambda: output(remove)),
    }
    found = interleaved(tasks, runs)
    hand, through, ours = (found[name] for name in names)
    title = f"import of a raw disk, {kind}"
    report(f"{title}: on the disk", through, [Comparison(ours, through, SLOWER)])
    report(f"{title}: the copy in the page cache", hand, [Comparison(ours, hand)])
    rates = (f"{DATA / MIB / each.middle:.0f}" for each in (hand, through, ours))
    print(f"  MiB of data a second: {', '.join(rates)}")


def _memory(file: Path, directory: Path) -> None:
    poclab = [*session.poclab(), "-q"]
    found = {"import": measured([*poclab, "image", "import", f"{LAB}:v1", str(file), *FORM])}
    found["verify"] = measured([*poclab, "image", "verify", f"{LAB}:v1"])
    lab = directory / f"{LAB}.yaml"
    lab.write_text(f"name: {LAB}\nvms: {{vm: {{image: '{LAB}:v1', memory: 64MiB}}}}\n")
    output([*poclab, "up", str(lab)])
    output(["virsh", "-q", "destroy", f"{LAB}.vm"])
    try:
        for tag, options in (("thin", ()), ("flat", ("--flatten",))):
            _write()
            commit = [*poclab, "commit", f"{LAB}/vm", "--as", f"{LAB}:{tag}", *options]
            found[f"commit, {tag}"] = measured(commit)
    finally:
        output([*poclab, "down", LAB, "--yes"])
        output([*poclab, "image", "rm", "--yes", *(f"{LAB}:{x}" for x in ("v1", "thin", "flat"))])
    print("\npeak memory of a 20 GiB disk with 2 GiB of data, 1 GiB written by its VM")
    print(f"  {'':14} largest process   all processes at once (bar {BAR} MiB)")
    for name, peak in found.items():
        print(f"  {name:14} {_mib(peak.largest)}          {_mib(peak.together)}   {_time(peak)}")


def _mib(size: int) -> str:
    return f"{size / MIB:5.0f} MiB"


def _time(peak: Peak) -> str:
    return f"in {peak.seconds:.1f} s"


def _write() -> None:
    """Write to the VM's system disk as a guest would."""
    _, text = output(["virsh", "-q", "domblklist", f"{LAB}.vm"])
    overlay = text.split()[1]
    output(["qemu-io", "-f", "qcow2", "-c", f"write -P 7 100M {WRITTEN}", overlay], timeout=300)
