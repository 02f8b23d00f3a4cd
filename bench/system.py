"""A qemu:///system of its own, in namespaces without an uplink, to measure in."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import results
from tests.support import hosts

_INSIDE = "POCLAB_BENCH_SYSTEM"


def inside() -> bool:
    """Whether this process runs in the namespaces made by `again`."""
    return bool(os.environ.get(_INSIDE))


def again(arguments: Sequence[str]) -> int:
    """Run the program again as root in such namespaces; what needs a network comes before."""
    from bench.reset import guests, peers

    guests.prepare()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory, hosts.system() as (root, _):
        settings = {_INSIDE: "1", results.FILE: os.environ[results.FILE]}
        settings |= peers.prepare(Path(directory))
        install = root.place.installation
        command = root.place.argv(install.python, "-m", "bench", *arguments, **settings)
        return subprocess.run(command, check=False).returncode
