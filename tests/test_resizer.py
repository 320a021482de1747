"""The resizer's algebra: linear, the identity on constants, at home on any side, differentiable."""

import pytest
import torch

from miudiff.diffusion.resizer import down, low_pass, up
from miudiff.errors import ConfigError

KERNELS = pytest.mark.parametrize("kernel", ["linear", "cubic"])


def image(height, width, seed=0):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed)).double()


@KERNELS
@pytest.mark.parametrize(("height", "width", "factor"), [(16, 24, 8), (48, 50, 32), (17, 9, 9), (5, 7, 3)])
def test_any_side_from_the_factor_on_keeps_constants_and_symmetry(kernel, height, width, factor):
    x = image(height, width)
    assert down(x, factor, kernel).shape[-2:] == (-(-height // factor), -(-width // factor))
    assert low_pass(x, factor, kernel).shape == x.shape
    flat = torch.full_like(x, 0.3)
    torch.testing.assert_close(low_pass(flat, factor, kernel), flat)
    flipped = low_pass(x.flip(-1, -2), factor, kernel).flip(-1, -2)
    torch.testing.assert_close(flipped, low_pass(x, factor, kernel))  # so the coarse grid is centred


@KERNELS
def test_the_low_pass_is_linear_and_its_gradient_is_its_transpose(kernel):
    x, y = image(12, 20), image(12, 20, seed=1)
    torch.testing.assert_close(
        low_pass(2 * x - y, 4, kernel), 2 * low_pass(x, 4, kernel) - low_pass(y, 4, kernel)
    )
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad((low_pass(x, 4, kernel) * y).sum(), x)
    torch.testing.assert_close((gradient * x).sum(), (low_pass(x, 4, kernel) * y).sum())


def test_a_factor_of_one_is_the_identity_and_one_pixel_is_the_mean():
    x = image(6, 6)
    for kernel in ("linear", "cubic"):
        torch.testing.assert_close(low_pass(x, 1, kernel), x)
    two = torch.tensor([[1.0, 3.0]]).expand(2, 2)
    torch.testing.assert_close(down(two, 2, "linear"), torch.tensor([[2.0]]))


def test_enlarging_a_ramp_linearly_makes_the_ramp():
    ramp = torch.arange(8.0).expand(4, 8)
    found = up(ramp, 2, (8, 16), "linear")
    torch.testing.assert_close(found[0, 1:-1], (torch.arange(16.0)[1:-1] - 0.5) / 2)


def test_autocast_does_not_coarsen_it():
    x = image(16, 16).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = low_pass(x, 4, "cubic")
    assert torch.equal(inside, low_pass(x, 4, "cubic"))


def test_a_factor_beyond_the_shorter_side_is_refused():
    with pytest.raises(ConfigError, match="down_factor: found 9, expected at most 8"):
        low_pass(image(8, 12), 9, "linear")
