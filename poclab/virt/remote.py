"""Calls to libvirt that can be interrupted, and that end.

A call to libvirt is C code that waits for the daemon's answer, however long that takes, and while a
thread is in C code Python runs no handler of a signal in it. So no thread that somebody waits for
makes one: `connect` gives a connection in a `Remote`, which has another thread make the call and
waits for that in Python, as do all objects that come from it. After some seconds the user is told
what is waited for; beyond its deadline a call is given up.

A daemon that was stopped or hangs is noticed earlier, by libvirt's keepalive: while a call is out,
the thread in it sends and answers the messages; in between, the event loop does
(https://libvirt.org/internals/rpc.html and virNetClientIOEventLoop in rpc/virnetclient.c). Calls
fail then with libvirt's own error.

A call that was given up goes on in its thread, and what it asked for may still happen: that is as
if the program had been killed at that moment, which any next command mends. From then on the other
calls get a few seconds only: what cleans up must not hang where its cause hung.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import libvirt

from poclab import events, interrupts
from poclab.errors import PoclabError
from poclab.units import format_seconds

T = TypeVar("T")

_NOTICE = 3.0  # seconds after which the user is told; a call takes milliseconds
_NOTICE_LONG = 10.0  # the same for what moves a guest's memory or disks
_LOOK = 0.5  # seconds between two looks, for signals that another thread got
_BRIEF = 5.0  # seconds for a call when another one hangs already
_KEEPALIVE = (10, 6)  # seconds between two messages, and how many may go unanswered
_TURN = 0.2  # seconds between two turns of the event loop

_HOUR = 3600.0
# libvirt waits 30 s for whoever works on a domain (QEMU_JOB_WAIT_TIME in qemu_domainjob.c) and
# answers then; with a margin that is what a call takes at most that does nothing long by itself.
_USUAL = 120.0
_DEADLINES = {
    "open": 60.0,  # a session's daemon is started by it
    "open far": 300.0,  # ssh may ask for a password
    "close": _BRIEF,  # the daemon learns of it anyway when this process ends
    # The host's storage copies or flushes gigabytes.
    "createXML": _HOUR,
    "createXMLFrom": 4 * _HOUR,
    "resize": _HOUR,
    "delete": _HOUR,
    "refresh": _HOUR,
    "send": 600.0,
    "recv": 600.0,
    "finish": _HOUR,
    # A guest's memory is written or read, or its disks are flushed; of its agent's silence libvirt
    # itself gets tired (`guest.patient_agent`).
    "snapshotCreateXML": _HOUR,
    "restoreFlags": _HOUR,
    "createWithFlags": _HOUR,
    "blockCopy": _HOUR,
    "blockCommit": _HOUR,
    "blockJobAbort": _HOUR,
    # QEMU gets SIGTERM, then SIGKILL, and ends when its disks have answered.
    "destroy": 300.0,
    "undefineFlags": 300.0,
}
# Nothing is asked of the daemon for these.
_LOCAL = frozenset({"name", "UUIDString"})
_KINDS = frozenset(
    {
        libvirt.virConnect,
        libvirt.virDomain,
        libvirt.virNetwork,
        libvirt.virNetworkPort,
        libvirt.virStoragePool,
        libvirt.virStorageVol,
        libvirt.virStream,
    }
)

_here = threading.local()  # `job`: what a worker's thread is at


class StuckError(PoclabError):
    """libvirt did not answer in time."""


class _Job:
    """A piece of work for a worker.

    Attributes:
        work: the work.
        done: free once it is done.
        result: what it returned.
        error: what it raised.
        left: nobody waits for it any more.
    """

    __slots__ = ("done", "error", "left", "result", "work")

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.done = threading.Lock()
        self.done.acquire()
        self.result: Any = None
        self.error: BaseException | None = None
        self.left = False


class _Worker:
    """A thread that does one piece of work after the other; the program's end does not wait."""

    def __init__(self) -> None:
        self._job: _Job | None = None
        self._go = threading.Lock()
        self._go.acquire()
        threading.Thread(target=self._serve, name="libvirt", daemon=True).start()

    def give(self, job: _Job) -> None:
        self._job = job
        self._go.release()

    def _serve(self) -> None:
        while True:
            self._go.acquire()
            job, self._job = self._job, None
            if job is None:
                continue
            _here.job = job
            try:
                job.result = job.work()
            except BaseException as error:  # it is for who asked
                job.error = error
            _here.job = None
            _idle.append(self)
            job.done.release()
            del job


_idle: list[_Worker] = []


