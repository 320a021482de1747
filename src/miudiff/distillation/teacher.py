"""The teacher of a student: its results on training tiles, made once and kept, and the tiles that a student learns from.

A folder `teacher` in the run's holds result k of tile k as `000000.png` and so on, and `teacher.json`, which says what made them.
Tile k is of marker k modulo the number of markers; its noise is that of the key k, which the student is given as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from miudiff.checkpoints import read_json, write_json
from miudiff.data.tiles import ENDLESS, DataConfig, TileImage, Tiles, at_scale
from miudiff.device import Placement
from miudiff.errors import ConfigError
from miudiff.images import read_image, to_tensor, to_uint8, write_image
from miudiff.methods.miu_diff import MIUDiff, MIUDiffConfig
from miudiff.methods.model import Model
from miudiff.noise import NoiseKey
from miudiff.normalisation import Normaliser, dyes_of
from miudiff.progress import Progress

RECORD = "teacher.json"


class HETiles(Dataset[dict[str, object]]):
    """Item i is {"he": float32 [3, size, size] in [-1, 1] in the dyes of the model's H&E, "key": i, "marker": int, "name": str}."""

    def __init__(self, images: Sequence[TileImage], config: DataConfig, seed: int, model: Model) -> None:
        self.tiles = Tiles(images, config, seed, "he")
        self.markers = model.card.markers
        palettes = [model.palette(marker) for marker in self.markers]
        self._target = palettes[0].dyes if palettes and palettes[0] else None
        self._normalisers: dict[Path, Normaliser] = {}

    def __len__(self) -> int:
        return ENDLESS

    def read_ahead(self, threads: int) -> None:
        """Read the images, as far as memory allows."""
        self.tiles.read_ahead(threads)

    def __getitem__(self, index: int) -> dict[str, object]:
        image, he = self.tiles.drawn(index)
        if self._target is not None:
            he = to_tensor(self._normaliser(image).he(to_uint8(he[None])[0]))[0]
        marker = index % max(1, len(self.markers))
        return {"he": he, "key": index, "marker": marker, "name": image.path.name}

    def _normaliser(self, image: TileImage) -> Normaliser:
        assert self._target is not None
        if image.path not in self._normalisers:
            pixels = at_scale(image, self.tiles.config).pixels
            self._normalisers[image.path] = Normaliser(dyes_of([pixels], self._target), self._target)
        return self._normalisers[image.path]


class StudentTiles(Dataset[dict[str, object]]):
    """The first `taught` items are the tiles of `results`, again and again, each with its teacher's result as "ihc"; the others are fresh."""

    def __init__(self, tiles: HETiles, results: Sequence[Path], taught: int) -> None:
        self.tiles, self.results, self.taught = tiles, list(results), taught

    def __len__(self) -> int:
        return ENDLESS

    def read_ahead(self, threads: int) -> None:
        """Read the images, as far as memory allows."""
        self.tiles.read_ahead(threads)

    def __getitem__(self, index: int) -> dict[str, object]:
        if index >= self.taught:
            return self.tiles[len(self.results) + index - self.taught]
        which = index % len(self.results)
        return {**self.tiles[which], "ihc": to_tensor(read_image(self.results[which]))[0]}


@dataclass(frozen=True)
class Teacher:
    """MIU-Diff with its settings, which a student learns from."""

    model: Model
    config: MIUDiffConfig
    placement: Placement

    def translate(self, he: Tensor, marker: int, keys: Sequence[NoiseKey]) -> Tensor:
        """The teacher's results for H&E of one marker, both [B, 3, H, W] in [-1, 1]."""
        model = self.model
        name = model.card.markers[marker] if model.card.markers else None
        method = MIUDiff(
            model.for_marker(name), model.estimator, self.config, self.placement, model.palette(name)
        )
        return method.translate(he.to(self.placement.device), keys)

    def teach(
        self,
        tiles: HETiles,
        count: int,
        folder: Path,
        seed: int,
        share: tuple[int, int] = (0, 1),
        batch: int = 8,
        say: Callable[[str], None] = print,
    ) -> list[Path]:
        """The files of the teacher's results for the first `count` tiles; those that are not there are made.

        Args:
            seed: Of the noise, with the tile's number.
            share: (rank, processes): which process makes which.

        Raises:
            ConfigError: The folder holds results that were made otherwise.
        """
        rank, world = share
        files = [folder / f"{k:06d}.png" for k in range(count)]
        self._check(folder, seed, tiles.tiles.config)
        missing = [k for k, file in enumerate(files) if not file.exists()]
        markers = max(1, len(tiles.markers))
        jobs = [
            alike[i : i + batch]
            for marker in range(markers)
            if (alike := [k for k in missing if k % markers == marker])
            for i in range(0, len(alike), batch)
        ]
        progress = Progress("tiles of the teacher", say)
        for done, job in enumerate(jobs[rank::world]):
            progress(done * batch, len(missing) // world)
            he = torch.stack([tiles[k]["he"] for k in job])  # type: ignore[misc]
            ihc = self.translate(he, job[0] % markers, [key_of(seed, k) for k in job])
            for k, pixels in zip(job, to_uint8(ihc), strict=True):
                write_image(files[k], pixels)
        return files

    def _check(self, folder: Path, seed: int, data: DataConfig) -> None:
        made: dict[str, Any] = {
            "teacher": self.model.identity,
            "settings": self.config.model_dump(mode="json"),
            "data": data.model_dump(mode="json", exclude={"root"}),
            "seed": seed,
        }
        path = folder / RECORD
        if not path.exists():
            write_json(path, made)
        before = read_json(path)
        if changed := [key for key in made if before.get(key) != made[key]]:
            raise ConfigError(
                f"{path}: the teacher's results there were made with another '{changed[0]}'; give another out=, or move {folder} away"
            )


def key_of(seed: int, item: int) -> NoiseKey:
    """The noise of a training tile, as `training.learner.sample_noise` draws it."""
    return NoiseKey(seed, f"sample{item}")
