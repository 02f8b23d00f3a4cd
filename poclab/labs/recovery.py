"""Locks labs for a command, once what an interrupted one left in them is finished or undone.

Every command that changes VMs goes through `locked`: whatever step the one before it died at, it
finds a lab whose VMs are on the disks that their records name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager

from poclab.core import locks
from poclab.definitions.domain import stood_in_for
from poclab.labs import live_commit, warm
from poclab.labs.lab_host import LabHost
from poclab.virt.host import Host


@contextmanager
def locked(
    host: Host, lab: str, doing: str, *, only_looks: bool = False, drops_disks: bool = False
) -> Iterator[LabHost]:
    """Lock a lab, and put right what an interrupted command left.

    Args:
        host: the host.
        lab: the lab's name.
        doing: the command, for who waits for the lock.
        only_looks: the command changes nothing, so nothing is put right either.
        drops_disks: the command takes VMs off their disks anyway, so a live commit that was
            interrupted need not be brought to an end, which may take long.

    Yields:
        The lab.

    Raises:
        PoclabError: if the lab stays locked by another command, or cannot be put right.
    """
    with locks.hold(lab, uri=host.uri, doing=doing):
        at = LabHost(host, lab)
        if not only_looks:
            mend(at, drops_disks=drops_disks)
        yield at


@contextmanager
def all_locked(
    host: Host, labs: Collection[str], doing: str, *, drops_disks: bool = False
) -> Iterator[dict[str, LabHost]]:
    """Lock several labs, always in the same order; see `locked`.

    Args:
        host: the host.
        labs: their names.
        doing: the command; the lab's name is put behind it.
        drops_disks: as for `locked`.

    Yields:
        The labs by their names.
    """
    with ExitStack() as held:
        yield {
            lab: held.enter_context(locked(host, lab, f"{doing} in {lab}", drops_disks=drops_disks))
            for lab in sorted(set(labs))
        }


def mend(lab: LabHost, *, drops_disks: bool = False) -> None:
    """Finish or undo what an interrupted command left in a lab that is locked."""
    _mend_domains(lab)
    warm.mend(lab)
    if not drops_disks:
        live_commit.settle(lab)


def _mend_domains(lab: LabHost) -> None:
    """Bring back the domains that an interrupted `renew_tpm` took away."""
    for beside, record in lab.host.stand_ins(lab.lab):
        if not any(guest.name == record.domain for guest in lab.host.guests()):
            lab.define(record, stood_in_for(beside.uuid))
        beside.remove()
