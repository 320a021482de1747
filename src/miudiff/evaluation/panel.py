"""One image's measures, and what each key of a result means: the one table that CSV, JSON and pages follow.

A key says what the number is of: the measure, the reference (`real`, the true IHC, or `source`, the H&E), and
the size, bins or channel where there is a choice. Without a size it is that of the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from miudiff.cells import (
    MODERATE,
    NUCLEUS,
    STRONG,
    WEAK,
    Mask,
    cell_mask,
    nuclei_of_he,
    positivity,
    split_cells,
    tissue_of_either,
)
from miudiff.evaluation import fidelity, stain, structure, truth
from miudiff.images import Pixels

PAPER_SIDE = 256  # pixels, the size that the paper's networks see
HEADLINE = "dab_dice_real"  # ranks the cases: stain in its place; it needs no H&E and no scale
STAND_IN = "hist_rgb256"  # ranks them where no image has DAB

ENOUGH_TO_CORRELATE = 5  # images: two always correlate by 1 or -1, and three or four nearly so by chance


@dataclass(frozen=True)
class Measure:
    """What a key means, and which way is better; "context" is better neither way."""

    about: str
    better: Literal["higher", "lower", "near 0", "near 1", "context"]


# The five of one look: stain in its place, in its amount, on this tissue, and sharp; docs/metrics.md says what fools each.
FOREMOST = ("dab_dice_real", "dab_r_real", "iod_field_error", "nuclei_dice_source", "sharpness_real")
# What a screen shows, in its order; every key is in the files.
HEADLINES = (
    *FOREMOST,
    "darkness_dab_dice_real",
    "darkness_dab_r_real",
    "ki67_index_mae",
    "h_score_mae",
    "gradient_r_2um_source",
    "psnr_real",
    "vif_source",
    "hist_rgb256",
    "iod_sum_1e7",
    "iod_sum_1e7_cells",
    "iod_pearson",
    "vif_real",
    "ssim_real_win7",
)

_VIF = "pixel-domain VIF, 4 scales, grey levels 0 to 255, mean of R, G and B"
_IOD_SIZES = {"": "at 1024 pixels on the longer side", "_native": "at the files' size"}
_IOD_PLACES = {
    "": "everywhere",
    "_cells": "in each image's own cells",
    "_real_cells": "in the true IHC's cells",
}
IOD_VARIANTS = tuple(size + place for size in _IOD_SIZES for place in _IOD_PLACES)
CELL_SCORES = ("ki67_index", "h_score")
FIELD_ERRORS = {
    "": "in tissue of either image",
    "_cells": "in each image's own cells",
    "_real_cells": "in the true IHC's cells",
}


def _iod_measures() -> dict[str, Measure]:
    table: dict[str, Measure] = {}
    for size, at in _IOD_SIZES.items():
        for place, where in _IOD_PLACES.items():
            end = f"ImageJ's IOD of DAB {at}, {where}"
            table |= {
                f"iod_sum_1e7{size}{place}": Measure(
                    f"sum over the set of generated - real, in 10^7; {end}", "near 0"
                ),
                f"iod_per_image_mean{size}{place}": Measure(
                    f"mean over images of generated - real; {end}", "near 0"
                ),
                f"iod_pearson{size}{place}": Measure(
                    f"correlation over images of generated and real; {end}", "higher"
                ),
                f"iod_generated{size}{place}": Measure(f"the generated image's; {end}", "context"),
                f"iod_real{size}{place}": Measure(f"the true IHC's; {end}", "context"),
            }
    return table


def _field_errors() -> dict[str, Measure]:
    about = "|generated - real| / real of each image's IOD at the files' size, per cent"
    return {
        f"iod_field_error{kind}{place}": Measure(f"{of}{about}; {where}", "lower")
        for place, where in FIELD_ERRORS.items()
        for kind, of in (("", ""), ("_median", "median over images of "))
    }


def _dab_measures(of: str, begin: str) -> dict[str, Measure]:
    """Stain against truth, of the generated image or of the H&E's darkness; tissue of either image alone."""
    bound = (
        f"DAB density above {WEAK}" if not begin else "the share that is positive in the set's truth marked"
    )
    table = {
        f"{begin}dab_dice_real": Measure(f"Dice of {of} and true DAB in tissue, {bound}", "higher"),
        f"{begin}dab_iou_real": Measure(f"IoU of {of} and true DAB in tissue, {bound}", "higher"),
        f"{begin}dab_r_real": Measure(f"mean of the correlations of {of} and true DAB below", "higher"),
    }
    return table | {
        f"{begin}dab_r_{span}um_real": Measure(
            f"Pearson r over tissue of {of} and true DAB density, averaged over {span} um", "higher"
        )
        for span in truth.SPANS
    }


def _distribution_measures() -> dict[str, Measure]:
    encoders = {
        "inception": "FID-Inception's pool3",
        "vit": "a vision transformer's class token",
        "features": "the files given",
    }
    table: dict[str, Measure] = {}
    for encoder, of in encoders.items():
        about = f"distance of the set to the set of true IHC, features of {of}"
        table[f"fid_{encoder}_real"] = Measure(f"Frechet {about}", "lower")
        table[f"kid_{encoder}_real_1e3"] = Measure(f"kernel {about}, in 10^-3", "lower")
    return table


