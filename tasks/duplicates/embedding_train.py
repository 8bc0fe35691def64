"""Training of the embedding networks: pictures in folders -> a checkpoint, a log, one file of weights.

Needs torch, numpy and Pillow alone: `python -m tasks.duplicates.embedding_train --help`. Here: what a copy is (the
attacks that the copy network learns to see through), the losses, the loop with its time budget. The networks and their
files stand in embedding_networks.py; figures come from tests/bench/bench_copies.py.

Where a folder has an INDEX.csv with the columns `file` and `original`, pictures of held-out originals
(`held_out`) are left out, so that figures can be taken on them. The classifier reads *.npz files with train_x uint8
[n,32,32,3], train_y and, for its log, test_x, test_y.

The learning rate rises, stays, and falls with a cosine over the whole `minutes`, counted over all pieces: a run that
was paused goes on with `resume` and the same `minutes` as if it had not been.
"""

import argparse
import csv
import hashlib
import io
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps
from torch import Tensor

from codec.model import native_bfloat16
from tasks.duplicates.embedding_networks import KINDS, new_network, save_network

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".avif", ".tif", ".tiff", ".bmp"}
HELD = 224  # shorter side at which training pictures are held
WORKING = 192  # side at which copies are made
SOURCES = 64  # different pictures in a batch of the copy network, each seen twice
TEMPERATURE = 0.05  # of InfoNCE
SPREAD = 8.0  # weight of the entropy term
RATES = {"copy": 2e-3, "classifier": 2e-3, "autoencoder": 1.5e-3}
DECAY = {"copy": 0.02, "classifier": 0.05, "autoencoder": 1e-4}


def held_out(original: str) -> bool:
    """Whether the pictures of this original are for validation: about one in seven, by sha256 of its name."""
    return hashlib.sha256(original.encode()).digest()[0] < 37


def picture_files(folders: list[Path]) -> list[tuple[Path, str, bool]]:
    """(file, name of its original, held out) of every picture under the folders, sorted by path."""
    found = []
    for folder in map(Path, folders):
        originals: dict[Path, str] = {}
        for index in sorted(folder.rglob("INDEX.csv")):
            with index.open(newline="", encoding="utf-8") as lines:
                for row in csv.DictReader(lines):
                    if row.get("file") and row.get("original"):
                        originals[index.parent / row["file"]] = row["original"]
        for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES):
            original = originals.get(path)
            found.append((path, original or str(path), original is not None and held_out(original)))
    return found


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


# -- losses


