"""Pillow's antialiased Lanczos reduction of an 8-bit plane, number for number, in a vectorised kernel.

The perceptual hashes are defined on these reductions, so they have to be equal, not close: coefficients as Pillow
computes them (libImaging/Resample.c: support 3, normalised, rounded to 22 fractional bits), rows first, rounded and
clipped to 8 bits, then columns (or columns first, see below). The tests hold it against Pillow's own resize; with a
Pillow that reduces otherwise, Pillow's own is used.
"""

import math
from functools import cache, lru_cache

import numpy as np
from numba import njit
from PIL import Image

_PRECISION = 22
_SUPPORT = 3.0


@njit(cache=True)
def _weights(size, out_size):
    """First source place and number of taps int32[out, 2]; weights int32[out, most taps], zero behind the taps."""
    scale = size / out_size
    stretch = max(scale, 1.0)
    support = _SUPPORT * stretch
    bounds = np.zeros((out_size, 2), np.int32)
    weights = np.zeros((out_size, int(math.ceil(support)) * 2 + 1), np.int32)
    taps = np.empty(weights.shape[1])
    for x in range(out_size):
        center = (x + 0.5) * scale
        first = max(int(center - support + 0.5), 0)
        count = min(int(center + support + 0.5), size) - first
        total = 0.0
        for t in range(count):
            at = (t + first - center + 0.5) * (1.0 / stretch)
            weight = 0.0
            if -3.0 <= at < 3.0:
                weight = 1.0
                if at != 0.0:
                    angle, third = at * math.pi, at / 3.0 * math.pi
                    weight = (math.sin(angle) / angle) * (math.sin(third) / third)
            taps[t] = weight
            total += weight
        for t in range(count):
            fixed = taps[t] / total * (1 << _PRECISION)
            weights[x, t] = int(fixed - 0.5) if fixed < 0 else int(fixed + 0.5)
        bounds[x, 0], bounds[x, 1] = first, count
    return bounds, weights


weights_of = lru_cache(maxsize=4096)(_weights)


@njit(nogil=True, cache=True)
def _clipped(total):
    value = total >> np.int32(_PRECISION)
    return np.uint8(min(max(value, np.int32(0)), np.int32(255)))


@njit(nogil=True, cache=True)
def _across(plane, bounds, weights):
    """Each row reduced to len(bounds) pixels."""
    out = np.empty((plane.shape[0], bounds.shape[0]), np.uint8)
    for y in range(plane.shape[0]):
        line = plane[y]
        for x in range(bounds.shape[0]):
            first, count = bounds[x, 0], bounds[x, 1]
            source, weight = line[first : first + count], weights[x, :count]
            total = np.int32(1 << (_PRECISION - 1))
            for t in range(count):
                total = np.int32(total + np.int32(np.int32(source[t]) * weight[t]))
            out[y, x] = _clipped(total)
    return out


@njit(nogil=True, cache=True)
def _down(plane, bounds, weights):
    """Each column reduced to len(bounds) pixels."""
    width = plane.shape[1]
    out = np.empty((bounds.shape[0], width), np.uint8)
    totals = np.empty(width, np.int32)
    for y in range(bounds.shape[0]):
        first, count = bounds[y, 0], bounds[y, 1]
        totals[:] = np.int32(1 << (_PRECISION - 1))
        for t in range(count):
            line, weight = plane[first + t], weights[y, t]
            for x in range(width):
                totals[x] = np.int32(totals[x] + np.int32(np.int32(line[x]) * weight))
        for x in range(width):
            out[y, x] = _clipped(totals[x])
    return out


def _reduced(plane: np.ndarray, width: int, height: int) -> np.ndarray:
    across, down = weights_of(plane.shape[1], width), weights_of(plane.shape[0], height)
    # Pillow 13 takes the columns first where that leaves much less to do; the rounding between makes it matter
    if plane.shape[0] - height > max(0, 2 * (plane.shape[1] - width)):
        return _across(_down(plane, *down), *across)
    return _down(_across(plane, *across), *down)


@cache
def equal_to_pillow() -> bool:
    """Whether the Pillow at hand reduces as Pillow 13 does, on a few shapes that would tell (checked once)."""
    for width, height in ((40, 30), (61, 200), (200, 61), (20, 70), (9, 5)):
        plane = np.random.default_rng(width).integers(0, 256, (height, width), dtype=np.uint8)
        for size in ((8, 8), (32, 32)):
            wanted = Image.fromarray(plane).resize(size, Image.Resampling.LANCZOS)
            if not np.array_equal(_reduced(plane, *size), np.asarray(wanted)):
                return False
    return True


def reduce_plane(plane: np.ndarray, width: int, height: int) -> np.ndarray:
    """uint8[h, w] -> uint8[height, width], equal to Pillow's `resize((width, height), LANCZOS)` of an L image."""
    if equal_to_pillow():
        return _reduced(plane, width, height)
    return np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.LANCZOS))
