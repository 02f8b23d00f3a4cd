"""The planner: every change with its reason, and nothing to do when nothing changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Network
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poclab.core.errors import Problems
from poclab.model.history import Stamp
from poclab.model.host import Foreign, Observed, ObservedNetwork, State
from poclab.model.lab import DataDisk, Forward, Lab, Mode, Nic, Ready
from poclab.model.record import VmRecord
from poclab.model.version import Profile, Ref
from poclab.planning.plan import Action, Plan, Verb, versions_needed
from poclab.planning.ports import first_port
from tests.support import make, strategies
from tests.support.make import GIB, brought_up, observed, planned


def only(found: Plan) -> Action:
    """The single action of a plan."""
    assert len(found.actions) == 1, [str(action) for action in found.actions]
    return found.actions[0]


def verbs(found: Plan) -> list[tuple[str, str]]:
    """The actions, briefly."""
    return [(action.verb.value, action.target) for action in found.actions]


def refused(wanted: Lab, host: Observed) -> list[str]:
    """The problems that a plan ends with."""
    with pytest.raises(Problems) as caught:
        planned(wanted, host)
    assert caught.value.exit_code == 2
    return caught.value.problems


# --- the first time, and the second --------------------------------------------------------


def test_an_empty_host_gets_networks_before_vms() -> None:
    wanted = make.lab(
        make.vm("db", "shop-db:v1"),
        make.vm("vm1", nics=["lan"], after=("db",)),
        networks=[make.network()],
    )
    found = planned(wanted, observed())
    assert verbs(found) == [("make network", "lan"), ("create", "db"), ("create", "vm1")]
    assert found.order == {"db": (), "vm1": ("db",)}
    network, _, vm1 = found.actions
    assert [(host.name, str(host.ip)) for host in network.hosts] == [("vm1", "10.77.1.10")]
    assert network.network == make.network_record()
    assert vm1.reasons == ("not there yet, from shop:v1",)
    assert not vm1.reboots
    assert not vm1.discards
    assert vm1.record is not None
    assert vm1.record.digest == make.digest(Ref("shop", "v1"))
    assert vm1.record.ssh_key == make.STAMP.ssh_key
    assert vm1.record.fresh
    assert [(event.action, event.by) for event in vm1.record.history] == [("create", "tester")]


def test_an_empty_lab_on_an_empty_host_is_nothing_to_do() -> None:
    assert planned(make.lab(), observed()).actions == ()


def test_a_session_has_no_networks_to_make_but_ports_to_forward() -> None:
    wanted = make.lab(make.vm(nics=["lan"]), networks=[make.network()])
    action = only(planned(wanted, observed(session=True)))
    assert action.verb is Verb.CREATE
    assert action.record
    assert action.record.forwards == (Forward(first_port("", "acme"), 22),)
    assert str(action.record.nics[0].ip) == "10.77.1.10/24"


def test_ports_are_left_out_on_a_system_daemon_and_that_is_said() -> None:
    wanted = make.lab(make.vm(ports=(Forward(8080, 80),)))
    found = planned(wanted, observed())
    assert found.records["vm1"].forwards == ()
    assert found.notes == ("vm1: ports are for qemu:///session; here it has its own address",)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(strategies.labs(), st.booleans())
def test_what_was_brought_up_has_nothing_left_to_do(wanted: Lab, session: bool) -> None:
    host = brought_up(wanted, session=session)
    assert verbs(planned(wanted, host)) == []


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(strategies.labs(), strategies.labs(), st.booleans())
def test_going_from_any_lab_to_any_other_ends_there(first: Lab, second: Lab, session: bool) -> None:
    host = brought_up(first, session=session)
    try:
        found = planned(second, host)
    except Problems as error:
        assert all("shrink" in line for line in error.problems)  # noqa: PT017
        return
    host = make.applied(found, host)
    assert verbs(planned(second, host)) == []
    assert {vm.record.name for vm in host.vms} == {vm.name for vm in second.vms}
    for action in found.actions:
        assert action.reasons
        assert all(action.reasons)


@given(strategies.labs())
def test_the_order_of_vms_in_the_file_changes_nothing(wanted: Lab) -> None:
    host = brought_up(wanted)
    turned = replace(wanted, vms=wanted.vms[::-1], networks=wanted.networks[::-1])
    assert verbs(planned(turned, host)) == []


def test_another_users_key_is_no_reason_for_anything() -> None:
    wanted = make.lab(make.vm())
    host = brought_up(wanted)
    other = Stamp("2027-01-01T00:00:00Z", "somebody", "ssh-ed25519 BBBB other")
    from poclab.planning.plan import plan

    assert plan(wanted, host, {}, other).actions == ()


# --- changes of the file ---------------------------------------------------------------------

BEFORE = make.vm(nics=["lan"], disks=(make.disk("data", keep=True), make.disk("tmp")))
NETWORKS = [make.network(), make.network("dmz", "10.77.2.0/24", Mode.ISOLATED)]

CHANGES: list[tuple[str, dict[str, Any], str, str]] = [
    ("memory", {"memory": 4 * GIB}, "memory 2 GiB -> 4 GiB", ""),
    ("cpus", {"cpus": 3}, "cpus 2 -> 3", ""),
    ("user", {"user": "demo"}, "user root -> demo", ""),
    ("disk size", {"disk_size": 9 * GIB}, "system disk of 9 GiB", ""),
    (
        "address",
        {"networks": (Nic("lan", make.address("10.77.1.50")),)},
        "networks lan 10.77.1.10 -> lan 10.77.1.50",
        "",
    ),
    (
        "mac",
        {"networks": (Nic("lan", mac="52:54:00:00:00:99"),)},
        "another mode or MAC address of networks",
        "",
    ),
    (
        "another network",
        {"networks": (Nic("lan"), Nic("dmz"))},
        "networks lan 10.77.1.10 -> lan 10.77.1.10, dmz 10.77.2.10",
        "",
    ),
    ("no network", {"networks": ()}, "networks lan 10.77.1.10 -> none", ""),
    (
        "new disk",
        {"disks": (*BEFORE.disks, DataDisk("more", GIB))},
        "new data disk more",
        "",
    ),
    (
        "larger disk",
        {"disks": (make.disk("data", 2 * GIB, keep=True), BEFORE.disks[1])},
        "data disk data 1 GiB -> 2 GiB",
        "",
    ),
    (
        "disk gone",
        {"disks": (BEFORE.disks[0],)},
        "data disk tmp no longer asked for",
        "data disk tmp",
    ),
    (
        "kept disk gone",
        {"disks": (BEFORE.disks[1],)},
        "data disk data no longer asked for (kept)",
        "",
    ),
    (
        "keep off",
        {"disks": (make.disk("data"), BEFORE.disks[1])},
        "data disk data is no longer kept from now on",
        "",
    ),
    (
        "keep on",
        {"disks": (BEFORE.disks[0], make.disk("tmp", keep=True))},
        "data disk tmp is kept from now on",
        "",
    ),
    ("disk order", {"disks": BEFORE.disks[::-1]}, "another order of data disks", ""),
]


@pytest.mark.parametrize(
    ("change", "reason", "lost"), [case[1:] for case in CHANGES], ids=[case[0] for case in CHANGES]
)
def test_what_the_guest_notices_reboots_it(change: dict[str, Any], reason: str, lost: str) -> None:
    host = brought_up(make.lab(BEFORE, networks=NETWORKS))
    wanted = make.lab(replace(BEFORE, **change), networks=NETWORKS)
    found = planned(wanted, host)
    (action,) = found.of(Verb.CHANGE)
    assert action.target == "vm1"
    assert action.reasons == (reason,)
    assert action.reboots
    assert action.discards == lost
    assert action.record
    assert action.record.history[-1].action == "change"
    assert action.record.overlay == host.vms[0].record.overlay
    assert "reboots" in str(action)
    assert reason in str(action)
    assert verbs(planned(wanted, make.applied(found, host))) == []


def test_both_size_and_keep_of_a_disk_are_said() -> None:
    host = brought_up(make.lab(BEFORE, networks=NETWORKS))
    wanted = replace(BEFORE, disks=(BEFORE.disks[0], make.disk("tmp", 2 * GIB, keep=True)))
    action = only(planned(make.lab(wanted, networks=NETWORKS), host))
    assert action.reasons == (
        "data disk tmp 1 GiB -> 2 GiB",
        "data disk tmp is kept from now on",
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ready": Ready("agent")}, "ready changed in the lab file"),
        ({"after": ("db",)}, "after changed in the lab file"),
    ],
    ids=["ready", "after"],
)
def test_what_the_guest_does_not_notice_is_only_recorded(
    change: dict[str, Any], reason: str
) -> None:
    db = make.vm("db")
    host = brought_up(make.lab(db, make.vm()))
    action = only(planned(make.lab(db, make.vm(**change)), host))
    assert action.verb is Verb.RECORD
    assert action.reasons == (reason,)
    assert not action.reboots
    assert not action.discards


def test_a_system_disk_size_taken_back_waits_for_the_next_disk() -> None:
    host = brought_up(make.lab(make.vm(disk_size=9 * GIB)))
    wanted = make.lab(make.vm())
    found = planned(wanted, host)
    assert only(found).verb is Verb.RECORD
    assert planned(wanted, make.applied(found, host)).actions == ()


def test_a_change_of_a_vm_that_is_off_reboots_nothing_and_starts_it() -> None:
    record = make.record()
    action = only(planned(make.lab(make.vm(cpus=4)), observed(make.off(record))))
    assert action.verb is Verb.CHANGE
    assert not action.reboots


def test_a_removed_vm_goes_with_its_passing_disks() -> None:
    db = make.vm("db")
    gone = make.vm("vm1", disks=(make.disk("data", keep=True), make.disk("tmp")))
    action = only(planned(make.lab(db), brought_up(make.lab(db, gone))))
    assert action.verb is Verb.REMOVE
    assert action.target == "vm1"
    assert action.reasons == ("no longer in the lab file",)
    assert action.discards == "its system disk, data disk tmp"


def test_removals_come_first_and_networks_go_last() -> None:
    before = make.lab(
        make.vm("old", nics=["lan"]), make.vm("db", nics=["lan"]), networks=[make.network()]
    )
    after = make.lab(
        make.vm("db", nics=["new"]),
        make.vm("more"),
        networks=[make.network("new", "10.77.3.0/24")],
    )
    assert verbs(planned(after, brought_up(before))) == [
        ("remove", "old"),
        ("make network", "new"),
        ("change", "db"),
        ("create", "more"),
        ("remove network", "lan"),
    ]


def test_other_labs_are_left_alone() -> None:
    other = make.record(lab="other", name="vm9", image="shop:v9")
    network = ObservedNetwork(make.network_record(lab="other"), active=False)
    host = observed(make.off(other), networks=[network], volumes=[])
    assert planned(make.lab(), host).actions == ()


# --- networks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (make.network(cidr="10.78.0.0/16"), "nat 10.77.1.0/24 -> nat 10.78.0.0/16"),
        (make.network(mode=Mode.ISOLATED), "nat 10.77.1.0/24 -> isolated 10.77.1.0/24"),
    ],
    ids=["cidr", "mode"],
)
def test_a_changed_network_is_remade_and_its_vms_reboot(network: Any, reason: str) -> None:
    vms = (make.vm(nics=["lan"]), make.vm("alone"))
    host = brought_up(make.lab(*vms, networks=[make.network()]))
    wanted = make.lab(*vms, networks=[network])
    found = planned(wanted, host)
    assert verbs(found) == [("remake network", "lan"), ("change", "vm1")]
    remake, change = found.actions
    assert remake.reasons == (reason,)
    assert [host.name for host in remake.hosts] == ["vm1"]
    assert change.reboots
    assert "network lan is remade" in change.reasons
    assert verbs(planned(wanted, make.applied(found, host))) == []


def test_an_inactive_network_is_started() -> None:
    wanted = make.lab(make.vm(nics=["lan"]), networks=[make.network()])
    host = brought_up(wanted)
    host = replace(host, networks=(stopped(host.networks[0]),), vms=(make.off(host.vms[0].record),))
    start, vm = planned(wanted, host).actions
    assert (start.verb, start.reasons) == (Verb.START_NETWORK, ("it is not active",))
    assert (vm.verb, vm.cut) == (Verb.START, ())


def stopped(network: ObservedNetwork) -> ObservedNetwork:
    """The network after virsh net-destroy: libvirt forgets who was plugged in."""
    return replace(network, active=False, connected=frozenset())


@pytest.mark.parametrize("how", ["stopped", "started again", "gone"])
def test_vms_that_run_are_plugged_into_a_network_that_was_stopped(how: str) -> None:
    vms = (make.vm(nics=["back", "lan"]), make.vm("beside", nics=["back"]))
    wanted = make.lab(*vms, networks=[make.network(), make.network("back", "10.77.9.0/24")])
    host = brought_up(wanted)
    lan = next(net for net in host.networks if net.record.name == "lan")
    there = {
        "stopped": [stopped(lan)],
        "started again": [replace(stopped(lan), active=True)],
        "gone": [],
    }[how]
    others = [net for net in host.networks if net is not lan]
    host = replace(host, networks=(*others, *there))
    *networks, action = planned(wanted, host).actions
    assert [str(item.verb) for item in networks] == {
        "stopped": ["start network"],
        "started again": [],
        "gone": ["make network"],
    }[how]
    assert (action.verb, action.target, action.cut) == (Verb.RECONNECT, "vm1", ("lan",))
    assert action.reasons == ("network lan was stopped while it ran",)
    assert not action.reboots
    assert verbs(planned(wanted, make.applied(planned(wanted, host), host))) == []


def test_a_paused_vm_is_plugged_in_and_goes_on() -> None:
    wanted = make.lab(make.vm(nics=["lan"]), networks=[make.network()])
    host = brought_up(wanted)
    host = replace(
        host,
        networks=(replace(host.networks[0], connected=frozenset()),),
        vms=(replace(host.vms[0], state=State.PAUSED),),
    )
    action = only(planned(wanted, host))
    assert (action.verb, action.cut) == (Verb.RESUME, ("lan",))
    assert action.reasons == ("it is paused", "network lan was stopped while it ran")


def test_a_vm_that_starts_anew_needs_no_other_plug() -> None:
    wanted = make.lab(make.vm(nics=["lan"]), networks=[make.network()])
    host = brought_up(wanted)
    host = replace(host, networks=(replace(host.networks[0], connected=frozenset()),))
    more = make.lab(make.vm(nics=["lan"], cpus=7), networks=[make.network()])
    action = only(planned(more, host))
    assert (action.verb, action.cut) == (Verb.CHANGE, ())


def test_lost_reservations_are_made_again() -> None:
    wanted = make.lab(make.vm(nics=["lan"]), networks=[make.network()])
    host = brought_up(wanted)
    host = replace(host, networks=(replace(host.networks[0], reservations=()),))
    action = only(planned(wanted, host))
    assert action.verb is Verb.RESERVE
    assert [str(item.ip) for item in action.hosts] == ["10.77.1.10"]


def test_the_order_of_reservations_is_of_no_interest() -> None:
    wanted = make.lab(
        make.vm(nics=["lan"]), make.vm("vm2", nics=["lan"]), networks=[make.network()]
    )
    host = brought_up(wanted)
    network = host.networks[0]
    assert len(network.reservations) == 2
    host = replace(host, networks=(replace(network, reservations=network.reservations[::-1]),))
    assert planned(wanted, host).actions == ()


# --- images: the file, what it asked for last, what runs ----------------------------------------

RESETS: list[tuple[str, str, str, str, str | None]] = [
    # name, wanted when last applied, what it runs, what the file says, where it goes
    ("as asked for", "shop:v1", "shop:v1", "shop:v1", None),
    ("reset by hand, file unchanged", "shop:v1", "shop:v3", "shop:v1", None),
    ("file changed", "shop:v1", "shop:v1", "shop:v2", "shop:v2"),
    ("reset by hand, then file changed", "shop:v1", "shop:v3", "shop:v2", "shop:v2"),
    ("file caught up with the reset by hand", "shop:v1", "shop:v3", "shop:v3", None),
    ("another image altogether", "shop:v1", "shop:v1", "other:v1", "other:v1"),
]


@pytest.mark.parametrize(
    ("wanted", "runs", "file", "goes"), [case[1:] for case in RESETS], ids=[x[0] for x in RESETS]
)
def test_three_way_image_logic(wanted: str, runs: str, file: str, goes: str | None) -> None:
    ref = Ref.parse(runs)
    record = make.record(image=wanted, version=ref, digest=make.digest(ref))
    host = observed(make.observed_vm(record))
    found = planned(make.lab(make.vm(image=file)), host)
    reset = next(iter(found.of(Verb.RESET)), None)
    assert (str(reset.record.version) if reset and reset.record else None) == goes
    if reset:
        assert reset.reasons == (f"image {wanted} -> {file}",)
        assert reset.reboots
        assert reset.discards == "its system disk"
        assert reset.record
        assert reset.record.overlay == ""
        assert reset.record.fresh
        assert reset.record.ssh_key == make.STAMP.ssh_key
        assert [event.action for event in reset.record.history] == ["create", "reset"]
    assert str(found.records["vm1"].wanted) == file
    after = make.applied(found, host)
    assert verbs(planned(make.lab(make.vm(image=file)), after)) == []


def test_a_file_that_caught_up_is_recorded_without_a_reboot() -> None:
    ref = Ref.parse("shop:v3")
    record = make.record(image="shop:v1", version=ref, digest=make.digest(ref))
    action = only(planned(make.lab(make.vm(image="shop:v3")), observed(make.observed_vm(record))))
    assert action.verb is Verb.RECORD
    assert action.reasons == ("wanted changed in the lab file",)


def test_a_reset_names_every_disk_that_goes() -> None:
    disks = (make.disk("data", keep=True), make.disk("tmp"), make.disk("soon"))
    host = observed(make.observed_vm(make.record(disks=disks)))
    soon = replace(disks[2], keep=True)
    action = only(planned(make.lab(make.vm(image="shop:v2", disks=(*disks[:2], soon))), host))
    assert action.verb is Verb.RESET
    assert action.discards == "its system disk, data disk tmp"


def test_a_missing_system_disk_is_made_again_of_what_ran() -> None:
    ref = Ref.parse("shop:v3")
    record = make.record(image="shop:v1", version=ref, digest=make.digest(ref))
    host = observed(make.off(record), volumes=[])
    wanted = make.lab(make.vm())
    assert versions_needed(wanted, host) == [ref]
    action = only(planned(wanted, host, make.versions("shop:v3")))
    assert action.verb is Verb.RESET
    assert action.reasons == ("its system disk is missing",)
    assert action.record
    assert action.record.version == ref
    assert action.discards == ""
    assert not action.reboots


def test_only_versions_that_disks_are_made_of_are_needed() -> None:
    present = make.observed_vm(make.record("a", image="shop:v1"))
    changed = make.observed_vm(make.record("b", image="shop:v1"))
    gone = make.off(make.record("gone", image="shop:v7"))
    broken = make.off(make.record("c", image="shop:v4"))
    names = make.volumes_of([present, changed])
    host = observed(present, changed, gone, broken, volumes=names)
    wanted = make.lab(
        make.vm("a", "shop:v1"),
        make.vm("b", "shop:v2"),
        make.vm("c", "shop:v4"),
        make.vm("d", "shop:v5"),
    )
    needed = versions_needed(wanted, host)
    assert [str(ref) for ref in needed] == ["shop:v2", "shop:v4", "shop:v5"]
    found = planned(wanted, host, {ref: make.version(str(ref)) for ref in needed})
    assert verbs(found) == [("remove", "gone"), ("reset", "b"), ("reset", "c"), ("create", "d")]


def test_a_version_of_another_profile_changes_the_hardware() -> None:
    host = observed(make.observed_vm(make.record()))
    store = {Ref("win", "v1"): make.version("win:v1", profile=Profile.WINDOWS, user="admin")}
    action = only(planned(make.lab(make.vm(image="win:v1")), host, store))
    assert action.record
    assert action.record.profile is Profile.WINDOWS
    assert action.record.user == "admin"


# --- states -------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.PAUSED, State.IO_ERROR, State.SUSPENDED])
def test_a_guest_that_stands_still_is_resumed(state: State) -> None:
    host = observed(make.observed_vm(make.record(), state=state))
    action = only(planned(make.lab(make.vm()), host))
    assert action.verb is Verb.RESUME
    assert action.reasons == (f"it is {state.value}",)


@pytest.mark.parametrize("state", [State.SHUTOFF, State.CRASHED])
def test_a_guest_that_is_off_is_started(state: State) -> None:
    action = only(planned(make.lab(make.vm()), observed(make.off(make.record(), state))))
    assert action.verb is Verb.START
    assert action.reasons == (f"it is {state.value}",)
    assert not action.reboots


def test_a_definition_newer_than_the_running_guest_is_put_in_force() -> None:
    """What a reset leaves when it is killed after the definition."""
    old = make.record(overlay="overlay.acme.vm1.0000000a.qcow2")
    new = make.record(overlay="overlay.acme.vm1.0000000b.qcow2", fresh=True)
    action = only(planned(make.lab(make.vm()), observed(make.observed_vm(new, live=old))))
    assert action.verb is Verb.CHANGE
    assert action.reasons == ("defined anew since it started",)
    assert action.reboots
    assert action.record
    assert action.record.overlay == new.overlay
    assert action.record.fresh


PENDING: list[Callable[[VmRecord], VmRecord]] = [
    lambda old: replace(old, cpus=9),
    lambda old: replace(old, memory=9 * GIB),
    lambda old: replace(old, nics=(make.nic(),)),
    lambda old: replace(old, disks=(make.disk(),)),
    lambda old: replace(old, user="demo"),
]


@pytest.mark.parametrize("live", PENDING)
def test_whatever_the_guest_does_not_have_yet_is_pending(
    live: Callable[[VmRecord], VmRecord],
) -> None:
    record = make.record()
    action = only(
        planned(make.lab(make.vm()), observed(make.observed_vm(record, live=live(record))))
    )
    assert (action.verb, action.reasons) == (Verb.CHANGE, ("defined anew since it started",))


def test_history_and_fresh_firmware_of_the_running_guest_are_not_pending() -> None:
    record = make.record()
    live = replace(record, fresh=True, history=(), after=("x",), ready=Ready("agent"))
    assert planned(make.lab(make.vm()), observed(make.observed_vm(record, live=live))).actions == ()


# --- refusals -----------------------------------------------------------------------------------


def test_foreign_names_are_refused() -> None:
    foreign = Foreign(frozenset({"acme.vm1", "else"}), frozenset({"acme.lan", "default"}))
    wanted = make.lab(make.vm(nics=["lan"]), make.vm("vm2"), networks=[make.network()])
    assert refused(wanted, observed(foreign=foreign)) == [
        "vm1: a domain acme.vm1 exists that is not poclab's",
        "a network acme.lan exists that is not poclab's",
    ]


def test_a_disk_kept_from_before_is_not_made_smaller() -> None:
    wanted = make.lab(make.vm(disks=(make.disk("data", GIB, keep=True),)))
    kept = {"data.acme.vm1.data.qcow2": 5 * GIB}
    down = replace(observed(volumes=kept), kept=kept)
    line = "vm1: data disk data was kept from before, has 5 GiB and cannot shrink to 1 GiB"
    assert refused(wanted, down) == [line]
    # The VM is there, and the disk was taken out of the file for a while.
    record = make.record()
    back = replace(observed(make.observed_vm(record)), kept=kept)
    assert refused(wanted, back) == [line]
    for same in (
        make.lab(make.vm(disks=(make.disk("data", 5 * GIB, keep=True),))),
        make.lab(make.vm(disks=(make.disk("data", 6 * GIB, keep=True),))),
        make.lab(make.vm(disks=(make.disk("data", GIB),))),  # a new one that goes with the VM
        make.lab(make.vm("vm2", disks=(make.disk("data", GIB, keep=True),))),
    ):
        assert len(planned(same, down).of(Verb.CREATE)) == 1


def test_a_disk_that_somebody_enlarged_by_hand_holds_nothing_up() -> None:
    wanted = make.lab(make.vm(disks=(make.disk("data", GIB, keep=True),)))
    host = brought_up(wanted)
    host = replace(host, kept=dict.fromkeys(host.kept, 9 * GIB))
    assert planned(wanted, host).actions == ()


def test_a_kept_disk_in_use_elsewhere_is_refused() -> None:
    foreign = Foreign(volumes={"data.acme.vm1.data.qcow2": "renamed"})
    wanted = make.lab(make.vm(disks=(make.disk("data", keep=True),)))
    (line,) = refused(wanted, observed(foreign=foreign))
    assert line.startswith("vm1: data disk data is in use by domain renamed")
    # One that goes with the system disk is a new one.
    wanted = make.lab(make.vm(disks=(make.disk("data"),)))
    assert planned(wanted, observed(foreign=foreign)).of(Verb.CREATE)


def test_a_session_does_not_care_for_foreign_networks() -> None:
    foreign = Foreign(networks=frozenset({"acme.lan"}))
    wanted = make.lab(make.vm(nics=["lan"]), networks=[make.network()])
    assert planned(wanted, observed(session=True, foreign=foreign)).of(Verb.CREATE)


@pytest.mark.parametrize("keep", [True, False])
def test_a_smaller_data_disk_is_refused(keep: bool) -> None:
    record = make.record(disks=(make.disk("data", 5 * GIB, keep=keep),))
    wanted = make.lab(make.vm(disks=(make.disk("data", GIB, keep=keep),)))
    assert refused(wanted, observed(make.observed_vm(record))) == [
        "vm1: data disk data has 5 GiB and cannot shrink to 1 GiB"
    ]


def test_a_data_disk_that_is_made_anew_may_be_smaller() -> None:
    record = make.record(disks=(make.disk("data", 5 * GIB),))
    wanted = make.lab(make.vm(image="shop:v2", disks=(make.disk("data", GIB),)))
    action = only(planned(wanted, observed(make.observed_vm(record))))
    assert action.discards == "its system disk, data disk data"


def test_a_smaller_system_disk_is_refused_unless_it_is_made_anew() -> None:
    host = observed(make.observed_vm(make.record(disk_size=9 * GIB)))
    small = make.vm(disk_size=3 * GIB)
    assert refused(make.lab(small), host) == [
        "vm1: the system disk has 9 GiB and cannot shrink to 3 GiB"
    ]
    action = only(planned(make.lab(replace(small, image=Ref("shop", "v2"))), host))
    assert action.record
    assert action.record.disk_size == 3 * GIB


def test_a_kept_disk_of_an_earlier_vm_is_not_overwritten() -> None:
    record = make.record(disks=(make.disk("data"),))
    there = observed(make.observed_vm(record))
    both = replace(there, volumes=there.volumes | {"data.acme.vm1.data.qcow2"})
    wanted = make.lab(make.vm(disks=(make.disk("data", keep=True),)))
    (line,) = refused(wanted, both)
    assert "data.acme.vm1.data.qcow2" in line
    assert only(planned(wanted, there)).verb is Verb.CHANGE
    # A rename that was done before the program was killed is no conflict.
    done = replace(there, volumes=frozenset({record.overlay, "data.acme.vm1.data.qcow2"}))
    assert only(planned(wanted, done)).verb is Verb.CHANGE


def test_a_kept_disk_is_found_again_by_a_new_vm() -> None:
    wanted = make.lab(make.vm(disks=(make.disk("data", keep=True),)))
    host = observed(volumes=["data.acme.vm1.data.qcow2"])
    assert only(planned(wanted, host)).verb is Verb.CREATE


@pytest.mark.parametrize(
    ("profile", "room"), [(Profile.LINUX, 19), (Profile.WINDOWS, 5), (Profile.LEGACY, 3)]
)
def test_each_profile_has_room_for_so_many_disks(profile: Profile, room: int) -> None:
    store = {Ref("shop", "v1"): make.version(profile=profile)}

    def lab(count: int) -> Lab:
        return make.lab(make.vm(disks=tuple(make.disk(f"d{n}") for n in range(count))))

    assert planned(lab(room), observed(), store).actions
    with pytest.raises(Problems, match=f"room for {room} data disks"):
        planned(lab(room + 1), observed(), store)


def test_a_session_has_room_for_ten_networks() -> None:
    networks = [make.network(f"n{index}", f"10.77.{index}.0/24") for index in range(11)]
    names = [network.name for network in networks]
    host = observed(session=True)
    assert planned(make.lab(make.vm(nics=names[:10]), networks=networks), host).actions
    wanted = make.lab(make.vm(nics=names), networks=networks)
    assert refused(wanted, host) == ["vm1: qemu:///session has room for 10 networks"]
    assert planned(wanted, observed()).actions


def test_every_problem_is_told_in_one_go() -> None:
    record = make.record("b", disks=(make.disk("data", 5 * GIB),))
    foreign = Foreign(frozenset({"acme.a"}))
    wanted = make.lab(
        make.vm("a"),
        make.vm("b", disks=(make.disk("data", GIB),)),
        make.vm("c", disks=tuple(make.disk(f"d{n}") for n in range(25))),
    )
    assert [
        line[0] for line in refused(wanted, observed(make.observed_vm(record), foreign=foreign))
    ] == ["a", "b", "c"]


# --- what an action says ------------------------------------------------------------------------


def test_an_action_says_what_why_and_at_what_price() -> None:
    action = Action(Verb.CHANGE, "vm1", ("a", "b"), reboots=True, discards="data disk tmp")
    assert str(action) == "change vm1: a; b [reboots, discards data disk tmp]"
    assert str(Action(Verb.START, "vm1", ("it is shut off",))) == "start vm1: it is shut off"


# --- size ---------------------------------------------------------------------------------------


def big(count: int) -> Lab:
    """A lab of so many VMs on four networks."""
    networks = [make.network(f"n{n}", f"10.{n}.0.0/16") for n in range(4)]
    vms = [
        make.vm(
            f"vm{index}",
            nics=[network.name for network in networks],
            after=(f"vm{index - 1}",) if index else (),
            disks=(make.disk("data", keep=True), make.disk("tmp")),
        )
        for index in range(count)
    ]
    return make.lab(*vms, networks=networks)


def seconds(count: int, *, session: bool) -> float:
    """The least time of three that planning takes, for a first `up` and for a second."""
    wanted = big(count)
    host = brought_up(wanted, session=session)
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        planned(wanted, observed(session=session))
        assert planned(wanted, host).actions == ()
        best = min(best, time.process_time() - began)
    return best


@pytest.mark.parametrize("session", [False, True])
def test_two_hundred_vms_are_planned_in_no_time_and_linearly(session: bool) -> None:
    half, whole = seconds(100, session=session), seconds(200, session=session)
    assert whole < 2
    assert whole < 4 * half + 0.2


def test_a_network_of_any_size_costs_nothing() -> None:
    wanted = make.lab(make.vm(nics=["lan"]), networks=[make.network(cidr="10.0.0.0/8")])
    began = time.process_time()
    found = planned(wanted, observed())
    assert time.process_time() - began < 0.5
    assert found.records["vm1"].nics[0].ip is not None
    assert found.records["vm1"].nics[0].ip.network == IPv4Network("10.0.0.0/8")