class Line:
    """What is known of one connection.

    Attributes:
        left: calls that were given up and may still be out.
        dead: a call hung while another one did: nothing is asked any more.
        told: the user was told that libvirt is waited for.
        alive: asks this process's side of the connection whether keepalive still holds it for one.
    """

    def __init__(self) -> None:
        self.left: list[_Job] = []
        self.dead = False
        self.told = False
        self.alive: Callable[[], Any] = lambda: True

    @property
    def hangs(self) -> bool:
        """Whether a call that was given up is still out."""
        self.left = [job for job in self.left if job.done.locked()]
        return bool(self.left)

    def call(self, name: str, work: Callable[[], T]) -> T:
        """Do what calls libvirt.

        Args:
            name: what is asked, a name in `_DEADLINES` if it has a deadline of its own.
            work: the call.

        Raises:
            StuckError: there was no answer in time.
        """
        outer: _Job | None = getattr(_here, "job", None)
        if outer is not None:  # a part of what another thread waits for
            if outer.left:
                raise _stuck(name, 0)
            return work()
        limit = self._limit(name)
        job = _Job(work)
        try:
            _worker().give(job)
            self._wait(job, name, limit)
        except BaseException:
            job.left = True
            if job.done.locked():
                self.left.append(job)
                interrupts.leave_behind()
            raise
        if job.error is not None:
            try:
                raise job.error
            finally:
                job.error = None  # else traceback and job would keep each other
        return job.result  # type: ignore[no-any-return]

    def _lives(self) -> bool:
        """Whether keepalive, where there is any, has not given the daemon up."""
        job = _Job(self.alive)
        _worker().give(job)
        if not job.done.acquire(timeout=_LOOK) or job.error is not None:
            return True  # it does not tell
        return bool(job.result)

    def _limit(self, name: str) -> float:
        if self.dead:
            raise _stuck(name, 0)
        usual = _DEADLINES.get(name, _USUAL)
        return min(usual, _BRIEF) if self.hangs else usual

    def _wait(self, job: _Job, name: str, limit: float) -> None:
        notice = _NOTICE if limit <= _USUAL else _NOTICE_LONG
        begin, told = time.monotonic(), False
        while not job.done.acquire(timeout=_LOOK):
            passed = time.monotonic() - begin
            if passed >= limit or interrupts.urgent():
                self.dead = self.dead or self.hangs or interrupts.urgent()
                raise _stuck(name, passed)
            if passed >= notice and not self.told:
                told = self.told = True
                events.note(f"waiting for libvirt ... ({name})")
            # A thread in a call does not always notice what the event loop's timer found out.
            if passed >= _NOTICE and not self._lives():
                self.dead = True
                raise _stuck(name, passed)
        if told:
            self.told = False  # it answers again: the next time is news


def _worker() -> _Worker:
    try:
        return _idle.pop()
    except IndexError:
        return _Worker()


def _stuck(name: str, seconds: float) -> StuckError:
    what = f"within {format_seconds(seconds)}" if seconds else "before, and is not asked again"
    return StuckError(
        f"libvirt did not answer {what}",
        why=f"it was asked for: {name}",
        fix="restart its daemon on the host, guests go on running: `systemctl restart libvirtd` "
        "(or virtqemud); then run the same command again",
    )


class Remote:
    """An object of libvirt's whose calls another thread makes; see the module."""

    __slots__ = ("_line", "_target")

    def __init__(self, target: Any, line: Line) -> None:
        self._target = target
        self._line = line

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if name in _LOCAL or not callable(found):
            return found
        line = self._line

        def call(*args: Any, **keywords: Any) -> Any:
            plain = [_bare(item) for item in args]
            return _covered(line.call(name, partial(found, *plain, **keywords)), line)

        return call

    def __repr__(self) -> str:
        return f"Remote({self._target!r})"


def _bare(item: Any) -> Any:
    return item._target if type(item) is Remote else item


def _covered(found: Any, line: Line) -> Any:
    if type(found) in _KINDS:
        return Remote(found, line)
    if type(found) in (list, tuple) and found and type(found[0]) in _KINDS:
        return [Remote(item, line) for item in found]
    return found


def connect(uri: str | None, *, far: bool) -> Any:
    """Connect to a daemon.

    Args:
        uri: libvirt's URI, None for its own choice.
        far: it is on another host.

    Returns:
        A `virConnect` in a `Remote`.

    Raises:
        libvirt.libvirtError: it cannot be.
        StuckError: the daemon takes the connection and says nothing.
    """
    _listen()
    line = Line()
    conn = line.call("open far" if far else "open", partial(_opened, uri))
    line.alive = conn.isAlive
    return Remote(conn, line)


def _opened(uri: str | None) -> libvirt.virConnect:
    conn = libvirt.open(uri)
    with suppress(libvirt.libvirtError):  # a driver inside of this process has none
        conn.setKeepAlive(*_KEEPALIVE)
    return conn


def close(conn: Any) -> None:
    """End a connection, unless it hangs; what does not work is left to the program's end."""
    line: Line = conn._line
    if line.dead or line.hangs:
        # Without this the interpreter would close it at its end, and hang.
        conn._target._o = None
        return
    with suppress(libvirt.libvirtError, StuckError):
        conn.close()


def call(what: str, function: Callable[..., T], obj: Any, *args: Any) -> T:
    """Call a function of libvirt's that takes an object and is not its method.

    Args:
        what: what is asked.
        function: the function.
        obj: the object, in a `Remote`.
        args: what else it takes.

    Raises:
        StuckError: there was no answer in time.
    """
    line: Line = obj._line
    return line.call(what, partial(function, obj._target, *args))


def together(conn: Any, what: str, work: Callable[[], T]) -> T:
    """Ask many small things in one go: each by itself would cost two changes of thread.

    Args:
        conn: the connection.
        what: what they are, together.
        work: asks them; it must change nothing, since it may be given up in the middle.

    Raises:
        StuckError: there was no answer in time.
    """
    line: Line = conn._line
    return line.call(what, work)


# --- the event loop ---------------------------------------------------------------------------

_begun = threading.Lock()


def _listen() -> None:
    """Have libvirt's event loop run from now on; it must be there before a connection is."""
    if _begun.acquire(blocking=False):
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_turn, name="libvirt events", daemon=True).start()


def _turn() -> None:
    while True:
        # Each call wakes the loop twice. A pause saves a short command all of that; keepalive
        # messages can wait for it.
        time.sleep(_TURN)
        with suppress(libvirt.libvirtError):
            libvirt.virEventRunDefaultImpl()
