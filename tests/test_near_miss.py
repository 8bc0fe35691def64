"""The generator of near misses and true copies: enough of each, the same every time, and what they are said to be."""

import importlib.util
import io
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def _load():
    spec = importlib.util.spec_from_file_location("near_miss", Path(__file__).with_name("near_miss.py"))
    module = sys.modules["near_miss"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


near_miss = _load()


def opened(data):
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image


@pytest.fixture(scope="module")
def misses():
    return list(near_miss.near_misses())


@pytest.fixture(scope="module")
def copies():
    return list(near_miss.true_copies())


@pytest.mark.slow
def test_there_are_enough_of_each_kind(misses, copies):
    assert len(misses) >= 300 and len(copies) >= 300
    assert min(Counter(pair.kind for pair in misses).values()) >= 15
    assert {pair.kind for pair in misses} == {kind.__name__ for kind in near_miss.KINDS}
    counts = Counter(pair.kind for pair in copies)
    assert set(counts) == {"jpeg", "webp", "avif", "format", "reduced", "enlarged"} and min(counts.values()) >= 40
    qualities = {pair.quality for pair in copies if pair.kind == "jpeg"}
    assert {30, 95} <= qualities and {round(pair.scale, 2) for pair in copies} >= {0.25, 4.0}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_pairs(misses, copies):
    assert list(near_miss.near_misses(per_kind=2)) == [p for i, p in enumerate(misses) if i % near_miss.PER_KIND < 2]
    assert next(near_miss.true_copies()) == copies[0]
    other = next(near_miss.near_misses(seed=1, per_kind=1))
    assert other != misses[0]


@pytest.mark.parametrize("kind", near_miss.KINDS, ids=lambda kind: kind.__name__)
def test_a_near_miss_differs_where_a_person_sees_it(kind):
    for number in range(near_miss.PER_KIND):
        first, second, detail = near_miss.clean_pair(kind, number)
        assert first.size == second.size and first.mode == second.mode
        difference = np.abs(np.asarray(first, np.float64) - np.asarray(second, np.float64))
        height, width = (side // 4 * 4 for side in difference.shape[:2])
        blocks = difference[:height, :width].reshape(height // 4, 4, width // 4, 4, -1).mean((1, 3))
        assert blocks.max() >= 5, (number, detail)


@pytest.mark.slow
def test_pairs_are_image_files_of_the_sizes_they_say(misses, copies):
    for pair in misses[::7] + copies[::5]:
        first, second = opened(pair.first), opened(pair.second)
        assert second.width == pytest.approx(first.width * pair.scale, abs=1)
        assert second.height == pytest.approx(first.height * pair.scale, abs=1)


@pytest.mark.slow
def test_copies_show_the_same_everywhere(copies):
    for pair in copies[::3]:
        first, second = opened(pair.first).convert("RGB"), opened(pair.second).convert("RGB")
        small = [64 * side // max(first.size) for side in first.size]
        a, b = (np.asarray(one.resize(small, Image.Resampling.BOX), np.float64) for one in (first, second))
        assert np.abs(a - b).mean() < 12, pair[:2]


@pytest.mark.slow
def test_no_near_miss_is_taken_for_a_copy_and_copies_are():
    """A part of what tests/bench/evaluate_agreement.py tries in full."""
    from tasks.duplicates.agreement import agreement, original_of

    for pair in near_miss.near_misses(seed=2, per_kind=3):
        first, second = original_of(pair.first), original_of(pair.second)
        assert not agreement(first, second).agrees, pair[:2]
        assert first.image.size != second.image.size or not agreement(second, first).agrees, pair[:2]
    seen = {True: [], False: []}
    for pair in list(near_miss.true_copies(seed=2))[::6]:
        asked = (pair.quality or 100) >= 50
        seen[asked].append(agreement(original_of(pair.first), original_of(pair.second)).agrees)
    assert np.mean(seen[True]) >= 0.9 and np.mean(seen[False]) >= 0.8
