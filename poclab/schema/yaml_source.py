"""YAML text to a tree that knows where everything stood.

The tree is put together from parser events. No value is ever interpreted: `1.10`, `on` and
`52:54:00:12:34:56` stay the text that was written, and what a text means is decided by
whoever reads the tree. Bounded in size, depth and number of nodes (aliases expanded), and
free of recursion, because the file may come from a stranger.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from poclab.core.errors import Problems, UsageError
from poclab.core.plaintext import shown

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 40
MAX_NODES = 100_000
MAX_KEY = 1024  # as long as a key can be in YAML that is not written with '?'
MAX_REPORTED = 100

# What has no business in a file for people, or cannot be stored in XML 1.0 (its production
# "Char"): C0 and C1 controls but tab and line ends, surrogates, non-characters, Unicode's
# line separators (they would shift line numbers) and the invisible marks that reorder text.
_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069"
    "\ud800-\udfff\ufeff\ufffe\uffff]"
)
_LINE_END = re.compile(r"\r\n|\r|\n")
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,60}")

NodePath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Scalar:
    """A text.

    Attributes:
        text: what was written, quotes and escapes resolved.
        plain: whether it was written without quotes.
        line: where it begins, from 1.
        column: where it begins, in characters from 1.
    """

    text: str
    plain: bool
    line: int
    column: int

    @property
    def empty(self) -> bool:
        """Whether nothing was written at all (`key:` and no more)."""
        return self.plain and not self.text


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list."""

    items: tuple[Node, ...]
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A key of a mapping and its value."""

    key: Scalar
    value: Node


@dataclass(frozen=True, slots=True)
class MappingNode:
    """A mapping, in the order that was written; of equal keys the first is kept."""

    entries: Mapping[str, Entry]
    line: int
    column: int


Node = Scalar | Sequence | MappingNode


@dataclass(frozen=True, order=True, slots=True)
class Fault:
    """Something wrong at a place of a file.

    Attributes:
        line: from 1.
        column: in characters from 1.
        path: the keys that lead there, such as `vms.db.networks[0].ip`; may be empty.
        message: what is wrong.
    """

    line: int
    column: int
    path: str
    message: str


@dataclass(frozen=True)
class Document:
    """A parsed file.

    Attributes:
        name: the file's name, for messages.
        root: its content; an empty mapping when the file has none.
        faults: what is wrong with it as YAML, short of a syntax error.
    """

    name: str
    root: Node
    faults: tuple[Fault, ...] = ()


def path_text(path: Iterable[str | int]) -> str:
    """Spell a path: `vms.db.networks[0].ip`; odd keys are quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN_KEY.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{shown(part)}]"
    return text


def locate(root: Node, path: NodePath) -> tuple[Node, Scalar | None, int]:
    """Find a place of the tree.

    Returns:
        The deepest node that the path leads to, the key it stands behind (None in a list and
        at the root), and how many parts of the path lead there.
    """
    node, key = root, None
    for depth, part in enumerate(path):
        if isinstance(node, MappingNode) and part in node.entries:
            entry = node.entries[str(part)]
            node, key = entry.value, entry.key
        elif isinstance(node, Sequence) and isinstance(part, int):
            node, key = node.items[part], None
        else:
            return node, key, depth
    return node, key, len(path)


def fail(name: str, kind: str, faults: Iterable[Fault]) -> Problems:
    """Put the faults of a file together in one error.

    Only the first fault of a place is told: what follows at the same place follows from it.

    Args:
        name: the file's name.
        kind: what the file should be ("lab file").
        faults: what is wrong, in any order; at least one.
    """
    label = name if name.isprintable() else ascii(name)
    places: dict[tuple[int, int], Fault] = {}
    for fault in faults:
        places.setdefault((fault.line, fault.column), fault)
    rows = [
        f"{label}:{f.line}:{f.column}: " + (f"{f.path}: " if f.path else "") + f.message
        for f in sorted(places.values())
    ]
    count = f"{len(rows)} fault{'s' if len(rows) > 1 else ''}"
    if len(rows) > MAX_REPORTED:
        count += f", the first {MAX_REPORTED} are shown"
    return Problems(f"{label} is no valid {kind} ({count})", rows[:MAX_REPORTED])


def read(path: Path, kind: str) -> str:
    """Read a file for `parse`.

    Args:
        path: the file.
        kind: what it should be, for messages ("lab file").

    Raises:
        UsageError: it cannot be read, is too large or is not UTF-8.
    """
    label = shown(str(path), 200)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UsageError(f"{label} is a directory", fix=f"name the {kind} itself")
        if not stat.S_ISREG(mode):
            raise UsageError(f"{label} is no regular file", fix=f"name a {kind}")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise UsageError(f"there is no {kind} {label}", fix="check the name") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot read the {kind} {label}", why=why) from error
    if len(data) > MAX_BYTES:
        raise _too_large(str(path), kind)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line, column = _position(data[: error.start].decode())
        message = f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise fail(str(path), kind, [Fault(line, column, "", message)]) from error


