"""Renames of volumes that take a while, so that none is lost or doubled when one is cut short.

libvirt knows no renaming of volumes: `StreamPool` copies one on the host and deletes the old
one. While that goes on a marker volume `move.OLD` holds the new name, and as long as marker and
old volume are there the new one does not count, whole or not. The deletion of the old volume is
the moment at which the new one takes its place. Both ways to the pool keep to this: a member of
group libvirt may begin what root goes on with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress

from poclab.virt.errors import GoneError

MARK = "move."


class Moves(ABC):
    """What a pool shows and deletes, in view of renames that were cut short."""

    @abstractmethod
    def _all(self) -> list[str]:
        """Every volume there is."""

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
        """All volumes that count, sorted."""
        found = self._all()
        hidden = set(self._moves(found).values())
        return sorted(x for x in found if x not in hidden and not x.startswith(MARK))

    def moves(self) -> dict[str, str]:
        """Renames under way or cut short: the new name by the old one, which still counts."""
        return self._moves(self._all())

    def undo(self, old: str) -> None:
        """Forget a rename that was cut short; nobody may be at it any more."""
        new = self.moves().get(old)
        if new:
            self._drop(new)
        self._drop(MARK + old)

    def delete(self, name: str) -> None:
        """Delete a volume, and what a rename that was cut short made of it; none is fine."""
        self._begin_anew(name)
        self._drop(name)

    def _begin_anew(self, old: str) -> None:
        """Forget what an earlier rename of a volume came to."""
        if self._there(MARK + old):
            self.undo(old)

    def _make_way(self, name: str) -> None:
        """Forget a rename that was cut short, for another volume of the new name."""
        for old, new in self.moves().items():
            if new == name:
                self.undo(old)

    def _moves(self, found: list[str]) -> dict[str, str]:
        there = set(found)
        olds = [x.removeprefix(MARK) for x in found if x.startswith(MARK)]
        moves: dict[str, str] = {}
        # Without its old volume a marker is what a rename left that got through but for its end.
        for old in there.intersection(olds):
            with suppress(GoneError):  # another command's, which just got through
                moves[old] = self.read(MARK + old).decode(errors="replace")
        return moves

    def _forget_ended(self) -> None:
        """Delete the markers of renames that got through but for their end."""
        found = self._all()
        for name in found:
            if name.startswith(MARK) and name.removeprefix(MARK) not in found:
                self._drop(name)
