"""The dyes that the images of a folder share: one fit for all of them, the same for every process that works on them.

A fit for each image would take one that happens to hold few nuclei for a palely stained one. What was fitted is one of the settings of
the results (`translation.json`): the same command goes on with it, whatever files have been added to the folder meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from miudiff import __version__
from miudiff.config import parse
from miudiff.errors import DataError
from miudiff.evenly import evenly
from miudiff.guards import inspect
from miudiff.images import Pixels, read_image
from miudiff.locks import lock
from miudiff.normalisation import HEStains
from miudiff.result_folder import RECORD, announce, announced, earlier_run
from miudiff.stainer import VirtualStainer

FILES = 16  # that are sampled, evenly over the sorted names
DYES = "dyes"  # their key in the settings of results
Settings = dict[str, Any]
Pairs = Sequence[tuple[Path, Path]]


def settings_of(stainer: VirtualStainer, mpp: float | None, seed: int) -> Settings:
    """The settings of an image's result, without the dyes, as JSON gives them back, to be compared."""
    return {
        "miudiff": __version__,
        "model": stainer.model.identity,
        "marker": stainer.marker,
        "mpp": mpp,
        "seed": seed,
        "glass": stainer.glass,
        "mode": stainer.mode,
        "precision": stainer.placement.precision,
        "threads": stainer.placement.threads,
        "method": stainer.name,
        "config": stainer.config.model_dump(mode="json") if stainer.config else {},
        "normalise": None if stainer.normalise == "off" else stainer.normalise,  # as of results without it
        DYES: None,
    }


@contextlib.contextmanager
def shared_dyes(
    stainer: VirtualStainer,
    folder: Path,
    settings: Settings,
    pairs: Pairs,
    overwrite: bool,
    scale: Callable[[Path], float | None],
) -> Iterator[Settings]:
    """Announce what this process makes (`result_folder.announce`); gives the settings with the dyes of the section.

    They are those of a process that is making the same results, or of earlier results, or else are fitted. Whoever comes first
    fits, and the others wait for it.

    Args:
        scale: Micrometres per pixel of a source.

    Raises:
        BusyError: Another process is making one of these with other settings.
    """
    names = [result.name for _, result in pairs]
    with contextlib.ExitStack() as stack:
        with lock(folder / ".section.lock", wait=True):
            if settings["normalise"] == "section":
                settings = (
                    announced(folder, settings, names, DYES)
                    or (None if overwrite else earlier_run(folder / RECORD, settings, pairs, DYES))
                    or settings | {DYES: _fitted(stainer, [source for source, _ in pairs], scale)}
                )
            stack.enter_context(announce(folder, settings, names))
        yield settings


def dyes_in(record: Settings) -> HEStains | None:
    """The dyes of a record; None where H&E was taken as it was.

    Raises:
        ConfigError: They are none.
    """
    found = record.get(DYES)
    return None if found is None else parse(HEStains, found, "the dyes of the record")


def as_json(dyes: HEStains | None) -> Settings | None:
    """Dyes as a record gives them back."""
    return dyes.model_dump(mode="json") if dyes else None


def _fitted(
    stainer: VirtualStainer, sources: Sequence[Path], scale: Callable[[Path], float | None]
) -> Settings | None:
    return as_json(stainer.fit(_readable(evenly(sources, FILES), scale)))


def _readable(
    paths: Sequence[Path], scale: Callable[[Path], float | None]
) -> Iterator[tuple[Pixels, float | None]]:
    """Images of H&E and their scales; one that is something else, or cannot be read, is told when its turn comes."""
    for path in paths:
        with contextlib.suppress(DataError):
            pixels = read_image(path)
            if not any(one.kind == "stain" for one in inspect([pixels], None)):
                yield pixels, scale(path)
