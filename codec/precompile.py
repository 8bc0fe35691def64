"""Compiles what encoding, decoding and measuring compile, for the processes after it: python -m codec.precompile

Without it every process of the first night that begins at the same time does it anew. Kept beside the sources, for this
processor and these versions. The codec's loops and the measures are compiled side by side.
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
from PIL import Image, ImageFilter


def pictures() -> list[Image.Image]:
    """One in colour and one in grey, of which every table of the codec has its symbols."""
    rng = np.random.default_rng(0)
    few = rng.integers(0, 256, (14, 20, 3)).astype(np.uint8)
    picture = Image.fromarray(few).resize((640, 440), Image.Resampling.BICUBIC)
    picture.paste(Image.fromarray(rng.integers(0, 256, (120, 200, 3)).astype(np.uint8)))
    return [picture, picture.convert("L")]


def code() -> None:
    from codec import decode, encode

    for image in pictures():
        for quality in (5, 90):
            decode(encode(image, quality))


def measure() -> None:
    from codec.metrics.original import Original

    for image in pictures():
        original, worse = Original(image), image.filter(ImageFilter.BoxBlur(1))
        original.psnr(worse), original.ms_ssim(worse), original.ssimulacra2(worse), original.losses(worse)


def main() -> None:
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for part in [pool.submit(code), pool.submit(measure)]:
            part.result()


if __name__ == "__main__":
    main()
