"""The two dyes of an H&E section, and the section in other dyes, so that one stained darker does not come out more positive.

The optical density of an H&E pixel is a sum of two dyes. Their colours are estimated from a section's own tissue (Macenko et al.
2009): in the plane of the two largest principal directions of density, the dyes are the extreme angles. One fit holds for a whole
slide or folder; a fit per tile would take a tile without nuclei for a palely stained one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.ndimage import uniform_filter

from miudiff.config import Strict
from miudiff.errors import DataError
from miudiff.images import Pixels
from miudiff.stains import HE_EOSIN, HE_HEMATOXYLIN, Floats, optical_density, stain_matrix

log = logging.getLogger(__name__)

SEEN = 2**18  # pixels of each image that are looked at, evenly over it
FEWEST = 2000  # pixels of tissue below which nothing is estimated
STAINED = 0.12  # optical density, mean of the three colours, from which a pixel is tissue, where strengths are not yet known
SHARE = 0.4  # sum of both dyes, in strengths, from which it is tissue
ROUNDS = 6  # in which tissue and strengths settle
BRIGHT = 0.93  # of the brightest colour, from which a pixel is glass
COLOURED = (
    0.35  # its range over the colours, in means: less is pigment, pen or dirt, which no dye of the two is
)
BLUR = 5  # pixels over which colours are averaged, fewer than a nucleus has: noise and JPEG's colours widen the angle
EXTREMES = (0.5, 99.5)  # percentiles of the angle that are the dyes
NEAR = 0.8  # cosine to the reference dye below which an estimate is not believed
UNSEEN = 240.0  # grey level of the glass of a field that shows none
TINGE = 0.025  # optical density by which the brightest colour lacks more green than red and blue, from which it is no glass
# Percentiles of the amounts that are the strengths: nuclei are few and dense, and what is densest of eosin is blood.
STRENGTH = (99.0, 75.0)
Colour = tuple[float, float, float]


class HEStains(Strict):
    """The glass and the two dyes of an H&E section."""

    light: Colour = Field(description="Grey levels of no density at all: of the brightest glass.")
    glass: Colour | None = Field(
        None,
        description="Grey levels of the glass as it usually is; None, as in earlier records: the light's.",
    )
    hematoxylin: Colour = Field(description="Unit vector of optical density.")
    eosin: Colour = Field(description="Unit vector of optical density.")
    strength: tuple[float, float] = Field(
        description="Percentiles 99 and 75 of the amounts of hematoxylin and eosin in tissue, in optical density."
    )

    def amounts(self, image: Pixels) -> Floats:
        """Hematoxylin and eosin [H, W, 2] of uint8 [H, W, 3], not negative; 1 is the section's strength of each."""
        matrix = stain_matrix(self.hematoxylin, self.eosin)
        found = optical_density(image, np.array(self.light)) @ np.linalg.pinv(matrix[:2])
        return np.asarray(np.clip(found, 0, None) / np.array(self.strength))


@dataclass(frozen=True)
class Normaliser:
    """A section in the light, the dyes and the strengths of other H&E, and a result on the section's own glass.

    Optical density D becomes D A, where A scales the amounts of both dyes to the target's strengths and gives them its colours:

        A = 1 + M⁺ (diag(s' / s) M' - M)        M, s the section's dyes and strengths, M', s' the target's

    What no dye explains is kept, so pigment stays dark. No pixel depends on another.
    """

    own: HEStains
    target: HEStains

    def he(self, pixels: Pixels) -> Pixels:
        """H&E of the section, uint8 [H, W, 3], as if it had been stained and scanned as the target was; the same shape."""
        levels = [np.ascontiguousarray(pixels[..., c]) for c in range(3)]
        found = np.empty_like(pixels)
        for c, (red, green, blue) in enumerate(self._factors):
            light = red[levels[0]]
            light *= green[levels[1]]
            light *= blue[levels[2]]
            found[..., c] = np.minimum(light, 255, out=light) + 0.5  # rounds, as casting cuts
        return found

    def ihc(self, pixels: Pixels) -> Pixels:
        """A result, whose glass is white, uint8 [H, W, 3], on the section's glass; the same shape."""
        found = np.empty_like(pixels)
        for c, level in enumerate(self.own.glass or self.own.light):
            found[..., c] = np.round(np.arange(256) * level / 255).astype(np.uint8)[pixels[..., c]]
        return found

    @cached_property
    def _factors(self) -> NDArray[np.float32]:
        """What each grey level of each colour does to each of the new colours, [new, old, 256]: their product is the grey level."""
        own = stain_matrix(self.own.hematoxylin, self.own.eosin)[:2]
        target = stain_matrix(self.target.hematoxylin, self.target.eosin)[:2]
        ratio = np.array(self.target.strength) / self.own.strength
        mixing = np.eye(3) + np.linalg.pinv(own) @ (ratio[:, None] * target - own)
        levels = np.arange(256).clip(1, None)
        density = np.log10(
            np.array(self.own.light)[:, None] / levels
        )  # below 0 where it is paler than the glass
        factors = 10 ** -(mixing.T[..., None] * density)
        factors[:, 0] *= np.array(self.target.light)[:, None]
        return factors.astype(np.float32)

    def __str__(self) -> str:
        (h, e), (target_h, target_e) = self.own.strength, self.target.strength
        return f"hematoxylin {h:.2f}, eosin {e:.2f} (the model's H&E: {target_h:.2f}, {target_e:.2f})"


