"""Maps of labels, masks and codes are told from photographs, screenshots, gradients and noise."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from skimage import data

from codec.pictures.labels import exact_values


def regions(count: int, height: int = 240, width: int = 320, seed: int = 0) -> np.ndarray:
    """[H,W] numbers 0..count-1 of the nearest of random points."""
    rng = np.random.default_rng(seed)
    points = rng.integers(0, (height, width), (count, 2))
    y, x = np.mgrid[0:height, 0:width]
    nearest = (y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2
    return nearest.argmin(-1)


def palette_picture(numbers: np.ndarray, colours: np.ndarray) -> Image.Image:
    image = Image.fromarray(numbers.astype(np.uint8), "P")
    image.putpalette(colours.astype(np.uint8).tobytes())
    return image


rng = np.random.default_rng(4)
COLOURS = rng.integers(0, 256, (300, 3))
LABELS = {
    "classes 0..20": Image.fromarray(regions(21).astype(np.uint8)),
    "mask": Image.fromarray((regions(9) % 2 * 255).astype(np.uint8)),
    "bilevel": Image.fromarray((regions(9) % 2 * 255).astype(np.uint8)).convert("1"),
    "90 instances as grey": Image.fromarray((regions(90) * 2).astype(np.uint8)),
    "200 instances in colours": Image.fromarray(COLOURS[regions(200)].astype(np.uint8)),
    "palette": palette_picture(regions(60), COLOURS[:256]),
    "land cover, speckled": Image.fromarray(rng.choice([1, 2, 5, 8, 11, 14, 16], (200, 300)).astype(np.uint8)),
    "one value": Image.new("RGB", (90, 60), (238, 232, 220)),
    "two numbers of one colour": palette_picture(
        rng.integers(0, 200, (90, 90)), np.concatenate([COLOURS[:199], COLOURS[:1]])
    ),
    "with alpha": Image.merge("LA", [Image.fromarray(regions(12).astype(np.uint8) * 20)] * 2),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_recognised(name):
    assert exact_values(LABELS[name])


def screenshot() -> Image.Image:
    image = Image.new("RGB", (500, 300), (250, 250, 252))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 500, 28), fill=(40, 60, 90))
    for line in range(14):
        draw.text(
            (20, 45 + 18 * line),
            f"Total {line * 1284.9:,.2f} of what was sold",
            (30, 30, 40),
            ImageFont.load_default(13),
        )
    return image


def gradient() -> Image.Image:
    y, x = np.mgrid[0:300, 0:400]
    return Image.fromarray(np.stack([x * 0.2 + y * 0.1, 60 + y * 0.15, 120 + x * 0.1], 2).astype(np.uint8))


OTHERS = {
    "astronaut": Image.fromarray(data.astronaut()),
    "photograph in grey": Image.fromarray(data.camera()),
    "photograph with 256 colours": Image.fromarray(data.coffee()).quantize(256),
    "screenshot": screenshot(),
    "gradient": gradient(),
    "disc, antialiased": Image.fromarray(np.uint8(regions(150) * 1.7)).filter(ImageFilter.GaussianBlur(1)),
    "lens cap": Image.fromarray(np.random.default_rng(2).normal(20, 1.8, (300, 300)).astype(np.uint8)),
    "plaster": Image.fromarray(
        (np.random.default_rng(2).normal(200, 2, (300, 300, 1)) + np.array([0, -4, -9])).astype(np.uint8)
    ),
    "pale fog": Image.fromarray((128 + data.camera() // 12 + rng.integers(0, 2, (512, 512))).astype(np.uint8)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_pictures_are_not(name):
    assert exact_values(OTHERS[name]) is None


def test_tiny_pictures_end_in_an_answer():
    for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        for size in ((1, 1), (1, 5), (5, 1), (3, 3)):
            assert exact_values(Image.new(mode, size))
