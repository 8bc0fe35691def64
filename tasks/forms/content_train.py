"""Trains the network that tells kinds of pictures apart: photographs from folders, everything else drawn here.

    .venv/bin/python -m tasks.forms.content_train --photos DIR [DIR ...] [--out FILE] [--drawn 1500] [--steps 3000]

Kinds are drawn in many ways, then what happens to pictures happens to them (JPEG, resizing, noise of a scan, grey).
One fifth is held out: photographs by their file's name (the originals named in an INDEX.csv beside them, so that two
tiles of one scene stay together), drawings by other seeds and other fonts. Printed: accuracy and confusions there.
"""

import argparse
import csv
import hashlib
import io
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage

from tasks.forms.content import KINDS, WEIGHTS, features

_LETTERS = "abcdefghijklmnopqrstuvwxyz" * 3 + "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:-()/%&"
_FONT_FOLDERS = ("/usr/share/fonts/truetype/dejavu",)
HELD_OUT = 5  # every so many-th


def fonts(held_out: bool) -> list[str]:
    """Font files: sans for training, serif and monospaced ones held out; [] where none are installed."""
    names = sorted(str(path) for folder in _FONT_FOLDERS for path in Path(folder).glob("*.ttf"))
    return [name for name in names if ("Serif" in name or "MonoOblique" in name) == held_out]


