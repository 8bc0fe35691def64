"""Contexts at work: compiled loops that sum scores around half a row of symbols and choose its tables.

What is computed stands in contexts.py; encoder and decoder (rans.py) share these loops.
"""

from typing import NamedTuple

import numba
import numpy as np

from codec.entropy.contexts import (
    AROUND,
    FIRST_PASS,
    LATER,
    LATER_ODD,
    NEIGHBOURS,
    OFFSETS,
    PLACES,
    REACH,
    SECOND_PASS,
    SHIFT_EDGES,
    TABLES,
    Contexts,
)
from codec.format import BINS, EVERYWHERE, FIRST_BIN, ODD_STATES
from codec.threads import map_threads, team_size

ABOVE, BELOW, BEFORE, BEHIND = 2, 1, 2, 1  # zeros around a segment's scores, so that all neighbours lie within
_EDGE_0, _EDGE_1, _EDGE_2 = (int(edge) for edge in np.rint(SHIFT_EDGES * (1 << PLACES)))


class Scores(NamedTuple):
    """The scores of one segment's symbols as they are coded, and the contexts that weigh them."""

    contexts: Contexts
    scale: np.ndarray  # int8 [C, ABOVE + h + BELOW, BEFORE + w + BEHIND], 0 where nothing was coded yet
    location: np.ndarray  # int8, the same


def empty_scores(contexts: Contexts, height: int, width: int) -> Scores:
    """Of a segment of these cells, of which nothing is coded yet."""
    shape = contexts.channels.shape[1], ABOVE + height + BELOW, BEFORE + width + BEHIND
    return Scores(contexts, np.zeros(shape, np.int8), np.zeros(shape, np.int8))


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
    """What sum_row takes: Scores, its arrays flat, which it would cost more to find for each row than to read."""
    found, scale, location = near
    sizes = found[0].shape[1], found[0].shape[2], scale.shape[1], scale.shape[2]
    return (
        found[0].reshape(-1), found[1].reshape(-1), found[2].reshape(-1), scale.reshape(-1), location.reshape(-1), sizes
    )  # fmt: skip


@numba.njit(cache=True, nogil=True)
def sum_row(
    channels, of_scale, of_location, scores, sides, sizes, channel, row, kind, base, scale_shift, location_shift
):
    """Both shifts of a row's symbols of a channel: int32 [w] each, in place. channels .. sizes: of `flattened`; base:
    the sums of the same cells, which LATER_ODD takes as it is."""
    latent, count, height, width = sizes
    unit, plane = latent * np.int64(kind == SECOND_PASS) + channel, height * width
    here = (row + ABOVE) * width + BEFORE
    if kind != LATER_ODD:
        for k in range(base.size):
            base[k] = np.int32(0)
        for j in range(unit * count, (unit + 1) * count, 4):
            a, b = channels[j] * plane + here, channels[j + 1] * plane + here
            c, d = channels[j + 2] * plane + here, channels[j + 3] * plane + here
            _add_four(scores, a, b, c, d, of_scale, unit * NEIGHBOURS + j, np.int32(1), base)
    for k in range(scale_shift.size):
        scale_shift[k], location_shift[k] = base[k], np.int32(0)
    here += channel * plane
    a, b = here + _step(kind, 0, width), here + _step(kind, 1, width)
    c, d = here + _step(kind, 2, width), here + _step(kind, 3, width)
    place, fourth = AROUND * np.int64(kind == LATER_ODD), np.int32(kind != FIRST_PASS)
    _add_four(scores, a, b, c, d, of_scale, unit * (count + NEIGHBOURS) + count + place, fourth, scale_shift)
    _add_four(sides, a, b, c, d, of_location, unit * NEIGHBOURS + place, fourth, location_shift)


@numba.njit(cache=True, nogil=True, inline="always")
def _step(kind, number, width):
    """From a cell to one of its neighbours, in a plane of that width."""
    return OFFSETS[kind, number, 0] * width + OFFSETS[kind, number, 1]


