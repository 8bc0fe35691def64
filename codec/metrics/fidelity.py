"""How close two pictures are, and how two codecs compare: PSNR, SSIM, MS-SSIM, bits per pixel, BD-rate.

Pictures here are 8-bit, PIL images or uint8 arrays [H,W] (grey) or [H,W,C]; an alpha channel (C = 2 or 4) is
left out, since it is coded without loss. Finding a rate that meets a target is rate_control's, curves of whole
collections are evaluation/'s. SSIMULACRA2 is in ssimulacra2.py, what a mean hides in local_loss.py.

SSIM (Wang et al. 2004) and MS-SSIM (Wang et al. 2003) follow pytorch-msssim, whose figures the literature on
learned codecs quotes: Gaussian window 11, sigma 1.5, valid positions only, data range 255, K = (0.01, 0.03),
per channel and then averaged; between scales 2x2 means with a zero row/column in front of an odd side.
The kernel below streams rows: products, horizontal and vertical window live in a ring of eleven rows, so a
picture of any height needs little beyond its half-size copy.
"""

import math

import numba
import numpy as np
from PIL import Image

MS_SSIM_MIN_SIDE = 160  # below it, the fifth scale has no room for the window
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def pixels_of(picture) -> np.ndarray:
    """uint8 [H,W,C] with C = 1 or 3: the colour planes of a PIL image (L, LA, RGB, RGBA) or uint8 array.

    Raises ValueError for other modes, types or shapes.
    """
    if isinstance(picture, Image.Image):
        if picture.mode not in ("L", "LA", "RGB", "RGBA"):
            raise ValueError(f"a picture in mode {picture.mode} has no 8-bit grey or RGB planes")
        picture = np.asarray(picture)
    array = np.asarray(picture)
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or not 1 <= channels <= 4:
        raise ValueError(f"expected uint8 [H,W] or [H,W,1..4], got {array.dtype} {array.shape}")
    if array.ndim == 2:
        return array[:, :, None]
    return array[:, :, : 3 if array.shape[2] >= 3 else 1]


def _pair(a, b) -> tuple[np.ndarray, np.ndarray]:
    a, b = pixels_of(a), pixels_of(b)
    if a.shape != b.shape:
        raise ValueError(f"pictures of different shapes cannot be compared: {a.shape} and {b.shape}")
    return a, b


def psnr(a, b) -> float:
    """Peak signal-to-noise ratio in dB over all colour samples, peak 255; inf for equal pictures."""
    a, b = _pair(a, b)
    if not a.size:
        raise ValueError("an empty picture has no PSNR")
    return psnr_of_mse(_squared_error(a, b) / a.size)


def psnr_of_mse(mse: float) -> float:
    """dB for a mean squared error on the 0..255 scale."""
    return math.inf if mse <= 0 else 10 * math.log10(255.0**2 / mse)


def ssim(a, b) -> float:
    """Mean structural similarity over window positions and channels; no smoothing along a side under 11."""
    a, b = _pair(a, b)
    return float(np.mean([_scale(a[:, :, c], b[:, :, c], False)[0] for c in range(a.shape[2])]))


def ms_ssim(a, b) -> float | None:
    """Multi-scale SSIM in 0..1, five scales; None for pictures with a side under 160 pixels."""
    return similarity(a, b)[1]


def similarity(a, b) -> tuple[float, float | None]:
    """(SSIM, MS-SSIM or None) in one sweep over the pixels."""
    a, b = _pair(a, b)
    if min(a.shape[:2]) < MS_SSIM_MIN_SIDE:
        return ssim(a, b), None
    singles, multiples = [], []
    for c in range(a.shape[2]):
        x, y = a[:, :, c], b[:, :, c]
        product = 1.0
        for scale, weight in enumerate(MS_SSIM_WEIGHTS):
            last = scale == len(MS_SSIM_WEIGHTS) - 1
            full, contrast, half_x, half_y = _scale(x, y, not last)
            if scale == 0:
                singles.append(full)
            product *= max(full if last else contrast, 0.0) ** weight
            x, y = half_x, half_y
        multiples.append(product)
    return float(np.mean(singles)), float(np.mean(multiples))


def ms_ssim_db(value: float) -> float:
    """-10 log10(1 - x): MS-SSIM on a scale where steps mean the same at both ends; inf for 1."""
    return math.inf if value >= 1 else -10 * math.log10(1 - value)


def bpp(n_bytes: int, width: int, height: int) -> float:
    """Bits per pixel of a file of `n_bytes`, all of its bytes counted."""
    return 8 * n_bytes / (width * height)


