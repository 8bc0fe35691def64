"""Between a picture's pixels and the blocks of 16x16 of them that the networks work on, lapping.py's filters included.

A block is float32 [768] in one of two orders: *turned*, as networks have it, (row of part, column, colour, row in
part), so that each of its parts of 8x8 pixels lies together, (column, colour, row); or in *lines*, as pictures have
it, (row, column, colour). A filter across a border between blocks side by side works on turned ones, 24 samples of the
same column at a time, one across a border between blocks one over the other on lines, 48 samples at a time. Rows of
blocks are filtered, turned and painted while they are in the cache.
"""

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codec.network.lapping import HALF, filter_of

_U = np.uint64
_COLUMN, _LINE, _PART, _BLOCK = _U(24), _U(48), _U(384), _U(768)  # samples of a turned column, a line, a half, a block


def block_order() -> Tensor:
    """[768]: where in a block's pixels ordered (colour, 16, 16) those of a turned block stand."""
    return torch.arange(768).view(3, 2, 8, 2, 8).permute(1, 3, 4, 0, 2).flatten()


def part_order() -> Tensor:
    """[192]: where in pixels ordered (colour, 8, 8) those of a turned block's part stand."""
    return torch.arange(192).view(3, 8, 8).permute(2, 0, 1).flatten()


def weights_of(v: Tensor) -> np.ndarray:
    """V [8,8] of a filter -> [64], what the loops here take: with a and b the samples before and behind a border, b
    reversed, the filter adds W (a - b) to a and subtracts it from b, W = (V' - 1) / 2, V' being V with both axes
    reversed."""
    turned = v.detach().double().cpu().flip(0, 1)
    return ((turned - torch.eye(HALF, dtype=turned.dtype)) / 2).float().flatten().numpy()


def lap_blocks(blocks: Tensor, v: Tensor) -> Tensor:
    """`lapping.lapped` on turned blocks [B,h,w,768] of any device, in place; returns them."""
    p, parts = filter_of(v), blocks.view(*blocks.shape[:3], 2, 2, HALF, 3, HALF)
    left, right = parts[:, :, :-1, :, 1], parts[:, :, 1:, :, 0]
    filtered = torch.einsum("ij,...jcy->...icy", p, torch.cat((left, right), -3))
    left.copy_(filtered[..., :HALF, :, :])
    right.copy_(filtered[..., HALF:, :, :])
    above, below = parts[:, :-1, :, 1], parts[:, 1:, :, 0]
    filtered = F.linear(torch.cat((above, below), -1), p)
    above.copy_(filtered[..., :HALF])
    below.copy_(filtered[..., HALF:])
    return blocks


def turned_of(pixels: Tensor, rows: int, columns: int) -> Tensor:
    """`spread` without its filter on any device: uint8 [B,height,width,3] -> turned blocks float32
    [B,rows,columns,768], less 127.5, repeated beyond the right and bottom edge."""
    x = pixels.permute(0, 3, 1, 2).float() - 127.5
    x = F.pad(x, (0, 16 * columns - x.shape[3], 0, 16 * rows - x.shape[2]), mode="replicate")
    parts = x.reshape(len(x), 3, rows, 2, HALF, columns, 2, HALF)
    return parts.permute(0, 2, 5, 3, 6, 7, 1, 4).reshape(len(x), rows, columns, 768)


def pixels_of(blocks: Tensor, grey: bool) -> Tensor:
    """Turned blocks [B,h,w,768] that hold the sums already, filtered -> uint8 [B,16h,16w,3] on their device, as
    `gather` paints them."""
    batch, rows, columns, _ = blocks.shape
    parts = blocks.view(batch, rows, columns, 2, 2, HALF, 3, HALF).permute(0, 1, 3, 7, 2, 4, 5, 6)
    x = parts.reshape(batch, 16 * rows, 16 * columns, 3)
    if grey:
        x = ((x[..., :1] + x[..., 1:2] + x[..., 2:]) * (1 / 3)).expand(-1, -1, -1, 3)
    return (x + 127.5).clamp(0, 255).round().to(torch.uint8)


# -- the filters, on flat arrays; explicit eights, since LLVM then takes a whole vector of samples at a time


@numba.njit(cache=True, nogil=True, inline="always")
def _eight(a, at, step):
    """Eight samples of flat a, `step` apart from `at` on."""
    two, three, four = step + step, step + step + step, _U(4) * step
    return (a[at], a[at + step], a[at + two], a[at + three], a[at + four], a[at + four + step], a[at + four + two],
            a[at + four + three])  # fmt: skip


@numba.njit(cache=True, nogil=True, inline="always")
def _dot(w, d):
    return (w[0] * d[0] + w[1] * d[1] + w[2] * d[2] + w[3] * d[3]) + (
        w[4] * d[4] + w[5] * d[5] + w[6] * d[6] + w[7] * d[7]
    )


