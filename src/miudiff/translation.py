"""A file or a folder of H&E images to virtual IHC, each result under its source's name.

Finished means renamed into place: what is there is whole, and the same command skips it and goes on. `translation.json` beside
the results says how they were made; results of other settings are not mixed with them. One bad file does not stop the rest.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miudiff import __version__
from miudiff.checkpoints import write_json
from miudiff.errors import DataError, MiudiffError
from miudiff.images import SUFFIXES, list_images, read_image, read_scale, write_image
from miudiff.stainer import VirtualStainer

RECORD = "translation.json"
NOTICE = "virtual stain: for research use only, not for diagnosis"


@dataclass(frozen=True)
class Outcome:
    """What became of each source."""

    written: tuple[Path, ...]
    skipped: tuple[Path, ...]
    failed: tuple[tuple[Path, str], ...]

    @property
    def exit_code(self) -> int:
        if not self.failed:
            return 0
        return 3 if self.written or self.skipped else 2


def plan(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """(source file, target file) pairs: a folder keeps each name, a file goes to a file or into a folder.

    Raises:
        DataError: Nothing to translate, or a target that would overwrite its source.
    """
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    if source.is_dir():
        if target.is_file():
            raise DataError(f"{target}: is a file, expected a folder for the images of {source}")
        pairs = [(path, target / path.name) for path in list_images(source)]
    elif target.suffix.lower() in SUFFIXES and not target.is_dir():
        pairs = [(source, target)]
    else:
        pairs = [(source, target / source.name)]
    for path, result in pairs:
        if result.exists() and result.samefile(path):
            raise DataError(
                f"{result}: is the source itself; give another target, so that the H&E image is kept"
            )
    return pairs


def translate_files(
    stainer: VirtualStainer,
    source: Path,
    target: Path,
    *,
    mpp: float | None,
    seed: int,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Translate every image of `source` into `target`.

    Args:
        mpp: Micrometres per pixel of the sources; None takes what a file states, or else its pixels as they are, and says so.

    Raises:
        DataError: Nothing to do, or `target` holds results of other settings.
    """
    pairs = plan(source, target)
    folder = pairs[0][1].parent
    settings = _settings(stainer, mpp, seed)
    _same_settings(folder / RECORD, settings, [p for _, p in pairs], overwrite)
    written: list[Path] = []
    skipped: list[Path] = []
    failed: list[tuple[Path, str]] = []
    began = time.monotonic()
    for number, (path, result) in enumerate(pairs, 1):
        if result.exists() and not overwrite:
            skipped.append(result)
            continue
        try:
            pixels = read_image(path)
            scale, told = _scale(path, mpp, stainer)
            rows, columns = stainer.working_size(pixels.shape[0], pixels.shape[1], scale)
            say(
                f"{path.name}: {pixels.shape[1]} x {pixels.shape[0]} pixels, {told}; {columns} x {rows} at the model's scale"
            )
            ihc = stainer.translate(pixels, scale, seed, path.name)
            _record(folder / RECORD, settings, result.name, {"source": str(path), "mpp": scale})
            write_image(result, ihc)
        except MiudiffError as error:
            message = str(error) if str(path) in str(error) else f"{path}: {error}"
            failed.append((path, message))
            say(f"failed: {message}")
            continue
        written.append(result)
        each = (time.monotonic() - began) / len(written)
        left = each * (len(pairs) - number)
        say(f"{number}/{len(pairs)} {result}  {each:.0f} s an image, about {left / 60:.0f} min left")
    return Outcome(tuple(written), tuple(skipped), tuple(failed))


def _scale(path: Path, mpp: float | None, stainer: VirtualStainer) -> tuple[float | None, str]:
    """The scale to use and how it is known."""
    stated = read_scale(path)
    model = stainer.model.card.mpp
    if mpp is not None:
        differs = stated is not None and abs(stated - mpp) > 0.02 * mpp
        return mpp, f"{mpp:g} um/px as given" + (f" (the file states {stated:g})" if differs else "")
    if stated is not None:
        return stated, f"{stated:g} um/px stated in the file"
    return (
        None,
        f"states no um/px: its pixels are used as they are, as if at the model's {model:g}; give --mpp if they are not"
        if model
        else "no scale",
    )


def _settings(stainer: VirtualStainer, mpp: float | None, seed: int) -> dict[str, Any]:
    return {
        "notice": NOTICE,
        "miudiff": __version__,
        "model": stainer.model.card.name,
        "marker": stainer.marker,
        "mpp": mpp,
        "seed": seed,
        "precision": stainer.placement.precision,
        "config": stainer.config.model_dump(mode="json"),
    }


def _same_settings(path: Path, settings: dict[str, Any], results: Sequence[Path], overwrite: bool) -> None:
    if overwrite or not path.exists() or not any(result.exists() for result in results):
        return
    before = _read(path)
    changed = [key for key in settings if before.get(key) != json.loads(json.dumps(settings[key]))]
    if changed:
        raise DataError(
            f"{path.parent}: holds results of another '{changed[0]}' ({path.name}); give another target, or --overwrite"
        )


def _record(path: Path, settings: dict[str, Any], name: str, entry: dict[str, Any]) -> None:
    images = _read(path).get("images", {}) if path.exists() else {}
    write_json(path, settings | {"images": images | {name: entry}})


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}
