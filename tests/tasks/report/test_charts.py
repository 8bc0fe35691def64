"""Axes and marks: round ticks inside, every value counted."""

import re

import numpy as np
import pytest

from tasks.report import charts


@pytest.mark.parametrize("low, high", [(0, 1), (0.98, 0.9804), (-3, 1e6), (30.1, 30.100001), (5, 5)])
def test_ticks_are_round_inside_and_told_apart(low, high):
    values = charts.ticks(low, high)
    assert 1 <= len(values) <= 8 and all(low - 1e-9 <= v <= high + 1e-9 for v in values)
    texts = charts.labels(values)
    assert len(set(texts)) == len(texts)


def test_histogram_counts_every_value():
    values = np.random.default_rng(1).normal(35, 3, 5000)
    svg = charts.histogram(values, x_label="PSNR in dB", aim=60.0)
    counts = [int(n.replace(",", "")) for n in re.findall(r": ([\d,]+) pictures</title>", svg)]
    assert sum(counts) == 5000 and "target 60" in svg
    assert charts.histogram(np.array([0.98]), x_label="x").count("<g ") == 1
