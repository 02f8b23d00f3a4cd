"""What poclab's code never does, so that a stranger's text stays data.

A path is joined from constants, from names that poclab made itself, or by `files.below`. What is
none of these is listed here with its reason, so that a new one is looked at.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "poclab").rglob("*.py"))

# Calls that run a shell, give a name away before there is a file, or read what may be code.
FORBIDDEN = {
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "tempfile.mktemp",
    "eval",
    "exec",
    "pickle.loads",
    "pickle.load",
    "marshal.loads",
    "yaml.load",
    "os.path.join",
}
# Joins whose right side is no constant, by file: why nothing of a stranger's leads astray there.
JOINS = {
    "disks/removable.py": "device numbers, and what the kernel calls partitions in /sys",
    "images/build.py": "an image's name and a tag, checked when they were read",
    "builders/bootc.py": "names of outputs, from a table",
    "builders/cache.py": "constants",
    "builders/esp.py": "names of loaders, from a table, and flattened names",
    "builders/osbuild.py": "names of outputs, from a table",
    "builders/privileged.py": "a constant",
    "cli/context.py": "a lab's or an image's name, checked just before",
    "labs/commit.py": "volumes whose names were read whole",
    "core/paths.py": "constants",
    "disks/pool_disks.py": "a backing file's name, which `chain.check` compared with the record",
    "core/files.py": "the helper itself",
    "core/locks.py": "a name made of safe characters and a digest",
    "images/output_file.py": "a constant, beside a file that the user named",
    "schema/image.py": "names beside an image file, checked by `leaves.beside`",
    "disks/dedupe.py": "digests, in hexadecimal",
    "guest/ssh.py": "texts made of safe characters by `_slug`",
    "store/versions.py": "volumes whose names were read whole",
    "labs/switch.py": "an image's ID, 64 hexadecimal digits",
    "virt/pool_local.py": "volumes whose names were read whole",
    "virt/allocation.py": "names from a listing of the pool's directory",
    "virt/disk_users.py": "paths that are compared, not opened for writing or deletion",
}


def _name(node: ast.expr) -> str:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def joins(tree: ast.AST) -> Iterator[str]:
    """Paths that are joined with something that is no constant."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            if not isinstance(node.right, ast.Constant) and _is_path(node.left):
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("joinpath", "with_name"):
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and _name(node.func) in ("Path", "PurePosixPath"):
            parts = node.args[1:]
            if any(not isinstance(part, ast.Constant) for part in parts):
                yield ast.unparse(node)


def _is_path(left: ast.expr) -> bool:
    """Whether a left side may be a path: no number, as in a quotient."""
    return not any(isinstance(node, ast.Constant | ast.Mult) for node in ast.walk(left)) or (
        isinstance(left, ast.BinOp) and isinstance(left.op, ast.Div)
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_shell_no_code_from_data_no_names_without_files(path: Path) -> None:
    for call in calls(ast.parse(path.read_text())):
        assert _name(call.func) not in FORBIDDEN, ast.unparse(call)
        shell = [one.value for one in call.keywords if one.arg == "shell"]
        assert not shell, ast.unparse(call)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_are_joined_from_names_that_were_checked(path: Path) -> None:
    found = list(joins(ast.parse(path.read_text())))
    name = str(path.relative_to(ROOT / "poclab"))
    assert not found or name in JOINS, f"use files.below, or list {name} with a reason: {found}"


def test_every_reason_is_needed() -> None:
    needed = {
        str(path.relative_to(ROOT / "poclab"))
        for path in FILES
        if list(joins(ast.parse(path.read_text())))
    }
    assert set(JOINS) - needed == set()


@pytest.mark.parametrize(
    "source",
    [
        "directory / name",
        "self._root / made.name",
        "Path(directory, name)",
        "path.with_name(text)",
        "a / 'b' / name",
        "a.joinpath(name)",
    ],
)
def test_a_join_is_seen(source: str) -> None:
    assert len(list(joins(ast.parse(source)))) == 1


@pytest.mark.parametrize(
    "source", ["directory / 'name'", "Path('/a', 'b')", "2 * a / b", "Path(x)"]
)
def test_what_is_no_join_is_not(source: str) -> None:
    assert list(joins(ast.parse(source))) == []