def copy_loss(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """InfoNCE between two views [B,128] of B different pictures, and KoLeo's entropy (Sablayrolles et al. 2019): the
    logarithm of the distance to the nearest vector of another picture. -> (loss, InfoNCE, entropy term)"""
    n = a.shape[0]
    every = torch.cat([a, b])
    cosine = every @ every.T
    itself = torch.eye(2 * n, dtype=torch.bool, device=a.device)
    other = torch.arange(2 * n, device=a.device).roll(n)
    contrast = F.cross_entropy((cosine / TEMPERATURE).masked_fill(itself, -1e9), other)
    same = itself | itself.roll(n, 1)
    nearest = (2.0 - 2.0 * cosine.masked_fill(same, -1.0)).clamp_min(1e-6).amin(1).sqrt()
    spread = -nearest.log().mean()
    return contrast + SPREAD * spread, contrast, spread


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


def accuracy(network, data: dict) -> float | None:
    """Share of test pictures whose class comes first; None without test pictures."""
    if "test_x" not in data or "test_y" not in data:
        return None
    device = next(network.parameters()).device
    network.eval()
    with torch.inference_mode():
        right = [
            (network.logits(tensor_of(list(data["test_x"][at : at + 200])).to(device)).argmax(1).cpu().numpy()
             == data["test_y"][at : at + 200])
            for at in range(0, len(data["test_y"]), 200)
        ]  # fmt: skip
    network.train()
    return float(np.concatenate(right).mean())


# -- the loop


def rate_at(share: float) -> float:
    """Of the highest rate, at a share of the time: up over 4 %, then a cosine to 0 from a quarter on."""
    if share < 0.04:
        return share / 0.04
    return 1.0 if share < 0.25 else 0.5 + 0.5 * math.cos(math.pi * min(1.0, (share - 0.25) / 0.75))


def train(
    data: list[Path],
    out: Path,
    *,
    variant: str = "copy",
    minutes: float = 60.0,
    resume: bool = False,
    device: str = "cpu",
    seed: int = 1,
    say: Callable[[str], None] = lambda line: None,
    pause_after: float | None = None,
) -> Path:
    """Train one network for `minutes` in all (earlier pieces of a resumed training included) and write its weights.

    data: folders with pictures (copy, autoencoder) or *.npz files (classifier); out: gets embedding-VARIANT.pt
    (checkpoint), .jsonl (log) and .safetensors. pause_after: minutes after which this piece stops early.
    Returns the path of the weights. Raises FileNotFoundError where there is nothing to train on or to resume from,
    ValueError for an unknown variant.
    """
    if variant not in KINDS:
        raise ValueError(f"--variant {variant}: the embedding networks are {', '.join(KINDS)}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, log = out / f"embedding-{variant}.pt", out / f"embedding-{variant}.jsonl"
    if resume and not checkpoint.exists():
        raise FileNotFoundError(f"nothing to resume: {checkpoint} is not there; leave --resume out to start")
    torch.manual_seed(seed)
    network = new_network(variant).to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATES[variant], weight_decay=DECAY[variant])
    steps, seconds = 0, 0.0
    if resume:
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        steps, seconds = state["steps"], state["seconds"]
    rng = random.Random(f"{seed} {steps}")
    labelled: dict = {}
    if variant == "classifier":
        labelled = load_labelled(data)
        batches: Iterator = labelled_batches(labelled, np.random.default_rng([seed, steps]))
        say(f"{len(labelled['train_y'])} labelled pictures")
    else:
        pictures, group = load_pictures(data, HELD)
        say(f"{len(pictures)} pictures of {len(set(group))} originals")
        if variant == "copy" and len(set(group)) < 2:
            raise FileNotFoundError("the copy network learns from pictures that differ: at least 2 are needed")
        size = network.config.size
        batches = copy_batches(pictures, group, size, rng) if variant == "copy" else plain_batches(pictures, size, rng)
    before, started, said = seconds, time.monotonic(), 0.0
    total = 60.0 * minutes
    stop = total if pause_after is None else min(total, before + 60.0 * pause_after)
    means: dict[str, float] = {}
    where = torch.device(device).type
    network.train()
    while seconds < stop:
        for settings in optimiser.param_groups:
            settings["lr"] = RATES[variant] * rate_at(seconds / total)
        batch = next(batches)
        with torch.autocast(where, torch.bfloat16, enabled=native_bfloat16(where)):
            if variant == "copy":
                n = len(batch[0])
                vectors = network(torch.cat(batch).to(device))
                with torch.autocast(where, enabled=False):
                    loss, contrast, spread = copy_loss(vectors[:n], vectors[n:])
                facts = {"infonce": contrast.item(), "koleo": spread.item()}
            elif variant == "classifier":
                loss = F.cross_entropy(network.logits(batch[0].to(device)).float(), batch[1].to(device),
                                       label_smoothing=0.1)  # fmt: skip
                facts = {"cross_entropy": loss.item()}
            else:
                x = batch.to(device)
                loss = F.mse_loss(network.rebuilt(x), x)
                facts = {"mse": loss.item()}
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss became {loss.item()} at step {steps}; resume with a lower rate")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimiser.step()
        steps += 1
        seconds = before + time.monotonic() - started
        means = {k: v if k not in means else 0.95 * means[k] + 0.05 * v for k, v in facts.items()}
        if seconds - said > 20 or seconds >= stop:
            said = seconds
            line = {"steps": steps, "seconds": round(seconds, 1), **{k: round(v, 5) for k, v in means.items()}}
            if variant == "classifier" and (right := accuracy(network, labelled)) is not None:
                line["test_accuracy"] = round(right, 4)
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")
            say(", ".join(f"{k} {v}" for k, v in line.items()))
    part = checkpoint.with_suffix(".part")
    torch.save({"network": network.state_dict(), "optimiser": optimiser.state_dict(), "steps": steps,
                "seconds": seconds}, part)  # fmt: skip
    part.replace(checkpoint)
    weights = out / f"embedding-{variant}.safetensors"
    save_network(network, weights)
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=KINDS)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0, help="in all, earlier pieces included")
    parser.add_argument("--pause-after", type=float, help="minutes of this piece")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = train(
        args.data, args.out, variant=args.variant, minutes=args.minutes, resume=args.resume, device=args.device,
        seed=args.seed, say=lambda line: print(line, flush=True), pause_after=args.pause_after,
    )  # fmt: skip
    print(path)


if __name__ == "__main__":
    main()
