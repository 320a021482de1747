"""Commands that stain: demo, translate, calibrate. Thin: the work is elsewhere, and is imported when a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from miudiff.cli.app import Change, Method, Preset, app, complain, say


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
        complain(f"{outcome.failed[0][1]}{more}")
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