def fit_he_stains(samples: Iterable[Pixels]) -> HEStains:
    """The dyes of a section, from some uint8 [H, W, 3] of it.

    What is tissue is told in the section's own strengths: by a fixed density less of a pale section would count, and what is left is
    darker than the mean of it. A dye whose estimate is far from any hematoxylin or eosin (a field of one dye alone has no second) takes the reference colour.

    Raises:
        DataError: Too little tissue to estimate anything.
    """
    parts = [(_some(image), _some(uniform_filter(image, (BLUR, BLUR, 0), np.float32))) for image in samples]
    sharp, smooth = (np.concatenate(kind) for kind in zip(*parts or [_NOTHING], strict=True))
    light, glass = _glass(sharp)
    dyed, of_dyes = (_coloured(optical_density(pixels, light)) for pixels in (sharp, smooth))
    tissue, of_tissue = (density[density.mean(axis=1) > STAINED] for density in (dyed, of_dyes))
    if (fewest := min(len(tissue), len(of_tissue))) < FEWEST:
        raise DataError(
            f"{fewest} pixels of tissue, expected at least {FEWEST} to estimate the dyes from; give more tissue, or take it as it is (--normalise off)"
        )
    for _ in range(ROUNDS):
        hematoxylin, eosin = _dyes(of_tissue)
        unmix = np.linalg.pinv(np.stack([hematoxylin, eosin]))
        amounts = np.clip(tissue @ unmix, 0, None).T
        strength = np.array([np.percentile(*one) for one in zip(amounts, STRENGTH, strict=True)]).clip(0.03)
        tissue, of_tissue = (
            density[(np.clip(density @ unmix, 0, None) / strength).sum(axis=1) > SHARE]
            for density in (dyed, of_dyes)
        )
    return HEStains(
        light=rounded(light),
        glass=rounded(glass),
        hematoxylin=rounded(hematoxylin),
        eosin=rounded(eosin),
        strength=(round(float(strength[0]), 4), round(float(strength[1]), 4)),
    )


def dyes_of(samples: Sequence[Pixels], otherwise: HEStains) -> HEStains:
    """The dyes of a section, from some uint8 [H, W, 3] of it; those given, on the section's own glass, where there is too little tissue."""
    try:
        return fit_he_stains(samples)
    except DataError as error:
        log.warning("taken for a section in the dyes of the model, but on its own glass: %s", error)
        light, glass = _glass(np.concatenate([_some(image) for image in samples]))
        return otherwise.model_copy(update={"light": rounded(light), "glass": rounded(glass)})


_NOTHING = (np.full((1, 3), 255, np.uint8),) * 2


def _some(image: NDArray[Any]) -> NDArray[Any]:
    """At most SEEN of the pixels of [H, W, 3], evenly, [N, 3]."""
    pixels = image.reshape(-1, 3)
    return pixels[:: max(-(-len(pixels) // SEEN), 1)]


def _glass(pixels: NDArray[Any]) -> tuple[Floats, Floats]:
    """The brightest colour [3] of [N, 3], and the median of all that is nearly as bright: a scanner that sharpens has rims brighter than glass.

    Where both dyes can be seen in it, it is pale tissue, and its brightest level counts for all; a result then lies on what scanners
    usually have for glass, if that is brighter. Both dyes absorb green most; a lamp is bluer or redder than white, but not magenta.
    """
    light = np.percentile(pixels, 99, axis=0).clip(1, None)
    red, green, blue = np.log10(light.max() / light)
    if green - max(red, blue) > TINGE:
        white = np.full(3, light.max())
        return white, white.clip(UNSEEN)
    bright = pixels[(pixels >= BRIGHT * light).all(axis=1)]
    return light, np.median(bright, axis=0) if len(bright) else light


def _coloured(density: Floats) -> Floats:
    """Those of densities [N, 3] that a dye may be, not pigment or dirt."""
    return density[np.ptp(density, axis=1) > COLOURED * density.mean(axis=1)]


def _dyes(density: Floats) -> tuple[Floats, Floats]:
    """Unit vectors of hematoxylin and eosin of tissue's densities [N, 3]."""
    references = [stain_matrix(HE_HEMATOXYLIN, HE_EOSIN)[i] for i in (0, 1)]
    _, vectors = np.linalg.eigh(np.cov(density.T))
    plane = vectors[:, [2, 1]] * np.sign(vectors[:, [2, 1]].sum(axis=0))
    angle = np.arctan2(*(density @ plane).T[::-1])
    found = [plane @ np.array([np.cos(a), np.sin(a)]) for a in np.percentile(angle, EXTREMES)]
    found.sort(key=lambda dye: float(dye[0]), reverse=True)  # hematoxylin absorbs red, eosin hardly does
    return tuple(  # type: ignore[return-value]
        dye if dye @ reference > NEAR else reference for dye, reference in zip(found, references, strict=True)
    )


def rounded(values: Floats) -> Colour:
    """Three numbers as a model folder holds them."""
    return tuple(round(float(value), 4) for value in values)  # type: ignore[return-value]
