"""Training of the restoration networks: pictures in a folder -> checkpoints, a log, one file of weights.

Needs torch, numpy and Pillow alone: `python -m tasks.restoration_train --help`. Here: what a training sample is (noise
of three kinds, reduced luma, pictures as our codec decodes them), the loss, the loop with its time budget. The networks
and their files stand in restoration_networks.py, figures on test sets come from restoration_evaluate.py.

The learning rate is constant, then falls with a cosine over the last part of the time given; the state at the start
of the fall is kept (`trunk.pt`), and `resume` goes on from there with more time. Enlargers learn the absolute error,
and while the rate falls the squared one; denoisers the logarithm of the squared error, post-filters by how much they
lower it. Until half of that fall, units that never fire are set to work again (dormant.py).
"""

import argparse
import dataclasses
import io
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from codec.model import LEVELS, NightCodec, load_model, native_bfloat16
from codec.optimiser import Optimiser
from codec.train import load_pictures, rendered_page
from tasks.dormant import Watch
from tasks.restoration import noise_sigma
from tasks.restoration_networks import (
    NETWORKS,
    NightUpscaler,
    identity_kernel,
    load_network,
    macs_per_pixel,
    save_network,
)

SIGMA_RANGE = (2.0, 58.0)  # of the Gaussian samples, 0..255 scale
PAGES_CODED = 0.06  # share of rendered pages among what the post-filter learns from, as in the codec's training
WATCH_EVERY, WATCH_FOR = 500, 20  # steps: what never fires in the first 20 of each 500 is set to work again


# -- what a noisy sample is


