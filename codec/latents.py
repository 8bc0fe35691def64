"""From pixels to quantised latents and back, window by window: analysis, the passes, refinement, rendering.

Rows of windows ("bands") pass through the steps one behind the other, since the second pass looks at the first pass's
symbols two cells around, and synthesis at everything some cells around. The later groups' passes look at their own cell
alone and follow at once. Networks are inference.py's; streams and files are coder.py's.

Symbols in a window's halo are always those that are coded, never recomputed ones: two windows that disagreed about
one rounding would code with different tables than the decoder finds.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import numba
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from codec import sparse, trellis, trellis_search
from codec.cells import gather, lap_cells, pixels_of, spread, turned_of
from codec.inference import Inference, inference_of
from codec.loops import as_numbers
from codec.model import STEP, Z_MAX, NightCodec, at_level, lambda_of
from codec.packed import EVEN, ODD, pack, unpack
from codec.threads import each, team_size
from codec.windows import Bands, Grid, Window

LARGE = 1 << 25  # pixels above which y is kept in half precision (rounding far below any quantisation step)


@numba.njit(cache=True, nogil=True)
def _plane_by_plane(row, r, planes):
    """A row of cells [w,C] -> planes [C,h,w] in place, few at a time, so that they stay in the cache."""
    width, channels = row.shape
    for first in range(0, channels, 32):
        for k in range(width):
            for c in range(first, min(first + 32, channels)):
                planes[c, r, k] = row[k, c]


@numba.njit(cache=True, nogil=True)
def _settle(y, gain, mean, index, thresholds, symbols, indices, values):
    """A later group's pass in one go, as NightCodec.round has it: y, mean, index [h,w,C], gain [C] -> symbols, indices
    [C,h,w] and values [h,w,C], or of no channels, in place."""
    height, width, channels = mean.shape
    most, entries, limits = thresholds.shape[1] - 1, thresholds.shape[1], thresholds.ravel()
    residual, rounded = np.empty(channels, np.float32), np.empty(channels, np.float32)
    row = np.empty((width, channels), np.int16)
    for r in range(height):
        for k in range(width):
            for c in range(channels):
                residual[c] = y[r, k, c] * gain[c] - mean[r, k, c]
                size = np.rint(abs(residual[c]))
                rounded[c] = size if size < np.float32(32767) else np.float32(32767)  # what is no number too
            for c in range(channels):
                symbol = np.int32(rounded[c])
                bin_ = np.int32(index[r, k, c])
                lower = symbol <= most and abs(residual[c]) < limits[bin_ * entries + min(symbol, most)]
                symbol = (symbol - lower) * (bin_ > 0)
                row[k, c] = -symbol if residual[c] < 0 else symbol
            for c in range(values.shape[2]):
                values[r, k, c] = np.float32(row[k, c]) + mean[r, k, c]
        _plane_by_plane(row, r, symbols)
        _plane_by_plane(index[r], r, indices)


@numba.njit(cache=True, nogil=True)
def _settle_trellis(y, gain, mean, index, thresholds, states, bits, symbols, indices, values):
    """As _settle by the trellis's search from states uint8 [h,w], which are moved on; bits: trellis.costs()."""
    height, width, channels = mean.shape
    residual = np.empty((width, channels), np.float32)
    row, tables = np.empty((width, channels), np.int16), np.empty((width, channels), np.uint8)
    for r in range(height):
        for k in range(width):
            for c in range(channels):
                residual[k, c] = y[r, k, c] * gain[c] - mean[r, k, c]
        trellis_search.best(residual, index[r], states[r], bits, thresholds, row, tables)
        _plane_by_plane(row, r, symbols)
        _plane_by_plane(tables, r, indices)
        for k in range(width):
            for c in range(values.shape[2]):
                twice = trellis_search.halves(row[k, c], tables[k, c])
                values[r, k, c] = np.float32(0.5) * np.float32(twice) + mean[r, k, c]


@numba.njit(cache=True, nogil=True)
def _value_trellis(symbols, tables, mean, values):
    """As _value for symbols of a trellis and their tables [C,h,w]."""
    height, width, channels = mean.shape
    for r in range(height):
        for k in range(width):
            for c in range(channels):
                twice = trellis_search.halves(symbols[c, r, k], tables[c, r, k])
                values[r, k, c] = np.float32(0.5) * np.float32(twice) + mean[r, k, c]


