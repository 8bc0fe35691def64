"""The four passes over a latent, window by window: bins and means of each, and the encoder's quantisation in between.

Rows of windows ("bands") go through the passes one behind the other, since the second pass looks at the first pass's
symbols two cells around. The later groups' passes look at their own cell alone and follow at once. Networks are
transforms.py's; the decoder (codec/decoder.py) takes the same steps with the entropy coder in between.

Symbols in a window's halo are always those that are coded, never recomputed ones: two windows that disagreed about
one rounding would code with different tables than the decoder finds.
"""

from collections.abc import Iterator

import numba
import numpy as np
import torch
from torch import Tensor

from codec.engine.analysis import hyper_latent
from codec.engine.batches import map_windows, pieces_of
from codec.engine.checkerboard import pack
from codec.engine.latents import Latents, is_large, planes_of, scatter, scatter_parity
from codec.engine.transforms import Inference, gain_factors, inference_of
from codec.engine.windows import Bands, Grid, Window
from codec.entropy import trellis_cpu
from codec.entropy.trellis import costs, values_of
from codec.entropy.trellis_search import search_on
from codec.format import EVEN, ODD
from codec.network.night_codec import NightCodec

# -- what the networks say of a window


def _around(inference: Inference, latents: Latents, window: Window) -> tuple:
    """z around a window, and where in the latent over it the window and one cell around it stand."""
    outer, near = window.grown(inference.model.latent_halo), window.grown(1)
    return outer.z_of(latents.z), near.within(outer), window.within(near)


def index_features(inference: Inference, latents: Latents, window: Window) -> Tensor:
    """What z says to the index network of a window's cells [B,h,w,n]."""
    z, place, inner = _around(inference, latents, window)
    return inference.indices.index_features(z, latents.levels, place, inner)


def mean_features(inference: Inference, latents: Latents, window: Window) -> Tensor:
    """What z says to the mean network of a window's cells [B,h,w,m]."""
    return inference.mean_features(*_around(inference, latents, window))


def second_index(inference: Inference, latents: Latents, window: Window, of_index: Tensor) -> Tensor:
    """Bins of the first group in a window's odd cells, packed, from the window's features and the even cells around."""
    outer, first = window.grown(2), inference.model.config.slices[0]
    coded = latents.coded(outer, first, of_index.device)
    return inference.indices.bins_second(pack(of_index, ODD), *coded, window.packed_within(outer))


def second_mean(inference: Inference, latents: Latents, window: Window, of_mean: Tensor) -> Tensor:
    """The means there, packed."""
    outer, first = window.grown(2), inference.model.config.slices[0]
    values = pack(latents.values.window(*outer.box, first), EVEN)
    return inference.mean_second(pack(of_mean, ODD), values, window.packed_within(outer))


def later_index(inference: Inference, latents: Latents, window: Window, number: int, of_index: Tensor) -> Tensor:
    """Bins of group `number` (1, 2) in a window's cells, from the groups before it there."""
    before = slice(0, inference.model.config.slices[number].start)
    return inference.indices.bins_group(number, of_index, *latents.coded(window, before, of_index.device))


def later_mean(inference: Inference, latents: Latents, window: Window, number: int, of_mean: Tensor) -> Tensor:
    """The means there."""
    before = slice(0, inference.model.config.slices[number].start)
    return inference.mean_group(number, of_mean, latents.values.window(*window.box)[..., before])


# -- symbols to values


@numba.njit(cache=True, nogil=True)
def _dequantise(symbols, tables, mean, values):
    """symbols and their tables [C,h,w], mean [h,w,C] -> values with means [h,w,C] in place."""
    height, width, channels = mean.shape
    for r in range(height):
        for k in range(width):
            for c in range(channels):
                twice = trellis_cpu.halves(symbols[c, r, k], tables[c, r, k])
                values[r, k, c] = np.float32(0.5) * np.float32(twice) + mean[r, k, c]


