"""Training of the restoration networks: pictures in a folder -> checkpoints, a log, one file of weights.

Needs torch, numpy and Pillow alone: `python -m tasks.restoration.train --help`. Here: the loss and the step. What a
training sample is stands in samples.py, the networks and their files in networks.py, the loop in
codec/training/loop.py; figures on test sets come from evaluate.py.

The learning rate is constant, then falls with a cosine over the last part of the time given; the state at the start
of the fall is kept (`trunk.pt`), and `resume` goes on from there with more time. Enlargers learn the absolute error,
and while the rate falls the squared one; denoisers the logarithm of the squared error. Until half of
that fall, units that never fire are set to work again (dead_units.py).
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from codec.network.layers import native_bfloat16
from codec.training.cuda_graph import Recorded
from codec.training.loop import Loop, checkpoint, cosine
from codec.training.muon import Optimiser, clipped
from codec.training.samples import load_pictures
from tasks.restoration.dead_units import Watch
from tasks.restoration.networks import (
    NETWORKS,
    NightUpscaler,
    identity_kernel,
    load_network,
    macs_per_pixel,
    save_network,
)
from tasks.restoration.samples import NoisyPatches, ReducedPatches

WATCH_EVERY, WATCH_FOR = 500, 20  # steps: what never fires in the first 20 of each 500 is set to work again


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
    *,
    steps: int | None = None,
    resume: bool = False,
    device: str = "cpu",
    seed: int = 1,
    say=print,
    start: Path | None = None,
    recipe: Recipe | None = None,
    config: dict | None = None,
    loaders: int = 0,
) -> Path:
    """Train `task` (denoise | superres) for `minutes`, or for so many `steps` (the same on every machine); returns the
    path of the weights, out/<task>-<variant>.safetensors.

    Writes what codec.training.loop does. `start`: a weights file whose tensors are taken over where name and shape
    agree (merged kernels become the 3x3 branch), and its sizes unless `config` names others; with `resume` those of the
    checkpoint. `loaders`: processes that make batches (0: this one, right for one CPU thread). Raises FileNotFoundError
    without pictures, ValueError for arguments and files that do not go together.
    """
    out = Path(out)
    name, scale = variant_parts(task, variant)
    recipe = recipe or RECIPES[task][name]
    torch.manual_seed(seed)
    facts = {"task": task, "network": name, "scale": scale}
    saved = checkpoint(out, device, facts) if resume else None
    network = new_network(task, name, scale, config or (saved["facts"]["config"] if saved else None), start)
    if start:
        taken = take_over(network, start)
        say(f"{taken} of {len(network.state_dict())} tensors start from {start}")
    training = Training(task, name, scale, network, recipe, device, say)
    facts["config"] = dataclasses.asdict(network.config)
    loop = Loop(out, network, training.optimiser, minutes, steps, facts, say)
    if saved:
        loop.go_on(saved)
        torch.manual_seed(seed + loop.step)
    pictures = load_pictures(data, recipe.size * scale)
    batches = batches_of(task, pictures, recipe, seed + loop.step, scale)
    loader = torch.utils.data.DataLoader(batches, batch_size=None, num_workers=loaders, pin_memory=device == "cuda")
    parameters = sum(p.numel() for p in network.parameters())
    say(f"{len(pictures)} pictures, {parameters / 1e3:.0f} k parameters, {device}, {recipe}")
    training.run(loop, iter(loader))
    return training.export(loop, len(pictures))


def new_network(task: str, name: str, scale: int, config: dict | None, start: Path | None) -> torch.nn.Module:
    """An untrained network with the sizes that are asked for, else those of the file it starts from."""
    kind = NETWORKS[task][name]
    if config is None and start and type((file := load_network(start)).network.config) is kind.config_class:
        config = dataclasses.asdict(file.network.config)
        config.pop("merged", None)
    sizes = {k: tuple(v) if isinstance(v, list) else v for k, v in (config or {}).items()}
    return kind(kind.config_class(**sizes, **({"scale": scale} if task == "superres" and "scale" not in sizes else {})))


def batches_of(task: str, pictures: list, recipe: Recipe, seed: int, scale: int) -> torch.utils.data.IterableDataset:
    """Endless batches of what the task learns from."""
    if task == "denoise":
        return NoisyPatches(pictures, recipe.batch, recipe.size, seed, recipe.noise)
    return ReducedPatches(pictures, recipe.batch, recipe.size, seed, scale, recipe.sizes, recipe.pages)


class Training:
    """A network while it learns, and its optimiser."""

    def __init__(self, task: str, name: str, scale: int, network: torch.nn.Module, recipe: Recipe, device: str, say):
        self.task, self.name, self.scale, self.recipe, self.say = task, name, scale, recipe, say
        self.device, self.where = device, torch.device(device).type
        self.network = network = network.to(device).to(memory_format=torch.channels_last).train()
        # What starts as bicubic moves slowly, and so does a deconvolution (as FSRCNN's authors have it).
        slow = [p for key, p in network.named_parameters() if key == "linear" or key.startswith("enlarge.")]
        self.optimiser = Optimiser(network.parameters(), recipe.rate, slow, recipe.optimiser, betas=(0.9, 0.99))
        self.usual_norm = torch.ones((), device=device)  # running mean of the gradient's norm, where it is clipped
        self.falling = False  # whether the rate has begun to fall
        self.watch, self.recycled = Watch(network), 0

    def run(self, loop: Loop, batches: Iterator) -> None:
        """Learn from batches until the loop's budget is spent."""
        recorded, tally = Recorded(self.learn, self.say), Tally()
        for progress in loop:
            if progress > 1 - self.recipe.decay and not self.falling:
                self.falling = True
                loop.branch()
            rate = self.recipe.rate * loop.warmth * cosine((progress - 1 + self.recipe.decay) / self.recipe.decay)
            self.optimiser.set_rate(max(rate, 1e-3 * self.recipe.rate))
            parts = [part.to(self.device, non_blocking=True) for part in next(batches)]
            self.recycle(loop, progress)
            told = parts[0] if self.task == "superres" else parts[2]
            loss, error, norm = recorded(None if self.watch.watching else self.falling, parts[0], parts[1], told)
            tally.add(loss, error, parts[3] if self.task == "denoise" else None, norm)
            loop.stepped(lambda rate=rate: {"rate": rate, "recycled": self.recycled, **tally.taken()})
        if not self.falling:  # so few steps that the last of them began before the fall
            loop.branch()

    def recycle(self, loop: Loop, progress: float) -> None:
        """Units that never fire are looked for every WATCH_EVERY steps, until half of the fall, and set to work."""
        done = loop.step - loop.first
        turn = done % WATCH_EVERY
        if turn == 0 and (progress < 1 - self.recipe.decay / 2 or done == 0):
            self.watch.start()
        elif turn == WATCH_FOR and self.watch.watching:
            self.recycled += self.watch.recycle(loop.average)

    def learn(self, given: Tensor, wanted: Tensor, told: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step on what is given to the network and wanted of it: (loss, squared error per sample, norm)."""
        with torch.autocast(self.where, dtype=torch.bfloat16, enabled=native_bfloat16(self.where)):
            result = self.network(given) if self.task == "superres" else self.network(given, told)
        error = (result.float() - wanted).square().mean((1, 2, 3))
        if self.task == "denoise":  # the logarithm makes all noise levels count alike: it is the PSNR
            loss = (error + 1e-6).log().mean()
        elif self.falling:  # what PSNR counts; from the start it learns more slowly than the absolute error
            loss = error.mean()
        else:
            loss = (result.float() - wanted).abs().mean()
        self.optimiser.zero_grad()
        loss.backward()
        usual = self.usual_norm
        norm = clipped(self.network.parameters(), usual)
        usual.lerp_(torch.where(torch.isfinite(norm), torch.minimum(norm, 2 * usual), usual), 0.02)
        self.optimiser.step()
        return loss.detach(), error.detach(), norm

    def export(self, loop: Loop, pictures: int) -> Path:
        """The average as a weights file; its path."""
        self.network.load_state_dict(loop.average)
        final = self.network.cpu().eval()
        if isinstance(final, NightUpscaler):
            final = final.merge()
        scaled = f"-x{self.scale}" if self.task == "superres" else ""
        path = loop.out / f"{self.task}-{self.name}{scaled}.safetensors"
        card = {
            "scale": str(self.scale),
            "steps": str(loop.step),
            "minutes": f"{loop.seconds / 60:.0f}",
            "pictures": str(pictures),
            "macs_per_input_pixel": f"{macs_per_pixel(final, self.task):.0f}",
        }
        identity = save_network(final, self.task, self.name, path, **card)
        self.say(f"wrote {path}, model {identity}, {loop.step} steps")
        return path


class Tally:
    """The last steps' figures for the log; `psnr` by kind of noise where there are kinds."""

    def __init__(self):
        self.steps: list[tuple[Tensor, Tensor]] = []
        self.samples: list[tuple[Tensor, Tensor]] = []

    def add(self, loss: Tensor, error: Tensor, kind: Tensor | None, norm: Tensor) -> None:
        """Nothing waits for a GPU before `means`; what is given may change afterwards."""
        self.steps.append((loss.clone(), norm.clone()))
        self.samples.append((error.clone(), torch.full_like(error, -1) if kind is None else kind))

    def taken(self) -> dict[str, float]:
        """The means since the last time."""
        means = self.means()
        self.steps, self.samples = [], []
        return means

    def means(self) -> dict[str, float]:
        """Over what is finite; `lost`: steps, if any, whose gradient was not and was not followed."""
        losses, norms = (torch.stack(values) for values in zip(*self.steps, strict=True))
        error, kind = (torch.cat(values).cpu() for values in zip(*self.samples, strict=True))
        decibels = -10 * error.clamp_min(1e-9).log10()
        names = {-1: "psnr", 2: "psnr_camera", 0: "psnr_gaussian", 1: "psnr_poisson"}
        figures = {name: decibels[(kind == k) & decibels.isfinite()] for k, name in names.items()}
        figures |= {"loss": losses[losses.isfinite()], "norm": norms[norms.isfinite()]}
        lost = int((~norms.isfinite()).sum())
        means = {name: round(values.mean().item(), 5) for name, values in figures.items() if len(values)}
        return means | ({"lost": lost} if lost else {})


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
    parser.add_argument("--steps", type=int, help="how many, instead of --minutes")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--size", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--decay", type=float, help="share of the time in which the learning rate falls")
    parser.add_argument("--optimiser", choices=("muon", "adam"))
    parser.add_argument("--noise", type=float, nargs=3, metavar="SHARE", help="of Gaussian, Poisson-Gaussian, camera")
    parser.add_argument("--sizes", type=float, nargs="+", help="by which enlargers' pictures are reduced before")
    parser.add_argument("--pages", type=int, help="rendered pages among enlargers' pictures")
    parser.add_argument("--start", type=Path, help="weights to start from")
    parser.add_argument("--config", type=json.loads, help='sizes of the network as JSON, e.g. {"depth": 12}')
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--loaders", type=int, default=0, help="processes that make batches; 8 beside a GPU")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    name, _ = variant_parts(a.task, a.variant)
    names = ("batch", "size", "rate", "decay", "optimiser", "noise", "sizes", "pages")
    changes = {k: getattr(a, k) for k in names if getattr(a, k) is not None}
    recipe = dataclasses.replace(RECIPES[a.task][name], **changes)
    train(
        a.task, a.data, a.out, a.variant, a.minutes, steps=a.steps, resume=a.resume, device=a.device, seed=a.seed,
        start=a.start, recipe=recipe, config=a.config, loaders=a.loaders,
    )  # fmt: skip


if __name__ == "__main__":
    main()
