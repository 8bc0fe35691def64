"""All pairs of 64-bit hashes within a Hamming distance, without comparing everything with everything.

Pigeonhole: cut the bits into b bands; codes at most d apart agree on at least k = b - d whole bands. So for each
choice of k bands the codes are sorted by those bits, and only codes in the same bucket are compared. A pair shows
up in several choices; it counts only where the choice is the first k bands it agrees on, so every pair comes out
exactly once and the parts of a search can run anywhere and be merely concatenated (hamming_pairs_dask.py).

Every distance is complete: nothing is sampled or dropped. A bucket above BUCKET codes, as skewed real hashes make
them, is searched again by the same rule on the bits not yet used. Equal codes are collapsed before the search and
expanded after it, in chunks.

    codes -> collapse -> [bands -> buckets -> compare | again on large buckets] -> expand -> (i, j, distance)

Norouzi, Punjani, Fleet: Fast search in Hamming space with multi-index hashing (2012) has the idea of bands.
"""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from tasks.machine import cores

BUCKET = 8192  # a larger bucket is split again
CHUNK = 1 << 20  # pairs in one piece of output
MOST_PAIRS = 200_000_000  # what pairs_within hands out as arrays (24 bytes a pair)
_SORT_NS, _COMPARE_NS, _CALL_NS = 40.0, 0.3, 200_000.0  # rough costs that choose the number of bands
_BLOCK = 256

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]


class TooManyPairs(ValueError):
    """More pairs than arrays should hold; the streaming form takes them."""


@intrinsic
def _popcount(context, x):
    def emit(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), emit


@njit(nogil=True, cache=True)
def bits_of(codes, bits):
    """uint32[n]: the given bits (at most 31) of each code, packed."""
    keys = np.empty(codes.size, np.uint32)
    for i in range(codes.size):
        code = codes[i]
        key = np.uint64(0)
        for t in range(bits.size):
            key |= ((code >> bits[t]) & np.uint64(1)) << np.uint64(t)
        keys[i] = key
    return keys


@njit(nogil=True, cache=True)
def _counting_sort(keys, codes, ids, shift, width):
    """Stable sort by `width` bits of the keys from `shift` up."""
    buckets, mask = 1 << width, np.uint32((1 << width) - 1)
    place = np.zeros(buckets + 1, np.int64)
    for i in range(keys.size):
        place[((keys[i] >> np.uint32(shift)) & mask) + 1] += 1
    for b in range(buckets):
        place[b + 1] += place[b]
    new_keys, new_codes, new_ids = np.empty_like(keys), np.empty_like(codes), np.empty_like(ids)
    for i in range(keys.size):
        b = (keys[i] >> np.uint32(shift)) & mask
        p = place[b]
        place[b] = p + 1
        new_keys[p], new_codes[p], new_ids[p] = keys[i], codes[i], ids[i]
    return new_keys, new_codes, new_ids


