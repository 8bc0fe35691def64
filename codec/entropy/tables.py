"""Frequency tables of symbols: integers that both sides of the entropy coder have, from probabilities and from counts.

EntropyTables are what a model's file holds; which of them codes which symbol is decided elsewhere (trellis.py,
contexts.py). Torch where a table's probability is differentiable in training; files are network/files.py's.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from codec.format import BINS, FIRST_BIN, PRECISION, SCALE_RANGE, STEP, Z_GROUPS, Z_MAX, bin_scales

THRESHOLD_SYMBOLS = 8  # magnitudes up to this have their own rounding threshold
THRESHOLD_STRENGTH = 0.5  # share of the theoretical rate gain that rounding trades for distortion; measured best
TABLE_STRENGTH = 0.6  # the same where the gain is read off the measured tables


class EntropyTables(NamedTuple):
    y_freq: list[np.ndarray]  # of bins 0..FIRST_BIN - 1, uint32: symbols -R..R, then escape; sum 2**PRECISION; 0 unused
    z_freq: list[list[np.ndarray]]  # [Z_GROUPS][hyper channels], the same layout


def scale_of(index: Tensor) -> Tensor:
    """Standard deviation of (possibly fractional) scale bins, in quantisation steps."""
    low, high = SCALE_RANGE
    return low * torch.exp(index * (math.log(high / low) / (BINS - 1)))


def gaussian_mass(x: Tensor, sigma: Tensor) -> Tensor:
    """Probability of [x - 1/2, x + 1/2] under a centred Gaussian, never below 1e-7."""
    x = x.abs()
    upper = torch.erfc((x - 0.5) / (sigma * math.sqrt(2)))
    lower = torch.erfc((x + 0.5) / (sigma * math.sqrt(2)))
    return (0.5 * (upper - lower)).clamp_min(1e-7)


def noisy_bits(residual: Tensor, sigma: Tensor) -> Tensor:
    """Bits [B] that residuals [B,..] would cost with uniform noise in rounding's place."""
    noisy = residual + torch.empty_like(residual).uniform_(-0.5, 0.5)
    return -torch.log2(gaussian_mass(noisy, sigma)).sum((1, 2, 3))


def rounding_thresholds(strength: float = THRESHOLD_STRENGTH, y_freq: list[np.ndarray] | None = None) -> Tensor:
    """[BINS, THRESHOLD_SYMBOLS + 1]: a residual of magnitude v that rounds to k becomes k - 1 if v < [bin, k].

    Rate-distortion optimised rounding: k - 1 costs fewer bits under the bin's Gaussian, or in its table where these are
    given (EntropyTables.y_freq); it is taken where these outweigh lambda times the added squared error, which for steps
    of STEP / sqrt(lambda) and an orthonormal transform of three channels is STEP^2 / 3 per squared quantisation step.
    """
    k = torch.arange(0, THRESHOLD_SYMBOLS + 1, dtype=torch.float64)
    bits = -torch.log2(gaussian_mass(k[None], torch.from_numpy(bin_scales())[:, None]))
    for number, table in enumerate(y_freq or ()):
        middle = (len(table) - 2) // 2
        coded = table[middle : min(2 * middle + 1, middle + THRESHOLD_SYMBOLS + 1)].astype(np.float64)
        if number > 0:
            bits[number, : len(coded)] = PRECISION - torch.log2(torch.from_numpy(coded))
    saved = torch.zeros_like(bits)
    saved[:, 1:] = (bits[:, 1:] - bits[:, :-1]).clamp_min(0) * (strength / (2 * STEP**2 / 3))
    return torch.minimum(k - 0.5 + saved, k + 0.5).float()


def integer_frequencies(probability: np.ndarray) -> np.ndarray:
    """Probabilities [n] (any positive sum) -> uint32 [n], each at least 1, sum exactly 2**PRECISION."""
    total = 1 << PRECISION
    p = np.maximum(np.asarray(probability, np.float64), 0)
    p /= p.sum()
    low, high = 0.0, float(total)  # what the probabilities are multiplied by, so that with the ones the sum fits
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(1, np.rint(p * middle)).sum() <= total else (low, middle)
    freq = np.maximum(1, np.rint(p * low)).astype(np.int64)
    freq[np.argsort(-p, kind="stable")[: total - int(freq.sum())]] += 1  # what rounding left, fewer than there are
    return freq.astype(np.uint32)


def tally(counts: list, numbers: np.ndarray, values: np.ndarray) -> None:
    """Adds to `counts`, by table, how often each of its entries occurs: values coded with the tables `numbers`, of one
    shape; table 0 is "not coded". counts[n]: float [2R + 2], symbols -R..R, then escape."""
    numbers, values = numbers.ravel(), values.ravel().astype(np.int64)
    for number in np.unique(numbers[numbers > 0]):
        chosen, radius = values[numbers == number], (len(counts[number]) - 2) // 2
        place = np.where(np.abs(chosen) <= radius, chosen + radius, 2 * radius + 1)
        counts[number] += np.bincount(place, minlength=len(counts[number]))


def unsigned(count: np.ndarray) -> np.ndarray:
    """Such a count where a sign is as likely as the other."""
    return np.append((count[:-1] + count[-2::-1]) / 2, count[-1])


def y_radius(scale: float) -> int:
    """Symbols coded without escape in a bin of that scale: -radius..radius."""
    return int(min(255, math.ceil(4.0 * scale) + 2))


def parametric_tables(z_location: np.ndarray, z_log_scale: np.ndarray) -> EntropyTables:
    """Tables of the distributions that training assumes: Gaussian bins; logistic z, of [Z_GROUPS,hyper] each."""
    y_freq = []
    for scale in bin_scales()[:FIRST_BIN]:
        radius = y_radius(scale)
        k = torch.arange(-radius, radius + 1, dtype=torch.float64)
        mass = gaussian_mass(k, torch.tensor(scale, dtype=torch.float64)).numpy()
        y_freq.append(integer_frequencies(np.append(mass, 1e-5)))
    edges = np.append(np.arange(-Z_MAX, Z_MAX + 1) - 0.5, Z_MAX + 0.5)
    scale = np.exp(z_log_scale.astype(np.float64).clip(-4, 5))
    z_freq = []
    for group in range(Z_GROUPS):
        row = []
        for channel in range(z_location.shape[1]):
            cdf = 1 / (1 + np.exp(-np.clip((edges - z_location[group, channel]) / scale[group, channel], -60, 60)))
            row.append(integer_frequencies(np.append(np.diff(cdf), 1e-9)))
        z_freq.append(row)
    return EntropyTables(y_freq, z_freq)
