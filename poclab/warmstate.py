"""What a warm state is: a VM's memory and disks from the moment it became ready on a version.

A state is a manifest volume `warm.LAB.VM.MARK.json`, a memory volume `warm.LAB.VM.MARK.ram` and
the disks that the VM ran on until then; the VM went on on overlays over these. The manifest is
written first and says whether the rest is whole. A state is a cache: it is restored only where
all that it depends on is as it was, and losing it costs a boot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace

from poclab import events
from poclab.errors import PoclabError
from poclab.manifest import Volumes, base_volume, seal, unsealed, with_packed
from poclab.model import Frozen, ObservedVm, Ref, VmRecord
from poclab.virt.design import data_volume
from poclab.virt.xml import DomainSpec, domain_xml

FORMAT = 1
PREFIX = "warm."
_MANIFEST = ".json"


@dataclass(frozen=True)
class WarmState:
    """A warm state, as its manifest says.

    Attributes:
        lab: the lab's name.
        vm: the VM's name.
        version: the version that the VM ran.
        digest: that version's digest.
        parents: digests of the bases below it.
        needs: digests of what it depends on, by what that is.
        disks: the disks as they were, the system disk first.
        onto: the system disk that the VM went on on.
        created: when.
        complete: whether memory and disks are whole.
        watched: whether the guest sets its clock by itself when it is brought back; see `clock`.
    """

    lab: str
    vm: str
    version: Ref
    digest: str
    parents: tuple[str, ...]
    needs: Mapping[str, str]
    disks: tuple[Frozen, ...]
    onto: str
    created: str
    complete: bool = False
    watched: bool = False

    @property
    def path(self) -> str:
        """The VM, as a user names it."""
        return f"{self.lab}/{self.vm}"

    @property
    def mark(self) -> str:
        """What tells it from the VM's other states: the mark of its system disk."""
        return self.disks[0].volume.split(".")[-2]

    @property
    def manifest(self) -> str:
        """Its manifest's volume."""
        return f"{PREFIX}{self.lab}.{self.vm}.{self.mark}{_MANIFEST}"

    @property
    def memory(self) -> str:
        """Its memory's volume."""
        return f"{PREFIX}{self.lab}.{self.vm}.{self.mark}.ram"

    @property
    def volumes(self) -> frozenset[str]:
        """All volumes it consists of."""
        return frozenset({self.manifest, self.memory, *(item.volume for item in self.disks)})


def frozen_disks(record: VmRecord) -> tuple[Frozen, ...]:
    """The disks that a VM stands on, as a state holds them."""
    data = (Frozen(disk.name, data_volume(record, disk)) for disk in record.disks)
    return (Frozen("", record.overlay), *data)


def needs(record: VmRecord, spec: DomainSpec, host: str) -> dict[str, str]:
    """Digests of all that a state depends on, by what to call it.

    Args:
        record: the VM.
        spec: its domain; which volumes it has, and what is new with each disk, does not count.
        host: what runs guests: the versions of QEMU and libvirt, and the processor.
    """
    disks = tuple(replace(disk, path=disk.target, backing=()) for disk in spec.disks)
    bare = replace(spec, disks=disks, metadata=(), genid=None)
    sizes = [f"{record.disk_size}", *(f"{disk.size} {disk.keep}" for disk in record.disks)]
    return {
        "its version": _digest(record.digest, *record.parents),
        "its definition": _digest(domain_xml(bare)),
        "the size of a disk": _digest(*sizes),
        "the host's QEMU, libvirt or processor": _digest(host),
    }


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


# --- manifests ------------------------------------------------------------------------------


def encode(state: WarmState) -> bytes:
    """A state's manifest."""
    return seal({"format": FORMAT, **asdict(state), "version": str(state.version)})


def decode(data: bytes) -> WarmState:
    """Read a state's manifest.

    Raises:
        ValueError: it is cut short, was changed, or another program wrote it.
    """
    with unsealed(data, FORMAT) as body:
        image, _, tag = str(body.pop("version")).partition(":")
        disks = tuple(Frozen(**item) for item in body.pop("disks"))
        parents = tuple(body.pop("parents"))
        return WarmState(version=Ref(image, tag), disks=disks, parents=parents, **body)


# --- what there is --------------------------------------------------------------------------


@dataclass(frozen=True)
class Shelf:
    """The warm states in a pool, of one lab or of all.

    Attributes:
        names: the pool's volumes.
        states: the states whose manifests hold, the oldest first.
    """

    names: frozenset[str] = frozenset()
    states: tuple[WarmState, ...] = field(default_factory=tuple)

    @classmethod
    def of(cls, pool: Volumes, lab: str | None = None) -> Shelf:
        """Read what there is."""
        names = frozenset(pool.names())
        prefix = PREFIX if lab is None else f"{PREFIX}{lab}."
        manifests = (x for x in names if x.startswith(prefix) and x.endswith(_MANIFEST))
        found = [state for name in manifests if (state := _load(pool, name))]
        return cls(names, tuple(sorted(found, key=lambda item: (item.created, item.mark))))

    def whole(self) -> Iterator[WarmState]:
        """The states that could be restored: nothing of them is missing."""
        there = with_packed(self.names)
        for state in self.states:
            bases = {base_volume(digest) for digest in (state.digest, *state.parents)}
            if state.complete and self.names >= state.volumes and there >= bases:
                yield state

    def kept(self, vms: Iterable[ObservedVm]) -> list[WarmState]:
        """The states that are worth their space: of a VM that is there, the newest of a version."""
        paths = {vm.record.path for vm in vms}
        newest = {(state.path, state.digest): state for state in self.whole()}
        return [state for state in newest.values() if state.path in paths]

    def held(self, vms: Iterable[ObservedVm]) -> frozenset[str]:
        """The volumes of the states that are kept."""
        return frozenset[str]().union(*(state.volumes for state in self.kept(vms)))


def _load(pool: Volumes, name: str) -> WarmState | None:
    try:
        state = decode(pool.read(name))
    except (ValueError, PoclabError) as error:
        events.debug(f"{name} does not count: {error}")
        return None
    return state if state.disks and state.manifest == name else None
