"""`miudiff demo`: the twin set's picture, translated with the weights that ship, beside its true IHC; its right half is measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from miudiff.cells import dab_above_glass, tissue_of_either
from miudiff.checkpoints import write_json
from miudiff.data.twin import MARKER, at_scale, twin_picture
from miudiff.evaluation.fidelity import histogram_correlation, psnr, vif
from miudiff.evaluation.stain import dab_density, integrated_optical_density
from miudiff.evaluation.truth import DARKNESS, compare_dab, correlations, darkness
from miudiff.images import Pixels, write_image
from miudiff.methods.sdedit import StepReport
from miudiff.pages.page import write_page
from miudiff.pages.parts import Commands, Figure, Folded, Notes, Part, Rows, Table
from miudiff.progress import Progress
from miudiff.stainer import VirtualStainer
from miudiff.trajectory import Trajectory

NEXT = (
    (
        "miudiff translate he.png ihc.png --mpp 0.5",
        "Your own image; --mpp is its scale, in micrometres per pixel.",
    ),
    (
        "miudiff translate case.svs out/case.ome.tif",
        "A whole slide, with a report beside it; --preview is quick.",
    ),
    ("miudiff view case.svs out/case.ome.tif", "Both slides in the browser, side by side or with a curtain."),
    (
        "miudiff evaluate ihc_folder real_folder --source he_folder --out scores",
        "How near virtual stains are to real ones.",
    ),
)

# key of metrics.json -> what it is, and in which unit
NAMES = {
    "dab_dice_real": "Overlap of the brown with the real brown (Dice, 1 is all)",
    "dab_r_8um_real": "Correlation of the DAB with the real DAB, over 8 µm",
    f"{DARKNESS}dab_r_8um_real": "The same of the H&E's darkness, which knows no stain",
    "psnr_real": "PSNR against the real IHC, dB",
    "vif_source": "Detail of the H&E kept (VIF, 1 is all)",
    "hist_rgb256": "Colours as in the real IHC (histogram correlation, -1 to 1)",
    "iod_virtual": "DAB of the virtual IHC (IOD: optical density, summed over pixels)",
    "iod_real": "DAB of the real IHC (the same sum)",
}


def run_demo(out: Path, preset: str, seed: int, device: str, say: Callable[[str], None]) -> None:
    """Write he.png, virtual_ihc.png, real_ihc.png, both DAB maps, trajectory.png, metrics.json and report.html to `out`."""
    began = time.monotonic()
    stainer = VirtualStainer.load(preset=preset, marker=MARKER, device=device)
    he, real = (at_scale(image, stainer.model.card.mpp) for image in twin_picture())
    reverse = stainer.reverse
    assert reverse is not None
    steps, sde = len(reverse.sde), reverse.sde
    shown = [steps - 1, *(int((steps - 1) * f) for f in (0.75, 0.5, 0.25, 0.1)), 0]
    watch = Trajectory([int(sde.network_time(i)) for i in shown])
    progress = Progress("steps", say)

    def step(report: StepReport) -> None:
        progress(len(watch.ratios), steps)
        watch(report)

    reverse.watch = step
    out.mkdir(parents=True, exist_ok=True)  # told before the work, if it cannot be
    say(f"{stainer.model.card.name}, marker {MARKER}, preset {preset}, {steps} steps, {stainer.placement}")
    fake = stainer.translate(he, seed=seed, name="demo")
    say(watch.summary())

    images = {
        "he": he,
        "virtual_ihc": fake,
        "real_ihc": real,
        "dab_virtual": dab_picture(fake),
        "dab_real": dab_picture(real),
    }
    for name, image in images.items():
        write_image(out / f"{name}.png", image)
    write_image(out / "trajectory.png", watch.strip())
    held_out = np.s_[:, he.shape[1] // 2 :]
    scores = score(fake[held_out], real[held_out], he[held_out], stainer.model.card.mpp)
    write_json(out / "metrics.json", scores)
    seconds = time.monotonic() - began
    _page(out / "report.html", images | {"trajectory": watch.strip()}, scores, preset, seed, seconds)
    say("  ".join(f"{name} {value:.4g}" for name, value in scores.items()))
    say(f"{out / 'report.html'}  ({seconds:.0f} s)")


def score(fake: Pixels, real: Pixels, source: Pixels, mpp: float | None = 0.5) -> dict[str, float]:
    """The demo's measures of one image against its true twin; higher is better but for the IODs, which should agree."""
    tissue, key = tissue_of_either(fake, real), "dab_r_8um_real"
    of_darkness = correlations(darkness(source), dab_above_glass(real), tissue, mpp)
    agreement = compare_dab(fake, real, tissue, mpp)
    return {
        "dab_dice_real": agreement["dab_dice_real"],
        key: agreement.get(key, math.nan),
        f"{DARKNESS}{key}": of_darkness.get(key, math.nan),
        "psnr_real": psnr(fake, real),
        "vif_source": vif(fake, source),
        "hist_rgb256": histogram_correlation(fake, real),
        "iod_virtual": integrated_optical_density(fake),
        "iod_real": integrated_optical_density(real),
    }


