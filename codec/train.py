"""Training of the codec: pictures in a folder -> checkpoints, a log, one file of weights with measured tables.

Needs torch, numpy and Pillow alone, so that it runs wherever a GPU is lent: `python -m codec.train --help`.
One model learns all rates: each sample draws a level, its loss is (bpp + lambda 255^2 MSE) / sqrt(lambda).
The learning rate is constant, then falls with a cosine to zero over the last part of the time given; the state at
the start of the fall is kept (`trunk.pt`), and `--resume` goes on from there with more time. From the fall on,
rounding follows the rate-distortion thresholds of use; in the last tenth the encoder rests, and what follows the
symbols learns from real ones, those of the trellis (trellis.py), the bottlenecks in 8 bits (with `--finish 1` that is
all that is done to a start). With `--joint`, which `nightpress train codec` takes, the encoder learns from them too.

Pictures that splits.py holds out are never seen. Sizes are options; a smaller model may start from a larger one's
blocks. What was tried and what should come next, with figures: weights/codec-2.md to codec-10.md.
"""

import argparse
import dataclasses
import json
import math
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from codec import model as networks
from codec.crops import GREY, DeviceCrops
from codec.model import (
    LEVELS,
    Z_GROUPS,
    Z_MAX,
    Config,
    EntropyTables,
    NightCodec,
    lambda_of,
    native_bfloat16,
    save_model,
)
from codec.optimiser import Optimiser, clipped
from codec.recorded import Recorded
from codec.splits import picture_files
from codec.starts import grown, regrouped, revive, slimmed, thinned

SYNTHETIC = 0.06  # share of samples that are rendered text and line art
UNLEAK = 0.25  # share of the time in which a start's leaky ReLUs lose their slope; at once they would die by the layer
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
        read_pictures = pool.map(read, [path for path, held in picture_files(folders) if not held])
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
    letters = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,;:-()/%&"

    def colour() -> tuple[int, ...]:
        if rng.random() < 0.7:
            grey = rng.randint(0, 80) if light else rng.randint(170, 255)
            return (grey, grey, grey)
        return tuple(rng.randint(0, 255) for _ in range(3))

    for _ in range(rng.randint(0, 6)):
        box = sorted(rng.randint(-20, size + 20) for _ in range(2)) + sorted(
            rng.randint(-20, size + 20) for _ in range(2)
        )
        box = (box[0], box[2], box[1], box[3])
        kind = rng.random()
        if kind < 0.4:
            draw.rectangle(
                box, fill=colour() if rng.random() < 0.5 else None, outline=colour(), width=rng.randint(1, 3)
            )
        elif kind < 0.6:
            draw.ellipse(box, outline=colour(), width=rng.randint(1, 3))
        else:
            draw.line(box, fill=colour(), width=rng.randint(1, 4))
    y, ink, height = rng.randint(-5, 20), colour(), rng.randint(8, 26)
    font = ImageFont.load_default(height)
    while y < size:
        if rng.random() < 0.15:
            ink, height = colour(), rng.randint(8, 40)
            font = ImageFont.load_default(height)
        text = "".join(rng.choice(letters) for _ in range(rng.randint(5, 60)))
        draw.text((rng.randint(-10, 30), y), text, fill=ink, font=font)
        y += int(height * rng.uniform(1.1, 1.8))
    return np.asarray(image)


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


def _side(pictures: list[np.ndarray], wanted: int) -> int:
    """Of crops that fit into all pictures, whole hyper-latent columns if they can be."""
    side = min(wanted, *(min(picture.shape[:2]) for picture in pictures))
    return side // 64 * 64 or side


