"""The parts that lab files and image files have in common.

Leaf types that read the text that was written, strict models, and the translation of what
pydantic finds into faults with a place. A model is validated on a copy of the tree in which
mappings are dicts, sequences are lists and every text is still its `Scalar`.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationError, WithJsonSchema

from poclab.core import units
from poclab.core.plaintext import shown
from poclab.schema import scalars, yaml_source
from poclab.schema.scalars import USER_PATTERN, flag, scalar, size, unknown, whole
from poclab.schema.yaml_source import Document, Fault, MappingNode, Node, Scalar

M = TypeVar("M", bound="Strict")

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"

# Looking for what was meant costs time; no more faults than these are shown anyway.
_MAX_SUGGESTIONS = 100


class Strict(BaseModel):
    """A mapping with known keys only."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def leaf(reader: Callable[[Scalar], object]) -> PlainValidator:
    """Make pydantic read a text with a function that raises ValueError for a wrong one."""
    return PlainValidator(lambda value: reader(scalar(value)))


def text_schema(pattern: str = "", **more: object) -> WithJsonSchema:
    """The JSON Schema of a text; `pattern` is for the whole of it."""
    schema: dict[str, Any] = {"type": "string", **more}
    if pattern:
        schema["pattern"] = f"^{pattern}$"
    return WithJsonSchema(schema)


def choice_schema(choices: Iterable[str]) -> WithJsonSchema:
    """The JSON Schema of one of some words."""
    return WithJsonSchema({"type": "string", "enum": [str(choice) for choice in choices]})


_SIZE_SCHEMA = WithJsonSchema(
    {
        "anyOf": [
            {"type": "integer", "minimum": 1},
            {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?([kKmMgGtT]([iI]?[bB])?|[bB])?$"},
        ],
        "examples": ["512MiB", "2GiB"],
    }
)

Text = Annotated[str, leaf(scalars.text), text_schema()]
Line = Annotated[str, leaf(scalars.line), text_schema(minLength=1)]
User = Annotated[str | None, leaf(scalars.user), text_schema(USER_PATTERN)]
Flag = Annotated[bool, leaf(flag), WithJsonSchema({"type": "boolean"})]
OptionalFlag = Annotated[bool | None, leaf(flag), WithJsonSchema({"type": "boolean"})]
Cpus = Annotated[
    int | None,
    leaf(whole(1, 512)),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 512}),
]
Memory = Annotated[int | None, leaf(size(16 * units.MIB, 16 * units.TIB)), _SIZE_SCHEMA]
DiskSize = Annotated[int, leaf(size(units.MIB, 64 * units.TIB)), _SIZE_SCHEMA]
OptionalDiskSize = Annotated[int | None, leaf(size(units.MIB, 64 * units.TIB)), _SIZE_SCHEMA]


# --- models -----------------------------------------------------------------------------


def validate(model: type[M], document: Document) -> tuple[M | None, list[Fault]]:
    """Check a document against a model.

    Returns:
        The model, or None, and the faults of the document and of the model.
    """
    faults = list(document.faults)
    try:
        return model.model_validate(_data(document.root)), faults
    except ValidationError as error:
        for index, detail in enumerate(error.errors(include_url=False, include_input=False)):
            faults.append(_fault(model, document.root, detail, index < _MAX_SUGGESTIONS))
    return None, faults


def json_schema(model: type[Strict], title: str) -> dict[str, object]:
    """The JSON Schema (draft 2020-12) of a model, for editors."""
    schema = _tidied(model.model_json_schema(mode="validation"))
    return {"$schema": SCHEMA_DIALECT, **schema, "title": title}


def _tidied(schema: Any) -> Any:
    """Drop what only says that a key may be left out: null is not written in these files."""
    if isinstance(schema, list):
        return [_tidied(item) for item in schema if item != {"type": "null"}]
    if not isinstance(schema, dict):
        return schema
    kept = {
        key: _tidied(value)
        for key, value in schema.items()
        if not (key == "default" and value is None)
        and not (key == "title" and isinstance(value, str))
    }
    if "patternProperties" in kept:  # pydantic leaves other names open
        kept["additionalProperties"] = False
    if len(kept.get("anyOf", ())) == 1:
        kept |= kept.pop("anyOf")[0]
    return kept


def _data(node: Node) -> object:
    if isinstance(node, Scalar):
        return node
    if isinstance(node, MappingNode):
        return {key: _data(entry.value) for key, entry in node.entries.items()}
    return [_data(item) for item in node.items]


def _fault(model: type[Strict], root: Node, detail: Any, suggest: bool) -> Fault:
    """Translate one finding of pydantic."""
    loc: tuple[str | int, ...] = detail["loc"]
    kind: str = detail["type"]
    of_key = bool(loc) and loc[-1] == "[key]"
    if of_key:
        loc = loc[:-1]
    missing = kind == "missing"
    node, key, depth = yaml_source.locate(root, loc[:-1] if missing else loc)
    place: Scalar | Node = node
    if key is not None and (of_key or kind == "extra_forbidden" or missing):
        place = key
    path = yaml_source.path_text(loc[: depth - 1] if kind == "extra_forbidden" else loc[:depth])
    message = _message(model, loc, kind, detail, node, suggest)
    return Fault(place.line, place.column, path, message)


def _message(
    model: type[Strict], loc: tuple[str | int, ...], kind: str, detail: Any, node: Node,
    suggest: bool,
) -> str:  # fmt: skip
    context = detail.get("ctx", {})
    if kind == "extra_forbidden":
        return unknown("key", str(loc[-1]), _keys(model, loc[:-1]), suggest=suggest)
    if kind == "missing":
        return f"the key {shown(str(loc[-1]))} is missing"
    if kind == "value_error":
        return str(context["error"])
    if kind == "too_long":
        return f"has more than {context['max_length']} entries"
    if kind == "too_short":
        return "needs at least one entry"
    if isinstance(node, Scalar) and node.empty:
        return "has no value"
    found = "one value" if isinstance(node, Scalar) else "a mapping"
    if kind == "list_type":
        return f"must be a list ([a, b] or lines that begin with '- '), not {found}"
    found = "one value" if isinstance(node, Scalar) else "a list"
    return f"must be a mapping (lines of 'key: value'), not {found}"


def _keys(model: Any, loc: Iterable[str | int]) -> list[str]:
    """The keys that the model at a place knows."""
    kind = model
    for part in loc:
        kind = _bare(kind)
        if isinstance(kind, type) and issubclass(kind, Strict):
            kind = kind.model_fields[str(part)].annotation
        else:
            kind = get_args(kind)[-1]  # of a list its items, of a dict its values
    kind = _bare(kind)
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, Strict) else []


def _bare(kind: Any) -> Any:
    """A type without Annotated and without None."""
    while True:
        if get_origin(kind) in (Annotated, Union, types.UnionType):
            kind = get_args(kind)[0]
        else:
            return kind
