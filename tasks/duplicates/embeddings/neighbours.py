"""Which vectors are neighbours: pairs that may be one picture cut from the other, proposed through faiss.

A proposal is no duplicate yet: local_features.py looks for the same points in both pictures, and in the night the
second look of rules.py still decides, because only what comes back at 30 dB may be given up.
"""

import numpy as np

EXACT_SEARCH = 50_000_000_000  # comparisons up to which all are made, minutes of one core; beyond, cells may pay
TRAINED_ON, ROUNDS = 40, 10  # vectors a cell, k-means rounds


# -- neighbours


def nearest(vectors: np.ndarray, known: np.ndarray, top: int, *, exact: int = EXACT_SEARCH):
    """The `top` known vectors closest to each: (similarity float32 [n,top], index int64 [n,top]), closest first; index
    -1 where there are fewer. Both float32, of length 1. Where that takes more than `exact` comparisons, and cells fewer
    (their making included: not for a night's few against many), faiss searches in cells; about 1 in 100 true
    neighbours is then missed."""
    import faiss

    vectors, known = (np.ascontiguousarray(part, dtype=np.float32) for part in (vectors, known))
    if vectors.ndim != 2 or known.ndim != 2 or vectors.shape[1] != known.shape[1]:
        raise ValueError(f"vectors {vectors.shape} and known ones {known.shape} are not of the same network")
    n = len(vectors)
    if not n or not len(known):
        return np.full((n, top), -np.inf, np.float32), np.full((n, top), -1, np.int64)
    cells = max(1, int(4 * len(known) ** 0.5))
    looked_into = max(1, cells // 32)
    in_cells = ROUNDS * TRAINED_ON * cells**2 + len(known) * cells + n * len(known) * looked_into // cells
    if n * len(known) <= max(exact, in_cells):
        return faiss.knn(vectors, known, top, metric=faiss.METRIC_INNER_PRODUCT)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(known.shape[1]), known.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = ROUNDS
    index.train(known[:: max(1, len(known) // (TRAINED_ON * cells))])
    index.nprobe = looked_into
    index.add(known)
    return index.search(vectors, top)


def embedding_candidates(
    new: np.ndarray, known: np.ndarray | None = None, *, least: float, top: int = 16, exact: int = EXACT_SEARCH
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs worth confirming: (i, j, similarity), int64, int64 and float32 [m], sorted by i, j, every pair once.

    new: float32 [n,d] of tonight; known: [k,d] of earlier keepers, or None. i < j; rows of `known` count from n on,
    and are not paired with each other. A pair is proposed where one is among the other's `top` nearest with a
    cosine of at least `least` (`proposed_from(kind)`); a new row equals itself, which is not counted.
    """
    new = np.asarray(new, np.float32)
    n = len(new)
    parts = []
    for others, offset, wanted in ((new, 0, top + 1), (known, n, top)):
        if others is None or not len(others) or not n:
            continue
        similarity, index = nearest(new, others, min(wanted, len(others)), exact=exact)
        i = np.repeat(np.arange(n), index.shape[1])
        j, s = index.ravel(), similarity.ravel()
        kept = (j >= 0) & (s >= least) & (i != j + offset)
        parts.append((i[kept], j[kept] + offset, s[kept]))
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    i, j, s = (np.concatenate(column) for column in zip(*parts, strict=True))
    low, high = np.minimum(i, j), np.maximum(i, j)
    order = np.lexsort((high, low))
    low, high, s = low[order].astype(np.int64), high[order].astype(np.int64), s[order]
    once = np.r_[True, (np.diff(low) != 0) | (np.diff(high) != 0)] if len(low) else np.empty(0, bool)
    return low[once], high[once], s[once]
