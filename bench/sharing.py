"""What three versions of one tree take on XFS, against the blocks that are new in each.

The images are real ones, built by poclab from container images: `shop`, and a Debian with systemd
that gets 20 MiB of other files from version to version. Beside the file system's own figures are
those of `poclab df`. It runs outside of the bench's session: the file system is to be mounted.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.measure import MeasurementError
from poclab.core.units import MIB
from tests.support import filesystems, labs, shop
from tests.support.hosts import Host
from tests.support.trees import used

TAGS = ("v1", "v2", "v3")
BAR = 1.15
SIZE = "6g"  # of the file system; sparse
CHANGED = 20 * MIB  # bytes of Debian's tree from version to version

# The blocks of 4 KiB, zeros aside, that no file before has; each counts once.
_NEW = """
import sys
from hashlib import sha256
known = set()
for path in sys.argv[1:]:
    before = len(known)
    with open(path, "rb") as file:
        while block := file.read(4096):
            if any(block):
                known.add(sha256(block).digest())
    print((len(known) - before) * 4096)
"""


@dataclass(frozen=True)
class Figures:
    """What versions take, in bytes; one of each a version, in order.

    Attributes:
        sizes: the files.
        added: what the file system has more in use than before the version.
        new: the blocks that no version before has.
        counted: what `poclab df` counts for all so far.
        unique: what `poclab df` says that each alone has, in the end.
    """

    sizes: tuple[int, ...]
    added: tuple[int, ...]
    new: tuple[int, ...]
    counted: tuple[int, ...]
    unique: tuple[int, ...]

    @property
    def ratio(self) -> float:
        """What all take, against the first version and the blocks that are new in the others."""
        return sum(self.added) / (self.added[0] + sum(self.new[1:]))


def run(runs: int) -> None:
    """Measure and report."""
    for _ in range(runs):
        for name, prepare in _TREES.items():
            with filesystems.session("xfs", SIZE) as host:
                _report(name, _measured(host, prepare(host)))


def _shop(host: Host) -> tuple[str, str]:
    shop.base(host)
    return "shop", "shop"


def _debian(host: Host) -> tuple[str, str]:
    shop.debian_image(host)
    host.write(
        "debian/image.yaml",
        "builder: direct\nrootfs: ext4\ndisk: 2GiB\nkernel_args: [console=ttyS0]\nuser: root\n"
        'build_args: {VERSION: "{tag}"}\n',
    )
    containerfile = f"FROM {shop.DEBIAN}\nARG VERSION\nCOPY versions/${{VERSION}}/ /\n"
    host.write("debian/Containerfile", containerfile)
    for tag in TAGS:
        noise = random.Random(tag)
        files = host.scratch / "debian/versions" / tag / "opt/app"
        files.mkdir(parents=True)
        rest = CHANGED
        while rest > 0:  # sizes as files have them: most are small, most bytes are in large ones
            size = min(rest, int(2 ** noise.uniform(8, 22)))
            (files / f"{rest}").write_bytes(noise.randbytes(size))
            rest -= size
    return "debian", str(host.give(host.scratch / "debian"))


_TREES: Mapping[str, Callable[[Host], tuple[str, str]]] = {"shop": _shop, "debian": _debian}


def _measured(host: Host, image: tuple[str, str]) -> Figures:
    name, definition = image
    host.poclab("image", "ls")  # makes the pool
    empty = before = used(host)
    added, counted = [], []
    for tag in TAGS:
        host.poclab("image", "build", definition, "--tag", tag, timeout=900)
        now = used(host)
        added.append(now - before)
        before = now
        counted.append(_df(host)["total"])
    if sum(added) != used(host) - empty:
        raise MeasurementError("the file system changed while nothing was done")
    rows = json.loads(host.poclab("image", "ls", "-o", "json").stdout)
    pool = host.env["POCLAB_POOL_DIR"]
    paths = [f"{pool}/{labs.base(host, f'{name}:{tag}')}" for tag in TAGS]
    new = host.run(host.place.installation.python, "-c", _NEW, *paths, timeout=600).stdout
    return Figures(
        sizes=tuple(row["size"] for row in rows),
        added=tuple(added),
        new=tuple(map(int, new.split())),
        counted=tuple(counted),
        unique=tuple(row["unique"] for row in rows),
    )


def _df(host: Host) -> dict[str, int]:
    """What `poclab df` counts for each version, and `total`."""
    rows = json.loads(host.poclab("df", "-o", "json").stdout)
    return {row["kind"]: row["allocated"] for row in rows}


def _report(name: str, found: Figures) -> None:
    print(f"\nthree versions of {name} on XFS, in MiB")
    print("  version  file    new 4K blocks  used more   used by all  poclab df  its UNIQUE")
    total = 0
    for number, tag in enumerate(TAGS):
        total += found.added[number]
        cells = (
            _mib(found.sizes[number], 6),
            _mib(found.new[number], 13),
            _mib(found.added[number], 9),
            _mib(total, 12),
            _mib(found.counted[number], 9),
            _mib(found.unique[number], 10),
        )
        print(f"  {tag:7}  {'  '.join(cells)}")
    floor = found.added[0] + sum(found.new[1:])
    print(f"  in use / (v1 + new blocks) = {_mib(total)} / {_mib(floor)}")
    print(f"    = {found.ratio:.3f}x (bar {BAR:g}x)")
    print(f"  poclab df / in use = {found.counted[-1] / total:.3f}x")


def _mib(size: int, width: int = 0) -> str:
    return f"{size / MIB:{width}.1f}"
