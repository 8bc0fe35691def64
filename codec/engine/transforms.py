"""The networks at work: what network/night_codec.py defines and trains, on finished weights and arranged for speed.

The same functions of the same weights as NightCodec's, to rounding; the exact network's to the bit. What differs:

- Neighbouring linear layers are one: enter after the 8x8 DCT, the inverse DCT after leave, and the decoder's linear
  picture with the DCT of it.
- A checkerboard pass is computed on its own cells only, packed (checkerboard.py). The exact network: scale_indices.py.
- Channels are last in memory throughout, activations and sums are made in place, weights lie ready in the precision
  that they are used in.

Nothing here is trained; night_codec.py's versions are the definition and the tests compare the two.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from codec.engine import blocks, sparse
from codec.engine.checkerboard import around, at_taps, shuffle4, taps_of
from codec.engine.elementwise import asinh, limited
from codec.engine.scale_indices import indices_of
from codec.network.layers import interpolate_gain
from codec.network.night_codec import FEATURE_SCALE, NightCodec

SLOPE = 0.1  # of the leaky ReLUs outside the bottlenecks


def gain_factors(knots: Tensor, levels: Tensor) -> Tensor:
    """Logarithms of gains [KNOTS,C] at levels [B] -> factors [B,1,1,C]."""
    return torch.exp(interpolate_gain(knots, levels)).permute(0, 2, 3, 1)


@functools.cache
def _fusing(dtype: torch.dtype) -> bool:
    """Whether torch's fused convolutions, oneDNN's with the activation or the sum as part, are there for the CPU and
    right: torch.compile's, not public. They spare a pass over memory each."""
    t, bias = torch.linspace(-2, 2, 2 * 16 * 25).view(2, 16, 5, 5), torch.linspace(-1, 1, 24)
    weight = torch.sin(torch.arange(24 * 16 * 9.0)).view(24, 16, 3, 3)
    t, weight = (part.to(dtype).contiguous(memory_format=torch.channels_last) for part in (t, weight))
    layer = _Layer(weight, bias, dtype)
    expected = F.conv2d(t, weight, bias.to(dtype), padding=1)
    more = torch.ones_like(expected)
    try:
        fused = (
            _fused(t, layer), _fused_leaky(t, layer), _fused_leaky(t, layer, 0.0), _fused_add(more.clone(), t, layer)
        )  # fmt: skip
    except (AttributeError, RuntimeError, TypeError):
        return False
    near = {"atol": 0.1, "rtol": 0.02} if dtype == torch.bfloat16 else {"atol": 1e-4, "rtol": 1e-4}
    wanted = expected, F.leaky_relu(expected, SLOPE), F.relu(expected), expected + more
    return all(torch.allclose(a.float(), b.float(), **near) for a, b in zip(fused, wanted, strict=True))


@functools.cache
def _operations() -> tuple:
    """(convolution, with a unary function; the same with a sum, in place)."""
    namespace = torch.ops.mkldnn
    return namespace._convolution_pointwise.default, namespace._convolution_pointwise_.binary


def _fused(t: Tensor, layer: "_Layer") -> Tensor:
    return _operations()[0](t, layer.weight, layer.bias, *layer.geometry, "none", [], None)


def _fused_leaky(t: Tensor, layer: "_Layer", leak: float = SLOPE) -> Tensor:
    name, numbers = ("leaky_relu", [leak]) if leak else ("relu", [])
    return _operations()[0](t, layer.weight, layer.bias, *layer.geometry, name, numbers, None)


def _fused_add(to: Tensor, t: Tensor, layer: "_Layer") -> Tensor:
    return _operations()[1](to, t, layer.weight, layer.bias, *layer.geometry, "add", 1.0, None, [], None)


