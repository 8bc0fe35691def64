"""How a copy is cut from its keeper: which part of it, at which scale, mirrored or turned by quarters.

Hashes find copies that show the whole picture; embeddings also find crops, pictures inside a frame, mirror images and
quarter turns. Such a copy can be given up where its keeper, seen through the right view, comes back as the copy's own
pixels: `find_view` finds that view, `seen_through` applies it, and agreement.py judges the outcome like any other. What
no view gives back (free rotations, a frame around the copy, words on top) stays a picture of its own.

Which pairs are asked about is night/plan.py's, on which points they agree local_features.py's.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from PIL import Image

from tasks.duplicates.agreement import Agreement, Original, agreement, psnr_between
from tasks.duplicates.local_features import is_copy
from tasks.duplicates.recoding import Coding
from tasks.duplicates.rules import brought_to

TURNS = {  # EXIF's orientation values: what brings the keeper to the way that the copy is shown
    1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
# Direction of the copy's x and y axes in the keeper, in pixels of the keeper, for each turn.
AXES = {
    1: ((1, 0), (0, 1)), 2: ((-1, 0), (0, 1)), 3: ((-1, 0), (0, -1)), 4: ((1, 0), (0, -1)),
    5: ((0, 1), (1, 0)), 6: ((0, -1), (1, 0)), 7: ((0, -1), (-1, 0)), 8: ((0, 1), (-1, 0)),
}  # fmt: skip
SKEW = 0.03  # sine of the angle up to which the map's error, not the copy, counts as turned
OVER_EDGE = 3.0  # pixels of the copy that may lie beyond the keeper by the map's error
LIKELY = 2  # boxes, those that come closest, of which agreement is asked
SIDE = 1024  # longer side at which the box is aligned


@dataclass(frozen=True)
class View:
    """turn: key of TURNS; box: (left, top, right, bottom) in pixels of the turned keeper, fractions allowed."""

    turn: int
    box: tuple[float, float, float, float]


def turned(keeper: Image.Image, turn: int) -> Image.Image:
    return keeper if TURNS[turn] is None else keeper.transpose(TURNS[turn])


def seen_through(keeper: Image.Image, view: View, size: tuple[int, int], mode: str) -> Image.Image:
    """The part of the keeper that the view shows, at a member's size and mode, by Lanczos where it is resized.

    Raises ValueError where the box lies outside of the keeper (which then is not the one that the view was found on).
    """
    picture = turned(keeper, view.turn)
    left, top, right, bottom = view.box
    if not (0 <= left < right <= picture.width and 0 <= top < bottom <= picture.height):
        raise ValueError(f"the part {view.box} lies outside of a keeper of {picture.width} x {picture.height}")
    whole_pixels = all(edge == round(edge) for edge in view.box)
    if whole_pixels:
        picture = picture.crop(tuple(int(edge) for edge in view.box))
        return brought_to(picture, size, mode)
    if picture.mode != mode:
        picture = picture.convert(mode)
    return picture.resize(size, Image.Resampling.LANCZOS, box=view.box)


def given_back(keeper: Image.Image, row: dict, size: tuple[int, int], mode: str) -> Image.Image:
    """What restore makes of a decoded keeper for a duplicate's row (`keeper_turn`, `keeper_box`: null for the whole).

    Raises ValueError as `seen_through` does.
    """
    if row["keeper_box"] is None:
        return brought_to(keeper, size, mode)
    return seen_through(keeper, View(row["keeper_turn"], tuple(row["keeper_box"])), size, mode)


def find_view(keeper: Original, member: Original) -> tuple[View, Agreement] | None:
    """The view through which the keeper comes back as the member, and how well; None where there is none.

    Where only one has alpha there is none: brought to the other's mode it would agree, and come back as what it was
    not.
    """
    if ("A" in keeper.image.mode) != ("A" in member.image.mode):
        return None
    found = is_copy(keeper.image, member.image)
    if not found.copy or found.to_keeper is None:
        return None
    turn = turn_of(found.to_keeper)
    if turn is None:
        return None
    source, size = turned(keeper.image, turn), member.image.size
    box = inside(box_of(found.to_keeper, turn, keeper.image.size, size), source.size, size)
    if box is None:
        return None
    for _ in range(2):
        box = inside(aligned(source, box, member.image), source.size, size) or box
    stands = replace(keeper, image=source, coding=turned_coding(keeper.coding, turn))

    def closeness(one: tuple) -> float:
        return psnr_between(seen_through(keeper.image, View(turn, one), size, member.image.mode), member.image)

    boxes = dict.fromkeys([box, *snapped(box, source.size, size)])
    for one in sorted(boxes, key=closeness, reverse=True)[:LIKELY]:
        seen = agreement(stands, member, one)
        if seen.agrees:
            return View(turn, one), seen
    return None


def turned_coding(coding: Coding | None, turn: int) -> Coding | None:
    """A JPEG's quantisation steps, as its picture stands once it is turned."""
    if coding is None or turn < 5:
        return coding
    return replace(coding, tables=tuple(table.T for table in coding.tables))


