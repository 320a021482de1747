"""Commands that train, and make model folders of what was trained. Thin: the work is elsewhere, and is imported when a command runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from miudiff.cli.app import Change, app, model_app, say
from miudiff.errors import ConfigError, DataError

if TYPE_CHECKING:
    from miudiff.runs import RunConfig


@app.command
def train(config: str, *changes: str) -> int:
    """Train, or go on training, what a YAML file says. Ctrl-C stops after writing a state; the same command goes on.

    Several processes: torchrun --nproc_per_node N -m miudiff train CONFIG

    Args:
        config: A YAML file, or the name of a recipe that ships with the package.
        changes: key=value words that change single values, as in score.optimizer.lr=2e-5.
    """
    from miudiff.runs import run

    run(_read_run(config, changes), say)
    return 0


def _read_run(config: str, changes: Sequence[str]) -> RunConfig:
    """A run's YAML file, or a recipe's, with changes."""
    from miudiff.config import override, parse, read_yaml
    from miudiff.recipes import recipe_path
    from miudiff.runs import RunConfig

    path = recipe_path(config)
    return parse(RunConfig, override(read_yaml(path), changes), str(path))


@model_app.command
def assemble(
    score: Path,
    out: Path,
    *,
    name: str,
    mi: Path | None = None,
    classifier: Path | None = None,
    marker: tuple[str, ...] = (),
    mpp: float | None = None,
    tile: int = 256,
    licence: str = "not stated",
    description: str = "",
    half: bool = False,
    readme: Path | None = None,
    overwrite: bool = False,
) -> int:
    """Make a model folder from the weights of a score run and of an MI run, or from those of a student's run.

    Args:
        score: The score run's folder, or that of a run with task=distill, whose teacher says markers and scale.
        out: The model folder to write.
        name: The model's name.
        mi: The MI run's folder.
        classifier: The folder of a run of EGSDE's classifier, which EGSDE alone needs.
        marker: The names of its markers, in the order of its classes; by default as the score run says.
        mpp: Micrometres per pixel of the training tiles; by default as the runs say.
        tile: Side of the tiles it is given.
        licence: Under which it may be used.
        description: A sentence about it.
        half: Store float16, half the size.
        readme: A model card to put in.
        overwrite: Replace the model that is there, and all its parts.
    """
    import torch

    from miudiff.config import parse
    from miudiff.methods.folder import check_free
    from miudiff.methods.model import Card, from_runs, save_model
    from miudiff.methods.student import PART, load_student, save_student
    from miudiff.runs import trained_as

    check_free(out, overwrite)
    try:
        text = readme.read_text(encoding="utf-8") if readme else None
    except UnicodeDecodeError as error:
        raise DataError(f"{readme}: is not text, expected a model card in UTF-8") from error
    dtype = torch.float16 if half else None
    if (score / "weights" / PART).is_dir():
        if mi or classifier or marker or mpp:
            raise ConfigError(
                f"{score}: a student, which has its teacher's markers and scale and needs no other run; expected none of --mi, --classifier, --marker, --mpp"
            )
        save_student(out, load_student(score / "weights").renamed(name, licence, description), dtype, text)
        say(f"model: {out}")
        return 0
    marker, mpp = trained_as(score, mi, marker, mpp)
    about = {
        "name": name,
        "markers": marker,
        "mpp": mpp,
        "tile": tile,
        "licence": licence,
        "description": description,
    }
    card = parse(Card, about, "the model's card")
    made = from_runs(
        score / "weights",
        mi / "weights" if mi else None,
        card,
        classifier / "weights" if classifier else None,
    )
    save_model(out, made, dtype, text)
    say(f"model: {out}")
    return 0


@model_app.command
def card(model: str) -> int:
    """Say what a model is: its markers, scale, licence, digest and size, a student's teacher, and its model card.

    Args:
        model: A model folder, or the name of one that ships with the package.
    """
    from miudiff.methods.systems import describe

    for line in describe(model):
        say(line)
    return 0


@model_app.command
def palette(model: Path, run: str, *changes: str, he: str, he_mpp: float | None = None) -> int:
    """Measure the palette of each marker on H&E and on a run's IHC images, which need be no pairs, and put it into a model folder.

    Args:
        model: The model folder.
        run: The YAML file of the run, or the name of a recipe, whose `data` are the markers' IHC images.
        changes: `key=value` words that change the run's file, as for `train`.
        he: A folder of H&E images, or twin:train.
        he_mpp: Micrometres per pixel of the H&E; without it what each file states, else the model's.
    """
    from miudiff.data.tiles import find_images
    from miudiff.data.twin import SKIMAGE_MPP, twin_region
    from miudiff.device import place
    from miudiff.images import list_images, read_image, read_scale
    from miudiff.matching import matched_palettes, usual
    from miudiff.methods.model import at_mpp, load_model, write_palettes

    config, placement = _read_run(run, changes), place()
    loaded = load_model(model, placement)
    target = loaded.card.mpp or SKIMAGE_MPP
    if he == "twin:train":
        sources = [at_mpp(twin_region("train")[0], SKIMAGE_MPP, target)]
    else:
        paths = list_images(he)
        sources = [at_mpp(read_image(path), he_mpp or read_scale(path), target) for path in paths]
    images = find_images(config.data, config.markers, say)
    palettes = matched_palettes(loaded, usual(loaded), placement, sources, images)
    for marker, found in palettes.items():
        what = "nuclei" if found.nuclear else "tissue beside nuclei"
        say(f"{marker}: {100 * found.share:.0f} % of {what} positive, which counts {found.gain} times")
    write_palettes(model, palettes)
    return 0


@model_app.command
def reference(model: Path, *, he: Path, mpp: float | None = None) -> int:
    """Measure the H&E that a model knows, and put it into its folder: `translate` and `info` warn of images that are far from it.

    Args:
        model: The model folder.
        he: A folder of at least 16 H&E images such as it was made for.
        mpp: Micrometres per pixel of the images, where the files do not state it; by default the model's.
    """
    from miudiff.methods.model import add_reference

    measured = add_reference(model, he, mpp)
    say(f"{model}: {measured.images} images; a distance beyond {measured.limit:.1f} is far")
    return 0


@model_app.command
def from_adm(
    checkpoint: Path,
    out: Path,
    *,
    name: str,
    mpp: float | None = None,
    tile: int = 256,
    licence: str = "not stated",
    set_: Change = (),
    overwrite: bool = False,
) -> int:
    """Make a model folder from an official guided-diffusion (ADM) checkpoint; it has no MI estimator yet.

    Args:
        checkpoint: The .pt file.
        out: The model folder to write.
        name: The model's name.
        mpp: Micrometres per pixel that it was trained at.
        tile: Side of the tiles it is given.
        licence: Under which it may be used.
        set_: A fact of the network in guided-diffusion's words that its weights do not tell, as in --set num_head_channels=64.
        overwrite: Replace the model that is there, and all its parts.
    """
    from miudiff.config import override, parse
    from miudiff.diffusion.adm import load_adm
    from miudiff.methods.folder import check_free
    from miudiff.methods.model import Card, Model, save_model

    check_free(out, overwrite)
    about = {"name": name, "mpp": mpp, "tile": tile, "licence": licence}
    card = parse(Card, about, "the model's card")
    save_model(out, Model(load_adm(checkpoint, override({}, set_)), None, card))
    say(f"model: {out}")
    return 0


@model_app.command
def samples(
    model: str,
    out: Path,
    *,
    marker: str | None = None,
    count: int = 8,
    size: int = 128,
    steps: int = 100,
    seed: int = 0,
    device: str = "auto",
) -> int:
    """Draw unconditional samples of a model's score network: what it has learned, without a source or guidance.

    Args:
        model: A model folder, or the model that ships with the package.
        out: The picture to write.
        marker: For a model of several markers; its first by default.
        count: How many samples.
        size: Side of a sample in pixels.
        steps: Steps from noise to image, of the 1000 that the model knows.
        seed: Same seed, same samples, however many.
        device: auto, cpu, cuda, cuda:N or mps.
    """
    from miudiff.samples import write_samples

    write_samples(model, out, marker, count, size, steps, seed, device, say)
    return 0
