"""Trellis-coded quantisation: two quantisers in turn, so that a symbol buys more than its own step.

A uniform quantiser fills space with cubes. Here a state machine of eight states chooses, symbol by symbol, between two
quantisers whose points lie between each other's, and the parity of what is coded moves it on (Marcellin and Fischer
1990; Joshi, Crump and Fischer 1995; as in Schwarz et al. 2019). The encoder looks for the cheapest way through all
states (Viterbi); a decoder only follows it. At high rates the same bits then leave 0.8 dB less error in the latent.

A symbol k of sign s in state t stands for a value, in the level's steps, and leads to another state:

    value = k - s (t mod 2) / 2        t <- NEXT[t][k mod 2]

The chain of a latent cell begins at state 0 and passes through its channels in the order of coding. Symbols of bins
below FIRST_BIN, which are nearly always zero, are quantised uniformly, with the model's own tables, and leave the
state. The others have tables of the format (TABLES), those of odd states numbered bin + ODD_STATES; as all of this is
integers, a decoder finds the same ones everywhere.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codec.model import (
    BINS,
    PRECISION,
    STEP,
    Z_MAX,
    Config,
    NightCodec,
    bin_scales,
    integer_frequencies,
    read_tensors,
    y_radius,
)
from codec.states import BEFORE, BRANCH, FIRST_BIN, ODD_STATES, STATES

STRENGTH = 1.4  # weight of squared errors in the search, in units of what high-rate theory gives; measured best
LARGEST = 32000.0  # magnitude of a symbol that the search gives
LOUDEST = 2 * 1023  # halves from which on magnitudes look alike to the index network
TABLES = Path(__file__).parent / "trellis.safetensors"

WEIGHT = np.float32(STRENGTH * STEP**2 / 3)  # bits per squared error
COSTS = 64  # magnitudes that have a cost of their own in the search


def applies(config: Config) -> bool:
    """Whether encoders take the trellis for models of these sizes: those whose index networks see magnitudes as
    `loudness` gives them."""
    return bool(config.groups)


def frequencies() -> list[np.ndarray | None]:
    """The format's tables, uint32, at their numbers; None where there is none."""
    arrays, _ = read_tensors(TABLES, "nightpress-trellis-1")
    ends = np.cumsum(arrays["sizes"])
    parts = iter(np.split(arrays["frequencies"].astype(np.uint32), ends[:-1]))
    return [next(parts) if number % ODD_STATES >= FIRST_BIN else None for number in range(2 * BINS)]


def parametric() -> list[np.ndarray | None]:
    """The same for Gaussian bins, where nothing was measured."""
    tables: list[np.ndarray | None] = []
    for shift in (0.0, 0.5):
        for scale in bin_scales():
            radius = y_radius(scale)
            edges = np.arange(radius + 1) + 0.5 - shift
            inside = np.array([math.erf(edge / (scale * math.sqrt(2))) for edge in edges])
            tail = np.diff(inside) / 2
            table = integer_frequencies(np.concatenate((tail[::-1], inside[:1], tail, [1e-5])))
            tables.append(table if len(tables) % ODD_STATES >= FIRST_BIN else None)
    return tables


def with_own(y_freq: list[np.ndarray]) -> list[np.ndarray | None]:
    """All tables of a stream: the format's, and a model's own for what is quantised uniformly."""
    own = [None, *y_freq[1:FIRST_BIN]]
    tables = [own[i] if i < FIRST_BIN else table for i, table in enumerate(frequencies())]
    return [None, *(tables[1] if table is None else table for table in tables[1:])]  # the others are never named


@functools.cache
def costs() -> np.ndarray:
    """Bits of magnitudes 0, 1, .. in each table, float32 [2 BINS,COSTS]; the last stands for all beyond."""
    return costs_of(frequencies())


def costs_of(tables: list[np.ndarray | None]) -> np.ndarray:
    """The same of any tables."""
    bits = np.zeros((2 * BINS, COSTS), np.float32)
    for number, table in enumerate(tables):
        if table is None:
            continue
        middle = (len(table) - 2) // 2
        known = PRECISION - np.log2(table[middle:-1][:COSTS].astype(np.float64))
        beyond = PRECISION - np.log2(float(table[-1])) + 2 * np.log2(np.arange(1, COSTS + 1)) + 2
        bits[number] = np.concatenate((known, beyond))[:COSTS]
    return bits


def cell_mass(symbols: Tensor, tables: Tensor, sigma: Tensor) -> Tensor:
    """Probability under a centred Gaussian of the values nearest to each symbol's among those of its quantiser, never
    below 1e-7; differentiable in sigma."""
    k, odd = symbols.abs().float(), (tables >= ODD_STATES).float()
    low = torch.where((odd > 0) & (k == 0), -0.25, torch.where((odd > 0) & (k == 1), 0.25, k - 0.5 - 0.5 * odd))
    high = torch.where((odd > 0) & (k == 0), 0.25, k + 0.5 - 0.5 * odd)
    upper, lower = (torch.erfc(edge / (sigma * math.sqrt(2))) for edge in (low, high))
    return (0.5 * (upper - lower)).clamp_min(1e-7)


