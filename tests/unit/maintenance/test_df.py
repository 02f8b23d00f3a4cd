"""What is counted where in `poclab df`."""

from __future__ import annotations

from dataclasses import replace

from poclab.maintenance.df import Group, SpaceRow, groups, rows
from poclab.model.lab import DataDisk
from poclab.model.ownership import volumes
from poclab.model.version import Ref
from poclab.model.version_volumes import base_volume, bases, manifest_volume, packed_volume
from poclab.virt.allocation import Places
from tests.support import make

V1 = make.version("shop:v1")
BASE, MANIFEST = base_volume(V1.digest), manifest_volume(V1.ref)
THIN = make.version("shop:v2", parents=(V1.digest,))
DISKS = (DataDisk("log", 1), DataDisk("data", 1, keep=True))
VM = make.record(image="shop:v2", disks=DISKS, digest=THIN.digest, parents=THIN.parents)
KEPT = "data.old.db.data.qcow2"


def test_every_volume_is_counted_once_or_as_shared() -> None:
    lone, odd = "base.lone.qcow2", "notes.txt"
    own = [name for item in (V1, THIN) for name in (*bases(item)[:1], manifest_volume(item.ref))]
    names = ["poclab.json", *own, *volumes(VM), KEPT, lone, odd]
    found = {
        (each.kind, each.name): each
        for each in groups([V1, THIN], [make.observed_vm(VM)], names, [lone])
    }
    assert list(found) == [
        ("version", "shop:v1"),
        ("version", "shop:v2"),
        ("data disks", "acme"),
        ("system disks", "acme"),
        ("data disks", "old"),
        ("other", odd),
        ("garbage", "poclab gc"),
    ]
    # What a version stands on is its own too: it goes with the last of them.
    thin = found["version", "shop:v2"]
    assert {BASE, base_volume(THIN.digest), manifest_volume(THIN.ref)} <= thin.volumes
    assert thin.copies == bases(THIN)
    system = found["system disks", "acme"]
    assert system.volumes == {VM.overlay}
    assert system.copies == (VM.overlay, *bases(VM))
    assert found["data disks", "acme"].volumes == volumes(VM) - {VM.overlay}
    assert found["garbage", "poclab gc"] == Group("garbage", "poclab gc", frozenset([lone]), ())
    assert set().union(*(each.volumes for each in found.values())) >= {*names} - {"poclab.json"}


def test_garbage_beside_a_version_is_garbage_alone() -> None:
    packed = packed_volume(BASE)
    version, garbage = groups([V1], [], [BASE, packed, MANIFEST], [packed])
    assert packed not in version.volumes
    assert garbage.volumes == {packed}


def test_lines_and_their_sum() -> None:
    tag = replace(V1, ref=Ref("shop", "stable"))
    where = Places(
        {
            BASE: [(0, 100)],
            MANIFEST: [(200, 210)],
            manifest_volume(tag.ref): [(210, 220)],
            VM.overlay: [(300, 305)],
            "base.other.qcow2": [(50, 120)],
        },
        frozenset(),
    )
    vm = make.observed_vm(make.record(digest=V1.digest))
    found = rows(groups([V1, tag], [vm], where.ranges, []), where)
    assert found == [
        SpaceRow("version", "shop:v1", 110, 100, 10, 100),
        SpaceRow("version", "shop:stable", 110, 100, 10, 100),
        SpaceRow("system disks", "acme", 5, 0, 5, 105),
        SpaceRow("other", "base.other.qcow2", 70, 50, 20, 70),
        SpaceRow("garbage", "poclab gc", 0, 0, 0, 0),
        SpaceRow("total", "all", 145, 100, 45, 375),
    ]


def test_what_is_not_known_is_not_made_up() -> None:
    far = 2**64
    where = Places({BASE: [(far, far + 100)], VM.overlay: [(0, 7)]}, frozenset([BASE]))
    version, disks, _, total = rows(groups([V1], [], where.ranges, []), where)
    assert (version.allocated, version.shared, version.unique) == (100, None, None)
    assert (disks.allocated, disks.shared, disks.unique) == (7, 0, 7)
    assert (total.allocated, total.shared, total.unique) == (107, None, None)


def test_a_packed_version_as_a_full_copy_is_what_it_was() -> None:
    where = Places({packed_volume(BASE): [(0, 40)], MANIFEST: [(50, 51)]}, frozenset())
    version, _, _ = rows(groups([V1], [], where.ranges, []), where, {BASE: 100})
    assert (version.allocated, version.full) == (41, 100)
    version, _, _ = rows(groups([V1], [], where.ranges, []), where)
    assert version.full == 40  # nothing says how large it was
