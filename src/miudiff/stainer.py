"""From H&E pixels to IHC pixels: load a model, give it an image of any size and scale, get one of the same size back.

stainer = VirtualStainer.load()
stainer.translate(Image.open("he.png"), mpp=0.5, seed=0).save("ihc.png")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image

from miudiff.device import Placement, Precision, place
from miudiff.errors import DataError
from miudiff.images import Pixels, resize, to_tensor, to_uint8
from miudiff.methods.miu_diff import MIUDiff, MIUDiffConfig, StepReport
from miudiff.methods.model import SHIPPED, Model, load_model
from miudiff.methods.presets import preset as named_preset
from miudiff.noise import NoiseKey
from miudiff.tiling import over_tiles

MIN_SIDE = 64  # two patches of the MI estimator


class VirtualStainer:
    """Stains H&E images virtually. For research use only, not for diagnosis.

    Args:
        model: From `load_model`.
        config: From `presets.preset`.
        marker: For a model of several markers; the first by default.
        watch: Called after every step of every tile.
    """

    def __init__(
        self,
        model: Model,
        config: MIUDiffConfig,
        placement: Placement,
        marker: str | None = None,
        watch: Callable[[StepReport], None] | None = None,
    ) -> None:
        self.model, self.config, self.placement = model, config, placement
        self.marker = marker or (model.card.markers[0] if model.card.markers else None)
        self.method = MIUDiff(model.for_marker(self.marker), model.estimator, config, placement, watch)

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
            DataError: Not an RGB image, or too small at the model's scale.
        """
        if isinstance(image, Image.Image):
            if image.mode != "RGB":
                raise DataError(f"an image of mode {image.mode}, expected RGB")
            return Image.fromarray(self.translate(np.asarray(image), mpp, seed, name))
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DataError(f"an array of {image.dtype} {image.shape}, expected uint8 [H, W, 3]")
        height, width = image.shape[:2]
        rows, columns = self.working_size(height, width, mpp)
        if min(rows, columns) < MIN_SIDE:
            raise DataError(
                f"{width} x {height} pixels are {columns} x {rows} at the model's scale, expected at least {MIN_SIDE} on each side; "
                "give a larger field, or its mpp"
            )
        key = NoiseKey(seed, name)
        multiple = 2 ** (len(self.model.score.unet.config.block_out_channels) - 1)
        tile = self.model.card.tile

        def one(pixels: Pixels, top: int, left: int) -> Pixels:
            he = to_tensor(pixels).to(self.placement.device)
            return to_uint8(self.method.translate(he, [key.at(left, top)]))[0]

        result = over_tiles(resize(image, rows, columns), one, tile, tile // 4, multiple)
        return resize(result, height, width)

    def working_size(self, height: int, width: int, mpp: float | None) -> tuple[int, int]:
        """The image's (rows, columns) at the model's scale."""
        scale = self.model.card.mpp
        factor = mpp / scale if mpp and scale else 1.0
        return round(height * factor), round(width * factor)
