"""Separable windows of eleven taps, and halves: what SSIMULACRA2 and the guard against local loss share.

A caller brings a row at a time: smoothed along itself into a ring of eleven (`across`), then, when the rows around it
are there, along the columns (`down`, at the places that `around` names). What is done between is the caller's.
"""

import numba
import numpy as np

REACH = 5  # pixels that a window reaches to each side
EXACT = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}}
SUMS = EXACT | {"fastmath": {"contract", "nsz", "reassoc"}}  # the order of additions is free: vectors


def gaussian(sigma: float) -> np.ndarray:
    """float32 [6]: the window's weights from its middle on; all eleven add up to 1."""
    weights = np.exp(-((np.arange(-REACH, REACH + 1) / sigma) ** 2) / 2)
    return (weights / weights.sum())[REACH:].astype(np.float32)


@numba.njit(**SUMS)
def across(s, k, out):
    """out [n]: s [n + 10] in the window k [6]."""
    for j in range(out.size):
        out[j] = (
            k[0] * s[j + 5]
            + k[1] * (s[j + 4] + s[j + 6])
            + k[2] * (s[j + 3] + s[j + 7])
            + k[3] * (s[j + 2] + s[j + 8])
            + k[4] * (s[j + 1] + s[j + 9])
            + k[5] * (s[j] + s[j + 10])
        )


@numba.njit(**SUMS)
def down(ring, at, m, k, out):
    """out [n]: rows `at` [11] of ring [11,m,n] in the window k [6]."""
    a0, a1, a2, a3, a4 = ring[at[0], m], ring[at[1], m], ring[at[2], m], ring[at[3], m], ring[at[4], m]
    a5, a6, a7, a8, a9 = ring[at[5], m], ring[at[6], m], ring[at[7], m], ring[at[8], m], ring[at[9], m]
    a10 = ring[at[10], m]
    for j in range(out.size):
        out[j] = (
            k[0] * a5[j]
            + k[1] * (a4[j] + a6[j])
            + k[2] * (a3[j] + a7[j])
            + k[3] * (a2[j] + a8[j])
            + k[4] * (a1[j] + a9[j])
            + k[5] * (a0[j] + a10[j])
        )


@numba.njit(**EXACT)
def around(row, height, at):
    """Where the eleven rows around one lie in the ring (row modulo 11), mirrored at the picture's borders."""
    for i in range(11):
        other = row + i - 5
        if other < 0:
            other = -1 - other
        if other >= height:
            other = 2 * height - 1 - other
        at[i] = other % 11


@numba.njit(**EXACT)
def halve(planes, first, rows, out, to):
    """2x2 means of [C,n,W], of its rows from `first` on, to out [C,.,ceil(W/2)] from row `to` on; a last odd row or
    column stands for two."""
    quarter, half, width = np.float32(0.25), np.float32(0.5), planes.shape[2]
    for c in range(planes.shape[0]):
        for i in range(0, rows, 2):
            a, b, line = planes[c, first + i], planes[c, first + min(i + 1, rows - 1)], out[c, to + i // 2]
            for j in range(width // 2):
                line[j] = quarter * ((a[2 * j] + a[2 * j + 1]) + (b[2 * j] + b[2 * j + 1]))
            if width % 2:
                line[width // 2] = half * (a[width - 1] + b[width - 1])
