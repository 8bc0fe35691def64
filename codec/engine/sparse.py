"""A linear layer on latents that are mostly zero, float32 on a CPU.

What is coded of the last group, which has no means, is mostly zero: at quality 60 all but 3 to 27 % in four Kodak
pictures. Multiplying what is not, row of weights by row, takes less time than multiplying all, though it does so less
efficiently; `worth_listing` weighs the two. The lists are made from the entropy coder's planes, so that these channels
never lie cell by cell. Results differ from the plain product's by rounding.
"""

from typing import NamedTuple

import numba
import numpy as np
from torch import Tensor

from codec.entropy import trellis_cpu

SLOWER = 2.3  # times as long as in a dense product one multiplication takes, measured
OVERHEAD = 0.06  # what listing adds, in dense products of the channels that are listed

EVERYTHING = slice(None), slice(None)


class Planes(NamedTuple):
    """Rows of cells as the entropy coder has them, in trellis-coded quantisation."""

    symbols: np.ndarray  # int16 [C,H,W], contiguous
    tables: np.ndarray  # uint8 [C,H,W]
    rows: tuple[int, int]
    columns: tuple[int, int]


class Listed(NamedTuple):
    """What is not zero in some cells, one cell after the other, in fours: zeros fill them up."""

    places: np.ndarray  # uint16: channels, counted from the first that is listed
    values: np.ndarray  # float32
    begins: np.ndarray  # int64, of each cell
    ends: np.ndarray


@numba.njit(cache=True, nogil=True)
def _count(symbols, first, rows, columns, counts):
    """How many symbols are not zero in each cell: of [C,H,W], from a channel on, in rows and columns -> uint16
    [h,w]."""
    channels, height, width = symbols.shape
    flat, span = symbols.ravel(), np.uint64(columns[1] - columns[0])
    for r in range(rows[0], rows[1]):
        row = counts[r - rows[0]]
        row[:] = 0
        for c in range(first, channels):
            at = np.uint64((c * height + r) * width + columns[0])
            for k in range(span):
                row[k] += np.uint16(flat[at + k] != 0)


@numba.njit(cache=True, nogil=True)
def _list(symbols, tables, first, rows, columns, counts, gain, at, places, values, begins, ends):
    """The cells' lists from position `at` on; returns the position after."""
    channels, height, width = symbols.shape
    flat, numbers, span = symbols.ravel(), tables.ravel(), np.uint64(columns[1] - columns[0])
    to = np.empty(span, np.uint64)
    for r in range(rows[0], rows[1]):
        line = r - rows[0]
        for k in range(span):
            to[k], begins[line, k] = at, at
            at += (np.int64(counts[line, k]) + 4) & ~3  # one more than there are, at least: what is zero goes there
        for c in range(first, channels):
            from_, half = np.uint64((c * height + r) * width + columns[0]), np.float32(0.5) * gain[c]
            for k in range(span):
                symbol, place = flat[from_ + k], to[k]
                places[place] = np.uint16(c - first)
                values[place] = half * np.float32(trellis_cpu.halves(symbol, numbers[from_ + k]))
                to[k] = place + np.uint64(symbol != 0)
        for k in range(span):
            end = to[k]
            while end & np.uint64(3):
                places[end], values[end] = 0, 0
                end += np.uint64(1)
            ends[line, k] = end
    return at


def worth_listing(parts: list[Planes], first: int, gain: np.ndarray, always: bool = False) -> Listed | None:
    """What is not zero from channel `first` on in planes that lie one over the other, each channel times its gain
    [C]; None where it is so much that multiplying all is faster, unless asked for `always`."""
    counts = [np.empty((part.rows[1] - part.rows[0], part.columns[1] - part.columns[0]), np.uint16) for part in parts]
    for part, count in zip(parts, counts, strict=True):
        _count(part.symbols, first, part.rows, part.columns, count)
    cells, channels = sum(count.size for count in counts), len(gain) - first
    there = sum(int(count.sum(dtype=np.int64)) for count in counts)
    if there * SLOWER + OVERHEAD * channels * cells >= channels * cells and not always:
        return None
    size = there + 4 * cells + 4
    places, values = np.empty(size, np.uint16), np.empty(size, np.float32)
    begins, ends = np.empty((2, sum(map(len, counts)), counts[0].shape[1]), np.int64)
    at, line = 0, 0
    for part, count in zip(parts, counts, strict=True):
        lines = slice(line, line + len(count))
        at = _list(*part[:2], first, *part[2:], count, gain, at, places, values, begins[lines], ends[lines])
        line += len(count)
    return Listed(places, values, begins, ends)


