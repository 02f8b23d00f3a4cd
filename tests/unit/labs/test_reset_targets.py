"""Which version each VM of a reset is put on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poclab.core.errors import PoclabError, UsageError
from poclab.definitions import metadata
from poclab.labs.reset_targets import Aims, Choice, back, same, to
from poclab.labs.selectors import Target
from poclab.model.history import Stamp, remade
from poclab.model.record import HistoryEntry
from poclab.model.version import Ref, Version
from poclab.store.marks import Mark, Marked, Marks, Pending, Unreadable
from tests.support import make


class WarmStates:
    """Versions by name, as the store gives them."""

    def __init__(self, *found: Version) -> None:
        self._found = {version.ref: version for version in found}

    def has(self, ref: Ref) -> bool:
        return ref in self._found

    def find(self, ref: Ref) -> Version | None:
        return self._found.get(ref)

    def get(self, ref: Ref) -> Version:
        if ref not in self._found:
            raise PoclabError(f"{ref} is not there")
        return self._found[ref]

    def versions(self) -> list[Version]:
        return list(self._found.values())


SHELF = WarmStates(*(make.version(ref) for ref in ("shop:v1", "shop:v2", "db:v1", "db:v9")))


def target(name: str, image: str = "shop:v1", *, named: bool = False) -> Target:
    return Target(make.observed_vm(make.record(name, image=image)), named)


def shown(found: Aims) -> dict[str, str]:
    return {path: f"{aim.version.ref} {aim.action}" for path, aim in found.of.items()}


def refused(choose: Choice, *targets: Target) -> PoclabError:
    with pytest.raises(PoclabError) as caught:
        choose(targets, SHELF)
    return caught.value


def test_without_a_tag_each_stays_on_what_it_is_on() -> None:
    found = same([target("web", "shop:v2"), target("db", "db:v9")], SHELF)
    assert (shown(found), found.notes) == (
        {"acme/web": "shop:v2 reset", "acme/db": "db:v9 reset"},
        (),
    )
    assert "shop:v3 is not there" in refused(same, target("web"), target("x", "shop:v3")).what


def test_vms_of_a_lab_whose_image_has_no_such_tag_are_left_alone_and_named() -> None:
    found = to("v2")([target("web"), target("db", "db:v9"), target("two", "db:v1")], SHELF)
    assert shown(found) == {"acme/web": "shop:v2 reset"}
    assert found.notes == (
        "acme/db stays on db:v9: its image has no v2",
        "acme/two stays on db:v1: its image has no v2",
    )


def test_a_vm_that_was_named_must_have_the_tag() -> None:
    error = refused(to("v2"), target("web"), target("db", "db:v9", named=True))
    assert error.what == "db:v2 is not there"


def test_when_no_image_has_the_tag_it_is_told_what_they_have() -> None:
    error = refused(to("v7"), target("web"), target("db", "db:v9"), target("x", "gone:v1"))
    assert error.lines() == [
        "no image of acme has v7",
        "why: db has v1, v9; gone has no version; shop has v1, v2",
        "fix: choose one of these",
    ]


@pytest.mark.parametrize("text", ["", "a b", "-x", ".x", "../v1"])
def test_what_is_neither_tag_nor_mark_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no tag"):
        to(text)


def ran(*refs: str) -> Target:
    """A VM that was on versions, one after the other."""
    record = make.record("web", image=refs[-1])
    history = tuple(
        HistoryEntry(
            "2026-01-01T00:00:00Z", "reset", Ref.parse(ref), make.digest(Ref.parse(ref)), ""
        )
        for ref in refs
    )
    return Target(make.observed_vm(replace(record, history=history)))


def test_back_is_the_version_before() -> None:
    assert shown(back([ran("shop:v2", "shop:v1", "shop:v1")], SHELF)) == {
        "acme/web": "shop:v2 rollback"
    }
    assert "nothing to roll acme/web back to" in refused(back, ran("shop:v1")).what
    assert "shop:v3 is not there" in refused(back, ran("shop:v3", "shop:v1")).what
    remade = WarmStates(make.version("shop:v2", digest="sha256:" + "9" * 64))
    with pytest.raises(PoclabError, match="shop:v2 is not what acme/web ran before"):
        back([ran("shop:v2", "shop:v1")], remade)


# --- marks --------------------------------------------------------------------------------


def marked(**vms: str) -> Mark:
    """A mark `start` of the lab acme."""
    refs = {vm: Ref.parse(name) for vm, name in vms.items()}
    items = tuple(Marked(vm, ref, make.digest(ref)) for vm, ref in refs.items())
    return Mark("acme", "start", "2026-01-01T00:00:00Z", "ann", vms=items)


def at(name: str, *marks: Mark, lost: tuple[Unreadable, ...] = ()) -> Choice:
    return to(name, lambda: Marks(marks, lost))


def other(name: str, image: str = "shop:v1") -> Target:
    return Target(make.observed_vm(make.record(name, "zoo", image=image)), named=False)


def test_a_mark_brings_back_what_it_names_and_the_rest_is_named() -> None:
    choose = at("start", marked(web="shop:v2", db="db:v1", gone="shop:v1"))
    lab = [target("web"), target("db", "db:v9"), target("new")]
    found = choose(lab, SHELF)
    assert shown(found) == {
        "acme/web": "shop:v2 reset to start",
        "acme/db": "db:v1 reset to start",
    }
    assert found.notes == (
        "acme/new stays on shop:v1: the mark start does not name it",
        "acme/gone is in the mark start, and not there",
    )
    # One VM of it alone; a VM that was named must be in it.
    one = choose([target("db", "db:v9", named=True)], SHELF)
    assert (shown(one), one.notes) == ({"acme/db": "db:v1 reset to start"}, ())
    error = refused(choose, target("web"), target("new", named=True))
    assert error.what == "acme/new is not in the mark start"


def test_labs_without_the_mark_go_by_the_tag() -> None:
    choose = at("start", marked(web="shop:v2"))
    found = choose([target("web"), other("web")], SHELF)
    assert shown(found) == {"acme/web": "shop:v2 reset to start"}
    assert found.notes == ("zoo/web stays on shop:v1: its image has no start",)
    error = refused(at("begin", marked(web="shop:v2")), target("web"), other("web"))
    assert error.what == "no image of acme, zoo has begin"
    assert error.why == "shop has v1, v2; lab acme has the marks start"


def test_a_mark_and_a_tag_of_one_name_are_refused() -> None:
    mark = replace(marked(web="shop:v2"), name="v9")
    error = refused(at("v9", mark), target("web"), target("db", "db:v1"))
    assert error.what == "v9 is a mark of acme and a tag of db"
    # Of a VM whose image has no such tag there is no doubt.
    assert list(at("v9", mark)([target("web")], SHELF).of) == ["acme/web"]


def test_what_a_mark_named_must_be_that_very_version() -> None:
    lost = refused(at("start", marked(web="shop:v7")), target("web"))
    assert lost.lines()[:2] == [
        "shop:v7 is not what the mark start of acme names",
        "why: it is not there",
    ]
    mark = marked(web="shop:v2")
    other_digest = replace(mark.vms[0], digest="sha256:" + "9" * 64)
    anew = refused(at("start", replace(mark, vms=(other_digest,))), target("web"))
    assert "the one it names was removed; it was made anew" in anew.why


def test_a_mark_that_cannot_be_known_is_refused() -> None:
    pending = (Pending("web", Ref("shop", "start-web"), "overlay.acme.web.00000001.qcow2"),)
    error = refused(at("start", replace(marked(), pending=pending)), target("web"))
    assert error.what == "the mark start of acme is incomplete"
    # One that is being moved is what it was, until it has moved.
    moving = replace(marked(web="shop:v2"), pending=pending)
    assert list(at("start", moving)([target("web")], SHELF).of) == ["acme/web"]
    lost = (Unreadable("acme", "start", "it is cut short"), Unreadable("zoo", "then", "odd"))
    error = refused(at("start", lost=lost), target("web"))
    assert error.what == "the mark start of acme cannot be read"
    assert error.fix.startswith("poclab unmark acme start")
    assert shown(at("v2", lost=lost)([target("web")], SHELF)) == {"acme/web": "shop:v2 reset"}


def test_what_a_reset_to_a_mark_of_the_longest_name_notes_is_read_again() -> None:
    name, version = "m" * 128, make.version("shop:v2")
    mark = replace(marked(web="shop:v2"), name=name)
    aim = to(name, lambda: Marks((mark,)))([target("web")], SHELF).of["acme/web"]
    found = make.record("web")
    made = remade(found, aim.action, Stamp(version.created, "ann", ""))
    element = metadata.vm_element(replace(made, overlay=found.overlay))
    assert metadata.vm_record(element).history[-1].action == f"reset to {name}"
