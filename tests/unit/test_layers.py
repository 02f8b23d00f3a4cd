"""The import rule: imports go down, and each kind of side effect has one place.

`LAYERS` is the rule; a module that is in no layer is a use case. Imports inside functions and
under TYPE_CHECKING count like any other.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "poclab"

# From the bottom to the top. A module may import from lower layers and from its own. A name
# stands for the module and, with a package, for all modules in it.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    (
        "names",
        "units",
        "config",
        "events",
        "interrupts",
        "beside",
        "files",
        "room",
        "capture",
        "groups",
        "hints",
        "outcomes",
        "programs",
        "rlimits",
        "run",
        "xmltree",
    ),
    ("shapes", "volumes", "model", "qcow2_header"),
    ("schema",),
    (
        "virt",
        "manifest",
        "chain",
        "warmstate",
        "marks",
        "parked",
        "store",
        "disk",
        "qemuimg",
        "inspection",
        "sourcefile",
        "qcow2file",
        "formats",
        "digest",
        "iso9660",
        "outfile",
        "blockdevice",
        "blocks",
        "sharing",
        "extents",
        "sparse",
        "packing",
        "packages",
        "rpmdb",
        "spool",
        "ova",
        "tarwalk",
        "container",
        "builders",
        "ssh",
        "bootcstatus",
        "bootcguest",
        "probe",
        "lock",
        "lockdir",
        "credentials",
    ),
    ("addresses", "ports", "records", "plan"),
    ("",),  # use cases: every module that is named nowhere else
    ("output",),
    ("cli", "__main__"),
)
USE_CASES = next(level for level, names in enumerate(LAYERS) if "" in names)

# Who alone may use a module or a built-in.
ONLY: dict[str, tuple[str, ...]] = {
    "libvirt": ("virt",),
    "libvirt_qemu": ("virt",),
    "subprocess": ("run",),
    "print": ("cli", "output"),
    # What reads strangers' archives and databases, or runs C code, has one place each.
    "tarfile": ("bootcguest",),
    "sqlite3": ("rpmdb",),
    "ctypes": ("builders",),
}
LONGEST = 500


@dataclass(frozen=True)
class Use:
    """One import (or call of print) in a file.

    Attributes:
        module: the importing module, without `poclab.`.
        target: what is imported, with dots.
        line: where.
    """

    module: str
    target: str
    line: int

    def __str__(self) -> str:
        return f"poclab/{self.module.replace('.', '/')}:{self.line} uses {self.target}"


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def uses(source: str, module: str, modules: set[str]) -> list[Use]:
    """Every import and every print of a module."""
    found = []
    for node in ast.walk(ast.parse(source)):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative imports hide the layer"
            # `from poclab import plan` imports poclab.plan, `from poclab.plan import X` as well.
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = whole.removeprefix("poclab.") in modules
                targets.append(whole if is_module else str(node.module))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            targets = [node.func.id] if node.func.id == "print" else []
        found += [Use(module, target, getattr(node, "lineno", 0)) for target in targets]
    return found


def layer(module: str) -> int:
    first = module.split(".")[0]
    for level, names in enumerate(LAYERS):
        if first in names:
            return level
    return USE_CASES


def faults(found: list[Use]) -> list[str]:
    """Uses that break the rule."""
    wrong = []
    for use in found:
        first = use.module.split(".")[0]
        top, _, rest = use.target.partition(".")
        if top == "poclab" and rest and layer(rest) > layer(use.module):
            wrong.append(f"{use}, which is in a higher layer")
        if top in ONLY and first not in ONLY[top]:
            wrong.append(f"{use}, which only {' and '.join(ONLY[top])} may")
    return wrong


FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {module_name(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    # poclab/__init__.py is below everything: whoever imports anything imports it.
    module = module_name(path)
    found = uses(path.read_text(), module, MODULES)
    if not module:
        assert [use for use in found if use.target.startswith("poclab")] == []
    assert faults(found) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < LONGEST


def test_every_layer_exists() -> None:
    named = {name for names in LAYERS for name in names if name}
    assert named - {module.split(".")[0] for module in MODULES} == set()


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("model", "from poclab.plan import Plan"),
        ("model", "import poclab.store"),
        ("disk", "def late():\n    from poclab import plan"),
        ("plan", "from poclab import up"),
        ("up", "from poclab.cli.app import run"),
        ("up", "from poclab import output"),
        ("errors", "from poclab import names"),
        ("plan", "import libvirt"),
        ("up", "def late():\n    import libvirt_qemu"),
        ("disk", "import subprocess"),
        ("disk", "from subprocess import run"),
        ("up", "print('done')"),
    ],
)
def test_the_rule_catches(module: str, source: str) -> None:
    known = MODULES | {"plan", "up", "output", "names"}
    assert len(faults(uses(source, module, known))) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cli.lab", "from poclab import output, up"),
        ("up", "from poclab.plan import Plan\nfrom poclab import down"),
        ("virt.host", "import libvirt\nfrom poclab.disk import create_overlay"),
        ("run", "import subprocess"),
        ("output", "print('done')"),
    ],
)
def test_the_rule_allows(module: str, source: str) -> None:
    known = MODULES | {"plan", "up", "down", "output"}
    assert faults(uses(source, module, known)) == []
