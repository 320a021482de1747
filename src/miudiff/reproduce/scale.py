"""The scale of a case's images: shrunk to a side or resampled to a model's micrometres per pixel, and the same for all."""

from __future__ import annotations

from pathlib import Path

from miudiff.data.layouts import Layout
from miudiff.errors import DataError
from miudiff.images import MAX_PIXELS, Pixels, read_image, read_scale, resize, same_scale
from miudiff.reproduce.sources import Source

LEAST = 64  # two patches of the MI estimator, and VIF's windows
MULTIPLE = (
    32  # the paper's network halves an image five times, and ILVR and EGSDE compare what is 32 times coarser
)

# What the publications of these sets state for their 1024 x 1024 patches; for other sizes it would be a guess.
PUBLISHED_MPP: dict[Layout, float] = {"mist": 0.4661, "bci": 0.46}
PUBLISHED_SIDE = 1024


class CaseScale:
    """Resamples images and keeps their scale: all must have the same.

    Args:
        side: Where the scale is not known, or there is no `target`: the longer side that images are shrunk to.
        target: Micrometres per pixel of the prepared images.
    """

    def __init__(self, source: Source, layout: Layout, side: int, target: float | None = None) -> None:
        self.given, self.layout, self.side, self.target = source.mpp, layout, side, target
        self.mpp: float | None = None
        self._published = False
        self._natives: set[float] = set()
        self._factors: set[float] = set()
        self._first: Path | None = None

    def cut(self, path: Path) -> Pixels:
        """As `resampled`, but what is beyond a multiple of 32 is cut off at the right and below."""
        small = self.resampled(path)
        return small[: small.shape[0] // MULTIPLE * MULTIPLE, : small.shape[1] // MULTIPLE * MULTIPLE]

    def resampled(self, path: Path) -> Pixels:
        """The whole image, uint8 [h, w, 3].

        Raises:
            DataError: Too small or too large, or its scale then differs from the others'.
        """
        pixels = read_image(path)
        height, width = pixels.shape[:2]
        native = self._native(path, height, width)
        shrunk = f" once its longer side is {self.side}"
        if native is not None and self.target is not None:
            factor, meant, mend = native / self.target, f" at the model's {self.target:.3g} um/px", ""
            shrunk = ""
        else:
            factor, meant = min(1.0, self.side / max(height, width)), shrunk
            mend = ", or take a budget with a larger side"
        rows, columns = round(height * factor), round(width * factor)
        found = f"{path}: {width} x {height} pixels are {columns} x {rows}{meant}"
        if min(rows, columns) < LEAST:
            raise DataError(f"{found}, expected at least {LEAST} on each side; leave it out{mend}")
        if rows * columns > MAX_PIXELS:
            raise DataError(f"{found}, expected at most {MAX_PIXELS:,} pixels; cut it first")
        self._factors.add(round(factor, 3))
        if native is not None:
            self._natives.add(native)
        self._agree(path, native / factor if native is not None else None, shrunk)
        return resize(pixels, rows, columns)

    def _agree(self, path: Path, mpp: float | None, shrunk: str) -> None:
        """Refuse an image whose scale is not that of the first."""
        if self._first is None:
            self._first, self.mpp = path, mpp
        alike = self.mpp is mpp if mpp is None or self.mpp is None else same_scale(mpp, self.mpp)
        if not alike:
            raise DataError(
                f"{path}: {_told(mpp)}{shrunk}, but {self._first} has {_told(self.mpp)}; a case has one scale"
            )

    def notes(self) -> list[str]:
        """What a reader must know of the scale, a sentence each."""
        if self.mpp is None:
            told = [
                "Scale unknown: the files state no um/px and none was given; measures of cells are left out."
            ]
            if len(self._factors) > 1:
                told.append(
                    f"Images of several sizes were shrunk to {self.side} pixels, by {max(self._factors):g} to {min(self._factors):g}: their scales may differ."
                )
            return told
        told = []
        if self.target is not None:
            low, high = min(self._natives), max(self._natives)
            native = f"{low:.3g}" if same_scale(low, high) else f"{low:.3g} to {high:.3g}"
            said = ", as --mpp states," if self.given is not None else ""
            told = [f"Resampled from {native} um/px{said} to the model's {self.target:.3g}"]
        if self._published:
            told.append(
                f"{PUBLISHED_MPP[self.layout]:g} um/px before shrinking, as published for {self.layout.upper()}"
            )
        return told

    def _native(self, path: Path, height: int, width: int) -> float | None:
        if self.given is not None:
            return self.given
        stated = read_scale(path)
        if stated is not None:
            return stated
        if (height, width) == (PUBLISHED_SIDE, PUBLISHED_SIDE) and self.layout in PUBLISHED_MPP:
            self._published = True
            return PUBLISHED_MPP[self.layout]
        return None


def _told(mpp: float | None) -> str:
    return "no stated scale" if mpp is None else f"{mpp:.3g} um/px"
