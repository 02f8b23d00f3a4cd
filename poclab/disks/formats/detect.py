"""Which format a file has, judged by its first and last bytes.

oslo.utils' format inspectors (the library OpenStack wrote after CVE-2024-32498) decide, with
a few signatures that they leave out. A file that matches two formats is refused: what one
program takes for a harmless disk, another would take for something else.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

from poclab.core.errors import PoclabError
from poclab.disks.formats.base import AGAIN, Window

# What the inspectors of oslo.utils call things (and "tar"), for people.
KINDS = {
    "raw": "raw data without a partition table",
    "gpt": "a raw disk",
    "qcow2": "a qcow2 disk",
    "vhd": "a VHD disk",
    "vhdx": "a VHDX disk",
    "vmdk": "a VMDK disk",
    "vdi": "a VDI disk",
    "qed": "a QED disk",
    "iso": "an ISO image",
    "luks": "a LUKS volume",
    "tar": "an OVA or another tar archive",
}
# Kinds that are disks, with the names QEMU has for the formats.
DRIVERS = {
    "raw": "raw",
    "gpt": "raw",
    "qcow2": "qcow2",
    "vhd": "vpc",
    "vhdx": "vhdx",
    "vmdk": "vmdk",
    "vdi": "vdi",
}
# Signatures that the inspectors leave out: a qcow2 cut short, an ESXi COW disk, a stand-alone
# VMDK descriptor whose text they could not read.
_SIGNATURES = {b"QFI\xfb": "qcow2", b"COWD": "vmdk", b"KDMV": "vmdk"}
_DESCRIPTOR = b"# disk descriptorfile"
VHD_COOKIE = b"conectix"
# Compressed files by their first bytes (file(1) knows them the same way), with what unpacks.
_PACKED = {
    b"\x1f\x8b\x08": ("gzip", "gzip -dc"),
    b"\xfd7zXZ\0": ("xz", "xz -dc"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dc"),
    b"BZh": ("bzip2", "bzip2 -dc"),
    b"PK\3\4": ("zip", "unzip -p"),
}


def detect(window: Window, *, whole: bool = True) -> str:
    """The one format of a file, a key of `KINDS`.

    Args:
        window: the file.
        whole: False when only its beginning is there; a footer is then not looked for.

    Raises:
        PoclabError: it is several formats at once, or one that is never taken.
    """
    head, tail = window.head(), window.tail() if whole else b""
    with _judged(window):
        kinds = _detected(head)
    kinds |= {kind for magic, kind in _SIGNATURES.items() if head.startswith(magic)}
    if head[:64].lower().startswith(_DESCRIPTOR):
        kinds.add("vmdk")
    if is_tar(head):
        kinds.add("tar")
    if tail[-512:].startswith(VHD_COOKIE) or (len(tail) >= 511 and tail[-511:-503] == VHD_COOKIE):
        # A fixed VHD is a raw disk with a footer: of the two, the footer says more. Old
        # Virtual PC left the footer's last byte out.
        kinds = (kinds - {"gpt"}) | {"vhd"}
    if "iso" in kinds:
        # A bootable ISO has a partition table too; it is still no disk to install on.
        kinds.discard("gpt")
    if len(kinds) > 1:
        raise window.refused(f"it is several formats at once: {', '.join(sorted(kinds))}")
    kind = kinds.pop() if kinds else "raw"
    if kind in ("qed", "luks", "iso"):
        raise window.refused(
            f"it is {KINDS[kind]}", "give a qcow2, raw, VMDK, VDI, VHD or VHDX disk or an OVA"
        )
    return kind


def refuse_wrapped(window: Window) -> None:
    """Say what to do with a file that holds a disk in a way that is not read.

    Raises:
        PoclabError: it is compressed, or an OVF without its disk.
    """
    head = window.read(0, 4096)
    for magic, (name, command) in _PACKED.items():
        if head.startswith(magic):
            raise window.refused(
                f"it is {name}-compressed",
                f"unpack it on the way: {command} FILE | poclab image import NAME:TAG -",
            )
    if b"<" in head[:8] and b"Envelope" in head:
        raise window.refused(
            "it is an OVF file, which has its disks beside it",
            "give the disk itself, or pack them: tar -cf NEW.ova FILE.ovf DISK.vmdk",
        )


@contextmanager
def _judged(window: Window, *verdicts: type[Exception]) -> Iterator[None]:
    """Refuse a file that the inspectors of oslo.utils fail on, however they do.

    They fail on some that no program makes: one asks for the type of a VMDK descriptor although it
    could not read any.

    Args:
        window: the file.
        verdicts: what they raise when they do not fail.

    Raises:
        PoclabError: if one of them fails.
    """
    try:
        yield
    except verdicts:
        raise
    except Exception as error:
        raise window.refused(
            f"its format cannot be judged: the inspection failed ({type(error).__name__})",
            f"{AGAIN}, or convert it where it was made: qemu-img convert -O qcow2 FILE NEW",
        ) from error


def _detected(head: bytes) -> set[str]:
    import logging

    from oslo_utils.imageutils import format_inspector

    # The library logs each refusal as a warning; the error says it already.
    logging.getLogger("oslo_utils").addHandler(logging.NullHandler())
    source = format_inspector.InspectWrapper(io.BytesIO(head))
    while source.read(64 * 1024):
        pass
    source.close()
    return {str(found) for found in source.formats or []} - {"raw"}


def violations(kind: str, window: Window) -> dict[str, str]:
    """oslo.utils' safety checks that fail, by name."""
    from oslo_utils.imageutils import format_inspector

    inspector = format_inspector.ALL_FORMATS[kind]()
    head, tail = window.head(), b""
    if window.size > len(head):
        # What lies between is of no interest to the checks there are.
        tail = window.tail()
    try:
        with _judged(window, format_inspector.SafetyCheckFailed, format_inspector.ImageFormatError):
            inspector.eat_chunk(head)
            if tail:
                inspector.eat_chunk(tail)
            inspector.finish()
            inspector.safety_check()
    except format_inspector.SafetyCheckFailed as error:
        return {name: str(failure) for name, failure in error.failures.items()}
    except format_inspector.ImageFormatError as error:
        return {"header": str(error)}
    return {}


def is_tar(head: bytes) -> bool:
    """Whether a file begins with a tar header.

    POSIX.1-2017, pax, "ustar Interchange Format": the magic is at 257, the checksum at 148 is
    the sum of the header's bytes with the checksum itself taken as spaces.
    """
    if head[257:262] != b"ustar":
        return False
    digits = head[148:156].strip(b" \0")
    total = sum(head[:148]) + 8 * 32 + sum(head[156:512])
    return _octal(digits) and int(digits, 8) == total


def _octal(digits: bytes) -> bool:
    return bool(digits) and all(48 <= digit <= 55 for digit in digits)


def wrong_format(window: Window, kind: str, expected: str) -> PoclabError:
    """The error that a file is something else than the caller said."""
    return window.refused(f"it is {KINDS[kind]}, not {expected}")
