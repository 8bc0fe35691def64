"""The report page's pictures: crops before and after, thumbnails, as data URIs within bounds of bytes and time.

Reads originals from SOURCE and bitstreams from DEST, and decodes those by the codec itself: what the page shows as
"after" is what lies in the bucket. A picture that can't be shown becomes a sentence, never an error of the page.
"""

import base64
import io
import shutil
import tempfile
import time
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from tasks.stores.models import fetch_model

CROP = (400, 300)  # width, height of a comparison, shown pixel for pixel
MAP = 88  # longest side of the little overview
THUMB = (300, 224)  # shown at half size, sharp on dense screens
# Comparisons: without loss where there is room, else with full colour resolution, so that what shows is the codec's.
FAITHFUL: tuple[dict, ...] = (
    {"format": "WEBP", "lossless": True, "quality": 20, "method": 0},
    *({"format": "JPEG", "quality": quality, "subsampling": "4:4:4"} for quality in (94, 89, 82, 70, 50)),
)
SMALL: tuple[dict, ...] = tuple({"format": "WEBP", "quality": quality, "method": 4} for quality in (82, 65, 45))
READ_LIMIT = 64_000_000  # bytes of an object that the page is willing to read
PIXEL_LIMIT = 60_000_000


class NotShown(Exception):
    """This picture is not on the page; the message says why."""


@dataclass(frozen=True)
class Comparison:
    """Data URIs of one place before and after, an overview, and the place in it (left, top, width, height, 0..1)."""

    before: str
    after: str
    overview: str | None  # None where the crop is the whole picture
    box: tuple[float, float, float, float]
    size: tuple[int, int]  # of the crop in pixels


def flat(image: Image.Image) -> Image.Image:
    """RGB as shown: transparency over light grey squares, grey as grey."""
    if image.mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        rows, columns = np.indices((image.height, image.width)) // 8
        squares = Image.fromarray(np.where((rows + columns) % 2, 226, 244).astype(np.uint8)).convert("RGBA")
        image = Image.alpha_composite(squares, image)
    return image.convert("RGB")


