"""3x3 convolutions in float32 on a CPU with a quarter of the multiplications: Winograd's F(4x4, 3x3).

After Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016. Tiles of 6x6 inputs are transformed,
multiplied with the transformed kernel (36 products of matrices for all tiles at once), and transformed back to 4x4
outputs. The result differs from the plain sum by about 1e-5 of its size, so it serves the transforms alone: nothing
that the entropy coder must find again is computed here.

The transforms work on rows of channels that lie constant distances apart, without which LLVM would not prove them
apart and would take one channel at a time.
"""

import numba
import numpy as np
import torch
from torch import Tensor

TILES = 112  # about so many are worked on together, so that they stay in the cache
_LANES = 128  # channels of a tile that are worked on together; the distance of rows
_KERNEL = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6), (1 / 24, 1 / 12, 1 / 6),
           (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))  # fmt: skip
_TWO, _FOUR, _FIVE, _EIGHT = (np.float32(n) for n in (2, 4, 5, 8))
_NEXT, _LINE = np.uint64(_LANES), np.uint64(6 * _LANES)  # from one sample of a tile to the next, and to that below


@numba.njit(cache=True, nogil=True, fastmath=True, inline="always")
def _to_frequencies(source, at, away, work, to, step, channels):
    """Six rows of channels in flat `source`, `away` apart from `at` on -> six in flat `work`, `step` apart."""
    two, three, four, five = np.uint64(2), np.uint64(3), np.uint64(4), np.uint64(5)
    first, second, third = at + away, at + two * away, at + three * away
    fourth, fifth = at + four * away, at + five * away
    for c in range(channels):
        d1, d2, d3, d4 = source[first + c], source[second + c], source[third + c], source[fourth + c]
        near, far = d4 - _FOUR * d2, d3 - _FOUR * d1
        even, odd = d4 - d2, _TWO * (d3 - d1)
        lowest = _FOUR * source[at + c] - _FIVE * d2 + d4
        highest = _FOUR * d1 - _FIVE * d3 + source[fifth + c]
        work[to + c] = lowest
        work[to + step + c] = near + far
        work[to + two * step + c] = near - far
        work[to + three * step + c] = even + odd
        work[to + four * step + c] = even - odd
        work[to + five * step + c] = highest


@numba.njit(cache=True, nogil=True, fastmath=True, inline="always")
def _to_samples(work, at, step, channels):
    """Six rows of channels of flat `work`, `step` apart from `at` on -> four in their place."""
    two, three, four, five = np.uint64(2), np.uint64(3), np.uint64(4), np.uint64(5)
    for c in range(channels):
        m1, m2 = work[at + step + c], work[at + two * step + c]
        m3, m4 = work[at + three * step + c], work[at + four * step + c]
        first, last = work[at + c], work[at + five * step + c]
        a, b, d, e = m1 + m2, m1 - m2, m3 + m4, m3 - m4
        work[at + c] = first + a + d
        work[at + step + c] = b + _TWO * e
        work[at + two * step + c] = a + _FOUR * d
        work[at + three * step + c] = b + _EIGHT * e + last


@numba.njit(cache=True, nogil=True)
def _take(x, r, k, first, count, patch):
    """Samples (r.., k..) of [H,W,C], zeros beyond the edge, channels from `first` on -> flat patch."""
    for i in range(6):
        for j in range(6):
            row = patch[(6 * i + j) * _LANES : (6 * i + j) * _LANES + count]
            if 0 <= r + i < x.shape[0] and 0 <= k + j < x.shape[1]:
                row[:] = x[r + i, k + j, first : first + count]
            else:
                row[:] = np.float32(0)


