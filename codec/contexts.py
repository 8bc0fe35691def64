"""Contexts: what the symbols coded nearby were worth corrects the next one's table. Format 3; integers alone.

A bin says how loud a symbol should be. The index network sees z and earlier groups; what it could not see is how the
last symbols of the same cell and the same channel around turned out against their own bins. So every coded symbol
leaves two scores, gradients of its log-probability as in score-driven models (Creal, Koopman and Lucas 2013): how much
louder its bin should have been, and to which side it lay. Weighted sums of these move the next symbol's bin, and choose
between four tables that lean ever more to one side:

    loud = sum of weights * scale scores of K channels of the same cell, of cells around, of the channel's last ones
    lean = sum of weights * location scores of cells around, of the channel's last ones
    bin  <- bin + loud        within 1..13 or within FIRST_BIN..63
    table = that bin's, of |lean|'s step; its symbols' signs are swapped where lean is negative

Weights, scores and tables are the model's (contexts_fit.py finds them). It all happens in the entropy coder: the
networks' passes stay as parallel as they are, and what they see does not change. Models from codec-10 on give no weight
to a channel's last symbols, so that half a row of a channel has its tables before its first symbol is read.
"""

from typing import NamedTuple

import numba
import numpy as np

from codec.states import FIRST_BIN, ODD_STATES
from codec.threads import each, team_size

BINS = 64
TABLES = 2 * BINS  # even and odd states; times LEANS
LEANS = 4
LEAN_EDGES = np.array([0.05, 0.2, 0.39])  # of |lean|, in standard deviations; between them LEAN_MEANS
LEAN_MEANS = np.array([0.0, 0.12, 0.28, 0.5])
SHIFT = 14  # weights and sums have that many binary places
REACH = 64  # magnitudes that have a score of their own; the last one's stands for all beyond
AROUND = 4  # neighbours at a time
OTHERS = 2 * AROUND + 2  # weights beside those of the same cell: neighbours' of either half, the last one's, the run's
FADE = 5  # of a channel's last symbols 1 / 2^FADE is forgotten with each
RUN_PLACES = 4  # binary places of these sums
LARGEST_RUN = 128 << (RUN_PLACES + FADE)  # beyond their magnitudes, as scores are 8-bit
LEVELS = 1000

# Kinds of passes: the first group's two; the other groups', which code a row's even columns and then its odd ones. Of
# each (rows, columns) from the symbol to its neighbours, all coded some time before it; (0, 0) is none.
FIRST_PASS, SECOND_PASS, LATER, LATER_ODD = 0, 1, 2, 3
OFFSETS = np.array(
    [
        [[-1, -1], [-1, 1], [-2, 0], [0, 0]],
        [[-1, 0], [1, 0], [0, -1], [0, 1]],
        [[-1, -1], [-1, 0], [-1, 1], [-2, 0]],
        [[0, -1], [0, 1], [-1, 0], [-2, 0]],
    ],
    np.int32,
)
LAST = np.array([-2, 0, 0, 0], np.int32)  # columns to the neighbour coded just before it, or 0
ABOVE, BELOW, BEFORE, BEHIND = 2, 1, 2, 1  # zeros around a segment's scores, so that all of these lie within
_EDGES = np.rint(LEAN_EDGES * (1 << SHIFT)).astype(np.int32)
_EDGE_0, _EDGE_1, _EDGE_2 = (int(edge) for edge in _EDGES)


class Contexts(NamedTuple):
    """What a model says of them at a level. Channels are the latent's; the first axis of size 2 tells the second pass
    from all others."""

    channels: np.ndarray  # int16 [2,C,K]: whose scores are looked at in the same cell, each below the channel itself
    scale_weights: np.ndarray  # int32 [2,C,K + OTHERS]
    location_weights: np.ndarray  # int32 [2,C,OTHERS]
    scale_scores: np.ndarray  # int8 [TABLES,REACH], by table (bin + ODD_STATES in odd states) and magnitude
    location_scores: np.ndarray  # int8 [TABLES,REACH], of positive symbols


NAMES = {
    "channels": np.int16, "scale_weights": np.int32, "location_weights": np.int32, "scale_scores": np.int8,
    "location_scores": np.int8,
}  # fmt: skip


