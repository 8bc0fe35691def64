"""Is a picture a copy of another, everywhere: does its own re-encoding or resizing explain every difference?

Here: what a member must look like if it was made of the keeper (resized, then coded as its file says), and a test,
8x8 block by block, of whether it does. A mean never counts: one block that nothing explains (a digit, a watermark, a
shade, a lesion) makes the member a picture of its own. Which pictures are asked about is plan.py's and rules.py's,
views of a part alignment.py's; bytes are read and decoded by the caller.

    keeper ──resize (best of seven filters, or their mixture)──▶ prediction ──coded again──▶ reconstruction
                                                                    │                            │
    member ──────────── DCT of the difference to either, per 8x8 block, luma and chroma ─────────┘
                                    │
         beyond what the member's quantisation (and the keeper's) can have moved?  ──▶ worst block

A coefficient that was quantised with step q lies within q/2 of what it was; a JPEG's file says q. What a PNG was
before (q of a JPEG) is found by trying; for WebP, AVIF and palettes the prediction is coded again at the quality that
gives the member's length, and what that did to each block is what coding may have done to the member.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image
from scipy.fft import dctn, idctn
from scipy.ndimage import maximum_filter, uniform_filter

# Annex K of ITU-T T.81, in the IJG's scaling by quality.
LUMA_TABLE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
    ], np.float32,
)  # fmt: skip
CHROMA_TABLE = np.full((8, 8), 99, np.float32)
CHROMA_TABLE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

FILTERS = (
    Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.BOX,
    Image.Resampling.HAMMING,
)  # fmt: skip
CV_FILTERS = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)

ROUNDING = 1.5  # of two roundings to 8 bits, at most about, in a coefficient of an orthonormal 8x8 DCT
MIXTURE = 0.25  # share of what filters differ by, that a mixture of them may be off by
LOW = 0.75  # levels: most that a block's mean and slopes may be off beyond what coding explains
HIGH = 1.25  # the same for its finer coefficients
FILLED = 0.7  # mean square of differences, each by its own bound: quantisation alone gives a third
REGION = 0.75  # levels: most that the mean over 3x3 blocks may be off, beyond the step of a flat area

ASTRAY = 0.75  # pixels of the member: most that its edges may lie beside where they should, by how a tool rounds

_LOWEST = np.zeros((8, 8), bool)
_LOWEST[0, 0] = _LOWEST[0, 1] = _LOWEST[1, 0] = True


@dataclass(frozen=True)
class Coding:
    """What a file says of how its pixels were coded. tables: JPEG's (luma, chroma) quantisation steps, float32 [8,8]
    in rows of rising vertical frequency, else empty; sampling: chroma (across, down); orientation: EXIF's."""

    format: str
    tables: tuple[np.ndarray, ...] = ()
    sampling: tuple[int, int] | None = None
    orientation: int = 1
    length: int = 0  # bytes of the file
    palette: bool = False


