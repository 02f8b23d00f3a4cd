"""Measure: `python -m bench [startup|reset|plan|memory|sharing] [--runs N]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module

from bench import machine, session
from bench.measure import MeasurementError

# What there is, and how often each is run unless told otherwise.
GROUPS = {"startup": 20, "reset": 9, "plan": 5, "memory": 3, "sharing": 1}
# What makes its own place to run in.
APART = ("sharing",)


def main(arguments: list[str]) -> int:
    """Measure what is asked for; 1 when a measurement failed, whatever the figures are."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("group", nargs="*", choices=[*GROUPS, []], help="left out: all")
    parser.add_argument("--runs", type=int, metavar="N", help="runs of each, instead of the usual")
    given = parser.parse_args(arguments)
    if given.runs is not None and given.runs < 1:
        parser.error("--runs must be at least 1")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    groups = given.group or list(GROUPS)
    within = [name for name in groups if name not in APART]
    if session.inside():
        return _measure(within, given.runs)
    apart = [name for name in groups if name in APART]
    status = 0
    if within:
        runs = ["--runs", str(given.runs)] if given.runs else []
        status = session.again([*within, *runs])
    return status or _measure(apart, given.runs)


def _measure(groups: Sequence[str], runs: int | None) -> int:
    if not groups:
        return 0
    print("\n".join(machine.describe()))
    try:
        with _place():
            for name in groups:
                _runner(name)(runs or GROUPS[name])
    except (MeasurementError, AssertionError) as error:
        print(f"a measurement failed: {error}", file=sys.stderr)
        return 1
    return 0


def _place() -> AbstractContextManager[None]:
    """What is there while a measurement runs."""
    if not session.inside():
        return nullcontext()
    session.keep_bytecode()
    return session.daemon()


def _runner(name: str) -> Callable[[int], None]:
    # Only what is asked for: the planner's imports are heavy, and would fill memory for nothing.
    run: Callable[[int], None] = import_module(f"bench.{name}").run
    return run


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
