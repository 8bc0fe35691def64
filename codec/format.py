"""The numbers that .npi files, models and both sides of the entropy coder agree on; FORMAT.md says what they mean.

Numpy alone: whatever plans or reads headers does so without torch. How files are written and read: bitstream/.
"""

import numpy as np

VERSION = 1
MODES = ("L", "LA", "RGB", "RGBA")
SEGMENTS = (16, 32, 64)  # permitted segment sides, in latent cells; no less than the decoder's halo of twelve
METADATA_LIMIT = 16 << 20  # bytes of metadata that a file may carry
LEVELS = 1000  # highest level; quality = level / 10
KNOTS = 16  # gains are stored at this many levels and interpolated between
LAMBDA_RANGE = (0.0007, 0.26)  # weight of 255^2 MSE against bits per pixel, at level 0 and at level 1000
STEP = 5.1  # quantisation step times sqrt(lambda) that high-rate theory gives for an orthonormal transform

PRECISION = 14  # frequencies of a table sum to 2**PRECISION
Z_MAX = 31  # |z| is at most this
Z_GROUPS = 11  # z's tables: one set per hundred levels
BINS = 64  # scale bins; bin 0 is "not coded"
SCALE_RANGE = (0.08, 128.0)  # standard deviation of bin 0 and of bin 63, in quantisation steps
MEAN_LIMIT = 8.0  # |mean| that the bfloat16 networks may predict, in quantisation steps; larger ones would be rough

# The trellis of quantisation: eight states, a symbol's parity moves a cell's state on. See entropy/trellis.py.
NEXT = np.array([[0, 2], [5, 7], [1, 3], [6, 4], [2, 0], [4, 6], [3, 1], [7, 5]], np.uint8)  # by state and parity
FIRST_BIN = 14  # symbols of lower bins have no part in it
ODD_STATES = 64  # what is added to a table's number in an odd state

# Passes over a segment's cells: the first group's two, by the parity of row + column, and one for each other group.
EVEN, ODD, EVERYWHERE = 0, 1, -1


def edges(cells: int, segment: int) -> list[int]:
    """Where segments begin and end along a side of `cells`: multiples of `segment`; the last takes the rest.

    A rest below half a segment joins the one before.
    """
    count = max(1, (cells + segment // 2) // segment)
    return [segment * i for i in range(count)] + [cells]


def level_of(quality: float) -> int:
    """Quality 0..100 -> level 0..1000. Raises ValueError outside."""
    if not 0 <= quality <= 100:
        raise ValueError(f"quality {quality} is outside 0..100")
    return round(quality * LEVELS / 100)


def z_group(level: int) -> int:
    """Which of the Z_GROUPS sets of z's tables codes at a level."""
    return min(level // 100, Z_GROUPS - 1)


def bin_scales() -> np.ndarray:
    """Standard deviation of each scale bin, in quantisation steps: BINS values, geometric."""
    return np.geomspace(*SCALE_RANGE, BINS)


def lambda_of(level):
    """Rate-distortion weight at a level (number, array or tensor): loss = bpp + lambda * 255^2 MSE. Geometric between
    LAMBDA_RANGE's ends."""
    low, high = LAMBDA_RANGE
    return low * (high / low) ** (level / LEVELS)
