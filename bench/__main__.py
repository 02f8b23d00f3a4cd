"""Measure: `python -m bench [startup|reset|plan] [--runs N]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module

from bench import machine, session
from bench.measure import MeasurementError

# What there is, and how often each is run unless told otherwise.
GROUPS = {"startup": 20, "reset": 9, "plan": 5}


def main(arguments: list[str]) -> int:
    """Measure what is asked for; 1 when a measurement failed, whatever the figures are."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("group", nargs="*", choices=[*GROUPS, []], help="left out: all")
    parser.add_argument("--runs", type=int, metavar="N", help="runs of each, instead of the usual")
    given = parser.parse_args(arguments)
    if given.runs is not None and given.runs < 1:
        parser.error("--runs must be at least 1")
    if not session.inside():
        return session.again(arguments)
    session.keep_bytecode()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    print("\n".join(machine.describe()))
    try:
        with session.daemon():
            for name in given.group or GROUPS:
                _runner(name)(given.runs or GROUPS[name])
    except MeasurementError as error:
        print(f"a measurement failed: {error}", file=sys.stderr)
        return 1
    return 0


def _runner(name: str) -> Callable[[int], None]:
    # Only what is asked for: the planner's imports are heavy, and would fill memory for nothing.
    run: Callable[[int], None] = import_module(f"bench.{name}").run
    return run


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
