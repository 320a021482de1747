"""Official guided-diffusion checkpoints: the imported network is the function that the official one is.

`official` is guided-diffusion's U-Net as a function of its state dict, written from its description. It is
held to the recorded output of the official code, and stands in for it where nothing was recorded.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from miudiff.checkpoints import save_weights
from miudiff.diffusion.adm import AdmConfig, load_adm, to_unet
from miudiff.diffusion.score import NetworkConfig, build_unet, load_unet, parameter_count
from miudiff.errors import CheckpointError, ConfigError

SMALL = {
    "image_size": 16,
    "model_channels": 32,
    "out_channels": 3,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": [1, 2],
    "num_head_channels": 16,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}
CONFIGURATIONS = {
    "two heads, legacy order": {"num_head_channels": -1, "num_heads": 2},
    "four heads, new order": {"num_head_channels": -1, "num_heads": 4, "use_new_attention_order": True},
    "heads of 8 channels, new order": {"num_head_channels": 8, "use_new_attention_order": True},
    "head channels rule over heads": {"num_head_channels": 32, "num_heads": 4},
    "one head where nothing is said": {"num_head_channels": None},
    "sampling by convolutions": {"resblock_updown": False},
    "time added, not scaling": {"use_scale_shift_norm": False},
    "plain, as DDPM": {"resblock_updown": False, "use_scale_shift_norm": False, "num_res_blocks": 2},
    "learned variance, two blocks": {"out_channels": 6, "num_res_blocks": 2},
    "three blocks": {"num_res_blocks": 3},
    "attention everywhere": {"attention_resolutions": [1, 2], "num_head_channels": 8},
    "attention in the middle only": {"attention_resolutions": []},
    "attention named by its sides": {"attention_resolutions": "16", "image_size": 16},
    "four resolutions": {"channel_mult": [1, 2, 1, 2], "attention_resolutions": [4, 8]},
    "one resolution": {"channel_mult": [1], "attention_resolutions": [1]},
    "narrow first resolution": {"model_channels": 64, "channel_mult": [0.5, 1], "num_res_blocks": 2},
    "wide first resolution": {"channel_mult": [2, 1]},
    "classes": {"num_classes": 3},
    "dropout": {"dropout": 0.5},
}


def official(state, config, x, t, labels=None):
    """guided-diffusion's `UNetModel.forward`: [B, 3 or 6, H, W] from x [B, 3, H, W] and t [B]."""
    stride = config["num_res_blocks"] + 1
    width = state["time_embed.0.weight"].shape[1]
    half = width // 2
    phase = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half) / half)[None]
    emb = torch.cat([phase.cos(), phase.sin()], 1).to(x.dtype)
    emb = linear(state, "time_embed.2", F.silu(linear(state, "time_embed.0", emb)))
    if "label_emb.weight" in state:
        emb = emb + state["label_emb.weight"][labels]
    skips, h = [], x
    for block in range(count(state, "input_blocks")):
        sampling = "down" if block > 0 and block % stride == 0 else None
        h = run_block(state, config, f"input_blocks.{block}", h, emb, sampling)
        skips.append(h)
    h = run_block(state, config, "middle_block", h, emb, None)
    for block in range(count(state, "output_blocks")):
        h = run_block(state, config, f"output_blocks.{block}", torch.cat([h, skips.pop()], 1), emb, "up")
    return convolve(state, "out.2", F.silu(norm(state, "out.0", h)))


def run_block(state, config, block, h, emb, sampling):
    for place in range(3):
        name = f"{block}.{place}"
        if f"{name}.in_layers.0.weight" in state:
            # A decoder block begins with an ordinary residual block; only a later one goes up.
            resample = None if sampling == "up" and place == 0 else sampling
            h = residual(state, config, name, h, emb, resample)
        elif f"{name}.qkv.weight" in state:
            h = attend(state, config, name, h)
        elif f"{name}.op.weight" in state:
            h = convolve(state, f"{name}.op", h, step=2)
        elif f"{name}.conv.weight" in state:
            h = convolve(state, f"{name}.conv", resampled(h, "up"))
        elif f"{name}.weight" in state:
            h = convolve(state, name, h)
    return h


