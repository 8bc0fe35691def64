"""A linear layer on latents that are mostly zero, float32 on a CPU.

What is coded of the higher frequencies is mostly zero, and its means are: at quality 60, 3 to 27 % of the last group
differ from zero in four Kodak pictures. Multiplying what does, row of weights by row, takes less time than multiplying
all, though it does so less efficiently: by the share that is not zero `split_of` says from which channel on. Results
differ from the plain product's by rounding.
"""

import numba
import numpy as np
import torch
from torch import Tensor

SLOWER = 2.3  # times as long as in a dense product one multiplication takes, measured
OVERHEAD = 0.06  # what listing adds, in dense products of the channels that are listed
SAMPLED = 16  # one cell of so many is looked at to choose

EVERYTHING = slice(None), slice(None)
Listed = tuple[int, np.ndarray, np.ndarray, np.ndarray]  # first channel; channels, values; where each cell's end


def split_of(y: Tensor, starts: list[int]) -> int:
    """From which of the channels `starts`, or of all, on to take y [..,C] as sparse, by what is not zero in some cells;
    C for none."""
    channels = y.shape[-1]
    share = (y.reshape(-1, channels)[::SAMPLED] != 0).float().mean(0)
    best, choice = float(channels), channels
    for start in starts:
        cost = start + float(share[start:].sum()) * SLOWER + OVERHEAD * (channels - start)
        if cost < best:
            best, choice = cost, start
    return choice


@numba.njit(cache=True, nogil=True)
def _list(y, first, places, values, ends):
    at = 0
    for r in range(y.shape[0]):
        for c in range(first, y.shape[1]):
            places[at], values[at] = c, y[r, c]
            at += np.int64(y[r, c] != 0)
        while at & 3:  # in fours, as they are multiplied
            places[at], values[at] = first, np.float32(0)
            at += 1
        ends[r] = at


def listed(y: Tensor, first: int) -> Listed:
    """What is not zero in the channels from `first` on of each cell of y [n,C]."""
    size = y.shape[0] * (y.shape[1] - first + 4)
    places, values, ends = np.empty(size, np.uint16), np.empty(size, np.float32), np.empty(len(y), np.int64)
    _list(y.numpy(), first, places, values, ends)
    return first, places, values, ends


def worth_listing(y: Tensor, starts: list[int]) -> Listed | None:
    """`listed` of the cells of y [h,w,C], where so little is not zero that it is worth it."""
    first = split_of(y, starts)
    return None if first == y.shape[-1] else listed(y.view(-1, y.shape[-1]), first)


@numba.njit(cache=True, nogil=True, fastmath=True)
def _add(places, values, ends, columns, left, top, weight, out):
    """out [h,w,N] += the listed cells (top.., left..), in rows of `columns` cells, times weight [C,N]."""
    height, width, count = out.shape
    flat, sums, size = weight.ravel(), out.ravel(), np.uint64(count)
    for r in range(height):
        for k in range(width):
            cell, to = (top + r) * columns + left + k, np.uint64((r * width + k) * count)
            for at in range(ends[cell - 1] if cell else 0, ends[cell], 4):
                a, b = np.uint64(places[at]) * size, np.uint64(places[at + 1]) * size
                c, d = np.uint64(places[at + 2]) * size, np.uint64(places[at + 3]) * size
                of_a, of_b, of_c, of_d = values[at], values[at + 1], values[at + 2], values[at + 3]
                for i in range(size):
                    more = of_a * flat[a + i] + of_b * flat[b + i] + of_c * flat[c + i] + of_d * flat[d + i]
                    sums[to + i] += more


class Product:
    """weight [N,C] times cells, plus a bias."""

    def __init__(self, weight: Tensor, bias: Tensor | None, starts: list[int], layer):
        """layer(weight, bias): a dense one [..,in] -> [..,out]. starts: where splits may be."""
        self.starts = starts
        self.rows = weight.t().contiguous().numpy()
        self.dense = {start: layer(weight[:, :start].contiguous(), bias) for start in (*starts, weight.shape[1])}

    def __call__(self, y: Tensor, cells: list[Listed | None], inner: tuple[slice, slice] = EVERYTHING) -> Tensor:
        """y [B,h,w,C], of each picture its cells as `listed` gives them, if they are -> [B,h',w',N] of their rows and
        columns `inner`."""
        parts = [self._one(*pair, inner) for pair in zip(y.split(1), cells, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _one(self, y: Tensor, cells: Listed | None, inner: tuple[slice, slice]) -> Tensor:
        first = y.shape[-1] if cells is None else cells[0]
        out = self.dense[first](y[:, *inner, :first]).contiguous()
        if cells is not None:
            top, left = (part.indices(size)[0] for part, size in zip(inner, y.shape[1:3], strict=True))
            _add(*cells[1:], y.shape[2], left, top, self.rows, out[0].numpy())
        return out
