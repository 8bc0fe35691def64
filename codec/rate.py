"""Which level to code at: for one picture's target, and for a byte budget over many pictures.

`target_level` searches on a picture whose analysis is done (coder.Prepared); each pass quantises and then measures or
codes. `allocate` works on samples (level, bytes, distortion) that somebody else measured, by Lagrange multipliers
(Shoham and Gersho 1988). Targets count as met from above: at least V, at most 0.1 dB more; bytes from below: at most
2 % under.
"""

import dataclasses
import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from codec import metrics
from codec.container import CodecError
from codec.metrics import MS_SSIM_MIN_SIDE, ms_ssim_db

TOP = 1000  # highest level, as model.LEVELS; here so that a plan can be made without torch
EXCESS = 0.1  # dB by which a target may be exceeded
SHORT = 0.02  # part of a byte target that may stay unused
SMALL_PICTURE_PSNR = 40.0  # what a picture too small for MS-SSIM takes instead
MARGIN = 0.004  # dB kept above a target, and below its excess, since decoders may differ by a grey step here and there
NOISY = 12  # levels within which quality moves up and down by as much as it grows
BESIDE = 3  # levels next to one that misses which are tried last
PATIENCE = 3  # from this pass on none is kept above the window, where a step less matters less than a pass more
LAST_PASS = 8  # pictures whose curve jumps get as many
SAMPLE_LEVELS = (0, 160, 360, 580, 800, 1000)  # where a curve is worth sampling for `allocate`

# Where a search starts and how steep it expects a curve to be; what is measured on the picture corrects it.
# PSNR and bytes: from the picture's own latent (Prepared.expected), with the error that no level removes as a multiple
# of the expected one at the highest level, and the bits as multiples of the expected ones. The middle is typical.
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


class TargetUnreachable(CodecError):
    """No level meets the target. Has .level and .bitstream of the nearest miss and its .value, in the metric's unit."""

    def __init__(self, message: str, level: int, bitstream: bytes, value: float):
        super().__init__(message)
        self.level, self.bitstream, self.value = level, bitstream, value

    def __reduce__(self):
        return type(self), (self.args[0], self.level, self.bitstream, self.value)


class BudgetTooSmall(ValueError):
    """The cheapest choice costs more than the budget. Has .least, in bytes."""

    def __init__(self, message: str, least: int):
        super().__init__(message)
        self.least = least

    def __reduce__(self):
        return type(self), (self.args[0], self.least)


@dataclasses.dataclass(frozen=True)
class Reached:
    """A target met. `value` in the metric's own unit (dB, 0..1, bytes); `pixels` uint8 as decoded, None for bytes."""

    level: int
    bitstream: bytes
    metric: str  # psnr, ms-ssim, bytes: the one that was met, which for small pictures is psnr
    value: float
    passes: int
    pixels: np.ndarray | None = None


def parse_target(text: str) -> tuple[str, float]:
    """Text as of --target, "psnr=38" or "ms-ssim=0.98" -> (metric, value). Raises ValueError for anything else."""
    metric, _, number = text.partition("=")
    metric = metric.strip().lower()
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if metric == "psnr" and 0 < value < 100:
        return metric, value
    if metric == "ms-ssim" and 0 < value < 1:
        return metric, value
    raise ValueError(f"target {text!r} is neither psnr=V with V in dB nor ms-ssim=V with V between 0 and 1")


def encode_prepared(prepared, target: str | None = None, max_bytes: int | None = None) -> bytes:
    """The bitstream that meets one of the two. Raises TargetUnreachable, and ValueError for a bad target."""
    if (target is None) == (max_bytes is None):
        raise ValueError("give one of target and max_bytes")
    metric, value = parse_target(target) if target is not None else ("bytes", max_bytes)
    return target_level(prepared, metric, value).bitstream


