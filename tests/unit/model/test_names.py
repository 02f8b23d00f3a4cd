"""Names and tags: what may be one, and what a stranger may try."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poclab.core import plaintext
from poclab.core.errors import UsageError
from poclab.model import names
from poclab.model.version import Ref

BAD_NAMES = [
    "../x", "/etc/x", "-rf", "a]]><x/>", "&\"<'", "\u202etxt", "\u0430dmin", "аdmin", "é",
    "x" * 300, "x" * 41, "Web", "WEB", ".", "..", "", "\n", "a\n", "\na", "a b", " a", "a ",
    "$(id)", "`id`", 'json:{"driver":"nbd"}', "nbd://10.0.0.1/x", "1e3", "0o17", "9a", "a-", "a_b",
    "a.b", "a:b", "a/b", "a\x00", "a\x1b[0m", "~", "*", "%s", "{}", "１", "ａ", "a\u200b",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names_are_refused(name: str) -> None:
    assert not names.is_name(name)
    with pytest.raises(UsageError) as caught:
        names.check_name("lab", name)
    assert caught.value.what.endswith("is no lab name")
    assert names.NAME_RULE in caught.value.why
    shown = caught.value.what.replace("…", "")  # marks a cut
    assert shown.isprintable()
    assert shown.isascii()


@pytest.mark.parametrize("name", ["a", "no", "on", "y", "null", "web-1", "a--b", "x" * 40])
def test_good_names(name: str) -> None:
    assert names.check_name("vm", name) == name


@pytest.mark.parametrize("tag", ["1.10", "v1", "1e3", "_x", "A.b-c_d", "0", "t" * 128])
def test_good_tags(tag: str) -> None:
    assert names.check_tag(tag) == tag
    assert str(Ref.parse(f"web:{tag}")) == f"web:{tag}"


@pytest.mark.parametrize("tag", ["", ".", "..", ".a", "-a", "a/b", "a:b", "t" * 129, "a\n", "é"])
def test_bad_tags(tag: str) -> None:
    assert not names.is_tag(tag)
    with pytest.raises(UsageError, match="is no tag"):
        names.check_tag(tag)


@pytest.mark.parametrize("name", [name for name in BAD_NAMES if ":" not in name])
def test_bad_names_in_references(name: str) -> None:
    with pytest.raises(UsageError, match="is no image name"):
        Ref.parse(f"{name}:v1")


def test_a_reference_needs_a_tag() -> None:
    with pytest.raises(UsageError, match="names no tag") as caught:
        Ref.parse("web")
    assert caught.value.fix == "write 'web:TAG'"


@given(st.text())
def test_a_name_is_safe_wherever_it_goes(text: str) -> None:
    if names.is_name(text):
        assert re.fullmatch(r"[a-z][a-z0-9-]{0,39}", text)
        assert not text.endswith("-")


@given(st.from_regex(names.NAME_PATTERN, fullmatch=True))
def test_the_pattern_and_the_check_agree(text: str) -> None:
    assert names.is_name(text)
    assert len(text) <= 40


@given(st.text())
def test_shown_is_one_short_printable_line(text: str) -> None:
    shown = plaintext.shown(text)
    assert shown.isprintable()
    assert len(shown) <= 60 * 10 + 12
    assert "\n" not in shown


@given(st.text(), st.integers(0, 100))
def test_plain_is_one_short_printable_line_and_leaves_such_a_line_alone(
    text: str, limit: int
) -> None:
    found = plaintext.plain(text, limit)
    assert found.isprintable()
    assert len(found) <= limit
    assert plaintext.plain(found, limit).split() == found.split()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("libvirt: no\n  socket\t", "libvirt: no socket"),
        ("\x1b[31mred\x00", "?[31mred?"),
        ("a\u202eb\udcff\ufffe", "a?b??"),
        ("ünïcode — fine", "ünïcode — fine"),
    ],
)
def test_plain_text(text: str, expected: str) -> None:
    assert plaintext.plain(text) == expected
