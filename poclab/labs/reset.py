"""Reset VMs to a version: what takes the place of reverting to a snapshot.

Every target is checked before the first disk is touched. For each VM the order is the one of
`LabHost.put_on_new_disk`: the new disk, the definition, the running guest, the start, and only
then the old disk goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.core.scheduler import SkippedError, run_in_order
from poclab.labs import live_commit, recovery, start, warm
from poclab.labs.lab_host import LabHost
from poclab.labs.reset_targets import Aim, Choice, back
from poclab.labs.selectors import Target, find_vm
from poclab.model.history import remade
from poclab.model.host import ObservedVm
from poclab.model.record import VmRecord
from poclab.model.version import Ref
from poclab.store.parked import Lifetime
from poclab.store.versions import Store
from poclab.virt.host import Host


@dataclass(frozen=True)
class Reset:
    """How the reset of one VM ended.

    Attributes:
        path: `LAB/VM`.
        version: the version it now runs.
        seconds: until it was ready, or 0 when that was not waited for.
        error: what went wrong, or None.
    """

    path: str
    version: Ref
    seconds: float = 0.0
    error: PoclabError | None = None


def reset(
    host: Host,
    targets: Sequence[Target],
    choose: Choice,
    *,
    wait: bool = True,
    keep_warm: bool | None = None,
    keep_old: Lifetime = None,
) -> list[Reset]:
    """Put VMs on a clean disk.

    Args:
        host: the host.
        targets: the VMs.
        choose: the versions that they are to run; see `aims`.
        wait: wait until they are ready.
        keep_warm: keep their memory when they are ready, or neither keep nor restore any; None
            for what the lab file says of each.
        keep_old: how long the disks that they leave are kept; None until the new ones have run.

    Returns:
        How it went with those that it was tried for: one that fails keeps no other from its reset
        but those that come `after` it.

    Raises:
        PoclabError: not every VM can be put on its version; then nothing was touched.
    """
    names = {each.vm.record.lab for each in targets}
    with recovery.all_locked(host, names, "poclab reset", drops_disks=not keep_old) as labs:
        vms = host.vms()  # once more, now that the labs are locked
        again = [replace(each, vm=find_vm(vms, each.path)) for each in targets]
        for each in again if keep_old else ():
            live_commit.refuse_foreign_disk(labs[each.vm.record.lab], each.vm)
        work = _Resetting(
            host, labs, again, choose, wait=wait, keep_warm=keep_warm, keep_old=keep_old
        )
        return work.run()


def rollback(
    host: Host,
    target: ObservedVm,
    *,
    wait: bool = True,
    keep_warm: bool | None = None,
    keep_old: Lifetime = None,
) -> list[Reset]:
    """Put a VM on a clean disk of the version that it ran before the one it runs; see `reset`.

    Raises:
        PoclabError: it ran no other, or that version is not there any more.
    """
    targets = [Target(target)]
    return reset(host, targets, back, wait=wait, keep_warm=keep_warm, keep_old=keep_old)


class _Resetting:
    def __init__(
        self,
        host: Host,
        labs: Mapping[str, LabHost],
        targets: Sequence[Target],
        choose: Choice,
        *,
        wait: bool,
        keep_warm: bool | None,
        keep_old: Lifetime,
    ) -> None:
        self._host = host
        self._chosen = targets
        self._targets = {each.path: each.vm for each in targets}
        self._choose = choose
        self._wait = wait
        self._warm = keep_warm
        self._keep_old = keep_old
        self._labs = labs
        self._errors: dict[str, Exception | None] = {}
        self._records: dict[str, VmRecord] = {}
        self._seconds: dict[str, float] = {}

    def run(self) -> list[Reset]:
        store = Store(self._host.pool, self._host.uri)
        _ = self._host.traits  # says, before anything is touched, that KVM is not to be had
        with store.reading():
            aims = self._choose(self._chosen, store)
            wanted = {path: self._target(path, aim) for path, aim in aims.of.items()}
            self._check(wanted)
            for line in aims.notes:
                events.note(line)
            order: dict[str, tuple[str, ...]] = dict.fromkeys(wanted, ())
            self._errors = run_in_order(order, lambda path: self._put(wanted[path]), workers=16)
        # Not each as soon as its disk is there: the store would be held while guests boot.
        order = {path: self._after(record) for path, record in wanted.items()}
        errors = run_in_order(order, self._start, workers=16)
        for lab in self._labs.values():
            lab.sweep()
            lab.tell_waiting([path for path in wanted if errors[path]])
        self._host.settle()
        return [self._result(path, wanted[path].version, errors[path]) for path in wanted]

    def _check(self, wanted: Mapping[str, VmRecord]) -> None:
        """See that every version's disks are there and whole, before anything is touched."""
        once = {record.version: path for path, record in wanted.items()}
        for path in once.values():
            self._labs[wanted[path].lab].bases_ready(wanted[path])

    def _target(self, path: str, aim: Aim) -> VmRecord:
        record, version = self._targets[path].record, aim.version
        moved = replace(
            record,
            version=version.ref,
            digest=version.digest,
            parents=version.parents,
            profile=version.profile,
        )
        return remade(moved, aim.action, self._labs[record.lab].stamp())

    def _put(self, record: VmRecord) -> None:
        lab, before = self._labs[record.lab], self._targets[record.path]
        over = warm.find(lab, record, before) if self._warm is not False else ()
        self._records[record.path] = lab.put_on_new_disk(record, before, over, self._keep_old)

    @staticmethod
    def _after(record: VmRecord) -> tuple[str, ...]:
        return tuple(f"{record.lab}/{name}" for name in record.after)

    def _start(self, path: str) -> None:
        if error := self._errors[path]:
            raise error  # so that nothing is begun that comes after it
        record = self._records[path]
        lab = self._labs[record.lab]
        started = start.begin(lab, record, new=True)
        if self._wait:
            keep = record.warm if self._warm is None else self._warm
            self._seconds[path] = start.settle(lab, started, keep=keep)

    def _result(self, path: str, version: Ref, error: Exception | None) -> Reset:
        if isinstance(error, SkippedError):
            error = PoclabError(f"{path} was not started", why=f"{error.cause} is not ready")
        if error is not None and not isinstance(error, PoclabError):
            raise error
        return Reset(path, version, self._seconds.get(path, 0.0), error)