class _Layer:
    """A convolution with its weights ready, [B,h,w,in] -> [B,h,w,out]."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype = torch.float32):
        """weight [out,in] or [out,in,k,k], k odd: zeros stand beyond the edge."""
        self.padding = weight.shape[2] // 2 if weight.ndim == 4 else 0
        weight = weight if weight.ndim == 4 else weight[:, :, None, None]
        self.weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
        self.bias = None if bias is None else bias.to(dtype)
        self.geometry = [self.padding, self.padding], [1, 1], [1, 1], 1

    @classmethod
    def of(cls, layer: torch.nn.Conv2d, dtype: torch.dtype) -> "_Layer":
        return cls(layer.weight, layer.bias, dtype)

    def _input(self, t: Tensor) -> tuple[Tensor, bool]:
        """[B,in,h,w] in the layer's type, channels last, and whether it is for oneDNN to work on."""
        t = t.permute(0, 3, 1, 2).to(self.weight.dtype)
        fusing = not t.is_cuda and torch.backends.mkldnn.enabled and _fusing(t.dtype)
        return (t.contiguous(memory_format=torch.channels_last) if fusing else t), fusing

    def __call__(self, t: Tensor) -> Tensor:
        t, fusing = self._input(t)
        t = _fused(t, self) if fusing else F.conv2d(t, self.weight, self.bias, padding=self.padding)
        return t.permute(0, 2, 3, 1)

    def leaky(self, t: Tensor) -> Tensor:
        """The leaky ReLU of the result."""
        return self.activated(t, SLOPE)

    def activated(self, t: Tensor, leak: float) -> Tensor:
        """The ReLU of the result, with slope `leak` below zero."""
        t, fusing = self._input(t)
        if fusing:
            return _fused_leaky(t, self, leak).permute(0, 2, 3, 1)
        t = F.conv2d(t, self.weight, self.bias, padding=self.padding)
        return F.leaky_relu(t, leak, inplace=True).permute(0, 2, 3, 1)

    def add_to(self, sums: Tensor, t: Tensor) -> None:
        """sums [B,h,w,out], of the layer's type, plus the result, in place."""
        t, fusing = self._input(t)
        if fusing and sums.is_contiguous():
            _fused_add(sums.permute(0, 3, 1, 2), t, self)
        else:
            sums.add_(F.conv2d(t, self.weight, self.bias, padding=self.padding).permute(0, 2, 3, 1))


class _LinearAnalysis:
    """Pixels -> linear coefficients, [B,h,w,768] -> float32 [B,h,w,latent], of which the first `large` are computed in
    float32, the others in `dtype`, whose rounding they bear: they come out within 0.02 of a quantisation step."""

    def __init__(self, weight: Tensor, dtype: torch.dtype, large: int):
        split = dtype != torch.float32
        self.first = _Layer(weight[:large] if split else weight, None)
        self.rest = _Layer(weight[large:], None, dtype) if split else None

    def __call__(self, pixels: Tensor) -> Tensor:
        first = self.first(pixels)
        return first if self.rest is None else torch.cat((first, self.rest(pixels).float()), -1)


class _LinearSynthesis:
    """y_hat [B,h,w,latent] -> the linear picture [B,h,w,768] and what to add to it per block of 8x8 and colour, float32
    [B,h,w,12].

    Where `dtype` is not float32, the mean of each block is taken out of the picture and computed in float32 from the
    first `large` channels, which hold what is large; the rest is small enough for the rounding of `dtype`. Else the
    means are zero (None).
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype, large: int):
        self.large, self.means = large, None
        if dtype != torch.float32:
            parts = weight[:, :large].view(4, 8, 3, 8, large)
            means = parts.mean((1, 3), keepdim=True)
            self.means = means.view(12, large)
            weight = weight.clone()
            weight[:, :large] = (parts - means).view(768, large)
        self.picture = _Layer(weight, None, dtype)

    def __call__(self, y_hat: Tensor, rounded: Tensor) -> tuple[Tensor, Tensor | None]:
        """rounded: y_hat in the model's precision."""
        if self.means is None:
            return self.picture(y_hat), None
        return self.picture(rounded), F.linear(y_hat[..., : self.large], self.means)


