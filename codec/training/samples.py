"""What the trainings learn from: pictures of folders, crops of them, rendered pages. For CPUs; on GPUs device_crops.py.

Pictures that splits.py holds out are never among them. Needs torch, numpy and Pillow alone.
"""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from codec.training.device_crops import GREY
from codec.training.splits import picture_files

SYNTHETIC = 0.06  # share of samples that are rendered text and line art
REDUCED = 0.35  # share of the others that are a larger piece made smaller: sharper than the pictures themselves
PAGES = 256  # rendered pages that a GPU's samples are cut from


def load_pictures(folders: list[Path], smallest: int) -> list[np.ndarray]:
    """Every readable picture with both sides of at least `smallest` pixels, as uint8 [H,W,3], sorted by path.

    Those that splits.py keeps for validation are left out. Raises FileNotFoundError when there is none.
    """

    def read(path: Path) -> np.ndarray | None:
        try:
            with Image.open(path) as image:
                picture = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except OSError:
            return None
        return picture if min(picture.shape[:2]) >= smallest else None

    with ThreadPoolExecutor() as pool:
        read_pictures = pool.map(read, [path for path, _, held in picture_files(folders) if not held])
        pictures = [picture for picture in read_pictures if picture is not None]
    if not pictures:
        raise FileNotFoundError(f"no picture of at least {smallest} pixels a side in {', '.join(map(str, folders))}")
    return pictures


def rendered_page(size: int, rng: random.Random) -> np.ndarray:
    """Text, rules, boxes and curves as on scans and screenshots: uint8 [size,size,3]."""
    light = rng.random() < 0.7
    paper = tuple(rng.randint(225, 255) if light else rng.randint(0, 60) for _ in range(3))
    image = Image.new("RGB", (size, size), paper)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(0, 6)):
        _draw_figure(draw, size, light, rng)
    letters = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,;:-()/%&"
    y, ink, height = rng.randint(-5, 20), _ink(light, rng), rng.randint(8, 26)
    font = ImageFont.load_default(height)
    while y < size:
        if rng.random() < 0.15:
            ink, height = _ink(light, rng), rng.randint(8, 40)
            font = ImageFont.load_default(height)
        text = "".join(rng.choice(letters) for _ in range(rng.randint(5, 60)))
        draw.text((rng.randint(-10, 30), y), text, fill=ink, font=font)
        y += int(height * rng.uniform(1.1, 1.8))
    return np.asarray(image)


def _ink(light: bool, rng: random.Random) -> tuple[int, ...]:
    if rng.random() < 0.7:
        grey = rng.randint(0, 80) if light else rng.randint(170, 255)
        return (grey, grey, grey)
    return tuple(rng.randint(0, 255) for _ in range(3))


def _draw_figure(draw: ImageDraw.ImageDraw, size: int, light: bool, rng: random.Random) -> None:
    across, down = (sorted(rng.randint(-20, size + 20) for _ in range(2)) for _ in range(2))
    box = (across[0], down[0], across[1], down[1])
    kind = rng.random()
    if kind < 0.4:
        fill = _ink(light, rng) if rng.random() < 0.5 else None
        draw.rectangle(box, fill=fill, outline=_ink(light, rng), width=rng.randint(1, 3))
    elif kind < 0.6:
        draw.ellipse(box, outline=_ink(light, rng), width=rng.randint(1, 3))
    else:
        draw.line(box, fill=_ink(light, rng), width=rng.randint(1, 4))


def crop(pictures: list[np.ndarray], size: int, rng: random.Random) -> np.ndarray:
    """One augmented sample uint8 [size,size,3]: place, flip, quarter turn, sometimes reduced, sometimes rendered."""
    if rng.random() < SYNTHETIC:
        return rendered_page(size, rng)
    picture = rng.choice(pictures)
    height, width = picture.shape[:2]
    side = size
    if rng.random() < REDUCED and min(height, width) > size:
        side = rng.randint(size, min(height, width, size * 2))
    top, left = rng.randint(0, height - side), rng.randint(0, width - side)
    piece = picture[top : top + side, left : left + side]
    if side != size:
        piece = np.asarray(Image.fromarray(piece).resize((size, size), Image.Resampling.LANCZOS))
    if rng.random() < 0.5:
        piece = piece[:, ::-1]
    piece = np.rot90(piece, rng.randrange(4))
    if rng.random() < GREY:
        piece = np.repeat(piece.mean(2, keepdims=True), 3, 2).astype(np.uint8)
    return piece


def batch(pictures: list[np.ndarray], count: int, size: int, rng: random.Random) -> torch.Tensor:
    """float32 [count,3,size,size] in 0..1."""
    samples = np.stack([crop(pictures, size, rng) for _ in range(count)])
    return torch.from_numpy(samples).permute(0, 3, 1, 2).float() / 255.0


def common_side(pictures: list[np.ndarray], wanted: int) -> int:
    """Of crops that fit into all pictures, whole hyper-latent columns if they can be."""
    side = min(wanted, *(min(picture.shape[:2]) for picture in pictures))
    return side // 64 * 64 or side
