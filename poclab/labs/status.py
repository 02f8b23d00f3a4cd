"""What is there: VMs of all labs, and their histories, as flat rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.core.scheduler import run_in_order
from poclab.guest.readiness import glance
from poclab.model.host import ObservedVm, State
from poclab.model.record import VmRecord
from poclab.model.version import Ref
from poclab.model.vm_volumes import data_volume
from poclab.planning.differences import drift
from poclab.store.versions import Store
from poclab.virt.host import Host
from poclab.virt.pool import Pool, written


@dataclass(frozen=True)
class VmRow:
    """A line of `poclab status`; the fields are the JSON's keys.

    Attributes:
        lab: the lab.
        vm: the VM.
        state: the domain's state; `(restart pending)` when its definition changed since.
        version: the version its system disk was made from.
        tag_digest: the digest of that version when the VM was put on it.
        address: where it answers from this host: an address, or 127.0.0.1:PORT for SSH.
        ready: "yes", "no", or "-" when nothing was asked for or it does not run.
        uptime: seconds since poclab started it, or None.
        wanted: the version that the lab file asked for when it was last applied.
        stored_digest: the digest that the version it runs has in the store now; empty when it is
            not there, None where that cannot be known.
        written: bytes written to its disks since they were made, kept data disks aside; None
            where that cannot be known.
        drift: how that differs from what was asked for, in words.
        in_place: the version it was switched to in place on its disk, or empty.
    """

    lab: str
    vm: str
    state: str
    version: str
    tag_digest: str
    address: str
    ready: str
    uptime: int | None
    wanted: str
    stored_digest: str | None
    written: int | None
    drift: str
    in_place: str = ""

    @property
    def runs(self) -> str:
        """The version, and the one that it was switched to in place."""
        if not self.in_place:
            return self.version
        return f"{self.version} -> {self.in_place.partition(':')[2]} in place"


def status(
    host: Host,
    labs: Collection[str] = (),
    vms: Collection[str] = (),
    ready: Collection[str] = (),
) -> list[VmRow]:
    """What there is to say of VMs.

    Args:
        host: the host.
        labs: of these labs, or of all when empty.
        vms: of these VMs, as `LAB/VM`, or of all when empty.
        ready: these VMs were seen ready a moment ago, so they are not asked again.
    """
    found = [vm for vm in host.vms() if not labs or vm.record.lab in labs]
    if host.damaged_domains:
        from poclab.store import damaged

        damaged.warn(host, damaged.domains_of(labs or {path.partition("/")[0] for path in vms}))
    found = [vm for vm in found if not vms or vm.record.path in vms]
    if not found:
        return []
    stored = _stored(host, {vm.running.version for vm in found})
    rows: dict[str, VmRow] = {}

    def look(key: str) -> None:
        vm = found[int(key)]
        rows[key] = _row(host, vm, stored, vm.record.path in ready)

    keys = [str(index) for index in range(len(found))]
    ended = run_in_order(dict.fromkeys(keys, ()), look, workers=32)
    for error in ended.values():
        if error is not None:
            raise error
    return [rows[key] for key in keys]


def _stored(host: Host, versions: set[Ref]) -> Mapping[Ref, str] | None:
    """The digests that versions have in the store; None when it cannot be read."""
    try:
        store = Store(host.pool, host.uri)
        found = (store.find(version) for version in versions)
        return {version.ref: version.digest for version in found if version}
    except PoclabError as error:
        events.debug(f"the store cannot be read: {error.why or error.what}")
        return None


def _row(host: Host, vm: ObservedVm, stored: Mapping[Ref, str] | None, seen: bool) -> VmRow:
    running = vm.running
    pending = vm.active and running.overlay != vm.record.overlay
    state = f"{vm.state} (restart pending)" if pending else str(vm.state)
    # What counts as ready needs no restart to change; the ports to ask by are the running ones.
    asked = replace(running, ready=vm.record.ready)
    seen = seen and vm.state is State.RUNNING and asked.ready is not None
    ready = (seen or glance(host, asked)) if vm.active else None
    return VmRow(
        lab=running.lab,
        vm=running.name,
        state=state,
        version=str(running.version),
        tag_digest=running.digest,
        address=_address(host, vm),
        ready={True: "yes", False: "no", None: "-"}[ready],
        uptime=_uptime(vm),
        wanted=str(vm.record.wanted),
        stored_digest=None if stored is None else stored.get(running.version, ""),
        written=None if stored is None else _written(host.pool, running),
        drift="; ".join(drift(vm, stored)),
        in_place="" if running.runs == running.version else str(running.runs),
    )


def _written(pool: Pool, record: VmRecord) -> int | None:
    """Bytes on the disks that a reset would replace; those of a warm state are below them."""
    data = (data_volume(record, disk) for disk in record.disks if not disk.keep)
    try:
        return sum(written(pool, name) for name in (record.overlay, *data))
    except PoclabError:  # a disk is gone
        return None


def _address(host: Host, vm: ObservedVm) -> str:
    record = vm.running
    if host.session:
        return f"127.0.0.1:{record.ssh_port}" if record.ssh_port else ""
    return str(record.address or "")


def _uptime(vm: ObservedVm) -> int | None:
    if not vm.active or vm.started is None:
        return None
    started = datetime.strptime(vm.started, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return max(0, int((datetime.now(UTC) - started).total_seconds()))


@dataclass(frozen=True)
class HistoryRow:
    """A line of `poclab history`; the fields are the JSON's keys."""

    time: str
    lab: str
    vm: str
    action: str
    version: str
    digest: str
    by: str
    start: str
    seconds: float | None


def history_rows(vm: ObservedVm) -> list[HistoryRow]:
    """What was done to a VM, oldest first."""
    record = vm.record
    return [
        HistoryRow(
            entry.time,
            record.lab,
            record.name,
            entry.action,
            str(entry.version),
            entry.digest,
            entry.by,
            entry.start,
            entry.seconds,
        )
        for entry in record.history
    ]
