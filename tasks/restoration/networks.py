"""The restoration networks and their files: denoisers (RGB) and enlargers (luma).

    denoise   night     NightDenoiser: bias-free plain-convolution U-Net on pixel-unshuffled input + noise level
              dncnn     Dncnn: 3x3 convolutions at full resolution, batch normalisation (Zhang et al., 2017)
    superres  night     NightUpscaler: re-parameterised 3x3 convolutions at low resolution + linear bicubic path
              fsrcnn    Fsrcnn: shrink, map, expand, deconvolve (Dong et al., 2016)
              srcnn     Srcnn: 9-5-5 on the bicubic enlargement (Dong et al., 2014)

Every network has `halo` (radius of what an output pixel sees, in input pixels, rounded up to `multiple`) and
`multiple` (input sides must be multiples of it), which is what tiling needs. Denoisers map (noisy [B,3,H,W],
sigma [B,1,1,1]), both in units of 0..1, to clean [B,3,H,W]; enlargers map luma [B,1,h,w] in 0..1 to [B,1,s*h,s*w].
How they run on pictures stands in apply.py, how they are trained in train.py.
"""

import dataclasses
import json
import struct
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.tensors import model_id

FORMAT = "nightpress-restoration-1"


# -- denoisers


@dataclasses.dataclass(frozen=True)
class NightDenoiserConfig:
    """fold: side of the pixel-unshuffle; channels per level (each half as fine as the one before); residual
    blocks per level on the way down, with the last level's as the middle, and on the way up."""

    fold: int = 2
    channels: tuple[int, ...] = (48, 96, 144)
    down: tuple[int, ...] = (1, 2, 2)
    up: tuple[int, ...] = (1, 2)