def turn_of(to_keeper: np.ndarray) -> int | None:
    """The turn that a map (float64 [2,3], member pixel -> keeper pixel) contains; None for other rotations."""
    axes = to_keeper[:, :2] / np.maximum(np.linalg.norm(to_keeper[:, :2], axis=0), 1e-9)
    for turn, directions in AXES.items():
        if all(np.dot(axes[:, at], directions[at]) > np.sqrt(1 - SKEW**2) for at in (0, 1)):
            return turn
    return None


def box_of(to_keeper: np.ndarray, turn: int, keeper: tuple[int, int], member: tuple[int, int]) -> tuple:
    """Where the member's edges lie in the turned keeper, from a map between pixel centres."""
    width, height = keeper
    centre = to_keeper @ np.array([(member[0] - 1) / 2, (member[1] - 1) / 2, 1.0]) + 0.5
    spans = np.linalg.norm(to_keeper[:, :2], axis=0) * np.array(member)
    x, y = {
        1: (centre[0], centre[1]), 2: (width - centre[0], centre[1]), 3: (width - centre[0], height - centre[1]),
        4: (centre[0], height - centre[1]), 5: (centre[1], centre[0]), 6: (height - centre[1], centre[0]),
        7: (height - centre[1], width - centre[0]), 8: (centre[1], width - centre[0]),
    }[turn]  # fmt: skip
    return (x - spans[0] / 2, y - spans[1] / 2, x + spans[0] / 2, y + spans[1] / 2)


def inside(box: tuple, source: tuple[int, int], member: tuple[int, int]) -> tuple | None:
    """The box with its edges brought inside the source; None where more than OVER_EDGE would be cut away."""
    across, down = ((box[2] - box[0]) / member[0], (box[3] - box[1]) / member[1])
    reach = max(1.5, OVER_EDGE * max(across, down))
    if min(box[0], box[1], source[0] - box[2], source[1] - box[3]) < -reach:
        return None
    cut = (max(0.0, box[0]), max(0.0, box[1]), min(float(source[0]), box[2]), min(float(source[1]), box[3]))
    return tuple(float(edge) for edge in cut) if cut[2] - cut[0] >= 1 and cut[3] - cut[1] >= 1 else None


def aligned(source: Image.Image, box: tuple, member: Image.Image) -> tuple:
    """The box after alignment of what it shows to the member (enhanced correlation, Evangelidis and Psarakis 2008)."""
    scale = min(1.0, SIDE / max(member.size))
    size = tuple(max(16, round(side * scale)) for side in member.size)
    shown = np.asarray(source.convert("L").resize(size, Image.Resampling.LANCZOS, box=box), np.float32)
    own = np.asarray(member.convert("L").resize(size, Image.Resampling.LANCZOS), np.float32)
    warp = np.eye(2, 3, dtype=np.float32)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 60, 1e-6)
    try:
        _, warp = cv2.findTransformECC(own, shown, warp, cv2.MOTION_AFFINE, stop, None, 5)
    except cv2.error:  # it did not converge: the points' map stays
        return box
    across, down = (box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1]
    centre = warp @ np.array([(size[0] - 1) / 2, (size[1] - 1) / 2, 1.0]) + 0.5
    x, y = box[0] + centre[0] * across, box[1] + centre[1] * down
    half_width, half_height = warp[0, 0] * size[0] * across / 2, warp[1, 1] * size[1] * down / 2
    return (x - half_width, y - half_height, x + half_width, y + half_height)


def snapped(box: tuple, source: tuple[int, int], member: tuple[int, int]) -> list[tuple]:
    """Boxes on whole pixels near this one: most crops were made so, and then come back best."""
    rounded = tuple(float(round(edge)) for edge in box)
    boxes = [rounded] if rounded[2] > rounded[0] and rounded[3] > rounded[1] else []
    if abs(box[2] - box[0] - member[0]) < 1.5 and abs(box[3] - box[1] - member[1]) < 1.5:  # cut, not resized
        x, y = (box[0] + box[2] - member[0]) / 2, (box[1] + box[3] - member[1]) / 2
        boxes += [
            (float(left), float(top), float(left + member[0]), float(top + member[1]))
            for left in dict.fromkeys((int(np.floor(x)), int(np.ceil(x))))
            for top in dict.fromkeys((int(np.floor(y)), int(np.ceil(y))))
        ]
    return [b for b in boxes if b[0] >= 0 and b[1] >= 0 and b[2] <= source[0] and b[3] <= source[1]]
