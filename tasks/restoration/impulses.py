"""Impulse noise: whether a picture has it, which samples it hit, and what belongs there instead.

Dust, hot pixels and transmission errors replace single pixels by values that have nothing to do with their
surroundings: white, black, or any. `find_impulses` first asks the picture as a whole (`judge`): pixels that disagree
with eight agreeing neighbours must be there in number, strewn over the picture by chance, on grounds of any brightness,
and be of extreme value or both brighter and darker than their grounds. Stars, snow, glitter, stippling, dithering and
text fail one of these. Only then pixel after pixel is judged; `fill` replaces what was found, and every other sample
keeps its bits. Noise that lies on every pixel is noise.py's.

Sources. Differences ranked by size, which tell impulses from edges: Garnett, Huegerich, Chui, He, A universal noise
removal algorithm with an impulse detector (2005). Only ends of the range as candidates, sound neighbours alone to
repair by, in windows that grow until there are enough: Hwang and Haddad, Adaptive median filters (1995); Chan, Ho,
Nikolova, Salt-and-pepper noise removal by median-type noise detectors and detail-preserving regularization (2005).
Neighbours in pairs of four directions: Dong and Xu, A new directional weighted median filter (2007).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from scipy.fft import irfft2, rfft2

AGREE = 32  # largest minus smallest of eight neighbours that still are one ground
DISAGREE = 48  # a lone sample is at least so far outside the range of its neighbours, and twice that range
DARK = 64  # mean of a ground below which lone samples may be stars
BRIGHT = 191  # grounds above it show no white, as grounds below DARK show no black
LOOKED_AT = 2 << 20  # pixels of a large picture that are looked at, in bands spread over its height
BAND = 64  # rows
FEWEST = 16  # lone samples that make a case
LEAST_SHARE = 1e-4  # of the grounds looked at
DRAWN_COLOURS = {1: 64, 3: 256}  # by channels: a picture of so few is drawn or dithered
PLAIN = 4.0  # so many times as many grounds of one single value as others are found in drawings only
CELLS = 6  # a side: the grid on which lone samples must lie as chance strews them
EXTREME = 24  # a value at the end of the range is an impulse so far from the median of its sound neighbours
CLOSE = 32  # neighbours so near to an impulse's value count as being like it
AREA = 14  # of 24 neighbours that are like a white or black pixel make it part of a white or black area
DRAWN = 40_000  # places at which a picture is asked how impulses would look there
CALM = 0.05  # share of grounds from which on impulses of any value can be told from texture
FOUND = 0.3  # of the impulses that the calm grounds announce are found at least
LIKELY = 0.45  # probability from which on a sample is taken for an impulse
ODD_STEPS = (12, 16, 20, 24, 30, 36, 44, 54, 66, 80, 100, 130, 170)
CALM_STEPS = (2, 4, 6, 9, 13, 18, 25, 34, 46)
NONE = "no impulses"
NEIGHBOURS = tuple((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0))
DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))


@dataclass(frozen=True)
class Evidence:
    """What the lone samples of a picture say. `found`: there are impulses; `why` says it in words.

    joint: an impulse replaces all channels of its pixel. extreme: impulses are of the `values` and no other; else these
    are a sample. values: uint8 [n, C], or [n, 1] where extreme and not joint. shares: of each value among the pixels
    (joint) or samples, estimated.
    """

    found: bool
    why: str
    joint: bool = True
    extreme: bool = True
    values: np.ndarray = field(default_factory=lambda: np.zeros((0, 1), np.uint8))
    shares: np.ndarray = field(default_factory=lambda: np.zeros(0))


def find_impulses(samples: np.ndarray) -> tuple[np.ndarray | None, str]:
    """uint8 [H, W, 1 or 3] -> (bool of the same shape: the samples that are impulses, or None; why, in words)."""
    evidence = judge(samples)
    if not evidence.found:
        return None, evidence.why
    mask = _extreme(samples, evidence) if evidence.extreme else _odd(samples, evidence)
    expected = evidence.shares.sum() * (mask[:, :, 0].size if evidence.joint else mask.size)
    if (mask[:, :, 0].sum() if evidence.joint else mask.sum()) < FOUND * expected:
        return None, "lone pixels on calm grounds, and hardly any elsewhere: content"
    count = int(mask.any(axis=2).sum())
    share = 100 * count / mask[:, :, 0].size
    return mask, f"{count:,} pixels ({share:.2g} %) hit by {evidence.why}"


# --- the picture as a whole ---


@dataclass(frozen=True)
class _Grounds:
    """Samples of a band and the eight neighbours of each; the outermost pixels are left out. All int16 [h, w, C]."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, samples: np.ndarray) -> _Grounds:
        low, high = (_around(samples, function).astype(np.int16) for function in (np.minimum, np.maximum))
        return cls(samples[1:-1, 1:-1].astype(np.int16), low, high)


