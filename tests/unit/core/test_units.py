"""Sizes and durations."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poclab.core import units


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("1", 1), ("10737418240", 10 * units.GIB), ("512M", 512 * units.MIB),
        ("512MiB", 512 * units.MIB), ("512 MiB", 512 * units.MIB), ("2GiB", 2 * units.GIB),
        ("2gib", 2 * units.GIB), ("2GB", 2_000_000_000), ("1.5 GiB", 3 * units.GIB // 2),
        ("1k", 1024), ("1kB", 1000), ("7b", 7), ("3T", 3 * units.TIB), (" 4K ", 4096),
        ("0.5KiB", 512), ("0.000001MB", 1),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", " ", "-1", "+1", "1e99", "1e3", "GiB", "1 X", "1XiB", "1..5G", ".5G", "5.G", "1,5G",
     "0x10", "inf", "nan", "1G1", "1 G B", "9" * 16, "１G", "1G\x00", "1_000", "1.1234567G", "two"],
)  # fmt: skip
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="a size is a number with a unit"):
        units.parse_size(text)


@given(st.integers(0, 10**15 - 1))
def test_bytes_come_back(size: int) -> None:
    assert units.parse_size(str(size)) == size


@given(st.integers(0, 64 * units.TIB))
def test_sizes_come_back_as_far_as_they_are_shown(size: int) -> None:
    text = units.format_size(size)
    assert re.fullmatch(r"[0-9]+(\.[0-9])? ([KMGT]i)?B", text)
    again = units.parse_size(text)
    assert abs(again - size) <= max(size * 0.06, 0)


@given(st.sampled_from(["KiB", "MiB", "GiB"]), st.integers(1, 1023))
def test_whole_sizes_come_back_exactly(unit: str, number: int) -> None:
    size = units.parse_size(f"{number}{unit}")
    assert units.parse_size(units.format_size(size)) == size


@given(st.text())
def test_any_text_is_a_size_or_a_value_error(text: str) -> None:
    try:
        size = units.parse_size(text)
    except ValueError as error:
        size, message = 0, str(error)
    else:
        message = "a size is"
    assert size >= 0
    assert "a size is" in message


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.84, "0.8s"),
        (9.94, "9.9s"),
        (42, "42s"),
        (192, "3m12s"),
        (18120, "5h02m"),
        (273600, "3d4h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert units.format_seconds(seconds) == text