MEASURES: dict[str, Measure] = {
    "psnr_real": Measure("PSNR against the true IHC, dB, uint8 RGB, range 255", "higher"),
    "psnr_source": Measure("PSNR against the H&E, dB, uint8 RGB, range 255", "context"),
    "vif_source": Measure(f"{_VIF}, reference the H&E, at the files' size", "higher"),
    "vif_source_256": Measure(f"{_VIF}, reference the H&E, longer side 256 by area mean", "higher"),
    "vif_source_luma": Measure("pixel-domain VIF of the luma, reference the H&E, files' size", "higher"),
    "vif_real": Measure(f"{_VIF}, reference the true IHC, at the files' size", "higher"),
    "vif_real_256": Measure(f"{_VIF}, reference the true IHC, longer side 256 by area mean", "higher"),
    "hist_rgb256": Measure("histogram correlation, 256 bins, mean of R, G and B, true IHC", "higher"),
    "hist_lab256": Measure("histogram correlation, 256 bins, mean of 8-bit L, a and b, true IHC", "higher"),
    "hist_rgb3d32": Measure("correlation of joint RGB histograms of 32^3 cells, true IHC", "higher"),
    "hist_rgb256_tissue": Measure("hist_rgb256 of tissue pixels (of either image) alone", "higher"),
    "hist_lab256_tissue": Measure("hist_lab256 of tissue pixels (of either image) alone", "higher"),
    "hist_rgb3d32_tissue": Measure("hist_rgb3d32 of tissue pixels (of either image) alone", "higher"),
    **_dab_measures("generated", ""),
    **_dab_measures("the H&E's darkness", truth.DARKNESS),
    **_field_errors(),
    **_iod_measures(),
    "sharpness_real": Measure(
        "power of luma in tissue at periods of 2.5 to 8 um, generated over true IHC; blur < 1, noise > 1",
        "near 1",
    ),
    "ssim_real_win7": Measure("SSIM, uniform 7 x 7 window, mean of R, G and B, true IHC", "higher"),
    "ssim_source_win7": Measure("SSIM, uniform 7 x 7 window, mean of R, G and B, H&E", "higher"),
    "ssim_source_hematoxylin": Measure("SSIM of the hematoxylin density, 7 x 7 window, H&E", "higher"),
    "gradient_correlation_source": Measure("Pearson r of luma gradient magnitudes, H&E", "higher"),
    "gradient_r_2um_source": Measure(
        "Pearson r over tissue of luma gradient magnitudes, luma averaged over 2 um, H&E", "higher"
    ),
    "nuclei_dice_source": Measure("Dice of the generated image's cells and the H&E's nuclei", "higher"),
    "ki67_index_mae": Measure("mean of |generated - real| of the index below", "lower"),
    "ki67_index_pearson": Measure("correlation over images of the index below", "higher"),
    "ki67_index_generated": Measure(f"share of cells of mean DAB density above {WEAK}", "context"),
    "ki67_index_real": Measure(f"share of cells of mean DAB density above {WEAK}", "context"),
    "h_score_mae": Measure("mean of |generated - real| of the H-score below", "lower"),
    "h_score_pearson": Measure("correlation over images of the H-score below", "higher"),
    "h_score_generated": Measure(f"DAB H-score, 0 to 300, bounds {WEAK}, {MODERATE}, {STRONG}", "context"),
    "h_score_real": Measure(f"DAB H-score, 0 to 300, bounds {WEAK}, {MODERATE}, {STRONG}", "context"),
    "cells_generated": Measure("cells found in the generated image", "context"),
    "cells_real": Measure("cells found in the true IHC", "context"),
    **_distribution_measures(),
}


def too_few(key: str, n: int) -> bool:
    """Whether a key is a correlation over images, and `n` images are too few for one to be a headline."""
    return "_pearson" in key and n < ENOUGH_TO_CORRELATE


def measure(
    generated: Pixels,
    real: Pixels,
    source: Pixels | None = None,
    nucleus: float | None = None,
    tissue: bool = False,
    mpp: float | None = None,
) -> dict[str, float]:
    """Every measure of one image that its partners allow, by key; NaN where it is not defined.

    Args:
        generated: Virtual IHC, uint8 [H, W, 3], at least 41 pixels a side.
        real: True IHC of the same size.
        source: The H&E it was made from; without it there is no key with `source`.
        nucleus: Pixels across a nucleus; without it `mpp` gives it, and without both there is no measure of cells.
        tissue: Histograms of tissue alone, too.
        mpp: Micrometres per pixel; without it there is no measure at a length.

    Raises:
        DataError: Two sizes, or smaller than 41 pixels a side.
    """
    nucleus = NUCLEUS / mpp if nucleus is None and mpp is not None else nucleus
    found = {
        "psnr_real": fidelity.psnr(generated, real),
        "vif_real": fidelity.vif(generated, real),
        "vif_real_256": _vif_at_256(generated, real),
        "ssim_real_win7": structure.ssim(generated, real),
    }
    either = tissue_of_either(generated, real)
    found |= _histograms(generated, real, None, "")
    if tissue:
        found |= _histograms(generated, real, either, "_tissue")
    found |= truth.compare_dab(generated, real, either, mpp)
    if mpp is not None:
        found["sharpness_real"] = structure.sharpness(generated, real, either, mpp)
    if source is not None:
        found |= _beside_source(generated, source, mpp)
    found |= _iod(generated, real, nucleus)
    found |= _field_errors_of(generated, real, either, found)
    if nucleus is not None:
        found |= _cells(generated, real, source, nucleus)
    return {key: found[key] for key in MEASURES if key in found}


