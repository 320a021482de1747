"""Training tiles: item i of a set is a function of (seed, i) alone, so a run stopped and resumed sees the same batches.

Every tile has one stated scale. A source gives its files' micrometres per pixel, or the files state it (OME-TIFF); tiles are cut
from the images resampled to the run's `mpp`. Where a dataset is used as the paper uses it, whole images shrunk to the tile,
`fit` does that, and the scale of the tile follows from the scale of the source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch.utils.data import Dataset

from miudiff.config import LARGEST_TILE, Scale, Strict
from miudiff.data.layouts import Stain, open_dataset
from miudiff.data.memory import Memory, Scaled
from miudiff.data.patterns import matching, without
from miudiff.data.splits import Part, Split, official_split, paper_split
from miudiff.errors import DataError
from miudiff.images import (
    MAX_PIXELS,
    Pixels,
    read_image,
    read_scale,
    resize,
    same_scale,
    to_tensor,
)
from miudiff.noise import NoiseKey


class SourceConfig(Strict):
    """Images of one kind: a folder and a pattern in it, or a region of the twin set (`twin:train`)."""

    files: str = Field(
        description="Pattern below `data.root`, as in 'trainB/*.jpg', or 'twin:train' / 'twin:test'."
    )
    marker: str | None = Field(None, description="The marker's name, for a model of several.")
    mpp: Scale | None = Field(
        None, description="Micrometres per pixel of the files, where they do not state it."
    )
    split: Literal["official", "paper"] | None = Field(
        None,
        description="`files` is a published dataset (BCI, MIST, CUT): take a part of its official or of the paper's split.",
    )
    part: Part = Field("train", description="Which part of the split.")
    split_seed: int = Field(0, description="Seed of the paper's split.")
    exclude: tuple[str, ...] = Field((), description="Patterns of file names to leave out.")
    weight: float = Field(
        1.0, gt=0, le=10**9, description="How often a tile is drawn from here, relative to the other sources."
    )


ENDLESS = 2**62  # the length of a set: items are drawn without end; the loop counts steps


class DataConfig(Strict):
    """What to train on."""

    root: Path = Field(Path("."), description="The folder that the sources' patterns start from.")
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    size: int = Field(256, ge=8, le=LARGEST_TILE, description="Side of a tile in pixels.")
    mpp: Scale | None = Field(
        None,
        description="Micrometres per pixel of a tile; needed unless `fit` is on, where it is what the shrunk images must have.",
    )
    fit: bool = Field(
        False, description="Shrink each whole image to the tile, as the paper does, instead of cutting tiles."
    )
    native: bool = Field(
        False,
        description="Take pixels as they are: for images that are all of one scale, which nobody states. In place of `mpp`.",
    )
    scale_jitter: float = Field(
        0.0, ge=0, lt=0.5, description="Tiles are drawn at a scale up to this fraction off."
    )
    dihedral: bool = Field(True, description="Flip and turn tiles: histology has no up.")


def open_split(root: Path, source: SourceConfig, warn: Callable[[str], None]) -> Split:
    """The split that `source` names of the dataset below `root`."""
    dataset = open_dataset(root)
    split = official_split(dataset) if source.split == "official" else paper_split(dataset, source.split_seed)
    for warning in split.warnings:
        warn(f"{root}: {warning}")
    return split


def _split_files(root: Path, source: SourceConfig, stain: Stain, warn: Callable[[str], None]) -> list[Path]:
    fields = [
        f
        for f in open_split(root, source, warn).fields(source.part, stain)
        if source.marker is None or f.marker in (None, source.marker)
    ]
    if not fields:
        raise DataError(
            f"{root}: the part '{source.part}' of its {source.split} split holds no {stain} images"
        )
    return [field.path for field in fields]


@dataclass(frozen=True)
class TileImage:
    """An image to cut tiles from; `mpp` is None only where whole images are fitted and the source states no scale."""

    path: Path
    mpp: float | None
    marker: int
    weight: float


def find_images(
    config: DataConfig,
    markers: Sequence[str],
    warn: Callable[[str], None] = lambda line: None,
    stain: Stain = "IHC",
    section: str = "data",
) -> list[TileImage]:
    """The images of every source; what a reader of scores must know of a split goes to `warn`.

    Args:
        stain: Which images of a published dataset or of the twin set.
        section: The key of the run that `config` stands under, for messages.

    Raises:
        DataError: A pattern that finds nothing, a marker that the model does not have, or a file with no stated scale.
    """
    if config.native and (config.mpp is not None or config.fit):
        raise DataError(
            f"{section}.native: beside {section}.{'fit' if config.fit else 'mpp'}, expected one of the two"
        )
    unscaled = config.fit or config.native
    found: list[TileImage] = []
    for source in config.sources:
        if markers and source.marker not in markers:
            raise DataError(
                f"{section}.sources '{source.files}': marker {source.marker!r}, expected one of {', '.join(markers)}"
            )
        index = markers.index(source.marker) if markers and source.marker else 0
        paths = _source_files(config.root, source, stain, section, warn)
        for path in paths:
            mpp = source.mpp if source.mpp is not None else read_scale(path)
            if mpp is None and not unscaled:
                raise DataError(
                    f"{path}: states no micrometres per pixel; give {section}.sources 'mpp' for '{source.files}'"
                )
            found.append(TileImage(path, mpp, index, source.weight / len(paths)))
    if config.mpp is None and not unscaled:
        raise DataError(
            f"{section}.mpp: missing; state the micrometres per pixel of a tile, or shrink whole images with {section}.fit=true"
        )
    if config.native and (mixed := _two_scales(found)):
        raise DataError(f"{section}.native: {mixed}; give {section}.mpp in its place")
    if config.fit:
        _check_fitted(config, found, section)
    return found


def _check_fitted(config: DataConfig, images: Sequence[TileImage], section: str) -> None:
    """Refuse whole images that are shrunk to several scales, as far as their scales are stated; one of each folder is looked at.

    Raises:
        DataError: They differ from `config.mpp`, or from each other, by more than 2 %.
    """
    first = {image.path.parent: image for image in reversed(images)}
    scales = {
        image.path: image.mpp * math.sqrt(math.prod(read_image(image.path).shape[:2])) / config.size
        for image in first.values()
        if image.mpp is not None
    }
    for path, scale in scales.items():
        if config.mpp is not None and not same_scale(scale, config.mpp):
            raise DataError(
                f"{section}.mpp: found {config.mpp:g}, but {path} shrunk to {config.size} pixels has {scale:.4g} um/px; leave it out, or state that"
            )
    if scales and max(scales.values()) > 1.02 * min(scales.values()):
        low, high = min(scales, key=lambda path: scales[path]), max(scales, key=lambda path: scales[path])
        raise DataError(
            f"{section}.fit: {high} shrunk to {config.size} pixels has {scales[high]:.4g} um/px, {low} {scales[low]:.4g}; expected one scale: take sources of one, or cut tiles at a stated {section}.mpp"
        )


def _two_scales(images: Sequence[TileImage]) -> str | None:
    """Two images of scales more than 2 % apart, in words; None if all have one scale, or state none."""
    first = next((image for image in images if image.mpp is not None), None)
    for image in images:
        if first and first.mpp and image.mpp and not same_scale(image.mpp, first.mpp):
            return f"{first.path} has {first.mpp:g} um/px and {image.path} {image.mpp:g}"
    return None


def _source_files(
    root: Path, source: SourceConfig, stain: Stain, section: str, warn: Callable[[str], None]
) -> list[Path]:
    if source.split is not None:
        return _split_files(root / source.files, source, stain, warn)
    if source.files.startswith("twin:"):
        from miudiff.data.twin import twin_region_file

        return [twin_region_file(source.files.removeprefix("twin:"), stain)]
    if Path(source.files).is_absolute():
        raise DataError(
            f"{section}.sources '{source.files}': an absolute path; put its folder into {section}.root and the rest here"
        )
    paths = matching(root, source.files, f"{section}.sources")
    paths = without(paths, source.exclude, f"{section}.sources exclude")
    if not paths:
        raise DataError(f"{root / source.files}: finds no images; check {section}.root and the pattern")
    return paths


@dataclass(frozen=True)
class Draw:
    """What is random in a tile; all in [0, 1)."""

    which: float
    top: float
    left: float
    scale: float
    turn: float

    @classmethod
    def of(cls, seed: int, index: int, name: str = "tiles") -> Draw:
        """The draw of item `index`; another `name` draws independently of it."""
        return cls(*NoiseKey(seed, name).uniform("augment", index, 5).tolist())

    def image(self, cumulative: NDArray[np.float64]) -> int:
        """The image that is meant, by the cumulative shares of all."""
        return min(int(np.searchsorted(cumulative, self.which, side="right")), len(cumulative) - 1)

    def tile(self, pixels: Pixels, config: DataConfig) -> torch.Tensor:
        """The tile of an image at the run's scale, float32 [3, size, size] in [-1, 1]."""
        jitter = (1 + config.scale_jitter) ** (2 * self.scale - 1)
        tile = _cut(pixels, config.size, self.top, self.left, jitter)
        return to_tensor(dihedral(tile, int(self.turn * 8)) if config.dihedral else tile)[0]


