"""One bad object takes out itself and nothing else, on libvirt's test driver with a real pool.

tests/integration/test_damaged.py does the same with QEMU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, tostring

import pytest

from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.core.events import Event
from poclab.definitions import metadata
from poclab.definitions.xml import pool_xml
from poclab.images import catalog, lifecycle
from poclab.labs import down, mark, parked, status, warm
from poclab.labs.lab_host import LabHost, observe
from poclab.maintenance import df, doctor, gc, orphans
from poclab.model.version import Ref
from poclab.model.version_volumes import base_volume
from poclab.store import damaged
from poclab.store.manifest import encode
from poclab.store.sealed import seal, unseal
from poclab.virt.host import Host, connect
from tests.hostile import records
from tests.support import make

GOOD = make.version()
BASE = base_volume(GOOD.digest)
LONE = f"base.{'0' * 64}.qcow2"  # no manifest that can be read names it


@pytest.fixture
def said() -> Iterator[list[Event]]:
    """What was told while the test ran."""
    found: list[Event] = []
    with events.listening(found.append):
        yield found


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host with a domain, a version and a pool; nothing of it is damaged."""
    pool, xdg, node = tmp_path / "pool", tmp_path / "xdg", tmp_path / "node.xml"
    pool.mkdir()
    xdg.mkdir(mode=0o700)
    for name in ("STATE_HOME", "CACHE_HOME", "DATA_HOME", "CONFIG_HOME", "RUNTIME_DIR"):
        monkeypatch.setenv(f"XDG_{name}", str(xdg))
    node.write_text("<node/>")
    with connect(f"test://{node}", "tcg") as found:
        found.conn.storagePoolDefineXML(pool_xml("poclab", str(pool)), 0).create(0)
        found.pool.write("manifest.shop.v1.json", encode(GOOD))
        (pool / BASE).write_bytes(b"x" * GOOD.size)
        (pool / LONE).write_bytes(b"y")
        define(found, "acme.vm1", metadata.vm_element(make.record()))
        yield found


def define(host: Host, name: str, element: Element) -> None:
    text = tostring(element, encoding="unicode")
    host.conn.defineXML(
        f"<domain type='test'><name>{name}</name><memory>1024</memory><os><type>hvm</type></os>"
        f"<metadata>{text}</metadata></domain>"
    )


def part(element: Element, tag: str) -> Element:
    found = element.find(f"{{{metadata.NAMESPACE}}}{tag}")
    assert found is not None
    return found


def forged(**changes: object) -> bytes:
    """A manifest whose checksum holds, with something else in it."""
    return seal({**unseal(encode(GOOD)), **changes})


def _domain(host: Host) -> str:
    element = metadata.vm_element(make.record("vm2"))
    part(element, "hardware").set("cpus", "x")
    define(host, "acme.vm2", element)
    return "domain acme.vm2"


def _started(host: Host) -> str:
    element = metadata.vm_element(make.record("vm3"))
    element.set("started", "x")
    define(host, "acme.vm3", element)
    host.conn.lookupByName("acme.vm3").create()
    return "domain acme.vm3"


def _network(host: Host) -> str:
    element = metadata.network_element(make.network_record())
    element.set("cidr", "everything")
    text = tostring(element, encoding="unicode")
    host.conn.networkDefineXML(
        f"<network><name>acme.lan</name><metadata>{text}</metadata></network>"
    )
    return "network acme.lan"


def _volume(name: str, data: bytes, *beside: str) -> Callable[[Host], str]:
    def put(host: Host) -> str:
        host.pool.write(name, data)
        for other in beside:
            host.pool.write(other, b"theirs")
        return name

    return put


OVERLAY = "overlay.acme.vm1.00000009.qcow2"
WRITE = {
    "domain": _domain,
    "started": _started,
    "network": _network,
    "version": _volume("manifest.shop.bad.json", forged(size="large", labels=7)),
    "version of another name": _volume("manifest.shop.other.json", encode(GOOD)),
    "version too large": _volume("manifest.shop.huge.json", b" " * (5 << 20)),
    "version too deep": _volume("manifest.shop.deep.json", forged(labels={"a": [[[[[[]]]]]]})),
    "mark": _volume("mark.acme.bad.json", forged(vms="all")),
    "warm": _volume("warm.acme.vm1.00000009.json", forged(disks=7), OVERLAY),
    "parked": _volume("parked.acme.vm1.00000009.json", forged(record=[]), OVERLAY),
    "parked too large": _volume("parked.acme.vm1.00000009.json", b" " * (5 << 20), OVERLAY),
    "move": _volume("move.data.acme.vm1.db.qcow2", b"../victim", "data.acme.vm1.db.qcow2"),
}

READS: dict[str, Callable[[Host], object]] = {
    "status": status.status,
    "image ls": catalog.image_rows,
    "df": df.space,
    "gc": lambda host: gc.look(host, gc.CleanUp(keep=1)),
    "warm ls": warm.rows,
    "parked ls": parked.rows,
    "marks": mark.rows,
    "down": lambda host: down.look(host, "acme"),
    "up": lambda host: observe(host, "acme"),
    "orphans": orphans.orphans,
}


