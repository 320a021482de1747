"""What is set by trying it: the guidance scale, and how much the DAB of a palette counts.

The guidance scale: c such that the energy's shift is a stated share of each step's noise.

The printed formula (c = 1, mean over patches) moves an image by 1e-5 to 1e-4 of the noise, so a scale has to be chosen, and what it
should be depends on the estimator. The ratio is linear in c at a given image; the walk that the images take
answers to c too, so the scale is corrected in a few runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from miudiff.cells import NUCLEUS, nuclei_of_he, tissue_mask
from miudiff.device import Placement
from miudiff.errors import ConfigError, DataError
from miudiff.images import Pixels, list_images, read_image, read_scale, resize, to_tensor, to_uint8
from miudiff.methods.miu_diff import MIUDiff, MIUDiffConfig
from miudiff.methods.model import Model
from miudiff.methods.palette import Palette, dab_of, mean_densities
from miudiff.methods.sdedit import StepReport
from miudiff.noise import NoiseKey
from miudiff.normalisation import fit_he_stains
from miudiff.stainer import VirtualStainer

MATCHED = 256  # pixels a side of a field that a palette is matched on
GAINS = (0.5, 2.0)  # the two sets are of other tissue: not all that differs is the model's doing
ROUNDS = 3  # the second correction is some per cent, the third less than one


def calibrate(
    model: Model,
    marker: str | None,
    config: MIUDiffConfig,
    placement: Placement,
    he: Tensor,
    target: float = 0.05,
) -> tuple[float, dict[int, float]]:
    """(scale, ratio at that scale for each index): the mean of shift / noise over the guided steps becomes `target`.

    Args:
        he: Validation images [B, 3, H, W] in [-1, 1].

    Raises:
        ConfigError: The energy has no gradient, so no scale moves anything.
    """
    scale, ratios = 1e-3, _ratios(model, marker, config, placement, he, 1e-3)
    for _ in range(ROUNDS):
        # The last step has no noise to compare with, and steps below `guidance.until` are not guided.
        moving = [r for index, r in ratios.items() if index > 0 and r > 0]
        if not moving:
            raise ConfigError(
                "the energy has no gradient with these settings, so no scale moves anything; choose another energy.guidance"
            )
        scale *= target * len(moving) / sum(moving)
        ratios = _ratios(model, marker, config, placement, he, scale)
    return scale, ratios


def _ratios(
    model: Model, marker: str | None, config: MIUDiffConfig, placement: Placement, he: Tensor, scale: float
) -> dict[int, float]:
    """Shift over noise at each index of a run with `scale`, without refinement."""
    guidance = config.guidance.model_copy(update={"scale": scale, "normalise": "none"})
    refinement = config.refinement.model_copy(update={"loss": "none"})
    probe = config.model_copy(update={"guidance": guidance, "refinement": refinement})
    ratios: dict[int, float] = {}

    def watch(report: StepReport) -> None:
        assert report.ratio is not None
        ratios[report.time] = float(report.ratio.mean())

    method = MIUDiff(model.for_marker(marker), model.estimator, probe, placement, model.palette(marker))
    method.reverse.watch = watch
    method.translate(he, [NoiseKey(0, f"calibration{i}") for i in range(len(he))])
    return ratios


def calibrate_files(
    source: Path,
    target: float,
    preset: str,
    model: str,
    marker: str | None,
    mpp: float | None,
    changes: Sequence[str],
    device: str,
    say: Callable[[str], None],
) -> float:
    """Calibrate on the first tiles of up to four images and say what to set; returns the scale.

    Raises:
        DataError: No image gives a tile.
        ConfigError: A target that is no share, or settings without guidance.
    """
    if not 0 < target < 100:
        raise ConfigError(f"target: found {target:g}, expected a share of the noise more than 0, as 0.05")
    stainer = VirtualStainer.load(model, preset=preset, changes=changes, marker=marker, device=device)
    config, loaded = stainer.config, stainer.model
    if not isinstance(config, MIUDiffConfig) or not isinstance(loaded, Model):
        raise ConfigError(
            f"{model}: a {stainer.name}, expected a diffusion model, which has something to calibrate"
        )
    if config.energy.guidance == "none" or loaded.estimator is None:
        raise ConfigError(
            "nothing to calibrate: expected a model with an MI estimator and energy.guidance other than none"
        )
    tiles = []
    for path in [source] if source.is_file() else list_images(source)[:4]:
        pixels = read_image(path)
        rows, columns = stainer.working_size(
            pixels.shape[0], pixels.shape[1], mpp if mpp is not None else read_scale(path)
        )
        side = min(stainer.tile, 128)
        if min(rows, columns) < side:
            raise DataError(
                f"{path}: {columns} x {rows} pixels at the model's scale, expected at least {side} on each side"
            )
        tiles.append(resize(pixels, rows, columns)[:side, :side])
    he = to_tensor(tiles).to(stainer.placement.device)
    scale, ratios = calibrate(loaded, stainer.marker, config, stainer.placement, he, target)
    for index in sorted(ratios, reverse=True)[:: max(1, len(ratios) // 10)]:
        say(f"t = {index:3d}: shift / noise {ratios[index]:.3g}")
    say(
        f"guidance.scale={scale:.4g} gives a mean shift of {target:g} of the noise, over {len(tiles)} tile(s)"
    )
    return scale


def match_dab(
    model: Model, marker: str, config: MIUDiffConfig, placement: Placement, he: Sequence[Pixels]
) -> Palette:
    """The marker's palette with the gain at which results have, in the mean, the DAB of the palette's IHC set.

    A source whose nuclei have the mean colour of all nuclei comes out with fewer positive ones than the set has, because the mean
    lies nearer to the more frequent colour. So the DAB of nuclei is multiplied by what was missing of it, in a few rounds. Palettes of
    other antigens stay as they are: how much of a set is stained hangs on how much of it is epithelium, which differs between sets.

    Args:
        config: How to translate; refinement is left out.
        he: H&E of the model's scale, uint8 [H, W, 3]; the middle of each, at most `MATCHED` a side, is translated.

    Raises:
        ConfigError: The model has no palette for the marker.
        DataError: The H&E has no nuclei.
    """
    palette = model.palette(marker)
    if palette is None or model.card.mpp is None:
        raise ConfigError(
            f"{model.card.name}: no palette of {marker} to match, or no scale; measure it first"
        )
    if palette.crowding is not None:
        return palette
    diameter, multiple = NUCLEUS / model.card.mpp, model.for_marker(marker).multiple
    fields = [middle(image, MATCHED // multiple * multiple, multiple) for image in he]
    known = [(nuclei_of_he(field, diameter), tissue_mask(field)) for field in fields]
    gain = 1.0
    for _ in range(ROUNDS):
        tried = palette.model_copy(update={"gain": gain})
        results = [
            (_stained(model, marker, config, placement, tried, field, i) / 255, *masks)
            for i, (field, masks) in enumerate(zip(fields, known, strict=True))
        ]
        found = dab_of(mean_densities(results, "H&E")[0])
        gain = float(np.clip(gain * palette.dab[0] / max(found, 0.01), *GAINS).round(3))
    return palette.model_copy(update={"gain": gain})


def middle(image: Pixels, side: int, multiple: int) -> Pixels:
    """The middle of an image, uint8 [H, W, 3], at most `side` pixels a side, in multiples of `multiple`."""
    extents = [min(length // multiple * multiple, side) for length in image.shape[:2]]
    top, left = ((length - extent) // 2 for length, extent in zip(image.shape[:2], extents, strict=True))
    return image[top : top + extents[0], left : left + extents[1]]


def _stained(
    model: Model,
    marker: str,
    config: MIUDiffConfig,
    placement: Placement,
    palette: Palette,
    field: Pixels,
    number: int,
) -> Pixels:
    """A field's result without refinement, with a palette of the field's own dyes where it has tissue enough to know them."""
    with contextlib.suppress(DataError):
        palette = palette.model_copy(update={"dyes": fit_he_stains([field])})
    plain = config.model_copy(update={"refinement": config.refinement.model_copy(update={"loss": "none"})})
    method = MIUDiff(model.for_marker(marker), model.estimator, plain, placement, palette)
    key = NoiseKey(0, f"matched{number}")
    return to_uint8(method.translate(to_tensor(field).to(placement.device), [key]).detach())[0]
