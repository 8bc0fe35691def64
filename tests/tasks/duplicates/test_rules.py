"""Keeper rule, groups, true resolution."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from tasks.duplicates import groups
from tasks.duplicates.groups import assign, candidates, choose_keepers
from tasks.duplicates.hamming_pairs import pairs_within
from tasks.duplicates.rules import brought_to, keeper_rank, keeper_reason, true_pixels


def photograph(name: str) -> Image.Image:
    return Image.open(Path(skimage.data.__file__).parent / name).convert("RGB")


def row(**changes) -> dict:
    plain = {
        "key": "b.jpg",
        "width": 800,
        "height": 600,
        "format": "JPEG",
        "source_bytes": 90_000,
        "exif_bytes": 100,
        "modified": datetime(2024, 5, 1, tzinfo=UTC),
    }
    return plain | changes


@pytest.mark.parametrize(
    ("better", "reason"),
    [
        ({"earlier_keeper": True, "source_bytes": 80_000, "key": "z"}, "earlier night"),
        ({"width": 1600, "height": 1200, "format": "GIF"}, "larger: 1600 × 1200 against 800 × 600"),
        ({"format": "PNG", "source_bytes": 10}, "less lossy format: PNG against JPEG"),
        ({"source_bytes": 90_001, "exif_bytes": 0}, "more bytes: 90,001 against 90,000"),
        ({"exif_bytes": 2000, "key": "z"}, "more EXIF: 2,000 bytes against 100"),
        ({"modified": datetime(2019, 1, 1, tzinfo=UTC), "key": "z"}, "older"),
        ({"key": "a.jpg"}, "first by key"),
    ],
)
def test_keeper_rule_in_order(better, reason):
    keeper, member = row(**better), row()
    assert min(member, keeper, key=keeper_rank) is keeper
    assert reason in keeper_reason(keeper, member)


def test_an_undecodable_copy_never_keeps():
    broken = row(error="OSError: truncated", width=None, height=None, source_bytes=10**9)
    assert keeper_rank(row()) < keeper_rank(broken)
    assert "can't be decoded" in keeper_reason(row(), broken)


def test_an_enlarged_copy_ranks_by_its_true_resolution():
    enlarged = row(width=1600, height=1200, true_pixels=800 * 600 // 2)
    assert keeper_rank(row()) < keeper_rank(enlarged)
    assert keeper_reason(row(), enlarged) == "finer detail: 1600 × 1200 was enlarged"
    as_fine = row(width=1600, height=1200, true_pixels=800 * 600, source_bytes=10**6)
    assert keeper_reason(row(), as_fine) == "as much detail in fewer pixels: 800 × 600 against 1600 × 1200"


def reference_groups(n, rank, pairs, confirmed) -> list[int]:
    """The rule of groups.py said again, slowly: best rank first, the nearest confirmed keeper, else stand alone."""
    near = {r: [] for r in range(n)}
    for i, j, distance in zip(*(column.tolist() for column in pairs), strict=True):
        near[i].append((distance, rank[j], j))
        near[j].append((distance, rank[i], i))
    keeper = {}
    for r in sorted(range(n), key=rank.__getitem__):
        choices = [other for _, other_rank, other in sorted(near[r]) if other_rank < rank[r] and keeper[other] == -1]
        keeper[r] = next((other for other in choices if confirmed(other, r)), -1)
    return [keeper[r] for r in range(n)]


def close_codes(n: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    codes = random.integers(0, 2**64, n, dtype=np.uint64)
    for _ in range(n):
        source, target = random.integers(0, n, 2)
        codes[target] = codes[source] ^ np.uint64(1 << int(random.integers(0, 64)))
    return codes


def test_groups_follow_the_rule_and_ask_little():
    n = 300
    codes = close_codes(n, 5)
    random = np.random.default_rng(6)
    rank = [(int(random.integers(0, 40)), f"key {r}") for r in range(n)]
    verdict = random.random((n, n)) < 0.6
    pairs = pairs_within(codes, 4)
    asked = []

    def confirm(keepers, members):
        asked.extend(zip(keepers.tolist(), members.tolist(), strict=True))
        return verdict[keepers, members]

    assert assign(n, rank, pairs).tolist() == reference_groups(n, rank, pairs, lambda a, b: True)
    wanted = reference_groups(n, rank, pairs, lambda a, b: verdict[a, b])
    assert choose_keepers(n, rank, pairs, confirm).tolist() == wanted
    assert len(asked) == len(set(asked)) <= pairs[0].size
    assert choose_keepers(n, rank, candidates(codes, rank, 4), confirm).tolist() == wanted


def test_groups_do_not_depend_on_order():
    n = 200
    codes = close_codes(n, 8)
    rank = [(r * 37 % 11, f"key {r:03}") for r in range(n)]
    keeper = assign(n, rank, pairs_within(codes, 4))
    shuffle = np.random.default_rng(9).permutation(n)
    i, j, distance = pairs_within(codes[shuffle], 4)
    mixed = np.random.default_rng(10).permutation(i.size)
    again = assign(n, [rank[r] for r in shuffle], (j[mixed], i[mixed], distance[mixed]))
    for place, original in enumerate(shuffle.tolist()):
        wanted = keeper[original]
        assert (again[place] == -1) == (wanted == -1)
        assert wanted == -1 or shuffle[again[place]] == wanted


def test_groups_are_stars_not_chains():
    codes = np.array([0b0, 0b111, 0b111111], dtype=np.uint64)  # A near B, B near C, A far from C
    pairs = pairs_within(codes, 3)
    assert assign(3, [0, 1, 2], pairs).tolist() == [-1, 0, -1]
    assert assign(3, [1, 0, 2], pairs).tolist() == [1, -1, 1]


def test_a_crowd_of_equal_codes_costs_few_pairs():
    n = 20_000
    codes, rank = np.zeros(n, np.uint64), np.arange(n)[::-1].copy()
    offered = candidates(codes, rank, 3, fan=8)
    assert offered[0].size < 8 * n
    keeper = assign(n, rank, offered)
    assert keeper[n - 1] == -1 and (keeper[: n - 1] == n - 1).all()
    rounds = []

    def nothing_is_alike(keepers, members):
        rounds.append(keepers.size)
        return np.zeros(keepers.size, bool)

    assert (choose_keepers(n, rank, offered, nothing_is_alike, tries=3) == -1).all()
    assert len(rounds) <= 4 and sum(rounds) <= 3 * n


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
def test_what_looks_alike_is_not_asked_about_one_by_one(share):
    """Two hundred pictures that all look like one another: few rounds, the outcome of asking one pair at a time."""
    n = 200
    i, j = np.triu_indices(n, 1)
    pairs = i, j, np.full(i.size, 3)
    answers = np.random.default_rng(4).random((n, n)) < share
    rounds = []

    def confirm(keepers, members):
        rounds.append(len(keepers))
        return answers[keepers, members]

    found = choose_keepers(n, list(range(n)), pairs, confirm)
    wanted = np.full(n, -1)
    for row_ in range(n):  # by definition: the first of its better-ranked keepers, at most sixteen, that is a copy
        for other in [k for k in range(row_) if wanted[k] < 0][: groups.TRIES]:
            if answers[other, row_]:
                wanted[row_] = other
                break
    assert found.tolist() == wanted.tolist()
    assert len(rounds) <= groups.LAZY + 8 and sum(rounds) <= 2 * groups.TRIES * n


def test_wrong_pairs_and_answers_are_named():
    pairs = (np.array([0]), np.array([5]), np.array([1]))
    with pytest.raises(ValueError, match=r"outside 0\.\.2"):
        assign(3, [0, 1, 2], pairs)
    with pytest.raises(ValueError, match="confirm answered"):
        choose_keepers(6, list(range(6)), pairs, lambda keepers, members: np.ones(3, bool))


def test_a_much_better_picture_goes_before_an_earlier_keeper():
    keeper = row(earlier_keeper=True)
    assert keeper_rank(keeper) < keeper_rank(row(source_bytes=110_000)), "a little larger file is no reason"
    assert keeper_rank(row(source_bytes=120_000)) < keeper_rank(keeper), "a quarter more of bytes is"
    assert keeper_rank(row(format="PNG")) < keeper_rank(keeper)
    enlarged = row(earlier_keeper=True, true_pixels=120_000)
    assert keeper_rank(row()) < keeper_rank(enlarged) and "finer detail" in keeper_reason(row(), enlarged)


def test_a_keeper_at_a_members_size_and_mode():
    image = photograph("chelsea.png")
    assert brought_to(image, (90, 60), "L").mode == "L" and brought_to(image, (90, 60), "L").size == (90, 60)
    assert brought_to(image, image.size, "RGB") is image


def test_true_pixels_of_an_enlargement():
    image = photograph("coffee.png")
    double = image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC)
    assert true_pixels(image) == image.width * image.height
    assert true_pixels(double) == image.width * image.height
    assert true_pixels(Image.new("RGB", (500, 500), "white")) == 250_000
    for size in ((1, 1), (2, 1), (1, 40), (17, 16)):
        assert true_pixels(Image.effect_noise(size, 60)) == size[0] * size[1]
