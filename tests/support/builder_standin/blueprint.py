"""The blueprint as the stand-ins take it: unknown keys are refused, few are carried out.

Keys that are known and not supported for a type (data/distrodefs/bootc-generic/imagetypes.yaml of
image-builder 79.0.0) are refused by image-builder; bootc-image-builder warns and leaves them out.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_TOP = {"name", "description", "version", "customizations"}
_DONE = {"kernel", "filesystem", "user", "installer"}
# In the order of the real one's type, which is that of its checks; it names the first.
_KNOWN = (
    "hostname", "kernel", "user", "group", "timezone", "locale", "firewall", "services",
    "filesystem", "disk", "partitioning_mode", "ignition", "directories", "files", "fips",
    "containers-storage", "installer", "cacerts", "iso",
)  # fmt: skip
_DISK = {"directories", "disk", "files", "group", "ignition", "kernel", "user"}
_ISO = {"fips", "group", "installer", "kernel", "user"}
_INSTALLER = {"unattended", "sudo-nopasswd", "kickstart", "modules"}
_USER = {"name", "description", "password", "key", "home", "shell", "groups", "uid", "gid"}
_UNITS = {"": 1, "B": 1, "kB": 1000, "KiB": 1024, "MB": 1000**2, "MiB": 1024**2,
          "GB": 1000**3, "GiB": 1024**3}  # fmt: skip


class Refused(Exception):
    """What the builder says after `error: `."""


@dataclass(frozen=True)
class Customizations:
    """What a blueprint asks for."""

    kernel_args: tuple[str, ...] = ()
    root_size: int = 0
    users: list[dict[str, Any]] = field(default_factory=list)
    kickstart: str | None = None


def unsupported(blueprint: dict[str, Any], kind: str) -> str:
    """What is said of the first key that a type does not support; empty when there is none."""
    custom = blueprint.get("customizations", {})
    taken = _DISK if kind == "qcow2" else _ISO
    for key in _KNOWN:
        if custom.get(key) and key not in taken:
            said = f'blueprint validation failed for image type "{kind}"'
            return f"{said}: customizations.{key}: not supported"
    return ""


def load(root: Path) -> dict[str, Any]:
    """Read /config.toml or /config.json below a root, if there is one."""
    toml, jsn = root / "config.toml", root / "config.json"
    if toml.exists() and jsn.exists():
        raise Refused("cannot read config: found both config.json and config.toml")
    try:
        if toml.exists():
            return tomllib.loads(toml.read_text())
        if jsn.exists():
            found: dict[str, Any] = json.loads(jsn.read_text())
            return found
    except ValueError as error:
        raise Refused(f"cannot read config: {error}") from error
    return {}


def read(blueprint: dict[str, Any], kind: str) -> Customizations:
    """What a blueprint asks for; what the type does not support is left out."""
    _known(blueprint, _TOP, "")
    custom = blueprint.get("customizations", {})
    _known(custom, set(_KNOWN), "customizations.")
    for key in (_DISK if kind == "qcow2" else _ISO) & custom.keys() - _DONE:
        raise Refused(f"customizations.{key} is not in this stand-in")
    kernel = custom.get("kernel", {})
    _known(kernel, {"name", "append"}, "customizations.kernel.")
    size = 0
    for entry in custom.get("filesystem", []):
        _known(entry, {"mountpoint", "minsize"}, "customizations.filesystem.")
        if entry["mountpoint"] != "/":
            raise Refused(f"a partition for {entry['mountpoint']} is not in this stand-in")
        size = _size(entry["minsize"])
    for user in custom.get("user", []):
        _known(user, _USER, "customizations.user.")
    return Customizations(
        tuple(kernel.get("append", "").split()),
        size,
        list(custom.get("user", [])),
        _kickstart(custom),
    )


def _kickstart(custom: dict[str, Any]) -> str | None:
    """The user's kickstart, which goes with nothing else (pkg/customizations/kickstart)."""
    settings = custom.get("installer", {})
    _known(settings, _INSTALLER, "customizations.installer.")
    for key in {"sudo-nopasswd", "modules"} & settings.keys():
        raise Refused(f"customizations.installer.{key} is not in this stand-in")
    if "kickstart" not in settings:
        return None
    _known(settings["kickstart"], {"contents"}, "customizations.installer.kickstart.")
    refused = "are not compatible with user-supplied kickstart content"
    if settings.get("unattended"):
        raise Refused(f"cannot build manifest: kickstart unattended options {refused}")
    if custom.get("user"):
        raise Refused(f"cannot build manifest: kickstart users and/or groups {refused}")
    return str(settings["kickstart"]["contents"])


def _known(table: dict[str, Any], keys: set[str], where: str) -> None:
    unknown = sorted(table.keys() - keys)
    if unknown:
        names = ", ".join(f"{where}{key}" for key in unknown)
        raise Refused(f"cannot read config: unknown keys found: [{names}]")


def _size(value: int | str) -> int:
    if isinstance(value, int):
        return value
    match = re.fullmatch(r"([0-9]+) *([a-zA-Z]*)", value)
    if match is None or match[2] not in _UNITS:
        raise Refused(f"cannot read config: {value} is no size")
    return int(match[1]) * _UNITS[match[2]]
