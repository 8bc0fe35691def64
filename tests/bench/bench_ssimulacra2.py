"""SSIMULACRA2 and the guard against local loss: milliseconds a megapixel and thread, agreement with the package.

    tests/bench/bench_ssimulacra2.py [--pairs 100] [--sizes 0.1,0.4,2,12]

Speed: processor time of the calling thread, best of `--repeats`: `kept` is a pass against a Reference that holds the
original's planes, `anew` one that does not, `original` making it, `local loss` a pass of local_loss.py. Agreement:
pairs of many shapes cut from skimage's photographs, coded as JPEG, WebP and AVIF or disturbed, against PyPI's
`ssimulacra2` (0.3.0 was meant; it is not among this project's requirements, and without it only speed is measured).
"""

import argparse
import importlib.util
import io
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from skimage import data

from codec.metrics.local_loss import LocalLoss
from codec.metrics.ssimulacra2 import KEPT_PIXELS, Reference, ssimulacra2

PHOTOGRAPHS = "astronaut", "coffee", "chelsea", "rocket", "immunohistochemistry", "camera"
SHAPES = [
    (512, 384), (384, 256), (256, 400), (317, 211), (129, 255), (64, 64), (65, 63), (8, 8), (9, 8), (8, 120), (121, 10),
    (15, 17), (16, 31), (32, 40), (100, 75), (127, 255), (333, 250),
]  # fmt: skip
CHANGES = "JPEG", "WEBP", "AVIF", "noise", "blur"
QUALITIES = 95, 85, 75, 60, 40, 20, 5


def changed(picture: Image.Image, change: str, quality: int) -> Image.Image:
    if change == "blur":
        return picture.filter(ImageFilter.GaussianBlur((100 - quality) / 30))
    if change == "noise":
        noise = np.random.default_rng(quality).normal(0, (100 - quality) / 5, np.shape(picture))
        return Image.fromarray(np.clip(np.rint(np.asarray(picture) + noise), 0, 255).astype(np.uint8))
    out = io.BytesIO()
    picture.save(out, change, quality=quality)
    return Image.open(io.BytesIO(out.getvalue())).convert(picture.mode)


def pairs(count: int):
    rng = np.random.default_rng(0)
    for n in range(count):
        picture = Image.fromarray(getattr(data, PHOTOGRAPHS[n % len(PHOTOGRAPHS)])())
        width, height = SHAPES[n % len(SHAPES)]
        width, height = min(width, picture.width), min(height, picture.height)
        left, top = rng.integers(0, picture.width - width + 1), rng.integers(0, picture.height - height + 1)
        part = picture.crop((left, top, left + width, top + height))
        yield part, changed(part, CHANGES[n % len(CHANGES)], QUALITIES[n % len(QUALITIES)])


def deviations(count: int) -> list[float]:
    from ssimulacra2 import compute_ssimulacra2

    found = []
    with tempfile.TemporaryDirectory() as folder:
        names = [str(Path(folder) / name) for name in ("original.png", "decoded.png")]
        for pair in pairs(count):
            for picture, name in zip(pair, names, strict=True):
                picture.save(name)
            found.append(abs(ssimulacra2(*pair) - compute_ssimulacra2(*names)))
    return found


def best(call, repeats: int) -> float:
    """Milliseconds of this thread."""
    times = []
    for _ in range(repeats):
        begun = time.thread_time()
        call()
        times.append(time.thread_time() - begun)
    return min(times) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--sizes", default="0.1,0.4,2,12", help="megapixels")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(f"{'MP':>6} {'kept':>7} {'anew':>7} {'original':>9} {'local loss':>11}   ms a megapixel")
    slowest = 0.0
    for size in map(float, args.sizes.split(",")):
        height = round((size * 1e6 * 2 / 3) ** 0.5)
        picture = Image.fromarray(data.astronaut()).resize((round(height * 1.5), height), Image.Resampling.BICUBIC)
        decoded, megapixels = changed(picture, "JPEG", 75), picture.width * height / 1e6
        anew = Reference(picture, kept_pixels=0)
        kept = Reference(picture, kept_pixels=KEPT_PIXELS * 100)
        local = LocalLoss(picture)
        calls = (
            lambda kept=kept, decoded=decoded: kept.score(decoded),
            lambda anew=anew, decoded=decoded: anew.score(decoded),
            lambda picture=picture: Reference(picture, kept_pixels=KEPT_PIXELS * 100),
            lambda local=local, decoded=decoded: local.measure(decoded),
        )
        times = [best(call, args.repeats + 1) / megapixels for call in calls]
        slowest = max(slowest, *times[:2])
        print(f"{megapixels:6.2f} {times[0]:7.1f} {times[1]:7.1f} {times[2]:9.1f} {times[3]:11.1f}")
    last = f"at most {slowest:.0f} ms a megapixel and thread"
    if importlib.util.find_spec("ssimulacra2"):
        found = deviations(args.pairs)
        last += f"; at most {max(found):.4f} from the package on {len(found)} pairs"
    print(last)


if __name__ == "__main__":
    main()
