"""The filters of lapping.py in use: on cells float32 [B,h,w,768] in inference.py's order (row of part, column of part,
colour, 8, 8), in place, on the CPU in loops over blocks of 8x8 samples.
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


@numba.njit(cache=True, nogil=True)
def new_scratch(v):
    """What the two functions below work in, for a filter v [8,8]: it, transposed and with both axes turned, flat, and
    places for sums, differences and products of 64 samples."""
    turned = np.empty(64, np.float32)
    for i in range(8):
        for j in range(8):
            turned[8 * j + i] = v[7 - i, 7 - j]
    return turned, np.empty(64, np.float32), np.empty(64, np.float32), np.empty(64, np.float32)


@numba.njit(cache=True, nogil=True, fastmath={"contract"}, inline="always")
def _product(weights, at, step, rows, out, place):
    """out[place + x] = sum of weights[at + m step] * rows[8 m + x] for x in 0..7, over m in 0..7."""
    a, b, c, d = weights[at], weights[at + step], weights[at + np.uint64(2) * step], weights[at + np.uint64(3) * step]
    at += np.uint64(4) * step
    e, f, g, h = weights[at], weights[at + step], weights[at + np.uint64(2) * step], weights[at + np.uint64(3) * step]
    for x in range(np.uint64(8)):
        first = a * rows[x] + b * rows[np.uint64(8) + x] + c * rows[np.uint64(16) + x] + d * rows[np.uint64(24) + x]
        out[place + x] = first + (
            e * rows[np.uint64(32) + x] + f * rows[np.uint64(40) + x]
            + g * rows[np.uint64(48) + x] + h * rows[np.uint64(56) + x]
        )  # fmt: skip


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _across_columns(pixels, left, right, turned, sums, differences, products):
    """The border between two blocks of 8x8 samples side by side, which begin at `left` and `right` in flat pixels."""
    half = np.float32(0.5)
    for y in range(np.uint64(8)):
        for x in range(np.uint64(8)):
            at = np.uint64(8) * y + x
            a, b = half * pixels[left + at], half * pixels[right + np.uint64(8) * y + (np.uint64(7) - x)]
            sums[at], differences[at] = a + b, a - b
    for y in range(np.uint64(8)):
        _product(differences, np.uint64(8) * y, np.uint64(1), turned, products, np.uint64(8) * y)
    for y in range(np.uint64(8)):
        for x in range(np.uint64(8)):
            at = np.uint64(8) * y + x
            pixels[left + at] = sums[at] + products[at]
            pixels[right + np.uint64(8) * y + (np.uint64(7) - x)] = sums[at] - products[at]


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _across_rows(upper, above, lower, below, turned, sums, differences, products):
    """The same of two blocks one over the other, which begin at `above` in `upper` and at `below` in `lower`."""
    half = np.float32(0.5)
    for y in range(np.uint64(8)):
        for x in range(np.uint64(8)):
            at = np.uint64(8) * y + x
            a, b = half * upper[above + at], half * lower[below + np.uint64(8) * (np.uint64(7) - y) + x]
            sums[at], differences[at] = a + b, a - b
    for y in range(np.uint64(8)):
        _product(turned, y, np.uint64(8), differences, products, np.uint64(8) * y)
    for y in range(np.uint64(8)):
        for x in range(np.uint64(8)):
            at = np.uint64(8) * y + x
            upper[above + at] = sums[at] + products[at]
            lower[below + np.uint64(8) * (np.uint64(7) - y) + x] = sums[at] - products[at]


@numba.njit(cache=True, nogil=True)
def lap_row(row, scratch):
    """Across the borders within a row of cells, float32 [w,768] in place."""
    turned, sums, differences, products = scratch
    pixels = row.reshape(-1)
    for k in range(row.shape[0] - 1):
        for block in range(6):  # row of parts, colour
            at = 768 * k + 384 * (block // 3) + 64 * (block % 3)
            _across_columns(pixels, np.uint64(at + 192), np.uint64(at + 768), turned, sums, differences, products)


@numba.njit(cache=True, nogil=True)
def lap_rows(upper, lower, scratch):
    """Across the border between two rows of cells, float32 [w,768] each, in place."""
    turned, sums, differences, products = scratch
    one, other = upper.reshape(-1), lower.reshape(-1)
    for k in range(upper.shape[0]):
        for block in range(6):  # column of parts, colour
            at = 768 * k + 192 * (block // 3) + 64 * (block % 3)
            _across_rows(one, np.uint64(at + 384), other, np.uint64(at), turned, sums, differences, products)


@numba.njit(cache=True, nogil=True)
def _lap(cells, v):
    """float32 [h,w,768] in place; v [8,8]."""
    scratch = new_scratch(v)
    for r in range(cells.shape[0]):
        lap_row(cells[r], scratch)
        if r:
            lap_rows(cells[r - 1], cells[r], scratch)
