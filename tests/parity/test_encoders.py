"""FID's Inception gives the features of torch-fidelity's, and a vision transformer those of PyTorch's own layers."""

import numpy as np
import pytest
import torch

from miudiff.evaluation.inception import Inception
from miudiff.evaluation.vision_transformer import MEAN, STD, VisionTransformer

# Features of torch-fidelity 0.4.0 ("inception-v3-compat", 2048) for the weights and the image below.
FEATURES = {0: 0.0, 7: 0.041829, 100: 0.32335, 1000: 0.182786, 1500: 0.316803, 2047: 0.0}
MEAN_FEATURE, MEAN_SQUARE = 0.25868267, 0.19141154


def square(name, width, pooled):
    return {
        f"{name}.branch1x1": (64, width, 1, 1),
        f"{name}.branch5x5_1": (48, width, 1, 1),
        f"{name}.branch5x5_2": (64, 48, 5, 5),
        f"{name}.branch3x3dbl_1": (64, width, 1, 1),
        f"{name}.branch3x3dbl_2": (96, 64, 3, 3),
        f"{name}.branch3x3dbl_3": (96, 96, 3, 3),
        f"{name}.branch_pool": (pooled, width, 1, 1),
    }


def factored(name, inner):
    across, down = (1, 7), (7, 1)
    return {
        f"{name}.branch1x1": (192, 768, 1, 1),
        f"{name}.branch7x7_1": (inner, 768, 1, 1),
        f"{name}.branch7x7_2": (inner, inner, *across),
        f"{name}.branch7x7_3": (192, inner, *down),
        f"{name}.branch7x7dbl_1": (inner, 768, 1, 1),
        f"{name}.branch7x7dbl_2": (inner, inner, *down),
        f"{name}.branch7x7dbl_3": (inner, inner, *across),
        f"{name}.branch7x7dbl_4": (inner, inner, *down),
        f"{name}.branch7x7dbl_5": (192, inner, *across),
        f"{name}.branch_pool": (192, 768, 1, 1),
    }


def split(name, width):
    return {
        f"{name}.branch1x1": (320, width, 1, 1),
        f"{name}.branch3x3_1": (384, width, 1, 1),
        f"{name}.branch3x3_2a": (384, 384, 1, 3),
        f"{name}.branch3x3_2b": (384, 384, 3, 1),
        f"{name}.branch3x3dbl_1": (448, width, 1, 1),
        f"{name}.branch3x3dbl_2": (384, 448, 3, 3),
        f"{name}.branch3x3dbl_3a": (384, 384, 1, 3),
        f"{name}.branch3x3dbl_3b": (384, 384, 3, 1),
        f"{name}.branch_pool": (192, width, 1, 1),
    }


CONVOLUTIONS = {
    "Conv2d_1a_3x3": (32, 3, 3, 3),
    "Conv2d_2a_3x3": (32, 32, 3, 3),
    "Conv2d_2b_3x3": (64, 32, 3, 3),
    "Conv2d_3b_1x1": (80, 64, 1, 1),
    "Conv2d_4a_3x3": (192, 80, 3, 3),
    **square("Mixed_5b", 192, 32),
    **square("Mixed_5c", 256, 64),
    **square("Mixed_5d", 288, 64),
    "Mixed_6a.branch3x3": (384, 288, 3, 3),
    "Mixed_6a.branch3x3dbl_1": (64, 288, 1, 1),
    "Mixed_6a.branch3x3dbl_2": (96, 64, 3, 3),
    "Mixed_6a.branch3x3dbl_3": (96, 96, 3, 3),
    **factored("Mixed_6b", 128),
    **factored("Mixed_6c", 160),
    **factored("Mixed_6d", 160),
    **factored("Mixed_6e", 192),
    "Mixed_7a.branch3x3_1": (192, 768, 1, 1),
    "Mixed_7a.branch3x3_2": (320, 192, 3, 3),
    "Mixed_7a.branch7x7x3_1": (192, 768, 1, 1),
    "Mixed_7a.branch7x7x3_2": (192, 192, 1, 7),
    "Mixed_7a.branch7x7x3_3": (192, 192, 7, 1),
    "Mixed_7a.branch7x7x3_4": (192, 192, 3, 3),
    **split("Mixed_7b", 1280),
    **split("Mixed_7c", 2048),
}


def inception_weights():
    """Drawn weights with the names and shapes of pt_inception-2015-12-05-6726825d.pth."""
    random = np.random.default_rng(2015)

    def draw(*shape):
        return random.normal(size=shape)

    weights = {"fc.weight": np.zeros((1008, 2048)), "fc.bias": np.zeros(1008)}
    for name, shape in CONVOLUTIONS.items():
        weights |= {
            f"{name}.conv.weight": draw(*shape) * (2 / np.prod(shape[1:])) ** 0.5,
            f"{name}.bn.weight": 1 + 0.1 * draw(shape[0]),
            f"{name}.bn.bias": 0.1 * draw(shape[0]),
            f"{name}.bn.running_mean": 0.1 * draw(shape[0]),
            f"{name}.bn.running_var": 1 + 0.1 * np.abs(draw(shape[0])),
        }
    return {name: torch.from_numpy(np.asarray(values, np.float32)) for name, values in weights.items()}


