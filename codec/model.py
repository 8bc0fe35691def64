"""The codec's networks: transforms, hyperprior, context. From pixels to integer symbols and back.

Entropy coding, tiles and the file format live in entropy.py, coder.py and container.py; training in train.py. What is
here defines the networks and trains them; inference.py computes the same on finished weights, faster.

    x  [B,3,H,W] 0..1                                                       x_hat [B,3,H,W]
     |            \\                                                          ^          ^
     | DCT 8x8    linear 16x16                       linear 16x16 --> + ----------------+
     v              \\  (DCT at the start)                ^            ^ inverse DCT 8x8
    64 at 1/8        \\                                   |           64 at 1/8
     | 2 bottlenecks  +                                  |            | 2 bottlenecks
     v               /                                   |            |
    2x2, stride 2 --+--> y [B,320,H/16,W/16]             +--> DCT 8x8 of the linear picture
                         |                               |
                         |                              y_hat [B,320,H/16,W/16]
                         |                               ^
                         * gain(level)                        * inverse gain(level)
                         |                                    |
          hyper-analysis v                                    |
    z = round [B,96,H/64,W/64] --+--> float means ----+-----> (symbols + mean)
                                 |                    |        ^
                                 +--> integer index --+--> symbols = round(y gain - mean)

A lapped model (Config.lapped; from codec-5 on) filters x across the borders of 16x16 blocks before all of this and
x_hat after it, so that the linear parts' basis functions overlap (lapping.py).

Four passes, each with the symbols of those before it in view: of the 24 channels of lowest frequency the even cells of
a checkerboard, then the odd ones; then, all cells at once, the next 72 channels and the last 224, which look at the
lower frequencies of their own cell alone. (codec-1 and the golden files' model have two: all channels of the even
cells, then of the odd ones.)

Symbols are drawn as rounded; encoders quantise what has a wide enough bin by a trellis (trellis.py), where symbols
stand for values half a step apart. With contexts (contexts.py) the entropy coder corrects the bins it is given.

Level (0..1000, ten per quality step) only enters through gains after the analysis, so that one analysis serves all
rates. The scale index of each symbol comes from integer arithmetic alone (exact.py) on z and on the magnitudes of
earlier passes' symbols; means are float and never reach the entropy coder (they shift what is rounded, not how it is
coded). Ideas: hyperprior, Ballé et al. 2018; mean and context, Minnen et al. 2018; checkerboard, He et al. 2021;
channel groups, Minnen and Singh 2020; gain units, Cui et al. 2021; integer networks for entropy models, Ballé et al.
2019; linear skips are ours. Cost in use (inference.py): about 4.0 kMAC per pixel to encode, 3.2 to decode, of which
bottlenecks 1.4 and 0.8; with `leak` 0, as from codec-4 on, these are computed in 8-bit integers (eightbit.py) where the
processor multiplies them natively. The models before codec-10 have larger mean networks and narrow to 64 channels in
the decoder's bottlenecks too, those before codec-9 have larger index networks, those before codec-8 192 channels
between bottlenecks: codec-6 and codec-7 4 and 4 of these, codec-5 4 and 5, codec-4 8 and 5, codec-2 and codec-3 4 and 2
with leaky ReLUs.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec import lapping
from codec.exact import ACTIVATION_MAX, ACTIVATION_STEPS, ExactConv2d, quantise_activation, round_through

LEVELS = 1000  # highest level; quality = level / 10
KNOTS = 16  # gains are stored at this many levels and interpolated between
LAMBDA_RANGE = (0.0007, 0.26)  # weight of 255^2 MSE against bits per pixel, at level 0 and at level 1000
BINS = 64  # scale bins; bin 0 is "not coded"
SCALE_RANGE = (0.08, 128.0)  # standard deviation of bin 0 and of bin 63, in quantisation steps
Z_MAX = 31  # z is clamped to this
Z_GROUPS = 11  # z's tables: one per hundred levels
FEATURE_SCALE = 4.0  # features of unit size -> what networks add to coefficients (orthonormal, pixels 0..255)
MEAN_LIMIT = 8.0  # |mean| that the bfloat16 networks may predict, in quantisation steps; larger ones would be coarse
PRECISION = 14  # frequencies sum to 2**PRECISION
STEP = 5.1  # quantisation step times sqrt(lambda) that high-rate theory gives for an orthonormal transform
THRESHOLD_SYMBOLS = 8  # magnitudes up to this have their own rounding threshold
THRESHOLD_STRENGTH = 0.5  # share of the theoretical rate gain that rounding trades for distortion; measured best
TABLE_STRENGTH = 0.6  # the same where the gain is read off the measured tables


class Symbols(NamedTuple):
    z: Tensor  # int16 [B,96,hz,wz]
    y: Tensor  # int16 [B,latent,h,w], 0 where index is 0
    index: Tensor  # uint8 [B,latent,h,w], scale bin


class EntropyTables(NamedTuple):
    y_freq: list[np.ndarray]  # BINS arrays, uint32: symbols -R..R, then escape; sum 2**PRECISION; bin 0 unused
    z_freq: list[list[np.ndarray]]  # [Z_GROUPS][hyper channels], the same layout


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the networks; stored beside the weights.

    encoder_channels, decoder_channels: channels that a transform's bottlenecks work on; 0, as in files that do not name
    them: `channels`.
    encoder_inner, decoder_inner: channels to which its bottlenecks narrow; 0, as in files that do not name them: half.
    leak: slope below zero of the bottlenecks' ReLU; 0.1 in files that do not name it.
    groups: channels of the latent per group, lowest frequencies first, of which the first is coded in two checkerboard
    passes and each other one in one pass. Empty as in files that do not name it: one group in the order of colours,
    whose magnitudes are seen up to 15.
    lapped: whether pixels are filtered across the borders of 16x16 blocks (lapping.py); not in files that do not name
    it.
    last_means: whether the last group has means; else these are zero.
    expanded: channels of z's features as they are spread over the latent's cells; 64 in files that do not name it.
    index_seen: channels in which the index network looks at the first pass's magnitudes; 64 in such files.
    index_joined: channels of its layers before the last; 0, as in such files: 160 in the first group, 128 in others.
    mean_joined: the same of the mean network in the first group; 192 in such files.
    """

    channels: int = 64
    latent: int = 320
    hyper: int = 96
    encoder_blocks: int = 2
    decoder_blocks: int = 2
    mean_channels: int = 64
    index_channels: int = 64
    groups: tuple[int, ...] = (24, 72, 224)
    encoder_channels: int = 0
    encoder_inner: int = 64
    decoder_channels: int = 0
    decoder_inner: int = 48
    leak: float = 0.0
    lapped: bool = True
    last_means: bool = False
    expanded: int = 64
    index_seen: int = 32
    index_joined: int = 96
    mean_joined: int = 96

    def __post_init__(self):
        object.__setattr__(self, "groups", tuple(self.groups))
        if self.groups and (sum(self.groups) != self.latent or min(self.groups) < 1):
            raise ValueError(f"groups {self.groups} do not make up the latent's {self.latent} channels")

    @property
    def slices(self) -> list[slice]:
        """The groups' channels."""
        sizes = self.groups or (self.latent,)
        return [slice(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(len(sizes))]

    @property
    def valued(self) -> int:
        """How many of the first channels have means; of the others the symbols are all there is."""
        return self.latent if self.last_means or len(self.slices) == 1 else self.slices[-1].start

    @property
    def order(self) -> list[int]:
        """Which row of opponent_dct(channel_counts(latent), 16) each channel starts as: with groups by frequency, that
        of colours counting 1.6 times and one on top, so that the groups hold what carries most bits first."""
        counts = channel_counts(self.latent)
        if not self.groups:
            return list(range(self.latent))
        radii = [
            (1.6 if colour else 1.0) * math.hypot(u, v) + (1.0 if colour else 0.0)
            for colour, count in enumerate(counts)
            for u, v in frequency_order(16)[:count]
        ]
        return sorted(range(self.latent), key=lambda row: (radii[row], row))

    @classmethod
    def of_json(cls, text: str) -> "Config":
        """What a model file says of its sizes. Raises TypeError or ValueError where that makes no sense."""
        of_old = {"groups": (), "leak": 0.1, "lapped": False, "last_means": True}
        names = ("encoder_channels", "encoder_inner", "decoder_channels", "decoder_inner", "index_joined")
        sizes = dict.fromkeys(names, 0) | {"expanded": 64, "index_seen": 64, "mean_joined": 192}
        return cls(**{**of_old, **sizes, **json.loads(text)})


def bin_scales() -> np.ndarray:
    """Standard deviation of each scale bin, in quantisation steps: BINS values, geometric."""
    return np.geomspace(*SCALE_RANGE, BINS)


def lambda_of(level: Tensor | float) -> Tensor | float:
    """Rate-distortion weight at a level: loss = bpp + lambda * 255^2 MSE. Geometric between LAMBDA_RANGE's ends."""
    low, high = LAMBDA_RANGE
    return low * (high / low) ** (level / LEVELS)


def rounding_thresholds(strength: float = THRESHOLD_STRENGTH, y_freq: list[np.ndarray] | None = None) -> Tensor:
    """[BINS, THRESHOLD_SYMBOLS + 1]: a residual of magnitude v that rounds to k becomes k - 1 if v < [bin, k].

    Rate-distortion optimised rounding: k - 1 costs fewer bits under the bin's Gaussian, or in its table where these are
    given (EntropyTables.y_freq); it is taken where these outweigh lambda times the added squared error, which for steps
    of STEP / sqrt(lambda) and an orthonormal transform of three channels is STEP^2 / 3 per squared quantisation step.
    """
    k = torch.arange(0, THRESHOLD_SYMBOLS + 1, dtype=torch.float64)
    bits = -torch.log2(gaussian_mass(k[None], torch.from_numpy(bin_scales())[:, None]))
    for number, table in enumerate(y_freq or ()):
        middle = (len(table) - 2) // 2
        coded = table[middle : min(2 * middle + 1, middle + THRESHOLD_SYMBOLS + 1)].astype(np.float64)
        if number > 0:
            bits[number, : len(coded)] = PRECISION - torch.log2(torch.from_numpy(coded))
    saved = torch.zeros_like(bits)
    saved[:, 1:] = (bits[:, 1:] - bits[:, :-1]).clamp_min(0) * (strength / (2 * STEP**2 / 3))
    return torch.minimum(k - 0.5 + saved, k + 0.5).float()


def frequency_order(n: int) -> list[tuple[int, int]]:
    """All (u, v) of an n x n DCT, lowest radius first."""
    return sorted(((u, v) for u in range(n) for v in range(n)), key=lambda p: (p[0] ** 2 + p[1] ** 2, p))


def channel_counts(latent: int) -> tuple[int, int, int]:
    """Frequencies kept of the luminance-like axis and of the two others."""
    luminance = min(256, latent * 3 // 5)
    rest = (latent - luminance) // 2
    return luminance, rest, latent - luminance - rest


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


def at_level(knots: Tensor, level: Tensor) -> Tensor:
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
    """Residual block [B,C,h,w] -> same: 1x1 to `inner` channels (0: half as many), dense 3x3, 1x1 back.

    With `leak` 0 it has quantisation steps too, per channel, for what enters it (-128..127 steps) and for what its two
    ReLUs give (0..255 steps); zero until `measured`. `rounded` says whether it computes with 8-bit integers, that is to
    say as eightbit.py does: steps and weights rounded, sums exact. Gradients pass through the rounding; of the steps
    they are those of Esser et al. 2020. A `fine` one takes what enters as it is, and its first layer's weights too.
    """

    def __init__(self, channels: int, inner: int = 0, leak: float = 0.0, fine: bool = False):
        super().__init__()
        inner, self.leak, self.rounded, self.fine = inner or channels // 2, leak, False, fine
        self.narrow = nn.Conv2d(channels, inner, 1)
        self.spatial = nn.Conv2d(inner, inner, 3, padding=1)
        self.widen = nn.Conv2d(inner, channels, 1)
        self.largest: list[Tensor] | None = None  # while measuring: magnitudes seen, per channel
        self.leaks = bool(leak)
        if not leak:
            for name, count in (("entering", channels), ("narrowed", inner), ("filtered", inner))[int(fine) :]:
                self.register_buffer(f"step_{name}", torch.zeros(count))

    def forward(self, x: Tensor) -> Tensor:
        if self.rounded:
            return x + self._in_eight_bits(x).to(x.dtype)
        narrowed = self._activation(self.narrow(x))
        filtered = self._activation(self.spatial(narrowed))
        if self.largest is not None:
            parts = [part.detach().abs().amax((0, 2, 3)).float() for part in (x, narrowed, filtered)]
            self.largest = [torch.maximum(*pair) for pair in zip(self.largest or parts, parts, strict=True)]
        return x + self.widen(filtered)

    def _activation(self, t: Tensor) -> Tensor:
        return F.leaky_relu(t, self.leak) if self.leak else F.relu(t)

    @property
    def measured(self) -> bool:
        return bool(self.steps) and not self.leak and all(bool((step > 0).all()) for step in self.steps)

    @property
    def steps(self) -> list[Tensor]:
        """Of what enters (but for a fine one), of what `narrow` gives and of what `spatial` gives; none where it
        leaks."""
        if self.leaks:
            return []
        return ([] if self.fine else [self.step_entering]) + [self.step_narrowed, self.step_filtered]

    @torch.no_grad()
    def set_steps(self) -> None:
        """Steps from `largest`: between one for all channels and one for each, which rounds least together with the
        weights that they go into (Xiao et al. 2023); a fifth of what is largest is clipped."""
        first = int(self.fine)
        for step, largest, most in zip(self.steps, self.largest[first:], (127, 255, 255)[first:], strict=True):
            largest = largest.clamp_min(1e-3 * largest.max().item() + 1e-6)
            step.copy_(((0.8 / most) * (largest * largest.max()).sqrt()).clamp_min(1e-5).half())
        self.largest = None

    def eight_bit_layers(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(weights -127..127 [out,in,k,k], what one stands for [out], bias [out]) of the three convolutions, on steps
        of what enters and giving steps, but for the last, which gives what is added. The first of a fine one has its
        weights as they are."""
        layers = (self.narrow, self.spatial, self.widen)
        steps = (*self.steps, torch.ones_like(self.widen.bias))
        found = []
        if self.fine:
            found.append((self.narrow.weight.float(), 1 / self.step_narrowed, self.narrow.bias / self.step_narrowed))
        for layer, given, wanted in zip(layers[len(found) :], steps[:-1], steps[1:], strict=True):
            weight = layer.weight.float() * given[:, None, None]
            unit = (weight.detach().abs().amax((1, 2, 3)) / 127).clamp_min(1e-12)
            found.append((round_through(weight / unit[:, None, None, None]), unit / wanted, layer.bias / wanted))
        return found

    def _in_eight_bits(self, x: Tensor) -> Tensor:
        (first, *of_first), (middle, *of_middle), (last, *of_last) = self.eight_bit_layers()

        def convolved(t: Tensor, weight: Tensor, unit: Tensor, bias: Tensor, padding: int = 0) -> Tensor:
            return F.conv2d(t, weight, padding=padding).float() * unit[:, None, None] + bias[:, None, None]

        # bfloat16 would hold the integers, but round their sums.
        with torch.autocast(x.device.type, enabled=False):
            t = x.float()
            if not self.fine:
                t = round_through((t / self.step_entering[:, None, None]).clamp(-128, 127))
            t = round_through(convolved(t, first, *of_first).clamp(0, 255))
            t = round_through(convolved(t, middle, *of_middle, 1).clamp(0, 255))
            return convolved(t, last, *of_last)


class Analysis(nn.Module):
    """x - 0.5 [B,3,H,W] -> y [B,latent,H/16,W/16], in units of 1/255 of the pixel range."""

    def __init__(self, config: Config):
        super().__init__()
        c = config.encoder_channels or config.channels
        self.enter = nn.Conv2d(192, c, 1)
        blocks = (Bottleneck(c, config.encoder_inner, config.leak) for _ in range(config.encoder_blocks))
        self.blocks = nn.Sequential(*blocks)
        self.leave = nn.Conv2d(4 * c, config.latent, 1)


class Synthesis(nn.Module):
    """y_hat [B,latent,h,w] -> x_hat - 0.5 without its linear part [B,3,16h,16w]."""

    def __init__(self, config: Config):
        super().__init__()
        c = config.decoder_channels or config.channels
        self.enter = nn.Conv2d(192, c, 1)
        self.enter_gain = nn.Parameter(torch.zeros(KNOTS, c))
        self.middle_gain = nn.Parameter(torch.zeros(KNOTS, c))
        # What enters the first spans too many magnitudes for 255 steps: half of what 8 bits cost was there.
        self.blocks = nn.ModuleList(
            Bottleneck(c, config.decoder_inner, config.leak, fine=i == 0) for i in range(config.decoder_blocks)
        )
        self.leave = nn.Conv2d(c, 192, 1)


@functools.cache
def _loudness_table(device: torch.device) -> Tensor:
    table = np.rint(24.0 * np.log2(1.0 + np.arange(1024))) / ACTIVATION_STEPS
    return torch.from_numpy(table.astype(np.float32)).to(device)


def loudness(magnitudes: Tensor) -> Tensor:
    """|symbols|, integers [..] -> activations of the exact network: round(24 log2(1 + min(|y|, 1023))) / 16."""
    return _loudness_table(magnitudes.device)[magnitudes.clamp(max=1023).long()]


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
        n, joined = config.index_channels, config.index_joined or 128
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
        parts = config.slices[1:] if config.last_means else config.slices[1:-1]
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
        joined = config.index_joined or 160
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


def native_int8(device: str) -> bool:
    """Whether a device of this type multiplies 8-bit integers itself, in the operations that eightbit.py uses."""
    supported = getattr(torch.cpu, "_is_vnni_supported", None)
    return device == "cpu" and supported is not None and bool(supported())


class NightCodec(nn.Module):
    """All networks of one model; see the module's drawing. `level` is an int, or in training a tensor [B]."""

    latent_halo = 8  # latent cells around a tile that means and indices depend on

    def __init__(self, config: Config | None = None):
        super().__init__()
        self.config = config = config or Config()
        # A bottleneck looks 8 pixels around, half a cell.
        lap = int(config.lapped)  # and so does its filter
        self.synthesis_halo = -(-(config.decoder_blocks + lap) // 2)  # latent cells around a tile that its pixels need
        self.analysis_halo = 16 * -(-(config.encoder_blocks + lap) // 2)  # pixels around a tile that its latent needs
        dct = opponent_dct(channel_counts(config.latent), 16)[config.order]
        self.linear_analysis = nn.Parameter(dct.clone())  # [latent, 768]
        self.linear_synthesis = nn.Parameter(dct.t().clone())  # [768, latent]
        if config.lapped:
            self.lap_analysis, self.lap_synthesis = map(nn.Parameter, lapping.initial())  # [8,8] each
        self.analysis_network = Analysis(config)
        self.synthesis_network = Synthesis(config)
        self.hyper_enter = nn.Conv2d(config.latent, 128, 1)
        self.hyper_gain = nn.Parameter(torch.zeros(KNOTS, 128))
        self.hyper_middle = nn.Conv2d(512, 160, 1)
        self.hyper_spatial = nn.Conv2d(640, 160, 1)
        self.hyper_leave = nn.Conv2d(160, config.hyper, 3, padding=1)
        self.means = MeanNetwork(config)
        self.indices = IndexNetwork(config)
        steps = [STEP / math.sqrt(lambda_of(LEVELS * k / (KNOTS - 1))) for k in range(KNOTS)]
        gains = -torch.log(torch.tensor(steps))[:, None].repeat(1, config.latent)
        self.log_gain = nn.Parameter(gains.clone())
        self.log_inverse_gain = nn.Parameter(-gains)
        self.z_location = nn.Parameter(torch.zeros(Z_GROUPS, config.hyper))
        self.z_log_scale = nn.Parameter(torch.zeros(Z_GROUPS, config.hyper))
        small = (64, 64, 64)
        self.register_buffer("dct", opponent_dct(small, 8)[:, :, None, None], persistent=False)
        self.register_buffer("dct_size", coefficient_size(small, 8)[:, None, None], persistent=False)
        self.initialise()
        self.register_buffer("thresholds", rounding_thresholds(), persistent=False)
        self.frequencies: EntropyTables | None = None
        self.precision = torch.float32
        self.contexts: tuple | None = None  # what contexts.of_arrays found in the file
        self.identity: str | None = None  # model id, once it is a file
        self.metadata: dict[str, str] = {}

    @torch.no_grad()
    def initialise(self) -> None:
        """He et al. 2015 for every float convolution; zero where a network joins its linear skip."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=0.1)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Bottleneck):
                module.widen.weight.mul_(0.5)
        means = self.means
        for last in (self.analysis_network.leave, self.synthesis_network.leave, means.first, means.second):
            last.weight.zero_()
        for group in means.groups:
            group.last.weight.zero_()
        luminance, rest, _ = channel_counts(self.config.latent)
        for constant in (0, luminance, luminance + rest):  # constant parts follow their neighbours
            channel = self.config.order.index(constant)
            if channel < len(means.linear):
                means.linear[channel, 0, [0, 1, 1, 2], [1, 0, 2, 1]] = 0.25

    # -- small helpers

    def set_precision(self, precision: str = "auto") -> "NightCodec":
        """float32 | bfloat16 | int8 | auto for the float networks.

        int8: the transforms' bottlenecks in 8-bit integers, the rest as with auto, which takes bfloat16 where the
        device multiplies it natively, and int8 where it does that natively and the model is made for it
        (`has_eight_bits`; of another model int8 says the same as auto). Raises KeyError for another name.
        """
        kind = self.log_gain.device.type
        rounded = self.has_eight_bits and (precision == "int8" or (precision == "auto" and native_int8(kind)))
        if precision in ("auto", "int8"):
            precision = "bfloat16" if native_bfloat16(kind) else "float32"
        self.precision = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
        self.round_blocks(rounded)
        return self

    @property
    def blocks(self) -> list[Bottleneck]:
        return [*self.analysis_network.blocks, *self.synthesis_network.blocks]

    @property
    def has_eight_bits(self) -> bool:
        """Whether all bottlenecks know their quantisation steps."""
        return all(block.measured for block in self.blocks)

    def round_blocks(self, rounded: bool, blocks: list[Bottleneck] | None = None) -> None:
        """Whether bottlenecks (all, or those given) compute in 8-bit integers."""
        for block in self.blocks if blocks is None else blocks:
            block.rounded = rounded

    @property
    def eight_bit(self) -> bool:
        return bool(self.blocks) and self.blocks[0].rounded

    @property
    def precision_name(self) -> str:
        """float32 | bfloat16, and whether the bottlenecks are in 8 bits."""
        return str(self.precision).removeprefix("torch.") + (" and int8" if self.eight_bit else "")

    def _autocast(self):
        device = self.log_gain.device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.precision == torch.bfloat16)

    def _levels(self, level: int | Tensor, batch: int) -> Tensor:
        if isinstance(level, Tensor):
            return level
        return torch.full((batch,), level, device=self.log_gain.device)

    @staticmethod
    def anchors(height: int, width: int, device=None) -> Tensor:
        """bool [h, w]: True where (row + column) is even, the first pass."""
        rows = torch.arange(height, device=device)[:, None]
        return (rows + torch.arange(width, device=device)[None]) % 2 == 0

    # -- transforms

    def coefficients(self, x: Tensor) -> Tensor:
        """Pixels -0.5..0.5 [B,3,H,W] -> 8x8 DCT coefficients of unit size [B,192,H/8,W/8], in full precision.

        The networks work between this fixed transform and its inverse: pixels are so correlated that a network on
        unshuffled ones learns several times more slowly.
        """
        return of_blocks(x, self.dct.flatten(1) * (255.0 / self.dct_size.flatten(1)))

    def analysis(self, x: Tensor) -> Tensor:
        """x float32 [B,3,H,W] in 0..1, H and W multiples of 16 -> y float32 [B,latent,H/16,W/16]."""
        x = x - 0.5
        if self.config.lapped:
            x = lapping.lapped(x, self.lap_analysis)
        network = self.analysis_network
        linear = of_blocks(x, self.linear_analysis * 255.0)
        coefficients = self.coefficients(x)
        with self._autocast():
            t = network.blocks(network.enter(coefficients))
            t = network.leave(F.pixel_unshuffle(t, 2))
        return linear + FEATURE_SCALE * t.float()

    def synthesis(self, y_hat: Tensor, level: int | Tensor) -> Tensor:
        """y_hat float32 [B,latent,h,w] -> x_hat float32 [B,3,16h,16w], not clamped."""
        levels = self._levels(level, y_hat.shape[0])
        network = self.synthesis_network
        linear = to_blocks(y_hat, self.linear_synthesis / 255.0)
        coefficients = self.coefficients(linear)
        with self._autocast():
            dtype = self.precision
            t = network.enter(coefficients) * torch.exp(at_level(network.enter_gain, levels)).to(dtype)
            middle = len(network.blocks) // 2
            for i, block in enumerate(network.blocks):
                if i == middle:
                    t = t * torch.exp(at_level(network.middle_gain, levels)).to(dtype)
                t = block(t)
            back = (FEATURE_SCALE / 255.0) * self.dct.flatten(1).t()  # one linear layer with leave
            weight = back @ network.leave.weight.flatten(1)
            t = to_blocks(t, weight, back @ network.leave.bias)
        x = linear + t.float()
        if self.config.lapped:
            x = lapping.lapped(x, self.lap_synthesis)
        return x + 0.5

    def scale(self, y: Tensor, level: int | Tensor) -> Tensor:
        """y in units of the level's quantisation step."""
        return y * torch.exp(at_level(self.log_gain, self._levels(level, y.shape[0])))

    def unscale(self, y_scaled: Tensor, level: int | Tensor) -> Tensor:
        """Back from quantisation steps to y_hat."""
        return y_scaled * torch.exp(at_level(self.log_inverse_gain, self._levels(level, y_scaled.shape[0])))

    # -- hyperprior, means, indices

    def hyper_analysis(self, y_scaled: Tensor, level: int | Tensor) -> Tensor:
        """[B,latent,h,w] -> unrounded z [B,hyper,ceil(h/4),ceil(w/4)]."""
        levels = self._levels(level, y_scaled.shape[0])
        height, width = y_scaled.shape[2:]
        t = torch.asinh(y_scaled)
        t = F.pad(t, (0, -width % 4, 0, -height % 4), mode="replicate")
        with self._autocast():
            t = F.leaky_relu(self.hyper_enter(t), 0.1) * torch.exp(at_level(self.hyper_gain, levels))
            t = F.leaky_relu(self.hyper_middle(F.pixel_unshuffle(t, 2)), 0.1)
            t = F.leaky_relu(self.hyper_spatial(F.pixel_unshuffle(t, 2)), 0.1)
            return self.hyper_leave(t).float()

    def mean_features(self, z: Tensor, height: int, width: int) -> Tensor:
        """z [B,hyper,hz,wz] -> features of the mean networks [B,m,h,w]."""
        means = self.means
        with self._autocast():
            t = F.leaky_relu(means.hyper(z.float()), 0.1)
            t = F.leaky_relu(F.pixel_shuffle(means.expand(t), 4)[:, :, :height, :width], 0.1)
            return F.leaky_relu(means.features(t), 0.1)

    def mean_first(self, features: Tensor) -> Tensor:
        with self._autocast():
            t = self.means.first(features).float()
        return MEAN_LIMIT * torch.tanh(t / MEAN_LIMIT)

    def mean_second(self, features: Tensor, y_anchors: Tensor) -> Tensor:
        """y_anchors: symbols + mean of the first pass, 0 elsewhere, in quantisation steps [B,latent,h,w]."""
        means = self.means
        with self._autocast():
            t = F.leaky_relu(means.context(torch.asinh(y_anchors)), 0.1)
            t = F.leaky_relu(means.join(torch.cat((features, t), 1)), 0.1)
            t = means.second(t).float()
        linear = F.conv2d(y_anchors, means.linear, padding=1, groups=y_anchors.shape[1])
        return MEAN_LIMIT * torch.tanh(t / MEAN_LIMIT) + linear

    def index_features(self, z: Tensor, level: int | Tensor, height: int, width: int) -> Tensor:
        """Exact: z integer-valued [B,hyper,hz,wz] -> [B,n,h,w], multiples of 1/16."""
        net = self.indices
        levels = self._levels(level, z.shape[0])
        plane = torch.floor(levels.float() * ACTIVATION_MAX / LEVELS) / ACTIVATION_STEPS
        plane = plane[:, None, None, None].expand(-1, 1, *z.shape[2:])
        with torch.autocast(z.device.type, enabled=False):
            t = torch.cat((z.float() * 0.5, plane), 1)
            t = quantise_activation(net.hyper(t))
            t = quantise_activation(net.expand(t))
            t = F.pixel_shuffle(t, 4)[:, :, :height, :width]
            return quantise_activation(net.features(t))

    @staticmethod
    def _bins(t: Tensor) -> Tensor:
        """Output of a last exact layer -> bin as float, integer-valued, gradient passed through."""
        t = torch.clamp(t * 4.0, 0.0, BINS - 1.0)
        rounded = torch.floor(t.detach() + 0.5)
        return t + (rounded - t).detach() if t.requires_grad else rounded

    def bins_first(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return self._bins(self.indices.first(features))

    def seen(self, symbols: Tensor) -> Tensor:
        """|symbols| as the exact network takes them: activations."""
        if self.config.groups:
            return loudness(symbols.abs())
        return torch.clamp(symbols.abs().float(), max=ACTIVATION_MAX // ACTIVATION_STEPS)

    def bins_second(self, features: Tensor, anchor_symbols: Tensor) -> Tensor:
        """anchor_symbols: integer-valued [B,first group,h,w], 0 off the anchors."""
        net = self.indices
        with torch.autocast(features.device.type, enabled=False):
            t = quantise_activation(net.magnitude(self.seen(anchor_symbols)))
            t = quantise_activation(net.neighbours(t))
            t = quantise_activation(net.join(torch.cat((features, t), 1)))
            return self._bins(net.second(t))

    def mean_group(self, number: int, features: Tensor, values: Tensor) -> Tensor:
        """values: symbols + means of all channels before group `number` (1..), in quantisation steps."""
        if number > len(self.means.groups):
            part = self.config.slices[number]
            return values.new_zeros(()).expand(len(values), part.stop - part.start, *values.shape[2:])
        group = self.means.groups[number - 1]
        with self._autocast():
            t = F.leaky_relu(group.context(torch.asinh(values)), 0.1)
            t = F.leaky_relu(group.join(torch.cat((features, t), 1)), 0.1)
            t = group.last(t).float()
        return MEAN_LIMIT * torch.tanh(t / MEAN_LIMIT)

    def bins_group(self, number: int, features: Tensor, symbols: Tensor) -> Tensor:
        """symbols: integer-valued, of all channels before group `number` (1..)."""
        group = self.indices.groups[number - 1]
        with torch.autocast(features.device.type, enabled=False):
            t = quantise_activation(group.context(self.seen(symbols)))
            t = quantise_activation(group.join(torch.cat((features, t), 1)))
            return self._bins(group.last(t))

    # -- what the entropy coder uses

    def passes(self, z: Tensor, level: int | Tensor, height: int, width: int, settle) -> tuple[Tensor, Tensor, Tensor]:
        """All passes over a latent [B,latent,height,width] -> (symbols, means, bins).

        settle(channels, mean, index) gives the symbols of a slice of channels, of which the first group's second pass
        sees the anchors alone.
        """
        anchors = self.anchors(height, width, z.device)
        index_features = self.index_features(z, level, height, width)
        mean_features = self.mean_features(z, height, width)
        part, *later = self.config.slices
        mean, index = self.mean_first(mean_features), self.bins_first(index_features)
        first = settle(part, mean, index) * anchors
        mean = torch.where(anchors, mean, self.mean_second(mean_features, (first + mean) * anchors))
        index = torch.where(anchors, index, self.bins_second(index_features, first.detach()))
        done = [(settle(part, mean, index), mean, index)]
        symbols, means, indices = done[0]
        for number, part in enumerate(later, 1):
            mean = self.mean_group(number, mean_features, symbols + means)
            index = self.bins_group(number, index_features, symbols.detach())
            done.append((settle(part, mean, index), mean, index))
            symbols, means, indices = (torch.cat(parts, 1) for parts in zip(*done, strict=True))
        return symbols, means, indices

    def round(self, residual: Tensor, index: Tensor) -> Tensor:
        """Integer-valued symbols for residuals [..] in bins `index` [..]; see rounding_thresholds."""
        magnitude = residual.abs()
        rounded = torch.round(magnitude).clamp(max=2.0**15 - 1)
        entry = index.long() * self.thresholds.shape[1] + rounded.clamp(max=THRESHOLD_SYMBOLS).long()
        lower = (magnitude < self.thresholds.flatten()[entry]) & (rounded <= THRESHOLD_SYMBOLS)
        return torch.copysign(rounded - lower.float(), residual)

    @torch.no_grad()
    def quantise(self, y: Tensor, level: int) -> Symbols:
        """y float32 [B,latent,h,w] (analysis) -> all symbols and their bins."""
        scaled = self.scale(y, level)
        z = torch.round(self.hyper_analysis(scaled, level)).clamp(-Z_MAX, Z_MAX)

        def settle(channels: slice, mean: Tensor, index: Tensor) -> Tensor:
            return self.round(scaled[:, channels] - mean, index) * (index > 0)

        symbols, _, index = self.passes(z, level, *y.shape[2:], settle)
        return Symbols(z.to(torch.int16), symbols.to(torch.int16), index.to(torch.uint8))

    @torch.no_grad()
    def bins_of(self, z: Tensor, level: int, y_symbols: Tensor) -> Tensor:
        """uint8 [B,latent,h,w]: the bins that a decoder finds for symbols as it reads them. Exact."""
        symbols = y_symbols.float()
        return self.passes(z, level, *y_symbols.shape[2:], lambda channels, *_: symbols[:, channels])[2].to(torch.uint8)

    @torch.no_grad()
    def reconstruct_latent(self, z: Tensor, y_symbols: Tensor, level: int) -> Tensor:
        """Integer symbols -> y_hat float32 [B,latent,h,w]."""
        symbols = y_symbols.float()
        _, mean, _ = self.passes(z, level, *y_symbols.shape[2:], lambda channels, *_: symbols[:, channels])
        return self.unscale(symbols + mean, level)

    def tables(self) -> EntropyTables:
        """Integer frequencies: those measured at export, or the parametric ones of an untrained model."""
        if self.frequencies is None:
            self.frequencies = parametric_tables(self)
        return self.frequencies

    # -- training

    def training_pass(
        self, x: Tensor, level: Tensor, thresholds: bool = False, real: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [B,3,H,W], level [B] -> (x_hat, bits of y per sample [B], bits of z per sample [B]).

        Uniform noise stands for rounding in the rate, straight-through rounding in the distortion; with `thresholds`
        the latter rounds as `quantise` does. With `real` values and bits are those of the symbols that are coded, a
        trellis's where there is one: they teach the decoder and the bins, and what noise would cost the encoder.
        """
        y = self.analysis(x)
        height, width = y.shape[2:]
        scaled = self.scale(y, level)
        z = self.hyper_analysis(scaled, level)
        z_noisy = z + torch.empty_like(z).uniform_(-0.5, 0.5)
        z_hat = round_through(z.clamp(-Z_MAX, Z_MAX))
        group = (level.float() / 100.0).floor().clamp(0, Z_GROUPS - 1).long()
        location = self.z_location[group][:, :, None, None]
        z_scale = torch.exp(self.z_log_scale[group].clamp(-4, 5))[:, :, None, None]
        upper = torch.sigmoid((z_noisy + 0.5 - location) / z_scale)
        lower = torch.sigmoid((z_noisy - 0.5 - location) / z_scale)
        z_bits = -torch.log2((upper - lower).clamp_min(1e-7)).sum((1, 2, 3))

        def settle(channels: slice, mean: Tensor, index: Tensor) -> Tensor:
            residual = scaled[:, channels] - mean
            if not thresholds:
                return round_through(residual)
            return residual + (self.round(residual.detach(), index.detach()) - residual).detach()

        if real:
            values, mean, index, y_bits = self._coded(scaled, z_hat, level)
        else:
            values, mean, index = self.passes(z_hat, level, height, width, settle)
        sigma = scale_of(index)
        noisy_bits = _noisy_bits(scaled - mean, sigma.detach() if real else sigma)
        y_bits = y_bits + noisy_bits - noisy_bits.detach() if real else noisy_bits
        return self.synthesis(self.unscale(values + mean, level), level), y_bits, z_bits

    def entropy_pass(self, y: Tensor, level: Tensor) -> Tensor:
        """y [B,latent,h,w] of an encoder that rests, level [B] -> bits of its symbols [B], as in training_pass with
        `real`: they teach the networks of means and bins."""
        with torch.no_grad():
            scaled = self.scale(y, level)
            z = torch.round(self.hyper_analysis(scaled, level)).clamp(-Z_MAX, Z_MAX)
        _, mean, index, y_bits = self._coded(scaled, z, level)
        noisy_bits = _noisy_bits(scaled - mean, scale_of(index).detach())
        return y_bits + noisy_bits - noisy_bits.detach()

    def _coded(self, scaled: Tensor, z: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Values less means, as they are coded, with the gradient of `scaled` and of the means; means; bins; bits [B],
        with the gradient of the bins alone."""
        from codec import trellis

        height, width = scaled.shape[2:]
        with_trellis = trellis.applies(self.config)
        quantiser = trellis.Quantiser(self, scaled.detach()) if with_trellis else contextlib.nullcontext()

        def settle(channels: slice, mean: Tensor, index: Tensor) -> Tensor:
            residual = scaled[:, channels] - mean
            if with_trellis:
                values = quantiser(channels, mean.detach(), index.detach())
            else:
                values = self.round(residual.detach(), index.detach()) * (index > 0)
            return residual + (values - residual).detach()

        with quantiser:
            values, mean, index = self.passes(z, level, height, width, settle)
        sigma = scale_of(index)
        if with_trellis:
            mass = trellis.cell_mass(quantiser.symbols, quantiser.tables, sigma)
        else:
            mass = gaussian_mass(values.detach(), sigma)
        # The unforced residual keeps a cost on bin 0 for what it suppresses.
        unforced = gaussian_mass(self.round((scaled - mean).detach(), index.detach().clamp_min(1.0)), sigma)
        return values, mean, index, -torch.log2(torch.where(index > 0, mass, unforced)).sum((1, 2, 3))

    def finishing_parameters(self) -> list[nn.Parameter]:
        """What finishing_pass trains: all that follows the symbols and is not a mean."""
        networks = (self.synthesis_network, self.indices)
        lap = [self.lap_synthesis] if self.config.lapped else []
        return [self.linear_synthesis, self.log_inverse_gain, *lap, *(p for n in networks for p in n.parameters())]

    def decoder_steps(self) -> list[Tensor]:
        """The decoder's quantisation steps, which a finishing pass in 8 bits trains too."""
        return [step for block in self.synthesis_network.blocks for step in block.steps]

    def finishing_pass(self, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """As training_pass with everything before the symbols frozen and the symbols real -> (x_hat, bits of y).

        The decoder and the scale bins see what they will see in use, rounding thresholds included.
        """
        with torch.no_grad():
            y = self.analysis(x)
            scaled = self.scale(y, level)
            z = torch.round(self.hyper_analysis(scaled, level)).clamp(-Z_MAX, Z_MAX)

        values, mean, _, y_bits = self._coded(scaled, z, level)
        return self.synthesis(self.unscale(values + mean, level), level), y_bits


def scale_of(index: Tensor) -> Tensor:
    """Standard deviation of (possibly fractional) scale bins, in quantisation steps."""
    low, high = SCALE_RANGE
    return low * torch.exp(index * (math.log(high / low) / (BINS - 1)))


def gaussian_mass(x: Tensor, sigma: Tensor) -> Tensor:
    """Probability of [x - 1/2, x + 1/2] under a centred Gaussian, never below 1e-7."""
    x = x.abs()
    upper = torch.erfc((x - 0.5) / (sigma * math.sqrt(2)))
    lower = torch.erfc((x + 0.5) / (sigma * math.sqrt(2)))
    return (0.5 * (upper - lower)).clamp_min(1e-7)


def _noisy_bits(residual: Tensor, sigma: Tensor) -> Tensor:
    """Bits [B] that residuals [B,..] would cost with uniform noise in rounding's place."""
    noisy = residual + torch.empty_like(residual).uniform_(-0.5, 0.5)
    return -torch.log2(gaussian_mass(noisy, sigma)).sum((1, 2, 3))


# -- entropy tables


def integer_frequencies(probability: np.ndarray) -> np.ndarray:
    """Probabilities [n] (any positive sum) -> uint32 [n], each at least 1, sum exactly 2**PRECISION."""
    total = 1 << PRECISION
    p = np.maximum(np.asarray(probability, np.float64), 0)
    p /= p.sum()
    low, high = 0.0, float(total)  # what the probabilities are multiplied by, so that with the ones the sum fits
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(1, np.rint(p * middle)).sum() <= total else (low, middle)
    freq = np.maximum(1, np.rint(p * low)).astype(np.int64)
    freq[np.argsort(-p, kind="stable")[: total - int(freq.sum())]] += 1  # what rounding left, fewer than there are
    return freq.astype(np.uint32)


def tally(counts: list, numbers: np.ndarray, values: np.ndarray) -> None:
    """Adds to `counts`, by table, how often each of its entries occurs: values coded with the tables `numbers`, of one
    shape; table 0 is "not coded". counts[n]: float [2R + 2], symbols -R..R, then escape."""
    numbers, values = numbers.ravel(), values.ravel().astype(np.int64)
    for number in np.unique(numbers[numbers > 0]):
        chosen, radius = values[numbers == number], (len(counts[number]) - 2) // 2
        place = np.where(np.abs(chosen) <= radius, chosen + radius, 2 * radius + 1)
        counts[number] += np.bincount(place, minlength=len(counts[number]))


def unsigned(count: np.ndarray) -> np.ndarray:
    """Such a count where a sign is as likely as the other."""
    return np.append((count[:-1] + count[-2::-1]) / 2, count[-1])


def y_radius(scale: float) -> int:
    """Symbols coded without escape in a bin of that scale: -radius..radius."""
    return int(min(255, math.ceil(4.0 * scale) + 2))


def parametric_tables(model: NightCodec) -> EntropyTables:
    """Tables of the distributions that training assumes: Gaussian bins, logistic z."""
    y_freq = []
    for scale in bin_scales():
        radius = y_radius(scale)
        k = torch.arange(-radius, radius + 1, dtype=torch.float64)
        mass = gaussian_mass(k, torch.tensor(scale, dtype=torch.float64)).numpy()
        y_freq.append(integer_frequencies(np.append(mass, 1e-5)))
    k = np.arange(-Z_MAX, Z_MAX + 1)
    location = model.z_location.detach().double().cpu().numpy()
    scale = np.exp(model.z_log_scale.detach().double().cpu().numpy().clip(-4, 5))
    z_freq = []
    for group in range(Z_GROUPS):
        row = []
        for channel in range(model.config.hyper):
            edges = np.append(k - 0.5, Z_MAX + 0.5)
            cdf = 1 / (1 + np.exp(-np.clip((edges - location[group, channel]) / scale[group, channel], -60, 60)))
            row.append(integer_frequencies(np.append(np.diff(cdf), 1e-9)))
        z_freq.append(row)
    return EntropyTables(y_freq, z_freq)


# -- files: safetensors (8 bytes of header length, JSON, tensors), read and written without another package

_DTYPES = {
    "F16": np.float16, "F32": np.float32, "I8": np.int8, "I16": np.int16, "I32": np.int32, "U16": np.uint16
}  # fmt: skip


def _exact_names(model: NightCodec) -> dict[str, int]:
    """Parameters of the exact network -> the integer each unit stands for."""
    from codec.exact import WEIGHT_STEPS

    return {
        f"indices.{name}": WEIGHT_STEPS if name.endswith("weight") else WEIGHT_STEPS * ACTIVATION_STEPS
        for name, _ in model.indices.named_parameters()
    }


def save_model(model: NightCodec, path: str | Path, **metadata: str) -> str:
    """Write weights (float16; exact ones as int32), tables and sizes as safetensors. Returns the model id.

    Raises ValueError where the exact network's sums could round.
    """
    model.indices.check()
    exact = _exact_names(model)
    arrays: dict[str, np.ndarray] = {}
    for name, value in model.state_dict().items():
        value = value.detach().float().cpu()
        if name in exact:
            arrays[name] = torch.round(value * exact[name]).numpy().astype(np.int32)
        else:
            arrays[name] = value.numpy().astype(np.float16)
    tables = model.tables()
    arrays["tables.y"] = np.concatenate(tables.y_freq).astype(np.uint16)
    arrays["tables.y_sizes"] = np.array([len(f) for f in tables.y_freq], np.int32)
    arrays["tables.z"] = np.stack([np.stack(row) for row in tables.z_freq]).astype(np.uint16)
    metadata = {"config": json.dumps(dataclasses.asdict(model.config)), "format": "nightpress-codec-1", **metadata}
    data = packed_tensors(arrays, metadata)
    Path(path).write_bytes(data)
    return model_id(data)


def packed_tensors(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    """Bytes of a safetensors file."""
    header: dict = {"__metadata__": metadata}
    codes = {np.dtype(v): k for k, v in _DTYPES.items()}
    offset = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": codes[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(np.ascontiguousarray(a).tobytes() for a in arrays.values())


def model_id(source: str | Path | bytes) -> str:
    """First 16 hex digits of the sha256 of a model file."""
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    return hashlib.sha256(data).hexdigest()[:16]


def read_model_file(source: str | Path | bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a model file. Raises ValueError naming what is wrong with it."""
    try:
        return read_tensors(source, "nightpress-codec-1")
    except ValueError as error:
        name = "model" if isinstance(source, bytes) else str(source)
        raise ValueError(
            f"{name} is not a Nightpress codec model: {error}; take a file that `nightpress train` wrote"
        ) from error


def read_tensors(source: str | Path | bytes, wanted: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a safetensors file whose metadata name the format `wanted`. Raises ValueError."""
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    try:
        (length,) = struct.unpack_from("<Q", data)
        if length > 1_000_000 or 8 + length > len(data):
            raise ValueError("header length out of range")
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop("__metadata__")
        if metadata.get("format") != wanted:
            raise ValueError(f"format is {metadata.get('format')!r}")
        arrays = {}
        for key, entry in header.items():
            begin, end = entry["data_offsets"]
            dtype = np.dtype(_DTYPES[entry["dtype"]])
            if not 0 <= begin <= end <= len(data) - 8 - length:
                raise ValueError(f"tensor {key} lies outside the file")
            raw = np.frombuffer(data, dtype, (end - begin) // dtype.itemsize, 8 + length + begin)
            arrays[key] = raw.reshape(entry["shape"])
    except (struct.error, KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return arrays, metadata


def float_tensors(model: NightCodec, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """The file's tensors that `model` has, in its units: the exact network's integers become multiples of steps."""
    exact = _exact_names(model)
    return {
        key: torch.from_numpy(arrays[key].astype(np.float32)) / exact.get(key, 1)
        for key, value in model.state_dict().items()
        if key in arrays and arrays[key].shape == tuple(value.shape)
    }


def load_model(source: str | Path | bytes) -> NightCodec:
    """Model file -> NightCodec in float32 on the CPU, in evaluation mode, with `.identity` set to its id.

    Raises ValueError naming what is wrong with the file.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    name = "model" if isinstance(source, bytes) else str(source)
    arrays, metadata = read_model_file(source if not isinstance(source, bytes) else data)
    try:
        model = NightCodec(Config.of_json(metadata["config"]))
        state = float_tensors(model, arrays)
        missing = [key for key in model.state_dict() if key not in state]
        if missing:
            raise ValueError(f"it lacks the tensor {missing[0]}")
        ends = np.cumsum(arrays["tables.y_sizes"])
        y_freq = [f.astype(np.uint32) for f in np.split(arrays["tables.y"], ends[:-1])]
        z_freq = [[f.astype(np.uint32) for f in row] for row in arrays["tables.z"]]
        if "contexts.channels" in arrays:  # needs numba, which trainings do without
            from codec import contexts

            model.contexts = contexts.of_arrays(arrays, model.config.latent)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name} does not fit this version: {error}; take a file that `nightpress train` wrote"
        ) from error
    model.load_state_dict(state)
    model.indices.check()
    model.frequencies = EntropyTables(y_freq, z_freq)
    model.thresholds.copy_(rounding_thresholds(TABLE_STRENGTH, y_freq))
    model.identity = model_id(data)
    model.metadata = metadata
    return model.eval().requires_grad_(False)