def of_arrays(arrays: dict[str, np.ndarray], latent: int) -> tuple[list[Contexts], list]:
    """A model file's tensors -> its contexts, one for each of a number of ranges of levels, and its LEANS * TABLES
    tables (None where there is none). Raises ValueError where they make no sense."""
    parts = [np.ascontiguousarray(arrays[f"contexts.{name}"].astype(kind)) for name, kind in NAMES.items()]
    channels, scale_weights, location_weights = parts[:3]
    ranges, count = channels.shape[0], channels.shape[-1]
    places, scores = (ranges, 2, latent), (TABLES, REACH)
    shapes = (*places, count), (*places, count + OTHERS), (*places, OTHERS), scores, scores
    if tuple(part.shape for part in parts) != shapes:
        raise ValueError(f"contexts of shapes {[part.shape for part in parts]} do not fit {latent} channels")
    if count % 4:
        raise ValueError(f"contexts of {count} channels; their number must be a multiple of 4")
    own = np.arange(latent)[:, None]
    if channels.min() < 0 or channels.max() >= latent or ((channels >= own) & (scale_weights[..., :count] != 0)).any():
        raise ValueError("contexts that look at channels which are not coded yet")
    sums = [np.abs(part.astype(np.int64)).sum(-1).max() for part in (scale_weights, location_weights)]
    if max(sums) * (LARGEST_RUN >> RUN_PLACES) >= 1 << 31:
        raise ValueError("contexts whose sums could overflow 32 bits")
    sizes = arrays["contexts.sizes"]
    if len(sizes) != LEANS * TABLES or sizes.min() < 0:
        raise ValueError(f"{len(sizes)} tables of contexts; needs {LEANS * TABLES}")
    tables = np.split(arrays["contexts.frequencies"].astype(np.uint32), np.cumsum(sizes)[:-1])
    found = [Contexts(*(part[i] for part in parts[:3]), *parts[3:]) for i in range(ranges)]
    return found, [table if len(table) else None for table in tables]