@numba.njit(cache=True, nogil=True)
def _spread(x, top, across, used, tiles):
    """Rows of `across` tiles each, from the one numbered `top` on, of [H,W,C], zeros beyond the edge -> the first
    `used` of [36,n,C]."""
    height, width, channels = x.shape
    work, patch = np.empty(36 * _LANES, np.float32), np.empty(36 * _LANES, np.float32)
    flat, out, sample, line = x.ravel(), tiles.ravel(), np.uint64(channels), np.uint64(width * channels)
    away = np.uint64(tiles.shape[1] * channels)
    for number in range(used):
        r, k = 4 * (top + number // across) - 1, 4 * (number % across) - 1
        within = r >= 0 and k >= 0 and r + 6 <= height and k + 6 <= width
        for first in range(0, channels, _LANES):
            count = np.uint64(min(_LANES, channels - first))
            if within:
                at = np.uint64((r * width + k) * channels + first)
                for j in range(np.uint64(6)):
                    _to_frequencies(flat, at + j * sample, line, work, j * _NEXT, _LINE, count)
            else:
                _take(x, r, k, first, count, patch)
                for j in range(np.uint64(6)):
                    _to_frequencies(patch, j * _NEXT, _LINE, work, j * _NEXT, _LINE, count)
            for i in range(np.uint64(6)):
                _to_frequencies(work, i * _LINE, _NEXT, work, i * _LINE, _NEXT, count)
            to = np.uint64(number * channels + first)
            for part in range(np.uint64(36)):
                for c in range(count):
                    out[to + part * away + c] = work[part * _NEXT + c]


@numba.njit(cache=True, nogil=True, fastmath=True)
def _gather(tiles, used, bias, slope, top, across, y):
    """The inverse of _spread after the products, plus bias, through a leaky ReLU, into [H,W,C]."""
    height, width, channels = y.shape
    work = np.empty(36 * _LANES, np.float32)
    given, flat, away = tiles.ravel(), y.ravel(), np.uint64(tiles.shape[1] * channels)
    for number in range(used):
        r, k = 4 * (top + number // across), 4 * (number % across)
        for first in range(0, channels, _LANES):
            count, begin = np.uint64(min(_LANES, channels - first)), np.uint64(first)
            at = np.uint64(number * channels + first)
            for part in range(np.uint64(36)):
                for c in range(count):
                    work[part * _NEXT + c] = given[at + part * away + c]
            for j in range(np.uint64(6)):
                _to_samples(work, j * _NEXT, _LINE, count)
            for i in range(np.uint64(4)):
                _to_samples(work, i * _LINE, _NEXT, count)
            for i in range(min(4, height - r)):
                for j in range(min(4, width - k)):
                    at, to = np.uint64(6 * i + j) * _NEXT, np.uint64(((r + i) * width + k + j) * channels + first)
                    for c in range(count):
                        value = work[at + c] + bias[begin + c]
                        flat[to + c] = max(value, slope * value)


class Convolution3x3:
    """Leaky ReLU of a 3x3 convolution, stride 1, zeros beyond the edge: float32 [B,H,W,in] -> [B,H,W,out]."""

    def __init__(self, weight: Tensor, bias: Tensor, slope: float):
        """weight [out,in,3,3]; slope: the ReLU's below zero, at most 1."""
        kernel = torch.tensor(_KERNEL, dtype=torch.float64)
        product = torch.einsum("ik,ockl,jl->ijco", kernel, weight.double(), kernel)
        self.weight = product.flatten(0, 1).float().contiguous()  # [36,in,out]
        self.bias, self.slope = bias.float().numpy(), np.float32(slope)

    def __call__(self, t: Tensor) -> Tensor:
        batch, height, width, _ = t.shape
        inputs, outputs = self.weight.shape[1:]
        out = torch.empty(batch, height, width, outputs)
        down, across = -(-height // 4), -(-width // 4)
        rows = max(1, TILES // across)
        rows = -(-down // -(-down // rows))  # groups of about the same size
        before, after = torch.empty(36, rows * across, inputs), torch.empty(36, rows * across, outputs)
        for x, y in zip(t.contiguous().numpy(), out.numpy(), strict=True):
            for top in range(0, down, rows):
                used = min(rows, down - top) * across
                _spread(x, top, across, used, before.numpy())
                torch.bmm(before[:, :used], self.weight, out=after[:, :used])
                _gather(after.numpy(), used, self.bias, self.slope, top, across, y)
        return out
