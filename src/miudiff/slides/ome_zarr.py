"""Blocks into an OME-Zarr image (OME-NGFF 0.5, Zarr 3): a folder with one file for each tile, as web and cloud viewers read it."""

from __future__ import annotations

import glob
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from miudiff.errors import DataError, unwritable
from miudiff.images import part_name
from miudiff.slides.pyramid import BlockStore, Layout

COLOURS = {"red": "FF0000", "green": "00FF00", "blue": "0000FF"}


def export_zarr(store: BlockStore, path: str | Path, mpp: float | None, name: str, notice: str = "") -> None:
    """Write a finished store as OME-Zarr, without further loss; the folder appears whole or not at all.

    Args:
        store: Has every block of every level.
        path: The folder, by custom named .ome.zarr; an OME-Zarr image that is there is replaced.
        mpp: Micrometres per pixel of level 0; None states no scale.
        name: Of the image, as viewers show it.
        notice: Kept in the attributes, for whoever meets the image without its record.

    Raises:
        DataError: zarr is not installed, something else is at `path`, or it cannot be written.
        SlideError: A block is missing or damaged.
    """
    try:
        import zarr
    except ImportError as error:
        raise DataError(
            f"{path}: OME-Zarr needs the library zarr; install it with: pip install 'miudiff[zarr]'"
        ) from error
    path = Path(path)
    if path.exists() and not (path / "zarr.json").is_file():
        raise DataError(f"{path}: is there and no OME-Zarr image; remove it or name another folder")
    for killed in path.parent.glob(part_name(path.with_name(glob.escape(path.name)), "*")):
        shutil.rmtree(killed, ignore_errors=True)
    part = path.with_name(part_name(path, str(os.getpid())))
    try:
        group = zarr.open_group(part, mode="w", zarr_format=3)
        for level in range(len(store.layout.levels)):
            _write_level(store, level, group)
        group.attrs.update(_attributes(store.layout, mpp, name, notice))
        if path.exists():
            shutil.rmtree(path)
        os.replace(part, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_level(store: BlockStore, level: int, group: Any) -> None:
    tile, (width, height) = store.layout.tile, store.layout.levels[level]
    array = group.create_array(
        str(level), shape=(3, height, width), chunks=(3, tile, tile), dtype="uint8", dimension_names="cyx"
    )
    for row in range(store.layout.rows(level)):
        for column, data in enumerate(store.tiles(level, row)):
            top, left = row * tile, column * tile
            pixels = store.compression.decode(data)[: height - top, : width - left]
            array[:, top : top + tile, left : left + tile] = np.moveaxis(pixels, -1, 0)


def _attributes(layout: Layout, mpp: float | None, name: str, notice: str) -> dict[str, Any]:
    unit = {} if mpp is None else {"unit": "micrometer"}
    datasets = []
    for level in range(len(layout.levels)):
        size = float(mpp or 1)
        across, down = layout.factor(level)
        # The first pixel is the mean of several and lies in their middle.
        middle = [0.0, (down - 1) / 2 * size, (across - 1) / 2 * size]
        transforms = [
            {"type": "scale", "scale": [1.0, down * size, across * size]},
            {"type": "translation", "translation": middle},
        ]
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    axes = [{"name": "c", "type": "channel"}, *({"name": axis, "type": "space", **unit} for axis in "yx")]
    window = {"min": 0, "max": 255, "start": 0, "end": 255}
    channels = [
        {"label": label, "color": color, "active": True, "window": window} for label, color in COLOURS.items()
    ]
    return {
        "ome": {
            "version": "0.5",
            "multiscales": [{"name": name, "axes": axes, "datasets": datasets, "type": "mean of 2 x 2"}],
            "omero": {"channels": channels, "rdefs": {"model": "color"}},
        },
        **({"miudiff": {"notice": notice}} if notice else {}),
    }
