"""Training of the codec: pictures in a folder -> checkpoints, a log, one file of weights with measured tables.

Needs torch, numpy, Pillow and safetensors alone, so that it runs wherever a GPU is lent:
`python -m codec.training.train --help`. One model learns all rates: each sample draws a level, its loss is (bpp +
distortion) / sqrt(lambda), the distortion lambda 255^2 MSE or a mix of it and what people see (perceptual.py). The
learning rate is constant, then falls with a cosine to zero over the last part of the time given; the state at the start
of the fall is kept (trunk.pt), and `--resume` goes on from there with more time. From the fall on, rounding follows the
rate-distortion thresholds of use; in the last tenth symbols are real ones, those of the trellis (with
`--finish 1` from the first step: how a start is trained further).

`nightpress train codec` calls `train` and finds contexts afterwards (fit_contexts.py). What was tried:
docs/experiments.md.
"""

import argparse
import dataclasses
import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codec.format import LEVELS, lambda_of
from codec.network.config import Config
from codec.network.files import float_tensors, read_model_file, save_model
from codec.network.layers import native_bfloat16
from codec.network.night_codec import NightCodec
from codec.training.cuda_graph import Recorded
from codec.training.device_crops import DeviceCrops
from codec.training.export import export
from codec.training.loop import Loop, Means, checkpoint, cosine
from codec.training.muon import Optimiser, clipped
from codec.training.perceptual import Mix
from codec.training.samples import PAGES, REDUCED, SYNTHETIC, batch, load_pictures, rendered_page

NOISY, THRESHOLDS, REAL = "noisy", "thresholds", "real"  # phases: how symbols are rounded


@dataclasses.dataclass(frozen=True)
class Recipe:
    """batch: samples a step; size: side of a sample in pixels; rate: the optimiser's highest; decay: share of the time
    in which it falls; finish: share of the time, at the end, on real symbols; table_crops: samples that the entropy
    tables are counted on; ssimulacra2, ms_ssim: shares of the distortion (perceptual.Mix)."""

    batch: int = 8
    size: int = 192
    rate: float = 2e-3
    decay: float = 0.6
    finish: float = 0.1
    table_crops: int = 256
    ssimulacra2: float = 0.0
    ms_ssim: float = 0.0

    def phase(self, progress: float) -> str:
        if progress >= 1 - self.finish:
            return REAL
        return THRESHOLDS if progress >= 1 - max(self.decay, self.finish) else NOISY

    def rate_at(self, progress: float, warmth: float) -> float:
        decay = max(self.decay, self.finish)
        if progress >= 1 - self.finish:
            return self.rate * warmth * 0.25 * (1 - progress) / self.finish
        return self.rate * warmth * cosine((progress - 1 + decay) / max(decay - self.finish, 1e-9))


