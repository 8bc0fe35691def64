"""Latent cells of one colour of the checkerboard, *packed*, and the cells around them.

A tensor [B,h,w,C] has its cells of one parity packed as [2B,h/2,w/2,C]: for each picture a plane of its even rows, then
one of its odd rows. What a cell of the second pass sees of the first are the cells at odd distance around: 4 of 3x3, 12
of 5x5.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from codec.engine.elementwise import gathered


def taps_of(kernel: int) -> list[tuple[int, int]]:
    """(row, column) offsets in a kernel x kernel window that lead from odd cells to even ones."""
    reach = range(-(kernel // 2), kernel // 2 + 1)
    return [(r, c) for r in reach for c in reach if (r + c) % 2]


def pack(t: Tensor, parity: int) -> Tensor:
    """[B,h,w,C] -> its cells of one parity, packed; zeros stand beyond an odd edge."""
    height, width = t.shape[1:3]
    if height % 2 or width % 2:
        t = F.pad(t, (0, 0, 0, width % 2, 0, height % 2))
    return torch.stack((t[:, 0::2, parity::2], t[:, 1::2, 1 - parity :: 2]), 1).flatten(0, 1)


def unpack(packed: Tensor, parity: int, out: Tensor) -> None:
    """Packed cells to their places in `out` [B,h,w,C], whose other cells stay."""
    for row in (0, 1):
        cells = out[:, row::2, (parity + row) % 2 :: 2]
        cells.copy_(packed[row::2, : cells.shape[1], : cells.shape[2]])


def around(packed: Tensor, taps: list[tuple[int, int]], inner: tuple[int, int, int, int], beyond: int = 0) -> Tensor:
    """Even cells, packed -> for each odd cell of rows top..bottom, columns left..right (`inner`, in packed units) its
    neighbours at `taps`, `beyond` outside the edge: packed, [2B,bottom-top,right-left,taps,C]."""
    on_cpu = packed.device.type == "cpu"
    return gathered(packed, taps, inner, beyond) if on_cpu else around_on_device(packed, taps, inner, beyond)


def around_on_device(packed: Tensor, taps: list, inner: tuple[int, int, int, int], beyond: int = 0) -> Tensor:
    """`around` by torch's own operations."""
    top, bottom, left, right = inner
    padded = F.pad(packed, (0, 0, 1, 1, 1, 1), value=beyond)
    out = packed.new_empty(len(packed), bottom - top, right - left, len(taps), packed.shape[-1])
    for row in (0, 1):
        for tap, (dr, dc) in enumerate(taps):
            plane = (row + dr) % 2
            down, over = 1 + (row + dr - plane) // 2, 1 + (1 - row + dc - plane) // 2
            out[row::2, :, :, tap] = padded[plane::2, top + down : bottom + down, left + over : right + over]
    return out


def at_taps(weight: Tensor, taps: list[tuple[int, int]]) -> Tensor:
    """[out,in,k,k] -> [out,taps*in], for what `around` gathers."""
    middle = weight.shape[2] // 2
    return torch.cat([weight[:, :, middle + r, middle + c] for r, c in taps], 1)


def shuffle4(t: Tensor, place: tuple[slice, slice]) -> Tensor:
    """[B,h,w,16C] (channel, row, column) -> rows and columns `place` of [B,4h,4w,C]."""
    t = F.pixel_shuffle(t.permute(0, 3, 1, 2), 4)[:, :, *place]
    return t.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