class Residual(nn.Module):
    """x + conv3x3(relu(conv3x3(x))), without biases: scaling the input scales the output."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.first.weight)
        nn.init.normal_(self.second.weight, std=0.1 * (width * 9) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))


class NightDenoiser(nn.Module):
    r"""Bias-free residual U-Net without normalisation (Mohan et al., 2020, show why: it then works at noise
    levels it never saw) on unshuffled input with a noise-level plane (FFDNet, Zhang et al., 2018).

        noisy [3,H,W] -unshuffle-> [3ff+1, H/f, W/f] -conv-> level 0: c0 -2x2/2-> level 1: c1 -2x2/2-> ... middle
                                                              |  + <----up-----   |  + <----up----      |
        clean = noisy - shuffle(conv(level 0))           <-- blocks            blocks               blocks
    """

    config_class = NightDenoiserConfig

    def __init__(self, config: NightDenoiserConfig | None = None):
        super().__init__()
        self.config = config = config or NightDenoiserConfig()
        c, samples = config.channels, 3 * config.fold**2
        self.head = nn.Conv2d(samples + 1, c[0], 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            nn.Sequential(*(Residual(width) for _ in range(n))) for width, n in zip(c, config.down, strict=True)
        )
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, 2, bias=False) for a, b in zip(c, c[1:], strict=False))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2, bias=False) for a, b in zip(c, c[1:], strict=False))
        self.up = nn.ModuleList(
            nn.Sequential(*(Residual(width) for _ in range(n))) for width, n in zip(c, config.up, strict=False)
        )
        self.tail = nn.Conv2d(c[0], samples, 3, padding=1, bias=False)
        nn.init.normal_(self.tail.weight, std=0.1 * (c[0] * 9) ** -0.5)

    @property
    def multiple(self) -> int:
        return self.config.fold * 2 ** (len(self.config.channels) - 1)

    @property
    def halo(self) -> int:
        blocks = [a + b for a, b in zip(self.config.down, (*self.config.up, 0), strict=True)]
        radius = sum(2 * n * self.config.fold * 2**level for level, n in enumerate(blocks))
        radius += 2 * self.config.fold + self.multiple  # head and tail; the blocks of the unshuffle and the halvings
        return -(-radius // self.multiple) * self.multiple

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        x = F.pixel_unshuffle(noisy, self.config.fold)
        x = torch.cat([x, sigma.expand(-1, -1, *x.shape[2:]).to(x)], 1)
        x = self.head(x.contiguous(memory_format=torch.channels_last))
        kept = []
        for level, blocks in enumerate(self.down):
            if level:
                kept.append(x)
                x = self.shrink[level - 1](x)
            x = blocks(x)
        for level in reversed(range(len(self.up))):
            x = self.up[level](kept[level] + self.grow[level](x))
        return noisy - F.pixel_shuffle(self.tail(x).to(noisy.dtype), self.config.fold)


@dataclasses.dataclass(frozen=True)
class DncnnConfig:
    depth: int = 17
    width: int = 64


class Dncnn(nn.Module):
    """Beyond a Gaussian denoiser (Zhang et al., 2017), blind: conv, (conv, normalisation, relu)..., conv."""

    config_class = DncnnConfig
    multiple = 1

    def __init__(self, config: DncnnConfig | None = None):
        super().__init__()
        self.config = config = config or DncnnConfig()
        width = config.width
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
        for _ in range(config.depth - 2):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1, bias=False))
        nn.init.normal_(self.layers[-1].weight, std=0.1 * (width * 9) ** -0.5)

    @property
    def halo(self) -> int:
        return self.config.depth

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        return noisy - self.layers(noisy.contiguous(memory_format=torch.channels_last)).to(noisy.dtype)


# -- enlargers


def bicubic_phases(scale: int) -> Tensor:
    """[scale^2, 1, 5, 5]: a convolution whose pixel-shuffled output is the bicubic enlargement (a = -0.5, Keys,
    1981), as Pillow computes it away from the border."""

    def cubic(x: float) -> float:
        x = abs(x)
        if x < 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    rows = [[cubic(tap - ((phase + 0.5) / scale - 0.5)) for tap in range(-2, 3)] for phase in range(scale)]
    line = torch.tensor(rows)
    return torch.einsum("ay,bx->abyx", line, line).reshape(scale * scale, 1, 5, 5)


def _enlarge(x: Tensor, phases: Tensor, scale: int) -> Tensor:
    return F.pixel_shuffle(F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), phases), scale)


def identity_kernel(outputs: int, inputs: int) -> Tensor:
    """[outputs, inputs, 3, 3]: a convolution that changes nothing where both are equal."""
    return F.pad(torch.eye(outputs, inputs)[:, :, None, None], (1, 1, 1, 1))


class MergingConv(nn.Module):
    """A 3x3 convolution that is trained as a sum (3x3 + 1x1 + 1x1-then-3x3 + identity; RepVGG, Ding et al.,
    2021; ECBSR, Zhang et al., 2021) and is one plain convolution to whoever runs it.

    The branches are linear, so that their kernels are summed before the convolution, in training too: a step
    costs what a plain one costs. `merged` leaves only the sum.
    """

    def __init__(self, inputs: int, outputs: int, merged: bool):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 3, 3))
        nn.init.kaiming_normal_(self.weight, a=0.25, mode="fan_in")
        self.merged = merged
        if not merged:
            middle = 2 * outputs
            with torch.no_grad():
                self.weight.mul_(0.7)
            self.point = nn.Parameter(torch.randn(outputs, inputs) * 0.3 * inputs**-0.5)
            self.expand = nn.Parameter(torch.randn(middle, inputs) * inputs**-0.5)
            self.squeeze = nn.Parameter(torch.randn(outputs, middle, 3, 3) * 0.3 * (9 * middle) ** -0.5)

    def kernel(self) -> Tensor:
        """[outputs, inputs, 3, 3]: the sum of all branches."""
        if self.merged:
            return self.weight
        kernel = self.weight + torch.einsum("omyx,mi->oiyx", self.squeeze, self.expand)
        kernel = kernel + F.pad(self.point[:, :, None, None], (1, 1, 1, 1))
        if self.point.shape[0] == self.point.shape[1]:
            kernel = kernel + identity_kernel(*self.point.shape).to(kernel)
        return kernel

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel(), self.bias, padding=1)


@dataclasses.dataclass(frozen=True)
class NightUpscalerConfig:
    scale: int = 2
    width: int = 32
    depth: int = 7
    merged: bool = False


class NightUpscaler(nn.Module):
    """Plain convolutions at low resolution, pixel shuffle, and a linear path that starts as bicubic.

    luma [1,h,w] -conv-> [width,h,w] -(conv, PReLU) x depth-> conv -> [s*s,h,w] --+--shuffle--> [1,s*h,s*w]
         '------- 5x5 linear, initialised with the bicubic phases ---------------'
    """

    config_class = NightUpscalerConfig
    multiple = 1

    def __init__(self, config: NightUpscalerConfig | None = None):
        super().__init__()
        self.config = config = config or NightUpscalerConfig()
        width, merged, outputs = config.width, config.merged, config.scale**2
        self.linear = nn.Parameter(bicubic_phases(config.scale))
        self.head = MergingConv(1, width, merged)
        self.body = nn.ModuleList(MergingConv(width, width, merged) for _ in range(config.depth))
        self.slopes = nn.ParameterList(torch.full((width,), 0.25) for _ in range(config.depth + 1))
        self.tail = MergingConv(width, outputs, merged)
        with torch.no_grad():
            for parameter in self.tail.parameters():
                parameter.mul_(0.1)

    @property
    def halo(self) -> int:
        return self.config.depth + 2

    def forward(self, luma: Tensor) -> Tensor:
        x = F.prelu(self.head(luma - 0.5), self.slopes[0])
        for layer, slope in zip(self.body, list(self.slopes)[1:], strict=True):
            x = F.prelu(layer(x), slope)
        detail = F.pixel_shuffle(self.tail(x).to(luma.dtype), self.config.scale)
        with torch.autocast(luma.device.type, enabled=False):
            return _enlarge(luma, self.linear, self.config.scale) + detail

    def merge(self) -> "NightUpscaler":
        """The same function with plain convolutions only."""
        plain = NightUpscaler(dataclasses.replace(self.config, merged=True))
        state = {k: v for k, v in self.state_dict().items() if k in plain.state_dict()}
        for name, layer in self.named_modules():
            if isinstance(layer, MergingConv):
                state[f"{name}.weight"] = layer.kernel().detach()
        plain.load_state_dict(state)
        return plain


@dataclasses.dataclass(frozen=True)
class FsrcnnConfig:
    scale: int = 2
    width: int = 56
    shrunk: int = 12
    depth: int = 4


class Fsrcnn(nn.Module):
    """FSRCNN(d=56, s=12, m=4), Accelerating the super-resolution CNN (Dong et al., 2016)."""

    config_class = FsrcnnConfig
    multiple = 1

    def __init__(self, config: FsrcnnConfig | None = None):
        super().__init__()
        self.config = config = config or FsrcnnConfig()
        width, shrunk, scale = config.width, config.shrunk, config.scale
        layers = [nn.Conv2d(1, width, 5, padding=2), nn.PReLU(width), nn.Conv2d(width, shrunk, 1), nn.PReLU(shrunk)]
        for _ in range(config.depth):
            layers += [nn.Conv2d(shrunk, shrunk, 3, padding=1), nn.PReLU(shrunk)]
        layers += [nn.Conv2d(shrunk, width, 1), nn.PReLU(width)]
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, a=0.25)
                nn.init.zeros_(layer.bias)
        self.layers = nn.Sequential(*layers)
        self.enlarge = nn.ConvTranspose2d(width, 1, 9, scale, 4, output_padding=scale - 1)
        nn.init.normal_(self.enlarge.weight, std=0.001)
        nn.init.zeros_(self.enlarge.bias)

    @property
    def halo(self) -> int:
        return 2 + self.config.depth + -(-8 // self.config.scale)

    def forward(self, luma: Tensor) -> Tensor:
        return self.enlarge(self.layers(luma)).to(luma.dtype)


@dataclasses.dataclass(frozen=True)
class SrcnnConfig:
    scale: int = 2
    widths: tuple[int, int] = (64, 32)
    sides: tuple[int, int, int] = (9, 5, 5)


class Srcnn(nn.Module):
    """SRCNN 9-5-5, Learning a deep convolutional network for image super-resolution (Dong et al., 2014); the
    enlargement that it works on is part of the network here, and it learns the difference to it."""

    config_class = SrcnnConfig
    multiple = 1

    def __init__(self, config: SrcnnConfig | None = None):
        super().__init__()
        self.config = config = config or SrcnnConfig()
        (a, b), (p, q, r) = config.widths, config.sides
        self.register_buffer("phases", bicubic_phases(config.scale))
        self.layers = nn.Sequential(
            nn.Conv2d(1, a, p, padding=p // 2), nn.ReLU(), nn.Conv2d(a, b, q, padding=q // 2), nn.ReLU()
        )
        self.last = nn.Conv2d(b, 1, r, padding=r // 2)
        nn.init.normal_(self.last.weight, std=0.001)
        nn.init.zeros_(self.last.bias)

    @property
    def halo(self) -> int:
        return 2 + -(-sum(side // 2 for side in self.config.sides) // self.config.scale)

    def forward(self, luma: Tensor) -> Tensor:
        with torch.autocast(luma.device.type, enabled=False):
            enlarged = _enlarge(luma, self.phases, self.config.scale)
        x = self.layers(enlarged.contiguous(memory_format=torch.channels_last))
        return enlarged + self.last(x).to(luma.dtype)


NETWORKS: dict[str, dict[str, type[nn.Module]]] = {
    "denoise": {"night": NightDenoiser, "dncnn": Dncnn},
    "superres": {"night": NightUpscaler, "fsrcnn": Fsrcnn, "srcnn": Srcnn},
}


def macs_per_pixel(network: nn.Module, task: str, side: int = 96) -> float:
    """Multiply-accumulates of the convolutions per input pixel, counted by running one picture of side x side."""
    total = 0

    def count(layer: nn.Module, _, output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.ConvTranspose2d):
            positions = output.shape[2] * output.shape[3] / layer.stride[0] ** 2
            total += layer.weight.numel() * positions
        else:
            weight = layer.kernel() if isinstance(layer, MergingConv) else layer.weight
            total += weight.numel() * output.shape[2] * output.shape[3]

    kinds = (nn.Conv2d, nn.ConvTranspose2d, MergingConv)
    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, kinds)]
    with torch.inference_mode():
        if task == "denoise":
            network(torch.zeros(1, 3, side, side), torch.zeros(1, 1, 1, 1))
        else:
            network(torch.zeros(1, 1, side, side))
            linear = [p for key, p in network.state_dict().items() if key in ("linear", "phases")]
            total += sum(25 * p.shape[0] * side * side for p in linear)
    for hook in hooks:
        hook.remove()
    return total / side**2


# -- files: safetensors with the network's name and sizes in the metadata, float16


@dataclasses.dataclass
class Loaded:
    """A network read from a file: `card` is the file's metadata (task, network, scale, training)."""

    network: nn.Module
    task: str
    name: str
    scale: int
    identity: str
    card: dict[str, str]


