"""What a file's own coding may have done to a picture: its quantisation, read, found by trying, or done again.

A coefficient of an 8x8 block that was quantised with step q lies within q/2 of what it was; a JPEG's file says q. What
a PNG was before (q of a JPEG) is found by trying. For WebP, AVIF and palettes the picture is coded again, at the
quality that gives the file's length, and what that did to each block bounds what coding may have done to it. Whether
a picture agrees with another is agreement.py's.

    picture ──▶ explanations(picture, file) ──▶ references: what the file may hold if it was made of the picture
                                                bounds: by how much its coefficients may be off
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.fft import dctn, idctn
from scipy.ndimage import maximum_filter

# Annex K of ITU-T T.81, which the IJG scales by quality.
LUMA_TABLE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
    ], np.float32,
)  # fmt: skip
CHROMA_TABLE = np.full((8, 8), 99, np.float32)
CHROMA_TABLE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

QUALITIES = range(30, 99)  # IJG's, in which an earlier JPEG is looked for
BETTER = 0.6  # of the error without an earlier JPEG: what one must bring it to
SAMPLE = 400  # blocks by which quality and filter are chosen
MOST_PIXELS = 32_000_000  # above, WebP and AVIF are not coded again: only what agrees without it is a copy
TRIES = 7  # qualities of WebP and AVIF
EFFORTS: dict[str, tuple[dict, ...]] = {"WEBP": ({},), "AVIF": ({}, {"speed": 9})}  # with which they are coded again
AROUND, OTHERWISE = (5, 5), 2.5  # blocks, and times what coding again moves a coefficient by in any of them


@dataclass(frozen=True)
class Coding:
    """What a file's header says of how its pixels were coded.

    tables: a JPEG's (luma, chroma) quantisation steps, float32 [8,8], rows of rising vertical frequency; else empty.
    sampling: its chroma's, (across, down). orientation: EXIF's, 1 to 8. length: bytes of the file.
    """

    format: str
    tables: tuple[np.ndarray, ...] = ()
    sampling: tuple[int, int] = (1, 1)
    orientation: int = 1
    length: int = 0
    palette: bool = False


def coding_of(data: bytes) -> Coding:
    """Reads the header alone. Raises PIL.UnidentifiedImageError for bytes that are no picture."""
    with Image.open(io.BytesIO(data)) as image:
        format, palette = image.format or "", image.mode == "P"
        orientation = image.getexif().get(274, 1)
        orientation = orientation if orientation in range(1, 9) else 1
        layers: tuple = getattr(image, "layer", ())  # of a JPEG: (name, across, down, table) of each component
        if format not in ("JPEG", "MPO") or len(layers) not in (1, 3):
            return Coding(format, (), (1, 1), orientation, len(data), palette)
        quantization: dict = getattr(image, "quantization", {})
        steps = {name: np.array(table, np.float32).reshape(8, 8) for name, table in quantization.items()}
        tables = tuple(steps[layer[3]] for layer in layers[:2])
        sampling = (1, 1)
        if len(layers) == 3:
            sampling = (max(1, layers[0][1] // layers[1][1]), max(1, layers[0][2] // layers[1][2]))
        return Coding(format, tables, sampling, orientation, len(data))


# --- planes and blocks ---


def planes_of(pixels: np.ndarray) -> np.ndarray:
    """uint8 or float [h,w] or [h,w,3] -> float32 [1 or 3,h,w]: grey, or JPEG's Y, Cb - 128, Cr - 128 (ITU-T T.871)."""
    pixels = np.asarray(pixels, np.float32)
    if pixels.ndim == 2:
        return pixels[None]
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return np.stack([luma, (blue - luma) / 1.772, (red - luma) / 1.402])


def luma_of(pixels: np.ndarray) -> np.ndarray:
    return planes_of(pixels)[0]


def coefficients(plane: np.ndarray) -> np.ndarray:
    """float32 [h,w] -> [ceil(h/8),ceil(w/8),8,8]: orthonormal DCT of each block; edges repeat their last pixel."""
    padded = np.pad(plane, ((0, -plane.shape[0] % 8), (0, -plane.shape[1] % 8)), mode="edge")
    rows, columns = padded.shape[0] // 8, padded.shape[1] // 8
    return dctn(padded.reshape(rows, 8, columns, 8).transpose(0, 2, 1, 3), axes=(2, 3), norm="ortho")


