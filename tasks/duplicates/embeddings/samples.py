"""What the embedding networks learn from: pictures, the attacks that make copies of them, batches without end.

Where a folder has an INDEX.csv with the columns `file` and `original`, pictures of held-out originals
(codec/training/splits.py) are left out, so that figures can be taken on them. The classifier reads *.npz files with
train_x uint8 [n,32,32,3], train_y and, for its log, test_x, test_y. Needs torch, numpy and Pillow alone, as train.py
does, whose loop takes the batches.
"""

import io
import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps
from torch import Tensor

from codec.training.splits import picture_files

HELD = 224  # shorter side at which training pictures are held
WORKING = 192  # side at which copies are made
SOURCES = 64  # different pictures in a batch of the copy network, each seen twice


def load_pictures(folders: list[Path], side: int) -> tuple[list[Image.Image], list[int]]:
    """Pictures to train on, RGB with a shorter side of at most `side`, and a number that tiles of one original share.

    Raises FileNotFoundError when there is none.
    """
    pictures, group, numbers = [], [], {}
    for path, original, held in picture_files(folders):
        if held:
            continue
        try:
            with Image.open(path) as image:
                picture = ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, ValueError, SyntaxError):
            continue
        if min(picture.size) > side:
            scale = side / min(picture.size)
            size = [max(1, round(length * scale)) for length in picture.size]
            picture = picture.resize(size, Image.Resampling.BOX, reducing_gap=2.0)
        pictures.append(picture)
        group.append(numbers.setdefault(original, len(numbers)))
    if not pictures:
        raise FileNotFoundError(f"no picture to train on in {', '.join(map(str, folders))}")
    return pictures, group


# -- what a copy is


def cropped(image: Image.Image, rng: random.Random, least: float) -> Image.Image:
    """A part of at least `least` of the area, its proportions up to 4:3 from the picture's."""
    share, stretch = rng.uniform(least, 1.0), math.exp(rng.uniform(-0.28, 0.28))
    width = min(image.width, max(8, round(image.width * math.sqrt(share * stretch))))
    height = min(image.height, max(8, round(image.height * math.sqrt(share / stretch))))
    x, y = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    return image.crop((x, y, x + width, y + height))


def random_colour(rng: random.Random) -> tuple[int, int, int]:
    if rng.random() < 0.5:
        return rng.choice([(0, 0, 0), (255, 255, 255), (128, 128, 128)])
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def rotated(image: Image.Image, rng: random.Random) -> Image.Image:
    if rng.random() < 0.4:
        return image.transpose(rng.choice([Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180,
                                           Image.Transpose.ROTATE_270]))  # fmt: skip
    angle = rng.choice([-1, 1]) * rng.uniform(3, 60)
    return image.rotate(angle, Image.Resampling.BILINEAR, expand=rng.random() < 0.7, fillcolor=random_colour(rng))


def recoloured(image: Image.Image, rng: random.Random) -> Image.Image:
    """Brightness, contrast and gamma by channel, saturation."""
    table: list[int] = []
    gain, bias, gamma = rng.uniform(0.6, 1.5), rng.uniform(-45, 45), math.exp(rng.uniform(-0.4, 0.4))
    ramp = np.arange(256) / 255.0
    for _ in range(3):
        own = gain * rng.uniform(0.85, 1.18)
        curve = ((ramp**gamma - 0.5) * own + 0.5) * 255 + bias
        table += np.clip(np.rint(curve), 0, 255).astype(int).tolist()
    image = image.point(table)
    grey = image.convert("L").convert("RGB")
    return Image.blend(grey, image, rng.uniform(0.3, 1.6))


