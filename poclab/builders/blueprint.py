"""The blueprint that osbuild gets: the user's, with what image.yaml says added.

Always handed over as JSON, which needs no writer of its own; the keys are the same as in
TOML (https://osbuild.org/docs/user-guide/blueprint-reference/).
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from poclab.builders.base import BuildRequest
from poclab.core.errors import UsageError
from poclab.core.units import GIB, MIB

# The layout of osbuild's builders (default_bootc_partition_table in image-builder 79.0.0): a disk
# of 10 GiB in which 1 MiB goes to the BIOS boot partition, 501 MiB to the ESP, 1 GiB to /boot and
# 2 MiB to the two copies of the GPT with the space that aligns them.
DEFAULT_DISK = 10 * GIB
BESIDE_ROOT = 1528 * MIB
_MAX_FILE = 4 * MIB


def merged(request: BuildRequest, user: str | None) -> dict[str, Any]:
    """Merge the blueprint for a request; empty when there is nothing to say.

    The disk's size is not in it: `sized` adds it for programs that take it from there.

    Args:
        request: what to build.
        user: a login to add, or None.

    Raises:
        UsageError: the blueprint file cannot be read, or says what image.yaml says too.
    """
    blueprint = load(request.blueprint) if request.blueprint else {}
    custom = table(blueprint, "customizations")
    if request.kernel_args:
        kernel = table(custom, "kernel")
        kernel["append"] = " ".join([*str(kernel.get("append", "")).split(), *request.kernel_args])
        custom["kernel"] = kernel
    if wants_size(request):
        _check_size(custom)
    if user is not None:
        add_user(custom, user)
    if custom:
        blueprint["customizations"] = custom
    return blueprint


def add_user(custom: dict[str, Any], user: str) -> None:
    """Add a login to the customizations unless they have it."""
    users = listed(custom, "user")
    if not any(isinstance(entry, dict) and entry.get("name") == user for entry in users):
        # wheel is the group that may use sudo on the distributions the builder knows.
        custom["user"] = [*users, {"name": user, "groups": ["wheel"]}]


def load(path: Path) -> dict[str, Any]:
    """Read a blueprint, TOML or JSON as its name says.

    Raises:
        UsageError: it cannot be read, is neither, or is there in both formats.
    """
    kinds = {".toml": tomllib.loads, ".json": json.loads}
    if path.suffix not in kinds:
        raise UsageError(f"{path} is no blueprint", why="its name ends in neither .toml nor .json")
    other = path.with_suffix(".json" if path.suffix == ".toml" else ".toml")
    if other.exists():
        raise UsageError(
            f"{path} and {other.name} are both there",
            why="the builder takes one of them",
            fix="remove one",
        )
    try:
        if path.stat().st_size > _MAX_FILE:
            raise UsageError(f"{path} is too large for a blueprint")
        blueprint = kinds[path.suffix](path.read_text(encoding="utf-8"))
        # Dates are TOML's alone; no key of a blueprint takes one.
        json.dumps(blueprint)
    except OSError as error:
        raise UsageError(f"{path} cannot be read", why=f"{error.strerror}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{path} is no blueprint", why=str(error)) from error
    if not isinstance(blueprint, dict):
        raise UsageError(f"{path} is no blueprint", why="it is not a table of keys")
    return blueprint


def wants_size(request: BuildRequest) -> bool:
    """Tell whether a request is for a disk that is larger than the builders' own."""
    size = None if request.output.iso else request.disk_size
    return size is not None and size > DEFAULT_DISK


def lays_out(blueprint: dict[str, Any]) -> bool:
    """Tell whether a blueprint lays the disk out itself (customizations.disk)."""
    return "disk" in table(blueprint, "customizations")


def sized(blueprint: dict[str, Any], size: int) -> dict[str, Any]:
    """Add a disk's size: as the root's least size, or as the disk's where it is laid out.

    Args:
        blueprint: a blueprint that `merged` made.
        size: bytes of the disk.
    """
    custom = table(blueprint, "customizations")
    if lays_out(blueprint):
        custom["disk"] = {**table(custom, "disk"), "minsize": size}
    else:
        root = {"mountpoint": "/", "minsize": size - BESIDE_ROOT}
        custom["filesystem"] = [*listed(custom, "filesystem"), root]
    return {**blueprint, "customizations": custom}


def _check_size(custom: dict[str, Any]) -> None:
    """Check that a blueprint leaves the disk's size to image.yaml."""
    if "minsize" in table(custom, "disk"):
        raise _twice("customizations.disk.minsize")
    filesystems = listed(custom, "filesystem")
    if any(isinstance(entry, dict) and entry.get("mountpoint") == "/" for entry in filesystems):
        raise _twice("customizations.filesystem")


def _twice(key: str) -> UsageError:
    return UsageError(
        "the disk's size is set twice",
        why=f"image.yaml has disk, the blueprint has {key}",
        fix="keep one of them",
    )


def table(parent: dict[str, Any], key: str) -> dict[str, Any]:
    """A copy of a table of the blueprint, empty when it is not there.

    Raises:
        UsageError: it is none.
    """
    value = parent.get(key, {})
    if not isinstance(value, dict):
        raise UsageError(f"the blueprint's {key} is no table")
    return dict(value)


def listed(parent: dict[str, Any], key: str) -> list[Any]:
    """A list of the blueprint, empty when it is not there.

    Raises:
        UsageError: it is none.
    """
    value = parent.get(key, [])
    if not isinstance(value, list):
        raise UsageError(f"the blueprint's {key} is no list")
    return value