def bd_rate(anchor_rate, anchor_quality, rate, quality) -> float:
    """Mean difference in rate at equal quality, in per cent; negative: fewer bits than the anchor.

    Bjontegaard's measure (VCEG-M33) with piecewise cubic (PCHIP) instead of polynomial interpolation of log
    rate over quality, as the JCT-VC spreadsheets and most papers since; integrated over the qualities that
    both curves have. Rates in any unit > 0; qualities in dB (for MS-SSIM: ms_ssim_db). Points in any order; a
    point that costs no less than one of better or equal quality is left out. Raises ValueError where the
    curves share no qualities.
    """
    from scipy.interpolate import PchipInterpolator

    curves = [frontier(anchor_rate, anchor_quality), frontier(rate, quality)]
    low = max(q[0] for _, q in curves)
    high = min(q[-1] for _, q in curves)
    if not high > low:
        raise ValueError(
            "the two curves share no range of qualities: "
            + " and ".join(f"{q[0]:.2f} to {q[-1]:.2f} dB" for _, q in curves)
        )
    means = [float(PchipInterpolator(q, r).integrate(low, high)) / (high - low) for r, q in curves]
    return (10 ** (means[1] - means[0]) - 1) * 100


def frontier(rate, quality) -> tuple[np.ndarray, np.ndarray]:
    """log10 rate and quality, both strictly increasing: a point beaten by a cheaper one is dropped."""
    rate, quality = np.asarray(rate, np.float64), np.asarray(quality, np.float64)
    keep = np.isfinite(rate) & np.isfinite(quality) & (rate > 0)
    points = sorted(zip(rate[keep], -quality[keep], strict=True))
    kept: list[tuple[float, float]] = []
    for r, negative in points:
        if not kept or -negative > kept[-1][1]:
            kept.append((r, -negative))
    # two points of one rate: the better one came first, so rates increase too
    if len(kept) < 2:
        raise ValueError(f"a rate-distortion curve needs two increasing points, got {len(kept)}")
    r, q = np.array(kept).T
    return np.log10(r), q


@numba.njit(nogil=True, cache=True)
def _squared_error(a, b):
    """Sum of squared differences over uint8 [H,W,C], exact in int64."""
    total = 0
    for i in range(a.shape[0]):
        row = 0
        for j in range(a.shape[1]):
            for c in range(a.shape[2]):
                d = np.int64(a[i, j, c]) - np.int64(b[i, j, c])
                row += d * d
        total += row
    return total


