"""Whether a PNG is whole: the check sum of each chunk, and as many bytes of pixels as the header states."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by colour type
PASSES = (  # Adam7: first column and row, and the steps from pixel to pixel
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2),
)  # fmt: skip
PIECE = 1 << 20  # bytes inflated at a time


def damage(data: bytes) -> str:
    """What is wrong with a PNG file, "" if nothing is seen."""
    try:
        chunks = list(_chunks(data))
    except ValueError as error:
        return str(error)
    if [kind for kind, _ in chunks[:1]] != [b"IHDR"] or len(chunks[0][1]) != 13:
        return "its PNG header is damaged"
    expected = _size(chunks[0][1])
    if not expected:
        return "its PNG header is damaged"
    found, ended = 0, False
    inflater = zlib.decompressobj()
    try:
        for piece in (content for kind, content in chunks if kind == b"IDAT"):
            rest: bytes | memoryview = piece
            while len(rest) and found <= expected and not inflater.eof:
                found += len(inflater.decompress(rest, PIECE))
                rest = inflater.unconsumed_tail
        while found <= expected and not inflater.eof and (more := inflater.decompress(b"", PIECE)):
            found += len(more)
        ended = inflater.eof
    except zlib.error:
        return "its PNG data are damaged"
    if found == expected and ended:
        return ""
    return (
        f"its PNG data give {'more' if found > expected else 'less'} than the {expected:,} bytes of its size"
    )


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and content of each chunk up to the end. Raises ValueError where one is damaged."""
    view, at = memoryview(data), len(SIGNATURE)
    while at + 12 <= len(data):
        length, kind = struct.unpack(">I4s", view[at : at + 8])
        end = at + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise ValueError("a check sum of the PNG is wrong")
        yield kind, view[at + 8 : end]
        if kind == b"IEND":
            return
        at = end + 4
    raise ValueError("the PNG breaks off")


def _size(header: memoryview) -> int:
    """Bytes of all rows with their filter bytes, 0 where the header makes no sense."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * SAMPLES.get(colour, 0)
    passes = PASSES if interlaced else ((0, 0, 1, 1),)
    total = 0
    for x, y, across, down in passes:
        columns, rows = -(-(width - x) // across), -(-(height - y) // down)
        if columns > 0 and rows > 0 and bits:
            total += rows * (1 + -(-columns * bits // 8))
    return total