def parse(text: str, name: str, kind: str = "YAML file", loader: Any = None) -> Document:
    """Parse the text of a YAML file.

    Args:
        text: the file's text.
        name: the file's name, for messages.
        kind: what the file should be, for messages.
        loader: the PyYAML loader class whose parser is used; by default libyaml's where
            PyYAML has it, else the one written in Python.

    Raises:
        Problems: it is no YAML, or goes beyond a limit.
    """
    import yaml

    if len(text) > MAX_BYTES or len(text.encode(errors="surrogatepass")) > MAX_BYTES:
        raise _too_large(name, kind)
    text = text.removeprefix("\ufeff")
    if control := _CONTROL.search(text):
        line, column = _position(text[: control.start()])
        raise fail(name, kind, [Fault(line, column, "", _control_message(control[0]))])
    builder = _Builder()
    loader = loader or getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        for event in yaml.parse(text, Loader=loader):
            builder.feed(event)
    except _StopError as error:
        raise fail(name, kind, builder.faults) from error
    except yaml.YAMLError as error:
        raise fail(name, kind, [_syntax(error, text), *builder.faults]) from error
    return Document(name, builder.root or MappingNode({}, 1, 1), tuple(builder.faults))


def _too_large(name: str, kind: str) -> UsageError:
    return UsageError(f"{shown(name, 200)} is larger than 1 MiB", why=f"a {kind} is at most 1 MiB")


def _position(before: str) -> tuple[int, int]:
    """Line and column of what follows the text."""
    ends = list(_LINE_END.finditer(before))
    return len(ends) + 1, len(before) - (ends[-1].end() if ends else 0) + 1


def _control_message(character: str) -> str:
    return f"the character U+{ord(character):04X} is not allowed"


# What libyaml and PyYAML say, and what that means to the one who wrote the file.
_HINTS = (
    ("mapping values are not allowed", "a second ':' on a line, or a line indented too far"),
    ("'\\t'", "a tab cannot indent; use spaces"),
    ("cannot start any token", "text that begins with @, `, % or a tab needs quotes"),
    ("unexpected end of stream", "a closing quote is missing"),
    ("did not find expected key", "check the indentation, or a missing ':'"),
    ("<document start>", "check the indentation, or a missing ':'"),
    ("<block end>", "check the indentation, or a missing ':'"),
    ("expected '-' indicator", "every entry of this list begins with '- '"),
    ("could not find expected ':'", "a key is followed by ': '"),
    ("or ']'", "a '[' is not closed, or a ',' is missing"),
    ("or '}'", "a '{' is not closed, or a ',' is missing"),
)


def _syntax(error: Any, text: str) -> Fault:
    """Tell a parser's error; the classes of PyYAML's errors have no types worth using."""
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    if "nesting depth" in problem:  # libyaml's own limit, when it looks ahead
        return Fault(line, column, "", _TOO_DEEP)
    lines = text.splitlines()
    here = lines[line - 1][column - 1 : column] if line <= len(lines) else ""
    if here == "\t" and "cannot start any token" in problem:
        problem = "found character '\\t' that cannot start any token"
    message = f"no valid YAML: {problem}"
    hint = next((text for needle, text in _HINTS if needle in problem), "")
    begin = getattr(error, "context_mark", None)
    if begin and getattr(error, "context", None) and begin.line + 1 != line:
        message += f" ({error.context} that begins at line {begin.line + 1})"
    return Fault(line, column, "", f"{message}: {hint}" if hint else message)


_TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"


class _StopError(Exception):
    """Going on would be dangerous or pointless; the reason is the last fault."""


@dataclass(slots=True)
class _Frame:
    """A list or mapping whose end has not come yet."""

    is_map: bool
    anchor: str | None
    line: int
    column: int
    items: list[Node] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)
    key: Node | None = None
    size: int = 1
    height: int = 1


@dataclass(frozen=True, slots=True)
class _Anchored:
    node: Node
    size: int
    height: int


