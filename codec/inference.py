"""The networks at work: what model.py defines and trains, on finished weights and arranged for speed.

The same functions of the same weights as NightCodec's, to rounding; the exact network's to the bit. What differs:

- Neighbouring linear layers are one: enter after the 8x8 DCT, the inverse DCT after leave, and the decoder's linear
  picture with the DCT of it.
- A checkerboard pass is computed on its own cells only, packed (packed.py). The exact network is indices.py's.
- Channels are last in memory throughout, activations and sums are made in place, weights lie ready in the precision
  that they are used in.

Nothing here is trained; model.py's versions are the definition and the tests compare the two.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from codec.indices import indices_of
from codec.model import FEATURE_SCALE, MEAN_LIMIT, NightCodec, at_level
from codec.packed import around, at_taps, shuffle4, taps_of
from codec.winograd import Convolution3x3

SLOPE = 0.1  # of the leaky ReLUs


class _Layer:
    """A convolution with its weights ready, [B,h,w,in] -> [B,h,w,out]."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype = torch.float32):
        """weight [out,in] or [out,in,k,k], k odd: zeros stand beyond the edge."""
        self.padding = weight.shape[2] // 2 if weight.ndim == 4 else 0
        weight = weight if weight.ndim == 4 else weight[:, :, None, None]
        self.weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
        self.bias = None if bias is None else bias.to(dtype)

    @classmethod
    def of(cls, layer: torch.nn.Conv2d, dtype: torch.dtype) -> "_Layer":
        return cls(layer.weight, layer.bias, dtype)

    def __call__(self, t: Tensor) -> Tensor:
        t = t.permute(0, 3, 1, 2).to(self.weight.dtype)
        return F.conv2d(t, self.weight, self.bias, padding=self.padding).permute(0, 2, 3, 1)

    def leaky(self, t: Tensor) -> Tensor:
        return F.leaky_relu(self(t), SLOPE, inplace=True)


