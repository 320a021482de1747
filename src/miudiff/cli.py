"""The command line: thin. The work is elsewhere, and is imported when a command runs, so `--help` is quick."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
from cyclopts import App, Parameter

from miudiff import __version__
from miudiff.errors import DataError, MiudiffError

app = App(
    name="miudiff",
    version=__version__,
    help="Virtual histology staining: H&E to IHC by mutual-information guided diffusion. For research use only, not for diagnosis.",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
data = App(name="data", help="Look at, check and make datasets.")
model_app = App(name="model", help="Make model folders, and look into them.")
app.command(data)
app.command(model_app)

Preset = Literal["paper", "tuned"]
Words = Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=False)]
Method = Literal["miu-diff", "sdedit", "ilvr", "egsde", "cut", "fastcut", "asp"]
Change = Annotated[tuple[str, ...], Parameter(name="--set", negative=(), consume_multiple=False)]


def say(line: str) -> None:
    print(_one_line(line), flush=True)


@app.command
def demo(*, out: Path = Path("demo"), preset: Preset = "tuned", seed: int = 0, device: str = "auto") -> int:
    """Translate held-out tissue with the weights that ship, measure it against its true twin, and write a page about it.

    Args:
        out: Folder for the images and report.html.
        preset: The method's settings.
        seed: Same seed, same result.
        device: auto, cpu, cuda, cuda:N or mps.
    """
    from miudiff.demo import run_demo

    run_demo(out, preset, seed, device, say)
    return 0


@app.command
def train(config: str, *changes: str) -> int:
    """Train, or go on training, what a YAML file says. Ctrl-C stops after writing a state; the same command goes on.

    Several processes: torchrun --nproc_per_node N -m miudiff train CONFIG

    Args:
        config: A YAML file, or the name of a recipe that ships with the package.
        changes: key=value words that change single values, as in score.optimizer.lr=2e-5.
    """
    from miudiff.config import override, parse, read_yaml
    from miudiff.recipes import recipe_path
    from miudiff.runs import RunConfig, run

    path = recipe_path(config)
    run(parse(RunConfig, override(read_yaml(path), changes), str(path)), say)
    return 0


@app.command
def translate(
    source: Path,
    target: Path,
    *,
    method: Method | None = None,
    preset: str | None = None,
    seed: int = 0,
    model: str = "ki67-small",
    marker: str | None = None,
    mpp: float | None = None,
    set_: Change = (),
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    glass: Literal["keep", "stain"] = "keep",
    overwrite: bool = False,
) -> int:
    """Translate an H&E image, or a folder of them, to virtual IHC. Each result keeps its source's name. Run it again to go on.

    Args:
        source: An image or a folder of images.
        target: A file for one image, or a folder.
        method: miu-diff by default; a model folder of CUT, FastCUT or ASP says itself which it is.
        preset: The method's settings: tuned (the default) or paper for MIU-Diff, official (the default) or paper for the others.
        seed: Same seed, same result.
        model: A model folder, or the model that ships with the package.
        marker: For a model of several markers; its first by default.
        mpp: Micrometres per pixel of the sources, where the files do not state it.
        set_: A change of the preset, as in --set guidance.scale=0.2; may be given again.
        device: auto, cpu, cuda, cuda:N or mps. Never falls back by itself.
        precision: bf16 where it is faster (auto), or as asked.
        glass: Empty glass stays as it is (keep), or is translated like tissue (stain).
        overwrite: Make results again that are there.
    """
    from miudiff.stainer import VirtualStainer, check_mpp
    from miudiff.translation import NOTICE, plan, translate_files

    if mpp is not None:
        check_mpp(mpp)
    plan(source, target)  # a wrong path is told before seconds are spent on weights
    stainer = VirtualStainer.load(
        model,
        method=method,
        preset=preset,
        changes=set_,
        marker=marker,
        device=device,
        precision=precision,
        glass=glass,
    )
    if stainer.lacks_tone:
        say(
            f"{model} has no luma curve for {stainer.marker}: its luma is used as it is (make one with `miudiff model tone`)"
        )
    say(
        f"{stainer.model.card.name}, marker {stainer.marker or 'unnamed'}, {stainer.name}{f' {preset}' if preset else ''}, seed {seed}, {stainer.placement}; {NOTICE}"
    )
    outcome = translate_files(stainer, source, target, mpp=mpp, seed=seed, overwrite=overwrite, say=say)
    say(f"{len(outcome.written)} written, {len(outcome.skipped)} there already, {len(outcome.failed)} failed")
    if outcome.failed:
        more = f" (and {len(outcome.failed) - 1} more)" if len(outcome.failed) > 1 else ""
        _complain(f"{outcome.failed[0][1]}{more}")
    return outcome.exit_code


@app.command
def calibrate(
    source: Path,
    *,
    target: float = 0.05,
    preset: Preset = "paper",
    model: str = "ki67-small",
    marker: str | None = None,
    mpp: float | None = None,
    set_: Change = (),
    device: str = "auto",
) -> int:
    """Find the guidance scale at which the energy's shift is a stated share of each step's noise, on H&E images.

    Args:
        source: An image or a folder of images; at most four are used, a tile of each.
        target: Wanted mean of shift / noise.
        preset: The settings to calibrate.
        model: A model folder, or the model that ships with the package.
        marker: For a model of several markers.
        mpp: Micrometres per pixel of the sources, where the files do not state it.
        set_: A change of the preset, as in --set energy.guidance=shared.
        device: auto, cpu, cuda, cuda:N or mps.
    """
    from miudiff.calibration import calibrate_files

    calibrate_files(source, target, preset, model, marker, mpp, set_, device, say)
    return 0


@app.command
def reproduce(
    table: Literal["table1", "table2", "figure3"],
    *,
    data: Words = ("twin",),
    out: Path = Path("reproduce"),
    budget: str = "smoke",
    preset: Preset = "tuned",
    seeds: int | None = None,
    mpp: Words = (),
    model: Words = (),
    init: Path | None = None,
    split: Literal["auto", "official", "paper"] = "auto",
    split_seed: int = 0,
    only: Words = (),
    plan: bool = False,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
) -> int:
    """Make a table of the paper, or its figure, from any dataset: train what is missing, translate, score. Run it again to go on.

    Args:
        table: table1 (six systems and MIU-Diff's ablations), table2 (t0' and S) or figure3 (the systems side by side).
        data: NAME=ROOT of a dataset in a layout that `miudiff data check` knows, or twin, the set that ships; may be given again.
        out: Folder for images, runs, results and tables.
        budget: smoke (minutes, shows that all works), mini (a night on two cores), paper (a GPU), or a YAML file like theirs.
        preset: The settings of MIU-Diff that the ablations change.
        seeds: In place of the budget's number.
        mpp: NAME=MICROMETRES per pixel of a dataset whose files do not state it.
        model: NAME=MODEL folder whose score model and MI estimator are used, in place of training them.
        init: A model folder whose U-Net the score models begin with.
        split: The dataset's official split, the paper's 80/10/10, or the official one where there is one.
        split_seed: Seed of the paper's split.
        only: A row to make, by its name, as in --only CUT; may be given again. All by default.
        plan: Only say what would be trained and translated, how long it takes and how much disk.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: bf16 where it is faster (auto), or as asked.
    """
    from miudiff.reproduce import Options
    from miudiff.reproduce import reproduce as run_comparison

    run_comparison(
        Options(
            table,
            data,
            out,
            budget,
            preset,
            seeds,
            mpp,
            model,
            init,
            split,
            split_seed,
            only,
            device,
            precision,
        ),
        plan,
        say,
    )
    return 0


@app.command
def evaluate(
    generated: Path,
    reference: Path,
    *,
    source: Path | None = None,
    out: Path | None = None,
    json: Path | None = None,
    mpp: float | None = None,
    nucleus: float | None = None,
    tissue_only: bool = False,
    encoder: Path | None = None,
    features: tuple[Path, Path] | None = None,
    slide_pattern: str | None = None,
    skip_bad: bool = False,
    workers: int | None = None,
    seed: int = 0,
    device: str = "auto",
) -> int:
    """Score a folder of virtual IHC against a folder of true IHC, whoever made them. Images match by name.

    Args:
        generated: Folder of virtual IHC images.
        reference: Folder of their true IHC.
        source: Folder of the H&E images they were made from, for the measures of structure.
        out: Folder for scores.csv, scores.json, scores.md and report.html; by default evaluation, or none with --json alone.
        json: Write the scores as JSON to this file.
        mpp: Micrometres per pixel, for the measures of cells.
        nucleus: Pixels across a nucleus, instead of --mpp.
        tissue_only: Histograms of the tissue without the glass, too.
        encoder: Weights for FID and KID: FID-Inception, or a pathology encoder with timm's names.
        features: Two .npy files for FID and KID, instead: features [N, D] of the generated and of the true images.
        slide_pattern: A regular expression with a group (?P<slide>...) in a name; intervals are then over slides.
        skip_bad: Score the rest where files have problems (exit code 3), instead of nothing (exit code 2).
        workers: Processes; by default one for each core.
        seed: Of the bootstrap.
        device: For the encoder: auto, cpu, cuda, cuda:N or mps.
    """
    from miudiff.evaluation.evaluate import Settings, cores, evaluate_folders
    from miudiff.evaluation.publish import complaints, publish

    settings = Settings(
        mpp=mpp,
        nucleus=nucleus,
        tissue=tissue_only,
        encoder=encoder,
        features=features,
        slide_pattern=slide_pattern,
        skip_bad=skip_bad,
        workers=cores() if workers is None else workers,
        seed=seed,
        device=device,
    )
    evaluation = evaluate_folders(generated, reference, source, settings, say)
    for line in complaints(evaluation):
        print(f"miudiff: {line}", file=sys.stderr)
    folder = out if out is not None or json is not None else Path("evaluation")
    publish(evaluation, {"generated": generated, "reference": reference, "source": source}, folder, json, say)
    return evaluation.exit_code


@app.command
def doctor() -> int:
    """Say what is here and what is missing: versions, device, readers, weights, disk."""
    from miudiff.doctor import report

    return report(say)


@data.command
def check(
    root: Path,
    *,
    layout: Literal["auto", "bci", "mist", "cut", "plain"] = "auto",
    slide_pattern: str | None = None,
    json: Path | None = None,
) -> int:
    """Say what is in a dataset and what is wrong with it, file by file.

    Args:
        root: The dataset's folder.
        layout: As published (bci, mist), CUT's trainA and trainB, plain folders, or find out.
        slide_pattern: A regular expression with a group (?P<slide>...) that finds the slide in a file name.
        json: Write the report as JSON, too.
    """
    from miudiff.data.check import check_dataset
    from miudiff.images import write_bytes

    report = check_dataset(root, layout, slide_pattern)
    for line in report.lines():
        say(line)
    if json is not None:
        write_bytes(json, report.to_json().encode(errors="backslashreplace"))
    return report.exit_code


@data.command
def twin(source: Path, out: Path, *, antigen: Literal["nuclear", "cytoplasmic"] = "nuclear") -> int:
    """Make H&E twins of IHC images: exactly aligned pairs, in OUT/HE and OUT/IHC.

    Args:
        source: An IHC image, or a folder of them.
        out: Folder for the pairs.
        antigen: Where DAB lies: nuclear (Ki-67) or cytoplasmic and membranous (HER2).
    """
    from miudiff.data.twin import make_twins

    written, failed = make_twins(source, out, antigen)
    for message in failed:
        say(f"failed: {message}")
    say(f"{len(written)} pairs in {out}, {len(failed)} failed")
    return 0 if not failed else 3 if written else 2


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
) -> int:
    """Make a model folder from the weights of a score run and of an MI run.

    Args:
        score: The score run's folder.
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
    """
    import torch

    from miudiff.config import parse
    from miudiff.methods.model import Card, from_runs, save_model
    from miudiff.runs import trained_as

    try:
        text = readme.read_text(encoding="utf-8") if readme else None
    except UnicodeDecodeError as error:
        raise DataError(f"{readme}: is not text, expected a model card in UTF-8") from error
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
    save_model(out, made, torch.float16 if half else None, text)
    say(f"model: {out}")
    return 0


@model_app.command
def tone(model: Path, *, marker: str, he: str, ihc: str, channel: Literal["luma", "red"] = "luma") -> int:
    """Measure the luma curve from H&E to a marker's IHC on two unpaired sets, and put it into a model folder.

    Args:
        model: The model folder.
        marker: The marker whose curve it is.
        he: A folder of H&E images, or twin:train.
        ihc: A folder of the marker's IHC images, or twin:train.
        channel: What of the H&E is its grey: luma, or red, in which eosin is pale.
    """
    from miudiff.methods.model import add_tone

    curve = add_tone(model, marker, he, ihc, channel)
    say(
        "  ".join(f"{s:+.2f} -> {t:+.2f}" for s, t in list(zip(curve.source, curve.target, strict=True))[::8])
    )
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
    """
    from miudiff.config import override, parse
    from miudiff.diffusion.adm import load_adm
    from miudiff.methods.model import Card, Model, save_model

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


