"""Pictures <-> .npi bitstreams: encode, decode, info, their batch forms, and `prepare` for rate control.

Order of work (transforms and index networks are model.py's, symbols to bytes entropy.py's, the file container.py's):

    encode   analysis window by window -> y | hyper-analysis -> z | the passes of all windows | streams
    decode   z | indices of the first pass -> its symbols | indices of the second -> its symbols | ... | synthesis

A picture's latent is cut into segments of about 64x64 cells (1024x1024 pixels), which are coded independently and
are also the windows that the networks work on, with a halo of their receptive field around: so memory is bounded and
no seam can be seen. Rows of segments ("bands") pass through the steps one behind the other, since the second pass
looks at the first pass's symbols two cells around, and synthesis at everything twelve cells around. The later groups'
passes look at their own cell alone and follow at once.

Symbols in a window's halo are always those that are coded, never recomputed ones: two windows that disagreed about
one rounding would code with different tables than the decoder finds.
"""

import contextlib
import dataclasses
import functools
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from codec import alpha as alpha_plane
from codec import container, entropy
from codec.container import BadBitstream, Bitstream, CodecError, UnknownModel
from codec.inference import Inference, inference_of
from codec.model import LEVELS, STEP, Z_GROUPS, Z_MAX, NightCodec, at_level, lambda_of, load_model, model_id
from codec.packed import EVEN, ODD, pack, unpack
from codec.pixels import Picture, open_picture, picture_from_image
from codec.threads import each

MAX_EFFORT = 3  # times that a latent may be refined
SEGMENT = 64  # latent cells along a segment's side
DEFAULT_QUALITY = 75.0
LARGE = 1 << 25  # pixels above which y is kept in half precision (rounding far below any quantisation step)
WEIGHTS = Path(__file__).parent / "weights"
MODEL_FOLDERS_VARIABLE = "NIGHTPRESS_MODELS"  # more folders to search for models, separated as in PATH


# -- models


@dataclasses.dataclass(frozen=True)
class _Coding:
    """What the entropy coder takes from a model."""

    y: entropy.TableSet
    z: list[entropy.TableSet]  # per level group; table c + 1 belongs to channel c
    z_least_bits: list[float]  # per level group: fewest bits that one column of z can cost


def _coding(model: NightCodec) -> _Coding:
    coding = getattr(model, "_coding", None)
    if coding is None:
        tables = model.tables()
        z = [entropy.TableSet([None, *row]) for row in tables.z_freq]
        least = [sum(one.least_bits(c + 1) for c in range(model.config.hyper)) for one in z]
        coding = model._coding = _Coding(entropy.TableSet([None, *tables.y_freq[1:]]), z, least)
    return coding


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """auto: CUDA where there is one, else the CPU."""
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


@functools.cache
def _identity_of(path: str, size: int, modified: int) -> str:
    return model_id(path)


def _model_files(folders) -> Iterator[Path]:
    variable = os.environ.get(MODEL_FOLDERS_VARIABLE, "")
    for folder in [WEIGHTS, *(folders or ()), *filter(None, variable.split(os.pathsep))]:
        with contextlib.suppress(OSError):
            yield from sorted(Path(folder).glob("*.safetensors"))


def default_model() -> Path:
    """The model that encodes when none is named: the package's weights/codec*.safetensors, last by name.

    Raises UnknownModel when the package holds none.
    """
    found = sorted(WEIGHTS.glob("codec*.safetensors")) or sorted(WEIGHTS.glob("*.safetensors"))
    if not found:
        raise UnknownModel(f"no trained model in {WEIGHTS}; train one with `nightpress train codec` or pass model=FILE")
    return found[-1]


def find_model(identity: str, folders=None) -> Path:
    """The model file with that id (16 hex digits) in the package, in `folders` or in $NIGHTPRESS_MODELS.

    Raises UnknownModel naming where it looked.
    """
    for path in _model_files(folders):
        status = path.stat()
        if path.stem == identity or _identity_of(str(path), status.st_size, status.st_mtime_ns) == identity:
            return path
    places = [str(WEIGHTS), *map(str, folders or ()), os.environ.get(MODEL_FOLDERS_VARIABLE, "")]
    raise UnknownModel(
        f"model {identity} is in none of {', '.join(filter(None, places))}; name the folder that holds it (models/ of "
        f"the destination) by models=[...] or ${MODEL_FOLDERS_VARIABLE}"
    )


_loaded: dict = {}
_loading = threading.Lock()


def get_model(model=None, *, device: str | torch.device = "auto", precision: str = "auto", folders=None) -> NightCodec:
    """A model ready to work: `model` is None (the default one), an id, a path or a NightCodec (returned as it is).

    Loaded models are kept, one per file, device and precision. Raises UnknownModel; ValueError for a file that is no
    model.
    """
    if isinstance(model, NightCodec):
        return model
    if model is None:
        path = default_model()
    elif isinstance(model, str) and len(model) == 16 and not os.path.exists(model):
        path = find_model(model, folders)
    else:
        path = Path(model)
        if not path.is_file():
            raise UnknownModel(f"there is no model file {path}")
    status = path.stat()
    key = (str(path.resolve()), status.st_size, status.st_mtime_ns, choose_device(device), precision)
    with _loading:
        if key not in _loaded:
            _loaded[key] = load_model(path).to(key[3]).set_precision(precision)
        return _loaded[key]


# -- rows of segments


