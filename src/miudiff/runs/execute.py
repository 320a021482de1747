"""A run from its first step to its weights; the same configuration goes on in its folder."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.utils.data import Dataset

from miudiff.checkpoints import find_states, write_json
from miudiff.config import parse, read_yaml, to_yaml
from miudiff.data.pairs import PairedTiles, UnpairedTiles, find_pairs
from miudiff.data.tiles import Tiles, collate, find_images
from miudiff.device import Placement, place
from miudiff.diffusion.classifier_learner import ClassifierLearner
from miudiff.diffusion.learner import ScoreLearner
from miudiff.distillation.learner import DistillLearner
from miudiff.distillation.teacher import HETiles, StudentTiles, Teacher
from miudiff.errors import ConfigError
from miudiff.images import same_scale, write_bytes
from miudiff.information.estimator import Estimator
from miudiff.information.learner import MILearner, held_out_curve
from miudiff.methods.asp import ASPLearner
from miudiff.methods.cut import CUTLearner
from miudiff.methods.model import Card, Model, load_model
from miudiff.methods.systems import check_fit
from miudiff.runs.config import BOTH_STAINS, RunConfig, Task, check
from miudiff.training.learner import Learner
from miudiff.training.loader import fitting_workers
from miudiff.training.loop import LoopConfig, train

# May differ between the start of a run and its continuation; anything else would make it another run.
_FREE = ("out", "held_out", "steps", "device", "precision", "log_every", "save_every", "workers")

RunTiles = Tiles | PairedTiles | UnpairedTiles | HETiles


def run(config: RunConfig, say: Callable[[str], None] = print) -> Path:
    """Train, or go on training, to `config.steps`; returns the folder of the weights.

    Raises:
        ConfigError: The folder holds a run of another configuration.
        DataError, DeviceError, NonFiniteError: As their messages say.
        KeyboardInterrupt: After Ctrl-C, once a state is written.
    """
    check(config)
    placement = place(config.device, config.precision)
    if placement.device.type == "cuda" and placement.device.index is not None:
        torch.cuda.set_device(placement.device)  # accelerate takes the current card
    accelerator = accelerator_on(placement)
    main = accelerator.is_main_process
    with leaving(accelerator):
        here = replace(placement, device=accelerator.device)
        teacher = _teacher(config, here)
        tiles, count = _tiles(config, teacher, say if main else _silent)
        if config.held_out:  # needed at the end alone, when it is late to be told that they are not there
            find_images(config.held_out, config.markers)
        workers = _workers(config, accelerator)
        if main:
            config.out.mkdir(parents=True, exist_ok=True)
            _same_run(config)
            write_bytes(config.out / "run.yaml", to_yaml(config).encode())
            say(f"{config.task}: {count}, {accelerator.num_processes} process(es), {placement}")
            if workers:
                say(f"{workers} processes read tiles for each that trains")
        accelerator.wait_for_everyone()
        shown: Dataset[Any] = tiles
        if teacher is not None and isinstance(tiles, HETiles):
            shown = _taught(config, tiles, teacher, here, accelerator, say)
        if workers:
            tiles.read_ahead(workers)
        _learn(config, shown, teacher, workers, accelerator, say)
        accelerator.wait_for_everyone()
    return config.out / "weights"


def _workers(config: RunConfig, accelerator: Accelerator) -> int:
    """How many processes read tiles for each that trains."""
    if config.workers is not None:
        return config.workers
    images = 4 * -(-config.batch_size // accelerator.num_processes)  # of two stains, with noise for each
    return fitting_workers(accelerator.device, 4 * images * 3 * config.data.size**2)


def _teacher(config: RunConfig, placement: Placement) -> Model | None:
    """The model that a student is distilled from.

    Raises:
        CheckpointError: There is none, or it is no diffusion model.
        ConfigError: The run's tiles have another scale.
    """
    if config.task != "distill":
        return None
    teacher = load_model(config.distill.teacher, placement)
    check_fit(teacher, config.distill.settings)
    known, given = teacher.card.mpp, config.data.mpp
    if known is not None and given is not None and not same_scale(known, given):
        raise ConfigError(
            f"data.mpp: found {given:g}, expected {known:g}, as the teacher '{teacher.card.name}'"
        )
    return teacher


def _taught(
    config: RunConfig,
    tiles: HETiles,
    teacher: Model,
    placement: Placement,
    accelerator: Accelerator,
    say: Callable[[str], None],
) -> StudentTiles:
    """A student's tiles, once the teacher has stained its own."""
    regression, share = config.distill.regression, (accelerator.process_index, accelerator.num_processes)
    results: list[Path] = []
    if regression.steps:
        made = Teacher(teacher, config.distill.settings, placement)
        results = made.teach(
            tiles, regression.tiles, config.out / "teacher", config.seed, share, config.batch_size, say
        )
        accelerator.wait_for_everyone()
    return StudentTiles(tiles, results, regression.steps * config.batch_size)


