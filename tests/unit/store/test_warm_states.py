"""Warm states: their manifests, what they depend on, and which of them count."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poclab.definitions.domain import domain_spec
from poclab.definitions.profiles import HostTraits
from poclab.model.host import ObservedVm, State
from poclab.model.record import Frozen, VmRecord
from poclab.model.version import Ref
from poclab.model.version_volumes import base_volume
from poclab.model.vm_volumes import overlay_volume
from poclab.store.warm_states import WarmState, WarmStates, decode, encode, frozen_disks, needs
from tests.support import make, strategies

DIGEST = f"sha256:{'a' * 64}"
TRAITS = HostTraits(session=True, kvm=False, owner="1000")


def state(mark: str = "00000001", vm: str = "vm1", digest: str = DIGEST) -> WarmState:
    disks = (Frozen("", overlay_volume("acme", vm, mark)),)
    return WarmState(
        "acme", vm, Ref("shop", "v1"), digest, (), {"its version": "1"}, disks,
        overlay_volume("acme", vm, "0000000f"), f"2026-01-01T00:00:{mark[-2:]}Z", complete=True,
    )  # fmt: skip


class Pool:
    """Volumes in memory; of a state all there is."""

    def __init__(self, *states: WarmState) -> None:
        self.content: dict[str, bytes] = {}
        for item in states:
            self.content |= dict.fromkeys(item.volumes | {base_volume(item.digest)}, b"")
            self.content[item.manifest] = encode(item)

    def names(self) -> list[str]:
        return list(self.content)

    def read(self, name: str) -> bytes:
        return self.content[name]


def dependencies(record: VmRecord, host: str = "QEMU 7.2") -> dict[str, str]:
    bases = (base_volume(record.digest),)
    spec = domain_spec(record, TRAITS, uuid="a uuid", bases=bases, path=str, console_log=None)
    return needs(record, spec, host)


@given(
    strategies.records(),
    st.booleans(),
    st.dictionaries(strategies.texts, strategies.texts, max_size=5),
)
def test_a_manifest_comes_back(record: VmRecord, complete: bool, found: dict[str, str]) -> None:
    # Of a VM with a disk that is kept no memory is.
    record = replace(record, disks=tuple(disk for disk in record.disks if not disk.keep))
    one = WarmState(
        record.lab, record.name, record.version, record.digest,
        record.parents, found, frozen_disks(record),
        overlay_volume(record.lab, record.name, "0000000f"), "2026-01-01T00:00:00Z", complete,
    )  # fmt: skip
    assert decode(encode(one)) == one


@given(st.integers(min_value=0), st.integers(0, 255))
def test_a_damaged_manifest_does_not_count(place: int, byte: int) -> None:
    whole = encode(state())
    place %= len(whole)
    damaged = whole[:place] + bytes([byte]) + whole[place + 1 :]
    with suppress(ValueError):
        assert decode(damaged) == state()  # a blank for a blank between two words
    with pytest.raises(ValueError, match=r"."):
        decode(whole[:place])


def test_it_depends_on_what_the_memory_knows() -> None:
    record = make.record(disks=(make.disk("data"),))
    before = dependencies(record)
    same = replace(
        record,
        overlay=overlay_volume("acme", "vm1", "12345678"),
        frozen=frozen_disks(record),
        history=(),
        fresh=not record.fresh,
    )
    assert dependencies(same) == before
    cases = {
        "its version": dependencies(replace(record, digest="sha256:other")),
        "its definition": dependencies(replace(record, memory=record.memory * 2)),
        "the size of a disk": dependencies(replace(record, disk_size=2**30)),
        "the host's QEMU, libvirt or processor": dependencies(record, "QEMU 8.0"),
    }
    for name, after in cases.items():
        assert [key for key in before if before[key] != after[key]] == [name]


def test_a_disk_that_is_kept_is_another_one() -> None:
    passing, kept = (make.record(disks=(make.disk("data", keep=keep),)) for keep in (False, True))
    assert dependencies(passing) != dependencies(kept)


@pytest.mark.parametrize("part", ["manifest", "memory", "disk", "base"])
def test_a_state_that_lacks_something_does_not_count(part: str) -> None:
    one = state()
    pool = Pool(one)
    assert list(WarmStates.of(pool, "acme").whole()) == [one]
    names = {"manifest": one.manifest, "memory": one.memory, "disk": one.disks[0].volume}
    del pool.content[names.get(part, base_volume(one.digest))]
    assert list(WarmStates.of(pool, "acme").whole()) == []


def test_a_packed_base_is_there() -> None:
    one = state()
    pool = Pool(one)
    base = base_volume(one.digest)
    pool.content[f"{base}.zst"] = pool.content.pop(base)
    assert list(WarmStates.of(pool).whole()) == [one]


def test_a_state_under_another_name_does_not_count() -> None:
    one = state()
    pool = Pool(one)
    pool.content["warm.acme.vm2.00000001.json"] = pool.content.pop(one.manifest)
    assert WarmStates.of(pool).states == ()


def test_the_newest_state_of_a_version_is_kept_while_its_vm_is_there() -> None:
    old, new = state("00000001"), state("00000002")
    other, gone = state("00000003", digest=f"sha256:{'b' * 64}"), state("00000004", vm="gone")
    half = replace(state("00000005", digest=f"sha256:{'c' * 64}"), complete=False)
    shelf = WarmStates.of(Pool(old, new, other, gone, half), "acme")
    vm = ObservedVm(make.record(lab="acme", name="vm1"), "uuid", State.SHUTOFF)
    assert shelf.kept([vm]) == [new, other]


def test_other_labs_are_not_looked_at() -> None:
    assert WarmStates.of(Pool(state()), "acm").states == ()
    assert len(WarmStates.of(Pool(state())).states) == 1
