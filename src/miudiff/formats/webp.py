"""Whether a WebP is whole.

A WebP has no check sum. Its data are one stream of bits of no fixed length, so damage often moves their
end: whole data decode, and without their last bytes they do not. Lossy data nearly always show it; the
codes of lossless data have much the same lengths, and may end in their place though they are wrong.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import imagecodecs

LAST = 4  # bytes of which the decoder needs at least one


def damage(data: bytes) -> str:
    """What is wrong with a WebP file of one picture, "" if nothing is seen."""
    try:
        pictures = [(kind, content) for kind, content in _chunks(data) if kind in (b"VP8 ", b"VP8L")]
    except (ValueError, struct.error):
        return "the WebP breaks off"
    if len(pictures) != 1:
        return f"its WebP holds {len(pictures)} pictures, expected one"
    kind, content = pictures[0]
    # Cut to an even length: the byte that fills up an odd one would be taken for data.
    if not _decodes(kind, content) or _decodes(kind, content[: (len(content) - LAST) & ~1]):
        return "its WebP data are damaged"
    return ""


def size(data: bytes) -> tuple[int, int]:
    """Width and height. Raises ValueError or struct.error where there is no picture."""
    for kind, content in _chunks(data):
        if kind == b"VP8 ":
            width, height = struct.unpack("<HH", content[6:10])
            return width & 0x3FFF, height & 0x3FFF
        if kind == b"VP8L":
            bits = int.from_bytes(content[1:5], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise ValueError("no picture")


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each chunk. Raises ValueError or struct.error where the file breaks off."""
    riff, length, kind = struct.unpack("<4sI4s", data[:12])
    end = 8 + length
    if riff != b"RIFF" or kind != b"WEBP" or end > len(data):
        raise ValueError("no WebP")
    at = 12
    while at + 8 <= end:
        kind, length = struct.unpack("<4sI", data[at : at + 8])
        if at + 8 + length > end:
            raise ValueError("breaks off")
        yield kind, data[at + 8 : at + 8 + length]
        at += 8 + length + (length & 1)


def _decodes(kind: bytes, content: bytes) -> bool:
    """Whether a picture of these data alone can be decoded."""
    body = b"WEBP" + kind + struct.pack("<I", len(content)) + content + bytes(len(content) & 1)
    try:
        imagecodecs.webp_decode(b"RIFF" + struct.pack("<I", len(body)) + body)
    except imagecodecs.WebpError:
        return False
    return True
