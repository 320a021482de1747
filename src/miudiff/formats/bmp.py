"""Whether a BMP is whole: it has no check sum, only rows of a fixed length, which must fill it."""

from __future__ import annotations

import struct

RAW = (0, 3)  # of the ways to compress
FILLING = 3  # bytes that some writers add


def damage(data: bytes) -> str:
    """What is wrong with a BMP file, "" if nothing is seen."""
    try:
        begin, header = struct.unpack("<II", data[10:18])
        width, height, _, bits, compression = struct.unpack("<iiHHI", data[18:34])
    except struct.error:
        return "its BMP header is damaged"
    if header < 40 or compression not in RAW:
        return ""
    row = (width * bits + 31) // 32 * 4
    rest = len(data) - begin - row * abs(height)
    profile = header >= 124 and any(data[14 + 112 : 14 + 120])  # follows the pixels
    if rest < 0 or (rest > FILLING and not profile):
        return f"its {len(data):,} bytes do not fit {width} x {abs(height)} pixels"
    return ""
