"""What a mean over the picture hides: the part that lost its own structure, and flat colours that came back otherwise.

`worst_tile`, 0 to 1: the share of its own structure that the worst part of a picture got back. Structure is what a
plane differs by from its surroundings (Gaussian window of sigma 2), in luma at four scales and in chroma at three, in
steps of 1/255. Only what can be seen counts, from a threshold t on:

    share = (sum w o r / t^2 + FLOOR) / (sum w o^2 / t^2 + FLOOR),   w = clip(|o| / t - 1, 0, 1)

with o the original's structure and r the decoded picture's at the same place, summed over windows of 16 x 16 pixels of
their scale, half overlapping; FLOOR keeps a few pixels at the threshold from counting. Erased structure has r = 0,
smoothed structure a part of o, coding noise beside it changes nothing. Thresholds are taken twice:

- for what stands out from its surroundings (writing, a star, a crack): STANDS_OUT times the median |o| of 64 x 64
  pixels around, so that grain and texture hide their like, and at least VISIBLE;
- for what is dense (fabric, fog, a dark face): DENSE alone.

`flat_colour`: the largest CIEDE2000 between the means of 16 x 16 pixels where the original is flat.

The thresholds were chosen on codec-10 at SSIMULACRA2 70, 80, 85 (or its quality 100 where that ends below). Below
LEAST_SHARE are, of 24 Kodak pictures, 19, 3, 1, of 40 photographs of its training set 31, 13, 5: looked at, what was
rejected at 80 and 85 had lost a star in a clear sky, a railing in fog, distant lights, specks and birds. Kodak by JPEG
and WebP at 80: 0, 1. Of 42 pictures of faint things 30, 20, 13: writing of 5 to 12 steps on plain paper that can hardly
be read any more has 0.3 to 0.4 at 80 (0.6 where 5 steps are strokes of one pixel), one digit of 15 steps that is gone
0.1, stars 0.2, an astronaut's badge at 6 to 8 % contrast 0.4; grass, gravel, grain of sigma 5 have 0.7 to 0.8 there.
Above LARGEST_DELTA_E are of the Kodak pictures 5, 0, 0, by JPEG and WebP at 80 6 and 7. A pass takes 6 ms a megapixel
and thread, a quarter of SSIMULACRA2's.
"""

from typing import NamedTuple

import numba
import numpy as np

from codec.metrics.fidelity import pixels_of
from codec.metrics.smoothing import EXACT, REACH, SUMS, across, around, down, gaussian, halve

LEAST_SHARE = 0.5  # of the worst tile: below it, something that a person would miss is gone
LARGEST_DELTA_E = 1.0  # CIEDE2000 of flat colours

SCALES = 4
VISIBLE = {"luma": (2.5, 2.0, 1.5, 1.0), "chroma": (None, 3.0, 2.0, 1.5)}  # by scale, in steps of 1/255
DENSE = {"luma": (8.0, 2.0, 1.2, 0.8), "chroma": (None, 6.0, 3.0, 2.0)}
STANDS_OUT = 4.0
FLOOR = 48.0, 32.0  # pixels at twice the threshold, of what stands out and of what is dense
CELL = 8  # pixels; a window is 2 x 2 of them
QUIET = 64  # pixels a side of what a median is taken of
FLAT_BLOCK, FLAT_DEVIATION = 16, 2.0  # pixels a side; largest standard deviation of a channel in a flat block

BAND = 64  # rows worked on together
_UNITS = 128  # structure is kept in int16, in steps of 1/128 of 1/255
_TAPS = gaussian(2.0)


class Losses(NamedTuple):
    """What a decoded picture lost of its original where it lost most."""

    worst_tile: float  # 0..1: the worst part's share of its own structure that came back
    worst_place: tuple[int, int, int]  # x, y, side in pixels
    flat_colour: float  # CIEDE2000; 0 where nothing is flat
    flat_place: tuple[int, int, int]

    @property
    def acceptable(self) -> bool:
        return self.worst_tile >= LEAST_SHARE and self.flat_colour <= LARGEST_DELTA_E

    def in_words(self) -> str:
        """What is not acceptable, and where; of an acceptable picture what came nearest to that."""
        if self.flat_colour > LARGEST_DELTA_E:
            x, y, side = self.flat_place
            return f"a flat colour is off by {self.flat_colour:.1f} CIEDE2000 ({side} pixels a side at {x}, {y})"
        x, y, side = self.worst_place
        return f"a part of the picture keeps {self.worst_tile:.2f} of its structure ({side} pixels a side at {x}, {y})"