def add_mean(latents: Latents, window: Window, mean: Tensor, parity: int) -> None:
    """values = what symbols stand for + mean in the first group at a window's cells of one parity."""
    first = slice(0, mean.shape[-1])
    values = values_of(*latents.coded(window, first, mean.device))
    scatter_parity(latents.values, window, first, mean + pack(values, parity), parity)


def add_group_mean(latents: Latents, window: Window, channels: slice, mean: Tensor) -> None:
    """The same in a later group's channels, where it has means."""
    if channels.start >= latents.values.part_of(window).shape[-1]:
        return
    if mean.is_cuda:
        scatter(latents.values, window, channels, mean + values_of(*latents.coded(window, channels, mean.device)))
        return
    symbols, tables = (planes_of(bands, window, channels) for bands in (latents.symbols, latents.index))
    values = latents.values.part_of(window)[..., channels].numpy()
    for item in range(len(mean)):
        _dequantise(symbols[item], tables[item], mean[item].numpy(), values[item])


def revalue(model: NightCodec, latents: Latents) -> Iterator[int]:
    """The values again from the symbols; yields each band when it and the next one have theirs."""
    inference, grid = inference_of(model), latents.grid
    features = {}

    def first_pass(window: Window) -> None:
        of_mean = features[window] = mean_features(inference, latents, window)
        add_mean(latents, window, inference.mean_first(pack(of_mean, EVEN)), EVEN)

    def other_passes(window: Window) -> None:
        of_mean = features.pop(window)
        add_mean(latents, window, second_mean(inference, latents, window, of_mean), ODD)
        for number, channels in enumerate(model.config.slices[1:], 1):
            add_group_mean(latents, window, channels, later_mean(inference, latents, window, number, of_mean))

    for step in range(grid.bands + 2):
        if step < grid.bands:
            latents.open_values(model, step)
            map_windows(model, first_pass, pieces_of(model, grid, step))
        if 0 <= step - 1 < grid.bands:
            map_windows(model, other_passes, pieces_of(model, grid, step - 1))
        if step > 1:
            yield step - 2
            if step > 2:
                latents.values.parts[step - 3] = None


# -- quantisation


def quantise(model: NightCodec, y: Bands, levels: Tensor, grid: Grid) -> Latents:
    """y -> all symbols and their tables; the values too, unless the picture is large."""
    latents = Latents.empty(grid, levels, hyper_latent(model, y, levels, grid))
    work = _Quantisation(model, y, latents)
    for step in range(grid.bands + 1):
        if step < grid.bands:
            latents.open_band(model, step)
            map_windows(model, work.first_pass, pieces_of(model, grid, step))
        if step > 0:
            map_windows(model, work.other_passes, pieces_of(model, grid, step - 1))
        if is_large(grid) and step > 1:
            latents.values.parts[step - 2] = None
    return latents