def _beside_source(generated: Pixels, source: Pixels, mpp: float | None) -> dict[str, float]:
    found = {
        "psnr_source": fidelity.psnr(generated, source),
        "vif_source": fidelity.vif(generated, source),
        "vif_source_256": _vif_at_256(generated, source),
        "vif_source_luma": fidelity.vif_luma(generated, source),
        "ssim_source_win7": structure.ssim(generated, source),
        "ssim_source_hematoxylin": structure.ssim_hematoxylin(generated, source),
        "gradient_correlation_source": structure.gradient_correlation(generated, source),
    }
    if mpp is not None:
        either = tissue_of_either(generated, source)
        found["gradient_r_2um_source"] = structure.coarse_gradient_correlation(generated, source, either, mpp)
    return found


def _vif_at_256(image: Pixels, reference: Pixels) -> float:
    """VIF after an area mean to 256 pixels; NaN where the image is smaller, or too narrow for a window then."""
    if max(image.shape[:2]) < PAPER_SIDE:
        return float("nan")
    image, reference = (stain.at_side(pixels, PAPER_SIDE) for pixels in (image, reference))
    narrow = min(image.shape[:2]) < fidelity.SMALLEST
    return float("nan") if narrow else fidelity.vif(image, reference)


def _histograms(image: Pixels, real: Pixels, mask: fidelity.Mask | None, end: str) -> dict[str, float]:
    return {
        f"hist_rgb256{end}": fidelity.histogram_correlation(image, real, 256, "rgb", mask),
        f"hist_lab256{end}": fidelity.histogram_correlation(image, real, 256, "lab", mask),
        f"hist_rgb3d32{end}": fidelity.joint_histogram_correlation(image, real, 32, mask),
    }


def _iod(generated: Pixels, real: Pixels, nucleus: float | None) -> dict[str, float]:
    longer = max(generated.shape[:2])
    published = _iod_at(stain.SIDE, generated, real, nucleus)
    native = published if longer == stain.SIDE else _iod_at(longer, generated, real, nucleus)
    return {
        f"iod_{whose}{size}{place}": value
        for size, table in (("", published), ("_native", native))
        for place, pair in table.items()
        for whose, value in zip(("generated", "real"), pair, strict=True)
    }


def _field_errors_of(
    generated: Pixels, real: Pixels, tissue: Mask, iod: dict[str, float]
) -> dict[str, float]:
    """How far each field's amount is off; `iod` holds the sums in cells, if cells are known."""
    density, true = (float(stain.dab_density(pixels)[tissue].sum()) for pixels in (generated, real))
    pairs = {"": (density, true)}
    for place in FIELD_ERRORS:
        if place and f"iod_real_native{place}" in iod:
            pairs[place] = iod[f"iod_generated_native{place}"], iod[f"iod_real_native{place}"]
    return {f"iod_field_error{place}": stain.field_error(*pair) for place, pair in pairs.items()}


def _iod_at(
    side: int, generated: Pixels, real: Pixels, nucleus: float | None
) -> dict[str, tuple[float, float]]:
    """(generated, real) at `side` pixels, for each place where to sum."""
    fake, true = (stain.at_side(pixels, side) for pixels in (generated, real))
    density, true_density = stain.dab_density(fake), stain.dab_density(true)
    found = {"": (float(density.sum()), float(true_density.sum()))}
    if nucleus is not None:
        diameter = nucleus * side / max(generated.shape[:2])
        mask, true_mask = cell_mask(fake, diameter), cell_mask(true, diameter)
        in_real = float(true_density[true_mask].sum())
        found["_cells"] = (float(density[mask].sum()), in_real)
        found["_real_cells"] = (float(density[true_mask].sum()), in_real)
    return found


def _cells(generated: Pixels, real: Pixels, source: Pixels | None, nucleus: float) -> dict[str, float]:
    found: dict[str, float] = {}
    for whose, image in (("generated", generated), ("real", real)):
        mask = cell_mask(image, nucleus)
        counted = positivity(image, split_cells(mask, nucleus))
        found |= {
            f"ki67_index_{whose}": counted.positive,
            f"h_score_{whose}": counted.h_score,
            f"cells_{whose}": float(counted.cells),
        }
        if whose == "generated" and source is not None:
            found["nuclei_dice_source"] = structure.dice(mask, nuclei_of_he(source, nucleus))
    return found
