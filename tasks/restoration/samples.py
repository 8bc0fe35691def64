"""What the restoration networks learn from: noisy and reduced samples, cut from photographs without end.

    noise      gaussian, poisson_gaussian, camera: (clean patch, generator) -> (noisy, target, sigma that is told)
    batches    NoisyPatches (denoisers), ReducedPatches (enlargers)

Needs torch, numpy and Pillow alone, as train.py does, whose loop takes the batches. The camera is also what
evaluate.py measures with.
"""

import io
import math
import random
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from codec.training.samples import rendered_page
from tasks.restoration.noise import noise_sigma

SIGMA_RANGE = (2.0, 58.0)  # of the Gaussian samples, 0..255 scale
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
