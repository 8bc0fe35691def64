"""The filters of lapping.py in use: on cells float32 [B,h,w,768] in inference.py's order (row of part, column of part,
colour, 8, 8), in place, on the CPU in loops over lines of 48 samples at a time.
"""

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codec.lapping import HALF, filter_of


def lap_cells(cells: Tensor, v: Tensor) -> Tensor:
    """`lapping.lapped` on cells [B,h,w,768], in place; returns them."""
    if cells.is_cuda:
        return _on_device(cells, filter_of(v))
    for item in cells:
        _lap(item.numpy(), v.detach().numpy())
    return cells


def _on_device(cells: Tensor, p: Tensor) -> Tensor:
    parts = cells.view(*cells.shape[:3], 2, 2, 3, HALF, HALF)
    left, right = parts[:, :, :-1, :, 1], parts[:, :, 1:, :, 0]
    filtered = F.linear(torch.cat((left, right), -1), p)
    left.copy_(filtered[..., :HALF])
    right.copy_(filtered[..., HALF:])
    above, below = parts[:, :-1, :, 1], parts[:, 1:, :, 0]
    filtered = p @ torch.cat((above, below), -2)
    above.copy_(filtered[..., :HALF, :])
    below.copy_(filtered[..., HALF:, :])
    return cells


ACROSS = 48  # lines across a border of two cells: two parts, three colours, eight rows or columns


@numba.njit(cache=True, nogil=True, fastmath={"contract"}, inline="always")
def _times(v, differences, products):
    """products = V differences, [8,ACROSS]."""
    for i in range(8):
        row, first, c = products[i], differences[0], v[i, 0]
        for n in range(ACROSS):
            row[n] = c * first[n]
        for j in range(1, 8):
            c, other = v[i, j], differences[j]
            for n in range(ACROSS):
                row[n] += c * other[n]


@numba.njit(cache=True, nogil=True)
def new_scratch():
    """What the two functions below work in."""
    return np.empty((3, 8, ACROSS), np.float32)


@numba.njit(cache=True, nogil=True)
def lap_row(row, v, scratch):
    """Across the borders within a row of cells, float32 [w,768] in place."""
    sums, differences, products = scratch
    half = np.float32(0.5)
    for k in range(row.shape[0] - 1):
        for block in range(6):  # row of parts, colour
            at = 384 * (block // 3) + 64 * (block % 3)
            left, right = row[k, at + 192 : at + 256], row[k + 1, at : at + 64]
            for y in range(8):
                for x in range(8):
                    a, b = half * left[8 * y + x], half * right[8 * y + 7 - x]
                    sums[x, 8 * block + y] = a + b
                    differences[7 - x, 8 * block + y] = a - b
        _times(v, differences, products)
        for block in range(6):
            at = 384 * (block // 3) + 64 * (block % 3)
            left, right = row[k, at + 192 : at + 256], row[k + 1, at : at + 64]
            for y in range(8):
                for x in range(8):
                    a, b = sums[x, 8 * block + y], products[7 - x, 8 * block + y]
                    left[8 * y + x] = a + b
                    right[8 * y + 7 - x] = a - b


@numba.njit(cache=True, nogil=True)
def lap_rows(upper, lower, v, scratch):
    """Across the border between two rows of cells, float32 [w,768] each, in place."""
    sums, differences, products = scratch
    half = np.float32(0.5)
    for k in range(upper.shape[0]):
        for block in range(6):  # column of parts, colour
            at = 192 * (block // 3) + 64 * (block % 3)
            above, below = upper[k, at + 384 : at + 448], lower[k, at : at + 64]
            for y in range(8):
                for x in range(8):
                    a, b = half * above[8 * y + x], half * below[56 - 8 * y + x]
                    sums[y, 8 * block + x] = a + b
                    differences[7 - y, 8 * block + x] = a - b
        _times(v, differences, products)
        for block in range(6):
            at = 192 * (block // 3) + 64 * (block % 3)
            above, below = upper[k, at + 384 : at + 448], lower[k, at : at + 64]
            for y in range(8):
                for x in range(8):
                    a, b = sums[y, 8 * block + x], products[7 - y, 8 * block + x]
                    above[8 * y + x] = a + b
                    below[56 - 8 * y + x] = a - b


@numba.njit(cache=True, nogil=True)
def _lap(cells, v):
    """float32 [h,w,768] in place; v [8,8]."""
    scratch = new_scratch()
    for r in range(cells.shape[0]):
        lap_row(cells[r], v, scratch)
        if r:
            lap_rows(cells[r - 1], cells[r], v, scratch)
