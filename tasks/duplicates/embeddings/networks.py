"""Networks that turn a picture into 128 numbers: copy detection, the seeds' classifier and autoencoder; their files.

All three are plain: pixels unshuffled, dense 3x3 convolutions in residual blocks, batch normalisation (dense ones are
what CPUs with matrix units run fast). Input float32 [B,3,S,S] in 0..1, the whole picture squeezed to S x S; output
float32 [B,128] of length 1, so that a product of two is their cosine similarity.

Needs torch alone at module level. Training: train.py. Pictures in, neighbours out: embeddings.py.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIMENSIONS = 128
KINDS = ("copy", "classifier", "autoencoder")


@dataclass(frozen=True)
class Config:
    """size: side of the input in pixels, a multiple of unshuffle * 2 ** (len(widths) - 1)."""

    kind: str
    size: int
    unshuffle: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]


CONFIGS = {
    "copy": Config("copy", 96, 4, (48, 96, 144), (1, 2, 2)),
    "classifier": Config("classifier", 32, 1, (32, 64, 128), (1, 1, 1)),
    "autoencoder": Config("autoencoder", 64, 4, (64, 96, 128), (1, 1, 1)),
}


class Residual(nn.Module):
    """x + two 3x3 convolutions, both normalised (He et al. 2016)."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)])
        nn.init.zeros_(self.norms[1].weight)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norms[0](self.first(x)))
        return F.relu(x + self.norms[1](self.second(inner)))


def trunk(config: Config) -> nn.Sequential:
    """[B,3,S,S] -> [B, widths[-1], s, s] with s = S / unshuffle / 2 ** (len(widths) - 1)."""
    layers: list[nn.Module] = [nn.PixelUnshuffle(config.unshuffle)]
    before = 3 * config.unshuffle**2
    for place, (width, blocks) in enumerate(zip(config.widths, config.blocks, strict=True)):
        layers += [
            nn.Conv2d(before, width, 3, stride=1 if place == 0 else 2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            *[Residual(width) for _ in range(blocks)],
        ]
        before = width
    return nn.Sequential(*layers)


class CopyNetwork(nn.Module):
    """Copies of one picture lie close, everything else is spread over the sphere (SSCD, Pizzi et al. 2022).

    Pooled with a generalised mean of exponent 3 (Radenovic et al. 2018), which keeps what stands out.
    """

    def __init__(self, config: Config = CONFIGS["copy"]):
        super().__init__()
        self.config = config
        self.trunk = trunk(config)
        self.project = nn.Linear(config.widths[-1], DIMENSIONS)

    def forward(self, x: Tensor) -> Tensor:
        features = self.trunk(x * 2.0 - 1.0).float()
        pooled = features.clamp_min(1e-4).pow(3).mean((2, 3)).pow(1 / 3)
        return F.normalize(self.project(pooled).float(), dim=1)


class Classifier(nn.Module):
    """CIFAR-10's ten classes; the embedding is the dense layer of 128 before the last one."""

    def __init__(self, config: Config = CONFIGS["classifier"]):
        super().__init__()
        self.config = config
        self.trunk = trunk(config)
        self.dense = nn.Linear(config.widths[-1], DIMENSIONS)
        self.classes = nn.Linear(DIMENSIONS, 10)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.dense(self.trunk(x * 2.0 - 1.0).float().mean((2, 3)))).float()

    def logits(self, x: Tensor) -> Tensor:
        """[B,10], before softmax."""
        return self.classes(F.dropout(self.features(x), 0.2, self.training))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.features(x), dim=1)


class Autoencoder(nn.Module):
    """A picture through 128 numbers and back, at 64 x 64; the embedding is the bottleneck."""

    def __init__(self, config: Config = CONFIGS["autoencoder"]):
        super().__init__()
        self.config = config
        self.trunk = trunk(config)
        self.side = config.size // config.unshuffle // 2 ** (len(config.widths) - 1)
        cells = config.widths[-1] * self.side**2
        self.squeeze = nn.Linear(cells, DIMENSIONS)
        self.widen = nn.Linear(DIMENSIONS, cells)
        up: list[nn.Module] = []
        for wide, narrow in zip(config.widths[::-1], config.widths[-2::-1], strict=False):
            up += [nn.Upsample(scale_factor=2), nn.Conv2d(wide, narrow, 3, padding=1), nn.ReLU()]
        up += [nn.Conv2d(config.widths[0], 3 * config.unshuffle**2, 3, padding=1), nn.PixelShuffle(config.unshuffle)]
        self.decoder = nn.Sequential(*up)

    def bottleneck(self, x: Tensor) -> Tensor:
        return self.squeeze(self.trunk(x * 2.0 - 1.0).float().flatten(1)).float()

    def rebuilt(self, x: Tensor) -> Tensor:
        """[B,3,S,S], unclamped 0..1."""
        cells = F.relu(self.widen(self.bottleneck(x)))
        return self.decoder(cells.reshape(x.shape[0], -1, self.side, self.side)).float() + 0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.bottleneck(x), dim=1)


_CLASSES = {"copy": CopyNetwork, "classifier": Classifier, "autoencoder": Autoencoder}


def new_network(kind: str, config: Config | None = None) -> nn.Module:
    """An untrained network. Raises ValueError for a kind that there is not."""
    if kind not in _CLASSES:
        raise ValueError(f"no embedding network {kind!r}; there are {', '.join(KINDS)}")
    return _CLASSES[kind](config or CONFIGS[kind])


def save_network(network: nn.Module, path: Path) -> None:
    """One safetensors file: weights in float16, the sizes in its metadata."""
    from safetensors.torch import save_file

    tensors = {
        name: value.detach().cpu().to(torch.float16 if value.is_floating_point() else value.dtype).contiguous()
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"embedding": json.dumps(dataclasses.asdict(network.config))})


def load_network(path: Path) -> nn.Module:
    """The network of a file written by `save_network`, float32, ready to be used. Raises ValueError where the file is
    something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = (file.metadata() or {}).get("embedding")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    if metadata is None:
        raise ValueError(f"{path} holds no embedding network (its metadata names none)")
    facts = json.loads(metadata)
    config = Config(**facts | {"widths": tuple(facts["widths"]), "blocks": tuple(facts["blocks"])})
    network = new_network(config.kind, config)
    left = network.load_state_dict({name: value.float() for name, value in tensors.items()}, strict=False)
    missing = [name for name in left.missing_keys if not name.endswith("num_batches_tracked")]
    if missing or left.unexpected_keys:
        raise ValueError(f"{path} does not fit its own sizes: missing {missing}, too many {left.unexpected_keys}")
    return network.eval()


def file_id(path: Path) -> str:
    """First 16 hex digits of the file's sha256."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
