"""At which level to code one picture, so that it meets a target: SSIMULACRA2, PSNR, MS-SSIM or bytes.

`target_level` searches on a picture whose analysis is done (encoder.AnalysedPicture); each pass quantises and then
measures or codes. Targets count as met from above: at least V, at most 0.1 dB or 0.5 of SSIMULACRA2 more; bytes from
below: at most 2 % under. A budget over many pictures: budget.py. No torch here.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from codec.errors import CodecError
from codec.format import LEVELS
from codec.metrics import MS_SSIM_MIN_SIDE, ms_ssim_db
from codec.metrics.original import Original
from codec.metrics.ssimulacra2 import MIN_SIDE as SSIMULACRA2_MIN_SIDE

EXCESS = {"psnr": 0.1, "ms-ssim": 0.1, "ssimulacra2": 0.5}  # by which a target may be exceeded: dB; points
SHORT = 0.02  # part of a byte target that may stay unused
SMALL_PICTURE_PSNR = 40.0  # what a picture too small for a metric takes instead
SMALLEST = {"ms-ssim": MS_SSIM_MIN_SIDE, "ssimulacra2": SSIMULACRA2_MIN_SIDE}  # sides in pixels
# Kept above a target, and below its excess, since decoders may differ by a grey step here and there.
MARGIN = {"psnr": 0.004, "ms-ssim": 0.004, "ssimulacra2": 0.02}
NOISY = 12  # levels within which quality moves up and down by as much as it grows
BESIDE = 3  # levels next to one that misses which are tried last
PATIENCE = 3  # from this pass on none is kept above the window, where a step less matters less than a pass more
LAST_PASS = 8  # pictures whose curve jumps get as many

# Where a search starts and how steep it expects a curve to be; what is measured on the picture corrects it.
# PSNR and bytes: from the picture's own latent (AnalysedPicture.expected), with the error that no level removes as a
# multiple of the expected one at the highest level, and the bits as multiples of the expected ones. The middle is
# typical.
FLOORS = (0.0, 1.0, 3.0, 8.0, 25.0)
BITS = (2.0, 2.7, 3.5)
# MS-SSIM in dB: of pictures of growing activity, at levels 0, 100, ..., 1000.
MS_SSIM = (
    (8.6, 9.6, 10.7, 11.8, 13.0, 14.4, 15.8, 17.3, 18.9, 20.6, 22.3),
    (8.7, 10.0, 11.4, 12.9, 14.5, 16.1, 17.6, 19.1, 20.6, 22.0, 23.4),
    (10.3, 11.6, 12.9, 14.3, 15.7, 17.1, 18.3, 19.5, 20.8, 22.1, 23.4),
    (11.0, 12.5, 14.0, 15.5, 17.1, 18.5, 20.0, 21.4, 22.8, 24.1, 25.5),
    (12.1, 13.3, 14.7, 16.0, 17.4, 18.8, 20.0, 21.3, 22.4, 23.5, 24.5),
)
# SSIMULACRA2: of 48 held-out tiles and rendered pages, sorted by their value at level 700, in five groups.
SSIMULACRA2 = (
    (-44.6, -34.6, -21.4, -6.4, 9.2, 25.6, 40.8, 53.8, 65.0, 73.7, 80.1),
    (-24.6, -9.3, 6.2, 21.5, 36.2, 48.6, 58.9, 67.3, 74.1, 79.6, 83.9),
    (-17.4, -0.6, 16.0, 31.3, 44.7, 55.7, 64.9, 72.2, 77.8, 82.1, 85.2),
    (-6.2, 10.7, 26.7, 40.3, 52.0, 61.4, 69.2, 75.3, 80.0, 83.7, 86.4),
    (13.8, 29.3, 42.1, 52.2, 61.5, 68.7, 74.6, 79.1, 82.7, 85.1, 86.7),
)
FINER = (70, 170, 350, 1000)  # levels above the target's that are tried where a part lost its structure


class TargetUnreachable(CodecError):
    """No level meets the target. Has .level and .bitstream of the nearest miss and its .value, in the metric's unit."""

    def __init__(self, message: str, level: int, bitstream: bytes, value: float):
        super().__init__(message)
        self.level, self.bitstream, self.value = level, bitstream, value

    def __reduce__(self):
        return type(self), (self.args[0], self.level, self.bitstream, self.value)


