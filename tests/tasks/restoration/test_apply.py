"""The restoration step on one picture: noise estimate, decision, filters, what must stay untouched."""

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


@pytest.mark.parametrize("sigma", [10, 15, 25, 40])
def test_sigma_is_estimated_within_a_tenth(cat, sigma):
    assert restoration.noise_sigma(noisy(cat, sigma)) == pytest.approx(sigma, rel=0.1)
    assert restoration.noise_sigma(noisy(cat.convert("L"), sigma)) == pytest.approx(sigma, rel=0.1)


def test_clean_pictures_are_left_alone(cat):
    for name in ("chelsea", "astronaut", "coffee", "page"):
        image = Image.fromarray(getattr(skimage.data, name)())
        assert not restoration.decide(image).noisy
        assert restoration.denoise(image) is image


def test_sigma_needs_no_clipped_blocks():
    white = np.full((256, 256, 3), 255, np.uint8)
    white[64:192] = np.clip(128 + np.random.default_rng(0).normal(0, 20, (128, 256, 3)), 0, 255)
    assert restoration.noise_sigma(Image.fromarray(white)) == pytest.approx(20, rel=0.1)
    assert restoration.noise_sigma(Image.new("RGB", (256, 256), "white")) == 0.0
    drawn = Image.new("L", (256, 256), "white")
    drawn.paste(Image.fromarray(skimage.data.text()).crop((0, 0, 100, 60)), (50, 50))
    assert restoration.noise_sigma(drawn) == 0.0
    assert restoration.decide(noisy(Image.new("L", (256, 256), "white"), 15)).noisy
    transparent = Image.fromarray(white).convert("RGBA")
    transparent.putalpha(0)
    assert restoration.noise_sigma(transparent) == 0.0


def test_decision_knows_jpeg_and_size(cat):
    grainy = noisy(cat, 20)
    assert restoration.decide(grainy).noisy
    assert restoration.decide(grainy, jpeg_quality=95).noisy
    coarse = restoration.decide(grainy, jpeg_quality=60)
    assert not coarse.noisy and "JPEG quality 60" in coarse.why and coarse.sigma > 15
    assert not restoration.decide(grainy.crop((0, 0, 300, 40))).noisy
    assert not restoration.decide(grainy.quantize(16)).noisy
    assert restoration.noise_sigma(grainy.crop((0, 0, 1, 1))) == 0.0


def test_large_pictures_are_judged_from_a_sample_of_blocks(cat):
    large = noisy(cat.resize((3000, 2000), Image.Resampling.BICUBIC), 12)
    tops, lefts = restoration._block_grid(large.height, large.width)
    assert len(tops) * len(lefts) <= restoration.MOST_BLOCKS
    assert restoration.noise_sigma(large) == pytest.approx(12, rel=0.1)


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
