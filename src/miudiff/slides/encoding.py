"""One tile as bytes, and back: JPEG or without loss, as they lie in a TIFF."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from miudiff.images import Pixels


@dataclass(frozen=True)
class Compression:
    """How a tile becomes bytes as they lie in a TIFF: JPEG without chroma subsampling, or deflated differences."""

    kind: Literal["jpeg", "lossless"] = "jpeg"
    quality: int = 90

    def __post_init__(self) -> None:
        if self.kind not in ("jpeg", "lossless") or not 1 <= self.quality <= 100:
            raise ValueError(f"{self}: kind is jpeg or lossless, quality is 1 to 100")

    def encode(self, pixels: Pixels) -> bytes:
        """The bytes of a tile, uint8 [tile, tile, 3]; one of a single colour, as glass may be, costs nothing the second time."""
        if pixels.shape != (len(pixels), len(pixels), 3) or pixels.dtype != np.uint8:
            raise ValueError(f"{pixels.dtype} {pixels.shape}, expected uint8 [tile, tile, 3]")
        if _is_one_colour(pixels):
            return _one_colour(self, len(pixels), *pixels[0, 0].tolist())
        return self._encode(pixels, thorough=False)

    def _encode(self, pixels: Pixels, thorough: bool) -> bytes:
        import imagecodecs

        if self.kind == "jpeg":
            return bytes(
                imagecodecs.jpeg8_encode(
                    pixels,
                    self.quality,
                    colorspace="RGB",
                    outcolorspace="YCBCR",
                    subsampling="444",  # the stain is in the chroma
                    optimize=thorough,
                )
            )
        # Differences along the rows are a quarter smaller than pixels, and the first level does them as well as the sixth.
        differences = imagecodecs.delta_encode(pixels, axis=1)
        return bytes(imagecodecs.deflate_encode(differences.tobytes(), 9 if thorough else 1))

    def decode(self, data: bytes) -> Pixels:
        """The pixels of a tile, uint8 [tile, tile, 3]."""
        import imagecodecs

        if self.kind == "jpeg":
            pixels: Pixels = imagecodecs.jpeg8_decode(data, colorspace="YCBCR", outcolorspace="RGB")
            return pixels
        flat = np.frombuffer(imagecodecs.deflate_decode(data), np.uint8)
        side = math.isqrt(flat.size // 3)
        differences: Pixels = flat.reshape(side, side, 3)
        return imagecodecs.delta_decode(differences, axis=1)


def _is_one_colour(pixels: Pixels) -> bool:
    flat = pixels.reshape(-1)
    return bool((flat[3:] == flat[:-3]).all())


@lru_cache(maxsize=256)
def _one_colour(compression: Compression, side: int, *colour: int) -> bytes:
    # Once for each colour, so the smallest form is worth its time: half the bytes of a JPEG.
    return compression._encode(np.full((side, side, 3), colour, np.uint8), thorough=True)


def fill(pixels: Pixels, side: int) -> Pixels:
    """A whole tile: what lies beyond the image repeats its last pixels, so that no edge rings into it."""
    height, width = pixels.shape[:2]
    if (height, width) == (side, side):
        return np.ascontiguousarray(pixels)
    return np.pad(pixels, ((0, side - height), (0, side - width), (0, 0)), mode="edge")
