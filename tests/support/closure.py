"""The files a program needs to run: itself and its shared libraries, as `ldd` lists them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path


def program(name: str) -> Path:
    """Where a program is, sbin directories included.

    Raises:
        RuntimeError: it is not installed.
    """
    found = shutil.which(name) or shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin")
    if found is None:
        raise RuntimeError(f"{name} is not installed; the tests need it")
    return Path(found)


def closure(binaries: Iterable[Path]) -> set[Path]:
    """The binaries with every shared library and the loader they name."""
    found: set[Path] = set()
    for binary in binaries:
        found.add(binary)
        listed = subprocess.run(
            ["ldd", str(binary)], capture_output=True, text=True, timeout=30, check=False
        )
        # "libc.so.6 => /lib/.../libc.so.6 (0x...)" or "/lib64/ld-linux-x86-64.so.2 (0x...)";
        # a static program has none.
        found.update(Path(path) for path in re.findall(r"(/\S+) \(0x", listed.stdout))
    return found


def copy_into(root: Path, paths: Iterable[Path]) -> None:
    """Copy files below a root, each to its own path, symbolic links followed."""
    for path in sorted(paths):
        target = root / path.relative_to("/")
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
