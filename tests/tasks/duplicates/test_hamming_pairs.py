"""All pairs: complete against brute force, skew, equal codes, streaming, threads, new against known."""

import os

import faiss
import numpy as np
import pytest

from tasks.duplicates import hamming_pairs
from tasks.duplicates.hamming_pairs import TooManyPairs, collapse, iter_pairs, pairs_between, pairs_within


def brute(a: np.ndarray, b: np.ndarray | None, distance: int):
    """All pairs by comparing everything, in slices; b None: within a, i < j."""
    found = []
    others = a if b is None else b
    for start in range(0, a.size, 1000):
        apart = np.bitwise_count(a[start : start + 1000, None] ^ others[None, :])
        i, j = np.nonzero(apart <= distance)
        keep = np.ones(i.size, bool) if b is not None else i + start < j
        found.append(np.stack([i + start, j, apart[i, j]])[:, keep])
    return np.concatenate(found, axis=1)


def flat_index_pairs(codes: np.ndarray, distance: int):
    """The same by faiss's exhaustive binary index."""
    index = faiss.IndexBinaryFlat(64)
    rows = codes.view(np.uint8).reshape(-1, 8)
    index.add(rows)
    limits, apart, j = index.range_search(rows, distance + 1)
    i = np.repeat(np.arange(codes.size), np.diff(limits.astype(np.int64)))
    found = np.stack([i, j, apart.astype(np.int64)])[:, i < j]
    return found[:, np.lexsort((found[1], found[0]))]


