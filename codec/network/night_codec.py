"""The codec's networks: transforms, hyperprior, context. From pixels to integer symbols and back.

Entropy coding and the file format live in entropy/ and bitstream/, training in training/. What is here defines the
networks and trains them; engine/ computes the same on finished weights, faster. Parts: layers.py; sizes: config.py.

    x  [B,3,H,W] 0..1                                                       x_hat [B,3,H,W]
     | lap (lapping.py)                                                      ^ lap
     |            \\                                                          |          ^
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
    z = round [B,96,H/64,W/64] --+--> float means ----+-----> (values + mean)
                                 |                    |        ^
                                 +--> integer index --+--> symbols = trellis(y gain - mean)

x is filtered across the borders of 16x16 blocks before all of this and x_hat after it, so that the linear parts' basis
functions overlap (lapping.py).

Four passes, each with the symbols of those before it in view: of the 24 channels of lowest frequency the even cells of
a checkerboard, then the odd ones; then, all cells at once, the next 72 channels and the last 224, which look at the
lower frequencies of their own cell alone. The last have no means.

Symbols come of a trellis (entropy/trellis.py): they stand for values half a step apart. The entropy coder corrects the
bins it is given by what is coded nearby (entropy/contexts.py).

Level (0..1000, ten per quality step) only enters through gains after the analysis, so that one analysis serves all
rates. The scale index of each symbol comes from integer arithmetic alone (exact.py) on z and on the magnitudes of
earlier passes' symbols; means are float and never reach the entropy coder (they shift what is rounded, not how it is
coded). Ideas: hyperprior, Ballé et al. 2018; mean and context, Minnen et al. 2018; checkerboard, He et al. 2021;
channel groups, Minnen and Singh 2020; gain units, Cui et al. 2021; integer networks for entropy models, Ballé et al.
2019; linear skips are ours. Cost in use: about 4.0 kMAC per pixel to encode, 3.2 to decode, of which bottlenecks 1.4
and 0.8.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.entropy import trellis
from codec.entropy.tables import (
    THRESHOLD_SYMBOLS,
    EntropyTables,
    gaussian_mass,
    noisy_bits,
    parametric_tables,
    rounding_thresholds,
    scale_of,
)
from codec.entropy.trellis_search import TrellisQuantiser, search_for
from codec.format import BINS, KNOTS, LEVELS, MEAN_LIMIT, STEP, Z_GROUPS, Z_MAX, lambda_of
from codec.network import lapping
from codec.network.config import Config, channel_counts
from codec.network.exact import ACTIVATION_MAX, ACTIVATION_STEPS, quantise_activation, round_through
from codec.network.layers import (
    Analysis,
    Bottleneck,
    IndexNetwork,
    MeanNetwork,
    Synthesis,
    coefficient_size,
    interpolate_gain,
    native_bfloat16,
    of_blocks,
    opponent_dct,
    to_blocks,
)

FEATURE_SCALE = 4.0  # features of unit size -> what networks add to coefficients (orthonormal, pixels 0..255)


class NightCodec(nn.Module):
    """All networks of one model; see the module's drawing. `level` is an int, or in training a tensor [B]."""

    latent_halo = 8  # latent cells around a tile that means and indices depend on

    def __init__(self, config: Config | None = None):
        super().__init__()
        self.config = config = config or Config()
        # A bottleneck looks 8 pixels around, half a cell, and so does the filter across blocks' borders.
        self.synthesis_halo = -(-(config.decoder_blocks + 1) // 2)  # latent cells around a tile that its pixels need
        self.analysis_halo = 16 * -(-(config.encoder_blocks + 1) // 2)  # pixels around a tile that its latent needs
        dct = opponent_dct(channel_counts(config.latent), 16)[config.order]
        self.linear_analysis = nn.Parameter(dct.clone())  # [latent, 768]
        self.linear_synthesis = nn.Parameter(dct.t().clone())  # [768, latent]
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
        self.contexts: dict | None = None  # what contexts.of_arrays takes, once they were found
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
        """float32 | bfloat16 | auto for the float networks. auto: bfloat16 where the device multiplies it natively,
        else float32. Raises KeyError for another name."""
        if precision == "auto":
            precision = "bfloat16" if native_bfloat16(self.log_gain.device.type) else "float32"
        self.precision = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
        return self

    @property
    def blocks(self) -> list[Bottleneck]:
        return [*self.analysis_network.blocks, *self.synthesis_network.blocks]

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
        x = lapping.lapped(x - 0.5, self.lap_analysis)
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
            t = network.enter(coefficients) * torch.exp(interpolate_gain(network.enter_gain, levels)).to(dtype)
            middle = len(network.blocks) // 2
            for i, block in enumerate(network.blocks):
                if i == middle:
                    t = t * torch.exp(interpolate_gain(network.middle_gain, levels)).to(dtype)
                t = block(t)
            back = (FEATURE_SCALE / 255.0) * self.dct.flatten(1).t()  # one linear layer with leave
            weight = back @ network.leave.weight.flatten(1)
            t = to_blocks(t, weight, back @ network.leave.bias)
        return lapping.lapped(linear + t.float(), self.lap_synthesis) + 0.5

    def scale(self, y: Tensor, level: int | Tensor) -> Tensor:
        """y in units of the level's quantisation step."""
        return y * torch.exp(interpolate_gain(self.log_gain, self._levels(level, y.shape[0])))

    def unscale(self, y_scaled: Tensor, level: int | Tensor) -> Tensor:
        """Back from quantisation steps to y_hat."""
        return y_scaled * torch.exp(interpolate_gain(self.log_inverse_gain, self._levels(level, y_scaled.shape[0])))

    # -- hyperprior, means, indices

    def hyper_analysis(self, y_scaled: Tensor, level: int | Tensor) -> Tensor:
        """[B,latent,h,w] -> unrounded z [B,hyper,ceil(h/4),ceil(w/4)]."""
        levels = self._levels(level, y_scaled.shape[0])
        height, width = y_scaled.shape[2:]
        t = torch.asinh(y_scaled)
        t = F.pad(t, (0, -width % 4, 0, -height % 4), mode="replicate")
        with self._autocast():
            t = F.leaky_relu(self.hyper_enter(t), 0.1) * torch.exp(interpolate_gain(self.hyper_gain, levels))
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
        """y_anchors: values + mean of the first pass, 0 elsewhere, in quantisation steps [B,first group,h,w]."""
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

    @staticmethod
    def seen(values: Tensor) -> Tensor:
        """|values|, whole numbers of halves, as the exact network takes them: activations."""
        return trellis.loudness(values.device)[(2 * values.abs()).long().clamp(max=trellis.LOUDEST)]

    def bins_second(self, features: Tensor, anchor_values: Tensor) -> Tensor:
        """anchor_values: what symbols stand for [B,first group,h,w], in halves, 0 off the anchors."""
        net = self.indices
        with torch.autocast(features.device.type, enabled=False):
            t = quantise_activation(net.magnitude(self.seen(anchor_values)))
            t = quantise_activation(net.neighbours(t))
            t = quantise_activation(net.join(torch.cat((features, t), 1)))
            return self._bins(net.second(t))

    def mean_group(self, number: int, features: Tensor, values: Tensor) -> Tensor:
        """values: with means, of all channels before group `number` (1, 2), in quantisation steps."""
        if number > len(self.means.groups):
            part = self.config.slices[number]
            return values.new_zeros(()).expand(len(values), part.stop - part.start, *values.shape[2:])
        group = self.means.groups[number - 1]
        with self._autocast():
            t = F.leaky_relu(group.context(torch.asinh(values)), 0.1)
            t = F.leaky_relu(group.join(torch.cat((features, t), 1)), 0.1)
            t = group.last(t).float()
        return MEAN_LIMIT * torch.tanh(t / MEAN_LIMIT)

    def bins_group(self, number: int, features: Tensor, values: Tensor) -> Tensor:
        """values: without means, in halves, of all channels before group `number` (1, 2)."""
        group = self.indices.groups[number - 1]
        with torch.autocast(features.device.type, enabled=False):
            t = quantise_activation(group.context(self.seen(values)))
            t = quantise_activation(group.join(torch.cat((features, t), 1)))
            return self._bins(group.last(t))

    # -- what the entropy coder uses

    def passes(
        self, z: Tensor, level: int | Tensor, height: int, width: int, quantise
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All passes over a latent [B,latent,height,width] -> (values, means, bins).

        quantise(channels, mean, index) gives what the symbols of a slice of channels stand for, in quantisation steps
        less the mean; of the first group's second pass the anchors' alone are seen.
        """
        anchors = self.anchors(height, width, z.device)
        index_features = self.index_features(z, level, height, width)
        mean_features = self.mean_features(z, height, width)
        part, *later = self.config.slices
        mean, index = self.mean_first(mean_features), self.bins_first(index_features)
        first = quantise(part, mean, index) * anchors
        mean = torch.where(anchors, mean, self.mean_second(mean_features, (first + mean) * anchors))
        index = torch.where(anchors, index, self.bins_second(index_features, first.detach()))
        done = [(quantise(part, mean, index), mean, index)]
        values, means, indices = done[0]
        for number, part in enumerate(later, 1):
            mean = self.mean_group(number, mean_features, values + means)
            index = self.bins_group(number, index_features, values.detach())
            done.append((quantise(part, mean, index), mean, index))
            values, means, indices = (torch.cat(parts, 1) for parts in zip(*done, strict=True))
        return values, means, indices

    def round(self, residual: Tensor, index: Tensor) -> Tensor:
        """Integer-valued symbols for residuals [..] in bins `index` [..]; see rounding_thresholds."""
        magnitude = residual.abs()
        rounded = torch.round(magnitude).clamp(max=2.0**15 - 1)
        entry = index.long() * self.thresholds.shape[1] + rounded.clamp(max=THRESHOLD_SYMBOLS).long()
        lower = (magnitude < self.thresholds.flatten()[entry]) & (rounded <= THRESHOLD_SYMBOLS)
        return torch.copysign(rounded - lower.float(), residual)

    def quantiser(self, scaled: Tensor) -> TrellisQuantiser:
        """What `passes` takes to quantise y in the level's steps [B,latent,h,w]."""
        return TrellisQuantiser(scaled, self.round, search_for(scaled.device, self.thresholds))

    def tables(self) -> EntropyTables:
        """Integer frequencies: those measured at export, or the parametric ones of an untrained model."""
        if self.frequencies is None:
            z_tables = (part.detach().cpu().numpy() for part in (self.z_location, self.z_log_scale))
            self.frequencies = parametric_tables(*z_tables)
        return self.frequencies

    # -- training

    def training_pass(
        self, x: Tensor, level: Tensor, thresholds: bool = False, real: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [B,3,H,W], level [B] -> (x_hat, bits of y per sample [B], bits of z per sample [B]).

        Uniform noise stands for rounding in the rate, straight-through rounding in the distortion; with `thresholds`
        the latter rounds by rounding_thresholds. With `real` values and bits are those of the trellis's symbols: they
        teach the decoder and the bins, and what noise would cost the encoder.
        """
        y = self.analysis(x)
        height, width = y.shape[2:]
        scaled = self.scale(y, level)
        z = self.hyper_analysis(scaled, level)
        z_bits = self._z_bits(z, level)
        z_hat = round_through(z.clamp(-Z_MAX, Z_MAX))

        def rounded(channels: slice, mean: Tensor, index: Tensor) -> Tensor:
            residual = scaled[:, channels] - mean
            if not thresholds:
                return round_through(residual)
            return residual + (self.round(residual.detach(), index.detach()) - residual).detach()

        if real:
            values, mean, index, y_bits = self._coded(scaled, z_hat, level)
            noisy = noisy_bits(scaled - mean, scale_of(index).detach())
            y_bits = y_bits + noisy - noisy.detach()
        else:
            values, mean, index = self.passes(z_hat, level, height, width, rounded)
            y_bits = noisy_bits(scaled - mean, scale_of(index))
        return self.synthesis(self.unscale(values + mean, level), level), y_bits, z_bits

    def _z_bits(self, z: Tensor, level: Tensor) -> Tensor:
        """Bits [B] of z with uniform noise in rounding's place, under the level group's logistic distributions."""
        noisy = z + torch.empty_like(z).uniform_(-0.5, 0.5)
        group = (level.float() / 100.0).floor().clamp(0, Z_GROUPS - 1).long()
        location = self.z_location[group][:, :, None, None]
        scale = torch.exp(self.z_log_scale[group].clamp(-4, 5))[:, :, None, None]
        upper = torch.sigmoid((noisy + 0.5 - location) / scale)
        lower = torch.sigmoid((noisy - 0.5 - location) / scale)
        return -torch.log2((upper - lower).clamp_min(1e-7)).sum((1, 2, 3))

    def _coded(self, scaled: Tensor, z: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Values less means, as they are coded, with the gradient of `scaled` and of the means; means; bins; bits [B],
        with the gradient of the bins alone."""
        quantiser = self.quantiser(scaled.detach())

        def quantised(channels: slice, mean: Tensor, index: Tensor) -> Tensor:
            residual = scaled[:, channels] - mean
            return residual + (quantiser(channels, mean.detach(), index.detach()) - residual).detach()

        values, mean, index = self.passes(z, level, *scaled.shape[2:], quantised)
        sigma = scale_of(index)
        mass = trellis.interval_mass(quantiser.symbols, quantiser.tables, sigma)
        # The unforced residual keeps a cost on bin 0 for what it suppresses.
        unforced = gaussian_mass(self.round((scaled - mean).detach(), index.detach().clamp_min(1.0)), sigma)
        return values, mean, index, -torch.log2(torch.where(index > 0, mass, unforced)).sum((1, 2, 3))
