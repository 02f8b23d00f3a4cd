"""What a file says of being a CD image."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poclab.core.errors import PoclabError
from poclab.disks.iso9660 import Volume, read

SECTOR = 2048


def descriptor(kind: int, data: bytes = b"", at: int = 7) -> bytes:
    head = bytes([kind]) + b"CD001\x01"
    return (head.ljust(at, b"\0") + data).ljust(SECTOR, b"\0")


def image(*descriptors: bytes, mbr: bool = False) -> bytes:
    system = bytearray(16 * SECTOR)
    system[510:512] = b"\x55\xaa" if mbr else b"\0\0"
    return bytes(system) + b"".join(descriptors)


def primary(label: str) -> bytes:
    return descriptor(1, label.encode().ljust(32), at=40)


BOOT = descriptor(0, b"EL TORITO SPECIFICATION".ljust(32, b"\0"))
END = descriptor(255)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (image(primary("Fedora-44"), BOOT, END, mbr=True), Volume("Fedora-44", True, True)),
        (image(primary("A B"), END), Volume("A B", False, False)),
        (image(BOOT, primary(""), END), Volume("", True, False)),
        # What comes after the end does not count, nor does another boot system.
        (image(primary("X"), END, BOOT), Volume("X", False, False)),
        (image(primary("X"), descriptor(0, b"OTHER"), END), Volume("X", False, False)),
        # The first primary one counts; a joliet one does not.
        (image(descriptor(2), primary("X"), primary("Y"), END), Volume("X", False, False)),
    ],
)
def test_images(tmp_path: Path, data: bytes, expected: Volume) -> None:
    path = tmp_path / "x.iso"
    path.write_bytes(data)
    assert read(path) == expected


@given(data=st.binary(max_size=3 * SECTOR), front=st.booleans())
def test_other_files(tmp_path_factory: pytest.TempPathFactory, data: bytes, front: bool) -> None:
    path = tmp_path_factory.mktemp("x") / "x.iso"
    path.write_bytes((image() if front else b"") + data)
    with pytest.raises(PoclabError, match="is no ISO image"):
        read(path)


def test_a_label_with_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "x.iso"
    path.write_bytes(image(primary("a\x1b[31m\nb"), END))
    assert read(path).label == "a?[31m b"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PoclabError, match="cannot be read"):
        read(tmp_path / "x.iso")