class _Trainer:
    """A model, its optimiser and one step of it."""

    def __init__(self, model: NightCodec, recipe: Recipe, say: Callable[[str], object]):
        self.model, self.recipe, self.phase = model, recipe, NOISY
        self.mix = Mix(recipe.ssimulacra2, recipe.ms_ssim)
        # Biases that move as fast as kernels push bottlenecks' units below zero for good.
        biases = [part.bias for block in model.blocks for part in (block.narrow, block.spatial)]
        laps = [model.lap_analysis, model.lap_synthesis]
        slow = [model.linear_analysis, model.linear_synthesis, *laps, *biases]
        self.parameters = list(model.parameters())
        self.optimiser = Optimiser(self.parameters, recipe.rate, slow)
        self._recorded = Recorded(self._step, say)

    def step(self, x: Tensor, level: Tensor, phase: str) -> tuple[Tensor, Tensor]:
        """x [B,3,H,W] in 0..1, level [B] -> (loss, bpp, bpp of z, log10 of squared error, whether the gradient was not
        finite), and its norm."""
        self.phase = phase
        return self._recorded(phase, x, level)

    def _step(self, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        model, phase = self.model, self.phase
        x_hat, y_bits, z_bits = model.training_pass(x, level, phase == THRESHOLDS, phase == REAL)
        pixels, weight = x.shape[2] * x.shape[3], lambda_of(level)
        bpp = (y_bits + z_bits) / pixels
        error = (x_hat - x).square().mean((1, 2, 3)) * 255.0**2
        loss = ((bpp + self.mix.distortion(x, x_hat, level)) / weight.sqrt()).mean() * 0.1
        self.optimiser.zero_grad()
        loss.backward()
        norm = clipped(self.parameters, 1.0)
        self.optimiser.step()
        model.indices.limit()
        lost = (~torch.isfinite(norm)).float()
        figures = torch.stack([loss, bpp.mean(), z_bits.mean() / pixels, error.log10().mean(), lost])
        return torch.nan_to_num(figures.detach()), norm.detach()


def train(
    data: list[Path],
    out: Path,
    minutes: float = 60.0,
    *,
    steps: int | None = None,
    recipe: Recipe = Recipe(),  # noqa: B008
    device: str = "cpu",
    resume: bool = False,
    seed: int = 1,
    config: Config | None = None,
    start: Path | None = None,
    say: Callable[[str], object] = print,
    on_device: bool | None = None,
) -> Path:
    """Train for `minutes`, or for so many `steps` (or go on from out/trunk.pt); returns the path of the weights.

    start: a model file whose fitting tensors are taken as first values; config: by default the sizes of `start`, or
    Config's. on_device: whether samples are cut in the device's memory (device_crops.py); by default where that is not
    the CPU's. Raises FileNotFoundError where there are no pictures, ValueError where `start` is no model.
    Writes what loop.Loop does, out/latest.safetensors at each of its states (the averaged weights with parametric
    tables), out/codec.safetensors at the end.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    model, config = _begun(config, start, device, say)
    trainer = _Trainer(model, recipe, say)
    facts = dataclasses.asdict(config) | {"seed": seed}
    loop = Loop(out, model, trainer.optimiser, minutes, steps, facts, say)
    if resume and (saved := checkpoint(out, device, facts)):
        loop.go_on(saved)
        rng.seed(seed + loop.step)
        torch.manual_seed(seed + loop.step)
    pictures = load_pictures(data, recipe.size)
    draw = _samples(pictures, recipe, rng, device, device != "cpu" if on_device is None else on_device)
    say(f"{len(pictures)} pictures, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {device}")
    means, phase, kept = Means(5, device), NOISY, 0.0
    for progress in loop:
        before, phase = phase, recipe.phase(progress)
        if before == NOISY != phase:
            loop.branch()
        if before != REAL == phase:
            model.load_state_dict(loop.average)
        rate = recipe.rate_at(progress, loop.warmth)
        trainer.optimiser.set_rate(rate)
        strata = (torch.arange(recipe.batch) + torch.rand(recipe.batch)) / recipe.batch  # every batch sees all rates
        level = (strata[torch.randperm(recipe.batch)] * LEVELS).to(device)
        figures, norm = trainer.step(draw(), level, phase)
        means.add(figures)
        loop.stepped(lambda rate=rate, norm=norm: _line(means.taken(), rate, norm))
        if loop.kept != kept:
            kept = loop.kept
            _save_average(loop, config)
    loop.save("state.pt")  # what an export that fails can be repeated from
    path, card = out / "codec.safetensors", {"steps": str(loop.step), "seed": str(seed)}
    identity = export(loop.average, config, pictures, path, device, recipe.table_crops, **card)
    say(f"wrote {path}, model {identity}, {loop.step} steps")
    return path


def _begun(config: Config | None, start: Path | None, device: str, say) -> tuple[NightCodec, Config]:
    """A model to train, with the tensors of `start` that fit."""
    arrays: dict[str, np.ndarray] = {}
    if start is not None:
        arrays, metadata = read_model_file(start)
        config = config or Config(**json.loads(metadata["config"]))
    config = config or Config()
    model = NightCodec(config).to(device).set_precision("bfloat16" if native_bfloat16(device) else "float32")
    if device == "cuda":
        model = model.to(memory_format=torch.channels_last)
    if start is not None:
        tensors = float_tensors(model, arrays)
        model.load_state_dict(tensors, strict=False)
        say(f"{len(tensors)} of {len(model.state_dict())} tensors from {start}")
    return model, config


def _samples(
    pictures: list[np.ndarray], recipe: Recipe, rng: random.Random, device: str, on_device: bool
) -> Callable[[], Tensor]:
    """A function that draws a batch [B,3,size,size]."""
    if not on_device:
        return lambda: batch(pictures, recipe.batch, recipe.size, rng).to(device)
    pages = [rendered_page(2 * recipe.size, rng) for _ in range(PAGES)]
    crops = DeviceCrops(pictures, pages, SYNTHETIC, REDUCED, device)
    return lambda: crops.batch(recipe.batch, recipe.size)


def _line(means: list[float], rate: float, norm: Tensor) -> dict[str, float]:
    """What the log says of the last steps; `lost`: share of them, if any, whose gradient was not followed."""
    loss, bpp, z_bpp, log_error, lost = means
    line = {
        "loss": round(loss, 5), "bpp": round(bpp, 4), "z_bpp": round(z_bpp, 5),
        "psnr": round(10 * (math.log10(255.0**2) - log_error), 3), "rate": rate, "norm": round(float(norm), 3),
    }  # fmt: skip
    return line | ({"lost": lost} if lost else {})


def _save_average(loop: Loop, config: Config) -> None:
    """The averaged weights with parametric tables: a usable model at any time of the training."""
    usable = NightCodec(config)
    usable.load_state_dict({name: value.float().cpu() for name, value in loop.average.items()})
    usable.indices.limit()
    temporary = loop.out / "latest.tmp"
    save_model(usable, temporary, steps=str(loop.step))
    temporary.rename(loop.out / "latest.safetensors")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of pictures")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--steps", type=int, help="how many, instead of --minutes")
    usual = Recipe()
    for field, text in (
        ("batch", "samples a step"), ("size", "side of a sample in pixels"), ("rate", "the optimiser's highest"),
        ("decay", "share of the time in which the learning rate falls"),
        ("finish", "share of the time on real symbols"), ("table_crops", "samples that tables are counted on"),
        ("ssimulacra2", "share of the distortion that SSIMULACRA2 makes up"), ("ms_ssim", "that MS-SSIM makes up"),
    ):  # fmt: skip
        default = getattr(usual, field)
        parser.add_argument(f"--{field.replace('_', '-')}", type=type(default), default=default, help=text)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--start", type=Path, help="model file to take first values from")
    parser.add_argument("--seed", type=int, default=1)
    sizes = parser.add_argument_group("sizes of the networks (default: those of --start, or the shipped model's)")
    for field in dataclasses.fields(Config):
        several = {"nargs": 3} if field.name == "groups" else {}
        sizes.add_argument(f"--{field.name.replace('_', '-')}", type=int, metavar="N", **several)
    a = parser.parse_args(arguments)
    torch.set_num_threads(a.threads)
    given = {f.name: value for f in dataclasses.fields(Config) if (value := getattr(a, f.name)) is not None}
    try:
        of_start = json.loads(read_model_file(a.start)[1]["config"]) if a.start else {}
        config = Config(**of_start | given)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    recipe = Recipe(a.batch, a.size, a.rate, a.decay, a.finish, a.table_crops, a.ssimulacra2, a.ms_ssim)
    train(
        a.data, a.out, a.minutes, steps=a.steps, recipe=recipe, device=a.device, resume=a.resume, seed=a.seed,
        config=config, start=a.start,
    )  # fmt: skip


if __name__ == "__main__":
    main()