def coding_of(data: bytes) -> Coding:
    """Reads the header alone. Raises PIL.UnidentifiedImageError for bytes that are no picture."""
    with Image.open(io.BytesIO(data)) as image:
        palette = image.mode == "P"
        orientation = image.getexif().get(274, 1)
        orientation = orientation if orientation in range(1, 9) else 1
        layers = getattr(image, "layer", ())
        if image.format not in ("JPEG", "MPO") or len(layers) not in (1, 3):
            return Coding(image.format or "", (), None, orientation, len(data), palette)
        steps = {name: np.array(table, np.float32).reshape(8, 8) for name, table in image.quantization.items()}
        tables = tuple(steps[layer[3]] for layer in layers[:2])
        sampling = (1, 1)
        if len(layers) == 3:
            sampling = (layers[0][1] // layers[1][1], layers[0][2] // layers[1][2])
        return Coding(image.format, tables, sampling, orientation, len(data), palette)


@dataclass(frozen=True)
class Agreement:
    """Whether a member is a copy. low, high, filled, region: the worst block's, as the constants of the same names."""

    agrees: bool
    why: str
    low: float = 0.0
    high: float = 0.0
    filled: float = 0.0
    region: float = 0.0

    @property
    def excess(self) -> float:
        """1 at the bound; the largest of the four measures, each by its bound."""
        return max(self.low / LOW, self.high / HIGH, self.filled / FILLED, self.region / REGION)


# --- planes, blocks ---


def planes_of(pixels: np.ndarray) -> np.ndarray:
    """uint8 or float [h,w] or [h,w,3] -> float32 [1 or 3,h,w]: grey, or JPEG's Y, Cb - 128, Cr - 128 (ITU-T T.871)."""
    pixels = np.asarray(pixels, np.float32)
    if pixels.ndim == 2:
        return pixels[None]
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return np.stack([luma, (blue - luma) / 1.772, (red - luma) / 1.402])


def coefficients(plane: np.ndarray) -> np.ndarray:
    """float32 [h,w] -> [ceil(h/8), ceil(w/8), 8, 8]: orthonormal DCT of each block; edges repeat their last pixel."""
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


def ijg_steps(table: np.ndarray, quality: float) -> np.ndarray:
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    return np.clip(np.floor((table * scale + 50) / 100), 1, 255)


# --- predictions: the keeper at the member's size ---


def predictions(
    keeper: Image.Image, member: np.ndarray, box: tuple[float, float, float, float] | None, steps: np.ndarray | None
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """(pixels uint8, [what other filters differ by, float32]) that the member may have been before it was coded.

    At equal size the keeper itself; else the filter that comes closest, then a mixture of all, then both again with the
    keeper's edges where the mixture found them to lie (sizes are rounded, and tools differ in how).
    """
    size = (member.shape[1], member.shape[0])
    whole = (0.0, 0.0, float(keeper.width), float(keeper.height))
    box = box or whole
    if size == (round(box[2] - box[0], 6), round(box[3] - box[1], 6)) and all(edge == round(edge) for edge in box):
        yield np.asarray(keeper.crop(tuple(int(edge) for edge in box)) if box != whole else keeper), []
        return
    own = planes_of(member)[0]
    for last in (False, True):
        resized = resized_by_all(keeper, size, box)
        off = [distance_to(planes_of(one)[0], own, steps) for one in resized]
        first, second = np.argsort(off, kind="stable")[:2]
        yield resized[first].astype(np.uint8), []
        if off[second] < 1.5 * off[first]:
            yield resized[second].astype(np.uint8), []
        mixed, moved = mixture(resized, own)
        yield mixed.round().astype(np.uint8), [one - mixed for one in resized[:4]]
        right, below, wider, higher = moved
        if last or max(map(abs, moved)) < 0.02 or max(abs(right) + abs(wider), abs(below) + abs(higher)) > ASTRAY:
            return
        across, down = (box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1]
        box = (
            box[0] + (right - wider) * across, box[1] + (below - higher) * down,
            box[2] + (right + wider) * across, box[3] + (below + higher) * down,
        )  # fmt: skip


def distance_to(luma: np.ndarray, own: np.ndarray, steps: np.ndarray | None) -> float:
    """How far a luma plane is from the member's, once quantised as the member was (steps [8,8]; None: not)."""
    blocks, wanted = sample(luma - 128, own - 128)
    return mean_error(blocks if steps is None else steps * np.round(blocks / steps), wanted)


def resized_by_all(keeper: Image.Image, size: tuple[int, int], box: tuple[float, ...]) -> list[np.ndarray]:
    """float32: the box of the keeper (it may reach over its edges) at this size, by every filter."""
    over = [max(0.0, -box[0]), max(0.0, -box[1]), max(0.0, box[2] - keeper.width), max(0.0, box[3] - keeper.height)]
    margin = int(np.ceil(max(over)))
    if margin:
        pad = ((margin, margin), (margin, margin), (0, 0))[: np.asarray(keeper).ndim]
        keeper = Image.fromarray(np.pad(np.asarray(keeper), pad, mode="edge"))
        box = tuple(edge + margin for edge in box)
    resized = [np.asarray(keeper.resize(size, one, box=box), np.float32) for one in FILTERS]
    if all(edge == round(edge) for edge in box):  # OpenCV knows no fractions
        part = np.asarray(keeper.crop(tuple(int(edge) for edge in box)))
        resized += [cv2.resize(part, size, interpolation=one).astype(np.float32) for one in CV_FILTERS]
    else:  # its linear and cubic filters are not widened where a picture is reduced
        across, down = (box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1]
        place = np.array([[across, 0, box[0] + across / 2 - 0.5], [0, down, box[1] + down / 2 - 0.5]])
        flags = (cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
        source = np.asarray(keeper)
        resized += [
            cv2.warpAffine(source, place, size, flags=one, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
            for one in flags
        ]
    return resized


def mixture(resized: list[np.ndarray], own: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """The mixture of filters (weights sum to 1), shifted and stretched by fractions of a pixel, that comes closest to
    `own` (luma, float32 [h,w]) by robust least squares over the whole: some ten numbers, which explain no detail.

    Also where its pixels were found: shift to the right and down, and how much wider and higher, in member's pixels
    (the edges lie at shift -+ widening).
    """
    first = resized[0]
    lumas = [planes_of(one)[0] for one in resized]
    height, width = own.shape
    across = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None]

    def moves(plane: np.ndarray) -> list[np.ndarray]:
        right = np.gradient(plane, axis=1) if width > 1 else 0 * plane
        below = np.gradient(plane, axis=0) if height > 1 else 0 * plane
        return [right, below, right * across, below * down]

    step = max(1, own.size // 60_000) | 1
    columns = [one - lumas[0] for one in lumas[1:]] + moves(lumas[0])
    matrix = np.stack([column.ravel()[::step] for column in columns], axis=1)
    wanted = (own - lumas[0]).ravel()[::step]
    weights = np.ones(len(wanted), np.float32)
    for _ in range(4):  # iteratively reweighted: what was changed in the member does not pull
        weighted = matrix * weights[:, None]
        square = weighted.T @ matrix
        square += np.eye(len(square)) * (1e-4 * np.trace(square) / len(square) + 1e-3)
        found = np.linalg.solve(square, weighted.T @ wanted)
        rest = wanted - matrix @ found
        weights = 1 / (1 + (rest / (2 * max(0.5, 1.5 * float(np.median(np.abs(rest)))))) ** 2)
    out = first.copy()
    for channel in [...] if out.ndim == 2 else [(..., c) for c in range(out.shape[2])]:
        parts = [one[channel] - first[channel] for one in resized[1:]] + moves(first[channel])
        out[channel] = first[channel] + sum(weight * part for weight, part in zip(found, parts, strict=True))
    return out.clip(0, 255), [float(one) for one in found[-4:]]


# --- coded again ---


def through_jpeg(pixels: np.ndarray, sampling: tuple[int, int], tables: tuple | None) -> np.ndarray:
    """uint8 in, uint8 out: through a JPEG with these steps (None: steps of 1), as libjpeg codes and decodes it."""
    image = Image.fromarray(pixels)
    options: dict = (
        {"qtables": [table.astype(int).ravel().tolist() for table in tables]} if tables else {"quality": 100}
    )
    if image.mode != "L":
        options["subsampling"] = {(1, 1): 0, (2, 1): 1}.get(sampling, 2)
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return np.asarray(Image.open(out))


def through_format(pixels: np.ndarray, format: str, quality: int | None) -> tuple[np.ndarray, int]:
    """(uint8 as pixels, bytes of the file)."""
    out, image = io.BytesIO(), Image.fromarray(pixels)
    image.save(out, format, **({} if quality is None else {"quality": quality}))
    return np.asarray(Image.open(out).convert(image.mode)), out.tell()


def at_length(pixels: np.ndarray, format: str, length: int, tries: int = 7) -> np.ndarray:
    """Through WebP or AVIF at the quality at which the file has the member's length, or nearly."""
    known = {0: 0.0, 101: np.inf}  # quality -> log of the length there, or a bound of it
    wanted, quality, best = np.log(length), 75, None
    for _ in range(tries):
        coded, bytes_now = through_format(pixels, format, quality)
        known[quality] = np.log(bytes_now)
        if best is None or abs(known[quality] - wanted) < best[0]:
            best = (abs(known[quality] - wanted), coded)
        below = max(q for q in known if known[q] <= wanted)
        above = min((q for q in known if known[q] > wanted and q > below), default=101)
        if bytes_now == length or above - below <= 1:
            break
        if below == 0 or above == 101:  # bounded from one side only: a step that doubles the length at most
            quality = quality + (15 if above == 101 else -15)
        else:
            share = (wanted - known[below]) / max(1e-6, known[above] - known[below])
            quality = below + round(share * (above - below))
        quality = int(np.clip(quality, below + 1, above - 1))
    return best[1]


def earlier_quality(predicted: np.ndarray, own: np.ndarray, last: np.ndarray | None) -> int | None:
    """IJG quality of the JPEG that the member seems to have been before, by its luma blocks; None: of none.

    predicted, own: planes, 128 taken off; last: steps that were applied afterwards, or None.
    """
    blocks, wanted = sample(predicted, own)
    finest = mean_error(blocks if last is None else last * np.round(blocks / last), wanted)
    found = None
    for quality in range(30, 99):
        steps = ijg_steps(LUMA_TABLE, quality)
        guess = steps * np.round(blocks / steps)
        if last is not None:
            guess = last * np.round(guess / last)
        off = mean_error(guess, wanted)
        if off < 0.6 * finest and (found is None or off < found[0]):
            found = (off, quality)
    return found and found[1]


def mean_error(blocks: np.ndarray, wanted: np.ndarray) -> float:
    """Median over blocks of the mean absolute difference of pixels: coefficients [n,8,8] against pixels [n,8,8]."""
    return float(np.median(np.abs(idctn(blocks, axes=(1, 2), norm="ortho").clip(-128, 127) - wanted).mean((1, 2))))


def sample(predicted: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(coefficients of the one, pixels of the other), [n,8,8] each, of some 400 whole blocks with something in them."""
    rows, columns = own.shape[0] // 8, own.shape[1] // 8
    if not rows or not columns:
        return coefficients(predicted)[0], np.pad(own, ((0, -own.shape[0] % 8), (0, -own.shape[1] % 8)), mode="edge")[
            None, :8, :8
        ]
    one, other = (
        plane[: rows * 8, : columns * 8].reshape(rows, 8, columns, 8).transpose(0, 2, 1, 3).reshape(-1, 8, 8)
        for plane in (predicted, own)
    )
    step = max(1, len(one) // 4000) | 1
    one, other = one[::step], other[::step]
    spread = one.std((1, 2))
    chosen = np.flatnonzero(spread >= max(1.0, np.median(spread)))
    chosen = chosen[:: max(1, len(chosen) // 400)] if chosen.size else np.arange(min(400, len(one)))
    return dctn(one[chosen], axes=(1, 2), norm="ortho"), other[chosen]


# --- explanations: what the member's coding makes of a prediction ---


@dataclass(frozen=True)
class Explanation:
    """references: planes (planes_of) that the member may equal, each block the one that suits it; bounds: for luma and
    chroma, what coding may have moved each coefficient by, broadcastable to [rows, columns, 8, 8]."""

    name: str
    references: list[np.ndarray]
    bounds: tuple[np.ndarray | float, np.ndarray | float]
    sampling: tuple[int, int]


def explanations(pixels: np.ndarray, own: np.ndarray, coding: Coding) -> Iterator[Explanation]:
    """Cheap and likely ones first. pixels: a prediction, uint8; own: the member's planes."""
    plain = planes_of(pixels)
    if coding.tables:
        sampling = coding.sampling
        bare = planes_of(through_jpeg(pixels, sampling, None))
        bounds = tuple(table / 2 for table in (coding.tables * 2)[:2])
        yield Explanation("JPEG", [bare, planes_of(through_jpeg(pixels, sampling, coding.tables))], bounds, sampling)
        if (quality := earlier_quality(plain[0] - 128, own[0] - 128, coding.tables[0])) is not None:
            first = (ijg_steps(LUMA_TABLE, quality), ijg_steps(CHROMA_TABLE, quality))
            again = through_jpeg(through_jpeg(pixels, sampling, first), sampling, coding.tables)
            both = tuple(bound + steps / 2 for bound, steps in zip(bounds, first, strict=True))
            yield Explanation(f"JPEG after q{quality}", [bare, planes_of(again)], both, sampling)
        return
    if coding.format in ("WEBP", "AVIF"):
        yield Explanation("lossless", [plain], (0.0, 0.0), (1, 1))
        sampling = (2, 2)
        bare = planes_of(through_jpeg(pixels, sampling, None))
        coded = planes_of(at_length(pixels, coding.format, coding.length))
        yield Explanation(coding.format, [bare, coded], coding_error(bare, coded, sampling), sampling)
        return
    yield Explanation("lossless", [plain], (0.0, 0.0), (1, 1))
    if coding.palette or coding.format == "GIF":
        coded = planes_of(through_format(pixels, "GIF", None)[0])
        yield Explanation("palette", [plain, coded], coding_error(plain, coded, (1, 1)), (1, 1))
        return
    if (quality := earlier_quality(plain[0] - 128, own[0] - 128, None)) is not None:
        first = (ijg_steps(LUMA_TABLE, quality), ijg_steps(CHROMA_TABLE, quality))
        for sampling in ((2, 2), (1, 1)) if len(own) == 3 else ((1, 1),):
            bare, coded = (planes_of(through_jpeg(pixels, sampling, tables)) for tables in (None, first))
            bounds = tuple(steps / 2 for steps in first)
            yield Explanation(f"JPEG q{quality} before", [bare, coded], bounds, sampling)


def coding_error(bare: np.ndarray, coded: np.ndarray, sampling: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Bounds for luma and chroma: what coding moved a coefficient by, at most, in a block and the eight around it."""
    parts = []
    for channel in range(len(bare)):
        own = (1, 1) if channel == 0 else sampling
        moved = np.abs(coefficients(subsampled(coded[channel] - bare[channel], own)))
        parts.append(maximum_filter(moved, (3, 3, 1, 1), mode="nearest"))
    return parts[0], np.maximum(*parts[1:]) if len(parts) == 3 else parts[0]


# --- the test ---


def judged(own: np.ndarray, why: Explanation, doubts: list[np.ndarray], keeper: list) -> Agreement:
    """The worst block's measures, over all planes. keeper: for luma and chroma, what the keeper's own coding may have
    moved each coefficient by; doubts: planes by which the prediction may be off."""
    worst = np.zeros(4)
    for channel in range(len(own)):
        sampling = (1, 1) if channel == 0 else why.sampling
        bound = why.bounds[min(channel, 1)] + keeper[min(channel, 1)] + np.zeros((8, 8), np.float32)
        flat = bound[..., 0, 0] / 8
        bound = bound + ROUNDING
        if doubts:
            off = [np.abs(coefficients(subsampled(one[channel], sampling))) for one in doubts]
            bound = bound + MIXTURE * np.max(off, axis=0)
        measures = []
        for reference in why.references:
            moved = coefficients(subsampled(own[channel] - reference[channel], sampling))
            beyond = np.maximum(np.abs(moved) - bound, 0) ** 2
            region = np.abs(uniform_filter(moved[..., 0, 0] / 8, 3, mode="nearest")) - flat
            measures.append(
                (
                    np.sqrt((beyond * _LOWEST).sum((2, 3))) / 8,
                    np.sqrt((beyond * ~_LOWEST).sum((2, 3))) / 8,
                    ((moved / bound) ** 2).mean((2, 3)),
                    region,
                )
            )
        each = np.min(measures, axis=0)  # [4, rows, columns]
        worst = np.maximum(worst, each.max((1, 2)))
    bad = worst > (LOW, HIGH, FILLED, REGION)
    return Agreement(not bad.any(), why.name, *worst.tolist())


def keeper_bounds(keeper: Image.Image, coding: Coding | None, member: tuple[int, int], noise: float) -> list:
    """For luma and chroma: what the keeper's own coding may have moved each of the member's coefficients by.

    noise: levels (root mean square) by which the keeper's pixels are off, where it is known by its bitstream alone.
    """
    share = min(1.0, member[0] / keeper.width)
    at = np.minimum(7, np.round(np.arange(8) * share).astype(int))
    bounds = []
    for place in (0, 1):
        bound = np.full((8, 8), 2.5 * noise, np.float32)
        if coding and coding.tables:
            bound = bound + share * (coding.tables * 2)[place][np.ix_(at, at)] / 2
        bounds.append(bound)
    return bounds


_TO_STORED = {  # EXIF orientation -> what brings the upright picture [h,w,...] to the way it lies in its file
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: a[:, ::-1].swapaxes(0, 1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[::-1].swapaxes(0, 1),
}  # fmt: skip


def agreement(
    keeper: Image.Image, keeper_coding: Coding | None, member: Image.Image, coding: Coding,
    box: tuple[float, float, float, float] | None = None, noise: float = 0.0,
) -> Agreement:  # fmt: skip
    stored = _TO_STORED[coding.orientation if coding.tables else 1]
    keeper_planes = keeper.convert(member.mode) if keeper.mode != member.mode else keeper
    pixels = np.asarray(member)
    own = planes_of(stored(pixels))
    bounds = keeper_bounds(keeper, keeper_coding, member.size, noise)
    best = None
    steps = coding.tables[0] if coding.tables and coding.orientation == 1 else None
    for predicted, doubts in predictions(keeper_planes, pixels, box, steps):
        predicted = np.ascontiguousarray(stored(predicted))
        doubted = [planes_of(stored(one)) for one in doubts]
        for why in explanations(predicted, own, coding):
            found = judged(own, why, doubted, bounds)
            if found.agrees:
                return found
            if best is None or found.excess < best.excess:
                best = found
    return best