@numba.njit(cache=True, nogil=True)
def _dense(symbols, tables, first, rows, columns, gain, out):
    """The same channels' values times their gains, cell by cell: out [h,w,C - first]."""
    channels, height, width = symbols.shape
    flat, numbers = symbols.ravel(), tables.ravel()
    for r in range(rows[0], rows[1]):
        for k in range(columns[0], columns[1]):
            cell = out[r - rows[0], k - columns[0]]
            for c in range(first, channels):
                at = (c * height + r) * width + k
                cell[c - first] = np.float32(0.5) * gain[c] * np.float32(trellis_cpu.halves(flat[at], numbers[at]))


def dense(parts: list[Planes], first: int, gain: np.ndarray, out: np.ndarray) -> None:
    """What `worth_listing` lists, zeros and all, to out float32 [h,w,C - first]."""
    line = 0
    for part in parts:
        lines = slice(line, line + part.rows[1] - part.rows[0])
        _dense(*part[:2], first, *part[2:], gain, out[lines])
        line = lines.stop


@numba.njit(cache=True, nogil=True, fastmath=True)
def _add(places, values, begins, ends, left, top, weight, out):
    """out [h,w,N] += the listed cells (top.., left..) times weight [C,N]."""
    height, width, count = out.shape
    flat, sums, size = weight.ravel(), out.ravel(), np.uint64(count)
    for r in range(height):
        for k in range(width):
            to = np.uint64((r * width + k) * count)
            for at in range(begins[top + r, left + k], ends[top + r, left + k], 4):
                a, b = np.uint64(places[at]) * size, np.uint64(places[at + 1]) * size
                c, d = np.uint64(places[at + 2]) * size, np.uint64(places[at + 3]) * size
                of_a, of_b, of_c, of_d = values[at], values[at + 1], values[at + 2], values[at + 3]
                for i in range(size):
                    more = of_a * flat[a + i] + of_b * flat[b + i] + of_c * flat[c + i] + of_d * flat[d + i]
                    sums[to + i] += more


class Product:
    """weight [N,C] times cells, plus a bias, where those from channel `first` on are listed."""

    def __init__(self, weight: Tensor, bias: Tensor | None, first: int, layer):
        """layer(weight, bias): a dense one [..,in] -> [..,out]."""
        self.rows = weight[:, first:].t().contiguous().numpy()
        self.dense = layer(weight[:, :first].contiguous(), bias)

    def partial_product(self, y: Tensor, inner: tuple[slice, slice] = EVERYTHING) -> Tensor:
        """y [B,h,w,first] -> [B,h',w',N] of its rows and columns `inner`, without what is listed."""
        return self.dense(y[:, *inner]).contiguous()

    def __call__(
        self, y: Tensor, lists: list[Listed], inner: tuple[slice, slice] = EVERYTHING, partial: Tensor | None = None
    ) -> Tensor:
        """y [B,h,w,first], of each picture the other channels of its cells -> [B,h',w',N] of their rows and columns
        `inner`; partial: what `partial_product` gave for it already, which is written to."""
        out = self.partial_product(y, inner) if partial is None else partial
        top, left = (part.indices(size)[0] for part, size in zip(inner, y.shape[1:3], strict=True))
        for item, cells in zip(out, lists, strict=True):
            _add(*cells, left, top, self.rows, item.numpy())
        return out
