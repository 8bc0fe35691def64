"""Training of one part alone, for a smaller and faster one in a model that is otherwise kept.

`python -m codec.train_part decoder` has the decoder learn from the latents that the model's encoder and trellis
give for the training pictures, each at a few levels; `... encoder` has the encoder learn to give the latents that the
model's own gives. Both are computed once and kept (0.6 or 1.3 MB per 512x512 pixels and level); from then on a step
costs what the transform costs, a fifth of one of train.py's. The transform starts from the model's own bottlenecks, on
fewer channels where it has fewer (starts.py). What is written has the model's entropy tables and contexts and can be
used at once; with train.py's `--joint` from there the two learn from each other and from the bits.

Needs torch, numpy and Pillow alone.
"""

import argparse
import dataclasses
import json
import math
import random
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from codec import model as networks
from codec import trellis
from codec.model import LEVELS, Config, NightCodec, at_level, lambda_of
from codec.optimiser import Optimiser, clipped
from codec.starts import narrowed_decoder, narrowed_encoder, slimmed, thinned
from codec.train import crop, export, load_pictures, measure_steps, rendered_page

PARTS = ("encoder", "decoder", "entropy")
RENDERED, REDUCED = 0.08, 0.2  # pages and reduced pieces added, per picture
TENSORS = {
    "encoder": ("analysis_network.", "linear_analysis", "lap_analysis"),
    "decoder": ("synthesis_network.", "linear_synthesis", "lap_synthesis"),
    "entropy": ("means.", "indices."),
}
SIZES = {
    "encoder": ("encoder_blocks", "encoder_channels", "encoder_inner"),
    "decoder": ("decoder_blocks", "decoder_channels", "decoder_inner"),
    "entropy": ("mean_channels", "mean_joined", "index_channels", "index_seen", "index_joined", "expanded"),
}
MIDDLE = 500  # level whose gains weigh an encoder's errors


class Sample(NamedTuple):
    picture: np.ndarray  # uint8 [H,W,3], sides multiples of 16
    level: int
    latent: Tensor  # [latent,H/16,W/16]: for a decoder y_hat, float16, else y, float32 or for entropy float16