def worst_place(before: np.ndarray, after: np.ndarray, crop: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, width, height of the crop (at most `crop`, (width, height)) with the greatest squared difference.

    before, after: uint8[H, W, 3]. Places are tried on a grid of 8 pixels.
    """
    high, wide = before.shape[:2]
    width, height = min(crop[0], wide), min(crop[1], high)
    rows, columns = np.arange(0, high, 8), np.arange(0, wide, 8)
    error = np.empty((len(rows), len(columns)))
    for row, top in enumerate(rows):  # strip by strip, so that a large picture needs no second copy in floats
        strip = np.square(before[top : top + 8].astype(np.float32) - after[top : top + 8]).sum(axis=(0, 2))
        error[row] = np.add.reduceat(strip, columns)
    sums = np.zeros((len(rows) + 1, len(columns) + 1))
    np.cumsum(np.cumsum(error, axis=0), axis=1, out=sums[1:, 1:])
    down, across = max(1, height // 8), max(1, width // 8)
    inside = sums[down:, across:] - sums[:-down, across:] - sums[down:, :-across] + sums[:-down, :-across]
    best = np.argwhere(inside >= inside.max() * (1 - 1e-9))  # often many places hold the same damage: the middle one
    row, column = best[np.argmin(np.square(best - best.mean(axis=0)).sum(axis=1))]
    return min(int(column) * 8, wide - width), min(int(row) * 8, high - height), width, height


class Album:
    """Encodes pictures for the page until its bytes or seconds are used up.

    source, dest: stores (tasks/stores), or None; decode: bitstream bytes → PIL image (default codec.decode);
    budget: bytes of all data URIs together; seconds: wall time for reading and decoding.
    """

    def __init__(self, source, dest, *, decode=None, budget: int = 5_600_000, seconds: float = 90.0):
        self.source, self.dest, self.budget = source, dest, budget
        self.decode = decode
        self.until = time.monotonic() + seconds
        self.models = tempfile.mkdtemp(prefix="nightpress-models-")
        weakref.finalize(self, shutil.rmtree, self.models, ignore_errors=True)  # gone with the album

    def _checked(self, row: dict) -> None:
        if time.monotonic() > self.until:
            raise NotShown("left out: the page's time for pictures was used up")
        if (row.get("width") or 0) * (row.get("height") or 0) > PIXEL_LIMIT:
            raise NotShown(f"left out: {row['width']} × {row['height']} pixels are too many to draw here")

    def original(self, row: dict) -> Image.Image:
        """The source picture, upright, RGB. Raises NotShown."""
        from codec.pictures.files import open_picture

        self._checked(row)
        if self.source is None:
            raise NotShown("the original was not at hand")
        try:
            return flat(open_picture(self.source.read(row["key"], max_bytes=READ_LIMIT), checked=False).image)
        except Exception as error:  # whatever is wrong with one object, the page goes on without it
            raise NotShown(f"the original could not be read: {type(error).__name__}: {error}") from error

    def _bitstream(self, row: dict) -> bytes:
        if row.get("output_length"):
            return self.dest.read_range(row["output_key"], row.get("output_offset") or 0, row["output_length"])
        return self.dest.read(row["output_key"], max_bytes=READ_LIMIT)

    def _decode(self, row: dict, data: bytes) -> Image.Image:
        """As its form says; a model that is not in the package is fetched from DEST/models."""
        from codec import UnknownModel
        from tasks.forms.stored import picture_of

        try:
            return picture_of(data, models=[self.models]).image
        except UnknownModel:
            fetch_model(self.dest, row["model"], Path(self.models))
            return picture_of(data, models=[self.models]).image

    def restored(self, row: dict) -> Image.Image:
        """The picture decoded from its bitstream under DEST, RGB. Raises NotShown."""
        self._checked(row)
        if self.dest is None or not row.get("output_key"):
            raise NotShown("the bitstream was not at hand")
        try:
            data = self._bitstream(row)
            return flat(self.decode(data) if self.decode else self._decode(row, data))
        except Exception as error:
            raise NotShown(f"the bitstream could not be decoded: {type(error).__name__}: {error}") from error

    def _uri(self, image: Image.Image, at_most: int, ways: tuple[dict, ...]) -> str:
        """The picture in the first of the ways (options of PIL's save) that fits into at_most characters."""
        for way in ways:
            out = io.BytesIO()
            image.save(out, **way)
            uri = f"data:image/{way['format'].lower()};base64," + base64.b64encode(out.getvalue()).decode()
            if len(uri) <= at_most:
                self.budget -= len(uri)
                return uri
        raise NotShown("left out: the page's space for pictures was used up")

    def compare(self, row: dict, left: int) -> Comparison:
        """Before and after at the place that differs most; `left`: how many comparisons, this one included, still
        share the budget. Raises NotShown."""
        before, after = self.original(row), self.restored(row)
        if before.size != after.size:
            raise NotShown(f"the original is {before.size} and the bitstream {after.size} pixels: not comparable")
        x, y, wide, high = worst_place(np.asarray(before), np.asarray(after), CROP)
        place = (x, y, x + wide, y + high)
        allowance = self.budget // max(left, 1)
        overview = None
        if (wide, high) != before.size:
            small = before.copy()
            small.thumbnail((MAP, MAP))
            overview = self._uri(small, allowance // 10, SMALL)
            allowance -= len(overview)
        first = self._uri(before.crop(place), allowance // 2, FAITHFUL)
        second = self._uri(after.crop(place), allowance - len(first), FAITHFUL)
        full_wide, full_high = before.size
        box = (x / full_wide, y / full_high, wide / full_wide, high / full_high)
        return Comparison(first, second, overview, box, (wide, high))

    def thumbnail(self, row: dict, at_most: int = 24_000) -> str:
        """The original, small; the decoded bitstream where the original is gone. Raises NotShown."""
        try:
            image = self.original(row)
        except NotShown as reason:
            if row.get("status") != "compressed" or "left out" in str(reason):
                raise
            image = self.restored(row)
        image.thumbnail(THUMB)
        return self._uri(image, min(at_most, self.budget), SMALL)


def rows_of(table: pa.Table, indices: list[int]) -> list[dict]:
    """Rows as dicts, in the order of the indices."""
    return table.take(pa.array(indices, pa.int64())).to_pylist() if indices else []
