"""The guidance scale, set by trying it: c such that the energy's shift is a stated share of each step's noise.

The printed formula (c = 1, mean over patches) moves an image by 1e-5 to 1e-4 of the noise, so a scale has to be chosen, and what it
should be depends on the estimator. The ratio is linear in c at a given image; the walk that the images take
answers to c too, so the scale is corrected in a few runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from miudiff.device import Placement
from miudiff.errors import ConfigError, DataError
from miudiff.images import list_images, read_image, read_scale, resize, to_tensor
from miudiff.methods.miu_diff import MIUDiff, MIUDiffConfig
from miudiff.methods.model import Model
from miudiff.methods.sdedit import StepReport
from miudiff.noise import NoiseKey
from miudiff.stainer import VirtualStainer

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
    probe = config.unrefined.model_copy(update={"guidance": guidance})
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
