"""Tiles of H&E and IHC together: drawn independently of each other, or the same place of a pair.

A pair is two images of one name, or what a published dataset pairs. Its two images have one size and one scale, so one crop, one
scale jitter and one turn serve both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch.utils.data import Dataset

from miudiff.data.layouts import name_of
from miudiff.data.tiles import (
    ENDLESS,
    DataConfig,
    Draw,
    SourceConfig,
    TileImage,
    Tiles,
    at_scale,
    cumulative_shares,
    find_images,
    open_split,
    read_ahead,
)
from miudiff.errors import DataError
from miudiff.images import same_scale

Warn = Callable[[str], None]


@dataclass(frozen=True)
class TilePair:
    """Two images of the same place."""

    he: TileImage
    ihc: TileImage


def names_both_stains(source: SourceConfig) -> bool:
    """Whether a source holds H&E and IHC and says which is which: a published split, or the twin set."""
    return source.split is not None or source.files.startswith("twin:")


def find_pairs(
    config: DataConfig, he: DataConfig | None, markers: Sequence[str], warn: Warn = lambda line: None
) -> list[TilePair]:
    """The pairs of every source.

    Args:
        config: The IHC images, or sources that name both stains.
        he: The H&E images: source k holds the partners of source k of `config`.

    Raises:
        DataError: An image without a partner, two of one name, or a scale that only one of two partners has.
    """
    he_sources = config.sources if he is None else he.sources
    if len(he_sources) != len(config.sources):
        raise DataError(
            f"he.sources: {len(he_sources)} of them, expected {len(config.sources)}, the partners of data.sources one by one"
        )
    found: list[TilePair] = []
    for source, he_source in zip(config.sources, he_sources, strict=True):
        ihc_images = find_images(_only(config, source), markers, warn)
        section = "data" if he is None else "he"
        he_images = find_images(_only(he or config, he_source), (), stain="HE", section=section)
        if he is None and source.split is not None:
            partners = _published(config.root / source.files, source)
            pairs = _by_path(he_images, ihc_images, partners)
            if left := len(ihc_images) - len(pairs):
                warn(f"{config.root / source.files}: {left} IHC images have no partner and are left out")
        else:
            pairs = _by_name(he_images, ihc_images, (he or config).root / he_source.files)
        weight = source.weight / max(1, len(pairs))
        found += [_one_scale(replace(ihc, weight=weight), partner, section) for partner, ihc in pairs]
    if not found:
        raise DataError(f"{config.root}: no pairs, expected H&E and IHC images of the same names")
    return found


def _only(config: DataConfig, source: SourceConfig) -> DataConfig:
    return config.model_copy(update={"sources": (source,)})


def _published(root: Path, source: SourceConfig) -> dict[Path, Path]:
    """The H&E image of each IHC image that a published split pairs."""
    dataset = open_split(root, source, lambda line: None).dataset
    return {pair.ihc.path: pair.he.path for pair in dataset.pairs(source.part)}


def _by_path(
    he_images: Sequence[TileImage], ihc_images: Sequence[TileImage], partners: dict[Path, Path]
) -> list[tuple[TileImage, TileImage]]:
    he_of = {image.path: image for image in he_images}
    return [(he_of[partners[ihc.path]], ihc) for ihc in ihc_images if ihc.path in partners]


def _by_name(
    he_images: Sequence[TileImage], ihc_images: Sequence[TileImage], where: Path
) -> list[tuple[TileImage, TileImage]]:
    he_of, ihc_of = _named(he_images), _named(ihc_images)
    alone = [ihc for name, ihc in ihc_of.items() if name not in he_of]
    if alone:
        more = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
        raise DataError(f"{alone[0].path}: no partner, expected an H&E image of its name in {where}{more}")
    return [(he_of[name], ihc) for name, ihc in ihc_of.items()]


def _named(images: Sequence[TileImage]) -> dict[str, TileImage]:
    found: dict[str, TileImage] = {}
    for image in images:
        first = found.setdefault(name_of(image.path), image)
        if first is not image:
            raise DataError(f"{image.path}: {first.path} has the same name, so their partners are not known")
    return found


def _one_scale(ihc: TileImage, he: TileImage, section: str) -> TilePair:
    """The pair, if both images have one scale or neither has any."""
    for here, there, key in ((he, ihc, f"{section}.sources"), (ihc, he, "data.sources")):
        if here.mpp is None and there.mpp is not None:
            raise DataError(
                f"{here.path}: states no micrometres per pixel, but its partner {there.path.name} has {there.mpp:g}; give {key} 'mpp'"
            )
    if he.mpp is not None and ihc.mpp is not None and not same_scale(he.mpp, ihc.mpp, 0.01):
        raise DataError(
            f"{he.path}: {he.mpp:g} um/px, but its partner {ihc.path} has {ihc.mpp:g}; expected one scale (mpp of {section}.sources and data.sources)"
        )
    return TilePair(replace(he, mpp=ihc.mpp), ihc)


class PairedTiles(Dataset[dict[str, object]]):
    """Item i is {"he", "ihc": float32 [3, size, size] in [-1, 1] of one place, "key": i, "marker": int, "name": str}."""

    def __init__(self, pairs: Sequence[TilePair], config: DataConfig, seed: int) -> None:
        self.pairs, self.config, self.seed = list(pairs), config, seed
        self._cumulative = cumulative_shares([pair.ihc for pair in self.pairs])

    def __len__(self) -> int:
        return ENDLESS

    def read_ahead(self, threads: int) -> None:
        """Read the images, as far as memory allows."""
        read_ahead([image for pair in self.pairs for image in (pair.he, pair.ihc)], self.config, threads)

    def __getitem__(self, index: int) -> dict[str, object]:
        draw = Draw.of(self.seed, index)
        pair = self.pairs[draw.image(self._cumulative)]
        he, ihc = at_scale(pair.he, self.config), at_scale(pair.ihc, self.config)
        if he.file_size != ihc.file_size:
            sizes = " and ".join(f"{width} x {height}" for height, width in (he.file_size, ihc.file_size))
            raise DataError(
                f"{pair.he.path} and {pair.ihc.path}: {sizes} pixels, expected one size, as of images of one place"
            )
        return {
            "he": draw.tile(he.pixels, self.config),
            "ihc": draw.tile(ihc.pixels, self.config),
            "key": index,
            "marker": pair.ihc.marker,
            "name": pair.ihc.path.name,
        }


class UnpairedTiles(Dataset[dict[str, object]]):
    """Item i is item i of `ihc` with the "he" of item i of `he`; neither knows of the other."""

    def __init__(self, he: Tiles, ihc: Tiles) -> None:
        self.he, self.ihc = he, ihc

    def __len__(self) -> int:
        return ENDLESS

    def read_ahead(self, threads: int) -> None:
        """Read the images of both, as far as memory allows."""
        self.he.read_ahead(threads)
        self.ihc.read_ahead(threads)

    def __getitem__(self, index: int) -> dict[str, object]:
        he, ihc = self.he[index], self.ihc[index]
        return {**ihc, "he": he["he"], "name": f"{he['name']}, {ihc['name']}"}
