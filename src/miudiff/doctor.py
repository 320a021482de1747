"""`miudiff doctor`: is everything here that a run needs? One line each: ok, or what to do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from miudiff import __version__


class Line(NamedTuple):
    ok: bool
    subject: str
    found: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{'ok  ' if self.ok else 'FIX '} {self.subject}: {self.found}" + (
            "" if self.ok else f"; {self.fix}"
        )


def examine() -> Iterator[Line]:
    """Each check in turn; a check that breaks is a line that says how."""
    for check in (_versions, _torchvision, _device, _precision, _readers, _weights, _disk):
        try:
            yield check()
        except Exception as error:  # a doctor must outlive what ails the patient
            yield Line(
                False,
                check.__name__.strip("_"),
                f"{type(error).__name__}: {error}",
                "reinstall with the README's command",
            )


def _versions() -> Line:
    names = ("torch", "diffusers", "accelerate", "numpy", "scikit-image", "tifffile")
    return Line(
        True,
        "versions",
        f"miudiff {__version__}, Python {platform.python_version()}, "
        + ", ".join(f"{n} {importlib.metadata.version(n)}" for n in names),
    )


def _torchvision() -> Line:
    if importlib.util.find_spec("torchvision") is None:
        return Line(True, "torchvision", "absent, as it should be (nothing here needs it)")
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        return Line(
            False,
            "torchvision",
            f"present but broken ({type(error).__name__}), which breaks other packages",
            "pip uninstall torchvision",
        )
    return Line(True, "torchvision", "present and importable, not used here")


def _device() -> Line:
    import torch

    from miudiff.device import place

    placement = place()
    return Line(
        True,
        "device",
        f"{placement.device}, {torch.get_num_threads()} threads, {torch.cuda.device_count()} CUDA devices",
    )


def _precision() -> Line:
    from miudiff.device import place

    placement = place()
    return Line(True, "precision", f"{placement.precision} ({placement.why})")


def _readers() -> Line:
    import numpy as np
    import openslide
    import tifffile

    from miudiff.images import read_image

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tile.tif"
        tifffile.imwrite(
            path, np.full((64, 64, 3), 200, np.uint8), tile=(32, 32), compression="jpeg", photometric="rgb"
        )
        read_image(path)
    return Line(
        True, "readers", f"Pillow, tifffile with JPEG tiles, OpenSlide {openslide.__library_version__}"
    )


def _weights() -> Line:
    import torch

    from miudiff.methods.model import load_model, model_folder
    from miudiff.naming import SHIPPED

    model = load_model(SHIPPED)
    with torch.no_grad():
        finite = bool(
            torch.isfinite(model.for_marker(None).predict_noise(torch.zeros(1, 3, 64, 64), 10)).all()
        )
    size = sum(p.stat().st_size for p in model_folder(SHIPPED).rglob("*") if p.is_file()) / 1e6
    return Line(
        finite,
        "weights",
        f"{SHIPPED}, {size:.1f} MB, markers {', '.join(model.card.markers)}",
        "reinstall the package",
    )


def _disk() -> Line:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    return Line(
        free > 2, "disk", f"{free:.0f} GB free here", "free some space: a training run keeps two states"
    )


def report(say: Callable[[str], None]) -> int:
    """Say each line; 0 if all are ok, else 2."""
    lines = []
    for line in examine():
        say(str(line))
        lines.append(line)
    return 0 if all(line.ok for line in lines) else 2
