"""Calls to libvirt that can be interrupted, and that end.

A call to libvirt is C code that waits for the daemon's answer, however long that takes, and while a
thread is in C code Python runs no handler of a signal in it. So no thread that somebody waits for
makes one: `connect` gives a connection in a `Remote`, which has another thread make the call and
waits for that in Python, as do all objects that come from it. After some seconds the user is told
what is waited for; beyond its deadline a call is given up.

libvirtd reads nothing more from a client that has `max_client_requests` calls out, 5 by default
(src/remote/libvirtd.conf.in), so fewer than that are out at once; the others wait for their turn,
which their deadlines do not count. libvirt's keepalive is not used: a client that has it, by an
event loop, is hung up on by libvirtd when it was stopped for half a minute (Ctrl-Z), or when its
messages are not read because of such a limit (https://libvirt.org/internals/rpc.html). Without a
loop the daemon asks for none.

Instead, while a call of a local daemon takes long, the daemon is asked for its version from time
to time by a connection of its own. One that answers is busy: the call has its deadline, and others
have theirs. One that does not answer for a minute is taken for dead: all that wait are told.

A call that was given up goes on in its thread, and what it asked for may still happen: that is as
if the program had been killed at that moment, which any next command mends. Once the user has
interrupted, other calls get a few seconds only: what cleans up must not hang where its cause hung.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import libvirt

from poclab.core import events, interrupts
from poclab.core.errors import PoclabError
from poclab.core.units import format_seconds
from poclab.virt.worker import Job, clock, here, worker

T = TypeVar("T")

_NOTICE = 3.0  # seconds after which the user is told; a call takes milliseconds
_NOTICE_LONG = 10.0  # the same for what moves a guest's memory or disks
_LOOK = 0.5  # seconds between two looks, for signals that another thread got
_BRIEF = 5.0  # seconds for a call when another one hangs and the user has interrupted
_PROBE_EVERY = 10.0  # seconds between two questions whether the daemon lives
_SILENCE = 60.0  # seconds without an answer to that, after which it is taken for dead

_AT_ONCE = 4  # calls out at once; see the module
_LONG_AT_ONCE = 3  # of them such as may take an hour, so that short ones do not wait for those

_HOUR = 3600.0
# libvirt waits 30 s for whoever works on a domain (QEMU_JOB_WAIT_TIME in qemu_domainjob.c) and
# answers then; with a margin that is what a call takes at most that does nothing long by itself.
_USUAL = 120.0
_PATIENT = 600.0
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
    "send": _PATIENT,
    "recv": _PATIENT,
    "finish": _HOUR,
    # A guest's memory is written or read, or its disks are flushed; of its agent's silence libvirt
    # itself gets tired (`guest.patient_agent`).
    "snapshotCreateXML": _HOUR,
    "restoreFlags": _HOUR,
    "createWithFlags": _HOUR,
    "blockCopy": _HOUR,
    "blockCommit": _HOUR,
    "blockJobAbort": _HOUR,
    # The daemon may ask each QEMU on the host what it can do, or wait for other programs (firewall,
    # dnsmasq) on a busy host.
    "defineXMLFlags": _PATIENT,
    "getCapabilities": _PATIENT,
    "networkDefineXMLFlags": _PATIENT,
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


class StuckError(PoclabError):
    """libvirt did not answer in time."""


class _Pulse:
    """Asks from time to time whether a daemon lives."""

    def __init__(self, ask: Callable[[], object]) -> None:
        """Prepare for the first question.

        Args:
            ask: asks; what it raises is an answer too.
        """
        self._ask = ask
        self._guard = threading.Lock()
        self._job: Job | None = None

    def gone(self) -> bool:
        """Whether the last question has had no answer for `_SILENCE`; asks when it is time to."""
        with self._guard:
            passed = clock.now() - self._job.beat if self._job else _PROBE_EVERY
            if self._job and not self._job.finished:
                return passed >= _SILENCE
            if passed >= _PROBE_EVERY:
                self._job = Job(self._ask)
                worker().give(self._job)
            return False


class Line:
    """What is known of one connection.

    Attributes:
        dead: the daemon is taken for dead: nothing is asked any more.
        told: the user was told that libvirt is waited for.
    """

    def __init__(self, probe: Callable[[], object] | None = None) -> None:
        """Have no call out yet.

        Args:
            probe: asks the daemon something short by another connection, and returns or raises
                once it answers; None where that cannot be done.
        """
        self.dead = False
        self.told = False
        self._pulse = _Pulse(probe) if probe else None
        self._hurried = False
        self._guard = threading.Lock()
        self._left: list[Job] = []  # given up, and they may still be out
        self._out: list[Job] = []
        self._places = _places(_AT_ONCE)
        self._long_places = _places(_LONG_AT_ONCE)

    @property
    def hangs(self) -> bool:
        """Whether a call that was given up is still out."""
        with self._guard:
            self._left = [job for job in self._left if not job.finished]
            return bool(self._left)

    @property
    def busy(self) -> bool:
        """Whether any call is out."""
        with self._guard:
            self._out = [job for job in self._out if not job.finished]
            return bool(self._out)

    def call(self, name: str, work: Callable[[], T]) -> T:
        """Do what calls libvirt.

        Args:
            name: what is asked, a name in `_DEADLINES` if it has a deadline of its own.
            work: the call.

        Raises:
            StuckError: there was no answer in time.
        """
        outer: Job | None = getattr(here, "job", None)
        if outer is not None:  # a part of what another thread waits for
            if outer.left:
                raise _stuck(name, 0)
            outer.beat = clock.now()
            return work()
        job = Job(work)
        try:
            self._enter(job, name)
            limit = self._limit(name)
            worker().give(job)
            self._wait(job, name, limit)
        except BaseException as error:
            self._leave(job, error)
            raise
        if job.error is not None:
            try:
                raise job.error
            finally:
                job.error = None  # else traceback and job would keep each other
        return job.result  # type: ignore[no-any-return]

    def _leave(self, job: Job, error: BaseException) -> None:
        """Give a call up."""
        job.left = True
        self._hurried = self._hurried or isinstance(error, KeyboardInterrupt)
        if not job.given:
            job.finished = True
            job.free()
        if not job.finished:
            with self._guard:
                self._left.append(job)
            interrupts.leave_behind()

    # --- places among the calls that are out ---------------------------------------------------

    def _enter(self, job: Job, name: str) -> None:
        """Wait for places; the long ones' first, so that who waits there takes no other."""
        if self.dead:
            raise _stuck(name, 0)
        usual = _DEADLINES.get(name, _USUAL)
        if usual >= _HOUR:
            self._place(self._long_places, job, name, usual)
        self._place(self._places, job, name, usual)
        with self._guard:
            self._out = [item for item in self._out if not item.finished]
            self._out.append(job)

    def _place(self, places: SimpleQueue[None], job: Job, name: str, usual: float) -> None:
        """Wait for a place.

        Raises:
            StuckError: the daemon is taken for dead, or all calls that have the places were given
                up, and none ended in the time that this one has.
        """
        lost: float | None = None
        while not self._in_a_hurry():  # then more calls than usual do no harm
            with suppress(Empty):
                places.get(timeout=_LOOK)
                job.places.append(places)
                return
            self._look(name, 0)
            with self._guard:
                waited_for = any(
                    not item.left and not item.finished and places in item.places
                    for item in self._out
                )
            lost = None if waited_for else lost or clock.now()
            if lost is not None and clock.now() - lost >= usual:
                raise _stuck(name, usual)

    # --- waiting -------------------------------------------------------------------------------

    def _in_a_hurry(self) -> bool:
        return self._hurried or interrupts.heard()

    def _limit(self, name: str) -> float:
        usual = _DEADLINES.get(name, _USUAL)
        return min(usual, _BRIEF) if self._in_a_hurry() and self.hangs else usual

    def _look(self, name: str, passed: float) -> None:
        """Look whether the daemon lives.

        Raises:
            StuckError: it is taken for dead.
        """
        if self._pulse and self._pulse.gone():
            self.dead = True
        if self.dead:
            raise _stuck(name, passed)

    def _wait(self, job: Job, name: str, limit: float) -> None:
        notice = _NOTICE if limit <= _USUAL else _NOTICE_LONG
        begin, told = clock.now(), False
        while not job.done.acquire(timeout=_LOOK):
            now = clock.now()
            if now - job.beat >= limit or interrupts.urgent():
                # Where nobody can be asked whether the daemon lives, a second call tells.
                last = self._in_a_hurry() or self._pulse is None
                self.dead = self.dead or interrupts.urgent() or (last and self.hangs)
                raise _stuck(name, now - begin)
            if now - begin >= notice:
                if not self.told:
                    told = self.told = True
                    events.note(f"waiting for libvirt ... ({name})")
                self._look(name, now - begin)
            elif self.dead:
                raise _stuck(name, now - begin)
        if told:
            self.told = False  # it answers again: the next time is news