@torch.no_grad()
def measure_tables(
    model: NightCodec, pictures: list[np.ndarray], crops: int, size: int = 256, seed: int = 7
) -> EntropyTables:
    """Frequencies of the symbols as they really occur: parametric ones as prior, counts over `crops` crops on top."""
    rng, size = random.Random(seed), _side(pictures, size)
    model.frequencies = None
    parametric = model.tables()
    device = model.log_gain.device
    y_counts = [np.zeros(len(f)) for f in parametric.y_freq]
    z_counts = np.zeros((Z_GROUPS, model.config.hyper, 2 * Z_MAX + 2))
    for start in range(0, crops, 8):
        x = batch(pictures, min(8, crops - start), size, rng).to(device)
        y = model.analysis(x)
        for level in (rng.randint(0, LEVELS) for _ in range(6)):
            symbols = model.quantise(y, level)
            networks.tally(y_counts, symbols.index.cpu().numpy(), symbols.y.cpu().numpy())
            z = symbols.z.cpu().numpy().transpose(1, 0, 2, 3).reshape(model.config.hyper, -1)
            group = min(Z_GROUPS - 1, level // 100)
            for channel in range(model.config.hyper):
                z_counts[group, channel] += np.bincount(z[channel] + Z_MAX, minlength=2 * Z_MAX + 2)
    total = 1 << networks.PRECISION

    def blend(counts: np.ndarray, frequencies: np.ndarray, weight: float) -> np.ndarray:
        return networks.integer_frequencies(counts + weight * frequencies / total)

    y_freq = []
    for counts, frequencies in zip(y_counts, parametric.y_freq, strict=True):
        y_freq.append(blend(networks.unsigned(counts), frequencies, 2000.0))  # what has no mean prefers no sign
    # Neighbouring level groups share their counts, since a group alone sees few pictures.
    shared = z_counts.copy()
    shared[1:] += 0.3 * z_counts[:-1]
    shared[:-1] += 0.3 * z_counts[1:]
    z_freq = [
        [blend(shared[g, c], parametric.z_freq[g][c], 30.0) for c in range(model.config.hyper)] for g in range(Z_GROUPS)
    ]
    z_freq[-1] = z_freq[-2]  # the last group is the highest level alone, which training never draws
    return EntropyTables(y_freq, z_freq)


@torch.no_grad()
def measure_steps(model: NightCodec, pictures: list[np.ndarray], crops: int = 64, size: int = 192, seed: int = 8):
    """Sets the quantisation steps of the bottlenecks from what passes through them at all levels."""
    model.round_blocks(False)
    for block in model.blocks:
        block.largest = []
    rng, size = random.Random(seed), _side(pictures, size)
    for number in range(crops):
        x = batch(pictures, 1, size, rng).to(model.log_gain.device)
        level = number * LEVELS // max(crops - 1, 1)
        y = model.analysis(x)
        symbols = model.quantise(y, level)
        model.synthesis(model.reconstruct_latent(symbols.z.float(), symbols.y, level), level)
    for block in model.blocks:
        block.set_steps()


def export(
    state: dict, config: Config, pictures: list[np.ndarray], path: Path, device: str, crops: int, **card: str
) -> str:
    """Averaged weights to one safetensors file: float16, exact network checked, tables measured. Returns its id."""
    model = NightCodec(config)
    exact = {f"indices.{name}" for name, _ in model.indices.named_parameters()}
    model.load_state_dict({k: v.float() if k in exact else v.half().float() for k, v in state.items()})
    model.indices.limit()
    model.to(device).eval().requires_grad_(False).set_precision("auto")
    if not config.leak and not model.has_eight_bits:
        measure_steps(model, pictures, min(crops, 64))
        model.set_precision("auto")
    model.frequencies = measure_tables(model, pictures, crops)
    return save_model(model.cpu(), path, **card)


def train(
    data: list[Path],
    out: Path,
    minutes: float,
    batch_size: int = 8,
    size: int = 192,
    rate: float = 2e-3,
    decay: float = 0.6,
    finish: float = 0.1,
    device: str = "cpu",
    resume: bool = False,
    seed: int = 1,
    config: Config | None = None,
    start: Path | None = None,
    optimiser_kind: str = "muon",
    say=print,
    on_device: bool | None = None,
    table_crops: int = 256,
    joint: bool = False,
) -> Path:
    """Train for `minutes` (or go on from out/trunk.pt); returns the path of the exported weights.

    `start`: a model file whose fitting tensors are taken as first values; blocks that `config` lacks are dropped, those
    that it has more add nothing at first, the latent's channels are put in its order. Where its bottlenecks' ReLUs
    leak and `config`'s do not, they cease to by and by. config: by default the sizes of `start`, or Config's.
    optimiser_kind: muon | adam. on_device: whether samples are cut in the device's memory (crops.py); by default where
    that is not the CPU's. table_crops: samples that the entropy tables are counted on. joint: whether the last phase
    trains the encoder too. Raises FileNotFoundError where there are no pictures, ValueError where `start` is no model.
    Writes out/log.jsonl (a line every 50 steps), out/state.pt every 5 minutes, out/trunk.pt when the learning rate
    starts to fall, out/codec.safetensors at the end. The .pt files are this function's own; it loads them with
    weights_only, and no others.
    """
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    torch.manual_seed(seed)
    if start is not None:
        arrays, metadata = networks.read_model_file(start)
        old = Config.of_json(metadata["config"])
    config = config or (Config() if start is None else old)
    leak = config.leak if start is None else old.leak
    model = NightCodec(config).to(device).set_precision("bfloat16" if native_bfloat16(device) else "float32")
    if device == "cuda":
        model = model.to(memory_format=torch.channels_last)
    if start is not None:
        arrays = slimmed(regrouped(grown(thinned(arrays, config), config), old, config), config)
        tensors = networks.float_tensors(model, arrays)
        model.load_state_dict(tensors, strict=False)
        say(f"{len(tensors)} of {len(model.state_dict())} tensors from {start}")
    # Biases that move as fast as kernels push bottlenecks' units below zero for good.
    biases = [part.bias for block in model.blocks for part in (block.narrow, block.spatial)]
    laps = [model.lap_analysis, model.lap_synthesis] if config.lapped else []
    slow = [model.linear_analysis, model.linear_synthesis, *laps, *biases]
    steps = model.decoder_steps()
    optimiser = Optimiser([*model.parameters(), *steps], rate, [*slow, *steps], optimiser_kind)
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    step, past, falling, finished = 0, 0.0, False, False
    checkpoint = out / "trunk.pt"
    if (out / "state.pt").exists() and not checkpoint.exists():
        checkpoint = out / "state.pt"
    if resume and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        average, step, past, leak = saved["average"], saved["step"], saved["seconds"], saved.get("leak", config.leak)
        rng.seed(seed + step)
        torch.manual_seed(seed + step)
        say(f"going on from {checkpoint} at step {step}")
    pictures = load_pictures(data, size)
    for block in model.blocks:
        block.leak = leak  # what a start's units were trained with, also while they are revived
    if start is not None and step == 0 and finish < 1:
        say(f"{revive(model, batch(pictures, 24, size, rng).to(device))} units of the bottlenecks revived")
        average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    crops = None
    if device != "cpu" if on_device is None else on_device:
        pages = [rendered_page(2 * size, rng) for _ in range(PAGES)]
        crops = DeviceCrops(pictures, pages, SYNTHETIC, REDUCED, device)
    say(f"{len(pictures)} pictures, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {device}")

    def save(path: Path) -> None:
        spent = past + time.monotonic() - started
        state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "average": average}
        torch.save(
            {**state, "step": step, "seconds": spent, "leak": model.blocks[0].leak if model.blocks else 0},
            path.with_suffix(".tmp"),
        )
        path.with_suffix(".tmp").rename(path)

    def save_average(path: Path) -> None:
        """The averaged weights with parametric tables: a usable model at any time of the training."""
        usable = NightCodec(config)
        usable.load_state_dict({k: v.float().cpu() for k, v in average.items()})
        usable.indices.limit()
        save_model(usable, path.with_suffix(".tmp"), steps=str(step))
        path.with_suffix(".tmp").rename(path)

    finishing = False

    def step_on(x: torch.Tensor, level: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One step: (loss, bpp, bpp of z, log10 of squared error, whether the gradient was not finite), its norm."""
        weight = lambda_of(level)
        if finishing and joint:
            x_hat, y_bits, z_bits = model.training_pass(x, level, real=True)
        elif finishing:
            (x_hat, y_bits), z_bits = model.finishing_pass(x, level), torch.zeros_like(level)
        else:
            x_hat, y_bits, z_bits = model.training_pass(x, level, thresholds=falling)
        bpp = (y_bits + z_bits) / (size * size)
        error = (x_hat - x).square().mean((1, 2, 3)) * 255.0**2
        loss = ((bpp + weight * error) / weight.sqrt()).mean() * 0.1
        optimiser.zero_grad()
        loss.backward()
        norm = clipped([*model.parameters(), *steps], 1.0)
        optimiser.step()
        model.indices.limit()
        if finishing and steps:
            with torch.no_grad():
                torch._foreach_clamp_min_(steps, 1e-5)
        lost = (~torch.isfinite(norm)).float()
        figures = torch.stack([loss, bpp.mean(), z_bits.mean() / size**2, error.log10().mean(), lost])
        return torch.nan_to_num(figures.detach()), norm.detach()

    recorded = Recorded(step_on, say)
    current = model.state_dict()  # the parameters themselves
    decay = max(decay, finish)
    started = saved_at = time.monotonic()
    budget, first = minutes * 60.0, step
    sums = torch.zeros(5, device=device)
    with (out / "log.jsonl").open("a") as log:
        while True:
            elapsed = time.monotonic() - started
            if elapsed >= budget:
                break
            progress = elapsed / budget
            factor = warm = min(1.0, (step - first + 1) / 200)
            if progress > 1 - decay:
                if not falling:
                    falling = True
                    save(out / "trunk.pt")
                fallen = min(1.0, (progress - 1 + decay) / max(decay - finish, 1e-9))
                factor *= 0.5 * (1 + math.cos(math.pi * fallen))
                if progress > 1 - finish:
                    factor = warm * 0.25 * (1 - progress) / finish
            optimiser.set_rate(rate * factor)
            if leak != config.leak:
                left = math.ceil(10 * max(0.0, 1 - progress / UNLEAK)) / 10  # in tenths: each is recorded anew
                for block in model.blocks:
                    block.leak = config.leak + (leak - config.leak) * left
            x = crops.batch(batch_size, size) if crops else batch(pictures, batch_size, size, rng).to(device)
            finishing = progress > 1 - finish
            if finishing and not finished:
                finished = True
                model.load_state_dict(average)
                if not config.leak and (finish < 1 or not model.has_eight_bits):
                    measure_steps(model, pictures, size=size)
                    average |= {name: value.clone() for name, value in model.state_dict().items() if "step_" in name}
                model.round_blocks(model.has_eight_bits)
                trained = [*model.finishing_parameters(), *(steps if model.has_eight_bits else ())]
                model.requires_grad_(joint)
                for parameter in trained:
                    parameter.requires_grad_(True)
            strata = (torch.arange(batch_size) + torch.rand(batch_size)) / batch_size  # every batch sees all rates
            level = (strata[torch.randperm(batch_size)] * LEVELS).to(device)
            figures, norm = recorded((falling, finishing, model.blocks[0].leak if model.blocks else 0), x, level)
            step += 1
            keep = min(0.999, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.values()), [current[name] for name in average], 1 - keep)
                sums += figures
            if step % 50 == 0:
                mean = (sums / 50).tolist()
                line = {
                    "step": step,
                    "seconds": round(past + elapsed, 1),
                    "loss": round(mean[0], 5),
                    "bpp": round(mean[1], 4),
                    "z_bpp": round(mean[2], 5),
                    "psnr": round(10 * (math.log10(255.0**2) - mean[3]), 3),
                    "rate": rate * factor,
                    "norm": round(float(norm), 3),
                }
                if mean[4]:
                    say(f"step {step}: of the last 50 gradients {50 * mean[4]:.0f} were not finite and not followed")
                log.write(json.dumps(line) + "\n")
                log.flush()
                if step % 500 == 0:
                    say(json.dumps(line))
                sums.zero_()
            if time.monotonic() - saved_at > 300:
                saved_at = time.monotonic()
                save(out / "state.pt")
                save_average(out / "latest.safetensors")
    save(out / "state.pt")  # what an export that fails can be repeated from
    path = out / "codec.safetensors"
    identity = export(average, config, pictures, path, device, table_crops, steps=str(step), seed=str(seed))
    say(f"wrote {path}, model {identity}, {step} steps")
    return path


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of pictures")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=192, help="side of a crop in pixels")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--decay", type=float, default=0.6, help="share of the time in which the learning rate falls")
    parser.add_argument("--finish", type=float, default=0.1, help="share of the time with the encoder frozen")
    parser.add_argument("--joint", action="store_true", help="train the encoder too in that time")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--optimiser", choices=("muon", "adam"), default="muon")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--start", type=Path, help="model file to take first values from")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--table-crops", type=int, default=256, help="samples that entropy tables are counted on")
    sizes = parser.add_argument_group("sizes of the networks; those of a training that is resumed must be given again")
    for field in dataclasses.fields(Config):
        option = f"--{field.name.replace('_', '-')}"
        if isinstance(field.default, bool):
            sizes.add_argument(option, action=argparse.BooleanOptionalAction, default=field.default)
            continue
        several = {"nargs": "*"} if field.name == "groups" else {}
        kind = float if field.name == "leak" else int
        sizes.add_argument(option, type=kind, default=field.default, metavar="N", **several)
    a = parser.parse_args(arguments)
    torch.set_num_threads(a.threads)
    try:
        config = Config(**{field.name: getattr(a, field.name) for field in dataclasses.fields(Config)})
    except ValueError as error:
        parser.error(str(error))
    train(
        a.data, a.out, a.minutes, a.batch, a.size, a.rate, a.decay, a.finish, a.device, a.resume, a.seed,
        config=config, start=a.start, optimiser_kind=a.optimiser, table_crops=a.table_crops, joint=a.joint,
    )  # fmt: skip


if __name__ == "__main__":
    main()
