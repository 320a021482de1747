"""Named settings: `paper` reads the paper literally, `fast` and `thorough` are the best found; the ablations of Tables 1, 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from miudiff.config import override, parse
from miudiff.errors import ConfigError
from miudiff.methods.miu_diff import MIUDiffConfig

PAPER = MIUDiffConfig()

# What both change of the paper and why, docs/method.md#fast-and-thorough: the dyes in the marker's colours; only the shared information
# guides, because Eq. 2's first half works against structure; the source's gradient map without noise, of which the estimator knows
# something at every level; a shift of a stated share of the noise, because c = 1 moves nothing. The walk begins at 150, because the
# colours are right from the start and structure is lost with every level more. Variety makes some nuclei brown and others blue.
_FOUND: dict[str, Any] = {
    "reverse": {"palette": True, "variety": 0.5, "start": 150},
    "guidance": {"normalise": "unit_rms", "source_noise": "clean", "scale": 0.1},
    "energy": {"guidance": "shared"},
}
# Eight evaluations. No refinement, which takes longer than the eight steps and moves no measure by more than a hundredth.
FAST = parse(
    MIUDiffConfig,
    {
        **_FOUND,
        "reverse": {**_FOUND["reverse"], "steps": 8},
        "refinement": {"loss": "none"},
    },
    "preset fast",
)
THOROUGH = parse(
    MIUDiffConfig,
    {
        **_FOUND,
        "reverse": {**_FOUND["reverse"], "steps": 60},
    },
    "preset thorough",
)

PRESETS: Mapping[str, MIUDiffConfig] = {"fast": FAST, "thorough": THOROUGH, "paper": PAPER}

# Table 1 and Table 2 as changes of a preset. A row that changes nothing of its preset, or the same as a row before it, is left out.
ABLATIONS: Mapping[str, tuple[str, ...]] = {
    "Eq. 2": ("energy.guidance=full",),
    "I-guided": ("energy.guidance=shared",),
    "U-guided": ("energy.guidance=unique",),
    "w/o MI": ("energy.guidance=none",),
    "w/ PCL": ("refinement.loss=contrastive",),
    "l2": ("refinement.loss=l2",),
    "w/o PCL": ("refinement.loss=none",),
    "w/o palette": ("reverse.palette=false",),
    "w/o variety": ("reverse.variety=0",),
    "t0'=80": ("refinement.loss=contrastive", "refinement.start=80"),
    "t0'=10": ("refinement.loss=contrastive", "refinement.start=10"),
    "S=500": ("reverse.start=500",),
    "S=300": ("reverse.start=300",),
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
