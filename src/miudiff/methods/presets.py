"""Named settings: `paper` reads the paper literally, `tuned` is the best that was found, and each ablation of Tables 1 and 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from miudiff.config import override, parse
from miudiff.errors import ConfigError
from miudiff.methods.miu_diff import MIUDiffConfig

PAPER = MIUDiffConfig()

# What differs from the paper and why, docs/method.md#tuned: 60 of the 300 indices, a fifth of the time; luma mapped to the marker's; only the
# shared information guides, because Eq. 2's first half works against structure; the source's gradient map without noise,
# of which the estimator knows something at every level; a shift of a stated share of the noise, because c = 1 moves nothing.
TUNED = parse(
    MIUDiffConfig,
    {
        "reverse": {"steps": 60, "tone": True},
        "guidance": {"scale": 0.1, "normalise": "unit_rms", "source_noise": "clean"},
        "energy": {"guidance": "shared"},
    },
    "preset tuned",
)

PRESETS: Mapping[str, MIUDiffConfig] = {"tuned": TUNED, "paper": PAPER}

# Table 1 and Table 2 as changes of a preset; the first and the last row of Table 1 here are what a preset may leave out or add.
ABLATIONS: Mapping[str, tuple[str, ...]] = {
    "Eq. 2": ("energy.guidance=full",),
    "I-guided": ("energy.guidance=shared",),
    "U-guided": ("energy.guidance=unique",),
    "w/o MI": ("energy.guidance=none",),
    "l2": ("refinement.loss=l2",),
    "w/o PCL": ("refinement.loss=none",),
    "w/o tone": ("reverse.tone=false",),
    "t0'=80": ("refinement.start=80",),
    "t0'=10": ("refinement.start=10",),
    "S=500": ("reverse.start=500",),
    "S=100": ("reverse.start=100",),
    "w/o MI, w/o PCL": ("energy.guidance=none", "refinement.loss=none"),
}


def preset(name: str, changes: tuple[str, ...] = ()) -> MIUDiffConfig:
    """A preset with `key=value` changes.

    Raises:
        ConfigError: No such preset, or a change that does not fit.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset '{name}': expected one of {', '.join(PRESETS)}")
    values: dict[str, Any] = PRESETS[name].model_dump(mode="json")
    return parse(MIUDiffConfig, override(values, changes), f"preset {name}")
