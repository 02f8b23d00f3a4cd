"""Hostile names, records, manifests and markers: what a neighbour could leave on the host.

The pool's directory, libvirt's volume API and the metadata of domains and networks are open to
every member of group libvirt, and a damaged disk writes anything anywhere. None of this may make
poclab delete, open or publish what is not its own, nor stop it for everybody else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

_HEX = "0" * 64

# No volume of poclab's is called like that.
BAD_NAMES = (
    "",
    ".",
    "..",
    "../victim",
    "/etc/passwd",
    "overlay.acme.vm1.d/../..",
    "overlay.acme.vm1.d/../../victim.qcow2",
    "overlay.acme.vm1.00000001.qcow2/",
    "overlay.acme.vm1.00000001.qcow2\n",
    " overlay.acme.vm1.00000001.qcow2",
    "overlay.acme.vm1..qcow2",
    "overlay.acme.vm1.a.b.qcow2",
    "overlay.acme.vm1.a-b-c.qcow2",
    "overlay.acme.VM1.00000001.qcow2",
    "overlay.acme.vm1.00000001.qcow2.bak",
    "overlay..vm1.00000001.qcow2",
    f"overlay.acme.vm1.{'0' * 300}.qcow2",
    "data.acme.vm1.db.qcow2.bak",
    "data.acme.vm1.qcow2",
    "data.acme.vm1.a.b.qcow2",
    "data.acme.vm1.db.qcow2\0",
    "scratch.acme.vm1.tmp.qcow2",
    f"base.{_HEX}",
    f"base.{_HEX[1:]}.qcow2",
    f"base.{_HEX.replace('0', 'A')}.qcow2",
    f"base.{_HEX}.qcow2.gz",
    "base.../../victim.qcow2",
    "manifest.shop.json",
    "manifest.shop..json",
    "manifest.shop.-v1.json",
    "manifest.shop.v/1.json",
    "mark.acme..json",
    "warm.acme.vm1.00000001",
    "warm.acme.vm1.00000001.json.ram",
    "parked.acme.strange",
    "move.",
    "move.overlay.acme.vm1.00000001.qcow2",
    "move.move.data.acme.vm1.db.qcow2",
    "move.../victim",
    "poclab.json.bak",
    "tmp.",
    "tmp.1/../../victim",
    "json:{}",
    "-rf",
    "\x1b[2J",
    "\N{RIGHT-TO-LEFT OVERRIDE}2wocq",
    "caf\udce9.iso",
)


def bad_moves(other: str) -> list[bytes]:
    """Contents of a marker `move.scratch.t.vm.d.1.qcow2` that must not be believed.

    Args:
        other: a volume of another VM.
    """
    return [
        b"",
        b"../victim",
        b"/etc/passwd",
        other.encode(),
        b"data.t.vm.d.qcow2/../../victim",
        b"data.t.vm.other.qcow2",
        b"scratch.t.vm.d.1.qcow2",
        b"overlay.t.vm.1.qcow2",
        b"poclab.json",
        b"data.t.vm.d.qcow2\n",
        b"data.t.vm.d.qcow2\0",
        b"\xff\xfe",
        b"x" * 100_000,
    ]


def strays(directory: Path) -> list[Path]:
    """Put what is not poclab's into a pool's directory: files, a directory, a link, a FIFO."""
    made = [
        directory / "data.acme.vm1.db.qcow2.bak",
        directory / "scratch.acme.vm1.tmp.qcow2",
        directory / "overlay.acme",
        directory / "notes.txt",
        directory / "x\x1b[31mred.qcow2",
        Path(os.fsdecode(bytes(directory) + b"/caf\xe9.iso")),
    ]
    for path in made:
        path.write_bytes(b"theirs")
    inside = directory / "lost+found"
    inside.mkdir()
    link = directory / "link.qcow2"
    link.symlink_to("/etc/hostname")
    fifo = directory / "fifo.json"
    os.mkfifo(fifo)
    return [*made, inside, link, fifo]


# Values of every type that JSON has, and some at the edges.
WRONG: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    2**80,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../etc/passwd",
    "a\0b",
    "\x1b[2J",
    "\ud800",
    "9" * 5000,
    [],
    [[]],
    ["x"],
    [None] * 5000,
    {},
    {"x": 1},
    {"": {"": {}}},
)


def twisted(body: Mapping[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Every body that differs from a good one in one value, or by one key more or less.

    Yields:
        Where the value is, what is there now (`twisted` itself for a key that is gone or new),
        and the whole body.
    """
    for path in _paths(body):
        for value in WRONG:
            changed = deepcopy(dict(body))
            _put(changed, path, value)
            yield ".".join(map(str, path)), value, changed
    for path in (path for path in _paths(body) if isinstance(path[-1], str)):
        changed = deepcopy(dict(body))
        del _parent(changed, path)[path[-1]]
        yield f"without {'.'.join(map(str, path))}", twisted, changed
    yield "one more", twisted, {**body, "surplus": 1}


def _paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _paths(item, (*at, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _paths(item, (*at, index))


def _parent(body: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        body = body[key]
    return body


def _put(body: Any, path: tuple[Any, ...], value: Any) -> None:
    _parent(body, path)[path[-1]] = value


def at(body: Mapping[str, Any], where: str) -> Any:
    """The value of a good body at a place that `twisted` names."""
    found: Any = body
    for key in where.split("."):
        found = found[int(key)] if isinstance(found, list | tuple) else found[key]
    return found


# Texts for XML attributes; each is one that XML 1.0 can carry.
ODD_TEXTS = (
    "",
    " ",
    "x",
    "-1",
    "1e9",
    "1.5.1",
    "nan",
    "inf",
    "99999999999999999999999999",
    "0x10",
    "\N{ARABIC-INDIC DIGIT ONE}",
    "../../etc/passwd",
    "overlay.acme.vm1.d/../..",
    "overlay.acme.vm2.00000001.qcow2",
    "--",
    "-oProxyCommand=touch /tmp/x",
    "a\nb",
    "\N{RIGHT-TO-LEFT OVERRIDE}",
    "9" * 10_000,
)


def twisted_elements(element: Element) -> Iterator[tuple[str, str, Element]]:
    """Every metadata element that differs from a good one in one attribute, or lacks one part.

    Yields:
        Where it differs, the attribute's text, and the element.
    """
    parts = list(element.iter())
    for number, part in enumerate(parts):
        for key in part.attrib:
            for text in ODD_TEXTS:
                changed = deepcopy(element)
                list(changed.iter())[number].set(key, text)
                yield f"{part.tag}.{key}", text, changed
            changed = deepcopy(element)
            del list(changed.iter())[number].attrib[key]
            yield f"{part.tag} without {key}", "", changed
    for child in list(element):
        changed = deepcopy(element)
        changed.remove(next(item for item in changed if item.tag == child.tag))
        yield f"without {child.tag}", "", changed


# Free text that must not reach a terminal, a listing or a line of a file as it came.
UNPRINTABLE = (
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "two\nlines",
    "carriage\rreturn",
    "nul\0byte",
    "\x9b31mC1",
    "\N{RIGHT-TO-LEFT OVERRIDE}2wocq.dab",
    "\N{LEFT-TO-RIGHT ISOLATE}iso\N{POP DIRECTIONAL ISOLATE}",
    "\N{ZERO WIDTH SPACE}unseen",
    "\N{LINE SEPARATOR}line",
    "caf\udce9",
    "\ud800",
    "\ufffe",
)
