"""`image verify` on real hosts: every kind of damage, and that nothing is changed by looking."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import hosts, labs
from tests.support.b3sum import digest
from tests.support.hosts import Host
from tests.support.labs import Vm
from tests.support.pool_files import files

MIB = 1024**2


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """thing:v1 (packed) and v2, thing:stable like v2, and made:v1, which stands on v2."""
    with hosts.session() as found:
        labs.store(found, "thing:v1")
        labs.store(found, "thing:v2")
        found.poclab("image", "tag", "thing:v2", "thing:stable")
        lab = labs.lab_file(found, "maker", Vm("a", image="thing:v2"), net=None)
        found.poclab("up", lab, POCLAB_ACCEL="tcg")
        found.virsh("destroy", "maker.a")
        found.poclab("commit", "maker/a", "--as", "made:v1")
        found.poclab("down", "maker", "--yes")
        found.poclab("image", "pack", "thing:v1")
        yield found


def verify(host: Host, *names: str, code: int = 0) -> dict[str, dict[str, Any]]:
    """The rows of `image verify` by version."""
    done = host.poclab("image", "verify", *names, "-o", "json", check=False)
    assert done.returncode == code, done.stdout + done.stderr
    rows = json.loads(done.stdout)
    assert code == int(any(row["result"] != "ok" for row in rows))
    return {f"{row['name']}:{row['tag']}": row for row in rows}


def damaged(rows: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What is wrong, by version."""
    return {name: row["problem"] for name, row in rows.items() if row["result"] == "damaged"}


@pytest.fixture
def volume(host: Host) -> Iterator[Path]:
    """The disk of thing:v2; whatever a test does to the pool is undone."""
    pool = Path(labs.look(host)["directory"])
    before = files(host)
    kept = host.scratch / "kept"
    host.run("cp", "-a", str(pool), str(kept))
    yield pool / labs.base(host, "thing:v2")
    host.run("sh", "-c", f"rm -f {pool}/* && cp -a {kept}/. {pool} && rm -rf {kept}")
    assert files(host) == before


def spoil(host: Host, path: Path, at: int = 70_000) -> None:
    """Change one byte."""
    script = 'chmod u+w "$1"; printf "\\377" | dd of="$1" bs=1 conv=notrunc status=none seek="$2"'
    host.run("sh", "-c", script, "sh", str(path), str(at))


def enlarge(host: Host, path: Path, size: str) -> None:
    """Add zeros that take no room."""
    host.run("sh", "-c", 'chmod u+w "$1" && truncate -s "$2" "$1"', "sh", str(path), size)


def test_all_is_well_and_stays_as_it_is(host: Host) -> None:
    before = files(host)
    assert f"{labs.base(host, 'thing:v1')}.zst" in before
    rows = verify(host)
    assert {name: row["result"] for name, row in rows.items()} == dict.fromkeys(
        ["made:v1", "thing:stable", "thing:v1", "thing:v2"], "ok"
    )
    assert set(verify(host, "thing")) == {"thing:stable", "thing:v1", "thing:v2"}
    assert set(verify(host, "made:v1", "thing:v1")) == {"made:v1", "thing:v1"}
    done = host.poclab("image", "verify", "thing:v2")
    assert done.stdout.split() == ["NAME", "TAG", "RESULT", "PROBLEM", "FIX", "thing", "v2", "ok"]
    assert "KiB of 384 KiB)" in done.stderr
    assert files(host) == before


def test_one_that_is_not_there(host: Host) -> None:
    done = host.poclab("image", "verify", "thing:v1", "thing:v9", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "thing:v9 is not there\nwhy: thing has " in done.stderr
    done = host.poclab("image", "verify", "thin", check=False)
    assert "there is no image thin; did you mean thing?" in done.stderr
    assert host.poclab("image", "verify", "-x:1", "--", check=False).returncode == 2


def test_a_changed_byte_is_found_in_all_that_stand_on_it(host: Host, volume: Path) -> None:
    spoil(host, volume)
    rows = verify(host, code=1)
    assert rows["thing:v1"]["result"] == "ok"
    found = damaged(rows)
    assert found.keys() == {"made:v1", "thing:stable", "thing:v2"}
    assert found["thing:v2"].startswith("its disk was changed: its digest is blake3:")
    assert found["made:v1"].startswith(f"below it {volume.name} was changed")
    assert f"put {volume.name} back from a backup" in rows["made:v1"]["fix"]
    table = host.poclab("image", "verify", check=False).stdout.splitlines()
    assert len(table) == 5
    # The way out that it names, which mends all three: the same disk again.
    source = host.scratch / "thing-v2.raw"
    known = digest(source.read_bytes())
    advised = f"poclab image import thing:NEWTAG thing-v2.raw --digest {known}"
    assert advised in rows["thing:v2"]["fix"]
    add = ("image", "import", "thing:again", str(source), "--digest", known)
    done = host.poclab(*add, "--profile", "legacy")
    assert f"{volume.name} was damaged, and is replaced by this disk" in done.stderr
    assert damaged(verify(host)) == {}


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ('truncate -s 1000 "$1"', "its disk has 1000 bytes, 393216 were stored"),
        ('rm -f "$1"', "its disk is gone"),
        ('chmod 0 "$1"', "its disk cannot be read: Permission denied"),
    ],
)
def test_a_disk_that_is_cut_short_or_gone(host: Host, volume: Path, how: str, problem: str) -> None:
    host.run("sh", "-c", f'chmod u+w "$1"; {how}', "sh", str(volume))
    rows = verify(host, "thing", code=1)
    assert damaged(rows) == {"thing:v2": problem, "thing:stable": problem}
    if "gone" in problem:
        assert "poclab image import thing:v2 thing-v2.raw" in rows["thing:v2"]["fix"]


