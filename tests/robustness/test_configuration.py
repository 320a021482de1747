"""The trial of configurations and model folders: hostile YAML, hostile words, JSON edited at random, weights cut and flipped.

Each command ends by itself in one line; a model whose files were changed is refused, and one that states no digests is refused
wherever the damage shows in a header or a shape.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from command import CommandLine, Tally
from miudiff.checkpoints import WEIGHTS
from miudiff.gan import Generator, GeneratorConfig
from miudiff.images import write_image
from miudiff.methods.generator import GeneratorModel, save_generator_model
from miudiff.methods.miu_diff import MIUDiffConfig
from miudiff.methods.model import Card, Model, save_model
from tiny import tiny_classifier, tiny_estimator, tiny_score

FEW, MANY = 12, 150
SHARES = [
    pytest.param(FEW, id="few"),
    pytest.param(MANY, id="many", marks=[pytest.mark.robustness, pytest.mark.timeout(1800)]),
]
share = pytest.mark.parametrize("count", SHARES)

DEEP: list[Any] = []
for _ in range(100):
    DEEP = [DEEP]
JUNK: list[Any] = [None, True, 0, -1, 3, 10**11, -(10**11), 10**400, 0.5, -2.5, 1e-300, 1e300]
JUNK += [float("inf"), float("nan"), "", "x", "x" * 3000, "a\0b", "\ud800", "../../x", "12", "cpu"]
JUNK += [[], {}, [1], [[]], [None], [-1, 0], [1e400], [10**9] * 4, {"": 1}, {"a": {"b": []}}, DEEP]

HOSTILE = ["? [a, b]\n: 1", "? {a: b}\n: 1", "a: 2024-13-45", "a: 0x_", "a: !!int abc", "a: !!float x"]
HOSTILE += [
    "a: !!bool x",
    "a: !!timestamp x",
    "a: !!binary é",
    "a: !!set [1]",
    "a: !!omap {a: 1}",
    "a: !!null",
]
HOSTILE += [
    "a: !!python/name:os.system",
    "a: !x y",
    "a: &a [*a]",
    "a: *b",
    "<<: 3",
    "<<: [1]",
    "a: \0",
    "\ufeff",
]
HOSTILE += [
    'a: "\\0"',
    'a: "\\ud800"',
    "1: 2",
    "on: off",
    "2024-01-01: a",
    "%YAML 9.9\n---\na: 1",
    "a: b\n---\nb: c",
]
HOSTILE += [
    "a: " + "[" * 100_000,
    "a: " + "{a: " * 20_000,
    "- " * 50_000,
    "a: 0x" + "f" * 5000,
    "a: " + "9" * 5000,
]
HOSTILE += [
    "a: 1:99:99",
    "a: .",
    "a: 1_",
    "a: 0b_",
    "a: ._",
    "=: 1",
    "a: =",
    "a: |\n",
    "\t",
    "a:\n\t- b",
    "a: `b`",
]
HOSTILE += ["\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'ha'] * 10)}]" for i in range(10))]
HOSTILE += [
    "a0: &a0 {k: 1}\n"
    + "\n".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 60)}]}}" for i in range(1, 6))
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two small images, of either stain."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for stain in ("he", "ihc"):
        for i in range(2):
            write_image(folder / stain / f"{i}.png", rng.integers(90, 240, (64, 64, 3), np.uint8))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of each kind, and a run to assemble one from."""
    folder = tmp_path_factory.mktemp("models")
    card = Card(name="tiny", mpp=1.0, tile=64)
    save_model(
        folder / "diffusion", Model(tiny_score(), tiny_estimator(), card, classifier=tiny_classifier())
    )
    gan = GeneratorModel(Generator(GeneratorConfig(width=4, blocks=2)), card, "cut")
    save_generator_model(folder / "generator", gan)
    for part in ("unet", "mi_estimator"):
        shutil.copytree(folder / "diffusion" / part, folder / "runs" / part / "weights")
    return folder


