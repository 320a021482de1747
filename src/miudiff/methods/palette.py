"""The palette of a marker: H&E's two dyes in the colours that nuclei and what lies beside them have in the marker's IHC.

Removing colour leaves luma, which says "dark" of eosin and of hematoxylin alike, so cytoplasm is stained as nuclei are. The palette
(an extension of the paper) keeps the dyes apart. What the reverse process begins from is, at each pixel, what the marker's IHC shows of
such a place: nucleus or not, and how much of it.

    D = h N + (1 - min(h, 1)) G          optical density
    h = (hematoxylin - h_0) / (h_1 - h_0),   e = eosin / e_1
    N = p N+ + (1 - p) N-
    G = e G-                                 for antigens of nuclei
    G = p min(2 e, 1) G+ + (1 - p) e G-      for all others
    p = Phi(v u + sqrt(1 + v^2) Phi^-1(share))

with N+ and N- the densities of the typical colours of stained and unstained nuclei in the IHC set, G+ and G- those of stained and unstained
tissue beside nuclei, h_0 and h_1 the mean hematoxylin beside and in the nuclei of the H&E set, e_1 its mean eosin beside nuclei, and p how
much of a place is positive, which is the share on average whatever v is.

Nothing in an H&E says which nucleus is positive. So for antigens of nuclei u is noise of unit variance, about as wide as a nucleus: with
v = 0 each begins as the mean of both, and the larger the variety v, the more of them begin as one or the other. Antigens of cytoplasm and
membranes are antigens of epithelium more often than of stroma: there u is how basophilic tissue is around (the average of min(h, LITTLE),
to which cytoplasm counts as nuclei do), standardised by the H&E set, and v is CONTRAST. How brown such a place is does not hang on how pink
it was: collagen is pinkest (docs/method.md says what real HER2 pairs tell of both).

The two sets need not be pairs. How positive results are hangs on the model as well, so `matching.match_share` has it stain H&E twins of the
IHC set, and multiplies the share by the gain at which as much of the results is positive as of the set.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import avg_pool2d

from miudiff.cells import (
    CELL,
    WEAK,
    Mask,
    blue_nuclei,
    dab_above_glass,
    glass_light,
    nuclei_of_he,
    split_cells,
    stained_nuclei,
    surroundings,
    tissue_mask,
)
from miudiff.config import Strict
from miudiff.errors import DataError
from miudiff.images import Pixels
from miudiff.normalisation import Colour, HEStains, fit_he_stains, rounded
from miudiff.stains import Floats, stain_matrix

LITTLE = 0.2  # of h, the hematoxylin of a basophilic cytoplasm
CONTRAST = 2.0  # v of antigens that are none of nuclei
MOST = 1.4  # of h and e: denser is not more positive, but a fold, pigment, or a nucleus that is crowded
GRAIN = 0.7  # nuclei across: the same of u
REACH = 1.5  # nuclei across: averaged over such a square twice, h says how basophilic tissue is around
FEWEST = 300  # pixels of a kind for an image to count


class Palette(Strict):
    """What the dyes of an H&E set are in a marker's IHC."""

    dyes: HEStains = Field(description="The dyes of the H&E set.")
    hematoxylin: tuple[float, float] = Field(
        description="Mean hematoxylin beside and in nuclei of the H&E set, 1 being the set's strength."
    )
    eosin: float = Field(
        gt=0, description="Mean eosin beside nuclei of the H&E set, 1 being the set's strength."
    )
    nuclei: tuple[Colour, Colour] = Field(
        description="Optical density of unstained and of stained nuclei in the IHC set, N- and N+."
    )
    ground: tuple[Colour, Colour] = Field(description="The same of tissue beside nuclei, G- and G+.")
    nuclear: bool = Field(description="Whether the antigen is one of nuclei.")
    share: float = Field(
        ge=0, le=1, description="How much of the area of nuclei, or of tissue beside them, has it."
    )
    gain: float = Field(1.0, gt=0, description="How many times the share counts.")
    basophilia: tuple[float, float] = Field(
        description="Mean and standard deviation, in the tissue of the H&E set, of min(h, LITTLE) around."
    )
    reach: int = Field(
        1, ge=1, description="Pixels, odd: side of the square that h is averaged over for it, twice."
    )
    grain: int = Field(
        1, ge=1, description="Pixels, odd: side of the square that noise is averaged over for u, twice."
    )

    def __call__(self, he: Tensor, noise: Tensor | None = None, variety: float = 0.0) -> Tensor:
        """H&E [B, 3, H, W] in [-1, 1] with the dyes of the set, in the marker's colours; the same shape.

        Args:
            noise: Standard normal [B, 1, H, W], where `variety` is not 0.
            variety: v, at least 0.
        """
        unmix = np.linalg.pinv(stain_matrix(self.dyes.hematoxylin, self.dyes.eosin)[:2]) / self.dyes.strength
        light = he.new_tensor(self.dyes.light).view(1, 3, 1, 1)
        density = -torch.log10((127.5 * (he + 1)).clamp(min=1.0) / light).clamp(max=0)
        amounts = torch.einsum("bchw,cs->bshw", density, he.new_tensor(unmix))
        least, most = self.hematoxylin
        h = ((amounts[:, :1] - least) / (most - least)).clamp(0, MOST)
        e = (amounts[:, 1:] / self.eosin).clamp(0, MOST)
        plain, stained = he.new_tensor((self.nuclei, self.ground)).view(2, 2, 1, 3, 1, 1).unbind(1)
        p = self._positive(h, noise, variety)
        nuclei = p * stained[0] + (1 - p) * plain[0]
        beside = e * plain[1]
        if not self.nuclear:
            beside = p * (2 * e).clamp(max=1) * stained[1] + (1 - p) * beside
        return 2 * 10 ** -(h * nuclei + (1 - h.clamp(max=1)) * beside) - 1

    def _positive(self, h: Tensor, noise: Tensor | None, variety: float) -> Tensor:
        """p, like h [B, 1, H, W]."""
        share = min(self.gain * self.share, 1.0)
        if not self.nuclear:
            around, (mean, spread) = h.clamp(max=LITTLE), self.basophilia
            for _ in range(2):  # a box has edges, which would be seen; twice, it has none
                around = avg_pool2d(around, self.reach, 1, self.reach // 2, count_include_pad=False)
            return _share((around - mean) / spread, CONTRAST, share)
        if noise is None or not variety:
            return torch.full_like(h, share)
        return _share(_smooth_noise(noise, self.grain), variety, share)


def _share(u: Tensor, v: float, share: float) -> Tensor:
    """Phi(v u + sqrt(1 + v^2) Phi^-1(share)), whose mean over standard normal u is the share."""
    share = min(max(share, 1e-3), 1 - 1e-3)  # of which there is a finite quantile
    return torch.special.ndtr(v * u + (1 + v**2) ** 0.5 * NormalDist().inv_cdf(share))


def _smooth_noise(noise: Tensor, side: int) -> Tensor:
    """Standard normal noise [B, 1, H, W], averaged twice over a square and of unit variance again, but near the border, where less is averaged."""
    for across in ((side, 1), (1, side)) * 2:  # one direction at a time
        half = (across[0] // 2, across[1] // 2)
        noise = avg_pool2d(noise, across, 1, half, count_include_pad=False)
    # A box twice is a triangle, in each direction; its weights' squares sum to this.
    triangle = side - np.abs(np.arange(1 - side, side))
    return noise * side**4 / np.square(triangle).sum()


def measure_palette(
    he: Sequence[Pixels], ihc: Sequence[Pixels], nuclear: bool, diameter: float = CELL
) -> Palette:
    """The palette between two unpaired sets of uint8 [H, W, 3]; each image counts alike, whatever its size.

    Args:
        nuclear: Whether the antigen is one of nuclei, so that what is brown is a nucleus; else a nucleus is blue.
        diameter: Pixels across a nucleus.

    Raises:
        DataError: A set without tissue, or without nuclei.
    """
    kinds = []
    for image in he:
        with suppress(DataError):  # too little tissue to know the image's own dyes by
            own = fit_he_stains([image]).amounts(image)
            kinds.append((own, nuclei_of_he(image, diameter), tissue_mask(image)))
    inside, beside = _means(kinds, "H&E")
    if inside[0] <= beside[0]:
        raise DataError("the H&E set has no more hematoxylin in nuclei than beside them; expected H&E")
    reach = round(REACH * diameter) // 2 * 2 + 1
    around = [
        surroundings(((own[..., 0] - beside[0]) / (inside[0] - beside[0])).clip(0, LITTLE), tissue, reach)[
            tissue
        ]
        for own, _, tissue in kinds
    ]
    known = [found for image in ihc if (found := _Stained.of(image, nuclear, diameter))]
    if not known:
        raise DataError(
            f"no IHC image has {FEWEST} pixels of nuclei and as many of tissue beside them; expected stained tissue"
        )
    return Palette(
        dyes=fit_he_stains(he),
        hematoxylin=(round(float(beside[0]), 4), round(float(inside[0]), 4)),
        eosin=round(max(float(beside[1]), 1e-3), 4),
        nuclei=_typical([one.nuclei for one in known]),
        ground=_typical([one.ground for one in known]),
        nuclear=nuclear,
        share=round(float(np.mean([one.share for one in known])), 4),
        basophilia=(
            round(float(np.mean([found.mean() for found in around])), 4),
            round(max(float(np.mean([found.std() for found in around])), 1e-3), 4),
        ),
        reach=reach,
        grain=round(GRAIN * diameter) // 2 * 2 + 1,
    )


Kinds = tuple[
    Floats | None, Floats | None
]  # mean transmissions [3] of what is unstained, and of what is stained


class _Stained(NamedTuple):
    """What nuclei, and what lies beside them, look like in an IHC image, and which share of what the antigen is of is stained."""

    nuclei: Kinds
    ground: Kinds
    share: float

    @classmethod
    def of(cls, image: Pixels, nuclear: bool, diameter: float) -> _Stained | None:
        """Of uint8 [H, W, 3]; None of an image with less than FEWEST pixels of either."""
        colour, dab, tissue = image / glass_light(image), dab_above_glass(image), tissue_mask(image)
        nuclei = (stained_nuclei if nuclear else blue_nuclei)(image, diameter)
        # A nucleus is stained or not as a whole, and what is brown beside a positive one is its rim.
        labels = split_cells(nuclei, diameter)
        of_nuclei = np.asarray(ndimage.mean(dab, labels, np.arange(labels.max() + 1)))[labels]
        inside, beside = tissue & nuclei, tissue & ~nuclei
        if min(inside.sum(), beside.sum()) < FEWEST:
            return None
        stained = of_nuclei > WEAK, dab > WEAK
        share = stained[0][inside].mean() if nuclear else stained[1][beside].mean()
        return cls(_kinds(colour, inside, stained[0]), _kinds(colour, beside, stained[1]), float(share))


def _kinds(colour: Floats, where: Mask, stained: Mask) -> Kinds:
    """The mean colours of what is not stained and of what is; None for the rarer, where it is less than half of FEWEST pixels."""
    plain, brown = where & ~stained, where & stained
    return (
        colour[plain].mean(axis=0) if 2 * plain.sum() >= FEWEST else None,
        colour[brown].mean(axis=0) if 2 * brown.sum() >= FEWEST else None,
    )


def _typical(pairs: Sequence[Kinds]) -> tuple[Colour, Colour]:
    """The densities of the medians over images, unstained and stained: one odd section does not colour them all.

    A set of one kind alone has it for the other as well.
    """
    plain, brown = ([pair[kind] for pair in pairs if pair[kind] is not None] for kind in (0, 1))
    return _median(plain or brown), _median(brown or plain)


def _median(colours: Sequence[Floats | None]) -> Colour:
    return rounded(-np.log10(np.median(np.array(colours), axis=0).clip(1 / 255, 1)))


def _means(images: Sequence[tuple[Floats, Mask, Mask]], stain: str) -> tuple[Floats, Floats]:
    """Mean over images of the mean value in nuclei, and beside them, of (values, nuclei, tissue)."""
    found: list[list[Floats]] = [[], []]
    for values, nuclei, tissue in images:
        for means, where in zip(found, (tissue & nuclei, tissue & ~nuclei), strict=True):
            if where.sum() >= FEWEST:
                means.append(values[where].mean(axis=0))
    if not all(found):
        raise DataError(
            f"no {stain} image has {FEWEST} pixels of nuclei and as many of tissue beside them; expected stained tissue"
        )
    return np.mean(found[0], axis=0), np.mean(found[1], axis=0)