@functools.cache
def loudness(device: torch.device) -> Tensor:
    """What the index network sees of magnitudes in halves, 0..LOUDEST: model.loudness of them, float32."""
    size = np.arange(LOUDEST + 1) / 2
    return torch.from_numpy((np.rint(24.0 * np.log2(1.0 + size)) / 16).astype(np.float32)).to(device)


def halves_of(symbols: Tensor, tables: Tensor) -> Tensor:
    """Magnitudes of symbols int16 that these tables code, in halves up to LOUDEST, int32."""
    size = symbols.abs().int()
    return (2 * size - ((tables >= ODD_STATES) & (size > 0)).int()).clamp_(max=LOUDEST)


def values_of(symbols: Tensor, tables: Tensor) -> Tensor:
    """Symbols and the tables that code them, of one shape -> values less means, float32, in the level's steps."""
    k = symbols.float()
    return k - 0.5 * torch.sign(k) * (tables >= ODD_STATES)


@functools.cache
def _on(device: torch.device) -> tuple[Tensor, ...]:
    """costs, BEFORE and BRANCH there."""
    return tuple(torch.from_numpy(a).to(device) for a in (costs(), BEFORE.astype(np.int64), BRANCH.astype(np.int64)))


@torch.no_grad()
def settle(residual: Tensor, bins: Tensor, states: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The search, by the definition: the cheapest way of each cell through its channels.

    residual float32 [N,C] in the level's steps, bins uint8 [N,C], states uint8 [N], moved on in place; uniform:
    what NightCodec.round makes of the residual, taken for bins below FIRST_BIN -> (symbols int16, tables uint8) [N,C].
    trellis_search.py on the CPU and trellis_cuda.py on a GPU are many times as fast.
    """
    bits, before, branch = _on(residual.device)
    number = torch.where(bins < FIRST_BIN, 0, bins).long().t()  # [C,N]
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
    prices, chosen = torch.stack(prices, 1), torch.stack(chosen, 1)  # [C,4,N]
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


def search_for(model: NightCodec) -> Callable:
    """`settle`, or the same faster: on a GPU that torch can compile for, and on the CPU where numba is at hand, which
    trainings do not need."""
    if model.log_gain.is_cuda:
        return search_on(model.log_gain.device)
    try:
        from codec import trellis_search
    except ImportError:
        return settle
    thresholds = model.thresholds
    return lambda residual, bins, states, uniform: trellis_search.settle(residual, bins, states, thresholds)


@functools.cache
def search_on(device: torch.device) -> Callable:
    """`settle`, or on a GPU that torch can compile for the same faster."""
    try:
        from codec import trellis_cuda

        trellis_cuda.kernel_on(device)
    except (AttributeError, AssertionError, ImportError, OSError, RuntimeError):
        return settle
    return trellis_cuda.settle


class Quantiser:
    """Takes the place of `settle` in NightCodec.passes on a whole latent: called for each slice of channels, it gives
    their values less means. Afterwards `symbols` int16 and `tables` uint8 [B,latent,h,w] are there.

    search: as `settle`; by default the fastest. Within it `model.seen` looks at values in halves.
    """

    def __init__(self, model: NightCodec, scaled: Tensor, search: Callable | None = None):
        self.model, self.scaled, self.search = model, scaled, search or search_for(model)
        batch, _, height, width = scaled.shape
        self.states = torch.zeros(batch * height * width, dtype=torch.uint8, device=scaled.device)
        self.found: dict[int, tuple[Tensor, Tensor]] = {}

    def __enter__(self) -> "Quantiser":
        table = loudness(self.scaled.device)
        self.model.seen = lambda values: table[(2 * values.abs()).long().clamp(max=LOUDEST)]
        return self

    def __exit__(self, *_) -> None:
        del self.model.seen

    def __call__(self, channels: slice, mean: Tensor, index: Tensor) -> Tensor:
        if channels.start == 0:  # both passes of the first group begin there, and the second repeats the first
            self.states.zero_()
        with torch.no_grad():
            residual = self.scaled[:, channels] - mean
            uniform = self.model.round(residual, index)
            batch, count, height, width = residual.shape
            rows = [t.permute(0, 2, 3, 1).reshape(-1, count) for t in (residual, index.to(torch.uint8), uniform)]
            pair = self.search(*rows[:2], self.states, rows[2])
            pair = tuple(t.view(batch, height, width, count).permute(0, 3, 1, 2) for t in pair)
        self.found[channels.start] = pair
        return values_of(*pair)

    @property
    def symbols(self) -> Tensor:
        return torch.cat([self.found[key][0] for key in sorted(self.found)], 1)

    @property
    def tables(self) -> Tensor:
        return torch.cat([self.found[key][1] for key in sorted(self.found)], 1)


@torch.no_grad()
def quantised(
    model: NightCodec, y: Tensor, level: int, search: Callable | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The definition of what latents.py does window by window: y float32 [B,latent,h,w] -> (z, symbols int16, tables
    uint8, values float32 in the level's steps), the last three [B,latent,h,w]."""
    scaled = model.scale(y, level)
    z = torch.round(model.hyper_analysis(scaled, level)).clamp(-Z_MAX, Z_MAX)
    with Quantiser(model, scaled, search) as quantiser:
        values, means, _ = model.passes(z, level, *y.shape[2:], quantiser)
    return z, quantiser.symbols, quantiser.tables, values + means
