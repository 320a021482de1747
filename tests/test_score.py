"""Networks that see squares of pixels as channels are the same score models, a quarter as large in area."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel

from miudiff.checkpoints import WEIGHTS, read_json, save_weights, write_json
from miudiff.diffusion.score import NetworkConfig, ScoreModel, build_unet, load_unet
from miudiff.errors import CheckpointError

FOLDED = NetworkConfig(size=32, unshuffle=2, channels=(16, 32), attention=(8,), head_channels=8, groups=8)


@pytest.fixture
def score() -> ScoreModel:
    torch.manual_seed(0)
    unet = build_unet(FOLDED)
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    return ScoreModel(unet).eval()


def test_a_folded_network_is_the_plain_one_between_unshuffle_and_shuffle(score):
    y = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        eps, fraction = score.predict(y, 100)
        raw = score.unet(F.pixel_unshuffle(y, 2), torch.tensor([100, 100])).sample
    assert eps.shape == fraction.shape == y.shape
    for row in range(2):  # the place in a square is the channel's remainder
        for column in range(2):
            channels = [4 * colour + 2 * row + column for colour in range(6)]
            both = torch.cat([eps, fraction], 1)[:, :, row::2, column::2]
            torch.testing.assert_close(both, raw[:, channels], rtol=0, atol=1e-5)


def test_a_folded_network_says_what_it_takes(score):
    assert FOLDED.multiple == score.multiple == 4
    assert score.unshuffle == 2
    assert score.learned_variance
    assert [f.shape[2:] for f in score.features(torch.randn(1, 3, 32, 32), 0, [0, 3])] == [(16, 16), (8, 8)]
    attending = [type(block).__name__ for block in score.unet.down_blocks]
    assert attending == ["ResnetDownsampleBlock2D", "AttnDownBlock2D"]  # 8 is the side that the network sees


def test_a_folded_network_is_plain_diffusers_on_disk(score, tmp_path):
    score.unet.save_pretrained(tmp_path)
    ours, theirs = ScoreModel(load_unet(tmp_path)), UNet2DModel.from_pretrained(tmp_path)
    y = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.predict(y, 7), score.predict(y, 7), rtol=0, atol=0)
    assert theirs.config.in_channels == 12


@pytest.mark.parametrize(("inputs", "outputs"), [(12, 6), (3, 12), (6, 6)])
def test_channels_that_make_no_score_model_are_refused(score, tmp_path, inputs, outputs):
    score.unet.save_pretrained(tmp_path)
    config = read_json(tmp_path / "config.json") | {"in_channels": inputs, "out_channels": outputs}
    write_json(tmp_path / "config.json", config)
    save_weights(tmp_path / WEIGHTS, score.unet.state_dict())
    with pytest.raises(CheckpointError, match="_channels"):
        load_unet(tmp_path)
