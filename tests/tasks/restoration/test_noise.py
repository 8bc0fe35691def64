"""Noise on every pixel: how strong it is measured, and that texture, stars and screens are not taken for it."""

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageDraw

from tasks.restoration import noise
from tasks.restoration.noise import noise_sigma


@pytest.fixture(scope="module")
def cat():
    return Image.fromarray(skimage.data.chelsea())


def noisy(image, sigma, seed=0):
    samples = np.asarray(image, dtype=float)
    added = np.random.default_rng(seed).normal(0, sigma, samples.shape)
    return Image.fromarray(np.clip(np.rint(samples + added), 0, 255).astype(np.uint8), image.mode)


def against(samples, sigma=15.0):
    """What speaks against noise in [H, W] or [H, W, 3]."""
    samples = np.clip(np.rint(samples), 0, 255).astype(np.uint8)
    return noise.content(samples if samples.ndim == 3 else samples[:, :, None], sigma)[0]


@pytest.mark.parametrize("sigma", [10, 15, 25, 40])
def test_sigma_is_estimated_within_a_tenth(cat, sigma):
    assert noise_sigma(noisy(cat, sigma)) == pytest.approx(sigma, rel=0.1)
    assert noise_sigma(noisy(cat.convert("L"), sigma)) == pytest.approx(sigma, rel=0.1)


def test_sigma_needs_no_clipped_blocks():
    white = np.full((256, 256, 3), 255, np.uint8)
    white[64:192] = np.clip(128 + np.random.default_rng(0).normal(0, 20, (128, 256, 3)), 0, 255)
    assert noise_sigma(Image.fromarray(white)) == pytest.approx(20, rel=0.1)
    assert noise_sigma(Image.new("RGB", (256, 256), "white")) == 0.0
    drawn = Image.new("L", (256, 256), "white")
    drawn.paste(Image.fromarray(skimage.data.text()).crop((0, 0, 100, 60)), (50, 50))
    assert noise_sigma(drawn) < 2
    transparent = Image.fromarray(white).convert("RGBA")
    transparent.putalpha(0)
    assert noise_sigma(transparent) == 0.0
    assert noise_sigma(Image.new("L", (17, 400))) == 0.0


def test_large_pictures_are_judged_from_a_sample_of_blocks(cat):
    large = noisy(cat.resize((1500, 1000), Image.Resampling.BICUBIC), 12)
    tops, lefts = noise._block_grid(large.height, large.width)
    assert len(tops) * len(lefts) <= noise.MOST_BLOCKS
    assert noise_sigma(large) == pytest.approx(12, rel=0.1)


def test_noise_of_a_sensor_is_noise(cat):
    photograph = np.asarray(cat.resize((384, 384)), float)
    rng = np.random.default_rng(1)
    assert against(photograph + rng.normal(0, 15, photograph.shape)) is None
    grey = photograph.mean(axis=2)
    assert against(grey + rng.normal(0, 15, grey.shape)) is None
    shot = photograph + rng.normal(0, 1, photograph.shape) * np.sqrt(0.8 * photograph + 30)  # stronger where brighter
    assert against(shot) is None


def test_texture_over_a_photograph_is_left_for_what_gives_it_away(cat):
    """The same picture as above, with something else than a sensor's noise on it."""
    photograph = np.asarray(cat.resize((384, 384)), float)
    rng = np.random.default_rng(2)
    shape = photograph.shape[:2]
    assert "same in all colours" in against(photograph + rng.normal(0, 15, (*shape, 1)))
    rows, columns = np.mgrid[:384, :384]
    screen = 25 * np.sign(np.sin(rows * 1.3) * np.sin(columns * 1.3))
    assert "repeats" in against(photograph + screen[..., None] + rng.normal(0, 6, photograph.shape))
    caption = Image.fromarray(np.clip(photograph + rng.normal(0, 15, photograph.shape), 0, 255).astype(np.uint8))
    ImageDraw.Draw(caption).rectangle((40, 40, 340, 120), fill=(40, 90, 140))
    assert "parts of the picture are without it" in against(np.asarray(caption, float))
    binary = photograph.mean(axis=2) * 0.8 + 25 + 12 * rng.choice([-1.0, 1.0], shape)
    assert "not spread like noise" in against(binary)
    assert "nothing but noise" in against(rng.normal(128, 20, (384, 384, 3)))


def test_stars_are_not_noise():
    rng = np.random.default_rng(3)
    sky = np.full((384, 384, 3), 40.0) + rng.normal(0, 10, (384, 384, 3))
    assert "points of light" not in against(sky)
    for y, x in rng.integers(4, 380, (150, 2)):
        sky[y - 1 : y + 2, x - 1 : x + 2] += 90 * np.outer([0.4, 1, 0.4], [0.4, 1, 0.4])[:, :, None]
    assert "points of light" in against(sky)


def test_where_luma_has_no_flat_parts_the_colours_tell(cat):
    rng = np.random.default_rng(4)
    grass = np.asarray(Image.fromarray(skimage.data.grass()).resize((384, 384)), float)[..., None] * [0.8, 1.0, 0.5]
    assert against(grass) is not None
    reason, strength = noise.content(np.clip(grass + rng.normal(0, 10, grass.shape), 0, 255).astype(np.uint8), 15.0)
    assert reason is None and strength == pytest.approx(10, rel=0.15)  # not the 15 that grass and noise give together
