"""Every system through one door: by name in Python, by --method on the command line."""

import json

import numpy as np
import pytest
import torch

from miudiff.cli import main
from miudiff.device import place
from miudiff.errors import ConfigError
from miudiff.gan import Generator, GeneratorConfig
from miudiff.images import read_image, write_image
from miudiff.methods.generator import GeneratorModel, save_generator_model
from miudiff.methods.model import Card, Model, load_model, save_model
from miudiff.methods.systems import SYSTEMS, build, changed, configure, load_any, method_of, steps_of
from miudiff.stainer import VirtualStainer
from tiny import CPU, tiny_classifier, tiny_estimator, tiny_model, tiny_score

SHORT = {
    "miu-diff": ("reverse.steps=4", "refinement.start=0"),
    "sdedit": ("steps=4",),
    "ilvr": ("steps=4", "down_factor=8"),
    "egsde": ("steps=4", "down_factor=8"),
}


def full_model():
    return Model(
        tiny_score(), tiny_estimator(), Card(name="tiny", mpp=1.0, tile=64), classifier=tiny_classifier()
    )


@pytest.fixture
def folders(tmp_path):
    """A model folder of each kind."""
    save_model(tmp_path / "diffusion", full_model())
    torch.manual_seed(0)
    made = GeneratorModel(
        Generator(GeneratorConfig(width=4, blocks=2)), Card(name="gan", mpp=1.0, tile=64), "cut"
    )
    save_generator_model(tmp_path / "generator", made)
    return tmp_path


def tissue(height=64, width=80):
    y, x = np.mgrid[:height, :width] / 32
    return np.round(
        150 + 60 * np.stack([np.sin(9 * x + k) * np.cos(7 * y - k) for k in range(3)], -1)
    ).astype(np.uint8)


@pytest.fixture
def he(tmp_path):
    write_image(tmp_path / "he.png", tissue())
    return tmp_path / "he.png"


def run(*words):
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    return left.value.code


@pytest.mark.parametrize("method", list(SYSTEMS))
def test_every_preset_of_every_system_is_named_and_configures(method):
    for preset in SYSTEMS[method].presets:
        config = configure(method, preset)
        assert config == SYSTEMS[method].presets[preset]
        assert method_of(config) == method
    assert configure(method) == SYSTEMS[method].presets[SYSTEMS[method].usual]


@pytest.mark.parametrize("method", list(SYSTEMS))
def test_a_system_stains_an_image_by_its_name(folders, method):
    stainer = VirtualStainer.load(
        folders / "diffusion", method=method, changes=SHORT[method], device="cpu", precision="fp32"
    )
    assert stainer.name == method
    image = tissue()
    stained = stainer.translate(image, 1.0)
    assert stained.shape == image.shape
    assert np.array_equal(stained, stainer.translate(image, 1.0))


@pytest.mark.parametrize("method", list(SYSTEMS))
def test_the_steps_that_are_reported_are_the_steps_that_are_told_beforehand(folders, method):
    stainer = VirtualStainer.load(
        folders / "diffusion", method=method, changes=SHORT[method], device="cpu", precision="fp32"
    )
    seen = []
    stainer.reverse.watch = seen.append
    stainer.translate(tissue(64, 64), 1.0)
    assert len(seen) == stainer.steps(64, 64) == steps_of(stainer.method)


def test_a_generators_model_is_its_own_method(folders):
    stainer = VirtualStainer.load(folders / "generator", device="cpu")
    assert (stainer.name, stainer.reverse, stainer.steps(64, 64)) == ("cut", None, 1)
    assert stainer.translate(tissue(), 1.0).shape == tissue().shape
    assert isinstance(load_any(folders / "generator"), GeneratorModel)
    assert isinstance(load_any(folders / "diffusion"), Model)


@pytest.mark.parametrize(
    ("folder", "asked", "told"),
    [
        ("generator", {"method": "sdedit"}, "a trained cut"),
        ("generator", {"preset": "fast"}, "a trained cut"),
        ("generator", {"changes": ("steps=3",)}, "a trained cut"),
        ("generator", {"marker": "HER2"}, "marker 'HER2': the model 'gan' has one, without a name"),
        ("diffusion", {"method": "asp"}, "expected one trained as asp"),
        ("diffusion", {"method": "pix2pix"}, "expected one of miu-diff"),
        ("diffusion", {"method": "ilvr", "preset": "fast"}, "ilvr has official, paper"),
        ("diffusion", {"method": "ilvr", "changes": ("range=3",)}, "range_t"),
        ("diffusion", {"method": "egsde", "changes": ("start=2000",)}, "expected at most 1000"),
    ],
)
def test_a_system_that_the_model_is_not_for_is_refused_in_one_line(folders, folder, asked, told):
    with pytest.raises(ConfigError, match=told) as refused:
        VirtualStainer.load(folders / folder, device="cpu", **asked)
    assert "\n" not in str(refused.value)


def test_settings_of_no_system_are_refused():
    with pytest.raises(ConfigError, match="expected the settings of one of"):
        build(None, tiny_model(), None, CPU)


def test_a_change_keeps_the_rest():
    config = changed(configure("egsde", "paper"), ("down_factor=4",))
    assert config == configure("egsde", "paper").model_copy(update={"down_factor": 4})


def test_a_classifier_reads_back_with_its_model_and_stains_the_same(tmp_path, folders):
    config = configure("egsde", changes=SHORT["egsde"])
    he = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    from miudiff.noise import NoiseKey

    made = build(config, full_model(), None, CPU).translate(he, [NoiseKey(0, "a")])
    read = build(config, load_model(folders / "diffusion", place("cpu", "fp32")), None, CPU).translate(
        he, [NoiseKey(0, "a")]
    )
    # not bit for bit: where weights lie in memory decides how some processors add up
    torch.testing.assert_close(made, read, atol=1e-5, rtol=0)


def test_egsde_without_a_classifier_is_refused_in_one_line(tmp_path, he, capsys):
    save_model(tmp_path / "plain", tiny_model())
    assert (
        run(
            "translate",
            he,
            tmp_path / "out.png",
            "--model",
            tmp_path / "plain",
            "--method",
            "egsde",
            "--device",
            "cpu",
        )
        == 2
    )
    assert "no classifier" in capsys.readouterr().err


def test_the_command_line_stains_with_any_system_and_records_which(folders, he, tmp_path, capsys):
    for method, changes in SHORT.items():
        words = [word for change in changes for word in ("--set", change)]
        target = tmp_path / method / "he.png"
        assert (
            run(
                "translate",
                he,
                target,
                "--model",
                folders / "diffusion",
                "--method",
                method,
                "--mpp",
                1,
                *words,
                "--device",
                "cpu",
            )
            == 0
        )
        assert read_image(target).shape == tissue().shape
        (record,) = json.loads((target.parent / "translation.json").read_text())["runs"]
        assert record["method"] == method
    assert (
        run(
            "translate",
            he,
            tmp_path / "gan.png",
            "--model",
            folders / "generator",
            "--mpp",
            1,
            "--device",
            "cpu",
        )
        == 0
    )
    assert "research use only" in capsys.readouterr().out


def test_calibrating_a_generator_is_refused_in_one_line(folders, he, capsys):
    assert run("calibrate", he, "--model", folders / "generator", "--device", "cpu") == 2
    assert "a trained cut" in capsys.readouterr().err
