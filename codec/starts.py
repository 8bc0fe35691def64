"""Where a training starts from: the tensors of a model file made to fit other sizes, and dead units brought to life.

Needs torch and numpy alone, as train.py does, which calls it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codec import lapping
from codec.model import KNOTS, LEVELS, Config, NightCodec, at_level, to_blocks

LEAVING = 3.0  # weight of a transform's last layer among those that read what passes between its bottlenecks


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
    the first and the last among them; all of them where it has fewer. Where they narrow to more channels than `config`
    lets them, those with the largest weights."""
    for prefix, wanted in (
        ("analysis_network.blocks.", config.encoder_blocks), ("synthesis_network.blocks.", config.decoder_blocks),
    ):  # fmt: skip
        had: dict[int, dict[str, np.ndarray]] = {}
        for name in [name for name in arrays if name.startswith(prefix)]:
            number, rest = name.removeprefix(prefix).split(".", 1)
            had.setdefault(int(number), {})[rest] = arrays[name]
        if wanted < len(had):
            chosen = [round(i * (len(had) - 1) / max(wanted - 1, 1)) for i in range(wanted)]
            kept = {f"{prefix}{i}.{rest}": a for i, old in enumerate(chosen) for rest, a in had[old].items()}
            arrays = {name: a for name, a in arrays.items() if not name.startswith(prefix)} | kept
    blocks = {".".join(name.split(".")[:3]) for name in arrays if ".blocks." in name}
    for block in blocks:
        encoding = block.startswith("analysis_network.")
        inner = config.encoder_inner if encoding else config.decoder_inner
        inner = inner or ((config.encoder_channels if encoding else config.decoder_channels) or config.channels) // 2
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


def slimmed(arrays: dict[str, np.ndarray], config: Config) -> dict[str, np.ndarray]:
    """A model file's tensors with the entropy model's networks on the sizes of `config` where these are smaller: of the
    units between two layers those with the largest weights stay, and what reads them loses the others."""
    arrays = dict(arrays)
    groups = {network: 0 for network in ("indices", "means")}
    for network in groups:
        prefix = f"{network}.groups."
        groups[network] = len({name.removeprefix(prefix).split(".")[0] for name in arrays if name.startswith(prefix)})

    def keep(network: str, layer: str, count: int, readers: list[str], last: bool = False, spread: int = 1) -> None:
        """`count` of a layer's units, each `spread` rows; they stand first, or last, in what each reader reads."""
        weight, bias = f"{network}.{layer}.weight", f"{network}.{layer}.bias"
        if weight not in arrays or len(arrays[weight]) <= count * spread:
            return
        units = len(arrays[weight]) // spread
        names = [f"{network}.{reader}.weight" for reader in readers]
        starts = [arrays[name].shape[1] - units if last else 0 for name in names]
        given = np.square(arrays[weight].astype(np.float64)).reshape(units, -1).sum(1)
        read = np.zeros(units)
        for name, start in zip(names, starts, strict=True):
            one = np.square(arrays[name][:, start : start + units].astype(np.float64)).sum((0, 2, 3))
            read += one / max(one.mean(), 1e-30)
        kept = np.sort(np.argsort(-given * read)[:count])
        rows = (kept[:, None] * spread + np.arange(spread)).ravel()
        arrays[weight], arrays[bias] = arrays[weight][rows], arrays[bias][rows]
        for name, start in zip(names, starts, strict=True):
            a = arrays[name]
            arrays[name] = np.concatenate((a[:, :start], a[:, start + kept], a[:, start + units :]), 1)

    for network, channels, joined, joined_later in (
        ("indices", config.index_channels, config.index_joined or 160, config.index_joined or 128),
        ("means", config.mean_channels, config.mean_joined, config.mean_channels),
    ):
        later = [f"groups.{number}" for number in range(groups[network])]
        around = "neighbours" if network == "indices" else "context"
        keep(network, "hyper", 128 if network == "indices" else channels, ["expand"])
        keep(network, "expand", config.expanded, ["features"], spread=16)
        keep(network, "features", channels, ["first", "join", *(f"{group}.join" for group in later)])
        keep(network, "magnitude", config.index_seen, ["neighbours"])
        keep(network, around, channels, ["join"], last=True)
        keep(network, "join", joined, ["second"])
        for group in later:
            keep(network, f"{group}.context", channels, [f"{group}.join"], last=True)
            keep(network, f"{group}.join", joined_later, [f"{group}.last"])
    return arrays


