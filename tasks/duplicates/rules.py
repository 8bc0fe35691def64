"""What counts as a duplicate: which picture of a group stays, and the second look at the pixels.

A perceptual hash only proposes. `look_alike` disposes: the keeper, brought to the member's size and mode as
restore would give it back, is compared with the member's own pixels, over the whole and block by block. Pictures
with little in them (blank pages, gradients) agree by accident, so they have to agree much better.

Finding close hashes: hamming_pairs.py; forming groups: groups.py; neither looks at a picture. Embeddings and their
confirmation by keypoints: embeddings.py, local_features.py.
"""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
from PIL import Image

LEAST_PSNR = 30.0  # dB: below it a copy would come back too different
FLAT_MARGIN = 14.0  # dB above what the picture's mean colour alone reaches
MOST_NEEDED = 50.0  # dB: near-exact; more is never asked
BLOCK = 16
BLOCK_MSE = 400.0  # a block this far off (22 dB) ...
BLOCK_SHARE = 0.4  # ... and by this share of the two blocks' own variance shows something else

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

    Order: kept by an earlier night (`earlier_keeper`), decodable (no `error`, a width), larger true resolution
    (`true_pixels` where measured, else width x height), not enlarged beyond that, least lossy format, more bytes
    (`source_bytes`), more EXIF (`exif_bytes`), older (`modified`, datetime or seconds), key. Missing columns count
    as none.
    """
    return (
        not row.get("earlier_keeper"),
        bool(row.get("error")) or not row.get("width"),
        -_resolution(row),
        (row.get("width") or 0) * (row.get("height") or 0) - _resolution(row),
        _format_class(row),
        -(row.get("source_bytes") or 0),
        -(row.get("exif_bytes") or 0),
        _since(row),
        row.get("key") or "",
    )


def keeper_reason(keeper: dict, member: dict) -> str:
    """Why `keeper` stays and `member` does not: the first point of `keeper_rank` that tells them apart, in words."""
    first = next(
        (at for at, (a, b) in enumerate(zip(keeper_rank(keeper), keeper_rank(member), strict=True)) if a != b), None
    )
    if first is None:
        return "the same in every respect"

    def size(row: dict) -> str:
        return f"{row.get('width')} × {row.get('height')}"

    return (
        lambda: "kept by an earlier night",
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
        lambda: "older",
        lambda: "first by key",
    )[first]()


@dataclass(frozen=True)
class Look:
    """Outcome of a second look. psnr in dB over all colour channels (inf: equal pixels; nan: not compared)."""

    alike: bool
    psnr: float
    why: str

    @property
    def exact(self) -> bool:
        """Equal pixels, alpha included (`pixel` duplicates when the sizes and modes are equal too)."""
        return self.alike and self.psnr == float("inf")


def brought_to(keeper: Image.Image, size: tuple[int, int], mode: str) -> Image.Image:
    """The keeper at a member's size and mode (L, LA, RGB or RGBA), as restore gives the member back: Lanczos."""
    if keeper.mode != mode:
        keeper = keeper.convert(mode)
    return keeper if keeper.size == tuple(size) else keeper.resize(size, Image.Resampling.LANCZOS)


def _psnr(mse: float) -> float:
    return float("inf") if mse <= 0 else float(10 * np.log10(255.0**2 / mse))


def needed_psnr(pixels: np.ndarray) -> float:
    """What agreement a picture (float[h,w,c], 0..255) needs: 30 dB, or FLAT_MARGIN above what its own mean colour
    reaches where that is more, at most MOST_NEEDED."""
    spread = float(((pixels - pixels.mean(axis=(0, 1))) ** 2).mean())
    return min(MOST_NEEDED, max(LEAST_PSNR, _psnr(spread) + FLAT_MARGIN))


def _block_means(plane: np.ndarray) -> np.ndarray:
    """Means over BLOCK x BLOCK blocks of float[h,w]; the last row and column of blocks may be smaller."""
    rows = np.arange(0, plane.shape[0], BLOCK)
    columns = np.arange(0, plane.shape[1], BLOCK)
    sums = np.add.reduceat(np.add.reduceat(plane, rows, axis=0), columns, axis=1)
    heights = np.diff(np.append(rows, plane.shape[0]))
    widths = np.diff(np.append(columns, plane.shape[1]))
    return sums / np.outer(heights, widths)


def _odd_block(a: np.ndarray, b: np.ndarray) -> tuple[int, int] | None:
    """Corner (x, y) of the worst block where a and b (float[h,w,c]) show different things; None: nowhere."""
    error = _block_means(((a - b) ** 2).mean(axis=2))
    spread = sum(
        _block_means((plane**2).mean(axis=2)) - (_block_means_of_channels(plane) ** 2).mean(axis=2) for plane in (a, b)
    )
    odd = np.where((error > BLOCK_MSE) & (error > BLOCK_SHARE * spread), error, 0)
    row, column = np.unravel_index(odd.argmax(), odd.shape)
    return (int(column) * BLOCK, int(row) * BLOCK) if odd[row, column] else None


def _block_means_of_channels(planes: np.ndarray) -> np.ndarray:
    return np.stack([_block_means(planes[:, :, channel]) for channel in range(planes.shape[2])], axis=2)


def look_alike(keeper: Image.Image, member: Image.Image) -> Look:
    """Second look: is `member` a copy of `keeper`, good enough to be given back from it?

    Both fully decoded and upright, 8 bits: L, LA, RGB or RGBA. The keeper is brought to the member's size and
    mode (`brought_to`). Alike: both have alpha or neither, alpha planes are equal, the PSNR reaches `needed_psnr`
    (30 dB, more for flat pictures), and no block shows something else.
    """
    odd = next((image.mode for image in (keeper, member) if image.mode not in ("L", "LA", "RGB", "RGBA")), None)
    if odd is not None:
        return Look(False, float("nan"), f"pixels of mode {odd} are not compared")
    has_alpha = "A" in member.mode
    if ("A" in keeper.mode) != has_alpha:
        return Look(False, float("nan"), "only one of them has an alpha channel")
    given = brought_to(keeper, member.size, member.mode)
    a = np.asarray(given).reshape(member.height, member.width, -1)
    b = np.asarray(member).reshape(a.shape)
    if has_alpha:
        if not np.array_equal(a[:, :, -1], b[:, :, -1]):
            return Look(False, float("nan"), "their alpha channels differ")
        a, b = a[:, :, :-1], b[:, :, :-1]
    if np.array_equal(a, b):
        return Look(True, float("inf"), "equal pixels")
    a, b = a.astype(np.float32), b.astype(np.float32)
    psnr, needed = _psnr(float(((a - b) ** 2).mean(dtype=np.float64))), needed_psnr(b)
    if psnr < needed:
        flat = f" (a flat picture needs {needed:.1f} dB)" if needed > LEAST_PSNR else ""
        return Look(False, psnr, f"the pixels agree to {psnr:.1f} dB only{flat}")
    if (corner := _odd_block(a, b)) is not None:
        return Look(False, psnr, f"they differ in the block at {corner[0]}, {corner[1]}")
    return Look(True, psnr, f"the pixels agree to {psnr:.1f} dB")


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
