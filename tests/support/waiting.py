"""Waits for what a test has set going."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_for(condition: Callable[[], bool], patience: float = 30) -> None:
    """Wait until a condition holds.

    Args:
        condition: looked at some fifty times a second.
        patience: seconds before it fails.
    """
    limit = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.02)
