"""Pictures whose values are names: maps of labels, masks, palettes used as codes, drawings in a few exact colours.

A lossy codec gives such a picture back with values that mean something else or nothing. What is recognised: few exact
values, or regions of one value each that meet without values in between. What is not: photographs, scans and renders
(noise, gradients), screenshots and drawings with antialiased edges, however flat. To be asked of pictures from
lossless formats alone; after JPEG no value is exact.
"""

import numpy as np
from PIL import Image

FEW = 32  # values that no photograph makes do with, unless it is nearly black or white throughout
_CODES = 4  # so few values are never a photograph's
_SAMPLED_ROWS = 64
_FLAT = 0.4  # share of pixels equal to their four neighbours, from which on regions are what the picture consists of
_BETWEEN = 0.02  # share of border pixels with values that are in no region: antialiasing
_SMALL_STEP = 2  # of 255: what noise and gradients differ by from pixel to pixel


def exact_values(image: Image.Image) -> str | None:
    """Why a picture's values have to come back exactly, in words; None where they need not.

    image: mode 1, L, LA, P, PA, RGB or RGBA, as the file has it; of a palette picture the numbers count.
    """
    if image.mode == "P" and (twins := _equal_entries(image)):
        return f"its palette gives {twins} numbers the colour of another one: the numbers are codes"
    pixels = np.asarray(image)
    if pixels.size == 0 or not _worth_a_look(_packed(pixels[:: max(1, len(pixels) // _SAMPLED_ROWS)])):
        return None
    values = _packed(pixels)
    across, down = values[:, 1:] != values[:, :-1], values[1:] != values[:-1]
    starts = np.ones(values.shape, bool)
    starts[:, 1:] = across
    distinct = np.unique(values[starts])
    if len(distinct) <= FEW:
        return None if _is_noise(values, distinct, across, down) else _words(len(distinct))
    inside = np.ones(values.shape, bool)
    inside[:, 1:] &= ~across
    inside[:, :-1] &= ~across
    inside[1:] &= ~down
    inside[:-1] &= ~down
    if inside.mean() < _FLAT or _small_steps(values, across, down) > 0.5:
        return None
    return _words(len(distinct)) if _between(values, inside, starts) <= _BETWEEN else None


def _words(count: int) -> str:
    if count == 1:
        return "all its pixels have one exact value"
    return f"its pixels have {count} exact values, without noise between them (labels, a mask, flat colours)"


def _equal_entries(image: Image.Image) -> int:
    """Numbers in use whose palette colour another number in use has too (transparent ones aside)."""
    used = np.flatnonzero(np.bincount(np.asarray(image).ravel(), minlength=256))
    palette = np.zeros((256, 3), np.uint8)
    entries = np.array(image.getpalette() or [], np.uint8)[:768].reshape(-1, 3)
    palette[: len(entries)] = entries
    clear = image.info.get("transparency")
    hidden = {clear} if isinstance(clear, int) else {i for i, a in enumerate(clear or b"") if a == 0}
    colours = palette[[number for number in used.tolist() if number not in hidden]]
    return len(colours) - len(np.unique(colours, axis=0)) if len(colours) else 0


def _packed(pixels: np.ndarray) -> np.ndarray:
    """[H,W] or [H,W,C] -> [H,W]: one number for each pixel, uint8 or uint32."""
    if pixels.ndim == 2:
        return pixels.astype(np.uint8)
    packed = pixels[:, :, 0].astype(np.uint32)
    for channel in range(1, pixels.shape[2]):
        packed = packed << np.uint32(8) | pixels[:, :, channel]
    return packed


def _worth_a_look(rows: np.ndarray) -> bool:
    """Whether some of the rows leave it open; photographs end here."""
    if rows.shape[1] > 1 and (rows[:, 1:] == rows[:, :-1]).mean() >= _FLAT:
        return True
    return len(np.unique(rows.ravel()[:: max(1, rows.size // 4096)])) <= FEW


def _small_steps(values: np.ndarray, across: np.ndarray, down: np.ndarray) -> float:
    """Of neighbours that differ, the share that differs by no more than _SMALL_STEP in every channel."""
    small = number = 0
    pairs = (values[:, :-1][across], values[:, 1:][across]), (values[:-1][down], values[1:][down])
    for a, b in pairs:
        step = np.zeros(len(a), np.int16)
        for shift in range(0, 8 * values.itemsize, 8):
            first, second = ((x >> x.dtype.type(shift) & x.dtype.type(255)).astype(np.int16) for x in (a, b))
            step = np.maximum(step, np.abs(first - second))
        small += int((step <= _SMALL_STEP).sum())
        number += len(a)
    return small / number if number else 0.0


def _is_noise(values: np.ndarray, distinct: np.ndarray, across: np.ndarray, down: np.ndarray) -> bool:
    """Whether few values are those of a picture with hardly any contrast: neighbouring ones, all over the place."""
    if len(distinct) <= _CODES:
        return False
    for shift in range(0, 8 * values.itemsize, 8):
        channel = np.unique(distinct >> distinct.dtype.type(shift) & distinct.dtype.type(255))
        if len(channel) <= 0.8 * (int(channel[-1]) - int(channel[0]) + 1):
            return False
    return (across.mean() + down.mean()) / 2 > 0.1 and _small_steps(values, across, down) > 0.5


def _between(values: np.ndarray, inside: np.ndarray, starts: np.ndarray) -> float:
    """Share of the pixels at borders whose value no region has: those that antialiasing makes."""
    regions, runs = np.unique(values[inside & starts | inside & ~np.roll(inside, 1, 1)], return_counts=True)
    borders, count = np.unique(values[~inside], return_counts=True)
    if not len(borders):
        return 0.0
    place = np.clip(np.searchsorted(regions, borders), 0, max(0, len(regions) - 1))
    known = (
        (regions[place] == borders) & (runs[place] >= 0.02 * count) if len(regions) else np.zeros(len(borders), bool)
    )
    return float(count[~known].sum() / count.sum())
