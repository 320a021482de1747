"""The generator's model folder, its sides, its norms; and the settings of CUT, FastCUT and ASP."""

import copy
import json

import pytest
import torch
from accelerate import Accelerator

from miudiff.checkpoints import WEIGHTS
from miudiff.config import parse
from miudiff.contrast import PatchHeads, adaptive_weights, uniform_share, unit
from miudiff.errors import CheckpointError, ConfigError
from miudiff.gan import Discriminator, DiscriminatorConfig, Generator, GeneratorConfig
from miudiff.methods.asp import ASPConfig, ASPLearner
from miudiff.methods.cut import CUTConfig, CUTLearner
from miudiff.methods.generator import (
    GeneratorModel,
    GeneratorTranslator,
    load_generator_model,
    save_generator_model,
    without_norms,
)
from miudiff.methods.model import Card
from miudiff.noise import NoiseKey
from tiny import CPU

SMALL = GeneratorConfig(width=4, blocks=1)
SMALL_GAN = {"generator": {"width": 4, "blocks": 1}, "discriminator": {"width": 4, "layers": 1}}
CARD = Card(name="tiny", markers=("Ki67",), mpp=0.5, tile=64)


def image(*sides, seed=0):
    return torch.rand(*sides, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def spectral_generator():
    torch.manual_seed(0)
    generator = Generator(SMALL.model_copy(update={"spectral_norm": True}))
    generator(image(1, 3, 16, 16))
    return generator


@pytest.mark.parametrize("sides", [(33, 50), (8, 9), (32, 32)])
def test_any_sides_are_translated(sides):
    result = GeneratorTranslator(Generator(SMALL), CPU).translate(image(2, 3, *sides), [NoiseKey(0)] * 2)
    assert result.shape == (2, 3, *sides)
    assert torch.isfinite(result).all()


def test_spectral_norms_stand_still_in_eval_mode_and_fold_into_the_weights():
    generator = spectral_generator().eval()
    first = generator(image(1, 3, 16, 16))
    assert torch.equal(first, generator(image(1, 3, 16, 16)))
    folded = without_norms(generator)
    assert list(folded.state_dict()) == list(Generator(SMALL).state_dict())
    torch.testing.assert_close(folded(image(1, 3, 16, 16)), first, atol=1e-6, rtol=0)


def test_a_spectral_norm_bounds_each_convolution_in_half_precision_too():
    generator = spectral_generator()
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(30):
            generator(image(1, 3, 16, 16))
    for module in without_norms(generator).modules():
        if isinstance(module, torch.nn.Conv2d):
            norm = torch.linalg.matrix_norm(module.weight.detach().flatten(1), 2)
            assert float(norm) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("layers", [1, 3, 5])
def test_the_least_image_of_a_discriminator_is_the_least_that_it_takes(layers):
    config = DiscriminatorConfig(width=4, layers=layers)
    assert Discriminator(config)(image(1, 3, config.least, config.least)).shape[1] == 1
    with pytest.raises(ValueError, match="spatial element"):
        Discriminator(config)(image(1, 3, config.least // 2, config.least // 2))


def test_a_model_folder_gives_its_generator_back(tmp_path):
    generator = Generator(SMALL).eval()
    save_generator_model(tmp_path, GeneratorModel(generator, CARD, "fastcut"))
    model = load_generator_model(tmp_path)
    assert (model.card, model.method) == (CARD, "fastcut")
    assert model.identity.startswith("tiny ")
    assert torch.equal(model.generator(image(1, 3, 16, 16)), generator(image(1, 3, 16, 16)))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "model_index.json",
            {"name": "a"},
            "'method': found None, expected a generator of cut, fastcut, asp",
        ),
        ("model_index.json", {"method": "cut", "generator": [], "nam": "a"}, "unknown key 'nam'"),
        ("generator/config.json", {"width": 8, "blocks": 1}, "does not fit its config.json"),
        ("generator/config.json", {"width": 4, "blocks": 0}, "'blocks': found 0"),
    ],
)
def test_a_folder_that_holds_no_generator_is_told(tmp_path, name, content, told):
    save_generator_model(tmp_path, GeneratorModel(Generator(SMALL), CARD, "cut"))
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=told):
        load_generator_model(tmp_path)
    (tmp_path / "generator" / WEIGHTS).unlink()
    with pytest.raises(CheckpointError):
        load_generator_model(tmp_path)


