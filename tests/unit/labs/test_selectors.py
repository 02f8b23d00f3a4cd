"""From what a user types to a VM."""

from __future__ import annotations

import pytest

from poclab.core.errors import PoclabError, UsageError
from poclab.labs.selectors import find_lab, find_targets, find_vm
from tests.support import make

VMS = [
    make.observed_vm(make.record(name, lab))
    for lab, name in [("acme", "db"), ("acme", "vm1"), ("other", "vm1"), ("other", "web")]
]


@pytest.mark.parametrize(
    ("text", "lab", "path"),
    [
        ("db", None, "acme/db"),
        ("web", None, "other/web"),
        ("acme/vm1", None, "acme/vm1"),
        ("other/vm1", None, "other/vm1"),
        ("vm1", "other", "other/vm1"),
        ("other/vm1", "other", "other/vm1"),
    ],
)
def test_a_name_finds_its_vm(text: str, lab: str | None, path: str) -> None:
    assert find_vm(VMS, text, lab).record.path == path


def test_a_name_in_two_labs_asks_for_the_lab() -> None:
    with pytest.raises(UsageError) as caught:
        find_vm(VMS, "vm1")
    assert caught.value.lines() == [
        "vm1 is in several labs",
        "why: acme/vm1, other/vm1",
        "fix: write LAB/VM",
    ]


@pytest.mark.parametrize(
    ("text", "lab", "near"),
    [
        ("dbb", None, "db"),
        ("vm2", None, "vm1"),
        ("acme/vm2", None, "acme/vm1"),
        ("acne/db", None, "acme/db"),
        ("web", "acme", None),
        ("db", "other", None),
    ],
)
def test_an_unknown_name_is_told_with_its_neighbour(
    text: str, lab: str | None, near: str | None
) -> None:
    with pytest.raises(PoclabError, match="there is no VM") as caught:
        find_vm(VMS, text, lab)
    assert caught.value.exit_code == 1
    if near:
        assert f"did you mean {near}? " in caught.value.fix
        assert caught.value.why.startswith("there are acme/")
    else:  # a VM of another lab is none of this one, and the message says so
        assert f"{lab}/{text}" in caught.value.what


def test_an_unknown_name_without_neighbour_lists_what_there_is() -> None:
    with pytest.raises(PoclabError) as caught:
        find_vm(VMS, "zzzzzzz")
    assert caught.value.why == "there are acme/db, acme/vm1, other/vm1, other/web"


def test_on_an_empty_host_there_is_nothing_to_find() -> None:
    with pytest.raises(PoclabError) as caught:
        find_vm([], "vm1")
    assert caught.value.why == "no lab is up on this host"
    with pytest.raises(PoclabError) as caught:
        find_lab([], "acme")
    assert caught.value.lines() == [
        "lab acme is not up",
        "why: no lab is up on this host",
        "fix: `poclab up acme`",
    ]


def test_a_vm_of_another_lab_than_the_one_named_is_refused() -> None:
    with pytest.raises(UsageError, match="is not in lab acme"):
        find_vm(VMS, "other/vm1", "acme")


@pytest.mark.parametrize("text", ["", "/", "a/", "/a", "a/b/c", "../x", "A", "a b", "-rf", "a\nb"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        find_vm(VMS, text)
    with pytest.raises(UsageError):
        find_lab(VMS, text)


def test_a_lab_is_all_its_vms() -> None:
    assert [vm.record.path for vm in find_lab(VMS, "acme")] == ["acme/db", "acme/vm1"]


def test_an_unknown_lab_lists_the_labs() -> None:
    with pytest.raises(PoclabError) as caught:
        find_lab(VMS, "nope")
    assert caught.value.why == "there are acme, other"


# --- VMs and labs, mixed ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "lab", "found"),
    [
        (["acme"], None, {"acme/db": False, "acme/vm1": False}),
        (["acme/vm1", "web"], None, {"acme/vm1": True, "other/web": True}),
        # Named itself as well as its lab, in whatever order: it is the one that was named.
        (["acme", "acme/vm1"], None, {"acme/db": False, "acme/vm1": True}),
        (["acme/vm1", "acme"], None, {"acme/db": False, "acme/vm1": True}),
        (["acme", "other"], None, dict.fromkeys((vm.record.path for vm in VMS), False)),
        (["vm1", "other/vm1", "web"], "other", {"other/vm1": True, "other/web": True}),
    ],
)
def test_names_of_vms_and_labs_find_each_vm_once(
    names: list[str], lab: str | None, found: dict[str, bool]
) -> None:
    assert {each.path: each.named for each in find_targets(VMS, names, lab)} == found


def test_a_name_of_a_lab_and_a_vm_asks_for_one_of_them() -> None:
    vms = [*VMS, make.observed_vm(make.record("acme", "third"))]
    with pytest.raises(UsageError) as caught:
        find_targets(vms, ["other", "acme"])
    assert caught.value.lines() == [
        "acme is a lab, and a VM too",
        "why: there are lab acme and third/acme",
        "fix: write third/acme for the VM, --lab acme --all for the lab",
    ]
    assert [each.path for each in find_targets(vms, ["third/acme"])] == ["third/acme"]
    assert [each.path for each in find_targets(vms, ["acme"], "third")] == ["third/acme"]


@pytest.mark.parametrize(("name", "near"), [("acne", "acme"), ("webb", "web"), ("x/web", "web")])
def test_what_is_neither_is_told_with_its_neighbour(name: str, near: str) -> None:
    with pytest.raises(PoclabError, match="there is no VM") as caught:
        find_targets(VMS, ["db", name])
    assert near in "; ".join(caught.value.lines())
    assert "`poclab status` lists them" in caught.value.fix


@pytest.mark.parametrize("name", ["", "A", "a b", "/", "acme/"])
def test_what_names_neither_vm_nor_lab_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        find_targets(VMS, [name])