def _directions(spread: Tensor, readers: list[Tensor], channels: int) -> tuple[Tensor, Tensor]:
    """Which of the directions of what passes between bottlenecks to keep: (to `channels` of them, and back).

    spread [places,C,C]: second moments at each place; readers [out,C]: weights of what reads there. Kept are the
    readers' singular vectors on inputs whose covariance is taken out, which is to say what they would miss most.
    """
    wide = spread.shape[1]
    mean = spread.mean(0)
    mean = mean + 1e-6 * mean.diagonal().mean() * torch.eye(wide, dtype=torch.float64)
    root, unit = torch.linalg.cholesky(mean), mean.diagonal().mean().sqrt()
    scaled = [
        reader.double() / (reader.double() @ moments @ reader.double().t()).diagonal().mean().sqrt()
        for reader, moments in zip(readers, spread, strict=True)
    ]
    scaled[-1] = LEAVING * scaled[-1]
    kept = torch.linalg.svd(torch.cat(scaled) @ root, full_matrices=False).Vh[:channels]
    return (unit * kept @ torch.linalg.inv(root)).float(), (root @ kept.t() / unit).float()


def _moments(t: Tensor) -> Tensor:
    rows = t[0].flatten(1).double()
    return rows @ rows.t() / rows.shape[1]


def _as_arrays(prefix: str, found: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {
        f"{prefix}.{name}": (part[:, :, None, None] if name.endswith(".weight") else part).numpy()
        for name, part in found.items()
    }


@torch.no_grad()
def narrowed_encoder(model: NightCodec, pictures: list[Tensor], channels: int) -> dict[str, np.ndarray]:
    """The encoder's tensors for `channels` channels between its bottlenecks instead of the model's more. pictures:
    float [1,3,H,W] in 0..1, some of each sort."""
    network, spread = model.analysis_network, 0
    for x in pictures:
        pixels = lapping.lapped(x - 0.5, model.lap_analysis) if model.config.lapped else x - 0.5
        places = [network.enter(model.coefficients(pixels))]
        for block in network.blocks:
            places.append(block(places[-1]))
        spread = spread + torch.stack([_moments(t) for t in places]) / len(pictures)
    leaving = network.leave.weight.unflatten(1, (-1, 4)).transpose(1, 2).flatten(0, 1).flatten(1)  # [4 latent,C]
    reduce, widen = _directions(spread, [*(b.narrow.weight.flatten(1) for b in network.blocks), leaving], channels)
    found = {
        "enter.weight": reduce @ network.enter.weight.flatten(1), "enter.bias": reduce @ network.enter.bias,
        "leave.weight": (leaving @ widen).unflatten(0, (-1, 4)).transpose(1, 2).flatten(1),
    }  # fmt: skip
    for number, block in enumerate(network.blocks):
        found[f"blocks.{number}.narrow.weight"] = block.narrow.weight.flatten(1) @ widen
        found[f"blocks.{number}.widen.weight"] = reduce @ block.widen.weight.flatten(1)
        found[f"blocks.{number}.widen.bias"] = reduce @ block.widen.bias
        if not block.leaks:
            found[f"blocks.{number}.step_entering"] = torch.zeros(channels)
    return _as_arrays("analysis_network", found)


@torch.no_grad()
def narrowed_decoder(model: NightCodec, latents: list[tuple[int, Tensor]], channels: int) -> dict[str, np.ndarray]:
    """The decoder's tensors for `channels` channels between its bottlenecks instead of the model's more. latents:
    (level, y_hat [1,latent,h,w]), some of each sort. Gains become their mean over these, from where they learn anew."""
    network, spread, gains = model.synthesis_network, 0, 0
    middle = len(network.blocks) // 2
    for level, y_hat in latents:
        at = torch.tensor([level])
        early, late = (at_level(part, at).flatten() for part in (network.enter_gain, network.middle_gain))
        gains = gains + torch.stack((early, late)) / len(latents)
        t = network.enter(model.coefficients(to_blocks(y_hat, model.linear_synthesis / 255.0)))
        places = [t * torch.exp(early)[:, None, None]]
        for number, block in enumerate(network.blocks):
            if number == middle:
                places[-1] = places[-1] * torch.exp(late)[:, None, None]
            places.append(block(places[-1]))
        spread = spread + torch.stack([_moments(t) for t in places]) / len(latents)
    early, late = torch.exp(gains)
    readers = [*(b.narrow.weight.flatten(1) for b in network.blocks), network.leave.weight.flatten(1)]
    reduce, widen = _directions(spread, readers, channels)
    found = {
        "enter.weight": reduce @ (early[:, None] * network.enter.weight.flatten(1)),
        "enter.bias": reduce @ (early * network.enter.bias), "leave.weight": readers[-1] @ (late[:, None] * widen),
        "enter_gain": torch.zeros(KNOTS, channels), "middle_gain": torch.zeros(KNOTS, channels),
    }  # fmt: skip
    for number, block in enumerate(network.blocks):
        gain = late if number >= middle else torch.ones_like(late)
        found[f"blocks.{number}.narrow.weight"] = readers[number] @ (gain[:, None] * widen)
        found[f"blocks.{number}.widen.weight"] = reduce @ (block.widen.weight.flatten(1) / gain[:, None])
        found[f"blocks.{number}.widen.bias"] = reduce @ (block.widen.bias / gain)
        if not (block.fine or block.leaks):
            found[f"blocks.{number}.step_entering"] = torch.zeros(channels)
    return _as_arrays("synthesis_network", found)


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
