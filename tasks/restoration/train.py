"""Training of the restoration networks: pictures in a folder -> checkpoints, a log, one file of weights.

Needs torch, numpy and Pillow alone: `python -m tasks.restoration.train --help`. Here: the loss, the loop with its time
budget, checkpoints. What a training sample is stands in samples.py, the networks and their files in networks.py;
figures on test sets come from evaluate.py.

The learning rate is constant, then falls with a cosine over the last part of the time given; the state at the start
of the fall is kept (`trunk.pt`), and `resume` goes on from there with more time. Enlargers learn the absolute error,
and while the rate falls the squared one; denoisers the logarithm of the squared error. Until half of
that fall, units that never fire are set to work again (dead_units.py).
"""

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from codec.network.layers import native_bfloat16
from codec.training.cuda_graph import Recorded
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

    Writes out/log.jsonl (a line every 50 steps), out/state.pt every 5 minutes, out/trunk.pt when the rate starts to
    fall. `start`: a weights file whose tensors are taken over where name and shape agree (merged kernels become the
    3x3 branch), and its sizes unless `config` names others; with `resume` those of the checkpoint. `loaders`: processes
    that make batches (0: this one, right for one CPU thread). The .pt files are this function's own; it loads them with
    weights_only. Raises FileNotFoundError without pictures, ValueError for arguments and files that do not go together.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    name, scale = variant_parts(task, variant)
    recipe = recipe or RECIPES[task][name]
    torch.manual_seed(seed)
    checkpoint = checkpoint_in(out) if resume else None
    saved = read_checkpoint(checkpoint, {"task": task, "network": name, "scale": scale}, device) if checkpoint else None
    network = new_network(task, name, scale, config or (saved or {}).get("config"), start)
    if start:
        taken = take_over(network, start)
        say(f"{taken} of {len(network.state_dict())} tensors start from {start}")
    training = Training(task, name, scale, network, recipe, out, device, say)
    if saved:
        training.go_on(saved)
        torch.manual_seed(seed + training.step)
        say(f"going on from {checkpoint} at step {training.step}")
    pictures = load_pictures(data, recipe.size * scale)
    batches = batches_of(task, pictures, recipe, seed + training.step, scale)
    loader = torch.utils.data.DataLoader(batches, batch_size=None, num_workers=loaders, pin_memory=device == "cuda")
    parameters = sum(p.numel() for p in network.parameters())
    say(f"{len(pictures)} pictures, {parameters / 1e3:.0f} k parameters, {device}, {recipe}")
    training.run(iter(loader), minutes, steps)
    return training.export(len(pictures))


def checkpoint_in(out: Path) -> Path | None:
    """Where a training in this folder goes on: at the start of its rate's fall, else at its last state."""
    return next((path for path in (out / "trunk.pt", out / "state.pt") if path.exists()), None)