class _Linear:
    """A linear transform between pixels and coefficients, [B,h,w,in] -> [B,h,w,out], on one side of which the first
    channels are large: these in float32, the others in `dtype`, whose rounding they bear.

    large: how many of the inputs (of the synthesis) or of the outputs (of the analysis). Multiplied in bfloat16, the
    rest of codec-2's coefficients come out within 0.02 of a quantisation step and its pixels within a tenth of a step.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype, large: int, of_inputs: bool):
        self.large, self.of_inputs = large, of_inputs
        self.whole = self.first = self.rest = None
        if dtype == torch.float32 or not large:
            self.whole = _Layer(weight, None)
        elif of_inputs:
            self.first, self.rest = _Layer(weight[:, :large], None), _Layer(weight[:, large:], None, dtype)
        else:
            self.first, self.rest = _Layer(weight[:large], None), _Layer(weight[large:], None, dtype)

    def __call__(self, t: Tensor) -> Tensor:
        """The result, float32."""
        first, *rest = self.parts(t)
        if not rest:
            return first
        return first.add_(rest[0]) if self.of_inputs else torch.cat((first, rest[0].float()), -1)

    def parts(self, t: Tensor) -> tuple[Tensor, ...]:
        """What the result is made of: itself, or a float32 and a `dtype` tensor to add up (or to join)."""
        if self.whole is not None:
            return (self.whole(t),)
        if self.of_inputs:
            return self.first(t[..., : self.large]), self.rest(t[..., self.large :])
        return self.first(t), self.rest(t)


class _Blocks:
    """A chain of bottlenecks, in place on [B,H,W,C]."""

    def __init__(self, blocks, dtype: torch.dtype):
        self.layers = [tuple(_Layer.of(part, dtype) for part in (b.narrow, b.spatial, b.widen)) for b in blocks]
        self.winograd = None
        if dtype == torch.float32 and blocks and not blocks[0].spatial.weight.is_cuda:
            self.winograd = [Convolution3x3(b.spatial.weight, b.spatial.bias, SLOPE) for b in blocks]

    def __call__(self, t: Tensor) -> None:
        # Torch may be told to multiply float32 coarsely: too coarsely for transformed tiles.
        winograd = self.winograd if torch.get_float32_matmul_precision() == "highest" else None
        for number, (narrow, spatial, widen) in enumerate(self.layers):
            middle = winograd[number] if winograd else spatial.leaky
            t.add_(widen(middle(narrow.leaky(t))))


def _to_halves(t: Tensor) -> Tensor:
    """[B,h,w,4C], the four parts of each cell row by row -> [B,2h,2w,C]."""
    batch, height, width, _ = t.shape
    t = t.view(batch, height, width, 2, 2, -1).transpose(2, 3)
    return t.reshape(batch, 2 * height, 2 * width, -1)


def _to_cells(t: Tensor) -> Tensor:
    """[B,2h,2w,C] -> [B,h,w,4C], the inverse of _to_halves."""
    batch, height, width, channels = t.shape
    t = t.view(batch, height // 2, 2, width // 2, 2, channels).transpose(2, 3)
    return t.reshape(batch, height // 2, width // 2, 4 * channels)


def _quarters() -> Tensor:
    """[768]: where in a cell's pixels ordered (colour, 16, 16) those ordered (row of part, column of part, colour, 8,
    8) stand."""
    return torch.arange(768).view(3, 2, 8, 2, 8).permute(1, 3, 0, 2, 4).flatten()


class Inference:
    """A NightCodec's functions for coder.py. Made once per model, device and precision; see `inference_of`.

    Tensors have their channels last, [B,h,w,C]; packed ones, see `pack`, have [2B,h/2,w/2,C].
    """

    @torch.no_grad()
    def __init__(self, model: NightCodec):
        self.model = model
        self.device, self.dtype = model.log_gain.device, model.precision
        dtype = self.dtype
        dct = model.dct[:, :, 0, 0]  # [192 coefficients, 192 pixels]
        of_unit = dct / model.dct_size[:, :, 0]
        order = _quarters().to(dct.device)

        # Where the latent has groups, its first one holds what is large; else all is kept in full precision: in
        # bfloat16 weights that add pixels to differences no longer cancel quite.
        large = model.config.groups[0] if model.config.groups else 0
        analysis = model.analysis_network
        self.linear_analysis = _Linear(model.linear_analysis[:, order], dtype, large, of_inputs=False)
        enter = analysis.enter.weight.flatten(1) @ of_unit
        self.enter = _Layer(enter, analysis.enter.bias, dtype if large else torch.float32)
        self.encoder = _Blocks(analysis.blocks, dtype)
        self.leave = _Layer(
            _of_parts(analysis.leave.weight) * FEATURE_SCALE, analysis.leave.bias * FEATURE_SCALE, dtype
        )

        synthesis = model.synthesis_network
        linear = model.linear_synthesis[order]  # [768, latent]
        self.linear_synthesis = _Linear(linear, dtype, large, of_inputs=True)
        again = synthesis.enter.weight.flatten(1) @ of_unit @ linear.view(4, 192, -1)
        self.again = _Layer(again.flatten(0, 1), synthesis.enter.bias.repeat(4), dtype)
        middle = len(synthesis.blocks) // 2
        self.decoder = _Blocks(synthesis.blocks[:middle], dtype), _Blocks(synthesis.blocks[middle:], dtype)
        back = FEATURE_SCALE * dct.t()
        self.back = _Layer(back @ synthesis.leave.weight.flatten(1), back @ synthesis.leave.bias, dtype)

        self.hyper = [
            _Layer.of(model.hyper_enter, dtype),
            *(_Layer(_of_parts(part.weight), part.bias, dtype) for part in (model.hyper_middle, model.hyper_spatial)),
            _Layer.of(model.hyper_leave, dtype),
        ]

        means = model.means
        names = ("hyper", "expand", "features", "first", "join", "second")
        self.means = {name: _Layer.of(getattr(means, name), dtype) for name in names}
        self.mean_groups = [[_Layer.of(one, dtype) for one in (g.context, g.join, g.last)] for g in means.groups]
        self.means["context"] = _Layer(at_taps(means.context.weight, taps_of(3)), means.context.bias, dtype)
        self.near = torch.stack([means.linear[:, 0, 1 + r, 1 + c] for r, c in taps_of(3)])  # [4, first group]

        self.indices = indices_of(model)

    # -- transforms

    def analysis(self, pixels: Tensor) -> Tensor:
        """float32 [B,h,w,768], pixels of each cell less 127.5 in the order of `_quarters` -> y [B,h,w,latent]."""
        batch, height, width, _ = pixels.shape
        parts = self.enter(pixels.view(batch, height, 4 * width, 192))
        t = _to_halves(parts.reshape(batch, height, width, -1).to(self.dtype))
        self.encoder(t)
        return self.linear_analysis(pixels).add_(self.leave(_to_cells(t)))

    def synthesis(self, y_hat: Tensor, levels: Tensor) -> tuple[Tensor, ...]:
        """y_hat float32 [B,h,w,latent] -> one or two of [B,h,w,768], whose sum is the linear picture less 127.5 in the
        order of `_quarters`, the first in float32; and [B,2h,2w,192], what to add to it per block of 8x8 (colour, row,
        column). The others are in the model's precision."""
        t = _to_halves(self.again(y_hat))
        network = self.model.synthesis_network
        for gain, blocks in zip((network.enter_gain, network.middle_gain), self.decoder, strict=True):
            t.mul_(torch.exp(at_level(gain, levels)).permute(0, 2, 3, 1).to(self.dtype))
            blocks(t)
        return *self.linear_synthesis.parts(y_hat), self.back(t)

    def hyper_analysis(self, y_scaled: Tensor, levels: Tensor) -> Tensor:
        """y in quantisation steps [B,h,w,latent] -> unrounded z [B,ceil(h/4),ceil(w/4),hyper]."""
        height, width = y_scaled.shape[1:3]
        enter, middle, spatial, leave = self.hyper
        t = enter.leaky(_asinh(y_scaled))
        t.mul_(torch.exp(at_level(self.model.hyper_gain, levels)).permute(0, 2, 3, 1).to(self.dtype))
        if height % 4 or width % 4:
            t = F.pad(t.permute(0, 3, 1, 2), (0, -width % 4, 0, -height % 4), mode="replicate").permute(0, 2, 3, 1)
        return leave(spatial.leaky(_to_cells(middle.leaky(_to_cells(t))))).float()

    # -- means, in quantisation steps

    def mean_features(self, z: Tensor, place: tuple[slice, slice], inner: tuple[slice, slice]) -> Tensor:
        """Hyper-latent [B,hz,wz,hyper] -> features [B,..,..,m]. place: rows and columns of the latent over it to work
        on; inner: those of them to keep, one cell or more inside where the latent goes on."""
        layer = self.means
        t = shuffle4(layer["expand"](layer["hyper"].leaky(z)), place)
        return layer["features"].leaky(F.leaky_relu(t, SLOPE, inplace=True))[:, *inner]

    def mean_first(self, features: Tensor) -> Tensor:
        """Features of even cells -> their means, float32; packed."""
        return _limited(self.means["first"](features))

    def mean_second(self, features: Tensor, values: Tensor, inner: tuple[int, int, int, int]) -> Tensor:
        """Features of odd cells; symbols + means of the even cells around, float32 -> means of the odd cells; all
        packed. inner: where among `values` the odd cells stand."""
        layer = self.means
        near = around(values, taps_of(3), inner)
        linear = near[..., 0, :] * self.near[0]
        for tap in range(1, len(self.near)):
            linear.addcmul_(near[..., tap, :], self.near[tap])
        seen = around(_asinh(values).to(self.dtype), taps_of(3), inner).flatten(3)
        t = layer["join"].leaky(torch.cat((features, layer["context"].leaky(seen)), -1))
        return _limited(layer["second"](t)).add_(linear)

    def mean_group(self, number: int, features: Tensor, values: Tensor) -> Tensor:
        """Features [B,h,w,m]; symbols + means of the channels before group `number` (1..) -> the group's means."""
        context, join, last = self.mean_groups[number - 1]
        seen = context.leaky(_asinh(values))
        return _limited(last(join.leaky(torch.cat((features, seen), -1))))


def _of_parts(weight: Tensor) -> Tensor:
    """A 1x1 kernel that reads pixel_unshuffle's order (channel, part) -> [out,in] for _to_cells' (part, channel)."""
    return weight.view(len(weight), -1, 4).transpose(1, 2).flatten(1)


def _asinh(t: Tensor) -> Tensor:
    """Inverse hyperbolic sine to within 1e-6; torch's own is four times slower."""
    return t.square().add_(1.0).sqrt_().add_(t.abs()).log_().copysign_(t)


def _limited(t: Tensor) -> Tensor:
    return t.float().div_(MEAN_LIMIT).tanh_().mul_(MEAN_LIMIT)


def inference_of(model: NightCodec) -> Inference:
    """The model's Inference at its present device and precision, made at the first call."""
    held = getattr(model, "_inference", None)
    if held is None or held.dtype != model.precision or held.device != model.log_gain.device:
        held = model._inference = Inference(model)
    return held