class _Quantisation:
    """An encoder's passes over windows, which `quantise` orders."""

    def __init__(self, model: NightCodec, y: Bands, latents: Latents):
        self.model, self.y, self.latents = model, y, latents
        self.inference, self.gain = inference_of(model), gain_factors(model.log_gain, latents.levels)
        self.first, *self.later = model.config.slices
        self.features: dict[Window, tuple[Tensor, Tensor]] = {}  # of two bands at most, from the first pass on

    def first_pass(self, window: Window) -> None:
        of_index = index_features(self.inference, self.latents, window)
        of_mean = mean_features(self.inference, self.latents, window)
        self.features[window] = of_index, of_mean
        index = self.inference.indices.bins_first(pack(of_index, EVEN))
        self._quantise_parity(window, EVEN, index, self.inference.mean_first(pack(of_mean, EVEN)))

    def other_passes(self, window: Window) -> None:
        inference, latents, (of_index, of_mean) = self.inference, self.latents, self.features.pop(window)
        index = second_index(inference, latents, window, of_index)
        self._quantise_parity(window, ODD, index, second_mean(inference, latents, window, of_mean))
        for number, channels in enumerate(self.later, 1):
            index = later_index(inference, latents, window, number, of_index)
            mean = later_mean(inference, latents, window, number, of_mean)
            self._quantise_group(window, channels, index, mean)

    def _quantise_parity(self, window: Window, parity: int, index: Tensor, mean: Tensor) -> None:
        """Symbols of the first group in a window's cells of one parity."""
        latents, first = self.latents, self.first
        y = self.y.window(*window.box)[..., first].to(mean.device)
        scaled = pack(y * self.gain[..., first], parity)
        states = torch.zeros(index.shape[:-1], dtype=torch.uint8)
        symbols, index = self._searched(scaled - mean, index, states)
        scatter_parity(latents.states, window, slice(None), states[..., None], parity)
        values = values_of(symbols, index) + mean
        for bands, packed in ((latents.index, index), (latents.symbols, symbols), (latents.values, values)):
            scatter_parity(bands, window, first, packed, parity)

    def _quantise_group(self, window: Window, channels: slice, index: Tensor, mean: Tensor) -> None:
        """Symbols of a later group's channels in a window, with their tables and values to their places."""
        latents, gain = self.latents, self.gain[..., channels]
        y = self.y.window(*window.box)[..., channels].to(index.device).float()
        states = latents.states.part_of(window)[..., 0]
        if y.is_cuda:
            symbols, index = self._searched(y * gain - mean, index, states)
            scatter(latents.index, window, channels, index)
            scatter(latents.symbols, window, channels, symbols)
            if channels.stop <= self.model.config.channels_with_means:
                scatter(latents.values, window, channels, values_of(symbols, index) + mean)
            return
        symbols, tables = (planes_of(bands, window, channels) for bands in (latents.symbols, latents.index))
        values = latents.values.part_of(window)[..., channels].numpy()  # of no channels where they have no means
        knots, thresholds = gain.flatten(1).numpy(), self.model.thresholds.numpy()
        for item in range(len(y)):
            given = y[item].numpy(), knots[item], mean[item].numpy(), index[item].numpy(), thresholds
            _quantise_cells(*given, states[item].numpy(), costs(), symbols[item], tables[item], values[item])

    def _searched(self, residual: Tensor, index: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """The trellis's symbols and tables [..,C] where the residual is; states [..] are moved on in place."""
        if not residual.is_cuda:
            return trellis_cpu.viterbi_quantise(residual, index, states, self.model.thresholds)
        rounded = self.model.round(residual, index)
        rows, numbers, uniform = (t.reshape(-1, t.shape[-1]) for t in (residual, index, rounded))
        chain = states.reshape(-1).to(residual.device)
        pair = search_on(residual.device)(rows, numbers, chain, uniform)
        states.copy_(chain.view(states.shape))
        return tuple(part.view(residual.shape) for part in pair)


@numba.njit(cache=True, nogil=True)
def _to_planes(row, r, planes):
    """A row of cells [w,C] -> planes [C,h,w] in place, few at a time, so that they stay in the cache."""
    width, channels = row.shape
    for first in range(0, channels, 32):
        for k in range(width):
            for c in range(first, min(first + 32, channels)):
                planes[c, r, k] = row[k, c]


@numba.njit(cache=True, nogil=True)
def _quantise_cells(y, gain, mean, index, thresholds, states, bits, symbols, tables, values):
    """A later group's pass in one go: y, mean, index [h,w,C], gain [C], states uint8 [h,w], moved on; bits:
    trellis.costs() -> symbols, tables [C,h,w] and values [h,w,C], or of no channels, in place."""
    height, width, channels = mean.shape
    residual = np.empty((width, channels), np.float32)
    row, numbers = np.empty((width, channels), np.int16), np.empty((width, channels), np.uint8)
    for r in range(height):
        for k in range(width):
            for c in range(channels):
                residual[k, c] = y[r, k, c] * gain[c] - mean[r, k, c]
        trellis_cpu.quantise_cells(residual, index[r], states[r], bits, thresholds, row, numbers)
        _to_planes(row, r, symbols)
        _to_planes(numbers, r, tables)
        for k in range(width):
            for c in range(values.shape[2]):
                twice = trellis_cpu.halves(row[k, c], numbers[k, c])
                values[r, k, c] = np.float32(0.5) * np.float32(twice) + mean[r, k, c]
