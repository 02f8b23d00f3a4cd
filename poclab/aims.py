"""Which version each VM of a reset is put on: all of them are known before the first is touched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from poclab.errors import PoclabError
from poclab.find import Target
from poclab.model import Ref, Version
from poclab.names import check_tag
from poclab.records import previous


class Versions(Protocol):
    """What choosing needs of the store."""

    def has(self, ref: Ref) -> bool:
        """Whether there is such a version."""

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


def tagged(tag: str) -> Choice:
    """The version of each VM's image that has a tag.

    VMs of whole labs whose image has none are left alone, as long as another has one.

    Raises:
        UsageError: the text is no tag.
    """
    check_tag(tag)

    def choose(targets: Sequence[Target], store: Versions) -> Aims:
        refs = {each.path: Ref(each.vm.record.version.image, tag) for each in targets}
        there = {ref for ref in set(refs.values()) if store.has(ref)}
        aims = {
            each.path: Aim(store.get(refs[each.path]))
            for each in targets
            if each.named or refs[each.path] in there
        }
        if not aims:
            raise _nowhere(tag, refs, store)
        left = (each for each in targets if each.path not in aims)
        return Aims(aims, tuple(f"{_stays(each)}: its image has no {tag}" for each in left))

    return choose


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


def _nowhere(tag: str, refs: Mapping[str, Ref], store: Versions) -> PoclabError:
    """That no image of the VMs has a tag; there is at least one VM."""
    labs = sorted({path.partition("/")[0] for path in refs})
    have: dict[str, list[str]] = {image: [] for image in sorted({x.image for x in refs.values()})}
    for version in store.versions():
        have.get(version.ref.image, []).append(version.ref.tag)
    why = "; ".join(
        f"{image} has {', '.join(tags) or 'no version'}" for image, tags in have.items()
    )
    return PoclabError(
        f"no image of {', '.join(labs)} has {tag}", why=why, fix="choose one of these tags"
    )