class LocalLossRemains(TargetUnreachable):
    """The target is met on average, but at no level everywhere. `value` is what the target's metric gives."""


@dataclasses.dataclass(frozen=True)
class Reached:
    """A target met. `value` in the metric's own unit (points, dB, 0..1, bytes); `pixels` uint8 as decoded, None for
    bytes."""

    level: int
    bitstream: bytes
    metric: str  # ssimulacra2, psnr, ms-ssim, bytes: the one that was met, which for small pictures is psnr
    value: float
    passes: int
    pixels: np.ndarray | None = None
    finer: bool = False  # than the target asks, so that no part loses its structure


def parse_target(text: str) -> tuple[str, float]:
    """Text as of --target, "ssimulacra2=80", "psnr=38" or "ms-ssim=0.98" -> (metric, value). Raises ValueError for
    anything else."""
    metric, _, number = text.partition("=")
    metric = metric.strip().lower()
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if metric in ("ssimulacra2", "psnr") and 0 < value < 100:
        return metric, value
    if metric == "ms-ssim" and 0 < value < 1:
        return metric, value
    raise ValueError(
        f"target {text!r} is none of ssimulacra2=V with V between 0 and 100, psnr=V with V in dB and ms-ssim=V with V "
        "between 0 and 1"
    )


def encode_prepared(prepared, target: str | None = None, max_bytes: int | None = None) -> bytes:
    """The bitstream that meets one of the two. Raises TargetUnreachable, and ValueError for a bad target."""
    if (target is None) == (max_bytes is None):
        raise ValueError("give one of target and max_bytes")
    metric, value = parse_target(target) if target is not None else ("bytes", max_bytes or 0)
    return target_level(prepared, metric, value).bitstream


def target_level(prepared, metric: str, value: float, everywhere: bool = False) -> Reached:
    """The level and bitstream at which an encoder.AnalysedPicture meets a target.

    ssimulacra2 (points; under 8 pixels psnr 40 instead), psnr (dB), ms-ssim (0..1; under 160 pixels psnr 40 instead):
    at least `value`, at most EXCESS more, or the lowest level where even that is better. bytes: at most `value`, at
    least 98 % of it, or the highest level where even that is smaller. Two to four passes; MS-SSIM may take five or six
    on flat charts and tiny pictures, and a curve that jumps takes up to eight and comes as near from the right side as
    they allow. everywhere: of a quality, that no part of the picture lost its own structure and no flat colour shifted
    (local_loss.Losses.acceptable) either; where one did, finer levels are tried, the highest last. Raises
    TargetUnreachable, LocalLossRemains, and ValueError for an unknown metric.
    """
    if metric == "bytes":
        return _in_bytes(prepared, value)
    if metric not in EXCESS:
        raise ValueError(f"unknown metric {metric!r}; {', '.join(EXCESS)} and bytes can be targets")
    original = prepared.original
    if original.shortest_side < SMALLEST.get(metric, 0):
        metric, value = "psnr", SMALL_PICTURE_PSNR
    shown: dict[int, np.ndarray] = {}  # of the latest pass alone

    def quality(level: int) -> float:
        shown.clear()
        shown[level] = prepared.reconstruct(level)
        return measured(original, metric, shown[level])

    low, margin = _searched(metric, value), MARGIN[metric]
    family, start = _family(prepared, metric)
    highest, aim = low + EXCESS[metric] - margin, low + EXCESS[metric] / 2
    found = search_level(quality, family, start, low + margin, highest, aim, -1, margin)
    got = _own_unit(metric, found.value)
    if not found.met:
        raise TargetUnreachable(
            f"{metric} {value:g} cannot be reached: the highest level gives {got:.5g}; keep the original or lower the "
            "target", found.level, prepared.code(found.level), got,
        )  # fmt: skip
    level, passes, finer = found.level, found.passes, False
    if everywhere:
        level, passes = _acceptable_everywhere(original, metric, quality, shown, level, passes, prepared)
        got, finer = _own_unit(metric, measured(original, metric, shown[level])), level != found.level
    pixels = shown[level] if level in shown else prepared.reconstruct(level)
    return Reached(level, prepared.code(level), metric, got, passes, pixels, finer)


