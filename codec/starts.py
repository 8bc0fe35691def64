"""Where a training starts from: the tensors of a model file made to fit other sizes, and dead units brought to life.

Needs torch and numpy alone, as train.py does, which calls it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codec.model import LEVELS, Config, NightCodec


@torch.no_grad()
def revive(model: NightCodec, x: Tensor) -> int:
    """Makes the bottlenecks' units that are never or always above zero non-linear again, as judged on
    samples [B,3,H,W] in 0..1; returns how many these were.

    Such a unit's bias moves to where about half of what it sees is above zero. What it gives is scaled by the slope it
    had over the mean slope that it has then, and the next bias takes up the change of its mean: the model computes
    nearly what it did.
    """
    revived = 0
    levels = torch.linspace(0, LEVELS - 1, len(x)).round().to(x.device)
    seen: dict[str, Tensor] = {}

    def keep(module, arguments):
        seen["x"] = arguments[0]

    def run() -> None:
        y = model.analysis(x)
        model.synthesis(model.unscale(torch.round(model.scale(y, levels)), levels), levels)

    for block in model.blocks:
        for layer, following in ((block.narrow, block.spatial), (block.spatial, block.widen)):
            handle = block.register_forward_pre_hook(keep)
            run()
            handle.remove()
            t = seen["x"].float()
            t = t if layer is block.narrow else block._activation(block.narrow(t))
            t = layer(t).transpose(0, 1).flatten(1)
            share, mean = (t > 0).float().mean(1), t.mean(1)
            slope = torch.where(share > 0.5, 1.0, block.leak)
            dead = (share < 0.01) | (share > 0.99)
            factor = torch.where(dead, slope / ((1 + block.leak) / 2), 1.0)
            new = F.leaky_relu(t - mean[:, None], block.leak).mean(1) * factor
            old = F.leaky_relu(t, block.leak).mean(1)
            following.bias += following.weight.sum((2, 3)) @ torch.where(dead, old - new, 0.0)
            following.weight *= factor[:, None, None]
            layer.bias -= torch.where(dead, mean, 0.0)
            revived += int(dead.sum())
    return revived


def thinned(arrays: dict[str, np.ndarray], config: Config) -> dict[str, np.ndarray]:
    """A model file's tensors with as many bottlenecks in each transform as `config` has: spread evenly over the file's,
    the first and the last among them; all of them where it has fewer. Of the decoder's, where they narrow to more
    channels than `config` lets them, those with the largest weights."""
    for prefix, wanted in (
        ("analysis_network.blocks.", config.encoder_blocks), ("synthesis_network.blocks.", config.decoder_blocks),
    ):  # fmt: skip
        blocks: dict[int, dict[str, np.ndarray]] = {}
        for name in [name for name in arrays if name.startswith(prefix)]:
            number, rest = name.removeprefix(prefix).split(".", 1)
            blocks.setdefault(int(number), {})[rest] = arrays[name]
        if wanted < len(blocks):
            chosen = [round(i * (len(blocks) - 1) / max(wanted - 1, 1)) for i in range(wanted)]
            kept = {f"{prefix}{i}.{rest}": a for i, old in enumerate(chosen) for rest, a in blocks[old].items()}
            arrays = {name: a for name, a in arrays.items() if not name.startswith(prefix)} | kept
    inner = config.decoder_inner or config.channels // 2
    prefix = "synthesis_network.blocks."
    for block in {prefix + name.removeprefix(prefix).split(".")[0] for name in arrays if name.startswith(prefix)}:
        narrow, spatial, widen = (arrays[f"{block}.{part}.weight"] for part in ("narrow", "spatial", "widen"))
        if len(narrow) <= inner:
            continue
        norms = [np.square(a.astype(np.float64)).sum((1, 2, 3)) for a in (narrow, spatial.swapaxes(0, 1))]
        norms += [np.square(a.astype(np.float64)).sum((1, 2, 3)) for a in (spatial, widen.swapaxes(0, 1))]
        before, after = (np.sort(np.argsort(-norms[i] * norms[i + 1])[:inner]) for i in (0, 2))
        arrays = arrays | {
            f"{block}.narrow.weight": narrow[before], f"{block}.narrow.bias": arrays[f"{block}.narrow.bias"][before],
            f"{block}.spatial.weight": spatial[after][:, before],
            f"{block}.spatial.bias": arrays[f"{block}.spatial.bias"][after], f"{block}.widen.weight": widen[:, after],
        }  # fmt: skip
        steps = {f"{block}.step_narrowed": before, f"{block}.step_filtered": after}
        arrays |= {name: arrays[name][kept] for name, kept in steps.items() if name in arrays}
    return arrays


def grown(arrays: dict[str, np.ndarray], config: Config) -> dict[str, np.ndarray]:
    """A model file's tensors with as many bottlenecks in each transform as `config` has, where the file has fewer: its
    own spread evenly, the first and the last at the ends; those between add nothing yet, so that the model computes
    what it did."""
    for prefix, wanted in (
        ("analysis_network.blocks.", config.encoder_blocks), ("synthesis_network.blocks.", config.decoder_blocks),
    ):  # fmt: skip
        had = len({name.removeprefix(prefix).split(".")[0] for name in arrays if name.startswith(prefix)})
        if not 1 < had < wanted:
            continue
        places = [round(i * (wanted - 1) / (had - 1)) for i in range(had)]
        moved = {}
        for name in [name for name in arrays if name.startswith(prefix)]:
            number, rest = name.removeprefix(prefix).split(".", 1)
            moved[f"{prefix}{places[int(number)]}.{rest}"] = arrays[name]
        for number in set(range(wanted)) - set(places):
            for rest in ("widen.weight", "widen.bias"):
                moved[f"{prefix}{number}.{rest}"] = np.zeros_like(moved[f"{prefix}0.{rest}"])
        arrays = {name: a for name, a in arrays.items() if not name.startswith(prefix)} | moved
    return arrays


def regrouped(arrays: dict[str, np.ndarray], old: Config, new: Config) -> dict[str, np.ndarray]:
    """A model file's tensors with the latent's channels in `new`'s order, and of the networks for the first group what
    belongs to its channels. Files of the same order come back as they are."""
    if old.latent != new.latent or old.groups == new.groups:
        return arrays
    places = np.argsort(old.order)[new.order]  # new channel -> old channel
    first = places[: new.slices[0].stop]
    rows = ("linear_analysis", "analysis_network.leave.weight", "analysis_network.leave.bias")
    columns = ("linear_synthesis", "hyper_enter.weight", "log_gain", "log_inverse_gain")
    of_first = (
        "means.first.weight", "means.first.bias", "means.second.weight", "means.second.bias", "means.linear",
        "indices.first.weight", "indices.first.bias", "indices.second.weight", "indices.second.bias",
    )  # fmt: skip
    into_first = ("means.context.weight", "indices.magnitude.weight")
    moved = dict(arrays)
    for names, chosen, axis in ((rows, places, 0), (columns, places, 1), (of_first, first, 0), (into_first, first, 1)):
        for name in names:
            moved[name] = np.take(arrays[name], chosen, axis)
    return {name: a for name, a in moved.items() if not name.startswith(("means.groups.", "indices.groups."))}
