"""Damaged and forged records on a real host: each takes itself out, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poclab.store.sealed import seal, unseal
from tests.hostile import overlays
from tests.support import hosts, labs
from tests.support.hosts import Host
from tests.support.labs import Vm

NAMESPACE = "https://poclab.dev/xmlns/1"


def quick(host: Host) -> Host:
    """The host without its warning that guests are emulated."""
    return replace(host, place=replace(host.place, env=host.env | {"POCLAB_ACCEL": "tcg"}))


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with hosts.session() as found:
        for tag in ("v1", "v2"):
            labs.store(quick(found), f"tiny:{tag}")
        yield quick(found)


@pytest.fixture(scope="module")
def root() -> Iterator[Host]:
    with hosts.system() as (found, _):
        labs.store(quick(found), "tiny:v1")
        yield quick(found)


def pool(host: Host) -> str:
    return str(labs.look(host)["directory"])


def put(host: Host, name: str, data: bytes) -> str:
    """Put a file into the pool's directory, as a neighbour may; returns its path."""
    source = host.scratch / "put"
    source.unlink(missing_ok=True)
    source.write_bytes(data)
    host.give(source)
    target = f"{pool(host)}/{name}"
    host.run("cp", "--", str(source), target)
    host.virsh("pool-refresh", "poclab")
    return target


def get(host: Host, name: str) -> bytes:
    target = host.scratch / "get"
    host.run("cp", "--", f"{pool(host)}/{name}", str(target))
    return target.read_bytes()


def overlay(host: Host, domain: str) -> str:
    (name,) = [x for x in labs.look(host)["domains"][domain]["defined"] if x.startswith("overlay.")]
    return str(name)


def exists(host: Host, path: str) -> bool:
    return host.run("test", "-e", path, check=False).returncode == 0


def records(host: Host) -> dict[str, Any]:
    rows = json.loads(host.poclab("doctor", "-o", "json", check=False).stdout)
    (row,) = [row for row in rows if row["check"] == "records"]
    return dict(row)


def set_metadata(host: Host, domain: str, xml: str, *how: str) -> None:
    host.virsh("metadata", domain, NAMESPACE, "--set", xml, "--key", "poclab", *how)


def metadata(host: Host, domain: str) -> str:
    return host.virsh("metadata", domain, NAMESPACE, "--config")


