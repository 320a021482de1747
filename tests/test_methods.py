"""The translators' promises, and what makes MIU-Diff what it is."""

import copy
import gc

import pytest
import torch

from miudiff.config import override, parse
from miudiff.diffusion.resizer import low_pass
from miudiff.diffusion.score import ScoreModel, build_unet
from miudiff.diffusion.sde import space_timesteps
from miudiff.errors import ConfigError
from miudiff.gan import Generator, GeneratorConfig
from miudiff.images import to_gray
from miudiff.methods import egsde, ilvr, sdedit
from miudiff.methods.egsde import EGSDE, EGSDEConfig
from miudiff.methods.generator import GeneratorTranslator
from miudiff.methods.ilvr import ILVR, ILVRConfig
from miudiff.methods.miu_diff import MIUDiff, MIUDiffConfig
from miudiff.methods.presets import ABLATIONS, PRESETS, preset
from miudiff.methods.sdedit import ReverseConfig, SDEdit, SDEditConfig
from miudiff.methods.student import OneStep, OneStepConfig
from miudiff.noise import NoiseKey
from tiny import CPU, NETWORK, tiny_classifier, tiny_estimator, tiny_score, tiny_student

QUICK = ("reverse.start=40", "reverse.steps=8", "refinement.start=12", "refinement.lr=1e-3")


def config(*changes):
    return parse(MIUDiffConfig, override({}, [*QUICK, *changes]), "test")


def miu_diff(*changes, watch=None):
    method = MIUDiff(tiny_score(), tiny_estimator(), config(*changes), CPU)
    method.reverse.watch = watch
    return method


def sdedit_config(**changes):
    return SDEditConfig(**config().reverse.model_dump() | changes)


def run_egsde(**changes):
    settings = {"start": 40, "steps": 8, "down_factor": 8} | changes
    return EGSDE(tiny_score(), tiny_classifier(), EGSDEConfig(**settings), CPU)


def run_ilvr(**changes):
    return ILVR(tiny_score(), ILVRConfig(**{"steps": 10, "down_factor": 8} | changes), CPU)


def he(count=3, size=48):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(5)) * 2 - 1


def keys(count=3, seed=0):
    return [NoiseKey(seed, f"tile{i}") for i in range(count)]


def one_pass():
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(width=8, blocks=2)).requires_grad_(False)
    torch.nn.init.normal_(generator.model[-2].weight, std=0.2)  # so that results span their range
    return GeneratorTranslator(generator, CPU)


TRANSLATORS = {
    "sdedit": lambda: SDEdit(tiny_score(), sdedit_config(), CPU),
    "sdedit repeated": lambda: SDEdit(tiny_score(), sdedit_config(repeats=2), CPU),
    "ilvr": run_ilvr,
    "ilvr colourless": lambda: run_ilvr(gray=True, range_t=4, variance="fixed_small", kernel="linear"),
    "egsde": run_egsde,
    "egsde fresh noise": lambda: run_egsde(frozen_noise=False, repeats=2, steps=4, down_factor=20),
    "miu-diff paper": lambda: miu_diff("guidance.scale=100"),
    "miu-diff unit": lambda: miu_diff(
        "guidance.normalise=unit_rms", "guidance.scale=0.2", "guidance.source_noise=clean"
    ),
    "miu-diff egsde-like": lambda: miu_diff(
        "guidance.energy_at=current", "guidance.weight=beta", "guidance.frozen_noise=true"
    ),
    "miu-diff euler": lambda: miu_diff("reverse.solver=euler_maruyama", "refinement.loss=l2"),
    "miu-diff second order": lambda: miu_diff(
        "reverse.solver=dpmpp_2m_sde",
        "reverse.spacing=log_snr",
        "guidance.normalise=unit_rms",
        "guidance.scale=0.2",
    ),
    "miu-diff second order, no noise": lambda: miu_diff("reverse.solver=dpmpp_2m", "reverse.clip=true"),
    "miu-diff learned variance": lambda: miu_diff(
        "reverse.variance=learned", "reverse.clip=true", "refinement.loss=pixels"
    ),
    "miu-diff refined norms": lambda: miu_diff("refinement.weights=norms"),
    "miu-diff refined by low rank": lambda: miu_diff("refinement.weights=low_rank", "refinement.lr=1e-2"),
    "generator": one_pass,
    "student": lambda: OneStep(tiny_student(), OneStepConfig(), CPU),
}


@pytest.fixture(params=TRANSLATORS, ids=lambda name: name.replace(" ", "-"))
def translator(request):
    return TRANSLATORS[request.param]()


def test_a_translation_has_the_shape_and_range_of_an_image(translator):
    result = translator.translate(he(), keys())
    assert result.shape == (3, 3, 48, 48)
    assert torch.isfinite(result).all()
    assert result.abs().max() <= 1