def _window() -> np.ndarray:
    offsets = np.arange(WINDOW, dtype=np.float64) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    # multiples of 2^-24 that add up to exactly 1: a rounded sum would turn the mean's square into variance
    weights = np.rint(weights / weights.sum() * 2**24) / 2**24
    weights[WINDOW // 2] += 1 - weights.sum()
    return weights.astype(np.float32)


_WEIGHTS = _window()


def _scale(x, y, halve: bool):
    """One scale of one channel, x and y [H,W] uint8 or float32: (SSIM, contrast-structure, x/2, y/2)."""
    height, width = x.shape
    rows, columns = (((height + 1) // 2, (width + 1) // 2)) if halve else (1, 1)
    half_x, half_y = np.empty((rows, columns), np.float32), np.empty((rows, columns), np.float32)
    if min(height, width) < WINDOW:
        full, contrast = _unsmoothed_side(x, y)
    else:
        full, contrast = _sweep(x, y, _WEIGHTS)
    if halve:
        _halve(x, half_x)
        _halve(y, half_y)
    return full, contrast, half_x, half_y


def _unsmoothed_side(x, y) -> tuple[float, float]:
    """SSIM where a side is shorter than the window: not smoothed along it, as pytorch-msssim does."""
    from scipy.ndimage import correlate1d

    def smooth(plane):
        for axis in (0, 1):
            if plane.shape[axis] >= WINDOW:
                inner = [slice(None), slice(None)]
                inner[axis] = slice(WINDOW // 2, plane.shape[axis] - WINDOW // 2)
                plane = correlate1d(plane, _WEIGHTS.astype(np.float64), axis=axis)[tuple(inner)]
        return plane

    x, y = x.astype(np.float64), y.astype(np.float64)
    mx, my = smooth(x), smooth(y)
    variances = smooth(x * x) - mx * mx + smooth(y * y) - my * my
    contrast = (2 * (smooth(x * y) - mx * my) + C2) / (variances + C2)
    full = (2 * mx * my + C1) / (mx * mx + my * my + C1) * contrast
    return float(full.mean()), float(contrast.mean())


@numba.njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"})
def _sweep(x, y, g):
    """(mean SSIM, mean contrast-structure) of [H,W] planes, sides >= 11.

    With s = x + y and d = x - y both terms of SSIM are 1 minus a small fraction of d's moments:
        luminance = 1 - mean(d)^2 / (mean(x)^2 + mean(y)^2 + C1),
        contrast-structure = 1 - var(d) / (var(x) + var(y) + C2),  var(x) + var(y) = (var(s) + var(d)) / 2,
    which keeps float32 exact where pictures are equal and precise where they are nearly so.
    """
    height, width = x.shape
    n = width - 10
    g0, g1, g2, g3, g4, g5 = g[0], g[1], g[2], g[3], g[4], g[5]
    ring = np.empty((11, 4, n), np.float32)
    wide = np.empty((4, width), np.float32)
    tall = np.empty((4, n), np.float32)
    c1, c2, half, middle = np.float32(C1), np.float32(C2), np.float32(0.5), np.float32(255)
    full, contrast = 0.0, 0.0  # sums of what is missing to 1
    for i in range(height):
        p, q, pp, qq = wide[0], wide[1], wide[2], wide[3]
        for j in range(width):
            u, v = np.float32(x[i, j]), np.float32(y[i, j])
            p[j] = u + v - middle  # variances do not mind, and rounding is less
            q[j] = u - v
            pp[j] = p[j] * p[j]
            qq[j] = q[j] * q[j]
        for m in range(4):
            s, t = wide[m], ring[i % 11, m]
            for j in range(n):
                t[j] = (
                    g5 * s[j + 5]
                    + g4 * (s[j + 4] + s[j + 6])
                    + g3 * (s[j + 3] + s[j + 7])
                    + g2 * (s[j + 2] + s[j + 8])
                    + g1 * (s[j + 1] + s[j + 9])
                    + g0 * (s[j] + s[j + 10])
                )
        if i < 10:
            continue
        k = i % 11  # the newest row; negative indices below wrap to the oldest
        for m in range(4):
            a0, a1, a2, a3 = ring[k - 10, m], ring[k - 9, m], ring[k - 8, m], ring[k - 7, m]
            a4, a5, a6, a7 = ring[k - 6, m], ring[k - 5, m], ring[k - 4, m], ring[k - 3, m]
            a8, a9, a10, t = ring[k - 2, m], ring[k - 1, m], ring[k, m], tall[m]
            for j in range(n):
                t[j] = (
                    g5 * a5[j]
                    + g4 * (a4[j] + a6[j])
                    + g3 * (a3[j] + a7[j])
                    + g2 * (a2[j] + a8[j])
                    + g1 * (a1[j] + a9[j])
                    + g0 * (a0[j] + a10[j])
                )
        p, q, pp, qq = tall[0], tall[1], tall[2], tall[3]
        row_full, row_contrast = np.float32(0), np.float32(0)
        for j in range(n):
            u, v = p[j] + middle, q[j]
            var_d = qq[j] - v * v
            missing = var_d / (half * (pp[j] - p[j] * p[j] + var_d) + c2)
            darker = v * v / (half * (u * u + v * v) + c1)
            row_contrast += missing
            row_full += missing + darker - missing * darker
        full += row_full
        contrast += row_contrast
    count = (height - 10) * n
    return 1 - full / count, 1 - contrast / count


@numba.njit(nogil=True, cache=True)
def _halve(x, out):
    """2x2 means of [H,W] into [ceil(H/2),ceil(W/2)], a zero row/column put before an odd side."""
    oi, oj = x.shape[0] % 2, x.shape[1] % 2
    quarter = np.float32(0.25)
    for i in range(out.shape[0]):
        top, bottom = 2 * i - oi, 2 * i - oi + 1
        if oj:
            above = np.float32(x[top, 0]) if top >= 0 else np.float32(0)
            out[i, 0] = quarter * (above + np.float32(x[bottom, 0]))
        if top < 0:
            for j in range(oj, out.shape[1]):
                k = 2 * j - oj
                out[i, j] = quarter * (np.float32(x[bottom, k]) + np.float32(x[bottom, k + 1]))
        else:
            for j in range(oj, out.shape[1]):
                k = 2 * j - oj
                out[i, j] = quarter * (
                    np.float32(x[top, k])
                    + np.float32(x[top, k + 1])
                    + np.float32(x[bottom, k])
                    + np.float32(x[bottom, k + 1])
                )