class Pen:
    """Draws one picture of a kind, the same for the same seed."""

    def __init__(self, seed: int, held_out: bool = False):
        self.rng, self.noise = random.Random(seed), np.random.default_rng(seed)
        self.fonts = fonts(held_out)
        self.size = self.rng.randint(160, 520), self.rng.randint(160, 520)

    def draw(self, kind: str) -> Image.Image:
        return getattr(self, "_" + kind)().convert("RGB")

    def colour(self, dark: bool | None = None) -> tuple[int, int, int]:
        low, high = (0, 255) if dark is None else (0, 90) if dark else (170, 255)
        return tuple(self.rng.randint(low, high) for _ in range(3))

    def font(self, height: int):
        return ImageFont.truetype(self.rng.choice(self.fonts), height) if self.fonts else ImageFont.load_default(height)

    def word(self) -> str:
        return "".join(self.rng.choice(_LETTERS) for _ in range(self.rng.randint(1, 11)))

    def lines(self, draw, box, height: int, ink, font=None) -> None:
        left, top, right, bottom = box
        font = font or self.font(height)
        y = top
        while y + height < bottom:
            text = ""
            while draw.textlength(text, font=font) < (right - left) * self.rng.choice((0.4, 0.95, 0.98, 0.98)):
                text += self.word() + " "
            draw.text((left, y), text[: len(text) - 12], fill=ink, font=font)
            y += int(height * self.rng.uniform(1.25, 1.5))

    def _text(self) -> Image.Image:
        """Pages, forms, code on dark ground; a share of them scanned."""
        light = self.rng.random() < 0.85
        grey = self.rng.random() < 0.7
        paper = (self.rng.randint(225, 255),) * 3 if grey and light else self.colour(dark=not light)
        image = Image.new("RGB", self.size, paper)
        draw = ImageDraw.Draw(image)
        draw.fontmode = "1" if self.rng.random() < 0.15 else "L"
        ink, height = ((self.rng.randint(0, 90),) * 3 if light else self.colour(False)), self.rng.randint(9, 26)
        columns = self.rng.choice((1, 1, 2))
        margin, width = self.rng.randint(4, 50), self.size[0] // columns
        for column in range(columns):
            left = column * width + margin
            self.lines(draw, (left, margin, left + width - 2 * margin, self.size[1] - margin), height, ink)
        if self.rng.random() < 0.3:
            for y in range(margin, self.size[1], height * 4):
                draw.line((margin, y, self.size[0] - margin, y), fill=ink)
        return self._scanned(image) if self.rng.random() < 0.45 else image

    def _scanned(self, image: Image.Image) -> Image.Image:
        if self.rng.random() < 0.6:
            turn = self.rng.uniform(-3, 3)
            image = image.rotate(turn, Image.Resampling.BICUBIC, fillcolor=image.getpixel((0, 0)))
        image = image.filter(ImageFilter.GaussianBlur(self.rng.uniform(0.3, 1.1)))
        pixels = np.asarray(image).astype(np.float32)
        shade = ndimage.zoom(self.noise.normal(0, self.rng.uniform(0, 12), (4, 4)), [s / 4 for s in pixels.shape[:2]],
                             order=1)  # fmt: skip
        pixels += shade[:, :, None] + self.noise.normal(0, self.rng.uniform(0.5, 6), pixels.shape[:2])[:, :, None]
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))

    def _graphics(self) -> Image.Image:
        return self.rng.choice((self._screen, self._chart, self._shapes, self._diagram))()

    def _smooth_scale(self, paint) -> Image.Image:
        """Antialiased: painted at three times the size."""
        big = Image.new("RGB", (3 * self.size[0], 3 * self.size[1]), self.colour(dark=self.rng.random() < 0.2))
        paint(ImageDraw.Draw(big), big.size)
        return big.resize(self.size, Image.Resampling.BOX)

    def _screen(self) -> Image.Image:
        """Windows, bars, buttons, lists; sometimes a shaded bar."""
        image = Image.new("RGB", self.size, self.colour(dark=self.rng.random() < 0.3))
        draw = ImageDraw.Draw(image)
        for _ in range(self.rng.randint(4, 14)):
            x, y = self.rng.randint(-20, self.size[0] - 30), self.rng.randint(-20, self.size[1] - 20)
            w, h = self.rng.randint(30, self.size[0]), self.rng.randint(12, self.size[1] // 2)
            fill, edge = self.colour(), self.colour()
            radius = self.rng.choice((0, 0, 4, 9))
            draw.rounded_rectangle((x, y, x + w, y + h), radius, fill=fill, outline=edge)
            if self.rng.random() < 0.25:
                for row in range(max(y, 0), min(y + h, self.size[1])):
                    part = (row - y) / h
                    shade = tuple(round(a + (b - a) * part) for a, b in zip(fill, edge, strict=True))
                    draw.line((x, row, x + w, row), fill=shade)
            if self.rng.random() < 0.7:
                dark = sum(fill) > 380
                self.lines(draw, (x + 6, y + 4, x + w, y + min(h, 60)), self.rng.randint(9, 18), self.colour(dark))
        return image

    def _chart(self) -> Image.Image:
        def paint(draw, size):
            w, h = size
            ink = self.colour()
            for i in range(1, 8):
                draw.line((w * 0.1, h * i / 8, w * 0.95, h * i / 8), fill=(205, 205, 205), width=3)
                draw.text((w * 0.02, h * i / 8), str(self.rng.randint(0, 999)), fill=ink, font=self.font(30))
            draw.line((w * 0.1, h * 0.05, w * 0.1, h * 0.9, w * 0.95, h * 0.9), fill=ink, width=5)
            for _ in range(self.rng.randint(1, 5)):
                n, colour, base = self.rng.randint(5, 60), self.colour(), self.rng.uniform(0.2, 0.8)
                xs = np.linspace(w * 0.1, w * 0.95, n)
                ys = h * np.clip(base + self.noise.normal(0, 0.03, n).cumsum(), 0.05, 0.9)
                if self.rng.random() < 0.4:
                    for x, y in zip(xs, ys, strict=True):
                        draw.rectangle((x, y, x + w * 0.6 / n, h * 0.9), fill=colour)
                else:
                    draw.line(list(zip(xs, ys, strict=True)), fill=colour, width=self.rng.randint(4, 9))

        return self._smooth_scale(paint)

    def _shapes(self) -> Image.Image:
        def paint(draw, size):
            for _ in range(self.rng.randint(3, 18)):
                points = [(self.rng.randint(0, size[0]), self.rng.randint(0, size[1])) for _ in range(4)]
                if self.rng.random() < 0.4:
                    draw.polygon(points, fill=self.colour())
                else:
                    (a, b), (c, d) = points[:2]
                    draw.ellipse((min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1), fill=self.colour())
            if self.rng.random() < 0.6:
                draw.text((size[0] // 8, size[1] // 3), self.word(), fill=self.colour(), font=self.font(size[1] // 5))

        return self._smooth_scale(paint)

    def _diagram(self) -> Image.Image:
        def paint(draw, size):
            w, h, ink = *size, self.colour(True)
            draw.rectangle((0, 0, w, h), fill=(self.rng.randint(235, 255),) * 3)
            nodes = [
                (self.rng.randint(0, w - 300), self.rng.randint(0, h - 150)) for _ in range(self.rng.randint(3, 10))
            ]
            for (x, y), (u, v) in zip(nodes, nodes[1:], strict=False):
                draw.line((x + 100, y + 60, u + 100, v + 60), fill=ink, width=4)
            for x, y in nodes:
                draw.rounded_rectangle((x, y, x + 280, y + 120), 18, fill=self.colour(False), outline=ink, width=5)
                draw.text((x + 15, y + 35), self.word(), fill=ink, font=self.font(42))

        return self._smooth_scale(paint)

    def _labels(self) -> Image.Image:
        """Regions of a few exact values, without antialiasing: segmentation, land use, masks, boxes."""
        w, h = self.size
        count = self.rng.randint(2, 20)
        field = ndimage.gaussian_filter(self.noise.normal(0, 1, (count, h, w)), (0, *(self.rng.uniform(4, 40),) * 2))
        field /= field.std((1, 2), keepdims=True)
        numbers = field.argmax(0)
        if self.rng.random() < 0.25:
            numbers = (field[0] > self.rng.uniform(-1, 1)).astype(int)
        elif self.rng.random() < 0.25:
            numbers[:] = 0
            for i in range(self.rng.randint(2, 12)):
                x, y = self.rng.randrange(w), self.rng.randrange(h)
                numbers[y : y + self.rng.randint(5, h // 2), x : x + self.rng.randint(5, w // 2)] = i % count
        if self.rng.random() < 0.4:
            grey = self.rng.choice((1, 1, 10, 255 // count))
            return Image.fromarray(np.minimum(numbers * grey, 255).astype(np.uint8))
        palette = np.array([self.colour() for _ in range(count + 2)], np.uint8)
        return Image.fromarray(palette[numbers])

    def _texture(self) -> Image.Image:
        """Noise of any colour, grain, weave, halftones, stars: the same all over the picture."""
        w, h = self.size
        kind = self.rng.randrange(6)
        colour = np.array(self.colour(), np.float64)
        if kind == 0:
            plane = self.noise.normal(0, 1, (h, w, self.rng.choice((1, 3))))
        elif kind in (1, 2):
            spectrum = np.fft.rfft2(self.noise.normal(0, 1, (h, w)))
            fy, fx = np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None]
            stretch = self.rng.uniform(0.4, 2.5)
            radius = np.sqrt(fy**2 * stretch + fx**2 / stretch)
            low = self.rng.uniform(0.01, 0.06)  # a stationary texture has no large forms
            plane = np.fft.irfft2(spectrum / (radius + low) ** self.rng.uniform(0.5, 2.2), (h, w))[:, :, None]
        elif kind == 3:
            y, x = np.mgrid[:h, :w]
            a, b = self.rng.uniform(1.2, 9), self.rng.uniform(1.2, 9)
            plane = (np.sin(x / a + y / 90) * np.sin(y / b) + self.noise.normal(0, 0.3, (h, w)))[:, :, None]
        elif kind == 4:
            tone = np.clip(0.5 + self.noise.normal(0, 0.02, (h, w)) + self.rng.uniform(-0.2, 0.2), 0, 1)
            y, x = np.mgrid[:h, :w]
            screen = (np.sin(x / self.rng.uniform(0.8, 2)) * np.sin(y / self.rng.uniform(0.8, 2)) + 1) / 2
            plane = np.where(tone > screen, 1.5, -1.5)[:, :, None]
        else:
            points = (self.noise.random((h, w)) < self.rng.uniform(0.002, 0.03)) * self.noise.exponential(1, (h, w))
            stars = ndimage.gaussian_filter(points, self.rng.uniform(0.4, 1.1))
            pixels = 8 + 900 * stars + self.noise.normal(0, self.rng.uniform(0.5, 5), (h, w))
            return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        plane = plane / (plane.std() + 1e-9)
        return Image.fromarray(np.clip(colour + self.rng.uniform(8, 60) * plane, 0, 255).astype(np.uint8))


def happened(image: Image.Image, kind: str, rng: random.Random) -> Image.Image:
    """What pictures go through before they reach a bucket; exact values do not survive it, so labels are spared."""
    if kind == "labels":
        return image
    if rng.random() < (0.5 if kind == "photograph" else 0.15):
        factor = rng.uniform(0.4, 0.95)
        size = [max(48, round(side * factor)) for side in image.size]
        image = image.resize(size, Image.Resampling.LANCZOS)
    if rng.random() < 0.12:
        image = image.convert("L").convert("RGB")
    if rng.random() < (0.6 if kind in ("photograph", "texture") else 0.35):
        out = io.BytesIO()
        image.save(out, "JPEG", quality=rng.randint(55, 96))
        image = Image.open(out).convert("RGB")
    return image


def photographs(folders: list[Path]) -> list[tuple[Path, str]]:
    """(file, what stays together): tiles named in INDEX.csv by their original."""
    found = []
    for folder in folders:
        index = folder / "INDEX.csv"
        originals = {}
        if index.exists():
            with index.open(newline="") as lines:
                originals = {row["file"]: row["original"] for row in csv.DictReader(lines)}
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in (".avif", ".png", ".jpg", ".jpeg"):
                found.append((path, originals.get(path.name, path.name)))
    return found


def samples(folders: list[Path], drawn: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features float32 [n,24], kinds int64 [n], held out bool [n]."""
    rows, kinds, apart = [], [], []

    def add(image: Image.Image, kind: str, held_out: bool, seed: int) -> None:
        rows.append(features(happened(image, kind, random.Random(seed))))
        kinds.append(KINDS.index(kind))
        apart.append(held_out)

    for path, scene in photographs(folders):
        held_out = hashlib.sha256(scene.encode()).digest()[0] % HELD_OUT == 0
        for copy in range(2):
            add(Image.open(path).convert("RGB"), "photograph", held_out, len(rows) + copy)
    for kind in KINDS[1:]:
        for seed in range(drawn):
            held_out = seed % HELD_OUT == 0
            add(Pen(seed * 10 + KINDS.index(kind), held_out).draw(kind), kind, held_out, seed)
    return np.stack(rows), np.array(kinds), np.array(apart)


def train(measured: np.ndarray, kinds: np.ndarray, steps: int, hidden: int = 24) -> dict[str, np.ndarray]:
    """Adam on the cross entropy, each kind counting alike, with noise on the features."""
    import torch

    torch.manual_seed(0)
    mean, deviation = measured.mean(0), measured.std(0) + 1e-3
    x = torch.from_numpy((measured - mean) / deviation)
    y = torch.from_numpy(kinds)
    network = torch.nn.Sequential(torch.nn.Linear(x.shape[1], hidden), torch.nn.ReLU(),
                                  torch.nn.Linear(hidden, len(KINDS)))  # fmt: skip
    shares = torch.bincount(y, minlength=len(KINDS)).clamp(min=1)
    loss = torch.nn.CrossEntropyLoss(weight=1 / shares, label_smoothing=0.02)
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(x), (512,))
        optimiser.zero_grad()
        loss(network(x[chosen] + 0.05 * torch.randn(len(chosen), x.shape[1])), y[chosen]).backward()
        optimiser.step()
        schedule.step()
    first, second = network[0], network[2]
    found = {"first": first.weight.T, "first_bias": first.bias, "second": second.weight.T, "second_bias": second.bias}
    found = {name: value.detach().contiguous().numpy() for name, value in found.items()}
    return found | {"mean": mean.astype(np.float32), "deviation": deviation.astype(np.float32)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", nargs="+", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--drawn", type=int, default=1500, help="pictures of each drawn kind")
    parser.add_argument("--steps", type=int, default=3000)
    args = parser.parse_args()
    from safetensors.numpy import save_file

    measured, kinds, apart = samples(args.photos, args.drawn)
    network = train(measured[~apart], kinds[~apart], args.steps)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(network, args.out)
    hidden = np.maximum((measured - network["mean"]) / network["deviation"] @ network["first"] + network["first_bias"],
                        0)  # fmt: skip
    taken = (hidden @ network["second"] + network["second_bias"]).argmax(1)
    right = taken == kinds
    print(f"training {right[~apart].mean():.4f}, held out {right[apart].mean():.4f} of {apart.sum()}")
    for i, kind in enumerate(KINDS):
        row = np.bincount(taken[apart & (kinds == i)], minlength=len(KINDS))
        print(f"{kind:>11}", *(f"{name} {n}" for name, n in zip(KINDS, row, strict=True) if n), sep="  ")


if __name__ == "__main__":
    main()