@pytest.fixture(scope="module")
def image():
    """uint8 [1, 3, 299, 299]."""
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (1, 3, 299, 299), dtype=np.uint8))


def test_the_weights_are_as_many_as_the_published_ones():
    learned = [each for name, each in inception_weights().items() if "running" not in name]
    assert sum(each.numel() for each in learned) == 23_850_960


def test_inceptions_features_are_torch_fidelitys(image, agree):
    # torch-fidelity scales by (x - 128) / 128, pytorch-fid by x / 127.5 - 1: the same for x / 256 instead of x / 255.
    found = Inception(inception_weights())(image.float() / 256)[0]
    assert found.shape == (2048,)
    agree(found[list(FEATURES)], list(FEATURES.values()), tolerance=1e-4)
    agree(torch.stack([found.mean(), (found**2).mean()]), [MEAN_FEATURE, MEAN_SQUARE], tolerance=1e-4)


def test_any_size_gives_features():
    network = Inception(inception_weights())
    assert network(torch.rand(2, 3, 40, 64)).shape == (2, 2048)


def transformer_weights(width=128, depth=2, patch=8, grid=4):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return 0.1 * torch.randn(shape, generator=generator)

    weights = {
        "patch_embed.proj.weight": draw(width, 3, patch, patch),
        "patch_embed.proj.bias": draw(width),
        "cls_token": draw(1, 1, width),
        "pos_embed": draw(1, grid**2 + 1, width),
        "norm.weight": 1 + draw(width),
        "norm.bias": draw(width),
    }
    for block in range(depth):
        shapes = {
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (4 * width, width),
            "mlp.fc2": (width, 4 * width),
        }
        for name, shape in shapes.items():
            weights |= {
                f"blocks.{block}.{name}.weight": draw(*shape),
                f"blocks.{block}.{name}.bias": draw(shape[0]),
            }
        for name in ("norm1", "norm2"):
            weights |= {
                f"blocks.{block}.{name}.weight": 1 + draw(width),
                f"blocks.{block}.{name}.bias": draw(width),
            }
    return weights


def of_pytorch(weights, images, heads):
    """The same forward pass with torch.nn.TransformerEncoderLayer."""
    width, _, patch, _ = weights["patch_embed.proj.weight"].shape
    x = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    x = torch.nn.functional.conv2d(
        x, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=patch
    )
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([weights["cls_token"].expand(len(x), -1, -1), x], dim=1) + weights["pos_embed"]
    names = {
        "self_attn.in_proj_": "attn.qkv.",
        "self_attn.out_proj.": "attn.proj.",
        "linear1.": "mlp.fc1.",
        "linear2.": "mlp.fc2.",
        "norm1.": "norm1.",
        "norm2.": "norm2.",
    }
    for block in range(len([n for n in weights if n.endswith("norm1.weight")])):
        layer = torch.nn.TransformerEncoderLayer(
            width, heads, 4 * width, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
        ).eval()
        layer.load_state_dict(
            {
                f"{theirs}{part}": weights[f"blocks.{block}.{ours}{part}"]
                for theirs, ours in names.items()
                for part in ("weight", "bias")
            }
        )
        x = layer(x)
    return torch.nn.functional.layer_norm(
        x[:, 0], (width,), weights["norm.weight"], weights["norm.bias"], 1e-6
    )


@torch.no_grad()
def test_a_vision_transformers_class_token_is_that_of_pytorchs_layers(agree):
    weights, images = (
        transformer_weights(),
        torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)),
    )
    agree(VisionTransformer(weights)(images), of_pytorch(weights, images, heads=2))
    agree(VisionTransformer(weights, heads=4)(images), of_pytorch(weights, images, heads=4))


@torch.no_grad()
def test_layer_scale_weighs_each_branch(agree):
    weights, images = transformer_weights(), torch.rand(1, 3, 32, 32)
    off = weights | {
        f"blocks.{block}.ls{part}.gamma": torch.zeros(128) for block in (0, 1) for part in (1, 2)
    }
    token = (weights["cls_token"] + weights["pos_embed"][:, :1])[0, 0]
    expected = torch.nn.functional.layer_norm(
        token, (128,), weights["norm.weight"], weights["norm.bias"], 1e-6
    )
    agree(VisionTransformer(off)(images)[0], expected)
    on = weights | {f"blocks.{block}.ls{part}.gamma": torch.ones(128) for block in (0, 1) for part in (1, 2)}
    agree(VisionTransformer(on)(images), VisionTransformer(weights)(images))
