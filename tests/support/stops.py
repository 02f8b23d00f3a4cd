"""Commands that are stopped at each of their steps, and what has to hold then and afterwards."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from typing import Any

from tests.support import labs
from tests.support.hosts import Completed, Host, Stopped

STATUS = {"kill": -signal.SIGKILL, "interrupt": 130, "enospc": 1}


@dataclass(frozen=True)
class Move:
    """A command that brings a host from one state to another.

    Attributes:
        args: poclab's arguments.
        removes: domains whose disks may be gone before they are.
    """

    args: tuple[str, ...]
    removes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scene:
    """Moves in a circle: each begins where the one before ends, the first where the last does.

    Attributes:
        host: where.
        lab: the lab whose state is compared.
        moves: the moves.
        kept: the digest of the kept data disk, if there is one.
        ready: whether every VM that runs counts as ready (a stand-in, tests/support/kill.py).
    """

    host: Host
    lab: str
    moves: tuple[Move, ...]
    kept: str = ""
    ready: bool = False

    def seen(self) -> dict[str, Any]:
        """What there is of the lab now, in a form that is the same each time."""
        found = labs.look(self.host)
        state = labs.state(found, self.lab)
        return {"rows": labs.rows(self.host, self.lab) if state["domains"] else [], **state}

    @property
    def _env(self) -> dict[str, str]:
        return {"POCLAB_TEST_READY": "1"} if self.ready else {}

    def again(self, move: Move) -> Completed:
        """Make a move to its end."""
        if self.ready:
            return self.host.count_steps(move.args, env=self._env).result
        return self.host.poclab(*move.args, check=False)

    def check(self, move: Move) -> None:
        """The promises that hold at any instant."""
        found = labs.look(self.host)
        ours = {k: v for k, v in found["domains"].items() if k.startswith(f"{self.lab}.")}
        for name, domain in ours.items():
            assert domain["lost"] == [], f"{name} runs on disks that are gone: {domain['lost']}"
            stands_on = [x for x in domain["missing"] if x.startswith(("overlay.", "base."))]
            if domain["active"] or name not in move.removes:
                assert stands_on == [], f"{name} is defined on disks that are not there"
        self.check_kept(found)

    def check_kept(self, found: dict[str, Any]) -> None:
        if self.kept:
            pattern = re.compile(rf"(data|scratch)\.{self.lab}\.db\.data\.")
            (volume,) = [name for name in found["files"] if pattern.match(name)]
            assert labs.content(self.host, volume) == self.kept, f"{volume} has another content"

    def survive(self, how: str, *, every: int = 1) -> None:
        """Stop every move at every step (or every few), each time followed by the move again.

        With a stride the moves are stopped at different steps: there and back are much alike.
        """
        expected, counts = [], []
        for move in self.moves:
            whole = self.host.count_steps(move.args, env=self._env)
            assert whole.result.returncode == 0, whole.result.stderr
            counts.append(len(whole.steps))
            expected.append(self.seen())
        reached = []
        for first in range(1, max(counts) + 1, every):
            for index, move in enumerate(self.moves):
                step, final = first + index * (every // 2), expected[index]
                if step <= counts[index]:
                    stopped = self.host.stop_at(move.args, step, how, env=self._env)
                    reached.append(stopped.reached)
                    told(stopped, how)
                    self.check(move)
                done = self.again(move)
                if labs.robbed(done):
                    done = self.again(move)
                where = f"stopped ({how}) at {step}: {' '.join(move.args)}\n{done.stderr}"
                assert done.returncode == 0, where
                assert self.seen() == final, where
                assert labs.leftovers(self.host, self.lab) == [], where
        # Threads in another order make a step more or less, at the end.
        assert reached.count(False) <= len(self.moves)


def told(stopped: Stopped, how: str) -> None:
    """See that a stopped command ended as it should and said so."""
    result = stopped.result
    if not stopped.reached:
        # Threads in another order make a step more or less.
        assert result.returncode == 0, result.stderr
        return
    assert result.returncode == STATUS[how], f"{stopped.steps}\n{result.stdout}{result.stderr}"
    assert "Traceback" not in result.stderr
    if how == "interrupt":
        assert "interrupted: the same command again goes on from here" in result.stderr
    if how == "enospc":
        assert "No space left on device" in result.stderr
        lines = [line for line in result.stderr.splitlines() if not line.startswith("  ")]
        assert len([line for line in lines if line.startswith(("error", "why", "fix"))]) <= 3