@numba.njit(cache=True, nogil=True, inline="always")
def _filter(p, before, q, behind, step, lanes, weights):
    """`lanes` samples side by side across a border: their eight before it in flat p, `step` apart, and the eight behind
    it in flat q."""
    one, two, three, four = _U(1), _U(2), _U(3), _U(4)
    w0, w1 = _eight(weights, _U(0), one), _eight(weights, _U(8), one)
    w2, w3 = _eight(weights, _U(16), one), _eight(weights, _U(24), one)
    w4, w5 = _eight(weights, _U(32), one), _eight(weights, _U(40), one)
    w6, w7 = _eight(weights, _U(48), one), _eight(weights, _U(56), one)
    for lane in range(lanes):
        at, to = before + lane, behind + lane
        a, b = _eight(p, at, step), _eight(q, to, step)
        d = (a[0] - b[7], a[1] - b[6], a[2] - b[5], a[3] - b[4], a[4] - b[3], a[5] - b[2], a[6] - b[1], a[7] - b[0])
        r0, r1, r2, r3 = _dot(w0, d), _dot(w1, d), _dot(w2, d), _dot(w3, d)
        r4, r5, r6, r7 = _dot(w4, d), _dot(w5, d), _dot(w6, d), _dot(w7, d)
        p[at], p[at + step], p[at + two * step], p[at + three * step] = a[0] + r0, a[1] + r1, a[2] + r2, a[3] + r3
        q[to], q[to + step], q[to + two * step], q[to + three * step] = b[0] - r7, b[1] - r6, b[2] - r5, b[3] - r4
        at, to = at + four * step, to + four * step
        p[at], p[at + step], p[at + two * step], p[at + three * step] = a[4] + r4, a[5] + r5, a[6] + r6, a[7] + r7
        q[to], q[to + step], q[to + two * step], q[to + three * step] = b[4] - r3, b[5] - r2, b[6] - r1, b[7] - r0


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _lap_row(row, weights):
    """Across the borders within a row of turned blocks, float32 [w,768] in place."""
    flat = row.reshape(-1)
    for k in range(row.shape[0] - 1):
        for half in range(2):
            at = _U(k) * _BLOCK + _U(half) * _PART + _U(8) * _COLUMN
            _filter(flat, at, flat, at + _U(24) * _COLUMN, _COLUMN, _COLUMN, weights)


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _lap_rows(upper, lower, weights):
    """Across the border between two rows of blocks in lines, float32 [w,768] each, in place."""
    one, other = upper.reshape(-1), lower.reshape(-1)
    for k in range(upper.shape[0]):
        _filter(one, _U(k) * _BLOCK + _PART, other, _U(k) * _BLOCK, _LINE, _LINE, weights)


@numba.njit(cache=True, nogil=True)
def _to_lines(row, lines):
    """Turned blocks [w,768] -> in lines."""
    source, target, two, four = row.reshape(-1), lines.reshape(-1), _U(2) * _LINE, _U(4) * _LINE
    for half in range(_U(2 * row.shape[0])):
        for i in range(_LINE):
            to, x = half * _PART + i, _eight(source, half * _PART + _U(8) * i, _U(1))
            target[to], target[to + _LINE], target[to + two], target[to + two + _LINE] = x[0], x[1], x[2], x[3]
            to += four
            target[to], target[to + _LINE], target[to + two], target[to + two + _LINE] = x[4], x[5], x[6], x[7]


@numba.njit(cache=True, nogil=True)
def _to_turned(lines, row):
    """Cells in lines [w,768] -> turned."""
    source, target, one, two, three = lines.reshape(-1), row.reshape(-1), _U(1), _U(2), _U(3)
    for half in range(_U(2 * row.shape[0])):
        for i in range(_LINE):
            to, x = half * _PART + _U(8) * i, _eight(source, half * _PART + i, _LINE)
            target[to], target[to + one], target[to + two], target[to + three] = x[0], x[1], x[2], x[3]
            to += _U(4)
            target[to], target[to + one], target[to + two], target[to + three] = x[4], x[5], x[6], x[7]


# -- from pixels


