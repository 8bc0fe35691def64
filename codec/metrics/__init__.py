"""How close two pictures are. PSNR, SSIM, MS-SSIM and BD-rate are imported from here (fidelity.py), at first use: what
only needs a constant of a metric brings in no kernel.

ssimulacra2.py has SSIMULACRA2, local_loss.py what a mean over the picture hides, smoothing.py the windows both share,
original.py all measures of several pictures against one.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codec.metrics.fidelity import (
        MS_SSIM_MIN_SIDE,
        bd_rate,
        bpp,
        frontier,
        ms_ssim,
        ms_ssim_db,
        pixels_of,
        psnr,
        psnr_of_mse,
        similarity,
        ssim,
    )

__all__ = [
    "MS_SSIM_MIN_SIDE",
    "bd_rate",
    "bpp",
    "frontier",
    "ms_ssim",
    "ms_ssim_db",
    "pixels_of",
    "psnr",
    "psnr_of_mse",
    "similarity",
    "ssim",
]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module 'codec.metrics' has no attribute {name!r}")
    value = getattr(import_module("codec.metrics.fidelity"), name)
    globals()[name] = value
    return value