def main(arguments: list[str] | None = None) -> None:
    """Run a command; one line and exit code 2 for a user's mistake, 130 for Ctrl-C."""
    # Before torch starts its threads: on a busy machine a spinning thread waits for one that has no core to run on, and a step
    # of the network takes many times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no text in any encoding
    sys.exit(
        _exit_code(
            lambda: app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        )
    )


def _exit_code(command: Callable[[], object]) -> int:
    try:
        result = command()
        return result if isinstance(result, int) else 0
    except MiudiffError as error:
        _complain(str(error))
        return 2
    except cyclopts.CycloptsError as error:
        _complain(" ".join(str(error).split()))
        return 2
    except KeyboardInterrupt:
        _complain("interrupted; the same command goes on from here")
        return 130
    except OSError as error:  # a full disk, a lost mount, a folder without leave to write
        _complain(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))
        return 2
    except (RuntimeError, MemoryError) as error:
        from miudiff.device import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        _complain(f"too little memory ({' '.join(str(error).split())[:120]}); free it, or take --device cpu")
        return 2


def _complain(line: str) -> None:
    sys.stderr.write(f"miudiff: {_one_line(line)}\n")  # in one piece: several processes may write at once


def _one_line(line: str) -> str:
    """A file's name may hold a line break."""
    return line.replace("\r", "\\r").replace("\n", "\\n")
