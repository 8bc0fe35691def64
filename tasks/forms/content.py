"""What kind of picture it is: photograph, graphics, text, labels or texture, by measured features and a small network.

    up to nine tiles at full size -> 24 features -> 24 hidden units -> five kinds

It decides which forms are tried (choose.py) and stands in the report; no form relies on it being right. The network is
trained by content_train.py; its card is weights/CONTENT.md. About 5 ms a picture.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

KINDS = ("photograph", "graphics", "text", "labels", "texture")
FLAT_KINDS = ("graphics", "text", "labels")  # those whose edges and colours have to stay exact
WEIGHTS = Path(__file__).parent / "weights" / "content.safetensors"
TILE = 96  # pixels a side
_GRID = 3  # tiles a side
_BLOCK = 8


def kind_of(image: Image.Image) -> str:
    """One of KINDS. image: L, LA, RGB or RGBA of any size, as shown."""
    return KINDS[int(np.argmax(scores(features(image)[None])[0]))]


def scores(measured: np.ndarray) -> np.ndarray:
    """float32 [n,24] -> [n,5], the larger the likelier."""
    net = _network()
    hidden = np.maximum((measured - net["mean"]) / net["deviation"] @ net["first"] + net["first_bias"], 0)
    return hidden @ net["second"] + net["second_bias"]


@lru_cache(1)
def _network() -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(WEIGHTS)


def features(image: Image.Image) -> np.ndarray:
    """float32 [24]; see the names beside each."""
    tiles = [_pixels(tile) for tile in _tiles(image)]
    each = [_of_tile(tile) for tile in tiles]
    weights = np.array([tile.shape[0] * tile.shape[1] for tile in tiles], np.float64)
    mean = np.average([measured for measured, _ in each], axis=0, weights=weights)
    grey = np.concatenate([tile.mean(2).ravel() for tile in tiles])
    packed = np.concatenate([_packed(tile).ravel() for tile in tiles])
    values, counts = np.unique(packed, return_counts=True)
    order = np.sort(counts)[::-1] / len(packed)
    activity = np.concatenate([blocks for _, blocks in each])
    mode = float(np.bincount(grey.astype(np.uint8), minlength=256).argmax())
    whole = [
        np.log(len(values)) / np.log(max(len(packed), 2)),  # how many colours, of all that could be
        order[0], order[:8].sum(), order[:64].sum(),  # share of the commonest colours
        (np.abs(grey - mode) <= 12).mean(), mode / 255,  # background: its share and brightness
        grey.std() / 64,
        np.log1p(activity.mean()), np.log1p(np.percentile(activity, 10)), np.log1p(np.percentile(activity, 90)),
        activity.std() / (activity.mean() + 0.5),  # texture is the same everywhere
    ]  # fmt: skip
    return np.concatenate([mean, whole]).astype(np.float32)


def _tiles(image: Image.Image) -> list[Image.Image]:
    """Parts of a picture on a grid, all of it where it is small."""
    width, height = image.size
    if width * height <= (_GRID * TILE) ** 2:
        return [image]
    across = [round(i * max(width - TILE, 0) / (_GRID - 1)) for i in range(_GRID)]
    down = [round(i * max(height - TILE, 0) / (_GRID - 1)) for i in range(_GRID)]
    return [image.crop((x, y, min(x + TILE, width), min(y + TILE, height))) for y in sorted(set(down))
            for x in sorted(set(across))]  # fmt: skip


def _pixels(tile: Image.Image) -> np.ndarray:
    """int16 [H,W,3], transparent parts on white."""
    if tile.mode in ("LA", "RGBA"):
        paper = Image.new("RGBA", tile.size, "white")
        paper.alpha_composite(tile.convert("RGBA"))
        tile = paper
    return np.asarray(tile.convert("RGB")).astype(np.int16)


def _packed(pixels: np.ndarray) -> np.ndarray:
    return pixels[:, :, 0].astype(np.int32) << 16 | pixels[:, :, 1].astype(np.int32) << 8 | pixels[:, :, 2]


def _of_tile(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(13 features, mean absolute Laplacian of each block) of a tile."""
    grey = pixels.mean(2)
    step_x = np.abs(np.diff(pixels, axis=1)).max(2) if pixels.shape[1] > 1 else np.zeros((1, 1), np.int16)
    step_y = np.abs(np.diff(pixels, axis=0)).max(2) if pixels.shape[0] > 1 else np.zeros((1, 1), np.int16)
    steps = np.concatenate([step_x.ravel(), step_y.ravel()])
    changes = steps[steps > 0]
    count = max(len(changes), 1)
    near, far, wide = (_mean_step(grey, lag) for lag in (1, 4, 16))
    spread = pixels.max(2) - pixels.min(2)
    measured = [
        (steps == 0).mean(), (steps <= 2).mean(), (steps <= 6).mean(), (steps > 64).mean(),
        (changes <= 2).sum() / count, (changes > 64).sum() / count,
        np.log1p(near), np.log1p(far), near / (far + 0.5), far / (wide + 0.5),  # noise: the same at all distances
        spread.mean() / 64, (spread <= 4).mean(), np.log1p(np.abs(step_x.mean() - step_y.mean())),
    ]  # fmt: skip
    return np.array(measured), _block_activity(grey)


def _mean_step(grey: np.ndarray, lag: int) -> float:
    across, down = grey[:, lag:] - grey[:, :-lag], grey[lag:] - grey[:-lag]
    both = [np.abs(part).mean() for part in (across, down) if part.size]
    return float(np.mean(both)) if both else 0.0


def _block_activity(grey: np.ndarray) -> np.ndarray:
    """Mean absolute Laplacian of each whole 8x8 block [n]; one number for what is smaller."""
    if min(grey.shape) < 3:
        return np.zeros(1)
    inner = np.abs(4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:])
    height, width = (side // _BLOCK * _BLOCK for side in inner.shape)
    if not height or not width:
        return np.array([inner.mean()])
    return inner[:height, :width].reshape(height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK).mean((1, 3)).ravel()
