"""A storage pool that is full, and bases that were damaged: one clear message, nothing half-made.

The pool is on a file system of a few MiB, mounted in a namespace of the test's own.
"""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import bootc_standin, filesystems, labs, shop
from tests.support.disks import qemu_img
from tests.support.hosts import Completed, Host
from tests.support.labs import MIB, Vm


@pytest.fixture
def host() -> Iterator[Host]:
    with filesystems.session("tmpfs", "12m") as found:
        yield found


def fill(host: Host, leave: int) -> None:
    """Fill the pool but for some bytes."""
    code = (
        "import os, sys\nd, leave = sys.argv[1], int(sys.argv[2])\n"
        "s = os.statvfs(d); n = s.f_bavail * s.f_frsize - leave\n"
        "open(d + '/tmp.ballast', 'wb').write(b'x' * max(0, n))\n"
    )
    host.run("python3", "-c", code, host.env["POCLAB_POOL_DIR"], str(leave))


def free(host: Host) -> None:
    host.run("rm", f"{host.env['POCLAB_POOL_DIR']}/tmp.ballast")


def files(host: Host) -> list[str]:
    return [name for name in labs.look(host)["files"] if name != "tmp.ballast"]


def full(done: Completed) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    said = done.stderr.lower()
    assert "no space left on device" in said or "there is no room" in said, done.stderr
    assert "make room" in said
    assert said.count("error:") <= 3  # one a VM, and the sum


def test_import(host: Host) -> None:
    labs.store(host, "tiny:v1")
    before = files(host)
    big = labs.disk_file(host, "big.raw", size=4 * MIB)
    big.write_bytes(big.read_bytes()[: 2 * MIB] + b"z" * 2 * MIB)
    for leave in (0, 512 * 1024, 2 * MIB):
        fill(host, leave)
        full(host.poclab("image", "import", "big:v1", str(big), "--format", "raw", check=False))
        assert files(host) == before
        free(host)
    host.poclab("image", "import", "big:v1", str(big), "--format", "raw")
    assert len(files(host)) == len(before) + 2
    assert labs.leftovers(host) == []


LEAST = """
import os, sys, time
path, least = sys.argv[1], 1 << 62
while not os.path.exists(path + "/tmp.over"):
    found = os.statvfs(path)
    least = min(least, found.f_bavail * found.f_frsize)
    time.sleep(0.001)
print(least)
"""


def test_a_disk_that_becomes_large_leaves_running_vms_their_room() -> None:
    """256 MiB that pack into less than 1 MiB, which no look at the tables can call a lie."""
    with filesystems.session("tmpfs", "100m") as host:
        labs.store(host, "tiny:v1")
        host.poclab("up", labs.lab_file(host, "on", Vm("a")))
        before = files(host)
        big = host.scratch / "big.raw"
        big.write_bytes(b"\7" * 256 * MIB)
        packed = host.scratch / "big.qcow2"
        qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", big, packed)
        big.unlink()
        host.give(packed)
        assert packed.stat().st_size < MIB
        pool = host.env["POCLAB_POOL_DIR"]
        look = host.popen("python3", "-c", LEAST, pool)
        add = ("image", "import", "big:v1", str(packed), "--profile", "legacy")
        done = host.poclab(*add, check=False)
        program = f"{host.place.installation.python} -m poclab"
        stream = f"cat {packed} | {program} image import big:v1 - --profile legacy"
        through = host.run("sh", "-c", stream, check=False)
        host.run("touch", f"{pool}/tmp.over")
        least = int(look.communicate(timeout=30)[0])
        host.run("rm", f"{pool}/tmp.over")
        for each in (done, through):
            full(each)
            assert "reserved for running VMs" in each.stderr
        # A twentieth is reserved; what is written between two looks comes off that.
        assert least > 3 * MIB
        assert files(host) == before
        assert [row["state"] for row in labs.rows(host, "on")] == ["running"]
        host.poclab("down", "on", "--yes")
        assert labs.leftovers(host) == []


def test_standard_input_that_is_no_disk_and_never_ends(host: Host) -> None:
    labs.store(host, "tiny:v1")
    before = files(host)
    program = f"{host.place.installation.python} -m poclab image import x:v1 -"
    for stream in ("yes", "cat /dev/zero"):
        began = time.monotonic()
        done = host.run("sh", "-c", f"{stream} | {program}", check=False)
        assert time.monotonic() - began < 20  # 2 MiB are read of it
        assert done.returncode == 1
        assert "standard input is not a disk poclab takes" in done.stderr
        assert "it has no partition table" in done.stderr
        assert files(host) == before
        assert labs.leftovers(host) == []


def test_up_and_reset(host: Host) -> None:
    for tag in ("v1", "v2"):
        labs.store(host, f"tiny:{tag}")
    lab = labs.lab_file(host, "full", Vm("a", kept=False), Vm("b", kept=True))
    before = files(host)
    fill(host, 64 * 1024)
    full(host.poclab("up", lab, check=False))
    free(host)
    host.poclab("up", lab)
    assert [row["state"] for row in labs.rows(host, "full")] == ["running"] * 2
    there = files(host)
    fill(host, 64 * 1024)
    full(host.poclab("reset", "--lab", "full", "--all", "--to", "v2", check=False))
    # They go on where they were.
    assert [row["version"] for row in labs.rows(host, "full")] == ["tiny:v1"] * 2
    assert [row["state"] for row in labs.rows(host, "full")] == ["running"] * 2
    free(host)
    host.poclab("reset", "--lab", "full", "--all", "--to", "v2")
    assert [row["version"] for row in labs.rows(host, "full")] == ["tiny:v2"] * 2
    assert len(files(host)) == len(there)
    assert labs.leftovers(host) == []
    # A mark, and what it would have committed.
    there = files(host)
    host.virsh("destroy", "full.a")
    (overlay,) = [name for name in there if name.startswith("overlay.full.a.")]
    labs.scribble(host, overlay, 5)
    for leave, more in ((64 * 1024, ["--commit"]), (0, [])):
        fill(host, leave)
        full(host.poclab("mark", "full", "start", *more, check=False))
        assert files(host) == there
        free(host)
    host.poclab("mark", "full", "start", "--commit")
    host.poclab("unmark", "full", "start")
    host.poclab("down", "full", "--yes", "--volumes")
    host.poclab("image", "rm", "tiny:start-a", "--yes")
    # v1 was packed before.
    assert files(host) == [name.removesuffix(".zst") for name in before]


