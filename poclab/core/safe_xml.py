"""XML that others wrote, as a tree: the one place where it is parsed.

libvirt's descriptions hold what members of its group put in, parked records are text in a volume,
an OVF comes from a stranger. None of them has a document type, which could make a small text a huge
one (entities) or name other files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poclab.core.units import KIB, MIB

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

# Elements one in another, as many as libxml2 and so libvirt takes (xmlParserMaxDepth in parser.c).
# Who walks a tree may then do it by calls in calls, which Python bounds at 1,000.
_MOST_DEEP = 256

# Bytes that an element and an attribute take besides their text and their namespace, and how many
# all may take. The largest record that is read has some 10,000 elements with 10 attributes each.
_ELEMENT, _ATTRIBUTE = 400, 200
_MOST_MEMORY = 128 * MIB
# Characters of a namespace, which a tree repeats in each name; real ones have fewer than 100.
_LONGEST_NAMESPACE = KIB


def parse(text: str) -> Element:
    """Parse a document.

    Args:
        text: the document, decoded: what is looked for in it is then what the parser sees.

    Raises:
        ValueError: if it is not well-formed, is nested too deeply, has too many elements and
            attributes or too long a namespace, or has a document type.
    """
    from xml.etree.ElementTree import ParseError, fromstring
    from xml.parsers.expat import ExpatError

    # Before anything is made of it: each element has a `<` at least, each attribute a `=`.
    if _ELEMENT * text.count("<") + _ATTRIBUTE * text.count("=") > _MOST_MEMORY:
        raise ValueError("it has too many elements and attributes")
    try:
        _Weighing().weigh(text)
        return fromstring(text)  # noqa: S314 - without a document type there are no entities
    except (ParseError, ExpatError, UnicodeError) as error:
        raise ValueError(f"it is not well-formed: {error}") from error


class _Weighing:
    """Reads a document without keeping anything of it, and stops at what no tree may be made of.

    Namespaces are not put into names here, so no name is longer than it is in the text.
    """

    def __init__(self) -> None:
        self._depth = self._weight = self._namespace = 0

    def weigh(self, text: str) -> None:
        from xml.parsers.expat import ParserCreate

        parser = ParserCreate()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.StartDoctypeDeclHandler = _refuse_type
        parser.Parse(text, True)

    def _start(self, _name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > _MOST_DEEP:
            raise ValueError(f"it is nested more than {_MOST_DEEP} levels deep")
        spaces = [len(value) for key, value in attributes.items() if key.startswith("xmlns")]
        self._namespace = max(self._namespace, *spaces) if spaces else self._namespace
        if self._namespace > _LONGEST_NAMESPACE:
            raise ValueError("it has a namespace that is too long")
        each = _ATTRIBUTE + self._namespace
        self._weight += _ELEMENT + self._namespace + each * len(attributes)
        if self._weight > _MOST_MEMORY:
            raise ValueError("it has too many elements and attributes")

    def _end(self, _name: str) -> None:
        self._depth -= 1


def _refuse_type(*_: object) -> None:
    raise ValueError("it has a document type")