def test_a_tile_ignores_its_batch_its_order_and_earlier_calls(translator):
    together = translator.translate(he(), keys())
    alone = translator.translate(he()[1:2], keys()[1:2])
    torch.testing.assert_close(together[1:2], alone, atol=2e-5, rtol=0)
    swapped = translator.translate(he().flip(0), keys()[::-1])
    torch.testing.assert_close(together, swapped.flip(0), atol=2e-5, rtol=0)


def test_the_same_key_gives_the_same_bits_and_another_seed_another_image(translator):
    first = translator.translate(he(1), keys(1))
    assert torch.equal(first, translator.translate(he(1), keys(1)))
    other = translator.translate(he(1), keys(1, seed=1))
    assert torch.equal(first, other) == isinstance(translator, GeneratorTranslator)  # which draws nothing


def test_scale_zero_without_refinement_is_sdedit_bit_for_bit():
    plain = miu_diff("guidance.scale=0", "refinement.loss=none").translate(he(), keys())
    assert torch.equal(plain, SDEdit(tiny_score(), sdedit_config(), CPU).translate(he(), keys()))


@pytest.mark.parametrize("solver", ["euler_maruyama", "dpmpp_2m_sde", "dpmpp_2m"])
def test_scale_zero_is_sdedit_bit_for_bit_with_every_solver(solver):
    changes = (f"reverse.solver={solver}", "guidance.scale=0", "refinement.loss=none")
    other = SDEdit(tiny_score(), sdedit_config(solver=solver), CPU)
    assert torch.equal(miu_diff(*changes).translate(he(), keys()), other.translate(he(), keys()))


def test_no_energy_without_refinement_is_sdedit_bit_for_bit():
    plain = miu_diff(*ABLATIONS["w/o MI, w/o PCL"]).translate(he(), keys())
    assert torch.equal(plain, SDEdit(tiny_score(), sdedit_config(), CPU).translate(he(), keys()))


def test_egsde_without_energies_is_sdedit_bit_for_bit():
    """With and without a classifier, and with SDEdit's other settings."""
    for changes in ({}, {"gray": False, "repeats": 2}):
        settings = sdedit_config(**changes)
        off = EGSDEConfig(**settings.model_dump(), scale_realism=0, scale_faithful=0)
        expected = SDEdit(tiny_score(), settings, CPU).translate(he(), keys())
        for classifier in (None, tiny_classifier()):
            assert torch.equal(EGSDE(tiny_score(), classifier, off, CPU).translate(he(), keys()), expected)


def test_the_energies_of_egsde_fall_along_their_gradients():
    """A small step against the shift lowers the energy that it is of, whatever the caller's grad mode."""
    y, he_t, classifier = he(2), he(2).flip(0), tiny_classifier()
    time = run_egsde().reverse.sde.network_time(3)
    energies = {
        "scale_faithful": lambda y: egsde.similarity(classifier, y, he_t, time),
        "scale_realism": lambda y: egsde.coarse_distance(y, he_t, 8, "linear"),
    }
    for off, energy in energies.items():
        with torch.no_grad():
            shift = run_egsde(**{off: 0}).shift(y, he_t, 3)
        assert not shift.requires_grad
        moved = y - 1e-2 * shift / shift.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        assert (energy(moved) < energy(y)).all()


