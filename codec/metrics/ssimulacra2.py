"""SSIMULACRA2, version 2.1: how close a decoded picture looks to its original, 100 for equal, 90 visually lossless.

The metric is Jon Sneyers' (Cloudinary; its constants are in ssimulacra2_constants.py): at six
scales, halved in linear light, three error maps in XYB colours (structure, edges that came up, edges that went), of
each the mean and the 4-norm, 108 numbers in all, weighted and bent to the scale of CID22's viewers. About its scale:
30 low, 50 medium, 70 high, 80 very high, 90 visually lossless; it has no lower end.

Where the published programs differ we follow the package `ssimulacra2` 0.3.0 on PyPI: a Gaussian of sigma 1.5 cut at
five pixels, zeros left and right of the picture, its rows mirrored above and below. The C++ program takes zeros on
all four sides; that moves 48 codecs' pictures of 8 to 768 pixels a side between 60 and 95 by 0.6 in the median and 4.4
at most. From the package we were at most 0.0004 away on 136 pairs (24 Kodak pictures and others, JPEG, WebP, AVIF,
noise, blur, shifts, grey, 8x8 to 768x512), 0.0008 on the 100 of tests/bench/bench_ssimulacra2.py.

How it is computed: bands of 64 rows go through all steps while they lie in the cache; a ring of eleven rows holds what
is smoothed along them. With d = decoded - original, both factors of SSIM are 1 minus a share of d's moments,

    1 - (mean d)^2   and   1 - var d / (var original + var decoded + C2),

so float32 loses nothing where pictures are nearly equal, and equal ones have 100 exactly. Where all weights of a map
are zero (structure of X and B at full size), it is not computed. Other metrics are in fidelity.py; local_loss.py finds
what a mean over the picture hides. Everything runs in the calling thread, most of it without the interpreter's lock.
"""

from typing import NamedTuple

import numba
import numpy as np

from codec.metrics.fidelity import pixels_of
from codec.metrics.smoothing import EXACT, REACH, SUMS, across, around, down, gaussian, halve
from codec.metrics.ssimulacra2_constants import BIAS, C2, MIX, SCALES, WEIGHTS, distance_of

MIN_SIDE = 8  # pixels: below it the metric is undefined
TILE = 64  # pixels a side of what `score_and_tiles` gives a value for
KEPT_PIXELS = 4_000_000  # above, a Reference computes the original's planes (40 bytes a pixel) anew in each pass

BAND = 64  # rows that are worked on together, a multiple of TILE / 2^scale at all scales
STRIP = 256  # columns that are smoothed together, a multiple of TILE
_TAPS = gaussian(1.5)

_codes = np.arange(256) / 255
_LINEAR = np.where(_codes <= 0.04045, _codes / 12.92, ((_codes + 0.055) / 1.055) ** 2.4).astype(np.float32)  # sRGB


def ssimulacra2(original, decoded) -> float:
    """SSIMULACRA2 of two pictures of one size: PIL images (L, LA, RGB, RGBA) or uint8 [H,W] or [H,W,C], sRGB; alpha
    is left out. At most 100. Raises ValueError for other pictures, and for sides under 8 pixels.

    Whoever compares several pictures with one original makes a Reference of it.
    """
    return Reference(original, kept_pixels=0).score(decoded)


