"""Noise that lies on every pixel: how strong it is, and whether it is noise at all or the picture's own texture.

`noise_sigma` measures; `content` says what speaks against noise. Sensor noise is alike all over a picture: in its flat
parts it is white, has no heavy tails, is independent from channel to channel, and no flat part is without it; and
there are edges beneath. Sand, fabric, halftones, static, film grain, stars and dithering each break one of these.
Which picture is cleaned is decision.py's, single wrong pixels are impulses.py's.

Sources: Immerkaer, Fast noise variance estimation (1996), for the measure; flat blocks found by their spectrum as in
Ponomarenko, Lukin, Zriakhov, Kaarna, Astola, An automatic approach to lossy compression of AVIRIS images (2007).
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from scipy.fft import dctn, idctn
from scipy.ndimage import median_filter

BLOCK = 16  # side of the blocks looked at, pixels
MOST_BLOCKS = 2048  # blocks looked at per picture, spread evenly
LOW_PERCENTILE = 10  # the quiet blocks show the noise, the others show texture
PERCENTILE_BIAS = 0.875  # under pure noise the low percentile lies this far below sigma (measured)
CLIPPED = 0.1  # share of black or white samples from which on a block says nothing

# What noise looks like. Measured at sigma 10 on Kodak, 577 training tiles and 215 pictures whose texture is content
# (tests/tasks/restoration/textured.py); docs/measurements.md has the counts.
FEWEST_BLOCKS = 16  # usable blocks without which nothing is said
FEWEST_FLAT = 12  # flat ones among them
FLAT = 1.8  # middle over high frequencies' power below which a block is flat: noise alone has 1
FLAT_SHARE = 0.015  # of the usable blocks
FLAT_ENOUGH = 0.1  # share from which on luma is believed that parts are without noise; texture spoils fewer
EDGY = 4.0  # the same ratio above which a block has an edge or texture
EDGY_SHARE = 0.004  # of the blocks: below it there is nothing but noise, which is then what the picture shows
QUIET = 0.5  # of the flat blocks' median deviation: blocks below are without the noise
QUIET_SHARE = 0.012
EVEN = 0.65  # 10th over 90th percentile of the flat blocks' deviation
AVERAGE_PEAK = 4.5  # largest coefficient of the flat blocks' mean spectrum, over its mean
BLOCK_PEAK = 13.0  # median over the flat blocks of the same in each: chance gives 9
BANDS = (0.7, 1.5)  # power in five bands of frequency, over their mean
KURTOSIS = (2.7, 3.6)  # of the samples in flat blocks: Gaussian 3, dithering and uniform static below 2
SPOTS = 0.04  # share of flat blocks with a sample above 5 deviations
CHROMA = 0.45  # noise in Cb and Cr over noise in luma: 0.93 for independent channels, 0.1 for grain and sand
SCREEN = (7.0, 5.5)  # coefficient of all blocks' mean spectrum over its surroundings: off the axes, on them
NIGHT = 96  # mean of a block that may be night sky
STARS = 0.012  # share of blocks that are night sky with one round bright point
STAR_SKEW = 1.25  # median skewness of the night blocks, above which they are full of points

_ORDER = np.add.outer(np.arange(BLOCK), np.arange(BLOCK))  # of a coefficient: vertical plus horizontal frequency
_SLOW = _ORDER < 3
_MIDDLE = (_ORDER >= 3) & (_ORDER <= 8)
_HIGH = _ORDER > 16
_BANDS = [(_ORDER >= low) & (_ORDER < high) for low, high in ((3, 8), (8, 13), (13, 18), (18, 24), (24, 31))]
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class UnsupportedPicture(ValueError):
    """The picture is not an 8-bit one that can be restored without losing something."""


def colour_samples(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, C], alpha last where there is one. Raises UnsupportedPicture."""
    if image.mode in ("1", "P", "PA"):
        image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        raise UnsupportedPicture(f"mode {image.mode}: only 8-bit L, LA, RGB and RGBA can be judged")
    samples = np.asarray(image)
    return samples[:, :, None] if samples.ndim == 2 else samples


# --- how strong ---


def noise_sigma(image: Image.Image) -> float:
    """Standard deviation of the noise, 0..255, mean over the colour channels; 0.0 where nothing can be said.

    Immerkaer's Laplacian difference in blocks of 16x16; per block the median absolute value, of the blocks the 10th
    percentile. Blocks that are clipped to black or white in more than a tenth of their samples, or touch full
    transparency, say nothing about noise and are left out (the clipped ones as long as enough others are there).
    """
    return sigma_of(colour_samples(image), image.mode in ("LA", "RGBA", "PA"))


def sigma_of(samples: np.ndarray, alpha: bool = False) -> float:
    """`noise_sigma` of uint8 [H, W, C]; `alpha`: the last channel is one."""
    if min(samples.shape[:2]) < BLOCK + 2:
        return 0.0
    blocks = _blocks(samples, 1).astype(np.int16)
    if alpha:
        opaque = blocks[:, -1].min(axis=(1, 2)) > 0
        blocks = blocks[opaque, :-1]
    channels = [_channel_sigma(blocks[:, c]) for c in range(blocks.shape[1])] if len(blocks) else []
    return float(np.mean(channels)) if channels else 0.0


