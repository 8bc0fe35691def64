"""One picture through one codec at one setting, from a real file: a row of bytes, qualities and seconds.

The figures' definitions are in codec/metrics.py and codec/ssimulacra2.py; what the rows together say is curves.py's.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from codec import metrics
from codec.evaluation.codecs import Codec
from codec.metrics.ssimulacra2 import MIN_SIDE, ssimulacra2

SCHEMA = pa.schema(
    [
        ("picture", pa.string()),
        ("codec", pa.string()),
        ("setting", pa.float64()),  # the codec's own quality step
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int64()),  # of the whole file
        ("bpp", pa.float64()),
        ("psnr", pa.float64()),  # dB
        ("ssim", pa.float64()),
        ("ms_ssim", pa.float64()),  # null under 160 pixels
        ("ssimulacra2", pa.float64()),  # null under 8 pixels
        ("encode_seconds", pa.float64()),
        ("decode_seconds", pa.float64()),
        ("model", pa.string()),  # id of our model; null for standard codecs
        ("version", pa.string()),  # of the library
    ]
)


def open_pictures(folder: str | Path) -> tuple[list[tuple[str, Image.Image]], dict[str, str]]:
    """Pictures below a folder as (relative name, L or RGB image), and the reasons why others were left out."""
    from codec import PictureError, open_picture

    pictures, left_out = [], {}
    for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        try:
            image = open_picture(path.read_bytes(), checked=False).image
        except PictureError as error:
            left_out[name] = str(error)
            continue
        if image.mode in ("L", "RGB"):
            pictures.append((name, image))
        else:
            left_out[name] = f"mode {image.mode}: alpha is not compared"
    return pictures, left_out


def measure(codec: Codec, name: str, image: Image.Image, setting: float) -> dict:
    """One row of SCHEMA: the picture through a real file and back. Times are wall clock, one thread if so set."""
    start = time.perf_counter()
    data = codec.encode(image, setting)
    middle = time.perf_counter()
    shown = codec.decode(data)
    end = time.perf_counter()
    if image.mode == "L" and shown.ndim == 3 and shown.shape[2] >= 3:
        shown = np.asarray(Image.fromarray(shown[:, :, :3]).convert("L"))
    single, multiple = metrics.similarity(image, shown)
    return {
        "picture": name,
        "codec": codec.name,
        "setting": float(setting),
        "width": image.width,
        "height": image.height,
        "bytes": len(data),
        "bpp": metrics.bpp(len(data), image.width, image.height),
        "psnr": min(metrics.psnr(image, shown), 100.0),
        "ssim": single,
        "ms_ssim": multiple,
        "ssimulacra2": ssimulacra2(image, shown) if min(image.size) >= MIN_SIDE else None,
        "encode_seconds": middle - start,
        "decode_seconds": end - middle,
        "model": codec.model,
        "version": codec.version,
    }


def thinned(settings: Sequence[float], points: int | None) -> tuple[float, ...]:
    """At most `points` of the settings, the two ends among them."""
    if points is None or points >= len(settings):
        return tuple(settings)
    return tuple(settings[round(i)] for i in np.linspace(0, len(settings) - 1, max(points, 2)))
