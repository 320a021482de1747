"""Tiles that walk together: what they share is one field after every step, and a lone tile is what it was."""

import numpy as np
import pytest
import torch

from miudiff.errors import ConfigError
from miudiff.methods.fusion import Fusion
from miudiff.methods.generator import GeneratorModel
from miudiff.methods.model import Card
from miudiff.methods.presets import preset
from miudiff.methods.systems import configure
from miudiff.stainer import VirtualStainer
from test_stainer import QUICK, tissue
from tiny import CPU, tiny_model


def stainer(mode, *changes, tile=64, **options):
    return VirtualStainer(
        tiny_model(tile=tile),
        preset("fast", (*QUICK, "energy.guidance=none", *changes)),
        CPU,
        mode=mode,
        **options,
    )


def test_a_field_cut_into_tiles_and_joined_is_itself():
    field = torch.randn(1, 3, 80, 56, generator=torch.Generator().manual_seed(0))
    fusion = Fusion(80, 56, 32, 8)
    torch.testing.assert_close(fusion.field(fusion.cut(field)), field)


def test_tiles_agree_wherever_they_overlap_and_keep_what_they_have_alone():
    fusion = Fusion(32, 56, 32, 8)  # two tiles beside each other, 8 pixels in common
    tiles = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])
    left, right = fusion(tiles)
    assert torch.equal(left[:, :, 24:], right[:, :, :8])
    assert torch.equal(left[:, :, :24], torch.zeros(3, 32, 24))
    assert torch.equal(right[:, :, 8:], torch.ones(3, 32, 24))
    # weights fall linearly to the border: 8/8 at a ramp's inner end against 1/8 at its outer
    torch.testing.assert_close(left[0, 16, 24:], torch.arange(1, 9) / 9.0)


def test_a_lone_tile_is_stained_as_without_fusion_to_the_bit():
    image = tissue(64, 64)
    assert np.array_equal(stainer("fuse").translate(image), stainer("blend").translate(image))


def test_the_network_sees_one_field_in_every_step():
    fused = stainer("fuse")
    seen = []
    fused.reverse.watch = lambda report: seen.append(report.y.clone())
    fused.translate(tissue(64, 112))
    fusion = Fusion(64, 112, 64, 16)
    assert len(seen) == fused.steps(64, 112) == 2
    assert len(seen[0]) == len(fusion.corners) == 2
    for tiles in seen:  # y_S too: the tiles begin as windows of one noise field
        torch.testing.assert_close(fusion(tiles), tiles)


@pytest.mark.parametrize("method", ["sdedit", "ilvr", "egsde"])
def test_every_reverse_walk_can_be_fused(method):
    short = {
        "sdedit": ("repeats=1",),
        "ilvr": ("down_factor=4",),
        "egsde": ("scale_realism=0", "down_factor=4"),
    }
    steps = () if method == "ilvr" else ("start=6", "steps=2")
    config = configure(method, changes=(*short[method], *steps))
    if method == "ilvr":
        config = config.model_copy(update={"steps": 2})
    ihc = VirtualStainer(tiny_model(tile=64), config, CPU, mode="fuse").translate(tissue(64, 112))
    assert ihc.shape == (64, 112, 3)


def test_a_fused_block_does_not_depend_on_how_many_tiles_the_network_gets_at_once():
    image = tissue(64, 112)
    one, many = (stainer("fuse", batch=batch).translate(image) for batch in (1, 2))
    assert np.abs(one.astype(int) - many).max() <= 1


def test_refinement_and_generators_cannot_be_fused():
    with pytest.raises(ConfigError, match=r"mode fuse: .* refinement\.loss=none"):
        stainer("fuse", "refinement.loss=contrastive", "refinement.start=6")
    from miudiff.gan import Generator, GeneratorConfig

    model = GeneratorModel(
        Generator(GeneratorConfig(width=4, blocks=2)), Card(name="gan", mpp=1.0, tile=64), "cut"
    )
    with pytest.raises(ConfigError, match="mode fuse: 'gan' takes one pass"):
        VirtualStainer(model, None, CPU, mode="fuse")
