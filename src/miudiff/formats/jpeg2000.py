"""Whether JPEG 2000 data are whole, as far as they show it.

There is no check sum, and a code block decodes to something whatever its bits are. What shows is the chain
of tile parts, which states its lengths; the end marker; two bytes that no coder writes; and a run of zeros
that is longer than all packets would be if each of them were empty.
"""

from __future__ import annotations

import re
import struct

import numpy as np
from numpy.typing import NDArray

FORBIDDEN = re.compile(rb"\xff[\x90-\xff]")  # in the data of a tile part
SOC, COD, SOT, SOP, EPH, SOD, EOC = 0xFF4F, 0xFF52, 0xFF90, 0xFF91, 0xFF92, 0xFF93, 0xFFD9
SLACK = 64  # zeros that packets may hold beside


def rgb_from_ycbcr(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB of full-range YCbCr (ITU-R BT.601), uint8 [H, W, 3], rounded as OpenSlide rounds."""
    luma, blue, red = (pixels[..., i].astype(np.float64) for i in range(3))
    blue, red = blue - 128, red - 128
    parts = 1.402 * red, -0.34414 * blue - 0.71414 * red, 1.772 * blue
    rgb = np.stack([luma + np.floor(part + 0.5) for part in parts], axis=-1)
    return rgb.clip(0, 255).astype(np.uint8)


def codestream(data: bytes) -> bytes:
    """The codestream in a JP2 file; what is one already is given back. Raises ValueError where there is none."""
    if data[:2] == b"\xff\x4f":
        return data
    at = 0
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        head = 8
        if length == 1:
            length, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if length == 0:
            length = len(data) - at
        if kind == b"jp2c":
            return data[at + head : at + length]
        if length < head:
            break
        at += length
    raise ValueError("no codestream")


def size(data: bytes) -> tuple[int, int]:
    """Width and height. Raises ValueError or struct.error where there is none."""
    stream = codestream(data)
    if stream[2:4] != b"\xff\x51":
        raise ValueError("no size")
    right, bottom, left, top = struct.unpack(">IIII", stream[8:24])
    return right - left, bottom - top


def damage(data: bytes) -> str:
    """What is wrong with JPEG 2000 data, "" if nothing is seen."""
    try:
        return _damage(codestream(data))
    except (ValueError, struct.error, IndexError):
        return "its JPEG 2000 header is damaged"


def _damage(stream: bytes) -> str:
    at, packets, marked = 2, 0, False
    components = struct.unpack(">H", stream[40:42])[0]
    while True:
        marker = struct.unpack(">H", stream[at : at + 2])[0]
        if marker == EOC:
            return ""
        length = struct.unpack(">H", stream[at + 2 : at + 4])[0]
        if marker == COD:
            style, _, layers, _, levels = struct.unpack(">BBHBB", stream[at + 4 : at + 10])
            packets = 0 if style & 1 else layers * (levels + 1) * components  # 0: own precincts
            marked = bool(style & 6)
        if marker != SOT:
            if marker < 0xFF00:
                raise ValueError("no marker")
            at += 2 + length
            continue
        part = struct.unpack(">I", stream[at + 6 : at + 10])[0] or len(stream) - 2 - at
        end, begin = at + part, stream.find(b"\xff\x93", at + 12)
        if begin < 0 or not at + 14 <= end <= len(stream) - 2:
            return "its JPEG 2000 data break off"
        body = stream[begin + 2 : end]
        for found in FORBIDDEN.finditer(body):
            if not (marked and found[0] in (b"\xff\x91", b"\xff\x92")):
                return "its JPEG 2000 data are damaged"
        if packets and bytes(packets + SLACK) in body:
            return "its JPEG 2000 data have a hole of zeros"
        at = end
