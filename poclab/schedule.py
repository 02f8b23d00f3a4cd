"""Tasks in parallel, each after the ones it depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait


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

    Args:
        order: every name with the names that must succeed first; no cycles.
        task: does the work for one name; called in a thread.
        workers: how many run at once.

    Returns:
        For each name the exception its task ended with (`SkippedError` when it was not begun),
        or None.
    """
    results: dict[str, Exception | None] = {}
    waiting = {name: {dep for dep in deps if dep in order} for name, deps in order.items()}
    running: dict[Future[None], str] = {}
    with ThreadPoolExecutor(max_workers=workers) as pool:
        while waiting or running:
            for name in _ready(waiting, results):
                failed = [dep for dep in sorted(waiting.pop(name)) if results[dep] is not None]
                if failed:
                    results[name] = SkippedError(failed[0])
                else:
                    running[pool.submit(task, name)] = name
            if not running:
                continue
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                error = future.exception()
                if error is not None and not isinstance(error, Exception):
                    raise error
                results[running.pop(future)] = error
    return results


def _ready(waiting: Mapping[str, set[str]], results: Mapping[str, Exception | None]) -> list[str]:
    return [name for name, deps in waiting.items() if deps <= results.keys()]
