"""What people see, as a training can follow it: differentiable SSIMULACRA2 and MS-SSIM, mixed with squared error.

Differences from the metrics that are reported (codec/metrics): pixels need not be whole numbers, values outside 0..1
are clamped, and the Gaussian's border is mirrored on all sides, which is 1 to 4 points on pieces of 256 pixels. Windows
are banded matrices, since on a CPU two products with such are many times faster than a convolution of one channel.
Needs torch and numpy alone.
"""

import dataclasses
import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codec.format import LEVELS, lambda_of
from codec.metrics.ssimulacra2_constants import BIAS, C2, MIX, SCALES, WEIGHTS, distance_of

SIGMA, REACH = 1.5, 5  # of both metrics' Gaussian window
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003
MS_SSIM_C1, MS_SSIM_C2 = 0.01**2, 0.03**2
LEAST_NORM = 1e-16  # keeps the fourth root's gradient finite where nothing differs
LEAST_TOTAL = 0.01  # and the score's

# Bits per pixel that one unit of a distance is worth at levels 0, 100, .., 1000: minus the slope of rate over mean
# distance of the model trained on squared error alone, 32 training samples (of squared error it is lambda itself).
SLOPES = {
    "ssimulacra2": (0.0039, 0.0049, 0.0071, 0.0102, 0.0152, 0.0224, 0.0325, 0.0473, 0.0696, 0.105, 0.158),
    "ms_ssim": (2.3, 3.2, 5.8, 10.3, 18.2, 30.6, 50.1, 80.8, 130.0, 212.0, 340.0),
}


@dataclasses.dataclass(frozen=True)
class Mix:
    """Shares of the distortion that SSIMULACRA2 and MS-SSIM make up; squared error makes up the rest. Each counts by
    its own slope, so that a share changes what is trained for, not at which rate a level ends."""

    ssimulacra2: float = 0.0
    ms_ssim: float = 0.0

    def __post_init__(self):
        if min(self.ssimulacra2, self.ms_ssim) < 0 or self.ssimulacra2 + self.ms_ssim > 1:
            raise ValueError(f"shares {self.ssimulacra2:g} and {self.ms_ssim:g} must be at least 0, together at most 1")

    def distortion(self, x: Tensor, x_hat: Tensor, level: Tensor) -> Tensor:
        """Pixels [B,3,H,W], x in 0..1, at levels [B] -> bits per pixel that the differences are worth [B]."""
        error = (x_hat - x).square().mean((1, 2, 3)) * 255.0**2
        total = (1 - self.ssimulacra2 - self.ms_ssim) * lambda_of(level) * error
        for name, share, distance in (
            ("ssimulacra2", self.ssimulacra2, ssimulacra2_distance), ("ms_ssim", self.ms_ssim, ms_ssim_distance),
        ):  # fmt: skip
            if share:
                total = total + share * slope_at(name, level) * distance(x, x_hat)
        return total


def slope_at(name: str, level: Tensor) -> Tensor:
    """SLOPES between its levels, geometrically: [B] -> [B]."""
    logarithms = torch.tensor(SLOPES[name], device=level.device).log()
    position = level.float() * (len(logarithms) - 1) / LEVELS
    low = position.floor().clamp(0, len(logarithms) - 2).long()
    return torch.lerp(logarithms[low], logarithms[low + 1], position - low).exp()


def ssimulacra2_distance(x: Tensor, x_hat: Tensor) -> Tensor:
    """100 minus SSIMULACRA2 of pictures [B,3,H,W] in 0..1, sides of at least 8: [B]."""
    original, decoded = linear_light(x), linear_light(x_hat.clamp(0, 1))
    weights = torch.from_numpy(WEIGHTS.reshape(3, SCALES, 2, 3)).to(x.device, x.dtype)
    total = x.new_zeros(len(x))
    for scale in range(SCALES):
        if min(original.shape[-2:]) < 8:
            break
        total = total + _scale_distance(original, decoded, weights[:, scale])
        original, decoded = F.avg_pool2d(original, 2), F.avg_pool2d(decoded, 2)
    return distance_of(total.clamp_min(LEAST_TOTAL))