def _around(samples: np.ndarray, function) -> np.ndarray:
    """Minimum or maximum of the eight neighbours, [H - 2, W - 2, C]."""
    rows = function(function(samples[:, :-2], samples[:, 1:-1]), samples[:, 2:])
    beside = function(samples[1:-1, :-2], samples[1:-1, 2:])
    return function(function(rows[:-2], rows[2:]), beside)


def judge(samples: np.ndarray) -> Evidence:
    """Are there impulses in uint8 [H, W, 1 or 3]?"""
    height, width, channels = samples.shape
    if min(height, width) < BAND:
        return Evidence(False, f"{width}x{height}: too small to tell impulses from content")
    samples = _bands(samples)
    grounds = _Grounds.of(samples)
    spread = grounds.high - grounds.low
    centre = (grounds.low + grounds.high) // 2
    seen = (spread <= AGREE) & (centre.mean(axis=2, keepdims=True) >= DARK)
    plain = seen & (spread == 0)
    seen &= spread > 0
    least = np.maximum(DISAGREE, 2 * spread)
    up, down = seen & (grounds.value - grounds.high >= least), seen & (grounds.low - grounds.value >= least)
    lone = up | down
    count = int(lone.sum())
    if count < max(FEWEST, LEAST_SHARE * seen.sum()):
        return Evidence(False, NONE)
    if plain.sum() > PLAIN * seen.sum() or _few_colours(samples):
        return Evidence(False, "lone pixels of a drawing or of dithering")
    if not _structured(samples):
        return Evidence(False, "lone pixels before nothing else: a sky, static or a sheet rather than a photograph")
    ups, downs = up.sum() / count, down.sum() / count
    ends = np.isin(grounds.value[lone], (0, 255)).mean()
    if ends < 0.9 and seen.mean() < CALM:
        return Evidence(False, "texture nearly everywhere: too few calm grounds to tell impulses from it")
    if ends < 0.9 and min(ups, downs) < 0.15:
        return Evidence(False, "lone pixels of varied brightness on one side of their grounds: points of light or dots")
    visible = seen.copy()
    if ends >= 0.9 and ups > 0.02:
        visible &= grounds.high <= BRIGHT
    if ends >= 0.9 and downs > 0.02:
        visible &= grounds.low >= DARK
    if not _strewn(lone & visible, visible, centre, ends >= 0.9):
        return Evidence(False, "lone pixels in some places only, on some grounds only, or in a regular grid")
    return _kind(grounds, lone, visible, ends >= 0.9)


