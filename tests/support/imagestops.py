"""Commands that add and remove a version, stopped at each of their steps."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from poclab.model.version_volumes import base_volume
from tests.support import labs
from tests.support.b3sum import hex_of
from tests.support.hosts import Host
from tests.support.stops import STATUS, told


@dataclass(frozen=True)
class Images:
    """A pool of versions."""

    host: Host

    def seen(self) -> tuple[list[dict[str, Any]], list[str]]:
        """The versions without their times, and every file of the pool."""
        rows = json.loads(self.host.poclab("image", "ls", "-o", "json").stdout)
        for row in rows:
            del row["created"]
        return rows, labs.look(self.host)["files"]

    def sound(self) -> None:
        """Every version that is listed has its base, and it is the one that was stored."""
        rows, files = self.seen()
        for row in rows:
            base = base_volume(row["digest"])
            assert base in files
            path = f"{labs.look(self.host)['directory']}/{base}"
            assert hex_of(self.host, path) in base


def survive(host: Host, add: tuple[str, ...], ref: str, how: str, every: int = 1) -> None:
    """Stop what adds a version at every step, and then what removes it."""
    images = Images(host)
    remove = ("image", "rm", ref, "--yes")
    empty = images.seen()
    added = host.count_steps(add)
    assert added.result.returncode == 0, added.result.stderr
    stored = images.seen()
    removed = host.count_steps(remove)
    assert images.seen() == empty
    for step in range(1, len(added.steps) + 1, every):
        stopped = host.stop_at(add, step, how)
        assert stopped.reached
        told(stopped, how)
        images.sound()
        done = host.poclab(*add, check=False)
        assert done.returncode == 0, f"stopped at {stopped.steps}\n{done.stderr}"
        assert images.seen() == stored, stopped.steps
        assert labs.leftovers(host) == []
        if step <= len(removed.steps):
            stopped = host.stop_at(remove, step, how)
            assert stopped.reached
            assert stopped.result.returncode == STATUS[how]
            images.sound()
        again = host.poclab(*remove, check=False)
        # The version went first: then there is nothing to remove but what is left over.
        assert again.returncode == 0 or f"{ref} is not there" in again.stderr, again.stderr
        assert images.seen() == empty, stopped.steps
        assert labs.leftovers(host) == []
