"""One YAML file is one run: which learner, on what, how long, where. The same command goes on in the run's folder.

    task: score                     # or mi
    out: runs/ki67-score
    markers: [Ki67]
    data: {root: data, mpp: 1.0, size: 64, sources: [{files: "ihc/*.jpg", marker: Ki67, mpp: 0.25}]}
    score: {network: {...}, optimizer: {...}}

Systems that learn from both stains (`classifier`, `cut`, `asp`) take H&E from `he`, or, with `paired`, as the partners of the IHC images. Under torchrun the same command trains on every process it starts, on one machine or several.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from pydantic import Field, model_validator
from torch import nn
from torch.utils.data import Dataset

from miudiff.checkpoints import find_states, write_json
from miudiff.config import LAST_STEP, Strict, parse, read_yaml, to_yaml
from miudiff.data.pairs import PairedTiles, UnpairedTiles, find_pairs, names_both_stains
from miudiff.data.tiles import DataConfig, Tiles, collate, find_images
from miudiff.device import Placement, place
from miudiff.diffusion.classifier import NoisedClassifier
from miudiff.diffusion.classifier_learner import ClassifierConfig, ClassifierLearner
from miudiff.diffusion.learner import ScoreConfig, ScoreLearner
from miudiff.diffusion.score import build_unet
from miudiff.errors import ConfigError
from miudiff.gan import Discriminator, Generator
from miudiff.images import same_scale, write_bytes
from miudiff.information.estimator import Estimator
from miudiff.information.learner import MIConfig, MILearner, held_out_curve
from miudiff.methods.asp import ASPConfig, ASPLearner
from miudiff.methods.cut import CUTConfig, CUTLearner
from miudiff.methods.model import Card
from miudiff.training.learner import Learner
from miudiff.training.loop import LoopConfig, train

Task = Literal["score", "mi", "classifier", "cut", "asp"]
MOST_PIXELS = 10**9  # of a batch: 12 GB
MOST_WEIGHTS = (
    2 * 10**9
)  # of a run's networks: 8 GB, and as much again for each of gradients, average and optimizer's two
BOTH_STAINS: tuple[Task, ...] = ("classifier", "cut", "asp")  # learn from batches of "he" and "ihc"


class Sections(Strict):
    """What each task learns with."""

    score: ScoreConfig = ScoreConfig()
    mi: MIConfig = MIConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    cut: CUTConfig = CUTConfig()
    asp: ASPConfig = ASPConfig()


class RunConfig(Sections):
    """A training run."""

    task: Task = Field(
        description="What is learned: the score model, the MI estimator, EGSDE's classifier, or the generator of CUT (FastCUT) or ASP."
    )
    out: Path = Field(description="The run's folder; the same command goes on in it.")
    data: DataConfig = Field(description="IHC images.")
    he: DataConfig | None = Field(
        None,
        description="H&E images, for tasks that learn from both; what it does not say is as in `data`. None: those of `data`'s splits.",
    )
    paired: bool = Field(
        False, description="H&E and IHC tiles are the same place of two images of one name, not drawn apart."
    )
    held_out: DataConfig | None = Field(
        None, description="Images to measure the MI estimator on; never trained on."
    )
    markers: tuple[str, ...] = Field(
        (), description="Names of the markers of a model of several, in the order of its classes."
    )
    steps: int = Field(40_000, ge=1, le=LAST_STEP)
    batch_size: int = Field(4, ge=1, le=65_536, description="Over all processes.")
    seed: int = Field(0, ge=-(2**63), lt=2**63)
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps.")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    log_every: int = Field(20, ge=1, le=LAST_STEP, description="Steps between lines of the log.")
    save_every: int = Field(
        500, ge=1, le=LAST_STEP, description="Steps between states; a kill loses at most these."
    )
    workers: int = Field(0, ge=0, le=256, description="Processes that read tiles.")

    @model_validator(mode="before")
    @classmethod
    def _he_is_like_data(cls, values: Any) -> Any:
        """Both stains have one tile size and scale, so they are said once."""
        he, data = (values.get(key) if isinstance(values, Mapping) else None for key in ("he", "data"))
        if not isinstance(he, Mapping) or not isinstance(data, Mapping):
            return values
        return {**values, "he": {**{k: v for k, v in data.items() if k != "sources"}, **he}}


# May differ between the start of a run and its continuation; anything else would make it another run.
_FREE = ("out", "held_out", "steps", "device", "precision", "log_every", "save_every", "workers")


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
        tiles, count = _tiles(config, say if main else _silent)
        if main:
            config.out.mkdir(parents=True, exist_ok=True)
            _same_run(config)
            write_bytes(config.out / "run.yaml", to_yaml(config).encode())
            say(f"{config.task}: {count}, {accelerator.num_processes} process(es), {placement}")
        accelerator.wait_for_everyone()
        _learn(config, tiles, accelerator, say)
        accelerator.wait_for_everyone()
    return config.out / "weights"


def _learn(
    config: RunConfig, tiles: Dataset[Any], accelerator: Accelerator, say: Callable[[str], None]
) -> None:
    learner = learner_of(config, accelerator)
    loop = LoopConfig(config.steps, config.batch_size, config.log_every, config.save_every, config.workers)
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


def check(config: RunConfig) -> None:
    """Refuse what contradicts itself before any image is looked for.

    Raises:
        ConfigError: Markers, tile sizes or stains that do not fit together.
    """
    classes, markers = config.score.network.markers, len(config.markers)
    mixed = config.task == "score" and classes is None and markers > 1
    if mixed or classes not in (None, markers):
        raise ConfigError(
            f"score.network.markers: found {classes}, expected {markers}, the number of 'markers'"
        )
    _check_sizes(config)
    _check_stains(config)
    if config.task in ("cut", "asp"):
        _check_generator(config)
    _check_weights(config)


def _check_sizes(config: RunConfig) -> None:
    """Refuse tiles that the network cannot take before any is read."""
    network, patch = config.score.network, config.mi.estimator.patch
    most = MOST_PIXELS // config.data.size**2
    if config.batch_size > most:
        raise ConfigError(
            f"batch_size: found {config.batch_size}, expected at most {most} tiles of {config.data.size} x {config.data.size} (data.size)"
        )
    if config.task == "score" and config.data.size % network.multiple:
        raise ConfigError(
            f"data.size: found {config.data.size}, expected a multiple of {network.multiple}, as score.network.channels halve it"
        )
    for key, data in (("data", config.data), ("held_out", config.held_out)):
        if config.task == "mi" and data is not None and data.size < 2 * patch:
            raise ConfigError(
                f"{key}.size: found {data.size}, expected at least {2 * patch}, two patches of mi.estimator.patch"
            )


def _check_weights(config: RunConfig) -> None:
    """Refuse networks that no machine holds before memory is taken for them."""
    key, network = f"{config.task}.network", config.score.network
    with torch.device("meta"):
        match config.task:
            case "score":
                made: list[nn.Module] = [build_unet(network)]
            case "classifier":
                made = [NoisedClassifier(config.classifier.network)]
            case "mi":
                key, made = "mi.estimator", [Estimator(config.mi.estimator)]
            case "cut" | "asp":
                players = config.cut if config.task == "cut" else config.asp
                key = f"{config.task}.generator, {config.task}.discriminator"
                made = [Generator(players.generator), Discriminator(players.discriminator)]
    count = sum(weight.numel() for one in made for weight in one.parameters())
    if count > MOST_WEIGHTS:
        raise ConfigError(f"{key}: found {count:,} weights, expected at most {MOST_WEIGHTS:,}")


def _silent(line: str) -> None:
    pass


def _check_stains(config: RunConfig) -> None:
    """Refuse what contradicts itself between `task`, `data`, `he` and `paired`, before any image is looked for."""
    if config.task not in BOTH_STAINS:
        if config.he is not None or config.paired:
            key = "he" if config.he is not None else "paired"
            raise ConfigError(f"'{key}': the task '{config.task}' learns from IHC alone; leave it out")
        return
    if config.he is None:
        if not all(names_both_stains(source) for source in config.data.sources):
            raise ConfigError(
                "'he' is missing: give he.sources, or data.sources that are published datasets with a 'split'"
            )
        return
    he, data = config.he, config.data
    same: dict[str, tuple[object, object]] = {"size": (he.size, data.size), "mpp": (he.mpp, data.mpp)}
    same |= {"fit": (he.fit, data.fit), "native": (he.native, data.native)}
    if config.paired:
        same["scale_jitter"] = (he.scale_jitter, data.scale_jitter)
        same["dihedral"] = (he.dihedral, data.dihedral)
    for key, (found, expected) in same.items():
        if found != expected:
            raise ConfigError(f"he.{key}: found {found}, expected {expected} as data.{key}, or nothing")


def _check_generator(config: RunConfig) -> None:
    if config.task == "asp" and not config.paired:
        raise ConfigError("'paired': found false, expected true: ASP learns from pairs")
    if len(config.markers) > 1:
        raise ConfigError(
            f"'markers': found {len(config.markers)}, expected at most one: a generator stains one marker"
        )
    least = config.asp.least if config.task == "asp" else config.cut.discriminator.least
    if config.data.size < least:
        raise ConfigError(
            f"data.size: found {config.data.size}, expected at least {least} for '{config.task}'"
        )


def _tiles(config: RunConfig, say: Callable[[str], None]) -> tuple[Dataset[Any], str]:
    """The task's tiles, and how many images they come from, in words."""
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


def learner_of(config: RunConfig, accelerator: Accelerator) -> Learner:
    """The learner of a run's task, with fresh weights."""
    if config.task == "score":
        return ScoreLearner(config.score, accelerator, config.seed, config.steps)
    if config.task == "mi":
        return MILearner(config.mi, accelerator, config.seed, config.steps)
    if config.task == "classifier":
        return ClassifierLearner(config.classifier, accelerator, config.seed, config.steps)
    card = Card(
        name=config.out.name or config.task,
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
    return config.model_dump(exclude={**dict.fromkeys(_FREE, True), **nested})


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
