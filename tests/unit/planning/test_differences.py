"""What follows from records: histories, volumes, and above all what is garbage."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poclab.model.history import became_ready, entry, previous, remade
from poclab.model.host import Foreign, ObservedVm
from poclab.model.ownership import garbage, volumes
from poclab.model.record import VmRecord
from poclab.model.version import Profile, Ref
from poclab.planning.checks import borrowed
from poclab.planning.differences import differences, drift, hardware, record_differences
from tests.support import make, strategies
from tests.support.make import STAMP

LABS = ("acme", "acme-2", "other")


def test_a_remade_record_waits_for_a_disk_and_has_a_longer_history() -> None:
    before = make.record(ssh_key="old", image="shop:v1")
    after = remade(before, "reset", STAMP)
    assert after.overlay == ""
    assert after.fresh
    assert after.ssh_key == STAMP.ssh_key
    assert after.history[:-1] == before.history
    assert after.history[-1] == entry(before, "reset", STAMP)
    assert (after.history[-1].version, after.history[-1].digest) == (before.version, before.digest)
    assert (after.history[-1].time, after.history[-1].by) == (STAMP.time, STAMP.by)


def test_what_ran_before_is_the_latest_other_version() -> None:
    one = make.record(image="shop:v1")
    assert previous(one) is None
    two = remade(make.record(image="shop:v2", history=one.history), "reset", STAMP)
    again = remade(two, "reset", STAMP)
    assert previous(again) == one.history[-1]
    noted = became_ready(again, "cold", 7.94)
    assert noted.history[:-1] == again.history[:-1]
    assert (noted.history[-1].start, noted.history[-1].seconds) == ("cold", 7.9)
    assert previous(noted) == one.history[-1]


@pytest.mark.parametrize(
    ("wanted", "stored", "expected"),
    [
        ("shop:v3", {"shop:v3": ""}, []),
        ("shop:v2", {"shop:v3": "", "shop:v2": "sha256:2"}, ["file asks v2"]),
        ("web:v3", {"shop:v3": ""}, ["file asks web:v3"]),
        ("shop:v3", {"shop:v3": "sha256:2"}, ["v3 is another disk now"]),
        ("shop:v3", {"shop:v2": "sha256:2"}, ["v3 is gone"]),
        ("shop:v2", {}, ["file asks v2", "v3 is gone"]),
        ("shop:v2", None, ["file asks v2"]),
    ],
)
def test_drift_is_what_runs_against_the_file_and_against_the_store(
    wanted: str, stored: dict[str, str] | None, expected: list[str]
) -> None:
    runs = make.record(image="shop:v3", wanted=Ref.parse(wanted))
    digests = (
        None
        if stored is None
        else {Ref.parse(name): value or runs.digest for name, value in stored.items()}
    )
    assert list(drift(make.observed_vm(runs), digests)) == expected
    # What is defined counts for what was asked, what runs for the rest.
    pending = make.observed_vm(make.record(image="shop:v9", wanted=runs.wanted), live=runs)
    assert list(drift(pending, digests)) == expected


def test_a_vm_stands_on_its_overlay_and_its_data_disks() -> None:
    record = make.record(disks=(make.disk("data", keep=True), make.disk("tmp")))
    assert volumes(record) == {
        "overlay.acme.vm1.00000001.qcow2",
        "data.acme.vm1.data.qcow2",
        "scratch.acme.vm1.tmp.00000001.qcow2",
    }


@settings(max_examples=200)
@given(strategies.records(), strategies.records())
def test_whatever_differs_is_said(one: VmRecord, two: VmRecord) -> None:
    two = replace(
        two, lab=one.lab, name=one.name, version=one.version, digest=one.digest,
        parents=one.parents,
        overlay=one.overlay, frozen=one.frozen, in_place=one.in_place,
        ssh_key=one.ssh_key, fresh=one.fresh, history=one.history,
    )  # fmt: skip
    lines = [*differences(one, two), *record_differences(one, two)]
    assert bool(lines) == (one != two)
    assert all(lines)


@given(strategies.records())
def test_a_record_does_not_differ_from_itself(record: VmRecord) -> None:
    assert differences(record, record) == []
    assert list(record_differences(record, record)) == []


def test_a_profile_is_a_difference() -> None:
    before = make.record()
    assert differences(before, replace(before, profile=Profile.LEGACY)) == [
        "profile linux -> legacy"
    ]


def test_what_is_no_hardware() -> None:
    record = make.record()
    other = replace(record, wanted=Ref("x", "1"), history=(), after=("a",), ssh_key="k", fresh=True)
    assert hardware(record) == hardware(other)


# --- garbage ------------------------------------------------------------------------------------

OLD, NEW = "overlay.acme.vm1.00000001.qcow2", "overlay.acme.vm1.00000002.qcow2"
KEPT = "data.acme.vm1.data.qcow2"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([OLD, NEW], [NEW]),
        ([OLD, KEPT, "data.acme.gone.data.qcow2"], []),
        ([OLD, "scratch.acme.vm1.tmp.00000001.qcow2"], ["scratch.acme.vm1.tmp.00000001.qcow2"]),
        (["overlay.acme-2.vm1.00000002.qcow2", "overlay.acm.vm1.00000002.qcow2"], []),
        (["overlay.acme.gone.00000009.qcow2"], ["overlay.acme.gone.00000009.qcow2"]),
        (["base.00.qcow2", "manifest.shop.v1.json", "poclab.json", "overlay.", "my.iso"], []),
    ],
    ids=["older or newer", "kept", "scratch", "other labs", "removed vm", "not ours"],
)
def test_garbage_of_a_lab(names: list[str], expected: list[str]) -> None:
    vms = [make.observed_vm(make.record())]
    assert garbage("acme", names, vms) == expected


def test_the_running_disk_is_no_garbage_before_the_new_one_has_taken_over() -> None:
    vm = make.observed_vm(make.record(overlay=NEW), live=make.record(overlay=OLD))
    assert garbage("acme", [OLD, NEW], [vm]) == []


def test_disks_of_a_domain_whose_record_cannot_be_read_are_left_alone() -> None:
    names = [OLD, "scratch.acme.vm1.tmp.00000001.qcow2", "overlay.acme.vm11.00000001.qcow2"]
    assert garbage("acme", names, [], Foreign(frozenset({"acme.vm1", "something"}))) == [names[2]]


def test_disks_that_a_renamed_domain_stands_on_are_left_alone() -> None:
    foreign = Foreign(frozenset({"renamed"}), volumes={OLD: "renamed", "base.00.qcow2": "renamed"})
    assert garbage("acme", [OLD, NEW], [], foreign) == [NEW]


def test_a_kept_disk_that_another_domain_stands_on_is_named() -> None:
    target = make.record(disks=(make.disk("data", keep=True), make.disk("tmp")))
    (line,) = borrowed(target, {KEPT: "renamed", OLD: "else"}, "qemu:///system")
    assert "data disk data is in use by domain renamed" in line
    assert "virsh -c qemu:///system domrename renamed acme.vm1" in line
    assert list(borrowed(target, {KEPT: "acme.vm1"}, "qemu:///system")) == []


@st.composite
def hosts(draw: st.DrawFn) -> tuple[list[ObservedVm], list[str], list[str]]:
    """VMs of several labs, the pool's volumes, and names of unreadable domains."""
    unreadable = [make.record(f"lost{n}", draw(st.sampled_from(LABS))) for n in range(2)]
    vms = []
    for name in draw(st.lists(strategies.names, max_size=4, unique=True)):
        record = draw(strategies.records(lab=draw(st.sampled_from(LABS)), name=name))
        live = draw(st.sampled_from([record, None, "other"]))
        if live == "other":
            live = draw(strategies.records(lab=record.lab, name=name))
        vms.append(make.observed_vm(record, live=live))
    strays = draw(
        st.lists(
            st.builds(
                str.format,
                st.sampled_from(
                    [
                        "overlay.{0}.{1}.{3}.qcow2",
                        "scratch.{0}.{1}.{2}.{3}.qcow2",
                        "data.{0}.{1}.{2}.qcow2",
                        "manifest.{1}.{2}.json",
                    ]
                ),
                st.sampled_from(LABS),
                strategies.names,
                strategies.names,
                st.sampled_from(["00000001", "0000000a-0000000b"]),
            ),
            max_size=6,
        )
    )
    lost = [name for record in unreadable for name in volumes(record)]
    names = sorted({*make.volumes_of(vms), *strays, *lost})
    return vms, names, [record.domain for record in unreadable]


@settings(max_examples=200)
@given(hosts(), st.sampled_from(LABS))
def test_garbage_never_names_what_anybody_needs(
    host: tuple[list[ObservedVm], list[str], list[str]], lab: str
) -> None:
    vms, names, unreadable = host
    found = garbage(lab, names, vms, Foreign(frozenset(unreadable)))
    assert set(found) <= set(names)
    for name in found:
        kind, owner, vm = name.split(".")[:3]
        assert kind in ("overlay", "scratch")
        assert owner == lab
        assert f"{owner}.{vm}" not in unreadable
        assert name not in make.volumes_of(vms)
    # ... and all the rest of the lab's passing disks is found.
    for name in set(names) - set(found) - make.volumes_of(vms):
        kind, owner, vm = name.split(".")[:3]
        assert kind not in ("overlay", "scratch") or owner != lab or f"{owner}.{vm}" in unreadable
