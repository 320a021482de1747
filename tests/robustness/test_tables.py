"""Hostile regions, tables, records, names and folders through the commands that read them.

A command may refuse, in one line; it may not end in a traceback, hang, or pass over a file without naming it.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from command import CommandLine, Ended, Tally

from miudiff.cli.app import one_line
from miudiff.data.names import name_of
from miudiff.data.tiles import DataConfig, SourceConfig, find_images
from miudiff.errors import MiudiffError
from miudiff.images import SUFFIXES, write_image

QUICK = ("--set", "reverse.start=4", "--set", "reverse.steps=1", "--set", "refinement.loss=none")
QUICK += ("--glass", "stain", "--device", "cpu", "--precision", "fp32", "--no-report")
DEEP = "[" * 3000 + "]" * 3000
RAW = ["1e400", "-1e400", "NaN", "Infinity", "9" * 400, "9" * 5000, DEEP, "[" * 3000, r'"\ud800"', "0.0"]
VALUES = [None, True, False, 0, -1, 0.5, 1e300, -1e-300, "", "x", "a\nb", "x" * 10**5, "é\0", [], {}, [[]]]
SQUARE = [[2, 2], [60, 2], [60, 60], [2, 60], [2, 2]]


def whole(fast: int, count: int) -> list[Any]:
    """A fast share of a trial, and the whole of it."""
    marks = [pytest.mark.robustness, pytest.mark.timeout(3600)]
    return [pytest.param(fast, id="share"), pytest.param(count, id="whole", marks=marks)]


# --- what is hostile ---


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


def passed_over(root: Path, told: str, done: set[str]) -> str:
    """The first file of an image's name that is neither done nor named, "" if there is none."""
    for path in sorted(root.iterdir()):
        if path.name.startswith(".") or not path.name.lower().endswith(SUFFIXES):
            continue
        if name_of(path) not in done and one_line(str(path)) not in told:
            return f"passed over {path.name!r}"
    return ""


