"""XML of others is parsed in one place, and has no document type."""

from __future__ import annotations

from xml.etree.ElementTree import tostring

import pytest

from poclab.core import safe_xml

BOMB = '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><a>&c;</a>'


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        f'<?xml version="1.0"?>\n<!-- a -->\n<?x y?> {BOMB}',
        f"\ufeff{BOMB}",
        '<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',
    ],
)
def test_a_document_type_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="it has a document type"):
        safe_xml.parse(text)


@pytest.mark.parametrize(
    "text",
    ["", "<a>", "<a/><b/>", "<a>&c;</a>", "<a>\0</a>", "<a b='1' b='2'/>", "<!doctype a><a/>"],
)
def test_what_is_not_well_formed_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="it is not well-formed"):
        safe_xml.parse(text)


def test_words_in_comments_and_texts_are_no_document_type() -> None:
    text = "<!-- x --><a><!-- <!DOCTYPE b> --><b>&lt;!DOCTYPE c&gt;</b></a>"
    assert tostring(safe_xml.parse(text), encoding="unicode").count("DOCTYPE") == 1


def test_a_long_prolog_takes_no_time() -> None:
    # Without atomic groups the pattern would try each way to end each of the comments.
    assert safe_xml.parse("<!-- -->" * 20_000 + "<a/>").tag == "a"


def test_depth_is_bounded() -> None:
    """As libxml2 bounds it for libvirt; whoever walks the tree need not ask how deep it is."""
    assert safe_xml.parse("<a>" * 256 + "</a>" * 256).tag == "a"
    for depth in (257, 5000, 100_000):
        with pytest.raises(ValueError, match="nested more than 256 levels deep"):
            safe_xml.parse("<a>" * depth + "</a>" * depth)


@pytest.mark.parametrize(
    "text",
    [
        "<a>" + "<b/>" * 400_000 + "</a>",
        "<a " + " ".join(f'a{n:x}=""' for n in range(700_000)) + "/>",
    ],
)
def test_many_small_parts_are_weighed_before_they_take_memory(text: str) -> None:
    with pytest.raises(ValueError, match="too many elements and attributes"):
        safe_xml.parse(text)


def test_a_long_text_weighs_next_to_nothing() -> None:
    assert safe_xml.parse(f"<a b='{'x' * 2**24}'/>").tag == "a"


def test_what_is_nested_beside_each_other_is_not_deep() -> None:
    assert len(safe_xml.parse(f"<a>{'<b/>' * 10_000}</a>")) == 10_000


@pytest.mark.parametrize("quote", ['"', "'"])
def test_a_long_namespace_is_refused_before_every_name_repeats_it(quote: str) -> None:
    space = f"xmlns:a = {quote}{'x' * 200_000}{quote}"
    text = f"<r {space}>" + "".join(f"<a:b{n}/>" for n in range(4000)) + "</r>"
    with pytest.raises(ValueError, match="a namespace that is too long"):
        safe_xml.parse(text)


def test_a_namespace_is_weighed_with_each_name() -> None:
    text = f"<r xmlns='{'x' * 1000}'>" + "<b/>" * 150_000 + "</r>"
    with pytest.raises(ValueError, match="too many elements and attributes"):
        safe_xml.parse(text)
    assert len(safe_xml.parse(text.replace("<b/>" * 149_000, ""))) == 1000
