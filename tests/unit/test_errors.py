"""What a user sees of an error."""

from __future__ import annotations

import pytest

from poclab.errors import PoclabError, Problems, UsageError


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (PoclabError("what"), "what"),
        (PoclabError("what", why="y"), "what\nwhy: y"),
        (PoclabError("what", fix="z"), "what\nfix: z"),
        (PoclabError("what", why="y", fix="z"), "what\nwhy: y\nfix: z"),
        (Problems("2 faults", ["f:1:2: a", "f:3:4: b"]), "f:1:2: a\nf:3:4: b\n2 faults"),
        (Problems("1 fault", ["f:1:2: a"], fix="z"), "f:1:2: a\n1 fault\nfix: z"),
    ],
)
def test_lines(error: PoclabError, shown: str) -> None:
    assert str(error) == shown
    assert error.lines() == shown.split("\n")


def test_exit_codes() -> None:
    assert PoclabError("x").exit_code == 1
    assert UsageError("x").exit_code == 2
    assert Problems("x", []).exit_code == 2


def test_every_one_is_caught_as_one() -> None:
    for error in (UsageError("x"), Problems("x", ["y"])):
        with pytest.raises(PoclabError, match="x"):
            raise error