def _places(count: int) -> SimpleQueue[None]:
    # A queue in C: an interruption cannot leave it locked, as it can a semaphore.
    found: SimpleQueue[None] = SimpleQueue()
    for _ in range(count):
        found.put(None)
    return found


def _stuck(name: str, seconds: float) -> StuckError:
    what = f"within {format_seconds(seconds)}" if seconds else "before, and is not asked again"
    return StuckError(
        f"libvirt did not answer {what}",
        why=f"libvirt gave no answer to: {name}",
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
    # Another host's daemon may cost a password each time.
    line = Line(None if far else partial(_probe, uri))
    conn = line.call("open far" if far else "open", partial(libvirt.open, uri))
    return Remote(conn, line)


def _probe(uri: str | None) -> None:
    """Ask a daemon for what it answers at once, as long as it does anything at all."""
    # Nobody has to log in for reading. libvirtd keeps threads for questions like this, so it
    # answers while all others are busy (`prio_workers` in src/remote/libvirtd.conf.in).
    conn = libvirt.openReadOnly(uri)
    try:
        conn.getLibVersion()
    finally:
        conn.close()


def close(conn: Any) -> None:
    """End a connection, unless it hangs; what does not work is left to the program's end."""
    line: Line = conn._line
    if line.dead or line.busy:
        # Without this the interpreter would close it at its end, and hang.
        conn._target._o = None
        interrupts.leave_behind()
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
        work: asks them; it must change nothing, since it may be given up in the middle. Each
            of them has the whole deadline.

    Raises:
        StuckError: there was no answer in time.
    """
    line: Line = conn._line
    return line.call(what, work)
