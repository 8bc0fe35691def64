"""An original, and how near decoded pictures come to it: all measures, what they need of the original computed once.

Whoever compares one picture only calls the functions of the measures' own modules; rate control and a night, which
compare several with one original, hold an Original.
"""

from functools import cached_property

import numpy as np

from codec import metrics
from codec.metrics.local_loss import LocalLoss, Losses
from codec.metrics.ssimulacra2 import MIN_SIDE, Reference


class Original:
    """picture: PIL image (L, LA, RGB, RGBA) or uint8 [H,W] or [H,W,C]; alpha is left out. Each method takes a decoded
    picture of the same size and raises ValueError for another."""

    def __init__(self, picture):
        self.pixels = metrics.pixels_of(picture)

    @cached_property
    def _reference(self) -> Reference:
        return Reference(self.pixels)

    @cached_property
    def _structure(self) -> LocalLoss:
        return LocalLoss(self.pixels)

    @property
    def shortest_side(self) -> int:
        return min(self.pixels.shape[:2])

    def psnr(self, decoded) -> float:
        """dB; inf for equal pictures."""
        return metrics.psnr(self.pixels, decoded)

    def ms_ssim(self, decoded) -> float | None:
        """0..1; None under 160 pixels a side."""
        return metrics.ms_ssim(self.pixels, decoded)

    def ssimulacra2(self, decoded) -> float | None:
        """At most 100; None under 8 pixels a side."""
        return self._reference.score(decoded) if self.shortest_side >= MIN_SIDE else None

    def losses(self, decoded) -> Losses:
        """What it lost where it lost most."""
        return self._structure.measure(np.asarray(decoded))
