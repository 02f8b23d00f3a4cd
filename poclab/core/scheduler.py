"""Tasks in parallel, each after the ones it depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from queue import SimpleQueue
from threading import Thread

Done = SimpleQueue[tuple[str, BaseException | None]]


class SkippedError(Exception):
    """A task was not begun because one it depends on failed.

    Attributes:
        cause: the name of that one.
    """

    def __init__(self, cause: str) -> None:
        super().__init__(f"{cause} failed")
        self.cause = cause


def run_in_order(
    order: Mapping[str, tuple[str, ...]], task: Callable[[str], None], *, workers: int = 8
) -> dict[str, Exception | None]:
    """Run a task for every name, as early as its dependencies allow.

    When the caller is interrupted (Ctrl-C) nothing more is begun and nothing is waited for:
    the threads are daemons and end with the program.

    Args:
        order: every name with the names that must succeed first. Names in a circle are skipped:
            records of several runs of `up` may make one.
        task: does the work for one name; called in a thread.
        workers: how many run at once.

    Returns:
        For each name the exception its task ended with (`SkippedError` when it was not begun),
        or None.
    """
    results: dict[str, Exception | None] = {}
    waiting = {name: {dep for dep in deps if dep in order} for name, deps in order.items()}
    done: Done = SimpleQueue()
    running = 0
    while waiting or running:
        _skip(waiting, results)
        for name in _ready(waiting, results)[: workers - running]:
            del waiting[name]
            Thread(target=_work, args=(task, name, done), name=name, daemon=True).start()
            running += 1
        if running:
            name, error = done.get()
            running -= 1
            if error is not None and not isinstance(error, Exception):
                raise error
            results[name] = error
        elif waiting:
            name, deps = next(iter(waiting.items()))
            del waiting[name]
            results[name] = SkippedError(min(deps - results.keys()))
    return results


def _work(task: Callable[[str], None], name: str, done: Done) -> None:
    try:
        task(name)
    except BaseException as error:
        done.put((name, error))
    else:
        done.put((name, None))


def _skip(waiting: dict[str, set[str]], results: dict[str, Exception | None]) -> None:
    """Note what cannot be begun any more, and what cannot be because of that, and so on."""
    while True:
        found = {
            name: failed
            for name, deps in waiting.items()
            if (failed := [dep for dep in sorted(deps) if results.get(dep) is not None])
        }
        if not found:
            return
        for name, failed in found.items():
            del waiting[name]
            results[name] = SkippedError(failed[0])


def _ready(waiting: Mapping[str, set[str]], results: Mapping[str, Exception | None]) -> list[str]:
    return [name for name, deps in waiting.items() if deps <= results.keys()]
