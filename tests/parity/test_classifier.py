"""Official guided-diffusion classifiers: the imported network is the function that the official one is."""

import pytest
import torch
import torch.nn.functional as F

from miudiff.diffusion.adm_classifier import load_adm_classifier
from miudiff.diffusion.classifier import ClassifierNetwork, NoisedClassifier
from miudiff.diffusion.score import parameter_count
from miudiff.errors import CheckpointError
from parity.test_adm import SMALL, linear, norm, run_block, save, shapes, weights

TINY = SMALL | {"image_size": 32, "channel_mult": [1, 2, 2], "attention_resolutions": [2, 4]}
DEFAULTS = ClassifierNetwork()


def encoder_shapes(config, classes):
    """Every weight of the official `EncoderUNetModel` with attention as its pool, in the order of its definition."""
    kept = ("time_embed", "input_blocks", "middle_block")
    found = {name: shape for name, shape in shapes(config).items() if name.startswith(kept)}
    channels = found["middle_block.0.in_layers.0.bias"][0]
    found["out.0.weight"] = found["out.0.bias"] = (channels,)
    side = config["image_size"] >> (len(config["channel_mult"]) - 1)
    found["out.2.positional_embedding"] = (channels, side**2 + 1)
    found["out.2.qkv_proj.weight"], found["out.2.qkv_proj.bias"] = (
        (3 * channels, channels, 1),
        (3 * channels,),
    )
    found["out.2.c_proj.weight"], found["out.2.c_proj.bias"] = (classes, channels, 1), (classes,)
    return found


def drawn(config, classes, seed=0):
    """Random weights under which no part falls silent."""
    generator = torch.Generator().manual_seed(seed)
    state = weights(config, seed)
    return {
        name: state[name]
        if name in state and not name.startswith("out")
        else 0.2 * torch.randn(shape, generator=generator)
        for name, shape in encoder_shapes(config, classes).items()
    }


def official(state, config, x, t):
    """(features, logits) of guided-diffusion's classifier as a function of its state dict, from its description."""
    stride, half = config["num_res_blocks"] + 1, state["time_embed.0.weight"].shape[1] // 2
    phase = t[:, None] * torch.exp(-torch.arange(half) / half * torch.log(torch.tensor(10000.0)))[None]
    emb = torch.cat([phase.cos(), phase.sin()], 1).to(x)
    emb = linear(state, "time_embed.2", F.silu(linear(state, "time_embed.0", emb)))
    blocks = len({name.split(".")[1] for name in state if name.startswith("input_blocks")})
    h = x
    for block in range(blocks):
        sampling = "down" if block > 0 and block % stride == 0 else None
        h = run_block(state, config, f"input_blocks.{block}", h, emb, sampling)
    features = run_block(state, config, "middle_block", h, emb, None)
    rows = F.silu(norm(state, "out.0", features)).flatten(2)
    rows = torch.cat([rows.mean(2, keepdim=True), rows], 2) + state["out.2.positional_embedding"]
    rows = F.conv1d(rows, state["out.2.qkv_proj.weight"], state["out.2.qkv_proj.bias"])
    width, channels = config["num_head_channels"], features.shape[1]
    query, key, value = (part.unflatten(1, (channels // width, width)) for part in rows.chunk(3, 1))
    share = torch.softmax(torch.einsum("bhct,bhcs->bhts", query, key) / width**0.5, -1)
    rows = torch.einsum("bhts,bhcs->bhct", share, value).flatten(1, 2)
    return features, F.conv1d(rows, state["out.2.c_proj.weight"], state["out.2.c_proj.bias"])[:, :, 0]


@torch.no_grad()
def test_the_official_classifier_with_weights_of_a_formula_gives_its_output(formulas, det, agree, tmp_path):
    expected = formulas["guided_diffusion"]["tiny_encoder_out"]
    state = {
        name: 0.05 * det(shape, 0.7, 0.3 * k) + (1.0 if len(shape) == 1 and name.endswith("weight") else 0.0)
        for k, (name, shape) in enumerate(encoder_shapes(TINY, len(expected[0])).items())
    }
    x, t = det((2, 3, 32, 32)), torch.tensor([10, 500])
    classifier = load_adm_classifier(save(tmp_path, state), layers=1, head_channels=16)
    agree(classifier(x, t), expected, "float32", 1e-6)
    double = {name: value.double() for name, value in state.items()}
    agree(official(double, TINY, x.double(), t)[1], expected, "the function that stands in for it", 1e-6)


@torch.no_grad()
@pytest.mark.parametrize(
    ("change", "new_order"),
    [
        ({}, False),
        ({"use_new_attention_order": True}, True),
        ({"num_res_blocks": 2}, False),
        ({"attention_resolutions": []}, False),
        ({"channel_mult": [0.5, 1], "model_channels": 64, "num_head_channels": 32}, False),
    ],
    ids=["plain", "new order", "two blocks", "attention in the middle only", "narrow first resolution"],
)
def test_any_configuration_gives_the_official_features_and_logits(change, new_order, tmp_path, agree):
    config = TINY | change
    state = drawn(config, 5)
    x, t = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.tensor([4, 871])
    double = {name: value.double() for name, value in state.items()}
    features, logits = official(double, config, x.double(), t)
    path = save(tmp_path, state)
    classifier = load_adm_classifier(path, config["num_res_blocks"], config["num_head_channels"], new_order)
    agree(classifier.features(x, t), features, "features")
    agree(classifier(x, t), logits, "logits")
    agree(classifier.double().features(x.double(), 871)[1], features[1], "features, one index", 1e-6)


def test_all_weights_of_the_full_classifier_find_their_place(tmp_path):
    """guided-diffusion's at 256 x 256, of ImageNet's classes, by shape alone; our default has two."""
    full = SMALL | {"image_size": 256, "model_channels": 128, "channel_mult": [1, 1, 2, 2, 4, 4]}
    full |= {"num_res_blocks": 2, "attention_resolutions": [8, 16, 32]}
    expected = encoder_shapes(full, 1000)
    with torch.device("meta"):
        classifier = NoisedClassifier(DEFAULTS.model_copy(update={"classes": 1000}))
        two = NoisedClassifier(DEFAULTS)
    count = sum(torch.Size(shape).numel() for shape in expected.values())
    assert parameter_count(classifier) == count
    assert parameter_count(two) == count - 998 * (512 + 1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if "out.2.qkv" not in k}, r"lacks 'out\.2\.qkv_proj\.weight'"),
        (
            lambda s: {k: v for k, v in s.items() if "out.2" not in k},
            r"no guided-diffusion classifier, lacks",
        ),
        (lambda s: s | {"output_blocks.0.0.skip_connection.bias": torch.ones(3)}, "also holds"),
        (lambda s: s | {"out.0.bias": torch.ones(7)}, "does not fit the other weights"),
        (lambda s: {k: v for k, v in s.items() if not k.startswith("input_blocks.5.")}, "5 input blocks"),
        (lambda s: list(s.values()), "holds no plain state dict"),
    ],
    ids=["a weight is missing", "a U-Net's half", "too much", "a shape", "a block is missing", "a list"],
)
def test_a_wrong_checkpoint_is_refused_in_one_line(spoil, message, tmp_path):
    path = save(tmp_path, spoil(drawn(TINY, 2)))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_adm_classifier(path, layers=1, head_channels=16)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_heads_that_do_not_divide_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="64 channels, expected a multiple of 48"):
        load_adm_classifier(save(tmp_path, drawn(TINY, 2)), layers=1, head_channels=48)
