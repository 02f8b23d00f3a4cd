"""A place for builds through real podman, and looks into the disks that come out."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from poclab.core import events
from poclab.images.build import build_image
from poclab.model.version import Version
from poclab.model.version_volumes import base_volume
from poclab.schema.image import ImageFile, load_image
from poclab.store.versions import Store
from tests.support import podman
from tests.support.dirpool import DirectoryPool

URI = "test:///default"
GIB = 1024**3

# A kernel that UEFI would take for one (an EFI program begins with MZ); nothing here boots it.
FILES = {
    "usr/lib/modules/6.1.0/vmlinuz": b"MZ" + bytes(range(256)) * 400,
    "usr/lib/modules/6.1.0/initramfs.img": b"070701" * 5000,
    "usr/lib/os-release": b'NAME=Test\nID=poclab-test\nVERSION_ID="1"\n',
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": b"root:x:0:\nwheel:x:10:\n",
    "sbin/init": b"#!/bin/sh\n",
    "usr/share/version": b"VERSION-OF-THE-TEST",
}


@dataclass
class World:
    """A pool, and the directory of an image.

    Attributes:
        pool: the pool's directory.
        store: the versions in it.
        directory: the image's.
        logs: where the logs of builds go.
    """

    pool: DirectoryPool
    store: Store
    directory: Path
    logs: Path

    def define(
        self, text: str, *, base: str = "scratch", label: str = "LABEL containers.bootc=1"
    ) -> ImageFile:
        """Write the image's files; what is in `rootfs/` goes onto the base."""
        containerfile = f"FROM {base}\nCOPY rootfs/ /\n{label}\n"
        (self.directory / "Containerfile").write_text(containerfile)
        (self.directory / "image.yaml").write_text(text)
        return load_image(self.directory)

    def put(self, name: str, data: bytes) -> None:
        """Put a file into `rootfs/`."""
        path = self.directory / "rootfs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def build(self, image: ImageFile, tag: str = "v1") -> tuple[Version, list[events.Event]]:
        """Build a version; gives what was told meanwhile too."""
        seen: list[events.Event] = []
        with events.listening(seen.append):
            version = build_image(self.store, image, tag, uri=URI)
        return version, seen

    def nothing_left(self) -> bool:
        """Whether the pool is empty, and no container of this process is there."""
        containers = podman.run("ps", "--all", "--format", "{{.Names}}").split()
        mine = [name for name in containers if f"-{os.getpid()}-" in name]
        return not list(self.pool.root.iterdir()) and not mine


@contextmanager
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Such a place; the container images of its versions go at the end."""
    for name in ("XDG_STATE_HOME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    pool = DirectoryPool(tmp_path / "pool")
    logs = tmp_path / "XDG_STATE_HOME/poclab/logs"
    # A name of its own: other processes build images at the same time.
    made = World(pool, Store(pool, URI), tmp_path / f"bibtest{os.getpid()}", logs)
    for name, data in FILES.items():
        made.put(name, data)
    yield made
    for tag in ("v1", "v2"):
        name = f"localhost/poclab/{made.directory.name}:{tag}"
        podman.run("rmi", "--force", "--ignore", name)


class Interrupter:
    """Raises KeyboardInterrupt once, when an event's text is seen."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.fired = False

    def __call__(self, event: events.Event) -> None:
        if not self.fired and event.text == self.text:
            self.fired = True
            raise KeyboardInterrupt


# --- the disk ---------------------------------------------------------------------------


def raw(world: World, digest: str) -> Path:
    target = world.pool.root.parent / "disk.raw"
    source = world.pool.root / base_volume(digest)
    argv = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(source), str(target)]
    subprocess.run(argv, check=True, timeout=120)
    return target


def partitions(disk: Path) -> list[tuple[int, int, str]]:
    """Start, size (sectors) and type of each partition of a GPT."""
    argv = ["/usr/sbin/sfdisk", "--json", str(disk)]
    out = subprocess.run(argv, check=True, timeout=30, capture_output=True, text=True).stdout
    table = json.loads(out)["partitiontable"]
    assert table["label"] == "gpt"
    return [(part["start"], part["size"], part["type"]) for part in table["partitions"]]


def from_ext4(disk: Path, start: int, name: str) -> str:
    argv = ["/usr/sbin/debugfs", "-R", f"cat {name}", f"{disk}?offset={start * 512}"]
    return subprocess.run(argv, check=True, timeout=60, capture_output=True, text=True).stdout


def from_esp(disk: Path, start: int, name: str) -> bytes:
    argv = ["mtype", "-i", f"{disk}@@{start * 512}", f"::/{name}"]
    return subprocess.run(argv, check=True, timeout=60, capture_output=True).stdout