def _sort_by_bits(codes, ids, bits):
    """Sort codes and ids by the given bits: (keys, codes, ids), equal keys side by side."""
    keys, shift = bits_of(codes, bits), 0
    while shift < bits.size:
        width = min(-(-bits.size // max(1, -(-bits.size // 16))), bits.size - shift)
        keys, codes, ids = _counting_sort(keys, codes, ids, shift, width)
        shift += width
    return keys, codes, ids


@njit(nogil=True, cache=True)
def _bucket_starts(keys):
    """First places of the runs of equal keys, then the length."""
    n = 0
    for i in range(keys.size):
        if i == 0 or keys[i] != keys[i - 1]:
            n += 1
    starts = np.empty(n + 1, np.int64)
    n = 0
    for i in range(keys.size):
        if i == 0 or keys[i] != keys[i - 1]:
            starts[n] = i
            n += 1
    starts[n] = keys.size
    return starts


@njit(nogil=True, cache=True)
def _shared_buckets(keys_a, starts_a, keys_b, starts_b):
    """Bounds [start a, end a, start b, end b] of the buckets that both sides have."""
    bounds = np.empty((min(starts_a.size, starts_b.size), 4), np.int64)
    n = a = b = 0
    while a < starts_a.size - 1 and b < starts_b.size - 1:
        key_a, key_b = keys_a[starts_a[a]], keys_b[starts_b[b]]
        if key_a == key_b:
            bounds[n, 0], bounds[n, 1] = starts_a[a], starts_a[a + 1]
            bounds[n, 2], bounds[n, 3] = starts_b[b], starts_b[b + 1]
            n += 1
        if key_a <= key_b:
            a += 1
        if key_b <= key_a:
            b += 1
    return bounds[:n]


@njit(nogil=True, cache=True)
def _counts_here(x, bands, counts, chosen):
    """Whether a pair with difference x belongs to this choice of bands, at each level of the search."""
    for level in range(counts.shape[0]):
        agreed, first = 0, np.uint64(0)
        for b in range(counts[level, 0]):
            if x & bands[level, b] == np.uint64(0):
                first |= np.uint64(1) << np.uint64(b)
                agreed += 1
                if agreed == counts[level, 1]:
                    break
        if first != chosen[level]:
            return False
    return True


@njit(nogil=True, cache=True)
def _compare(codes_a, ids_a, codes_b, ids_b, bounds, same, distance, bands, counts, chosen, state, out):
    """Compare inside the buckets `bounds`, writing (id a, id b, distance) rows to `out`; returns how many.

    `same`: both sides are one array and only later places count. `state` holds [bucket, row, column] and lets the
    next call go on where `out` was full; the search is over when state[0] reaches the number of buckets.
    """
    n = 0
    limit = np.uint64(distance)
    bucket, row, column = state[0], state[1], state[2]
    while bucket < bounds.shape[0]:
        a, a_end, b, b_end = bounds[bucket]
        for i in range(max(row, a), a_end):
            code = codes_a[i]
            j = max(column, i + 1 if same else b)
            column = 0
            while j < b_end:
                stop = min(j + _BLOCK, b_end)
                if n + _BLOCK > out.shape[0]:
                    state[0], state[1], state[2] = bucket, i, j
                    return n
                hits = 0
                for m in range(j, stop):
                    hits += _popcount(code ^ codes_b[m]) <= limit
                if hits:
                    for m in range(j, stop):
                        x = code ^ codes_b[m]
                        apart = _popcount(x)
                        if apart <= limit and _counts_here(x, bands, counts, chosen):
                            out[n, 0], out[n, 1], out[n, 2] = ids_a[i], ids_b[m], apart
                            n += 1
                j = stop
        bucket, row = bucket + 1, 0
    state[0] = bucket
    return n


@dataclass(frozen=True)
class _Choices:
    """The choices of bands made so far on the way to a bucket: what a pair found in it must answer to."""

    bands: tuple[tuple[int, ...], ...] = ()  # masks, a tuple a level
    agree: tuple[int, ...] = ()  # k of each level
    chosen: tuple[int, ...] = ()  # bit b set: band b is one of the k

    def then(self, bands: tuple[int, ...], agree: int, chosen: tuple[int, ...]) -> "_Choices":
        return _Choices((*self.bands, bands), (*self.agree, agree), (*self.chosen, sum(1 << band for band in chosen)))

    def used(self) -> int:
        """Mask of the bits on which everything in the bucket is known to agree."""
        return sum(
            mask
            for bands, chosen in zip(self.bands, self.chosen, strict=True)
            for band, mask in enumerate(bands)
            if chosen >> band & 1
        )

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        levels = len(self.bands)
        bands = np.zeros((levels, max((len(b) for b in self.bands), default=1)), np.uint64)
        counts = np.zeros((levels, 2), np.int64)
        for level, masks in enumerate(self.bands):
            bands[level, : len(masks)] = masks
            counts[level] = len(masks), self.agree[level]
        return bands, counts, np.array(self.chosen, np.uint64)


def _bits(mask: int) -> np.ndarray:
    return np.array([bit for bit in range(64) if mask >> bit & 1], np.uint64)


def _bit_information(codes: np.ndarray) -> np.ndarray:
    """float64[64]: collision entropy of each bit in a sample, 0 (constant) to 1 (even)."""
    sample = np.ascontiguousarray(codes[:: max(1, codes.size // 16384)])
    ones = np.unpackbits(sample.view(np.uint8).reshape(-1, 8), axis=1, bitorder="little").mean(axis=0)
    return -np.log2(ones**2 + (1 - ones) ** 2)


def _plan(size_a: int, size_b: int, information: np.ndarray, used: int, distance: int, must: bool = False):
    """Bands (masks) and how many must agree, or None where comparing everything is cheapest (never with `must`).

    Any disjoint bands are complete; information only decides their cost: the unused bits are dealt out to the
    bands in order of information, so that each band tells codes apart about equally well.
    """
    unused = [bit for bit in np.argsort(-information, kind="stable").tolist() if not used >> bit & 1]
    telling = [bit for bit in unused if information[bit] > 1e-3]
    telling = telling if len(telling) > distance else unused
    compares = size_a * size_b / 2
    best, best_cost = None, float("inf") if must else compares * _COMPARE_NS
    for n_bands in range(distance + 1, min(len(telling), distance + 8) + 1):
        agree = n_bands - distance
        free = telling[: 30 * n_bands // agree]  # a key of a choice fits 31 bits
        bands = [0] * n_bands
        for place, bit in enumerate(free):
            turn, at = divmod(place, n_bands)
            bands[at if turn % 2 == 0 else n_bands - 1 - at] |= 1 << bit
        told = sum(information[bit] for bit in free) * agree / n_bands
        cost = comb(n_bands, agree) * (
            (size_a + size_b) / 2 * _SORT_NS + compares * 2.0**-told * _COMPARE_NS + _CALL_NS
        )
        if cost < best_cost:
            best, best_cost = (tuple(bands), agree), cost
    return best


def _search(a, ids_a, b, ids_b, distance: int, choices: _Choices, plan=None) -> Iterator[np.ndarray]:
    """Rows (id a, id b, distance) of the pairs between two sets of codes; `b is a`: within one set."""
    same = b is a
    plan = plan or _plan(a.size, b.size, _information_of(a, b), choices.used(), distance)
    if plan is None:
        yield from _compared(a, ids_a, b, ids_b, np.array([[0, a.size, 0, b.size]]), same, distance, choices)
        return
    bands, agree = plan
    for chosen in combinations(range(len(bands)), agree):
        yield from _search_choice(a, ids_a, b, ids_b, distance, choices, bands, agree, chosen)


def _information_of(a, b) -> np.ndarray:
    return _bit_information(a) if b is a else np.minimum(_bit_information(a), _bit_information(b))


def _search_choice(a, ids_a, b, ids_b, distance, choices, bands, agree, chosen) -> Iterator[np.ndarray]:
    """The part of a search that one choice of bands is responsible for."""
    same = b is a
    bits = _bits(sum(bands[band] for band in chosen))
    below = choices.then(bands, agree, chosen)
    keys_a, a, ids_a = _sort_by_bits(a, ids_a, bits)
    starts_a = _bucket_starts(keys_a)
    if same:
        b, ids_b = a, ids_a
        bounds = np.stack([starts_a[:-1], starts_a[1:]] * 2, axis=1)
    else:
        if a.size * 8 < b.size:  # a few new codes against many: leave out what has no bucket to fall into
            there = np.zeros(1 << bits.size, np.bool_)
            there[keys_a] = True
            keep = there[bits_of(b, bits)]
            b, ids_b = b[keep], ids_b[keep]
        keys_b, b, ids_b = _sort_by_bits(b, ids_b, bits)
        bounds = _shared_buckets(keys_a, starts_a, keys_b, _bucket_starts(keys_b))
        del keys_b
    del keys_a
    sizes = (bounds[:, 1] - bounds[:, 0]) * (bounds[:, 3] - bounds[:, 2])
    bounds, sizes = bounds[sizes > int(same)], sizes[sizes > int(same)]
    large = sizes > BUCKET * BUCKET
    yield from _compared(a, ids_a, b, ids_b, bounds[~large], same, distance, below)
    for start_a, end_a, start_b, end_b in bounds[large]:
        part, part_ids = a[start_a:end_a], ids_a[start_a:end_a]
        if same:
            yield from _search(part, part_ids, part, part_ids, distance, below)
        else:
            yield from _search(part, part_ids, b[start_b:end_b], ids_b[start_b:end_b], distance, below)


def _compared(a, ids_a, b, ids_b, bounds, same, distance, choices) -> Iterator[np.ndarray]:
    state = np.zeros(3, np.int64)
    arrays = choices.arrays()
    room = 1 << 14
    while state[0] < bounds.shape[0]:
        out = np.empty((room, 3), np.uint32)
        n = _compare(a, ids_a, b, ids_b, bounds, same, distance, *arrays, state, out)
        if n:
            yield out[:n]
        room = min(CHUNK, room * 8)


@dataclass(frozen=True)
class Collapsed:
    """Codes with equal ones put together: `codes` sorted and distinct; members[starts[u]:starts[u + 1]] are the
    places of codes[u] in the original order, ascending."""

    codes: np.ndarray  # uint64[u]
    starts: np.ndarray  # int64[u + 1]
    members: np.ndarray  # uint32[n]


def collapse(codes: np.ndarray) -> Collapsed:
    """Put equal codes together; n up to 2^32 - 1."""
    codes = as_codes(codes)
    order = np.argsort(codes, kind="stable").astype(np.uint32)
    codes = codes[order]
    starts = _bucket_starts(codes)
    return Collapsed(codes[starts[:-1]], starts, order)


def _as_is(codes: np.ndarray) -> Collapsed:
    """The same form without sorting, for a set that is read once or twice only: equal codes stay apart."""
    codes = as_codes(codes)
    return Collapsed(codes, np.arange(codes.size + 1), np.arange(codes.size, dtype=np.uint32))


def as_codes(codes) -> np.ndarray:
    """The codes as they are worked on: uint64[n], contiguous, n < 2^28; TypeError or ValueError for others."""
    codes = np.ascontiguousarray(codes)
    if codes.ndim != 1 or codes.dtype != np.uint64:
        raise TypeError(f"codes are uint64[n], not {codes.dtype}{list(codes.shape)}")
    if codes.size >= 1 << 28:
        raise ValueError(f"{codes.size} codes are more than one machine takes (2^28); see pairs_over_workers")
    return codes


def _in_threads(parts: list, threads: int) -> Iterator[np.ndarray]:
    """Run generator functions on threads, yielding what they yield; a bounded queue holds them back."""
    if threads <= 1 or len(parts) <= 1:
        for part in parts:
            yield from part()
        return
    todo: queue.SimpleQueue = queue.SimpleQueue()
    done: queue.Queue = queue.Queue(maxsize=2 * threads)
    for part in parts:
        todo.put(part)
    stopped = threading.Event()

    def give(item) -> None:
        while not stopped.is_set():
            try:
                return done.put(item, timeout=0.2)
            except queue.Full:
                continue

    def work() -> None:
        try:
            while not stopped.is_set():
                for rows in todo.get_nowait()():
                    give(rows)
                    if stopped.is_set():
                        return
        except queue.Empty:
            give(None)
        except BaseException as error:  # handed over to the caller's thread, which raises it
            give(error)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(threads, len(parts)))]
    for worker in workers:
        worker.start()
    try:
        left = len(workers)
        while left:
            rows = done.get()
            if isinstance(rows, BaseException):
                raise rows
            if rows is None:
                left -= 1
            else:
                yield rows
    finally:
        stopped.set()
        for worker in workers:
            worker.join()


def distinct_pairs(a: np.ndarray, b: np.ndarray, distance: int, threads: int | None = None) -> Iterator[np.ndarray]:
    """Pairs among distinct codes (`b is a`) or between two sets of distinct codes, as they are found.

    Yields uint32[m, 3] rows (place in a, place in b, distance) in no stated order, each pair once; within one
    set only one of (i, j), (j, i).
    """
    if not 0 <= distance <= 64:
        raise ValueError(f"a Hamming distance of 64-bit codes is 0 to 64, not {distance}")
    same = b is a
    ids_a = np.arange(a.size, dtype=np.uint32)
    ids_b = ids_a if same else np.arange(b.size, dtype=np.uint32)
    if a.size == 0 or b.size == 0:
        return
    plan = _plan(a.size, b.size, _information_of(a, b), 0, distance)
    if plan is None:
        yield from _search(a, ids_a, b, ids_b, distance, _Choices())
        return
    bands, agree = plan
    parts = [
        lambda chosen=chosen: _search_choice(a, ids_a, b, ids_b, distance, _Choices(), bands, agree, chosen)
        for chosen in combinations(range(len(bands)), agree)
    ]
    yield from _in_threads(parts, threads or cores())


@njit(nogil=True, cache=True)
def _expand(rows, starts_a, members_a, starts_b, members_b, same, state, i, j, distance):
    """Write the members' pairs of `rows` from state [row, a, b] on; returns how many; state says where to go on."""
    n = 0
    row, first, second = state[0], state[1], state[2]
    while row < rows.shape[0]:
        u, v, apart = rows[row]
        end_a, end_b = starts_a[u + 1], starts_b[v + 1]
        a = max(first, starts_a[u])
        while a < end_a:
            b = max(second, a + 1 if same and u == v else starts_b[v])
            second = 0
            while b < end_b:
                if n == i.size:
                    state[0], state[1], state[2] = row, a, b
                    return n
                x, y = members_a[a], members_b[b]
                if same and x > y:
                    x, y = y, x
                i[n], j[n], distance[n] = x, y, apart
                n += 1
                b += 1
            a += 1
        row, first = row + 1, 0
    state[0] = row
    return n


def _expanded(rows: np.ndarray, a: Collapsed, b: Collapsed) -> Iterator[Pairs]:
    sizes_a, sizes_b = np.diff(a.starts)[rows[:, 0]], np.diff(b.starts)[rows[:, 1]]
    total = int((sizes_a * sizes_b).sum())  # too many for equal codes of one set, which is only room
    state = np.zeros(3, np.int64)
    while state[0] < rows.shape[0]:
        room = min(CHUNK, total)
        i, j, apart = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.int64)
        n = _expand(rows, a.starts, a.members, b.starts, b.members, a is b, state, i, j, apart)
        if n:
            yield i[:n], j[:n], apart[:n]


def equal_rows(a: Collapsed) -> np.ndarray:
    """Rows (u, u, 0) of the codes that occur more than once."""
    several = np.flatnonzero(np.diff(a.starts) > 1).astype(np.uint32)
    return np.stack([several, several, np.zeros_like(several)], axis=1)


def plan_of(sample: np.ndarray, n: int, distance: int) -> tuple[tuple[int, ...], int]:
    """Bands (bit masks) and how many of them a choice takes, for n codes like the sample's."""
    if not 0 <= distance < 64:
        raise ValueError(f"bands serve Hamming distances of 0 to 63, not {distance}")
    return _plan(n, n, _bit_information(sample), 0, distance, must=True)


def bits_of_choice(plan: tuple[tuple[int, ...], int], chosen: tuple[int, ...]) -> np.ndarray:
    """uint64[k]: the bits on which the pairs of one choice of bands agree."""
    return _bits(sum(plan[0][band] for band in chosen))


def pairs_of_choice(codes: np.ndarray, distance: int, plan, chosen: tuple[int, ...]) -> Iterator[Pairs]:
    """The pairs that one choice of `agree` bands answers for, as iter_pairs gives them. All choices together, and for
    each the codes split in any way that keeps equal bits of the choice together, give every pair once."""
    bands, agree = plan
    together = collapse(codes)
    if chosen == tuple(range(agree)):  # equal codes agree on every band, so on the first ones
        yield from _expanded(equal_rows(together), together, together)
    ids = np.arange(together.codes.size, dtype=np.uint32)
    a = together.codes
    for rows in _search_choice(a, ids, a, ids, distance, _Choices(), bands, agree, chosen):
        yield from _expanded(rows, together, together)


def iter_pairs(codes: np.ndarray, distance: int, threads: int | None = None) -> Iterator[Pairs]:
    """All pairs within `distance` as chunks (i, j, distance) of at most CHUNK pairs, i < j, every pair once, in
    no stated order; memory does not grow with the number of pairs."""
    together = collapse(codes)
    equal = equal_rows(together)
    for start in range(0, len(equal), CHUNK):
        yield from _expanded(equal[start : start + CHUNK], together, together)
    for rows in distinct_pairs(together.codes, together.codes, distance, threads):
        yield from _expanded(rows, together, together)


def iter_pairs_between(
    new: np.ndarray, known: np.ndarray, distance: int, threads: int | None = None
) -> Iterator[Pairs]:
    """All pairs of a new and a known code within `distance`, as chunks (place in new, place in known, distance)."""
    a, b = collapse(new), _as_is(known) if np.size(new) * 8 < np.size(known) else collapse(known)
    for rows in distinct_pairs(a.codes, b.codes, distance, threads):
        yield from _expanded(rows, a, b)


def _gathered(chunks: Iterator[Pairs], width: int, most: int) -> Pairs:
    """Chunks put together and sorted by (i, j), so that the order does not depend on threads."""
    packed, total = [], 0
    for i, j, apart in chunks:
        total += i.size
        if total > most:
            raise TooManyPairs(
                f"more than {most:,} pairs are within the distance; many codes are equal or nearly so: take the "
                "streaming form (iter_pairs, iter_pairs_between), a smaller distance, or raise `most`"
            )
        packed.append((i * width + j) << 7 | apart)
    merged = np.concatenate(packed) if packed else np.empty(0, np.int64)
    packed.clear()
    merged.sort()
    i, j = np.divmod(merged >> 7, max(width, 1))
    merged &= 127
    return i, j, merged


def pairs_within(codes: np.ndarray, distance: int, *, threads: int | None = None, most: int = MOST_PAIRS) -> Pairs:
    """Every pair of codes within a Hamming distance: (i, j, distance), int64[m] each, i < j, sorted by (i, j).

    codes: uint64[n], n < 2^28; distance 0..64 (quick up to 7, complete always). Raises TooManyPairs above `most`
    pairs. `threads` defaults to the cores this process may use; the result does not depend on it.
    """
    return _gathered(iter_pairs(codes, distance, threads), np.size(codes), most)


def pairs_between(
    new: np.ndarray, known: np.ndarray, distance: int, *, threads: int | None = None, most: int = MOST_PAIRS
) -> Pairs:
    """Every pair of a new and a known code within a Hamming distance: (place in new, place in known, distance),
    int64[m] each, sorted. A few new codes against many known ones cost a few readings of the known ones."""
    return _gathered(iter_pairs_between(new, known, distance, threads), np.size(known), most)
