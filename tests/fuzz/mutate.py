"""Inputs made of good ones by small damage, the same each time for the same seed."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence

_NUMBERS = [0, 7, 8, 511, 512, 513, 2**48]
_NUMBERS += [2**bits + more for bits in (0, 7, 8, 16, 31, 32, 63, 64) for more in (-1, 0, 1)]
_FORMS = ("<B", "<H", ">H", "<I", ">I", "<Q", ">Q")
_TEXTS = (b"\0", b"\n", b"\xff", b"\x1b[2J", b"../", b"-1", b"1e999", b"null", b"[]", b"{}", b'"')


def mutated(seeds: Sequence[bytes], words: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """Make inputs without end.

    Args:
        seeds: what to begin from.
        words: what a text of the format is made of, put in here and there.
        seed: for the random numbers.
    """
    source = random.Random(seed)
    while True:
        data = bytearray(source.choice(seeds))
        for _ in range(source.choice((1, 1, 1, 2, 3, 8))):
            _damage(data, source, seeds, words)
        yield bytes(data)


def _damage(
    data: bytearray, source: random.Random, seeds: Sequence[bytes], words: Sequence[bytes]
) -> None:
    # What is near the beginning decides most: headers, the first keys.
    limit = len(data) if source.random() < 0.5 else min(len(data), 512)
    at = source.randrange(limit + 1)
    match source.randrange(7):
        case 0:
            data[at : at + 1] = bytes([source.randrange(256)])
        case 1:
            form = source.choice(_FORMS)
            number = source.choice(_NUMBERS) % 256 ** struct.calcsize(form)
            data[at : at + struct.calcsize(form)] = struct.pack(form, number)
        case 2:
            data[at:at] = source.choice((*words, *_TEXTS))
        case 3:
            del data[at : at + source.choice((1, 2, 8, 100))]
        case 4:
            piece = data[at : at + source.choice((8, 64, 512))]
            data[at:at] = piece * source.choice((1, 2, 20))
        case 5:
            other = source.choice(seeds)
            begin = source.randrange(len(other) + 1)
            data[at : at + 64] = other[begin : begin + 64]
        case _:
            del data[at:]
