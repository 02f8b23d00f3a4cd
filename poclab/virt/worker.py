"""Threads that make the calls to libvirt for `remote`, and the clock they are measured by."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from time import monotonic
from typing import Any

_LEAP = 5.0  # seconds between two looks; when there are more this program was stopped meanwhile

here = threading.local()  # `job`: what a worker's thread is at


class _Clock:
    """Seconds that pass while this program runs; those it was stopped for do not count."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._seen = monotonic()
        self._passed = 0.0

    def now(self) -> float:
        """Seconds; who measures looks more often than `_LEAP`."""
        with self._guard:
            real = monotonic()
            self._passed += min(real - self._seen, _LEAP)
            self._seen = real
            return self._passed


clock = _Clock()


class Job:
    """A piece of work for a worker.

    Attributes:
        work: the work.
        places: where its places among the calls that are out go back to.
        given: a worker has it, or is about to.
        finished: the work is done.
        done: free once it is finished; for its waiter.
        result: what it returned.
        error: what it raised.
        left: nobody waits for it any more.
        beat: when it began, or its last part did, by `clock`.
    """

    __slots__ = (
        "beat", "done", "error", "finished", "given", "left", "places", "result", "work",
    )  # fmt: skip

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.places: list[SimpleQueue[None]] = []
        self.given = self.finished = self.left = False
        self.done = threading.Lock()
        self.done.acquire()
        self.result: Any = None
        self.error: BaseException | None = None
        self.beat = 0.0

    def free(self) -> None:
        """Give its places back."""
        while self.places:
            self.places.pop().put(None)


class _Worker:
    """A thread that does one piece of work after the other; the program's end does not wait."""

    def __init__(self) -> None:
        self._job: Job | None = None
        self._go = threading.Lock()
        self._go.acquire()
        threading.Thread(target=self._serve, name="libvirt", daemon=True).start()

    def give(self, job: Job) -> None:
        job.given, job.beat = True, clock.now()
        self._job = job
        self._go.release()

    def _serve(self) -> None:
        while True:
            self._go.acquire()
            job, self._job = self._job, None
            if job is None:
                continue
            here.job = job
            try:
                job.result = job.work()
            except BaseException as error:  # it is for who asked
                job.error = error
            here.job = None
            job.finished = True
            job.free()
            _idle.append(self)
            job.done.release()
            del job


_idle: list[_Worker] = []


def worker() -> _Worker:
    """Take a worker that has nothing to do, or a new one."""
    try:
        return _idle.pop()
    except IndexError:
        return _Worker()
