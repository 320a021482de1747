"""The demo's page and measures, and the trajectory it shows."""

import html
import itertools
import json
import math
import re

import numpy as np
import pytest
import torch

from miudiff import demo
from miudiff.data.twin import MARKER, at_scale, skimage_ihc, twin_picture
from miudiff.demo import NAMES, dab_picture, run_demo, score
from miudiff.demo import _page as page
from miudiff.images import read_image, resize
from miudiff.methods.model import model_folder
from miudiff.methods.presets import preset
from miudiff.methods.sdedit import StepReport
from miudiff.naming import SHIPPED
from miudiff.stainer import VirtualStainer
from miudiff.stains import combine_stains, rgb_from_hdab
from miudiff.trajectory import Trajectory
from tiny import CPU, tiny_model

QUICK = ("reverse.start=4", "reverse.steps=2", "refinement.start=0")


def tissue(height=48, width=64, seed=0):
    y, x = np.mgrid[:height, :width] / 32
    waves = [np.sin(9 * x + k + seed) * np.cos(7 * y - k) for k in range(3)]
    return np.round(170 + 60 * np.stack(waves, axis=-1)).astype(np.uint8)


def quick(name, changes=()):
    return preset(name, (*changes, *QUICK))


# The demo


def test_an_image_that_is_its_true_twin_has_the_best_scores():
    image = tissue()
    best = score(image, image, image)
    assert best["psnr_real"] == math.inf
    assert best["vif_source"] == pytest.approx(1)
    assert best["hist_rgb256"] == pytest.approx(1)
    assert best["iod_virtual"] == best["iod_real"]
    assert set(best) == set(NAMES)


def test_scores_of_unlike_images_are_worse():
    image, other = tissue(), tissue(seed=2)[::-1]
    best, worse = score(image, image, image), score(other, image, image)
    assert all(worse[name] < best[name] for name in ("psnr_real", "vif_source", "hist_rgb256"))


def test_the_dab_picture_is_white_without_dab_and_darker_the_more_there_is():
    amounts = np.array([[[0, 0], [0.5, 0], [0, 0.3], [0, 0.6], [0, 0.9]]])
    picture = dab_picture(combine_stains(amounts, rgb_from_hdab))
    assert picture.dtype == np.uint8
    assert picture.shape == (1, 5, 3)
    assert (picture == picture[..., :1]).all()
    level = picture[0, :, 0].astype(int)
    assert level[:2].min() > 250
    assert all(after < before - 20 for before, after in itertools.pairwise(level[1:]))


def test_the_region_is_brought_to_the_models_scale():
    image = tissue(64, 96)
    assert np.array_equal(at_scale(image, 1.0), resize(image, 32, 48))
    assert np.array_equal(at_scale(image, 0.5), image)
    assert np.array_equal(at_scale(image, None), image)


def test_the_right_half_of_the_picture_is_the_one_that_is_held_out():
    he, ihc = twin_picture()
    assert he.shape == ihc.shape
    assert np.array_equal(ihc[:, 256:], skimage_ihc("test"))


def test_the_page_holds_every_image_and_number_and_needs_nothing_else(tmp_path):
    images = ["he", "virtual_ihc", "real_ihc", "dab_virtual", "dab_real", "trajectory"]
    scores = {
        "dab_dice_real": 0.6,
        "dab_r_8um_real": 0.41,
        "darkness_dab_r_8um_real": 0.22,
        "psnr_real": 12.3456,
        "vif_source": math.inf,
        "iod_virtual": 31_360.4,
        "iod_real": 40.0,
    }
    page(
        tmp_path / "report.html",
        {name: tissue(seed=i) for i, name in enumerate(images)},
        scores,
        "fast",
        7,
        3.2,
    )
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == len(images)
    assert all(
        word in text
        for word in ("psnr_real", "12.35", "vif_source", "Preset fast, seed 7, in 3 s.", "31,360")
    )
    assert "by 0.41; the H&amp;E&#39;s mere darkness does by 0.22" in text
    for key in scores:
        (cells,) = re.findall(rf"<tr>(.*)<td>{key}</td></tr>", text)
        assert html.unescape(cells).startswith(f"<td>{NAMES[key]}</td>")
    assert "PSNR against the real IHC, dB" in text
    assert "http://" not in text
    assert "https://" not in text
    assert "not for diagnosis" in text


