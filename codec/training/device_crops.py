"""Training samples made where the training runs: all pictures lie in the device's memory, a batch is cut at once.

For GPUs, which take more samples a second than Python cuts one by one (samples.py's `crop` does that, for CPUs); the
samples are of the same kinds and shares. Needs torch and numpy alone, as train.py does, which calls it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

GREY = 0.03  # share of samples without colour


class DeviceCrops:
    """Endless batches from `pictures` and `pages` (rendered, neither turned nor reduced), uint8 [H,W,3] each, all
    sides of at least the sample's.

    synthetic, reduced: shares of the samples that come from pages, and of the others that are larger pieces made
    smaller. Uses torch's random numbers of `device`.
    """

    def __init__(
        self, pictures: list[np.ndarray], pages: list[np.ndarray], synthetic: float, reduced: float, device: str
    ):
        everything = [*pictures, *pages]
        sides = torch.tensor([picture.shape[:2] for picture in everything])
        ends = sides.prod(1).cumsum(0)
        self.samples = torch.from_numpy(np.concatenate([p.reshape(-1, 3) for p in everything])).to(device)
        self.starts, self.sides = (ends - sides.prod(1)).to(device), sides.to(device)
        self.photographs, self.pages = len(pictures), len(pages)
        self.largest = int(sides[: len(pictures)].amin(1).max())
        self.synthetic, self.reduced, self.device = synthetic, reduced, device

    def batch(self, count: int, size: int) -> Tensor:
        """float32 [count,3,size,size] in 0..1, the kinds one after the other."""
        pages = int(torch.rand(()) + self.synthetic * count) if self.pages else 0
        reduced = int(torch.rand(()) + self.reduced * (count - pages))
        parts = []
        if pages:
            which = self.photographs + torch.randint(self.pages, (pages,), device=self.device)
            parts.append(self._cut(which, size, turned=False))
        if count > pages + reduced:
            parts.append(self._cut(self._photographs(count - pages - reduced, size), size))
        if reduced:
            # One side for all: what differs in size makes no batch.
            side = int(torch.randint(size, min(self.largest, 2 * size) + 1, ()))
            larger = self._cut(self._photographs(reduced, side), side)
            smaller = F.interpolate(larger, (size, size), mode="bicubic", antialias=True, align_corners=False)
            parts.append((smaller.clamp(0, 1) * 255).round() / 255)
        x = torch.cat(parts)
        grey = torch.rand(count, 1, 1, 1, device=self.device) < GREY
        return torch.where(grey, (x.mean(1, keepdim=True) * 255).floor() / 255, x)

    def _photographs(self, count: int, side: int) -> Tensor:
        """Numbers of `count` pictures of at least `side` pixels a side."""
        fitting = (self.sides[: self.photographs].amin(1) >= side).float()
        return torch.multinomial(fitting, count, replacement=True)

    def _cut(self, which: Tensor, side: int, turned: bool = True) -> Tensor:
        """Pieces of the pictures `which` [n], mirrored and turned each in one of eight ways: [n,3,side,side]."""
        draw = torch.rand(5, len(which), 1, 1, device=self.device)
        height, width = self.sides[which].T.reshape(2, -1, 1, 1)
        top, left = (draw[0] * (height - side + 1)).long(), (draw[1] * (width - side + 1)).long()
        line = torch.arange(side, device=self.device)
        row, column = line[:, None].expand(side, side), line.expand(side, side)
        if turned:
            swapped = draw[2] < 0.5
            row, column = torch.where(swapped, column, row), torch.where(swapped, row, column)
            row = torch.where(draw[3] < 0.5, side - 1 - row, row)
            column = torch.where(draw[4] < 0.5, side - 1 - column, column)
        place = self.starts[which].reshape(-1, 1, 1) + (top + row) * width + left + column
        return self.samples[place].permute(0, 3, 1, 2).float() / 255.0