class Reference:
    """An original that pictures are compared with: what does not change between them is computed once, for originals
    of at most `kept_pixels` pixels (it takes some 40 bytes a pixel)."""

    def __init__(self, original, kept_pixels: int = KEPT_PIXELS):
        self.pixels = pixels_of(original)
        height, width, channels = self.pixels.shape
        if min(height, width) < MIN_SIDE:
            raise ValueError(
                f"SSIMULACRA2 is undefined for {width} x {height} pixels, sides under {MIN_SIDE}: measure PSNR instead"
            )
        self._scales = _scales(height, width, channels)
        self._weights = np.stack([scale.weights for scale in self._scales])
        self._kept = self._all_bands() if height * width <= kept_pixels else None

    def score(self, decoded) -> float:
        """SSIMULACRA2 of a picture of the same size and number of channels; ValueError for another."""
        return self.score_and_tiles(decoded)[0]

    def score_and_tiles(self, decoded) -> tuple[float, np.ndarray]:
        """The picture's score, and float32 [ceil(H/64),ceil(W/64)]: the same formula on each tile's own norms.

        A tile's score is on the metric's scale, but viewers were asked about whole pictures: take it for comparing
        tiles.
        """
        pixels = pixels_of(decoded)
        if pixels.shape != self.pixels.shape:
            raise ValueError(f"pictures of different shapes cannot be compared: {self.pixels.shape}, {pixels.shape}")
        sums, areas = self._sums(pixels), [scale.areas() for scale in self._scales]
        whole = [part.sum((0, 1)) / area.sum() for part, area in zip(sums, areas, strict=True)]
        each = [part / area for part, area in zip(sums, areas, strict=True)]
        tiles = _score(np.stack(each, -4), self._weights)
        return float(_score(np.stack(whole), self._weights)), tiles.astype(np.float32)

    def _sums(self, pixels: np.ndarray) -> list[np.ndarray]:
        sums, source, original = [], pixels, self.pixels
        for i, scale in enumerate(self._scales):
            half, original_half = scale.half(), scale.half()
            known = self._kept[i] if self._kept else _original_bands(scale, original, original_half, False)
            bands, part = _Bands(scale), np.zeros((*scale.tiles(), len(scale.weights), 2, 3))
            for top, band in zip(range(0, scale.height, BAND), known, strict=True):
                _compare(*band, bands.xyb(source, top, half), top, scale.height, scale.maps(), scale.side, _TAPS, part)
            sums.append(part)
            source, original = half, original_half
        return sums

    def _all_bands(self) -> list:
        kept, source = [], self.pixels
        for scale in self._scales:
            half = scale.half()
            kept.append(list(_original_bands(scale, source, half, True)))
            source = half
        return kept


