"""Impulses: found where they are, replaced by what was there, and never seen in points that are content."""

import numpy as np
import pytest
import skimage.data
from PIL import Image
from scipy.ndimage import median_filter

from tasks.restoration import denoise, impulses, remove_impulses


@pytest.fixture(scope="module")
def astronaut():
    return skimage.data.astronaut()


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


def hit(clean, count, values, seed=0):
    """The picture with `count` pixels at random set to rows of uint8 [n, C] `values`, drawn at random."""
    rng, damaged = np.random.default_rng(seed), clean.copy()
    at = tuple(rng.integers(0, side, count) for side in clean.shape[:2])
    damaged[at] = values[rng.integers(0, len(values), count)]
    return damaged


def salt_and_pepper(clean, share, seed=0):
    """Each sample for itself black or white with a chance of `share`."""
    drawn, damaged = np.random.default_rng(seed).random(clean.shape), clean.copy()
    damaged[drawn < share / 2] = 0
    damaged[drawn > 1 - share / 2] = 255
    return damaged


WHITE = np.full((1, 3), 255, np.uint8)
ANY = np.random.default_rng(9).integers(0, 256, (500, 3)).astype(np.uint8)


@pytest.mark.parametrize("values, least", [(WHITE, 45), (np.array([[0] * 3, [255] * 3], np.uint8), 42), (ANY, 38)])
def test_impulses_of_whole_pixels_are_replaced(astronaut, values, least):
    damaged = hit(astronaut, 3000, values)
    cleaned = np.asarray(remove_impulses(Image.fromarray(damaged)))
    assert psnr(astronaut, damaged) < 27 and psnr(astronaut, cleaned) > least
    sound = (damaged == astronaut).all(axis=2)
    assert (cleaned[sound] == astronaut[sound]).all(axis=1).mean() > 0.999


@pytest.mark.parametrize("share, least", [(0.01, 42), (0.05, 38), (0.2, 33)])
def test_salt_and_pepper_in_each_channel(astronaut, share, least):
    damaged = salt_and_pepper(astronaut, share)
    cleaned = np.asarray(remove_impulses(Image.fromarray(damaged)))
    assert psnr(astronaut, cleaned) > max(least, psnr(astronaut, median_filter(damaged, (3, 3, 1))) + 6)


def test_grey_pictures_and_what_is_not_hit(astronaut):
    grey = np.array(Image.fromarray(astronaut).convert("L"))
    damaged = hit(grey[:, :, None], 2000, np.array([[255]], np.uint8))
    mask, why = impulses.find_impulses(damaged)
    filled = impulses.fill(damaged, mask)
    assert (filled[~mask] == damaged[~mask]).all() and "impulses of extreme value" in why
    assert psnr(grey, filled[:, :, 0]) > 42
    image = Image.fromarray(damaged[:, :, 0]).convert("RGB")
    image.info["icc_profile"] = b"profile"
    cleaned = remove_impulses(image)
    samples = np.asarray(cleaned)
    assert cleaned.info == image.info and (samples == samples[:, :, :1]).all()


def test_clean_pictures_come_back_themselves(astronaut):
    for name in ("astronaut", "chelsea", "coffee", "camera", "rocket", "page", "text", "moon"):
        image = Image.fromarray(getattr(skimage.data, name)())
        assert remove_impulses(image) is image, name
    noisy = np.clip(astronaut + np.random.default_rng(0).normal(0, 12, astronaut.shape), 0, 255).astype(np.uint8)
    assert impulses.find_impulses(noisy)[0] is None


def test_points_that_are_content_are_left(astronaut):
    """White points in the same number and of the same kind, where something shows that no chance strewed them."""
    rng = np.random.default_rng(5)

    def why(samples):
        mask, told = impulses.find_impulses(samples)
        assert mask is None
        return told

    high = astronaut.copy()
    high[tuple(rng.integers(0, 200, (2, 700)))] = 255  # a corner: glitter, daisies
    assert "in some places only" in why(high)
    lattice = astronaut.copy()
    lattice[4::9, 4::9] = 255
    assert "regular grid" in why(lattice)
    snow = astronaut.astype(int) // 2
    snow[tuple(rng.integers(0, 512, (2, 3000)))] += rng.integers(60, 200, (3000, 1))
    assert "points of light or dots" in why(snow.clip(0, 255).astype(np.uint8))
    twilight = np.linspace(40, 120, 512)[:, None, None] + rng.normal(0, 1.5, (512, 512, 3))
    assert "before nothing else" in why(hit(twilight.astype(np.uint8), 3000, WHITE))
    night = (astronaut // 6).astype(np.uint8)
    assert why(hit(night, 3000, WHITE)) == impulses.NONE
    drawn = np.array(Image.fromarray(astronaut).quantize(32).convert("RGB"))
    assert "drawing" in why(hit(drawn, 3000, WHITE))


def test_large_pictures_are_judged_by_bands(astronaut):
    large = np.tile(astronaut, (3, 4, 1))
    assert impulses._bands(large).size <= 3 * impulses.LOOKED_AT < large.size
    damaged = hit(large, 36_000, WHITE)
    cleaned = np.asarray(denoise(Image.fromarray(damaged)))
    assert psnr(large, cleaned) > 44


def test_fill_without_sound_samples_near():
    samples = np.full((70, 70, 1), 9, np.uint8)
    assert (impulses.fill(samples, np.ones_like(samples, bool)) == 9).all()
    hole = np.zeros_like(samples, bool)
    hole[20:40, 20:40] = True
    assert (impulses.fill(samples, hole) == 9).all()
