"""Reset VMs to a version: what takes the place of reverting to a snapshot.

Every target is checked before the first disk is touched. For each VM the order is the one of
`LabHost.put_on_new_disk`: the new disk, the definition, the running guest, the start, and only
then the old disk goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from poclab import lock, start, warm
from poclab.errors import PoclabError
from poclab.find import find_vm
from poclab.labhost import LabHost
from poclab.model import ObservedVm, Ref, Version, VmRecord
from poclab.names import check_tag
from poclab.records import previous, remade
from poclab.schedule import SkippedError, run_in_order
from poclab.store import Store
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


Choice = Callable[[VmRecord], Ref]


def reset(
    host: Host,
    targets: Sequence[ObservedVm],
    choose: Choice,
    *,
    action: str = "reset",
    wait: bool = True,
    keep_warm: bool | None = None,
) -> list[Reset]:
    """Put VMs on a clean disk.

    Args:
        host: the host.
        targets: the VMs.
        choose: the version that a VM is to run; see `tagged`.
        action: what their histories call it.
        wait: wait until they are ready.
        keep_warm: keep their memory when they are ready, or neither keep nor restore any; None
            for what the lab file says of each.

    Raises:
        PoclabError: a version is not there; then nothing was touched.
    """
    labs = sorted({vm.record.lab for vm in targets})
    with ExitStack() as held:
        for lab in labs:
            held.enter_context(lock.hold(lab, uri=host.uri, doing=f"poclab reset in {lab}"))
            warm.mend(LabHost(host, lab))
        again = [_again(host, vm) for vm in targets]
        return _Work(host, again, choose, action, wait=wait, keep_warm=keep_warm).run()


def tagged(tag: str | None) -> Choice:
    """Choose the version of each VM's image that has a tag, or without one that it runs.

    Raises:
        UsageError: the text is no tag.
    """
    if tag is not None:
        check_tag(tag)
    return lambda record: Ref(record.version.image, tag or record.version.tag)


def rollback(
    host: Host, target: ObservedVm, *, wait: bool = True, keep_warm: bool | None = None
) -> list[Reset]:
    """Put a VM on a clean disk of the version that it ran before the one it runs.

    Raises:
        PoclabError: it ran no other, or that version is not there any more.
    """
    path, back = target.record.path, previous(target.record)
    if back is None:
        raise PoclabError(
            f"there is nothing to roll {path} back to",
            why=f"it ran no other version than {target.record.version}",
            fix=f"`poclab reset {path}` gives it a clean disk",
        )
    found = Store(host.pool, host.uri).get(back.version)
    if found.digest != back.digest:
        raise PoclabError(
            f"{back.version} is not what {path} ran before",
            why=f"it was removed, and made anew {found.created}",
            fix=f"if that one is meant: poclab reset {path} --to {back.version.tag}",
        )
    choose: Choice = lambda _record: back.version  # noqa: E731 - a name for its type
    return reset(host, [target], choose, action="rollback", wait=wait, keep_warm=keep_warm)


def _again(host: Host, vm: ObservedVm) -> ObservedVm:
    """The VM as it is now that the lab is locked."""
    return find_vm(host.vms(), vm.record.path)


class _Work:
    def __init__(
        self,
        host: Host,
        targets: Sequence[ObservedVm],
        choose: Choice,
        action: str,
        *,
        wait: bool,
        keep_warm: bool | None,
    ) -> None:
        self._host = host
        self._targets = {vm.record.path: vm for vm in targets}
        self._choose = choose
        self._action = action
        self._wait = wait
        self._warm = keep_warm
        self._labs = {vm.record.lab: LabHost(host, vm.record.lab) for vm in targets}
        self._records: dict[str, VmRecord] = {}
        self._seconds: dict[str, float] = {}

    def run(self) -> list[Reset]:
        store = Store(self._host.pool, self._host.uri)
        _ = self._host.traits  # says, before anything is touched, that KVM is not to be had
        with store.reading():
            versions = self._checked(store)
            wanted = {path: self._target(path, version) for path, version in versions.items()}
            errors = run_in_order(dict.fromkeys(wanted, ()), lambda path: self._put(wanted[path]))
        order = {path: self._after(path) for path in wanted if errors[path] is None}
        errors |= run_in_order(order, self._start, workers=16)
        for lab in self._labs.values():
            lab.sweep()
        self._host.settle()
        return [self._result(path, versions[path].ref, errors[path]) for path in wanted]

    def _checked(self, store: Store) -> Mapping[str, Version]:
        """The version of every target; all of them, before anything is touched."""
        return {path: store.get(self._choose(vm.record)) for path, vm in self._targets.items()}

    def _target(self, path: str, version: Version) -> VmRecord:
        record = self._targets[path].record
        moved = replace(
            record,
            version=version.ref,
            digest=version.digest,
            parents=version.parents,
            profile=version.profile,
        )
        return remade(moved, self._action, self._labs[record.lab].stamp())

    def _put(self, record: VmRecord) -> None:
        lab, before = self._labs[record.lab], self._targets[record.path]
        over = warm.find(lab, record, before) if self._warm is not False else ()
        self._records[record.path] = lab.put_on_new_disk(record, before, over)

    def _after(self, path: str) -> tuple[str, ...]:
        record = self._records[path]
        return tuple(f"{record.lab}/{name}" for name in record.after)

    def _start(self, path: str) -> None:
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
