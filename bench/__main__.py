"""Measure: `python -m bench [startup|reset|plan|memory|sharing] [--runs N] [--guest KIND]`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from bench import machine, results, session, system
from bench.measure import MeasurementError

GUESTS = ("tiny", "systemd")
GUESTS_VARIABLE = "POCLAB_BENCH_GUESTS"


@dataclass(frozen=True)
class Group:
    """What can be asked for.

    Attributes:
        runs: how often each thing in it is run unless told otherwise.
        session: the module that measures in a session of an ordinary user, if any.
        system: the one that does in a qemu:///system of its own.
        apart: the one that makes its own place.
    """

    runs: int
    session: str = ""
    system: str = ""
    apart: str = ""


GROUPS = {
    "startup": Group(20, session="startup"),
    "reset": Group(7, session="reset.overhead", system="reset.ready"),
    "plan": Group(5, session="plan"),
    "memory": Group(3, session="memory"),
    "sharing": Group(1, apart="sharing"),
}


def main(arguments: list[str]) -> int:
    """Measure what is asked for; 1 when a measurement failed, whatever the figures are."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("group", nargs="*", choices=[*GROUPS, []], help="left out: all")
    parser.add_argument("--runs", type=int, metavar="N", help="runs of each, instead of the usual")
    parser.add_argument(
        "--guest", choices=[*GUESTS, "both"], default="both", help="whose resets; left out: both"
    )
    given = parser.parse_args(arguments)
    if given.runs is not None and given.runs < 1:
        parser.error("--runs must be at least 1")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    groups = given.group or list(GROUPS)
    if session.inside():
        session.keep_bytecode()
        with session.daemon():
            return _measure("session", groups, given)
    if system.inside():
        session.keep_bytecode()
        return _measure("system", groups, given)
    return _everywhere(groups, given)


def _everywhere(groups: Sequence[str], given: argparse.Namespace) -> int:
    """Measure each group in the places where it belongs, then print the table of all."""
    print("\n".join(machine.describe()))
    options = ["--guest", given.guest, *(["--runs", str(given.runs)] if given.runs else [])]
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        table = Path(directory) / "results"
        table.touch()
        for path, mode in ((Path(directory), 0o755), (table, 0o666)):
            path.chmod(mode)  # for the ordinary user
        os.environ[results.FILE] = str(table)
        status = 0
        within = [name for name in groups if GROUPS[name].session]
        beside = [name for name in groups if GROUPS[name].system]
        if within:
            status |= session.again([*within, *options])
        if beside:
            status |= system.again([*beside, *options])
        status |= _measure("apart", groups, given)
        found = results.collected(table)
    print("\n".join(["", *results.table(found)]) if found else "")
    return status


def _measure(place: str, groups: Sequence[str], given: argparse.Namespace) -> int:
    os.environ[GUESTS_VARIABLE] = " ".join(GUESTS if given.guest == "both" else [given.guest])
    try:
        for name in groups:
            # Only what is asked for: the planner's imports are heavy, and would fill memory for
            # nothing.
            if module := getattr(GROUPS[name], place):
                import_module(f"bench.{module}").run(given.runs or GROUPS[name].runs)
    except (MeasurementError, AssertionError) as error:
        print(f"a measurement failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
