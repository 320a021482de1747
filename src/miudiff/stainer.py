"""From H&E pixels to IHC pixels: load a model, give it an image of any size and scale, get one of the same size back.

stainer = VirtualStainer.load()
stainer.translate(Image.open("he.png"), mpp=0.5, seed=0).save("ihc.png")
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from miudiff.config import Strict, check_mpp
from miudiff.device import Placement, Precision, place, upload
from miudiff.errors import ConfigError, DataError
from miudiff.images import MAX_PIXELS, Pixels, resize
from miudiff.methods.batches import Batches, Keyed
from miudiff.methods.fusion import Fusion
from miudiff.methods.generator import GeneratorModel
from miudiff.methods.miu_diff import MIUDiff
from miudiff.methods.model import Model
from miudiff.methods.sdedit import Reverse
from miudiff.methods.student import StudentModel
from miudiff.methods.systems import (
    TRAINED,
    AnyModel,
    build,
    changed,
    configure,
    load_any,
    method_of,
    steps_of,
    student_of,
)
from miudiff.naming import SHIPPED
from miudiff.noise import NoiseKey
from miudiff.normalisation import HEStains, Normaliser, dyes_of
from miudiff.tiling import Placed, over_all_tiles, places
from miudiff.tissue import glass as find_glass
from miudiff.tissue import with_glass

OVERLAP = 32  # pixels over which two tiles are blended
FUSED = 64  # pixels that neighbouring tiles share in mode fuse, where they meet in every step
MOST_TILES = 4096  # that the network is given at once
BLOCK = 3  # tiles along a side that take the reverse walk together, in mode fuse
Glass = Literal["keep", "stain"]
Mode = Literal["blend", "fuse"]
Normalise = Literal["section", "image", "off"]
MIN_SIDE = 64  # two patches of the MI estimator, if they are of 32


class VirtualStainer:
    """Stains H&E images virtually. For research use only, not for diagnosis.

    Args:
        model: From `systems.load_any`.
        config: From `systems.configure`; None for a generator.
        marker: For a model of several markers; the first by default.
        glass: "keep" leaves the pixels of empty glass as they are (`tissue.glass`), "stain" translates them like tissue.
        mode: "blend" gives every tile a walk of its own and blends the results; "fuse" lets blocks of BLOCK x BLOCK tiles
            agree after every step (`methods.fusion`), and blends the blocks.
        batch: Tiles that the network is given at once, by default 1 on a processor and what fits into the memory of a CUDA device
            (`methods.batches`); halved for good, and said to `say`, where memory does not suffice.
        normalise: "section" and "image" stain H&E as if it had the dyes of the model's own (`for_section` states a section's; else an
            image's are its own); "off" takes it as it is, as always where the model has no palette for the marker.

    Raises:
        ConfigError: Settings that the model cannot follow, or a marker that it does not have.
    """

    def __init__(
        self,
        model: AnyModel,
        config: Strict | None,
        placement: Placement,
        marker: str | None = None,
        glass: Glass = "keep",
        mode: Mode = "blend",
        batch: int | None = None,
        normalise: Normalise = "section",
    ) -> None:
        self.model, self.config, self.placement, self.glass, self.mode = model, config, placement, glass, mode
        if batch is not None and not 1 <= batch <= MOST_TILES:
            raise ConfigError(f"batch size: found {batch}, expected 1 to {MOST_TILES} tiles")
        self.say: Callable[[str], None] = lambda line: None
        self.marker = marker or (model.card.markers[0] if model.card.markers else None)
        palette = model.card.palette.get(self.marker or "")
        self._target = palette.dyes if palette else None
        self.normalise: Normalise = normalise if palette else "off"
        self.section: Normaliser | None = None
        self.method = build(config, model, self.marker, placement)
        self.steps_of_a_tile = steps_of(self.method)
        self.name = method_of(config) if isinstance(model, Model) else model.method
        if mode == "fuse":
            self._check_fusion()
        how = (self.reverse, placement, batch, self.tile)
        self._batches = Batches(lambda he, keys: self._translate(he, keys), *how, lambda line: self.say(line))

    @property
    def reverse(self) -> Reverse | None:
        """The reverse process; None for what takes one pass. What is set as its `watch` is called in every step of every tile."""
        return self.method.reverse

    @classmethod
    def load(
        cls,
        model: str | Path = SHIPPED,
        *,
        method: str | None = None,
        preset: str | None = None,
        changes: Sequence[str] = (),
        marker: str | None = None,
        device: str = "auto",
        precision: Precision = "auto",
        glass: Glass = "keep",
        mode: Mode = "blend",
        batch: int | None = None,
        normalise: Normalise = "section",
    ) -> VirtualStainer:
        """Load a model folder, or the model that ships with the package.

        Args:
            method: "miu-diff" (the default), "sdedit", "ilvr" or "egsde"; a generator's model is its own method.
            preset: "fast" (the default), "thorough" or "paper" for MIU-Diff, or "turbo", its one-step student; "official" or
                "paper" for the others.
            changes: `key=value` words that change the preset, as in "guidance.scale=0.2".

        Raises:
            CheckpointError, ConfigError, DeviceError: As their messages say.
        """
        placement = place(device, precision)
        loaded = load_any(student_of(model) if preset == "turbo" else model, placement)
        if isinstance(loaded, GeneratorModel):
            if method not in (None, loaded.method) or preset is not None or changes:
                raise ConfigError(
                    f"{model}: a trained {loaded.method}, which has no settings; leave out method, preset and changes"
                )
            return cls(loaded, None, placement, marker, glass, mode, batch, normalise)
        if isinstance(loaded, StudentModel):
            if method not in (None, loaded.method):
                raise ConfigError(f"{model}: a one-step student, expected no method, or {loaded.method}")
            config = configure(loaded.method, preset, changes)
            return cls(loaded, config, placement, marker, glass, mode, batch, normalise)
        if method in TRAINED:
            raise ConfigError(f"{model}: a diffusion model, expected one trained as {method}")
        config = configure(method or "miu-diff", preset, changes)
        return cls(loaded, config, placement, marker, glass, mode, batch, normalise)

    @overload
    def translate(
        self, image: Image.Image, mpp: float | None = None, seed: int = 0, name: str = ""
    ) -> Image.Image: ...

    @overload
    def translate(self, image: Pixels, mpp: float | None = None, seed: int = 0, name: str = "") -> Pixels: ...

    def translate(
        self, image: Image.Image | Pixels, mpp: float | None = None, seed: int = 0, name: str = ""
    ) -> Image.Image | Pixels:
        """The virtual IHC image of an H&E image; the same type and size.

        Args:
            image: RGB image, or uint8 [H, W, 3].
            mpp: The image's micrometres per pixel. None takes the pixels as they are, at the model's scale: only right if that is
                the image's scale.
            seed: Same seed, same name, same image: same result.
            name: Gives images of one seed noise of their own.

        Raises:
            TypeError: Neither an image nor an array.
            DataError: Not an RGB image, or too small or too large at the model's scale.
            DeviceError: Out of memory.
            NonFiniteError: The network gave a NaN or an infinity.
        """
        if isinstance(image, Image.Image):
            if image.mode != "RGB":
                raise DataError(f"an image of mode {image.mode}, expected RGB")
            return Image.fromarray(self.translate(np.asarray(image), mpp, seed, name))
        if not isinstance(image, np.ndarray):
            raise TypeError(
                f"translate: found {type(image).__name__}, expected a PIL.Image.Image of mode RGB or a numpy array, uint8 [H, W, 3], one image a call"
            )
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DataError(f"an array of {image.dtype} {image.shape}, expected uint8 [H, W, 3]")
        height, width = image.shape[:2]
        rows, columns = self.fitting_size(height, width, mpp)
        key = NoiseKey(seed, name)
        resized = resize(image, rows, columns)
        empty = self.find_glass(resized)
        stainer = self if self.section else self.for_section(self.fit([(resized, None)]))

        def stain(pieces: list[Placed]) -> Iterator[Pixels]:
            kept = [self.is_glass(empty, top, left) for _, top, left in pieces]
            tissue = (piece for piece, keep in zip(pieces, kept) if not keep)
            keyed = ((pixels, key.at(left, top)) for pixels, top, left in tissue)
            ihc = stainer.stream(keyed, apart=len(pieces) > 1)
            return (piece[0] if keep else next(ihc) for piece, keep in zip(pieces, kept))

        stained = over_all_tiles(resized, stain, self.window, self.overlap, self.multiple)
        stained = resize(stained, height, width)
        return stained if empty is None else with_glass(stained, image, empty)

    def fit(self, samples: Iterable[tuple[Pixels, float | None]]) -> HEStains | None:
        """The dyes of a section, from some uint8 [H, W, 3] of it and their mpp; None: take it as it is.

        Where there is too little tissue for that, the model's dyes on the section's glass.
        """
        if self._target is None or self.normalise == "off":
            return None
        sized = [resize(he, *self.working_size(he.shape[0], he.shape[1], mpp)) for he, mpp in samples]
        return dyes_of(sized, self._target) if sized else None

    def for_section(self, dyes: HEStains | None) -> VirtualStainer:
        """The same stainer, model and batches for H&E of these dyes; None takes H&E as it is."""
        other = copy.copy(self)
        other.section = Normaliser(dyes, self._target) if dyes and self._target else None
        other.normalise = "section" if other.section else "off"
        return other

    def find_glass(self, resized: Pixels) -> NDArray[np.float32] | None:
        """How much of each pixel of an image at the model's scale is glass that stays; None where glass is translated."""
        return find_glass(resized, self.model.card.mpp) if self.glass == "keep" else None

    def is_glass(self, empty: NDArray[np.float32] | None, top: int, left: int) -> bool:
        """Whether a window holds nothing but glass that stays; `empty` is from `find_glass`."""
        side = self.window
        return empty is not None and bool((empty[top : top + side, left : left + side] == 1).all())

    def stain(self, pieces: Sequence[Pixels], keys: Sequence[NoiseKey]) -> list[Pixels]:
        """Virtual IHC of pieces at the model's scale; `stream` for those that are there."""
        return list(self.stream(zip(pieces, keys, strict=True)))

    def stream(self, windows: Iterable[Keyed], apart: bool = True) -> Iterator[Pixels]:
        """Virtual IHC of pieces at the model's scale, in their order, sides of multiples of `multiple` and of at most `window`; glass and all.

        A piece's result depends on itself, its key and the section's dyes alone, up to the rounding of arithmetic over batches.

        Args:
            apart: As `Batches.stream` takes it.

        Raises:
            DeviceError: Out of memory, with one tile at a time.
            NonFiniteError: The network gave a NaN or an infinity.
        """
        together, section = self.mode == "blend", self.section
        if section is None:
            return self._batches.stream(windows, together, apart)
        he = ((section.he(pixels), key) for pixels, key in windows)
        return (section.ihc(ihc) for ihc in self._batches.stream(he, together, apart))

    def _translate(self, he: torch.Tensor, keys: Sequence[NoiseKey]) -> torch.Tensor:
        he = upload(he, self.placement.device)
        if self.mode == "blend" or max(he.shape[2:]) <= self.tile:
            with self._batches.ahead(keys) as ahead:
                return self.method.translate(he, ahead)
        assert self.reverse is not None
        fusion = Fusion(he.shape[2], he.shape[3], min(self.tile, *he.shape[2:]), self._fused)
        corners = [keys[0].at(keys[0].x + left, keys[0].y + top) for top, left in fusion.corners]
        self.reverse.fusion, self.reverse.at_once = fusion, self.batch
        try:
            with self._batches.ahead(corners) as ahead:
                return fusion.field(self.method.translate(fusion.cut(he), ahead))
        finally:
            self.reverse.fusion = self.reverse.at_once = None

    @property
    def batch(self) -> int:
        """Tiles that the network is given at once."""
        return self._batches.count

    def _check_fusion(self) -> None:
        if self.reverse is None:
            raise ConfigError(
                f"mode fuse: '{self.model.card.name}' takes one pass, not steps; expected blend"
            )
        if isinstance(self.method, MIUDiff) and self.method.refined_steps:
            raise ConfigError(
                "mode fuse: refinement learns from each tile by itself; expected refinement.loss=none, or mode blend"
            )

    def changed(self, changes: Sequence[str]) -> VirtualStainer:
        """The same stainer with `key=value` changes of its settings.

        Raises:
            ConfigError: A change that does not fit; a generator has no settings.
        """
        if self.config is None:
            raise ConfigError(f"{self.model.card.name}: a trained {self.name}, which has no settings")
        config = changed(self.config, changes)
        how = (self.placement, self.marker, self.glass, self.mode, self.batch, self.normalise)
        return VirtualStainer(self.model, config, *how)

    @property
    def at_once(self) -> int:
        """How many pieces are stained at a time."""
        return 1 if self.mode == "fuse" else self.batch * self._batches.workers

    @property
    def lacks_palette(self) -> bool:
        """Whether the settings ask for the marker's palette and the model has none."""
        return self.reverse is not None and self.reverse.config.palette and self.reverse.palette is None

    @property
    def tile(self) -> int:
        """The largest side that the network is given at once: the model's tile, if the network can halve it as often."""
        return max(self.model.card.tile // self.multiple, 1) * self.multiple

    @property
    def least(self) -> int:
        """The smallest side that can be stained, at the model's scale."""
        estimator = self.model.estimator if isinstance(self.model, Model) else None
        return max(MIN_SIDE, 2 * estimator.config.patch if estimator else 0)

    @property
    def window(self) -> int:
        """The largest side of a piece that is stained on its own: a tile, or in mode fuse a block of tiles."""
        return self.tile if self.mode == "blend" else self.tile + (BLOCK - 1) * (self.tile - self._fused)

    @property
    def _fused(self) -> int:
        return min(FUSED, self.tile // 4)

    @property
    def overlap(self) -> int:
        """Pixels over which two pieces are blended."""
        return min(OVERLAP, self.tile // 4)

    @property
    def multiple(self) -> int:
        """What the sides of a piece are multiples of."""
        return self.model.multiple

    def steps(self, rows: int, columns: int) -> int:
        """How many reverse steps, over all pieces, an image of that working size takes."""
        multiple = self.multiple
        sides = (-(-side // multiple) * multiple for side in (rows, columns))
        return (
            math.prod(len(places(side, self.window, self.overlap)) for side in sides) * self.steps_of_a_tile
        )

    def fitting_size(self, height: int, width: int, mpp: float | None) -> tuple[int, int]:
        """`working_size`, of an image that can be stained.

        Raises:
            DataError: Too small or too large at the model's scale, or an mpp that no light microscope has.
        """
        rows, columns = self.working_size(height, width, mpp)
        found = f"{width} x {height} pixels are {columns} x {rows} at the model's scale"
        if min(rows, columns) < self.least:
            raise DataError(
                f"{found}, expected at least {self.least} on each side; give a larger field, or its mpp"
            )
        if rows * columns > MAX_PIXELS:
            raise DataError(f"{found}, expected at most {MAX_PIXELS:,} pixels; cut it first, or give its mpp")
        return rows, columns

    def working_size(self, height: int, width: int, mpp: float | None) -> tuple[int, int]:
        """The image's (rows, columns) at the model's scale.

        Raises:
            DataError: An mpp that no light microscope has.
        """
        if mpp is not None:
            check_mpp(mpp)
        scale = self.model.card.mpp
        factor = mpp / scale if mpp and scale else 1.0
        return max(round(height * factor), 1), max(round(width * factor), 1)
