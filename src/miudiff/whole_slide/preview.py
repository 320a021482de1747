"""A coarse result of a whole slide in about two minutes, whatever its size: few steps, and where they do not suffice few windows.

The network knows tissue at its own scale alone, so a coarser scale would make nuclei that are none. Instead the densest windows are
stained, spread over the tissue, and all else is grey as outside of regions: nothing is invented, and no pixel of the H&E is read or
encoded for what is not stained, which would take longer than the staining on a large slide. How many windows fit is
measured once, and kept with the unfinished work: the same command goes on to the same result, on a slower machine, too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from miudiff.estimate import Pace, pace_of, seconds_per_window
from miudiff.slides.choice import densest, only
from miudiff.slides.encoding import Compression
from miudiff.slides.frame import Window
from miudiff.slides.overview import TissueMap
from miudiff.slides.sight import Sight
from miudiff.stainer import VirtualStainer

SECONDS = 120.0
STEPS = 4  # at most


def hurried(stainer: VirtualStainer) -> VirtualStainer:
    """A stainer of the same model with few steps and without refinement; one pass stays."""
    if stainer.config is None or stainer.reverse is None:
        return stainer
    settings: dict[str, Any] = stainer.config.model_dump()
    key, of = ("reverse.", settings["reverse"]) if "reverse" in settings else ("", settings)
    changes = [f"{key}steps={min(STEPS, of['steps'] or STEPS)}"]
    if "refinement" in settings:
        changes.append("refinement.loss=none")
    quick = stainer.changed(changes)
    quick.say = stainer.say
    return quick


def choose(
    stainer: VirtualStainer,
    sight: Sight,
    tissue: TissueMap,
    compression: Compression,
    spent: float,
    kept: dict[str, Any] | None,
    say: Callable[[str], None],
) -> tuple[Sight, dict[str, Any]]:
    """What of a slide a preview stains, and how its record says so.

    Args:
        tissue: Where there is tissue, also where glass is stained.
        spent: Seconds that the command has taken so far.
        kept: What was chosen before, if this goes on; then nothing is measured.
    """
    windows, left = sight.parted()
    if kept is None:
        whole = pace_of(stainer, sight, compression, windows, left)
        fits = not windows or whole.seconds(len(windows), len(left)) <= SECONDS - spent
        count = len(windows) if fits else _fitting(stainer, sight, compression, windows, left, spent, whole)
        kept = {
            "windows": count,
            "of": len(windows),
            "whole": fits,
            "steps": stainer.steps_of_a_tile,
        }
    if kept["whole"]:
        return sight, kept
    chosen = densest(sight.frame, windows, tissue, kept["windows"])
    say(f"preview: {len(chosen):,} of {len(windows):,} windows with tissue, all else is left grey")
    return only(sight, chosen), kept


def _fitting(
    stainer: VirtualStainer,
    sight: Sight,
    compression: Compression,
    windows: list[Window],
    left: list[Window],
    spent: float,
    whole: Pace,
) -> int:
    """How many windows fit the time if all else is left grey; one at least."""
    grey = only(sight, windows[:1])
    pace = pace_of(stainer, grey, compression, (), [*windows[1:], *left])
    # windows that lie far apart are stained one by one
    if stainer.batch > 1:
        whole = whole._replace(network=seconds_per_window(stainer, sight.frame.size, 1))
    pace = whole._replace(left=pace.left)
    total = len(windows) + len(left)
    within = bisect_right(
        range(len(windows) + 1), SECONDS - spent, key=lambda count: pace.seconds(count, total - count)
    )
    return max(within - 1, 1)