def run_of(images: Path, rng: random.Random) -> dict[str, Any]:
    """A run of two steps of some task."""
    task = rng.choice(["score", "mi", "classifier", "cut", "asp"])
    network = {"size": 32, "channels": [8, 16], "attention": [16], "head_channels": 8, "groups": 4}
    gan = {
        "generator": {"width": 4, "blocks": rng.choice([1, 5])},
        "discriminator": {"width": 4, "layers": 1},
        "patches": 8,
        "head_width": 8,
    }
    settings: dict[str, dict[str, Any]] = {
        "score": {"network": network, "optimizer": {"lr": 1e-4, "warmup": 1}, "ema": 0.9},
        "mi": {"estimator": {"channels": [4, 4], "patch": 8}, "noise": "clean", "bins": 2},
        "classifier": {"network": network | {"layers": 1}, "optimizer": {"clip": 1.0}},
        "cut": gan | {"mode": "fastcut"},
        "asp": gan | {"pyramid": [0.5, 1.0]},
    }
    data = {"root": str(images), "size": 32, "mpp": 1.0, "sources": [{"files": "ihc", "mpp": 1.0}]}
    values = {"task": task, "data": data, "steps": 2, "batch_size": 1, "device": "cpu", "precision": "fp32"}
    values |= {"seed": 3, "log_every": 1, "save_every": 1, "workers": 0, task: settings[task]}
    if task not in ("score", "mi"):
        values |= {"he": {"sources": [{"files": "he", "mpp": 1.0}]}, "paired": task == "asp"}
    return values


def places(values: Any) -> list[tuple[Any, Any]]:
    """Each (holder, key or place) in nested lists and mappings."""
    inner = values.items() if isinstance(values, dict) else enumerate(values)
    found = []
    for key, value in list(inner):
        found.append((values, key))
        if isinstance(value, dict | list):
            found += places(value)
    return found


# Without these a run is a large one, rightly.
LARGE = {"steps", "score", "mi", "cut", "asp", "classifier", "network", "estimator", "generator", "channels"}


def edit(values: Any, rng: random.Random) -> str:
    """Delete, rename or replace something in nested values; says what was done."""
    holder, key = rng.choice(places(values))
    old = holder[key]
    match rng.randrange(4):
        case 0 if key not in LARGE:
            del holder[key]
            return f"{key} deleted"
        case 1 if isinstance(holder, dict):
            holder[key[:-1] + rng.choice(string.ascii_letters)] = holder.pop(key)
            return f"{key} misspelt"
        case 2 if isinstance(old, int | float):
            holder[key] = rng.choice([-old, old * 1e9, -old * 1e-9, str(old), [old]])
        case _:
            junk = [
                value for value in JUNK if value != {} or key not in LARGE
            ]  # of nothing, too, a large one
            holder[key] = copy.deepcopy(rng.choice(junk))
    return f"{key} = {holder[key]!r:.60}"


@share
def test_hostile_yaml_ends_in_one_line(miudiff: CommandLine, tally: Tally, tmp_path, images, count):
    rng = random.Random(tally.seed)
    whole = HOSTILE if count == MANY else [*rng.sample(HOSTILE, 8), "a: " + "[" * 100_000]
    for i, text in enumerate(whole):
        path = tmp_path / f"hostile{i}.yaml"
        beside = yaml.safe_dump(run_of(images, rng))
        path.write_text(text if i % 2 else f"{beside}{text}\n", encoding="utf-8")
        ended = miudiff("train", path, f"out={tmp_path / f'hostile{i}'}")
        tally.add(f"YAML {text[:60]!r}", ended.wrong() or ("" if ended.code == 2 else "was taken"))
    tally.check()


@share
def test_runs_edited_at_random_train_or_end_in_one_line(
    miudiff: CommandLine, tally: Tally, tmp_path, images, count
):
    rng = random.Random(tally.seed)
    for i in range(count):
        values = run_of(images, rng)
        done = [edit(values, rng) for _ in range(rng.choice([0, 1, 1, 1, 2]))]
        try:
            text = yaml.safe_dump(values, allow_unicode=True)
        except (UnicodeEncodeError, RecursionError):
            continue
        if rng.random() < 0.3:
            at = rng.randrange(len(text))
            text = (
                text[:at] + rng.choice(["", "\0", "[", "{", ":", "&", "*", "'", "\t", "é"]) + text[at + 1 :]
            )
            done.append(f"one character at {at}")
        path = tmp_path / f"edited{i}.yaml"
        path.write_bytes(text.encode())
        ended = miudiff("train", path, f"out={tmp_path / f'edited{i}'}")
        wrong = ended.wrong() or ("" if done or ended.code == 0 else f"unedited: {ended.err}")
        if not wrong and ended.code == 0:  # what it wrote goes on
            again = miudiff("train", tmp_path / f"edited{i}" / "run.yaml")
            wrong = again.wrong() or ("" if again.code == 0 else f"does not go on: {again.err}")
        tally.add(f"run of {values.get('task')!r:.20}, {done}", wrong)
    tally.check()


