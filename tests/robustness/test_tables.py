"""Hostile regions, tables, records, names and folders through the commands that read them.

A command may refuse, in one line; it may not end in a traceback, hang, or pass over a file without naming it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from command import CommandLine, Ended, Tally
from hostile_tables import folder, hostile_json, regions, table
from miudiff.cli.app import one_line
from miudiff.data.names import name_of
from miudiff.data.tiles import DataConfig, SourceConfig, find_images
from miudiff.errors import MiudiffError
from miudiff.images import SUFFIXES, write_image

QUICK = ("--set", "reverse.start=4", "--set", "reverse.steps=1", "--set", "refinement.loss=none")
QUICK += ("--glass", "stain", "--device", "cpu", "--precision", "fp32", "--no-report")


def whole(fast: int, count: int) -> list[Any]:
    """A fast share of a trial, and the whole of it."""
    marks = [pytest.mark.robustness, pytest.mark.timeout(3600)]
    return [pytest.param(fast, id="share"), pytest.param(count, id="whole", marks=marks)]


def passed_over(root: Path, told: str, done: set[str]) -> str:
    """The first file of an image's name that is neither done nor named, "" if there is none."""
    for path in sorted(root.iterdir()):
        if path.name.startswith(".") or not path.name.lower().endswith(SUFFIXES):
            continue
        if name_of(path) not in done and one_line(str(path)) not in told:
            return f"passed over {path.name!r}"
    return ""


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
