"""How close two pictures are. PSNR, SSIM, MS-SSIM and BD-rate are imported from here (fidelity.py).

ssimulacra2.py has SSIMULACRA2, local_loss.py what a mean over the picture hides, smoothing.py the windows both share.
"""

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
