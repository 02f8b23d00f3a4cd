"""The clock of a guest that is brought back from its memory: it stood still meanwhile.

The hardware clock is right, since QEMU takes it from the host; the guest's own goes on from when
its memory was kept. Best it sets that itself: `leave_watch` starts a loop in it a moment before its
memory is kept. The guest that goes on ends that loop after a minute, or sets its clock when the
pause was long; the one that is brought back finds itself in it, sees that the hardware clock has
jumped, and sets its own by it. So nobody waits for a login, or for an agent that sets the hardware
clock as well: seconds of work for an emulated guest, just when it is wanted.

Where that cannot be, the guest agent is asked, else a login does it.
"""

from __future__ import annotations

import time
from contextlib import suppress

from poclab import events, readiness, ssh
from poclab.errors import PoclabError
from poclab.labhost import LabHost
from poclab.model import VmRecord
from poclab.names import plain
from poclab.run import Result, run

_LOGIN = 15.0  # seconds for a login and a command
# busybox and util-linux alike; a user who is not root needs sudo without a question.
_SET = "{ hwclock -s 2>/dev/null || sudo -n hwclock -s; }"
# What has passed by the hardware clock against what has passed for the guest, in seconds: the same
# but for the fractions, unless the guest stood still. The clock's file is the one of
# Documentation/ABI/testing/sysfs-class-rtc in Linux; uptime is proc_uptime(5). Reading them starts
# no process, so a look costs an emulated guest next to nothing.
_LOOK = (
    "read -r rtc </sys/class/rtc/rtc0/since_epoch && read -r up _ </proc/uptime"
    " && apart=$((rtc - ${up%%.*}))"
)
_WATCH = f"""\
{_SET} && {_LOOK} || exit 1
before=$apart left=300
while [ $left -gt 0 ]; do
    sleep 0.2 || sleep 1
    {_LOOK} || exit
    case $((apart - before)) in -1|0|1) ;; *) {_SET}; exit ;; esac
    left=$((left - 1))
done </dev/null >/dev/null 2>&1 &
echo $!
"""


def leave_watch(lab: LabHost, record: VmRecord) -> bool:
    """Have a guest set its clock by itself when it is brought back; its memory is kept next.

    Returns:
        Whether it will. If not, `set_now` is what remains.
    """
    try:
        started = _run(lab, record, _WATCH)
        # logind may end what a session leaves behind (KillUserProcesses in logind.conf(5)), but
        # for root unless told to.
        if record.user != "root":
            _run(lab, record, f"kill -0 {int(started.stdout)}")
    except (PoclabError, ValueError) as error:
        events.debug(f"{record.name} does not watch its clock: {error}")
        return False
    return True


def set_now(lab: LabHost, record: VmRecord) -> None:
    """Set the clock of a guest that was just brought back; a warning when that cannot be done."""
    with suppress(PoclabError):
        guest = lab.host.guest(record)
        if guest.agent_connected():
            guest.set_clock(time.time())
            return
    try:
        _run(lab, record, _SET)
    except PoclabError as error:
        why = plain(error.why or error.what)
        events.warning(f"{record.name}: its clock stands at the time its memory was kept: {why}")


def _run(lab: LabHost, record: VmRecord, command: str) -> Result:
    """Run a command in a guest over SSH.

    Raises:
        PoclabError: it cannot be done, or fails.
    """
    if record.ready is None or record.ready.kind != "ssh":
        raise PoclabError("it has neither a guest agent nor SSH")
    target = readiness.target(lab.host, record, lab.files)
    text = ["sh", "-c", command]  # whatever the user's shell is
    words = ssh.argv(target, text, ["-n", "-T"], batch=True, connect_timeout=10)
    return run(words, timeout=_LOGIN)
