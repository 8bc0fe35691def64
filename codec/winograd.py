"""3x3 convolutions in float32 on a CPU with a quarter of the multiplications: Winograd's F(4x4, 3x3).

After Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016. Tiles of 6x6 inputs are transformed,
multiplied with the transformed kernel (36 products of matrices for all tiles at once), and transformed back to 4x4
outputs. The result differs from the plain sum by about 1e-5 of its size, so it serves the transforms alone: nothing
that the entropy coder must find again is computed here.
"""

import numba
import numpy as np
import torch
from torch import Tensor

from codec.threads import each

TILES = 128  # about so many are worked on together, so that they stay in the second-level cache
_KERNEL = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6), (1 / 24, 1 / 12, 1 / 6),
           (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))  # fmt: skip
_TWO, _FOUR, _FIVE, _EIGHT = (np.float32(n) for n in (2, 4, 5, 8))


@numba.njit(cache=True, nogil=True, fastmath=True)
def _to_frequencies(d0, d1, d2, d3, d4, d5, t0, t1, t2, t3, t4, t5):
    """Six samples -> six values, for all channels."""
    for c in range(d0.size):
        near, far = d4[c] - _FOUR * d2[c], d3[c] - _FOUR * d1[c]
        even, odd = d4[c] - d2[c], _TWO * (d3[c] - d1[c])
        t0[c] = _FOUR * d0[c] - _FIVE * d2[c] + d4[c]
        t1[c] = near + far
        t2[c] = near - far
        t3[c] = even + odd
        t4[c] = even - odd
        t5[c] = _FOUR * d1[c] - _FIVE * d3[c] + d5[c]


@numba.njit(cache=True, nogil=True, fastmath=True)
def _to_samples(m0, m1, m2, m3, m4, m5, t0, t1, t2, t3):
    """Six values -> four samples, for all channels."""
    for c in range(m0.size):
        a, b, d, e = m1[c] + m2[c], m1[c] - m2[c], m3[c] + m4[c], m3[c] - m4[c]
        t0[c] = m0[c] + a + d
        t1[c] = b + _TWO * e
        t2[c] = a + _FOUR * d
        t3[c] = b + _EIGHT * e + m5[c]


@numba.njit(cache=True, nogil=True)
def _at(x, zero, row, column):
    return x[row, column] if 0 <= row < x.shape[0] and 0 <= column < x.shape[1] else zero


@numba.njit(cache=True, nogil=True)
def _spread(x, row, tiles):
    """A row of tiles of [H,W,C], zeros beyond the edge -> [36,tiles,C]."""
    channels = x.shape[2]
    half, zero = np.empty((6, 6, channels), np.float32), np.zeros(channels, np.float32)
    for number in range(tiles.shape[1]):
        r, k = 4 * row - 1, 4 * number - 1
        for j in range(6):
            _to_frequencies(
                _at(x, zero, r, k + j), _at(x, zero, r + 1, k + j), _at(x, zero, r + 2, k + j),
                _at(x, zero, r + 3, k + j), _at(x, zero, r + 4, k + j), _at(x, zero, r + 5, k + j),
                half[0, j], half[1, j], half[2, j], half[3, j], half[4, j], half[5, j],
            )  # fmt: skip
        for i in range(6):
            _to_frequencies(
                half[i, 0], half[i, 1], half[i, 2], half[i, 3], half[i, 4], half[i, 5],
                tiles[6 * i, number], tiles[6 * i + 1, number], tiles[6 * i + 2, number], tiles[6 * i + 3, number],
                tiles[6 * i + 4, number], tiles[6 * i + 5, number],
            )  # fmt: skip


@numba.njit(cache=True, nogil=True, fastmath=True)
def _gather(tiles, bias, slope, row, y):
    """The inverse of _spread after the products, plus bias, through a leaky ReLU, into [H,W,C]."""
    height, width, channels = y.shape
    half, four = np.empty((4, 6, channels), np.float32), np.empty((4, channels), np.float32)
    for number in range(tiles.shape[1]):
        r, k = 4 * row, 4 * number
        for j in range(6):
            _to_samples(
                tiles[j, number], tiles[6 + j, number], tiles[12 + j, number], tiles[18 + j, number],
                tiles[24 + j, number], tiles[30 + j, number], half[0, j], half[1, j], half[2, j], half[3, j],
            )  # fmt: skip
        for i in range(min(4, height - r)):
            _to_samples(
                half[i, 0], half[i, 1], half[i, 2], half[i, 3], half[i, 4], half[i, 5],
                four[0], four[1], four[2], four[3],
            )  # fmt: skip
            for j in range(min(4, width - k)):
                source, target = four[j], y[r + i, k + j]
                for c in range(channels):
                    value = source[c] + bias[c]
                    target[c] = max(value, slope * value)


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
        rows = min(down, max(1, TILES // across))
        before, after = torch.empty(36, rows * across, inputs), torch.empty(36, rows * across, outputs)
        for x, y in zip(t.contiguous().numpy(), out.numpy(), strict=True):
            for top in range(0, down, rows):
                parts = [slice(i * across, (i + 1) * across) for i in range(min(rows, down - top))]

                def spread(part: slice, x=x, top=top) -> None:
                    _spread(x, top + part.start // across, before.numpy()[:, part])

                def gather(part: slice, y=y, top=top) -> None:
                    _gather(after.numpy()[:, part], self.bias, self.slope, top + part.start // across, y)

                used = parts[-1].stop
                each(spread, parts)
                torch.bmm(before[:, :used], self.weight, out=after[:, :used])
                each(gather, parts)
        return out
