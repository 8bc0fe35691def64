"""Compiles what encoding and decoding compile, so that later processes find it done: python -m codec.precompile

On one core that takes half a minute; without it every process of the first night that begins at the same time does it
anew. Kept beside the sources, for this processor and these versions.
"""

import numpy as np
from PIL import Image

from codec import decode, encode


def main() -> None:
    rng = np.random.default_rng(0)
    few = rng.integers(0, 256, (14, 20, 3)).astype(np.uint8)
    picture = Image.fromarray(few).resize((640, 440), Image.Resampling.BICUBIC)
    picture.paste(Image.fromarray(rng.integers(0, 256, (120, 200, 3)).astype(np.uint8)))  # every table has its symbols
    for image in (picture, picture.convert("L")):
        for quality in (5, 90):
            decode(encode(image, quality))


if __name__ == "__main__":
    main()
