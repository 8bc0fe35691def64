"""Is one picture a copy of another, seen locally: the same points in both, in one geometry, over the same content.

For copies that differ in frame (crops, borders, rotations, mirror images) or carry something on top, which hashes and
the equal-size second look of rules.py can't judge. Corners and blobs are described by SIFT (Lowe 2004), matched
both pictures against each other, fitted by RANSAC to one affine map, and the map has to hold for what lies between
the points too: the keeper is laid over the member, and most blocks of the overlap must correlate.

"Copy" here says nothing about how well the member could be given back from the keeper; agreement.py does.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

SIDE = 512  # longer side at which points are looked for
SHORT = 160  # shorter side that very long or small pictures are given at least, within 2 x SIDE
POINTS = 700
RATIO = 0.82  # of the nearest and the second nearest descriptor's distance
REACH = 5.0  # pixels that a point may be off the map
INLIERS = 9
STRETCH = 3.0  # largest ratio of the map's two scales
BLOCK = 24
BLURRED = 1.5  # sigma before blocks are compared: noise and compression don't count
FLAT = 3.0  # deviation below which a block shows nothing to compare
AGREED = 0.6  # median correlation of the blocks
LEAST_BLOCKS = 3


@dataclass(frozen=True)
class Features:
    """Points of a picture: xy float32 [n,2] in pixels of `plane` (uint8 [h,w]), descriptors float32 [n,128]."""

    plane: np.ndarray
    scale: float  # plane pixels for one of the picture's
    xy: np.ndarray
    descriptors: np.ndarray


@dataclass(frozen=True)
class Confirmation:
    """copy: the answer; why: in words. inliers: points that agree on one map. correlation: median over blocks of the
    overlap (nan: not compared). to_keeper: float64 [2,3], member pixel (x, y, 1) -> keeper pixel, None without a map;
    mirrored maps are included. covered: share of the member's area that the keeper shows; box: (left, top, right,
    bottom) of that part in member pixels."""

    copy: bool
    why: str
    inliers: int = 0
    correlation: float = float("nan")
    to_keeper: np.ndarray | None = None
    covered: float = 0.0
    box: tuple[int, int, int, int] | None = None


def features(image: Image.Image | np.ndarray, *, mirrored: bool = False) -> Features:
    """Points of an upright picture of any 8-bit mode (alpha is ignored), or of its mirror image."""
    plane = np.asarray(image.convert("L") if isinstance(image, Image.Image) else image)
    height, width = plane.shape
    scale = min(max(SIDE / max(height, width), SHORT / min(height, width)), 2 * SIDE / max(height, width))
    size = (max(8, round(width * scale)), max(8, round(height * scale)))
    plane = cv2.resize(plane, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    if mirrored:
        plane = np.ascontiguousarray(plane[:, ::-1])
    detector = cv2.SIFT_create(nfeatures=POINTS, contrastThreshold=0.02)
    points, descriptors = detector.detectAndCompute(plane, None)
    if descriptors is None:
        return Features(plane, scale, np.empty((0, 2), np.float32), np.empty((0, 128), np.float32))
    descriptors = np.sqrt(descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-6))  # Arandjelovic 2012
    return Features(plane, scale, np.array([p.pt for p in points], np.float32), descriptors.astype(np.float32))


def is_copy(keeper: Image.Image, member: Image.Image) -> Confirmation:
    """Whether `member` shows what `keeper` shows, or a part of it, whatever its size, frame, turn or colours.

    Mirror images count. Symmetric up to rounding. Never raises for pictures that can be decoded.
    """
    return compare(features(keeper), features(member), features(member, mirrored=True))


def compare(keeper: Features, member: Features, mirror: Features | None = None) -> Confirmation:
    """`is_copy` on features, which a caller with many pairs keeps; mirror: the member's, or None to skip it."""
    first = _one_way(keeper, member)
    if first.copy or mirror is None:
        return first
    second = _one_way(keeper, mirror)
    if not second.copy:
        return max(first, second, key=lambda c: c.inliers)
    width = round(member.plane.shape[1] / member.scale)
    turn = np.array([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    left, top, right, bottom = second.box
    return Confirmation(
        True, "a mirror image; " + second.why, second.inliers, second.correlation, second.to_keeper @ turn,
        second.covered, (width - right, top, width - left, bottom),
    )  # fmt: skip


def _one_way(keeper: Features, member: Features) -> Confirmation:
    if min(len(keeper.xy), len(member.xy)) < INLIERS:
        return Confirmation(False, "too few points to compare (a flat or blurred picture)")
    source, target = _matches(keeper, member)
    if len(source) < INLIERS:
        return Confirmation(False, f"{len(source)} points look alike, {INLIERS} are needed", len(source))
    cv2.setRNGSeed(1)
    to_keeper, mask = cv2.estimateAffine2D(
        source, target, method=cv2.RANSAC, ransacReprojThreshold=REACH, maxIters=3000, confidence=0.999
    )
    inliers = 0 if mask is None else _distinct(source[mask.ravel() > 0])
    if to_keeper is None or inliers < INLIERS:
        return Confirmation(False, f"{inliers} points agree on one geometry, {INLIERS} are needed", inliers)
    scales = np.linalg.svd(to_keeper[:, :2], compute_uv=False)
    if scales[1] < 0.03 or scales[0] > 33 or scales[0] > STRETCH * scales[1] or np.linalg.det(to_keeper[:, :2]) < 0:
        return Confirmation(False, "the points agree on a geometry that no copy has", inliers)
    correlation, blocks, inside = _overlap(keeper, member, to_keeper)
    full = np.diag([1 / keeper.scale] * 2) @ to_keeper @ np.diag([member.scale, member.scale, 1.0])
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    box = None
    if rows.size:
        edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        box = tuple(round(float(edge) / member.scale) for edge in edges)
    found = (inliers, correlation, full, float(inside.mean()), box)
    if blocks < LEAST_BLOCKS:
        return Confirmation(False, "too little to compare where they overlap", *found)
    if correlation < AGREED:
        return Confirmation(False, f"points agree, but what lies between does not ({correlation:.2f})", *found)
    return Confirmation(True, f"{inliers} points agree, {inside.mean():.0%} of it is in the other one", *found)


def _matches(keeper: Features, member: Features) -> tuple[np.ndarray, np.ndarray]:
    """Points (member xy, keeper xy), float32 [m,2] each: nearest both ways, clearly nearer than the second nearest."""
    product = member.descriptors @ keeper.descriptors.T  # descriptors have length 1 (square roots of shares)
    rows = np.arange(len(product))
    best = product.argmax(1)
    nearest = product[rows, best]
    mutual = product.argmax(0)[best] == rows
    product[rows, best] = -1.0
    second = product.max(1)
    good = mutual & (np.sqrt(np.maximum(2 - 2 * nearest, 0)) < RATIO * np.sqrt(np.maximum(2 - 2 * second, 1e-9)))
    return member.xy[good], keeper.xy[best[good]]


def _distinct(xy: np.ndarray) -> int:
    """Points that are not within 2 pixels' cell of another: several descriptors of one point count once."""
    return len(np.unique(np.floor(xy / 2.0), axis=0))


def _overlap(keeper: Features, member: Features, to_keeper: np.ndarray) -> tuple[float, int, np.ndarray]:
    """(median correlation of blocks, number of blocks, bool [h,w] of the member's plane where the keeper lies)."""
    height, width = member.plane.shape
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    shrink = max(1.0, float(np.sqrt(abs(np.linalg.det(to_keeper[:, :2])))))  # the keeper is finer: no aliasing
    source = cv2.GaussianBlur(keeper.plane, (0, 0), 0.5 * shrink) if shrink > 1.2 else keeper.plane
    laid = cv2.warpAffine(source, to_keeper, (width, height), flags=flags)
    inside = cv2.warpAffine(np.full_like(keeper.plane, 255), to_keeper, (width, height), flags=flags) > 250
    sigma = max(BLURRED, 0.8 / max(1e-3, float(np.sqrt(abs(np.linalg.det(to_keeper[:, :2]))))))
    a, b = (cv2.GaussianBlur(plane.astype(np.float32), (0, 0), min(sigma, 6.0)) for plane in (laid, member.plane))
    rows, columns = height // BLOCK, width // BLOCK
    if not rows or not columns:
        return float("nan"), 0, inside

    def blocks(plane: np.ndarray) -> np.ndarray:
        plane = plane[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
        return plane.transpose(0, 2, 1, 3).reshape(rows * columns, -1)

    whole = blocks(inside).all(1)
    a, b = blocks(a)[whole], blocks(b)[whole]
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    one, other = np.sqrt((a * a).mean(1)), np.sqrt((b * b).mean(1))
    shown = (one > FLAT) | (other > FLAT)
    if shown.sum() < LEAST_BLOCKS:
        return float("nan"), int(shown.sum()), inside
    correlation = (a * b).mean(1)[shown] / np.maximum(one * other, FLAT)[shown]
    return float(np.median(correlation)), int(shown.sum()), inside