def test_one_bad_object_breaks_no_command(host: Host) -> None:
    assert records(host)["result"] == "ok"
    good = labs.lab_file(host, "good", Vm("web", kept=True), net=None)
    for lab in ("good", "other"):
        host.poclab("up", labs.lab_file(host, lab, Vm("web", kept=True), net=None))
    base = labs.base(host, "tiny:v1")
    disk = overlay(host, "other.web")
    generation = disk.split(".")[3]
    bad = {
        # A manifest that is whole, with something of another type in it.
        "manifest.tiny.bad.json": {"size": "large", "labels": 7},
        "mark.other.bad.json": {"format": 1, "vms": "all"},
        f"warm.other.web.{generation}.json": {"format": 1, "disks": {}},
    }
    version = unseal(get(host, "manifest.tiny.v1.json"))
    for name, changes in bad.items():
        put(host, name, seal({**version, **changes}))
    gone = disk.replace(generation, "00000009")
    put(host, gone, b"theirs")
    parked = gone.replace("overlay", "parked").replace("qcow2", "json")
    put(host, parked, seal({"format": 1, "time": 7, "by": [], "expires": None, "record": {}}))
    put(host, "manifest.tiny.huge.json", b" " * (5 << 20))
    strays = ["data.good.web.data.qcow2.bak", "overlay.other", "x\x1b[31mred"]
    for name in strays:
        put(host, name, b"theirs")
    set_metadata(
        host,
        "other.web",
        f"{metadata(host, 'other.web')}".replace('cpus="1"', 'cpus="x"'),
        "--config",
    )
    live = host.virsh("metadata", "good.web", NAMESPACE, "--live")
    set_metadata(
        host,
        "good.web",
        live.replace("started=", "before=").replace("<vm ", '<vm started="x" '),
        "--live",
    )
    before = set(labs.look(host)["files"])

    # Listings show the rest, with one line about what they leave out.
    (row,) = json.loads(host.poclab("status", "-o", "json").stdout)
    assert (row["lab"], row["state"], row["uptime"]) == ("good", "running", None)
    for command in (
        ["status"],
        ["image", "ls"],
        ["df"],
        ["gc", "--dry-run"],
        ["warm", "ls"],
        ["parked", "ls"],
    ):
        done = host.poclab(*command)
        assert "Traceback" not in done.stderr
        assert done.stderr.count("warning:") == 1, done.stderr
        assert "`poclab doctor` says what to do" in done.stderr
    shown = json.loads(host.poclab("image", "ls", "-o", "json").stdout)
    assert {row["tag"] for row in shown} == {"v1", "v2"}
    host.poclab("marks")
    host.poclab("history", "good/web")
    others = {row["name"] for row in json.loads(host.poclab("df", "-o", "json").stdout)}
    assert set(strays) <= others

    # doctor names each, and what helps.
    found = records(host)
    assert found["result"] == "note"
    for name in (*bad, parked, "manifest.tiny.huge.json", "domain other.web", "domain good.web"):
        assert f"{name}: " in found["help"], (name, found["help"])
    assert "poclab unmark other bad" in found["help"]
    assert "vol-delete --pool poclab manifest.tiny.bad.json" in found["help"]
    for name in strays:
        assert name not in found["help"]

    # What changes things goes on, and deletes nothing that it cannot know.
    assert host.poclab("up", good).returncode == 0
    host.poclab("reset", "good/web", "--to", "v2")
    host.poclab("image", "tag", "tiny:v2", "tiny:more")
    host.poclab("image", "rm", "tiny:more", check=False)
    host.poclab("down", "good", "--yes", "--volumes")
    left = set(labs.look(host)["files"])
    assert {name for name in before - left if ".good." not in name} == set()
    assert {"data.good.web.data.qcow2.bak", base, disk, gone} <= left
    removed = host.poclab("image", "rm", "tiny:bad", check=False)
    assert (removed.returncode, "tiny:bad is damaged" in removed.stderr) == (1, True)

    # What doctor says, done, ends it.
    host.virsh("destroy", "other.web")
    host.virsh("undefine", "--nvram", "other.web")
    for name in ("manifest.tiny.bad.json", "manifest.tiny.huge.json"):
        host.virsh("vol-delete", "--pool", "poclab", name)
    host.poclab("unmark", "other", "bad")
    host.poclab("gc", "--yes")
    host.poclab("down", "other", "--yes", "--volumes", check=False)
    assert records(host)["result"] == "ok"
    for name in strays:
        host.run("rm", "--", f"{pool(host)}/{name}")
    host.virsh("pool-refresh", "poclab")
    assert not [name for name in labs.look(host)["files"] if ".other." in name]


def test_a_record_with_a_path_in_its_overlay_deletes_nothing(host: Host) -> None:
    host.poclab("up", labs.lab_file(host, "path", Vm("web"), net=None))
    disk = overlay(host, "path.web")
    outside = f"{pool(host)}/../victim.qcow2"
    host.run("cp", f"{pool(host)}/{disk}", outside)
    host.run("mkdir", f"{pool(host)}/overlay.path.web.d")
    good = metadata(host, "path.web")
    for forged in ("overlay.path.web.d/../..", "overlay.path.web.d/../../victim.qcow2"):
        for how in ("--config", "--live"):
            set_metadata(host, "path.web", good.replace(disk, forged), how)
        done = host.poclab("down", "path", "--yes", check=False)
        assert "Traceback" not in done.stderr
        host.poclab("gc", "--yes")
        assert exists(host, outside)
        assert exists(host, f"{pool(host)}/{disk}")
        assert (
            "domain path.web: metadata.version.overlay: expected a system disk's name"
            in (records(host)["help"])
        )
    for how in ("--config", "--live"):
        set_metadata(host, "path.web", good, how)
    host.run("rmdir", f"{pool(host)}/overlay.path.web.d")
    host.run("rm", outside)
    host.poclab("down", "path", "--yes")
    assert not [name for name in labs.look(host)["files"] if ".path." in name]


