"""Every parser of strangers' bytes refuses what it does not take, and does nothing else.

On good inputs, on what fuzzers found before, and on some hundred damaged ones, the same each time.
`make fuzz` looks for new ones.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from tests.fuzz.mutate import mutated
from tests.fuzz.sparse import packed, unpacked
from tests.fuzz.targets import TARGETS, Target, outcome

FOUND = Path(__file__).parents[1] / "fuzz/found"
COUNT = 500  # damaged inputs a target


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_good_inputs_are_taken_and_damaged_ones_refused(target: Target) -> None:
    seeds = target.seeds()
    assert [outcome(target, seed) for seed in seeds] == [""] * len(seeds)
    refused = 0
    for data in islice(mutated(seeds, target.words, seed=1), COUNT):
        refused += bool(outcome(target, data))
    # Package lists and the names of backing files may hold any text.
    assert refused > 0 or target.name in ("dpkg", "backing-name")


def test_what_was_found_before_stays_mended() -> None:
    for path in sorted(FOUND.glob("*/*")):
        outcome(TARGETS[path.parent.name], path.read_bytes())


def test_a_disk_as_an_input_is_the_same_disk_again() -> None:
    data = b"head" + bytes(100_000) + b"table" + bytes(200_000)
    with unpacked(packed(data)) as descriptor, open(descriptor, "rb", closefd=False) as file:
        assert file.read().rstrip(b"\0") == data.rstrip(b"\0")