def local_loss(original, decoded) -> Losses:
    """Of two pictures of one size: PIL images (L, LA, RGB, RGBA) or uint8 [H,W] or [H,W,C], sRGB; alpha is left out.
    Raises ValueError for other pictures. Whoever compares several with one original makes a LocalLoss of it."""
    return LocalLoss(original).measure(decoded)


class LocalLoss:
    """An original that pictures are compared with; what does not change between them is computed once (5 bytes a
    pixel)."""

    def __init__(self, original):
        self.pixels = _own(original)
        if not self.pixels.size:
            raise ValueError("an empty picture has no structure to lose")
        self._parts = [_Structure(*plane) for plane in _planes(self.pixels)]
        self._flat = _flat_blocks(self.pixels)

    def measure(self, decoded) -> Losses:
        """Losses of a picture of the same size and number of channels; ValueError for another."""
        pixels = _own(decoded)
        if pixels.shape != self.pixels.shape:
            raise ValueError(f"pictures of different shapes cannot be compared: {self.pixels.shape}, {pixels.shape}")
        share, place = min(part.worst(plane) for part, (_, _, plane) in zip(self._parts, _planes(pixels), strict=True))
        return Losses(share, place, *self._colour(pixels))

    def _colour(self, pixels: np.ndarray) -> tuple[float, tuple[int, int, int]]:
        rows, columns, means = self._flat
        if not rows.size:
            return 0.0, (0, 0, 0)
        found = _largest_difference(pixels, rows, columns, means)
        at = int(found.argmax())
        return float(found[at]), (int(columns[at]) * FLAT_BLOCK, int(rows[at]) * FLAT_BLOCK, FLAT_BLOCK)


def _own(picture) -> np.ndarray:
    """uint8 [H,W,C], contiguous and writable, so that each kernel is compiled once."""
    return np.require(pixels_of(picture), requirements=["C", "W"])


