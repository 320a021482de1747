"""A row's images of one seed to their mean scores, kept in `scores.json` for as long as they are those of these images.

Measures and values are those of `miudiff evaluate`; beside them IOD in per cent of the real stain, and seconds for an image.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from miudiff import __version__
from miudiff.checkpoints import read_json, write_json
from miudiff.evaluation.panel import MEASURES
from miudiff.evaluation.publish import plain
from miudiff.evaluation.scores import score_images
from miudiff.images import read_image
from miudiff.reproduce.cases import Case
from miudiff.reproduce.translating import Translated


def score_once(made: Translated, case: Case) -> dict[str, float]:
    """The mean scores of one seed's images, from `scores.json` or measured now; NaN where one is undefined or infinite."""
    path = made.folder / "scores.json"
    of = {
        "miudiff": __version__,
        "measures": list(MEASURES),
        "mpp": case.mpp,
        "images": _digest([*made.files, *case.files("IHC"), *case.files("HE")]),
    }
    before = read_json(path) if path.exists() else {}
    if before.get("of") != of:
        generated = [read_image(file) for file in made.files]
        scores = score_images(generated, case.read("IHC"), case.read("HE"), case.test, mpp=case.mpp)
        rows = {name: plain(row) for name, row in zip(case.test, scores.rows, strict=True)}
        before = {"of": of, "mean": plain(_with_shares(scores.mean)), "images": rows}
        write_json(path, before)
    mean = {key: math.nan if value is None else float(value) for key, value in before["mean"].items()}
    return {**mean, "seconds": made.seconds}


def _with_shares(mean: Mapping[str, float]) -> dict[str, float]:
    """With the IOD deviation in per cent of the real images' IOD."""
    found = dict(mean)
    for end in ("", "_cells"):
        if f"iod_real{end}" in found:
            real = found[f"iod_real{end}"]
            share = 100 * (found[f"iod_generated{end}"] - real) / real if real else math.nan
            found[f"iod_percent{end}"] = share
    return found


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(hashlib.blake2b(file.read_bytes(), digest_size=16).digest())
    return digest.hexdigest()
