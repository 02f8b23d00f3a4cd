"""Bring a lab up: plan, then do what the plan says.

Order within a VM's change: new disk first, then the definition, then the running guest, then
the old disk goes. Whatever the moment the program dies at, the VM stands on its old disk or
on its new one, and the next `up`, `reset` or `down` deletes what nobody stands on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from threading import Lock

from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.core.scheduler import SkippedError, run_in_order
from poclab.definitions.network import network_spec
from poclab.definitions.xml import network_xml
from poclab.guest import readiness
from poclab.labs import recovery, start, warm
from poclab.labs.lab_host import LabHost
from poclab.model.lab import Lab
from poclab.model.record import VmRecord
from poclab.planning.plan import Action, Plan, Verb, plan, versions_needed
from poclab.planning.ports import PortBook
from poclab.virt.errors import PortTakenError
from poclab.virt.host import Host
from poclab.virt.network import LabNetwork

SHUTDOWN_PATIENCE = 60.0  # seconds a guest gets to shut down before a change
_PORT_ATTEMPTS = 2  # starts that end for want of a port before the user is told


@dataclass(frozen=True)
class Outcome:
    """How `up` ended.

    Attributes:
        plan: what there was to do.
        applied: whether it was done (not with a dry run, or when the user said no).
        ready: the seconds each VM took from its start until it was ready.
        failed: what went wrong, by VM.
    """

    plan: Plan
    applied: bool
    ready: Mapping[str, float]
    failed: Mapping[str, PoclabError]


def up(
    host: Host,
    lab: Lab,
    *,
    dry_run: bool = False,
    keep_warm: bool | None = None,
    confirm: Callable[[Plan], bool] = lambda _plan: True,
) -> Outcome:
    """Make the host show what the lab file asks for.

    Args:
        host: the host.
        lab: the lab as asked for.
        dry_run: stop after the plan.
        keep_warm: keep the memory of VMs on new disks, or neither keep nor restore any; None for
            what the lab file says.
        confirm: called with a plan that has something to do, before it is done.

    Raises:
        PoclabError: the plan cannot be made, or a step that all VMs need failed.
    """
    doing = f"poclab up {lab.name}"
    with recovery.locked(host, lab.name, doing, only_looks=dry_run) as lab_host:
        seen = _plan(lab_host, lab, key=False)
        if dry_run or (seen.actions and not confirm(seen)):
            return Outcome(seen, applied=False, ready={}, failed={})
        return _Applier(lab_host, lab, keep_warm).run(seen)


def _plan(lab_host: LabHost, lab: Lab, *, key: bool) -> Plan:
    """Plan; `key` says whether records may be made, which need the lab's key."""
    observed = lab_host.observe()
    versions = {ref: lab_host.store.get(ref) for ref in versions_needed(lab, observed)}
    return plan(lab, observed, versions, lab_host.stamp(key=key))