def gaussian(clean: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """White noise of one sigma; half of the samples are stored in 8 bits, as files are, half are not, as published
    figures assume. clean: float32 [H,W,3] in 0..1. -> (noisy, target, sigma in 0..1)"""
    sigma = rng.uniform(*SIGMA_RANGE) / 255.0
    noisy = clean + sigma * _normal(clean.shape, rng)
    if rng.random() < 0.5:
        noisy = _rounded(noisy)
    told = sigma * rng.uniform(0.9, 1.1) if rng.random() < 0.3 else sigma
    return noisy, clean, told


def poisson_gaussian(clean: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Variance a x + b on the values as stored, sometimes seen through a JPEG file."""
    read, shot = math.exp(rng.uniform(math.log(2), math.log(25))) / 255.0, rng.uniform(0.0, 45.0) / 255.0
    noisy = clean + np.sqrt(shot**2 * clean + read**2) * _normal(clean.shape, rng)
    noisy = _rounded(noisy)
    if rng.random() < 0.3:
        noisy = through_jpeg(noisy, int(rng.integers(75, 99)), bool(rng.random() < 0.5))
    return noisy, clean, told_sigma(noisy, clean, rng)


def camera(clean: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """A camera's way: linear light, white balance, shot and read noise, colour mosaic or blur, tone curve, JPEG."""
    noisy, target = camera_pair(
        clean,
        rng,
        electrons=math.exp(rng.uniform(math.log(60), math.log(3000))),
        read=rng.uniform(0.5, 6.0),
        mosaic=bool(rng.random() < 0.6),
        blur=rng.uniform(0.0, 0.7),
    )
    if rng.random() < 0.75:
        noisy = through_jpeg(noisy, int(rng.integers(70, 99)), bool(rng.random() < 0.5))
    return noisy, target, told_sigma(noisy, target, rng)


def camera_pair(
    clean: np.ndarray, rng: np.random.Generator, electrons: float, read: float, mosaic: bool, blur: float
) -> tuple[np.ndarray, np.ndarray]:
    """The same exposure with and without noise, both 8-bit in 0..1, before any JPEG.

    clean: float32 [H,W,3] in 0..1, sRGB; electrons: what full white collects in the green sensor (fewer is noisier);
    read: read noise in electrons; blur: sigma in pixels of the softening after the mosaic.
    """
    linear = np.where(clean <= 0.04045, clean / 12.92, ((clean + 0.055) / 1.055) ** 2.4).astype(np.float32)
    gains = np.array([rng.uniform(1.3, 2.4), 1.0, rng.uniform(1.3, 2.2)], np.float32)
    collected = linear / gains * electrons
    variance = collected + read**2
    exposed = collected + np.sqrt(variance) * _normal(clean.shape, rng)
    pair = []
    for frame in (exposed, collected):
        frame = frame / electrons
        if mosaic:
            frame = _demosaicked(frame)
        if blur > 0.25:
            frame = _softened(frame, blur)
        frame = np.clip(frame * gains, 0.0, 1.0)
        pair.append(_rounded(np.where(frame <= 0.0031308, frame * 12.92, 1.055 * frame ** (1 / 2.4) - 0.055)))
    return pair[0], pair[1]


def told_sigma(noisy: np.ndarray, clean: np.ndarray, rng: np.random.Generator) -> float:
    """What the network is told where noise has no one sigma: mostly the estimate that it will get on real pictures."""
    true = float(np.sqrt(np.mean((noisy - clean) ** 2)))
    if rng.random() < 0.3:
        return true
    estimate = noise_sigma(Image.fromarray(np.rint(noisy * 255).astype(np.uint8))) / 255.0
    return max(estimate, 0.25 * true)


def through_jpeg(picture: np.ndarray, quality: int, full_colour: bool) -> np.ndarray:
    """float32 [H,W,3] in 0..1, written as JPEG and read again."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8))
    image.save(buffer, "JPEG", quality=quality, subsampling=0 if full_colour else 2)
    with Image.open(buffer) as stored:
        return np.asarray(stored.convert("RGB"), np.float32) / 255.0


def _normal(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def _rounded(picture: np.ndarray) -> np.ndarray:
    return (np.rint(np.clip(picture, 0.0, 1.0) * 255.0) / 255.0).astype(np.float32)


def _smoothed(frame: np.ndarray, taps: tuple[float, ...]) -> np.ndarray:
    """Separable odd filter over the first two axes, edges reflected."""
    radius = len(taps) // 2
    for axis in (0, 1):
        padding = [(radius, radius) if a == axis else (0, 0) for a in range(frame.ndim)]
        wide, length = np.pad(frame, padding, mode="reflect"), frame.shape[axis]
        frame = sum(t * np.take(wide, range(k, k + length), axis=axis) for k, t in enumerate(taps))
    return frame


def _softened(frame: np.ndarray, sigma: float) -> np.ndarray:
    side = math.exp(-0.5 / sigma**2)
    return _smoothed(frame, (side / (1 + 2 * side), 1 / (1 + 2 * side), side / (1 + 2 * side)))


def _demosaicked(frame: np.ndarray) -> np.ndarray:
    """Keeps the RGGB samples and fills the rest by normalised bilinear averaging."""
    height, width = frame.shape[:2]
    mask = np.zeros(frame.shape, np.float32)
    mask[0::2, 0::2, 0] = mask[0::2, 1::2, 1] = mask[1::2, 0::2, 1] = mask[1::2, 1::2, 2] = 1.0
    taps = (0.5, 1.0, 0.5)
    return _smoothed(frame * mask, taps) / _smoothed(mask, taps)


# -- batches


class NoisyPatches(torch.utils.data.IterableDataset):
    """Endless batches (noisy, clean: float32 [B,3,S,S]; sigma: float32 [B,1,1,1]; kind: int64 [B] 0 Gaussian, 1
    Poisson-Gaussian, 2 camera), values in 0..1."""

    kinds = (gaussian, poisson_gaussian, camera)

    def __init__(
        self,
        pictures: list[np.ndarray],
        count: int,
        size: int,
        seed: int,
        shares: tuple[float, ...] = (0.6, 0.15, 0.25),
    ):
        self.pictures, self.count, self.size, self.seed, self.shares = pictures, count, size, seed, shares

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        while True:
            samples = [self.sample(rng) for _ in range(self.count)]
            noisy, clean, sigma, kind = zip(*samples, strict=True)
            yield (
                torch.from_numpy(np.stack(noisy)).permute(0, 3, 1, 2),
                torch.from_numpy(np.stack(clean)).permute(0, 3, 1, 2),
                torch.tensor(sigma, dtype=torch.float32).reshape(-1, 1, 1, 1),
                torch.tensor(kind),
            )

    def sample(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float, int]:
        clean = self.clean_patch(rng)
        kind = int(rng.choice(len(self.kinds), p=self.shares))
        if rng.random() < 0.1:  # grey pictures: the same noise in all three channels
            grey = np.repeat(clean.mean(axis=2, keepdims=True), 3, axis=2)
            noisy, target, sigma = gaussian(grey[:, :, :1], rng)
            return np.repeat(noisy, 3, axis=2), np.repeat(target, 3, axis=2), sigma, 0
        noisy, target, sigma = self.kinds[kind](clean, rng)
        return noisy.astype(np.float32), target.astype(np.float32), sigma, kind

    def clean_patch(self, rng: np.random.Generator) -> np.ndarray:
        """float32 [S,S,3] in 0..1: a crop, often of a reduced picture, turned, mirrored, its colours varied."""
        picture = self.pictures[rng.integers(len(self.pictures))]
        height, width = picture.shape[:2]
        wanted = self.size * (rng.uniform(1.0, 2.2) if rng.random() < 0.6 else 1.0)
        side = min(int(wanted), height, width)
        y, x = rng.integers(height - side + 1), rng.integers(width - side + 1)
        patch = picture[y : y + side, x : x + side]
        if side != self.size:
            image = Image.fromarray(np.ascontiguousarray(patch))
            patch = np.asarray(image.resize((self.size, self.size), Image.Resampling.BICUBIC))
        patch = np.rot90(patch, rng.integers(4))
        if rng.random() < 0.5:
            patch = patch[:, ::-1]
        patch = np.ascontiguousarray(patch[:, :, rng.permutation(3)] if rng.random() < 0.3 else patch, np.float32)
        patch = patch / np.float32(255.0)
        if rng.random() < 0.3:
            patch = np.clip(patch * rng.uniform(0.5, 1.1, size=3 if rng.random() < 0.5 else 1), 0, 1)
        return patch.astype(np.float32)


class DecodedPatches(torch.utils.data.IterableDataset):
    """Endless batches (decoded, clean: float32 [B,3,S,S]; level: float32 [B] in 0..1000): what `codec` makes of
    pictures at every level. Clean values lie in 0..1, decoded ones may lie beyond and are not rounded to 8 bits.

    Crops come from a pool of coded pieces of PIECE pixels a side, of which one is replaced a batch (0.9 GB for all
    loaders together). `codec` is set to the precision that the machine computes fast. Raises ValueError for S > PIECE.
    """

    PIECE, POOL = 256, 1500

    def __init__(self, pictures: list[np.ndarray], count: int, size: int, seed: int, codec: NightCodec):
        if size > self.PIECE:
            raise ValueError(f"size {size}: at most {self.PIECE} for a post-filter, whose crops come from such pieces")
        self.pictures, self.count, self.size, self.seed = pictures, count, size, seed
        self.codec = codec.set_precision("auto")

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        most = self.POOL // (worker.num_workers if worker else 1)
        pool = [self.coded(rng) for _ in range(16)]
        while True:
            fresh = self.coded(rng)
            if len(pool) < most:
                pool.append(fresh)
            else:
                pool[rng.integers(len(pool))] = fresh
            crops = [self.crop(pool[rng.integers(len(pool))], rng) for _ in range(self.count)]
            decoded, clean, level = zip(*crops, strict=True)
            yield torch.stack(decoded), torch.stack(clean), torch.tensor(level)

    def coded(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, float]:
        """(decoded, as float16; clean, uint8: [3,s,s], s a multiple of 16; level)"""
        if rng.random() < PAGES_CODED:
            clean = np.array(rendered_page(self.PIECE, random.Random(int(rng.integers(1 << 30)))))
        else:
            clean = self.piece(rng)
        clean = torch.from_numpy(clean).permute(2, 0, 1).contiguous()
        level = int(rng.integers(LEVELS + 1))
        with torch.inference_mode():
            decoded, _ = self.codec.finishing_pass(clean[None].float() / 255.0, torch.tensor([float(level)]))
        return decoded[0].half(), clean, float(level)

    def piece(self, rng: np.random.Generator) -> np.ndarray:
        """uint8 [s,s,3]: a part of a picture, often reduced, turned, mirrored, some of them grey."""
        picture = self.pictures[rng.integers(len(self.pictures))]
        height, width = picture.shape[:2]
        wanted = int(self.PIECE * (rng.uniform(1.0, 2.0) if rng.random() < 0.5 else 1.0))
        side = min(wanted, height, width)
        size = min(self.PIECE, side // 16 * 16)
        y, x = rng.integers(height - side + 1), rng.integers(width - side + 1)
        image = Image.fromarray(np.ascontiguousarray(picture[y : y + side, x : x + side]))
        if wanted > self.PIECE:
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        if rng.random() < 0.05:
            image = image.convert("L").convert("RGB")
        patch = np.rot90(np.asarray(image)[:size, :size], rng.integers(4))
        return np.array(patch[:, ::-1] if rng.random() < 0.5 else patch)

    def crop(self, coded: tuple[Tensor, Tensor, float], rng: np.random.Generator) -> tuple[Tensor, Tensor, float]:
        decoded, clean, level = coded
        y, x = (2 * int(rng.integers((n - self.size) // 2 + 1)) for n in clean.shape[1:])
        pair = [t[:, y : y + self.size, x : x + self.size].float() for t in (decoded, clean)]
        turns, mirrored = int(rng.integers(4)), rng.random() < 0.5
        pair = [torch.rot90(t, turns, (1, 2)) for t in pair]
        pair = [t.flip(2) if mirrored else t for t in pair]
        return pair[0], pair[1] / 255.0, level


class ReducedPatches(torch.utils.data.IterableDataset):
    """Endless batches (small: float32 [B,1,S,S], large: float32 [B,1,s*S,s*S]) of luma in 0..1, reduced by Pillow's
    bicubic filter on 8-bit RGB. sizes: factors by which each picture is reduced before; pages: how many rendered
    pages (text, rules, shapes) are there beside the photographs."""

    def __init__(
        self, pictures: list[np.ndarray], count: int, size: int, seed: int, scale: int,
        sizes: tuple[float, ...] = (1.0, 0.7, 0.5), pages: int = 0,
    ):  # fmt: skip
        self.count, self.size, self.seed, self.scale = count, size, seed, scale
        self.pairs = []
        for picture in pictures:
            for factor in sizes:
                pair = self.pair(picture, factor)
                if min(pair[0].shape) >= size:
                    self.pairs.append(pair)
        for number in range(pages):
            self.pairs.append(self.pair(turned_page(max(384, size * scale), random.Random(number)), 1.0))
        self.weights = np.cumsum([p[0].size for p in self.pairs], dtype=float)
        self.weights /= self.weights[-1]

    def pair(self, picture: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
        """(small, large): float16 luma."""
        s = self.scale
        height, width = (int(n * factor) // s * s for n in picture.shape[:2])
        image = Image.fromarray(picture)
        if factor != 1.0:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        image = image.crop((0, 0, width, height))
        small = image.resize((width // s, height // s), Image.Resampling.BICUBIC)
        return luma(np.asarray(small)).astype(np.float16), luma(np.asarray(image)).astype(np.float16)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        s, size = self.scale, self.size
        while True:
            small = np.empty((self.count, 1, size, size), np.float32)
            large = np.empty((self.count, 1, s * size, s * size), np.float32)
            for k, index in enumerate(np.searchsorted(self.weights, rng.random(self.count))):
                low, high = self.pairs[index]
                y, x = (rng.integers(n - size + 1) for n in low.shape)
                turns, mirrored = rng.integers(4), rng.random() < 0.5
                contrast = rng.uniform(0.6, 1.0) if rng.random() < 0.2 else 1.0
                cuts = low[y : y + size, x : x + size], high[s * y : s * (y + size), s * x : s * (x + size)]
                for target, cut in zip((small, large), cuts, strict=True):
                    cut = np.rot90(cut, turns)
                    target[k, 0] = contrast * (cut[:, ::-1] if mirrored else cut).astype(np.float32)
            yield torch.from_numpy(small), torch.from_numpy(large)


def turned_page(size: int, rng: random.Random) -> np.ndarray:
    """A rendered page, turned by any angle and reduced, so that its edges lie anywhere and are as sharp as the grid
    allows: uint8 [size,size,3]."""
    side = int(size * rng.uniform(1.4, 2.5))
    page = Image.fromarray(rendered_page(int(side * 1.45), rng))
    page = page.rotate(rng.uniform(0, 360) if rng.random() < 0.7 else 0, Image.Resampling.BICUBIC)
    start = (page.width - side) // 2
    page = page.crop((start, start, start + side, start + side))
    return np.asarray(page.resize((size, size), Image.Resampling.BICUBIC))


def luma(samples: np.ndarray) -> np.ndarray:
    """uint8 [H,W,3] -> float32 [H,W] in 0..1 (Rec. 601, full range)."""
    return (samples.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)) / np.float32(255.0)


# -- the loop


@dataclasses.dataclass(frozen=True)
class Recipe:
    """batch: samples a step; size: side of a sample in input pixels; rate: Adam's; decay: share of the time in which
    the rate falls; noise: shares of Gaussian, Poisson-Gaussian and camera noise; sizes: factors by which enlargers'
    pictures are reduced before; pages: rendered ones among them; optimiser: muon | adam."""

    batch: int = 4
    size: int = 96
    rate: float = 1e-3
    decay: float = 0.4
    noise: tuple[float, float, float] = (0.6, 0.15, 0.25)
    sizes: tuple[float, ...] = (1.0, 0.7, 0.5)
    pages: int = 0
    optimiser: str = "muon"


RECIPES = {
    "denoise": {"night": Recipe(rate=2e-3), "dncnn": Recipe(batch=8, size=48, noise=(1.0, 0.0, 0.0))},
    "postfilter": {"night": Recipe(size=128, rate=7e-4)},
    "superres": {
        "night": Recipe(batch=16, size=48, rate=2e-3),
        "fsrcnn": Recipe(batch=16, size=32, rate=2e-3, decay=0.7, optimiser="adam"),
        "srcnn": Recipe(batch=16, size=20, rate=2e-3, decay=0.7),
    },
}


def variant_parts(task: str, variant: str | None) -> tuple[str, int]:
    """`night`, `fsrcnn-x3` ... -> (network, scale). Raises ValueError listing what there is."""
    name, _, scale = (variant or "night").partition("-x")
    known = NETWORKS[task]
    if name not in known or (scale and (task != "superres" or scale not in ("2", "3", "4"))):
        names = list(known) if task != "superres" else [f"{n}-x{s}" for n in known for s in (2, 3, 4)]
        raise ValueError(f"variant {variant!r} of {task}: choose one of {', '.join(names)}")
    return name, int(scale or (2 if task == "superres" else 1))


def train(
    task: str,
    data: list[Path],
    out: Path,
    variant: str | None = None,
    minutes: float = 60.0,
    resume: bool = False,
    device: str = "cpu",
    seed: int = 1,
    say=print,
    start: Path | None = None,
    recipe: Recipe | None = None,
    config: dict | None = None,
    loaders: int = 0,
    codec: Path | None = None,
) -> Path:
    """Train `task` (denoise | superres | postfilter) for `minutes`; returns the path of the weights,
    out/<task>-<variant>.safetensors.

    Writes out/log.jsonl (a line every 50 steps), out/state.pt every 5 minutes, out/trunk.pt when the rate starts to
    fall. `start`: a weights file whose tensors are taken over where name and shape agree (merged kernels become the
    3x3 branch), and its sizes unless `config` names others; with `resume` those of the checkpoint. `loaders`: processes
    that make batches (0: this one, right for one CPU thread). `codec`: the model whose pictures a post-filter learns to
    mend. The .pt files are this function's own; it loads them with weights_only. Raises FileNotFoundError without
    pictures, ValueError for arguments and files that do not go together.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    name, scale = variant_parts(task, variant)
    if (task == "postfilter") != (codec is not None):
        raise ValueError("a codec's model goes with a post-filter, which needs one; give both or neither")
    coder = load_model(codec) if codec else None
    of = {"task": task, "network": name, "scale": scale, "codec": coder.identity if coder else ""}
    recipe = recipe or RECIPES[task][name]
    torch.manual_seed(seed)
    kind = NETWORKS[task][name]
    checkpoint = out / "trunk.pt"
    if (out / "state.pt").exists() and not checkpoint.exists():
        checkpoint = out / "state.pt"
    saved = None
    if resume and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=device)
        if saved.get("of", of) != of:
            raise ValueError(
                f"{checkpoint} is of {saved['of']}, not of {of}: resume with the same, or in another folder"
            )
        config = config or saved.get("config")
    if config is None and start and type((file := load_network(start)).network.config) is kind.config_class:
        config = dataclasses.asdict(file.network.config)
        config.pop("merged", None)
    config = {k: tuple(v) if isinstance(v, list) else v for k, v in (config or {}).items()}
    sizes = dict(config, **({"scale": scale} if task == "superres" else {}))
    network = kind(kind.config_class(**sizes))
    if start:
        taken = take_over(network, start)
        say(f"{taken} of {len(network.state_dict())} tensors start from {start}")
    network = network.to(device).to(memory_format=torch.channels_last).train()
    # What starts as bicubic moves slowly, and so does a deconvolution (as FSRCNN's authors have it).
    slow = [p for key, p in network.named_parameters() if key == "linear" or key.startswith("enlarge.")]
    optimiser = Optimiser(network.parameters(), recipe.rate, slow, recipe.optimiser, betas=(0.9, 0.99))
    average = {k: v.detach().clone() for k, v in network.state_dict().items()}
    step, past, falling = 0, 0.0, False
    if saved:
        network.load_state_dict(saved["network"])
        optimiser.load_state_dict(saved["optimiser"])
        average, step, past = saved["average"], saved["step"], saved["seconds"]
        torch.manual_seed(seed + step)
        say(f"going on from {checkpoint} at step {step}")
    smallest = recipe.size * (scale if task == "superres" else 1)
    if task == "postfilter":
        smallest = -(-smallest // 16) * 16  # pieces are whole cells of the codec
    pictures = load_pictures(data, smallest)
    if task == "denoise":
        batches = NoisyPatches(pictures, recipe.batch, recipe.size, seed + step, recipe.noise)
    elif task == "postfilter":
        batches = DecodedPatches(pictures, recipe.batch, recipe.size, seed + step, coder)
    else:
        batches = ReducedPatches(pictures, recipe.batch, recipe.size, seed + step, scale, recipe.sizes, recipe.pages)
    loader = iter(
        torch.utils.data.DataLoader(batches, batch_size=None, num_workers=loaders, pin_memory=device == "cuda")
    )
    parameters = sum(p.numel() for p in network.parameters())
    say(f"{len(pictures)} pictures, {parameters / 1e3:.0f} k parameters, {device}, {recipe}")

    def save(path: Path) -> None:
        state = {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "average": average}
        spent = past + time.monotonic() - started
        state |= {"config": dataclasses.asdict(network.config), "of": of}
        torch.save({**state, "step": step, "seconds": spent}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)

    path = out / f"{task}-{name}{f'-x{scale}' if task == 'superres' else ''}.safetensors"
    where = torch.device(device).type
    started = saved_at = time.monotonic()
    budget, first, tally = minutes * 60.0, step, Tally()
    watch, recycled = Watch(network), 0
    usual_norm = 1.0  # running mean of the gradient's norm, and where it is clipped
    with (out / "log.jsonl").open("a") as log:
        while (elapsed := time.monotonic() - started) < budget:
            factor = min(1.0, (step - first + 1) / 200)
            progress = elapsed / budget
            if progress > 1 - recipe.decay:
                if not falling:
                    falling = True
                    save(out / "trunk.pt")
                factor *= 0.5 * (1 + math.cos(math.pi * (progress - 1 + recipe.decay) / recipe.decay))
            optimiser.set_rate(recipe.rate * max(factor, 1e-3))
            parts = [part.to(device, non_blocking=True) for part in next(loader)]
            turn = (step - first) % WATCH_EVERY
            if turn == 0 and (progress < 1 - recipe.decay / 2 or step == first):
                watch.start()
            elif turn == WATCH_FOR and watch.watching:
                recycled += watch.recycle(average)
            with torch.autocast(where, dtype=torch.bfloat16, enabled=native_bfloat16(where)):
                result = network(parts[0]) if task == "superres" else network(parts[0], parts[2])
            error = (result.float() - parts[1]).square().mean((1, 2, 3))
            if task == "denoise":  # the logarithm makes all noise levels count alike: it is the PSNR
                loss = (error + 1e-6).log().mean()
            elif task == "postfilter":  # what is gained on the decoded picture; 0.23 is a decibel
                before = (parts[0] - parts[1]).square().mean((1, 2, 3))
                loss = ((error + 1e-6).log() - (before + 1e-6).log()).mean()
            elif falling:  # what PSNR counts; from the start it learns more slowly than the absolute error
                loss = error.mean()
            else:
                loss = (result.float() - parts[1]).abs().mean()
            optimiser.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(network.parameters(), usual_norm)
            step += 1
            if not torch.isfinite(norm):
                say(f"step {step}: gradient is not finite, skipped")
                continue
            usual_norm += 0.02 * (min(norm.item(), 2 * usual_norm) - usual_norm)
            optimiser.step()
            keep = min(0.999, (1 + step) / (10 + step))
            with torch.no_grad():
                for key, value in network.state_dict().items():
                    if value.is_floating_point():
                        average[key].lerp_(value, 1 - keep)
            tally.add(loss, error, parts[3] if task == "denoise" else None, norm)
            if step % 50 == 0:
                line = {
                    "step": step,
                    "seconds": round(past + elapsed, 1),
                    "rate": recipe.rate * factor,
                    "recycled": recycled,
                    **tally.means(),
                }
                log.write(json.dumps(line) + "\n")
                log.flush()
                if step % 500 == 0:
                    say(json.dumps(line))
                tally = Tally()
            if time.monotonic() - saved_at > 300:
                saved_at = time.monotonic()
                save(out / "state.pt")
    if not falling:  # so few steps that the last of them began before the fall
        save(out / "trunk.pt")
    network.load_state_dict(average)
    final = network.cpu().eval()
    if isinstance(final, NightUpscaler):
        final = final.merge()
    card = {
        "scale": str(scale),
        "steps": str(step),
        "minutes": f"{(past + time.monotonic() - started) / 60:.0f}",
        "pictures": str(len(pictures)),
        "macs_per_input_pixel": f"{macs_per_pixel(final, task):.0f}",
        **({"codec": coder.identity} if coder else {}),
    }
    identity = save_network(final, task, name, path, **card)
    say(f"wrote {path}, model {identity}, {step} steps")
    return path


class Tally:
    """Sums of the last steps for the log; `psnr` by kind of noise where there are kinds."""

    def __init__(self):
        self.loss, self.norm, self.steps = 0.0, 0.0, 0
        self.decibels: dict[str, list[float]] = {}

    def add(self, loss: Tensor, error: Tensor, kind: Tensor | None, norm: Tensor) -> None:
        self.loss, self.norm, self.steps = self.loss + loss.item(), self.norm + norm.item(), self.steps + 1
        names = ("gaussian", "poisson", "camera")
        kinds = kind.tolist() if kind is not None else [None] * len(error)
        for which, value in zip(kinds, error.detach().cpu().clamp_min(1e-9).log10().tolist(), strict=True):
            self.decibels.setdefault("psnr" if which is None else f"psnr_{names[which]}", []).append(-10 * value)

    def means(self) -> dict[str, float]:
        figures = {key: round(float(np.mean(values)), 3) for key, values in sorted(self.decibels.items())}
        return {"loss": round(self.loss / self.steps, 5), "norm": round(self.norm / self.steps, 4), **figures}


def take_over(network: torch.nn.Module, path: Path) -> int:
    """Copy tensors of a weights file into `network` where name and shape agree; returns how many.

    Layers that an enlarger has beyond those of the file start as the identity (Chen et al., 2016), so that it does
    what the file's does.
    """
    source = load_network(path).network.state_dict()
    state = network.state_dict()
    same = {k: v for k, v in source.items() if k in state and v.shape == state[k].shape}
    state.update(same)
    network.load_state_dict(state)
    with torch.no_grad():
        for layer_name, layer in network.named_modules():
            if hasattr(layer, "squeeze") and f"{layer_name}.weight" in same:
                # the file's kernel is the sum: take the other branches out of it
                layer.weight.sub_(layer.kernel() - layer.weight)
        if isinstance(network, NightUpscaler):
            for number, layer in enumerate(network.body):
                if f"body.{number}.weight" not in same and f"body.{number}.weight" not in source:
                    layer.weight.sub_(layer.kernel() - identity_kernel(*layer.weight.shape[:2]))
                    network.slopes[number + 1].fill_(1.0)
    return len(same)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=sorted(NETWORKS))
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of pictures")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variant", help="night (default), dncnn; night-x2, fsrcnn-x3, srcnn-x2 ...")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--size", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--decay", type=float, help="share of the time in which the learning rate falls")
    parser.add_argument("--optimiser", choices=("muon", "adam"))
    parser.add_argument("--noise", type=float, nargs=3, metavar="SHARE", help="of Gaussian, Poisson-Gaussian, camera")
    parser.add_argument("--sizes", type=float, nargs="+", help="by which enlargers' pictures are reduced before")
    parser.add_argument("--pages", type=int, help="rendered pages among enlargers' pictures")
    parser.add_argument("--codec", type=Path, help="the model whose pictures a post-filter learns to mend")
    parser.add_argument("--start", type=Path, help="weights to start from")
    parser.add_argument("--config", type=json.loads, help='sizes of the network as JSON, e.g. {"depth": 12}')
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--loaders", type=int, default=0, help="processes that make batches; 8 beside a GPU")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    if (a.task == "postfilter") != (a.codec is not None):
        parser.error("--codec MODEL.safetensors goes with postfilter, which needs it")
    name, _ = variant_parts(a.task, a.variant)
    names = ("batch", "size", "rate", "decay", "optimiser", "noise", "sizes", "pages")
    changes = {k: getattr(a, k) for k in names if getattr(a, k) is not None}
    recipe = dataclasses.replace(RECIPES[a.task][name], **changes)
    train(
        a.task, a.data, a.out, a.variant, a.minutes, a.resume, a.device, a.seed,
        start=a.start, recipe=recipe, config=a.config, loaders=a.loaders, codec=a.codec,
    )  # fmt: skip


if __name__ == "__main__":
    main()
