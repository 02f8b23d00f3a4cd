"""Parked disks: their manifests, which of them count, what is parked, and what fits a VM again."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poclab.core.errors import PoclabError, UsageError
from poclab.labs.parked import meant
from poclab.labs.restore import choose, returned
from poclab.model.host import ObservedVm, State
from poclab.model.lab import DataDisk
from poclab.model.ownership import garbage
from poclab.model.record import Frozen, VmRecord
from poclab.model.version_volumes import base_volume
from poclab.model.vm_volumes import overlay_volume
from poclab.store.parked import (
    NEVER,
    START,
    Keep,
    Parked,
    ParkedDisks,
    decode,
    encode,
    expiry,
    has_run,
    park,
)
from poclab.store.sealed import seal
from poclab.virt.errors import GoneError
from tests.support import make, strategies

OLD, NEW, OTHER = (f"0000000{number}" for number in (1, 2, 3))
BASE = f"base.{'a' * 64}.qcow2"
YEARS = st.datetimes(datetime(2000, 1, 1), datetime(9999, 1, 1))
TIMES = YEARS.map(lambda time: time.strftime("%Y-%m-%dT%H:%M:%SZ"))


def record(mark: str = OLD, **given_: object) -> VmRecord:
    return replace(make.record(), overlay=overlay_volume("acme", "vm1", mark), **given_)  # type: ignore[arg-type]


def vm(mark: str, *, live: str = "", **given_: object) -> ObservedVm:
    """A VM that is defined on one disk, and runs on one if it does."""
    running = record(live) if live else None
    state = State.RUNNING if live else State.SHUTOFF
    return ObservedVm(record(mark, **({"fresh": True} | given_)), "uuid", state, live=running)


def item(mark: str = OLD, expires: str = NEVER, time: str = "2026-01-01T00:00:00Z") -> Parked:
    return Parked(record(mark, fresh=False, history=()), time, "ann", expires)


class Pool:
    """Volumes in memory; of what is parked all there is."""

    def __init__(self, *items: Parked, more: dict[str, bytes] | None = None) -> None:
        self.content = dict(more or {})
        for each in items:
            self.content |= dict.fromkeys(each.disks | {base_volume(each.record.digest)}, b"")
            self.content[each.manifest] = encode(each)

    def names(self) -> list[str]:
        return list(self.content)

    def read(self, name: str) -> bytes:
        if name not in self.content:
            raise GoneError(name)
        return self.content[name]

    def write(self, name: str, data: bytes) -> None:
        self.content[name] = data

    def rewrite(self, name: str, data: bytes) -> None:
        assert name in self.content
        self.content[name] = data.ljust(len(self.content[name]))

    def delete(self, name: str) -> None:
        del self.content[name]

    @property
    def lot(self) -> ParkedDisks:
        return ParkedDisks.of(self, "acme")


# --- manifests ------------------------------------------------------------------------------


@given(strategies.records(), TIMES, st.sampled_from([NEVER, START, "2026-01-01T00:00:00Z"]))
def test_a_manifest_comes_back(found: VmRecord, time: str, expires: str) -> None:
    one = Parked(replace(found, history=()), time, "ann", expires)
    assert decode(encode(one)) == one
    assert decode(encode(one) + b"  ") == one
    assert not any(name.startswith("data.") for name in one.disks)


@given(st.integers(min_value=0), st.integers(0, 255))
def test_a_manifest_that_was_changed_is_refused(place: int, byte: int) -> None:
    data = bytearray(encode(item()))
    place %= len(data)
    # One blank between two tokens for another changes nothing that the manifest says.
    if data[place] == byte or (data[place] == ord("\n") and byte in b" \t\r"):
        return
    data[place] = byte
    with pytest.raises(ValueError, match=r"."):
        decode(bytes(data))


@given(TIMES, st.none() | st.integers(0, 10**12))
def test_an_expiry_is_never_before_its_time(time: str, seconds: int | None) -> None:
    found = expiry(time, seconds)
    assert found == NEVER if seconds is None else found >= time
    assert item(expires=found).expired("9999-12-31T23:59:59Z") == (found != NEVER)
    assert not item(expires=START).expired("9999-12-31T23:59:59Z")


# --- which count ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "expires", "kept", "held"),
    [
        pytest.param(vm(OLD, live=OLD), NEVER, False, False, id="the VM was never taken off"),
        pytest.param(vm(NEW, live=OLD), START, True, True, id="it is to be taken off"),
        pytest.param(vm(NEW), START, True, True, id="the new disk never started"),
        pytest.param(vm(NEW, live=NEW), START, False, False, id="the new disk runs"),
        pytest.param(vm(NEW, fresh=False), START, False, False, id="the new disk has run"),
        pytest.param(vm(NEW, fresh=False), NEVER, True, True, id="it was asked for"),
        pytest.param(None, NEVER, True, True, id="the lab is down, and it was asked for"),
        pytest.param(None, START, False, False, id="the lab is down"),
        pytest.param(vm(OLD, live=NEW), NEVER, False, True, id="it is being put back"),
        pytest.param(vm(OLD, fresh=False), NEVER, False, False, id="it was put back"),
        pytest.param(
            vm(NEW, fresh=False, frozen=(Frozen("", overlay_volume("acme", "vm1", OLD)),)),
            NEVER, False, False, id="it became a warm state's",
        ),
    ],
)  # fmt: skip
def test_what_counts(where: ObservedVm | None, expires: str, kept: bool, held: bool) -> None:
    one = item(expires=expires)
    lot, vms = Pool(one).lot, [where] if where else []
    assert (lot.kept(vms) == [one]) == kept
    assert (one.manifest in lot.held(vms)) == held
    assert (base_volume(one.record.digest) in lot.bases(vms)) == kept
    left = garbage("acme", lot.names, vms, held=lot.held(vms))
    assert (one.manifest in left) == (not held)
    # Its disk goes only when neither the manifest nor the VM needs it.
    needed = held or (where is not None and OLD in repr(where))
    assert (one.record.overlay in left) == (not needed)


def test_a_manifest_without_its_disk_is_garbage() -> None:
    pool = Pool(item())
    pool.delete(item().record.overlay)
    assert pool.lot.kept([]) == []
    assert garbage("acme", pool.names(), [], held=pool.lot.held([])) == [item().manifest]


@pytest.mark.parametrize("content", [b"", b"{}", seal({"format": 2})])
def test_of_a_manifest_that_does_not_tell_nothing_goes(content: bytes) -> None:
    names = ("scratch.acme.vm1.data.00000009.qcow2", BASE)
    pool = Pool(item(), more=dict.fromkeys(names, b""))
    pool.content[item().manifest] = content
    lot = pool.lot
    assert lot.kept([]) == []
    assert garbage("acme", pool.names(), [], held=lot.held([])) == []
    assert BASE in lot.bases([])
    newer = b"2" in content
    assert damaged(lot) == ([] if newer else [item().manifest])
    # One that was cut short as it was written: the VM was not taken off yet.
    here = [vm(OLD, live=OLD)]
    assert item().manifest in garbage("acme", pool.names(), here, held=lot.held(here))


def test_a_record_that_is_nested_deeply_holds_its_disks() -> None:
    deep = "<vm>" + "<a>" * 5000 + "</a>" * 5000 + "</vm>"
    body = {"time": item().time, "by": "ann", "expires": NEVER, "record": deep}
    pool = Pool(item())
    pool.content[item().manifest] = seal({"format": 1, **body})
    assert damaged(pool.lot) == [item().manifest]
    assert garbage("acme", pool.names(), [], held=pool.lot.held([])) == []


def damaged(lot: ParkedDisks) -> list[str]:
    return [lost.manifest for lost in lot.damaged([])]


def test_a_manifest_of_another_name_does_not_count() -> None:
    pool = Pool(item())
    pool.content[item(NEW).manifest] = encode(item())
    pool.content[item(NEW).record.overlay] = b""
    assert pool.lot.kept([]) == [item()]
    assert damaged(pool.lot) == [item(NEW).manifest]
    pool.content["parked.acme.strange"] = b""
    assert damaged(pool.lot) == [item(NEW).manifest]


def test_manifests_go_last_and_that_of_the_disk_the_vm_is_on_after_all_others() -> None:
    one, two = item(), item(NEW)
    names = [one.manifest, two.manifest, *one.disks, *two.disks, "warm.acme.vm1.00000001.ram"]
    lot = Pool(one, two).lot
    order = sorted(names, key=lambda name: lot.last(name, [vm(OLD, live=OLD)]))
    assert order[-2:] == [two.manifest, one.manifest]


# --- parking --------------------------------------------------------------------------------

WEEK = Keep(7 * 86400.0)


def parked(pool: Pool, where: ObservedVm, keep: Keep | None) -> Parked | None:
    return park(pool, pool.lot, where, "bob", keep)


def disk(mark: str) -> dict[str, bytes]:
    return {overlay_volume("acme", "vm1", mark): b""}


def test_a_disk_is_parked_until_the_next_has_run_or_longer() -> None:
    for keep in (None, WEEK, Keep(None)):
        pool = Pool(more=disk(OLD))
        found = parked(pool, vm(OLD, live=OLD), keep)
        assert found
        assert (found.by, found.record.history) == ("bob", ())
        assert found.lasting == (keep is not None)
        assert found.expires in (START, NEVER) or found.expires > found.time
        assert pool.lot.items == (found,)


def test_what_was_asked_for_is_not_taken_back() -> None:
    pool = Pool(item())
    assert parked(pool, vm(NEW, live=OLD), None) == item()
    found = parked(pool, vm(NEW, live=OLD), WEEK)
    assert found
    assert found.expires not in (NEVER, START)
    assert pool.lot.items == (found,)


def test_a_disk_that_never_ran_is_not_parked_and_what_was_before_is_kept() -> None:
    pool = Pool(item(expires=START), more=disk(NEW))
    assert parked(pool, vm(NEW), None) == item(expires=START)
    assert parked(pool, vm(NEW), Keep(None)) == item()
    assert pool.lot.items == (item(),)
    assert parked(Pool(more=disk(NEW)), vm(NEW), WEEK) is None
    # One that a restore put it on has run before.
    assert parked(Pool(more=disk(NEW)), vm(NEW, used=True), None)


def test_a_disk_that_is_gone_is_not_parked() -> None:
    assert parked(Pool(), vm(OLD, live=OLD), WEEK) is None


def test_no_two_have_the_same_time() -> None:
    pool = Pool()
    for mark in (OLD, NEW, OTHER):
        pool.content |= disk(mark)
        assert parked(pool, vm(mark, live=mark), WEEK)
    assert len({each.time for each in pool.lot.items}) == 3


def test_what_was_noted_for_a_disk_that_runs_on_is_forgotten_when_the_vm_goes_on_over_it() -> None:
    pool = Pool(item(), more=disk(NEW))
    frozen = (Frozen("", item().record.overlay),)
    assert parked(pool, vm(NEW, live=NEW, fresh=False, frozen=frozen), WEEK)
    assert item().manifest not in pool.names()
    # One that the VM is only to be put back on stays parked.
    pool = Pool(item(), more=disk(NEW))
    assert parked(pool, vm(OLD, live=NEW, used=True), None)
    assert item().manifest in pool.names()


def test_whether_it_has_run() -> None:
    assert not has_run(vm(NEW))
    assert not has_run(vm(NEW, live=OLD))
    assert has_run(vm(NEW, live=NEW))
    assert has_run(vm(NEW, fresh=False))


# --- which is meant -------------------------------------------------------------------------

FIRST, SECOND = item(OTHER), item(OLD, time="2026-01-02T00:00:00Z")


@pytest.mark.parametrize(
    ("where", "time", "expected"),
    [
        (vm(NEW, fresh=False), "", SECOND),
        (vm(NEW, fresh=False), "2026-01-01", FIRST),
        (vm(NEW, fresh=False), "2026-01-02T00:00:00Z", SECOND),
        (vm(OTHER, live=NEW, used=True), "", FIRST),
        (vm(OTHER, live=NEW, used=True), "2026-01-02", SECOND),
        (vm(OTHER, live=OTHER, fresh=False), "", FIRST),
    ],
)
def test_the_latest_is_meant_or_what_was_begun(
    where: ObservedVm, time: str, expected: Parked
) -> None:
    assert choose(Pool(FIRST, SECOND).lot, where, time) == expected


def test_what_is_not_there_or_not_clear() -> None:
    where, lot = vm(NEW, fresh=False), Pool(FIRST, SECOND).lot
    with pytest.raises(UsageError, match=r"several.*\nwhy: 2026-01-01T00:00:00Z, 2026-01-02"):
        choose(lot, where, "2026")
    with pytest.raises(PoclabError, match="no disk of '2025' of acme/vm1 is parked"):
        choose(lot, where, "2025")
    with pytest.raises(PoclabError, match="plain `reset` does not"):
        choose(ParkedDisks(), where)


def test_a_name_means_one() -> None:
    items = [FIRST, SECOND]
    for text in ("vm1@2026-01-02", "acme/vm1@2026-01-02T00:00:00Z"):
        assert meant(items, text) == SECOND
    for text in ("vm1", "vm1@", "vm1@2026"):
        with pytest.raises(UsageError):
            meant(items, text)
    for text in ("vm2@2026", "other/vm1@2026", "vm1@2025"):
        with pytest.raises(PoclabError, match="there is no parked disk"):
            meant(items, text)


# --- what fits ------------------------------------------------------------------------------


def disks(**sizes: int) -> tuple[DataDisk, ...]:
    return tuple(DataDisk(name, abs(size), keep=size < 0) for name, size in sizes.items())


def test_a_vm_is_as_its_file_has_it_on_the_disks_of_then() -> None:
    then = record(OLD, disks=disks(a=4, kept=-9, gone=2), disk_size=7, memory=1, user="old")
    now = record(NEW, disks=disks(new=5, a=3, kept=-9), disk_size=5, memory=2, user="new")
    found = returned(now, then, make.STAMP)
    assert found.disks == disks(new=5, a=4, kept=-9, gone=2)
    assert (found.overlay, found.disk_size, found.memory, found.user) == (
        then.overlay, 7, 2, "old",
    )  # fmt: skip
    assert (found.fresh, found.used, found.wanted) == (True, True, now.wanted)
    assert [entry.action for entry in found.history][-1] == "restore"
    assert found.history[:-1] == now.history


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(PoclabError, match="data disk a was parked with it, and has keep: true"):
        returned(record(disks=disks(a=-4)), record(disks=disks(a=4)), make.STAMP)
    many = disks(**{f"d{number}": 1 for number in range(12)})
    other = disks(**{f"e{number}": 1 for number in range(12)})
    with pytest.raises(PoclabError, match="24 data disks, and profile linux has room for 19"):
        returned(record(disks=many), record(disks=other), make.STAMP)
