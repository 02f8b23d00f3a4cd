"""What `lint-imports` cannot say of the house: who prints, what is long.

The layers themselves are contracts of import-linter in pyproject.toml.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "poclab"

# Who alone may use a module or a built-in: files, or folders with all that is in them.
ONLY: dict[str, tuple[str, ...]] = {
    "subprocess": ("core/process.py",),
    "print": ("cli/",),
    # What reads strangers' archives and databases, or runs C code, has one place each.
    "tarfile": ("guest/bootc.py",),
    "sqlite3": ("containers/rpm_database.py",),
    "ctypes": ("builders/",),
}
LONGEST = 500
FILES = sorted(PACKAGE.rglob("*.py"))


@dataclass(frozen=True)
class Use:
    """One import (or call of print) in a file.

    Attributes:
        path: the file, below poclab/.
        target: what is imported, with dots.
        line: where.
    """

    path: str
    target: str
    line: int

    def __str__(self) -> str:
        return f"poclab/{self.path}:{self.line} uses {self.target}"


def uses(source: str, path: str) -> list[Use]:
    """Every import and every print of a module."""
    found = []
    for node in ast.walk(ast.parse(source)):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative imports hide the layer"
            targets = [str(node.module)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            targets = [node.func.id] if node.func.id == "print" else []
        found += [Use(path, target, getattr(node, "lineno", 0)) for target in targets]
    return found


def faults(found: list[Use]) -> list[str]:
    """Uses that break the rule."""
    return [
        f"{use}, which only {' and '.join(ONLY[use.target])} may"
        for use in found
        if use.target in ONLY and not use.path.startswith(ONLY[use.target])
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_side_effect_has_one_place(path: Path) -> None:
    assert faults(uses(path.read_text(), str(path.relative_to(PACKAGE)))) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < LONGEST


def test_every_module_is_in_a_package() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}


def test_every_package_says_what_it_is_for() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("disks/qemu_img.py", "import subprocess"),
        ("disks/qemu_img.py", "from subprocess import run"),
        ("labs/up.py", "print('done')"),
        ("images/diff.py", "def late():\n    import sqlite3"),
    ],
)
def test_the_rule_catches(path: str, source: str) -> None:
    assert len(faults(uses(source, path))) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/process.py", "import subprocess"),
        ("cli/output.py", "print('done')"),
        ("labs/up.py", "from poclab.core import process"),
    ],
)
def test_the_rule_allows(path: str, source: str) -> None:
    assert faults(uses(source, path)) == []


def unit_tests() -> set[str]:
    """Folders of tests/unit."""
    return {
        path.name for path in (ROOT / "tests/unit").iterdir() if (path / "__init__.py").exists()
    }


def test_unit_tests_mirror_the_packages() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert unit_tests() <= packages
