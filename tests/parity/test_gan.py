"""CUT's networks and losses and ASP's against the official code's numbers."""

import pytest
import torch

from miudiff.contrast import adaptive_weights, patch_nce, uniform_share
from miudiff.errors import CheckpointError
from miudiff.gan import (
    Discriminator,
    DiscriminatorConfig,
    Downsample,
    Generator,
    GeneratorConfig,
    Upsample,
    least_squares,
    load_cut,
)
from miudiff.methods.adversarial import linear_decay
from miudiff.methods.asp import ASPConfig, gaussian_pyramid, pyramid_loss
from miudiff.methods.cut import CUTConfig

TEMPERATURE = 0.07
SMALL = GeneratorConfig(width=8, blocks=2)  # that the recorded forward passes were made with


def with_closed_form_weights(network, det):
    """Fills the k-th parameter with 0.05 sin(0.7 n + 0.3 k)."""
    with torch.no_grad():
        for k, (_, parameter) in enumerate(network.named_parameters()):
            parameter.copy_(0.05 * det(tuple(parameter.shape), 0.7, 0.3 * k))
    return network


def test_the_generator_and_its_taps(formulas, det, agree_with_summary):
    recorded = formulas["cut_networks"]
    generator = with_closed_form_weights(Generator(SMALL), det)
    image = det(tuple(recorded["G_ngf8_b2_64"]["shape"]))
    agree_with_summary(generator(image), recorded["G_ngf8_b2_64"], "generator")
    features = generator.features(image, (0, 4, 8, 12))
    for tap, summary in zip(features, recorded["G_enc_0_4_8_12"], strict=True):
        agree_with_summary(tap, summary, "tap")
    assert generator.channels((0, 4, 8, 12)) == [tap.shape[1] for tap in features]


def test_the_discriminator(formulas, det, agree_with_summary):
    recorded = formulas["cut_networks"]
    discriminator = with_closed_form_weights(Discriminator(DiscriminatorConfig(width=8)), det)
    image = det(tuple(recorded["G_ngf8_b2_64"]["shape"]))
    agree_with_summary(discriminator(image), recorded["D_ndf8_64"], "discriminator")


def test_blurred_resampling(formulas, det, agree_with_summary):
    recorded = formulas["cut_networks"]
    shape = recorded["Downsample"]["shape"]
    image = det((*shape[:2], 2 * shape[2], 2 * shape[3]))
    agree_with_summary(Downsample(shape[1])(image), recorded["Downsample"], "down")
    agree_with_summary(Upsample(shape[1])(image), recorded["Upsample"], "up")


def test_the_adversarial_loss(formulas, det, agree):
    prediction = det((1, 1, 6, 6))
    agree(least_squares(prediction, True), formulas["cut_networks"]["lsgan_true"], "real", 1e-6)
    agree(least_squares(prediction, False), formulas["cut_networks"]["lsgan_false"], "fake", 1e-6)


def test_sizes_and_names_are_the_official_ones(formulas):
    recorded = formulas["cut_networks"]
    generator, discriminator = Generator(GeneratorConfig()), Discriminator(DiscriminatorConfig())
    assert sum(p.numel() for p in generator.parameters()) == recorded["G_params"]
    assert sum(p.numel() for p in discriminator.parameters()) == recorded["D_params"]
    first = recorded["G_state_keys_first"]
    assert list(generator.state_dict())[: len(first)] == first
    assert list(generator.state_dict())[-2:] == ["model.30.weight", "model.30.bias"]