def _bands(samples: np.ndarray) -> np.ndarray:
    """The picture, or, of a large one, bands of rows that are spread over it and have LOOKED_AT pixels together."""
    height, width = samples.shape[:2]
    count = max(1, LOOKED_AT // (width * BAND))
    if height <= count * BAND:
        return samples
    return np.concatenate([samples[top : top + BAND] for top in np.linspace(0, height - BAND, count).astype(int)])


def _few_colours(samples: np.ndarray) -> bool:
    codes = samples.astype(np.uint32) @ np.array([1 << 8 * c for c in range(samples.shape[2])], np.uint32)
    return len(np.unique(codes)) <= DRAWN_COLOURS[samples.shape[2]]


def _structured(samples: np.ndarray) -> bool:
    """Are there edges besides lone pixels: do medians of 4x4 pixels differ from the next ones in 1 % of the places?"""
    height, width = (side // 4 for side in samples.shape[:2])
    blocks = samples[: 4 * height, : 4 * width, :].mean(axis=2).reshape(height, 4, width, 4)
    medians = np.median(blocks.transpose(0, 2, 1, 3).reshape(height, width, 16), axis=2)
    return bool((np.abs(np.diff(medians, axis=1)) > 16).mean() > 0.01)


def _strewn(lone: np.ndarray, seen: np.ndarray, centre: np.ndarray, fixed: bool) -> bool:
    """Does chance explain where bool [h, w, C] lone samples lie among those `seen`?

    By distances between them: none is frequent, as in a lattice. By cells of a grid: the index of dispersion of their
    counts, 1 under chance, is not large; what hides some of them adds to it in proportion to the counts. By brightness
    of the ground (`fixed` values only; others show less on some grounds): quarters that differ little.
    """
    if _regular(lone.any(axis=2)):
        return False
    rate = lone.sum() / max(seen.sum(), 1)
    rows, columns = (np.arange(side) * CELLS // side for side in lone.shape[:2])
    cell = (rows[:, None] * CELLS + columns)[:, :, None]
    counts, expected = (
        np.bincount(np.broadcast_to(cell, lone.shape)[where], minlength=CELLS * CELLS) for where in (lone, seen)
    )
    expected = expected * rate
    full = expected >= 4
    cells = int(full.sum())
    if cells < 3:
        return lone.sum() >= FEWEST and (counts > 0).sum() >= 6
    dispersion = ((counts - expected)[full] ** 2 / expected[full]).sum() / (cells - 1)
    if dispersion > 1 + 4 * np.sqrt(2 / (cells - 1)) + 0.2 * expected[full].mean():
        return False
    if not fixed:
        return True
    levels = centre[seen]
    edges = np.percentile(levels, (25, 50, 75))
    quarter, hits = np.searchsorted(edges, levels), lone[seen]
    rates = [hits[quarter == q].mean() / rate for q in range(4) if (quarter == q).sum() * rate >= 10]
    return all(0.4 < r < 2.2 for r in rates)


def _regular(places: np.ndarray) -> bool:
    """Is one distance between bool [h, w] places met from a quarter of them, as in a lattice?"""
    spectrum = rfft2(places.astype(np.float32))
    met = irfft2(spectrum.real**2 + spectrum.imag**2, places.shape)
    met[0, 0] = 0
    return bool(met.max() > 0.25 * places.sum())


def _kind(grounds: _Grounds, lone: np.ndarray, visible: np.ndarray, fixed: bool) -> Evidence:
    """Of what values the impulses are, and whether they hit pixels or single samples."""
    channels = lone.shape[2]
    sites = (lone & visible).any(axis=2)
    whole = sites & visible.all(axis=2)  # pixels at which every channel would show
    hit = lone[whole].mean() if whole.any() else 1.0
    joint = channels == 1 or hit > (0.8 if fixed else 0.6)
    rate = (lone & visible).sum() / max(visible.sum(), 1)
    if joint or not fixed:
        values, counts = np.unique(grounds.value[sites], axis=0, return_counts=True)
    else:
        values, counts = np.unique(grounds.value[lone], return_counts=True)
        values = values[:, None]
    kept = (counts > 0.02 * counts.sum()) & np.isin(values, (0, 255)).all(axis=1)
    if fixed and kept.any():
        shares = rate * counts[kept] / counts.sum()
        return Evidence(True, "impulses of extreme value", joint, True, values[kept].astype(np.uint8), shares)
    return Evidence(True, "impulses of any value", joint, False, values.astype(np.uint8), rate * counts / counts.sum())


# --- pixel by pixel ---
#
# How likely is a sample an impulse, given what its surroundings look like? Impulses fall anywhere, so the surroundings
# of places drawn at random, an impulse's value put there, show how the impulses of this very picture look; their
# number follows from the share that `judge` found. What looks so and is there more often than that is content.


def _extreme(samples: np.ndarray, evidence: Evidence) -> np.ndarray:
    """bool [H, W, C]: which samples that have one of the impulses' values are impulses."""
    if not evidence.joint:
        planes = [_extreme(samples[:, :, c : c + 1], replace(evidence, joint=True)) for c in range(samples.shape[2])]
        return np.concatenate(planes, axis=2)
    close = [(np.abs(samples.astype(np.int16) - value) <= CLOSE).all(axis=2) for value in evidence.values.astype(int)]
    each = [(samples == value).all(axis=2) for value in evidence.values]
    counts = [(_box(near, 1), _box(near, 2)) for near in close]
    candidates = np.zeros(samples.shape[:2], bool)
    for same, (_, wide) in zip(each, counts, strict=True):
        candidates |= same & (wide < AREA)
    places = np.random.default_rng(0).integers(0, candidates.size, DRAWN)
    places = np.unravel_index(places[~candidates.ravel()[places]], candidates.shape)
    found = np.zeros_like(candidates)
    for value, share, same, (few, wide) in zip(evidence.values, evidence.shares, each, counts, strict=True):
        at = np.nonzero(same & candidates)
        here, there = (_look(samples, candidates, value, few, wide, where) for where in (at, places))
        expected = share * candidates.size * _histogram(there[there >= 0]) / len(there)
        likely = expected > LIKELY * _histogram(here[here >= 0])
        found[at] = (here >= 0) & likely[here]
    return np.repeat(found[:, :, None], samples.shape[2], axis=2)


def _look(samples, candidates, value, few, wide, where) -> np.ndarray:
    """int [n]: what surrounds the places `where` an impulse of `value` is or may be, as a code; -1: it shows hardly.

    Of how many of 8 and of 24 neighbours (`few`, `wide`) are close to the value, and how far off their median is.
    """
    distance = np.zeros(len(where[0]), np.float32)
    for part in range(0, len(distance), 1 << 16):
        some = slice(part, part + (1 << 16))
        median = _median_of_sound(samples, ~candidates, where[0][some], where[1][some])
        distance[some] = np.abs(value.astype(np.float32) - median).max(axis=1)
    far = np.digitize(distance, (EXTREME, 64, 128)) - 1
    code = (few[where] + wide[where]) * 3 + far
    return np.where(distance > EXTREME, code, -1)


def _histogram(codes: np.ndarray) -> np.ndarray:
    return np.bincount(codes, minlength=1 << 10)


def _box(mask: np.ndarray, reach: int) -> np.ndarray:
    """uint8 [H, W]: how many pixels within `reach` of each, itself not, are in bool [H, W] `mask`."""
    side = 2 * reach + 1
    height, width = mask.shape
    padded = np.pad(mask, reach).astype(np.uint8)
    rows = sum(padded[y : y + height] for y in range(side))
    return sum(rows[:, x : x + width] for x in range(side)) - mask


def _median_of_sound(samples: np.ndarray, sound: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """float32 [n, C]: the median of the sound neighbours in 3x3, else 5x5, else 7x7 pixels; else the value itself."""
    height, width = sound.shape
    median = samples[rows, columns].astype(np.float32)
    left = np.arange(len(rows))
    for reach in (1, 2, 3):
        offsets = [(y, x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1) if (y, x) != (0, 0)]
        y = np.clip(rows[left, None] + [o[0] for o in offsets], 0, height - 1)
        x = np.clip(columns[left, None] + [o[1] for o in offsets], 0, width - 1)
        good = sound[y, x]
        number = good.sum(axis=1)
        enough = number >= 3
        values = np.where(good[enough, :, None], samples[y[enough], x[enough]].astype(np.float32), np.inf)
        values.sort(axis=1)
        middle = number[enough, None, None]
        pair = [np.take_along_axis(values, k, axis=1)[:, 0] for k in ((middle - 1) // 2, middle // 2)]
        median[left[enough]] = (pair[0] + pair[1]) / 2
        left = left[~enough]
    return median


def _odd(samples: np.ndarray, evidence: Evidence) -> np.ndarray:
    """bool [H, W, C]: samples (pixels, where hit as a whole) that agree with no pair of opposite neighbours."""
    if not evidence.joint:
        planes = [_odd(samples[:, :, c : c + 1], replace(evidence, joint=True, values=evidence.values[:, c : c + 1]))
                  for c in range(samples.shape[2])]  # fmt: skip
        return np.concatenate(planes, axis=2)
    rng = np.random.default_rng(0)
    drawn = rng.random(samples.shape[:2]) < min(DRAWN / samples[:, :, 0].size, 0.02)
    planted = samples.copy()
    planted[drawn] = evidence.values[rng.integers(0, len(evidence.values), int(drawn.sum()))]
    here, there = _oddness(samples), _oddness(planted)[drawn]
    expected = evidence.shares.sum() * here.size * _histogram(there) / len(there)
    likely = expected > LIKELY * _histogram(here.ravel())
    likely[: len(CALM_STEPS) + 1] = False  # those that agree with some pair
    return np.repeat(likely[here][:, :, None], samples.shape[2], axis=2)


def _oddness(samples: np.ndarray) -> np.ndarray:
    """int [H, W]: how far each pixel is from the nearest pair of opposite neighbours, and how calm its surroundings
    are, as a code: the former's step times the number of steps of the latter and that."""
    padded = np.pad(samples, ((1, 1), (1, 1), (0, 0)), mode="reflect").astype(np.int16)
    here = padded[1:-1, 1:-1]
    around = np.stack([_shifted(padded, y, x) for y, x in NEIGHBOURS])
    far = np.minimum.reduce([
        np.maximum(np.abs(here - _shifted(padded, y, x)), np.abs(here - _shifted(padded, -y, -x))).max(axis=2)
        for y, x in DIRECTIONS
    ])  # fmt: skip
    around.sort(axis=0)
    median = (around[3] + around[4]) // 2
    calm = np.partition(np.abs(around - median), 5, axis=0)[5].max(axis=2)
    return np.digitize(far, ODD_STEPS) * (len(CALM_STEPS) + 1) + np.digitize(calm, CALM_STEPS)


def _shifted(padded: np.ndarray, y: int, x: int) -> np.ndarray:
    return padded[1 + y : padded.shape[0] - 1 + y, 1 + x : padded.shape[1] - 1 + x]


# --- repair ---


def fill(samples: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8 [H, W, C] with the samples of bool [H, W, C] `mask` replaced; all others, and channels all masked, stay.

    First the weighted mean of the sound neighbours in 5x5 pixels (grown until there are some), then twice along the
    directions in which the surroundings change least: a mean of four directions' cubic interpolations, by weights
    that fall with the differences met along each.
    """
    result = samples.copy()
    for c in range(samples.shape[2]):
        if mask[:, :, c].any() and not mask[:, :, c].all():
            result[:, :, c][mask[:, :, c]] = _filled(samples[:, :, c], mask[:, :, c])
    return result


def _filled(plane: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """uint8 [n]: new values for the n samples of uint8 [H, W] in `hole`, in row order."""
    reach = 3
    work = np.pad(plane.astype(np.float32), reach, mode="reflect")
    sound = np.pad(~hole, reach, mode="reflect").astype(np.float32)
    rows, columns = (where + reach for where in np.nonzero(hole))
    work[rows, columns] = _mean_of_sound(work, sound, rows, columns)
    for _ in range(2):
        estimates, weights = [], []
        for y, x in DIRECTIONS:
            at = [(work[rows + k * y, columns + k * x], sound[rows + k * y, columns + k * x]) for k in (-2, -1, 1, 2)]
            (far, s0), (near, s1), (next_, s2), (beyond, s3) = at
            cubic = (4 * (near + next_) - far - beyond) / 6
            estimates.append(np.clip(cubic, np.minimum(near, next_), np.maximum(near, next_)))
            side = [
                np.abs(work[rows + y + v, columns + x + u] - work[rows - y + v, columns - x + u])
                for v, u in ((x, -y), (-x, y))
            ]
            change = np.abs(near - next_) + 0.5 * (np.abs(far - near) + np.abs(beyond - next_)) + 0.5 * sum(side)
            length = np.hypot(y, x)
            trust = 0.05 + s1 * s2 * (0.5 + 0.25 * (s0 + s3))
            weights.append(trust / (length * change + 4.0) ** 3)
        total = sum(weights)
        work[rows, columns] = sum(w * e for w, e in zip(weights, estimates, strict=True)) / total
    return np.clip(np.rint(work[rows, columns]), 0, 255).astype(np.uint8)


def _mean_of_sound(work: np.ndarray, sound: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """float [n]: mean of the sound samples around, nearer ones weigh more; without any, the median of all."""
    total, weight = np.zeros(len(rows), np.float32), np.full(len(rows), 1e-9, np.float32)
    for y in range(-3, 4):
        for x in range(-3, 4):
            near = sound[rows + y, columns + x] * np.float32(np.exp(-1.2 * (y * y + x * x)))
            total += near * work[rows + y, columns + x]
            weight += near
    return np.where(weight > 1e-8, total / weight, np.median(work[sound > 0]))