class _Blocks:
    """A chain of bottlenecks on [B,H,W,C]; what is given may be overwritten."""

    def __init__(self, blocks, dtype: torch.dtype):
        self.layers = [tuple(_Layer.of(part, dtype) for part in (b.narrow, b.spatial, b.widen)) for b in blocks]

    def __call__(self, t: Tensor) -> Tensor:
        for narrow, spatial, widen in self.layers:
            widen.add_to(t, spatial.activated(narrow.activated(t, 0.0), 0.0))
        return t


def _to_halves(t: Tensor, gain: Tensor) -> Tensor:
    """[B,h,w,4C], the four parts of each cell row by row -> [B,2h,2w,C] times gain [B or 1,1,1,C]."""
    batch, height, width, channels = t.shape
    t = t.view(batch, height, width, 2, 2, channels // 4).transpose(2, 3)
    out = torch.mul(t, gain[:, :, :, None, None], out=torch.empty(t.shape, dtype=t.dtype, device=t.device))
    return out.view(batch, 2 * height, 2 * width, channels // 4)


def _to_cells(t: Tensor) -> Tensor:
    """[B,2h,2w,C] -> [B,h,w,4C], the inverse of _to_halves."""
    batch, height, width, channels = t.shape
    t = t.view(batch, height // 2, 2, width // 2, 2, channels).transpose(2, 3)
    return t.reshape(batch, height // 2, width // 2, 4 * channels)


class Inference:
    """A NightCodec's functions for the encoder and the decoder, made once per model, device and precision.

    Tensors have their channels last, [B,h,w,C]; packed ones, see `pack`, have [2B,h/2,w/2,C].
    """

    @torch.no_grad()
    def __init__(self, model: NightCodec):
        self.model = model
        self.device, self.dtype = model.log_gain.device, model.precision
        dct = model.dct[:, :, 0, 0]  # [192 coefficients, 192 pixels]
        self.laps = model.lap_analysis, model.lap_synthesis
        self.lap_weights = [blocks.weights_of(v) for v in self.laps]
        order, part_order = blocks.block_order().to(dct.device), blocks.part_order().to(dct.device)
        self._prepare_transforms(model, order, (dct / model.dct_size[:, :, 0])[:, part_order], dct.t()[part_order])
        self._prepare_hyper_and_means(model)
        self.indices = indices_of(model)

    def _prepare_transforms(self, model: NightCodec, order: Tensor, of_unit: Tensor, back: Tensor) -> None:
        """order: a block's pixels as they are turned; of_unit, back: the DCT of a part to unit size, its inverse."""
        dtype, large, first = self.dtype, model.config.groups[0], model.config.channels_with_means
        analysis, synthesis = model.analysis_network, model.synthesis_network
        self.linear_analysis = _LinearAnalysis(model.linear_analysis[:, order], dtype, large)
        self.enter = _Layer(analysis.enter.weight.flatten(1) @ of_unit, analysis.enter.bias, dtype)
        self.encoder = _Blocks(analysis.blocks, dtype)
        self.leave = _Layer(
            _of_parts(analysis.leave.weight) * FEATURE_SCALE, analysis.leave.bias * FEATURE_SCALE, dtype
        )
        linear = model.linear_synthesis[order]  # [768, latent]
        self.linear_synthesis = _LinearSynthesis(linear, dtype, large)
        again = (synthesis.enter.weight.flatten(1) @ of_unit @ linear.view(4, 192, -1)).flatten(0, 1)
        bias = synthesis.enter.bias.repeat(4)
        self.again = _Layer(again, bias, dtype)
        middle = len(synthesis.blocks) // 2
        self.decoder = _Blocks(synthesis.blocks[:middle], dtype), _Blocks(synthesis.blocks[middle:], dtype)
        self.sparse = None
        if dtype == torch.float32 and not linear.is_cuda:
            self.sparse = [sparse.Product(*pair, first, _Layer) for pair in ((linear, None), (again, bias))]
        back = FEATURE_SCALE * back
        self.back = _Layer(back @ synthesis.leave.weight.flatten(1), back @ synthesis.leave.bias, dtype)

    def _prepare_hyper_and_means(self, model: NightCodec) -> None:
        dtype, means = self.dtype, model.means
        self.hyper = [
            _Layer.of(model.hyper_enter, dtype),
            *(_Layer(_of_parts(part.weight), part.bias, dtype) for part in (model.hyper_middle, model.hyper_spatial)),
            _Layer.of(model.hyper_leave, dtype),
        ]
        names = ("hyper", "expand", "features", "first", "join", "second")
        self.means = {name: _Layer.of(getattr(means, name), dtype) for name in names}
        self.mean_groups = [[_Layer.of(one, dtype) for one in (g.context, g.join, g.last)] for g in means.groups]
        self.means["context"] = _Layer(at_taps(means.context.weight, taps_of(3)), means.context.bias, dtype)
        self.near = torch.stack([means.linear[:, 0, 1 + r, 1 + c] for r, c in taps_of(3)])  # [4, first group]

    # -- transforms

    def analysis(self, pixels: Tensor, inner: tuple[slice, slice] = (slice(None), slice(None))) -> Tensor:
        """float32 [B,h,w,768], turned blocks (blocks.py) less 127.5, filtered -> y of the rows and columns `inner` of
        these, [B,..,..,latent]."""
        batch, height, width, _ = pixels.shape
        parts = self.enter(pixels.view(batch, height, 4 * width, 192))
        t = parts.reshape(batch, height, width, 2, 2, -1).transpose(2, 3).to(self.dtype)
        t = t.reshape(batch, 2 * height, 2 * width, -1)
        t = self.encoder(t)
        rows, columns = inner[0].indices(height), inner[1].indices(width)
        t = t[:, 2 * rows[0] : 2 * rows[1], 2 * columns[0] : 2 * columns[1]]
        return self.linear_analysis(pixels[:, *inner]).add_(self.leave(_to_cells(t)))

    def synthesis(
        self,
        y_hat: Tensor,
        levels: Tensor,
        inner: tuple[slice, slice] = (slice(None), slice(None)),
        lists: list[sparse.Listed] | None = None,
        partial: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """y_hat float32 [B,h,w,latent], or where there is `sparse` its first channels with the others as `lists`, one
        of each picture, and perhaps what `partial_products` gave for the former -> of the rows and columns `inner` of
        its cells, h' x w' of them: the linear picture less 127.5 [B,h',w',768] in turned blocks (blocks.py); what to
        add to each colour of their parts, float32 [B,h',w',12] or None; and what to add per part (column, colour, row),
        [B,2h',2w',192]. First and last are in the model's precision. `summed` gives the pixels."""
        rounded = y_hat.to(self.dtype)
        network = self.model.synthesis_network
        enter, middle = (
            gain_factors(gain, levels).to(self.dtype) for gain in (network.enter_gain, network.middle_gain)
        )
        if lists is not None:
            linear, again = self.sparse
            t = _to_halves(again(y_hat, lists, partial=partial and partial[1]), enter)
        else:
            t = _to_halves(self.again(rounded), enter)
        t = self.decoder[1](self.decoder[0](t).mul_(middle))
        rows, columns = inner[0].indices(y_hat.shape[1]), inner[1].indices(y_hat.shape[2])
        t = t[:, 2 * rows[0] : 2 * rows[1], 2 * columns[0] : 2 * columns[1]]
        if lists is not None:
            return linear(y_hat, lists, inner, partial and partial[0]), None, self.back(t)
        return *self.linear_synthesis(y_hat[:, *inner], rounded[:, *inner]), self.back(t)

    def partial_products(self, y_hat: Tensor, inner: tuple[slice, slice]) -> tuple[Tensor, Tensor]:
        """Where there is `sparse`: the part of `synthesis` that takes the first channels of y_hat alone."""
        linear, again = self.sparse
        return linear.partial_product(y_hat, inner), again.partial_product(y_hat)

    def summed(self, linear: Tensor, means: Tensor | None, added: Tensor) -> Tensor:
        """The sum of what `synthesis` gives, filtered across the borders of blocks: turned blocks less 127.5, float32
        [B,h,w,768], on its device."""
        sums = linear.float() + _to_cells(added)
        if means is not None:
            sums.view(*sums.shape[:3], 4, 8, 3, 8).add_(means.view(*means.shape[:3], 4, 1, 3, 1))
        return blocks.lap_blocks(sums, self.laps[1])

    def hyper_analysis(self, y_scaled: Tensor, levels: Tensor) -> Tensor:
        """y in quantisation steps [B,h,w,latent] -> unrounded z [B,ceil(h/4),ceil(w/4),hyper]."""
        height, width = y_scaled.shape[1:3]
        enter, middle, spatial, leave = self.hyper
        t = enter.leaky(asinh(y_scaled, self.dtype))
        t.mul_(gain_factors(self.model.hyper_gain, levels).to(self.dtype))
        if height % 4 or width % 4:
            t = F.pad(t.permute(0, 3, 1, 2), (0, -width % 4, 0, -height % 4), mode="replicate").permute(0, 2, 3, 1)
        return leave(spatial.leaky(_to_cells(middle.leaky(_to_cells(t))))).float()

    # -- means, in quantisation steps

    def mean_features(self, z: Tensor, place: tuple[slice, slice], inner: tuple[slice, slice]) -> Tensor:
        """Hyper-latent [B,hz,wz,hyper] -> features [B,..,..,m]. place: rows and columns of the latent over it to work
        on; inner: those of them to keep, one cell or more inside where the latent goes on."""
        layer = self.means
        t = shuffle4(layer["expand"](layer["hyper"].leaky(z)), place)
        t = F.leaky_relu(t, SLOPE, inplace=True)
        return layer["features"].leaky(t)[:, *inner]

    def mean_first(self, features: Tensor) -> Tensor:
        """Features of even cells -> their means, float32; packed."""
        return limited(self.means["first"](features))

    def mean_second(self, features: Tensor, values: Tensor, inner: tuple[int, int, int, int]) -> Tensor:
        """Features of odd cells; values + means of the even cells around, float32 -> means of the odd cells; all
        packed. inner: where among `values` the odd cells stand."""
        layer = self.means
        near = around(values, taps_of(3), inner)
        linear = near[..., 0, :] * self.near[0]
        for tap in range(1, len(self.near)):
            linear.addcmul_(near[..., tap, :], self.near[tap])
        seen = around(asinh(values, self.dtype), taps_of(3), inner).flatten(3)
        t = layer["join"].leaky(torch.cat((features, layer["context"].leaky(seen)), -1))
        return limited(layer["second"](t)).add_(linear)

    def mean_group(self, number: int, features: Tensor, values: Tensor) -> Tensor:
        """Features [B,h,w,m]; values + means of the channels before group `number` (1, 2) -> the group's means, which
        of the last one are zero."""
        if number > len(self.mean_groups):
            part = self.model.config.slices[number]
            return values.new_zeros(()).expand(*values.shape[:3], part.stop - part.start)
        context, join, last = self.mean_groups[number - 1]
        seen = context.leaky(asinh(values, self.dtype))
        return limited(last(join.leaky(torch.cat((features, seen), -1))))


def _of_parts(weight: Tensor) -> Tensor:
    """A 1x1 kernel that reads pixel_unshuffle's order (channel, part) -> [out,in] for _to_cells' (part, channel)."""
    return weight.view(len(weight), -1, 4).transpose(1, 2).flatten(1)


def inference_of(model: NightCodec) -> Inference:
    """The model's Inference at its present device and precision, made at the first call."""
    held = getattr(model, "_inference", None)
    if held is None or (held.dtype, held.device) != (model.precision, model.log_gain.device):
        held = model._inference = Inference(model)
    return held
