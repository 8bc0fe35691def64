"""Impulse noise: whether a picture has it, which pixels it hit, and what belongs there instead.

Dust on a sensor, hot pixels and transmission errors replace single pixels by values that have nothing to do with their
surroundings: white, black, or any. `find_impulses` first asks the picture as a whole: single pixels that disagree with
eight agreeing neighbours must be there in number, lie anywhere in the picture alike, on bright and dark grounds, and be
either extreme or both brighter and darker than their surroundings. Stars, snow, glitter, stippling, dithering and text
fail one of these. Only then it judges pixel by pixel, and `fill` replaces what was found; every other sample keeps its
bits. Additive noise (a little on every pixel) is noise.py's.

Sources: the rank-ordered absolute differences that tell impulses from edges are Garnett, Huegerich, Chui, He (A universal
noise removal algorithm with an impulse detector, 2005); values at the ends of the range as candidates and windows that
grow until enough sound neighbours are inside, Hwang and Haddad's adaptive median (1995); neighbours in four directions,
Dong and Xu (A new directional weighted median filter, 2007).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

AGREE = 32  # largest minus smallest of eight neighbours that still count as one ground
DISAGREE = 48  # at least so far outside of its neighbours' range lies a single pixel
DARK = 64  # mean of a ground below which single bright pixels may be stars
LOOKED_AT = 2 << 20  # pixels of a large picture that are looked at, in bands spread over its height
BAND = 64  # rows
FEWEST = 16  # single pixels that make a case
LEAST_SHARE = 1e-4  # of the grounds looked at
FEWEST_LEVELS = 64  # a picture of fewer is drawn
EXTREME = 24  # a candidate at the end of the range is an impulse where it is so far from its sound neighbours' median
ODD = 30  # any other sample: so far from both neighbours in each of four directions
DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))
NEIGHBOURS = tuple((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0))


@dataclass(frozen=True)
class Evidence:
    """What the single pixels of a picture say. `found`: they are impulses; `why` says it in words.

    values: the (R, G, B) or grey values that impulses take, uint8 [n, C], or None where they take any;
    joint: whether an impulse hits all channels of a pixel; share: of the pixels (joint) or samples, estimated.
    """

    found: bool
    why: str
    values: np.ndarray | None = None
    joint: bool = True
    share: float = 0.0


def find_impulses(samples: np.ndarray) -> tuple[np.ndarray, str]:
    """uint8 [H, W, C] of 1 or 3 colour channels -> (bool [H, W, C]: which samples are impulses, why or why not)."""
    evidence = judge(samples)
    mask = np.zeros(samples.shape, bool)
    if not evidence.found:
        return mask, evidence.why
    if evidence.values is not None:
        mask = _extreme_impulses(samples, evidence)
    else:
        mask = _odd_impulses(samples, evidence)
    return mask, evidence.why


# --- the picture as a whole ---


def judge(samples: np.ndarray) -> Evidence:
    """Are there impulses in uint8 [H, W, C]?"""
    if min(samples.shape[:2]) < BAND:
        return Evidence(False, f"{samples.shape[1]}x{samples.shape[0]}: too small to tell impulses from content")
    look = [_Grounds(band) for band in _bands(samples)]
    lone = np.concatenate([ground.lone for ground in look])  # bool [rows, W]
    if lone.sum() < FEWEST:
        return Evidence(False, "no impulses")
    ...


def _bands(samples: np.ndarray) -> list[np.ndarray]:
    """The picture, or bands of rows spread over it that have LOOKED_AT pixels together."""
    height, width = samples.shape[:2]
    count = max(1, LOOKED_AT // (width * BAND))
    if height <= count * BAND:
        return [samples]
    return [samples[top : top + BAND] for top in np.linspace(0, height - BAND, count).astype(int)]
