"""From close pairs to groups: who keeps, who is a copy of whom.

A group is a star: each member is close to its keeper itself, never only to another member, so nothing chains.
Rows are taken from the best rank down; a row becomes a member of the nearest keeper among its better-ranked
neighbours that the second look confirms, else a keeper. The outcome depends on the ranks and the pairs alone, not
on the order in which rows or pairs come, nor on how the confirmations are spread over workers.

Finding pairs stands in hamming_pairs.py; ranking and the second look itself in rules.py.
"""

from collections.abc import Callable

import numpy as np
from numba import njit

from tasks.duplicates import hamming_pairs
from tasks.machine import cores

TRIES = 16  # keepers that a row is held against before it stands for itself
LAZY = 4  # rounds in which a row waits for its better-ranked neighbours; after these it asks about all it may need
FAN = 32  # of rows with equal codes, only so many of the best ranked are offered as keepers

_OPEN, _KEEPER, _MEMBER = 0, 1, 2
_UNKNOWN, _YES, _NO = 0, 1, 2


def places(rank) -> np.ndarray:
    """int64[n]: place of each row when sorted by rank, best (smallest) first; equal ranks keep their order."""
    n = len(rank)
    order = rank.argsort(kind="stable") if isinstance(rank, np.ndarray) else sorted(range(n), key=rank.__getitem__)
    place = np.empty(n, np.int64)
    place[np.asarray(order, dtype=np.int64)] = np.arange(n)
    return place


@njit(cache=True)
def _fan_out(rows, starts, members, place, fan, out, writing):
    """Pairs (better, worse, distance) of `rows` of distinct codes; members of a code stand best first."""
    n = 0
    for r in range(rows.shape[0]):
        u, v, apart = rows[r]
        for a in range(starts[u], starts[u + 1]):
            x = members[a]
            first_x = a - starts[u] < fan
            for b in range(a + 1 if u == v else starts[v], starts[v + 1]):
                first_y = b - starts[v] < fan
                if not first_y and not first_x:
                    break
                y = members[b]
                if place[x] < place[y]:
                    better, worse, offered = x, y, first_x
                else:
                    better, worse, offered = y, x, first_y
                if offered:
                    if writing:
                        out[n, 0], out[n, 1], out[n, 2] = better, worse, apart
                    n += 1
    return n


def candidates(
    codes: np.ndarray, rank, distance: int, *, fan: int = FAN, threads: int | None = None
) -> hamming_pairs.Pairs:
    """Pairs worth a second look: (better, worse, distance), int64[m] each.

    All pairs within `distance`, but among rows with one and the same code only the `fan` best ranked are offered
    as keepers, so that a million equal codes (blank pictures) cost millions of pairs, not half a trillion.
    """
    place = places(rank)
    together = hamming_pairs.collapse(codes)
    code_of = np.repeat(np.arange(together.codes.size), np.diff(together.starts))
    members = together.members[np.lexsort((place[together.members], code_of))].astype(np.int64)
    found = [hamming_pairs.equal_rows(together)]
    found += list(hamming_pairs.distinct_pairs(together.codes, together.codes, distance, threads or cores()))
    parts = []
    nothing = np.empty((0, 3), np.int64)
    for rows in found:
        n = _fan_out(rows, together.starts, members, place, fan, nothing, False)
        part = np.empty((n, 3), np.int64)
        _fan_out(rows, together.starts, members, place, fan, part, True)
        parts.append(part)
    merged = np.concatenate(parts)
    order = np.lexsort((merged[:, 1], merged[:, 0]))
    i, j, apart = (np.ascontiguousarray(merged[order, column]) for column in range(3))
    return i, j, apart


@njit(cache=True)
def _advance(order, starts, neighbours, answers, state, keeper, tries, asked):
    """Settle every row that can be settled by the answers so far; returns how many pairs need an answer.

    Row r's better-ranked neighbours, nearest first, are neighbours[starts[r]:starts[r + 1]].
    """
    n = 0
    for r in order:
        if state[r] != _OPEN:
            continue
        tried, waiting = 0, False
        for p in range(starts[r], starts[r + 1]):
            other = neighbours[p]
            if state[other] == _MEMBER:
                continue
            if state[other] == _OPEN:
                waiting = True
                break
            if tried == tries:
                break
            tried += 1
            if answers[p] == _UNKNOWN:
                asked[n] = p
                n += 1
                waiting = True
                break
            if answers[p] == _YES:
                state[r], keeper[r] = _MEMBER, other
                break
        if state[r] == _OPEN and not waiting:
            state[r] = _KEEPER
    return n


@njit(cache=True)
def _ahead(order, starts, neighbours, answers, state, tries, asked):
    """The pairs of all open rows that may still matter, neighbours that are open themselves included; how many."""
    n = 0
    for r in order:
        if state[r] != _OPEN:
            continue
        tried = 0
        for p in range(starts[r], starts[r + 1]):
            if state[neighbours[p]] == _MEMBER:
                continue
            if tried == tries:
                break
            tried += 1
            if answers[p] == _UNKNOWN:
                asked[n] = p
                n += 1
            elif answers[p] == _YES and state[neighbours[p]] == _KEEPER:
                break
    return n


def choose_keepers(
    n: int,
    rank,
    pairs_found: hamming_pairs.Pairs,
    confirm: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    *,
    tries: int = TRIES,
) -> np.ndarray:
    """Keeper of each of n rows, int64[n], -1 for rows that stand for themselves.

    rank: n sortable things, best first (or an array); pairs_found: (i, j, distance) in any order and orientation.
    confirm(keepers, members) -> bool[m] is the second look; it is asked in few, large batches about pairs that can
    still matter: in the first LAZY ones only about those that do, at most `tries` times for a row, from then on about
    all that may, so that many pictures that look alike and are no copies do not wait for one another one by one. The
    outcome is the same. None: every pair counts.
    """
    place = places(rank)
    i, j, distance = (np.asarray(column, dtype=np.int64) for column in pairs_found)
    if i.size and (min(i.min(), j.min()) < 0 or max(i.max(), j.max()) >= n):
        raise ValueError(f"pairs name rows outside 0..{n - 1}")
    forward = place[i] < place[j]
    better, worse = np.where(forward, i, j), np.where(forward, j, i)
    by_row = np.lexsort((place[better], distance, worse))
    neighbours, rows = better[by_row], worse[by_row]
    starts = np.searchsorted(rows, np.arange(n + 1))
    answers = np.full(rows.size, _YES if confirm is None else _UNKNOWN, np.uint8)
    state, keeper = np.zeros(n, np.uint8), np.full(n, -1, np.int64)
    order, asked = np.argsort(place), np.empty(max(n, rows.size), np.int64)
    limit, batches = tries if confirm is not None else n, 0
    while n_asked := _advance(order, starts, neighbours, answers, state, keeper, limit, asked):
        assert confirm is not None, "without it every answer is known"
        if batches >= LAZY:
            n_asked = _ahead(order, starts, neighbours, answers, state, limit, asked)
        batches += 1
        at = asked[:n_asked]
        alike = np.asarray(confirm(neighbours[at], rows[at]), dtype=bool)
        if alike.shape != at.shape:
            raise ValueError(f"confirm answered {alike.shape} for {n_asked} pairs")
        answers[at] = np.where(alike, _YES, _NO)
    return keeper


def assign(n: int, rank, pairs_found: hamming_pairs.Pairs) -> np.ndarray:
    """`choose_keepers` without a second look: keeper of each row (-1: stands for itself), all pairs accepted."""
    return choose_keepers(n, rank, pairs_found)
