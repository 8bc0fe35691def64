"""SSIMULACRA2 against scores that the package `ssimulacra2` 0.3.0 (PyPI) gave for the same pairs.

The pairs need nothing but skimage's photographs, numpy and scipy, so that no codec's version moves them;
tests/bench/bench_ssimulacra2.py compares with the package itself, on coded pictures, where that is installed.
"""

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn, idctn
from scipy.ndimage import gaussian_filter
from skimage import data

from codec.metrics import ssimulacra2 as module
from codec.metrics.ssimulacra2 import Reference, ssimulacra2


def quantised(array, step):
    """As JPEG loses: 8x8 blocks' cosine coefficients rounded to multiples of `step`."""
    planes = np.atleast_3d(array).astype(np.float64)
    height, width = (side // 8 * 8 for side in planes.shape[:2])
    blocks = planes[:height, :width].reshape(height // 8, 8, width // 8, 8, -1)
    coefficients = dctn(blocks, axes=(1, 3), norm="ortho")
    planes[:height, :width] = idctn(np.rint(coefficients / step) * step, axes=(1, 3), norm="ortho").reshape(
        height, width, -1
    )
    return np.clip(np.rint(planes), 0, 255).astype(np.uint8).reshape(array.shape)


def noisy(array, sigma):
    noise = np.random.default_rng(3).normal(0, sigma, array.shape)
    return np.clip(np.rint(array + noise), 0, 255).astype(np.uint8)


def blurred(array, sigma):
    smooth = gaussian_filter(array.astype(np.float64), (sigma, sigma, 0)[: array.ndim])
    return np.clip(np.rint(smooth), 0, 255).astype(np.uint8)


def bordered(array, amount):
    out = array.astype(np.int16)
    out[:, :3] += amount
    out[-3:] -= amount
    return np.clip(out, 0, 255).astype(np.uint8)


PAIRS = [
    # photograph, rows, columns, what was done to it, score of the package
    ("astronaut", slice(0, 512), slice(0, 512), quantised, 24, 74.7868),
    ("astronaut", slice(100, 357), slice(80, 399), quantised, 60, 46.5584),
    ("coffee", slice(0, 400), slice(0, 600), blurred, 0.7, 58.9019),
    ("coffee", slice(30, 163), slice(200, 331), noisy, 6, 61.2343),
    ("chelsea", slice(0, 300), slice(0, 451), noisy, 25, -6.9523),
    ("chelsea", slice(50, 150), slice(100, 164), bordered, 30, 75.3315),
    ("camera", slice(0, 512), slice(0, 512), quantised, 30, 48.2715),
    ("camera", slice(100, 165), slice(200, 299), blurred, 1.2, 83.1009),
    ("astronaut", slice(0, 8), slice(200, 208), quantised, 30, 97.4150),
    ("astronaut", slice(100, 115), slice(150, 320), quantised, 30, 88.9396),
    ("chelsea", slice(80, 200), slice(100, 109), noisy, 4, 95.6749),
    ("coffee", slice(0, 31), slice(300, 316), blurred, 0.5, 95.7051),
]


def pair(name, rows, columns, change, amount):
    original = getattr(data, name)()[rows, columns]
    return original, change(original, amount)


@pytest.mark.parametrize("name, rows, columns, change, amount, score", PAIRS)
def test_scores_are_those_of_the_package(name, rows, columns, change, amount, score):
    original, decoded = pair(name, rows, columns, change, amount)
    assert ssimulacra2(original, decoded) == pytest.approx(score, abs=0.01)
    assert ssimulacra2(Image.fromarray(original), Image.fromarray(decoded)) == ssimulacra2(original, decoded)


def test_what_is_kept_of_the_original_changes_nothing():
    original, decoded = pair(*PAIRS[4][:5])
    kept, anew = Reference(original), Reference(original, kept_pixels=0)
    for other in (decoded, original, quantised(original, 40), decoded):
        score, tiles = kept.score_and_tiles(other)
        again, same_tiles = anew.score_and_tiles(other)
        assert score == pytest.approx(again, abs=1e-4) and np.allclose(tiles, same_tiles, atol=1e-3)
        assert kept.score(other) == score


def test_equal_pictures_have_100_and_worse_ones_less():
    original = data.astronaut()[:200, :300]
    reference = Reference(original)
    assert reference.score(original) == 100
    scores = [reference.score(quantised(original, step)) for step in (2, 8, 20, 50, 120)]
    assert scores == sorted(scores, reverse=True) and 100 > scores[0] > 90 and scores[-1] < 30


def test_grey_counts_as_equal_channels():
    original, decoded = pair(*PAIRS[6][:5])
    three = [np.repeat(plane[:, :, None], 3, 2) for plane in (original, decoded)]
    assert ssimulacra2(original, decoded) == pytest.approx(ssimulacra2(*three), abs=1e-3)


def test_alpha_is_left_out():
    original, decoded = pair(*PAIRS[3][:5])
    alpha = np.full((*original.shape[:2], 1), 7, np.uint8)
    with_alpha = [np.concatenate([original, alpha], 2), np.concatenate([decoded, 255 - alpha], 2)]
    assert ssimulacra2(*with_alpha) == ssimulacra2(original, decoded)


def test_a_damage_counts_alike_beside_seams_of_bands_and_strips():
    tile = np.random.default_rng(0).integers(60, 200, (64, 64, 3)).astype(np.uint8)
    original = np.tile(tile, (10, 12, 1))  # all places that are whole tiles apart have the same surroundings
    scores = []
    for row, column in ((192, 192), (256, 256), (320, 512), (448, 576)):
        decoded = original.copy()
        decoded[row - 3 : row + 3, column - 3 : column + 3] ^= 255
        scores.append(ssimulacra2(original, decoded))
    assert max(scores) - min(scores) < 1e-3


def test_the_tile_that_was_damaged_is_the_worst():
    original = data.coffee()
    decoded = original.copy()
    decoded[200:230, 330:360] = blurred(original, 4)[200:230, 330:360]
    _, tiles = Reference(original).score_and_tiles(decoded)
    assert tiles.shape == (7, 10) and tiles.dtype == np.float32
    assert np.unravel_index(tiles.argmin(), tiles.shape) == (3, 5)
    assert tiles[0, 0] == 100 and tiles[-1, -1] == 100  # far from it, the last ones smaller than 64 pixels


@pytest.mark.parametrize("shape", [(7, 100, 3), (100, 7, 3), (1, 1), (0, 20, 3)])
def test_small_pictures_are_refused_with_another_rule(shape):
    with pytest.raises(ValueError, match="undefined for .* PSNR"):
        ssimulacra2(np.zeros(shape, np.uint8), np.zeros(shape, np.uint8))


def test_pictures_that_cannot_be_compared_are_refused():
    original = data.chelsea()[:64, :64]
    for other in (original[:63], original[:, :, 0].copy()):
        with pytest.raises(ValueError, match="different shapes"):
            Reference(original).score(other)
    with pytest.raises(ValueError, match="float"):
        Reference(original.astype(np.float32))


def test_weights_are_read_on_without_a_gap_where_scales_are_missing():
    scales = module._scales(16, 40, 3)
    assert [(scale.height, scale.width, scale.side) for scale in scales] == [(16, 40, 64), (8, 20, 32)]
    flat = np.concatenate([scale.weights[c].ravel() for c in range(3) for scale in scales])
    assert np.array_equal(flat, module.WEIGHTS.ravel()[:36])
    assert len(module._scales(15, 15, 3)) == 2 and len(module._scales(14, 300, 3)) == 1
    assert [scale.height for scale in module._scales(512, 512, 3)] == [512, 256, 128, 64, 32, 16]