def _in_bytes(prepared, value: float) -> Reached:
    if value < 1:
        raise ValueError(f"a target of {value} bytes cannot hold a picture")
    coded: dict[int, bytes] = {}  # of the latest pass alone

    def size(level: int) -> float:
        coded.clear()
        coded[level] = prepared.code(level)
        return math.log(len(coded[level]))

    _, bits = prepared.expected(np.linspace(0, LEVELS, 11))
    family = [np.log(bits * factor / 8 + 160) for factor in BITS]
    low, aim, high = (math.log(value * part) for part in (1 - SHORT, 1 - 0.45 * SHORT, 1))
    found = search_level(size, family, (0, 1, 0), low, high, aim, 1)
    bitstream = coded[found.level] if found.level in coded else prepared.code(found.level)
    if not found.met:
        raise TargetUnreachable(
            f"the smallest bitstream has {len(bitstream)} bytes, more than {value:.0f}; allow more bytes or make "
            "the picture smaller", found.level, bitstream, len(bitstream),
        )  # fmt: skip
    return Reached(found.level, bitstream, "bytes", len(bitstream), found.passes)


def _acceptable_everywhere(original: Original, metric: str, quality, shown: dict, level: int, passes: int, prepared):
    """(level, passes) from `level` on where no part lost its structure. `quality` fills `shown`."""
    if level not in shown:
        quality(level)
    losses = original.losses(shown[level])
    for finer in sorted({min(level + more, LEVELS) for more in FINER} - {level}):
        if losses.acceptable:
            break
        level, passes = finer, passes + 1
        quality(level)
        losses = original.losses(shown[level])
    if not losses.acceptable:
        got = _own_unit(metric, measured(original, metric, shown[level]))
        raise LocalLossRemains(
            f"{losses.in_words()} even at level {level}; keep the original or store it losslessly",
            level, prepared.code(level), got,
        )  # fmt: skip
    return level, passes


def _family(prepared, metric: str) -> tuple[Sequence, Sequence[float]]:
    """Typical curves at levels 0, 100, ..., 1000 and their weights in the first guess."""
    if metric == "ssimulacra2":
        return SSIMULACRA2, (0, 0.25, 0.5, 0.25, 0)
    if metric == "ms-ssim":
        return MS_SSIM, (0, 0.33, 0.34, 0.33, 0)
    mse, _ = prepared.expected(np.linspace(0, LEVELS, 11))
    return [-10 * np.log10((mse + floor * mse[-1]) / 255**2) for floor in FLOORS], (0, 0, 1, 0, 0)


def measured(original: Original, metric: str, shown: np.ndarray) -> float:
    """On the scale on which a metric is searched: of MS-SSIM dB; never above 100."""
    if metric == "psnr":
        return min(original.psnr(shown), 100.0)
    value = original.ssimulacra2(shown) if metric == "ssimulacra2" else original.ms_ssim(shown)
    assert value is not None, "smaller pictures are searched by PSNR"
    return value if metric == "ssimulacra2" else min(ms_ssim_db(value), 100.0)


def _searched(metric: str, value: float) -> float:
    return ms_ssim_db(value) if metric == "ms-ssim" else value


def _own_unit(metric: str, value: float) -> float:
    return 1 - 10 ** (-value / 10) if metric == "ms-ssim" else value


@dataclasses.dataclass(frozen=True)
class _Found:
    level: int
    value: float
    met: bool  # on the right side of the window
    passes: int