@torch.no_grad()
def samples_of(
    model: NightCodec, part: str, pictures: list[np.ndarray], size: int, levels: int, seed: int
) -> list[Sample]:
    """Pictures, and rendered pages and reduced pieces of `size`, in random order; for a decoder `levels` random levels
    of each."""
    rng = random.Random(seed)
    pages = [rendered_page(size, rng) for _ in range(round(RENDERED * len(pictures)))]
    pieces = [crop(pictures, size, rng) for _ in range(round(REDUCED * len(pictures)))]
    samples = []
    for picture in [*pictures, *pages, *pieces]:
        whole = np.array(picture[: picture.shape[0] // 16 * 16, : picture.shape[1] // 16 * 16])
        y = model.analysis(torch.from_numpy(whole).permute(2, 0, 1)[None].float() / 255.0)
        if part != "decoder":
            samples.append(Sample(whole, MIDDLE, y[0].clone() if part == "encoder" else y[0].half()))
            continue
        for level in (rng.randrange(LEVELS + 1) for _ in range(levels)):
            values = trellis.quantised(model, y, level)[3]
            samples.append(Sample(whole, level, model.unscale(values, level)[0].half()))
    rng.shuffle(samples)
    return samples


def batch(samples: list[Sample], count: int, cells: int, rng: random.Random) -> tuple[Tensor, Tensor, Tensor]:
    """Crops of `cells` cells a side -> (pixels [B,3,H,W] in 0..1, levels [B], latents [B,latent,h,w])."""
    pixels, levels, latents = [], [], []
    for sample in rng.choices(samples, k=count):
        height, width = sample.latent.shape[1:]
        top, left = rng.randint(0, height - cells), rng.randint(0, width - cells)
        latents.append(sample.latent[:, top : top + cells, left : left + cells].float())
        piece = sample.picture[16 * top : 16 * (top + cells), 16 * left : 16 * (left + cells)]
        pixels.append(torch.from_numpy(np.ascontiguousarray(piece)))
        levels.append(sample.level)
    return torch.stack(pixels).permute(0, 3, 1, 2).float() / 255.0, torch.tensor(levels), torch.stack(latents)


def losses(model: NightCodec, part: str, x: Tensor, level: Tensor, latent: Tensor) -> Tensor:
    """[B], over the square root of lambda as in train.py.

    Of a transform lambda times its squared error, without a border of one cell, beyond which something lies in use: of
    decoded pixels on the scale of 0..255; of an encoder's latents in quantisation steps of the middle level, times the
    square of a step that theory gives there. Of the entropy model bits per pixel, at levels drawn anew.
    """
    if part == "entropy":
        strata = (torch.randperm(len(x)) + torch.rand(len(x))) / len(x)  # every batch sees all rates
        level = strata * LEVELS
        return model.entropy_pass(latent, level) / (x.shape[2] * x.shape[3]) / lambda_of(level).sqrt()
    if part == "decoder":
        difference = 255.0 * (model.synthesis(latent, level) - x)[..., 16:-16, 16:-16]
    else:
        gain = torch.exp(at_level(model.log_gain, level)) / lambda_of(float(MIDDLE)) ** 0.5 * networks.STEP
        difference = ((model.analysis(x) - latent) * gain)[..., 1:-1, 1:-1] / 768**0.5 * latent.shape[1] ** 0.5
    return difference.square().mean((1, 2, 3)) * lambda_of(level.float()).sqrt()


def started(arrays: dict[str, np.ndarray], old: Config, config: Config, part: str, samples: list[Sample]) -> NightCodec:
    """The model with that part on the sizes of `config`."""
    thin = slimmed(thinned(arrays, config), config)
    name = f"{part}_channels"
    width, had = (getattr(one, name, 0) or one.channels for one in (config, old))
    if width < had:
        wide = NightCodec(dataclasses.replace(config, **{name: getattr(old, name)}))
        wide.load_state_dict(networks.float_tensors(wide, thin), strict=False)
        some = samples[:40]
        if part == "decoder":
            thin = thin | narrowed_decoder(wide, [(one.level, one.latent[None].float()) for one in some], width)
        else:
            pixels = [torch.from_numpy(one.picture).permute(2, 0, 1)[None].float() / 255.0 for one in some]
            thin = thin | narrowed_encoder(wide, pixels, width)
    model = NightCodec(config)
    model.load_state_dict(networks.float_tensors(model, thin), strict=False)
    return model


def train(
    part: str,
    data: list[Path],
    start: Path,
    out: Path,
    minutes: float,
    config: Config,
    batch_size: int = 8,
    size: int = 256,
    rate: float = 2e-3,
    levels: int = 3,
    seed: int = 1,
    table_crops: int = 256,
    steps: int | None = None,
    say=print,
) -> Path:
    """Trains one part of the model in `start` for `minutes` after the latents are there.

    part: one of PARTS. config: differs from the start's at most in that part's SIZES. size: of crops, a multiple of 16.
    table_crops: samples on which the tables are counted where the entropy model changes. steps: how many, instead of
    `minutes`, so that it can be repeated. Writes out/`part`.safetensors and returns its path; out/`part`.jsonl has a
    line every 50 steps. Raises FileNotFoundError where there are no pictures, ValueError where `start` is no model or
    of other sizes.
    """
    out.mkdir(parents=True, exist_ok=True)
    arrays, metadata = networks.read_model_file(start)
    old = Config.of_json(metadata["config"])
    if dataclasses.replace(old, **{name: getattr(config, name) for name in SIZES[part]}) != config:
        raise ValueError(f"{start} has other sizes than those wanted, beside the {part}'s: {old}")
    rng = random.Random(seed)
    torch.manual_seed(seed)
    pictures, begun = load_pictures(data, size), time.monotonic()
    given = networks.load_model(start)
    samples = samples_of(given, part, pictures, size, levels, seed)
    say(f"{len(samples)} latents in {time.monotonic() - begun:.0f} s")
    model = started(arrays, old, config, part, samples).requires_grad_(False)
    model.thresholds.copy_(given.thresholds)
    trained = [one for name, one in model.named_parameters() if name.startswith(TENSORS[part])]
    for one in trained:
        one.requires_grad_(True)
    blocks = {"encoder": model.analysis_network.blocks, "decoder": model.synthesis_network.blocks}.get(part, ())
    biases = [one.bias for block in blocks for one in (block.narrow, block.spatial)]
    linear = [one for name, one in model.named_parameters() if name in TENSORS[part]]
    optimiser = Optimiser(trained, rate, [*linear, *biases])
    current = {name: one for name, one in model.state_dict().items() if name.startswith(TENSORS[part])}
    average = {name: one.clone() for name, one in current.items()}

    step, total, begun = 0, 0.0, time.monotonic()
    with (out / f"{part}.jsonl").open("a") as log:
        while (progress := step / steps if steps else (time.monotonic() - begun) / (60 * minutes)) < 1:
            falling = 0.5 * (1 + math.cos(math.pi * max(0.0, (progress - 0.3) / 0.7)))
            optimiser.set_rate(rate * falling * min(1.0, (step + 1) / 100))
            loss = losses(model, part, *batch(samples, batch_size, size // 16, rng)).mean()
            optimiser.zero_grad()
            loss.backward()
            clipped(trained, 1.0)
            optimiser.step()
            if part == "entropy":
                model.indices.limit()
            step, total = step + 1, total + float(loss.detach())
            keep = min(0.999, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.values()), list(current.values()), 1 - keep)
            if step % 50 == 0:
                line = {"step": step, "seconds": round(time.monotonic() - begun, 1), "loss": round(total / 50, 5)}
                log.write(json.dumps(line) + "\n")
                log.flush()
                if step % 500 == 0:
                    say(json.dumps(line))
                total = 0.0
    model.load_state_dict(average, strict=False)
    path, card = out / f"{part}.safetensors", {f"{part}_steps": str(step)}
    if part == "entropy":
        identity = export(model.state_dict(), config, pictures, path, "cpu", table_crops, **card)
    else:
        if not config.leak:
            measure_steps(model, pictures, 32)
        kept = {name: one for name, one in arrays.items() if not name.startswith(TENSORS[part])}
        new = {
            name: one.detach().numpy().astype(np.float16)
            for name, one in model.state_dict().items() if name.startswith(TENSORS[part])
        }  # fmt: skip
        sizes = {"config": json.dumps(dataclasses.asdict(config))}
        path.write_bytes(networks.packed_tensors(kept | new, {**metadata, **sizes, **card}))
        identity = networks.model_id(path)
    say(f"wrote {path}, model {identity}, {step} steps")
    return path


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of pictures")
    parser.add_argument("--start", type=Path, required=True, help="model file of which all else stays")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--steps", type=int, help="how many, instead of --minutes")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=256, help="side of a crop in pixels, a multiple of 16")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--levels", type=int, default=3, help="levels that each picture is coded at for a decoder")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    sizes = parser.add_argument_group("sizes, by default the start's; only the part's own may be given")
    for name in sorted({name for names in SIZES.values() for name in names}):
        sizes.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N")
    a = parser.parse_args(arguments)
    torch.set_num_threads(a.threads)
    old = Config.of_json(networks.read_model_file(a.start)[1]["config"])
    given = {name: getattr(a, name) for names in SIZES.values() for name in names}
    config = dataclasses.replace(old, **{name: value for name, value in given.items() if value is not None})
    train(a.part, a.data, a.start, a.out, a.minutes, config, a.batch, a.size, a.rate, a.levels, a.seed,
          steps=a.steps)  # fmt: skip


if __name__ == "__main__":
    main()
