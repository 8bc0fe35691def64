"""Trellis-coded quantisation: two quantisers in turn, so that a symbol buys more than its own step.

A uniform quantiser fills space with cubes. Here a state machine of eight states chooses, symbol by symbol, between two
quantisers whose points lie between each other's, and the parity of what is coded moves it on (Marcellin and Fischer
1990; Joshi, Crump and Fischer 1995; as in Schwarz et al. 2019). The encoder looks for the cheapest way through all
states (trellis_search.py); a decoder only follows it. At high rates the same bits then leave 0.8 dB less error in the
latent.

A symbol k of sign s in state t stands for a value, in the level's steps, and leads to another state:

    value = k - s (t mod 2) / 2        t <- NEXT[t][k mod 2]

The chain of a latent cell begins at state 0 and passes through its channels in the order of coding. Symbols of bins
below FIRST_BIN, which are nearly always zero, are quantised uniformly and leave the state. Tables of odd states are
numbered bin + ODD_STATES; as all of this is integers, a decoder finds the same ones everywhere.
"""

import functools
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codec.entropy.tables import integer_frequencies, y_radius
from codec.format import BINS, FIRST_BIN, NEXT, ODD_STATES, PRECISION, STEP, bin_scales
from codec.tensors import read_tensors

STATES = len(NEXT)
BEFORE = np.array([[s for s in range(STATES) if t in NEXT[s]] for t in range(STATES)], np.uint8)  # two lead to each
_PARITY = np.array([[int(NEXT[s][1] == t) for s in BEFORE[t]] for t in range(STATES)], np.uint8)  # of what leads there
BRANCH = (2 * (BEFORE & 1) + _PARITY).astype(np.uint8)  # which quantiser and parity that is

STRENGTH = 1.4  # weight of squared errors in the search, in units of what high-rate theory gives; measured best
WEIGHT = np.float32(STRENGTH * STEP**2 / 3)  # bits per squared error
LARGEST = 32000.0  # magnitude of a symbol that the search gives
LOUDEST = 2 * 1023  # halves from which on magnitudes look alike to the index network
COSTS = 64  # magnitudes that have a cost of their own in the search
SEARCH_TABLES = Path(__file__).parent / "trellis.safetensors"
FILE_FORMAT = "nightpress-trellis-1"


def search_tables() -> list[np.ndarray | None]:
    """The tables whose costs the search goes by, measured once (training/fit_contexts.py), uint32, at their numbers;
    None where there is none. Decoders do not know them: what codes is a model's own."""
    arrays, _ = read_tensors(SEARCH_TABLES, FILE_FORMAT)
    ends = np.cumsum(arrays["sizes"])
    parts = iter(np.split(arrays["frequencies"].astype(np.uint32), ends[:-1]))
    return [next(parts) if number % ODD_STATES >= FIRST_BIN else None for number in range(2 * BINS)]


def gaussian_tables() -> list[np.ndarray | None]:
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


def tables_with(y_freq: list[np.ndarray]) -> list[np.ndarray | None]:
    """The search's tables, and a model's own (EntropyTables.y_freq) for what is quantised uniformly."""
    return [None, *y_freq[1:FIRST_BIN], *search_tables()[FIRST_BIN:]]


@functools.cache
def costs() -> np.ndarray:
    """Bits of magnitudes 0, 1, .. in each table, float32 [2 BINS,COSTS]; the last stands for all beyond."""
    return costs_of(search_tables())


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


def interval_mass(symbols: Tensor, tables: Tensor, sigma: Tensor) -> Tensor:
    """Probability under a centred Gaussian of the values nearest to each symbol's among those of its quantiser, never
    below 1e-7; differentiable in sigma."""
    k, odd = symbols.abs().float(), (tables >= ODD_STATES).float()
    low = torch.where((odd > 0) & (k == 0), -0.25, torch.where((odd > 0) & (k == 1), 0.25, k - 0.5 - 0.5 * odd))
    high = torch.where((odd > 0) & (k == 0), 0.25, k + 0.5 - 0.5 * odd)
    upper, lower = (torch.erfc(edge / (sigma * math.sqrt(2))) for edge in (low, high))
    return (0.5 * (upper - lower)).clamp_min(1e-7)


@functools.cache
def loudness(device: torch.device) -> Tensor:
    """What the index network sees of magnitudes in halves, 0..LOUDEST: activations round(24 log2(1 + size)) / 16."""
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