def code_sets(n: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Random codes with planted close ones; the same squeezed to few distinct bits; half of them nearly constant."""
    random = np.random.default_rng(seed)
    even = random.integers(0, 2**64, n, dtype=np.uint64)
    for _ in range(n // 2):
        source, target = random.integers(0, n, 2)
        flips = random.choice(64, size=random.integers(0, 9), replace=False)
        even[target] = even[source] ^ np.bitwise_or.reduce(
            np.uint64(1) << flips.astype(np.uint64), initial=np.uint64(0)
        )
    return {
        "even": even,
        "narrow": even & np.uint64(0x00000000FF0F00FF),
        "half constant": np.where(random.random(n) < 0.5, even & np.uint64(0xFFFF), even),
        "few": random.integers(0, 40, n).astype(np.uint64),
    }


@pytest.mark.parametrize("distance", [0, 1, 2, 3, 5, 7, 8, 10])
@pytest.mark.parametrize("split", [False, True], ids=["plain", "every bucket split"])
def test_complete_against_brute_force(distance, split, monkeypatch):
    if split:  # small buckets and dear comparisons force bands and recursion on a small set
        monkeypatch.setattr(hamming_pairs, "BUCKET", 16)
        monkeypatch.setattr(hamming_pairs, "_COMPARE_NS", 300.0)
    for name, codes in code_sets(1500).items():
        np.testing.assert_array_equal(np.stack(pairs_within(codes, distance)), brute(codes, None, distance), name)
        new, known = codes[:200], codes[200:]
        np.testing.assert_array_equal(np.stack(pairs_between(new, known, distance)), brute(new, known, distance), name)
        np.testing.assert_array_equal(np.stack(pairs_between(known, new, distance)), brute(known, new, distance), name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["even", "half constant"])
def test_complete_on_fifty_thousand(kind):
    codes = code_sets(50_000)[kind]
    if kind == "half constant":
        codes = codes ^ (codes & np.uint64(0xFF)) << np.uint64(40)
    wanted = flat_index_pairs(codes, 3)
    assert wanted.shape[1] > 5_000
    np.testing.assert_array_equal(np.stack(pairs_within(codes, 3)), wanted)


def test_result_does_not_depend_on_threads():
    codes = code_sets(30_000)["even"]
    one, four = (pairs_within(codes, 3, threads=threads) for threads in (1, 4))
    for a, b in zip(one, four, strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(column.dtype == np.int64 for column in one)


def test_order_of_the_codes_changes_only_the_numbering():
    codes = code_sets(3000)["narrow"]
    shuffle = np.random.default_rng(3).permutation(codes.size)
    i, j, distance = pairs_within(codes[shuffle], 4)
    a, b = shuffle[i], shuffle[j]
    back = sorted(zip(np.minimum(a, b).tolist(), np.maximum(a, b).tolist(), distance.tolist(), strict=True))
    assert back == list(zip(*(column.tolist() for column in pairs_within(codes, 4)), strict=True))


def test_equal_codes_are_collapsed_and_expanded_in_chunks():
    codes = np.zeros(5000, np.uint64)
    codes[4000:] = 3
    with pytest.raises(TooManyPairs, match="streaming form"):
        pairs_within(codes, 2, most=1_000_000)
    total = 0
    for i, j, distance in iter_pairs(codes, 2):
        assert i.size <= hamming_pairs.CHUNK
        assert (i < j).all()
        np.testing.assert_array_equal(distance, 2 * ((i < 4000) & (j >= 4000)))
        total += i.size
    assert total == 5000 * 4999 // 2
    together = collapse(codes)
    assert together.codes.tolist() == [0, 3]
    assert together.starts.tolist() == [0, 4000, 5000]


def test_chunks_that_end_inside_a_row_go_on_there(monkeypatch):
    monkeypatch.setattr(hamming_pairs, "CHUNK", 700)
    codes = np.concatenate([np.zeros(60, np.uint64), np.full(50, 7, np.uint64), np.full(1, 2**63, np.uint64)])
    chunks = list(iter_pairs(codes, 3))
    assert max(i.size for i, _, _ in chunks) <= 700
    found = {(int(i), int(j)) for chunk in chunks for i, j in zip(*chunk[:2], strict=True)}
    assert len(found) == sum(i.size for i, _, _ in chunks) == brute(codes, None, 3).shape[1]


def test_many_close_codes_in_one_bucket_are_all_found():
    base = np.uint64(0x0123456789ABCDEF)
    ball = [base] + [base ^ np.uint64(1 << bit) for bit in range(64)]
    ball += [base ^ np.uint64((1 << a) | (1 << b)) for a in range(64) for b in range(a)]
    codes = np.array(ball, dtype=np.uint64)
    np.testing.assert_array_equal(np.stack(pairs_within(codes, 3)), brute(codes, None, 3))


def test_a_caller_that_stops_early_leaves_no_threads():
    import threading

    before = threading.active_count()
    stream = iter_pairs(code_sets(30_000)["narrow"], 3, threads=3)
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_edges_and_wrong_input():
    empty = np.empty(0, np.uint64)
    assert [column.size for column in pairs_within(empty, 3)] == [0, 0, 0]
    assert [column.size for column in pairs_within(np.array([5], np.uint64), 3)] == [0, 0, 0]
    assert [column.size for column in pairs_between(empty, np.array([5], np.uint64), 3)] == [0, 0, 0]
    assert pairs_within(np.array([0, 2**64 - 1], np.uint64), 64)[2].tolist() == [64]
    with pytest.raises(TypeError, match="uint64"):
        pairs_within(np.arange(4), 3)
    with pytest.raises(ValueError, match="0 to 64"):
        pairs_within(np.arange(4, dtype=np.uint64), 65)


@pytest.mark.server
def test_over_worker_processes_the_pairs_are_the_same():
    from dask.distributed import Client, LocalCluster

    from tasks.duplicates.hamming_pairs_dask import pairs_over_workers

    cluster = LocalCluster(n_workers=3, threads_per_worker=1, processes=True, dashboard_address=None)
    with cluster, Client(cluster) as client:
        assert len(set(client.run(os.getpid).values())) == 3
        for name, codes in code_sets(2000).items():
            on_workers = client.scatter(codes[:900], hash=False)
            chunks = [on_workers, codes[900:901], codes[901:901], codes[901:]]
            pieces = list(pairs_over_workers(client, chunks, 3, part=900))
            found = np.concatenate([np.stack(piece) for piece in pieces], axis=1)
            found = found[:, np.lexsort((found[1], found[0]))]
            np.testing.assert_array_equal(found, np.stack(pairs_within(codes, 3)), name)
        far = np.concatenate([np.stack(piece) for piece in pairs_over_workers(client, [codes[:300]], 10)], axis=1)
        assert far.shape[1] == pairs_within(codes[:300], 10)[0].size