class _Builder:
    """Takes events, gives a tree; keeps its own stack."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self.faults: list[Fault] = []
        self._stack: list[_Frame] = []
        self._anchors: dict[str, _Anchored | None] = {}  # None: not complete yet
        self._nodes = 0
        self._documents = 0

    def feed(self, event: Any) -> None:
        handler = _HANDLERS.get(type(event).__name__)
        if handler is not None:
            handler(self, event, event.start_mark.line + 1, event.start_mark.column + 1)

    def document(self, _event: Any, line: int, column: int) -> None:
        self._documents += 1
        if self._documents > 1:
            self._stop(line, column, "a second document begins here; only one is allowed")

    def scalar(self, event: Any, line: int, column: int) -> None:
        text = event.value
        self._refuse_tag(event, line, column)
        if control := _CONTROL.search(text):  # by an escape, "\0"
            self._fault(line, column, _control_message(control[0]))
            text = _CONTROL.sub("?", text)
        self._count(1, line, column)
        node = Scalar(text, not event.style, line, column)
        if event.anchor:
            self._anchors[event.anchor] = _Anchored(node, 1, 0)
        self._add(node, 1, 0)

    def alias(self, event: Any, line: int, column: int) -> None:
        target = self._anchors.get(event.anchor)
        if target is None:
            known = event.anchor in self._anchors
            what = "refers to what it is part of" if known else "refers to nothing above it"
            self._fault(line, column, f"*{shown(event.anchor)[1:-1]} {what}")
            self._count(1, line, column)
            self._add(Scalar("", False, line, column), 1, 0)
            return
        self._count(target.size, line, column)
        if len(self._stack) + target.height > MAX_DEPTH:
            self._stop(line, column, _TOO_DEEP)
        node = target.node
        if isinstance(node, Scalar):
            node = Scalar(node.text, node.plain, line, column)
        self._add(node, target.size, target.height)

    def start(self, event: Any, line: int, column: int) -> None:
        self._refuse_tag(event, line, column)
        self._count(1, line, column)
        if len(self._stack) >= MAX_DEPTH:
            self._stop(line, column, _TOO_DEEP)
        if event.anchor:
            self._anchors[event.anchor] = None
        is_map = type(event).__name__ == "MappingStartEvent"
        self._stack.append(_Frame(is_map, event.anchor, line, column))

    def end(self, _event: Any, _line: int, _column: int) -> None:
        frame = self._stack.pop()
        node: Node
        if frame.is_map:
            node = MappingNode(frame.entries, frame.line, frame.column)
        else:
            node = Sequence(tuple(frame.items), frame.line, frame.column)
        if frame.anchor:
            self._anchors[frame.anchor] = _Anchored(node, frame.size, frame.height)
        self._add(node, frame.size, frame.height)

    def _add(self, node: Node, size: int, height: int) -> None:
        if not self._stack:
            self.root = node
            return
        frame = self._stack[-1]
        frame.size += size
        frame.height = max(frame.height, height + 1)
        if not frame.is_map:
            frame.items.append(node)
        elif frame.key is None:
            frame.key = node
        else:
            key, frame.key = frame.key, None
            self._enter(frame, key, node)

    def _enter(self, frame: _Frame, key: Node, value: Node) -> None:
        if not isinstance(key, Scalar):
            self._fault(key.line, key.column, "a key must be text, not a list or a mapping")
        elif len(key.text) > MAX_KEY:
            self._fault(key.line, key.column, f"a key has {MAX_KEY} characters at most")
        elif key.plain and key.text == "<<":
            message = "merge keys (<<) are not supported; use defaults, or write the keys out"
            self._fault(key.line, key.column, message)
        elif first := frame.entries.get(key.text):
            where = f"first at line {first.key.line}, again at line {key.line}"
            self._fault(key.line, key.column, f"the key {shown(key.text)} stands twice: {where}")
        else:
            frame.entries[key.text] = Entry(key, value)

    def _refuse_tag(self, event: Any, line: int, column: int) -> None:
        if event.tag is not None:
            message = f"tags are not allowed: {shown(event.tag)}; write the value without it"
            self._fault(line, column, message)

    def _count(self, nodes: int, line: int, column: int) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            self._stop(line, column, f"more than {MAX_NODES} values, aliases written out")

    def _fault(self, line: int, column: int, message: str) -> None:
        self.faults.append(Fault(line, column, path_text(self._path()), message))

    def _stop(self, line: int, column: int, message: str) -> None:
        # Without its path, which is as long as the file is deep.
        self.faults.append(Fault(line, column, "", message))
        raise _StopError

    def _path(self) -> NodePath:
        parts: list[str | int] = []
        for frame in self._stack:
            if not frame.is_map:
                parts.append(len(frame.items))
            elif isinstance(frame.key, Scalar):
                parts.append(frame.key.text)
        return tuple(parts)


_HANDLERS = {
    "DocumentStartEvent": _Builder.document,
    "ScalarEvent": _Builder.scalar,
    "AliasEvent": _Builder.alias,
    "SequenceStartEvent": _Builder.start,
    "MappingStartEvent": _Builder.start,
    "SequenceEndEvent": _Builder.end,
    "MappingEndEvent": _Builder.end,
}
