"""Compiles what encoding, decoding and measuring compile, for the processes after it: python -m codec.precompile

On one core that takes half a minute; without it every process of the first night that begins at the same time does it
anew. Kept beside the sources, for this processor and these versions.
"""

import numpy as np
from PIL import Image

from codec import decode, encode
from codec.metrics.original import Original


def main() -> None:
    rng = np.random.default_rng(0)
    few = rng.integers(0, 256, (14, 20, 3)).astype(np.uint8)
    picture = Image.fromarray(few).resize((640, 440), Image.Resampling.BICUBIC)
    picture.paste(Image.fromarray(rng.integers(0, 256, (120, 200, 3)).astype(np.uint8)))  # every table has its symbols
    for image in (picture, picture.convert("L")):
        original = Original(image)
        for quality in (5, 90):
            decoded = decode(encode(image, quality))
            original.psnr(decoded), original.ms_ssim(decoded), original.ssimulacra2(decoded), original.losses(decoded)


if __name__ == "__main__":
    main()
