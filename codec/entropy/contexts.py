"""Contexts: what the symbols coded nearby were worth corrects the next one's table. Numpy and integers alone.

A bin says how loud a symbol should be. The index network sees z and earlier groups; what it could not see is how the
last symbols of the same cell and the same channel around turned out against their own bins. So every coded symbol
leaves two scores, gradients of its log-probability as in score-driven models (Creal, Koopman and Lucas 2013): how much
louder its bin should have been, and to which side it lay. Weighted sums of these move the next symbol's bin, and choose
between four tables that are shifted ever more to one side:

    scale shift    = sum of weights * scale scores of K channels of the same cell, of cells around
    location shift = sum of weights * location scores of cells around
    bin  <- bin + scale shift        within 1..13 or within FIRST_BIN..63
    table = that bin's, of |location shift|'s step; its symbols' signs are swapped where the shift is negative

Weights, scores and tables are the model's (training/fit_contexts.py finds them). It all happens in the entropy coder:
the networks' passes stay as parallel as they are, and what they see does not change. No symbol waits for the one before
it: half a row of a channel has its tables before its first symbol is read. At work: context_kernels.py.
"""

from typing import NamedTuple

import numpy as np

from codec.format import BINS, LEVELS

TABLES = 2 * BINS  # even and odd states; times SHIFTS
SHIFTS = 4
SHIFT_EDGES = np.array([0.05, 0.2, 0.39])  # of |location shift|, in standard deviations; between them SHIFT_MEANS
SHIFT_MEANS = np.array([0.0, 0.12, 0.28, 0.5])
PLACES = 14  # binary places of weights and sums
REACH = 64  # magnitudes that have a score of their own; the last one's stands for all beyond
AROUND = 4  # neighbours at a time
NEIGHBOURS = 2 * AROUND  # weights beside those of the same cell: neighbours' of either half

# Kinds of passes: the first group's two; the other groups', which code a row's even columns and then its odd ones. Of
# each (rows, columns) from the symbol to its neighbours, all coded some time before it; (0, 0) is none.
FIRST_PASS, SECOND_PASS, LATER, LATER_ODD = 0, 1, 2, 3
OFFSETS = np.array(
    [
        [[-1, -1], [-1, 1], [-2, 0], [0, 0]],
        [[-1, 0], [1, 0], [0, -1], [0, 1]],
        [[-1, -1], [-1, 0], [-1, 1], [-2, 0]],
        [[0, -1], [0, 1], [-1, 0], [-2, 0]],
    ],
    np.int32,
)


class Contexts(NamedTuple):
    """What a model says of them at a level. Channels are the latent's; the first axis of size 2 tells the second pass
    from all others."""

    channels: np.ndarray  # int16 [2,C,K]: whose scores are looked at in the same cell, each below the channel itself
    scale_weights: np.ndarray  # int32 [2,C,K + NEIGHBOURS]
    location_weights: np.ndarray  # int32 [2,C,NEIGHBOURS]
    scale_scores: np.ndarray  # int8 [TABLES,REACH], by table (bin + ODD_STATES in odd states) and magnitude
    location_scores: np.ndarray  # int8 [TABLES,REACH], of positive symbols


TYPES = dict(zip(Contexts._fields, (np.int16, np.int32, np.int32, np.int8, np.int8), strict=True))


def of_arrays(arrays: dict[str, np.ndarray], latent: int) -> tuple[list[Contexts], list]:
    """A model file's tensors -> its contexts, one for each of a number of ranges of levels, and its SHIFTS * TABLES
    tables (None where there is none). Raises KeyError or ValueError where they make no sense."""
    parts = [np.ascontiguousarray(arrays[f"contexts.{name}"].astype(kind)) for name, kind in TYPES.items()]
    channels, scale_weights, location_weights = parts[:3]
    ranges, count = channels.shape[0], channels.shape[-1]
    places, scores = (ranges, 2, latent), (TABLES, REACH)
    shapes = (*places, count), (*places, count + NEIGHBOURS), (*places, NEIGHBOURS), scores, scores
    if tuple(part.shape for part in parts) != shapes:
        raise ValueError(f"contexts of shapes {[part.shape for part in parts]} do not fit {latent} channels")
    if count % 4:
        raise ValueError(f"contexts of {count} channels; their number must be a multiple of 4")
    own = np.arange(latent)[:, None]
    ahead = (channels < 0) | (channels >= latent) | ((channels >= own) & (scale_weights[..., :count] != 0))
    if ahead.any():
        raise ValueError("contexts that look at channels which are not coded yet")
    sums = [np.abs(part.astype(np.int64)).sum(-1).max() for part in (scale_weights, location_weights)]
    if max(sums) * 128 >= 1 << 31:  # scores are 8-bit
        raise ValueError("contexts whose sums could overflow 32 bits")
    sizes = arrays["contexts.sizes"]
    if len(sizes) != SHIFTS * TABLES or sizes.min() < 0:
        raise ValueError(f"{len(sizes)} tables of contexts; needs {SHIFTS * TABLES}")
    tables = np.split(arrays["contexts.frequencies"].astype(np.uint32), np.cumsum(sizes)[:-1])
    found = [Contexts(*(part[i] for part in parts[:3]), *parts[3:]) for i in range(ranges)]
    return found, [table if len(table) else None for table in tables]


def as_arrays(found: list[Contexts], tables: list) -> dict[str, np.ndarray]:
    """The inverse of of_arrays."""
    arrays = {}
    for name, kind in TYPES.items():
        own = name.endswith("_scores")  # of the tables, the same in all ranges
        part = getattr(found[0], name) if own else np.stack([getattr(one, name) for one in found])
        arrays[f"contexts.{name}"] = part.astype(kind)
    arrays["contexts.sizes"] = np.array([0 if table is None else len(table) for table in tables], np.int32)
    arrays["contexts.frequencies"] = np.concatenate([t for t in tables if t is not None]).astype(np.uint16)
    return arrays


def without_weights(latent: int, tables: list) -> dict[str, np.ndarray]:
    """The arrays of contexts that correct nothing, for a model whose contexts were not found yet: its TABLES tables
    code as they are."""
    shapes = (2, latent, 0), (2, latent, NEIGHBOURS), (2, latent, NEIGHBOURS), (TABLES, REACH), (TABLES, REACH)
    none = Contexts(*(np.zeros(shape, kind) for shape, kind in zip(shapes, TYPES.values(), strict=True)))
    return as_arrays([none], [*tables, *[None] * (len(tables) * (SHIFTS - 1))])


def contexts_at(found: list[Contexts], level: int) -> Contexts:
    """Those of the range that a level lies in."""
    return found[level * len(found) // (LEVELS + 1)]
