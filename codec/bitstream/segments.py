"""Segments of a latent <-> their entropy-coded streams: which blocks and passes follow each other, with which tables.

How symbols become words is entropy/rans.py's; the file around the streams is container.py's.
"""

import dataclasses
import functools

import numpy as np

from codec.engine.windows import Window
from codec.entropy import rans
from codec.entropy.context_kernels import Scores, corrected_pass, empty_scores
from codec.entropy.contexts import Contexts, contexts_at, of_arrays, without_weights
from codec.entropy.trellis import tables_with
from codec.format import EVEN, EVERYWHERE, ODD, z_group
from codec.network.config import Config
from codec.network.night_codec import NightCodec


@dataclasses.dataclass(frozen=True)
class Coding:
    """What the entropy coder takes from a model."""

    y: rans.TableSet
    contexts: list[Contexts]  # by range of levels
    z: list[rans.TableSet]  # per level group; table c + 1 belongs to channel c
    z_least_bits: list[float]  # per level group: fewest bits that one column of z can cost


def coding_of(model: NightCodec) -> Coding:
    """Made at the first call. A model whose contexts were not found yet has such as correct nothing."""
    coding = getattr(model, "_coding", None)
    if coding is None:
        tables, latent = model.tables(), model.config.latent
        found, y = of_arrays(model.contexts or without_weights(latent, tables_with(tables.y_freq)), latent)
        z = [rans.TableSet([None, *row]) for row in tables.z_freq]
        least = [sum(one.least_bits(c + 1) for c in range(model.config.hyper)) for one in z]
        filled = [y[1] if table is None else table for table in y[1:]]  # those without a table are never named
        coding = model._coding = Coding(rans.TableSet([None, *filled]), found, z, least)
    return coding


def order_of_passes(config: Config) -> list[tuple[slice, int]]:
    """(channels, which cells) of each pass."""
    first, *later = config.slices
    return [(first, EVEN), (first, ODD), *((part, EVERYWHERE) for part in later)]


def scores_of(model: NightCodec, level: int, window: Window) -> Scores:
    """Of a segment of which nothing is coded yet."""
    return empty_scores(contexts_at(coding_of(model).contexts, level), *window.shape)


@functools.lru_cache(8)
def _z_numbers(channels: int, height: int, width: int) -> np.ndarray:
    """uint8 [channels,height,width]: table c + 1 for channel c."""
    numbers = np.arange(1, channels + 1, dtype=np.uint8)[:, None, None]
    return np.broadcast_to(numbers, (channels, height, width)).copy()


def z_block(model: NightCodec, z: np.ndarray, level: int) -> rans.Block:
    """z int16 [hyper,hz,wz]."""
    return rans.Block(z, _z_numbers(*z.shape), coding_of(model).z[z_group(level)])


def y_blocks(model: NightCodec, level: int, symbols: np.ndarray, index: np.ndarray, window: Window) -> list[rans.Block]:
    """A segment's passes as they are coded. symbols, index [latent,rows,w] of its band."""
    scores, blocks = scores_of(model, level, window), []
    columns = slice(window.left, window.right)
    for part, cells in order_of_passes(model.config):
        # A band begins at an even row, a segment may begin at an odd column of it only where the picture does.
        parity = cells if cells == EVERYWHERE else cells ^ (window.left & 1)
        pair = symbols[part, :, columns], index[part, :, columns]
        blocks.append(rans.Block(*corrected_pass(*pair, scores, part.start, cells, parity), coding_of(model).y))
    return blocks


def stream_of(
    model: NightCodec, z: np.ndarray | None, level: int, symbols: np.ndarray, index: np.ndarray, window: Window
) -> bytes:
    """One segment -> its stream. symbols, index [latent,rows,w] of its band; z only for the first segment."""
    blocks = y_blocks(model, level, symbols, index, window)
    parts = [symbols[:, :, window.left : window.right]]
    if z is not None:
        blocks.insert(0, z_block(model, z, level))
        parts.insert(0, z)
    height, width = window.shape
    return rans.encode(blocks, rans.checksum(*parts), rans.state_count(height * width))