def _channel_sigma(blocks: np.ndarray) -> float:
    """int16 [n, 18, 18] of one channel -> sigma; 0.0 if every block is clipped."""
    clipped = ((blocks <= 0) | (blocks >= 255)).mean(axis=(1, 2))
    usable = clipped <= CLIPPED
    if usable.mean() < 0.04:  # noise on black or white clips half of the samples; drawings leave nearly all of them
        usable = clipped <= 0.6
        if usable.mean() < 0.25:
            return 0.0
    blocks = blocks[usable]
    laplacian = np.abs(np.diff(np.diff(blocks, 2, axis=1), 2, axis=2)).reshape(len(blocks), -1)
    middle = laplacian.shape[1] // 2
    deviation = np.partition(laplacian, (middle - 1, middle), axis=1)[:, middle - 1 : middle + 1].mean(axis=1)
    sigma = deviation / 6.0 / 0.6745  # the mask's norm is 6; 0.6745 = MAD of the unit Gaussian
    return float(np.percentile(sigma, LOW_PERCENTILE)) / PERCENTILE_BIAS


def _blocks(samples: np.ndarray, border: int) -> np.ndarray:
    """[n, C, 16 + 2 border, the same]: at most MOST_BLOCKS blocks, evenly spread; `border` is 0 or 1."""
    side = BLOCK + 2 * border
    tops, lefts = _block_grid(*samples.shape[:2])
    windows = np.lib.stride_tricks.sliding_window_view(samples, (side, side), axis=(0, 1))
    at = np.ix_(tops + 1 - border, lefts + 1 - border)
    return windows[at].reshape(-1, samples.shape[2], side, side)


def _block_grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Top and left corners of at most MOST_BLOCKS blocks (with a border of one pixel), evenly spread."""
    rows, columns = (height - 2) // BLOCK, (width - 2) // BLOCK
    thin = max(1.0, math.sqrt(rows * columns / MOST_BLOCKS))
    tops, lefts = (np.linspace(0, n - 1, max(1, int(n / thin))).astype(int) * BLOCK for n in (rows, columns))
    return tops, lefts


# --- noise or content ---


def content(samples: np.ndarray, sigma: float) -> tuple[str | None, float]:
    """Why noise of `sigma` in uint8 [H, W, 1 or 3] may be the picture's own texture (None: it is noise), and the sigma
    to clean it by: where texture spoils the flat parts in luma but not in B - Y or R - Y, that of these if it is less.
    """
    blocks = _blocks(samples, 0).astype(np.float32)
    grey = blocks.shape[1] == 1 or (np.ptp(samples, axis=2) == 0).all()
    blocks = blocks[:, :1] if grey else blocks
    clipped = ((blocks <= 0) | (blocks >= 255)).mean(axis=(2, 3)) > CLIPPED
    luma = blocks[:, 0] if grey else np.tensordot(blocks, _LUMA, (1, 0))
    why = _stars(luma)
    if why:
        return why, sigma
    clear = ~clipped.any(axis=1)
    if clear.sum() < FEWEST_BLOCKS:
        channel = int(np.argmin(clipped.sum(axis=0)))  # the least clipped channel alone
        luma, clear, grey = blocks[:, channel], ~clipped[:, channel], True
        if clear.sum() < FEWEST_BLOCKS:
            return "nearly all of it is black or white", sigma
    blocks, luma = blocks[clear], luma[clear]
    spectrum = dctn(luma, axes=(1, 2), norm="ortho")
    power = spectrum**2
    if (_ratio(power) > EDGY).mean() < EDGY_SHARE:
        return "there is nothing but noise in it", sigma
    if _screened(power):
        return "it has a screen, a weave or another pattern that repeats", sigma
    if grey:
        return _plane(spectrum), sigma
    differences = [dctn(blocks[:, c] - luma, axes=(1, 2), norm="ortho") for c in (2, 0)]
    if _achromatic(power, differences):
        return "it is the same in all colours, like grain or sand", sigma
    why = _plane(spectrum)
    if why is None or why == _ABSENT and (_ratio(power) <= FLAT).mean() >= FLAT_ENOUGH:
        return why, sigma
    for plane, gain in zip(differences, _GAINS, strict=True):
        if _plane(plane) is None:
            high = (plane**2)[:, _HIGH].mean(axis=1)
            return None, min(sigma, float(np.sqrt(np.percentile(high, LOW_PERCENTILE))) / gain)
    return why, sigma


_ABSENT = "parts of the picture are without it"
_GAINS = (1.104, 0.921)  # deviation of B - Y and R - Y where that of R, G and B is 1


def _ratio(power: np.ndarray) -> np.ndarray:
    """[n]: power at middle over power at high frequencies of each block [n, 16, 16]."""
    return power[:, _MIDDLE].mean(axis=1) / np.maximum(power[:, _HIGH].mean(axis=1), 1e-6)


def _plane(spectrum: np.ndarray) -> str | None:
    """What speaks against noise in the flat blocks of one plane's spectra [n, 16, 16]."""
    power = spectrum**2
    flat = _ratio(power) <= FLAT
    if flat.sum() < FEWEST_FLAT or flat.mean() < FLAT_SHARE:
        return "it has no flat parts that would tell noise from texture"
    every = np.sqrt(power[:, _HIGH].mean(axis=1))
    deviation = every[flat]
    if (every < QUIET * np.median(deviation)).mean() > QUIET_SHARE:
        return _ABSENT
    low, high = np.percentile(deviation, (10, 90))
    if low < EVEN * high:
        return "it differs from part to part"
    power = power[flat] / np.square(deviation)[:, None, None]
    mean = power.mean(axis=0)
    average = mean[~_SLOW].max() / mean[~_SLOW].mean()
    each = np.median(power[:, ~_SLOW].max(axis=1) / power[:, ~_SLOW].mean(axis=1))
    bands = np.array([mean[band].mean() for band in _BANDS])
    bands /= bands.mean()
    if average > AVERAGE_PEAK or each > BLOCK_PEAK or bands.min() < BANDS[0] or bands.max() > BANDS[1]:
        return "its spectrum is not that of noise"
    rest = idctn(np.where(_SLOW, 0, spectrum[flat]), axes=(1, 2), norm="ortho")
    rest /= np.sqrt((rest**2).mean(axis=(1, 2), keepdims=True))
    if not KURTOSIS[0] <= (rest**4).mean() <= KURTOSIS[1] or (rest.max(axis=(1, 2)) > 5).mean() > SPOTS:
        return "its values are not spread like noise"
    return None


