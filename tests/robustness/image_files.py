"""Image files made from nothing, and what a reader may make of one.

A `Case` is a file's content and a verdict. Whatever is read has to be the pixels of the sound picture that the
file was made from, unless the verdict says that its format cannot show the damage:

    read    sound, though perhaps unusual: must be read
    refuse  must be refused
    whole   damaged: refused, or nothing was lost
    likely  damaged: a JPEG, whose length tells nearly always, so at most one in twenty is read wrong
    unseen  damaged where the format has no means to show it: raw samples, codes of equal length
    either  hostile: in one line and in bounded time and memory, whatever the answer
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Verdict = Literal["read", "refuse", "whole", "likely", "unseen", "either"]
Random = np.random.Generator
Make = Callable[[Pixels, Random], bytes]


@dataclass(frozen=True)
class Case:
    """A file, what may become of it, and the pixels that it must have if it is read (None: any)."""

    name: str
    content: bytes
    verdict: Verdict
    pixels: Pixels | None = None


def picture(rng: Random, height: int, width: int) -> Pixels:
    """Something like stained tissue: smooth colours, round nuclei, a little noise."""
    y, x = np.mgrid[:height, :width]
    image = np.stack(
        [225 + 9 * np.sin(x / 31), 168 + 14 * np.cos(y / 23), 212 + 7 * np.sin((x + y) / 37)], -1
    )
    for _ in range(height * width // 400):
        at_y, at_x, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(2, 7)
        inside = (y - at_y) ** 2 + (x - at_x) ** 2 < radius**2
        image[inside] = rng.uniform((60, 30, 90), (150, 110, 170))
    return (image + rng.normal(0, 3, image.shape)).clip(0, 255).astype(np.uint8)


def encode(pixels: Pixels, kind: str, **options: Any) -> bytes:
    """A file of Pillow's."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(pixels: Pixels, **options: Any) -> bytes:
    """A file of tifffile's."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **{"photometric": "rgb", "metadata": None} | options)
    return buffer.getvalue()


def ome(
    image: Pixels, size: str = "", counts: str = 'SizeC="3" SizeT="1" SizeZ="1"', **options: Any
) -> bytes:
    """An OME-TIFF whose metadata are written here, without a number drawn by chance."""
    height, width = image.shape[:2]
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        f'<Pixels DimensionOrder="XYCZT" ID="Pixels:0" SizeX="{width}" SizeY="{height}" {counts} '
        f'Type="uint8" {size}><Channel ID="Channel:0:0" SamplesPerPixel="3"/>'
        '<TiffData IFD="0" PlaneCount="1"/></Pixels></Image></OME>'
    )
    return tiff(image, description=xml, compression="deflate", **options)


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    pixels: Pixels, data: bytes, extra: bytes = b"", size: tuple[int, int] | None = None, piece: int = 0
) -> bytes:
    """A PNG of 8-bit RGB by its specification, in pieces of so many bytes (0: in one)."""
    width, height = size or (pixels.shape[1], pixels.shape[0])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pieces = [data[i : i + piece] for i in range(0, len(data), piece)] if piece else [data]
    body = b"".join(chunk(b"IDAT", one) for one in pieces)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + body + chunk(b"IEND", b"")


def rows(pixels: Pixels) -> bytes:
    """The bytes that a PNG deflates."""
    return b"".join(b"\0" + row.tobytes() for row in pixels)


def interlaced(pixels: Pixels) -> bytes:
    """A PNG in seven passes."""
    starts = (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
    data = b"".join(rows(pixels[y::down, x::across]) for x, y, across, down in starts)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 1)
    idat = chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + idat + chunk(b"IEND", b"")
