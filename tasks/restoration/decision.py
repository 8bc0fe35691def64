"""Whether `auto` cleans a picture: impulses first, then noise on what they leave; in doubt nothing is touched.

impulses.py and noise.py look; here their findings become one decision. What is done about it is apply.py's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from tasks.restoration import impulses, noise

# Measured on Kodak and 577 training tiles; `nightpress evaluate-restoration --tables decision` prints the table.
NOISY_SIGMA = 6.0
JPEG_HIDES_BELOW = 75  # coarser quantisation than this removes the noise that could be measured
SMALLEST_JUDGED = 64  # pixels a side: fewer blocks than this gives say nothing


@dataclass(frozen=True)
class Decision:
    """What to do about a picture's noise, and `why`, in words.

    noisy: clean it; sigma: the estimate (0..255 scale) of the noise that lies on every pixel; strength: the sigma to
    filter for, 0 where only impulses go; impulses: how many pixels they hit.
    """

    noisy: bool
    sigma: float
    why: str
    strength: float = 0.0
    impulses: int = 0


def decide(image: Image.Image, jpeg_quality: int | None = None) -> Decision:
    """Is the picture clearly noisy? `jpeg_quality` (1..100): what it was stored with, where it was a JPEG.

    Raises UnsupportedPicture for modes that cannot be judged."""
    return examine(image, jpeg_quality)[0]


def examine(image: Image.Image, jpeg_quality: int | None = None) -> tuple[Decision, np.ndarray | None]:
    """`decide`, and the impulses it found: bool [H, W, colour channels], or None."""
    if image.mode in ("1", "P", "PA"):
        return Decision(False, 0.0, f"mode {image.mode}: few colours, drawn rather than photographed"), None
    samples = noise.colour_samples(image)
    if min(image.size) < SMALLEST_JUDGED:
        why = f"{image.width}x{image.height}: too small to tell noise from texture"
        return Decision(False, 0.0, why), None
    colours, alpha = (samples[:, :, :-1], samples[:, :, -1]) if image.mode in ("LA", "RGBA") else (samples, None)
    sigma = noise.noise_sigma(image)
    if jpeg_quality is not None and jpeg_quality < JPEG_HIDES_BELOW:
        why = f"JPEG quality {jpeg_quality} has already removed what noise there was"
        return Decision(False, sigma, why), None
    if alpha is not None and alpha.min() < 255:
        return Decision(False, sigma, "partly transparent: drawn or cut out rather than photographed"), None
    mask, told = impulses.find_impulses(colours)
    if mask is not None:
        colours = impulses.fill(colours, mask)
        sigma = noise.sigma_of(colours)
    strength, why = _strength(colours, sigma)
    if mask is None:
        why = why if strength or told == impulses.NONE else f"{why}; {told}"
        return Decision(strength > 0, sigma, why, strength), None
    hit = int(mask.any(axis=2).sum())
    return Decision(True, sigma, f"{told}; {why}", strength, hit), mask


def _strength(colours: np.ndarray, sigma: float) -> tuple[float, str]:
    """(the sigma to filter uint8 [H, W, 1 or 3] for, 0.0 for none; why)."""
    if sigma < NOISY_SIGMA:
        return 0.0, f"noise of sigma {sigma:.1f} is below {NOISY_SIGMA:g}"
    against, strength = noise.content(colours, sigma)
    if against:
        return 0.0, f"what measures as noise of sigma {sigma:.1f} is left: {against}"
    return strength, f"noise of sigma {sigma:.1f} is at least {NOISY_SIGMA:g}"