@pytest.mark.parametrize(
    ("learner", "config", "method"),
    [
        (CUTLearner, CUTConfig(**SMALL_GAN, taps=(0, 4)), "cut"),
        (CUTLearner, CUTConfig(mode="fastcut", **SMALL_GAN, taps=(0, 4)), "fastcut"),
        (
            ASPLearner,
            ASPConfig(taps=(0, 4), generator={**SMALL_GAN["generator"], "spectral_norm": True}),
            "asp",
        ),
    ],
)
def test_what_a_learner_exports_translates_as_its_generator_does(tmp_path, learner, config, method):
    made = learner(config, Accelerator(cpu=True), 0, 10, CARD)
    before = copy.deepcopy(made.players.generator.state_dict())
    made.export(tmp_path)
    after = made.players.generator.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)  # a run goes on after an export
    model = load_generator_model(tmp_path)
    assert (model.method, model.card) == (method, CARD)
    expected = made.players.generator.eval()(image(1, 3, 16, 16))
    torch.testing.assert_close(model.generator(image(1, 3, 16, 16)), expected, atol=1e-6, rtol=0)


def test_a_mode_gives_defaults_and_what_is_said_stands():
    fast = parse(CUTConfig, {"mode": "fastcut", "epochs": 7}, "test")
    assert (fast.nce_weight, fast.identity, fast.flip, fast.epochs, fast.decay_epochs) == (
        10,
        False,
        True,
        7,
        50,
    )
    assert CUTConfig(mode="fastcut").decay_from == 0.75
    assert CUTConfig().decay_from == 0.5
    assert parse(CUTConfig, fast.model_dump(), "test") == fast


def test_a_tap_outside_of_the_encoder_is_refused():
    with pytest.raises(
        ConfigError, match=r"'taps': found \[4, 21\]; expected layers of the encoder, 0 to 20"
    ):
        parse(CUTConfig, {"taps": [4, 21]}, "test")


def test_the_features_of_a_mirrored_image_are_turned_back():
    made = CUTLearner(CUTConfig(mode="fastcut", **SMALL_GAN, taps=(0, 4)), Accelerator(cpu=True), 0, 10)
    with torch.no_grad():
        for module in made.players.generator.modules():
            if isinstance(module, torch.nn.Conv2d):  # an encoder that commutes with mirroring
                module.weight.copy_((module.weight + module.weight.flip(3)) / 2)
        he = image(2, 3, 16, 16)
        straight = made._nce(he, he, False, 0, "nce")
        torch.testing.assert_close(straight, made._nce(he, he.flip(3), True, 0, "nce"), atol=1e-3, rtol=0)
        assert made._nce(he, he.flip(3), False, 0, "nce") > straight + 0.1


def test_heads_give_unit_vectors_of_one_width():
    heads = PatchHeads([3, 8], width=5)
    features = [image(2, 3, 6, 6), image(2, 8, 3, 3)]
    found = heads(features, [torch.arange(20), torch.arange(9)])
    assert [f.shape for f in found] == [(2, 20, 5), (2, 9, 5)]
    torch.testing.assert_close(found[0].norm(dim=-1), torch.ones(2, 20))


def test_the_two_places_of_the_epsilon():
    x = torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(unit(x), x / (5 + 1e-7))
    small = torch.tensor([[1e-7, 0.0]])
    torch.testing.assert_close(unit(small), torch.tensor([[0.5, 0.0]]))
    torch.testing.assert_close(unit(small, "inside"), small / (5e-14**0.5))


def test_adaptive_weights_have_mean_one_and_favour_what_is_alike():
    likeness = torch.tensor([[-0.5, 0.1, 0.9], [0.2, 0.4, 0.8]])
    for look_up in ("linear", "top"):
        weights = adaptive_weights(likeness, 0.25, look_up)
        torch.testing.assert_close(weights.mean(-1), torch.ones(2))
        assert (weights.diff(dim=-1) > 0).all()
    assert torch.equal(adaptive_weights(likeness, 1.0, "bell"), torch.ones(2, 3))


def test_the_lambda_schedule_weighs_only_while_the_rate_falls():
    shares = [uniform_share(epoch / 40, "lambda", 0.25) for epoch in range(40)]
    assert shares[:31] == [1.0] * 31
    assert shares[39] == pytest.approx(0.1)
    assert uniform_share(0.99, "lambda", 0.0) == 1.0
