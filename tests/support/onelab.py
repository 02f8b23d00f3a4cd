"""One lab of a test: its file, what poclab says of it, and what the host shows of it."""

from __future__ import annotations

import itertools
import json
import os
import pty
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from tests.support import labs
from tests.support.hosts import Completed, Host

# Another thousand for each worker of pytest-xdist: the segments between guests of two sessions of
# one user are kept apart by the lab's name.
_numbers = itertools.count(1 + 1000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]))


@dataclass(frozen=True)
class OneLab:
    """A lab with a name that no other test has.

    Attributes:
        host: where it is.
        name: its name.
        eyes: who may look into the pool there.
    """

    host: Host
    name: str
    eyes: Host

    @property
    def path(self) -> str:
        """Its file."""
        return str(self.host.scratch / f"{self.name}.yaml")

    def write(self, *vms: str, networks: str = "", defaults: str = "memory: 32MiB") -> None:
        """Write its file: VMs as `NAME: {...}`, networks likewise in one text."""
        text = f"name: {self.name}\ndefaults: {{cpus: 1, {defaults}}}\n"
        text += f"networks: {{{networks}}}\n" if networks else ""
        text += "vms:\n" + "".join(f"  {vm}\n" for vm in vms)
        self.host.write(f"{self.name}.yaml", text)

    def up(self, *options: str, check: bool = True) -> Completed:
        """`poclab up`."""
        return self.host.poclab("up", self.path, *options, check=check)

    def plan(self) -> list[dict[str, Any]]:
        """What `poclab plan` would do."""
        found: list[dict[str, Any]] = json.loads(
            self.host.poclab("plan", self.path, "-o", "json").stdout
        )
        return found

    def reset(self, *args: str, check: bool = True) -> Completed:
        """`poclab reset` with VMs by their names in the lab."""
        return self.host.poclab("reset", "--lab", self.name, *args, check=check)

    def status(self) -> dict[str, dict[str, Any]]:
        """The rows of `poclab status`, by VM."""
        rows = json.loads(self.host.poclab("status", self.name, "-o", "json").stdout)
        return {row["vm"]: row for row in rows}

    def history(self, vm: str) -> list[tuple[str, str]]:
        """What was done to a VM, and the version it was on from then on."""
        rows = json.loads(self.host.poclab("history", f"{self.name}/{vm}", "-o", "json").stdout)
        return [(row["action"], row["version"]) for row in rows]

    def down(self, *options: str, check: bool = True) -> Completed:
        """`poclab down` without a question."""
        return self.host.poclab("down", self.name, "--yes", *options, check=check)

    # --- what the host shows ---------------------------------------------------------------

    def domain(self, vm: str) -> str:
        """A VM's domain."""
        return f"{self.name}.{vm}"

    def run_id(self, vm: str) -> str:
        """What changes with every start of the VM, `-` when it is off."""
        return self.host.virsh("domid", self.domain(vm)).strip()

    def disks(self, vm: str) -> list[str]:
        """The volumes a VM is defined with, the system disk first."""
        found: list[str] = labs.look(self.eyes)["domains"][self.domain(vm)]["defined"]
        return found

    def volumes(self) -> set[str]:
        """The lab's volumes."""
        return {name for name in labs.look(self.eyes)["files"] if f".{self.name}." in name}

    def digests(self) -> dict[str, str]:
        """The digest of every volume of the pool, as a file."""
        directory = labs.look(self.eyes)["directory"]
        out = self.eyes.run("sh", "-c", 'cd "$0" && sha256sum -- *', directory).stdout
        return {line[66:]: line[:64] for line in out.splitlines()}

    def off(self, vm: str) -> None:
        """Take the power away, as somebody with virsh would."""
        self.host.virsh("destroy", self.domain(vm))


@contextmanager
def one_lab(host: Host, eyes: Host | None = None) -> Iterator[OneLab]:
    """A lab for one test; it is down afterwards."""
    lab = OneLab(host, f"lab{next(_numbers)}", eyes or host)
    try:
        yield lab
    finally:
        lab.down("--volumes")


def up_together(*labs_: OneLab) -> None:
    """Bring labs up at once: guests boot on all processors."""
    running = [(lab, lab.host.popen_poclab("up", lab.path)) for lab in labs_]
    for lab, process in running:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, f"up {lab.name}: {out}{err}"


def free_port() -> int:
    """A port of 127.0.0.1 that is free now, outside of the range that poclab gives out."""
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
    return port


def listens(port: int) -> bool:
    """Whether something listens on a port of 127.0.0.1."""
    with closing(socket.socket()) as client:
        client.settimeout(5)
        return client.connect_ex(("127.0.0.1", port)) == 0


def on_a_terminal(host: Host, answer: str, *args: str) -> tuple[int, str]:
    """Run poclab on a terminal and answer its question; the exit status and what it showed."""
    ours, theirs = pty.openpty()
    argv = host.place.argv(host.place.installation.python, "-m", "poclab", *args)
    process = subprocess.Popen(
        argv, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    shown = b""
    # Linux ends a terminal that nobody has open any more with EIO.
    with suppress(OSError):
        while data := os.read(ours, 4096):
            shown += data
    os.close(ours)
    return process.wait(60), shown.decode(errors="replace")