@numba.njit(cache=True, nogil=True)
def _take_line(pixels, line, y):
    """A row of pixels [width,C], less 127.5, repeated beyond the right edge -> row y of the blocks `line` [w,768]."""
    width, channels = pixels.shape
    middle, whole = np.float32(127.5), width // 16 if channels == 3 else 0
    flat, blocks = pixels.reshape(-1), line.reshape(-1)
    for k in range(_U(whole)):
        at, to = k * _LINE, k * _BLOCK + _U(y) * _LINE
        for i in range(_LINE):
            blocks[to + i] = np.float32(flat[at + i]) - middle
    for x in range(16 * whole, 16 * line.shape[0]):
        for c in range(3):
            sample = pixels[min(x, width - 1), c if channels >= 3 else 0]
            line[x // 16, 48 * y + 3 * (x % 16) + c] = np.float32(sample) - middle


@numba.njit(cache=True, nogil=True)
def spread(pixels, weights, blocks):
    """uint8 [height,width,C], C 1..4 -> turned blocks float32 [h,w,768], less 127.5, repeated beyond the right and
    bottom edge; filtered by `weights`, `weights_of` a filter."""
    height, width, channels = pixels.shape
    rows, lines = blocks.shape[0], np.empty((2, blocks.shape[1], 768), np.float32)
    for r in range(rows):
        line, before = lines[r % 2], lines[1 - r % 2]
        for y in range(16):
            if 16 * r + y < height:
                _take_line(pixels[16 * r + y], line, y)
            else:
                line[:, 48 * y : 48 * y + 48] = line[:, 48 * y - 48 : 48 * y] if y else before[:, 720:]
        if r:
            _lap_rows(before, line, weights)
            _to_turned(before, blocks[r - 1])
            _lap_row(blocks[r - 1], weights)
        if r == rows - 1:
            _to_turned(line, blocks[r])
            _lap_row(blocks[r], weights)


# -- to pixels


@numba.njit(cache=True, nogil=True)
def _paint(lines, upper, left, pixels, grey):
    """Cells in lines [w,768] from the one numbered `left` on, less 127.5, to the rows `upper`.. of [height,width,C],
    the first channels; with `grey` all from the colours' mean."""
    height, width, channels = pixels.shape
    flat, blocks = pixels.reshape(-1), lines.reshape(-1)
    middle, black, white, third = np.float32(127.5), np.float32(0), np.float32(255), np.float32(1 / 3)
    plain = channels == 3 and not grey
    for y in range(min(16, height - upper)):
        begin = (upper + y) * width
        for k in range((width + 15) // 16):
            at, count = _U(768 * (left + k) + 48 * y), min(16, width - 16 * k)
            if plain:
                to = _U(3 * (begin + 16 * k))
                for i in range(_U(3 * count)):
                    flat[to + i] = np.uint8(np.int32(np.rint(min(max(blocks[at + i] + middle, black), white))))
                continue
            for x in range(count):
                to, a, b, c = (begin + 16 * k + x) * channels, blocks[at], blocks[at + _U(1)], blocks[at + _U(2)]
                at += _U(3)
                if grey:
                    a = (a + b + c) * third
                    b = c = a
                flat[to] = np.uint8(np.int32(np.rint(min(max(a + middle, black), white))))
                if channels >= 3:
                    flat[to + 1] = np.uint8(np.int32(np.rint(min(max(b + middle, black), white))))
                    flat[to + 2] = np.uint8(np.int32(np.rint(min(max(c + middle, black), white))))


def _sum_up(linear, means, added, sums):
    """A part's sums float32 [192] from its linear picture [192], means of its colours [3] or none of them [0] and what
    is added to it [192]; linear and added are float32 or bfloat16, given as uint16: the upper halves of float32."""
    raise NotImplementedError("compiled code alone calls this")


@numba.extending.overload(_sum_up)
def _sum_up_of(linear, means, added, sums):
    def of_halves(linear, means, added, sums):
        bits, more = sums.view(np.uint32), np.empty(192, np.uint32)
        for i in range(192):
            bits[i], more[i] = np.uint32(linear[i]) << np.uint32(16), np.uint32(added[i]) << np.uint32(16)
        values = more.view(np.float32)
        for i in range(192):
            sums[i] += values[i]
        _add_means(means, sums)

    def of_floats(linear, means, added, sums):
        for i in range(192):
            sums[i] = linear[i] + added[i]
        _add_means(means, sums)

    return of_halves if linear.dtype == numba.types.uint16 else of_floats


@numba.njit(cache=True, nogil=True)
def _add_means(means, sums):
    if means.size:
        column = np.empty(24, np.float32)
        for i in range(24):
            column[i] = means[i // 8]
        for x in range(8):
            for i in range(24):
                sums[24 * x + i] += column[i]


@numba.njit(cache=True, nogil=True)
def gather(linear, means, added, weights, top, left, pixels, grey):
    """What Inference.synthesis gives for a window, [h,w,768], [h,w,12 or 0] and [2h,2w,192] -> the first channels of
    contiguous uint8 [height,width,C], from the block (top, left) on; with `grey` all from the colours' mean. Filtered
    across the borders of blocks by `weights`, `weights_of` a filter."""
    bottom = top + (pixels.shape[0] + 15) // 16
    begin, end = max(0, left - 1), min(linear.shape[1], left + (pixels.shape[1] + 15) // 16 + 1)
    first, last = max(0, top - 1), min(linear.shape[0], bottom + 1)
    row, lines = np.empty((end - begin, 768), np.float32), np.empty((2, end - begin, 768), np.float32)
    for r in range(first, last):
        line, before = lines[r % 2], lines[1 - r % 2]
        for k in range(begin, end):
            for part in range(4):
                of_part = slice(192 * part, 192 * part + 192)
                more, mean = added[2 * r + part // 2, 2 * k + part % 2], means[r, k, 3 * part : 3 * part + 3]
                _sum_up(linear[r, k, of_part], mean, more, row[k - begin, of_part])
        _lap_row(row, weights)
        _to_lines(row, line)
        if r > first:
            _lap_rows(before, line, weights)
        if r > top:
            _paint(before, 16 * (r - 1 - top), left - begin, pixels, grey)
        if r >= top and r == linear.shape[0] - 1 and r < bottom:
            _paint(line, 16 * (r - top), left - begin, pixels, grey)
