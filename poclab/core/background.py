"""Something that is done again and again beside other work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeating(work: Callable[[], None], every: float) -> Iterator[None]:
    """Do something in a thread while the block runs, and once more after its end.

    What it raises ends it, and is raised at the end of the block.

    Args:
        work: what to do.
        every: seconds between two times.
    """
    stop = threading.Event()
    raised: list[BaseException] = []

    def repeat() -> None:
        try:
            ended = False
            while not ended:
                ended = stop.wait(every)
                work()
        except BaseException as error:  # it belongs to the main thread
            raised.append(error)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if raised:
        raise raised[0]