def _learn(
    config: RunConfig,
    tiles: Dataset[Any],
    teacher: Model | None,
    workers: int,
    accelerator: Accelerator,
    say: Callable[[str], None],
) -> None:
    if accelerator.device.type == "cuda":
        torch.backends.cudnn.benchmark = (
            True  # batches have one size: the fastest convolutions are found once
        )
    learner = learner_of(config, accelerator, teacher)
    loop = LoopConfig(config.steps, config.batch_size, config.log_every, config.save_every, workers)
    train(learner, tiles, collate, config.out, loop, accelerator, say)
    if not accelerator.is_main_process:
        return
    learner.export(config.out / "weights")
    say(f"weights: {config.out / 'weights'}")
    if isinstance(learner, MILearner) and config.held_out:
        _say_curve(learner, config, say)


@contextlib.contextmanager
def leaving(accelerator: Accelerator) -> Iterator[None]:
    """Leave the process group afterwards, however it ends; whatever learned must be of no frame that is still running.

    Order matters: the last to hold the group must not be a learner's network, which takes the group down without giving up the
    interpreter's lock, while the group's own thread may wait for it; and a group that outlives the interpreter aborts the process.
    """
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # they hold the learner
        raise
    finally:
        accelerator.free_memory()
        accelerator.end_training()
        if accelerator.num_processes == 1:  # the next run of this process may be in another precision
            AcceleratorState._reset_state(reset_partial_state=True)


def accelerator_on(placement: Placement) -> Accelerator:
    """What spreads a learner's steps over processes, on that device and in that precision."""
    return Accelerator(
        cpu=placement.device.type == "cpu", mixed_precision="bf16" if placement.precision == "bf16" else "no"
    )


def _silent(line: str) -> None:
    pass


def _tiles(config: RunConfig, teacher: Model | None, say: Callable[[str], None]) -> tuple[RunTiles, str]:
    """The task's tiles, and how many images they come from, in words."""
    if teacher is not None:
        images = find_images(config.data, (), say, "HE")
        return HETiles(images, config.data, config.seed, teacher), f"{len(images)} H&E images"
    if config.task in BOTH_STAINS and config.paired:
        pairs = find_pairs(config.data, config.he, config.markers, say)
        return PairedTiles(pairs, config.data, config.seed), f"{len(pairs)} pairs"
    images = find_images(config.data, config.markers, say)
    tiles = Tiles(images, config.data, config.seed)
    if config.task not in BOTH_STAINS:
        return tiles, f"{len(images)} images"
    he, section = config.he or config.data, "he" if config.he else "data"
    sources = find_images(he, (), say, "HE", section)
    return (
        UnpairedTiles(Tiles(sources, he, config.seed, "he"), tiles),
        f"{len(sources)} H&E and {len(images)} IHC images",
    )


