"""The exact network at work: which table codes which symbol, the same to the bit in either of two ways.

FloatIndices does it in float32 whose sums cannot round (exact.py), on every device. IntegerIndices does it in 8-bit
integers where torch multiplies these natively (VNNI, AMX), about twice as fast; its products are tried on extreme
values first, and where one differs FloatIndices is taken.

Both have index_features, bins_first, bins_second and bins_group; night_codec.py's are the definition. Tensors have
their channels last, [B,h,w,C]; packed ones: checkerboard.py.
"""

import functools

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codec.engine.checkerboard import around, at_taps, pack, shuffle4, taps_of
from codec.engine.elementwise import looked_up
from codec.entropy import trellis
from codec.format import BINS, EVEN, LEVELS, ODD
from codec.network import exact
from codec.network.exact import ACTIVATION_MAX, ACTIVATION_STEPS, WEIGHT_STEPS, ExactConv2d, quantise_activation
from codec.network.night_codec import NightCodec

NOTHING = -128  # how IntegerIndices holds an activation of 0
LOW_BITS = 7  # weights are 128 high + low


def indices_of(model: NightCodec) -> "FloatIndices | IntegerIndices":
    """IntegerIndices where these can be relied on and are fast, else FloatIndices."""
    if wanted() and not model.log_gain.is_cuda:
        integers = IntegerIndices(model)
        if integers.reliable():
            return integers
    return FloatIndices(model)


def wanted() -> bool:
    """Whether this processor multiplies 8-bit integers natively (VNNI); tests and benches replace this."""
    native = getattr(torch.cpu, "_is_vnni_supported", None)
    return hasattr(torch, "_int_mm") and native is not None and bool(native())


def _level_plane(levels: Tensor) -> Tensor:
    """The level as an activation [B]."""
    return torch.floor(levels.float() * ACTIVATION_MAX / LEVELS) / ACTIVATION_STEPS


# -- in float32


class _Layer:
    """An exact convolution [B,h,w,in] -> [B,h,w,out], unclamped, in units of 1."""

    def __init__(self, layer: ExactConv2d, taps: list[tuple[int, int]] | None = None):
        weight, bias = layer.integers()
        weight = weight.float() / WEIGHT_STEPS
        if taps is not None:
            weight = at_taps(weight, taps)[:, :, None, None]
        self.padding = weight.shape[2] // 2
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.bias = bias.float() / (WEIGHT_STEPS * ACTIVATION_STEPS)

    def __call__(self, t: Tensor) -> Tensor:
        t = t.permute(0, 3, 1, 2)
        return exact.exact_conv2d(t, self.weight, self.bias, self.padding).permute(0, 2, 3, 1)


_STEPS, _STEP = np.float32(ACTIVATION_STEPS), np.float32(1 / ACTIVATION_STEPS)
_MOST, _HALF, _NONE = np.float32(ACTIVATION_MAX / ACTIVATION_STEPS), np.float32(0.5), np.float32(0)
_BINS_PER_UNIT, _LAST_BIN = np.float32(4), np.float32(BINS - 1)


@numba.njit(cache=True, nogil=True)
def _to_activations(t, out):
    """float32 [n] -> quantise_activation of it."""
    for i in range(t.size):
        out[i] = np.floor(min(max(t[i], _NONE), _MOST) * _STEPS + _HALF) * _STEP


@numba.njit(cache=True, nogil=True)
def _to_bin_numbers(t, out):
    """float32 [n] -> bins, uint8 [n]."""
    for i in range(t.size):
        out[i] = np.uint8(np.int32(min(max(np.floor(t[i] * _BINS_PER_UNIT + _HALF), _NONE), _LAST_BIN)))


def _activations_of(t: Tensor) -> Tensor:
    """quantise_activation of [B,h,w,C], in one pass on the CPU."""
    if t.is_cuda:
        return quantise_activation(t)
    t = t.contiguous()
    out = torch.empty_like(t)
    _to_activations(t.view(-1).numpy(), out.view(-1).numpy())
    return out


def _bins(t: Tensor) -> Tensor:
    """Output of a last layer -> bin."""
    if t.is_cuda:
        return t.mul_(4.0).add_(0.5).floor_().clamp_(0.0, BINS - 1.0).to(torch.uint8)
    out = torch.empty(t.shape, dtype=torch.uint8)
    _to_bin_numbers(t.contiguous().view(-1).numpy(), out.view(-1).numpy())
    return out