def _scale_distance(original: Tensor, decoded: Tensor, weights: Tensor) -> Tensor:
    """One scale's weighted norms [B]; weights [channel, norm, map]."""
    with torch.no_grad():
        a = opponent_colours(original)
        mean_a, square_a = smoothed(a), smoothed(a * a)
        edge_a = 1 + (a - mean_a).abs()
    b = opponent_colours(decoded)
    mean_b, square_b, product = smoothed(torch.stack((b, b * b, a * b))).unbind(0)
    covariance = product - mean_a * mean_b
    variances = (square_a - mean_a * mean_a) + (square_b - mean_b * mean_b)
    structure = 1 - (1 - (mean_a - mean_b) ** 2) * (2 * covariance + C2) / (variances + C2)
    edges = (1 + (b - mean_b).abs()) / edge_a - 1
    total = original.new_zeros(len(original))
    for kind, difference in enumerate((structure, edges, -edges)):
        square = difference.clamp_min(0).square()
        mean = difference.clamp_min(0).mean((2, 3))
        fourth = ((square * square).mean((2, 3)) + LEAST_NORM) ** 0.25
        total = total + mean @ weights[:, 0, kind] + fourth @ weights[:, 1, kind]
    return total


def linear_light(x: Tensor) -> Tensor:
    """sRGB 0..1 -> linear 0..1 (IEC 61966-2-1)."""
    return torch.where(x <= 0.04045, x / 12.92, ((x.clamp_min(0.04) + 0.055) / 1.055) ** 2.4)


def opponent_colours(linear: Tensor) -> Tensor:
    """Linear RGB [B,3,H,W] -> SSIMULACRA2's positive X, Y, B."""
    mix = torch.from_numpy(np.asarray(MIX)).to(linear.device, linear.dtype)
    cones = torch.einsum("ij,bjhw->bihw", mix, linear) + BIAS
    long, medium, short = (cones.clamp_min(1e-6) ** (1 / 3) - BIAS ** (1 / 3)).unbind(1)
    x, y = 0.5 * (long - medium), 0.5 * (long + medium)
    return torch.stack((14 * x + 0.42, y + 0.01, short - y + 0.55), 1)


def ms_ssim_distance(x: Tensor, x_hat: Tensor) -> Tensor:
    """1 minus MS-SSIM of pictures [B,3,H,W] in 0..1, sides of at least 176 (five scales, whole windows): [B]."""
    a, b = x, x_hat.clamp(0, 1)
    product = x.new_ones(())
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        with torch.no_grad():
            mean_a, square_a = smoothed(a, whole=True), smoothed(a * a, whole=True)
        mean_b, square_b, both = smoothed(torch.stack((b, b * b, a * b)), whole=True).unbind(0)
        variances = (square_a - mean_a * mean_a) + (square_b - mean_b * mean_b)
        value = (2 * (both - mean_a * mean_b) + MS_SSIM_C2) / (variances + MS_SSIM_C2)
        if scale == len(MS_SSIM_WEIGHTS) - 1:
            value = value * (2 * mean_a * mean_b + MS_SSIM_C1) / (mean_a**2 + mean_b**2 + MS_SSIM_C1)
        product = product * value.mean((2, 3)).clamp_min(1e-3) ** weight
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return 1 - product.mean(1)


def smoothed(t: Tensor, whole: bool = False) -> Tensor:
    """[..,H,W] through the Gaussian window; whole: only where all of it lies inside, [..,H-10,W-10]."""
    height, width = t.shape[-2:]
    rows, columns = _window(height, whole, t.device.type), _window(width, whole, t.device.type)
    return rows @ (t @ columns.T)


@functools.cache
def _window(size: int, whole: bool, device: str) -> Tensor:
    """[size or size - 10, size]: each row is the window at its place, mirrored at the borders unless `whole`."""
    offsets = np.arange(-REACH, REACH + 1)
    taps = np.exp(-0.5 * (offsets / SIGMA) ** 2)
    taps /= taps.sum()
    rows = range(REACH, size - REACH) if whole else range(size)
    matrix = np.zeros((len(rows), size))
    for row, middle in enumerate(rows):
        for tap, place in zip(taps, middle + offsets, strict=True):
            mirrored = -1 - place if place < 0 else 2 * size - 1 - place if place >= size else place
            matrix[row, min(max(mirrored, 0), size - 1)] += tap
    return torch.from_numpy(matrix.astype(np.float32)).to(device)