def learner_of(config: RunConfig, accelerator: Accelerator, teacher: Model | None = None) -> Learner:
    """The learner of a run's task, with fresh weights; a student's with its teacher."""
    name = config.out.name or config.task
    if teacher is not None:
        return DistillLearner(config.distill, accelerator, config.seed, config.steps, teacher, name)
    if config.task == "score":
        return ScoreLearner(config.score, accelerator, config.seed, config.steps)
    if config.task == "mi":
        return MILearner(config.mi, accelerator, config.seed, config.steps)
    if config.task == "classifier":
        return ClassifierLearner(config.classifier, accelerator, config.seed, config.steps)
    card = Card(
        name=name,
        markers=config.markers,
        mpp=config.data.mpp,
        tile=config.data.size,
    )
    if config.task == "asp":
        return ASPLearner(config.asp, accelerator, config.seed, config.steps, card)
    return CUTLearner(config.cut, accelerator, config.seed, config.steps, card)


def _same_run(config: RunConfig) -> None:
    path = config.out / "run.yaml"
    if not path.exists() or not find_states(config.out):
        return
    before, now = _fixed(parse(RunConfig, read_yaml(path), str(path))), _fixed(config)
    changed = [key for key in now if now[key] != before[key]]
    if changed:
        raise ConfigError(
            f"{path}: this folder holds a run with another '{changed[0]}'; give another out=, or the configuration it began with"
        )


def _fixed(config: RunConfig) -> dict[str, object]:
    """What may not change. Images may lie elsewhere on another machine; after a NaN the optimizer may go on more slowly."""
    nested = {"data": {"root"}, "he": {"root"}}
    nested |= {task: {"optimizer"} for task in get_args(Task)}
    stages = {part: {"optimizer"} for part in ("regression", "matching")}
    return config.model_dump(
        exclude={**dict.fromkeys(_FREE, True), **nested, "distill": {"optimizer": True, **stages}}
    )


def _say_curve(learner: MILearner, config: RunConfig, say: Callable[[str], None]) -> None:
    """The held-out bound by noise level, of the averaged weights."""
    assert config.held_out is not None
    estimator = Estimator(config.mi.estimator)
    estimator.load_state_dict(learner.average.weights())
    tiles = Tiles(find_images(config.held_out, config.markers), config.held_out, config.seed + 1)
    y0 = torch.stack([tiles[i]["ihc"] for i in range(16)])  # type: ignore[misc]
    curve = held_out_curve(estimator, y0, (-1, 1, 10, 50, 100, 200, 299))
    write_json(
        config.out / "held_out.json",
        {str(t): {"clean_structure": a, "noised_structure": b} for t, (a, b) in curve.items()},
    )
    for t, (clean, noised) in curve.items():
        say(f"held-out bound at t = {t}: {clean:.3f} nats with clean structure, {noised:.3f} with noised")


def trained_as(
    score: Path, mi: Path | None, markers: tuple[str, ...], mpp: float | None
) -> tuple[tuple[str, ...], float | None]:
    """(markers, mpp) of a model made from two runs' folders, as the runs say; what the user says must agree.

    Raises:
        ConfigError: The runs, or the user and the runs, speak of different markers or scales.
    """
    for folder in (score, mi):
        if folder is None or not (folder / "run.yaml").is_file():
            continue
        config = parse(RunConfig, read_yaml(folder / "run.yaml"), str(folder / "run.yaml"))
        if folder == score and markers and config.markers and markers != config.markers:
            raise ConfigError(
                f"--marker {', '.join(markers)}: {folder} was trained as {', '.join(config.markers)}, in this order"
            )
        if mpp is not None and config.data.mpp is not None and not same_scale(mpp, config.data.mpp):
            raise ConfigError(
                f"{folder}: trained at {config.data.mpp:g} um/px, but the model is to be at {mpp:g}"
            )
        mpp = mpp if mpp is not None else config.data.mpp
        markers = markers or (config.markers if folder == score else ())
    return markers, mpp
