"""Every system by its name: its settings, its presets, and how a translator is made of a loaded model.

A new method is a file beside this one, a line in `SYSTEMS` and one in `build`. What is trained to translate in one pass says itself
which method it is: the generators of CUT, FastCUT and ASP, which have no settings, and a student of MIU-Diff.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

from miudiff.checkpoints import WEIGHTS, read_json
from miudiff.config import Strict, did_you_mean, override, parse
from miudiff.device import Placement
from miudiff.errors import CheckpointError, ConfigError
from miudiff.methods import egsde, ilvr, sdedit, student
from miudiff.methods.egsde import EGSDE, EGSDEConfig
from miudiff.methods.folder import INDEX
from miudiff.methods.generator import GeneratorModel, GeneratorTranslator, MethodName, load_generator_model
from miudiff.methods.ilvr import ILVR, ILVRConfig
from miudiff.methods.miu_diff import MIUDiff, MIUDiffConfig
from miudiff.methods.model import Model, load_model, model_folder
from miudiff.methods.presets import PRESETS
from miudiff.methods.sdedit import ReverseConfig, SDEdit, SDEditConfig
from miudiff.methods.student import OneStep, OneStepConfig, StudentModel, load_student
from miudiff.naming import SHIPPED


class System(NamedTuple):
    """A system's settings; the first of its presets is the one taken where none is named."""

    config: type[Strict]
    presets: Mapping[str, Strict]

    @property
    def usual(self) -> str:
        """The preset that is taken where none is named."""
        return next(iter(self.presets))


SYSTEMS: Mapping[str, System] = {
    "miu-diff": System(MIUDiffConfig, PRESETS),
    "sdedit": System(SDEditConfig, sdedit.PRESETS),
    "ilvr": System(ILVRConfig, ilvr.PRESETS),
    "egsde": System(EGSDEConfig, egsde.PRESETS),
}
ONE_STEP = System(OneStepConfig, student.PRESETS)
SETTINGS: Mapping[str, System] = {**SYSTEMS, StudentModel.method: ONE_STEP}
TRAINED: Collection[str] = (
    *get_args(MethodName),
    StudentModel.method,
)  # a model is of one of these, or of all others
AnyModel = Model | GeneratorModel | StudentModel
Translating = MIUDiff | SDEdit | ILVR | EGSDE | GeneratorTranslator | OneStep


def configure(method: str, preset: str | None = None, changes: Sequence[str] = ()) -> Strict:
    """A system's preset with `key=value` changes.

    Raises:
        ConfigError: No such system or preset, or a change that does not fit.
    """
    if method not in SETTINGS:
        raise ConfigError(
            f"method '{method}': expected one of {', '.join(SETTINGS)}{did_you_mean(method, SETTINGS)}"
        )
    system = SETTINGS[method]
    preset = preset or system.usual
    if preset not in system.presets:
        raise ConfigError(
            f"preset '{preset}': {method} has {', '.join(system.presets)}{did_you_mean(preset, system.presets)}"
        )
    return changed(system.presets[preset], changes, f"preset {preset}")


def changed(config: Strict, changes: Sequence[str], where: str = "the settings") -> Strict:
    """Settings with `key=value` changes.

    Raises:
        ConfigError: A change that does not fit.
    """
    return parse(type(config), override(config.model_dump(mode="json"), changes), where)


def find_student(name: str | Path) -> Path | None:
    """The folder of a model's student: its own, if it is one, or that of the model's name and "-turbo"; None where there is none.

    Raises:
        CheckpointError: There is no such model.
    """
    folder = model_folder(name)
    if student.PART in read_json(folder / INDEX):
        return folder
    found = _student_folder(folder)
    return found if (found / INDEX).is_file() else None


def _student_folder(folder: Path) -> Path:
    whole = folder.absolute()  # "." has no name of its own
    return whole.with_name(f"{whole.name}-turbo")


def student_of(name: str | Path) -> Path:
    """The folder of a model's student.

    Raises:
        CheckpointError: It has none.
    """
    if found := find_student(name):
        return found
    folder = _student_folder(model_folder(name))
    raise CheckpointError(
        f"preset turbo: the model '{name}' has no student ({folder} is no model folder), expected one that `miudiff train` made with task=distill; name it with --model, or take another preset"
    )


def preset_for_slides(name: str | Path) -> str | None:
    """The preset that a whole slide is stained with where none is named: its model's student; None: as an image."""
    return ONE_STEP.usual if find_student(name) else None


def load_any(name: str | Path = SHIPPED, placement: Placement | None = None) -> AnyModel:
    """A model folder of any kind.

    Raises:
        CheckpointError: Missing or damaged files, or weights that do not fit their configuration.
    """
    index = read_json(model_folder(name) / INDEX)
    if student.PART in index:
        return load_student(name, placement)
    return load_generator_model(name, placement) if "generator" in index else load_model(name, placement)


