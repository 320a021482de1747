"""From H&E pixels to IHC pixels: load a model, give it an image of any size and scale, get one of the same size back.

stainer = VirtualStainer.load()
stainer.translate(Image.open("he.png"), mpp=0.5, seed=0).save("ihc.png")
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from miudiff.config import Strict
from miudiff.device import Placement, Precision, enough_memory, place
from miudiff.errors import ConfigError, DataError, NonFiniteError
from miudiff.images import MAX_PIXELS, Pixels, resize, to_tensor, to_uint8
from miudiff.methods.generator import MULTIPLE, GeneratorModel, GeneratorTranslator
from miudiff.methods.model import SHIPPED, Model
from miudiff.methods.sdedit import Reverse
from miudiff.methods.systems import GENERATORS, build, configure, load_any, method_of, steps_of
from miudiff.noise import NoiseKey
from miudiff.tiling import over_tiles, places
from miudiff.tissue import glass as find_glass

OVERLAP = 32  # pixels over which two tiles are blended
Glass = Literal["keep", "stain"]
MIN_SIDE = 64  # two patches of the MI estimator, if they are of 32


class VirtualStainer:
    """Stains H&E images virtually. For research use only, not for diagnosis.

    Args:
        model: From `systems.load_any`.
        config: From `systems.configure`; None for a generator.
        marker: For a model of several markers; the first by default.
        glass: "keep" leaves the pixels of empty glass as they are (`tissue.glass`), "stain" translates them like tissue.

    Raises:
        ConfigError: Settings that the model cannot follow, or a marker that it does not have.
    """

    def __init__(
        self,
        model: Model | GeneratorModel,
        config: Strict | None,
        placement: Placement,
        marker: str | None = None,
        glass: Glass = "keep",
    ) -> None:
        self.model, self.config, self.placement, self.glass = model, config, placement, glass
        self.marker = marker or (model.card.markers[0] if model.card.markers else None)
        self.method = build(config, model, self.marker, placement)
        self.steps_of_a_tile = steps_of(self.method)
        self.name = model.method if isinstance(model, GeneratorModel) else method_of(config)

    @property
    def reverse(self) -> Reverse | None:
        """The reverse process; None for a generator. What is set as its `watch` is called in every step of every tile."""
        return None if isinstance(self.method, GeneratorTranslator) else self.method.reverse

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
    ) -> VirtualStainer:
        """Load a model folder, or the model that ships with the package.

        Args:
            method: "miu-diff" (the default), "sdedit", "ilvr" or "egsde"; a generator's model is its own method.
            preset: "tuned" (the default) or "paper" for MIU-Diff; "official" or "paper" for the others.
            changes: `key=value` words that change the preset, as in "guidance.scale=0.2".

        Raises:
            CheckpointError, ConfigError, DeviceError: As their messages say.
        """
        placement = place(device, precision)
        loaded = load_any(model, placement)
        if isinstance(loaded, GeneratorModel):
            if method not in (None, loaded.method) or preset is not None or changes:
                raise ConfigError(
                    f"{model}: a trained {loaded.method}, which has no settings; leave out method, preset and changes"
                )
            return cls(loaded, None, placement, marker, glass)
        if method in GENERATORS:
            raise ConfigError(f"{model}: a diffusion model, expected one trained as {method}")
        config = configure(method or "miu-diff", preset, changes)
        return cls(loaded, config, placement, marker, glass)

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
            DataError: Not an RGB image, or too small or too large at the model's scale.
            DeviceError: Out of memory.
            NonFiniteError: The network gave a NaN or an infinity.
        """
        if isinstance(image, Image.Image):
            if image.mode != "RGB":
                raise DataError(f"an image of mode {image.mode}, expected RGB")
            return Image.fromarray(self.translate(np.asarray(image), mpp, seed, name))
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DataError(f"an array of {image.dtype} {image.shape}, expected uint8 [H, W, 3]")
        height, width = image.shape[:2]
        rows, columns = self.working_size(height, width, mpp)
        found = f"{width} x {height} pixels are {columns} x {rows} at the model's scale"
        estimator = self.model.estimator if isinstance(self.model, Model) else None
        least = max(MIN_SIDE, 2 * estimator.config.patch if estimator else 0)
        if min(rows, columns) < least:
            raise DataError(
                f"{found}, expected at least {least} on each side; give a larger field, or its mpp"
            )
        if rows * columns > MAX_PIXELS:
            raise DataError(f"{found}, expected at most {MAX_PIXELS:,} pixels; cut it first, or give its mpp")
        key = NoiseKey(seed, name)
        resized = resize(image, rows, columns)
        empty = find_glass(resized, self.model.card.mpp) if self.glass == "keep" else None

        def one(pixels: Pixels, top: int, left: int) -> Pixels:
            if empty is not None and (empty[top : top + self.tile, left : left + self.tile] == 1).all():
                return pixels
            with self._memory(pixels):
                he = to_tensor(pixels).to(self.placement.device)
                ihc = self.method.translate(he, [key.at(left, top)])
            if not torch.isfinite(ihc).all():
                raise NonFiniteError(
                    f"the network gave a NaN or an infinity in {self.placement.precision}; are its weights damaged?"
                )
            return to_uint8(ihc)[0]

        stained = resize(over_tiles(resized, one, self.tile, self._overlap, self._multiple), height, width)
        return stained if empty is None else _with_glass(stained, image, empty)

    @property
    def lacks_tone(self) -> bool:
        """Whether the settings ask for the marker's luma curve and the model has none."""
        return self.reverse is not None and self.reverse.config.tone and self.reverse.tone is None

    @property
    def tile(self) -> int:
        """The largest side that the network is given at once: the model's tile, if the network can halve it as often."""
        return max(self.model.card.tile // self._multiple, 1) * self._multiple

    @property
    def _overlap(self) -> int:
        return min(OVERLAP, self.tile // 4)

    @property
    def _multiple(self) -> int:
        if isinstance(self.model, GeneratorModel):
            return MULTIPLE
        return 2 ** (len(self.model.score.unet.config.block_out_channels) - 1)

    def _memory(self, tile: Pixels) -> contextlib.AbstractContextManager[None]:
        return enough_memory(
            f"a tile of {tile.shape[1]} x {tile.shape[0]} in {self.placement.precision} on {self.placement.device}",
            "free the device, take another (--device cpu) or --precision bf16, or write a smaller 'tile' into the model's model_index.json",
        )

    def steps(self, rows: int, columns: int) -> int:
        """How many reverse steps, over all tiles, an image of that working size takes."""
        multiple = self._multiple
        padded = (-(-side // multiple) * multiple for side in (rows, columns))
        tiles = math.prod(len(places(side, self.tile, self._overlap)) for side in padded)
        return tiles * self.steps_of_a_tile

    def working_size(self, height: int, width: int, mpp: float | None) -> tuple[int, int]:
        """The image's (rows, columns) at the model's scale.

        Raises:
            DataError: An mpp that no light microscope has.
        """
        if mpp is not None:
            check_mpp(mpp)
        scale = self.model.card.mpp
        factor = mpp / scale if mpp and scale else 1.0
        return round(height * factor), round(width * factor)


def _with_glass(stained: Pixels, image: Pixels, empty: NDArray[np.float32]) -> Pixels:
    """`stained` with the pixels of `image` where it is empty glass; `empty` is of any size."""
    height, width = image.shape[:2]
    share = np.asarray(Image.fromarray(empty).resize((width, height), Image.Resampling.BILINEAR))[..., None]
    return np.round(stained * (1 - share) + image * share).clip(0, 255).astype(np.uint8)


def check_mpp(mpp: float) -> None:
    """Refuse micrometres per pixel that no light microscope has.

    Raises:
        DataError: Less than 0.05, more than 20, or no number.
    """
    if not 0.05 <= mpp <= 20:
        raise DataError(
            f"mpp {mpp:g}: expected micrometres per pixel between 0.05 and 20; 0.25 is a 40x scan, 0.5 a 20x"
        )
