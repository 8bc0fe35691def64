"""Elementwise functions between the networks' layers, each in one pass over memory where torch would take several.

On the CPU; transforms.py and scale_indices.py call them, and torch's own for other devices.
"""

import math

import numba
import numpy as np
import torch
from torch import Tensor

from codec.entropy import trellis, trellis_cpu
from codec.format import MEAN_LIMIT

_TWO_OVER_LIMIT = np.float32(2 * math.log2(math.e) / MEAN_LIMIT)
_EXP2 = [np.float32(math.log(2) ** k / math.factorial(k)) for k in range(8)]  # Taylor series of 2^f
_E0, _E1, _E2, _E3, _E4, _E5, _E6, _E7 = _EXP2
_LIMIT = np.float32(MEAN_LIMIT)
_LOG2 = np.float32(math.log(2))


@numba.njit(cache=True, nogil=True, inline="always")
def _store(values, out):
    """float32 [n] -> out [n], bfloat16 as uint16, to nearest even."""
    bits = values.view(np.uint32)
    for i in range(out.size):
        word = bits[i]
        out[i] = np.uint16((word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _asinh(x, out, halves):
    """float32 [B,h,w,C], any strides -> out [B,h,w,C], float32 or (halves) bfloat16 as uint16. Within 1e-6 of asinh."""
    channels = x.shape[3]
    row, sums = np.empty(channels, np.float32), np.empty(channels, np.float32)
    results = np.empty(channels, np.float32)
    exponents = np.empty(channels, np.int32)
    bits = sums.view(np.int32)
    one, two = np.float32(1), np.float32(2)
    for b in range(x.shape[0]):
        for r in range(x.shape[1]):
            for k in range(x.shape[2]):
                for c in range(channels):
                    row[c] = x[b, r, k, c]
                for c in range(channels):
                    size = abs(row[c])
                    sums[c] = size + np.sqrt(size * size + one)
                # sums = 2^exponent m with m from 0.707 to 1.414; log m = 2 artanh((m - 1) / (m + 1))
                for c in range(channels):
                    shifted = bits[c] - np.int32(0x3F3504F3)
                    exponents[c] = shifted >> np.int32(23)
                    bits[c] = (shifted & np.int32(0x7FFFFF)) + np.int32(0x3F3504F3)
                for c in range(channels):
                    m = sums[c]
                    t = (m - one) / (m + one)
                    s = t * t
                    series = one + s * (
                        np.float32(1 / 3) + s * (np.float32(1 / 5) + s * (np.float32(1 / 7) + s * np.float32(1 / 9)))
                    )
                    value = two * t * series + np.float32(exponents[c]) * _LOG2
                    results[c] = value if row[c] >= 0 else -value
                if halves:
                    _store(results, out[b, r, k])
                else:
                    for c in range(channels):
                        out[b, r, k, c] = results[c]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _limited(x, out, halves):
    """[n,C], float32 or (halves) bfloat16 as uint16 -> out float32 [n,C]: L tanh(x / L), within 4e-6 of it, L being
    MEAN_LIMIT."""
    channels = x.shape[1]
    values, powers = np.empty(channels, np.float32), np.empty(channels, np.float32)
    bits, power_bits = values.view(np.uint32), powers.view(np.int32)
    one = np.float32(1)
    for row in range(x.shape[0]):
        if halves:
            for c in range(channels):
                bits[c] = np.uint32(x[row, c]) << np.uint32(16)
        else:
            for c in range(channels):
                values[c] = x[row, c]
        for c in range(channels):
            # e^(-2 |x| / L) as a power of two: 2^whole 2^part
            exponent = max(-abs(values[c]) * _TWO_OVER_LIMIT, np.float32(-100))
            whole = np.floor(exponent)
            f = exponent - whole
            power_bits[c] = (np.int32(whole) + np.int32(127)) << np.int32(23)
            part = _E0 + f * (_E1 + f * (_E2 + f * (_E3 + f * (_E4 + f * (_E5 + f * (_E6 + f * _E7))))))
            power = powers[c] * part
            value = _LIMIT * (one - power) / (one + power)
            out[row, c] = value if values[c] >= 0 else -value


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _looked_up(symbols, tables, table, out):
    """int16 symbols and the tables that code them [B,h,w,C], any strides -> out[..] = table[min(magnitude in halves,
    last)]."""
    last = table.size - 1
    for b in range(symbols.shape[0]):
        for r in range(symbols.shape[1]):
            for k in range(symbols.shape[2]):
                for c in range(symbols.shape[3]):
                    size = abs(trellis_cpu.halves(symbols[b, r, k, c], tables[b, r, k, c]))
                    out[b, r, k, c] = table[min(size, last)]


def asinh(t: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 [B,h,w,C] -> its inverse hyperbolic sine, within 1e-6, rounded to `dtype`."""
    if t.is_cuda:
        return torch.asinh(t).to(dtype)
    out = torch.empty(t.shape, dtype=dtype)
    halves = dtype == torch.bfloat16
    _asinh(t.numpy(), as_numbers(out), halves)
    return out


def limited(t: Tensor) -> Tensor:
    """float32 or bfloat16 [..,C] -> float32: MEAN_LIMIT tanh(t / MEAN_LIMIT), within 4e-6."""
    if t.is_cuda:
        return t.float().div_(MEAN_LIMIT).tanh_().mul_(MEAN_LIMIT)
    t = t.contiguous()
    out = torch.empty(t.shape)
    channels = t.shape[-1]
    _limited(as_numbers(t).reshape(-1, channels), out.view(-1, channels).numpy(), t.dtype == torch.bfloat16)
    return out


def looked_up(symbols: Tensor, tables: Tensor, table: Tensor) -> Tensor:
    """Symbols int16 and the tables that code them uint8 [B,h,w,C] -> table[min(magnitude in halves, last)], of the
    table's type, channels last in memory; exact. table: up to trellis.LOUDEST."""
    if symbols.is_cuda:
        return table[trellis.halves_of(symbols, tables)]
    out = torch.empty(symbols.shape, dtype=table.dtype)
    _looked_up(symbols.numpy(), tables.numpy(), table.numpy(), out.numpy())
    return out


def as_numbers(t: Tensor) -> np.ndarray:
    """As numpy, bfloat16 as uint16."""
    return t.view(torch.int16).numpy().view(np.uint16) if t.dtype == torch.bfloat16 else t.numpy()


@numba.njit(cache=True, nogil=True)
def _gathered(packed, taps, top, left, beyond, out):
    height, width = packed.shape[1:3]
    for plane in range(out.shape[0]):
        row = plane & 1
        for tap in range(taps.shape[0]):
            down, over = taps[tap]
            other = (row + down) & 1
            source = packed[plane - row + other]
            first, start = top + (row + down - other) // 2, left + (1 - row + over - other) // 2
            for r in range(out.shape[1]):
                for k in range(out.shape[2]):
                    y, x, cell = first + r, start + k, out[plane, r, k, tap]
                    if 0 <= y < height and 0 <= x < width:
                        cell[:] = source[y, x]
                    else:
                        cell[:] = beyond


def gathered(packed: Tensor, taps: list[tuple[int, int]], inner: tuple[int, int, int, int], beyond: int) -> Tensor:
    """checkerboard.around on the CPU, where its many small copies would make threads wait for each other."""
    top, bottom, left, right = inner
    out = packed.new_empty(len(packed), bottom - top, right - left, len(taps), packed.shape[-1])
    numbers = as_numbers(packed.contiguous())
    _gathered(numbers, np.array(taps), top, left, numbers.dtype.type(beyond), as_numbers(out))
    return out