def describe(name: str | Path) -> list[str]:
    """What a model says of itself, line by line.

    Raises:
        CheckpointError: As `load_any`.
    """
    model, folder = load_any(name), model_folder(name)
    card = model.card
    size = sum(path.stat().st_size for path in folder.glob(f"*/{WEIGHTS}")) / 1e6
    kind = "a diffusion model, for " + ", ".join(SYSTEMS) if isinstance(model, Model) else model.method
    if isinstance(model, StudentModel):
        kind += f", distilled from {model.teacher}"
    lines = [
        f"{card.name}: {kind}",
        f"markers: {', '.join(card.markers) or 'one, unnamed'}",
        f"scale: {f'{card.mpp:g} um/px' if card.mpp else 'not stated'}, tiles of {card.tile} pixels",
        f"licence: {card.licence}",
        f"weights: {size:.1f} MB, digest {model.fingerprint}, in {folder}",
        *([card.description] if card.description else []),
        "For research use only, not for diagnosis.",
    ]
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    if text.startswith("---\n"):  # what a hub reads is no text
        text = text.partition("\n---\n")[2]
    return [*lines, *text.rstrip().splitlines()]


def build(config: Strict | None, model: AnyModel, marker: str | None, placement: Placement) -> Translating:
    """The translator of a system's settings on a model; None for a generator, which has none.

    Raises:
        ConfigError: Settings that the model cannot follow, or a marker that it does not have.
    """
    if isinstance(model, GeneratorModel):
        if config is not None:
            raise ConfigError(
                f"'{model.card.name}' is a model of {model.method}: it takes no other method's settings"
            )
        model.card.check_marker(marker)
        return GeneratorTranslator(model.generator, placement)
    if isinstance(model, StudentModel):
        if not isinstance(config, OneStepConfig):
            raise ConfigError(
                f"'{model.card.name}' is a one-step student: expected the settings of {model.method}"
            )
        return model.translator(config, marker, placement)
    score, palette = model.for_marker(marker), model.palette(marker)
    match config:
        case MIUDiffConfig():
            check_fit(model, config)
            return MIUDiff(score, model.estimator, config, placement, palette)
        case EGSDEConfig():
            check_reverse(model, config)
            return EGSDE(score, model.classifier, config, placement, palette)
        case SDEditConfig():
            check_reverse(model, config)
            return SDEdit(score, config, placement, palette)
        case ILVRConfig():
            return ILVR(score, config, placement)
        case _:
            raise ConfigError(
                f"'{model.card.name}' is a diffusion model: expected the settings of one of {', '.join(SYSTEMS)}"
            )


def method_of(config: Strict | None) -> str:
    """The name of the system that these settings are of."""
    return next(name for name, system in SETTINGS.items() if type(config) is system.config)


def steps_of(translator: Translating) -> int:
    """How many reverse steps a tile takes; 1 for what takes one pass."""
    if translator.reverse is None:
        return 1
    walks = translator.config.repeats if isinstance(translator, SDEdit | EGSDE) else 1
    return walks * len(translator.reverse.sde)


def check_reverse(model: Model, config: ReverseConfig, key: str = "") -> None:
    """Refuse a reverse process that the model cannot walk; `key` is where it stands in the settings.

    Raises:
        ConfigError: It begins beyond the chain, or takes a variance that was not learned.
    """
    name, score = model.card.name, model.score
    if config.start > len(score.sde):
        raise ConfigError(
            f"{key}start: found {config.start}, expected at most {len(score.sde)}, the steps that the model '{name}' knows"
        )
    if config.variance == "learned" and not score.learned_variance:
        raise ConfigError(f"{key}variance: found learned, but the model '{name}' has not learned it")


def check_fit(model: Model, config: MIUDiffConfig) -> None:
    """Refuse settings of MIU-Diff that the model cannot follow.

    Raises:
        ConfigError: As its message says.
    """
    name, score, estimator = model.card.name, model.score, model.estimator
    guided = config.guidance.scale > 0 and config.energy.guidance != "none"
    if guided and estimator is None:
        raise ConfigError(
            f"the model '{name}' has no MI estimator, so it cannot be guided; give it energy.guidance=none"
        )
    if guided and estimator is not None and model.card.tile < 2 * estimator.config.patch:
        raise ConfigError(
            f"the model '{name}' has tiles of {model.card.tile}, expected at least two patches of {estimator.config.patch} a side"
        )
    check_reverse(model, config.reverse, "reverse.")
    taps, blocks = config.refinement.taps, score.encoder_blocks
    if taps is not None and not (taps and min(taps) >= 0 and max(taps) < blocks):
        raise ConfigError(
            f"refinement.taps: found {list(taps)}, expected blocks of the model's encoder, 0 to {blocks - 1}"
        )
