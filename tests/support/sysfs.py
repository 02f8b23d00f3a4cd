"""Trees as the kernel shows disks in sysfs, made of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from poclab.disks.removable import Roots

USB = "pci0000:00/0000:00:14.0/usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:0"
SATA = "pci0000:00/0000:00:17.0/ata1/host0/target0:0:0/0:0:0:0"
MIB = 1024**2


class Sysfs:
    """A fake /sys and the two files of /proc that tell what uses disks."""

    def __init__(self, root: Path) -> None:
        (root / "sys/dev/block").mkdir(parents=True)
        (root / "mountinfo").touch()
        (root / "swaps").write_text("Filename\tType\tSize\tUsed\tPriority\n")
        self.roots = Roots(root / "sys", root / "mountinfo", root / "swaps")
        self.mount("0:22", "tmpfs", "/run")

    def disk(
        self,
        name: str,
        number: str = "8:16",
        *,
        where: str = USB,
        size: int = 16 * 1024 * MIB,
        removable: bool = True,
        more: Mapping[str, str] | None = None,
        parts: Sequence[str] = (),
    ) -> Path:
        """Add a disk; gives its directory. `more` are further files below it, by name."""
        directory = self.roots.sys / "devices" / where / "block" / name
        files = {
            "dev": number,
            "size": str(size // 512),
            "removable": str(int(removable)),
            "ro": "0",
            "diskseq": "7",
            "device/vendor": "SanDisk ",
            "device/model": "Ultra Fit       ",
            "device/type": "0",
            **(more or {}),
        }
        if where == USB:
            device = self.roots.sys / "devices" / Path(*Path(USB).parts[:4])
            device.mkdir(parents=True, exist_ok=True)
            (device / "serial").write_text("4C530001\n")
            (device.parent / "serial").write_text("0000:00:14.0\n")
        for key, text in files.items():
            path = directory / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        self._link(number, directory)
        major, minor = number.split(":")
        for index, part in enumerate(parts, 1):
            below = directory / part
            below.mkdir()
            (below / "partition").write_text(f"{index}\n")
            (below / "dev").write_text(f"{major}:{int(minor) + index}\n")
            self._link(f"{major}:{int(minor) + index}", below)
        return directory

    def hold(self, directory: Path, name: str) -> None:
        """Have another device stand on a disk or partition."""
        (directory / "holders").mkdir(exist_ok=True)
        (directory / "holders" / name).touch()

    def mount(self, number: str, source: str, target: str) -> None:
        """Add a mount."""
        with self.roots.mountinfo.open("a") as file:
            file.write(f"36 35 {number} / {target} rw,noatime shared:1 - ext4 {source} rw\n")

    def swap(self, source: str) -> None:
        """Add a swap device."""
        with self.roots.swaps.open("a") as file:
            file.write(f"{source}\tpartition\t1024\t0\t-2\n")

    def _link(self, number: str, directory: Path) -> None:
        (self.roots.sys / "dev/block" / number).symlink_to(directory)
