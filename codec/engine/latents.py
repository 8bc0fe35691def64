"""Pictures between pixels and bytes: the latents of a batch, kept in rows of segments ("bands"), and moves in and out.

What fills them is passes.py's and the decoder's, what looks at them render.py's and bitstream/segments.py's.
"""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from codec.engine import sparse
from codec.engine.checkerboard import unpack
from codec.engine.windows import Bands, Grid, Window
from codec.entropy.trellis import values_of
from codec.network.night_codec import NightCodec

LARGE = 1 << 25  # pixels above which y is kept in half precision (rounding far below any quantisation step)


def is_large(grid: Grid) -> bool:
    return grid.height * grid.width * 256 > LARGE


@dataclasses.dataclass
class Latents:
    """Pictures of one grid between pixels and bytes. Logically [B,h,w,latent]; `symbols` and `index` lie on the CPU in
    the entropy coder's order, channel by channel."""

    grid: Grid
    levels: Tensor  # [B], on the model's device
    z: Tensor  # float, integer-valued [B,hz,wz,hyper], on the model's device
    symbols: Bands  # int16
    index: Bands  # uint8: bins; what is coded has the number of its table without contexts
    values: Bands  # float32, on the model's device: what symbols stand for + means, in the level's quantisation steps,
    # of the channels that have means; the others', see `all_values`
    states: Bands  # uint8 [B,h,w,1] on the CPU: of the trellis, where the cells have arrived
    partial_products: dict[Window, tuple[Tensor, Tensor]] = dataclasses.field(default_factory=dict)  # render.begin's

    @classmethod
    def empty(cls, grid: Grid, levels: Tensor, z: Tensor) -> "Latents":
        return cls(grid, levels, z, *(Bands(grid.rows) for _ in range(4)))

    def open_band(self, model: NightCodec, band: int) -> None:
        rows, width, latent = self.grid.rows[band + 1] - self.grid.rows[band], self.grid.width, model.config.latent
        shape = (len(self.levels), latent, rows, width)
        self.symbols.parts[band] = torch.zeros(shape, dtype=torch.int16).permute(0, 2, 3, 1)
        self.index.parts[band] = torch.zeros(shape, dtype=torch.uint8).permute(0, 2, 3, 1)
        self.states.parts[band] = torch.zeros(shape[0], rows, width, 1, dtype=torch.uint8)
        self.open_values(model, band)

    def open_values(self, model: NightCodec, band: int) -> None:
        rows, channels = self.grid.rows[band + 1] - self.grid.rows[band], model.config.channels_with_means
        shape = len(self.levels), rows, self.grid.width, channels
        self.values.parts[band] = torch.zeros(shape, device=model.log_gain.device)

    @property
    def has_values(self) -> bool:
        """Whether all values are there; of a large picture they come again by passes.revalue."""
        return all(part is not None for part in self.values.parts)

    def arrays(self, band: int) -> tuple[np.ndarray, np.ndarray]:
        """(symbols, index) of a band as the entropy coder takes them: [B,latent,rows,w]."""
        return tuple(part.parts[band].permute(0, 3, 1, 2).numpy() for part in (self.symbols, self.index))

    def coded(self, window: Window, channels: slice, device) -> tuple[Tensor, Tensor]:
        """A window's symbols and their tables [B,h,w,..]."""
        pair = (bands.window(*window.box, channels) for bands in (self.symbols, self.index))
        return tuple(_moved(part, device) for part in pair)

    def all_values(self, window: Window) -> Tensor:
        """A window's values [B,h,w,latent]."""
        values = self.values.window(*window.box)
        rest = values_of(*self.coded(window, slice(values.shape[-1], None), values.device))
        return torch.cat((values, rest), -1)

    def planes(self, window: Window, item: int) -> list[sparse.Planes]:
        """A window's symbols and tables in one picture."""
        pairs = zip(self.symbols.planes(window, item), self.index.planes(window, item), strict=True)
        columns = window.left, window.right
        return [sparse.Planes(symbols.numpy(), index.numpy(), rows, columns) for (symbols, rows), (index, _) in pairs]


def _moved(t: Tensor, device) -> Tensor:
    """[B,h,w,C] that lies channel by channel, or is to, on that device: turned over by a GPU where there is one."""
    if t.device == torch.device(device):
        return t
    return t.permute(0, 3, 1, 2).contiguous().to(device).permute(0, 2, 3, 1)


def scatter_parity(bands: Bands, window: Window, channels: slice, packed: Tensor, parity: int) -> None:
    """Cells of one parity, packed, to their places."""
    target = bands.part_of(window)[..., channels]
    unpack(packed.to(target.dtype).to(target.device), parity, target)


def scatter(bands: Bands, window: Window, channels: slice, part: Tensor) -> None:
    """All cells of a window, [B,h,w,..], to their places."""
    target = bands.part_of(window)[..., channels]
    target.copy_(part if part.device == target.device else _moved(part.to(target.dtype), target.device))


def planes_of(bands: Bands, window: Window, channels: slice) -> np.ndarray:
    """A window's symbols or tables, [B,C,h,w], to be written to."""
    return bands.part_of(window).permute(0, 3, 1, 2).numpy()[:, channels]
