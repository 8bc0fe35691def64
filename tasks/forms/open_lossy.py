"""Open lossy formats to the night's target: AVIF (libavif) and JPEG XL (libjxl), for who serves what is stored.

    AVIF or JPEG XL file, with EXIF, XMP and (AVIF) ICC profile where viewers look for them
    box "npsc"  all metadata (codec/pictures/metadata.py), of which the PNG that comes back is made

The level of a target is found as for the learned codec (codec/rate_control), on a scale of 0..1000 that stands for
AVIF's quality 0..100 or for JPEG XL's distance 15..0.05, a geometric progression. Alpha has to come back exactly.
"""

import io
from collections.abc import Callable

import imagecodecs
import numpy as np
from PIL import Image

from codec import metrics
from codec.metrics.original import Original
from codec.pictures.files import Picture
from codec.pictures.metadata import Metadata, png_chunks
from codec.pictures.profiles import is_srgb
from codec.pictures.trailing import boxes
from codec.rate_control import target as rate
from tasks.forms.base import DamagedData, Declined, Goal
from tasks.forms.png_files import COLOUR_TYPES, Header, Png, chunk, write_png

_METADATA = b"npsc"
_AVIF_SPEED, _JXL_EFFORT = 6, 7
_DISTANCES = 15.0, 0.05
# What levels 0, 100, ..., 1000 typically give; measured on kodim03, kodim13 and skimage's astronaut for SSIMULACRA2
_CURVES = {
    ("avif", "ssimulacra2"): (
        (-51, -32, -5, 18, 41, 59, 72, 80, 85.5, 90.7, 96), (-5, 10, 26, 40, 54.5, 67.6, 75.7, 80.5, 84.4, 88.4, 94),
        (3, 23, 39, 51, 63, 72, 78, 83, 87, 90, 95),
    ),
    ("jxl", "ssimulacra2"): (
        (-20, 14, 43, 63, 77, 85, 90, 93, 95, 96, 97), (6, 36, 56, 71, 82, 89, 92, 94.6, 96.1, 96.8, 97.4),
        (26, 49, 64, 75, 81.5, 87.5, 91, 94, 96, 97, 97.5),
    ),
    ("avif", "psnr"): ((19, 21, 23, 25, 27.5, 30, 33, 36, 39, 43, 50), (26, 28, 30, 32, 34, 36, 38, 40, 42, 45, 52)),
    ("jxl", "psnr"): ((22, 24, 26, 29, 33, 36, 38.5, 41, 43, 46, 48), (28, 31, 33, 35, 38, 40, 42, 44, 46, 48, 51)),
    ("avif", "ms-ssim"): ((6, 7, 9, 11, 13, 15, 17, 19, 21, 23, 30), (8, 10, 12, 13, 15, 17, 19, 21, 23, 25, 32)),
    ("jxl", "ms-ssim"): ((6, 9, 12, 15, 18, 20, 22, 24, 26, 28, 31), (9, 12, 14, 17, 20, 22, 24, 26, 28, 30, 33)),
}  # fmt: skip


