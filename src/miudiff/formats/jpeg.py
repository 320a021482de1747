"""Whether a JPEG, a file or a tile, is whole.

A JPEG has no check sum, and its decoders go on over damage: what is missing becomes grey, what is left over
is dropped. But its blocks have no fixed length in bits, so damage nearly always ends them too early or too
late, and that can be seen: given a frame with one row of blocks too many, the decoder must find nothing for
the added row, and must have found something for the last block before it. Damage that changes some colours
and nothing else stays unseen, as in every reader of this format.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import imagecodecs
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

SHORT = 8192  # bytes
EMPTY = 128  # the grey of a block for which there were no data
IN_SCAN = re.compile(rb"\xff[^\x00\xff]")  # a marker
END = b"\xff\xd9"
AT_ONCE = 50_000_000  # pixels
RESTARTS = b"\xff\xdd\0\4"  # states how far apart they are
RUN = bytes(24)  # so many zeros are doubtful
SPILT = (
    7 * 64
)  # pixels: the bits that fill the last byte of several scans may colour blocks that have no data
# So many zeros begin and end a block of luma: if they say more than "even", they say what no picture holds.
EMPTY_SECTOR = bytes(96)
HUFFMAN = (0xC0, 0xC1, 0xC2)  # frames of blocks in Huffman codes: baseline, extended, progressive


@dataclass(frozen=True)
class JpegHeader:
    """What the header says.

    Attributes:
        width: Pixels.
        height: Pixels.
        height_at: Where the height is stated.
        bits: Of a sample.
        components: How many colours.
        group_width: Pixels of a group of blocks, one or more of each colour.
        group_height: Pixels of a group of blocks.
        scan: Where the first scan begins.
        least_bits: Its blocks take at least so many.
        huffman: Blocks in Huffman codes, which is every JPEG but rare ones.
        simple: One scan, without restarts.
        zeros_are_even: Whether bits that are all 0 are blocks of one even colour.
    """

    width: int
    height: int
    height_at: int
    bits: int
    components: int
    group_width: int
    group_height: int
    scan: int
    least_bits: int
    huffman: bool
    simple: bool
    zeros_are_even: bool


def joined(data: bytes, tables: bytes | None) -> bytes:
    """A whole JPEG file of a tile and the tables that its page keeps apart."""
    return tables[:-2] + data[2:] if tables else data


def damage(data: bytes, thorough: bool = True) -> str:
    """What is wrong with a JPEG file, "" if nothing is seen.

    Args:
        thorough: Also ask a transcoder that stops at every error, which takes five times as long; without it, only
            where there is a doubt.
    """
    # glass of one colour is one short tile again and again, and just such a one is doubtful
    return _short_damage(data, thorough) if len(data) <= SHORT else _damage(data, thorough)


@lru_cache(maxsize=64)
def _short_damage(data: bytes, thorough: bool) -> str:
    return _damage(data, thorough)


def _damage(data: bytes, thorough: bool) -> str:
    try:
        header = read_header(data)
    except (IndexError, ValueError):
        return "its JPEG header is damaged"
    if not header.huffman:
        return "it is a lossless or arithmetic-coded JPEG, expected a baseline or progressive one"
    if header.least_bits > 8 * (len(data) - header.scan):
        return f"its JPEG data are too short for {header.width} x {header.height} pixels"
    end = data.find(END, header.scan)
    if end < 0:
        return "its JPEG data break off"
    doubtful = data.find(RUN, header.scan, end) >= 0
    if doubtful and data.find(EMPTY_SECTOR, header.scan, end) >= 0 and not header.zeros_are_even:
        return "its JPEG data have a hole of zeros"
    if header.simple and IN_SCAN.search(data, header.scan, end):
        return "its JPEG data break off"
    last, added = _ends(data, header)
    if _holds_data(added, header):
        return "its JPEG data are damaged"
    doubtful |= bool((last == EMPTY).all())
    # The transcoder knows one distance of restarts, and takes some 20 bytes for each pixel.
    asked = imagecodecs.JPEGXL.available and data.count(RESTARTS) < 2
    asked &= header.width * header.height <= AT_ONCE
    if asked and (thorough or doubtful or not header.simple):
        try:
            imagecodecs.jpegxl_encode_jpeg(data)
        except imagecodecs.JpegxlError:
            return "its JPEG data are damaged"
    return ""


def _holds_data(added: Pixels, header: JpegHeader) -> bool:
    """Whether there are data for blocks that the frame does not have."""
    return int((added != EMPTY).sum()) > (0 if header.simple else SPILT)


def _ends(data: bytes, header: JpegHeader) -> tuple[Pixels, Pixels]:
    """The last group of blocks, and what the decoder makes of those that there are no data for."""
    rows, columns = -(-header.height // header.group_height), -(-header.width // header.group_width)
    longer = bytearray(data)
    height = (rows + 1 + (columns == 1)) * header.group_height
    if height > 0xFFFF:  # which no header can state
        return np.full(1, EMPTY, np.uint8), np.full(1, EMPTY, np.uint8)
    longer[header.height_at : header.height_at + 2] = height.to_bytes(2, "big")
    try:
        grey = imagecodecs.jpeg8_decode(bytes(longer), outcolorspace="GRAYSCALE")
    except imagecodecs.Jpeg8Error:
        return np.zeros(1, np.uint8), np.zeros(1, np.uint8)
    end = rows * header.group_height
    last = grey[end - header.group_height : end, (columns - 1) * header.group_width :]
    # The bits that fill the last byte may begin one more group.
    beside, below = (
        grey[end : end + header.group_height, header.group_width :],
        grey[end + header.group_height :],
    )
    return last, np.concatenate([beside.ravel(), below.ravel()])


def read_header(data: bytes) -> JpegHeader:
    """What the header of a JPEG file says. Raises IndexError or ValueError where it is none."""
    at, restarts, found, even = 2, False, None, True
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
            found = marker, at + 5, [data[at + 11 + 3 * i] for i in range(data[at + 9])]
        elif marker == 0xC4:
            even &= _zeros_are_even(data[at + 4 : at + 2 + length])
        elif marker == 0xDD:
            restarts = data[at + 4] + data[at + 5] > 0
        at += 2 + length
    if found is None:
        raise ValueError("no frame")
    marker, height_at, sampling = found
    width = int.from_bytes(data[height_at + 2 : height_at + 4], "big")
    height = int.from_bytes(data[height_at : height_at + 2], "big")
    if not width or not height or not sampling or not all(c >> 4 and c & 15 for c in sampling):
        raise ValueError("no size")
    many = len(sampling) > 1
    group_width = 8 * max(c >> 4 for c in sampling) if many else 8
    group_height = 8 * max(c & 15 for c in sampling) if many else 8
    groups = -(-width // group_width) * -(-height // group_height)
    return JpegHeader(
        width=width,
        height=height,
        height_at=height_at,
        bits=data[height_at - 1],
        components=len(sampling),
        group_width=group_width,
        group_height=group_height,
        scan=at + 2 + length,
        # a code for the first coefficient and, in a baseline frame, one that ends the block
        least_bits=(1 if marker == 0xC2 else 2)
        * groups
        * (sum((c >> 4) * (c & 15) for c in sampling) if many else 1),
        huffman=marker in HUFFMAN,
        simple=marker in (0xC0, 0xC1) and not restarts and data[at + 4] == len(sampling),
        zeros_are_even=even or marker not in (0xC0, 0xC1),  # refining scans may say anything with zeros
    )


def _zeros_are_even(tables: bytes) -> bool:
    """Whether in each of these Huffman tables the code of zeros, which is the first, says that nothing changes or follows."""
    at = 0
    while at < len(tables):
        if tables[at + 17] != 0:
            return False
        at += 17 + sum(tables[at + 1 : at + 17])
    return True