class _Bands:
    """A tensor [B,h,w,C] kept as rows of segments, each of which can be dropped when it is no longer needed."""

    def __init__(self, rows: list[int]):
        self.rows = rows
        self.parts: list[Tensor | None] = [None] * (len(rows) - 1)

    def window(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        pieces = [
            part[:, max(top - begin, 0) : bottom - begin, left:right]
            for part, begin, end in zip(self.parts, self.rows, self.rows[1:], strict=False)
            if begin < bottom and end > top
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)


@dataclasses.dataclass(frozen=True)
class _Window:
    """Latent cells [top,bottom) x [left,right) of a grid, and the same grown by a halo within the grid."""

    top: int
    bottom: int
    left: int
    right: int
    grid: tuple[int, int]

    def grown(self, halo: int) -> "_Window":
        height, width = self.grid
        return _Window(
            max(0, self.top - halo), min(height, self.bottom + halo),
            max(0, self.left - halo), min(width, self.right + halo), self.grid,
        )  # fmt: skip

    @property
    def box(self) -> tuple[int, int, int, int]:
        return self.top, self.bottom, self.left, self.right

    @property
    def shape(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

    def within(self, outer: "_Window") -> tuple[slice, slice]:
        """Rows and columns of `outer` that are this window's."""
        top, left = self.top - outer.top, self.left - outer.left
        height, width = self.shape
        return slice(top, top + height), slice(left, left + width)

    def packed_within(self, outer: "_Window") -> tuple[int, int, int, int]:
        """(top, bottom, left, right) of this window in packed cells of `outer`, which begins an even way before it."""
        rows, columns = self.within(outer)
        return rows.start // 2, -(-rows.stop // 2), columns.start // 2, -(-columns.stop // 2)

    def z_of(self, z: Tensor) -> Tensor:
        """The hyper-latent [B,hz,wz,C] under this window, whose corner lies on a multiple of four."""
        return z[:, self.top // 4 : -(-self.bottom // 4), self.left // 4 : -(-self.right // 4)]


class _Grid:
    """How a latent of [height, width] cells is cut."""

    def __init__(self, height: int, width: int, segment: int):
        self.height, self.width = height, width
        self.rows = container.edges(height, segment)
        self.columns = container.edges(width, segment)

    @property
    def bands(self) -> int:
        return len(self.rows) - 1

    def windows(self, band: int) -> list[_Window]:
        top, bottom = self.rows[band : band + 2]
        shape = (self.height, self.width)
        return [_Window(top, bottom, a, b, shape) for a, b in zip(self.columns, self.columns[1:], strict=False)]


# -- analysis, quantisation, synthesis


@numba.njit(cache=True, nogil=True)
def _spread(pixels, cells):
    """uint8 [height,width,C], C 1..4 -> float32 [h,w,768], less 127.5, in inference.py's order: colours of 16x16 pixels
    each, repeated beyond the right and bottom edge."""
    height, width, channels = pixels.shape
    for r in range(cells.shape[0]):
        for k in range(cells.shape[1]):
            for part in range(4):
                top, left = 16 * r + part // 2 * 8, 16 * k + part % 2 * 8
                for c in range(3):
                    colour = c if channels >= 3 else 0
                    for y in range(8):
                        row, at = min(top + y, height - 1), 192 * part + 64 * c + 8 * y
                        for x in range(8):
                            sample = pixels[row, min(left + x, width - 1), colour]
                            cells[r, k, at + x] = np.float32(sample) - np.float32(127.5)


@numba.njit(cache=True, nogil=True)
def _paint(sums, upper, first, pixels, grey):
    """8x8 pixels from float32 [192] (colour, row, column), less 127.5, to their place in [height,width,C]."""
    height, width, channels = pixels.shape
    half, black, white, third = np.float32(127.5), np.float32(0), np.float32(255), np.float32(1 / 3)
    block = np.empty(192, np.uint8)
    if grey:
        for i in range(64):
            mean = (sums[i] + sums[64 + i] + sums[128 + i]) * third
            block[i] = np.int32(np.rint(min(max(mean + half, black), white)))
    else:
        for i in range(192):
            block[i] = np.int32(np.rint(min(max(sums[i] + half, black), white)))
    for y in range(min(8, height - upper)):
        for x in range(min(8, width - first)):
            at = 8 * y + x
            pixels[upper + y, first + x, 0] = block[at]
            if channels >= 3:
                pixels[upper + y, first + x, 1] = block[at if grey else 64 + at]
                pixels[upper + y, first + x, 2] = block[at if grey else 128 + at]


@numba.njit(cache=True, nogil=True)
def _gather(linear, added, top, left, pixels, grey):
    """What Inference.synthesis gives for a window, [h,w,768] and [2h,2w,192] -> the first channels of uint8
    [height,width,C], from the cell (top, left) on; with `grey` all from the colours' mean."""
    sums = np.empty(192, np.float32)
    for upper in range(0, pixels.shape[0], 8):
        for first in range(0, pixels.shape[1], 8):
            part = 192 * (upper // 8 % 2 * 2 + first // 8 % 2)
            base = linear[top + upper // 16, left + first // 16, part : part + 192]
            more = added[2 * top + upper // 8, 2 * left + first // 8]
            for i in range(192):
                sums[i] = base[i] + more[i]
            _paint(sums, upper, first, pixels, grey)


@numba.njit(cache=True, nogil=True)
def _gather_halves(linear, rest, added, top, left, pixels, grey):
    """As _gather, where a second part of the linear picture and `added` are bfloat16, given as uint16: the upper halves
    of float32."""
    sums = np.empty(192, np.float32)
    bits = np.empty(384, np.uint32)
    values = bits.view(np.float32)
    for upper in range(0, pixels.shape[0], 8):
        for first in range(0, pixels.shape[1], 8):
            r, k, part = top + upper // 16, left + first // 16, 192 * (upper // 8 % 2 * 2 + first // 8 % 2)
            base, second = linear[r, k, part : part + 192], rest[r, k, part : part + 192]
            more = added[2 * top + upper // 8, 2 * left + first // 8]
            for i in range(192):
                bits[i] = np.uint32(second[i]) << np.uint32(16)
                bits[192 + i] = np.uint32(more[i]) << np.uint32(16)
            for i in range(192):
                sums[i] = base[i] + values[i] + values[192 + i]
            _paint(sums, upper, first, pixels, grey)


@numba.njit(cache=True, nogil=True)
def _settle(y, gain, mean, index, thresholds, symbols, indices, values):
    """A later group's pass in one go, as NightCodec.round has it: y, mean, index [h,w,C], gain [C] -> symbols, indices
    [C,h,w] and values [h,w,C] in place."""
    height, width, channels = mean.shape
    most = thresholds.shape[1] - 1
    for r in range(height):
        for k in range(width):
            for c in range(channels):
                bin_, middle, symbol = index[r, k, c], mean[r, k, c], np.float32(0)
                if bin_ > 0:
                    residual = y[r, k, c] * gain[c] - middle
                    magnitude = abs(residual)
                    symbol = min(np.rint(magnitude), np.float32(32767))
                    if symbol <= most and magnitude < thresholds[bin_, int(symbol)]:
                        symbol -= np.float32(1)
                    if residual < 0:
                        symbol = -symbol
                symbols[c, r, k] = np.int16(symbol)
                indices[c, r, k] = bin_
                values[r, k, c] = symbol + middle


@numba.njit(cache=True, nogil=True)
def _value(symbols, mean, values):
    """symbols [C,h,w] + mean [h,w,C] -> values [h,w,C] in place."""
    height, width, channels = mean.shape
    for r in range(height):
        for k in range(width):
            for c in range(channels):
                values[r, k, c] = np.float32(symbols[c, r, k]) + mean[r, k, c]


def _cells_of(images: list[Image.Image], window: _Window, device) -> Tensor:
    """float32 [B,h,w,768]: the pictures' pixels in the window's cells, as _spread orders them."""
    left, top = window.left * 16, window.top * 16
    x = torch.empty(len(images), *window.shape, 768)
    for item, image in enumerate(images):
        inside = (left, top, min(window.right * 16, image.width), min(window.bottom * 16, image.height))
        pixels = np.asarray(image if inside == (0, 0, *image.size) else image.crop(inside))
        _spread(pixels if pixels.ndim == 3 else pixels[:, :, None], x[item].numpy())
    return x.to(device)


def _analyse(model: NightCodec, images: list[Image.Image], grid: _Grid) -> _Bands:
    """Pictures of one grid -> y [B,h,w,latent]."""
    device, inference = model.log_gain.device, inference_of(model)
    large = grid.height * grid.width * 256 > LARGE
    halo = -(-model.analysis_halo // 16)
    y = _Bands(grid.rows)
    for band in range(grid.bands):
        pieces = []
        for window in grid.windows(band):
            outer = window.grown(halo)
            piece = inference.analysis(_cells_of(images, outer, device))[:, *window.within(outer)]
            pieces.append(piece.half().cpu() if large else piece)
        y.parts[band] = pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)
    return y


def _gain(knots: Tensor, levels: Tensor) -> Tensor:
    """[KNOTS,C] at levels [B] -> factors [B,1,1,C]."""
    return torch.exp(at_level(knots, levels)).permute(0, 2, 3, 1)


def _hyper(model: NightCodec, y: _Bands, levels: Tensor, grid: _Grid) -> Tensor:
    """z, rounded [B,ceil(h/4),ceil(w/4),hyper], float on the model's device."""
    device, gain = model.log_gain.device, _gain(model.log_gain, levels)
    rows = []
    for band in range(grid.bands):
        pieces = []
        for window in grid.windows(band):
            outer = window.grown(4)
            scaled = y.window(*outer.box).to(device) * gain
            z = inference_of(model).hyper_analysis(scaled, levels)
            top, left = (window.top - outer.top) // 4, (window.left - outer.left) // 4
            height, width = (-(-n // 4) for n in window.shape)
            pieces.append(z[:, top : top + height, left : left + width])
        rows.append(torch.cat(pieces, 2))
    return torch.round(torch.cat(rows, 1)).clamp(-Z_MAX, Z_MAX)


@dataclasses.dataclass
class _Latents:
    """Pictures of one grid between pixels and bytes. Logically [B,h,w,latent]; `symbols` and `index` lie on the CPU in
    the entropy coder's order, channel by channel."""

    grid: _Grid
    levels: Tensor  # [B], on the model's device
    z: Tensor  # float, integer-valued [B,hz,wz,hyper], on the model's device
    symbols: _Bands  # int16
    index: _Bands  # uint8
    values: _Bands  # float32, on the model's device: symbols + means, in quantisation steps

    @classmethod
    def empty(cls, grid: _Grid, levels: Tensor, z: Tensor) -> "_Latents":
        return cls(grid, levels, z, _Bands(grid.rows), _Bands(grid.rows), _Bands(grid.rows))

    def open_band(self, model: NightCodec, band: int) -> None:
        rows, width, latent = self.grid.rows[band + 1] - self.grid.rows[band], self.grid.width, model.config.latent
        shape = (len(self.levels), latent, rows, width)
        self.symbols.parts[band] = torch.zeros(shape, dtype=torch.int16).permute(0, 2, 3, 1)
        self.index.parts[band] = torch.zeros(shape, dtype=torch.uint8).permute(0, 2, 3, 1)
        self.open_values(model, band)

    def open_values(self, model: NightCodec, band: int) -> None:
        rows, width, latent = self.grid.rows[band + 1] - self.grid.rows[band], self.grid.width, model.config.latent
        self.values.parts[band] = torch.zeros(len(self.levels), rows, width, latent, device=model.log_gain.device)

    def arrays(self, band: int) -> tuple[np.ndarray, np.ndarray]:
        """(symbols, index) of a band as the entropy coder takes them: [B,latent,rows,w]."""
        return tuple(part.parts[band].permute(0, 3, 1, 2).numpy() for part in (self.symbols, self.index))


def _put(bands: _Bands, band: int, window: _Window, channels: slice, packed: Tensor, parity: int) -> None:
    """Cells of one parity, packed, to their places in a band."""
    target = bands.parts[band]
    unpack(packed.to(target.dtype).to(target.device), parity, target[:, :, window.left : window.right, channels])


def _fill(bands: _Bands, band: int, window: _Window, channels: slice, part: Tensor) -> None:
    """All cells of a window, [B,h,w,..], to their places in a band."""
    bands.parts[band][:, :, window.left : window.right, channels].copy_(part)


def _features(inference: Inference, latents: _Latents, window: _Window) -> tuple[Tensor, Tensor]:
    """What z says of a window's cells [B,h,w,..]: features of the index network and of the mean network."""
    outer, near = window.grown(inference.model.latent_halo), window.grown(2)
    z, place, inner = outer.z_of(latents.z), near.within(outer), window.within(near)
    return inference.indices.index_features(z, latents.levels, place, inner), inference.mean_features(z, place, inner)


def _quantise(model: NightCodec, y: _Bands, levels: Tensor, grid: _Grid) -> _Latents:
    """y -> all symbols and their tables; the values too, unless the picture is large."""
    device, inference, gain = model.log_gain.device, inference_of(model), _gain(model.log_gain, levels)
    large = grid.height * grid.width * 256 > LARGE
    latents = _Latents.empty(grid, levels, _hyper(model, y, levels, grid))
    features = {}  # of two bands at most, from the first pass for the others
    first, *later = model.config.slices

    def settle(band: int, window: _Window, parity: int, index: Tensor, mean: Tensor) -> None:
        scaled = pack(y.window(*window.box)[..., first].to(device) * gain[..., first], parity)
        symbols = model.round(scaled - mean, index) * (index > 0)
        for bands, packed in ((latents.index, index), (latents.symbols, symbols), (latents.values, symbols + mean)):
            _put(bands, band, window, first, packed, parity)

    for step in range(grid.bands + 1):
        if step < grid.bands:
            latents.open_band(model, step)
            for window in grid.windows(step):
                of_index, of_mean = features[window] = _features(inference, latents, window)
                index = inference.indices.bins_first(pack(of_index, EVEN))
                mean = inference.mean_first(pack(of_mean, EVEN))
                settle(step, window, EVEN, index, mean)
        if step > 0:
            for window in grid.windows(step - 1):
                of_index, of_mean = features.pop(window)
                settle(step - 1, window, ODD, *_second(inference, latents, window, of_index, of_mean))
                for number, channels in enumerate(later, 1):
                    index, mean = _later(inference, latents, window, number, of_index, of_mean)
                    part = y.window(*window.box)[..., channels].to(device).float()
                    _settle_group(model, latents, step - 1, window, channels, part, gain[..., channels], index, mean)
        if large and step > 1:
            latents.values.parts[step - 2] = None
    return latents


def _settle_group(
    model: NightCodec, latents: _Latents, band: int, window: _Window, channels: slice, y: Tensor, gain: Tensor,
    index: Tensor, mean: Tensor,
) -> None:  # fmt: skip
    """Symbols of a later group's channels in a window from y [B,h,w,..], with their bins and values into the band."""
    if y.is_cuda:
        symbols = model.round(y * gain - mean, index) * (index > 0)
        for bands, part in ((latents.index, index), (latents.symbols, symbols), (latents.values, symbols + mean)):
            _fill(bands, band, window, channels, part)
        return
    rows = slice(0, window.bottom - window.top), slice(window.left, window.right)
    symbols, indices = (array[:, channels, *rows] for array in latents.arrays(band))
    values = latents.values.parts[band].numpy()[:, *rows, channels]
    knots, thresholds = gain.flatten(1).numpy(), model.thresholds.numpy()
    for item in range(len(y)):
        _settle(
            y[item].numpy(), knots[item], mean[item].numpy(), index[item].numpy(), thresholds, symbols[item],
            indices[item], values[item],
        )  # fmt: skip


def _second(inference: Inference, latents: _Latents, window: _Window, of_index: Tensor, of_mean: Tensor):
    """(bins, means) of the first group in a window's odd cells, packed, from the window's features and the even cells
    around."""
    outer, first = window.grown(2), inference.model.config.slices[0]
    inner = window.packed_within(outer)
    symbols = latents.symbols.window(*outer.box)[..., first].to(of_index.device)
    index = inference.indices.bins_second(pack(of_index, ODD), symbols, inner)
    return index, _mean_second(inference, latents, window, of_mean)


def _mean_second(inference: Inference, latents: _Latents, window: _Window, of_mean: Tensor) -> Tensor:
    outer, first = window.grown(2), inference.model.config.slices[0]
    values = pack(latents.values.window(*outer.box)[..., first], EVEN)
    return inference.mean_second(pack(of_mean, ODD), values, window.packed_within(outer))


def _later(inference: Inference, latents: _Latents, window: _Window, number: int, of_index: Tensor, of_mean: Tensor):
    """(bins, means) of group `number` (1..) in a window's cells, from the groups before it there."""
    before = slice(0, inference.model.config.slices[number].start)
    symbols = latents.symbols.window(*window.box)[..., before].to(of_index.device)
    index = inference.indices.bins_group(number, of_index, symbols)
    return index, inference.mean_group(number, of_mean, latents.values.window(*window.box)[..., before])


def _revalue(model: NightCodec, latents: _Latents) -> Iterator[int]:
    """The values again from the symbols; yields each band when it and the next one have theirs."""
    inference, bands = inference_of(model), latents.grid.bands
    features = {}
    for step in range(bands + 2):
        if step < bands:
            latents.open_values(model, step)
            for window in latents.grid.windows(step):
                _, of_mean = _features(inference, latents, window)
                features[window] = of_mean
                _add_mean(latents, step, window, inference.mean_first(pack(of_mean, EVEN)), EVEN)
        if 0 <= step - 1 < bands:
            for window in latents.grid.windows(step - 1):
                of_mean = features.pop(window)
                _add_mean(latents, step - 1, window, _mean_second(inference, latents, window, of_mean), ODD)
                for number, channels in enumerate(model.config.slices[1:], 1):
                    before = latents.values.window(*window.box)[..., : channels.start]
                    _add_group_mean(latents, step - 1, window, channels, inference.mean_group(number, of_mean, before))
        if step > 1:
            yield step - 2
            if step > 2:
                latents.values.parts[step - 3] = None


HALF_STEP = 0.5  # share of the way to its better value that a refined latent goes at a time; measured best


def _refined(
    model: NightCodec, pictures: list[tuple[Image.Image, bool]], y: _Bands, latents: _Latents
) -> _Bands:
    """y moved to where the decoder, as it is, would come nearer to the pictures: what to quantise next.

    pictures: (image, whether it is decoded as grey). A step of Newton's method on lambda times the squared error, with
    the gradient of the decoder itself at the values that `latents` codes and with the curvature that an orthonormal
    transform has, 2 STEP^2 / 3 per squared quantisation step; the rate is left to `round`. Campos et al. 2019 found
    such latents by many steps of gradient descent; one to three of these bring most of it.
    """
    device, grid, levels = model.log_gain.device, latents.grid, latents.levels
    gain, back = _gain(model.log_gain, levels), _gain(model.log_inverse_gain, levels)
    weight = (255.0**2 / 3) * lambda_of(levels.float())[:, None, None, None]
    curvature = 2 * STEP**2 / 3
    known = all(part is not None for part in latents.values.parts)
    better = _Bands(grid.rows)
    for band in range(grid.bands) if known else _revalue(model, latents):
        pieces = []
        for window in grid.windows(band):
            outer = window.grown(model.synthesis_halo)
            x = torch.from_numpy(np.stack([_pixels_of(image, outer) for image, _ in pictures])).to(device)
            x = x.permute(0, 3, 1, 2).float() / 255.0
            with torch.inference_mode(False), torch.enable_grad():
                values = latents.values.window(*outer.box).clone().requires_grad_()
                shown = model.synthesis((values * back.clone()).permute(0, 3, 1, 2), levels.clone())
                shown = shown[:, :, : x.shape[2], : x.shape[3]]
                grey = [number for number, (_, colourless) in enumerate(pictures) if colourless]
                if grey:
                    shown = shown.clone()
                    shown[grey] = shown[grey].mean(1, keepdim=True).expand(-1, 3, -1, -1)
                (gradient,) = torch.autograd.grad(((shown - x.clone()).square() * weight.clone()).sum(), values)
            inner = window.within(outer)
            old = y.window(*window.box).to(device).float()
            target = (values.detach() - gradient / curvature)[:, *inner]
            moved = old + HALF_STEP * (target / gain - old)
            pieces.append(moved.to(y.parts[band].dtype).to(y.parts[band].device))
        better.parts[band] = pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)
    return better


def _pixels_of(image: Image.Image, window: _Window) -> np.ndarray:
    """uint8 [up to 16h, up to 16w,3]: what lies of a picture in the window's cells, without alpha, grey three times."""
    part = image.crop(
        (16 * window.left, 16 * window.top, min(16 * window.right, image.width), min(16 * window.bottom, image.height))
    )
    pixels = np.asarray(part)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return pixels[:, :, :3] if pixels.shape[2] >= 3 else np.repeat(pixels[:, :, :1], 3, 2)


def _add_mean(latents: _Latents, band: int, window: _Window, mean: Tensor, parity: int) -> None:
    """values = symbols + mean in the first group at a window's cells of one parity."""
    first = slice(0, mean.shape[-1])
    symbols = pack(latents.symbols.window(*window.box)[..., first], parity).to(mean.device)
    _put(latents.values, band, window, first, mean + symbols, parity)


def _add_group_mean(latents: _Latents, band: int, window: _Window, channels: slice, mean: Tensor) -> None:
    """values = symbols + mean in a later group's channels."""
    if mean.is_cuda:
        symbols = latents.symbols.window(*window.box)[..., channels].to(mean.device)
        _fill(latents.values, band, window, channels, mean + symbols)
        return
    rows = slice(0, window.bottom - window.top), slice(window.left, window.right)
    symbols = latents.symbols.parts[band].permute(0, 3, 1, 2).numpy()[:, channels, *rows]
    values = latents.values.parts[band].numpy()[:, *rows, channels]
    for item in range(len(mean)):
        _value(symbols[item], mean[item].numpy(), values[item])


def _render(model: NightCodec, latents: _Latents, band: int) -> Iterator[tuple[_Window, Callable]]:
    """The windows of a band whose values and whose neighbours' are there. With each comes paint(item, pixels, grey),
    which fills uint8 [up to 16h, up to 16w,C] with the decoded picture `item`."""
    gain = _gain(model.log_inverse_gain, latents.levels)
    for window in latents.grid.windows(band):
        outer = window.grown(model.synthesis_halo)
        y_hat = latents.values.window(*outer.box) * gain
        parts = inference_of(model).synthesis(y_hat, latents.levels)
        if len(parts) == 3 and not parts[0].is_cuda:
            gather = _gather_halves
            parts = [parts[0].numpy(), *(part.view(torch.int16).numpy().view(np.uint16) for part in parts[1:])]
        else:
            gather = _gather
            parts = [part.float().cpu().numpy() for part in (sum(parts[1:-1], parts[0]), parts[-1])]

        def paint(item: int, pixels: np.ndarray, grey: bool, window=window, outer=outer, gather=gather, parts=parts):
            place = window.top - outer.top, window.left - outer.left
            gather(*(part[item] for part in parts), *place, pixels, grey)

        yield window, paint


# -- streams


@functools.lru_cache(8)
def _z_index(channels: int, height: int, width: int) -> np.ndarray:
    """uint8 [channels,height,width]: table c + 1 for channel c."""
    index = np.arange(1, channels + 1, dtype=np.uint8)[:, None, None]
    return np.ascontiguousarray(np.broadcast_to(index, (channels, height, width)))


def _z_group(level: int) -> int:
    return min(level // 100, Z_GROUPS - 1)


def _z_block(model: NightCodec, z: np.ndarray, level: int) -> entropy.Block:
    return entropy.Block(z, _z_index(*z.shape), _coding(model).z[_z_group(level)])


def _order_of_passes(model: NightCodec) -> list[tuple[slice, int]]:
    """(channels, which cells) of each pass."""
    first, *later = model.config.slices
    return [(first, entropy.EVEN), (first, entropy.ODD), *((part, entropy.EVERYWHERE) for part in later)]


def _stream_of(model: NightCodec, z: np.ndarray | None, level: int, symbols, index, window: _Window) -> bytes:
    """One segment -> its stream. symbols, index [latent,rows,w] of its band; z only for the first segment."""
    place = (0, symbols.shape[1], window.left, window.right)
    tables = _coding(model).y
    blocks = [
        entropy.Block(symbols[part], index[part], tables, place, parity) for part, parity in _order_of_passes(model)
    ]
    parts = [symbols[:, :, window.left : window.right]]
    if z is not None:
        blocks.insert(0, _z_block(model, z, level))
        parts.insert(0, z)
    height, width = window.shape
    return entropy.encode(blocks, entropy.checksum(*parts), entropy.state_count(height * width))


# -- encoding


class Prepared:
    """A picture after its analysis, to be coded at any number of levels.

    level: 0..1000, ten per step of quality. `code` gives the file, `reconstruct` the pixels that it decodes to (within
    1 of 255) without entropy coding. The symbols of the last level are kept for the other of the two calls.
    """

    def __init__(self, picture: Picture, model: NightCodec, grid: _Grid, y: _Bands, segment: int, effort: int = 0):
        image = picture.image
        self.picture, self.model, self.segment, self.effort = picture, model, segment, effort
        self.width, self.height, self.mode = image.width, image.height, image.mode
        self.colourless = image.mode[0] == "R" and _is_colourless(image)
        self.alpha = alpha_plane.encode(np.asarray(image.getchannel("A"))) if "A" in image.mode else b""
        side = {"icc": picture.icc, "exif": picture.exif, "xmp": picture.xmp, "colour": picture.colour}
        self.side = {kind: part for kind, part in side.items() if part}
        self._grid, self._y = grid, y
        self._last: tuple[int, _Latents] | None = None

    @property
    def grey(self) -> bool:
        return self.mode[0] == "L" or self.colourless

    def _latents(self, level: int) -> _Latents:
        if not 0 <= level <= LEVELS:
            raise ValueError(f"level {level} is outside 0..{LEVELS}")
        if self._last is None or self._last[0] != level:
            self._last = None
            with torch.inference_mode():
                levels = torch.full((1,), level, device=self.model.log_gain.device)
                latents = _quantise(self.model, self._y, levels, self._grid)
                y = self._y
                for _ in range(self.effort):
                    y = _refined(self.model, [(self.picture.image, self.grey)], y, latents)
                    latents = _quantise(self.model, y, levels, self._grid)
            self._last = (level, latents)
        return self._last[1]

    def expected(self, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(MSE on the 0..255 scale, bits) at each level as the latent alone lets expect them: their run over the levels
        is the picture's own, their height is not. The networks are not asked; about 1500 cells are looked at."""
        cells = self._grid.height * self._grid.width
        rows = torch.cat([part.flatten(0, 2)[:: max(1, cells // 1500)] for part in self._y.parts]).float()
        device = self.model.log_gain.device
        mse, bits = np.empty(len(levels)), np.empty(len(levels))
        with torch.inference_mode():
            for i, level in enumerate(levels):
                at = torch.tensor([float(level)], device=device)
                scaled = rows.to(device) * _gain(self.model.log_gain, at).flatten()
                error = scaled - torch.copysign(torch.floor(scaled.abs() + 0.4), scaled)
                error *= _gain(self.model.log_inverse_gain, at).flatten()
                mse[i] = error.square().sum(1).mean().item() / 768 + 1e-6
                bits[i] = torch.log2(1 + 2 * scaled.square()).sum(1).mean().item() / 2 * cells
        return mse, bits

    def code(self, level: int) -> bytes:
        """The .npi file at that level."""
        return _seal(self, self._latents(level), 0, level)

    def reconstruct(self, level: int) -> np.ndarray:
        """uint8 [height,width,C]: 1 for grey, 3 for RGB; a fourth or second channel where there is alpha."""
        latents = self._latents(level)
        out = np.empty((self.height, self.width, len(self.mode)), np.uint8)
        with torch.inference_mode():
            known = all(part is not None for part in latents.values.parts)
            for band in range(self._grid.bands) if known else _revalue(self.model, latents):
                for window, paint in _render(self.model, latents, band):
                    target = out[window.top * 16 : window.bottom * 16, window.left * 16 : window.right * 16]
                    paint(0, target, self.grey)
        if self.alpha:
            out[:, :, -1] = np.asarray(self.picture.image.getchannel("A"))
        return out


def _is_colourless(image: Image.Image) -> bool:
    """RGB(A) whose three channels are equal everywhere. Begins with few rows, since most pictures show at once."""
    top, rows = 0, 1
    while top < image.height:
        pixels = np.asarray(image.crop((0, top, image.width, min(image.height, top + rows))))
        if not (np.array_equal(pixels[..., 0], pixels[..., 1]) and np.array_equal(pixels[..., 1], pixels[..., 2])):
            return False
        top += rows
        rows = min(2 * rows, max(1, (1 << 20) // image.width))
    return True


def _seal(prepared: Prepared, latents: _Latents, item: int, level: int) -> bytes:
    """Symbols of one picture of a batch -> file."""
    model = prepared.model
    if model.identity is None:
        raise UnknownModel("this model has no id yet: save it with codec.model.save_model and load it again")
    z = latents.z[item].permute(2, 0, 1).to(torch.int16).contiguous().cpu().numpy()
    jobs = []
    for band in range(latents.grid.bands):
        symbols, index = (array[item] for array in latents.arrays(band))
        for window in latents.grid.windows(band):
            jobs.append((model, None if jobs else z, level, symbols, index, window))
    streams = each(lambda job: _stream_of(*job), jobs)
    return container.write(
        Bitstream(
            model.identity, level, prepared.width, prepared.height, prepared.mode, prepared.colourless,
            prepared.segment, prepared.side, prepared.alpha, streams,
        )
    )  # fmt: skip


def _cells(image: Image.Image) -> tuple[int, int]:
    return -(-image.height // 16), -(-image.width // 16)


def _as_picture(source) -> Picture:
    if isinstance(source, Picture):
        return source
    if isinstance(source, Image.Image):
        return picture_from_image(source)
    if isinstance(source, np.ndarray):
        return picture_from_image(Image.fromarray(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return open_picture(bytes(source))
    raise TypeError(f"cannot encode a {type(source).__name__}; give bytes, a PIL image, an array or a Picture")


def prepare(picture, model: NightCodec, segment: int = SEGMENT, effort: int = 0) -> Prepared:
    """Picture (or bytes, PIL image, uint8 array) -> Prepared, after its analysis. effort: see `encode`."""
    picture = _as_picture(picture)
    grid = _Grid(*_cells(picture.image), segment)
    with torch.inference_mode():
        y = _analyse(model, [picture.image], grid)
    return Prepared(picture, model, grid, y, segment, checked_effort(effort))


def checked_effort(effort: int) -> int:
    """Raises ValueError outside 0..MAX_EFFORT."""
    if effort not in range(MAX_EFFORT + 1):
        raise ValueError(f"effort {effort} is not one of 0..{MAX_EFFORT}")
    return int(effort)


def level_of(quality: float) -> int:
    """Quality 0..100 -> level 0..1000. Raises ValueError outside."""
    if not 0 <= quality <= 100:
        raise ValueError(f"quality {quality} is outside 0..100")
    return round(quality * LEVELS / 100)


def encode(
    image, quality: float | None = None, *, target: str | None = None, max_bytes: int | None = None, model=None,
    device="auto", precision: str = "auto", effort: int = 0,
) -> bytes:  # fmt: skip
    """Picture -> bytes of a .npi file.

    `image`: bytes of an image file, a PIL image, a uint8 array or a Picture. At most one of `quality` (0..100, default
    75), `target` ("psnr=38" or "ms-ssim=0.98") and `max_bytes`. `model`: see get_model. effort: how often (0..3) the
    latent is improved with the decoder's own gradient before it is coded: 2 to 4 % fewer bytes for one and a half to
    four times the time; decoding is the same.
    Raises PictureError for what cannot be read or carried, CodecError for models, ValueError for wrong arguments.
    """
    if sum(option is not None for option in (quality, target, max_bytes)) > 1:
        raise ValueError("quality, target and max_bytes exclude each other; give one")
    level = level_of(DEFAULT_QUALITY if quality is None else quality)
    prepared = prepare(image, get_model(model, device=device, precision=precision), effort=effort)
    if target is None and max_bytes is None:
        return prepared.code(level)
    from codec import rate  # imports this module's Prepared only by its methods

    return rate.encode_prepared(prepared, target=target, max_bytes=max_bytes)


def _groups(shapes: list, model: NightCodec) -> list[list[int]]:
    """Positions of equal shapes (height, width in cells, ...), in groups that the networks may take at once.

    As many as keep the device busy within bounded memory; on CPUs at most 15, since from 16 on a torch without oneDNN
    hands convolutions to NNPACK, whose Winograd transforms round.
    """
    on_cuda = model.log_gain.is_cuda
    pixels, most = (1 << 25, 256) if on_cuda else (1 << 20, 15)
    by_shape = defaultdict(list)
    for position, shape in enumerate(shapes):
        by_shape[shape].append(position)
    groups = []
    for shape, positions in by_shape.items():
        size = max(1, min(most, pixels // (shape[0] * shape[1] * 256)))
        groups += [positions[i : i + size] for i in range(0, len(positions), size)]
    return groups


def _each_group(function, groups: list, model: NightCodec) -> None:
    """function(group) for all: on a CPU with several threads, so many groups at a time with one thread each.

    Pictures scale over cores better than the operations within one. Each worker thread sets its own OpenMP team; the
    calling thread's stays as it is.
    """
    threads = torch.get_num_threads()
    if model.log_gain.is_cuda or threads == 1 or len(groups) < 2:
        for group in groups:
            function(group)
        return
    with ThreadPoolExecutor(min(threads, len(groups)), "npi-group", lambda: torch.set_num_threads(1)) as pool:
        try:
            for _ in pool.map(function, groups):
                pass
        finally:
            torch.set_num_threads(threads)  # what threads begun later take as their default


def encode_batch(images: list, quality: float | list[float] | None = None, *, model=None, device="auto",
                 precision: str = "auto", effort: int = 0) -> list[bytes]:  # fmt: skip
    """Like `encode` for many pictures; those of one size (in 16-pixel cells) go through the networks together.

    `quality`: one for all, or one each; effort: as there. A picture's bytes decode to the same picture whatever batch
    it was in.
    """
    model = get_model(model, device=device, precision=precision)
    pictures = [_as_picture(image) for image in images]
    quality = DEFAULT_QUALITY if quality is None else quality
    qualities = quality if isinstance(quality, list | tuple) else [quality] * len(images)
    if len(qualities) != len(images):
        raise ValueError(f"{len(qualities)} qualities for {len(images)} pictures")
    levels = [level_of(value) for value in qualities]
    checked_effort(effort)
    files: list[bytes] = [b""] * len(images)

    def encode_group(group: list[int]) -> None:
        grid = _Grid(*_cells(pictures[group[0]].image), SEGMENT)
        with torch.inference_mode():
            y = _analyse(model, [pictures[i].image for i in group], grid)
            prepared = [Prepared(pictures[i], model, grid, y, SEGMENT) for i in group]
            at = torch.tensor([levels[i] for i in group], device=model.log_gain.device)
            latents = _quantise(model, y, at, grid)
            for _ in range(effort):
                y = _refined(model, [(one.picture.image, one.grey) for one in prepared], y, latents)
                latents = _quantise(model, y, at, grid)

        def seal(item: int) -> None:
            i = group[item]
            files[i] = _seal(prepared[item], latents, item, levels[i])

        each(seal, list(range(len(group))))

    _each_group(encode_group, _groups([_cells(picture.image) for picture in pictures], model), model)
    return files


# -- decoding


def _check_size(model: NightCodec, stream: Bitstream) -> None:
    """Refuse a picture so large that its own hyper-latent could not fit its first stream at the fewest bits."""
    height, width = stream.cells
    columns = -(-height // 4) * -(-width // 4)
    least = 0.995 * columns * _coding(model).z_least_bits[_z_group(stream.level)] - 64
    if least > 8 * len(stream.streams[0]):
        length = len(stream.streams[0])
        raise BadBitstream(f"{length} bytes cannot hold the outline of {stream.width}x{stream.height} pixels")


def _decode_group(model: NightCodec, streams: list[Bitstream]) -> list[Image.Image]:
    """Bitstreams of one grid and model -> images."""
    device = model.log_gain.device
    first = streams[0]
    grid = _Grid(*first.cells, first.segment)
    levels = torch.tensor([stream.level for stream in streams], device=device)
    for stream in streams:
        _check_size(model, stream)
    tables = _coding(model).y
    z = np.zeros((len(streams), model.config.hyper, -(-grid.height // 4), -(-grid.width // 4)), np.int16)
    decoders: dict[tuple[int, int], list[entropy.Decoder]] = {}
    for band in range(grid.bands):
        for column, window in enumerate(grid.windows(band)):
            number = band * (len(grid.columns) - 1) + column
            states = entropy.state_count(window.shape[0] * window.shape[1])
            decoders[band, column] = [entropy.Decoder(stream.streams[number], states) for stream in streams]
    each(lambda i: decoders[0, 0][i].read(_z_block(model, z[i], streams[i].level)), list(range(len(streams))))
    if np.abs(z).max() > Z_MAX:
        raise BadBitstream("a hyper-latent symbol out of range")
    latents = _Latents.empty(grid, levels, torch.from_numpy(z).to(device).float().permute(0, 2, 3, 1).contiguous())
    inference = inference_of(model)
    canvases: list[_Canvas] = []
    features: dict[_Window, tuple[Tensor, Tensor]] = {}  # of two bands at most, from the first pass for the others
    passes = _order_of_passes(model)
    first_group, *later = model.config.slices

    def read(band: int, number: int) -> None:
        """Pass `number` of a band's segments; after the last the streams must end."""
        symbols, index = latents.arrays(band)
        part, parity = passes[number]

        def one(job) -> None:
            column, window, item = job
            place = (0, window.bottom - window.top, window.left, window.right)
            decoder = decoders[band, column][item]
            decoder.read(entropy.Block(symbols[item][part], index[item][part], tables, place, parity))
            if number == len(passes) - 1:
                parts = [symbols[item][:, :, window.left : window.right]]
                if band == column == 0:
                    parts.insert(0, z[item])
                decoder.finish(entropy.checksum(*parts))
                decoders[band, column][item] = None

        windows = list(enumerate(grid.windows(band)))
        each(one, [(column, window, item) for column, window in windows for item in range(len(streams))])

    for step in range(grid.bands + 2):
        if step < grid.bands:
            latents.open_band(model, step)
            means = {}
            for window in grid.windows(step):
                of_index, of_mean = features[window] = _features(inference, latents, window)
                _put(latents.index, step, window, first_group, inference.indices.bins_first(pack(of_index, EVEN)), EVEN)
                means[window] = inference.mean_first(pack(of_mean, EVEN))
            read(step, 0)
            for window, mean in means.items():
                _add_mean(latents, step, window, mean, EVEN)
        band = step - 1
        if 0 <= band < grid.bands:
            means = {}
            for window in grid.windows(band):
                index, means[window] = _second(inference, latents, window, *features[window])
                _put(latents.index, band, window, first_group, index, ODD)
            read(band, 1)
            for window, mean in means.items():
                _add_mean(latents, band, window, mean, ODD)
            for number, channels in enumerate(later, 1):
                for window in grid.windows(band):
                    index, means[window] = _later(inference, latents, window, number, *features[window])
                    _fill(latents.index, band, window, channels, index)
                read(band, number + 1)
                for window, mean in means.items():
                    _add_group_mean(latents, band, window, channels, mean)
            for window in grid.windows(band):
                features.pop(window)
            latents.index.parts[band] = None
        band = step - 2
        if 0 <= band < grid.bands:
            # only now, when the first symbols have proved themselves, is memory taken for all pixels
            canvases = canvases or [_Canvas(stream) for stream in streams]
            for window, paint in _render(model, latents, band):
                for item, canvas in enumerate(canvases):
                    canvas.paint(window, item, paint)
            latents.symbols.parts[band] = None
            if band > 0:
                latents.values.parts[band - 1] = None
    return [canvas.image for canvas in canvases]


class _Canvas:
    """The picture that a bitstream becomes, window by window."""

    def __init__(self, stream: Bitstream):
        self.stream = stream
        self.grey = stream.mode[0] == "L" or stream.colourless
        self.alpha = None
        if "A" in stream.mode:
            self.alpha = alpha_plane.decode(stream.alpha, stream.height, stream.width)
        self.image = Image.new(stream.mode, (stream.width, stream.height))

    def paint(self, window: _Window, item: int, paint: Callable) -> None:
        """A window of the picture, by `_render`'s function for it."""
        top, left = window.top * 16, window.left * 16
        bottom, right = min(window.bottom * 16, self.stream.height), min(window.right * 16, self.stream.width)
        pixels = np.empty((bottom - top, right - left, len(self.stream.mode)), np.uint8)
        paint(item, pixels, self.grey)
        if self.alpha is not None:
            pixels[:, :, -1] = self.alpha[top:bottom, left:right]
        self.image.paste(Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels), (left, top))


def _decode_parsed(model: NightCodec, streams: list[Bitstream]) -> list[Image.Image]:
    try:
        with torch.inference_mode():
            return _decode_group(model, streams)
    except entropy.EntropyError as error:
        raise BadBitstream(str(error)) from error


def _model_for(stream: Bitstream, model, device, precision, folders) -> NightCodec:
    if isinstance(model, NightCodec):
        if model.identity != stream.model:
            raise UnknownModel(f"the bitstream needs model {stream.model}, given is {model.identity}")
        return model
    found = get_model(stream.model if model is None else model, device=device, precision=precision, folders=folders)
    if found.identity != stream.model:
        raise UnknownModel(f"the bitstream needs model {stream.model}; {model} is {found.identity}")
    return found


def decode_picture(data, *, model=None, models=None, device="auto", precision: str = "auto",
                   max_pixels: int = 200_000_000, verify: bool = True) -> Picture:  # fmt: skip
    """Bytes of a .npi file -> Picture, with its ICC, EXIF and XMP.

    `models`: folders to search for the file's model beside the package's own; `model`: the model itself (or its path).
    Raises BadBitstream, UnknownVersion or UnknownModel (all CodecError) and nothing else for any bytes.
    """
    stream = container.read(data, max_pixels, verify)
    (image,) = _decode_parsed(_model_for(stream, model, device, precision, models), [stream])
    return Picture(image, "NPI", image.mode, **stream.side)


def _with_info(picture: Picture) -> Image.Image:
    image = picture.image
    if picture.icc:
        image.info["icc_profile"] = picture.icc
    if picture.exif:
        image.info["exif"] = b"Exif\0\0" + picture.exif
    if picture.xmp:
        image.info["xmp"] = picture.xmp
    return image


def decode(data, **options) -> Image.Image:
    """Bytes of a .npi file -> PIL image (L, LA, RGB or RGBA) with ICC, EXIF and XMP in its `info`.

    Options and errors: see decode_picture.
    """
    return _with_info(decode_picture(data, **options))


def decode_batch(files: list, *, model=None, models=None, device="auto", precision: str = "auto",
                 max_pixels: int = 200_000_000, errors: str = "raise") -> list:  # fmt: skip
    """Like `decode` for many files; pictures of one size and model go through the networks together.

    errors: "raise" the first file's that cannot be decoded; with "return" its CodecError stands in the list where its
    image would, and all other files are decoded (those that shared a batch with it one by one).
    """
    if errors not in ("raise", "return"):
        raise ValueError(f"errors is {errors!r}; it can be 'raise' or 'return'")
    outcomes: list = [None] * len(files)
    streams: dict[int, Bitstream] = {}
    members = defaultdict(list)  # by model

    def attempt(function: Callable, places: list[int]) -> bool:
        try:
            function(places)
        except CodecError as error:
            if errors == "raise":
                raise
            outcomes[places[0]] = error
            return False
        return True

    def open_file(places: list[int]) -> None:
        (i,) = places
        stream = container.read(files[i], max_pixels)
        members[_model_for(stream, model, device, precision, models)].append(i)
        streams[i] = stream

    for i in range(len(files)):
        attempt(open_file, [i])
    for network, mine in members.items():

        def decode_places(places: list[int], network=network) -> None:
            for i, image in zip(places, _decode_parsed(network, [streams[i] for i in places]), strict=True):
                outcomes[i] = _with_info(Picture(image, "NPI", image.mode, **streams[i].side))

        def decode_group(group: list[int], mine=mine, decode_places=decode_places) -> None:
            places = [mine[i] for i in group]
            if not attempt(decode_places, places) and len(places) > 1:
                for i in places:
                    attempt(decode_places, [i])

        _each_group(decode_group, _groups([(*streams[i].cells, streams[i].segment) for i in mine], network), network)
    return outcomes


def info(data) -> dict:
    """What a .npi file says about itself, without decoding it; its checksum is verified.

    Raises BadBitstream or UnknownVersion.
    """
    stream = container.read(data, max_pixels=container.MAX_SIDE**2)
    size = len(memoryview(data).cast("B"))
    return {
        "format": "npi",
        "version": container.VERSION,
        "model": stream.model,
        "quality": stream.level / 10,
        "width": stream.width,
        "height": stream.height,
        "mode": stream.mode,
        "colourless": stream.colourless,
        "bytes": size,
        "bpp": 8 * size / (stream.width * stream.height),
        "segments": len(stream.streams),
        "segment_pixels": stream.segment * 16,
        "alpha_bytes": len(stream.alpha),
        **{f"{kind}_bytes": len(stream.side.get(kind, b"")) for kind in container.SIDE_KINDS},
    }


__all__ = [
    "BadBitstream", "CodecError", "Prepared", "UnknownModel", "choose_device", "decode", "decode_batch",
    "decode_picture", "default_model", "encode", "encode_batch", "find_model", "get_model", "info", "level_of",
    "prepare",
]  # fmt: skip
