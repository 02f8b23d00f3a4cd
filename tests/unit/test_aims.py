"""Which version each VM of a reset is put on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poclab.aims import Aims, Choice, back, same, tagged
from poclab.errors import PoclabError, UsageError
from poclab.find import Target
from poclab.model import HistoryEntry, Ref, Version
from tests.support import make


class Shelf:
    """Versions by name, as the store gives them."""

    def __init__(self, *found: Version) -> None:
        self._found = {version.ref: version for version in found}

    def has(self, ref: Ref) -> bool:
        return ref in self._found

    def get(self, ref: Ref) -> Version:
        if ref not in self._found:
            raise PoclabError(f"{ref} is not there")
        return self._found[ref]

    def versions(self) -> list[Version]:
        return list(self._found.values())


SHELF = Shelf(*(make.version(ref) for ref in ("shop:v1", "shop:v2", "db:v1", "db:v9")))


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
    found = tagged("v2")([target("web"), target("db", "db:v9"), target("two", "db:v1")], SHELF)
    assert shown(found) == {"acme/web": "shop:v2 reset"}
    assert found.notes == (
        "acme/db stays on db:v9: its image has no v2",
        "acme/two stays on db:v1: its image has no v2",
    )


def test_a_vm_that_was_named_must_have_the_tag() -> None:
    error = refused(tagged("v2"), target("web"), target("db", "db:v9", named=True))
    assert error.what == "db:v2 is not there"


def test_when_no_image_has_the_tag_it_is_told_what_they_have() -> None:
    error = refused(tagged("v7"), target("web"), target("db", "db:v9"), target("x", "gone:v1"))
    assert error.lines() == [
        "no image of acme has v7",
        "why: db has v1, v9; gone has no version; shop has v1, v2",
        "fix: choose one of these tags",
    ]


@pytest.mark.parametrize("text", ["", "a b", "-x", ".x", "../v1"])
def test_what_is_no_tag_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no tag"):
        tagged(text)


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
    remade = Shelf(make.version("shop:v2", digest="sha256:" + "9" * 64))
    with pytest.raises(PoclabError, match="shop:v2 is not what acme/web ran before"):
        back([ran("shop:v2", "shop:v1")], remade)
