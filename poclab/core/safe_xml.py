"""XML that others wrote, as a tree: the one place where it is parsed.

libvirt's descriptions hold what members of its group put in, parked records are text in a volume,
an OVF comes from a stranger. None of them has a document type, which could make a small text a huge
one (entities) or name other files.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from poclab.core.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterable
    from xml.etree.ElementTree import Element

# XML 1.0, production 22: a document type comes before the first element, with nothing but blanks,
# comments and processing instructions in front of it. Entities are declared nowhere else.
_DOCUMENT_TYPE = re.compile(r"\ufeff?(?>\s+|<\?.*?\?>|<!--.*?-->)*+<!DOCTYPE", re.DOTALL)

# Elements one in another, as many as libxml2 and so libvirt takes (xmlParserMaxDepth in parser.c).
# Who walks a tree may then do it by calls in calls, which Python bounds at 1,000.
_MOST_DEEP = 256

# Bytes that an element and an attribute take besides their text, and how many all may take. The
# largest record that is read has some 10,000 elements with 10 attributes each.
_ELEMENT, _ATTRIBUTE = 400, 200
_MOST_MEMORY = 128 * MIB


def parse(text: str) -> Element:
    """Parse a document.

    Args:
        text: the document, decoded: what is looked for in it is then what the parser sees.

    Raises:
        ValueError: if it is not well-formed, is nested too deeply, has too many elements and
            attributes, or has a document type.
    """
    from xml.etree.ElementTree import ParseError, fromstring

    # Before anything is made of it: each element has a `<` at least, each attribute a `=`.
    if _ELEMENT * text.count("<") + _ATTRIBUTE * text.count("=") > _MOST_MEMORY:
        raise ValueError("it has too many elements and attributes")
    if _DOCUMENT_TYPE.match(text):
        raise ValueError("it has a document type")
    try:
        root = fromstring(text)  # noqa: S314 - without a document type there are no entities
    except (ParseError, ValueError, RecursionError) as error:
        raise ValueError(f"it is not well-formed: {error}") from error
    _check_depth(root)
    return root


def _check_depth(root: Element) -> None:
    level: Iterable[Element] = (root,)
    for _ in range(_MOST_DEEP):
        level = [child for element in level for child in element]
        if not level:
            return
    raise ValueError(f"it is nested more than {_MOST_DEEP} levels deep")