class OpenLossy:
    """AVIF or JPEG XL, by its name."""

    gives_back = "seen"

    def __init__(self, name: str):
        if name not in ("avif", "jxl"):
            raise ValueError(f"{name!r} is neither avif nor jxl")
        self.name, self.suffix = name, "." + name

    def encode(self, file_bytes: bytes, picture: Picture | None, goal: Goal | None = None) -> bytes:
        if picture is None or goal is None:
            raise Declined("it cannot be shown as one picture of 8 bits a sample")
        boxes_behind = self._boxes(picture)
        original = Original(picture.image)
        metric, value = _effective(original, goal)
        measure, coded = self._measured(original, picture, metric)
        curves, margin, excess = _CURVES[self.name, metric], rate.MARGIN[metric], rate.EXCESS[metric]
        low = metrics.ms_ssim_db(value) if metric == "ms-ssim" else value
        even = np.full(len(curves), 1 / len(curves))
        found = rate.search_level(measure, curves, even, low + margin, low + excess, low + excess / 2, -1, margin)
        if not found.met:
            raise Declined(f"the target {goal.metric}={goal.value:g} can't be reached by {self.name.upper()}")
        data = self._acceptable(original, coded, found.level, picture.image.mode) + boxes_behind
        self.verify(data, file_bytes, picture)
        return data

    def _acceptable(self, original: Original, coded: Callable[[int], bytes], level: int, mode: str) -> bytes:
        """The file at that level, or at the first finer one at which no part has lost its own structure."""
        for finer in (0, *rate.FINER):
            data = coded(min(level + finer, 1000))
            losses = original.losses(self._pixels(data, mode))
            if losses.acceptable:
                return data
        raise Declined(f"the target is met on average, but not everywhere: {losses.in_words()}")

    def verify(self, data: bytes, file_bytes: bytes, picture: Picture | None) -> None:
        """Declined unless mode, size and alpha come back; how near the colours are is measured by who chooses."""
        if picture is None:
            raise Declined("there is no picture to compare with")
        try:
            image, _ = self._opened(data)
        except DamagedData as error:
            raise Declined(f"{self.name} could not be decoded again ({error})") from error
        if (image.mode, image.size) != (picture.image.mode, picture.image.size):
            raise Declined(f"{self.name} gives back {image.mode} where {picture.image.mode} was stored")
        if image.mode in ("LA", "RGBA") and image.getchannel("A").tobytes() != picture.image.getchannel("A").tobytes():
            raise Declined(f"its transparency does not come back exactly from {self.name.upper()}")

    def decode(self, data: bytes) -> bytes:
        image, metadata = self._opened(data)
        header = Header(image.width, image.height, 8, COLOUR_TYPES[image.mode])
        before = b"".join(chunk(kind, content) for kind, content in png_chunks(metadata))
        return write_png(Png(header, before, np.asarray(image).reshape(header.shape), chunk(b"IEND", b"")))

    def _opened(self, data: bytes) -> tuple[Image.Image, Metadata]:
        """Raises DamagedData."""
        try:
            metadata = Metadata()
            for kind, start, end in boxes(data):
                if kind == _METADATA:
                    mode = ("L", "LA", "RGB", "RGBA")[data[start] & 3]
                    metadata = Metadata.from_bytes(data[start + 1 : end])
            return self._pixels(data, mode), metadata
        except Exception as error:  # Pillow's plugins raise nearly every built-in class on damaged input
            raise DamagedData(f"the {self.name.upper()} file cannot be decoded: {error}") from error

    def _pixels(self, data: bytes, mode: str) -> Image.Image:
        if self.name == "jxl":
            image = Image.fromarray(imagecodecs.jpegxl_decode(data, numthreads=1, keeporientation=True))
        else:
            image = Image.open(io.BytesIO(data), formats=["AVIF"])
            image.load()
        image = image if image.mode == mode else image.convert(mode)
        image.info = {}
        return image

    def _measured(self, original: Original, picture: Picture, metric: str):
        """(level -> value, MS-SSIM in dB; level -> file): both remember, since neighbouring levels share a quality."""
        files: dict[int, bytes] = {}
        values: dict[bytes, float] = {}
        mode = picture.image.mode

        def coded(level: int) -> bytes:
            step = round(level / 10) if self.name == "avif" else level
            if step not in files:
                files[step] = self._file(picture, level)
            return files[step]

        def measure(level: int) -> float:
            data = coded(level)
            if data not in values:
                values[data] = rate.measured(original, metric, self._pixels(data, mode))
            return values[data]

        return measure, coded

    def _file(self, picture: Picture, level: int) -> bytes:
        """The standard's file alone."""
        if self.name == "jxl":
            first, last = _DISTANCES
            distance = first * (last / first) ** (level / 1000)
            pixels = np.asarray(picture.image)
            coded = imagecodecs.jpegxl_encode(
                pixels, distance=distance, lossless=False, effort=_JXL_EFFORT, numthreads=1, usecontainer=True
            )
            return bytes(coded)
        options: dict = {"icc_profile": picture.icc} if picture.icc else {}
        if picture.exif:
            options["exif"] = picture.exif
        if picture.xmp:
            options["xmp"] = picture.xmp
        out = io.BytesIO()
        picture.image.save(
            out, "AVIF", quality=round(level / 10), speed=_AVIF_SPEED, subsampling="4:4:4", max_threads=1, **options
        )
        return out.getvalue()

    def _boxes(self, picture: Picture) -> bytes:
        """Boxes behind the file. Raises Declined where something would be lost."""
        if self.name == "jxl" and picture.icc and not is_srgb(picture.icc):
            raise Declined("its colour profile cannot be written into JPEG XL here")
        mode = ("L", "LA", "RGB", "RGBA").index(picture.image.mode)
        tail = _box(_METADATA, bytes([mode]) + picture.metadata.to_bytes())
        if self.name == "jxl":
            tail = (_box(b"Exif", bytes(4) + picture.exif) if picture.exif else b"") + tail
            tail = (_box(b"xml ", picture.xmp) if picture.xmp else b"") + tail
        return tail


def _effective(original: Original, goal: Goal) -> tuple[str, float]:
    """Metric and value that hold for a picture: those too small for their metric take PSNR."""
    if original.shortest_side < rate.SMALLEST.get(goal.metric, 0):
        return "psnr", rate.SMALL_PICTURE_PSNR
    return goal.metric, goal.value


def _box(kind: bytes, content: bytes) -> bytes:
    return (8 + len(content)).to_bytes(4) + kind + content
