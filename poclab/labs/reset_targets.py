"""Which version each VM of a reset is put on: all of them are known before the first is touched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from poclab.core.errors import PoclabError
from poclab.labs.selectors import Target
from poclab.model.history import previous
from poclab.model.names import check_tag
from poclab.model.version import Ref, Version
from poclab.store.marks import Mark, Marked, Marks


class Versions(Protocol):
    """What choosing needs of the store."""

    def has(self, ref: Ref) -> bool:
        """Whether there is such a version."""

    def find(self, ref: Ref) -> Version | None:
        """A version by its name, None when there is none."""

    def get(self, ref: Ref) -> Version:
        """A version by its name, or an error that names those there are."""

    def versions(self) -> list[Version]:
        """All versions."""


@dataclass(frozen=True)
class Aim:
    """What becomes of one VM.

    Attributes:
        version: what it is put on.
        action: what its history calls that.
    """

    version: Version
    action: str = "reset"


@dataclass(frozen=True)
class Aims:
    """What becomes of the VMs of a reset.

    Attributes:
        of: the aims by `LAB/VM`; a VM that is not in it is left alone.
        notes: lines that say which are, and why.
    """

    of: Mapping[str, Aim]
    notes: tuple[str, ...] = ()


Choice = Callable[[Sequence[Target], Versions], Aims]


def same(targets: Sequence[Target], store: Versions) -> Aims:
    """The version that each VM is on.

    Raises:
        PoclabError: one is not there any more.
    """
    return Aims({each.path: Aim(store.get(each.vm.record.version)) for each in targets})


def to(name: str, marks: Callable[[], Marks] = Marks) -> Choice:
    """What a mark of each VM's lab names, or the version of its image that has a tag.

    VMs of whole labs that neither says anything of are left alone, as long as there is another.

    Args:
        name: of a mark or a tag.
        marks: reads what marks there are, once the labs are locked.

    Raises:
        UsageError: the text is neither.
    """
    check_tag(name)

    def choose(targets: Sequence[Target], store: Versions) -> Aims:
        known = marks()
        found: dict[str, Mark] = {}
        for lab in sorted({each.vm.record.lab for each in targets}):
            if mark := known.find(lab, name):
                found[lab] = mark
        aims: dict[str, Aim] = {}
        notes: list[str] = []
        for lab, mark in found.items():
            own = [each for each in targets if each.vm.record.lab == lab]
            _refuse_both(mark, own, store)
            aims |= {each.path: aim for each in own if (aim := _of_mark(mark, each, store))}
            notes += _around(mark, own, aims)
        rest = [each for each in targets if each.vm.record.lab not in found]
        tagged = _tagged(name, rest, store)
        if not aims and not tagged:
            raise _nowhere(name, targets, store, known)
        left = (each for each in rest if each.path not in tagged)
        notes += [f"{_stays(each)}: its image has no {name}" for each in left]
        return Aims(aims | tagged, tuple(notes))

    return choose


def _tagged(tag: str, targets: Sequence[Target], store: Versions) -> dict[str, Aim]:
    """The VMs whose image has a tag; those that were named must have it."""
    refs = {each.path: Ref(each.vm.record.version.image, tag) for each in targets}
    there = {ref: store.find(ref) for ref in set(refs.values())}
    return {
        each.path: Aim(there[refs[each.path]] or store.get(refs[each.path]))
        for each in targets
        if each.named or there[refs[each.path]]
    }


def _refuse_both(mark: Mark, targets: Sequence[Target], store: Versions) -> None:
    """See that a mark can be meant alone, and that it names anything."""
    for image in sorted({each.vm.record.version.image for each in targets}):
        if store.has(Ref(image, mark.name)):
            raise PoclabError(
                f"{mark.name} is a mark of {mark.lab} and a tag of {image}",
                why="nothing says which of the two is meant",
                fix=f"poclab unmark {mark.lab} {mark.name}, or give the version another tag:"
                f" poclab image tag {image}:{mark.name} {image}:TAG, then `image rm`",
            )
    if not mark.vms:
        raise PoclabError(
            f"the mark {mark.name} of {mark.lab} is incomplete",
            why="`poclab mark` was stopped before all its versions were made",
            fix=f"poclab mark {mark.lab} {mark.name} --commit goes on from there",
        )


def _of_mark(mark: Mark, target: Target, store: Versions) -> Aim | None:
    marked = mark.of(target.vm.record.name)
    if marked:
        return Aim(_exactly(mark, marked, store), f"reset to {mark.name}")
    if target.named:
        raise PoclabError(
            f"{target.path} is not in the mark {mark.name}",
            why=f"it names {', '.join(item.vm for item in mark.vms)}",
            fix="reset it to a tag, or mark the lab anew",
        )
    return None


def _exactly(mark: Mark, marked: Marked, store: Versions) -> Version:
    """The very version that a mark names."""
    version = store.get(marked.version) if store.has(marked.version) else None
    if version and version.digest == marked.digest:
        return version
    why = f"it was made anew {version.created}" if version else "it is not there"
    raise PoclabError(
        f"{marked.version} is not what the mark {mark.name} of {mark.lab} names",
        why=f"the one it names was removed; {why}" if version else why,
        fix=f"reset {mark.lab}/{marked.vm} to a tag, then"
        f" poclab mark {mark.lab} {mark.name} --force",
    )


def _around(mark: Mark, targets: Sequence[Target], aims: Mapping[str, Aim]) -> list[str]:
    """How a whole lab and a mark differ, in lines."""
    lines = [
        f"{_stays(each)}: the mark {mark.name} does not name it"
        for each in targets
        if each.path not in aims
    ]
    if not all(each.named for each in targets):
        there = {each.vm.record.name for each in targets}
        gone = (item for item in mark.vms if item.vm not in there)
        lines += [f"{mark.lab}/{x.vm} is in the mark {mark.name}, and not there" for x in gone]
    return lines


def back(targets: Sequence[Target], store: Versions) -> Aims:
    """The version that each VM was on before the one it is on.

    Raises:
        PoclabError: there is none, or it is not what it was.
    """
    return Aims({each.path: Aim(_before(each, store), "rollback") for each in targets})


def _before(target: Target, store: Versions) -> Version:
    path, before = target.path, previous(target.vm.record)
    if before is None:
        raise PoclabError(
            f"there is nothing to roll {path} back to",
            why=f"it ran no other version than {target.vm.record.version}",
            fix=f"`poclab reset {path}` gives it a clean disk",
        )
    found = store.get(before.version)
    if found.digest != before.digest:
        raise PoclabError(
            f"{before.version} is not what {path} ran before",
            why=f"it was removed, and made anew {found.created}",
            fix=f"if that one is meant: poclab reset {path} --to {before.version.tag}",
        )
    return found


def _stays(target: Target) -> str:
    return f"{target.path} stays on {target.vm.record.version}"


def _nowhere(name: str, targets: Sequence[Target], store: Versions, marks: Marks) -> PoclabError:
    """That neither an image of the VMs nor a lab of theirs has a tag or mark of a name."""
    labs = sorted({each.vm.record.lab for each in targets})
    images = sorted({each.vm.record.version.image for each in targets})
    have: dict[str, list[str]] = {image: [] for image in images}
    for version in store.versions():
        have.get(version.ref.image, []).append(version.ref.tag)
    parts = [f"{image} has {', '.join(tags) or 'no version'}" for image, tags in have.items()]
    for lab in labs:
        known = [mark.name for mark in marks.marks if mark.lab == lab]
        parts += [f"lab {lab} has the marks {', '.join(known)}"] if known else []
    return PoclabError(
        f"no image of {', '.join(labs)} has {name}",
        why="; ".join(parts),
        fix="choose one of these",
    )
