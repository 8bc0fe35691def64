"""How a picture's latent is cut: segments, the windows that the networks work on, and rows of them that can be dropped.

A segment is about 64x64 cells (1024x1024 pixels). Segments are coded independently and are also the windows, which the
networks see with a halo of their receptive field around: so memory is bounded and no seam can be seen. A team of
threads works on parts of them (batches.py). What is computed in windows: analysis.py, passes.py, render.py.
"""

import dataclasses

import torch
from torch import Tensor

from codec.format import edges


class Bands:
    """A tensor [B,h,w,C] kept as rows of segments, each of which can be dropped when it is no longer needed."""

    def __init__(self, rows: list[int]):
        self.rows = rows
        self.parts: list[Tensor | None] = [None] * (len(rows) - 1)

    def window(self, top: int, bottom: int, left: int, right: int, channels: slice = slice(None)) -> Tensor:
        pieces = [
            part[:, max(top - begin, 0) : bottom - begin, left:right, channels]
            for part, begin, end in zip(self.parts, self.rows, self.rows[1:], strict=False)
            if begin < bottom and end > top
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)

    def planes(self, window: "Window", item: int) -> list[tuple[Tensor, tuple[int, int]]]:
        """Of one picture, kept channel by channel: what a window lies in, [C,h,w] of each band, and its rows there."""
        return [
            (part[item].permute(2, 0, 1), (max(window.top - begin, 0), min(window.bottom, end) - begin))
            for part, begin, end in zip(self.parts, self.rows, self.rows[1:], strict=False)
            if begin < window.bottom and end > window.top
        ]

    def part_of(self, window: "Window") -> Tensor:
        """The cells [B,h,w,C] of a window that lies in one band, to be written to."""
        band = next(i for i, end in enumerate(self.rows[1:]) if window.top < end)
        top = self.rows[band]
        return self.parts[band][:, window.top - top : window.bottom - top, window.left : window.right]


@dataclasses.dataclass(frozen=True)
class Window:
    """Latent cells [top,bottom) x [left,right) of a grid, and the same grown by a halo within the grid."""

    top: int
    bottom: int
    left: int
    right: int
    grid: tuple[int, int]

    def grown(self, halo: int) -> "Window":
        height, width = self.grid
        return Window(
            max(0, self.top - halo), min(height, self.bottom + halo),
            max(0, self.left - halo), min(width, self.right + halo), self.grid,
        )  # fmt: skip

    def cut(self, count: int) -> list["Window"]:
        """See Grid.pieces."""
        first, last = ("top", "bottom") if self.shape[0] >= self.shape[1] else ("left", "right")
        begin, end = getattr(self, first), getattr(self, last)
        count = max(1, min(count, (end - begin) // 12))
        edges = [begin + (end - begin) * i // (4 * count) * 4 for i in range(count)] + [end]
        return [dataclasses.replace(self, **{first: a, last: b}) for a, b in zip(edges, edges[1:], strict=False)]

    @property
    def box(self) -> tuple[int, int, int, int]:
        return self.top, self.bottom, self.left, self.right

    @property
    def shape(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

    def within(self, outer: "Window") -> tuple[slice, slice]:
        """Rows and columns of `outer` that are this window's."""
        top, left = self.top - outer.top, self.left - outer.left
        height, width = self.shape
        return slice(top, top + height), slice(left, left + width)

    def packed_within(self, outer: "Window") -> tuple[int, int, int, int]:
        """(top, bottom, left, right) of this window in packed cells of `outer`, which begins an even way before it."""
        rows, columns = self.within(outer)
        return rows.start // 2, -(-rows.stop // 2), columns.start // 2, -(-columns.stop // 2)

    def z_of(self, z: Tensor) -> Tensor:
        """The hyper-latent [B,hz,wz,C] under this window, whose corner lies on a multiple of four."""
        return z[:, self.top // 4 : -(-self.bottom // 4), self.left // 4 : -(-self.right // 4)]


class Grid:
    """How a latent of [height, width] cells is cut."""

    def __init__(self, height: int, width: int, segment: int):
        self.height, self.width = height, width
        self.rows = edges(height, segment)
        self.columns = edges(width, segment)

    @property
    def bands(self) -> int:
        return len(self.rows) - 1

    def pieces(self, band: int, team: int) -> list[Window]:
        """The windows of a band for `team` threads: where they are few, each cut along its longer side into as many, of
        12 cells at least and beginning at multiples of four."""
        windows = self.windows(band)
        return windows if len(windows) >= 2 * team else [piece for one in windows for piece in one.cut(team)]

    def windows(self, band: int) -> list[Window]:
        top, bottom = self.rows[band : band + 2]
        shape = (self.height, self.width)
        return [Window(top, bottom, a, b, shape) for a, b in zip(self.columns, self.columns[1:], strict=False)]
