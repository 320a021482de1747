"""Whether the data of a JPEG tile are whole.

A JPEG has no check sum, and its decoders go on over damage: what is missing becomes grey, what is left over is dropped. But a
tile's blocks have no fixed length in bits, so damage nearly always ends them too early or too late, and that can be seen: given
a frame with one row of blocks too many, the decoder must find nothing for the added row, and must have found something for the
last block before it. Damage that changes some colours and nothing else stays unseen, as in every reader of this format.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import imagecodecs

EMPTY = 128  # the grey of a block for which there were no data
IN_SCAN = re.compile(rb"\xff[^\x00\xff]")  # a marker
RUN = bytes(24)  # so many zeros are an empty disc sector, or a very even tile


@dataclass(frozen=True)
class Frame:
    """What the header says: size in pixels, where it states the height, size of a block group, where the scan begins."""

    width: int
    height: int
    height_at: int
    group_width: int
    group_height: int
    scan: int
    simple: bool


def joined(data: bytes, tables: bytes | None) -> bytes:
    """A whole JPEG file of a tile and the tables that its page keeps apart."""
    return tables[:-2] + data[2:] if tables else data


def damage(data: bytes) -> str:
    """What is wrong with a JPEG file, "" if nothing is seen."""
    try:
        frame = _frame(data)
    except (IndexError, ValueError):
        return "its JPEG header is damaged"
    markers = IN_SCAN.search(data, frame.scan)
    if frame.simple and (markers is None or data[markers.start() + 1] != 0xD9):
        return "its JPEG data break off"
    if frame.simple and RUN not in data[frame.scan :] and _ends_where_it_should(data, frame):
        return ""
    if not imagecodecs.JPEGXL.available:
        return "its JPEG data are damaged" if frame.simple else ""
    try:  # ten times slower, so only where it is needed: a transcoder that stops at every error
        imagecodecs.jpegxl_encode_jpeg(data)
    except imagecodecs.JpegxlError:
        return "its JPEG data are damaged"
    return ""


def _ends_where_it_should(data: bytes, frame: Frame) -> bool:
    rows, columns = -(-frame.height // frame.group_height), -(-frame.width // frame.group_width)
    longer = bytearray(data)
    height = (rows + 1 + (columns == 1)) * frame.group_height
    longer[frame.height_at : frame.height_at + 2] = height.to_bytes(2, "big")
    try:
        grey = imagecodecs.jpeg8_decode(bytes(longer), outcolorspace="GRAYSCALE")
    except imagecodecs.Jpeg8Error:
        return False
    end = rows * frame.group_height
    # The bits that fill the last byte may begin one more group of blocks.
    added, below = grey[end : end + frame.group_height, frame.group_width :], grey[end + frame.group_height :]
    last = grey[end - frame.group_height : end, (columns - 1) * frame.group_width :]
    return bool((added == EMPTY).all() and (below == EMPTY).all() and (last != EMPTY).any())


def _frame(data: bytes) -> Frame:
    """Raises IndexError or ValueError where the header is no JPEG header."""
    at, restarts, found = 2, False, None
    while True:
        if data[at] != 0xFF:
            raise ValueError("no marker")
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xFF:  # a filling byte
            at += 1
            continue
        if marker == 0xDA:
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            components = [data[at + 11 + 3 * i] for i in range(data[at + 9])]
            found = marker, at + 5, components
        elif marker == 0xDD:
            restarts = data[at + 4] + data[at + 5] > 0
        at += 2 + length
    if found is None:
        raise ValueError("no frame")
    marker, height_at, components = found
    many = len(components) > 1
    return Frame(
        width=int.from_bytes(data[height_at + 2 : height_at + 4], "big"),
        height=int.from_bytes(data[height_at : height_at + 2], "big"),
        height_at=height_at,
        group_width=8 * max(c >> 4 for c in components) if many else 8,
        group_height=8 * max(c & 15 for c in components) if many else 8,
        scan=at + 2 + length,
        simple=marker in (0xC0, 0xC1) and not restarts and data[at + 4] == len(components),
    )