def subsampled(plane: np.ndarray, sampling: tuple[int, int]) -> np.ndarray:
    """Means over sampling = (across, down) pixels; edges repeat their last pixel."""
    across, down = sampling
    if sampling == (1, 1):
        return plane
    padded = np.pad(plane, ((0, -plane.shape[0] % down), (0, -plane.shape[1] % across)), mode="edge")
    return padded.reshape(padded.shape[0] // down, down, -1, across).mean((1, 3))


def ijg_tables(quality: int) -> tuple[np.ndarray, np.ndarray]:
    """(luma, chroma) steps of the IJG's quality 1..100."""
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    luma, chroma = (np.clip(np.floor((table * scale + 50) / 100), 1, 255) for table in (LUMA_TABLE, CHROMA_TABLE))
    return luma, chroma


# --- explanations ---


@dataclass(frozen=True)
class Explanation:
    """references: pictures (uint8) of which each block of the file may be any. bounds: for luma and chroma, float32
    [8,8], what coding may have moved coefficients by; None: by what it did around a block of the first reference to
    give the second, OTHERWISE times, since another encoder chooses otherwise."""

    name: str
    references: list[np.ndarray]
    bounds: tuple[np.ndarray, np.ndarray] | None
    sampling: tuple[int, int]

    def bound(self, moved: np.ndarray | None, chroma: bool) -> np.ndarray:
        """[8,8] or [rows,columns,8,8]. moved: coefficients of the second reference less the first."""
        if self.bounds is not None:
            return self.bounds[chroma]
        assert moved is not None, "an explanation without bounds has two references"
        around = maximum_filter(np.abs(moved), (*AROUND, 1, 1), mode="nearest")
        return OTHERWISE * around + np.sqrt((moved**2).mean((0, 1)))


def explanations(pixels: np.ndarray, own: np.ndarray, coding: Coding) -> Iterator[Explanation]:
    """What the file may hold if it was made of `pixels`, cheap and likely explanations first.

    pixels, own: uint8 [h,w] or [h,w,3], the picture and what the file decodes to, both as they lie in the file.
    """
    if coding.tables:
        yield from _of_jpeg(pixels, own, coding)
        return
    nothing = (np.zeros((8, 8), np.float32),) * 2
    yield Explanation("the same pixels", [pixels], nothing, (1, 1))
    if coding.format in EFFORTS:
        if pixels.shape[0] * pixels.shape[1] <= MOST_PIXELS:
            bare = through_jpeg(pixels, (2, 2), None)
            for effort in EFFORTS[coding.format]:
                again = at_length(pixels, coding.format, coding.length, effort)
                yield Explanation(coding.format, [bare, again], None, (2, 2))
    elif coding.palette or coding.format == "GIF":
        yield Explanation("a palette", [pixels, through_format(pixels, "GIF")[0]], None, (1, 1))
    elif (quality := earlier_quality(pixels, own, None)) is not None:
        first = ijg_tables(quality)
        for sampling in ((2, 2), (1, 1)) if own.ndim == 3 else ((1, 1),):
            references = [through_jpeg(pixels, sampling, tables) for tables in (None, first)]
            yield Explanation(f"a JPEG of q{quality} before", references, _halves(first), sampling)


def _of_jpeg(pixels: np.ndarray, own: np.ndarray, coding: Coding) -> Iterator[Explanation]:
    bare = through_jpeg(pixels, coding.sampling, None)
    tables = (coding.tables * 2)[:2]
    again = through_jpeg(pixels, coding.sampling, coding.tables)
    yield Explanation("a JPEG", [bare, again], _halves(tables), coding.sampling)
    quality = earlier_quality(pixels, own, coding.tables[0])
    if quality is not None:
        first = ijg_tables(quality)
        again = through_jpeg(through_jpeg(pixels, coding.sampling, first), coding.sampling, coding.tables)
        both = tuple(one + two for one, two in zip(_halves(tables), _halves(first), strict=True))
        yield Explanation(f"a JPEG after one of q{quality}", [bare, again], both, coding.sampling)


def _halves(tables: tuple) -> tuple:
    return tuple(table / 2 for table in tables)


# --- coding again ---


def through_jpeg(pixels: np.ndarray, sampling: tuple[int, int], tables: tuple | None) -> np.ndarray:
    """uint8 in, uint8 out: through libjpeg with these steps; None: steps of 1, which leaves what chroma loses."""
    image = Image.fromarray(pixels)
    options: dict = {"quality": 100}
    if tables:
        options = {"qtables": [table.astype(int).ravel().tolist() for table in tables]}
    if image.mode != "L":
        options["subsampling"] = {(1, 1): 0, (2, 1): 1}.get(sampling, 2)
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return np.asarray(Image.open(out))


def through_format(pixels: np.ndarray, format: str, **options) -> tuple[np.ndarray, int]:
    """(uint8 as `pixels`, bytes of the file), through what Pillow writes in this format."""
    out, image = io.BytesIO(), Image.fromarray(pixels)
    image.save(out, format, **options)
    return np.asarray(Image.open(out).convert(image.mode)), out.tell()


def at_length(pixels: np.ndarray, format: str, length: int, effort: dict) -> np.ndarray:
    """Through WebP or AVIF at the quality at which the file has this length, or nearly (regula falsi on its log)."""
    known = {0: -np.inf, 101: np.inf}  # quality -> log of the length there
    wanted, quality = np.log(length), 75
    best, least = pixels, np.inf
    for _ in range(TRIES):
        coded, here = through_format(pixels, format, quality=quality, **effort)
        known[quality] = np.log(here)
        if abs(known[quality] - wanted) < least:
            best, least = coded, abs(known[quality] - wanted)
        below = max(tried for tried in known if known[tried] <= wanted)
        above = min((tried for tried in known if known[tried] > wanted and tried > below), default=101)
        if here == length or above - below <= 1:
            break
        if below == 0 or above == 101:
            quality += 15 if above == 101 else -15
        else:
            quality = below + round((wanted - known[below]) / (known[above] - known[below]) * (above - below))
        quality = int(np.clip(quality, below + 1, above - 1))
    return best


def earlier_quality(pixels: np.ndarray, own: np.ndarray, last: np.ndarray | None) -> int | None:
    """The IJG's quality of the JPEG that `own` seems to have been between `pixels` and now; None: of none.

    last: luma steps that were applied after it, or None.
    """
    blocks, wanted = sample(pixels, own)
    best = BETTER * block_error(requantised(blocks, last), wanted)
    found = None
    for quality in QUALITIES:
        guess = requantised(requantised(blocks, ijg_tables(quality)[0]), last)
        if (off := block_error(guess, wanted)) < best:
            best, found = off, quality
    return found


def requantised(blocks: np.ndarray, steps: np.ndarray | None) -> np.ndarray:
    return blocks if steps is None else steps * np.round(blocks / steps)


def block_error(blocks: np.ndarray, wanted: np.ndarray) -> float:
    """Median over blocks of the mean absolute difference, levels: coefficients [n,8,8] against pixels - 128 [n,8,8]."""
    shown = idctn(blocks, axes=(1, 2), norm="ortho").clip(-128, 127)
    return float(np.median(np.abs(shown - wanted).mean((1, 2))))


def sample(pixels: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(coefficients of the one, pixels of the other), luma less 128, float32 [n,8,8]: about SAMPLE of those blocks that
    have more in them than most."""
    rows, columns = max(1, own.shape[0] // 8), max(1, own.shape[1] // 8)
    step = max(1, rows * columns // (10 * SAMPLE)) | 1
    at = np.arange(0, rows * columns, step)
    tops, lefts = 8 * (at // columns), 8 * (at % columns)
    one, other = (_luma_blocks(picture, tops, lefts) - 128 for picture in (pixels, own))
    spread = one.std((1, 2))
    chosen = np.flatnonzero(spread >= max(1.0, float(np.median(spread))))
    chosen = chosen[:: max(1, len(chosen) // SAMPLE)] if chosen.size else np.arange(min(SAMPLE, len(one)))
    return dctn(one[chosen], axes=(1, 2), norm="ortho"), other[chosen]


def _luma_blocks(picture: np.ndarray, tops: np.ndarray, lefts: np.ndarray) -> np.ndarray:
    """float32 [n,8,8]; pictures smaller than a block repeat their last pixels."""
    rows = np.minimum(tops[:, None] + np.arange(8), picture.shape[0] - 1)
    columns = np.minimum(lefts[:, None] + np.arange(8), picture.shape[1] - 1)
    blocks = picture[rows[:, :, None], columns[:, None, :]]
    return luma_of(blocks.reshape(-1, *blocks.shape[2:])).reshape(-1, 8, 8)