def overlaid(image: Image.Image, rng: random.Random) -> Image.Image:
    """Words, bars or another shape on top of the picture."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(1, 3)):
        size = int(min(image.size) * rng.uniform(0.06, 0.25)) + 6
        x, y = rng.uniform(-0.1, 0.8) * image.width, rng.uniform(0.0, 0.9) * image.height
        if rng.random() < 0.7:
            letters = "".join(rng.choices("abcdefghijklmnopqrstuvwxyzABCDEFGH 0123456789 ©!?", k=rng.randint(3, 14)))
            draw.text((x, y), letters, fill=random_colour(rng), font=ImageFont.load_default(size))
        else:
            box = (x, y, x + size * rng.uniform(0.5, 4), y + size * rng.uniform(0.5, 1.5))
            (draw.rectangle if rng.random() < 0.6 else draw.ellipse)(box, fill=random_colour(rng))
    return image


def bordered(image: Image.Image, rng: random.Random) -> Image.Image:
    """A frame, or bars on two sides, of one colour or of the picture itself out of focus."""
    x, y = (int(side * rng.uniform(0.03, 0.3)) for side in image.size)
    style = rng.random()
    x, y = (0, y) if style < 0.3 else (x, 0) if style < 0.6 else (x, y)
    size = (image.width + 2 * x, image.height + 2 * y)
    if rng.random() < 0.75:
        ground = Image.new("RGB", size, random_colour(rng))
    else:
        ground = image.resize((12, 12), Image.Resampling.BOX).resize(size, Image.Resampling.BICUBIC)
    ground.paste(image, (x, y))
    return ground


def noisy(image: Image.Image, rng: random.Random) -> Image.Image:
    grain = Image.effect_noise(image.size, rng.uniform(8, 50))
    if rng.random() < 0.5:
        return ImageChops.add(image, Image.merge("RGB", [grain] * 3), 1.0, -128)
    planes = [ImageChops.offset(grain, rng.randrange(64), rng.randrange(64)) for _ in range(3)]
    return ImageChops.add(image, Image.merge("RGB", planes), 1.0, -128)


def through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return Image.open(io.BytesIO(out.getvalue())).convert("RGB")


def shrunk(image: Image.Image, rng: random.Random) -> Image.Image:
    scale = rng.uniform(0.15, 0.7)
    small = image.resize([max(4, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
    return small.resize(image.size, rng.choice([Image.Resampling.BILINEAR, Image.Resampling.NEAREST]))


def copy_of(image: Image.Image, rng: random.Random, size: int, strong: bool) -> np.ndarray:
    """A copy as they turn up in collections: uint8 [size,size,3]. Not `strong`: as the original would be, or nearly."""

    def sometimes(chance: float) -> bool:
        return rng.random() < (chance if strong else 0.15 * chance)

    if sometimes(0.55):
        image = cropped(image, rng, 0.3 if strong else 0.85)
    image = image.resize((WORKING, WORKING), Image.Resampling.BILINEAR, reducing_gap=1.5)
    if sometimes(0.35):
        image = ImageOps.mirror(image) if rng.random() < 0.75 else ImageOps.flip(image)
    if sometimes(0.25):
        image = overlaid(image, rng)
    if sometimes(0.45):
        image = recoloured(image, rng)
    if sometimes(0.12):
        image = image.convert("L").convert("RGB")
    if strong and rng.random() < 0.35:
        image = rotated(image, rng)
    if strong and rng.random() < 0.25:
        image = bordered(image, rng)
    if sometimes(0.2):
        image = image.filter(ImageFilter.GaussianBlur(math.exp(rng.uniform(math.log(0.6), math.log(5)))))
    if sometimes(0.2):
        image = noisy(image, rng)
    if sometimes(0.2):
        image = shrunk(image, rng)
    if sometimes(0.4):
        image = through_jpeg(image, rng.randint(5, 75))
    return np.asarray(image.resize((size, size), Image.Resampling.BOX))


# -- batches


def tensor_of(views: list[np.ndarray]) -> Tensor:
    batch = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).to(memory_format=torch.channels_last)
    return batch.float() / 255.0


def copy_batches(pictures, group, size: int, rng: random.Random) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (originals, copies), each of SOURCES pictures of different originals."""
    of: dict[int, list[Image.Image]] = {}
    for picture, number in zip(pictures, group, strict=True):
        of.setdefault(number, []).append(picture)
    while True:
        pairs = []
        for number in rng.sample(sorted(of), min(SOURCES, len(of))):
            source = rng.choice(of[number])
            if rng.random() < 0.7:  # part of a tile is one more picture
                source = cropped(source, rng, 0.35)
            pairs.append((copy_of(source, rng, size, strong=False), copy_of(source, rng, size, strong=True)))
        yield tensor_of([a for a, _ in pairs]), tensor_of([b for _, b in pairs])


def plain_batches(pictures, size: int, rng: random.Random, count: int = 96) -> Iterator[Tensor]:
    """Endless batches [count,3,size,size] of parts of pictures, some mirrored."""
    while True:
        views = []
        for picture in rng.choices(pictures, k=count):
            part = cropped(picture, rng, 0.3)
            part = ImageOps.mirror(part) if rng.random() < 0.5 else part
            views.append(np.asarray(part.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0)))
        yield tensor_of(views)


def load_labelled(folders: list[Path]) -> dict[str, np.ndarray]:
    """train_x, train_y and where there are some test_x, test_y of all *.npz under the folders."""
    parts: dict[str, list[np.ndarray]] = {}
    for path in sorted(p for folder in folders for p in Path(folder).rglob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            for name in set(file.files) & {"train_x", "train_y", "test_x", "test_y"}:
                parts.setdefault(name, []).append(file[name])
    if "train_x" not in parts or "train_y" not in parts:
        raise FileNotFoundError(
            f"no *.npz with train_x and train_y in {', '.join(map(str, folders))}: the classifier learns from CIFAR-10"
        )
    return {name: np.concatenate(values) for name, values in parts.items()}


def labelled_batches(data: dict, rng: np.random.Generator, count: int = 128) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (pictures, labels): shifted by up to 4 pixels, mirrored, a patch blanked (Cutout, DeVries 2017)."""
    x, y = np.pad(data["train_x"], ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect"), data["train_y"].astype(np.int64)
    while True:
        chosen = rng.integers(0, len(y), count)
        views = []
        for at in chosen:
            row, column = rng.integers(0, 9, 2)
            view = x[at, row : row + 32, column : column + 32]
            view = view[:, ::-1] if rng.random() < 0.5 else view
            view = np.array(view)
            row, column = rng.integers(0, 25, 2)
            view[row : row + 8, column : column + 8] = 128
            views.append(view)
        yield tensor_of(views), torch.from_numpy(y[chosen])
