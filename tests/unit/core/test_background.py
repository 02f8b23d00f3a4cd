"""Work that is repeated beside a block."""

from __future__ import annotations

import threading

import pytest

from poclab.core.background import repeating


def test_it_is_done_again_and_again_and_once_more_at_the_end() -> None:
    times: list[bool] = []
    twice, over = threading.Event(), threading.Event()

    def work() -> None:
        times.append(over.is_set())
        if len(times) >= 2:
            twice.set()

    before = threading.active_count()
    with repeating(work, 0.001):
        assert twice.wait(30)
        over.set()
    assert times[-1]
    assert threading.active_count() == before


def test_what_it_raises_is_raised_at_the_end_of_the_block() -> None:
    raised = threading.Event()

    def work() -> None:
        raised.set()
        raise KeyboardInterrupt

    reached = False

    def block() -> None:
        nonlocal reached
        with repeating(work, 0.001):
            assert raised.wait(30)
            reached = True

    with pytest.raises(KeyboardInterrupt):
        block()
    assert reached


def test_an_error_of_the_block_comes_first() -> None:
    with pytest.raises(ZeroDivisionError), repeating(lambda: None, 0.001):
        raise ZeroDivisionError