def target_level(prepared, metric: str, value: float) -> Reached:
    """The level and bitstream at which a coder.Prepared meets a target.

    psnr (dB), ms-ssim (0..1; under 160 pixels psnr 40 instead): at least `value`, at most 0.1 dB more, or the lowest
    level where even that is better. bytes: at most `value`, at least 98 % of it, or the highest level where even that
    is smaller. Two to four passes; MS-SSIM may take five or six on flat charts and tiny pictures, and a curve that
    jumps takes up to eight and comes as near from the right side as they allow. Raises TargetUnreachable, ValueError
    for an unknown metric.
    """
    if metric not in ("psnr", "ms-ssim", "bytes"):
        raise ValueError(f"unknown metric {metric!r}; psnr, ms-ssim and bytes can be targets")
    if metric == "ms-ssim" and min(prepared.width, prepared.height) < MS_SSIM_MIN_SIDE:
        metric, value = "psnr", SMALL_PICTURE_PSNR
    original = metrics.pixels_of(prepared.picture.image)
    kept: dict[int, np.ndarray | bytes] = {}  # of the latest pass alone

    def quality(level: int) -> float:
        kept.clear()
        kept[level] = prepared.reconstruct(level)
        shown = metrics.pixels_of(kept[level])
        if metric == "psnr":
            return min(metrics.psnr(original, shown), 100.0)
        return min(ms_ssim_db(metrics.ms_ssim(original, shown)), 100.0)

    def size(level: int) -> float:
        kept.clear()
        kept[level] = prepared.code(level)
        return math.log(len(kept[level]))

    if metric == "bytes":
        if value < 1:
            raise ValueError(f"a target of {value} bytes cannot hold a picture")
        _, bits = prepared.expected(np.linspace(0, TOP, 11))
        family = [np.log(bits * factor / 8 + 160) for factor in BITS]
        low, aim, high = (math.log(value * part) for part in (1 - SHORT, 1 - 0.45 * SHORT, 1))
        found = _search(size, family, (0, 1, 0), low, high, aim, 1)
        level, passes = found.level, found.passes
        bitstream = kept[level] if level in kept else prepared.code(level)
        if not found.met:
            raise TargetUnreachable(
                f"the smallest bitstream has {len(bitstream)} bytes, more than {value:.0f}; allow more bytes or make "
                "the picture smaller", level, bitstream, len(bitstream),
            )  # fmt: skip
        return Reached(level, bitstream, metric, len(bitstream), passes)

    low = value if metric == "psnr" else ms_ssim_db(value)
    if metric == "psnr":
        mse, _ = prepared.expected(np.linspace(0, TOP, 11))
        family, start = [-10 * np.log10((mse + floor * mse[-1]) / 255**2) for floor in FLOORS], (0, 0, 1, 0, 0)
    else:
        family, start = MS_SSIM, (0, 0.33, 0.34, 0.33, 0)
    window = low + MARGIN, low + EXCESS - MARGIN, low + EXCESS / 2
    found = _search(quality, family, start, *window, -1, MARGIN)
    bitstream = prepared.code(found.level)
    got = found.value if metric == "psnr" else 1 - 10 ** (-found.value / 10)
    if not found.met:
        raise TargetUnreachable(
            f"{metric} {value:g} cannot be reached: the highest level gives {got:.5g}; keep the original or lower the "
            "target", found.level, bitstream, got,
        )  # fmt: skip
    shown = kept[found.level] if found.level in kept else prepared.reconstruct(found.level)
    return Reached(found.level, bitstream, metric, got, found.passes, shown)


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