def save_network(network: nn.Module, task: str, name: str, path: str | Path, **card: str) -> str:
    """Write `network` as float16 safetensors with what is needed to build it again. Returns the model id.

    Raises ValueError where a weight is not finite in float16.
    """
    entries, payload, offset = {}, [], 0
    for key, value in network.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        with np.errstate(over="ignore"):
            array = value.detach().float().cpu().numpy().astype("<f2")
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: weight {key} is not finite in float16; train again with a lower rate")
        entries[key] = {"dtype": "F16", "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        payload.append(array.tobytes())
        offset += array.nbytes
    config = json.dumps(dataclasses.asdict(network.config))
    header = {"__metadata__": {"format": FORMAT, "task": task, "network": name, "config": config, **card}, **entries}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = struct.pack("<Q", len(text)) + text + b"".join(payload)
    Path(path).write_bytes(data)
    return model_id(data)


def load_network(path: str | Path) -> Loaded:
    """Read a file of `save_network`: float32 network on the CPU, in evaluation mode, channels last.

    Raises ValueError naming the file and what is wrong with it.
    """
    data = Path(path).read_bytes()
    try:
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length])
        card = header.pop("__metadata__")
        if card.get("format") != FORMAT:
            raise ValueError(f"its format is {card.get('format')!r}")
        task, name = card["task"], card["network"]
        kind = NETWORKS[task][name]
        sizes = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(card["config"]).items()}
        network = kind(kind.config_class(**sizes))
        state = {}
        for key, entry in header.items():
            begin, end = entry["data_offsets"]
            array = np.frombuffer(data, "<f2", (end - begin) // 2, 8 + length + begin).astype(np.float32)
            state[key] = torch.from_numpy(array.reshape(entry["shape"]))
        missing = network.load_state_dict(state, strict=False)
        lost = [k for k in missing.missing_keys if not k.endswith("num_batches_tracked")] + missing.unexpected_keys
        if lost:
            raise ValueError(f"tensors do not fit the network: {', '.join(lost)}")
    except (struct.error, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} is not a Nightpress restoration model: {error}; take a file that `nightpress train` wrote"
        ) from error
    network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return Loaded(network, task, name, getattr(network.config, "scale", 1), model_id(data), card)
