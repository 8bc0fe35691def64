"""PSNR, SSIM, MS-SSIM against their reference implementations; BD-rate against curves with known answers."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_msssim import ms_ssim as reference_ms_ssim
from pytorch_msssim import ssim as reference_ssim
from skimage import data

from codec import metrics

WINDOW = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / 4.5)
WINDOW = (WINDOW / WINDOW.sum())[None, None].repeat(3, 1, 1, 1)


@pytest.fixture(scope="module")
def photograph():
    return data.astronaut()


def tensor(array):
    return torch.from_numpy(np.atleast_3d(array).astype(np.float64)).permute(2, 0, 1)[None]


def disturbed(array, sigma, seed=0):
    noise = np.random.default_rng(seed).normal(0, sigma, array.shape)
    return np.clip(np.rint(array + noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("rows, columns", [(512, 512), (511, 333), (161, 300), (200, 175), (257, 161)])
@pytest.mark.parametrize("sigma", [1.0, 12.0, 60.0])
def test_equals_pytorch_msssim(photograph, rows, columns, sigma):
    a = photograph[:rows, :columns]
    b = disturbed(a, sigma)
    single, multiple = metrics.similarity(a, b)
    as_shipped = tensor(a).float(), tensor(b).float()
    assert multiple == pytest.approx(reference_ms_ssim(*as_shipped).item(), abs=1e-5)
    assert single == pytest.approx(reference_ssim(*as_shipped).item(), abs=1e-5)
    # its float32 window does not add up to one; with a float64 window the agreement is closer still
    in_double = tensor(a), tensor(b)
    assert multiple == pytest.approx(reference_ms_ssim(*in_double, win=WINDOW).item(), abs=3e-7)
    assert single == pytest.approx(reference_ssim(*in_double, win=WINDOW).item(), abs=3e-7)
    assert metrics.ms_ssim(a, b) == multiple
    assert metrics.ssim(a, b) == single


def test_grey_equals_three_equal_channels(photograph):
    a = photograph[:, :, 1].copy()
    b = disturbed(a, 8)
    grey = metrics.ms_ssim(Image.fromarray(a), Image.fromarray(b))
    colour = reference_ms_ssim(tensor(np.stack([a] * 3, -1)), tensor(np.stack([b] * 3, -1))).item()
    assert grey == pytest.approx(colour, abs=1e-5)


def test_sides_about_the_smallest(photograph):
    a = photograph[:300, :159]
    assert metrics.ms_ssim(a, disturbed(a, 5)) is None
    a = photograph[:300, :160]
    b = disturbed(a, 5)
    wider = photograph[:300, :164]
    assert metrics.ms_ssim(a, b) == pytest.approx(metrics.ms_ssim(wider, disturbed(wider, 5)), abs=5e-3)
    with pytest.warns(UserWarning, match="Skipping Gaussian"):
        tiny = reference_ssim(tensor(a[:7, :40]), tensor(b[:7, :40])).item()
    assert metrics.ssim(a[:7, :40], b[:7, :40]) == pytest.approx(tiny, abs=1e-5)


def test_equal_and_opposite_pictures(photograph):
    assert metrics.psnr(photograph, photograph) == math.inf
    single, multiple = metrics.similarity(photograph, photograph)
    assert single == pytest.approx(1, abs=1e-6) and multiple == pytest.approx(1, abs=1e-6)
    assert metrics.ms_ssim(photograph, 255 - photograph) == 0.0  # negative structure counts as none
    assert metrics.ms_ssim_db(1.0) == math.inf
    assert metrics.ms_ssim_db(0.98) == pytest.approx(16.9897, abs=1e-4)


def test_psnr_over_all_samples(photograph):
    b = disturbed(photograph, 9)
    mse = np.mean((photograph.astype(np.float64) - b) ** 2)
    assert metrics.psnr(photograph, b) == pytest.approx(10 * math.log10(255**2 / mse), abs=1e-9)
    one = np.zeros((1, 1), np.uint8)
    assert metrics.psnr(one, one + 255) == pytest.approx(0.0)


def test_alpha_is_left_out(photograph):
    a = Image.fromarray(photograph).convert("RGBA")
    b = a.copy()
    b.putalpha(7)
    assert metrics.psnr(a, b) == math.inf


def test_refuses_what_it_cannot_compare(photograph):
    with pytest.raises(ValueError, match="different shapes"):
        metrics.psnr(photograph, photograph[:, :, 0])
    with pytest.raises(ValueError, match="mode CMYK"):
        metrics.psnr(Image.new("CMYK", (4, 4)), Image.new("CMYK", (4, 4)))
    with pytest.raises(ValueError, match="float64"):
        metrics.ssim(photograph / 255.0, photograph / 255.0)


def test_reads_any_memory_layout(photograph):
    b = disturbed(photograph, 9)
    turned = photograph[::-1].transpose(1, 0, 2), b[::-1].transpose(1, 0, 2)
    packed = [np.ascontiguousarray(p) for p in turned]
    assert metrics.similarity(*turned) == metrics.similarity(*packed)
    assert metrics.psnr(*turned) == metrics.psnr(*packed)


def test_bd_rate_of_scaled_curves():
    rate = np.array([0.1, 0.25, 0.5, 1.0, 2.0])
    quality = np.array([26.0, 29.0, 32.0, 36.0, 40.0])
    assert metrics.bd_rate(rate, quality, rate * 0.6, quality) == pytest.approx(-40)
    assert metrics.bd_rate(rate[::-1], quality[::-1], rate * 1.25, quality) == pytest.approx(25)
    # a line in log rate stays exact when only part of it overlaps
    line = np.linspace(25, 35, 6)
    assert metrics.bd_rate(2 ** (line / 3), line, 2 ** ((line - 1) / 3), line + 2) == pytest.approx(
        (2 ** (-1) - 1) * 100
    )
    assert metrics.bd_rate(rate, quality, [*(rate * 0.6), 1.4], [*quality, 20.0]) == pytest.approx(-40)


def test_bd_rate_needs_an_overlap():
    with pytest.raises(ValueError, match="share no range"):
        metrics.bd_rate([1, 2], [30, 31], [1, 2], [40, 41])
    with pytest.raises(ValueError, match="two increasing points"):
        metrics.bd_rate([1, 2], [30, 31], [1], [30.5])


def test_bits_per_pixel():
    assert metrics.bpp(1000, 80, 50) == 2.0


@pytest.mark.skipif("NIGHTPRESS_DATA" not in os.environ, reason="published curves: NIGHTPRESS_DATA=…/data")
@pytest.mark.parametrize(
    "name, expected", [("webp", -36), ("jpeg2000", -36), ("bpg_444_x265_ycbcr", -59), ("vtm", -68)]
)
def test_bd_rate_of_published_curves(name, expected):
    folder = Path(os.environ["NIGHTPRESS_DATA"]) / "rd"
    jpeg, other = (json.loads((folder / f"{n}.json").read_text())["results"] for n in ("jpeg", name))
    got = metrics.bd_rate(jpeg["bpp"], jpeg["psnr-rgb"], other["bpp"], other["psnr-rgb"])
    assert got == pytest.approx(expected, abs=1.5)