# --- the trials ---


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with an H&E image of 64 x 64 pixels."""
    coarse = np.random.default_rng(0).integers(100, 240, (8, 8, 3), dtype=np.uint8)
    write_image(tmp_path / "he.png", coarse.repeat(8, axis=0).repeat(8, axis=1))
    return tmp_path


@pytest.mark.parametrize("count", whole(10, 600))
def test_hostile_regions(miudiff: CommandLine, tally: Tally, place: Path, tiny_folder: Path, count: int):
    random = Random(tally.seed)
    roi, out = place / "roi.geojson", place / "out"
    for number in range(count):
        content = hostile_json(random, regions(random))
        roi.write_bytes(content)
        words = ("--model", tiny_folder, "--mpp", "1", "--roi", roi, *QUICK)
        ended = miudiff("translate", place / "he.png", out / "he.ome.tif", *words)
        made = (out / "he.ome.tif").exists()
        wrong = ended.wrong() or ("" if made == (ended.code == 0) else f"code {ended.code}, but made {made}")
        tally.add(f"{number} {content[:200]!r}", wrong)
        shutil.rmtree(out, ignore_errors=True)
    tally.check()


@pytest.mark.parametrize("count", whole(20, 600))
def test_hostile_tables(miudiff: CommandLine, tally: Tally, place: Path, tiny_folder: Path, count: int):
    random = Random(tally.seed)
    slides, out = place / "slides.csv", place / "out"
    for number in range(count):
        slides.write_bytes(content := table(random))
        ended = miudiff("translate", slides, out, "--model", tiny_folder, *QUICK)
        tally.add(f"{number} {content[:200]!r}", ended.wrong())
        shutil.rmtree(out, ignore_errors=True)
    tally.check()


@pytest.mark.parametrize("count", whole(12, 600))
def test_hostile_records(miudiff: CommandLine, tally: Tally, place: Path, count: int):
    random = Random(tally.seed)
    for each in ("G", "R"):
        for name in ("a.png", "b.png", "c.ome.tif"):
            (place / each).mkdir(exist_ok=True)
            if name != "c.ome.tif":
                shutil.copy(place / "he.png", place / each / name)
    shutil.copy(place / "he.png", place / "G" / "alone.png")  # so that nothing is measured, which takes long
    runs = [{"marker": "Ki67", "seed": 0}, {"marker": None}]
    images = {"a.png": {"source": "he/a.png", "run": 0}, "b.png": {"source": "he/b.png", "run": 1}}
    record = {"notice": "virtual", "runs": runs, "images": images}
    slide = {"notice": "virtual", "source": "a.svs", "model": {"marker": "HER2"}}
    for number in range(count):
        for each in random.sample(("G", "R"), random.choice((1, 2))):
            content = hostile_json(random, record)
            (place / each / "translation.json").write_bytes(content)
            (place / each / "c.json").write_bytes(hostile_json(random, slide))
        ended = miudiff(
            "evaluate", place / "G", place / "R", "--workers", "1", "--json", place / "scores.json"
        )
        tally.add(f"{number} {content[:200]!r}", ended.wrong())
    tally.check()


@pytest.mark.parametrize("count", whole(4, 200))
def test_hostile_folders(miudiff: CommandLine, tally: Tally, tmp_path: Path, count: int):
    random = Random(tally.seed)
    for number in range(count):
        root, out = tmp_path / f"{number}", tmp_path / "out"
        folder(random, root, *random.choice((("HE", "IHC"), ("G", "R"), ("trainA", "trainB"))))
        first, second = sorted(path for path in root.iterdir() if path.is_dir() and not path.is_symlink())[:2]
        for ended, wrong in (
            check(miudiff, root, tmp_path / "check.json"),
            twin(miudiff, first, out),
            evaluate(miudiff, first, second, out),
        ):
            listed = sorted(path.relative_to(root) for path in root.rglob("*") if not path.is_dir())
            tally.add(f"{number} {listed}"[:400], ended.wrong() or wrong)
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(root)
    tally.check()


def check(miudiff: CommandLine, root: Path, report: Path) -> tuple[Ended, str]:
    """`data check`: its report is JSON that can be read, and names what is no file."""
    ended = miudiff("data", "check", root, "--json", report)
    if ended.code not in (0, 3):
        return ended, ""
    found = json.loads(report.read_text(encoding="utf-8"))
    named = {os.path.basename(finding["path"]) for finding in found["findings"]}
    pipes = [path.name for path in root.rglob("*") if path.is_fifo()]
    lost = [
        name for name in pipes if name.lower().endswith(SUFFIXES) and name[0] != "." and name not in named
    ]
    return ended, f"does not name {lost[0]!r}" if lost else ""


def twin(miudiff: CommandLine, source: Path, out: Path) -> tuple[Ended, str]:
    """`data twin`: every image has its twin, or is named."""
    ended = miudiff("data", "twin", source, out)
    if ended.code not in (0, 3):
        return ended, ""
    made = {name_of(path) for path in (out / "HE").iterdir()}
    # A link that leads nowhere is no image file, and is passed over as in every listing of images.
    for link in [path for path in source.iterdir() if path.is_symlink() and not path.exists()]:
        link.unlink()
    return ended, passed_over(source, ended.err, made)


def evaluate(miudiff: CommandLine, generated: Path, reference: Path, out: Path) -> tuple[Ended, str]:
    """`evaluate`: what was scored is written so that it can be read."""
    words = ("--workers", "1", "--skip-bad", "--out", out / "scores", "--json", out / "scores.json")
    ended = miudiff("evaluate", generated, reference, *words)
    if ended.code not in (0, 3):
        return ended, ""
    for file in ("scores.json", "scores/scores.csv", "scores/scores.md", "scores/report.html"):
        (out / file).read_text(encoding="utf-8")
    return ended, ""


WORDS = [
    "*",
    "**",
    "[",
    "]",
    "[!",
    "?",
    "/",
    "..",
    ".",
    "a",
    "\\",
    "(",
    ")",
    "(?P<slide>",
    "+",
    "{9999999999}",
    "|",
    "\0",
]


@pytest.mark.parametrize("count", whole(300, 5000))
def test_hostile_patterns(tally: Tally, place: Path, count: int):
    random = Random(tally.seed)
    for _ in range(count):
        pattern = "".join(random.choices(WORDS, k=random.choice((1, 2, 4, 8))))
        source = SourceConfig(files=random.choice(("*.png", pattern)), mpp=1, exclude=(pattern,))
        try:
            find_images(DataConfig(root=place, sources=(source,), native=True), ())
        except MiudiffError as error:
            tally.add(repr(pattern), "" if re.search("pattern|path|images", str(error)) else str(error))
        except Exception as error:
            tally.add(repr(pattern), repr(error))
        else:
            tally.add(repr(pattern), "")
    tally.check()


@pytest.mark.parametrize("count", whole(8, 300))
def test_hostile_slide_patterns(miudiff: CommandLine, tally: Tally, place: Path, count: int):
    random = Random(tally.seed)
    for each in ("HE", "IHC"):
        (place / "set" / each).mkdir(parents=True)
        shutil.copy(place / "he.png", place / "set" / each / "a.png")
    for _ in range(count):
        pattern = "".join(
            random.choices([word for word in WORDS if word != "\0"], k=random.choice((1, 3, 6)))
        )
        ended = miudiff("data", "check", place / "set", f"--slide-pattern={pattern}")
        tally.add(repr(pattern), ended.wrong())
    tally.check()
