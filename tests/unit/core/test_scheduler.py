"""Tasks in parallel: order, failures, circles, interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poclab.core.scheduler import SkippedError, run_in_order


def test_nothing_to_do() -> None:
    assert run_in_order({}, lambda _name: None) == {}


def test_each_after_the_ones_it_depends_on() -> None:
    done: list[str] = []
    order = {"web": ("app", "cache"), "app": ("db",), "cache": (), "db": ()}
    assert run_in_order(order, done.append) == dict.fromkeys(order)
    assert done.index("db") < done.index("app") < done.index("web")
    assert done.index("cache") < done.index("web")


def test_what_can_run_at_once_does() -> None:
    meeting = threading.Barrier(4)

    def task(_name: str) -> None:
        meeting.wait(5)

    results = run_in_order(dict.fromkeys("abcd", ()), task)
    assert set(results.values()) == {None}


def test_not_more_at_once_than_there_are_workers() -> None:
    running, most, guard = 0, 0, threading.Lock()

    def task(_name: str) -> None:
        nonlocal running, most
        with guard:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with guard:
            running -= 1

    run_in_order({f"vm{n}": () for n in range(12)}, task, workers=3)
    assert most == 3


def test_one_that_fails_takes_only_those_with_it_that_need_it() -> None:
    done: list[str] = []
    error = OSError("no")

    def task(name: str) -> None:
        if name == "db":
            raise error
        done.append(name)

    order = {"db": (), "app": ("db",), "web": ("app",), "alone": (), "after": ("alone",)}
    results = run_in_order(order, task)
    assert results["db"] is error
    assert results["alone"] is results["after"] is None
    assert sorted(done) == ["after", "alone"]
    for name, cause in (("app", "db"), ("web", "app")):
        skipped = results[name]
        assert isinstance(skipped, SkippedError)
        assert skipped.cause == cause
        assert str(skipped) == f"{cause} failed"


def test_dependencies_outside_are_taken_for_done() -> None:
    assert run_in_order({"vm1": ("db",)}, lambda _name: None) == {"vm1": None}


def test_a_circle_ends_and_the_rest_is_done() -> None:
    done: list[str] = []
    order = {"a": ("b",), "b": ("c",), "c": ("a",), "tail": ("a",), "free": (), "self": ("self",)}
    results = run_in_order(order, done.append)
    assert done == ["free"]
    assert {name for name, error in results.items() if isinstance(error, SkippedError)} == {
        "a", "b", "c", "tail", "self",
    }  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdefx"), max_size=3).map(tuple)
    ),
    st.sets(st.sampled_from("abcdef")),
)
def test_any_order_ends_with_a_result_for_each(
    order: dict[str, tuple[str, ...]], bad: set[str]
) -> None:
    done: list[str] = []

    def task(name: str) -> None:
        assert all(dep in done for dep in order[name] if dep in order)
        if name in bad:
            raise ValueError(name)
        done.append(name)

    results = run_in_order(order, task, workers=3)
    assert results.keys() == order.keys()
    assert {name for name, error in results.items() if error is None} == set(done)
    assert {name for name, error in results.items() if isinstance(error, ValueError)} <= bad


def test_an_exit_in_a_task_ends_the_program() -> None:
    def task(_name: str) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        run_in_order({"vm1": ()}, task)


INTERRUPTED = """
import sys, time
from poclab.core.scheduler import run_in_order
begun = []
def task(name):
    begun.append(name)
    print(name + "\\n", end="", flush=True)  # one write: two threads print
    time.sleep(60)
try:
    run_in_order({f"vm{n}": () for n in range(9)}, task, workers=2)
except KeyboardInterrupt:
    print("interrupted", len(begun), flush=True)
    sys.exit(130)
"""


def test_an_interruption_waits_for_nobody_and_begins_nothing() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        begun = {process.stdout.readline().strip() for _ in range(2)}
        assert begun == {"vm0", "vm1"}
        at = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=30)
        assert time.monotonic() - at < 10
    assert out == "interrupted 2\n"
    assert process.returncode == 130
