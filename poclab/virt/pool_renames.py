"""Renames of volumes that take a while, so that none is lost or doubled when one is cut short.

libvirt knows no renaming of volumes: `StreamPool` copies one on the host and deletes the old
one. While that goes on a marker volume `move.OLD` holds the new name, and as long as marker and
old volume are there the new one does not count, whole or not. The deletion of the old volume is
the moment at which the new one takes its place. Both ways to the pool keep to this: a member of
group libvirt may begin what root goes on with.

A marker is believed only if it names another data disk name of the very same disk: whatever else
it says, nothing is hidden or deleted by it (`damaged_moves` lists it).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import suppress

from poclab.core.errors import PoclabError
from poclab.core.plaintext import shown
from poclab.model import volumes
from poclab.model.volumes import HIDDEN, Kind, VolumeName
from poclab.virt.errors import GoneError


class Moves(ABC):
    """What a pool shows and deletes, in view of renames that were cut short."""

    @abstractmethod
    def _all(self) -> list[str]:
        """Every volume there is, whatever it is called."""

    @abstractmethod
    def _there(self, name: str) -> bool:
        """Whether there is a volume of that name."""

    @abstractmethod
    def _drop(self, name: str) -> None:
        """Delete a volume; none of that name is fine."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A small volume's content."""

    def names(self) -> list[str]:
        """All volumes that are poclab's by their names and that count, sorted."""
        found = self._all()
        hidden = set(self._moves(found).values())
        known = [str(name) for name in volumes.known(found) if name.kind not in HIDDEN]
        return sorted(name for name in known if name not in hidden)

    def strays(self) -> list[str]:
        """Volumes whose names poclab does not give, sorted: they are left alone."""
        return sorted(name for name in self._all() if volumes.find(name) is None)

    def moves(self) -> dict[str, str]:
        """Renames under way or cut short: the new name by the old one, which still counts."""
        return self._moves(self._all())

    def damaged_moves(self) -> dict[str, str]:
        """Markers of renames that are not believed, and why."""
        found: dict[str, str] = {}
        for name, old in _markers(self._all()):
            try:
                self._target(old)
            except GoneError:  # another command's, which just got through
                continue
            except (ValueError, PoclabError) as error:
                found[name] = str(error)
        return found

    def undo(self, old: str) -> None:
        """Forget a rename that was cut short; nobody may be at it any more."""
        new = self.moves().get(old)
        if new:
            self._drop(new)
        self._drop(marker(old))

    def delete(self, name: str) -> None:
        """Delete a volume, and what a rename that was cut short made of it; none is fine."""
        self._begin_anew(name)
        self._drop(name)

    def _begin_anew(self, old: str) -> None:
        """Forget what an earlier rename of a volume came to."""
        name = volumes.find(old)
        if name and name.kind in volumes.DATA_DISKS and self._there(marker(old)):
            self.undo(old)

    def _make_way(self, name: str) -> None:
        """Forget a rename that was cut short, for another volume of the new name."""
        for old, new in self.moves().items():
            if new == name:
                self.undo(old)

    def _moves(self, found: list[str]) -> dict[str, str]:
        there = set(found)
        moves: dict[str, str] = {}
        for _, old in _markers(found):
            # Without its old volume a marker is what a rename left that got through but for that.
            if str(old) in there:
                # Gone: another command's, which just got through.
                with suppress(GoneError, ValueError, PoclabError):
                    moves[str(old)] = str(self._target(old))
        return moves

    def _target(self, old: VolumeName) -> VolumeName:
        """The new name that the marker of a rename holds.

        Raises:
            GoneError: if there is no such marker.
            PoclabError: if it cannot be read.
            ValueError: if it names anything but the same disk.
        """
        text = self.read(marker(str(old)))[:300].decode(errors="replace")
        new = VolumeName.parse(text)
        if not old.may_become(new):
            raise ValueError(f"it names {shown(text)}, which is another disk")
        return new

    def _forget_ended(self) -> None:
        """Delete the markers of renames that got through but for their end."""
        found = self._all()
        for name, old in _markers(found):
            if str(old) not in found:
                self._drop(name)


def marker(old: str) -> str:
    """The marker of a data disk's rename."""
    return str(VolumeName(Kind.MOVE, moving=VolumeName.parse(old)))


def _markers(found: Iterable[str]) -> Iterator[tuple[str, VolumeName]]:
    """The markers there are, each with the name of the disk that is being renamed."""
    for name in volumes.known(found, Kind.MOVE):
        if name.moving:
            yield str(name), name.moving
