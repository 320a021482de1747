"""From H&E pixels to IHC pixels: load a model, give it an image of any size and scale, get one of the same size back.

stainer = VirtualStainer.load()
stainer.translate(Image.open("he.png"), mpp=0.5, seed=0).save("ihc.png")
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch
from PIL import Image

from miudiff.device import Placement, Precision, enough_memory, place
from miudiff.errors import ConfigError, DataError, NonFiniteError
from miudiff.images import MAX_PIXELS, Pixels, resize, to_tensor, to_uint8
from miudiff.methods.miu_diff import MIUDiff, MIUDiffConfig, StepReport
from miudiff.methods.model import SHIPPED, Model, load_model
from miudiff.methods.presets import preset as named_preset
from miudiff.noise import NoiseKey
from miudiff.tiling import over_tiles, places

OVERLAP = 32  # pixels over which two tiles are blended
MIN_SIDE = 64  # two patches of the MI estimator, if they are of 32


class VirtualStainer:
    """Stains H&E images virtually. For research use only, not for diagnosis.

    Args:
        model: From `load_model`.
        config: From `presets.preset`.
        marker: For a model of several markers; the first by default.
        watch: Called after every step of every tile.

    Raises:
        ConfigError: Settings that the model cannot follow, or a marker that it does not have.
    """

    def __init__(
        self,
        model: Model,
        config: MIUDiffConfig,
        placement: Placement,
        marker: str | None = None,
        watch: Callable[[StepReport], None] | None = None,
    ) -> None:
        _check_fit(model, config)
        self.model, self.config, self.placement = model, config, placement
        self.marker = marker or (model.card.markers[0] if model.card.markers else None)
        self.method = MIUDiff(
            model.for_marker(self.marker),
            model.estimator,
            config,
            placement,
            watch,
            model.tone(self.marker),
        )

    @classmethod
    def load(
        cls,
        model: str | Path = SHIPPED,
        *,
        preset: str = "tuned",
        changes: Sequence[str] = (),
        marker: str | None = None,
        device: str = "auto",
        precision: Precision = "auto",
    ) -> VirtualStainer:
        """Load a model folder, or the model that ships with the package.

        Args:
            preset: "tuned" or "paper".
            changes: `key=value` words that change the preset, as in "guidance.scale=0.2".

        Raises:
            CheckpointError, ConfigError, DeviceError: As their messages say.
        """
        config = named_preset(preset, tuple(changes))
        placement = place(device, precision)
        return cls(load_model(model, placement), config, placement, marker)

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
        least = max(MIN_SIDE, 2 * self.model.estimator.config.patch if self.model.estimator else 0)
        if min(rows, columns) < least:
            raise DataError(
                f"{found}, expected at least {least} on each side; give a larger field, or its mpp"
            )
        if rows * columns > MAX_PIXELS:
            raise DataError(f"{found}, expected at most {MAX_PIXELS:,} pixels; cut it first, or give its mpp")
        key = NoiseKey(seed, name)

        def one(pixels: Pixels, top: int, left: int) -> Pixels:
            with self._memory(pixels):
                he = to_tensor(pixels).to(self.placement.device)
                ihc = self.method.translate(he, [key.at(left, top)])
            if not torch.isfinite(ihc).all():
                raise NonFiniteError(
                    f"the network gave a NaN or an infinity in {self.placement.precision}; are its weights damaged?"
                )
            return to_uint8(ihc)[0]

        resized = resize(image, rows, columns)
        result = over_tiles(resized, one, self.tile, self._overlap, self._multiple)
        return resize(result, height, width)

    @property
    def tile(self) -> int:
        """The largest side that the network is given at once: the model's tile, if the network can halve it as often."""
        return max(self.model.card.tile // self._multiple, 1) * self._multiple

    @property
    def _overlap(self) -> int:
        return min(OVERLAP, self.tile // 4)

    @property
    def _multiple(self) -> int:
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
        return tiles * len(self.method.reverse.sde)

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


def check_mpp(mpp: float) -> None:
    """Refuse micrometres per pixel that no light microscope has.

    Raises:
        DataError: Less than 0.05, more than 20, or no number.
    """
    if not 0.05 <= mpp <= 20:
        raise DataError(
            f"mpp {mpp:g}: expected micrometres per pixel between 0.05 and 20; 0.25 is a 40x scan, 0.5 a 20x"
        )


def _check_fit(model: Model, config: MIUDiffConfig) -> None:
    name, score, estimator = model.card.name, model.score, model.estimator
    guided = config.guidance.scale > 0 and config.energy.guidance != "none"
    if guided and estimator is None:
        raise ConfigError(
            f"the model '{name}' has no MI estimator, so it cannot be guided; give it energy.guidance=none"
        )
    if guided and estimator is not None and model.card.tile < 2 * estimator.config.patch:
        raise ConfigError(
            f"the model '{name}' has tiles of {model.card.tile}, expected at least two patches of {estimator.config.patch} a side"
        )
    if config.reverse.start > len(score.sde):
        raise ConfigError(
            f"reverse.start: found {config.reverse.start}, expected at most {len(score.sde)}, the steps that the model '{name}' knows"
        )
    if config.reverse.variance == "learned" and not score.learned_variance:
        raise ConfigError(f"reverse.variance: found learned, but the model '{name}' has not learned it")
    taps, blocks = config.refinement.taps, score.encoder_blocks
    if taps is not None and not (taps and min(taps) >= 0 and max(taps) < blocks):
        raise ConfigError(
            f"refinement.taps: found {list(taps)}, expected blocks of the model's encoder, 0 to {blocks - 1}"
        )