class FloatIndices:
    """Activations are multiples of 1/16 in float32."""

    def __init__(self, model: NightCodec):
        net = model.indices
        self.model = model
        self.layers = {name: _Layer(layer) for name, layer in net.named_children() if name != "groups"}
        self.groups = [[_Layer(one) for one in (g.context, g.join, g.last)] for g in net.groups]
        self.loudness = trellis.loudness(model.log_gain.device)
        # Odd cells, whose symbols are not known yet, pass on what `magnitude` makes of nothing.
        idle = quantise_activation(self.layers["magnitude"].bias)
        every = self.layers["neighbours"]
        self.idle = torch.einsum("ockl,c->okl", every.weight.double(), idle.double()).float()[:, None].contiguous()
        self.layers["neighbours"] = _Layer(net.neighbours, taps_of(5))
        self.idle_around = functools.lru_cache(8)(self._idle_around)  # pieces of few shapes follow each other

    def index_features(self, z: Tensor, levels: Tensor, place: tuple[slice, slice], inner: tuple[slice, slice]):
        """Hyper-latent [B,hz,wz,hyper] -> features [B,..,..,n]. place: rows and columns of the latent over it to work
        on; inner: those of them to keep, one cell or more inside where the latent goes on."""
        layer = self.layers
        plane = _level_plane(levels)[:, None, None, None].expand(*z.shape[:3], 1)
        t = layer["expand"](_activations_of(layer["hyper"](torch.cat((z * 0.5, plane), -1))))
        return _activations_of(layer["features"](_activations_of(shuffle4(t, place)))[:, *inner])

    def bins_first(self, features: Tensor) -> Tensor:
        """Features of even cells -> their bins, uint8; packed."""
        return _bins(self.layers["first"](features))

    def bins_second(
        self, features: Tensor, symbols: Tensor, tables: Tensor, inner: tuple[int, int, int, int]
    ) -> Tensor:
        """Features of odd cells, packed; symbols and the tables that code them [B,h,w,first group] of their
        surroundings, two cells or up to the edge, of which the even cells count; inner: where among them, packed, the
        odd cells stand -> their bins, uint8, packed.
        """
        layer = self.layers
        seen = looked_up(pack(symbols, EVEN), pack(tables, EVEN), self.loudness)
        seen = _activations_of(layer["magnitude"](seen))
        beyond_edge(seen, symbols.shape, 0)
        seen = layer["neighbours"](around(seen, taps_of(5), inner).flatten(3))
        seen = _activations_of(seen + self.idle_around(symbols.shape, inner))
        t = _activations_of(layer["join"](torch.cat((features, seen), -1)))
        return _bins(layer["second"](t))

    def _idle_around(self, shape: torch.Size, inner: tuple[int, int, int, int]) -> Tensor:
        """What the odd cells of a latent [B,h,w,..] add to their odd neighbours' sums, packed [2B,..,..,n]."""
        batch, height, width, _ = shape
        idle = ~self.model.anchors(height, width, self.idle.device)[None, None]
        idle = exact.exact_conv2d(idle.float(), self.idle, torch.zeros_like(self.idle[:, 0, 0, 0]), 2)
        top, bottom, left, right = inner
        return pack(idle.permute(0, 2, 3, 1), ODD)[:, top:bottom, left:right].repeat(batch, 1, 1, 1)

    def bins_group(self, number: int, features: Tensor, symbols: Tensor, tables: Tensor) -> Tensor:
        """Features [B,h,w,n]; symbols of the channels before group `number` (1, 2), and the tables that code them ->
        the group's bins, uint8."""
        context, join, last = self.groups[number - 1]
        seen = _activations_of(context(looked_up(symbols, tables, self.loudness)))
        return _bins(last(_activations_of(join(torch.cat((features, seen), -1)))))


def beyond_edge(seen: Tensor, shape: torch.Size, nothing: int) -> None:
    """Packed even cells that an odd edge adds pass nothing on; they lie in odd rows."""
    if shape[1] % 2:
        seen[1::2, -1] = nothing
    if shape[2] % 2:
        seen[1::2, :, -1] = nothing


# -- in 8-bit integers


@numba.njit(cache=True, nogil=True)
def _activations(product, bias, more, out):
    """int32 [n,2C] of a product with (high, low), bias [C] and sums [n or 0,C] in units of 1/8192 -> int8 [n,C]."""
    channels = out.shape[1]
    for row in range(out.shape[0]):
        for c in range(channels):
            total = (product[row, c] << LOW_BITS) + product[row, channels + c] + bias[c]
            if more.shape[0]:
                total += more[row, c]
            out[row, c] = min(max(((total + 256) >> 9) - 128, -128), 127)


@numba.njit(cache=True, nogil=True)
def _to_bins(product, bias, out):
    """The same sums of a last layer -> bins, uint8 [n,C]."""
    channels = out.shape[1]
    for row in range(out.shape[0]):
        for c in range(channels):
            total = (product[row, c] << LOW_BITS) + product[row, channels + c] + bias[c]
            out[row, c] = min(max((total + 1024) >> 11, 0), BINS - 1)


_NO_MORE = np.zeros((0, 1), np.int32)