def read_checkpoint(path: Path, of: dict, device: str) -> dict:
    """A checkpoint of the same training. Raises ValueError for another one's."""
    saved = torch.load(path, weights_only=True, map_location=device)
    if saved["of"] != of:
        raise ValueError(f"{path} is of {saved['of']}, not of {of}: resume with the same, or in another folder")
    return saved


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
    """A network while it learns: its optimiser, its running average (which is what is exported), its checkpoints."""

    def __init__(
        self, task: str, name: str, scale: int, network: torch.nn.Module, recipe: Recipe, out: Path, device: str, say
    ):
        self.task, self.name, self.scale, self.recipe, self.out, self.say = task, name, scale, recipe, out, say
        self.device, self.where = device, torch.device(device).type
        self.network = network = network.to(device).to(memory_format=torch.channels_last).train()
        # What starts as bicubic moves slowly, and so does a deconvolution (as FSRCNN's authors have it).
        slow = [p for key, p in network.named_parameters() if key == "linear" or key.startswith("enlarge.")]
        self.optimiser = Optimiser(network.parameters(), recipe.rate, slow, recipe.optimiser, betas=(0.9, 0.99))
        self.average = {k: v.detach().clone() for k, v in network.state_dict().items()}
        self.current = {key: value for key, value in network.state_dict().items() if value.is_floating_point()}
        self.usual_norm = torch.ones((), device=device)  # running mean of the gradient's norm, where it is clipped
        self.step, self.past, self.started = 0, 0.0, time.monotonic()
        self.falling = False  # whether the rate has begun to fall
        self.watch, self.recycled = Watch(network), 0

    def go_on(self, saved: dict) -> None:
        self.network.load_state_dict(saved["network"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.average, self.step, self.past = saved["average"], saved["step"], saved["seconds"]

    def run(self, batches: Iterator, minutes: float, steps: int | None) -> None:
        """Learn from batches for `minutes`, or so many `steps`, from here on."""
        recorded = Recorded(self.learn, self.say)
        first, tally = self.step, Tally()
        self.started = saved_at = time.monotonic()
        with (self.out / "log.jsonl").open("a") as log:
            while (progress := self.progress(first, minutes, steps)) < 1:
                factor = self.rate_factor(self.step - first, progress)
                self.optimiser.set_rate(self.recipe.rate * max(factor, 1e-3))
                parts = [part.to(self.device, non_blocking=True) for part in next(batches)]
                self.recycle(self.step - first, progress)
                told = parts[0] if self.task == "superres" else parts[2]
                key = None if self.watch.watching else self.falling
                loss, error, norm = recorded(key, parts[0], parts[1], told)
                self.step += 1
                self.follow()
                tally.add(loss, error, parts[3] if self.task == "denoise" else None, norm)
                if self.step % 50 == 0:
                    self.tell(log, factor, tally)
                    tally = Tally()
                if time.monotonic() - saved_at > 300:
                    saved_at = time.monotonic()
                    self.save(self.out / "state.pt")
        if not self.falling:  # so few steps that the last of them began before the fall
            self.save(self.out / "trunk.pt")

    def progress(self, first: int, minutes: float, steps: int | None) -> float:
        """0..1 of this piece of the training."""
        return (self.step - first) / steps if steps else (time.monotonic() - self.started) / (60 * minutes)

    def rate_factor(self, done: int, progress: float) -> float:
        """Of the recipe's rate: up over 200 steps, constant, then a cosine to 0; the state before that is kept."""
        factor = min(1.0, (done + 1) / 200)
        decay = self.recipe.decay
        if progress > 1 - decay:
            if not self.falling:
                self.falling = True
                self.save(self.out / "trunk.pt")
            factor *= 0.5 * (1 + math.cos(math.pi * (progress - 1 + decay) / decay))
        return factor

    def recycle(self, done: int, progress: float) -> None:
        """Units that never fire are looked for every WATCH_EVERY steps, until half of the fall, and set to work."""
        turn = done % WATCH_EVERY
        if turn == 0 and (progress < 1 - self.recipe.decay / 2 or done == 0):
            self.watch.start()
        elif turn == WATCH_FOR and self.watch.watching:
            self.recycled += self.watch.recycle(self.average)

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

    @torch.no_grad()
    def follow(self) -> None:
        """The average comes after the network."""
        keep = min(0.999, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_([self.average[key] for key in self.current], list(self.current.values()), 1 - keep)

    @property
    def seconds(self) -> float:
        return self.past + time.monotonic() - self.started

    def tell(self, log, factor: float, tally: "Tally") -> None:
        line = {
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "rate": self.recipe.rate * factor,
            "recycled": self.recycled,
            **tally.means(),
        }
        log.write(json.dumps(line) + "\n")
        log.flush()
        if self.step % 500 == 0:
            self.say(json.dumps(line))

    def save(self, path: Path) -> None:
        """A checkpoint, whole or not at all."""
        state = {
            "of": {"task": self.task, "network": self.name, "scale": self.scale},
            "config": dataclasses.asdict(self.network.config),
            "network": self.network.state_dict(), "optimiser": self.optimiser.state_dict(), "average": self.average,
            "step": self.step, "seconds": self.seconds,
        }  # fmt: skip
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)

    def export(self, pictures: int) -> Path:
        """The average as a weights file; its path."""
        self.network.load_state_dict(self.average)
        final = self.network.cpu().eval()
        if isinstance(final, NightUpscaler):
            final = final.merge()
        scaled = f"-x{self.scale}" if self.task == "superres" else ""
        path = self.out / f"{self.task}-{self.name}{scaled}.safetensors"
        card = {
            "scale": str(self.scale),
            "steps": str(self.step),
            "minutes": f"{self.seconds / 60:.0f}",
            "pictures": str(pictures),
            "macs_per_input_pixel": f"{macs_per_pixel(final, self.task):.0f}",
        }
        identity = save_network(final, self.task, self.name, path, **card)
        self.say(f"wrote {path}, model {identity}, {self.step} steps")
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
