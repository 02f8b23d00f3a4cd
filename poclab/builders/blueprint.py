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
from poclab.errors import UsageError
from poclab.units import GIB, MIB

# bootc-image-builder's own layout: a disk of 10 GiB in which 1 MiB goes to the BIOS boot
# partition, 501 MiB to the ESP, 1 GiB to /boot and 2 MiB to the two copies of the GPT.
DEFAULT_DISK = 10 * GIB
_BESIDE_ROOT = 1528 * MIB
_MAX_FILE = 4 * MIB


def merged(request: BuildRequest, user: str | None) -> dict[str, Any]:
    """The blueprint for a request; empty when there is nothing to say.

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
    if request.disk_size is not None and request.disk_size > DEFAULT_DISK:
        _set_size(custom, request.disk_size)
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


def _set_size(custom: dict[str, Any], size: int) -> None:
    """Ask for a disk of a size: by the root's least size, or the disk's where it is laid out."""
    if "disk" in custom:
        disk = table(custom, "disk")
        if "minsize" in disk:
            raise _twice("customizations.disk.minsize")
        custom["disk"] = {**disk, "minsize": size}
        return
    filesystems = listed(custom, "filesystem")
    if any(isinstance(entry, dict) and entry.get("mountpoint") == "/" for entry in filesystems):
        raise _twice("customizations.filesystem")
    custom["filesystem"] = [*filesystems, {"mountpoint": "/", "minsize": size - _BESIDE_ROOT}]


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