def at_level(found: list[Contexts], level: int) -> Contexts:
    """Those of the range that a level lies in."""
    return found[level * len(found) // (LEVELS + 1)]


class Nearby(NamedTuple):
    """The scores of one segment's symbols as they are coded, and the contexts that weigh them."""

    contexts: Contexts
    scale: np.ndarray  # int8 [C, ABOVE + h + BELOW, BEFORE + w + BEHIND], 0 where nothing was coded yet
    location: np.ndarray  # int8, the same


def nearby(contexts: Contexts, height: int, width: int) -> Nearby:
    shape = contexts.channels.shape[1], ABOVE + height + BELOW, BEFORE + width + BEHIND
    return Nearby(contexts, np.zeros(shape, np.int8), np.zeros(shape, np.int8))


def nothing() -> Nearby:
    """Stands for none, in streams of other formats."""
    empty = Contexts(*(np.zeros((0,) * (3 if i < 3 else 2), kind) for i, kind in enumerate(NAMES.values())))
    return Nearby(empty, np.zeros((0, 0, 0), np.int8), np.zeros((0, 0, 0), np.int8))


@numba.njit(cache=True, nogil=True, inline="always")
def _add_four(scores, a, b, c, d, weights, place, fourth, sums):
    """sums[k] += the sum of weights[place + j] * scores[start + k], start being a, b, c and, where `fourth` is 1, not
    0, d. Unsigned, or indices would be asked for their sign."""
    a, b, c, d, place = np.uint64(a), np.uint64(b), np.uint64(c), np.uint64(d), np.uint64(place)
    of_a, of_b = weights[place], weights[place + np.uint64(1)]
    of_c, of_d = weights[place + np.uint64(2)], np.int32(weights[place + np.uint64(3)] * fourth)
    for k in range(np.uint64(sums.size)):
        first = np.int32(of_a * np.int32(scores[a + k]) + of_b * np.int32(scores[b + k]))
        sums[k] += np.int32(first + np.int32(of_c * np.int32(scores[c + k]) + of_d * np.int32(scores[d + k])))


@numba.njit(cache=True, nogil=True)
def flattened(near):
    """What sum_row takes: `near`, its arrays flat, which it would cost more to find for each row than to read."""
    found, scale, location = near
    sizes = found[0].shape[1], found[0].shape[2], scale.shape[1], scale.shape[2]
    return (
        found[0].reshape(-1), found[1].reshape(-1), found[2].reshape(-1), scale.reshape(-1), location.reshape(-1), sizes
    )  # fmt: skip


@numba.njit(cache=True, nogil=True)
def sum_row(channels, of_scale, of_location, scores, sides, sizes, channel, row, kind, base, loud, lean):
    """What a row's symbols of a channel have nearby, but for the last neighbour and the channel's last symbols, which
    are known only when it is their turn: int32 [w] each, in place. channels .. sizes: of `flattened`; base: of the same
    cells, which LATER_ODD takes as it is."""
    latent, count, height, width = sizes
    unit, plane = latent * np.int64(kind == SECOND_PASS) + channel, height * width
    here = (row + ABOVE) * width + BEFORE
    if kind != LATER_ODD:
        for k in range(base.size):
            base[k] = np.int32(0)
        for j in range(unit * count, (unit + 1) * count, 4):
            a, b = channels[j] * plane + here, channels[j + 1] * plane + here
            c, d = channels[j + 2] * plane + here, channels[j + 3] * plane + here
            _add_four(scores, a, b, c, d, of_scale, unit * OTHERS + j, np.int32(1), base)
    for k in range(loud.size):
        loud[k], lean[k] = base[k], np.int32(0)
    here += channel * plane
    a, b = here + _step(kind, 0, width), here + _step(kind, 1, width)
    c, d = here + _step(kind, 2, width), here + _step(kind, 3, width)
    place, fourth = AROUND * np.int64(kind == LATER_ODD), np.int32(kind != FIRST_PASS)
    _add_four(scores, a, b, c, d, of_scale, unit * (count + OTHERS) + count + place, fourth, loud)
    _add_four(sides, a, b, c, d, of_location, unit * OTHERS + place, fourth, lean)


@numba.njit(cache=True, nogil=True, inline="always")
def _step(kind, number, width):
    """From a cell to one of its neighbours, in a plane of that width."""
    return OFFSETS[kind, number, 0] * width + OFFSETS[kind, number, 1]


@numba.njit(cache=True, nogil=True, inline="always")
def last_weights(near, channel, kind):
    """Of the last neighbour's scale and location score and of the channel's last ones: four numbers; and where the
    neighbour stands in the row."""
    part, count = np.int64(kind == SECOND_PASS), near.contexts.channels.shape[2]
    of_scale, of_location = near.contexts.scale_weights[part, channel], near.contexts.location_weights[part, channel]
    return (
        of_scale[count + OTHERS - 2], of_location[OTHERS - 2], of_scale[count + OTHERS - 1], of_location[OTHERS - 1],
        LAST[kind],
    )  # fmt: skip


@numba.njit(cache=True, nogil=True, inline="always")
def sums_at(scale, location, column, last, run, side, loud, lean):
    """The whole sums of one symbol (loud, lean). scale, location: its row's scores; last: last_weights; run, side: of
    the channel's symbols up to the one before the last, so that these sums need not wait for the last one."""
    k = BEFORE + np.int64(column) + last[4]
    loud += last[2] * np.int32(run >> RUN_PLACES)
    lean += last[3] * np.int32(side >> RUN_PLACES)
    if last[4] != 0:
        loud += last[0] * np.int32(scale[np.uint64(k)])
        lean += last[1] * np.int32(location[np.uint64(k)])
    return np.int32(loud), np.int32(lean)


@numba.njit(cache=True, nogil=True, inline="always")
def corrected(table, loud, lean):
    """(table of the symbol that `table`, without leaning, was for; whether signs are swapped)."""
    odd = table & ODD_STATES
    bin_ = (table - odd) + ((loud + (1 << (SHIFT - 1))) >> SHIFT)
    if table - odd >= FIRST_BIN:
        bin_ = min(max(bin_, FIRST_BIN), BINS - 1)
    else:
        bin_ = min(max(bin_, 1), FIRST_BIN - 1)
    size = abs(lean)
    step = np.int32(size >= _EDGE_0) + np.int32(size >= _EDGE_1) + np.int32(size >= _EDGE_2)
    return np.int32(bin_ + odd + TABLES * step), step > 0 and lean < 0


@numba.njit(cache=True, nogil=True, inline="always")
def known_ahead(last):
    """Whether a row's sums are whole before any of its symbols is read: where neither the symbol before nor the
    channel's last ones have weight, as those of the later groups have not from codec-8 on, and no others from codec-10
    on, a decoder chooses the tables of half a row at once and waits for nothing."""
    before = last[4] != 0 and (last[0] != 0 or last[1] != 0)
    return last[2] == 0 and last[3] == 0 and not before


@numba.njit(cache=True, nogil=True)
def correct_row(tables, loud, lean, numbers, signs):
    """`corrected` for a row of tables uint8 [w] of even states, in place: numbers, and -1 where signs are swapped, else
    1."""
    for k in range(np.uint64(numbers.size)):
        number, swapped = corrected(np.int32(tables[k]), loud[k], lean[k])
        numbers[k], signs[k] = number, np.int32(1) - np.int32(2) * np.int32(swapped)


@numba.njit(cache=True, nogil=True, inline="always")
def leave(scores, places, scale, location, column, table, symbol, run, side):
    """Notes the scores of a symbol of that table (without corrections) in its row's scale, location; returns its
    channel's new sums. scores, places: of the contexts, flat."""
    at = np.uint64(table * REACH + min(abs(np.int32(symbol)), REACH - 1))
    score, place = scores[at], places[at]
    place = -place if symbol < 0 else place
    here = np.uint64(BEFORE) + np.uint64(column)
    scale[here], location[here] = score, place
    return moved_on(run, side, score, place)


@numba.njit(cache=True, nogil=True, inline="always")
def moved_on(run, side, score, place):
    """A channel's sums with one more symbol's scores."""
    run += (np.int32(score) << RUN_PLACES) - (run >> FADE)
    side += (np.int32(place) << RUN_PLACES) - (side >> FADE)
    return np.int32(run), np.int32(side)


@numba.njit(cache=True, nogil=True)
def _note(symbols, index, near, first, kind, parity):
    """All scores of a block, which an encoder knows before it codes: nothing looks at those that are coded later."""
    found, scales, locations = near
    scores, places = found[3].ravel(), found[4].ravel()
    none = np.int32(0)
    for c in range(symbols.shape[0]):
        for r in range(symbols.shape[1]):
            scale, location = scales[first + c, ABOVE + r], locations[first + c, ABOVE + r]
            for k in range(0 if kind == LATER else (r + parity) & 1, symbols.shape[2], 1 if kind == LATER else 2):
                table = np.int32(index[c, r, k])
                if table:
                    leave(scores, places, scale, location, k, table, symbols[c, r, k], none, none)


@numba.njit(cache=True, nogil=True)
def _correct(symbols, index, near, first, kind, parity, begin, end, numbers, signed):
    """See corrected_block: channels begin..end of a block whose scores are noted."""
    height, width = symbols.shape[1:]
    scales, locations, flat = near[1], near[2], flattened(near)
    base, loud, lean = np.empty(width, np.int32), np.empty(width, np.int32), np.empty(width, np.int32)
    # A row in the order of coding; table 0 where nothing is coded.
    tables, values = np.empty(width, np.int32), np.empty(width, np.int16)
    louds, leans = np.empty(width, np.int32), np.empty(width, np.int32)
    runs, sides = np.empty(width, np.int32), np.empty(width, np.int32)
    for c in range(begin, end):
        last = last_weights(near, first + c, kind)
        run, side = np.int32(0), np.int32(0)
        newer, nearer = run, side
        for r in range(height):
            if not index[c, r].any():
                continue
            scale, location = scales[first + c, ABOVE + r], locations[first + c, ABOVE + r]
            tables[:] = 0
            for half in range(2 if kind == LATER else 1):
                sum_row(*flat, first + c, r, kind + half, base, loud, lean)
                start = half if kind == LATER else (r + parity) & 1
                place, step = np.uint64(start), np.uint64(2)
                if kind == LATER:
                    place, step = np.uint64(half * ((width + 1) // 2)), np.uint64(1)
                for k in range(np.uint64(start), np.uint64(width), np.uint64(2)):
                    table, here = np.int32(index[c, r, k]), np.uint64(BEFORE) + k
                    tables[place], values[place] = table, symbols[c, r, k]
                    louds[place], leans[place] = sums_at(scale, location, k, last, 0, 0, loud[k], lean[k])
                    runs[place], sides[place] = run, side
                    place += step
                    more = moved_on(newer, nearer, scale[here], location[here])
                    coded = table != 0
                    run, side = newer if coded else run, nearer if coded else side
                    newer, nearer = more[0] if coded else newer, more[1] if coded else nearer
            for k in range(np.uint64(width)):  # loops that LLVM computes several symbols at a time
                louds[k] += last[2] * np.int32(runs[k] >> RUN_PLACES)
                leans[k] += last[3] * np.int32(sides[k] >> RUN_PLACES)
            row, turned = numbers[c, r], signed[c, r]
            for k in range(np.uint64(width)):
                number, swapped = corrected(tables[k], louds[k], leans[k])
                row[k] = np.uint16(number) if tables[k] else np.uint16(0)
                leans[k] = np.int32(1) - np.int32(2) * np.int32(swapped)
            for k in range(np.uint64(width)):
                turned[k] = np.int16(values[k] * leans[k])


def corrected_block(symbols: np.ndarray, index: np.ndarray, near: Nearby, first: int, passed: int, parity: int):
    """A block's symbols int16 and tables uint8 [C,h,w], from channel `first` on, as its segment's next one -> (symbols
    with the signs that are coded, tables uint16), in the order of coding: of the later groups even columns come before
    odd ones. passed: which pass it is, as entropy.Block's parity says; parity: the cells' in these arrays. By the team
    of threads."""
    numbers, signed = np.empty(symbols.shape, np.uint16), np.empty(symbols.shape, np.int16)
    kind, channels = LATER if passed < 0 else passed, len(symbols)
    _note(symbols, index, near, first, kind, parity)
    edges = [channels * i // team_size() for i in range(team_size() + 1)]

    def part(number: int) -> None:
        _correct(symbols, index, near, first, kind, parity, *edges[number : number + 2], numbers, signed)

    numbers[:] = 0
    each(part, list(range(team_size())))
    return signed, numbers