def _search(
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

    knots = np.linspace(0, TOP, len(family[0]))
    every = np.arange(TOP + 1)
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
            guess = shape + np.polyval(np.polyfit(near[:, 0] / TOP, near[:, 1], len(near) - 1), every / TOP)
        below = max((level for level, v in known.items() if v < low), default=-TOP)
        above = min((level for level, v in known.items() if v > high), default=2 * TOP)
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


# -- a budget over many pictures


@dataclasses.dataclass(frozen=True)
class RatePoint:
    """One measurement of a picture: level 0..1000, bytes of its bitstream, MSE (0..255 scale), MS-SSIM or None."""

    level: int
    bytes: int
    mse: float
    ms_ssim: float | None = None


@dataclasses.dataclass(frozen=True)
class Allocation:
    """A level for each picture and what is expected of it; arrays in the pictures' order."""

    levels: np.ndarray  # int64 [n]
    bytes: np.ndarray  # float64 [n]
    psnr: np.ndarray  # float64 [n], dB
    ms_ssim: np.ndarray  # float64 [n], NaN where not sampled
    floor: dict[str, float]  # what every picture was asked to have at least; see allocate
    under_floor: np.ndarray  # bool [n]: cannot reach the floor at any sampled level and takes its best

    @property
    def total_bytes(self) -> float:
        return float(self.bytes.sum())


def allocate(
    curves: Sequence[Sequence[RatePoint]],
    pixels: Sequence[int],
    budget: float | None = None,
    *,
    metric: str = "psnr",
    floor: dict[str, float] | None = None,
    protect: float = 3.0,
    aim: float = 0.993,
) -> Allocation:
    """Levels for many pictures that share a budget, or the cheapest ones that reach a floor.

    curves[i]: samples of picture i at one or more levels (SAMPLE_LEVELS), levels between are interpolated; pixels[i]:
    its width x height, its weight in the pooled quality. The sum of the expected bytes lands just under `aim` times
    `budget`, so that interpolation errors leave it between 98 and 100 per cent; a set whose highest levels together
    cost less gets those. Minimised is the sum of squared errors, or with metric="ms-ssim" the sum of 1 - MS-SSIM over
    all pixels (pictures without MS-SSIM then count by a typical relation to their MSE).

    Floors keep the worst picture up: {"psnr": 40} or {"psnr": 40, "ms-ssim": 0.993} asks that of every picture that
    can reach it. When the budget cannot pay for a floor it is lowered for all alike until it can, MS-SSIM in dB. With
    a budget and no floor given, no picture falls more than `protect` dB under the best PSNR that all could have alike.
    Without a budget every picture takes its cheapest level at the floor.

    Raises BudgetTooSmall when even the lowest levels cost more, ValueError for empty curves or contradicting
    arguments.
    """
    if metric not in ("psnr", "ms-ssim"):
        raise ValueError(f"unknown metric {metric!r}; psnr and ms-ssim can be pooled")
    if budget is None and not floor:
        raise ValueError("give a budget, a floor or both")
    if unknown := set(floor or ()) - {"psnr", "ms-ssim"}:
        raise ValueError(f"unknown floor {', '.join(sorted(unknown))}; psnr and ms-ssim can be floors")
    if len(curves) != len(pixels):
        raise ValueError(f"{len(curves)} curves for {len(pixels)} pictures")
    if not len(curves):
        empty = np.zeros(0)
        return Allocation(np.zeros(0, np.int64), empty, empty, empty, dict(floor or {}), np.zeros(0, bool))
    table = _Table.of(curves, np.asarray(pixels, np.float64))
    if budget is None:
        lowest, under = table.at_floor(floor, 0.0)
        return table.allocation(lowest, dict(floor), under)

    room = aim * budget
    least = float(table.bytes[:, 0].sum(dtype=np.float64))
    if least > budget:
        needed = math.ceil(least - 1e-3)
        raise BudgetTooSmall(
            f"the lowest level of all {len(curves)} pictures needs {needed} bytes, more than the budget of "
            f"{budget:.0f}; raise it or leave pictures out", needed,
        )  # fmt: skip
    room = max(room, least)

    def cost(floors: dict[str, float], relief: float) -> float:
        return table.cost(table.at_floor(floors, relief)[0])

    if floor is None:
        best = _largest(lambda v: cost({"psnr": v}, 0.0) <= room, 0.0, 100.0)
        floor, relief = {"psnr": best - protect}, 0.0
    else:
        relief = 0.0 if cost(floor, 0.0) <= room else -_largest(lambda v: cost(floor, -v) <= room, -100.0, 0.0)
    lowest, under = table.at_floor(floor, relief)
    chosen = table.spend(room, lowest, metric)
    used = {m: v - relief if m == "psnr" else 1 - (1 - v) * 10 ** (relief / 10) for m, v in floor.items()}
    return table.allocation(chosen, used, under)


def _largest(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Where `holds`, true below and false above, changes (`low` is taken to hold), within 0.001."""
    if holds(high):
        return high
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


class _Table:
    """Interpolated curves of n pictures on a grid of P levels; bytes grow and distortions fall along it."""

    def __init__(self, levels, n_bytes, mse, similarity, pixels):
        self.levels = levels  # int16 [n,P]
        self.bytes = n_bytes  # [n,P]
        self.mse = mse  # [n,P]
        self.similarity = similarity  # [n,P], 1 - MS-SSIM, NaN where unknown
        self.pixels = pixels  # [n]

    @classmethod
    def of(cls, curves: Sequence[Sequence[RatePoint]], pixels: np.ndarray) -> "_Table":
        from scipy.interpolate import PchipInterpolator

        n = len(curves)
        width, kind_of_number = (TOP + 1, np.float64) if n <= 4000 else (101, np.float32)  # 1.7 kB a picture
        levels = np.empty((n, width), np.int16)
        fields = np.empty((3, n, width), kind_of_number)
        alike = defaultdict(list)
        for i, curve in enumerate(curves):
            if not len(curve):
                raise ValueError(f"picture {i} has no sample")
            alike[tuple(sorted({point.level for point in curve}))].append(i)
        for sampled, members in alike.items():
            values = np.empty((3, len(members), len(sampled)))
            for row, i in enumerate(members):
                points = sorted({point.level: point for point in curves[i]}.values(), key=lambda point: point.level)
                values[0, row] = [math.log(max(point.bytes, 1)) for point in points]
                values[1, row] = [math.log(max(point.mse, 1e-4)) for point in points]
                values[2, row] = [
                    math.nan if point.ms_ssim is None else math.log(max(1 - point.ms_ssim, 1e-7)) for point in points
                ]
            values[0] = np.maximum.accumulate(values[0], axis=1)
            values[1:] = np.minimum.accumulate(values[1:], axis=2)
            grid = np.rint(np.linspace(sampled[0], sampled[-1], width)).astype(np.int64)
            levels[members] = grid
            if len(sampled) == 1:
                fields[:, members] = values
            else:
                for kind in range(3):
                    known = np.isfinite(values[kind]).all(axis=1)
                    part = np.full((len(members), width), np.nan)
                    if known.any():
                        part[known] = PchipInterpolator(sampled, values[kind][known], axis=1)(grid)
                    fields[kind, members] = part
        return cls(levels, *np.exp(fields, out=fields), pixels)

    def cost(self, chosen: np.ndarray) -> float:
        return float(self.bytes[np.arange(len(chosen)), chosen].sum(dtype=np.float64))

    def at_floor(self, floors: dict[str, float], relief: float) -> tuple[np.ndarray, np.ndarray]:
        """First grid position of each picture at the floors, `relief` dB below them; and who cannot get there."""
        good = np.ones(self.bytes.shape, bool)
        for metric, value in floors.items():
            if metric == "psnr":
                good &= self.mse <= 255.0**2 * 10 ** ((relief - value) / 10) * (1 + 1e-9)
            else:
                good &= ~(self.similarity > (1 - value) * 10 ** (relief / 10) * (1 + 1e-9))
        under = ~good.any(axis=1)
        return np.where(under, good.shape[1] - 1, good.argmax(axis=1)), under

    def spend(self, room: float, lowest: np.ndarray, metric: str) -> np.ndarray:
        """Grid positions >= lowest that cost at most `room` (lowest does) with the least pooled distortion."""
        distortion = self.mse
        if metric == "ms-ssim":  # where there is none, the two fall together over the set
            ratio = np.nanmedian(self.similarity / self.mse) if np.isfinite(self.similarity).any() else 1.0
            distortion = np.where(np.isnan(self.similarity), self.mse * ratio, self.similarity)
        distortion = distortion * self.pixels[:, None].astype(distortion.dtype)
        rows = np.arange(len(lowest))
        allowed = np.arange(distortion.shape[1]) >= lowest[:, None]

        def at(multiplier: float) -> np.ndarray:
            return np.where(allowed, distortion + multiplier * self.bytes, np.inf).argmin(axis=1)

        if self.cost(at(0.0)) <= room:
            return at(0.0)
        low, high = -30.0, 40.0  # natural logarithm of the multiplier: too dear, affordable
        chosen = lowest
        for _ in range(48):
            middle = (low + high) / 2
            trial = at(math.exp(middle))
            if self.cost(trial) <= room:
                high, chosen = middle, trial
            else:
                low = middle
        # what is left buys single steps, the best per byte first, until none fits
        chosen = chosen.copy()
        left = room - self.cost(chosen)

        def step(i: int) -> tuple[float, int] | None:
            here = chosen[i]
            fits = np.flatnonzero(self.bytes[i, here + 1 :] - self.bytes[i, here] <= left) + here + 1
            if not len(fits):
                return None
            price = np.maximum(self.bytes[i, fits] - self.bytes[i, here], 1e-9)
            gain = (distortion[i, here] - distortion[i, fits]) / price
            best = int(gain.argmax())
            return (-float(gain[best]), int(fits[best])) if gain[best] > 0 else None

        cheapest = self.bytes[rows, np.minimum(chosen + 1, distortion.shape[1] - 1)] - self.bytes[rows, chosen]
        candidates = rows[(chosen < distortion.shape[1] - 1) & (cheapest <= left)]
        queue = [(move[0], int(i), move[1]) for i in candidates if (move := step(i))]
        heapq.heapify(queue)
        for _ in itertools.repeat(None, 20 * len(rows) + 1000):
            if not queue or left < 1e-4 * room:
                break
            _, i, to = heapq.heappop(queue)
            price = self.bytes[i, to] - self.bytes[i, chosen[i]]
            if price <= left:
                chosen[i] = to
                left -= price
            if move := step(i):
                heapq.heappush(queue, (move[0], i, move[1]))
        return chosen

    def allocation(self, chosen: np.ndarray, floor: dict[str, float], under: np.ndarray) -> Allocation:
        rows = np.arange(len(chosen))
        return Allocation(
            self.levels[rows, chosen].astype(np.int64),
            self.bytes[rows, chosen].astype(np.float64),
            10 * np.log10(255.0**2 / self.mse[rows, chosen]),
            1 - self.similarity[rows, chosen],
            floor,
            under,
        )