def cumulative_shares(images: Sequence[TileImage]) -> NDArray[np.float64]:
    """The shares of the images' weights, summed up."""
    weights = np.array([image.weight for image in images])
    return np.cumsum(weights / weights.sum())


class Tiles(Dataset[dict[str, object]]):
    """Item i is {"ihc": float32 [3, size, size] in [-1, 1], "key": i, "marker": int, "name": str}.

    Args:
        images: From `find_images`.
        seed: With i it decides the image, the place, the scale and the turn.
        stain: The tile's name in an item; tiles of H&E are drawn independently of those of IHC.
    """

    def __init__(
        self,
        images: Sequence[TileImage],
        config: DataConfig,
        seed: int,
        stain: Literal["he", "ihc"] = "ihc",
    ) -> None:
        self.images, self.config, self.seed, self.stain = list(images), config, seed, stain
        self._draws = "tiles" if stain == "ihc" else "he tiles"
        self._cumulative = cumulative_shares(self.images)

    def __len__(self) -> int:
        return ENDLESS

    def read_ahead(self, threads: int) -> None:
        """Read the images, as far as memory allows."""
        read_ahead(self.images, self.config, threads)

    def __getitem__(self, index: int) -> dict[str, object]:
        image, tile = self.drawn(index)
        return {self.stain: tile, "key": index, "marker": image.marker, "name": image.path.name}

    def drawn(self, index: int) -> tuple[TileImage, torch.Tensor]:
        """The image that item `index` is cut from, and the tile."""
        draw = Draw.of(self.seed, index, self._draws)
        image = self.images[draw.image(self._cumulative)]
        return image, draw.tile(at_scale(image, self.config).pixels, self.config)


