"""The documentation names all there is, and its links lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer.main

from poclab.cli.app import app
from poclab.cli.lab import ActionRow
from poclab.images.catalog import ImageRow
from poclab.images.diff import DiffRow
from poclab.images.show import VersionRow
from poclab.images.verify import VerifyRow
from poclab.labs.mark import MarkRow
from poclab.labs.parked import ParkedRow
from poclab.labs.status import HistoryRow, VmRow
from poclab.labs.warm import StateRow
from poclab.maintenance.df import SpaceRow
from poclab.maintenance.doctor import Check
from poclab.maintenance.gc import Removal
from poclab.maintenance.orphans import Orphan

ROOT = Path(__file__).parents[2]
COMMANDS = (ROOT / "docs/commands.md").read_text()
README = (ROOT / "README.md").read_text()
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("images/*/README.md"),
        *ROOT.glob("tests/support/*/README.md"),
    ]
)
HELP = {"-h", "--help"}
_LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


# --- commands -----------------------------------------------------------------------------


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with the words that name it."""
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
        return
    for name, child in children.items():
        yield from leaves(child, (*path, name))


def options(command: Any) -> set[str]:
    """The options of a command in all their spellings, help aside."""
    found = (
        {*param.opts, *param.secondary_opts}
        for param in command.params
        if param.param_type_name == "option"
    )
    return set().union(*found) - HELP


def section(text: str, heading: str) -> str:
    """What stands between a heading of the second level and the next one."""
    _, begin, rest = text.partition(f"\n## {heading}\n")
    assert begin, f"there is no section {heading}"
    return rest.partition("\n## ")[0]


def missing(names: set[str], text: str) -> set[str]:
    """The names that do not stand in code marks, as a word of their own."""
    code = " ".join(re.findall(r"`([^`\n]+)`", text))
    words = set(re.split(r"[\s|,]+", code.replace("\\|", " ")))
    return names - words


PROGRAM = typer.main.get_command(app)
LEAVES = dict(leaves(PROGRAM))


def test_the_walk_finds_commands() -> None:
    assert {("up",), ("reset",), ("image", "build")} <= set(LEAVES)
    assert {"--tag", "-t", "--no-cache"} <= options(LEAVES["image", "build"])
    assert {"--wait", "--no-wait"} <= options(LEAVES["reset",])


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_command_and_options_are_documented(path: tuple[str, ...]) -> None:
    text = section(COMMANDS, f"poclab {' '.join(path)}")
    assert missing(options(LEAVES[path]), text) == set()


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_documented_options_exist(path: tuple[str, ...]) -> None:
    text = section(COMMANDS, f"poclab {' '.join(path)}")
    rows = re.findall(r"^\| (`-[^|]*?)(?: \||\\\|)", text, re.MULTILINE)
    named = {word for row in rows for word in re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", row)}
    assert named - options(LEAVES[path]) == set()


def test_no_section_without_a_command() -> None:
    found = set(re.findall(r"^## poclab (.+)$", COMMANDS, re.MULTILINE))
    assert found == {" ".join(path) for path in LEAVES}


def test_options_before_the_command_are_documented() -> None:
    text = section(COMMANDS, "Options before the command")
    assert missing(options(PROGRAM), text) == set()


# --- variables, fields --------------------------------------------------------------------


def variables() -> set[str]:
    """The environment variables of poclab's own that its source names."""
    sources = (path.read_text() for path in (ROOT / "poclab").rglob("*.py"))
    return {name for text in sources for name in re.findall(r"\bPOCLAB_[A-Z][A-Z_]*\b", text)}


def test_variables_are_documented() -> None:
    assert {"POCLAB_CONNECT", "POCLAB_ACCEL"} <= variables()
    assert missing(variables(), COMMANDS) == set()


def test_documented_variables_exist() -> None:
    named = set(re.findall(r"\bPOCLAB_[A-Z][A-Z_]*\b", COMMANDS))
    assert named == variables()


@pytest.mark.parametrize(
    ("row", "command"),
    [
        (VmRow, "status"),
        (ImageRow, "image ls"),
        (VersionRow, "image show"),
        (VerifyRow, "image verify"),
        (DiffRow, "image diff"),
        (SpaceRow, "df"),
        (Removal, "gc"),
        (HistoryRow, "history"),
        (StateRow, "warm ls"),
        (ParkedRow, "parked ls"),
        (MarkRow, "marks"),
        (ActionRow, "plan"),
        (Check, "doctor"),
        (Orphan, "doctor"),
    ],
)
def test_json_fields_are_documented(row: Any, command: str) -> None:
    text = section(COMMANDS, f"poclab {command}")
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE))
    assert {field.name for field in fields(row)} - documented == set()


# --- README, links ------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_readme_names_both_commands(command: str) -> None:
    assert command in README
    target = command.removeprefix("make ")
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_readme_is_short() -> None:
    assert len(README.splitlines()) < 250


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Git hosts derive them."""
    headings = _HEADING.findall(_FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere in this tree."""
    found = []
    for link in _LINK.findall(_FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    assert broken(page) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A b\n[1](#a-b) [2](#c) [3](page.md#a-b) [4](no.md) [5](https://x.example/)")
    assert broken(page) == ["#c", "no.md"]


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs/README.md"
    linked = {link.partition("#")[0] for link in _LINK.findall(index.read_text())}
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages - linked == set()
