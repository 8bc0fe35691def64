"""Training of the embedding networks: pictures in folders -> a checkpoint, a log, one file of weights.

Needs torch, numpy and Pillow alone: `python -m tasks.duplicates.embeddings.train --help`. Here: the losses, the loop
with its budget. What is learned from stands in samples.py, the networks and their files in networks.py; figures come
from tests/bench/bench_copies.py.

The learning rate rises, stays, and falls with a cosine over all `minutes` (or `steps`), counted over all pieces: a run
that was paused goes on with `resume` and the same budget as if it had not been.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codec.network.layers import native_bfloat16
from tasks.duplicates.embeddings.networks import KINDS, new_network, save_network
from tasks.duplicates.embeddings.samples import (
    HELD,
    copy_batches,
    labelled_batches,
    load_labelled,
    load_pictures,
    plain_batches,
    tensor_of,
)

TEMPERATURE = 0.05  # of InfoNCE
SPREAD = 8.0  # weight of the entropy term
RATES = {"copy": 2e-3, "classifier": 2e-3, "autoencoder": 1.5e-3}
DECAY = {"copy": 0.02, "classifier": 0.05, "autoencoder": 1e-4}


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
    steps: int | None = None,
    resume: bool = False,
    device: str = "cpu",
    seed: int = 1,
    say: Callable[[str], None] = lambda line: None,
    pause_after: float | None = None,
) -> Path:
    """Train one network for `minutes` in all (earlier pieces of a resumed training included), or for so many `steps`
    (the same on every machine), and write its weights.

    data: folders with pictures (copy, autoencoder) or *.npz files (classifier); out: gets embedding-VARIANT.pt
    (checkpoint), .jsonl (log) and .safetensors. pause_after: minutes (or steps) after which this piece stops early.
    Returns the path of the weights. Raises FileNotFoundError where there is nothing to train on or to resume from,
    ValueError for an unknown variant.
    """
    if variant not in KINDS:
        raise ValueError(f"--variant {variant}: the embedding networks are {', '.join(KINDS)}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / f"embedding-{variant}.pt"
    if resume and not checkpoint.exists():
        raise FileNotFoundError(f"nothing to resume: {checkpoint} is not there; leave --resume out to start")
    torch.manual_seed(seed)
    training = Training(variant, device, out / f"embedding-{variant}.jsonl", say)
    if resume:
        training.go_on(torch.load(checkpoint, map_location=device, weights_only=True))
    batches = training.batches_of(data, seed)
    training.run(batches, float(steps or 60 * minutes), steps is not None, pause_after)
    training.save(checkpoint)
    weights = out / f"embedding-{variant}.safetensors"
    save_network(training.network, weights)
    return weights


class Training:
    """One network while it learns: its optimiser, how far it is, its log."""

    def __init__(self, variant: str, device: str, log: Path, say: Callable[[str], None]):
        self.variant, self.device, self.log, self.say = variant, device, log, say
        self.network = new_network(variant).to(device, memory_format=torch.channels_last)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=RATES[variant], weight_decay=DECAY[variant])
        self.steps, self.seconds = 0, 0.0
        self.labelled: dict[str, np.ndarray] = {}  # the classifier's pictures

    def go_on(self, state: dict) -> None:
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.steps, self.seconds = state["steps"], state["seconds"]

    def save(self, checkpoint: Path) -> None:
        part = checkpoint.with_suffix(".part")
        state = {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}
        torch.save(state | {"steps": self.steps, "seconds": self.seconds}, part)
        part.replace(checkpoint)

    def batches_of(self, data: list[Path], seed: int) -> Iterator:
        """Endless batches of what this network learns from. Raises FileNotFoundError."""
        if self.variant == "classifier":
            self.labelled = load_labelled(data)
            self.say(f"{len(self.labelled['train_y'])} labelled pictures")
            return labelled_batches(self.labelled, np.random.default_rng([seed, self.steps]))
        pictures, group = load_pictures(data, HELD)
        self.say(f"{len(pictures)} pictures of {len(set(group))} originals")
        size, rng = self.network.config.size, random.Random(f"{seed} {self.steps}")
        if self.variant == "autoencoder":
            return plain_batches(pictures, size, rng)
        if len(set(group)) < 2:
            raise FileNotFoundError("the copy network learns from pictures that differ: at least 2 are needed")
        return copy_batches(pictures, group, size, rng)

    def run(self, batches: Iterator, budget: float, counted: bool, pause_after: float | None) -> None:
        """Learn until `budget` steps (`counted`) or seconds are spent, pieces before this one included."""

        def spent() -> float:
            return self.steps if counted else self.seconds

        stop = budget
        if pause_after is not None:
            stop = min(budget, spent() + pause_after * (1 if counted else 60))
        before, started, said = self.seconds, time.monotonic(), 0.0
        means: dict[str, float] = {}
        self.network.train()
        while spent() < stop:
            facts = self.learn(next(batches), RATES[self.variant] * rate_at(spent() / budget))
            self.steps += 1
            self.seconds = before + time.monotonic() - started
            means = {k: v if k not in means else 0.95 * means[k] + 0.05 * v for k, v in facts.items()}
            if self.seconds - said > 20 or spent() >= stop:
                said = self.seconds
                self.tell(means)

    def learn(self, batch, rate: float) -> dict[str, float]:
        """One step; the loss's parts by name."""
        for settings in self.optimiser.param_groups:
            settings["lr"] = rate
        where = torch.device(self.device).type
        with torch.autocast(where, torch.bfloat16, enabled=native_bfloat16(where)):
            loss, facts = self.loss(batch)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss became {loss.item()} at step {self.steps}; resume with a lower rate")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 2.0)
        self.optimiser.step()
        return facts

    def loss(self, batch) -> tuple[Tensor, dict[str, float]]:
        """(loss, its parts by name) of a batch as `batches_of` makes them."""
        network, device = self.network, self.device
        if self.variant == "copy":
            n = len(batch[0])
            vectors = network(torch.cat(batch).to(device))
            with torch.autocast(torch.device(device).type, enabled=False):
                loss, contrast, spread = copy_loss(vectors[:n], vectors[n:])
            return loss, {"infonce": contrast.item(), "koleo": spread.item()}
        if self.variant == "classifier":
            logits = network.logits(batch[0].to(device)).float()
            loss = F.cross_entropy(logits, batch[1].to(device), label_smoothing=0.1)
            return loss, {"cross_entropy": loss.item()}
        x = batch.to(device)
        loss = F.mse_loss(network.rebuilt(x), x)
        return loss, {"mse": loss.item()}

    def tell(self, means: dict[str, float]) -> None:
        line = {"steps": self.steps, "seconds": round(self.seconds, 1), **{k: round(v, 5) for k, v in means.items()}}
        if self.variant == "classifier" and (right := accuracy(self.network, self.labelled)) is not None:
            line["test_accuracy"] = round(right, 4)
        with self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.say(", ".join(f"{k} {v}" for k, v in line.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=KINDS)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0, help="in all, earlier pieces included")
    parser.add_argument("--steps", type=int, help="how many in all, instead of --minutes")
    parser.add_argument("--pause-after", type=float, help="minutes (with --steps: steps) of this piece")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = train(
        args.data, args.out, variant=args.variant, minutes=args.minutes, steps=args.steps, resume=args.resume,
        device=args.device, seed=args.seed, say=lambda line: print(line, flush=True), pause_after=args.pause_after,
    )  # fmt: skip
    print(path)


if __name__ == "__main__":
    main()
