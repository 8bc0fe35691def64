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
from pathlib import Path

import numba
import numpy as np
import torch
from torch import Tensor

from codec import entropy
from codec.entropy import FIRST_BIN, NEXT, ODD_STATES
from codec.model import BINS, STEP, Z_MAX, Config, bin_scales, integer_frequencies, read_tensors, y_radius

STATES = 8
STRENGTH = 1.4  # weight of squared errors in the search, in units of what high-rate theory gives; measured best
LOUDEST = 2 * 1023  # halves from which on magnitudes look alike to the index network
TABLES = Path(__file__).parent / "trellis.safetensors"

WEIGHT = np.float32(STRENGTH * STEP**2 / 3)  # bits per squared error
_COSTS = 64  # magnitudes that have a cost of their own in the search
_LANES = 16  # cells that the search takes side by side
_BEFORE = np.array([[s for s in range(STATES) if t in NEXT[s]] for t in range(STATES)], np.uint8)  # two lead to each
_PARITY = np.array([[int(NEXT[s][1] == t) for s in _BEFORE[t]] for t in range(STATES)], np.uint8)
_BRANCH = (2 * (_BEFORE & 1) + _PARITY).astype(np.uint8)  # which of (quantiser, parity) leads there


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


def table_set(y_freq: list[np.ndarray]) -> entropy.TableSet:
    """For the entropy coder, with a model's own tables for what is quantised uniformly."""
    own = [None, *y_freq[1:FIRST_BIN]]
    tables = [own[i] if i < FIRST_BIN else table for i, table in enumerate(frequencies())]
    return entropy.TableSet([None, *(tables[1] if table is None else table for table in tables[1:])])  # unused ones


@functools.cache
def costs() -> np.ndarray:
    """Bits of magnitudes 0, 1, .. in each table, float32 [2 BINS,_COSTS]; the last stands for all beyond."""
    return costs_of(frequencies())


def costs_of(tables: list[np.ndarray | None]) -> np.ndarray:
    """The same of any tables."""
    bits = np.zeros((2 * BINS, _COSTS), np.float32)
    for number, table in enumerate(tables):
        if table is None:
            continue
        middle = (len(table) - 2) // 2
        known = entropy.PRECISION - np.log2(table[middle:-1][:_COSTS].astype(np.float64))
        beyond = entropy.PRECISION - np.log2(float(table[-1])) + 2 * np.log2(np.arange(1, _COSTS + 1)) + 2
        bits[number] = np.concatenate((known, beyond))[:_COSTS]
    return bits


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


@numba.njit(cache=True, nogil=True, inline="always")
def halves(symbol, table):
    """The value of one, less its mean, in halves, int32."""
    twice = 2 * np.int32(symbol)
    if table >= ODD_STATES:
        twice -= np.int32(symbol > 0) - np.int32(symbol < 0)
    return twice


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _uniform(residual, bins, thresholds, symbols, tables):
    """Symbols of a cell [C] as NightCodec.round has them, and their tables, which are their bins."""
    most, entries, limits = thresholds.shape[1] - 1, thresholds.shape[1], thresholds.ravel()
    for c in range(residual.size):
        size = abs(residual[c])
        symbol = np.int32(min(np.rint(size), np.float32(32767)))
        lower = symbol <= most and size < limits[np.int32(bins[c]) * entries + min(symbol, most)]
        symbol = (symbol - lower) * (bins[c] > 0)
        symbols[c] = -symbol if residual[c] < 0 else symbol
        tables[c] = bins[c]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def best(residual, bins, states, bits, thresholds, symbols, tables):
    """The search. residual float32 [n,C] in the level's steps, bins uint8 [n,C], states uint8 [n] (moved on in place),
    bits: costs, thresholds: model.rounding_thresholds -> symbols int16, tables uint8 [n,C] in place."""
    cells, channels = residual.shape
    nothing, most, costs = np.float32(0), np.int32(_COSTS - 1), bits.ravel()
    cost, new = np.empty((STATES, _LANES), np.float32), np.empty((STATES, _LANES), np.float32)
    price = np.empty((4, _LANES), np.float32)
    size, number = np.zeros(_LANES, np.float32), np.zeros(_LANES, np.int32)
    second = np.empty((channels, STATES, _LANES), np.uint8)  # whether the second way to a state was the cheaper
    chosen = np.empty((channels, 4, _LANES), np.int32)
    highest = np.empty(channels, np.uint8)
    for first in range(0, cells, _LANES):
        lanes = min(_LANES, cells - first)
        cost[:], highest[:] = np.float32(1e30), 0
        for lane in range(lanes):
            cell = first + lane
            cost[states[cell], lane] = np.float32(0)
            _uniform(residual[cell], bins[cell], thresholds, symbols[cell], tables[cell])
            for c in range(channels):
                highest[c] = max(highest[c], bins[cell, c])
        for c in range(channels):
            if highest[c] < FIRST_BIN:
                continue
            for lane in range(lanes):
                bin_ = bins[first + lane, c]
                number[lane] = bin_ if bin_ >= FIRST_BIN else 0
                size[lane] = min(abs(residual[first + lane, c]), np.float32(32000))
            for odd in range(2):
                shift, entry, this = np.float32(0.5 * odd), np.int32(ODD_STATES * odd), 2 * odd
                for lane in range(_LANES):
                    u, at = size[lane], (number[lane] + entry) * _COSTS
                    low = np.int32(u + shift)  # and low + 1: one of either parity
                    even, uneven = (low + np.int32(1)) & np.int32(-2), low | np.int32(1)
                    gap = u - max(np.float32(even) - shift, nothing)
                    price_even = WEIGHT * gap * gap + costs[np.uint32(at + min(even, most))]
                    price_zero = WEIGHT * u * u + costs[np.uint32(at)]
                    gap = u - (np.float32(uneven) - shift)
                    price[this, lane] = price_zero if price_zero < price_even else price_even
                    price[this + 1, lane] = WEIGHT * gap * gap + costs[np.uint32(at + min(uneven, most))]
                    chosen[c, this, lane] = np.int32(0) if price_zero < price_even else even
                    chosen[c, this + 1, lane] = uneven
            for t in range(STATES):
                one, other = _BEFORE[t, 0], _BEFORE[t, 1]
                to_one, to_other = _BRANCH[t, 0], _BRANCH[t, 1]
                for lane in range(_LANES):
                    by_one, by_other = cost[one, lane] + price[to_one, lane], cost[other, lane] + price[to_other, lane]
                    second[c, t, lane] = by_other < by_one
                    least = by_other if by_other < by_one else by_one
                    new[t, lane] = least if number[lane] > 0 else cost[t, lane]
            cost, new = new, cost
        for lane in range(lanes):
            cell, state = first + lane, 0
            for t in range(1, STATES):
                if cost[t, lane] < cost[state, lane]:
                    state = t
            states[cell] = state
            for c in range(channels - 1, -1, -1):
                if highest[c] < FIRST_BIN or bins[cell, c] < FIRST_BIN:
                    continue
                way = second[c, state, lane]
                branch = _BRANCH[state, way]
                k = chosen[c, branch, lane]
                symbols[cell, c] = -k if residual[cell, c] < 0 else k
                tables[cell, c] = bins[cell, c] + ODD_STATES * (branch >> 1)
                state = _BEFORE[state, way]


