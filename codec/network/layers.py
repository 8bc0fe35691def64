"""The parts that NightCodec is made of: bottlenecks, transforms, the networks of means and of scale bins, block DCTs.

How they work together stands in night_codec.py; finished weights are arranged for speed in engine/.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.format import KNOTS, LEVELS
from codec.network.config import Config, frequency_order
from codec.network.exact import ExactConv2d


def coefficient_size(counts: tuple[int, int, int], n: int) -> Tensor:
    """[sum of counts]: rough standard deviation of natural pictures' n x n DCT coefficients, pixels 0..255.

    Only a preconditioner: it gives features unit size.
    """
    sizes = [
        weight * n / 8 / (1.0 + 16 / n * math.hypot(u, v)) ** 1.5
        for weight, count in zip((600.0, 120.0, 120.0), counts, strict=True)
        for u, v in frequency_order(n)[:count]
    ]
    return torch.tensor(sizes).clamp_min(2.0)


def opponent_dct(counts: tuple[int, int, int], n: int) -> Tensor:
    """[sum of counts, 3 n^2] rows: orthonormal n x n DCT-II in orthonormal opponent colours, lowest frequencies
    first, for inputs ordered (colour, y, x)."""
    k = torch.arange(n, dtype=torch.float64)
    dct = torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / (2 * n)) * math.sqrt(2 / n)
    dct[0] /= math.sqrt(2)
    colours = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
    colours /= colours.norm(dim=1, keepdim=True)
    rows = []
    for colour, count in enumerate(counts):
        for u, v in frequency_order(n)[:count]:
            rows.append((colours[colour][:, None, None] * torch.outer(dct[u], dct[v])).flatten())
    return torch.stack(rows).float()


def interpolate_gain(knots: Tensor, level: Tensor) -> Tensor:
    """Linear interpolation of knots [KNOTS, C] at levels [B] -> [B, C, 1, 1]."""
    position = level.to(knots.dtype) * ((KNOTS - 1) / LEVELS)
    low = position.floor().clamp(0, KNOTS - 2).long()
    part = (position - low)[:, None]
    return torch.lerp(knots[low], knots[low + 1], part)[:, :, None, None]


def of_blocks(x: Tensor, weight: Tensor) -> Tensor:
    """Pixels [B,3,H,W] of blocks n x n times weight [C,3 n^2], inputs in the order (colour, y, x) -> [B,C,H/n,W/n] with
    channels last in memory. A strided convolution, but four times faster than torch's on a CPU."""
    batch, colours, height, width = x.shape
    n = math.isqrt(weight.shape[1] // colours)
    rows = x.reshape(batch, colours, height // n, n, width // n, n).permute(0, 2, 4, 1, 3, 5)
    rows = rows.reshape(batch, height // n, width // n, weight.shape[1])
    return F.linear(rows, weight).permute(0, 3, 1, 2)


def to_blocks(t: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Channels [B,C,h,w] times weight [3 n^2,C] -> pixels [B,3,n h,n w]: the transpose of `of_blocks`."""
    batch, _, height, width = t.shape
    n = math.isqrt(weight.shape[0] // 3)
    rows = F.linear(t.permute(0, 2, 3, 1), weight, bias).view(batch, height, width, 3, n, n)
    return rows.permute(0, 3, 1, 4, 2, 5).reshape(batch, 3, n * height, n * width)


class Bottleneck(nn.Module):
    """Residual block [B,C,h,w] -> same: 1x1 to `inner` channels, dense 3x3, 1x1 back."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.narrow = nn.Conv2d(channels, inner, 1)
        self.spatial = nn.Conv2d(inner, inner, 3, padding=1)
        self.widen = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.widen(F.relu(self.spatial(F.relu(self.narrow(x)))))


class Analysis(nn.Module):
    """x - 0.5 [B,3,H,W] -> y [B,latent,H/16,W/16], in units of 1/255 of the pixel range."""

    def __init__(self, config: Config):
        super().__init__()
        c = config.channels
        self.enter = nn.Conv2d(192, c, 1)
        self.blocks = nn.Sequential(*(Bottleneck(c, config.encoder_inner) for _ in range(config.encoder_blocks)))
        self.leave = nn.Conv2d(4 * c, config.latent, 1)


class Synthesis(nn.Module):
    """y_hat [B,latent,h,w] -> x_hat - 0.5 without its linear part [B,3,16h,16w]."""

    def __init__(self, config: Config):
        super().__init__()
        c = config.channels
        self.enter = nn.Conv2d(192, c, 1)
        self.enter_gain = nn.Parameter(torch.zeros(KNOTS, c))
        self.middle_gain = nn.Parameter(torch.zeros(KNOTS, c))
        self.blocks = nn.ModuleList(Bottleneck(c, config.decoder_inner) for _ in range(config.decoder_blocks))
        self.leave = nn.Conv2d(c, 192, 1)


class GroupMeans(nn.Module):
    """Means of a later group's channels: from z's features and from the groups before it in the same cell."""

    def __init__(self, before: int, channels: int, config: Config):
        super().__init__()
        m = config.mean_channels
        self.context = nn.Conv2d(before, m, 1)
        self.join = nn.Conv2d(2 * m, m, 1)
        self.last = nn.Conv2d(m, channels, 1)


class GroupIndices(nn.Module):
    """Scale bins of a later group's channels, exact: from the same."""

    def __init__(self, before: int, channels: int, config: Config):
        super().__init__()
        n, joined = config.index_channels, config.index_joined
        self.context = ExactConv2d(before, n)
        self.join = ExactConv2d(2 * n, joined)
        self.last = ExactConv2d(joined, channels, gain=0.25)


class MeanNetwork(nn.Module):
    """Float means of the symbols: from z for the first pass, from z and the first pass's values for the second."""

    def __init__(self, config: Config):
        super().__init__()
        m, first = config.mean_channels, config.slices[0].stop
        self.hyper = nn.Conv2d(config.hyper, m, 3, padding=1)
        self.expand = nn.Conv2d(m, config.expanded * 16, 1)
        self.features = nn.Conv2d(config.expanded, m, 3, padding=1)
        self.first = nn.Conv2d(m, first, 1)
        self.context = nn.Conv2d(first, m, 3, padding=1)
        self.join = nn.Conv2d(2 * m, config.mean_joined, 1)
        self.second = nn.Conv2d(config.mean_joined, first, 1)
        self.linear = nn.Parameter(torch.zeros(first, 1, 3, 3))  # of the anchors around, in full precision
        parts = config.slices[1:-1]
        self.groups = nn.ModuleList(GroupMeans(part.start, part.stop - part.start, config) for part in parts)


class IndexNetwork(nn.Module):
    """Scale bins in integer arithmetic: from z, then from z and the first pass's magnitudes."""

    def __init__(self, config: Config):
        super().__init__()
        n, first = config.index_channels, config.slices[0].stop
        self.hyper = ExactConv2d(config.hyper + 1, 128, 3)
        self.expand = ExactConv2d(128, config.expanded * 16)
        self.features = ExactConv2d(config.expanded, n, 3)
        self.first = ExactConv2d(n, first, gain=0.25)
        self.magnitude = ExactConv2d(first, config.index_seen)
        self.neighbours = ExactConv2d(config.index_seen, n, 5)
        joined = config.index_joined
        self.join = ExactConv2d(2 * n, joined)
        self.second = ExactConv2d(joined, first, gain=0.25)
        parts = config.slices[1:]
        self.groups = nn.ModuleList(GroupIndices(part.start, part.stop - part.start, config) for part in parts)
        with torch.no_grad():
            for last in (self.first, self.second, *(group.last for group in self.groups)):
                last.bias.fill_(20.0 / 4)

    def layers(self) -> list[ExactConv2d]:
        return [layer for layer in self.modules() if isinstance(layer, ExactConv2d)]

    def check(self) -> None:
        """Raise ValueError where float32 sums could round."""
        for layer in self.layers():
            layer.check()

    def limit(self) -> None:
        """Keep a training's weights where `check` passes."""
        for layer in self.layers():
            layer.limit()


def native_bfloat16(device: str) -> bool:
    """Whether a device of this type ("cpu", "cuda") multiplies bfloat16 itself; where it does not, torch emulates that
    ten times more slowly than float32."""
    return device == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
