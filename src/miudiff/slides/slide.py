"""What every open slide can do, whichever library reads it: its size, levels and scale, and the pixels of any region.

A region is either read right or refused: nothing is painted over. Each reader fills in `_read`; what is common to them (the
bounds of a region, a file that changes under the reader, the words of an error) is here.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from miudiff.errors import SlideError
from miudiff.formats import Unreadable, one_line
from miudiff.formats.scale import is_optical
from miudiff.images import Pixels, not_square, same_scale

__all__ = ["Level", "RegionError", "Scale", "Slide", "Unreadable", "isotropic", "levels_of", "one_line"]


@dataclass(frozen=True)
class Level:
    """One level of a slide's pyramid: its size in pixels, and how many pixels of level 0 one of its pixels spans."""

    width: int
    height: int
    downsample: float


@dataclass(frozen=True)
class Scale:
    """Micrometres per pixel and the property or tag that states them; None and "" if none does."""

    mpp: float | None = None
    source: str = ""


class RegionError(SlideError):
    """A region of a slide cannot be read; others may be."""


class Slide(abc.ABC):
    """An open slide; `read` may be called from several threads, and gives the same pixels every time.

    Attributes:
        path: The file.
        format: Who made it, in a word: OpenSlide's vendor, "ome-tiff", "tiff" or "image".
        width: Pixels of level 0.
        height: Pixels of level 0.
        levels: The pyramid, finest first; there is always a level 0.
        mpp: Micrometres per pixel of level 0, None if the file does not state them.
        mpp_source: The property or tag that states them, "" if none does.
        objective: The objective's power if the file states it. It is told, never taken for a scale.
        fingerprint: A word for the content of all files that make up the slide, "" if the reader knows none.
    """

    def __init__(
        self, path: Path, kind: str, levels: Sequence[Level], scale: Scale, objective: str = ""
    ) -> None:
        self.path = path
        self.format = kind
        self.levels = tuple(levels)
        self.width, self.height = self.levels[0].width, self.levels[0].height
        self.mpp, self.mpp_source = scale.mpp, scale.source
        self.objective = objective
        self.fingerprint = ""
        self._stamp = _stamp(path)

    def read(self, x: int, y: int, width: int, height: int, level: int = 0) -> Pixels:
        """The pixels of a region, uint8 [height, width, 3].

        Args:
            x: Its left edge in pixels of `level`.
            y: Its upper edge in pixels of `level`.
            width: At least 1.
            height: At least 1.
            level: Which level of the pyramid.

        Raises:
            RegionError: It cannot be read, in whole or in part. Other regions still can.
            SlideError: The file vanished or changed.
            ValueError: It is not inside the level.
        """
        if not 0 <= level < len(self.levels):
            raise ValueError(f"level {level}, expected 0 to {len(self.levels) - 1}")
        size = self.levels[level]
        inside = 0 <= x < x + width <= size.width and 0 <= y < y + height <= size.height
        if not inside:
            raise ValueError(
                f"region {x}, {y}, {width} x {height} is not inside level {level}, {size.width} x {size.height}"
            )
        failure: Exception | None = None
        try:
            pixels = self._read(x, y, width, height, level)
        except (Unreadable, OSError) as error:
            failure = error
        self._check_unchanged()  # after reading, so that it also covers a change during it
        if failure is not None:
            d = size.downsample
            where = f"{round(x * d)}, {round(y * d)}, {round(width * d)} x {round(height * d)}"
            raise RegionError(
                f"{self.path}: the region {where} of level 0 cannot be read ({one_line(failure)}); "
                "copy the slide again, or leave the region out with --mark-unreadable"
            ) from failure
        return pixels

    @abc.abstractmethod
    def _read(self, x: int, y: int, width: int, height: int, level: int) -> Pixels:
        """`read` of a region that is inside the level. Raises `Unreadable` or OSError."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_unchanged(self) -> None:
        try:
            now = _stamp(self.path)
        except OSError as error:
            raise SlideError(
                f"{self.path}: vanished while it was open ({error.strerror}); put it back and run again"
            ) from error
        if now != self._stamp:
            raise SlideError(
                f"{self.path}: changed while it was open (now {now[0]:,} bytes, {self._stamp[0]:,} before); "
                "leave it alone and run again"
            )


def levels_of(sizes: Sequence[tuple[int, int]]) -> list[Level]:
    """Levels of these (width, height), finest first.

    Sizes are rounded to whole pixels, so a level of 8228 rows below one of 32914 was halved twice and is 4 times as coarse, not
    4.0002 times: the factor is whole wherever the sizes allow it.
    """
    width, height = sizes[0]
    levels = []
    for across, down in sizes:
        mean = (width / across + height / down) / 2
        whole = max(1, round(mean))
        fits = abs(width / whole - across) <= 1 and abs(height / whole - down) <= 1
        levels.append(Level(across, down, float(whole) if fits else mean))
    return levels


def isotropic(path: Path, across: float, down: float, source: str) -> Scale:
    """The one scale of micrometres per pixel `across` and `down`, none where they are no optical scale.

    Raises:
        SlideError: They differ.
    """
    if not (is_optical(across) and is_optical(down)):
        return Scale()
    if not same_scale(across, down):
        raise SlideError(f"{path}: {not_square(across, down, source)}")
    return Scale((across + down) / 2, source)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
