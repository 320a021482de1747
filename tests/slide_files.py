"""Slides for the tests, written as scanners write them, and ways to spoil them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def tissue(height: int, width: int, seed: int = 0) -> Pixels:
    """Something of the colours and the grain of H&E, with no two places alike."""
    rng = np.random.default_rng(seed)
    stains = []
    for size in (3, 17):
        small = rng.random((height // size + 2, width // size + 2), np.float32)
        stains.append(np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)))
    density = 1.2 * stains[0][..., None] * [0.65, 0.7, 0.29] + 0.8 * stains[1][..., None] * [0.07, 0.99, 0.11]
    return np.clip(255 * np.exp(-density), 0, 255).astype(np.uint8)


def halved(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    parts = pixels[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
    return np.rint(parts.mean((1, 3))).astype(np.uint8)


def pyramid(pixels: Pixels, count: int) -> list[Pixels]:
    levels = [pixels]
    while len(levels) < count:
        levels.append(halved(levels[-1]))
    return levels


def shrunk(pixels: Pixels, height: int, width: int) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))


def write_svs(
    path: Path,
    levels: Sequence[Pixels],
    mpp: str = "|MPP = 0.5",
    tile: int = 256,
    compression: str | int = "jpeg",
) -> Path:
    """As an Aperio scanner does: tiles, a thumbnail as the second page, label and macro image as the last ones.

    Args:
        compression: "jpeg", or Aperio's own JPEG 2000: 33005 of RGB, 33003 of YCbCr, as which `levels` is then taken.
    """
    height, width = levels[0].shape[:2]
    options: dict[str, Any] = {"compressionargs": {"level": 90}} if compression == "jpeg" else {}
    with tifffile.TiffWriter(path) as tiff:

        def extra(name: str, grey: int, size: tuple[int, int], kind: int) -> None:
            words = f"Aperio Image Library v11.2.1\r\n{name} {size[1]}x{size[0]}"
            picture = np.full((*size, 3), grey, np.uint8)
            tiff.write(
                picture,
                photometric="rgb",
                rowsperstrip=16,
                subfiletype=kind,
                description=words,
                metadata=None,
            )

        for i, level in enumerate(levels):
            size = f" -> {level.shape[1]}x{level.shape[0]}" if i else ""
            words = f"Aperio Image Library v11.2.1\r\n{width}x{height} [0,0 {width}x{height}] ({tile}x{tile}){size} JPEG/RGB Q=90"
            tiff.write(
                level,
                tile=(tile, tile),
                compression=compression,
                photometric="rgb",
                description=f"{words}|AppMag = 20{mpp}",
                metadata=None,
                **options,
            )
            if i == 0:
                extra("thumbnail", 240, (96, 128), 0)
        extra("label", 200, (60, 80), 1)
        extra("macro", 180, (60, 180), 9)
    return path


def write_ome(
    path: Path, levels: Sequence[Pixels], compression: str | None = "jpeg", tile: int = 128, **sizes: Any
) -> Path:
    """As OME-TIFF, the smaller levels as SubIFDs."""
    options: dict[str, Any] = {"tile": (tile, tile), "compression": compression, "photometric": "rgb"}
    if compression == "jpeg":
        options["compressionargs"] = {"level": 90}
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(levels[0], subifds=len(levels) - 1, metadata={"axes": "YXS", **sizes}, **options)
        for level in levels[1:]:
            tiff.write(level, subfiletype=1, **options)
    return path


def tile_place(path: Path, index: int, level: int = 0) -> tuple[int, int]:
    """Offset and length of a tile's data."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.series[0].levels[level].pages[0]
        return page.dataoffsets[index], page.databytecounts[index]


def spoil(path: Path, index: int, how: str) -> None:
    """Destroy the data of a tile: "zeros", "noise", "marker", "empty" (no length) or "cut" (the file ends in it)."""
    offset, length = tile_place(path, index)
    with tifffile.TiffFile(path) as tiff:
        counts = tiff.series[0].levels[0].pages[0].tags["TileByteCounts"]
        count_at, width = counts.valueoffset, {3: 2, 4: 4, 16: 8}[int(counts.dtype)]
    if how == "cut":
        os.truncate(path, offset + length // 2)
        return
    with path.open("r+b") as file:
        if how == "empty":
            file.seek(count_at + width * index)
            file.write(bytes(width))
            return
        size = min(600, length // 2)
        content = {
            "zeros": bytes(size),
            "noise": np.random.default_rng(1).bytes(size),
            "marker": b"\xff\xd9" * (size // 2),
        }[how]
        file.seek(offset + length // 3)
        file.write(content)


def edit_tag(path: Path, name: str, value: Any, index: int | None = None) -> None:
    """Give a tag of the first page another value, or another one in one place of its values."""
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tag = tiff.pages[0].tags[name]
        if index is not None:
            value = (*tag.value[:index], value, *tag.value[index + 1 :])
        tag.overwrite(value)
