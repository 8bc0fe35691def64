"""All pairs within a Hamming distance over Dask workers, for more codes than one machine should hold.

The bands of hamming_pairs.py again: for each choice of bands every chunk of codes is split by the bits of those bands,
equal bits go to the same part, and each part is searched on some worker. A pair belongs to exactly one choice and so to
one part, so the merge is a concatenation. Codes stay on the workers; only pairs come back.
"""

from collections.abc import Iterator
from itertools import combinations
from operator import getitem

import numpy as np

from tasks.duplicates import hamming_pairs

PART = 4_000_000  # codes that one task searches at a time, about: 200 MB


def _described(codes: np.ndarray) -> tuple[int, np.ndarray]:
    """Size of a chunk and a sample of it."""
    return codes.size, np.ascontiguousarray(codes[:: max(1, codes.size // 4096)])


def _split(codes: np.ndarray, offset: int, bits: np.ndarray, parts: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(codes, places in the whole) of a chunk for each part; equal bits fall into the same part."""
    codes = np.ascontiguousarray(codes, dtype=np.uint64)
    spread = hamming_pairs.bits_of(codes, bits).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(33)
    part = (spread % np.uint64(parts)).astype(np.int64)
    order = np.argsort(part, kind="stable")
    ends = np.cumsum(np.bincount(part, minlength=parts))[:-1]
    return [(codes[places], places + offset) for places in np.split(order, ends)]


def _search_part(pieces: list[tuple[np.ndarray, np.ndarray]], distance: int, plan, chosen) -> np.ndarray:
    """int64[m, 3] (i, j, distance) of one part for one choice of bands."""
    codes = np.concatenate([piece[0] for piece in pieces])
    places = np.concatenate([piece[1] for piece in pieces])
    found = []
    for i, j, apart in hamming_pairs.pairs_of_choice(codes, distance, plan, chosen):
        a, b = places[i], places[j]
        found.append(np.stack([np.minimum(a, b), np.maximum(a, b), apart], axis=1))
    return np.concatenate(found) if found else np.empty((0, 3), np.int64)


def pairs_over_workers(client, chunks: list, distance: int, *, part: int = PART) -> Iterator[hamming_pairs.Pairs]:
    """All pairs within `distance` among codes that lie in chunks: (i, j, distance) pieces, i < j, each pair once, in no
    stated order; i and j count through the chunks one after the other.

    client: dask.distributed.Client; chunks: uint64 arrays, or futures of such on the client's workers, so that the
    whole need not pass through this process. `part`: codes that one task handles at a time.
    """
    from dask.distributed import Future, as_completed

    chunks = [
        chunk if isinstance(chunk, Future) else client.scatter(hamming_pairs.as_codes(chunk), hash=False)
        for chunk in chunks
    ]
    described = client.gather([client.submit(_described, chunk, pure=False) for chunk in chunks])
    sizes = [size for size, _ in described]
    total = sum(sizes)
    if total < 2:
        return
    sample = np.concatenate([codes for _, codes in described])
    parts = max(1, -(-total // part))
    plan = hamming_pairs.plan_of(sample, total, distance)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    for chosen in combinations(range(len(plan[0])), plan[1]):
        bits = hamming_pairs.bits_of_choice(plan, chosen)
        splits = [
            client.submit(_split, chunk, offset, bits, parts, pure=False)
            for chunk, offset in zip(chunks, offsets[:-1], strict=True)
        ]
        searches = []
        for number in range(parts):
            pieces = [client.submit(getitem, split, number, pure=False) for split in splits]
            searches.append(client.submit(_search_part, pieces, distance, plan, chosen, pure=False))
            del pieces
        del splits
        searches = as_completed(searches)
        for search in searches:
            rows = search.result()
            search.release()
            for start in range(0, len(rows), hamming_pairs.CHUNK):
                piece = rows[start : start + hamming_pairs.CHUNK]
                yield tuple(np.ascontiguousarray(piece[:, column]) for column in range(3))
