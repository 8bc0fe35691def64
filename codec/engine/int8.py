"""The transforms' bottlenecks in 8-bit integers, for processors that multiply these natively (VNNI, AMX).

Half as long as in bfloat16. layers.Bottleneck defines what is computed, steps and all: what enters a convolution is a
whole number of steps that fits a byte, weights are -127..127, sums are exact 32-bit integers, what comes out is scaled,
biased, clipped at zero and rounded to the next layer's steps; a fine block's first layer takes what enters as it is.
Nothing of it reaches the entropy coder but through the symbols, so that a decoder with another precision shows the same
picture within a few hundredths of a decibel.

The convolutions are oneDNN's, by operations of torch that are not public; where they are absent or differ from the
definition on a trial, `works` says no and transforms.py takes its own layers.
"""

import functools

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codec.network.layers import Bottleneck, native_int8

OFFSET = 128  # bytes hold what enters a block less -128


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _enter_halves(t, per_step, offset, out):
    """bfloat16 as uint16 [n,C] -> out uint8 [n,C]: steps plus `offset`, rounded and clipped."""
    channels = t.shape[1]
    bits = np.empty(channels, np.uint32)
    values = bits.view(np.float32)
    shift, low, high = np.float32(offset + 0.5), np.float32(0), np.float32(255)
    for row in range(t.shape[0]):
        for c in range(channels):
            bits[c] = np.uint32(t[row, c]) << np.uint32(16)
        for c in range(channels):
            out[row, c] = np.uint8(np.int32(min(max(values[c] * per_step[c] + shift, low), high)))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _enter_floats(t, per_step, offset, out):
    """The same from float32."""
    shift, low, high = np.float32(offset + 0.5), np.float32(0), np.float32(255)
    for row in range(t.shape[0]):
        for c in range(t.shape[1]):
            out[row, c] = np.uint8(np.int32(min(max(t[row, c] * per_step[c] + shift, low), high)))


class _Layer:
    """Weights of one layer, packed for oneDNN; what enters is uint8, less `offset`."""

    def __init__(self, weight: Tensor, unit: Tensor, bias: Tensor, offset: int = 0):
        self.units, self.bias, self.offset = unit.float().contiguous(), bias.float().contiguous(), offset
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.weight = self._packed(weight.round().to(torch.int8).contiguous())

    def _packed(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def _of(self, t: Tensor) -> tuple:
        return t, 1.0, self.offset, self.weight, self.units, self.zeros


class _Product(_Layer):
    """A 1x1 convolution, as a product of matrices."""

    def _packed(self, weight: Tensor) -> Tensor:
        return torch.ops.onednn.qlinear_prepack(weight.flatten(1), None)

    def to_steps(self, t: Tensor) -> Tensor:
        """uint8 [n,in] -> uint8 [n,out], clipped at zero."""
        return torch.ops.onednn.qlinear_pointwise(*self._of(t), self.bias, 1.0, 0, torch.uint8, "relu", [], "")

    def add_to(self, sums: Tensor, t: Tensor) -> Tensor:
        """sums float [n,out] plus what uint8 [n,in] gives, in place where torch does so."""
        return torch.ops.onednn.qlinear_pointwise.binary(
            *self._of(t), sums, self.bias, 1.0, 0, sums.dtype, 1.0, 0, "sum", 1.0, "none", [], ""
        )


class _Convolution3x3(_Layer):
    geometry = [1, 1], [1, 1], [1, 1], 1  # stride, padding, dilation, groups

    def _packed(self, weight: Tensor) -> Tensor:
        return torch.ops.onednn.qconv_prepack(weight, self.units, 1.0, self.offset, *self.geometry, None)

    def to_steps(self, t: Tensor) -> Tensor:
        """uint8 [B,in,h,w] -> uint8 [B,out,h,w], clipped at zero; channels last in memory."""
        return torch.ops.onednn.qconv_pointwise(
            *self._of(t), self.bias, *self.geometry, 1.0, 0, torch.uint8, "relu", [], ""
        )


def _bytes(rows: Tensor, per_step: np.ndarray, offset: int) -> Tensor:
    """float32 or bfloat16 [n,C] -> uint8 [n,C]: steps plus `offset`, rounded and clipped."""
    steps = torch.empty(rows.shape, dtype=torch.uint8)
    if rows.dtype == torch.bfloat16:
        _enter_halves(rows.view(torch.int16).numpy().view(np.uint16), per_step, offset, steps.numpy())
    else:
        _enter_floats(rows.numpy(), per_step, offset, steps.numpy())
    return steps


class _FineProduct:
    """A fine block's first layer: a 1x1 convolution in the type of what enters, whose result becomes bytes."""

    def __init__(self, block: Bottleneck):
        layer = block.narrow.weight.detach().flatten(1), block.narrow.bias.detach()
        types = torch.float32, torch.bfloat16
        self.layers = {dtype: [part.to(dtype, copy=True) for part in layer] for dtype in types}
        self.per_step = (1.0 / block.step_narrowed.float()).numpy()

    def __call__(self, rows: Tensor) -> Tensor:
        """float [n,in] -> uint8 [n,out], clipped at zero."""
        return _bytes(F.linear(rows, *self.layers[rows.dtype]), self.per_step, 0)


class _RoundedProduct:
    """The other blocks' first layer."""

    def __init__(self, block: Bottleneck):
        self.product = _Product(*block.eight_bit_layers()[0], OFFSET)
        self.per_step = (1.0 / block.step_entering.float()).numpy()

    def __call__(self, rows: Tensor) -> Tensor:
        """float [n,in] -> uint8 [n,out], clipped at zero."""
        return self.product.to_steps(_bytes(rows, self.per_step, OFFSET))


class EightBitBlock:
    """One bottleneck on [B,h,w,C], float32 or bfloat16."""

    @torch.no_grad()
    def __init__(self, block: Bottleneck):
        _, spatial, widen = block.eight_bit_layers()
        self.narrow = _FineProduct(block) if block.fine else _RoundedProduct(block)
        self.spatial, self.widen = _Convolution3x3(*spatial), _Product(*widen)

    def __call__(self, t: Tensor) -> Tensor:
        """What the block makes of t, whose memory may be overwritten."""
        rows = t.reshape(-1, t.shape[-1])
        inner = self.narrow(rows).view(*t.shape[:3], -1)
        inner = self.spatial.to_steps(inner.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.widen.add_to(rows, inner.reshape(len(rows), -1)).view(t.shape)


@functools.cache
def works(dtype: torch.dtype) -> bool:
    """Whether this processor and this torch compute such blocks, and rightly."""
    if not native_int8("cpu") or not torch.backends.mkldnn.enabled:
        return False
    generator = torch.Generator().manual_seed(0)
    block = Bottleneck(32, 16).requires_grad_(False)
    for part in block.parameters():
        part.copy_(torch.randn(part.shape, generator=generator) * 0.2)
    t = torch.randn(1, 32, 9, 11, generator=generator)
    for name, range_ in (("entering", 2 / 127), ("narrowed", 3 / 255), ("filtered", 3 / 255)):
        step = getattr(block, f"step_{name}")
        step.copy_(torch.linspace(0.5, 1.5, len(step)) * range_)
    block.rounded = True
    given = t.to(dtype).permute(0, 2, 3, 1).contiguous()
    expected = block(given.float().permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    try:
        found = EightBitBlock(block)(given)
    except (AttributeError, RuntimeError, TypeError):
        return False
    # A value on an edge of rounding may fall to either side.
    return (found.float() - expected).abs().max().item() < (0.06 if dtype == torch.bfloat16 else 0.04)