def dab_picture(image: Pixels) -> Pixels:
    """DAB density as grey levels: white is none, black an optical density of 1.5."""
    level = np.clip(255 * (1 - dab_density(image) / 1.5), 0, 255).astype(np.uint8)
    return np.repeat(level[..., None], 3, axis=-1)


def _page(
    path: Path, images: dict[str, Pixels], scores: dict[str, float], preset: str, seed: int, seconds: float
) -> None:
    tissue = [
        Figure(
            "H&E",
            "The source: an H&E twin. No network saw the right half, or any H&E, in training.",
            images["he"],
        ),
        Figure("Virtual IHC", f"Preset {preset}, seed {seed}, in {seconds:.0f} s.", images["virtual_ihc"]),
        Figure(
            "Real IHC", "The same tissue, as it was stained (FHL2 in DAB, hematoxylin).", images["real_ihc"]
        ),
    ]
    density = [
        Figure("DAB, virtual", "Density by colour deconvolution; darker is more.", images["dab_virtual"]),
        Figure("DAB, real", "The same of the real IHC.", images["dab_real"]),
    ]
    walk = Figure("From y_S to y_0", "The reverse process, left to right.", images["trajectory"])
    table = Table(
        "Against the true twin, in the right half, which was held out",
        ["measure", "value", "key in metrics.json"],
        [[NAMES[key], f"{v:,.0f}" if key.startswith("iod") else v, key] for key, v in scores.items()],
        "Histograms have 256 bins of R, G and B; VIF is the mean of R, G and B; IOD is after ImageJ's recipe, of this image alone.",
    )
    notes = [
        "The twin's H&E was rendered from the real IHC image of scikit-image (colon), so pair and alignment are exact; it is no laboratory H&E.",
        "miudiff reproduce table1 --data twin measures all systems on it.",
    ]
    parts: list[Part] = [
        Rows("One tissue, three times", [("", tissue)], "Drag a curtain: each picture uncovers the next."),
        Commands("Next", NEXT),
        table,
        Rows("Where the DAB is", [("", density)]),
        Folded("How the picture was made, and what it does not show", [walk, Notes("Notes", notes)]),
    ]
    write_page(path, "miudiff demo", _lead(scores), parts)


def _lead(scores: dict[str, float]) -> str:
    r, darkness_r = scores["dab_r_8um_real"], scores[f"{DARKNESS}dab_r_8um_real"]
    return (
        f"Made from the H&E alone. In the held-out half its brown overlaps the real stain's with a Dice of {scores['dab_dice_real']:.2f}, and its DAB over "
        f"8 µm correlates with the real one's by {r:.2f}; the H&E's mere darkness does by {darkness_r:.2f}. One region and one seed: an example, not an evaluation."
    )