def keys(values: dict[str, Any], before: str = "") -> list[str]:
    return [
        found
        for key, value in values.items()
        for found in [before + key, *(keys(value, f"{before}{key}.") if isinstance(value, dict) else [])]
    ]


def word(rng: random.Random) -> str:
    """key=value of MIU-Diff's settings, spelt well or not, with a value of any kind."""
    key = rng.choice(keys(MIUDiffConfig().model_dump(mode="json")))
    if rng.random() < 0.3:
        at = rng.randrange(len(key))
        key = key[:at] + rng.choice(["", ".", "x", "²", "é", "=", "-1"]) + key[at + 1 :]
    value = rng.choice(
        [
            rng.choice(HOSTILE).partition(": ")[2],
            "{a: 1}",
            "2024-13-45",
            *[json.dumps(junk) for junk in rng.choices(JUNK, k=4)],
        ]
    ).replace("\0", "\\0")
    return f"{key}{rng.choice(['=', '=', '=', '=', ''])}{value[:100_000]}"


@share
def test_hostile_words_stain_or_end_in_one_line(
    miudiff: CommandLine, tally: Tally, tmp_path, images, tiny_folder, count
):
    rng = random.Random(tally.seed)
    quick = ["reverse.start=4", "reverse.steps=2", "refinement.loss=none"]
    for i in range(count):
        changed = word(rng)
        if changed.startswith(("reverse.start=", "refinement.loss=")):
            continue  # what is slow, rightly
        words = [part for one in [*quick, changed] for part in ("--set", one)]
        ended = miudiff(
            *("translate", images / "he" / "0.png", tmp_path / f"{i}.png", "--model", tiny_folder),
            *("--mpp", "1", "--device", "cpu", "--precision", "fp32", *words),
        )
        tally.add(f"--set {changed[:80]!r}", ended.wrong())
        ended = miudiff("train", "ihc-small-score", changed, "device=cpu")
        tally.add(f"train {changed[:80]!r}", ended.wrong() or ("" if ended.code == 2 else "was taken"))
    tally.check()


def use(miudiff: CommandLine, rng: random.Random, folder: Path, kind: str, images: Path, out: Path) -> Any:
    """Use a model folder by one of the commands that read it."""
    common = ["--model", folder, "--device", "cpu"]
    if kind == "diffusion" and rng.random() < 0.4:
        return miudiff(
            "model", "samples", folder, out, "--count", "1", "--size", "8", "--steps", "2", "--device", "cpu"
        )
    words: list[str | Path] = ["translate", images / "he" / "0.png", out, *common, "--mpp", "1"]
    if kind == "diffusion":
        words += ["--set", "reverse.start=4", "--set", "reverse.steps=2", "--set", "refinement.loss=none"]
    return miudiff(*words)


@share
def test_model_folders_of_edited_json_are_refused_or_stain(
    miudiff: CommandLine, tally: Tally, tmp_path, models, images, count
):
    """With digests, what is no card is refused whatever the edit; without them, it ends in one line."""
    rng = random.Random(tally.seed)
    for i in range(count):
        kind, digests = rng.choice(["diffusion", "diffusion", "generator"]), rng.random() < 0.3
        folder = tmp_path / f"model{i}"
        shutil.copytree(models / kind, folder)
        index = folder / "model_index.json"
        if not digests:
            index.write_text(json.dumps(json.loads(index.read_text()) | {"sha256": {}}))
        path = rng.choice(sorted(folder.rglob("*.json")))
        values = json.loads(path.read_text())
        before = json.dumps(values)
        done = [edit(values, rng) for _ in range(rng.choice([1, 1, 2]))]
        path.write_text(json.dumps(values))
        changed = json.dumps(values) != before
        ended = use(miudiff, rng, folder, kind, images, tmp_path / f"{i}.png")
        wrong = ended.wrong()
        if not wrong and digests and changed and path != index and ended.code == 0 and used(kind, path):
            wrong = "was taken although it had changed"
        tally.add(f"{kind} {path.relative_to(folder)}, {done}", wrong)
        shutil.rmtree(folder)
    tally.check()


