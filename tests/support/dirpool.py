"""A storage pool that is a plain directory: what the store needs, without libvirt."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from poclab.disks.digest import file_digest


class DirectoryPool:
    """Volumes as files of one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = str(root)
        root.mkdir(parents=True, exist_ok=True)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir() if path.is_file())

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        (self.root / name).write_bytes(data)

    def digest(self, name: str, like: str) -> str:
        return file_digest(self.root / name, like)

    def adopt(self, name: str, file: Path) -> None:
        file.rename(self.root / name)

    def delete(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        directory = Path(tempfile.mkdtemp(dir=self.root, prefix="staging."))
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def sweep(self) -> None:
        for path in self.root.glob("staging.*"):
            shutil.rmtree(path)
