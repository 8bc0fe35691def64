"""The search of trellis-coded quantisation: the cheapest way of each latent cell through its channels (Viterbi 1967).

Here is the definition, on any device, and the choice among it and two that are many times as fast: trellis_cpu.py,
which needs numba, and trellis_cuda.py. What symbols stand for: trellis.py.
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from codec.entropy.trellis import BEFORE, BRANCH, COSTS, LARGEST, STATES, WEIGHT, costs, values_of
from codec.format import FIRST_BIN, ODD_STATES


@functools.cache
def _constants(device: torch.device) -> tuple[Tensor, ...]:
    """costs, BEFORE and BRANCH there."""
    return tuple(torch.from_numpy(a).to(device) for a in (costs(), BEFORE.astype(np.int64), BRANCH.astype(np.int64)))


@torch.no_grad()
def viterbi_quantise(residual: Tensor, bins: Tensor, states: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The search, by the definition: the cheapest way of each cell through its channels.

    residual float32 [N,C] in the level's steps, bins uint8 [N,C], states uint8 [N], moved on in place; uniform: what
    rounding (NightCodec.round) makes of the residual, taken for bins below FIRST_BIN -> (symbols int16, tables uint8)
    [N,C].
    """
    bits, before, branch = _constants(residual.device)
    number = torch.where(bins < FIRST_BIN, 0, bins).long().t()  # [C,N]
    prices, chosen = _candidates(residual, number, bits)
    cost = torch.full((STATES, len(residual)), 1e30, device=residual.device)
    cost.scatter_(0, states.long()[None], 0.0)
    ways = []
    for c in range(len(number)):
        least, way = (cost[before] + prices[c][branch]).min(1)
        cost = torch.where(number[c] > 0, least, cost)
        ways.append(way)
    state = cost.argmin(0)
    states.copy_(state)
    symbols, odd = torch.empty_like(chosen[:, 0]), torch.empty_like(number)
    for c in range(len(number) - 1, -1, -1):
        way = ways[c].gather(0, state[None])[0]
        through = branch[state, way]
        symbols[c], odd[c] = chosen[c].gather(0, through[None])[0], through >> 1
        state = torch.where(number[c] > 0, before[state, way], state)
    symbols = torch.where(residual < 0, -symbols.t(), symbols.t())
    plain = bins < FIRST_BIN
    symbols = torch.where(plain, uniform * (bins > 0), symbols).to(torch.int16)
    return symbols, torch.where(plain, bins, bins + ODD_STATES * odd.t()).to(torch.uint8)


def _candidates(residual: Tensor, number: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """(prices, magnitudes) [C,4,N] of the best symbol of either parity in either quantiser, (quantiser, parity)."""
    size = residual.abs().nan_to_num(nan=LARGEST).clamp(max=LARGEST).t()
    prices, chosen = [], []
    for odd in (0, 1):
        entry, shift = COSTS * (number + ODD_STATES * odd), 0.5 * odd
        low = (size + shift).int()  # and low + 1: one of either parity

        def price(k: Tensor, entry: Tensor = entry, shift: float = shift) -> Tensor:
            gap = size - (k - shift).clamp(min=0)
            return float(WEIGHT) * gap.square() + bits.take(entry + k.clamp(max=COSTS - 1))

        even, uneven, nought = (low + 1) & -2, low | 1, torch.zeros_like(low)
        zero = price(nought) < price(even)
        even = torch.where(zero, nought, even)
        prices += [price(even), price(uneven)]
        chosen += [even, uneven]
    return torch.stack(prices, 1), torch.stack(chosen, 1)


def search_for(device: torch.device, thresholds: Tensor) -> Callable:
    """`viterbi_quantise`, or the same faster: on a GPU that torch can compile for, and on the CPU where numba is at
    hand, which trainings do not need. thresholds: a model's, tables.rounding_thresholds."""
    if device.type == "cuda":
        return search_on(device)
    try:
        from codec.entropy import trellis_cpu
    except ImportError:
        return viterbi_quantise
    return lambda residual, bins, states, _: trellis_cpu.viterbi_quantise(residual, bins, states, thresholds)


@functools.cache
def search_on(device: torch.device) -> Callable:
    """`viterbi_quantise`, or on a GPU that torch can compile for the same faster."""
    try:
        from codec.entropy import trellis_cuda

        trellis_cuda.kernel_on(device)
    except (AttributeError, AssertionError, ImportError, OSError, RuntimeError):
        return viterbi_quantise
    return trellis_cuda.viterbi_quantise


class TrellisQuantiser:
    """Quantises a whole latent in the passes of NightCodec.passes: called for each slice of channels, it gives their
    values less means. Afterwards `symbols` int16 and `tables` uint8 [B,latent,h,w] are there.

    scaled: y in the level's steps; rounding(residual, bins): a model's NightCodec.round; search: search_for's.
    """

    def __init__(self, scaled: Tensor, rounding: Callable, search: Callable):
        self.scaled, self.rounding, self.search = scaled, rounding, search
        batch, _, height, width = scaled.shape
        self.states = torch.zeros(batch * height * width, dtype=torch.uint8, device=scaled.device)
        self.found: dict[int, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def __call__(self, channels: slice, mean: Tensor, index: Tensor) -> Tensor:
        if channels.start == 0:  # both passes of the first group begin there, and the second repeats the first
            self.states.zero_()
        residual = self.scaled[:, channels] - mean
        uniform = self.rounding(residual, index)
        batch, count, height, width = residual.shape
        rows = [t.permute(0, 2, 3, 1).reshape(-1, count) for t in (residual, index.to(torch.uint8), uniform)]
        pair = self.search(*rows[:2], self.states, rows[2])
        self.found[channels.start] = tuple(t.view(batch, height, width, count).permute(0, 3, 1, 2) for t in pair)
        return values_of(*self.found[channels.start])

    @property
    def symbols(self) -> Tensor:
        return torch.cat([self.found[key][0] for key in sorted(self.found)], 1)

    @property
    def tables(self) -> Tensor:
        return torch.cat([self.found[key][1] for key in sorted(self.found)], 1)
