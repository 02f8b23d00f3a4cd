"""Sizes: from what people write to bytes, and back."""

from __future__ import annotations

import re

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

_UNITS = {
    "": 1, "b": 1,
    "k": KIB, "kib": KIB, "kb": 1000,
    "m": MIB, "mib": MIB, "mb": 1000**2,
    "g": GIB, "gib": GIB, "gb": 1000**3,
    "t": TIB, "tib": TIB, "tb": 1000**4,
}  # fmt: skip
# K, M, G, T alone are binary, as QEMU and libvirt read them.
_SIZE = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,6}))? ?([a-zA-Z]{0,3})")


def parse_size(text: str) -> int:
    """Read a size such as `2GiB`, `512M`, `1.5 GiB` or `10737418240`.

    Args:
        text: a number with an optional unit; no unit means bytes.

    Returns:
        The size in bytes.

    Raises:
        ValueError: the text is no size; the message says what a size looks like.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[3].lower()) if match else None
    if match is None or unit is None:
        raise ValueError("a size is a number with a unit, such as 512MiB or 2GiB")
    fraction = match[2] or "0"
    scale: int = 10 ** len(fraction)
    return int(match[1]) * unit + int(fraction) * unit // scale


def format_size(size: int) -> str:
    """Write a number of bytes for people, binary units, at most one decimal."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return (
                f"{value:.0f} {unit}"
                if value >= 10 or value.is_integer()
                else f"{value:.1f} {unit}"
            )
        value /= 1024
    return f"{value:.1f} TiB"


def format_seconds(seconds: float) -> str:
    """Write a duration for people: `0.8s`, `42s`, `3m12s`, `5h02m`, `3d4h`."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    minutes, secs = divmod(whole, 60)
    hours, mins = divmod(minutes, 60)
    days, hrs = divmod(hours, 24)
    if days:
        return f"{days}d{hrs}h"
    if hours:
        return f"{hours}h{mins:02d}m"
    return f"{minutes}m{secs:02d}s" if minutes else f"{whole}s"


_DURATION = re.compile(r"([0-9]{1,6})(m|h|d|w)")
_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_duration(text: str) -> int:
    """Read a duration such as `30m`, `12h`, `7d` or `2w`; gives seconds.

    Raises:
        ValueError: the text is no duration; the message says what one looks like.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError("a duration is a number with a unit, such as 12h or 7d")
    return int(match[1]) * _SECONDS[match[2]]
