"""The frame of a UEFI disk: a GPT, and a FAT partition with systemd-boot in it.

Written with sfdisk and mtools into a plain file: no loop device, no mount.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from poclab.core.errors import PoclabError
from poclab.core.process import CommandFailed, runner
from poclab.core.units import MIB

SECTOR = 512
# Writes a file's content to a new path.
Source = Callable[[Path], object]
# The first partition begins at 1 MiB, and the last MiB holds the second copy of the GPT.
START = MIB
END = MIB
MIN_ESP = 64 * MIB

# Where systemd-boot is found in an image and, failing that, on the host.
LOADER_DIR = "usr/lib/systemd/boot/efi"
_PACKAGES = "systemd-boot-efi (Debian, Ubuntu) or systemd-boot-unsigned (Fedora)"


@dataclass(frozen=True)
class Arch:
    """What differs between processors.

    Attributes:
        loader: systemd-boot's file.
        removable: the name firmware starts from a disk without boot entries (UEFI 2.10, 3.5.1.1).
        root_type: the root partition's type (Discoverable Partitions Specification).
        console: the first serial port's name in Linux.
    """

    loader: str
    removable: str
    root_type: str
    console: str


_ARCHES = {
    "x86_64": Arch(
        "systemd-bootx64.efi",
        "BOOTX64.EFI",
        "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709",
        "ttyS0",
    ),
    "aarch64": Arch(
        "systemd-bootaa64.efi",
        "BOOTAA64.EFI",
        "B921B045-1DF0-41C3-AF44-4C6F280D3FAE",
        "ttyAMA0",
    ),
}


def host_arch() -> Arch:
    """The processor of this host.

    Raises:
        PoclabError: disks for it cannot be made.
    """
    machine = platform.machine()
    if machine not in _ARCHES:
        raise PoclabError(
            f"the direct builder makes no disks for {machine}",
            why=f"it knows {' and '.join(_ARCHES)}",
        )
    return _ARCHES[machine]


def host_loader(arch: Arch) -> Path | None:
    """systemd-boot as installed on this host, if it is."""
    path = Path("/") / LOADER_DIR / arch.loader
    return path if path.is_file() else None


def loader_missing(arch: Arch) -> PoclabError:
    """The error for a systemd-boot that is nowhere."""
    return PoclabError(
        "systemd-boot is neither in the container image nor on this host",
        why=f"there is no /{LOADER_DIR}/{arch.loader}",
        fix=f"install the package {_PACKAGES}, here or in the Containerfile",
    )


@dataclass(frozen=True)
class Layout:
    """Where the partitions lie, in bytes; each a whole number of MiB."""

    esp_size: int
    root_size: int

    @property
    def root_start(self) -> int:
        """Where the root partition, the last one, begins."""
        return START + self.esp_size

    @property
    def disk_size(self) -> int:
        """Bytes of the whole disk."""
        return self.root_start + self.root_size + END


def esp_size(files: Sequence[Path]) -> int:
    """Bytes for a FAT partition that holds these files.

    A tenth on top for FAT's tables and clusters; at least 64 MiB, because fewer than 65,525
    clusters would not be FAT32 any more (Microsoft's FAT specification, 3.5).
    """
    content = sum(path.stat().st_size for path in files)
    needed = content + content // 10 + 2 * MIB
    return max(MIN_ESP, -(-needed // MIB) * MIB)


def write_gpt(
    disk: Path, layout: Layout, arch: Arch, *, disk_id: str, esp_id: str, root_id: str
) -> None:
    """Write the partition table of a new disk file of the layout's size.

    Raises:
        PoclabError: sfdisk failed.
    """
    script = "\n".join(
        (
            "label: gpt",
            f"label-id: {disk_id}",
            "unit: sectors",
            f"start={START // SECTOR}, size={layout.esp_size // SECTOR}, type=U, "
            f'uuid={esp_id}, name="ESP"',
            f"start={layout.root_start // SECTOR}, size={layout.root_size // SECTOR}, "
            f'type={arch.root_type}, uuid={root_id}, name="root"',
            "",
        )
    )
    with disk.open("xb") as file:
        file.truncate(layout.disk_size)
    argv = ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", "--", disk.name]
    _run(argv, disk, input=script)


def write_esp(
    disk: Path, layout: Layout, files: dict[str, Path], *, serial: str, epoch: int
) -> None:
    """Make the FAT partition and copy files into it.

    Args:
        disk: the disk file.
        layout: where the partition lies.
        files: what to copy, by path in the partition, such as `EFI/BOOT/BOOTX64.EFI`.
        serial: the volume's serial number, eight hexadecimal digits.
        epoch: the time it is made at.

    Raises:
        PoclabError: mtools failed.
    """
    image = f"{disk.name}@@{START}"
    sectors = layout.esp_size // SECTOR
    env = {"SOURCE_DATE_EPOCH": str(epoch), "TZ": "UTC", "MTOOLSRC": "/dev/null"}
    # One sector a cluster: FAT32 from 64 MiB on. Firmware uses no geometry, mtools wants one.
    argv = ["mformat", "-i", image, "-F", "-c", "1", "-T", str(sectors), "-h", "64", "-s", "32"]
    argv += ["-H", str(START // SECTOR), "-N", serial, "-v", "ESP", "::"]
    _run(argv, disk, env)
    made: set[str] = set()
    for name, source in files.items():
        for parent in reversed([str(p) for p in Path(name).parents if str(p) != "."]):
            if parent not in made:
                _run(["mmd", "-i", image, f"::/{parent}"], disk, env)
                made.add(parent)
        # -m keeps the time of the file, which the caller set.
        _run(["mcopy", "-m", "-i", image, str(source.absolute()), f"::/{name}"], disk, env)


def _run(
    argv: list[str],
    disk: Path,
    env: dict[str, str] | None = None,
    input: str | None = None,  # noqa: A002
) -> None:
    try:
        # In the disk's directory, so that no character of its path means anything to mtools.
        runner().run(argv, cwd=disk.parent, env=env, input=input)
    except CommandFailed as error:
        raise PoclabError(f"{argv[0]} failed", why=error.result.last_line[:300]) from error


def loader_files(
    sources: Mapping[str, Source], options: str, scratch: Path, epoch: int
) -> dict[str, Path]:
    """The files of the FAT partition: systemd-boot, its one entry, kernel and initramfs.

    systemd-boot is told nothing but to start that entry at once
    (Boot Loader Specification, type #1).

    Args:
        sources: loader, kernel and initramfs (`vmlinuz`, `initrd.img`) by path in the partition.
        options: the kernel command line; a line break in it would begin another field.
        scratch: an empty directory of the caller.
        epoch: the time the files get.

    Returns:
        Where each file of the partition is, by its path there.
    """
    texts = {
        "loader/loader.conf": "timeout 0\ndefault poclab.conf\neditor no\n",
        "loader/entries/poclab.conf": (
            f"title poclab\nlinux /vmlinuz\ninitrd /initrd.img\noptions {options}\n"
        ),
    }
    files: dict[str, Path] = {}
    for name in (*sources, *texts):
        path = files[name] = scratch / name.replace("/", "_")
        if name in texts:
            path.write_text(texts[name])
        else:
            sources[name](path)
        os.utime(path, (epoch, epoch))
    return files