@pytest.mark.parametrize("kind", WRITE)
def test_whatever_is_damaged_every_command_goes_on(
    host: Host, kind: str, said: list[Event]
) -> None:
    name = WRITE[kind](host)
    for command, read in READS.items():
        said.clear()
        assert read(host) is not None, command
        warnings = [event.text for event in said if event.kind == "warning"]
        assert len(warnings) <= 2, (command, warnings)
        if command == "df":
            assert any(name in text and "`poclab doctor`" in text for text in warnings)
    assert "vm1" in {row.vm for row in status.status(host)}
    assert [(row.name, row.tag) for row in catalog.image_rows(host)] == [("shop", "v1")]
    (item,) = damaged.find(host)
    assert item.name == name
    assert item.why
    assert item.fix
    check = doctor._records(host)
    assert (check.result, check.help) == ("note", str(item))


@pytest.mark.parametrize("kind", WRITE)
def test_nothing_becomes_garbage_by_what_is_damaged(host: Host, kind: str) -> None:
    usual = {"version", "version of another name", "version too large", "version too deep"}
    name = WRITE[kind](host)
    before = set(host.pool.names())
    waste = {item.name for item in orphans.orphans(host)}
    assert name not in waste
    assert BASE not in waste
    assert OVERLAY not in waste
    # Of a version whose manifest does not tell any base may be the one.
    assert (LONE in waste) == (kind not in usual and not kind.startswith("parked"))
    lifecycle.collect(host)
    LabHost(host, "acme").sweep()
    assert before - set(host.pool.names()) <= {LONE}
    assert Path(host.pool.directory, name).exists() or " " in name


@pytest.mark.parametrize("kind", ["version", "version of another name"])
def test_a_damaged_version_is_named_by_whoever_removes_or_publishes_it(
    host: Host, kind: str
) -> None:
    name = WRITE[kind](host)
    ref = Ref("shop", name.split(".")[2])
    for action in (
        lambda: lifecycle.remove(host, [ref]),
        lambda: lifecycle.tag(host, GOOD.ref, ref),
    ):
        with pytest.raises(PoclabError, match=f"{ref} is damaged") as caught:
            action()
        assert f"vol-delete --pool poclab {name}" in caught.value.fix
    host.pool.delete(name)
    lifecycle.tag(host, GOOD.ref, ref)


def test_a_mark_that_cannot_be_read_stops_only_what_must_know(host: Host) -> None:
    WRITE["mark"](host)
    lifecycle.tag(host, GOOD.ref, Ref("shop", "more"))
    with pytest.raises(PoclabError, match="the mark bad of acme cannot be read") as caught:
        lifecycle.remove(host, [Ref("shop", "more")])
    assert "poclab unmark acme bad" in caught.value.fix


def test_dropping_warm_states_takes_the_damaged_one_along(host: Host) -> None:
    name = WRITE["warm"](host)
    assert warm.drop_states(host, {"acme/vm1"}) == 1
    assert {name, OVERLAY}.isdisjoint(host.pool.names())
    assert damaged.find(host) == []


def test_what_a_newer_poclab_defined_is_not_damaged(host: Host) -> None:
    element = metadata.vm_element(make.record("vm2"))
    element.set("format", "2")
    define(host, "acme.vm2", element)
    network = metadata.network_element(make.network_record())
    network.set("format", "2")
    host.conn.networkDefineXML(
        f"<network><name>acme.lan</name><metadata>{tostring(network, encoding='unicode')}"
        "</metadata></network>"
    )
    assert damaged.find(host) == []
    assert "acme.vm2" in host.foreign().domains


def test_down_says_what_it_cannot_take_down(host: Host, said: list[Event]) -> None:
    WRITE["domain"](host)
    host.pool.write("overlay.acme.vm2.00000001.qcow2", b"theirs")
    host.conn.lookupByName("acme.vm1").undefine()  # the test driver knows no flags for that
    down.down(host, "acme")
    assert [vm.record.name for vm in host.vms()] == []
    assert "acme.vm2" in host.foreign().domains
    assert "overlay.acme.vm2.00000001.qcow2" in host.pool.names()
    assert any("damaged: domain acme.vm2" in x.text for x in said if x.kind == "warning")


def test_strays_are_other_and_stop_nothing(host: Host) -> None:
    made = records.strays(Path(host.pool.directory))
    for command, read in READS.items():
        assert read(host) is not None, command
    other = {row.name for row in df.space(host) if row.kind == "other"}
    assert {path.name for path in made if path.is_file() and not path.is_symlink()} <= other
    assert damaged.find(host) == []
    lifecycle.collect(host)
    for lab in ("acme", "other"):
        LabHost(host, lab).sweep()
    assert all(os.path.lexists(path) for path in made)
    assert down.look(host, "acme").kept == ()


def test_a_pool_of_somebody_else_s_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, node = tmp_path / "pool", tmp_path / "node.xml"
    pool.mkdir()
    node.write_text("<node/>")
    records.strays(pool)
    with connect(f"test://{node}", "tcg") as host:
        host.conn.storagePoolDefineXML(pool_xml("poclab", str(pool)), 0).create(0)
        with pytest.raises(PoclabError, match="is not poclab's") as caught:
            _ = host.pool
    assert str(caught.value).isprintable() or "\n" in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert not (pool / "poclab.json").exists()
