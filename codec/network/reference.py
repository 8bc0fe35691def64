"""What the codec computes for a whole latent at once, by the networks' definition: what engine/ does window by window.

For training's measurements and for tests; nothing of it is needed to encode or decode.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from codec.entropy.trellis_search import TrellisQuantiser
from codec.format import Z_MAX
from codec.network.night_codec import NightCodec


class Quantised(NamedTuple):
    z: Tensor  # float, integer-valued [B,hyper,hz,wz]
    symbols: Tensor  # int16 [B,latent,h,w], 0 where nothing is coded
    tables: Tensor  # uint8: bins, and where the trellis is in an odd state ODD_STATES more
    values: Tensor  # float32: what symbols stand for plus means, in the level's steps


@torch.no_grad()
def quantised(model: NightCodec, y: Tensor, level: int, search: Callable | None = None) -> Quantised:
    """y float32 [B,latent,h,w] (analysis) -> all symbols; search: as trellis_search.search_for gives it."""
    scaled = model.scale(y, level)
    z = torch.round(model.hyper_analysis(scaled, level)).clamp(-Z_MAX, Z_MAX)
    quantiser = model.quantiser(scaled) if search is None else TrellisQuantiser(scaled, model.round, search)
    values, means, _ = model.passes(z, level, *y.shape[2:], quantiser)
    return Quantised(z, quantiser.symbols, quantiser.tables, values + means)