def test_a_packed_disk_is_read_to_its_end(host: Host, volume: Path) -> None:
    packed = volume.parent / f"{labs.base(host, 'thing:v1')}.zst"
    spoil(host, packed, packed.stat().st_size // 2 if packed.exists() else 300)
    (problem,) = damaged(verify(host, "thing:v1", code=1)).values()
    assert problem.startswith(("its disk cannot be unpacked: ", "its disk was changed"))
    host.run("truncate", "-s", "-3", str(packed))
    (problem,) = damaged(verify(host, "thing:v1", code=1)).values()
    assert problem.startswith("its disk ")


def test_manifests_that_do_not_count(host: Host, volume: Path) -> None:
    manifest = volume.parent / "manifest.thing.v1.json"
    spoil(host, manifest, 40)
    found = damaged(verify(host, code=1))
    assert found.keys() == {"thing:v1"}
    assert found["thing:v1"].startswith("its manifest is bad: ")
    newer = json.dumps({"format": 99}, sort_keys=True, separators=(",", ":"))
    script = (
        "import hashlib,json,sys;"
        f"t={newer!r};b=json.loads(t);"
        "b['checksum']='sha256:'+hashlib.sha256(t.encode()).hexdigest();"
        "open(sys.argv[1],'w').write(json.dumps(b))"
    )
    host.run("python3", "-c", script, str(manifest))
    rows = verify(host, "thing:v1", code=1)
    assert rows["thing:v1"]["result"] == "unknown"
    assert rows["thing:v1"]["problem"] == "a newer poclab made it"


def test_it_can_be_ended_and_holds_up_nobody(host: Host, volume: Path) -> None:
    """A disk of 200 GiB of zeros takes minutes to read."""
    enlarge(host, volume, "200G")
    before = files(host, skip=volume.name)
    running = host.popen_poclab("image", "verify", "thing:v2")
    try:
        assert running.stderr is not None
        assert "verify thing:v2" in running.stderr.readline()
        host.poclab("image", "tag", "made:v1", "made:v2", timeout=20)
        host.poclab("image", "rm", "made:v2", "--yes", timeout=20)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=20)
    finally:
        running.kill()
    assert (running.returncode, out) == (130, ""), err
    assert "interrupted" in err
    assert files(host, skip=volume.name) == before
    assert labs.leftovers(host) == []


MEASURE = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True)
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""


def test_a_large_disk_is_not_held_in_memory(host: Host, volume: Path) -> None:
    enlarge(host, volume, "2G")
    python = host.place.installation.python
    argv = (python, "-c", MEASURE, python, "-m", "poclab", "image", "verify", "thing:v2")
    code, peak = map(int, host.run(*argv).stdout.split())
    assert code == 1
    assert 10 < peak < 200  # MiB


def test_a_member_of_the_group_reads_through_libvirt(
    system_host: Host, libvirt_member: Host
) -> None:
    for tag in ("v1", "v2"):
        labs.store(system_host, f"tiny:{tag}")
    system_host.poclab("image", "pack", "tiny:v1")
    before = files(system_host)
    rows = verify(libvirt_member)
    assert {name: row["result"] for name, row in rows.items()} == {"tiny:v1": "ok", "tiny:v2": "ok"}
    assert verify(system_host) == rows
    assert files(system_host) == before
    directory = Path(labs.look(system_host)["directory"])
    plain = directory / labs.base(system_host, "tiny:v2")
    packed = directory / f"{labs.base(system_host, 'tiny:v1')}.zst"
    for path in (plain, packed):
        spoil(system_host, path, 300)
    found = damaged(verify(libvirt_member, code=1))
    assert found.keys() == {"tiny:v1", "tiny:v2"}
    # The way out for one: the same disk again, which a member cannot compare by its file.
    source = labs.disk_file(libvirt_member, "tiny-v2.raw")
    again = ("image", "import", "tiny:again", str(source), "--profile", "legacy")
    assert "was damaged, and is replaced by this disk" in libvirt_member.poclab(*again).stderr
    assert damaged(verify(libvirt_member, code=1)).keys() == {"tiny:v1"}
    libvirt_member.poclab("image", "rm", "--yes", "tiny:again")
    system_host.run("rm", str(plain))
    found = damaged(verify(libvirt_member, "tiny:v2", code=1))
    assert found == {"tiny:v2": "its disk is gone"}
    system_host.poclab("image", "rm", "--yes", "tiny:v1")
    assert labs.leftovers(system_host) == []
