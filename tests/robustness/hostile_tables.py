"""What `test_tables` tries: regions, tables, records, names and folders, each a function of a seed."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from miudiff.images import write_image

DEEP = "[" * 3000 + "]" * 3000
RAW = ["1e400", "-1e400", "NaN", "Infinity", "9" * 400, "9" * 5000, DEEP, "[" * 3000, r'"\ud800"', "0.0"]
VALUES = [None, True, False, 0, -1, 0.5, 1e300, -1e-300, "", "x", "a\nb", "x" * 10**5, "é\0", [], {}, [[]]]
SQUARE = [[2, 2], [60, 2], [60, 60], [2, 60], [2, 2]]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def hostile_json(random: Random, value: Any) -> bytes:
    """The value with some parts taken away, doubled or replaced, and perhaps bytes that are no JSON."""
    value = copy.deepcopy(value)
    raw: dict[str, str] = {}
    for number in range(random.choice((0, 1, 1, 1, 2, 4))):
        there = list(places(value))
        if not there:
            break
        container, key = random.choice(there)
        what = random.random()
        if what < 0.15:
            del container[key]
        elif what < 0.25 and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        elif what < 0.6:
            raw[f"raw {number}"] = random.choice(RAW)
            container[key] = f"raw {number}"
        else:
            container[key] = copy.deepcopy(random.choice(VALUES))
    text = json.dumps(value)
    for name, token in raw.items():
        text = text.replace(f'"{name}"', token)
    return spoilt(random, text.encode(), share=0.2)


def spoilt(random: Random, content: bytes, share: float) -> bytes:
    """Bytes of which, by chance, some are cut off, turned, or no text."""
    if random.random() > share:
        return content
    at = random.randrange(len(content) + 1)
    junk = random.choice(
        (b"", b"\xff\xfe", b"\0", b'"', b"\r", b"\xed\xa0\x80", b"\n" * 50, b"," * 50, b"\xe9")
    )
    return random.choice((content[:at], content[:at] + junk + content[at:], junk + content))


def regions(random: Random) -> Any:
    """Regions as QuPath exports them, or as a hand might draw them."""
    points = [[random.uniform(-50, 120), random.uniform(-50, 120)] for _ in range(random.choice((3, 5, 40)))]
    ring = random.choice(
        (SQUARE, SQUARE, points, [[2, 2], [60, 60], [60, 2], [2, 60]], [[1, 1], [2, 2], [3, 3]])
    )
    geometry = {"type": "Polygon", "coordinates": [ring, [[9, 9], [20, 9], [20, 20]]]}
    properties = {"name": "a", "classification": {"name": "Tumor", "color": [1, 2, 3]}}
    feature = {"type": "Feature", "properties": properties, "geometry": geometry}
    several = {"type": "MultiPolygon", "coordinates": [[ring], [SQUARE]]}
    return random.choice(({"type": "FeatureCollection", "features": [feature]}, feature, [feature], several))


def table(random: Random) -> bytes:
    """A table of slides, the first of which is there."""
    header = random.choice(
        ("slide", "slide,mpp", "slide,mpp,roi", "mpp,slide,note", "slide,slide", "", "a;b")
    )
    cells = [
        "he.png",
        "he.png",
        "none.svs",
        "",
        " ",
        "..",
        "/",
        '"a\nb.svs"',
        '"a',
        "a,b",
        "x" * 10**6,
        "é",
        "\0",
    ]
    numbers = ["1", "0.5", "nan", "inf", "1e400", "-1", "0", "half", "", "1_0", "0,5", "9" * 400]
    lines = [header]
    for _ in range(random.choice((0, 1, 1, 3))):
        row = [random.choice(numbers if name == "mpp" else cells) for name in header.split(",")]
        lines.append(",".join(row + ["more"] * (random.random() < 0.1)))
    return spoilt(random, random.choice(("\n", "\r\n", "\r")).join(lines).encode(), share=0.3)


def names(random: Random) -> list[str]:
    """File names that are hard to write down, and plain ones."""
    odd = [
        "-x",
        "--help",
        "a\nb",
        "caf\udce9",
        "\x1b[31m",
        "A",
        "a",
        "a b",
        "'\"",
        "<b>",
        "a|b",
        "%s{0}",
        "é" * 60,
    ]
    odd += [
        "y" * 251,
        "z" * 220,
        "00001_test_1+",
        "1M2_3_4",
        "case_her2",
        "con",
        "...",
        "a.ome",
        ".hidden",
        "\u202e",
    ]
    return random.sample(odd, random.randrange(1, 6))


def put(random: Random, path: Path) -> None:
    """Something under an image's name, for the most part an image."""
    kind = random.choice(
        ("image",) * 8 + ("pipe", "socket", "loop", "gone", "device", "folder", "empty", "text")
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(path):
        return
    if kind == "image":
        source = path.parents[1] / f"image{random.randrange(4)}"
        if not source.exists():
            pixels = np.random.default_rng(random.randrange(4)).integers(120, 250, (6, 6, 3), dtype=np.uint8)
            write_image(source.with_suffix(".png"), pixels.repeat(8, axis=0).repeat(8, axis=1))
            source.with_suffix(".png").rename(source)
        shutil.copy(source, path)
    elif kind in ("pipe", "socket"):
        with contextlib.suppress(OSError):  # not every system lets a user make one
            os.mknod(path, 0o600 | (stat.S_IFIFO if kind == "pipe" else stat.S_IFSOCK))
    elif kind in ("loop", "gone", "device"):
        path.symlink_to({"loop": path.name, "gone": "nowhere", "device": "/dev/zero"}[kind])
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_text("no image" if kind == "text" else "")


def folder(random: Random, root: Path, *below: str) -> None:
    """Folders that share most of their names."""
    for name in [*names(random), "plain"]:
        ending = random.choice((".png", ".png", ".PNG", ".tif", ".txt"))
        for each in below:
            if random.random() < 0.9:
                put(random, root / each / f"{name}{ending}")
    for each in below:
        (root / each).mkdir(parents=True, exist_ok=True)
    if random.random() < 0.3:
        (root / below[0] / "back").symlink_to(root.absolute())