def test_the_gradients_of_egsde_are_float32_under_autocast():
    method, (y, he_t) = run_egsde(), (he(2), he(2).flip(0))
    expected = method.shift(y, he_t, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(method.shift(y, he_t, 3), expected)


def test_egsde_keeps_no_graph_and_leaves_the_networks_alone():
    method = run_egsde()
    method.classifier.requires_grad_(True)  # as one that was just trained
    method.translate(he(1), keys(1))
    alive = _tensors()
    result = method.translate(he(1), keys(1))
    assert result.grad_fn is None
    assert all(parameter.grad is None for parameter in method.classifier.parameters())
    assert _tensors() <= alive + 1  # the result


def _tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize("make", [run_ilvr, run_egsde])
def test_a_low_pass_suits_any_side_from_its_factor_on(make):
    for height, width in ((48, 64), (50, 46)):
        source = he(1, 64)[..., :height, :width]
        result = make(down_factor=32).translate(source, keys(1))
        assert result.shape == source.shape
        assert torch.isfinite(result).all()
    with pytest.raises(ConfigError, match="down_factor: found 32, expected at most 16"):
        make(down_factor=32).translate(he(1, 16), keys(1))


def test_ilvr_takes_over_the_sources_coarse_part():
    source = he(2).mean((2, 3), keepdim=True) * 4 + 0.1 * he(2)
    coarse = {
        range_t: (low_pass(run_ilvr(range_t=range_t).translate(source, keys(2)) - source, 8, "cubic"))
        .abs()
        .mean()
        for range_t in (0, 9)  # 9: in no step
    }
    assert coarse[0] < 0.5 * coarse[9]


def test_a_setting_that_the_model_cannot_follow_is_refused():
    plain = build_unet(NETWORK.model_copy(update={"learned_variance": False}))
    with pytest.raises(ConfigError, match="variance: found learned"):
        ILVR(ScoreModel(plain), ILVRConfig(), CPU)
    with pytest.raises(ConfigError, match="scale_realism: found 500"):
        EGSDE(tiny_score(), None, EGSDEConfig(), CPU)


def test_the_official_presets_of_the_others_are_official():
    assert (egsde.PRESETS["official"].start, egsde.PRESETS["paper"].start) == (500, 300)
    assert (ilvr.PRESETS["official"].steps, ilvr.PRESETS["paper"].steps) == (None, 300)
    for presets in (egsde.PRESETS, ilvr.PRESETS, sdedit.PRESETS):
        assert not any(settings.gray for settings in presets.values())
    chain = ILVR(tiny_score(), ilvr.PRESETS["paper"], CPU).reverse.sde
    assert list(chain.timesteps) == space_timesteps(1000, 300)


def test_guidance_and_refinement_each_change_the_image():
    plain = miu_diff(*ABLATIONS["w/o MI, w/o PCL"]).translate(he(1), keys(1))
    guided = miu_diff("refinement.loss=none", "guidance.normalise=unit_rms", "guidance.scale=0.5").translate(
        he(1), keys(1)
    )
    refined = miu_diff("energy.guidance=none").translate(he(1), keys(1))
    assert (plain - guided).abs().mean() > 1e-4
    assert (plain - refined).abs().mean() > 1e-6


def test_colour_is_removed_before_anything_else():
    translator = miu_diff("refinement.loss=none")
    torch.testing.assert_close(
        translator.translate(he(1), keys(1)), translator.translate(to_gray(he(1)), keys(1)), atol=1e-4, rtol=0
    )


def test_the_weights_are_the_same_bits_after_refinement():
    translator = miu_diff()
    before = copy.deepcopy(translator.reverse.score.state_dict())
    translator.translate(he(), keys())
    after = translator.reverse.score.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_ratio_that_is_logged_is_linear_in_the_scale():
    ratios = {}
    for scale in (50, 100):
        seen = []
        miu_diff(f"guidance.scale={scale}", "refinement.loss=none", watch=seen.append).translate(
            he(1), keys(1)
        )
        ratios[scale] = float(seen[0].ratio)
        chain = config().reverse.chain(tiny_score().sde)
        assert [report.time for report in seen] == [chain.network_time(i) for i in range(7, -1, -1)]
    assert ratios[50] > 0
    assert ratios[100] == pytest.approx(2 * ratios[50], rel=1e-3)


def test_unit_rms_shifts_by_the_stated_share_of_the_noise():
    seen = []
    miu_diff(
        "guidance.normalise=unit_rms", "guidance.scale=0.3", "refinement.loss=none", watch=seen.append
    ).translate(he(1), keys(1))
    for report in seen[:-1]:
        assert float(report.ratio) == pytest.approx(0.3, rel=1e-3)


def test_every_preset_and_ablation_is_a_valid_configuration():
    for name in PRESETS:
        for changes in ABLATIONS.values():
            preset(name, changes)


def test_the_paper_preset_is_the_paper():
    paper = preset("paper")
    assert (paper.reverse.start, paper.reverse.steps, paper.refinement.start) == (300, None, 40)
    assert (paper.guidance.scale, paper.energy.guidance, paper.guidance.energy_at) == (1.0, "full", "mean")


def test_a_start_beyond_the_chain_is_refused():
    with pytest.raises(ValueError, match="beyond"):
        ReverseConfig(start=2000).chain(tiny_score().sde)


@pytest.mark.parametrize(("changes", "maps"), [({"source_noise": "clean"}, 1), ({}, 3)])
def test_the_clean_sources_map_is_made_once_and_a_noised_ones_in_each_step(monkeypatch, changes, maps):
    made, estimator = [], tiny_estimator()
    whole = estimator.structure_map
    monkeypatch.setattr(estimator, "structure_map", lambda images: made.append(images) or whole(images))
    values = {"reverse": {"start": 6, "steps": 3}, "guidance": changes, "refinement": {"loss": "none"}}
    method = MIUDiff(tiny_score(), estimator, parse(MIUDiffConfig, values, "test"), CPU)
    method.translate(torch.rand(2, 3, 32, 32) * 2 - 1, [NoiseKey(0, name) for name in "ab"])
    assert len(made) == maps