def _planes(pixels: np.ndarray):
    """(kind, scale, plane) of all that is compared; a plane is float32 [h,w], or the picture itself for its luma."""
    yield "luma", 0, pixels
    height, width, channels = pixels.shape
    planes = np.empty((channels, -(-height // 2), -(-width // 2)), np.float32)
    _first_halves(pixels, planes)
    for scale in range(1, SCALES):
        if scale > 1:
            before, (height, width) = planes, planes.shape[1:]
            planes = np.empty((channels, -(-height // 2), -(-width // 2)), np.float32)
            halve(before, 0, height, planes, 0)
        for c in range(channels):
            yield ("chroma" if c else "luma"), scale, planes[c]


class _Structure:
    """The structure of one plane of the original, and what of it can be seen."""

    def __init__(self, kind: str, scale: int, plane: np.ndarray):
        self.scale, self.height, self.width = scale, *plane.shape[:2]
        self.structure = np.empty((self.height, self.width), np.int16)
        for top, rows in _band_structures(plane):
            self.structure[top : top + len(rows)] = rows
        tiles = max(self.height // QUIET, 1), max(self.width // QUIET, 1)  # the last ones take what is left
        medians = np.empty(tiles, np.float32)
        _medians(self.structure, medians)
        self.visible = np.maximum(np.float32(VISIBLE[kind][scale]), np.float32(STANDS_OUT) * medians)
        self.dense = np.float32(DENSE[kind][scale])
        self.energy = self._windows((top, self.structure[top : top + BAND]) for top in range(0, self.height, BAND))

    def _windows(self, bands) -> np.ndarray:
        """float32 [2,y,x]: sum of w o r / t^2 in each window, for both kinds of threshold."""
        cells = np.zeros((-(-self.height // CELL), 2, -(-self.width // CELL)), np.float32)
        for top, rows in bands:
            visible = self.visible[min(top // QUIET, len(self.visible) - 1)]
            of_cells = cells[top // CELL : -(-(top + len(rows)) // CELL)]
            _products(self.structure[top : top + len(rows)], rows, visible, self.dense, of_cells)
        for axis in (0, 2):
            if cells.shape[axis] > 1:
                cells = cells.take(range(1, cells.shape[axis]), axis) + cells.take(range(cells.shape[axis] - 1), axis)
        return cells.swapaxes(0, 1)

    def worst(self, plane: np.ndarray) -> tuple[float, tuple[int, int, int]]:
        """The lowest share and its window in the picture: x, y, side."""
        floor = np.array(FLOOR, np.float32)[:, None, None]
        back = np.clip(self._windows(_band_structures(plane)), 0, self.energy)
        shares = (back + floor) / (self.energy + floor)
        at = int(shares.argmin())
        _, y, x = np.unravel_index(at, shares.shape)
        size = CELL << self.scale
        return float(shares.flat[at]), (int(x) * size, int(y) * size, 2 * size)


def _band_structures(plane: np.ndarray):
    """(first row, int16 [rows,W]) of each band of a plane, in units of 1/128; overwritten by the next."""
    height, width = plane.shape[:2]
    rows = min(BAND + 2 * REACH, height)
    luma, structure = np.empty((rows, width), np.float32), np.empty((min(BAND, height), width), np.int16)
    for top in range(0, height, BAND):
        first, last = max(top - REACH, 0), min(top + BAND + REACH, height)
        values = luma[: last - first]
        if plane.dtype == np.uint8:
            _luma(plane[first:last], values)
        else:
            values[:] = plane[first:last]
        out = structure[: min(BAND, height - top)]
        _around_removed(values, top, height, _TAPS, out)
        yield top, out


@numba.njit(**EXACT)
def _luma(pixels, out):
    """uint8 [n,W,C], C = 1 or 3 -> out [n,W], BT.601."""
    red, green, blue = np.float32(0.299), np.float32(0.587), np.float32(0.114)
    for i in range(out.shape[0]):
        if pixels.shape[2] == 1:
            for j in range(out.shape[1]):
                out[i, j] = np.float32(pixels[i, j, 0])
        else:
            for j in range(out.shape[1]):
                r, g, b = np.float32(pixels[i, j, 0]), np.float32(pixels[i, j, 1]), np.float32(pixels[i, j, 2])
                out[i, j] = red * r + green * g + blue * b


@numba.njit(**EXACT)
def _first_halves(pixels, out):
    """uint8 [H,W,C] -> 2x2 means of Y, Cr, Cb, or of Y alone: out [C,ceil(H/2),ceil(W/2)]; a last odd row or column
    stands for two."""
    height, width, channels = pixels.shape
    quarter = np.float32(0.25)
    for i in range(out.shape[1]):
        above, below = pixels[2 * i], pixels[min(2 * i + 1, height - 1)]
        for j in range(out.shape[2]):
            left, right = 2 * j, min(2 * j + 1, width - 1)
            r = np.int32(above[left, 0]) + above[right, 0] + below[left, 0] + below[right, 0]
            if channels == 1:
                out[0, i, j] = quarter * np.float32(r)
                continue
            g = np.int32(above[left, 1]) + above[right, 1] + below[left, 1] + below[right, 1]
            b = np.int32(above[left, 2]) + above[right, 2] + below[left, 2] + below[right, 2]
            red, green, blue = quarter * np.float32(r), quarter * np.float32(g), quarter * np.float32(b)
            luma = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
            out[0, i, j] = luma
            out[1, i, j] = np.float32(0.713) * (red - luma)
            out[2, i, j] = np.float32(0.564) * (blue - luma)


@numba.njit(**SUMS)
def _around_removed(values, top, height, k, out):
    """float32 [n,W], rows max(top - 5, 0).. of a plane of `height`, mirrored at its borders -> out int16 [rows,W],
    rows top..: what each pixel differs by from its surroundings, in 1/128."""
    rows, width = out.shape
    first = max(top - 5, 0)
    ring, at = np.empty((11, 1, width), np.float32), np.empty(11, np.int64)
    wide, smooth = np.empty(width + 10, np.float32), np.empty(width, np.float32)
    units, done = np.float32(_UNITS), first
    for row in range(top, top + rows):
        while done < min(row + 6, height):
            wide[5 : width + 5] = values[done - first]
            for j in range(5):
                wide[4 - j] = wide[5 + min(j, width - 1)]
                wide[width + 5 + j] = wide[width + 4 - min(j, width - 1)]
            across(wide, k, ring[done % 11, 0])
            done += 1
        around(row, height, at)
        for i in range(11):  # planes lower than the window
            at[i] = at[i] if height > 5 else min(max(row + i - 5, 0), height - 1)
        down(ring, at, 0, k, smooth)
        here, line = values[row - first], out[row - top]
        for j in range(width):
            line[j] = np.int16(np.rint((here[j] - smooth[j]) * units))


@numba.njit(**EXACT)
def _medians(structure, out):
    """Of int16 [H,W] the median size in each of out's [y,x] tiles of 64 x 64, in steps; the last tiles take the
    rest."""
    height, width = structure.shape
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            bottom = height if y == out.shape[0] - 1 else (y + 1) * QUIET
            right = width if x == out.shape[1] - 1 else (x + 1) * QUIET
            counts = np.zeros(256, np.int64)  # of quarter steps
            for i in range(y * QUIET, bottom):
                for j in range(x * QUIET, right):
                    counts[min(abs(np.int32(structure[i, j])) >> 5, 255)] += 1
            half = (bottom - y * QUIET) * (right - x * QUIET) / 2
            below, step = 0, 0
            while below + counts[step] < half:
                below += counts[step]
                step += 1
            out[y, x] = np.float32(0.25 * (step + (half - below) / counts[step]))


@numba.njit(**SUMS)
def _products(original, decoded, visible, dense, cells):
    """Structures int16 [rows,W], thresholds [tiles] and one -> cells [ceil(rows/8),2,ceil(W/8)]: sums of
    w o r / t^2."""
    rows, width = original.shape
    sums = np.empty((2, width), np.float32)
    one, zero = np.float32(1), np.float32(0)
    for begin in range(0, rows, CELL):
        sums[:] = 0
        for i in range(begin, min(begin + CELL, rows)):
            for tile in range(visible.size):
                left = tile * QUIET
                right = width if tile == visible.size - 1 else left + QUIET
                o, r = original[i, left:right], decoded[i, left:right]
                a, b = sums[0, left:right], sums[1, left:right]
                by_visible, by_dense = one / (visible[tile] * _UNITS), one / (dense * np.float32(_UNITS))
                for j in range(right - left):
                    x, y = np.float32(o[j]), np.float32(r[j])
                    product, size = x * y, abs(x)
                    w = min(max(size * by_visible - one, zero), one)
                    a[j] += w * by_visible * by_visible * product
                    w = min(max(size * by_dense - one, zero), one)
                    b[j] += w * by_dense * by_dense * product
        for kind in range(2):
            for cell in range(cells.shape[2]):
                total = zero
                for j in range(cell * CELL, min((cell + 1) * CELL, width)):
                    total += sums[kind, j]
                cells[begin // CELL, kind, cell] = total


def _flat_blocks(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns int64 [n] and mean colours float64 [n,3] of the flat blocks."""
    height, width = pixels.shape[:2]
    means = np.empty((-(-height // FLAT_BLOCK), -(-width // FLAT_BLOCK), 3))
    deviations = np.empty(means.shape[:2])
    _block_moments(pixels, means, deviations)
    rows, columns = np.nonzero(deviations <= FLAT_DEVIATION)
    return rows, columns, means[rows, columns]


@numba.njit(**EXACT)
def _block_moments(pixels, means, deviations):
    """uint8 [H,W,C] -> means [y,x,3] and the largest of the channels' standard deviations [y,x] of each block."""
    height, width, channels = pixels.shape
    for y in range(means.shape[0]):
        for x in range(means.shape[1]):
            bottom, right = min((y + 1) * FLAT_BLOCK, height), min((x + 1) * FLAT_BLOCK, width)
            count, most = (bottom - y * FLAT_BLOCK) * (right - x * FLAT_BLOCK), 0.0
            for c in range(3):
                total, squares = np.int64(0), np.int64(0)
                for i in range(y * FLAT_BLOCK, bottom):
                    for j in range(x * FLAT_BLOCK, right):
                        value = np.int64(pixels[i, j, c if channels == 3 else 0])
                        total += value
                        squares += value * value
                means[y, x, c] = total / count
                most = max(most, squares / count - (total / count) ** 2)
            deviations[y, x] = np.sqrt(most)


@numba.njit(**EXACT)
def _largest_difference(pixels, rows, columns, means):
    """CIEDE2000 [n] between the mean colours of the blocks of uint8 [H,W,C] and `means` [n,3]."""
    height, width, channels = pixels.shape
    out, mean = np.empty(rows.size), np.empty(3)
    for n in range(rows.size):
        top, left = rows[n] * FLAT_BLOCK, columns[n] * FLAT_BLOCK
        bottom, right = min(top + FLAT_BLOCK, height), min(left + FLAT_BLOCK, width)
        for c in range(3):
            total = np.int64(0)
            for i in range(top, bottom):
                for j in range(left, right):
                    total += np.int64(pixels[i, j, c if channels == 3 else 0])
            mean[c] = total / ((bottom - top) * (right - left))
        out[n] = ciede2000(lab(means[n, 0], means[n, 1], means[n, 2]), lab(mean[0], mean[1], mean[2]))
    return out


@numba.njit(**EXACT)
def lab(red, green, blue):
    """CIE L*, a*, b* (D65, 2 degrees) of an sRGB colour, 0..255."""
    linear = np.empty(3)
    for c, code in enumerate((red / 255, green / 255, blue / 255)):
        linear[c] = code / 12.92 if code <= 0.04045 else ((code + 0.055) / 1.055) ** 2.4
    r, g, b = linear
    x = (0.412453 * r + 0.357580 * g + 0.180423 * b) / 0.95047
    y = 0.212671 * r + 0.715160 * g + 0.072169 * b
    z = (0.019334 * r + 0.119193 * g + 0.950227 * b) / 1.08883
    f = np.empty(3)
    for c, value in enumerate((x, y, z)):
        f[c] = np.cbrt(value) if value > 0.008856 else 7.787 * value + 16 / 116
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])


@numba.njit(**EXACT)
def ciede2000(first, second):
    """Colour difference of two (L*, a*, b*), CIE 142-2001, in the notation of Sharma, Wu and Dalal 2005."""
    l1, a1, b1 = first
    l2, a2, b2 = second
    power = ((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2) ** 7
    stretch = 1.5 - 0.5 * np.sqrt(power / (power + 25.0**7))
    a1, a2 = a1 * stretch, a2 * stretch
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = np.arctan2(b1, a1), np.arctan2(b2, a2)
    turn, middle = h2 - h1, (h1 + h2) / 2
    if c1 * c2 == 0:
        turn, middle = 0.0, h1 + h2
    elif abs(turn) > np.pi:
        turn -= np.sign(turn) * 2 * np.pi
        middle += np.pi
    lightness, chroma = (l1 + l2) / 2 - 50, (c1 + c2) / 2
    hues = (
        1
        - 0.17 * np.cos(middle - np.pi / 6)
        + 0.24 * np.cos(2 * middle)
        + 0.32 * np.cos(3 * middle + np.pi / 30)
        - 0.20 * np.cos(4 * middle - 63 * np.pi / 180)
    )
    degrees = np.degrees(middle) % 360
    rotation = -np.sin(np.pi / 3 * np.exp(-(((degrees - 275) / 25) ** 2)))
    rotation *= 2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7))
    dl = (l2 - l1) / (1 + 0.015 * lightness**2 / np.sqrt(20 + lightness**2))
    dc = (c2 - c1) / (1 + 0.045 * chroma)
    dh = 2 * np.sqrt(c1 * c2) * np.sin(turn / 2) / (1 + 0.015 * chroma * hues)
    return np.sqrt(max(dl * dl + dc * dc + dh * dh + rotation * dc * dh, 0.0))
