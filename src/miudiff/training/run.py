"""One YAML file is one run: which learner, on what, how long, where.

    task: score            # or mi
    out: runs/ki67-score
    data: {root: ..., mpp: 1.0, size: 64, sources: [{files: "ihc/*.jpg", mpp: 0.25}]}
    score: {network: {...}, optimizer: {...}}
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import Field

from miudiff.config import Strict, to_yaml
from miudiff.data.tiles import DataConfig
from miudiff.diffusion.learner import ScoreConfig


class RunConfig(Strict):
    """A training run."""

    task: Literal["score"] = Field("score", description="What is learned.")
    out: Path = Field(description="The run's folder; the same command goes on in it.")
    data: DataConfig
    markers: tuple[str, ...] = Field((), description="Names of the markers of a model of several.")
    score: ScoreConfig = ScoreConfig()
    steps: int = Field(40_000, ge=1)
    batch_size: int = Field(4, ge=1, description="Over all processes.")
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    log_every: int = Field(20, ge=1)
    save_every: int = Field(500, ge=1)
    workers: int = Field(0, ge=0, description="Processes that read tiles.")