@numba.njit(cache=True, nogil=True)
def _value(symbols, mean, values):
    """symbols [C,h,w] + mean [h,w,C] -> values [h,w,C] in place."""
    height, width, channels = mean.shape
    for r in range(height):
        for k in range(width):
            for c in range(channels):
                values[r, k, c] = np.float32(symbols[c, r, k]) + mean[r, k, c]


def _cells_of(images: list[Image.Image], window: Window, inference: Inference) -> Tensor:
    """float32 [B,h,w,768]: the pictures' pixels in the window's cells, as Inference.analysis takes them."""
    if inference.device.type != "cpu":
        x = torch.from_numpy(np.stack(each(lambda image: _pixels_of(image, window), images))).to(inference.device)
        x = turned_of(x, *window.shape)
        return lap_cells(x, inference.laps[0]) if inference.laps else x
    x = torch.empty(len(images), *window.shape, 768)
    for item, image in enumerate(images):
        inside = _inside(image, window)
        pixels = np.asarray(image if inside == (0, 0, *image.size) else image.crop(inside))
        pixels = np.ascontiguousarray(pixels if pixels.ndim == 3 else pixels[:, :, None])
        spread(pixels, inference.lap_weights[0], x[item].numpy())
    return x


def _inside(image: Image.Image, window: Window) -> tuple[int, int, int, int]:
    """What lies of a picture in a window's cells: left, top, right, bottom."""
    right, bottom = min(16 * window.right, image.width), min(16 * window.bottom, image.height)
    return 16 * window.left, 16 * window.top, right, bottom


def pieces_of(model: NightCodec, grid: Grid, band: int) -> list[Window]:
    """The windows of a band as `over` works on them."""
    return grid.windows(band) if model.log_gain.is_cuda else grid.pieces(band, team_size())


def over(model: NightCodec, function: Callable, windows: list[Window]) -> list:
    """[function(window)], by the team of threads where the networks are on the CPU."""
    return [function(window) for window in windows] if model.log_gain.is_cuda else each(function, windows)