def used(kind: str, path: Path) -> bool:
    """Whether a file is of a part, so that its digest is looked at."""
    return kind == "generator" or path.parent.name in ("unet", "mi_estimator", "classifier", "scheduler")


def cut(path: Path, rng: random.Random) -> str:
    """Cut a file short, by more than white space at its end."""
    content = path.read_bytes()
    length = rng.randrange(len(content) - 3)
    path.write_bytes(content[:length])
    return f"cut to {length} of {len(content)} bytes"


def flip_header(path: Path, rng: random.Random) -> str:
    """Flip a bit of a safetensors header, beyond the first entry, which says nothing of weights."""
    content = bytearray(path.read_bytes())
    length = 8 + int.from_bytes(content[:8], "little")
    text = bytes(content[8:length])
    start = 8 + text.index(b"}", text.index(b"__metadata__")) + 1 if b"__metadata__" in text else 8
    at = rng.choice([rng.randrange(8), rng.randrange(start, len(text.rstrip()) + 8)])
    content[at] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return f"byte {at} of the header flipped"


def flip_weight(path: Path, rng: random.Random) -> str:
    """Flip a bit of a weight."""
    content = bytearray(path.read_bytes())
    at = rng.randrange(8 + int.from_bytes(content[:8], "little"), len(content))
    content[at] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return f"byte {at} flipped"


@share
@pytest.mark.parametrize("damage", [cut, flip_header, flip_weight])
def test_damaged_weights_are_refused(
    miudiff: CommandLine,
    tally: Tally,
    tmp_path,
    models,
    images,
    count,
    damage: Callable[[Path, random.Random], str],
    record_property,
):
    """Where no digest is stated, a flipped weight is a weight: those are counted apart."""
    rng, unseen = random.Random(tally.seed), 0
    for i in range(count // 3):
        kind = rng.choice(["diffusion", "diffusion", "generator"])
        digests = rng.random() < 0.5
        folder = tmp_path / f"model{i}"
        shutil.copytree(models / kind, folder)
        index = folder / "model_index.json"
        if not digests:
            index.write_text(json.dumps(json.loads(index.read_text()) | {"sha256": {}}))
        files = sorted(folder.rglob(WEIGHTS))
        if damage is cut:
            files += sorted(folder.rglob("*.json"))
        path = rng.choice(files)
        done = damage(path, rng)
        ended = use(miudiff, rng, folder, kind, images, tmp_path / f"{i}.png")
        visible = digests or damage is not flip_weight
        unseen += not visible and ended.code == 0
        wrong = ended.wrong() or ("was taken" if visible and ended.code == 0 else "")
        tally.add(f"{kind} {path.relative_to(folder)}, {done}", wrong)
        shutil.rmtree(folder)
    record_property("flipped weights that no digest could show", unseen)
    tally.check()


@share
def test_runs_with_damaged_weights_make_no_model(miudiff: CommandLine, tally: Tally, tmp_path, models, count):
    rng = random.Random(tally.seed)
    for i in range(count // 2):
        runs = tmp_path / f"runs{i}"
        shutil.copytree(models / "runs", runs)
        path = rng.choice(sorted(p for p in runs.rglob("*") if p.is_file()))
        if path.suffix == ".json" and rng.random() < 0.7:
            values = json.loads(path.read_text())
            done, damaged = edit(values, rng), False
            path.write_text(json.dumps(values))
        else:
            done, damaged = rng.choice([cut, flip_header] if path.name == WEIGHTS else [cut])(path, rng), True
        out = tmp_path / f"assembled{i}"
        ended = miudiff("model", "assemble", runs / "unet", out, "--name", "a", "--mi", runs / "mi_estimator")
        wrong = ended.wrong() or ("was taken" if damaged and ended.code == 0 else "")
        if ended.code and out.exists():
            wrong = wrong or "left half a model"
        tally.add(f"{path.relative_to(runs)}, {done}", wrong)
    tally.check()


def test_the_doctor_finds_nothing_wrong_with_what_ships(miudiff: CommandLine, tally: Tally):
    ended = miudiff("doctor")
    tally.add("doctor", ended.wrong() or ("" if "ok   weights" in ended.out else ended.out))
    tally.check()
