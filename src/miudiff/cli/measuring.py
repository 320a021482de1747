"""Commands that measure: evaluate, reproduce, bench, doctor. Thin: the work is elsewhere, and is imported when a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from miudiff.cli.app import Preset, Words, app, complain, say
from miudiff.naming import SHIPPED


@app.command
def reproduce(
    table: Literal["table1", "table2", "figure3"],
    *,
    data: Words = ("twin",),
    out: Path = Path("reproduce"),
    budget: str = "smoke",
    preset: Preset = "fast",
    seeds: int | None = None,
    mpp: Words = (),
    model: Words = (),
    marker: Words = (),
    init: Path | None = None,
    split: Literal["auto", "official", "paper", "all"] = "auto",
    split_seed: int = 0,
    slide_pattern: str | None = None,
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
        marker: NAME=MARKER that the model of --model stains a dataset for, where its folders name another or none.
        init: A model folder whose U-Net the score models begin with.
        split: The dataset's official split, the paper's 80/10/10, or the official one where there is one; or all: every pair is a test pair at the scale of --model, and nothing is trained.
        split_seed: Seed of the paper's split.
        slide_pattern: A regular expression with a group (?P<slide>...) that finds the slide in a file name; the paper's split is then by slide.
        only: A row to make, by its name, as in --only CUT; may be given again. All by default.
        plan: Only say what would be trained and translated, how long it takes and how much disk.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: bf16 where it is faster (auto), or as asked.
    """
    from miudiff.reproduce import Options
    from miudiff.reproduce import reproduce as run_comparison

    run_comparison(
        Options(
            table=table,
            data=data,
            out=out,
            budget=budget,
            base=preset,
            seeds=seeds,
            mpp=mpp,
            models=model,
            markers=marker,
            init=init,
            split=split,
            split_seed=split_seed,
            slide_pattern=slide_pattern,
            only=only,
            device=device,
            precision=precision,
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
        mpp: Micrometres per pixel, for the measures of cells and at a length.
        nucleus: Pixels across a nucleus, instead of --mpp, for the measures of cells alone.
        tissue_only: Histograms of the tissue without the glass, too.
        encoder: Weights for FID and KID: FID-Inception, or a pathology encoder with timm's names.
        features: Two .npy files for FID and KID, instead: features [N, D] of the generated and of the true images.
        slide_pattern: A regular expression with a group (?P<slide>...) in a name; intervals are then over slides.
        skip_bad: Score the rest where files have problems (exit code 3), instead of nothing (exit code 2).
        workers: Processes; by default one for each core.
        seed: Of the bootstrap.
        device: For the encoder: auto, cpu, cuda, cuda:N or mps.
    """
    from miudiff.device import cores
    from miudiff.evaluation.evaluate import Settings, evaluate_folders
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
        complain(line)
    folder = out if out is not None or json is not None else Path("evaluation")
    publish(evaluation, {"generated": generated, "reference": reference, "source": source}, folder, json, say)
    return evaluation.exit_code


@app.command
def bench(
    *,
    model: str = SHIPPED,
    quick: bool = False,
    json: Path | None = None,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
) -> int:
    """Measure what staining and training cost on this machine, each figure against a named alternative in the same run.

    Args:
        model: A model folder, or the name of one that ships.
        quick: Fewer repetitions and smaller sizes: under two minutes on two cores.
        json: Write every figure to this file.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: bf16 where it is faster (auto), or as asked.
    """
    from miudiff.bench.report import bench as measure

    measure(model, quick, json, device, precision, say)
    return 0


@app.command
def doctor() -> int:
    """Say what is here and what is missing: versions, device, readers, weights, disk."""
    from miudiff.doctor import report

    return report(say)