@pytest.mark.parametrize(("epochs", "decay"), [(200, 200), (150, 50), (30, 10)])
def test_the_learning_rate_is_the_official_table(epochs, decay):
    epoch_count = 1  # the official epochs begin with it
    for epoch in range(epochs + decay):
        official = 1.0 - max(0, epoch + epoch_count - epochs) / float(decay + 1)
        assert linear_decay(epoch, epochs, decay) == official
    config = CUTConfig(epochs=epochs, decay_epochs=decay)
    images = 7
    steps = (epochs + decay) * images
    for step in range(0, steps, 3):
        assert config.learning_rate(step, steps) == 2e-4 * linear_decay(step // images, epochs, decay)


def asp_loss(query, key, mode, epoch, epochs, decay):
    """The weighted loss of each patch, weights of mean 1 over all of them."""
    loss = patch_nce(query, key, TEMPERATURE).flatten()
    if mode == "none":
        return loss
    schedule, look_up = mode.split("_")
    share = uniform_share((epoch - 1) / (epochs + decay), schedule, decay / (epochs + decay))
    return loss * adaptive_weights((query * key).sum(-1).flatten(), share, look_up)


def test_the_adaptive_losses_of_recorded_features(golden, agree):
    query, key = (torch.from_numpy(golden[f"patchnce/{name}"]) for name in ("query", "key"))
    names = [name for name in golden if name.startswith("asp/")]
    assert names
    for name in names:
        _, mode, epoch = name.split("/")
        loss = asp_loss(query, key, mode, int(epoch.removeprefix("epoch")), epochs=20, decay=20)
        agree(loss, golden[name], name)


def test_the_adaptive_losses_of_every_schedule(formulas, det, agree):
    query, other = det((64, 32), 0.37, 0.1), det((64, 32), 0.53, 0.7)
    query, key = (torch.nn.functional.normalize(v, dim=1)[None] for v in (query, query + 0.5 * other))
    for name, recorded in formulas["asp_loss"].items():
        mode, _, epoch = name.rpartition("_ep")
        agree(asp_loss(query, key, mode, int(epoch), 30, 10).mean(), recorded, name, 1e-6)


def test_the_gaussian_pyramid(formulas, det, agree):
    recorded = formulas["asp_gp"]
    shape = tuple(recorded["shapes"][0])
    first, second = det(shape, 0.37, 0.1), det(shape, 0.29, 0.4)
    count = len(recorded["levels"])
    pyramids = [gaussian_pyramid(image, count) for image in (first, second)]
    assert [list(level.shape) for level in pyramids[0]] == recorded["shapes"]
    levels = torch.stack([(a - b).abs().mean() for a, b in zip(*pyramids, strict=True)])
    agree(levels, recorded["levels"], "levels", 1e-6)
    agree(pyramid_loss(first, second, ASPConfig().pyramid), recorded["weighted_mean"], "weighted", 1e-6)


def test_an_official_checkpoint_gives_its_generator(tmp_path, det):
    generator = with_closed_form_weights(Generator(SMALL), det)
    state = {f"module.{name}": value for name, value in generator.state_dict().items()}
    torch.save(state, tmp_path / "latest_net_G.pth")
    loaded = load_cut(tmp_path / "latest_net_G.pth")
    assert loaded.config == SMALL
    image = det((1, 3, 32, 32))
    assert torch.equal(loaded(image), generator(image))


def test_an_official_checkpoint_with_spectral_norms_gives_its_generator(tmp_path, det):
    generator = Generator(SMALL)
    for module in list(generator.modules()):
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.utils.spectral_norm(module)  # the older one, which ASP uses
    generator(det((1, 3, 32, 32)))
    torch.save(generator.state_dict(), tmp_path / "latest_net_G.pth")
    image = det((1, 3, 32, 32))
    loaded = load_cut(tmp_path / "latest_net_G.pth")
    torch.testing.assert_close(loaded(image), generator.eval()(image), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("model.1.weight"), "no ResNet generator"),
        (lambda state: state.pop("model.7.filt"), "no_antialias"),
        (lambda state: state.pop("model.12.conv_block.5.bias"), "does not fit"),
        (lambda state: state.update(model={"a": 1}), "expected the state dict"),
    ],
)
def test_what_is_no_official_checkpoint_is_told(tmp_path, change, told):
    state = dict(Generator(SMALL).state_dict())
    change(state)
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=told):
        load_cut(tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="no such file"):
        load_cut(tmp_path / "other.pth")