def test_a_packed_version_needs_room_to_come_back(host: Host) -> None:
    big = labs.disk_file(host, "big.raw", size=4 * MIB)
    big.write_bytes(big.read_bytes()[:MIB] + random.Random(1).randbytes(3 * MIB))
    host.poclab("image", "import", "big:v1", str(big), "--profile", "legacy")
    labs.store(host, "big:v2")
    before = files(host)
    assert [name for name in before if name.endswith(".zst")] != []
    lab = labs.lab_file(host, "back", Vm("a", image="big:v1"))
    fill(host, MIB)
    full(host.poclab("up", lab, check=False))
    assert files(host) == before
    free(host)
    assert "big:v1 was packed: back" in host.poclab("up", lab).stderr
    host.poclab("down", "back", "--yes")
    assert labs.leftovers(host) == []


def test_a_data_disk_is_there_as_a_whole_or_not_at_all(host: Host) -> None:
    labs.store(host, "tiny:v1")
    lab = labs.lab_file(host, "half", Vm("a", kept=True))
    # Enough for the system disk of 196 KiB.
    fill(host, 300 * 1024)
    full(host.poclab("up", lab, check=False))
    assert [name for name in files(host) if name.startswith(("data.", "tmp."))] == []
    free(host)
    host.poclab("up", lab)
    assert "data.half.a.data.qcow2" in files(host)
    host.poclab("down", "half", "--yes", "--volumes")
    assert labs.leftovers(host) == []


def test_a_guest_that_meets_a_full_disk_goes_on_when_there_is_room(host: Host) -> None:
    labs.store(host, "writer:v1", labs.WRITER, size=4 * MIB)
    lab = labs.lab_file(host, "io", Vm("w", image="writer:v1", more="disk: 64MiB"))
    host.poclab("up", lab)

    def state() -> str:
        (row,) = json.loads(host.poclab("status", "io", "-o", "json").stdout)
        return str(row["state"])

    limit = time.monotonic() + 20
    while state() == "running" and time.monotonic() < limit:
        time.sleep(0.2)
    assert state() == "paused (I/O error)"
    grow = ["mount", "-o", "remount,size=100m", host.env["POCLAB_POOL_DIR"]]
    subprocess.run([*host.place.enter, *grow], check=True, timeout=10)
    done = host.poclab("up", lab)
    assert "resume w" in done.stderr
    assert state() == "running"
    began = time.monotonic()
    host.poclab("down", "io", "--yes")
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("change", ["cut", "grown"])
def test_a_base_of_another_size_is_not_used(change: str, host: Host) -> None:
    labs.store(host, "tiny:v1")
    (base,) = [name for name in files(host) if name.startswith("base.")]
    path = f"{host.env['POCLAB_POOL_DIR']}/{base}"
    host.run("chmod", "u+w", path)
    host.run("truncate", "-s", "-65536" if change == "cut" else "+65536", path)
    before = files(host)
    lab = labs.lab_file(host, "cut", Vm("a"))
    done = host.poclab("up", lab, check=False)
    assert done.returncode == 1
    assert "the disk of tiny:v1 is damaged" in done.stderr
    assert "when it was stored" in done.stderr
    assert labs.look(host)["domains"] == {}
    assert files(host) == before


def test_a_manifest_cut_short_does_not_count(host: Host) -> None:
    file = labs.store(host, "tiny:v1")
    path = f"{host.env['POCLAB_POOL_DIR']}/manifest.tiny.v1.json"
    host.run("truncate", "-s", "-10", path)
    assert json.loads(host.poclab("image", "ls", "-o", "json").stdout) == []
    assert len(labs.leftovers(host)) == 2
    host.poclab("image", "import", "tiny:v1", str(file), "--profile", "legacy")
    assert labs.leftovers(host) == []
    assert Path(path).name in files(host)


def test_an_image_that_is_to_be_carried_into_a_guest() -> None:
    with filesystems.session("tmpfs", "600m") as host:
        bootc_standin.build(host, ("v1", "v3"))
        vm = f"web: {{image: 'site:v1', {shop.DEFAULTS}}}"
        host.poclab("up", str(host.write("site.yaml", f"name: site\nvms:\n  {vm}\n")))
        there, switch = files(host), ("switch", "site/web", "--to", "v3", "--yes")
        fill(host, MIB)
        full(host.poclab(*switch, check=False))
        assert files(host) == there
        assert shop.ssh(host, "site/web", "ls /var/lib | grep poclab-switch || true") == ""
        free(host)
        host.poclab(*switch)
        (row,) = labs.rows(host, "site")
        assert (row["version"], row["in_place"]) == ("site:v1", "site:v3")
        host.poclab("down", "site", "--yes")
        assert labs.leftovers(host) == []
