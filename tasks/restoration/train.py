"""Training of the restoration networks: pictures in a folder -> checkpoints, a log, one file of weights.

Needs torch, numpy and Pillow alone: `python -m tasks.restoration.train --help`. Here: the loss, the loop with its time
budget, checkpoints. What a training sample is stands in samples.py, the networks and their files in networks.py;
figures on test sets come from evaluate.py.

The learning rate is constant, then falls with a cosine over the last part of the time given; the state at the start
of the fall is kept (`trunk.pt`), and `resume` goes on from there with more time. Enlargers learn the absolute error,
and while the rate falls the squared one; denoisers the logarithm of the squared error. Until half
of that fall, units that never fire are set to work again (dead_units.py).
"""

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from codec.model import native_bfloat16
from codec.optimiser import Optimiser, clipped
from codec.recorded import Recorded
from codec.train import load_pictures
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
    resume: bool = False,
    device: str = "cpu",
    seed: int = 1,
    say=print,
    start: Path | None = None,
    recipe: Recipe | None = None,
    config: dict | None = None,
    loaders: int = 0,
) -> Path:
    """Train `task` (denoise | superres) for `minutes`; returns the path of the weights,
    out/<task>-<variant>.safetensors.

    Writes out/log.jsonl (a line every 50 steps), out/state.pt every 5 minutes, out/trunk.pt when the rate starts to
    fall. `start`: a weights file whose tensors are taken over where name and shape agree (merged kernels become the
    3x3 branch), and its sizes unless `config` names others; with `resume` those of the checkpoint. `loaders`: processes
    that make batches (0: this one, right for one CPU thread). The .pt files are this function's own; it loads them with
    weights_only. Raises FileNotFoundError without pictures, ValueError for arguments and files that do not go together.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    name, scale = variant_parts(task, variant)
    of = {"task": task, "network": name, "scale": scale}
    recipe = recipe or RECIPES[task][name]
    torch.manual_seed(seed)
    kind = NETWORKS[task][name]
    checkpoint = out / "trunk.pt"
    if (out / "state.pt").exists() and not checkpoint.exists():
        checkpoint = out / "state.pt"
    saved = None
    if resume and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=device)
        if saved.get("of", of) != of:
            raise ValueError(
                f"{checkpoint} is of {saved['of']}, not of {of}: resume with the same, or in another folder"
            )
        config = config or saved.get("config")
    if config is None and start and type((file := load_network(start)).network.config) is kind.config_class:
        config = dataclasses.asdict(file.network.config)
        config.pop("merged", None)
    config = {k: tuple(v) if isinstance(v, list) else v for k, v in (config or {}).items()}
    sizes = dict(config, **({"scale": scale} if task == "superres" else {}))
    network = kind(kind.config_class(**sizes))
    if start:
        taken = take_over(network, start)
        say(f"{taken} of {len(network.state_dict())} tensors start from {start}")
    network = network.to(device).to(memory_format=torch.channels_last).train()
    # What starts as bicubic moves slowly, and so does a deconvolution (as FSRCNN's authors have it).
    slow = [p for key, p in network.named_parameters() if key == "linear" or key.startswith("enlarge.")]
    optimiser = Optimiser(network.parameters(), recipe.rate, slow, recipe.optimiser, betas=(0.9, 0.99))
    average = {k: v.detach().clone() for k, v in network.state_dict().items()}
    step, past, falling = 0, 0.0, False
    if saved:
        network.load_state_dict(saved["network"])
        optimiser.load_state_dict(saved["optimiser"])
        average, step, past = saved["average"], saved["step"], saved["seconds"]
        torch.manual_seed(seed + step)
        say(f"going on from {checkpoint} at step {step}")
    smallest = recipe.size * (scale if task == "superres" else 1)
    pictures = load_pictures(data, smallest)
    if task == "denoise":
        batches = NoisyPatches(pictures, recipe.batch, recipe.size, seed + step, recipe.noise)
    else:
        batches = ReducedPatches(pictures, recipe.batch, recipe.size, seed + step, scale, recipe.sizes, recipe.pages)
    loader = iter(
        torch.utils.data.DataLoader(batches, batch_size=None, num_workers=loaders, pin_memory=device == "cuda")
    )
    parameters = sum(p.numel() for p in network.parameters())
    say(f"{len(pictures)} pictures, {parameters / 1e3:.0f} k parameters, {device}, {recipe}")

    def save(path: Path) -> None:
        state = {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "average": average}
        spent = past + time.monotonic() - started
        state |= {"config": dataclasses.asdict(network.config), "of": of}
        torch.save({**state, "step": step, "seconds": spent}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)

    path = out / f"{task}-{name}{f'-x{scale}' if task == 'superres' else ''}.safetensors"
    where = torch.device(device).type
    started = saved_at = time.monotonic()
    budget, first, tally = minutes * 60.0, step, Tally()
    watch, recycled = Watch(network), 0
    usual_norm = torch.ones((), device=device)  # running mean of the gradient's norm, and where it is clipped

    def step_on(given: Tensor, wanted: Tensor, told: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step on what is given to the network and wanted of it: (loss, squared error per sample, norm)."""
        with torch.autocast(where, dtype=torch.bfloat16, enabled=native_bfloat16(where)):
            result = network(given) if task == "superres" else network(given, told)
        error = (result.float() - wanted).square().mean((1, 2, 3))
        if task == "denoise":  # the logarithm makes all noise levels count alike: it is the PSNR
            loss = (error + 1e-6).log().mean()
        elif falling:  # what PSNR counts; from the start it learns more slowly than the absolute error
            loss = error.mean()
        else:
            loss = (result.float() - wanted).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        norm = clipped(network.parameters(), usual_norm)
        usual_norm.lerp_(torch.where(torch.isfinite(norm), torch.minimum(norm, 2 * usual_norm), usual_norm), 0.02)
        optimiser.step()
        return loss.detach(), error.detach(), norm

    recorded = Recorded(step_on, say)
    current = {key: value for key, value in network.state_dict().items() if value.is_floating_point()}
    with (out / "log.jsonl").open("a") as log:
        while (elapsed := time.monotonic() - started) < budget:
            factor = min(1.0, (step - first + 1) / 200)
            progress = elapsed / budget
            if progress > 1 - recipe.decay:
                if not falling:
                    falling = True
                    save(out / "trunk.pt")
                factor *= 0.5 * (1 + math.cos(math.pi * (progress - 1 + recipe.decay) / recipe.decay))
            optimiser.set_rate(recipe.rate * max(factor, 1e-3))
            parts = [part.to(device, non_blocking=True) for part in next(loader)]
            turn = (step - first) % WATCH_EVERY
            if turn == 0 and (progress < 1 - recipe.decay / 2 or step == first):
                watch.start()
            elif turn == WATCH_FOR and watch.watching:
                recycled += watch.recycle(average)
            told = parts[0] if task == "superres" else parts[2]
            loss, error, norm = recorded(None if watch.watching else falling, parts[0], parts[1], told)
            step += 1
            keep = min(0.999, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_([average[key] for key in current], list(current.values()), 1 - keep)
            tally.add(loss, error, parts[3] if task == "denoise" else None, norm)
            if step % 50 == 0:
                line = {
                    "step": step,
                    "seconds": round(past + elapsed, 1),
                    "rate": recipe.rate * factor,
                    "recycled": recycled,
                    **tally.means(),
                }
                log.write(json.dumps(line) + "\n")
                log.flush()
                if step % 500 == 0:
                    say(json.dumps(line))
                tally = Tally()
            if time.monotonic() - saved_at > 300:
                saved_at = time.monotonic()
                save(out / "state.pt")
    if not falling:  # so few steps that the last of them began before the fall
        save(out / "trunk.pt")
    network.load_state_dict(average)
    final = network.cpu().eval()
    if isinstance(final, NightUpscaler):
        final = final.merge()
    card = {
        "scale": str(scale),
        "steps": str(step),
        "minutes": f"{(past + time.monotonic() - started) / 60:.0f}",
        "pictures": str(len(pictures)),
        "macs_per_input_pixel": f"{macs_per_pixel(final, task):.0f}",
    }
    identity = save_network(final, task, name, path, **card)
    say(f"wrote {path}, model {identity}, {step} steps")
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
        a.task, a.data, a.out, a.variant, a.minutes, a.resume, a.device, a.seed,
        start=a.start, recipe=recipe, config=a.config, loaders=a.loaders,
    )  # fmt: skip


if __name__ == "__main__":
    main()
