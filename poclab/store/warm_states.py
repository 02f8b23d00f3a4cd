"""What a warm state is: a VM's memory and disks from the moment it became ready on a version.

A state is a manifest volume `warm.LAB.VM.MARK.json`, a memory volume `warm.LAB.VM.MARK.ram` and
the disks that the VM ran on until then; the VM went on on overlays over these. The manifest is
written first and says whether the rest is whole. A state is a cache: it is restored only where
all that it depends on is as it was, and losing it costs a boot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace

from poclab.core import events
from poclab.core.errors import NewerFormatError, PoclabError
from poclab.definitions.xml import DomainSpec, domain_xml
from poclab.model import shapes, volumes
from poclab.model.host import ObservedVm
from poclab.model.names import is_name
from poclab.model.record import Frozen, VmRecord
from poclab.model.version import Ref
from poclab.model.version_volumes import base_volume, with_packed
from poclab.model.vm_volumes import data_volume
from poclab.model.volumes import Kind, VolumeName
from poclab.store.manifest import PARENTS, REF, readable
from poclab.store.sealed import MalformedError, Volumes, seal, unsealed
from poclab.virt.errors import GoneError

FORMAT = 1


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
        return volumes.generation(self.disks[0].volume)

    @property
    def manifest(self) -> str:
        """Its manifest's volume."""
        return str(volumes.beside(self.disks[0].volume, Kind.WARM, "json"))

    @property
    def memory(self) -> str:
        """Its memory's volume."""
        return str(volumes.beside(self.disks[0].volume, Kind.WARM, "ram"))

    @property
    def own(self) -> tuple[str, str]:
        """Its manifest and its memory."""
        return self.manifest, self.memory

    @property
    def volumes(self) -> frozenset[str]:
        """All volumes it consists of."""
        return frozenset({*self.own, *(item.volume for item in self.disks)})


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
    """Write a state's manifest.

    Raises:
        PoclabError: if it could not be read back.
    """
    data = seal({"format": FORMAT, **asdict(state), "version": str(state.version)})
    return readable(data, decode, f"the warm state of {state.lab}/{state.vm}")


def decode(data: bytes) -> WarmState:
    """Read a state's manifest.

    Raises:
        NewerFormatError: a newer program wrote it.
        ValueError: it is cut short, was changed, or is no warm state.
    """
    return unsealed(data, FORMAT, shapes.fields(_state))


def _state(given: shapes.Fields) -> WarmState:
    state = WarmState(
        lab=given("lab", shapes.NAME),
        vm=given("vm", shapes.NAME),
        version=given("version", REF),
        digest=given("digest", shapes.DISK_DIGEST),
        parents=given("parents", PARENTS),
        needs=given("needs", shapes.mapping(shapes.text(), shapes.text())),
        disks=given("disks", shapes.listed(shapes.fields(_frozen), 64)),
        onto=given("onto", shapes.parsed(volumes.system_disk, "a system disk's name")),
        created=given("created", shapes.TIME),
        complete=given("complete", shapes.flag, WarmState.complete),
        watched=given("watched", shapes.flag, WarmState.watched),
    )
    if not state.disks or state.disks[0].disk:
        raise ValueError("disks: expected the system disk first")
    own = [*(item.volume for item in state.disks), state.onto]
    for name in map(VolumeName.parse, own):
        if not name.of(state.lab, state.vm):
            raise ValueError(f"another VM's disk: {name}")
    return state


def _frozen(given: shapes.Fields) -> Frozen:
    disk = given("disk", shapes.that(lambda text: text == "" or is_name(text), "a name", 40))
    volume = shapes.parsed(lambda text: volumes.frozen_disk(text, disk), "the disk's volume")
    return Frozen(disk, given("volume", volume))


# --- what there is --------------------------------------------------------------------------


@dataclass(frozen=True)
class Unread:
    """A manifest that was not cut short and does not tell what it holds.

    Attributes:
        name: its volume.
        fault: what is wrong with it.
        newer: whether a newer poclab wrote it.
    """

    name: VolumeName
    fault: str
    newer: bool = False

    @property
    def path(self) -> str:
        """The VM it is about, as a user names it."""
        return f"{self.name.lab}/{self.name.vm}"

    @property
    def own(self) -> tuple[str, str]:
        """Its manifest and its memory."""
        return str(self.name), str(replace(self.name, end="ram"))

    def held(self, names: Iterable[str]) -> frozenset[str]:
        """Of the volumes there are, those that may be its own, by their names."""
        own = volumes.of_lab(names, self.name.lab, Kind.OVERLAY, Kind.SCRATCH)
        disks = (x for x in own if x.vm == self.name.vm and x.first == self.name.first)
        return frozenset(names).intersection({*self.own, *map(str, disks)})


@dataclass(frozen=True)
class WarmStates:
    """The warm states in a pool, of one lab or of all.

    Attributes:
        names: the pool's volumes.
        states: the states whose manifests hold, the oldest first.
        unread: manifests that are whole and do not tell what they hold.
    """

    names: frozenset[str] = frozenset()
    states: tuple[WarmState, ...] = ()
    unread: tuple[Unread, ...] = ()

    @classmethod
    def of(cls, pool: Volumes, lab: str | None = None) -> WarmStates:
        """Read what there is."""
        names = frozenset(pool.names())
        manifests = (x for x in volumes.known(names, Kind.WARM) if x.end == "json")
        found = [_load(pool, name) for name in manifests if lab in (None, name.lab)]
        states = (item for item in found if isinstance(item, WarmState))
        return cls(
            names,
            tuple(sorted(states, key=lambda item: (item.created, item.mark))),
            tuple(sorted((x for x in found if isinstance(x, Unread)), key=lambda x: str(x.name))),
        )

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
        """The volumes of the states that are kept, and what may be of those that do not tell."""
        vms = list(vms)
        paths = {vm.record.path for vm in vms}
        kept = (state.volumes for state in self.kept(vms))
        unclear = (item.held(self.names) for item in self.unread if item.path in paths)
        return frozenset[str]().union(*kept, *unclear)


def _load(pool: Volumes, name: VolumeName) -> WarmState | Unread | None:
    try:
        state = decode(pool.read(str(name)))
    except GoneError:
        return None
    except (NewerFormatError, MalformedError) as error:
        return Unread(name, str(error), isinstance(error, NewerFormatError))
    except ValueError as error:  # cut short when it was made: nothing was kept yet
        events.debug(f"{name} does not count: {error}")
        return None
    except PoclabError as error:
        return Unread(name, error.why or error.what)
    return state if state.manifest == str(name) else Unread(name, f"it belongs to {state.path}")
