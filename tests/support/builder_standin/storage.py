"""Finds an image in containers/storage, as it lies on the disk, and shows its files.

Layout: containers/storage, `drivers/overlay` and `drivers/vfs`, `images.json`, `layers.json`.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MS_RDONLY = 1
_MNT_DETACH = 2


@dataclass(frozen=True)
class Image:
    """An image in storage."""

    id: str
    layer: str
    driver: str
    labels: dict[str, str]


class Storage:
    """A container storage directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def drivers(self) -> list[str]:
        """The drivers whose images are there."""
        known = ("overlay", "vfs")
        return [name for name in known if (self.root / f"{name}-images/images.json").is_file()]

    def find(self, name: str) -> Image | None:
        """An image by name or ID."""
        wanted = {name, name.removeprefix("sha256:"), f"{name}:latest"}
        for driver in self.drivers():
            for entry in self._json(f"{driver}-images/images.json"):
                if wanted & {entry["id"], *(entry.get("names") or [])}:
                    return self._image(driver, entry)
        return None

    def _image(self, driver: str, entry: dict[str, Any]) -> Image:
        directory = f"{driver}-images/{entry['id']}"
        manifest = self._json(f"{directory}/manifest")
        digest = str(manifest["config"]["digest"])
        # Names with other characters than [a-z0-9.] are stored as base64.
        name = "=" + base64.b64encode(digest.encode()).decode()
        labels = self._json(f"{directory}/{name}").get("config", {}).get("Labels") or {}
        return Image(entry["id"], entry["layer"], driver, labels)

    @contextmanager
    def files(self, image: Image, mountpoint: Path) -> Iterator[Path]:
        """The image's files as a directory, read-only, inside the block."""
        if image.driver == "vfs":
            yield self.root / "vfs/dir" / image.layer
            return
        layers = self._chain(image)
        overlay = self.root / "overlay"
        if len(layers) == 1:
            yield overlay / layers[0] / "diff"
            return
        # Each layer's short name below `l`: mount(2) takes one page of options.
        short = ["l/" + (overlay / layer / "link").read_text().strip() for layer in layers]
        mountpoint.mkdir(parents=True, exist_ok=True)
        os.chdir(overlay)
        _mount("overlay", mountpoint, "lowerdir=" + ":".join(short))
        try:
            yield mountpoint
        finally:
            os.chdir("/")
            ctypes.CDLL(None).umount2(os.fsencode(mountpoint), _MNT_DETACH)

    def _chain(self, image: Image) -> list[str]:
        """The layers, the topmost first."""
        layers = {entry["id"]: entry for entry in self._json(f"{image.driver}-layers/layers.json")}
        chain = []
        layer = image.layer
        while layer:
            chain.append(layer)
            layer = layers[layer].get("parent", "")
        return chain

    def _json(self, name: str) -> Any:
        return json.loads((self.root / name).read_text())


def _mount(kind: str, target: Path, options: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    words = (kind.encode(), os.fsencode(target), kind.encode())
    if libc.mount(*words, ctypes.c_ulong(_MS_RDONLY), options.encode()) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(target))