def _achromatic(power: np.ndarray, differences: list[np.ndarray]) -> bool:
    """Is there much less noise in Cb and Cr (from B - Y and R - Y) than in luma, each in its quiet blocks?"""
    chroma = [(factor * plane[:, _MIDDLE]) ** 2 for factor, plane in zip((0.564, 0.713), differences, strict=True)]
    quiet = np.percentile(np.mean(chroma, axis=0).mean(axis=1), LOW_PERCENTILE)
    return bool(quiet < CHROMA**2 * np.percentile(power[:, _HIGH].mean(axis=1), LOW_PERCENTILE))


def _screened(power: np.ndarray) -> bool:
    """Does the mean spectrum of all blocks have a peak, as what repeats gives?"""
    total = np.maximum(power[:, ~_SLOW].mean(axis=1), 1e-6)
    mean = (power / total[:, None, None]).mean(axis=0) + 1e-6
    inner = mean[1:, 1:] / median_filter(mean[1:, 1:], 5, mode="mirror")
    axes = [line / median_filter(line, 5, mode="mirror") for line in (mean[0, 3:], mean[3:, 0])]
    return bool(inner[_ORDER[1:, 1:] >= 4].max() > SCREEN[0] or max(line.max() for line in axes) > SCREEN[1])


def _stars(luma: np.ndarray) -> str | None:
    """Says so where many dark blocks of luma [n, 16, 16] are flat but for one round bright point, or full of points."""
    middle = np.median(luma, axis=(1, 2))
    lit = middle > 2
    dark = luma[middle < NIGHT]
    if len(dark) < FEWEST_BLOCKS or not lit.any():
        return None
    high = (dctn(luma[lit], axes=(1, 2), norm="ortho") ** 2)[:, _HIGH].mean(axis=1)
    deviation = float(np.sqrt(np.percentile(high, LOW_PERCENTILE))) / 3  # of means of 3x3 samples
    side = BLOCK - 2
    means = sum(dark[:, y : y + side, x : x + side] for y in range(3) for x in range(3)) / 9
    place = means.reshape(len(means), -1).argmax(axis=1)
    rows, columns = (np.arange(side) - at[:, None] for at in np.divmod(place, side))
    distance = np.maximum(np.abs(rows)[:, :, None], np.abs(columns)[:, None, :])
    around = distance > 3
    count = around.sum(axis=(1, 2))
    ground = (means * around).sum(axis=(1, 2)) / count
    spread = np.sqrt((np.square(means - ground[:, None, None]) * around).sum(axis=(1, 2)) / count)
    height = means.max(axis=(1, 2)) - ground
    ring = np.where(distance == 3, means, -np.inf).max(axis=(1, 2)) - ground
    inside = np.isin(place // side, range(3, side - 3)) & np.isin(place % side, range(3, side - 3))
    points = inside & (spread <= 1.5 * deviation) & (height > max(6 * deviation, 4.0)) & (ring < height / 2)
    if points.sum() > max(STARS * len(luma), 4):
        return "it lies between points of light, like stars"
    rest = idctn(np.where(_SLOW, 0, dctn(dark, axes=(1, 2), norm="ortho")), axes=(1, 2), norm="ortho")
    skew = (rest**3).mean(axis=(1, 2)) / ((rest**2).mean(axis=(1, 2)) ** 1.5 + 1e-9)
    if len(dark) > len(luma) / 2 and np.median(skew) > STAR_SKEW:
        return "it lies between points of light, like stars"
    return None
