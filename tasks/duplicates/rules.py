"""Which picture of a group stays, how it is brought to a member's size, and how much detail a picture really has.

Whether a member is a copy of its keeper at all is agreement.py's. Finding close hashes: hamming_pairs.py; forming
groups: groups.py; neither looks at a picture. Embeddings and their confirmation by keypoints: embeddings/,
local_features.py.
"""

from datetime import datetime

import numpy as np
from PIL import Image

BETTER = 6  # leading points of a rank that say which picture is better; the others only decide
STEADY = 1.25  # times the bytes of an earlier night's keeper: one that is as large in pixels needs more
ENLARGED = 0.17  # share of the finest octave in the next one; photographs: 0.26 and more, enlarged twofold: 0.05

_LOSSLESS = {"PNG", "TIFF", "BMP", "DIB", "PPM", "TGA", "SGI", "PCX", "QOI", "FITS"}


def _format_class(row: dict) -> int:
    """0 lossless, 1 lossy, 2 few colours, by the format's usual use."""
    name = (row.get("format") or "").upper()
    return 0 if name in _LOSSLESS else 2 if name == "GIF" else 1


def _resolution(row: dict) -> int:
    return row.get("true_pixels") or (row.get("width") or 0) * (row.get("height") or 0)


def _since(row: dict) -> float:
    modified = row.get("modified")
    if isinstance(modified, datetime):
        return modified.timestamp()
    return float("inf") if modified is None else float(modified)


def keeper_rank(row: dict) -> tuple:
    """Sort key by which the best keeper comes first (smallest).

    Order: decodable (no `error`, a width), larger true resolution (`true_pixels` where measured, else width x height),
    not enlarged beyond that, least lossy format, more bytes (`source_bytes`), more EXIF (`exif_bytes`), kept by an
    earlier night (`earlier_keeper`, whose bytes count STEADY times), older (`modified`, datetime or seconds), key.
    Missing columns count as none.
    """
    steady = bool(row.get("earlier_keeper"))
    return (
        bool(row.get("error")) or not row.get("width"),
        -_resolution(row),
        (row.get("width") or 0) * (row.get("height") or 0) - _resolution(row),
        _format_class(row),
        -(row.get("source_bytes") or 0) * (STEADY if steady else 1),
        -(row.get("exif_bytes") or 0),
        not steady,
        _since(row),
        row.get("key") or "",
    )


def keeper_reason(keeper: dict, member: dict) -> str:
    """Why `keeper` stays and `member` does not: the first point of `keeper_rank` that tells them apart, in words."""
    ranks = [keeper_rank(row | {"earlier_keeper": None}) for row in (keeper, member)]
    if keeper.get("earlier_keeper") and ranks[0][:BETTER] >= ranks[1][:BETTER]:
        return "kept by an earlier night"
    first = next((at for at, (a, b) in enumerate(zip(*ranks, strict=True)) if a != b), None)
    if first is None:
        return "the same in every respect"

    def size(row: dict) -> str:
        return f"{row.get('width')} × {row.get('height')}"

    return (
        lambda: "the copy can't be decoded",
        lambda: (
            f"larger: {size(keeper)} against {size(member)}"
            if keeper["width"] * keeper["height"] > member["width"] * member["height"]
            else f"finer detail: {size(member)} was enlarged"
        ),
        lambda: f"as much detail in fewer pixels: {size(keeper)} against {size(member)}",
        lambda: f"less lossy format: {keeper.get('format')} against {member.get('format')}",
        lambda: f"more bytes: {keeper['source_bytes']:,} against {member.get('source_bytes') or 0:,}",
        lambda: f"more EXIF: {keeper['exif_bytes']:,} bytes against {member.get('exif_bytes') or 0:,}",
        lambda: "kept by an earlier night",
        lambda: "older",
        lambda: "first by key",
    )[first]()


def brought_to(keeper: Image.Image, size: tuple[int, int], mode: str) -> Image.Image:
    """The keeper at a member's size and mode (L, LA, RGB or RGBA), as restore gives the member back: Lanczos."""
    if keeper.mode != mode:
        keeper = keeper.convert(mode)
    return keeper if keeper.size == tuple(size) else keeper.resize(size, Image.Resampling.LANCZOS)


def true_pixels(image: Image.Image) -> int:
    """Pixels that carry detail: width x height, or less where the picture is an enlargement.

    What is lost by halving a photograph and doubling it again (its finest octave) is a quarter to once what is lost
    by doing the same to the half (the next octave); of one enlarged twofold it is a twentieth. Below ENLARGED the
    size counts as halved, as often as that holds. Blank pictures, which any size can show, keep their size.
    """
    plane = image.convert("L")
    if np.asarray(plane, dtype=np.float32).var() < 25:
        return image.width * image.height
    finest, half = _octave(plane)
    while min(half.size) >= 32:
        next_finest, quarter = _octave(half)
        if finest >= ENLARGED * next_finest:
            break
        plane, finest, half = half, next_finest, quarter
    return plane.width * plane.height


def _octave(plane: Image.Image) -> tuple[float, Image.Image]:
    """Mean square of what halving and doubling (Lanczos) loses, and the half."""
    half = plane.resize(((plane.width + 1) // 2, (plane.height + 1) // 2), Image.Resampling.LANCZOS)
    again = half.resize(plane.size, Image.Resampling.LANCZOS)
    return float(((np.asarray(again, dtype=np.float32) - np.asarray(plane, dtype=np.float32)) ** 2).mean()), half