_Named = tuple[Path, float | None, DataConfig]


def _resampled(what: _Named) -> Scaled:
    path, mpp, config = what
    pixels = read_image(path)
    size = (pixels.shape[0], pixels.shape[1])
    if config.fit:
        return Scaled(resize(pixels, config.size, config.size), size)
    factor = 1.0
    if not config.native:
        assert mpp is not None
        assert config.mpp is not None
        factor = mpp / config.mpp
    height, width = round(pixels.shape[0] * factor), round(pixels.shape[1] * factor)
    found = f"{path}: {width} x {height} pixels{f' at {config.mpp:g} um/px' if config.mpp else ''}"
    need = math.ceil(config.size * (1 + config.scale_jitter))
    if min(height, width) < need:
        raise DataError(f"{found}, expected at least {need} on each side")
    if height * width > MAX_PIXELS:
        raise DataError(f"{found}, expected at most {MAX_PIXELS:,}; cut it first, or check the stated scales")
    return Scaled(resize(pixels, height, width), size)


_MEMORY = Memory(_resampled)


def at_scale(image: TileImage, config: DataConfig) -> Scaled:
    """The image at the run's scale, or shrunk to the tile with `fit`; read once, where memory allows."""
    return _MEMORY.get((image.path, image.mpp, config))


def read_ahead(images: Iterable[TileImage], config: DataConfig, threads: int) -> None:
    """Read images, as far as memory allows, before their turn."""
    _MEMORY.fill([(image.path, image.mpp, config) for image in images], threads)


def _cut(pixels: Pixels, size: int, top: float, left: float, jitter: float) -> Pixels:
    side = min(round(size * jitter), *pixels.shape[:2])
    y, x = int(top * (pixels.shape[0] - side + 1)), int(left * (pixels.shape[1] - side + 1))
    tile = pixels[y : y + side, x : x + side]
    if side != size:
        tile = np.asarray(Image.fromarray(tile).resize((size, size), Image.Resampling.BICUBIC))
    return tile


def dihedral(pixels: Pixels, which: int) -> Pixels:
    """One of the 8 flips and quarter turns of a square image, uint8 [H, W, 3]."""
    turned = np.rot90(pixels, which % 4)
    return np.ascontiguousarray(turned[:, ::-1] if which >= 4 else turned)


def collate(items: Sequence[dict[str, object]]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Batch tensors and the names of what is in them."""
    stains = [stain for stain in ("he", "ihc") if stain in items[0]]
    tensors: dict[str, torch.Tensor] = {
        stain: torch.stack([i[stain] for i in items])  # type: ignore[misc]
        for stain in stains
    }
    for name in ("key", "marker"):
        tensors[name] = torch.tensor([i[name] for i in items])
    return tensors, [str(item["name"]) for item in items]