def test_root_deletes_nothing_by_a_marker_with_a_path(root: Host) -> None:
    file = labs.lab_file(root, "move", Vm("web", kept=False), net=None)
    root.poclab("up", file)
    (disk,) = [x for x in labs.look(root)["files"] if x.startswith("scratch.move.web.")]
    victims = [f"{pool(root)}/../victim", f"{pool(root)}/poclab.json", f"{pool(root)}/{disk}"]
    root.run("sh", "-c", f"echo precious >{victims[0]}")
    contents = [b"../victim", victims[0].encode(), b"poclab.json", b"\xff", b""]
    for content in contents:
        marker = f"move.{disk}"
        put(root, marker, content)
        for command in (["up", file], ["gc", "--yes"], ["reset", "move/web"]):
            root.poclab(*command)
            assert all(exists(root, path) for path in victims[:2]), (content, command)
            if not exists(root, f"{pool(root)}/{marker}"):
                break  # its disk is gone, and so is what was said of it
            assert f"{marker}: " in records(root)["help"]
        (disk,) = [x for x in labs.look(root)["files"] if x.startswith("scratch.move.web.")]
    put(root, f"move.{disk}", b"../victim")
    root.poclab("down", "move", "--yes")
    assert all(exists(root, path) for path in victims[:2])
    assert not [name for name in labs.look(root)["files"] if ".move." in name]
    assert records(root)["result"] == "ok"


@pytest.mark.parametrize("how", [["--flatten"], []])
def test_an_overlay_over_a_foreign_file_is_not_published(root: Host, how: list[str]) -> None:
    root.poclab("up", labs.lab_file(root, "foreign", Vm("web"), net=None))
    root.virsh("destroy", "foreign.web")
    disk = overlay(root, "foreign.web")
    secret = root.scratch / "secret.qcow2"
    secret.unlink(missing_ok=True)
    overlays.make(secret)
    # The header is written anew outside, as an upload through libvirt would.
    for name in (str(secret), f'json:{{"driver":"qcow2","file.filename":"{secret}"}}'):
        forged = root.scratch / "forged.qcow2"
        forged.write_bytes(get(root, disk))
        overlays.renamed_backing(forged, name)
        root.run("cp", str(forged), f"{pool(root)}/{disk}")
        before = set(labs.look(root)["files"])
        done = root.poclab("commit", "foreign/web", "--as", "tiny:stolen", *how, check=False)
        assert done.returncode == 1
        assert "the disk of foreign/web is not what its record says" in done.stderr
        assert "poclab reset foreign/web --to TAG" in done.stderr
        assert set(labs.look(root)["files"]) == before
    root.poclab("reset", "foreign/web", "--to", "v1")
    root.poclab("down", "foreign", "--yes")


def test_what_a_neighbour_puts_into_the_pool_is_not_followed(root: Host) -> None:
    link, fifo = f"{pool(root)}/manifest.tiny.link.json", f"{pool(root)}/manifest.tiny.fifo.json"
    root.run("ln", "-s", "/etc/shadow", link)
    root.run("mkfifo", fifo)
    try:
        for command in (["image", "ls"], ["df"], ["gc", "--yes"]):
            done = root.poclab(*command)
            assert "Traceback" not in done.stderr
        assert exists(root, "/etc/shadow")
        assert root.run("test", "-L", link, check=False).returncode == 0
        assert exists(root, fifo)
    finally:
        root.run("rm", link, fifo)


def test_names_and_labels_are_stored_plain(host: Host) -> None:
    nasty = "evil\x1b[31m\N{RIGHT-TO-LEFT OVERRIDE}\udcff.raw"  # the last: a byte that is not UTF-8
    path = host.scratch / nasty
    path.write_bytes(Path(labs.disk_file(host, "plain.raw")).read_bytes())
    host.give(path)
    host.poclab("image", "import", "tiny:plain", str(path), "--profile", "legacy")
    body = unseal(get(host, "manifest.tiny.plain.json"))
    assert body["origin"]["source"].isprintable()
    assert "evil?[31m??.raw" in body["origin"]["source"]
    listed = host.poclab("image", "ls", LC_ALL="C", PYTHONIOENCODING="ascii:strict").stdout
    assert "evil?[31m??.raw" in listed
    host.poclab("image", "rm", "tiny:plain")
