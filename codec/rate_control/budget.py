"""A byte budget over many pictures: a level for each, from samples (level, bytes, distortion) of somebody else's.

By Lagrange multipliers (Shoham and Gersho 1988), with a floor that keeps the worst picture up. The level of one picture
at a target of its own: target.py. No torch, so that a plan can be made without it.
"""

import dataclasses
import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from codec.format import LEVELS

SAMPLE_LEVELS = (0, 160, 360, 580, 800, 1000)  # where a curve is worth sampling for `allocate`


class BudgetTooSmall(ValueError):
    """The cheapest choice costs more than the budget. Has .least, in bytes."""

    def __init__(self, message: str, least: int):
        super().__init__(message)
        self.least = least

    def __reduce__(self):
        return type(self), (self.args[0], self.least)


@dataclasses.dataclass(frozen=True)
class RatePoint:
    """One measurement of a picture: level 0..1000, bytes of its bitstream, MSE (0..255 scale)."""

    level: int
    bytes: int
    mse: float


@dataclasses.dataclass(frozen=True)
class Allocation:
    """A level for each picture and what is expected of it; arrays in the pictures' order."""

    levels: np.ndarray  # int64 [n]
    bytes: np.ndarray  # float64 [n]
    psnr: np.ndarray  # float64 [n], dB
    floor: float  # dB that every picture was asked to have at least
    under_floor: np.ndarray  # bool [n]: cannot reach the floor at any sampled level and takes its best

    @property
    def total_bytes(self) -> float:
        return float(self.bytes.sum())


def allocate(
    curves: Sequence[Sequence[RatePoint]], pixels: Sequence[int], budget: float, *, protect: float = 3.0,
    aim: float = 0.993,
) -> Allocation:  # fmt: skip
    """Levels for many pictures that share a budget of bytes.

    curves[i]: samples of picture i at one or more levels (SAMPLE_LEVELS), levels between are interpolated; pixels[i]:
    its width x height, its weight in the pooled quality. The sum of the expected bytes lands just under `aim` times
    `budget`, so that interpolation errors leave it between 98 and 100 per cent; a set whose highest levels together
    cost less gets those. Minimised is the sum of squared errors over all pixels, but no picture that can do better
    falls more than `protect` dB under the best PSNR that all could have alike.

    Raises BudgetTooSmall when even the lowest levels cost more, ValueError for empty curves.
    """
    if len(curves) != len(pixels):
        raise ValueError(f"{len(curves)} curves for {len(pixels)} pictures")
    if not len(curves):
        empty = np.zeros(0)
        return Allocation(np.zeros(0, np.int64), empty, empty, 0.0, np.zeros(0, bool))
    table = _Table.of(curves, np.asarray(pixels, np.float64))
    room = aim * budget
    least = float(table.bytes[:, 0].sum(dtype=np.float64))
    if least > budget:
        needed = math.ceil(least - 1e-3)
        raise BudgetTooSmall(
            f"the lowest level of all {len(curves)} pictures needs {needed} bytes, more than the budget of "
            f"{budget:.0f}; raise it or leave pictures out", needed,
        )  # fmt: skip
    room = max(room, least)
    floor = _largest(lambda psnr: table.cost(table.at_floor(psnr)[0]) <= room, 0.0, 100.0) - protect
    lowest, under = table.at_floor(floor)
    return table.allocation(table.spend(room, lowest), floor, under)


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

    def __init__(self, levels, n_bytes, mse, pixels):
        self.levels = levels  # int16 [n,P]
        self.bytes = n_bytes  # [n,P]
        self.mse = mse  # [n,P]
        self.pixels = pixels  # [n]

    @classmethod
    def of(cls, curves: Sequence[Sequence[RatePoint]], pixels: np.ndarray) -> "_Table":
        from scipy.interpolate import PchipInterpolator

        n = len(curves)
        width, kind_of_number = (LEVELS + 1, np.float64) if n <= 4000 else (101, np.float32)  # 1.7 kB a picture
        levels = np.empty((n, width), np.int16)
        fields = np.empty((2, n, width), kind_of_number)
        alike = defaultdict(list)
        for i, curve in enumerate(curves):
            if not len(curve):
                raise ValueError(f"picture {i} has no sample")
            alike[tuple(sorted({point.level for point in curve}))].append(i)
        for sampled, members in alike.items():
            values = np.empty((2, len(members), len(sampled)))
            for row, i in enumerate(members):
                points = sorted({point.level: point for point in curves[i]}.values(), key=lambda point: point.level)
                values[0, row] = [math.log(max(point.bytes, 1)) for point in points]
                values[1, row] = [math.log(max(point.mse, 1e-4)) for point in points]
            values[0] = np.maximum.accumulate(values[0], axis=1)
            values[1] = np.minimum.accumulate(values[1], axis=1)
            grid = np.rint(np.linspace(sampled[0], sampled[-1], width)).astype(np.int64)
            levels[members] = grid
            fields[:, members] = values if len(sampled) == 1 else PchipInterpolator(sampled, values, axis=2)(grid)
        n_bytes, mse = np.exp(fields, out=fields)
        return cls(levels, n_bytes, mse, pixels)

    def cost(self, chosen: np.ndarray) -> float:
        return float(self.bytes[np.arange(len(chosen)), chosen].sum(dtype=np.float64))

    def at_floor(self, psnr: float) -> tuple[np.ndarray, np.ndarray]:
        """First grid position of each picture at the floor; and who cannot get there."""
        good = self.mse <= 255.0**2 * 10 ** (-psnr / 10) * (1 + 1e-9)
        under = ~good.any(axis=1)
        return np.where(under, good.shape[1] - 1, good.argmax(axis=1)), under

    def spend(self, room: float, lowest: np.ndarray) -> np.ndarray:
        """Grid positions >= lowest that cost at most `room` (lowest does) with the least pooled squared error."""
        distortion = self.mse * self.pixels[:, None].astype(self.mse.dtype)
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
        return self._with_single_steps(chosen.copy(), room, distortion)

    def _with_single_steps(self, chosen: np.ndarray, room: float, distortion: np.ndarray) -> np.ndarray:
        """What is left buys single steps, the best per byte first, until none fits."""
        rows, left = np.arange(len(chosen)), room - self.cost(chosen)

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

    def allocation(self, chosen: np.ndarray, floor: float, under: np.ndarray) -> Allocation:
        rows = np.arange(len(chosen))
        return Allocation(
            self.levels[rows, chosen].astype(np.int64), self.bytes[rows, chosen].astype(np.float64),
            10 * np.log10(255.0**2 / self.mse[rows, chosen]), floor, under,
        )  # fmt: skip
