"""The restoration step on one picture: filters, enlargers, what must stay untouched."""

import numpy as np
import pytest
import skimage.data
from PIL import Image

from tasks.restoration import apply as restoration


@pytest.fixture(scope="module")
def cat():
    return Image.fromarray(skimage.data.chelsea())


def noisy(image, sigma, seed=0):
    samples = np.asarray(image, dtype=float)
    noise = np.random.default_rng(seed).normal(0, sigma, samples.shape)
    return Image.fromarray(np.clip(np.rint(samples + noise), 0, 255).astype(np.uint8), image.mode)


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2))


@pytest.mark.parametrize("method, gain", [("nlm", 4), ("gaussian", 3), ("wavelet", 3)])
def test_filters_remove_noise(cat, method, gain):
    cat = cat.crop((100, 60, 292, 204))
    for clean in (cat, cat.convert("L")):
        grainy = noisy(clean, 25)
        assert psnr(restoration.denoise(grainy, 25, method=method), clean) > psnr(grainy, clean) + gain


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_mode_alpha_profile_and_size_survive(cat, mode):
    image = noisy(cat.crop((0, 0, 97, 61)).convert(mode), 20)
    image.info.update(icc_profile=b"profile", exif=b"exif", dpi=(300, 300))
    clean = restoration.denoise(image, 20)
    large = restoration.upscale(image, 3)
    assert (clean.mode, clean.size, clean.info) == (mode, image.size, image.info)
    assert (large.mode, large.size, large.info) == (mode, (291, 183), image.info)
    if mode.endswith("A"):
        assert clean.getchannel("A").tobytes() == image.getchannel("A").tobytes()


def test_grey_stays_grey_in_three_channels(cat):
    grey = noisy(cat.convert("L"), 20).convert("RGB")
    for result in (restoration.denoise(grey, 20), restoration.upscale(grey, 2)):
        samples = np.asarray(result)
        assert (samples[..., 0] == samples[..., 1]).all() and (samples[..., 0] == samples[..., 2]).all()


def test_wrong_use_is_named(cat):
    assert restoration.denoise(cat, 0) is cat
    with pytest.raises(ValueError, match="sigma -1"):
        restoration.denoise(cat, -1)
    with pytest.raises(ValueError, match="sigma nan"):
        restoration.denoise(cat, float("nan"))
    with pytest.raises(ValueError, match="magic"):
        restoration.denoise(cat, 5, method="magic")
    with pytest.raises(ValueError, match="scale 5"):
        restoration.upscale(cat, 5)
    for mode in ("CMYK", "I;16", "F"):
        with pytest.raises(restoration.UnsupportedPicture, match=mode):
            restoration.denoise(Image.new(mode, (80, 80)), 10)
        with pytest.raises(restoration.UnsupportedPicture, match=mode):
            restoration.upscale(Image.new(mode, (80, 80)), 2)


def test_palette_pictures_are_enlarged_in_full_colour(cat):
    assert restoration.upscale(cat.quantize(8), 2).mode == "RGB"
    assert restoration.upscale(cat.convert("1"), 2).mode == "L"
