"""How much work the comparison may be: sizes, steps and seeds, one YAML file beside the recipes for each budget."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from miudiff.config import LARGEST_TILE, LAST_STEP, Strict, did_you_mean, parse, read_yaml
from miudiff.errors import ConfigError

Task = Literal["score", "mi", "classifier", "cut", "asp"]


class Training(Strict):
    """One learner's run."""

    steps: int = Field(ge=1, le=LAST_STEP)
    batch_size: int = Field(ge=1, le=65_536)
    tile: int = Field(
        ge=8,
        le=LARGEST_TILE,
        description="Side of a training tile; at most that of the smallest training image.",
    )
    settings: dict[str, Any] = Field({}, description="The learner's section of a training configuration.")


class Budget(Strict):
    """The sizes of one comparison."""

    description: str = Field(description="What stands under each table made with it.")
    side: int = Field(
        ge=64, le=12_000, description="Whole images are shrunk until their longer side has this many pixels."
    )
    images: int | None = Field(None, ge=1, description="Test images at most; null takes all.")
    seeds: int = Field(3, ge=1, le=1000)
    reverse_steps: int | None = Field(
        None, ge=2, description="Reverse steps of every diffusion system; null: each index from S on, 300."
    )
    score: Training
    mi: Training
    classifier: Training
    cut: Training
    asp: Training

    def training(self, task: Task) -> Training:
        """The run of one learner."""
        runs: dict[Task, Training] = {
            "score": self.score,
            "mi": self.mi,
            "classifier": self.classifier,
            "cut": self.cut,
            "asp": self.asp,
        }
        return runs[task]


def load_budget(name: str) -> Budget:
    """A budget by name, or from a YAML file of one's own.

    Raises:
        ConfigError: Neither, or a file that is no budget.
    """
    folder = Path(str(files("miudiff.recipes"))) / "budgets"
    for path in (folder / f"{name}.yaml", Path(name)):
        if path.is_file():
            return parse(Budget, read_yaml(path), str(path))
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    raise ConfigError(
        f"--budget {name}: no such file, expected one of {', '.join(known)}, or a YAML file like theirs{did_you_mean(name, known)}"
    )