def settle(
    residual: Tensor, bins: Tensor, states: Tensor, thresholds: Tensor, bits: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """residual float32 [..,C] in the level's steps, bins uint8 [..,C], states uint8 [..] on the CPU, moved on in place,
    the model's thresholds -> (symbols int16, tables uint8) [..,C] on the residual's device: the cheapest way for each
    cell. bits: other costs than the format's tables have."""
    rows = residual.cpu().reshape(-1, residual.shape[-1]).contiguous()
    chain = states.contiguous()
    symbols, tables = torch.empty(rows.shape, dtype=torch.int16), torch.empty(rows.shape, dtype=torch.uint8)
    best(
        rows.numpy(), bins.cpu().reshape(rows.shape).contiguous().numpy(), chain.view(-1).numpy(),
        costs() if bits is None else bits, thresholds.cpu().numpy(), symbols.numpy(), tables.numpy(),
    )  # fmt: skip
    states.copy_(chain)
    return symbols.view(residual.shape).to(residual.device), tables.view(residual.shape).to(residual.device)


@torch.no_grad()
def quantised(model, y: Tensor, level: int, bits: np.ndarray | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The definition of what latents.py does window by window: y float32 [B,latent,h,w] -> (z, symbols int16, tables
    uint8, values float32 in the level's steps), the last three [B,latent,h,w]. bits: see `settle`."""
    scaled = model.scale(y, level)
    z = torch.round(model.hyper_analysis(scaled, level)).clamp(-Z_MAX, Z_MAX)
    states: list[Tensor] = []
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def settle_(channels: slice, mean: Tensor, index: Tensor) -> Tensor:
        if channels.start == 0:  # both passes of the first group begin there, and the second repeats the first
            states[:] = [torch.zeros(y.shape[0], *y.shape[2:], dtype=torch.uint8)]
        residual, bins = (t.permute(0, 2, 3, 1) for t in (scaled[:, channels] - mean, index.to(torch.uint8)))
        symbols, tables = (t.permute(0, 3, 1, 2) for t in settle(residual, bins, states[0], model.thresholds, bits))
        found[channels.start] = symbols, tables
        return values_of(symbols, tables)

    def gathered() -> tuple[Tensor, ...]:
        return tuple(torch.cat(parts, 1) for parts in zip(*(found[key] for key in sorted(found)), strict=True))

    def seen(values: Tensor) -> Tensor:
        return table[(2 * values.abs()).long().clamp(max=LOUDEST)]

    table = loudness(y.device)
    model.seen = seen  # the second pass sees nothing of the cells that it codes
    try:
        values, means, _ = model.passes(z, level, *y.shape[2:], settle_)
    finally:
        del model.seen
    symbols, tables = gathered()
    return z, symbols, tables, values + means