def residual(state, config, name, x, emb, sampling):
    h = resampled(F.silu(norm(state, f"{name}.in_layers.0", x)), sampling)
    h, x = convolve(state, f"{name}.in_layers.2", h), resampled(x, sampling)
    time = linear(state, f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None]
    if config["use_scale_shift_norm"]:
        scale, shift = time.chunk(2, 1)
        h = norm(state, f"{name}.out_layers.0", h) * (1 + scale) + shift
    else:
        h = norm(state, f"{name}.out_layers.0", h + time)
    h = convolve(state, f"{name}.out_layers.3", F.silu(h))
    return h + (
        convolve(state, f"{name}.skip_connection", x) if f"{name}.skip_connection.weight" in state else x
    )


def resampled(x, sampling):
    if sampling == "up":
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)
    return F.avg_pool2d(x, 2) if sampling == "down" else x


def attend(state, config, name, x):
    batch, channels, height, width = x.shape
    rows = F.conv1d(
        norm(state, f"{name}.norm", x).flatten(2), state[f"{name}.qkv.weight"], state[f"{name}.qkv.bias"]
    )
    per_head = config.get("num_head_channels") or -1
    heads = channels // per_head if per_head > 0 else config.get("num_heads") or 1
    if config.get("use_new_attention_order"):
        q, k, v = rows.view(batch, 3, heads, channels // heads, -1).unbind(1)
    else:
        q, k, v = rows.view(batch, heads, 3, channels // heads, -1).unbind(2)
    weight = torch.einsum("bhcq,bhck->bhqk", q, k) / math.sqrt(channels // heads)
    mixed = torch.einsum("bhqk,bhck->bhcq", weight.softmax(-1), v).reshape(batch, channels, -1)
    out = F.conv1d(mixed, state[f"{name}.proj_out.weight"], state[f"{name}.proj_out.bias"])
    return x + out.view(batch, channels, height, width)


def norm(state, name, x):
    return F.group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"])


def linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def convolve(state, name, x, step=1):
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state[f"{name}.bias"], step, weight.shape[-1] // 2)


def count(state, part):
    return 1 + max(int(name.split(".")[1]) for name in state if name.startswith(part))


def shapes(config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the state dict that guided-diffusion makes for a configuration of `UNetModel`."""
    width, blocks = config["model_channels"], config["num_res_blocks"]
    channels = [int(multiple * width) for multiple in config["channel_mult"]]
    attended = [2**level in config["attention_resolutions"] for level in range(len(channels))]
    time, found = 4 * width, dict[str, tuple[int, ...]]()

    def add(name, *shape):
        found[f"{name}.weight"], found[f"{name}.bias"] = shape, shape[:1]

    def add_residual(name, before, after):
        add(f"{name}.in_layers.0", before)
        add(f"{name}.in_layers.2", after, before, 3, 3)
        add(f"{name}.emb_layers.1", after * (2 if config["use_scale_shift_norm"] else 1), time)
        add(f"{name}.out_layers.0", after)
        add(f"{name}.out_layers.3", after, after, 3, 3)
        if before != after:
            add(f"{name}.skip_connection", after, before, 1, 1)

    def add_attention(name, width):
        add(f"{name}.norm", width)
        add(f"{name}.qkv", 3 * width, width, 1)
        add(f"{name}.proj_out", width, width, 1)

    add("time_embed.0", time, width)
    add("time_embed.2", time, time)
    if config.get("num_classes"):
        found["label_emb.weight"] = (config["num_classes"], time)
    add("input_blocks.0.0", channels[0], 3, 3, 3)
    here, skips = channels[0], [channels[0]]
    for level, after in enumerate(channels):
        for _ in range(blocks):
            add_residual(f"input_blocks.{len(skips)}.0", here, after)
            if attended[level]:
                add_attention(f"input_blocks.{len(skips)}.1", after)
            here = after
            skips.append(here)
        if level + 1 < len(channels):
            name = f"input_blocks.{len(skips)}.0"
            if config["resblock_updown"]:
                add_residual(name, here, here)
            else:
                add(f"{name}.op", here, here, 3, 3)
            skips.append(here)
    add_residual("middle_block.0", here, here)
    add_attention("middle_block.1", here)
    add_residual("middle_block.2", here, here)
    block = 0
    for level, after in reversed(list(enumerate(channels))):
        for layer in range(blocks + 1):
            add_residual(f"output_blocks.{block}.0", here + skips.pop(), after)
            here = after
            if attended[level]:
                add_attention(f"output_blocks.{block}.1", here)
            if level and layer == blocks:
                name = f"output_blocks.{block}.{2 if attended[level] else 1}"
                if config["resblock_updown"]:
                    add_residual(name, here, here)
                else:
                    add(f"{name}.conv", here, here, 3, 3)
            block += 1
    add("out.0", here)
    add("out.2", config["out_channels"], here, 3, 3)
    return found


def weights(config, seed=0):
    """Random weights under which no part of the network falls silent."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes(config).items():
        draw = torch.randn(shape, generator=generator)
        fan_in = math.prod(shape[1:])
        is_norm = len(shape) == 1 and name.endswith("weight")
        state[name] = (
            1 + 0.1 * draw if is_norm else draw * (0.8 / math.sqrt(fan_in) if len(shape) > 1 else 0.1)
        )
    return state


def configured(name):
    config = SMALL | CONFIGURATIONS[name]
    config["attention_resolutions"] = (
        [1] if name == "attention named by its sides" else config["attention_resolutions"]
    )
    return config


def save(folder, state, name="model.pt") -> Path:
    torch.save(state, folder / name)
    return folder / name


def an_input(config, batch=2):
    generator = torch.Generator().manual_seed(1)
    size = config["image_size"]
    labels = torch.arange(batch) % config["num_classes"] if config.get("num_classes") else None
    return torch.randn((batch, 3, size, size), generator=generator), torch.tensor([4, 871][:batch]), labels


@pytest.fixture(scope="module")
def recorded():
    """Of the official code: path of the weights, state dict, configuration, x, t, classes or None, y."""
    path = Path(os.environ.get("MIUDIFF_GOLDEN_ADM", Path(__file__).parents[1] / "golden" / "adm_tiny.pt"))
    with np.load(path.with_suffix(".npz")) as file:
        config = json.loads(str(file["config"]))
        x, t, y = (torch.from_numpy(file[name]) for name in "xty")
        others = [
            torch.from_numpy(file[name]) for name in file.files if name not in ("x", "t", "y", "config")
        ]
    return path, torch.load(path, weights_only=True), config, x, t, (others or [None])[0], y


@pytest.fixture
def small(tmp_path):
    """A whole checkpoint that tests then spoil: its folder and state dict."""
    return tmp_path, weights(SMALL)


@torch.no_grad()
def test_the_recorded_network_gives_the_official_output(recorded, agree):
    path, _, config, x, t, labels, y = recorded
    model = load_adm(path, config)
    agree(model(x, t, labels), y, "float32")
    exact = model.double().unet(x.double(), t, class_labels=labels).sample
    assert (exact - y).abs().max() < 1e-5


@torch.no_grad()
def test_the_function_that_stands_in_for_the_official_code_gives_its_output(recorded, agree):
    _, state, config, x, t, labels, y = recorded
    double = {name: value.double() for name, value in state.items()}
    assert (official(double, config, x.double(), t, labels) - y).abs().max() < 1e-5


@torch.no_grad()
def test_the_official_network_with_weights_of_a_formula_gives_its_output(
    formulas, det, agree_with_summary, tmp_path
):
    table = formulas["guided_diffusion"]
    config = SMALL | {
        "image_size": 32,
        "channel_mult": [1, 2, 2],
        "attention_resolutions": [2, 4],
        "out_channels": 6,
    }
    state = {}
    for k, (name, shape) in enumerate(shapes(config).items()):
        state[name] = 0.05 * det(shape, 0.7, 0.3 * k) + (
            1.0 if len(shape) == 1 and name.endswith("weight") else 0.0
        )
    model = load_adm(save(tmp_path, state), config)
    assert parameter_count(model) == table["tiny_unet_params"]
    output = model(det((2, 3, 32, 32)), torch.tensor([10, 500]))
    agree_with_summary(output, table["tiny_unet_out"], "tiny_unet_out")


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_any_configuration_gives_the_official_output(name, tmp_path, agree):
    config = configured(name)
    state, (x, t, labels) = weights(config), an_input(config)
    double = {key: value.double() for key, value in state.items()}
    expected = official(double, config, x.double(), t, labels)
    model = load_adm(save(tmp_path, state), SMALL | CONFIGURATIONS[name])
    agree(model(x, t, labels), expected, name)
    agree(model.double().unet(x.double(), t, class_labels=labels).sample, expected, f"{name}, float64", 1e-6)
    assert model.learned_variance == (config["out_channels"] == 6)


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["four heads, new order", "narrow first resolution", "classes", "plain, as DDPM"]
)
def test_a_folder_written_and_read_back_gives_the_same(name, tmp_path):
    config = configured(name)
    x, t, labels = an_input(config)
    model = load_adm(save(tmp_path, weights(config)), config)
    model.unet.save_config(tmp_path / "unet")
    save_weights(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", model.unet.state_dict())
    again = load_unet(tmp_path / "unet")
    torch.testing.assert_close(again(x, t, class_labels=labels).sample, model(x, t, labels), rtol=0, atol=0)
    assert not again.training


def test_a_folder_whose_parts_do_not_belong_together_is_refused(tmp_path):
    model = load_adm(save(tmp_path, weights(SMALL)), SMALL)
    model.unet.save_config(tmp_path / "unet")
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    save_weights(file, dict(list(model.unet.state_dict().items())[1:]))
    with pytest.raises(CheckpointError, match=r"does not fit its config\.json"):
        load_unet(tmp_path / "unet")
    (tmp_path / "unet" / "config.json").write_text(
        '{"block_out_channels": [32], "down_block_types": ["None"]}'
    )
    with pytest.raises(CheckpointError, match="describes no UNet2DModel"):
        load_unet(tmp_path / "unet")


@torch.no_grad()
def test_a_bare_file_is_understood_from_its_shapes(tmp_path):
    config = SMALL | {"model_channels": 64, "channel_mult": [1, 1, 2], "image_size": 32, "num_res_blocks": 2}
    config |= {"num_head_channels": 64, "out_channels": 6, "attention_resolutions": [2, 4]}
    path, (x, t, _) = save(tmp_path, weights(config)), an_input(config)
    torch.testing.assert_close(load_adm(path)(x, t), load_adm(path, config)(x, t), rtol=0, atol=0)
    assert load_adm(path).unet.config == load_adm(path, config).unet.config


@torch.no_grad()
def test_a_configuration_of_the_scripts_is_understood(tmp_path):
    """They name sides, write lists as text and have four heads by default."""
    config = SMALL | {"num_head_channels": -1, "num_heads": 4, "channel_mult": [1, 2, 2], "image_size": 32}
    config |= {"attention_resolutions": [2, 4], "out_channels": 6}
    path, (x, t, _) = save(tmp_path, weights(config)), an_input(config)
    script = {
        "image_size": 32,
        "num_channels": 32,
        "num_res_blocks": 1,
        "attention_resolutions": "16,8",
        "channel_mult": "1,2,2",
        "learn_sigma": True,
        "resblock_updown": True,
        "use_fp16": True,
        "diffusion_steps": 500,
    }
    model = load_adm(path, script)
    torch.testing.assert_close(model(x, t), load_adm(path, config)(x, t), rtol=0, atol=0)
    assert len(model.sde) == 500


def test_all_weights_of_the_full_network_find_their_place(formulas):
    """On the meta device: no memory, no time."""
    table = formulas["guided_diffusion"]
    config = SMALL | {"model_channels": 128, "channel_mult": [1, 1, 2, 2, 4, 4], "out_channels": 6}
    for attention, key in (([8, 16, 32], "params_256_128_1_attn32_16_8"), ([16], "params_256_128_1_attn16")):
        every = shapes(config | {"attention_resolutions": attention})
        state = {name: torch.empty(shape, device="meta") for name, shape in every.items()}
        unet = to_unet(state, AdmConfig(image_size=256), "synthetic")
        assert parameter_count(unet) == sum(math.prod(shape) for shape in every.values()) == table[key]
        assert unet.config.sample_size == 256
    full = shapes(config | {"attention_resolutions": [8, 16, 32]})
    assert (len(full), count(full, "input_blocks")) == (table["state_keys"], table["n_input_blocks"])


def test_the_networks_default_is_the_full_network(formulas):
    with torch.device("meta"):
        default = build_unet(NetworkConfig())
    assert parameter_count(default) == formulas["guided_diffusion"]["params_256_128_1_attn32_16_8"]


def test_no_number_is_lost_or_used_twice(small):
    _, state = small
    unet = to_unet(state, AdmConfig(**SMALL), "small")
    imported = torch.cat([value.flatten() for value in unet.state_dict().values()])
    assert torch.equal(
        imported.sort().values, torch.cat([value.flatten() for value in state.values()]).sort().values
    )


def spoiled() -> Iterator[tuple[str, object, str]]:
    """(what is wrong, how it changes a whole state dict, what the message says)."""
    yield (
        "a weight is missing",
        lambda s: without(s, "middle_block.1.qkv.bias"),
        r"lacks 'middle_block\.1\.qkv\.bias'",
    )
    yield (
        "a weight is too much",
        lambda s: s | {"out.3.weight": torch.ones(3)},
        r"also holds 'out\.3\.weight'",
    )
    yield "the decoder is missing", lambda s: without(s, "output_blocks"), "4 input and 0 output blocks"
    yield "a block is missing", lambda s: without(s, "input_blocks.3."), "3 input and 4 output blocks"
    yield "the time is missing", lambda s: without(s, "time_embed"), r"lacks 'time_embed\.0\.weight'"
    yield "a shape is wrong", lambda s: s | {"out.0.bias": torch.ones(31)}, r"'out\.0\.bias' of shape \(31,\)"
    yield (
        "qkv is cut",
        lambda s: s | {"middle_block.1.qkv.weight": torch.ones(8, 64, 1)},
        r"of shape \(8, 64, 1\)",
    )
    yield "it is a scalar", lambda s: s | {"out.2.weight": torch.tensor(1.0)}, r"lacks 'out\.2\.weight'"
    yield "it is grey", lambda s: s | {"input_blocks.0.0.weight": torch.ones(32, 1, 3, 3)}, "1 channels in"
    yield (
        "it is another network",
        lambda s: {"conv1.weight": torch.ones(3)},
        "its first key is 'conv1.weight'",
    )
    yield "it is empty", lambda s: {}, "it is empty"
    yield "it is a training state", lambda s: {"step": 3, "model": s}, "holds no plain state dict"
    yield "it is a list", lambda s: list(s.values()), "holds no plain state dict"


def without(state, start):
    return {name: value for name, value in state.items() if not name.startswith(start)}


@pytest.mark.parametrize(
    ("spoil", "message"), [case[1:] for case in spoiled()], ids=[case[0] for case in spoiled()]
)
def test_a_wrong_checkpoint_is_refused_in_one_line(spoil, message, small):
    folder, state = small
    path = save(folder, spoil(state))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_adm(path, SMALL)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_no_checkpoint_is_refused_in_one_line(tmp_path):
    (tmp_path / "text.pt").write_text("weights")
    (tmp_path / "cut.pt").write_bytes(save(tmp_path, weights(SMALL)).read_bytes()[:5000])
    for name in ("absent.pt", "text.pt", "cut.pt"):
        with pytest.raises(CheckpointError, match=name) as caught:
            load_adm(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_head_chanels": 16}, "did you mean 'num_head_channels'"),
        ({"attention_resolution": "16"}, "did you mean 'attention_resolutions'"),
        ({"num_res_blocks": 2}, "'num_res_blocks': found 2, expected 1"),
        ({"num_res_blocks": "many"}, "'num_res_blocks': found 'many'"),
        ({"model_channels": 64}, "'model_channels': found 64, expected 32"),
        ({"channel_mult": "1,2,4"}, "'channel_mult'"),
        ({"attention_resolutions": "4"}, "'attention_resolutions'"),
        ({"use_scale_shift_norm": False}, "'use_scale_shift_norm': found False, expected True"),
        ({"resblock_updown": False}, "'resblock_updown'"),
        ({"learn_sigma": True}, "'learn_sigma'"),
        ({"class_cond": True}, "'class_cond'"),
        ({"num_head_channels": 48}, "cannot be cut into heads of 48 channels"),
        ({"num_head_channels": -1, "num_heads": 3}, "cannot be cut into 3 heads"),
        ({"num_head_channels": -1, "num_heads": 2, "num_heads_upsample": 4}, "'num_heads_upsample'"),
        ({"noise_schedule": "cosine"}, "'noise_schedule'"),
        ({"image_size": 17}, "'image_size'"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_in_one_line(change, message, small):
    folder, state = small
    path = save(folder, state)
    with pytest.raises(ConfigError, match=message) as caught:
        load_adm(path, SMALL | change)
    assert "\n" not in str(caught.value)