@pytest.fixture
def tiny_stainer(monkeypatch):
    """Puts a tiny model with short settings in the place of the one that ships, and gives it a part of the region."""
    monkeypatch.setattr(
        VirtualStainer,
        "load",
        lambda *given, **more: VirtualStainer(tiny_model((MARKER,)), quick("fast"), CPU),
    )
    monkeypatch.setattr(demo, "twin_picture", lambda: [image[:128, :256] for image in twin_picture()])


def test_the_demo_writes_all_that_it_promises(tmp_path, tiny_stainer):
    lines = []
    run_demo(tmp_path, "fast", 0, "cpu", lines.append)
    pictures = ["he", "virtual_ihc", "real_ihc", "dab_virtual", "dab_real", "trajectory"]
    expected = sorted([f"{name}.png" for name in pictures] + ["metrics.json", "report.html"])
    assert sorted(path.name for path in tmp_path.iterdir()) == expected
    he, real = (at_scale(image[:128, :256], 1.0) for image in twin_picture())
    fake = read_image(tmp_path / "virtual_ihc.png")
    assert np.array_equal(fake, VirtualStainer.load().translate(he, name="demo"))
    assert np.array_equal(read_image(tmp_path / "real_ihc.png"), real)
    assert json.loads((tmp_path / "metrics.json").read_text()) == pytest.approx(
        score(fake[:, 64:], real[:, 64:], he[:, 64:], 1.0), nan_ok=True
    )
    assert str(tmp_path / "report.html") in lines[-1]


@pytest.mark.slow
@pytest.mark.skipif(
    not (model_folder(SHIPPED) / "model_index.json").exists(), reason="the weights that ship are not here"
)
def test_the_weights_that_ship_stain_the_demos_tissue_better_than_its_own_he_looks(tmp_path):
    run_demo(tmp_path, "fast", 0, "auto", lambda line: None)
    scores = json.loads((tmp_path / "metrics.json").read_text())
    he, real = (read_image(tmp_path / f"{name}.png") for name in ("he", "real_ihc"))
    half = np.s_[:, he.shape[1] // 2 :]  # the one that was held out
    he, real = he[half], real[half]
    untouched = score(he, real, he)
    assert scores["hist_rgb256"] > untouched["hist_rgb256"]
    assert scores["dab_r_8um_real"] > scores["darkness_dab_r_8um_real"]
    turned = read_image(tmp_path / "virtual_ihc.png")[half][::-1, ::-1]
    assert scores["vif_source"] > 2 * score(turned, real, he)["vif_source"]  # the tissue stays where it is


# The trajectory


def step(time, ratio, loss=None):
    level = torch.full((1, 3, 8, 6), time / 10)
    return StepReport(time, level, torch.tensor([ratio]), loss)


def test_a_trajectory_keeps_the_frames_that_it_was_asked_for_from_noise_to_image():
    watch = Trajectory([3, 0])
    for time in (3, 2, 1, 0):
        watch(step(time, 0.1, loss=1.0 if time < 2 else None))
    strip = watch.strip()
    assert strip.shape == (8, 12, 3)
    assert strip[0, 0, 0] > strip[0, 6, 0]  # index 3 to the left of index 0
    assert (set(watch.ratios), set(watch.losses)) == ({0, 1, 2, 3}, {0, 1})


def test_the_summary_is_one_line_that_leaves_the_noiseless_last_step_out():
    watch = Trajectory()
    assert watch.summary() == "no guidance"
    for time, ratio in ((2, 0.1), (1, 0.3), (0, 1e9)):
        watch(step(time, ratio))
    assert watch.summary() == "shift / noise 0.1 at t = 2, 0.3 at t = 1, 0.3 at t = 1; mean 0.2"