def _mix(at: Sequence[float], value: float) -> np.ndarray:
    """Weights of curves whose parameter `at` grows, for a parameter between two of them; the outermost beyond."""
    weights = np.zeros(len(at))
    right = int(np.clip(np.searchsorted(at, value), 1, len(at) - 1))
    weights[right] = np.clip((value - at[right - 1]) / max(at[right] - at[right - 1], 1e-9), 0, 1)
    weights[right - 1] = 1 - weights[right]
    return weights


def search_level(
    measure: Callable[[int], float], family, start, low: float, high: float, aim: float, side: int, spare: float = 0.0
) -> _Found:
    """A level whose value, which grows with the level, lies in [low, high], or from pass PATIENCE on in [low, high +
    spare]; else the nearest on the right side.

    `family`: typical curves at levels 0, 100, ..., 1000; `start`: their weights in the first guess. side -1: at least
    `low` counts (smallest such value), +1: at most `high` counts (largest such).
    The curve is taken as a typical one plus a line or parabola through the measured levels nearest to the aim, those
    within NOISY levels of one taken as one.
    """
    from scipy.interpolate import CubicSpline

    knots = np.linspace(0, LEVELS, len(family[0]))
    every = np.arange(LEVELS + 1)
    curves = CubicSpline(knots, family, axis=1)(every)
    shape = np.asarray(start) @ curves
    known: dict[int, float] = {}
    while True:
        if not known:
            guess = shape
        else:
            levels = np.array(sorted(known))
            values = np.array([known[level] for level in levels])
            if len(levels) == 1:  # the typical curves on both sides of the point, mixed so as to pass through
                rising = curves[np.argsort(curves[:, levels[0]])]
                shape = _mix(rising[:, levels[0]], values[0]) @ rising
            gaps = values - shape[levels]
            bracketed = values.min() < aim < values.max()  # a parabola is no guide beyond its points
            near = _apart(levels, gaps, np.argsort(np.abs(values - aim)))[: 3 if bracketed else 2]
            guess = shape + np.polyval(np.polyfit(near[:, 0] / LEVELS, near[:, 1], len(near) - 1), every / LEVELS)
        below = max((level for level, v in known.items() if v < low), default=-LEVELS)
        above = min((level for level, v in known.items() if v > high), default=2 * LEVELS)
        inside = every[max(below + 1, 0) : above]
        inside = inside[~np.isin(inside, list(known))]
        if side < 0:  # quality hardly differs beside a level that misses
            apart = inside[(inside - below > BESIDE) & (above - inside > BESIDE)]
            inside = apart if len(apart) else inside
        if len(inside) == 0:  # a jump between two neighbouring levels, or an end of the range
            return _nearest(known, low, high, side)
        by_halves = len(known) >= LAST_PASS - 2  # a curve that no guess fits
        level = int(inside[len(inside) // 2 if by_halves else np.argmin(np.abs(guess[inside] - aim))])
        known[level] = measure(level)
        if low <= known[level] <= high + (spare if len(known) >= PATIENCE else 0):
            return _Found(level, known[level], True, len(known))
        if len(known) >= LAST_PASS:
            return _nearest(known, low, high, side)


def _apart(levels: np.ndarray, values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Points [n,2] in that order, where those less than NOISY levels from one before count as their mean with it: what
    lies between such is noise, not slope."""
    groups: list[list[int]] = []
    for i in order:
        for group in groups:
            if abs(levels[i] - levels[group[0]]) < NOISY:
                group.append(int(i))
                break
        else:
            groups.append([int(i)])
    return np.array([(levels[group].mean(), values[group].mean()) for group in groups])


def _nearest(known: dict[int, float], low: float, high: float, side: int) -> _Found:
    right = [level for level, v in known.items() if (v >= low if side < 0 else v <= high)]
    level = min(right) if side < 0 and right else max(right) if right else max(known) if side < 0 else min(known)
    return _Found(level, known[level], bool(right), len(known))
