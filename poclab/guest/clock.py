"""The clock of a guest that is brought back from its memory: it stood still meanwhile.

The hardware clock is right, since QEMU takes it from the host; the guest's own goes on from when
its memory was kept. Best it sets that itself: `leave_watch` starts a loop in it a moment before its
memory is kept. The guest that goes on ends that loop after a minute or more, or sets its clock when
the pause was long; the one that is brought back finds itself in it, sees that the hardware clock
has jumped, and sets its own by it. So nobody waits for a login, or for an agent that sets the
hardware clock as well: seconds of work for an emulated guest, just when it is wanted.

Where that cannot be, the guest agent is asked, else a login does it.
"""

from __future__ import annotations

import time

from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.core.plaintext import plain
from poclab.core.process import Result, run
from poclab.guest import readiness, ssh
from poclab.guest.ssh import LabFiles
from poclab.model.record import VmRecord
from poclab.virt.host import Host

_LOGIN = 15.0  # seconds for a login and a command
# What busybox and util-linux both have. QEMU's hardware clock is UTC for every guest that has it
# (`definitions.domain`); busybox takes it for local time unless told or /etc/adjtime says so.
_READ = "hwclock -r -u"
_SET = "hwclock -s -u"
# What has passed by the hardware clock against what has passed for the guest, in seconds: the same
# but for the fractions, unless the guest stood still. The clock's file is the one of
# Documentation/ABI/testing/sysfs-class-rtc in Linux; uptime is proc_uptime(5). Reading them starts
# no process, so a look costs an emulated guest next to nothing.
_LOOK = (
    "read -r rtc </sys/class/rtc/rtc0/since_epoch && read -r up _ </proc/uptime"
    " && apart=$((rtc - ${up%%.*}))"
)
# Reading the clock shows that it can be done, and leaves the guest that goes on alone.
_WATCH = f"""\
{_READ} >/dev/null && {_LOOK} || exit 1
before=$apart left=300
while [ $left -gt 0 ]; do
    sleep 0.2 || sleep 1
    {_LOOK} || exit
    case $((apart - before)) in -1|0|1) ;; *) {_SET} && exit ;; esac
    left=$((left - 1))
done </dev/null >/dev/null 2>&1 &
echo $!
"""


def leave_watch(host: Host, record: VmRecord, files: LabFiles) -> bool:
    """Have a guest set its clock by itself when it is brought back; its memory is kept next.

    Returns:
        Whether it will. If not, `set_now` is what remains.
    """
    try:
        started = _run(host, record, files, _WATCH)
        # What a login leaves behind may be ended with it: by KillUserProcesses in logind.conf(5),
        # or with the service that each connection is where systemd listens.
        _run(host, record, files, f"kill -0 {int(started.stdout)}")
    except (PoclabError, ValueError) as error:
        events.debug(f"{record.name} does not watch its clock: {error}")
        return False
    return True


def set_now(host: Host, record: VmRecord, files: LabFiles) -> None:
    """Set the clock of a guest that was just brought back; a warning when that cannot be done."""
    faults = []
    for way in (_by_agent, _by_login):
        try:
            way(host, record, files)
            return
        except PoclabError as error:
            faults.append(plain(error.why or error.what))
    why = "; ".join(faults)
    events.warning(f"{record.name}: its clock stands at the time its memory was kept: {why}")


def _by_agent(host: Host, record: VmRecord, _: LabFiles) -> None:
    guest = host.guest(record)
    if not guest.agent_connected():
        raise PoclabError("no guest agent is connected")
    guest.set_clock(time.time())


def _by_login(host: Host, record: VmRecord, files: LabFiles) -> None:
    _run(host, record, files, _SET)


def _run(host: Host, record: VmRecord, files: LabFiles, command: str) -> Result:
    """Have root run a command in a guest over SSH.

    Raises:
        PoclabError: it cannot be done, or fails.
    """
    if record.ready is None or record.ready.kind != "ssh":
        raise PoclabError("its lab file does not say that it is reached over SSH (`ready`)")
    target = readiness.target(host, record, files)
    words = ssh.as_root(record.user, command)
    argv = ssh.argv(target, words, ["-n", "-T"], batch=True, connect_timeout=10)
    return run(argv, timeout=_LOGIN, most=ssh.ANSWER)
