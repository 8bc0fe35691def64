"""The search of trellis-coded quantisation on the CPU: what trellis_search.py defines, for many cells side by side."""

import numba
import numpy as np
import torch
from torch import Tensor

from codec.entropy.trellis import BEFORE, BRANCH, COSTS, LARGEST, STATES, WEIGHT, costs
from codec.format import FIRST_BIN, ODD_STATES

_LARGEST = np.float32(LARGEST)
_LANES = 16  # cells that the search takes side by side


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
        rounded = np.rint(size)
        symbol = np.int32(rounded if rounded < np.float32(32767) else np.float32(32767))  # what is no number too
        lower = symbol <= most and size < limits[np.int32(bins[c]) * entries + min(symbol, most)]
        symbol = (symbol - lower) * (bins[c] > 0)
        symbols[c] = -symbol if residual[c] < 0 else symbol
        tables[c] = bins[c]


@numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _candidates(size, number, costs, chosen, price, nought):
    """Magnitudes and prices of the best symbol of each (quantiser, parity) [4,lanes] for one channel, in place. size,
    number [lanes]; nought [2,lanes]: work. In three loops, so that all but the look-ups are done for many cells at
    once."""
    nothing, most = np.float32(0), np.int32(COSTS - 1)
    for odd in range(2):
        shift, this = np.float32(0.5 * odd), 2 * odd
        for lane in range(_LANES):
            low = np.int32(size[lane] + shift)  # and low + 1: one of either parity
            chosen[this, lane] = (low + np.int32(1)) & np.int32(-2)
            chosen[this + 1, lane] = low | np.int32(1)
    for lane in range(_LANES):
        at = np.uint32(number[lane]) * np.uint32(COSTS)
        after = at + np.uint32(ODD_STATES * COSTS)
        price[0, lane] = costs[at + np.uint32(min(chosen[0, lane], most))]
        price[1, lane] = costs[at + np.uint32(min(chosen[1, lane], most))]
        price[2, lane] = costs[after + np.uint32(min(chosen[2, lane], most))]
        price[3, lane] = costs[after + np.uint32(min(chosen[3, lane], most))]
        nought[0, lane], nought[1, lane] = costs[at], costs[after]
    for odd in range(2):
        shift, this = np.float32(0.5 * odd), 2 * odd
        for lane in range(_LANES):
            u = size[lane]
            gap = u - max(np.float32(chosen[this, lane]) - shift, nothing)
            price_even = WEIGHT * gap * gap + price[this, lane]
            price_zero = WEIGHT * u * u + nought[odd, lane]
            gap = u - (np.float32(chosen[this + 1, lane]) - shift)
            price[this, lane] = price_zero if price_zero < price_even else price_even
            price[this + 1, lane] += WEIGHT * gap * gap
            chosen[this, lane] = np.int32(0) if price_zero < price_even else chosen[this, lane]


@numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _move_on(cost, price, number, second, new):
    """Costs of the ways into each state [STATES,lanes] with one more channel, and whether the second was cheaper."""
    for t in range(STATES):
        one, other = BEFORE[t, 0], BEFORE[t, 1]
        to_one, to_other = BRANCH[t, 0], BRANCH[t, 1]
        for lane in range(_LANES):
            by_one, by_other = cost[one, lane] + price[to_one, lane], cost[other, lane] + price[to_other, lane]
            second[t, lane] = by_other < by_one
            least = by_other if by_other < by_one else by_one
            new[t, lane] = least if number[lane] > 0 else cost[t, lane]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def quantise_cells(residual, bins, states, bits, thresholds, symbols, tables):
    """The search. residual float32 [n,C] in the level's steps, bins uint8 [n,C], states uint8 [n] (moved on in place),
    bits: costs, thresholds: tables.rounding_thresholds -> symbols int16, tables uint8 [n,C] in place."""
    (cells, channels), costs = residual.shape, bits.ravel()
    cost, new = np.empty((STATES, _LANES), np.float32), np.empty((STATES, _LANES), np.float32)
    price, nought = np.empty((4, _LANES), np.float32), np.empty((2, _LANES), np.float32)
    size, number = np.zeros(_LANES, np.float32), np.zeros(_LANES, np.int32)
    state, before, branches = np.zeros(_LANES, np.uint8), BEFORE.ravel(), BRANCH.ravel()
    second = np.empty((channels, STATES, _LANES), np.uint8)  # whether the second way to a state was the cheaper
    chosen, highest = np.empty((channels, 4, _LANES), np.int32), np.empty(channels, np.uint8)
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
                u = abs(residual[first + lane, c])
                size[lane] = u if u < _LARGEST else _LARGEST  # what is no number too
            _candidates(size, number, costs, chosen[c], price, nought)
            _move_on(cost, price, number, second[c], new)
            cost, new = new, cost
        for lane in range(lanes):
            least, state[lane] = cost[0, lane], 0
            for t in range(1, STATES):
                if cost[t, lane] < least:
                    least, state[lane] = cost[t, lane], t
            states[first + lane] = state[lane]
        for c in range(channels - 1, -1, -1):
            if highest[c] < FIRST_BIN:
                continue
            for lane in range(lanes):  # their ways are independent, so that the processor follows several at once
                cell = first + lane
                bin_ = bins[cell, c]
                if bin_ >= FIRST_BIN:
                    way = 2 * state[lane] + second[c, state[lane], lane]
                    branch = branches[way]
                    k = chosen[c, branch, lane]
                    symbols[cell, c] = -k if residual[cell, c] < 0 else k
                    tables[cell, c] = bin_ + ODD_STATES * (branch >> 1)
                    state[lane] = before[way]


def viterbi_quantise(
    residual: Tensor, bins: Tensor, states: Tensor, thresholds: Tensor, bits: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """As trellis_search.viterbi_quantise on the CPU, for [..,C] and states [..]; thresholds: the model's, for what is
    quantised uniformly."""
    rows, numbers = (t.reshape(-1, t.shape[-1]).contiguous() for t in (residual, bins))
    chain = states.contiguous()
    symbols, tables = torch.empty(rows.shape, dtype=torch.int16), torch.empty(rows.shape, dtype=torch.uint8)
    quantise_cells(
        rows.numpy(), numbers.numpy(), chain.view(-1).numpy(), costs() if bits is None else bits, thresholds.numpy(),
        symbols.numpy(), tables.numpy(),
    )  # fmt: skip
    states.copy_(chain)
    return symbols.view(residual.shape), tables.view(residual.shape)
