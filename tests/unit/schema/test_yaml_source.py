"""The YAML reader against what it has to survive, with both of PyYAML's parsers."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from poclab.core.errors import PoclabError, Problems, UsageError
from poclab.schema import yaml_source
from poclab.schema.yaml_source import MappingNode, Scalar, Sequence

# Both, as the second is all there is where PyYAML was built without libyaml.
LOADERS: list[Any] = [yaml.CSafeLoader, yaml.SafeLoader]


@pytest.fixture(params=LOADERS, ids=["libyaml", "python"])
def loader(request: pytest.FixtureRequest) -> Any:
    return request.param


def rows(text: str, loader: Any = None) -> list[str]:
    """All faults of a text, syntax or not."""
    try:
        document = yaml_source.parse(text, "f.yaml", loader=loader)
    except Problems as error:
        return error.problems
    if not document.faults:
        return []
    return yaml_source.fail("f.yaml", "YAML file", document.faults).problems


def value(text: str, loader: Any = None) -> Scalar:
    root = yaml_source.parse(f"key: {text}\n", "f.yaml", loader=loader).root
    assert isinstance(root, MappingNode)
    node = root.entries["key"].value
    assert isinstance(node, Scalar)
    return node


@pytest.mark.parametrize(
    "text",
    [
        "52:54:00:12:34:56",
        "1.10",
        "on",
        "no",
        "1e3",
        "0o17",
        "010",
        "22:22",
        "~",
        "null",
        "2026-01-01",
    ],
)
def test_plain_text_stays_what_was_written(text: str, loader: Any) -> None:
    assert value(text, loader) == Scalar(text, True, 1, 6)


def test_quotes_are_told_from_plain(loader: Any) -> None:
    assert value("'true'", loader) == Scalar("true", False, 1, 6)
    assert value("", loader).empty
    assert not value("''", loader).empty


def test_places(loader: Any) -> None:
    text = "\ufeff# é\na:\n  - {é: x, b: [y, zz]}\n"
    root = yaml_source.parse(text, "f.yaml", loader=loader).root
    assert isinstance(root, MappingNode)
    items = root.entries["a"].value
    assert isinstance(items, Sequence)
    assert (items.line, items.column) == (3, 3)
    node, key, depth = yaml_source.locate(root, ("a", 0, "b", 1))
    assert node == Scalar("zz", True, 3, 19)
    assert key is None
    assert depth == 4
    node, key, depth = yaml_source.locate(root, ("a", 0, "c"))
    assert (node.line, node.column, depth) == (3, 5, 2)


def test_empty_files_are_empty_mappings(loader: Any) -> None:
    for text in ("", "# only a comment\n", "\ufeff", "---\n# x\n"):
        root = yaml_source.parse(text, "f.yaml", loader=loader).root
        assert root == MappingNode({}, 1, 1) or (isinstance(root, Scalar) and root.empty)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

BAD = [
    pytest.param(BOMB, "6:8: more than 100000 values", id="alias bomb"),
    pytest.param("- " * 10_000, "1:81: nested more than 40 levels deep", id="deep list"),
    pytest.param("? " * 10_000, "1:81: nested more than 40 levels deep", id="deep keys"),
    pytest.param("{a: " * 10_000, "1:161: nested more than 40 levels deep", id="deep mapping"),
    pytest.param("a: &a {b: *a}\n", "1:11: a.b: *a refers to what it is part of", id="own anchor"),
    pytest.param("a: *b\n", "1:4: a: *b refers to nothing above it", id="no anchor"),
    pytest.param(
        "a: !!python/object:os.system x\n", "1:4: a: tags are not allowed: 'tag:yaml.org", id="tag"
    ),
    pytest.param("a: !foo [x]\n", "1:4: a: tags are not allowed: '!foo'", id="own tag"),
    pytest.param("a: !!str 1\n", "1:4: a: tags are not allowed", id="core tag"),
    pytest.param(
        "a: 1\nb:\n  c: 1\n  c: 2\n",
        "4:3: b: the key 'c' stands twice: first at line 3, again at line 4",
        id="duplicate key",
    ),
    pytest.param("a: &x {b: c}\nd:\n  <<: *x\n", "3:3: d: merge keys (<<)", id="merge key"),
    pytest.param("? [a]\n: b\n", "1:3: a key must be text", id="list as key"),
    pytest.param("? " + "y" * 1025 + "\n: z\n", "1:3: a key has 1024 characters", id="long key"),
    pytest.param("a: b\n---\nc: d\n", "2:1: a second document begins here", id="two documents"),
    pytest.param("a: b\x00c\n", "1:5: the character U+0000 is not allowed", id="NUL"),
    pytest.param("a: b\nc: \x1b[31m\n", "2:4: the character U+001B is not allowed", id="escape"),
    pytest.param("a: x\u202ey\n", "1:5: the character U+202E is not allowed", id="RTL override"),
    pytest.param("a: x\u2028y\n", "1:5: the character U+2028 is not allowed", id="line separator"),
    pytest.param("a: \ud800\n", "1:4: the character U+D800 is not allowed", id="surrogate"),
    pytest.param('a: "\\0"\n', "1:4: a: the character U+0000 is not allowed", id="escaped NUL"),
    pytest.param('a: "\\e"\n', "1:4: a: the character U+001B is not allowed", id="escaped escape"),
    pytest.param(
        "a: b: c\n", "1:5: no valid YAML: mapping values are not allowed", id="two colons"
    ),
    pytest.param("a:\n\tb: c\n", "2:1: no valid YAML: found character '\\t'", id="tab"),
    pytest.param("a: @x\n", "1:4: no valid YAML: found character", id="at sign"),
    pytest.param("a:\n  b: 1\n c: 2\n", "3:2: no valid YAML: ", id="indentation"),
]


@pytest.mark.parametrize(("text", "expected"), BAD)
def test_refused_at_its_place(text: str, expected: str, loader: Any) -> None:
    found = rows(text, loader)
    assert [row for row in found if row.startswith(f"f.yaml:{expected}")], found


@pytest.mark.parametrize("opener", ["[", "{", "- ", "? ", "{a: ", "[{a: ", "&x [", "- - - ? "])
def test_ten_thousand_levels(opener: str, loader: Any) -> None:
    found = rows(opener * 10_000, loader)
    assert len(found) == 1
    assert "nested more than 40 levels deep" in found[0]


def test_forty_levels_and_no_more(loader: Any) -> None:
    assert rows("[" * 40 + "]" * 40, loader) == []
    assert rows("[" * 41 + "]" * 41, loader) == ["f.yaml:1:41: nested more than 40 levels deep"]


def test_aliases_count_as_depth(loader: Any) -> None:
    deep = "a: &a " + "[" * 30 + "]" * 30 + "\n"
    assert rows(deep + "b: " + "[" * 9 + "*a" + "]" * 9, loader) == []
    found = rows(deep + "b: " + "[" * 10 + "*a" + "]" * 10, loader)
    assert found == ["f.yaml:2:14: nested more than 40 levels deep"]


def test_aliases_are_written_out(loader: Any) -> None:
    text = "a: &a 52:54:00:12:34:56\nb: &b [*a]\nc: *b\n"
    root = yaml_source.parse(text, "f.yaml", loader=loader).root
    node, _, _ = yaml_source.locate(root, ("c", 0))
    assert node == Scalar("52:54:00:12:34:56", True, 2, 8)


def test_all_faults_in_order_and_one_a_place() -> None:
    found = rows("a: 1\nb: !x [!y z]\na: 2\nc: *d\ne: [\n")
    places = [":".join(row.split(":")[1:3]) for row in found]
    assert places == ["2:4", "2:8", "3:1", "4:4", "6:1"], found
    assert rows("a: !x *b\n")[0].startswith("f.yaml:1:")


def test_many_faults_are_cut() -> None:
    with pytest.raises(Problems) as caught:
        raise yaml_source.fail("f", "lab file", yaml_source.parse("a: 1\n" * 5000, "f").faults)
    assert len(caught.value.problems) == 100
    assert caught.value.what == "f is no valid lab file (4999 faults, the first 100 are shown)"


def test_a_million_entries_stop_early(loader: Any) -> None:
    begin = time.monotonic()
    text = "vms:\n" + "".join(f"  v{i}: x\n" for i in range(80_000))
    assert "more than 100000 values" in rows(text, loader)[0]
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("text", ["a" * (1024 * 1024 + 1), "é" * (600 * 1024), "#\n" * 600_000])
def test_too_large(text: str) -> None:
    with pytest.raises(UsageError, match="larger than 1 MiB"):
        yaml_source.parse(text, "f.yaml")


def test_odd_keys_in_paths_are_quoted() -> None:
    assert yaml_source.path_text(("vms", "a", 0, "b")) == "vms.a[0].b"
    assert yaml_source.path_text(("vms", "a]]><x/>")) == "vms['a]]><x/>']"
    assert yaml_source.path_text(("a\x1b",)) == "['a\\x1b']"
    assert len(yaml_source.path_text(("x" * 1000,))) < 80


# --- files ------------------------------------------------------------------------------


def test_read_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: \xc3\xa9\n")
    assert yaml_source.read(file, "lab file") == "\ufeffa: é\n"


def test_invalid_utf8_is_told_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(b"a: \xc3\xa9\nb: \xc3\xa9\xff\n")
    with pytest.raises(Problems) as caught:
        yaml_source.read(file, "lab file")
    assert caught.value.problems == [f"{file}:2:5: byte 0xff is not UTF-8; save the file as UTF-8"]


def test_utf16_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes("a: b\n".encode("utf-16"))
    with pytest.raises(Problems) as caught:
        yaml_source.read(file, "lab file")
    assert ":1:1: byte 0xff is not UTF-8" in caught.value.problems[0]


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    with file.open("wb") as handle:
        handle.truncate(1 << 40)
    with pytest.raises(UsageError, match="larger than 1 MiB"):
        yaml_source.read(file, "lab file")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    cases = {
        tmp_path: "is a directory",
        tmp_path / "fifo": "is no regular file",
        Path("/dev/zero"): "is no regular file",
        tmp_path / "none": "there is no lab file",
        tmp_path / "loop": "cannot read the lab file",
        tmp_path / ("x" * 300): "cannot read the lab file",
        tmp_path / "a\x00b": "cannot read the lab file",
    }
    for path, expected in cases.items():
        with pytest.raises(UsageError) as caught:
            yaml_source.read(path, "lab file")
        assert expected in caught.value.what
        assert caught.value.exit_code == 2
        assert all(line.isprintable() for line in caught.value.lines())


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("a: b")

    def refuse(*_args: object) -> None:  # root may read everything, so the mode would not do
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UsageError) as caught:
        yaml_source.read(file, "lab file")
    assert caught.value.why == "Permission denied"


# --- properties -------------------------------------------------------------------------

YAMLISH = st.lists(
    st.sampled_from(
        ["a", "b", ": ", ":\n", "\n", "  ", "- ", "[", "]", "{", "}", ", ", "&a ", "*a", "!x ", "'",
         '"', "|\n", "? ", "#", "---\n", "...\n", "%YAML 1.1\n", "<<", "\t", "\\", "é", "\x00", "@"]
    ),
    max_size=40,
).map("".join)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(), YAMLISH), st.sampled_from(LOADERS))
def test_any_text_gives_a_tree_or_a_message(text: str, loader: Any) -> None:
    try:
        document = yaml_source.parse(text, "f.yaml", loader=loader)
    except PoclabError as error:
        lines = error.lines()
    else:
        lines = []
        assert document.root.line >= 1
        assert document.root.column >= 1
    assert all(line.isprintable() for line in lines), lines


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1))
def test_quoted_text_comes_back(text: str) -> None:
    quoted = "'" + text.replace("'", "''") + "'"
    assert value(quoted).text == text