def analyse(model: NightCodec, images: list[Image.Image], grid: Grid) -> Bands:
    """Pictures of one grid -> y [B,h,w,latent]."""
    device, inference = model.log_gain.device, inference_of(model)
    large = grid.height * grid.width * 256 > LARGE
    halo = -(-model.analysis_halo // 16)
    y = Bands(grid.rows)

    def one(window: Window) -> None:
        outer = window.grown(halo)
        y.part_of(window)[:] = inference.analysis(_cells_of(images, outer, inference), window.within(outer))

    for band in range(grid.bands):
        shape = len(images), grid.rows[band + 1] - grid.rows[band], grid.width, model.config.latent
        where = {"dtype": torch.float16, "device": "cpu"} if large else {"device": device}
        y.parts[band] = torch.empty(shape, **where)
        over(model, one, pieces_of(model, grid, band))
    return y


def factors(knots: Tensor, levels: Tensor) -> Tensor:
    """[KNOTS,C] at levels [B] -> factors [B,1,1,C]."""
    return torch.exp(at_level(knots, levels)).permute(0, 2, 3, 1)


def _hyper(model: NightCodec, y: Bands, levels: Tensor, grid: Grid) -> Tensor:
    """z, rounded [B,ceil(h/4),ceil(w/4),hyper], float on the model's device."""
    device, gain = model.log_gain.device, factors(model.log_gain, levels)
    size = -(-grid.height // 4), -(-grid.width // 4)
    z = torch.empty(len(levels), *size, model.config.hyper, device=device)

    def one(window: Window) -> None:
        outer = window.grown(4)
        scaled = y.window(*outer.box).to(device) * gain
        part = inference_of(model).hyper_analysis(scaled, levels)
        top, left = (window.top - outer.top) // 4, (window.left - outer.left) // 4
        place = window.z_of(z)
        place[:] = part[:, top : top + place.shape[1], left : left + place.shape[2]]

    for band in range(grid.bands):
        over(model, one, pieces_of(model, grid, band))
    return z.round_().clamp_(-Z_MAX, Z_MAX)


@dataclasses.dataclass
class Latents:
    """Pictures of one grid between pixels and bytes. Logically [B,h,w,latent]; `symbols` and `index` lie on the CPU in
    the entropy coder's order, channel by channel."""

    grid: Grid
    levels: Tensor  # [B], on the model's device
    z: Tensor  # float, integer-valued [B,hz,wz,hyper], on the model's device
    symbols: Bands  # int16
    index: Bands  # uint8: bins; of a trellis what is coded has its table's number
    values: Bands  # float32, on the model's device: what symbols stand for + means, in the level's quantisation steps,
    # of the channels that have means; the others', see `all_values`
    states: Bands | None  # uint8 [B,h,w,1] on the CPU: of a trellis, where the cells have arrived
    heads: dict[Window, tuple[Tensor, Tensor]] = dataclasses.field(default_factory=dict)  # see begin_rendering

    @classmethod
    def empty(cls, grid: Grid, levels: Tensor, z: Tensor, with_trellis: bool = False) -> "Latents":
        states = Bands(grid.rows) if with_trellis else None
        return cls(grid, levels, z, Bands(grid.rows), Bands(grid.rows), Bands(grid.rows), states)

    def open_band(self, model: NightCodec, band: int) -> None:
        rows, width, latent = self.grid.rows[band + 1] - self.grid.rows[band], self.grid.width, model.config.latent
        shape = (len(self.levels), latent, rows, width)
        self.symbols.parts[band] = torch.zeros(shape, dtype=torch.int16).permute(0, 2, 3, 1)
        self.index.parts[band] = torch.zeros(shape, dtype=torch.uint8).permute(0, 2, 3, 1)
        if self.states is not None:
            self.states.parts[band] = torch.zeros(shape[0], rows, width, 1, dtype=torch.uint8)
        self.open_values(model, band)

    def open_values(self, model: NightCodec, band: int) -> None:
        rows, width, valued = self.grid.rows[band + 1] - self.grid.rows[band], self.grid.width, model.config.valued
        self.values.parts[band] = torch.zeros(len(self.levels), rows, width, valued, device=model.log_gain.device)

    def arrays(self, band: int) -> tuple[np.ndarray, np.ndarray]:
        """(symbols, index) of a band as the entropy coder takes them: [B,latent,rows,w]."""
        return tuple(part.parts[band].permute(0, 3, 1, 2).numpy() for part in (self.symbols, self.index))

    def coded(self, window: Window, channels: slice, device) -> tuple[Tensor, Tensor | None]:
        """A window's symbols, and of a trellis their tables too, [B,h,w,..]."""
        symbols = _moved(self.symbols.window(*window.box, channels), device)
        tables = None if self.states is None else _moved(self.index.window(*window.box, channels), device)
        return symbols, tables

    def all_values(self, window: Window) -> Tensor:
        """A window's values [B,h,w,latent]."""
        values = self.values.window(*window.box)
        rest = meant(*self.coded(window, slice(values.shape[-1], None), values.device))
        return torch.cat((values, rest.to(values.dtype)), -1) if rest.shape[-1] else values

    def planes(self, window: Window, item: int) -> list[sparse.Planes]:
        """A window's symbols and tables in one picture."""
        pairs = zip(self.symbols.planes(window, item), self.index.planes(window, item), strict=True)
        columns = window.left, window.right
        return [sparse.Planes(symbols.numpy(), index.numpy(), rows, columns) for (symbols, rows), (index, _) in pairs]


def meant(symbols: Tensor, tables: Tensor | None) -> Tensor:
    """What symbols [..] stand for, in the level's steps; tables: of a trellis."""
    return symbols if tables is None else trellis.values_of(symbols, tables)


def _moved(t: Tensor, device) -> Tensor:
    """[B,h,w,C] that lies channel by channel, or is to, on that device: turned over by a GPU where there is one."""
    if t.device == torch.device(device):
        return t
    return t.permute(0, 3, 1, 2).contiguous().to(device).permute(0, 2, 3, 1)


def put(bands: Bands, window: Window, channels: slice, packed: Tensor, parity: int) -> None:
    """Cells of one parity, packed, to their places."""
    target = bands.part_of(window)[..., channels]
    unpack(packed.to(target.dtype).to(target.device), parity, target)


def fill(bands: Bands, window: Window, channels: slice, part: Tensor) -> None:
    """All cells of a window, [B,h,w,..], to their places."""
    target = bands.part_of(window)[..., channels]
    target.copy_(part if part.device == target.device else _moved(part.to(target.dtype), target.device))


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


def quantise(model: NightCodec, y: Bands, levels: Tensor, grid: Grid) -> Latents:
    """y -> all symbols and their tables; the values too, unless the picture is large."""
    device, inference, gain = model.log_gain.device, inference_of(model), factors(model.log_gain, levels)
    large, with_trellis = grid.height * grid.width * 256 > LARGE, trellis.applies(model.config)
    latents = Latents.empty(grid, levels, _hyper(model, y, levels, grid), with_trellis)
    features = {}  # of two bands at most, from the first pass for the others
    first, *later = model.config.slices

    def settle(window: Window, parity: int, index: Tensor, mean: Tensor) -> None:
        scaled = pack(y.window(*window.box)[..., first].to(device) * gain[..., first], parity)
        if with_trellis:
            states = torch.zeros(index.shape[:-1], dtype=torch.uint8)
            symbols, index = _settled(model, scaled - mean, index, states)
            put(latents.states, window, slice(None), states[..., None], parity)
            value = trellis.values_of(symbols, index) + mean
        else:
            symbols = model.round(scaled - mean, index) * (index > 0)
            value = symbols + mean
        for bands, packed in ((latents.index, index), (latents.symbols, symbols), (latents.values, value)):
            put(bands, window, first, packed, parity)

    def begin(window: Window) -> None:
        of_index = index_features(inference, latents, window)
        of_mean = mean_features(inference, latents, window)
        features[window] = of_index, of_mean
        index = inference.indices.bins_first(pack(of_index, EVEN))
        settle(window, EVEN, index, inference.mean_first(pack(of_mean, EVEN)))

    def finish(window: Window) -> None:
        of_index, of_mean = features.pop(window)
        index = second_index(inference, latents, window, of_index)
        settle(window, ODD, index, second_mean(inference, latents, window, of_mean))
        for number, channels in enumerate(later, 1):
            index = later_index(inference, latents, window, number, of_index)
            mean = later_mean(inference, latents, window, number, of_mean)
            part = y.window(*window.box)[..., channels].to(device).float()
            _settle_group(model, latents, window, channels, part, gain[..., channels], index, mean)

    for step in range(grid.bands + 1):
        if step < grid.bands:
            latents.open_band(model, step)
            over(model, begin, pieces_of(model, grid, step))
        if step > 0:
            over(model, finish, pieces_of(model, grid, step - 1))
        if large and step > 1:
            latents.values.parts[step - 2] = None
    return latents


def _settled(model: NightCodec, residual: Tensor, index: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """The trellis's symbols and tables [..,C] where the residual is; states [..] are moved on in place."""
    if not residual.is_cuda:
        return trellis_search.settle(residual, index, states, model.thresholds)
    rows, numbers, uniform = (t.reshape(-1, t.shape[-1]) for t in (residual, index, model.round(residual, index)))
    chain = states.reshape(-1).to(residual.device)
    pair = trellis.search_on(residual.device)(rows, numbers, chain, uniform)
    states.copy_(chain.view(states.shape))
    return tuple(part.view(residual.shape) for part in pair)


def _settle_group(
    model: NightCodec, latents: Latents, window: Window, channels: slice, y: Tensor, gain: Tensor, index: Tensor,
    mean: Tensor,
) -> None:  # fmt: skip
    """Symbols of a later group's channels in a window from y [B,h,w,..], with their bins and values to their places."""
    states = None if latents.states is None else latents.states.part_of(window)[..., 0]
    if y.is_cuda:
        if states is None:
            symbols = model.round(y * gain - mean, index) * (index > 0)
            value = symbols + mean
        else:
            symbols, index = _settled(model, y * gain - mean, index, states)
            value = trellis.values_of(symbols, index) + mean
        for bands, part in ((latents.index, index), (latents.symbols, symbols), (latents.values, value)):
            if bands is not latents.values or channels.stop <= model.config.valued:
                fill(bands, window, channels, part)
        return
    symbols, indices = (_planes(bands, window, channels) for bands in (latents.symbols, latents.index))
    values = latents.values.part_of(window)[..., channels].numpy()  # of no channels where they have no means
    knots, thresholds = gain.flatten(1).numpy(), model.thresholds.numpy()
    for item in range(len(y)):
        given = y[item].numpy(), knots[item], mean[item].numpy(), index[item].numpy()
        wanted = symbols[item], indices[item], values[item]
        if states is None:
            _settle(*given, thresholds, *wanted)
        else:
            _settle_trellis(*given, thresholds, states[item].numpy(), trellis.costs(), *wanted)


def _planes(bands: Bands, window: Window, channels: slice) -> np.ndarray:
    """A window's symbols or bins, [B,C,h,w]."""
    return bands.part_of(window).permute(0, 3, 1, 2).numpy()[:, channels]


def second_index(inference: Inference, latents: Latents, window: Window, of_index: Tensor) -> Tensor:
    """Bins of the first group in a window's odd cells, packed, from the window's features and the even cells around."""
    outer, first = window.grown(2), inference.model.config.slices[0]
    symbols, tables = latents.coded(outer, first, of_index.device)
    return inference.indices.bins_second(pack(of_index, ODD), symbols, window.packed_within(outer), tables)


def second_mean(inference: Inference, latents: Latents, window: Window, of_mean: Tensor) -> Tensor:
    """The means there, packed."""
    outer, first = window.grown(2), inference.model.config.slices[0]
    values = pack(latents.values.window(*outer.box, first), EVEN)
    return inference.mean_second(pack(of_mean, ODD), values, window.packed_within(outer))


def later_index(inference: Inference, latents: Latents, window: Window, number: int, of_index: Tensor) -> Tensor:
    """Bins of group `number` (1..) in a window's cells, from the groups before it there."""
    before = slice(0, inference.model.config.slices[number].start)
    return inference.indices.bins_group(number, of_index, *latents.coded(window, before, of_index.device))


def later_mean(inference: Inference, latents: Latents, window: Window, number: int, of_mean: Tensor) -> Tensor:
    """The means there."""
    before = slice(0, inference.model.config.slices[number].start)
    return inference.mean_group(number, of_mean, latents.values.window(*window.box)[..., before])


def revalue(model: NightCodec, latents: Latents) -> Iterator[int]:
    """The values again from the symbols; yields each band when it and the next one have theirs."""
    inference, grid = inference_of(model), latents.grid
    features = {}

    def begin(window: Window) -> None:
        of_mean = features[window] = mean_features(inference, latents, window)
        add_mean(latents, window, inference.mean_first(pack(of_mean, EVEN)), EVEN)

    def finish(window: Window) -> None:
        of_mean = features.pop(window)
        add_mean(latents, window, second_mean(inference, latents, window, of_mean), ODD)
        for number, channels in enumerate(model.config.slices[1:], 1):
            add_group_mean(latents, window, channels, later_mean(inference, latents, window, number, of_mean))

    for step in range(grid.bands + 2):
        if step < grid.bands:
            latents.open_values(model, step)
            over(model, begin, pieces_of(model, grid, step))
        if 0 <= step - 1 < grid.bands:
            over(model, finish, pieces_of(model, grid, step - 1))
        if step > 1:
            yield step - 2
            if step > 2:
                latents.values.parts[step - 3] = None


HALF_STEP = 0.5  # share of the way to its better value that a refined latent goes at a time; measured best
FILTERED_STEP = 0.7  # the same where a post-filter follows
FILTER_MARGIN = 4  # cells around a window whose filtered pixels are asked; a post-filter sees farther, but hardly
FILTERED_CELLS = 1600  # cells of a window at most where a post-filter follows: 0.5 GB for its gradient, per thread


def refined(
    model: NightCodec, pictures: list[tuple[Image.Image, bool]], y: Bands, latents: Latents, postfilter=None
) -> Bands:
    """y moved to where the decoder, as it is, would come nearer to the pictures: what to quantise next.

    pictures: (image, whether it is decoded as grey). postfilter: what follows the decoder (coder.Postfilter). A step of
    Newton's method on lambda times the squared error, with the gradient of the decoder itself at the values that
    `latents` codes and with the curvature that an orthonormal transform has, 2 STEP^2 / 3 per squared quantisation
    step; the rate is left to `round`. Campos et al. 2019 found such latents by many steps of gradient descent; one to
    three of these bring most of it.
    """
    device, grid, levels = model.log_gain.device, latents.grid, latents.levels
    gain, back = factors(model.log_gain, levels), factors(model.log_inverse_gain, levels)
    weight = (255.0**2 / 3) * lambda_of(levels.float())[:, None, None, None]
    curvature = 2 * STEP**2 / 3
    share, margin = (FILTERED_STEP, FILTER_MARGIN) if postfilter else (HALF_STEP, 0)
    known = all(part is not None for part in latents.values.parts)
    better = Bands(grid.rows)
    grey = [number for number, (_, colourless) in enumerate(pictures) if colourless]

    def one(window: Window) -> None:
        outer = window.grown(2 * model.synthesis_halo + margin)  # of the pixels that a cell changes, and of these
        x = torch.from_numpy(np.stack([_pixels_of(image, outer) for image, _ in pictures])).to(device)
        x = x.permute(0, 3, 1, 2).float() / 255.0
        with torch.inference_mode(False), torch.enable_grad():
            values = latents.all_values(outer).clone().requires_grad_()
            shown = model.synthesis((values * back.clone()).permute(0, 3, 1, 2), levels.clone())
            if postfilter:
                shown = postfilter.mend(shown.clamp(0, 1), levels.clone()).clamp(0, 1)
            shown = shown[:, :, : x.shape[2], : x.shape[3]]
            if grey:
                shown = shown.clone()
                shown[grey] = shown[grey].mean(1, keepdim=True).expand(-1, 3, -1, -1)
            (gradient,) = torch.autograd.grad(((shown - x.clone()).square() * weight.clone()).sum(), values)
        if not gradient.isfinite().all():
            raise ValueError(f"model {model.identity} or the post-filter gave values that are not finite; use effort 0")
        old = y.window(*window.box).to(device).float()
        target = (values.detach() - gradient / curvature)[:, *window.within(outer)]
        better.part_of(window)[:] = old + share * (target / gain - old)

    for band in range(grid.bands) if known else revalue(model, latents):
        better.parts[band] = torch.empty_like(y.parts[band])
        pieces = pieces_of(model, grid, band)
        if postfilter:
            pieces = [part for piece in pieces for part in piece.cut(-(-math.prod(piece.shape) // FILTERED_CELLS))]
        over(model, one, pieces)
    return better


def _pixels_of(image: Image.Image, window: Window) -> np.ndarray:
    """uint8 [up to 16h, up to 16w,3]: what lies of a picture in the window's cells, without alpha, grey three times."""
    part = image.crop(_inside(image, window))
    pixels = np.asarray(part)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return pixels[:, :, :3] if pixels.shape[2] >= 3 else np.repeat(pixels[:, :, :1], 3, 2)


def add_mean(latents: Latents, window: Window, mean: Tensor, parity: int) -> None:
    """values = symbols + mean in the first group at a window's cells of one parity."""
    first = slice(0, mean.shape[-1])
    coded = latents.coded(window, first, mean.device)
    put(latents.values, window, first, mean + pack(meant(*coded), parity), parity)


def add_group_mean(latents: Latents, window: Window, channels: slice, mean: Tensor) -> None:
    """values = symbols + mean in a later group's channels, where it has means."""
    if channels.start >= latents.values.part_of(window).shape[-1]:
        return
    if mean.is_cuda:
        fill(latents.values, window, channels, mean + meant(*latents.coded(window, channels, mean.device)))
        return
    symbols = _planes(latents.symbols, window, channels)
    values = latents.values.part_of(window)[..., channels].numpy()
    tables = None if latents.states is None else _planes(latents.index, window, channels)
    for item in range(len(mean)):
        if tables is None:
            _value(symbols[item], mean[item].numpy(), values[item])
        else:
            _value_trellis(symbols[item], tables[item], mean[item].numpy(), values[item])


def _dequantised(
    inference: Inference, latents: Latents, window: Window, gain: Tensor
) -> tuple[Tensor, list[sparse.Listed] | None]:
    """Inference.synthesis's `y_hat` and `lists` of a window."""
    values = latents.values.window(*window.box)
    first, latent = values.shape[-1], gain.shape[-1]
    if values.is_cuda or latents.states is None or first == latent:
        return latents.all_values(window) * gain, None
    y_hat = values * gain[..., :first]
    pictures = [latents.planes(window, item) for item in range(len(values))]
    gains = gain.flatten(1).numpy()
    if inference.sparse:
        lists = [sparse.worth_listing(parts, first, of_item) for parts, of_item in zip(pictures, gains, strict=True)]
        if all(cells is not None for cells in lists):
            return y_hat, lists
    rest = torch.empty(*values.shape[:3], latent - first)
    for parts, of_item, out in zip(pictures, gains, rest.numpy(), strict=True):
        sparse.dense(parts, first, of_item, out)
    return torch.cat((y_hat, rest), -1), None


def begin_rendering(model: NightCodec, latents: Latents, window: Window) -> None:
    """The part of `render` that needs the values of channels with means alone, for one of a band's pieces, where its
    thread has nothing else to do; Inference.heads."""
    inference, gain = inference_of(model), factors(model.log_inverse_gain, latents.levels)
    outer, near = _seen_by(model, window)
    y_hat = latents.values.window(*outer.box) * gain[..., : model.config.valued]
    latents.heads[window] = inference.heads(y_hat, near.within(outer))


def _seen_by(model: NightCodec, window: Window) -> tuple[Window, Window]:
    """The cells that a window's pixels need, and those whose pixels are shown or filtered together with them."""
    return window.grown(model.synthesis_halo), window.grown(int(model.config.lapped))


def render(model: NightCodec, latents: Latents, band: int, show: Callable) -> None:
    """Synthesis of a band whose values and whose neighbours' are there. For each window, in any order and any thread,
    calls show(window, paint), where paint(item, pixels, grey) fills contiguous uint8 [up to 16h, up to 16w,C] with the
    decoded picture `item`."""
    gain = factors(model.log_inverse_gain, latents.levels)

    def one(window: Window) -> None:
        (outer, near), inference = _seen_by(model, window), inference_of(model)
        y_hat, lists = _dequantised(inference, latents, outer, gain)
        given = near.within(outer), lists, latents.heads.pop(window, None)
        linear, means, added = inference.synthesis(y_hat, latents.levels, *given)
        place = window.top - near.top, window.left - near.left
        if linear.is_cuda:
            show(window, _paint_from(inference.summed(linear, means, added), *place))
            return
        if means is None:
            means = torch.zeros(*linear.shape[:3], 0)
        if linear.dtype != added.dtype:
            linear, added = linear.float(), added.float()
        weights = [inference.lap_weights[1]] * len(linear)
        parts = [*(as_numbers(part) for part in (linear, means, added)), weights]

        def paint(item: int, pixels: np.ndarray, grey: bool) -> None:
            gather(*(part[item] for part in parts), *place, pixels, grey)

        show(window, paint)

    over(model, one, pieces_of(model, latents.grid, band))


def _paint_from(cells: Tensor, top: int, left: int) -> Callable:
    """`render`'s paint, from turned cells of a GPU: all pictures' pixels come from there at once."""
    shown = pixels_of(cells, False).cpu().numpy()

    def paint(item: int, pixels: np.ndarray, grey: bool) -> None:
        height, width, channels = pixels.shape
        own = pixels_of(cells[item : item + 1], True).cpu().numpy()[0] if grey else shown[item]
        colours = 3 if channels >= 3 else 1
        own = own[16 * top : 16 * top + height, 16 * left : 16 * left + width]
        pixels[:, :, :colours] = own[:, :, :colours]

    return paint
