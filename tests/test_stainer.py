"""Images of any size and scale through the stainer, tiles that join without a seam, and model folders that read back."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image

from miudiff.diffusion.score import ScoreModel, build_unet
from miudiff.diffusion.sde import VPSDE
from miudiff.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from miudiff.images import resize, to_tensor, to_uint8
from miudiff.methods.model import Card, Model, load_model, save_model
from miudiff.methods.presets import preset
from miudiff.noise import NoiseKey
from miudiff.stainer import VirtualStainer
from miudiff.tiling import over_tiles, places, tile_grid, window
from tiny import CPU, NETWORK, tiny_estimator, tiny_model, tiny_score

QUICK = ("reverse.start=6", "reverse.steps=2", "refinement.loss=none")
SIZES = [(1, 1), (3, 70), (31, 32), (32, 32), (33, 32), (57, 90), (101, 33)]


def tissue(height, width, seed=0):
    """A smooth coloured field, uint8 [H, W, 3]."""
    y, x = np.mgrid[:height, :width] / 64
    waves = [np.sin(3 * x + k + seed) * np.cos(2 * y - k) for k in range(3)]
    return np.round(170 + 60 * np.stack(waves, axis=-1)).astype(np.uint8)


def stainer(model=None, *changes, marker=None):
    return VirtualStainer(model or tiny_model(), preset("fast", (*QUICK, *changes)), CPU, marker)


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Tiles


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_pixel_lies_in_a_tile_and_every_tile_in_the_image(height, width):
    seen = np.zeros((height, width), int)
    for top, left in tile_grid(height, width, 32, 8):
        assert top + min(32, height) <= height
        assert left + min(32, width) <= width
        seen[top : top + 32, left : left + 32] += 1
    assert seen.min() >= 1


@pytest.mark.parametrize("length", [33, 55, 56, 57, 80, 81, 200])
def test_neighbouring_tiles_overlap_by_what_was_asked_or_more(length):
    starts = places(length, 32, 8)
    assert all(0 < after - before <= 32 - 8 for before, after in pairwise(starts))


def test_a_windows_weights_are_positive_symmetric_and_one_inside():
    weights = window(20, 32, 8)
    assert weights.min() > 0
    assert np.array_equal(weights, weights[::-1, ::-1])
    assert (weights[8:-8, 8:-8] == 1).all()
    assert np.allclose(weights[10, :8], np.arange(1, 9) / 8)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("multiple", [1, 8, 32])
def test_a_function_that_changes_nothing_gives_back_the_image(height, width, multiple):
    image = tissue(height, width)
    assert np.array_equal(over_tiles(image, lambda tile, top, left: tile, 32, 8, multiple), image)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_function_gets_sides_that_its_network_takes(height, width):
    shapes = []

    def note(tile, top, left):
        shapes.append(tile.shape)
        return tile

    over_tiles(tissue(height, width), note, 32, 8, 8)
    assert all(0 < side <= 32 and side % 8 == 0 for shape in shapes for side in shape[:2])


def test_a_function_gets_the_place_of_its_tile():
    image = tissue(57, 90)

    def compare(tile, top, left):
        inside = image[top : top + 32, left : left + 32]
        assert np.array_equal(tile[: inside.shape[0], : inside.shape[1]], inside)
        return tile

    over_tiles(image, compare, 32, 8, 8)


def test_a_constant_comes_out_as_it_is_whatever_the_overlaps():
    grey = lambda tile, top, left: np.full_like(tile, 137)  # noqa: E731
    assert (over_tiles(tissue(101, 83), grey, 32, 8, 4) == 137).all()


def test_two_tiles_that_disagree_are_joined_by_a_straight_ramp():
    image = np.zeros((32, 56, 3), np.uint8)  # tiles at 0 and 24 share 8 columns
    joined = over_tiles(image, lambda tile, top, left: np.full_like(tile, 180 if left else 0), 32, 8, 1)
    assert joined[16, :, 0].tolist() == [0] * 24 + [180 * k // 9 for k in range(1, 9)] + [180] * 24


# The stainer


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 77), (64, 150), (131, 97)])
def test_a_result_has_its_images_type_and_size(height, width):
    image = tissue(height, width)
    of_array = stainer().translate(image)
    of_picture = stainer().translate(Image.fromarray(image))
    assert of_array.dtype == np.uint8
    assert of_array.shape == image.shape
    assert isinstance(of_picture, Image.Image)
    assert of_picture.mode == "RGB"
    assert np.array_equal(np.asarray(of_picture), of_array)


def test_the_image_that_is_given_stays_as_it_is():
    image = tissue(70, 70)
    before = image.copy()
    stainer().translate(image, mpp=0.95)
    assert np.array_equal(image, before)


def test_what_lies_in_one_tile_alone_is_that_tiles_translation():
    """Tiles of 64 begin at 0 and 48: the first 48 columns are the first tile's, the last 48 the second's."""
    image, here = tissue(64, 112), stainer()
    whole = here.translate(image, seed=3, name="slide")
    for left, own in ((0, slice(0, 48)), (48, slice(64, 112))):
        key = NoiseKey(3, "slide").at(left, 0)
        tile = to_uint8(here.method.translate(to_tensor(image[:, left : left + 64]), [key]))[0]
        assert np.array_equal(whole[:, own], tile[:, own.start - left : own.stop - left])


def test_a_tile_side_that_the_network_cannot_halve_is_made_one_that_it_can():
    image = tissue(90, 70)
    odd, even = stainer(tiny_model(tile=65)), stainer(tiny_model(tile=64))
    assert odd.translate(image).shape == image.shape
    assert np.array_equal(odd.translate(image[:64]), even.translate(image[:64]))


def test_the_same_seed_name_and_image_give_the_same_bits_whatever_came_before():
    image, here = tissue(66, 66), stainer()
    first = here.translate(image, seed=1, name="a")
    here.translate(tissue(80, 64, seed=2), seed=5, name="b")
    assert np.array_equal(first, here.translate(image, seed=1, name="a"))
    assert np.array_equal(first, stainer().translate(image, seed=1, name="a"))


def test_another_seed_or_name_gives_another_image():
    image, here = tissue(64, 64), stainer()
    first = here.translate(image, seed=1, name="a")
    assert not np.array_equal(first, here.translate(image, seed=2, name="a"))
    assert not np.array_equal(first, here.translate(image, seed=1, name="b"))


def test_the_working_size_is_the_images_extent_at_the_models_scale():
    of_half = stainer(tiny_model(mpp=0.5))
    assert of_half.working_size(100, 81, 0.25) == (50, 40)
    assert of_half.working_size(100, 80, 1.0) == (200, 160)
    assert of_half.working_size(100, 81, 0.5) == (100, 81)
    assert of_half.working_size(100, 81, None) == (100, 81)
    assert stainer(tiny_model(mpp=None)).working_size(100, 81, 0.25) == (100, 81)


def test_an_image_of_another_scale_is_translated_at_the_models_and_brought_back():
    image, here = tissue(150, 131), stainer()
    at_scale = here.translate(resize(image, 75, 66), seed=2)
    assert np.array_equal(here.translate(image, mpp=0.5, seed=2), resize(at_scale, 150, 131))


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (Image.new("L", (64, 64)), "mode L, expected RGB"),
        (Image.new("RGBA", (64, 64)), "mode RGBA, expected RGB"),
        (Image.new("P", (64, 64)), "mode P, expected RGB"),
        (np.zeros((64, 64, 3), np.float32), "array of float32"),
        (np.zeros((64, 64), np.uint8), r"\(64, 64\), expected uint8"),
        (np.zeros((64, 64, 4), np.uint8), r"\(64, 64, 4\), expected uint8"),
        (np.zeros((1, 64, 64, 3), np.uint8), r"\(1, 64, 64, 3\), expected uint8"),
        (np.zeros((1, 1, 3), np.uint8), "1 x 1 pixels are 1 x 1 at the model's scale, expected at least 64"),
        (np.zeros((63, 200, 3), np.uint8), "200 x 63 at the model's scale, expected at least 64"),
    ],
)
def test_what_is_no_field_of_colour_is_refused_in_one_line(image, told):
    with pytest.raises(DataError, match=told) as caught:
        stainer().translate(image)
    one_line(caught)


def test_an_image_that_is_too_small_at_the_models_scale_is_refused_with_both_sizes():
    with pytest.raises(DataError, match="100 x 100 pixels are 50 x 50 at the model's scale"):
        stainer().translate(tissue(100, 100), mpp=0.5)


def test_an_image_that_is_too_large_at_the_models_scale_is_refused_before_any_work():
    with pytest.raises(DataError, match="14000 x 14000 at the model's scale, expected at most"):
        stainer().translate(tissue(700, 700), mpp=20)


@pytest.mark.parametrize("mpp", [0.0, -0.5, float("nan"), float("inf"), 250.0])
def test_a_scale_that_no_microscope_has_is_refused_in_one_line(mpp):
    with pytest.raises(DataError, match="mpp .*: expected micrometres per pixel") as caught:
        stainer().translate(tissue(64, 64), mpp=mpp)
    one_line(caught)


def test_an_estimator_with_large_patches_asks_for_a_larger_image():
    torch.manual_seed(0)
    wide = tiny_estimator().config.model_copy(update={"patch": 48})
    model = Model(tiny_score(), type(tiny_estimator())(wide).eval(), Card(name="wide", tile=128))
    with pytest.raises(DataError, match="expected at least 96"):
        stainer(model).translate(tissue(80, 80))
    assert stainer(model).translate(tissue(96, 97)).shape == (96, 97, 3)


def test_an_unknown_marker_is_refused_and_the_known_are_named():
    with pytest.raises(ConfigError, match="marker 'HER2': the model 'tiny' has Ki67, ER") as caught:
        stainer(tiny_model(("Ki67", "ER")), marker="HER2")
    one_line(caught)
    with pytest.raises(ConfigError, match="has one, without a name"):
        stainer(marker="HER2")


def test_a_marker_is_stained_as_asked_and_the_first_by_default():
    model, image = tiny_model(("Ki67", "ER")), tissue(64, 64)
    torch.nn.init.normal_(model.score.unet.class_embedding.weight)
    first, second = (stainer(model, marker=marker).translate(image) for marker in ("Ki67", "ER"))
    assert np.array_equal(stainer(model).translate(image), first)
    assert not np.array_equal(first, second)


def test_a_model_without_an_estimator_stains_unguided_and_says_so_otherwise():
    alone = Model(tiny_score(), None, Card(name="alone", tile=64))
    with pytest.raises(ConfigError, match="energy.guidance=none") as caught:
        stainer(alone)
    one_line(caught)
    assert stainer(alone, "energy.guidance=none").translate(tissue(64, 64)).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("reverse.start=2000", "reverse.start"),
        ("refinement.taps=[0, 99]", "refinement.taps"),
        ("reverse.variance=learned", "reverse.variance"),
    ],
)
def test_settings_that_the_model_cannot_follow_are_refused_in_one_line(change, told):
    unet = build_unet(NETWORK.model_copy(update={"learned_variance": False}))
    model = Model(ScoreModel(unet).eval(), tiny_estimator(), Card(name="plain", tile=64))
    with pytest.raises(ConfigError, match=told) as caught:
        stainer(model, "refinement.loss=l2", change)
    one_line(caught)


def test_a_network_that_gives_nan_is_told_and_makes_no_image():
    model = tiny_model()
    model.score.unet.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError) as caught:
        stainer(model).translate(tissue(64, 64))
    one_line(caught)


# Model folders


def same_weights(first, second):
    first, second = first.state_dict(), second.state_dict()
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_model_reads_back_as_it_was_written(tmp_path):
    model = tiny_model(("Ki67", "ER"), mpp=0.5)
    save_model(tmp_path / "model", model)
    again = load_model(tmp_path / "model")
    assert again.card == model.card
    assert again.score.sde == model.score.sde
    assert again.estimator.config == model.estimator.config
    assert same_weights(again.score, model.score)
    assert same_weights(again.estimator, model.estimator)


def test_a_model_that_was_read_back_stains_the_same_bits(tmp_path):
    model, image = tiny_model(("Ki67", "ER")), tissue(64, 90)
    save_model(tmp_path / "model", model)
    again = load_model(tmp_path / "model")
    assert np.array_equal(stainer(again).translate(image), stainer(model).translate(image))


def test_half_precision_halves_the_file_and_keeps_three_digits(tmp_path):
    model = tiny_model()
    save_model(tmp_path / "full", model)
    save_model(tmp_path / "half", model, torch.float16)
    weights = "unet/diffusion_pytorch_model.safetensors"
    full, half = ((tmp_path / name / weights).stat().st_size for name in ("full", "half"))
    assert half < 0.6 * full
    again = load_model(tmp_path / "half")
    for first, second in ((again.score, model.score), (again.estimator, model.estimator)):
        for name, value in second.state_dict().items():
            torch.testing.assert_close(first.state_dict()[name], value, rtol=1e-3, atol=1e-6)


def test_diffusers_itself_loads_the_network(tmp_path):
    model = tiny_model(("Ki67", "ER"))
    save_model(tmp_path, model)
    unet = UNet2DModel.from_pretrained(tmp_path, subfolder="unet").eval()
    y, t, marker = torch.randn(2, 3, 32, 32), torch.tensor([3, 900]), torch.tensor([0, 1])
    with torch.no_grad():
        given, expected = unet(y, t, class_labels=marker).sample, model.score(y, t, marker)
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sde", [VPSDE(), VPSDE(500), VPSDE(300, 2e-4, 0.01)], ids=lambda sde: f"{sde.steps}")
def test_diffusers_itself_loads_the_schedule(tmp_path, sde):
    save_model(tmp_path, Model(ScoreModel(tiny_score().unet, sde), None, Card(name="tiny")))
    scheduler = DDPMScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    torch.testing.assert_close(scheduler.betas, sde.betas.float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(load_model(tmp_path).score.sde.betas, sde.betas, rtol=1e-12, atol=0)


@torch.no_grad()
def test_a_network_with_the_same_heads_everywhere_keeps_its_output(tmp_path):
    """ADM's `num_heads`, which diffusers' configuration has no word for."""
    torch.manual_seed(0)
    unet = build_unet(NETWORK.model_copy(update={"heads": 2, "head_channels": None}))
    torch.nn.init.normal_(unet.conv_out.weight, std=0.02)
    model = Model(ScoreModel(unet).eval(), None, Card(name="adm"))
    y, t = torch.randn(2, 3, 32, 32), torch.tensor([3, 900])
    expected = model.score(y, t)
    save_model(tmp_path, model)
    torch.testing.assert_close(load_model(tmp_path).score(y, t), expected, rtol=0, atol=0)


def test_a_model_without_estimator_in_the_place_of_one_with_has_none(tmp_path):
    save_model(tmp_path, tiny_model())
    save_model(tmp_path, Model(tiny_score(), None, Card(name="alone")))
    assert load_model(tmp_path).estimator is None


def cut(file):
    file.write_bytes(file.read_bytes()[:1000])


def change(file, **values):
    """Set keys of a JSON file; None takes one out."""
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


WEIGHTS = "diffusion_pytorch_model.safetensors"
DAMAGE = {
    "network cut off": (lambda f: cut(f / "unet" / WEIGHTS), f"unet/{WEIGHTS}: damaged"),
    "network gone": (lambda f: (f / "unet" / WEIGHTS).unlink(), f"unet/{WEIGHTS}: no such file"),
    "network of another size": (
        lambda f: change(f / "unet" / "config.json", block_out_channels=[16, 16]),
        f"unet/{WEIGHTS}: does not fit its config.json",
    ),
    "estimator cut off": (lambda f: cut(f / "mi_estimator" / WEIGHTS), f"mi_estimator/{WEIGHTS}: damaged"),
    "estimator gone": (
        lambda f: shutil.rmtree(f / "mi_estimator"),
        "mi_estimator/config.json: cannot be read",
    ),
    "estimator's key misspelt": (
        lambda f: change(f / "mi_estimator" / "config.json", critics="joint"),
        "unknown key 'critics'; did you mean 'critic'",
    ),
    "estimator of another size": (
        lambda f: change(f / "mi_estimator" / "config.json", channels=[8, 4]),
        f"mi_estimator/{WEIGHTS}: does not fit its config.json",
    ),
    "schedule without a key": (
        lambda f: change(f / "scheduler" / "scheduler_config.json", beta_start=None),
        "scheduler_config.json: .*'beta_start'",
    ),
    "schedule of another kind": (
        lambda f: change(f / "scheduler" / "scheduler_config.json", beta_schedule="scaled_linear"),
        "scheduler_config.json: .*'scaled_linear'.* expected linear",
    ),
    "schedule gone": (lambda f: shutil.rmtree(f / "scheduler"), "scheduler_config.json: cannot be read"),
    "card without a name": (lambda f: change(f / "model_index.json", name=None), "'name' is missing"),
    "card with another key": (lambda f: change(f / "model_index.json", nane="a"), "did you mean 'name'"),
    "card that is no JSON": (lambda f: (f / "model_index.json").write_text("{"), "is not JSON"),
    "card with too many markers": (
        lambda f: change(f / "model_index.json", markers=["a", "b", "c"]),
        r"3 markers \(a, b, c\), but the network has 2",
    ),
    "no folder": (lambda f: shutil.rmtree(f), "no model there .* expected a model folder or one of"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_model_is_refused_in_one_line_that_says_where(tmp_path, damage):
    folder = tmp_path / "model"
    save_model(folder, tiny_model(("Ki67", "ER")))
    spoil, told = DAMAGE[damage]
    spoil(folder)
    with pytest.raises(CheckpointError, match=told) as caught:
        load_model(folder)
    assert str(folder) in one_line(caught)


@pytest.mark.parametrize(
    "image", [[], ["he.png"], "he.png", Path("he.png"), None, 3, torch.zeros(64, 64, 3)], ids=str
)
def test_what_is_no_image_is_a_type_error_that_says_what_is_expected(image):
    with pytest.raises(TypeError, match=f"found {type(image).__name__}, expected a PIL.Image.Image"):
        stainer().translate(image)


@pytest.mark.parametrize("kind", [np.float32, np.uint16, bool])
def test_an_array_of_another_type_is_a_data_error(kind):
    with pytest.raises(DataError, match="expected uint8"):
        stainer().translate(np.zeros((64, 64, 3), kind))


@pytest.mark.parametrize("batch", [-3, 0, 10**11])
def test_a_batch_of_no_tiles_or_of_more_than_any_is_refused(batch):
    with pytest.raises(ConfigError, match=f"batch size: found {batch}, expected 1 to 4096"):
        VirtualStainer(tiny_model(), preset("fast"), CPU, batch=batch)
