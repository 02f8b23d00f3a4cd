"""Versions that are packed while nobody uses them, on a file system that cannot share blocks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import filesystems, labs
from tests.support.b3sum import hex_of
from tests.support.hosts import Host
from tests.support.labs import MIB, Vm
from tests.support.stops import told


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with filesystems.session("ext4", "100m") as found:
        yield found


@pytest.fixture
def versions(host: Host) -> Iterator[dict[str, str]]:
    """tiny:v1 to v3, v1 and v2 packed; the bases by tag."""
    for tag in ("v1", "v2", "v3"):
        done = labs.store(host, f"tiny:{tag}")
        assert done.exists()
    yield {tag: labs.base(host, f"tiny:{tag}") for tag in ("v1", "v2", "v3")}
    host.poclab("image", "rm", "--yes", *(f"tiny:{tag}" for tag in ("v1", "v2", "v3")))
    assert [name for name in labs.look(host)["files"] if name.startswith("base.")] == []
    assert labs.leftovers(host) == []


def packed(host: Host, versions: dict[str, str]) -> str:
    """The tags whose disk is packed and not there otherwise; `+` marks one that is both."""
    files = labs.look(host)["files"]
    found = []
    for tag, base in versions.items():
        assert base in files or f"{base}.zst" in files, f"{tag} is lost"
        if f"{base}.zst" in files:
            found.append(tag + ("+" if base in files else ""))
    return " ".join(found)


def whole(host: Host, versions: dict[str, str]) -> None:
    """See that every disk is what was stored, in each form in which it is there."""
    directory = host.env["POCLAB_POOL_DIR"]
    for name in labs.look(host)["files"]:
        if name.startswith("base."):
            assert hex_of(host, f"{directory}/{name}", packed=name.endswith(".zst")) in name


def test_older_versions_are_packed_and_come_back(host: Host, versions: dict[str, str]) -> None:
    assert packed(host, versions) == "v1 v2"
    whole(host, versions)
    lab = labs.lab_file(host, "cold", Vm("a", image="tiny:v1"), Vm("b", image="tiny:v1"))
    done = host.poclab("up", lab)
    assert done.stderr.count("tiny:v1 was packed: back in 0.") == 1, done.stderr
    assert packed(host, versions) == "v2"
    assert "was packed" not in host.poclab("reset", "cold/a").stderr
    # What is in use or the latest stays, also when a newer one comes.
    labs.store(host, "tiny:v4")
    assert packed(host, versions) == "v2 v3"
    done = host.poclab("image", "pack", "tiny:v1", check=False)
    assert done.returncode == 1
    assert "tiny:v1 stays as it is" in done.stderr
    assert "tiny:v4 stays as it is" in host.poclab("image", "pack", "tiny:v4", check=False).stderr
    done = host.poclab("reset", "--lab", "cold", "--all", "--to", "v2")
    assert done.stderr.count("tiny:v2 was packed") == 1, done.stderr
    assert packed(host, versions) == "v3"
    whole(host, versions)
    assert "tiny:v1 is packed" in host.poclab("image", "pack").stderr
    assert "no version is to be packed" in host.poclab("image", "pack").stderr
    host.poclab("image", "unpack", "tiny:v1", "tiny:v4")
    assert packed(host, versions) == "v3"
    host.poclab("down", "cold", "--yes")
    host.poclab("image", "rm", "--yes", "tiny:v4")


def test_nothing_is_packed_when_that_is_not_wanted(host: Host) -> None:
    for tag in ("v1", "v2"):
        file = labs.disk_file(host, f"plain-{tag}.raw")
        add = ("image", "import", f"plain:{tag}", str(file), "--profile", "legacy")
        host.poclab(*add, POCLAB_PACK="0")
    files = labs.look(host)["files"]
    assert [name for name in files if name.endswith(".zst")] == []
    host.poclab("image", "rm", "--yes", "plain:v1", "plain:v2")


def test_a_packed_version_is_a_version(host: Host, versions: dict[str, str]) -> None:
    file = labs.disk_file(host, "tiny-v1.raw")
    add = ("image", "import", "tiny:v1", str(file), "--profile", "legacy")
    assert "tiny:v1 exists already" in host.poclab(*add, check=False).stderr
    host.poclab("image", "tag", "tiny:v1", "tiny:old")
    host.poclab("image", "rm", "--yes", "tiny:v1")
    assert packed(host, versions) == "v1 v2"
    # The same disk again: it is there, plain, once more.
    host.poclab(*add)
    assert packed(host, versions) == "v2 v3"
    host.poclab("image", "rm", "--yes", "tiny:old")
    whole(host, versions)


@pytest.mark.parametrize("how", ["kill", "interrupt", "enospc"])
def test_a_stop_at_any_step_leaves_a_whole_disk(
    host: Host, versions: dict[str, str], how: str
) -> None:
    lab = labs.lab_file(host, "stops", Vm("a", image="tiny:v1"))
    unpack, pack = ("image", "unpack", "tiny:v1"), ("image", "pack", "tiny:v1")
    counts = [len(host.count_steps(move).steps) for move in (unpack, pack)]
    assert packed(host, versions) == "v1 v2"
    assert counts == [3, 3]
    for step in range(1, 4):
        for move, result in ((unpack, "v2"), (pack, "v1 v2")):
            stopped = host.stop_at(move, step, how)
            assert stopped.reached
            told(stopped, how)
            whole(host, versions)
            assert packed(host, versions) in ("v2", "v1+ v2", "v1 v2")
            host.poclab(*move)
            assert packed(host, versions) == result
            assert labs.leftovers(host) == []
        if how == "kill":
            assert host.stop_at(("up", lab), step, how).reached
            whole(host, versions)
            host.poclab("up", lab)
            assert packed(host, versions) == "v2"
            host.poclab("down", "stops", "--yes")
            host.poclab(*pack)
    assert labs.leftovers(host) == []


def test_what_was_cut_short_is_cleared_by_the_next_command(
    host: Host, versions: dict[str, str]
) -> None:
    pool = host.env["POCLAB_POOL_DIR"]
    for tag in ("v1", "v2"):
        name = f"{pool}/{versions[tag]}"
        host.run("zstd", "-dq", f"{name}.zst", "-o", name)
    assert packed(host, versions) == "v1+ v2+"
    assert labs.leftovers(host) == sorted(f"{versions[tag]}.zst" for tag in ("v1", "v2"))
    labs.store(host, "other:v1")
    assert packed(host, versions) == ""
    host.poclab("image", "rm", "--yes", "other:v1")


def test_a_damaged_packed_disk_is_not_used(host: Host, versions: dict[str, str]) -> None:
    path = f"{host.env['POCLAB_POOL_DIR']}/{versions['v1']}.zst"
    host.run("chmod", "u+w", path)
    host.run("truncate", "-s", "-9", path)
    before = labs.look(host)["files"]
    lab = labs.lab_file(host, "bad", Vm("a", image="tiny:v1"))
    done = host.poclab("up", lab, check=False)
    assert done.returncode == 1
    assert "the packed disk of tiny:v1 is damaged" in done.stderr
    assert labs.look(host)["files"] == before
    assert labs.look(host)["domains"] == {}


def test_a_damaged_disk_is_not_packed(host: Host, versions: dict[str, str]) -> None:
    host.poclab("image", "unpack", "tiny:v1")
    path = f"{host.env['POCLAB_POOL_DIR']}/{versions['v1']}"
    host.run("chmod", "u+w", path)
    host.run("sh", "-c", 'printf x | dd of="$1" bs=1 seek=100000 conv=notrunc', "sh", path)
    file = labs.disk_file(host, "new.raw", size=3 * MIB)
    add = ("image", "import", "tiny:new", str(file), "--profile", "legacy")
    done = host.poclab(*add)  # the new one is stored all the same
    assert "older versions of tiny stay as they are" in done.stderr
    assert "is damaged" in done.stderr
    assert packed(host, versions) == "v2"
    host.poclab("image", "rm", "--yes", "tiny:new")


def test_a_member_of_the_group_brings_back_what_root_has_packed(
    system_host: Host, libvirt_member: Host
) -> None:
    for tag in ("v1", "v2"):
        labs.store(system_host, f"tiny:{tag}")
    base = labs.base(system_host, "tiny:v1")
    system_host.poclab("image", "pack")
    assert f"{base}.zst" in system_host.volumes()
    assert base not in system_host.volumes()
    done = libvirt_member.poclab("image", "pack", "tiny:v2", check=False)
    assert "tiny:v2 cannot be packed" in done.stderr
    lab = labs.lab_file(libvirt_member, "far", Vm("a"))
    done = libvirt_member.poclab("up", lab)
    assert "tiny:v1 was packed: back in" in done.stderr
    directory = labs.look(system_host)["directory"]
    assert hex_of(system_host, f"{directory}/{base}") in base
    assert f"{base}.zst" not in system_host.volumes()
    libvirt_member.poclab("down", "far", "--yes")
    system_host.poclab("image", "rm", "--yes", "tiny:v1", "tiny:v2")