class _Applier:
    def __init__(self, lab_host: LabHost, lab: Lab, keep_warm: bool | None) -> None:
        self._at = lab_host
        self._host = lab_host.host
        self._lab = lab
        self._warm = keep_warm
        self._records: dict[str, VmRecord] = {}
        self._to_start: set[str] = set()
        self._new: set[str] = set()
        self._failed: dict[str, PoclabError] = {}
        self._ready: dict[str, float] = {}
        self._taken: set[int] = set()  # ports that were free when they were chosen
        self._choosing = Lock()

    def run(self, seen: Plan) -> Outcome:
        host = self._host
        with (
            # No version goes and no port is given twice before the definitions name them.
            self._at.store.reading(),
            self._at.giving_ports(),
        ):
            # A key that no disk gets would only hide that the right one is on another machine.
            key = bool(seen.of(Verb.CREATE, Verb.RESET))
            todo = _plan(self._at, self._lab, key=key)
            shown = {str(action) for action in seen.actions}
            new = [action for action in todo.actions if str(action) not in shown]
            # A port that came free or a record is nothing the user was asked about.
            if any(x.reboots or x.discards or x.verb in (Verb.CREATE, Verb.RESET) for x in new):
                raise PoclabError(
                    f"lab {self._lab.name} changed since the plan was shown", fix="run it again"
                )
            if todo.of(*_VM_VERBS):
                _ = host.traits  # says, before anything is touched, that KVM is not to be had
            self._records = dict(todo.records)
            self._removals(todo)
            self._networks(todo)
            for action in todo.of(*_VM_VERBS):
                self._guarded(action.target, self._prepare, action)
        self._start_all(todo)
        for action in todo.of(Verb.REMOVE_NETWORK):
            self._at.remove_network(action.target)
        self._at.sweep()
        self._at.tell_waiting([f"{self._lab.name}/{name}" for name in self._failed])
        host.settle()
        return Outcome(todo, applied=bool(todo.actions), ready=self._ready, failed=self._failed)

    def _guarded(self, vm: str, work: Callable[[Action], None], action: Action) -> None:
        """Do a VM's work; what goes wrong is the VM's, the others go on."""
        try:
            work(action)
        except PoclabError as error:
            self._failed[vm] = error

    # --- networks and removals -----------------------------------------------------------

    def _removals(self, todo: Plan) -> None:
        for action in todo.of(Verb.REMOVE):
            if action.before:
                self._at.remove(action.before.record)

    def _networks(self, todo: Plan) -> None:
        for action in todo.of(Verb.REMAKE_NETWORK):
            for vm in todo.of(Verb.CHANGE, Verb.RESET):
                if vm.before and vm.before.active:
                    self._host.guest(vm.before.record).shut_down(SHUTDOWN_PATIENCE)
            self._network(action).remove()
        for action in todo.of(Verb.MAKE_NETWORK, Verb.REMAKE_NETWORK):
            if action.network:
                spec = network_spec(action.network, action.hosts)
                self._host.define_network(network_xml(spec), action.network)
        for action in todo.of(Verb.START_NETWORK):
            self._network(action).start()
        for action in todo.of(Verb.RESERVE):
            self._network(action).reserve(action.hosts)

    def _network(self, action: Action) -> LabNetwork:
        return self._host.network(self._lab.name, action.target)

    # --- VMs -----------------------------------------------------------------------------

    def _prepare(self, action: Action) -> None:
        """All that has to be right before the VM starts."""
        record, found = action.record, action.before
        if record is None:
            raise ValueError(f"{action.verb} {action.target} prepares no VM")
        if action.verb in (Verb.CREATE, Verb.RESET):
            self._at.bases_ready(record)
            over = warm.find(self._at, record, found) if self._warm is not False else ()
            record = self._at.put_on_new_disk(record, found, over)
            self._new.add(record.name)
        elif action.verb in (Verb.CHANGE, Verb.START) and found:
            if found.active:
                self._host.guest(record).shut_down(SHUTDOWN_PATIENCE)
            self._at.fit_system_disk(record)
            self._at.data_disks(record, found.record)
            self._at.define(record, found.uuid)
        elif found:
            guest = self._at.define(record, found.uuid)
            if action.verb is Verb.RESUME:
                if record.fresh:
                    self._at.has_run(record)  # brought back from a warm state and left there
                guest.resume()
            self._at.reconnect(record, action.cut)
        self._records[action.target] = record
        if action.verb in _STARTS:
            self._to_start.add(action.target)

    def _start_all(self, todo: Plan) -> None:
        results = run_in_order(todo.order, self._start, workers=16)
        for name, error in results.items():
            if isinstance(error, SkippedError):
                error = PoclabError(
                    f"{self._lab.name}/{name} was not started", why=f"{error.cause} is not ready"
                )
            if error is not None and not isinstance(error, PoclabError):
                raise error
            if error is not None:
                self._failed.setdefault(name, error)

    def _start(self, name: str) -> None:
        if name in self._failed:
            raise self._failed[name]
        record = self._records[name]
        if name not in self._to_start:
            if readiness.glance(self._host, record) is False:
                self._ready[name] = readiness.wait(self._host, record, self._at.files)
            return
        started = self._start_guest(record, new=name in self._new)
        keep = record.warm if self._warm is None else self._warm
        self._ready[name] = start.settle(self._at, started, keep=keep)

    def _start_guest(self, record: VmRecord, *, new: bool) -> start.Started:
        """Start a VM, if need be with another port where poclab chose it and a program took it."""
        asked = {forward.host for vm in self._lab.vms for forward in vm.ports}
        for _ in range(_PORT_ATTEMPTS):
            try:
                return start.begin(self._at, record, new=new)
            except PortTakenError as error:
                if error.port in asked:
                    raise
                record = self._other_port(record, error.port)
        return start.begin(self._at, record, new=new)

    def _other_port(self, record: VmRecord, taken: int) -> VmRecord:
        vm = next(vm for vm in self._lab.vms if vm.name == record.name)
        with self._choosing, self._at.giving_ports():
            self._taken.add(taken)
            seen = self._at.observe()
            book = PortBook(
                self._lab,
                seen.vms,
                seen.of(self._lab.name),
                lambda port: port not in self._taken and seen.port_free(port),
                seen.pool,
            )
            record = replace(record, forwards=book.of(vm))
            self._at.define(record, self._host.guest(record).uuid)
        events.note(f"{record.name}: another program took port {taken}: it gets another one")
        return record


_STARTS = (Verb.CREATE, Verb.RESET, Verb.CHANGE, Verb.START)
_VM_VERBS = (*_STARTS, Verb.RECORD, Verb.RESUME, Verb.RECONNECT)
