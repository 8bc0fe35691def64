"""What a colour profile says, as far as it decides how numbers are seen. Profiles' bytes are carried by metadata.py."""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms


@lru_cache(256)
def is_srgb(icc: bytes) -> bool:
    """Whether an RGB profile shows colours as a picture without a profile is shown: sRGB, within 2 of 255.

    Tried on a grid of 125 colours; profiles of one colour space differ in their bytes from maker to maker.
    """
    levels = np.array([0, 64, 128, 192, 255], np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, 125, 3)
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        if profile.profile.xcolor_space.strip() != "RGB":
            return False
        shown = ImageCms.profileToProfile(Image.fromarray(grid), profile, ImageCms.createProfile("sRGB"))
    except (ImageCms.PyCMSError, OSError, ValueError):
        return False
    return int(np.abs(np.asarray(shown).astype(int) - grid).max()) <= 2