class _Scale(NamedTuple):
    """One of the sizes at which two pictures are compared."""

    height: int
    width: int
    side: int  # of a tile
    weights: np.ndarray  # [C,2,3]; C = 1, Y alone, for grey pictures, whose X and B are constant

    def tiles(self) -> tuple[int, int]:
        return -(-self.height // self.side), -(-self.width // self.side)

    def areas(self) -> np.ndarray:
        """Pixels of each tile [ty,tx,1,1,1]; those at the right and bottom may be smaller."""
        down, across = (
            np.diff(np.minimum(np.arange(count + 1) * self.side, size))
            for count, size in zip(self.tiles(), (self.height, self.width), strict=True)
        )
        return np.outer(down, across)[:, :, None, None, None]

    def maps(self) -> np.ndarray:
        """int64 [C]: 2 where structure is compared, 1 where edges alone are, 0 where nothing is."""
        return np.where(self.weights[:, :, 0].any(1), 2, self.weights.any((1, 2))).astype(np.int64)

    def half(self) -> np.ndarray:
        """Room for the next scale's linear planes, float32 [C,ceil(H/2),ceil(W/2)]."""
        return np.empty((len(self.weights), -(-self.height // 2), -(-self.width // 2)), np.float32)


def _scales(height: int, width: int, channels: int) -> list[_Scale]:
    """Down to a side of 8. Where there are fewer than six, the list of weights is read on without a gap, as the
    published programs do."""
    sizes = [(height, width)]
    while len(sizes) < SCALES and min(sizes[-1]) > 2 * (MIN_SIDE - 1):
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    weights = WEIGHTS.ravel()[: 3 * len(sizes) * 6].reshape(3, len(sizes), 2, 3)
    weights = weights[1:2] if channels == 1 else weights
    return [_Scale(*size, TILE >> i, weights[:, i]) for i, size in enumerate(sizes)]


def _score(sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[...,S,C,2,3] means of the maps and of their fourth powers -> scores [...]."""
    norms = np.abs(sums)
    norms[..., 1, :] **= 0.25
    return 100 - distance_of((norms * weights).sum((-4, -3, -2, -1)))


class _Bands:
    """Turns rows of a picture to XYB, band by band, and halves them for the next scale.

    What kernels are given is contiguous and can be written to, so that each is compiled once.
    """

    def __init__(self, scale: _Scale):
        self.height = scale.height
        self._shape = len(scale.weights), min(BAND + 2 * REACH, scale.height), scale.width
        self._codes = np.empty(self._shape[1:] + self._shape[:1], np.uint8)
        self._linear, self._xyb = np.empty(self._shape, np.float32), np.empty(self._shape, np.float32)

    def xyb(self, source: np.ndarray, top: int, half: np.ndarray) -> np.ndarray:
        """float32 [C,n,W] of the rows from `top` on and of those that the window reaches above and below them; of
        uint8 [H,W,C], sRGB, or float32 [C,H,W], linear. Overwritten by the next call. The rows' half goes to `half`."""
        first, last = max(top - REACH, 0), min(top + BAND + REACH, self.height)
        linear, out = _first_rows(self._linear, last - first), _first_rows(self._xyb, last - first)
        if source.dtype == np.uint8:
            codes = self._codes[: last - first]
            codes[:] = source[first:last]
            _linearise(codes, _LINEAR, linear)
        else:
            linear[:] = source[:, first:last]
        halve(linear, top - first, min(BAND, self.height - top), half, top // 2)
        _to_xyb(linear, MIX, out)
        return out


def _first_rows(room: np.ndarray, rows: int) -> np.ndarray:
    """[C,rows,W], contiguous, in the room of [C,n,W]."""
    channels, _, width = room.shape
    return room.ravel()[: channels * rows * width].reshape(channels, rows, width)


def _original_bands(scale: _Scale, source: np.ndarray, half: np.ndarray, keep: bool):
    """Of each band of an original: XYB as _Bands gives it, and of its own rows mean and variance in the window,
    float32 [C,rows,W]. Without `keep` each overwrites the one before."""
    bands, maps = _Bands(scale), scale.maps()
    room = np.empty((2, len(maps), min(BAND, scale.height), scale.width), np.float32)
    for top in range(0, scale.height, BAND):
        xyb = bands.xyb(source, top, half)
        mean, variance = (_first_rows(part, min(BAND, scale.height - top)) for part in room)
        _moments(xyb, top, scale.height, maps, _TAPS, mean, variance)
        yield (xyb.copy(), mean.copy(), variance.copy()) if keep else (xyb, mean, variance)


@numba.njit(**EXACT)
def _linearise(rgb, table, out):
    """uint8 [n,W,C] -> float32 [C,n,W]."""
    for i in range(rgb.shape[0]):
        for c in range(rgb.shape[2]):
            row, line = rgb[i, :, c], out[c, i]
            for j in range(line.size):
                line[j] = table[row[j]]


@numba.njit(**EXACT)
def _cube_root(x, out):
    """float32 [n] above 0 -> out [n], within 4e-7 of it: Newton's steps to the inverse root, from a third of the
    exponent."""
    bits, guess, a_third = x.view(np.int32), out.view(np.int32), np.float32(1 / 3)
    for j in range(x.size):
        guess[j] = np.int32(1419967488) - np.int32(np.float32(bits[j]) * a_third)
    for j in range(x.size):
        t, share = out[j], x[j] * a_third
        for _ in range(3):
            t *= np.float32(4 / 3) - share * t * t * t
        out[j] = x[j] * t * t


@numba.njit(**EXACT)
def _to_xyb(linear, mix, out):
    """float32 [C,n,W], C = 3 or 1, to X, Y and B - Y, or Y alone, each moved to about 0..1."""
    bias, root_of_bias = np.float32(BIAS), np.float32(BIAS ** (1 / 3))
    width = linear.shape[2]
    cones, roots = np.empty((3, width), np.float32), np.empty((3, width), np.float32)
    for i in range(linear.shape[1]):
        if linear.shape[0] == 1:
            grey, y = linear[0, i], out[0, i]
            for j in range(width):
                cones[0, j] = grey[j] + bias
            _cube_root(cones[0], y)
            for j in range(width):
                y[j] += np.float32(0.01) - root_of_bias
            continue
        r, g, b = linear[0, i], linear[1, i], linear[2, i]
        for k in range(3):
            cone, of_r, of_g, of_b = cones[k], mix[k, 0], mix[k, 1], mix[k, 2]
            for j in range(width):
                cone[j] = of_r * r[j] + of_g * g[j] + of_b * b[j] + bias
            _cube_root(cone, roots[k])
        long, medium, short = roots[0], roots[1], roots[2]
        x, y, z = out[0, i], out[1, i], out[2, i]
        for j in range(width):
            both = np.float32(0.5) * (long[j] + medium[j])
            x[j] = np.float32(7) * (long[j] - medium[j]) + np.float32(0.42)
            y[j] = both + (np.float32(0.01) - root_of_bias)
            z[j] = (short[j] - both) + np.float32(0.55)


@numba.njit(**SUMS)
def _moments(xyb, top, height, maps, k, mean, variance):
    """Mean and, where maps is 2, variance in the window of [C,n,W], rows max(top - 5, 0).. of a plane of `height`."""
    rows, width = mean.shape[1:]
    first = max(top - 5, 0)
    ring, wide, at = np.empty((11, 2, STRIP), np.float32), np.empty((2, STRIP + 10), np.float32), np.empty(11, np.int64)
    for c in range(xyb.shape[0]):
        for left in range(0, width if maps[c] else 0, STRIP):
            n = min(STRIP, width - left)
            begin, end = max(left - 5, 0), min(left + n + 5, width)
            wide[:] = 0
            p, pp = wide[0, begin - left + 5 :], wide[1, begin - left + 5 :]
            done = first
            for row in range(top, top + rows):
                while done < min(row + 6, height):
                    a = xyb[c, done - first, begin:end]
                    for j in range(end - begin):
                        p[j] = a[j]
                        pp[j] = a[j] * a[j]
                    for m in range(maps[c]):
                        across(wide[m], k, ring[done % 11, m, :n])
                    done += 1
                around(row, height, at)
                mu, var = mean[c, row - top, left : left + n], variance[c, row - top, left : left + n]
                down(ring, at, 0, k, mu)
                if maps[c] == 2:
                    down(ring, at, 1, k, var)
                    for j in range(n):
                        var[j] -= mu[j] * mu[j]


@numba.njit(**SUMS)
def _compare(original, mean, variance, decoded, top, height, maps, side, k, sums):
    """Adds to sums [ty,tx,C,2,3] what one band's maps, and their fourth powers, come to in each tile.

    original, decoded: XYB [C,n,W], rows max(top - 5, 0).. of planes of `height`; mean, variance: of the original's own
    rows [C,rows,W].
    """
    rows, width = mean.shape[1:]
    first = max(top - 5, 0)
    ring, wide, at = np.empty((11, 3, STRIP), np.float32), np.empty((3, STRIP + 10), np.float32), np.empty(11, np.int64)
    tall = np.empty((3, STRIP), np.float32)
    for c in range(original.shape[0]):
        moments = 3 if maps[c] == 2 else 1
        for left in range(0, width if maps[c] else 0, STRIP):
            n = min(STRIP, width - left)
            begin, end = max(left - 5, 0), min(left + n + 5, width)
            wide[:] = 0
            d, dd, qq = wide[0, begin - left + 5 :], wide[1, begin - left + 5 :], wide[2, begin - left + 5 :]
            done = first
            for row in range(top, top + rows):
                while done < min(row + 6, height):
                    a, b = original[c, done - first, begin:end], decoded[c, done - first, begin:end]
                    for j in range(end - begin):
                        d[j] = b[j] - a[j]
                    if moments == 3:
                        for j in range(end - begin):
                            dd[j] = d[j] * d[j]
                            qq[j] = b[j] * b[j]
                    for m in range(moments):
                        across(wide[m], k, ring[done % 11, m, :n])
                    done += 1
                around(row, height, at)
                for m in range(moments):
                    down(ring, at, m, k, tall[m, :n])
                for j in range(0, n, side):
                    tile = sums[row // side, (left + j) // side, c]
                    here, there = slice(left + j, min(left + j + side, left + n)), slice(j, min(j + side, n))
                    a, b = original[c, row - first, here], decoded[c, row - first, here]
                    mu, var = mean[c, row - top, here], variance[c, row - top, here]
                    _add_edges(a, b, mu, tall[0, there], tile)
                    if moments == 3:
                        _add_structure(mu, var, tall[0, there], tall[1, there], tall[2, there], tile)


@numba.njit(**SUMS)
def _add_structure(mean, variance, d, dd, qq, tile):
    """One row of a tile: 1 - SSIM, its luminance factor without denominator, to tile[0,0], fourth powers to
    tile[1,0]."""
    c2, ones, fourths = np.float32(C2), np.float32(0), np.float32(0)
    for j in range(mean.size):
        other = mean[j] + d[j]
        darker = d[j] * d[j]
        missing = (dd[j] - darker) / (variance[j] + (qq[j] - other * other) + c2)
        loss = missing + darker - missing * darker
        square = loss * loss
        ones += loss
        fourths += square * square
    tile[0, 0] += ones
    tile[1, 0] += fourths


@numba.njit(**SUMS)
def _add_edges(a, b, mean, d, tile):
    """One row of a tile: by how much it goes further from its surroundings than the original (ringing, blocks) to
    tile[0,1], by how much less (smoothing) to tile[0,2]; fourth powers to tile[1]."""
    one, half = np.float32(1), np.float32(0.5)
    came, went, came4, went4 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for j in range(a.size):
        edge = abs(a[j] - mean[j])
        change = (abs(b[j] - (mean[j] + d[j])) - edge) / (one + edge)
        more = half * (abs(change) + change)
        less = more - change
        came += more
        went += less
        came4 += (more * more) * (more * more)
        went4 += (less * less) * (less * less)
    tile[0, 1] += came
    tile[0, 2] += went
    tile[1, 1] += came4
    tile[1, 2] += went4
