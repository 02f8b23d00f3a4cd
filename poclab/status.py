"""What is there: VMs of all labs, versions, histories, as flat rows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from poclab.extents import tally
from poclab.manifest import BASE, MANIFEST, version_volumes
from poclab.model import ObservedVm, Version
from poclab.readiness import glance
from poclab.store import Store
from poclab.virt import places
from poclab.virt.host import Host
from poclab.virt.pool import LocalPool


@dataclass(frozen=True)
class VmRow:
    """A line of `poclab status`; the fields are the JSON's keys.

    Attributes:
        lab: the lab.
        vm: the VM.
        state: the domain's state; `(restart pending)` when its definition changed since.
        version: the version it runs.
        tag_digest: the digest of that version when the VM was put on it.
        address: where it answers from this host: an address, or 127.0.0.1:PORT for SSH.
        ready: "yes", "no", or "-" when nothing was asked for or it does not run.
        uptime: seconds since poclab started it, or None.
    """

    lab: str
    vm: str
    state: str
    version: str
    tag_digest: str
    address: str
    ready: str
    uptime: int | None


def status(host: Host, labs: frozenset[str] = frozenset()) -> list[VmRow]:
    """The VMs of some labs, or of all."""
    vms = [vm for vm in host.vms() if not labs or vm.record.lab in labs]
    if not vms:
        return []
    with ThreadPoolExecutor(max_workers=min(32, len(vms))) as pool:
        return list(pool.map(lambda vm: _row(host, vm), vms))


def _row(host: Host, vm: ObservedVm) -> VmRow:
    running = vm.running
    pending = vm.active and running.overlay != vm.record.overlay
    state = f"{vm.state} (restart pending)" if pending else str(vm.state)
    # What counts as ready needs no restart to change; the ports to ask by are the running ones.
    ready = glance(host, replace(running, ready=vm.record.ready)) if vm.active else None
    return VmRow(
        lab=running.lab,
        vm=running.name,
        state=state,
        version=str(running.version),
        tag_digest=running.digest,
        address=_address(host, vm),
        ready={True: "yes", False: "no", None: "-"}[ready],
        uptime=_uptime(vm),
    )


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
class ImageRow:
    """A line of `poclab image ls`; the fields are the JSON's keys.

    Attributes:
        name: the image.
        tag: the tag.
        digest: sha256 of the base disk.
        created: when it was published.
        origin: how it came: "built", "imported" or "committed", and from what.
        size: bytes of the base disk's file.
        unique: bytes on the disk that no other version has; None where that cannot be known.
        used_by: VMs on it, `LAB/VM`, separated by blanks.
        protected: whether `image rm` refuses it.
    """

    name: str
    tag: str
    digest: str
    created: str
    origin: str
    size: int
    unique: int | None
    used_by: str
    protected: bool


def image_rows(host: Host) -> list[ImageRow]:
    """All versions."""
    vms = host.vms()
    versions = Store(host.pool, host.uri).versions()
    return [
        _image_row(version, vms, alone)
        for version, alone in zip(versions, _unique(host, versions), strict=True)
    ]


def _unique(host: Host, versions: list[Version]) -> list[int | None]:
    """The bytes that each version alone has, as far as they can be known."""
    if not isinstance(host.pool, LocalPool):
        return [None] * len(versions)
    names = [name for name in host.pool.names() if name.startswith((BASE, MANIFEST))]
    found = places.find(host.pool, names)
    own = [version_volumes(version) for version in versions]
    rest = set(names).difference(*own)
    each, _ = tally([found.of(volumes) for volumes in (*own, rest)])
    known = [found.unknown.isdisjoint(volumes) for volumes in own]
    return [item.unique if sure else None for item, sure in zip(each, known, strict=False)]


def _image_row(version: Version, vms: list[ObservedVm], unique: int | None) -> ImageRow:
    return ImageRow(
        name=version.ref.image,
        tag=version.ref.tag,
        digest=version.digest,
        created=version.created,
        origin=f"{version.origin.kind} {version.origin.source}",
        size=version.size,
        unique=unique,
        used_by=" ".join(vm.record.path for vm in users(version, vms)),
        protected=version.protected,
    )


def users(version: Version, vms: list[ObservedVm]) -> list[ObservedVm]:
    """The VMs that stand on a version, by its name: defined or running."""
    return [
        vm
        for vm in vms
        if version.ref in (vm.record.version, vm.running.version)
        and version.digest in (vm.record.digest, vm.running.digest)
    ]


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
