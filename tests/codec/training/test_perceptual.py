"""The differentiable measures say what the reported ones say, and give a gradient that leads back."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from codec.format import lambda_of
from codec.metrics import ms_ssim
from codec.metrics.ssimulacra2 import ssimulacra2
from codec.training.perceptual import SLOPES, Mix, ms_ssim_distance, slope_at, ssimulacra2_distance


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(scope="module")
def pictures():
    """A photograph of 256 pixels a side and three worse ones."""
    whole = data.astronaut()[:256, 100:356]
    small = Image.fromarray(whole).resize((128, 128), Image.Resampling.LANCZOS)
    blurred = np.asarray(small.resize((256, 256), Image.Resampling.BICUBIC))
    noise = np.random.default_rng(1).normal(0, 1, whole.shape)
    noisy = [np.clip(np.rint(whole + sigma * noise), 0, 255).astype(np.uint8) for sigma in (2, 8)]
    return whole, [blurred, *noisy]


def test_distances_are_the_metrics(pictures):
    original, worse = pictures
    for decoded in worse:
        distance = ssimulacra2_distance(tensor(original), tensor(decoded)).item()
        assert 100 - distance == pytest.approx(ssimulacra2(original, decoded), abs=5)
        assert 1 - ms_ssim_distance(tensor(original), tensor(decoded)).item() == pytest.approx(
            ms_ssim(original, decoded), abs=1e-4
        )


def test_equal_pictures_are_near_and_have_a_finite_gradient(pictures):
    x = tensor(pictures[0])
    x_hat = x.clone().requires_grad_()
    distance = ssimulacra2_distance(x, x_hat) + ms_ssim_distance(x, x_hat)
    distance.sum().backward()
    assert distance.item() < 3 and torch.isfinite(x_hat.grad).all()


@pytest.mark.parametrize("mix", [Mix(), Mix(1.0), Mix(0, 1.0), Mix(0.45, 0.35)])
def test_following_the_gradient_brings_a_picture_nearer(pictures, mix):
    x, level = tensor(pictures[0]), torch.tensor([700.0])
    x_hat = tensor(pictures[1][2]).requires_grad_()
    before = mix.distortion(x, x_hat, level)
    before.sum().backward()
    with torch.no_grad():
        after = mix.distortion(x, x_hat - 0.5 / 255 * x_hat.grad.sign(), level)
    assert after.item() < before.item()


def test_squared_error_alone_counts_as_lambda_says(pictures):
    x, x_hat, level = tensor(pictures[0]), tensor(pictures[1][1]), torch.tensor([400.0])
    error = (x - x_hat).square().mean() * 255**2
    assert Mix().distortion(x, x_hat, level).item() == pytest.approx((lambda_of(level) * error).item(), rel=1e-5)


def test_slopes_between_levels():
    for name, values in SLOPES.items():
        found = slope_at(name, torch.tensor([0.0, 300.0, 1000.0]))
        assert found.tolist() == pytest.approx([values[0], values[3], values[10]])
        assert slope_at(name, torch.tensor([350.0])).item() == pytest.approx((values[3] * values[4]) ** 0.5)


def test_shares_make_up_one():
    with pytest.raises(ValueError, match="together at most 1"):
        Mix(0.7, 0.4)
