"""What the trainings' loops have in common: a budget of time or steps, averaged weights, checkpoints, a log.

    for progress in loop:          # 0..1
        ...                        # one step of the optimiser
        loop.stepped(line)         # line(): the last steps' figures, asked for every LOG_EVERY steps

What a step is, and how its rate runs over `progress`, is each training's own. Needs torch alone.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

LOG_EVERY, SAY_EVERY = 50, 500  # steps
KEPT_EVERY = 300  # seconds between two states
MEMORY = 0.999  # share of the averaged weights that stays with a step, once there were many
WARM = 200  # steps in which the rate rises


def cosine(share: float) -> float:
    """1 at 0, 0 from 1 on."""
    return 0.5 * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0)))


def checkpoint(out: Path, device: str, facts: dict) -> dict | None:
    """What a training in that folder left: trunk.pt, or else state.pt. Raises ValueError where its facts are others."""
    path = next((path for path in (out / "trunk.pt", out / "state.pt") if path.exists()), None)
    if path is None:
        return None
    saved = torch.load(path, weights_only=True, map_location=device)
    theirs = {name: saved["facts"].get(name) for name in facts}
    if theirs != facts:
        raise ValueError(f"{path} is of {theirs}, not of {facts}: resume with the same, or in another folder")
    return saved


class Loop:
    """One training in the folder `out`: log.jsonl, state.pt every five minutes, trunk.pt where `branch` says so.

    minutes: how long; steps: how many instead, whatever the machine's pace. The .pt files are its own; it loads them
    with weights_only. optimiser: of state_dict and load_state_dict. facts: what says of which training a checkpoint is.
    """

    def __init__(
        self, out: Path, network: nn.Module, optimiser, minutes: float, steps: int | None = None,
        facts: dict | None = None, say: Callable[[str], object] = print,
    ):  # fmt: skip
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.network, self.optimiser, self.say = out, network, optimiser, say
        self.minutes, self.steps, self.facts = minutes, steps, facts or {}
        self.step = self.first = 0
        self.past = 0.0  # seconds of the trainings that this one goes on from
        self.start_average()
        self.started = self.kept = time.monotonic()

    def start_average(self) -> None:
        """From the weights as they are."""
        self.average = {name: value.detach().clone() for name, value in self.network.state_dict().items()}

    def go_on(self, saved: dict) -> None:
        """From a checkpoint."""
        self.network.load_state_dict(saved["network"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.average, self.step, self.past = saved["average"], saved["step"], saved["seconds"]
        self.first = self.step
        self.say(f"going on from step {self.step}")

    @property
    def seconds(self) -> float:
        """Spent so far, by the trainings before too."""
        return self.past + time.monotonic() - self.started

    @property
    def warmth(self) -> float:
        """Share of its rate that the optimiser takes at the beginning: 0..1."""
        return min(1.0, (self.step - self.first + 1) / WARM)

    def __iter__(self) -> Iterator[float]:
        self.started = self.kept = time.monotonic()
        self._current = self.network.state_dict()  # the parameters themselves
        while (progress := self._progress()) < 1:
            yield progress

    def _progress(self) -> float:
        spent, whole = time.monotonic() - self.started, 60 * self.minutes
        if self.steps is not None:
            spent, whole = self.step - self.first, self.steps
        return spent / whole if whole > 0 else 1.0

    @torch.no_grad()
    def stepped(self, line: Callable[[], dict]) -> None:
        """After each step of the optimiser."""
        self.step += 1
        keep = min(MEMORY, (1 + self.step) / (10 + self.step))
        names = [name for name, value in self.average.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.average[n] for n in names], [self._current[n] for n in names], 1 - keep)
        if self.step % LOG_EVERY == 0:
            text = json.dumps({"step": self.step, "seconds": round(self.seconds, 1), **line()})
            with (self.out / "log.jsonl").open("a") as log:
                log.write(text + "\n")
            if self.step % SAY_EVERY == 0:
                self.say(text)
        if time.monotonic() - self.kept > KEPT_EVERY:
            self.kept = time.monotonic()
            self.save("state.pt")

    def branch(self) -> None:
        """Keeps the state from which `resume` goes on with more time: where the rate begins to fall."""
        self.save("trunk.pt")

    def save(self, name: str) -> None:
        state: dict[str, object] = {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}
        state |= {"average": self.average, "step": self.step, "seconds": self.seconds, "facts": self.facts}
        temporary = self.out / f"{name}.tmp"
        torch.save(state, temporary)
        temporary.rename(self.out / name)


class Means:
    """Sums of figures on their device, so that nothing waits for a GPU before `taken`."""

    def __init__(self, count: int, device: str):
        self.sums, self.steps = torch.zeros(count, device=device), 0

    def add(self, figures: Tensor) -> None:
        self.sums += figures
        self.steps += 1

    def taken(self) -> list[float]:
        """The means since the last time."""
        means = (self.sums / max(self.steps, 1)).tolist()
        self.sums.zero_()
        self.steps = 0
        return means
