"""One target under atheris, as a process of its own: `python -m tests.fuzz.worker TARGET ...`."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["poclab"]):
    from tests.fuzz.targets import TARGETS, outcome


def main() -> None:
    """Hand over to libFuzzer, which ends the process."""
    _, name, *options = sys.argv
    target = TARGETS[name]
    atheris.Setup([sys.argv[0], *options], lambda data: outcome(target, data) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
