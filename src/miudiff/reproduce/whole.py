"""A case that nothing trains on: every pair of the dataset tests a model that is there already, at that model's scale.

A field is resampled as a whole and then cut: one larger than the budget's side makes several test tiles, NAME_row_column by a tile's
first pixel. Where the budget takes fewer tiles than there are, they are spread over the files and over each file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miudiff.data.layouts import Pair
from miudiff.errors import DataError
from miudiff.images import Pixels, write_image
from miudiff.reproduce.prepare import STAINS, Settings, open_source, unique_names
from miudiff.reproduce.scale import MULTIPLE, CaseScale
from miudiff.reproduce.sources import Source

Corner = tuple[int, int]  # row and column of a tile's first pixel


def prepare_whole(source: Source, images: Path, settings: Settings) -> dict[str, Any]:
    """A dataset of the user's, into `images`/test/{HE,IHC}. Returns what `case.json` says of it.

    Raises:
        DataError: Several markers, no pairs, an unreadable image, a pair of two sizes, or several scales.
    """
    dataset, root = open_source(source, settings)
    pairs = dataset.pairs()
    if not pairs:
        raise DataError(f"{root}: no H&E/IHC pairs to measure on; see `miudiff data check`")
    scale = CaseScale(source, dataset.layout, settings.side, settings.scale)
    taken = [pairs[i] for i in spread(len(pairs), settings.most)]
    names = unique_names([pair.he for pair in taken], root)
    side = settings.side // MULTIPLE * MULTIPLE
    test: list[str] = []
    cut = False
    for pair, most in zip(taken, _quotas(taken, scale, side, settings.most), strict=True):
        he, ihc = both = scale.resampled(pair.he.path), scale.resampled(pair.ihc.path)
        if he.shape != ihc.shape:
            raise DataError(
                f"{pair.ihc.path}: {ihc.shape[1]} x {ihc.shape[0]} once resampled, but {pair.he.path} is {he.shape[1]} x {he.shape[0]}; a test pair has one size"
            )
        height, width, corners = tiles(he, side)
        cut = cut or (height, width) != he.shape[:2]
        for row, column in (corners[i] for i in spread(len(corners), most)):
            test.append(f"{names[pair.he.path]}_{row}_{column}")
            for stain, image in zip(STAINS, both, strict=True):
                tile = image[row : row + height, column : column + width]
                write_image(images / "test" / stain / f"{test[-1]}.png", tile)
    part = f"nothing is trained and every pair may test: {len(taken)} of {len(pairs)} pairs"
    of = f", cut into tiles of at most {side} pixels; what no whole tile covers is not tested" if cut else ""
    return {
        "marker": dataset.markers[0] if dataset.markers else None,
        "mpp": scale.mpp,
        "paired": False,
        "notes": [part + of, *scale.notes(), *dataset.notes],
        "train": [0, 0],
        "test": sorted(test),
    }


def tiles(image: Pixels, side: int) -> tuple[int, int, list[Corner]]:
    """(height, width, corners) of the tiles of an image: as large as `side` and multiples of 32 let them be, side by side."""
    height, width = (min(side, length // MULTIPLE * MULTIPLE) for length in image.shape[:2])
    rows = range(0, image.shape[0] - height + 1, height)
    columns = range(0, image.shape[1] - width + 1, width)
    return height, width, [(row, column) for row in rows for column in columns]


def spread(count: int, most: int | None) -> list[int]:
    """Which of `count` things are taken if it may be `most` of them: the middles of as many equal stretches."""
    if most is None or most >= count:
        return list(range(count))
    return [(2 * i + 1) * count // (2 * most) for i in range(most)]


def _quotas(taken: Sequence[Pair], scale: CaseScale, side: int, most: int | None) -> list[int | None]:
    """How many tiles each pair gives at most."""
    if most is None or most <= len(taken):
        return [None if most is None else 1] * len(taken)
    return list(share([len(tiles(scale.resampled(pair.he.path), side)[2]) for pair in taken], most))


def share(counts: Sequence[int], most: int) -> list[int]:
    """`most` things taken from piles of `counts` as evenly as may be, none more than its pile."""
    found = [0] * len(counts)
    left = most
    for place, i in enumerate(sorted(range(len(counts)), key=lambda i: counts[i])):
        found[i] = min(counts[i], left // (len(counts) - place))
        left -= found[i]
    return found