@numba.njit(cache=True, nogil=True)
def correct_row(tables, scale_shift, location_shift, numbers, signs):
    """The tables that a row's symbols are coded with instead of `tables` uint8 [w], in place: numbers, and -1 where
    signs are swapped, else 1."""
    for k in range(np.uint64(numbers.size)):
        table = np.int32(tables[k])
        odd = table & ODD_STATES
        bin_ = (table - odd) + ((scale_shift[k] + (1 << (PLACES - 1))) >> PLACES)
        if table - odd >= FIRST_BIN:
            bin_ = min(max(bin_, FIRST_BIN), BINS - 1)
        else:
            bin_ = min(max(bin_, 1), FIRST_BIN - 1)
        size = abs(location_shift[k])
        step = np.int32(size >= _EDGE_0) + np.int32(size >= _EDGE_1) + np.int32(size >= _EDGE_2)
        numbers[k] = np.int32(bin_ + odd + TABLES * step)
        signs[k] = np.int32(1) - np.int32(2) * np.int32(step > 0 and location_shift[k] < 0)


@numba.njit(cache=True, nogil=True, inline="always")
def leave(of_scale, of_location, scale, location, column, table, symbol):
    """Notes the scores of a symbol of that table (without corrections) in its row's scale, location. of_scale,
    of_location: of the contexts, flat."""
    at = np.uint64(table * REACH + min(abs(np.int32(symbol)), REACH - 1))
    here, side = np.uint64(BEFORE) + np.uint64(column), of_location[at]
    side = -side if symbol < 0 else side  # no branch, which would be guessed wrongly
    scale[here], location[here] = of_scale[at], side


@numba.njit(cache=True, nogil=True)
def _note(symbols, index, near, first, kind, parity):
    """All scores of a pass, which an encoder knows before it codes: nothing looks at those that are coded later."""
    found, scales, locations = near
    of_scale, of_location = found[3].ravel(), found[4].ravel()
    for c in range(symbols.shape[0]):
        for r in range(symbols.shape[1]):
            scale, location = scales[first + c, ABOVE + r], locations[first + c, ABOVE + r]
            for k in range(0 if kind == LATER else (r + parity) & 1, symbols.shape[2], 1 if kind == LATER else 2):
                table = np.int32(index[c, r, k])
                if table:
                    leave(of_scale, of_location, scale, location, k, table, symbols[c, r, k])


@numba.njit(cache=True, nogil=True)
def _correct(symbols, index, near, first, kind, parity, begin, end, numbers, signed):
    """See corrected_pass: channels begin..end of a pass whose scores are noted."""
    height, width = symbols.shape[1:]
    flat = flattened(near)
    # Each allocated for itself: see rans.py.
    base, scale_shift, location_shift = np.empty(width, np.int32), np.empty(width, np.int32), np.empty(width, np.int32)
    row, signs = np.empty(width, np.int32), np.empty(width, np.int32)
    for c in range(begin, end):
        for r in range(height):
            if not index[c, r].any():
                continue
            place = np.uint64(0)
            for half in range(2 if kind == LATER else 1):
                sum_row(*flat, first + c, r, kind + half, base, scale_shift, location_shift)
                correct_row(index[c, r], scale_shift, location_shift, row, signs)
                start = half if kind == LATER else (r + parity) & 1
                for k in range(np.uint64(start), np.uint64(width), np.uint64(2)):
                    numbers[c, r, place] = np.uint16(row[k]) if index[c, r, k] else np.uint16(0)
                    signed[c, r, place] = np.int16(symbols[c, r, k] * signs[k])
                    place += np.uint64(1)


def corrected_pass(symbols: np.ndarray, index: np.ndarray, near: Scores, first: int, cells: int, parity: int):
    """A pass's symbols int16 and tables uint8 [C,h,w], from channel `first` on, as its segment's next one -> (symbols
    with the signs that are coded, tables uint16), in the order of coding, table 0 where nothing is coded: of the first
    group the pass's cells alone, of the later ones even columns before odd ones. cells: EVEN, ODD or EVERYWHERE;
    parity: that of the pass's cells in these arrays. By the team of threads."""
    later = cells == EVERYWHERE
    kind, (channels, height, width) = LATER if later else cells, symbols.shape
    shape = channels, height, width if later else (width + 1) // 2
    numbers, signed = np.zeros(shape, np.uint16), np.zeros(shape, np.int16)
    _note(symbols, index, near, first, kind, parity)
    edges = [channels * i // team_size() for i in range(team_size() + 1)]

    def part(number: int) -> None:
        _correct(symbols, index, near, first, kind, parity, *edges[number : number + 2], numbers, signed)

    map_threads(part, list(range(team_size())))
    return signed, numbers