class _Product:
    """An exact layer, 1x1 or over gathered taps, on int8 activations [..,in] that are less by 128."""

    def __init__(self, layer: ExactConv2d, taps: list[tuple[int, int]] | None = None):
        weight, bias = layer.integers()
        weight = weight[:, :, 0, 0] if taps is None else at_taps(weight, taps)
        low = ((weight + 64) & 127) - 64
        high = (weight - low) >> LOW_BITS
        self.fits = bool((high.abs() < 64).all())  # then not even two products of (0..255, weight) exceed 16 bits
        self.weight = torch.cat((high, low)).to(torch.int8).t()  # [in, 2 out]
        self.bias = (bias.long() + 128 * weight.long().sum(1)).to(torch.int32).numpy()

    def product(self, t: Tensor) -> np.ndarray:
        return torch._int_mm(t.reshape(-1, t.shape[-1]), self.weight).numpy()

    def activations(self, t: Tensor, more: Tensor | None = None) -> Tensor:
        """int8 [..,out]; more: int32 [..,out] to add to the sums, in units of 1/8192."""
        out = torch.empty(*t.shape[:-1], len(self.bias), dtype=torch.int8)
        added = _NO_MORE if more is None else more.reshape(-1, len(self.bias)).numpy()
        _activations(self.product(t), self.bias, added, out.view(-1, len(self.bias)).numpy())
        return out

    def bins(self, t: Tensor) -> Tensor:
        """uint8 [..,out]"""
        out = torch.empty(*t.shape[:-1], len(self.bias), dtype=torch.uint8)
        _to_bins(self.product(t), self.bias, out.view(-1, len(self.bias)).numpy())
        return out

    def reliable(self) -> bool:
        """Whether torch's product is right where its sums and partial sums are largest."""
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (48, len(self.weight)), generator=generator) * 2 - 1
        signs = torch.cat((signs, self.weight[:, :24].t().sign(), -self.weight[:, :24].t().sign()))  # own extremes
        t = torch.where(signs > 0, 127, -128).to(torch.int8)
        return torch.equal(torch._int_mm(t, self.weight).double(), t.double() @ self.weight.double())


class IntegerIndices:
    """Activations are int8, less by 128: the integers of 0..255 that FloatIndices holds as sixteenths."""

    square = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)]

    def __init__(self, model: NightCodec):
        net = model.indices
        self.floats = FloatIndices(model)
        taps = {"features": self.square, "neighbours": taps_of(5)}
        names = ("expand", "features", "first", "magnitude", "neighbours", "join", "second")
        self.layers = {name: _Product(getattr(net, name), taps.get(name)) for name in names}
        self.groups = [[_Product(one) for one in (g.context, g.join, g.last)] for g in net.groups]
        self.loudness = (self.floats.loudness * ACTIVATION_STEPS - 128).to(torch.int8)

    def reliable(self) -> bool:
        products = [*self.layers.values(), *(one for group in self.groups for one in group)]
        return all(one.fits and one.reliable() for one in products)

    def index_features(self, z: Tensor, levels: Tensor, place: tuple[slice, slice], inner: tuple[slice, slice]):
        """See FloatIndices. z is no activation: the first layer, on few cells, stays in float32."""
        plane = _level_plane(levels)[:, None, None, None].expand(*z.shape[:3], 1)
        t = quantise_activation(self.floats.layers["hyper"](torch.cat((z * 0.5, plane), -1)))
        t = self.layers["expand"].activations((t * ACTIVATION_STEPS - 128).to(torch.int8))
        t = F.pad(shuffle4(t, place), (0, 0, 1, 1, 1, 1), value=NOTHING)
        height, width = t.shape[1:3]
        top, bottom, _ = inner[0].indices(height - 2)
        left, right, _ = inner[1].indices(width - 2)
        near = [t[:, top + 1 + r : bottom + 1 + r, left + 1 + c : right + 1 + c] for r, c in self.square]
        return self.layers["features"].activations(torch.cat(near, -1))

    def bins_first(self, features: Tensor) -> Tensor:
        return self.layers["first"].bins(features)

    def bins_second(
        self, features: Tensor, symbols: Tensor, tables: Tensor, inner: tuple[int, int, int, int]
    ) -> Tensor:
        layer = self.layers
        seen = looked_up(pack(symbols, EVEN), pack(tables, EVEN), self.loudness)
        seen = layer["magnitude"].activations(seen)
        beyond_edge(seen, symbols.shape, NOTHING)
        near = around(seen, taps_of(5), inner, NOTHING).flatten(3)
        idle = self.floats.idle_around(symbols.shape, inner) * (WEIGHT_STEPS * ACTIVATION_STEPS)
        seen = layer["neighbours"].activations(near, idle.to(torch.int32))
        return layer["second"].bins(layer["join"].activations(torch.cat((features, seen), -1)))

    def bins_group(self, number: int, features: Tensor, symbols: Tensor, tables: Tensor) -> Tensor:
        context, join, last = self.groups[number - 1]
        seen = context.activations(looked_up(symbols, tables, self.loudness))
        return last.bins(join.activations(torch.cat((features, seen), -1)))
