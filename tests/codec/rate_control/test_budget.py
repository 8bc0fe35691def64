"""Budgets are landed on and shared well, and keep the worst picture up."""

import math
import pickle

import numpy as np
import pytest

from codec.rate_control.budget import SAMPLE_LEVELS, BudgetTooSmall, RatePoint, allocate


def collection(n, seed=0, levels=SAMPLE_LEVELS):
    """Curves as smooth and unlike each other as photographs' are."""
    random = np.random.default_rng(seed)
    curves, pixels = [], []
    for _ in range(n):
        richness, area = random.lognormal(0, 0.6), int(random.integers(20_000, 2_000_000))

        def point(level, richness=richness, area=area):
            psnr = 27 - 4 * math.log2(richness) + 0.016 * level
            return RatePoint(
                level,
                int(area / 8 * 0.08 * richness * math.exp(3.1 * level / 1000)) + 200,
                255**2 * 10 ** (-psnr / 10),
            )

        curves.append([point(level) for level in levels])
        pixels.append(area)
    return curves, pixels


def pooled(allocation, pixels):
    return float(np.average(255**2 * 10 ** (-allocation.psnr / 10), weights=pixels))


@pytest.mark.parametrize("n", [1, 2, 7, 300])
@pytest.mark.parametrize("part", [0.15, 0.6])
def test_budget_is_landed_on(n, part):
    curves, pixels = collection(n)
    budget = sum(c[0].bytes for c in curves) * (1 - part) + sum(c[-1].bytes for c in curves) * part
    got = allocate(curves, pixels, budget)
    assert 0.98 * budget <= got.total_bytes <= budget
    assert got.levels.min() >= 0 and got.levels.max() <= 1000


def test_pooled_quality_beats_one_level_for_all():
    levels = tuple(range(0, 1001, 50))
    curves, pixels = collection(60, levels=levels)
    alike = allocate([[c[10]] for c in curves], pixels, 10**12)
    shared = allocate(curves, pixels, alike.total_bytes / 0.993, protect=100.0)
    assert shared.total_bytes <= alike.total_bytes * 1.0001
    assert pooled(shared, pixels) < pooled(alike, pixels)
    even = allocate(curves, pixels, alike.total_bytes / 0.993, protect=0.0)
    assert pooled(shared, pixels) < 0.8 * pooled(even, pixels)
    # no exchange of bytes between two pictures can help: slopes are equal within the grid's step
    slopes = []
    for curve, level in zip(curves, shared.levels, strict=True):
        if 50 < level < 950:
            below, above = (curve[int(level) // 50 + k] for k in (0, 1))
            slopes.append((below.mse - above.mse) / (above.bytes - below.bytes))
    slopes = np.array(slopes) * np.array([p for p, v in zip(pixels, shared.levels, strict=True) if 50 < v < 950])
    assert np.ptp(np.log(slopes)) < 0.5


def test_the_worst_picture_is_protected():
    curves, pixels = collection(80, seed=2)
    budget = sum(c[3].bytes for c in curves)
    free = allocate(curves, pixels, budget, protect=100.0)
    guarded = allocate(curves, pixels, budget, protect=1.0)
    assert guarded.psnr[~guarded.under_floor].min() >= guarded.floor - 1e-6
    assert guarded.psnr.min() > free.psnr.min() + 1
    assert pooled(guarded, pixels) >= pooled(free, pixels)
    assert guarded.total_bytes <= budget


def test_generous_and_impossible_budgets():
    curves, pixels = collection(5)
    assert (allocate(curves, pixels, 10**12).levels == 1000).all()
    with pytest.raises(BudgetTooSmall, match="lowest level of all 5 pictures") as caught:
        allocate(curves, pixels, 1000)
    assert caught.value.least == sum(c[0].bytes for c in curves)
    assert pickle.loads(pickle.dumps(caught.value)).least == caught.value.least


def test_odd_samples():
    curves, pixels = collection(6)
    curves[0] = curves[0][:1]  # one sample alone: that level or nothing
    curves[2] = [RatePoint(level, 500, 0.0) for level in (0, 500, 1000)]  # perfect at any price
    curves[3] = [*curves[3], curves[3][-1]]
    budget = sum(c[-1].bytes for c in curves) * 0.4
    got = allocate(curves, pixels, budget)
    assert got.levels[0] == curves[0][0].level and got.levels[2] == 0
    assert 0.98 * budget <= got.total_bytes <= budget
    assert len(allocate([], [], 100).levels) == 0


def test_wrong_arguments():
    curves, pixels = collection(2)
    with pytest.raises(ValueError, match="2 curves for 1"):
        allocate(curves, pixels[:1], 1e9)
    with pytest.raises(ValueError, match="no sample"):
        allocate([[], curves[0]], pixels, 1e9)


def test_same_answer_whatever_the_order():
    curves, pixels = collection(30, seed=9)
    budget = sum(c[3].bytes for c in curves)
    order = np.random.default_rng(0).permutation(30)
    plain = allocate(curves, pixels, budget)
    shuffled = allocate([curves[i] for i in order], [pixels[i] for i in order], budget)
    assert np.abs(plain.levels[order] - shuffled.levels).max() <= 1
