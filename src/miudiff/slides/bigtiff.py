"""The directories of a BigTIFF, little-endian, as bytes: what says where the tiles of an image lie and what they are.

Written here because one tag must be left out that libraries always write (`ome_tiff` says which), and because with the lengths of
all tiles known the file can be written from front to back, its directories first.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

HEADER = 16  # bytes before the first directory


@dataclass(frozen=True)
class Tag:
    """One entry of a directory: its code, type and values as bytes (TIFF 6.0, section 2; BigTIFF)."""

    code: int
    kind: int
    count: int
    data: bytes


def text(code: int, value: str) -> Tag:
    """ASCII; readers take UTF-8 as well."""
    data = value.encode() + b"\0"
    return Tag(code, 2, len(data), data)


def shorts(code: int, *values: int) -> Tag:
    """SHORT: 16 bits each."""
    return Tag(code, 3, len(values), struct.pack(f"<{len(values)}H", *values))


def longs(code: int, values: Sequence[int]) -> Tag:
    """LONG: 32 bits each."""
    return Tag(code, 4, len(values), np.asarray(values, "<u4").tobytes())


def offsets(code: int, values: Sequence[int]) -> Tag:
    """LONG8: 64 bits each, places in the file."""
    return Tag(code, 16, len(values), np.asarray(values, "<u8").tobytes())


def directories(code: int, values: Sequence[int]) -> Tag:
    """IFD8: the places of other directories."""
    return Tag(code, 18, len(values), np.asarray(values, "<u8").tobytes())


def ratios(code: int, *values: float) -> Tag:
    """RATIONAL: two times 32 bits each."""
    # The numerator, too, must fit in its 32 bits.
    near = [Fraction(value).limit_denominator(int(2**31 / max(value, 1))) for value in values]
    data = b"".join(struct.pack("<2I", *fraction.as_integer_ratio()) for fraction in near)
    return Tag(code, 5, len(values), data)


def header(first: int) -> bytes:
    """The head of the file, which names the place of the first directory."""
    return struct.pack("<2s3HQ", b"II", 43, 8, 0, first)


def directory(tags: Sequence[Tag], start: int, following: int) -> bytes:
    """A directory with its values, a multiple of 8 bytes long; the length does not depend on what the numbers are.

    Args:
        tags: In any order.
        start: Where in the file it will lie.
        following: Where the next directory of the chain lies, 0 for none.
    """
    entries, values = b"", b""
    beyond = start + 8 + 20 * len(tags) + 8
    for tag in sorted(tags, key=lambda tag: tag.code):
        data = tag.data
        if len(data) > 8:
            data = struct.pack("<Q", beyond + len(values))
            values += tag.data + bytes(-len(tag.data) % 8)
        entries += struct.pack("<2HQ", tag.code, tag.kind, tag.count) + data.ljust(8, b"\0")
    whole = struct.pack("<Q", len(tags)) + entries + struct.pack("<Q", following) + values
    return whole + bytes(-len(whole) % 8)
