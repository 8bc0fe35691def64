"""From a training's averaged weights to a model file: float16, with measured entropy tables.

Contexts are found afterwards (fit_contexts.py); until then the file has such as correct nothing.
"""

import random
from pathlib import Path

import numpy as np
import torch

from codec.entropy.tables import EntropyTables, integer_frequencies, tally, unsigned
from codec.format import FIRST_BIN, LEVELS, PRECISION, Z_GROUPS, Z_MAX, z_group
from codec.network.config import Config
from codec.network.files import save_model
from codec.network.night_codec import NightCodec
from codec.network.reference import quantised
from codec.training.samples import batch, common_side

Y_PRIOR, Z_PRIOR = 2000.0, 30.0  # symbols that the parametric tables count for
NEIGHBOUR = 0.3  # share of a level group's counts that its neighbours see too, since a group alone sees few pictures


@torch.no_grad()
def measure_tables(
    model: NightCodec, pictures: list[np.ndarray], crops: int, size: int = 256, seed: int = 7
) -> EntropyTables:
    """Frequencies of the symbols as they really occur: parametric ones as prior, counts over `crops` crops on top."""
    rng, size = random.Random(seed), common_side(pictures, size)
    model.frequencies = None
    parametric = model.tables()
    channels = range(model.config.hyper)
    y_counts = [np.zeros(len(f)) for f in parametric.y_freq]
    z_counts = np.zeros((Z_GROUPS, model.config.hyper, 2 * Z_MAX + 2))
    for start in range(0, crops, 8):
        x = batch(pictures, min(8, crops - start), size, rng).to(model.log_gain.device)
        y = model.analysis(x)
        for level in (rng.randint(0, LEVELS) for _ in range(6)):
            z, symbols, tables, _ = quantised(model, y, level)
            uniform = tables.cpu().numpy()
            tally(y_counts, uniform * (uniform < FIRST_BIN), symbols.cpu().numpy())
            z = z.to(torch.int16).cpu().numpy().transpose(1, 0, 2, 3).reshape(model.config.hyper, -1)
            for channel in channels:
                z_counts[z_group(level), channel] += np.bincount(z[channel] + Z_MAX, minlength=2 * Z_MAX + 2)

    def blend(counts: np.ndarray, frequencies: np.ndarray, weight: float) -> np.ndarray:
        return integer_frequencies(counts + weight * frequencies / (1 << PRECISION))

    pairs = zip(y_counts, parametric.y_freq, strict=True)
    y_freq = [blend(unsigned(counts), prior, Y_PRIOR) for counts, prior in pairs]
    shared = z_counts.copy()
    shared[1:] += NEIGHBOUR * z_counts[:-1]
    shared[:-1] += NEIGHBOUR * z_counts[1:]
    z_freq = [[blend(shared[g, c], parametric.z_freq[g][c], Z_PRIOR) for c in channels] for g in range(Z_GROUPS)]
    z_freq[-1] = z_freq[-2]  # the last group is the highest level alone, which training never draws
    return EntropyTables(y_freq, z_freq)


def export(
    state: dict, config: Config, pictures: list[np.ndarray], path: Path, device: str, crops: int, **card: str
) -> str:
    """Averaged weights to one safetensors file: float16, exact network checked, tables measured. Returns its id."""
    model = NightCodec(config)
    exact = {f"indices.{name}" for name, _ in model.indices.named_parameters()}
    model.load_state_dict({k: v.float() if k in exact else v.half().float() for k, v in state.items()})
    model.indices.limit()
    model.to(device).eval().requires_grad_(False).set_precision("auto")
    model.frequencies = measure_tables(model, pictures, crops)
    return save_model(model.cpu(), path, **card)
