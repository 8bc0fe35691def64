"""Is a picture a copy of another, everywhere: does its own re-encoding or resizing explain every difference?

A perceptual hash or an embedding only proposes; this disposes. Here: what a member must look like if it was made of
the keeper, and a test, 8x8 block by block, of whether it does. A mean never counts: one block that nothing explains
(a digit, a watermark, a shade, a lesion) makes the member a picture of its own. What coding does is recoding.py's,
views of a part are alignment.py's, which pairs are asked about and who keeps plan.py's and rules.py's.

    keeper ──resized: the filter that comes closest, or a mixture──▶ prediction ──coded as the member──▶ again
                                                                         │                                 │
    member ─────────── DCT of the difference to either, per 8x8 block, in luma and chroma ─────────────────┘
                                     │
          beyond what the member's (and the keeper's) coding can have moved?  ──▶ the worst block decides
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
from PIL import Image
from scipy.ndimage import uniform_filter

from codec.pictures.files import open_picture
from tasks.duplicates.recoding import (
    Coding,
    Explanation,
    block_error,
    coding_of,
    coefficients,
    explanations,
    luma_of,
    planes_of,
    requantised,
    sample,
    subsampled,
)

FILTERS = (
    Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.BOX,
    Image.Resampling.HAMMING,
)  # fmt: skip
CV_FILTERS = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)
DOUBTED = 4  # of FILTERS: where these differ, a mixture may be off
MIXTURE = 0.25  # share of that difference
NEXT_BEST = 1.5  # times the best filter's error: another one is tried too
ASTRAY = 0.75  # pixels of the member: most that its edges may lie beside where they should, by how a tool rounds

ROUNDING = 1.5  # of two roundings to 8 bits, at most about, in a coefficient of an orthonormal 8x8 DCT
LOW = 0.75  # levels: most that a block's mean and slopes may be off beyond what coding explains
HIGH = 1.5  # the same for its finer coefficients
FILLED = 0.7  # mean square of a block's differences, each by its own bound: quantisation alone gives a third
OUTLIER = 3.0  # times FILLED's measure in all but a twentieth of the blocks: most where that is less than FILLED ...
UNSEEN = 0.2  # ... but always allowed
REGION = 0.75  # levels: most that the mean over 3x3 blocks may be off beyond the half step of a flat area
MOST = np.array([LOW, HIGH, FILLED, REGION])
NOISY = 2.5  # times a keeper's noise (root mean square, levels): most that it moves a coefficient by, about
STRIP = 512  # rows that are judged at a time
FITTED, LEAST_FITTED = 250_000, 1024  # pixels, at most about, by which a mixture is found; smaller pictures have none

LEAST_PSNR = 12.0  # dB: no re-encoding or resizing of a picture goes below it; nothing more is tried then
HOPELESS = 300.0  # times a bound: no other filter or place explains that

SIMILAR = 27.0  # dB: what is no copy but agrees so well on the whole is called similar
FLAT_MARGIN = 14.0  # dB above what the picture's mean colour alone reaches: flat pictures agree by accident

_LOWEST = np.zeros((8, 8), bool)
_LOWEST[0, 0] = _LOWEST[0, 1] = _LOWEST[1, 0] = True
_TO_STORED = {  # EXIF's orientation -> what lays an upright picture [h,w,...] as it lies in its file
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: a[:, ::-1].swapaxes(0, 1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[::-1].swapaxes(0, 1),
}  # fmt: skip


Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the keeper


@dataclass(frozen=True)
class Original:
    """A picture (L, LA, RGB or RGBA, upright) with what its file says of its coding; None: nothing is known.

    noise: levels, root mean square, by which its pixels are off from the file's, where a bitstream stands for it.
    """

    image: Image.Image
    coding: Coding | None = None
    noise: float = 0.0


def original_of(data: bytes, max_pixels: int = 200_000_000) -> Original:
    """Raises codec.PictureError."""
    return Original(open_picture(data, max_pixels, checked=False).image, coding_of(data))


@dataclass(frozen=True)
class Agreement:
    """Whether a member is a copy of its keeper, and why or why not.

    psnr: dB, the keeper at the member's size (Lanczos) against the member, inf for equal pixels, nan where they were
    not compared. similar: no copy, but much the same on the whole. low, high, filled, region: the worst block's.
    """

    agrees: bool
    why: str
    psnr: float = float("nan")
    similar: bool = False
    low: float = 0.0
    high: float = 0.0
    filled: float = 0.0
    region: float = 0.0

    @property
    def exact(self) -> bool:
        """Equal pixels, alpha included."""
        return self.agrees and self.psnr == float("inf")

    @property
    def excess(self) -> float:
        """1 at the bound: the largest of the four measures, each by its own."""
        return float((np.array([self.low, self.high, self.filled, self.region]) / MOST).max())


def agreement(keeper: Original, member: Original, box: Box | None = None) -> Agreement:
    """Whether the member is a copy of the keeper, or of the part of it inside `box` (left, top, right, bottom).

    The keeper stands as the member shows it (alignment.turned). Both have alpha or neither. Never raises for pictures
    that can be decoded.
    """
    odd = next((one.image.mode for one in (keeper, member) if one.image.mode not in ("L", "LA", "RGB", "RGBA")), None)
    if odd is not None:
        return Agreement(False, f"pixels of mode {odd} are not compared")
    if ("A" in keeper.image.mode) != ("A" in member.image.mode):
        return Agreement(False, "only one of them has an alpha channel")
    source = keeper.image if keeper.image.mode == member.image.mode else keeper.image.convert(member.image.mode)
    given = source.resize(member.image.size, Image.Resampling.LANCZOS, box=box)
    psnr = psnr_between(given, member.image)
    if psnr == float("inf"):
        return Agreement(True, "equal pixels", psnr)
    if "A" in source.mode:
        if not same_alpha(source, member.image, box):
            return Agreement(False, "their alpha channels differ", psnr)
        source, member = on_grey(source), replace(member, image=on_grey(member.image))
    if psnr < LEAST_PSNR:
        return Agreement(False, f"the pixels agree to {psnr:.1f} dB only", psnr)
    found = _best(source, keeper, member, box)
    if found.agrees:
        return replace(found, psnr=psnr)
    return replace(found, psnr=psnr, similar=psnr >= needed_to_be_similar(np.asarray(member.image)))


def _best(source: Image.Image, keeper: Original, member: Original, box: Box | None) -> Agreement:
    """The first explanation that holds, or the one that comes closest."""
    coding = member.coding or Coding("")
    stored = _TO_STORED[coding.orientation if coding.tables else 1]
    pixels = np.asarray(member.image)
    own = np.ascontiguousarray(stored(pixels))
    steps = coding.tables[0] if coding.tables and coding.orientation == 1 else None
    bounds = keeper_bounds(keeper, member.image.width / (box[2] - box[0] if box else source.width))
    best = Agreement(False, "nothing was compared", high=float("inf"))
    for predicted, others in predictions(source, pixels, box, steps):
        predicted = np.ascontiguousarray(stored(predicted))
        doubted = [np.ascontiguousarray(stored(other)) for other in others]
        for why in explanations(predicted, own, coding):
            found = judged(own, predicted, why, doubted, bounds)
            if found.agrees:
                return found
            if found.excess < best.excess:
                best = found
        if best.excess > HOPELESS:
            break
    return best


# --- predictions: the keeper at the member's size ---


def predictions(
    keeper: Image.Image, member: np.ndarray, box: Box | None, steps: np.ndarray | None
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """(pixels, [the same by other filters]), uint8, that the member may have been before it was coded.

    At equal size the keeper itself; else the filter that comes closest, the next one where it is as good, and a mixture
    of all (with others, where it may be off); then again with the keeper's edges where the mixture found them to lie.
    steps: the member's luma steps [8,8], which help to choose.
    """
    size = (member.shape[1], member.shape[0])
    if box is not None and all(edge == round(edge) for edge in box):  # most parts were cut first, then resized
        keeper, box = keeper.crop((int(box[0]), int(box[1]), int(box[2]), int(box[3]))), None
    if box is None and keeper.size == size:
        yield np.asarray(keeper), []
        return
    box = box or (0.0, 0.0, float(keeper.width), float(keeper.height))
    for last in (False, True):
        resized = resized_by_all(keeper, size, box)
        off = [block_error(requantised(blocks, steps), own) for blocks, own in (sample(one, member) for one in resized)]
        first, second = np.argsort(off, kind="stable")[:2]
        yield resized[first], []
        if off[second] < NEXT_BEST * off[first]:
            yield resized[second], []
        if size[0] * size[1] < LEAST_FITTED:
            return
        mixed, (right, below, wider, higher) = mixture(resized, member)
        yield mixed, resized[:DOUBTED]
        if last or max(abs(right) + abs(wider), abs(below) + abs(higher)) > ASTRAY:
            return
        if max(map(abs, (right, below, wider, higher))) < 0.02:
            return
        across, down = (box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1]
        box = (
            box[0] + (right - wider) * across, box[1] + (below - higher) * down,
            box[2] + (right + wider) * across, box[3] + (below + higher) * down,
        )  # fmt: skip


def resized_by_all(keeper: Image.Image, size: tuple[int, int], box: Box) -> list[np.ndarray]:
    """uint8: the box of the keeper (it may reach over its edges) at this size, by every filter."""
    over = max(0.0, -box[0], -box[1], box[2] - keeper.width, box[3] - keeper.height)
    margin = int(np.ceil(over))
    if margin:
        pad = ((margin, margin), (margin, margin), (0, 0))[: np.asarray(keeper).ndim]
        keeper = Image.fromarray(np.pad(np.asarray(keeper), pad, mode="edge"))
        box = (box[0] + margin, box[1] + margin, box[2] + margin, box[3] + margin)
    resized = [np.asarray(keeper.resize(size, one, box=box)) for one in FILTERS]
    source = np.asarray(keeper)
    if all(edge == round(edge) for edge in box):
        left, top, right, bottom = (int(edge) for edge in box)
        return resized + [cv2.resize(source[top:bottom, left:right], size, interpolation=one) for one in CV_FILTERS]
    across, down = (box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1]  # OpenCV's resize knows no fractions
    place = np.array([[across, 0, box[0] + across / 2 - 0.5], [0, down, box[1] + down / 2 - 0.5]])
    flags = (cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
    return resized + [cv2.warpAffine(source, place, size, flags=one, borderMode=cv2.BORDER_REPLICATE) for one in flags]


def mixture(resized: list[np.ndarray], member: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """The mixture of filters (weights sum to 1), shifted and stretched by fractions of a pixel, that comes closest to
    the member by robust least squares over the whole: eleven numbers at most, which explain no detail.

    uint8, and where its pixels were found: shift to the right and down, half of how much wider and higher, in pixels.
    """
    height, width = member.shape[:2]
    bands = max(1, height * width // FITTED)
    tops = [top for at, top in enumerate(range(0, height, 16)) if at % bands == bands // 2] or [0]
    parts = [_columns([one[top : top + 16] for one in resized], top, height) for top in tops]
    matrix = np.concatenate([np.stack([column.ravel() for column in part[1:]], axis=1) for part in parts])
    first = np.concatenate([part[0].ravel() for part in parts])
    wanted = np.concatenate([luma_of(member[top : top + 16]).ravel() for top in tops]) - first
    weights = np.ones(len(wanted), np.float32)
    for _ in range(4):  # iteratively reweighted: what was changed in the member does not pull
        weighted = matrix * weights[:, None]
        square = weighted.T @ matrix
        square += np.eye(len(square), dtype=np.float32) * (1e-4 * np.trace(square) / len(square) + 1e-3)
        found = np.linalg.solve(square, weighted.T @ wanted)
        rest = wanted - matrix @ found
        weights = 1 / (1 + (rest / (2 * max(0.5, 1.5 * float(np.median(np.abs(rest)))))) ** 2)
    out = np.empty_like(resized[0])
    for top in range(0, height, STRIP):
        above = max(0, top - 1)
        strips = [one[above : top + STRIP + 1] for one in resized]
        for channel in [...] if out.ndim == 2 else [(..., c) for c in range(out.shape[2])]:
            start, *moves = _columns([strip[channel] for strip in strips], above, height)
            mixed = start + sum(weight * move for weight, move in zip(found, moves, strict=True))
            out[top : top + STRIP][channel] = mixed[top - above :][:STRIP].clip(0, 255).round()
    return out, [float(one) for one in found[-4:]]


def _columns(strips: list[np.ndarray], top: int, height: int) -> list[np.ndarray]:
    """float32 [h,w] each: luma of the first filter's strip; less it, the others'; its slopes; these by place."""
    lumas = [luma_of(strip) for strip in strips]
    first = lumas[0]
    right = np.gradient(first, axis=1) if first.shape[1] > 1 else 0 * first
    below = np.gradient(first, axis=0) if first.shape[0] > 1 else 0 * first
    across = np.linspace(-1, 1, first.shape[1], dtype=np.float32)[None, :]
    down = (2 * (top + np.arange(first.shape[0], dtype=np.float32)) / max(1, height - 1) - 1)[:, None]
    return [first, *(luma - first for luma in lumas[1:]), right, below, right * across, below * down]


# --- the test ---


def judged(
    own: np.ndarray, predicted: np.ndarray, why: Explanation, doubted: list[np.ndarray], keeper: list[np.ndarray]
) -> Agreement:
    """The worst block's measures, over all planes. keeper: for luma and chroma, float32 [8,8], what the keeper's own
    coding may have moved coefficients by; doubted: the prediction by other filters."""
    channels = len(planes_of(own[:1]))
    found: list[list[np.ndarray]] = [[] for _ in range(channels)]
    for top in range(0, own.shape[0], STRIP):
        rows = slice(top, top + STRIP)
        strip, base = planes_of(own[rows]), planes_of(predicted[rows])
        references = [planes_of(reference[rows]) for reference in why.references]
        others = [planes_of(other[rows]) - base for other in doubted]
        for channel in range(channels):
            sampling = why.sampling if channel else (1, 1)

            def blocks(plane: np.ndarray, sampling: tuple[int, int] = sampling) -> np.ndarray:
                return coefficients(subsampled(plane, sampling))

            moved = blocks(references[1][channel] - references[0][channel]) if why.bounds is None else None
            bound = why.bound(moved, channel > 0) + keeper[channel > 0]
            doubt = np.max([np.abs(blocks(other[channel])) for other in others], axis=0) if others else 0.0
            off = [blocks(strip[channel] - reference[channel]) for reference in references]
            found[channel].append(np.min([measures(one, bound, MIXTURE * doubt) for one in off], axis=0))
    return verdict([np.concatenate(parts, axis=1) for parts in found], why)


def verdict(found: list[np.ndarray], why: Explanation) -> Agreement:
    """found: `measures` of each plane. A block that is filled far more than most of its plane stands out."""
    worst, place = np.zeros(4), (0, 0)
    for channel, each in enumerate(found):
        usual = max(UNSEEN, OUTLIER * float(np.quantile(each[2], 0.95)))
        each[2] *= FILLED / min(FILLED, usual)
        excess = (each / MOST[:, None, None]).max(0)
        if excess.max() > (worst / MOST).max():
            row, column = np.unravel_index(excess.argmax(), excess.shape)
            across, down = why.sampling if channel else (1, 1)
            place = (int(column) * 8 * across, int(row) * 8 * down)
        worst = np.maximum(worst, each.max((1, 2)))
    agrees = bool((worst <= MOST).all())
    words = f"explained as {why.name}" if agrees else f"they differ in the block at {place[0]}, {place[1]}"
    low, high, filled, region = worst.tolist()
    return Agreement(agrees, words, low=low, high=high, filled=filled, region=region)


def measures(moved: np.ndarray, bound: np.ndarray, doubt: np.ndarray | float) -> np.ndarray:
    """LOW's, HIGH's, FILLED's and REGION's measure of each block, [4,rows,columns], of differences [rows,columns,8,8]
    of which `bound` is explained by coding and `doubt` by how a picture is resized."""
    total = bound + ROUNDING + doubt
    beyond = np.maximum(np.abs(moved) - total, 0) ** 2
    mean = np.abs(uniform_filter(moved[..., 0, 0] / 8, 3, mode="nearest"))
    return np.stack(
        [
            np.sqrt((beyond * _LOWEST).sum((2, 3))) / 8,
            np.sqrt((beyond * ~_LOWEST).sum((2, 3))) / 8,
            ((moved / total) ** 2).mean((2, 3)),
            np.maximum(mean - bound[..., 0, 0] / 8, 0),
        ]
    )


def keeper_bounds(keeper: Original, scale: float) -> list[np.ndarray]:
    """For luma and chroma, float32 [8,8]: what the keeper's own coding may have moved a member's coefficients by.

    scale: pixels of the member to one of the keeper. Where it is reduced, several blocks of the keeper lie in one of
    the member's, with the steps of lower frequencies, and their errors average.
    """
    share = min(1.0, scale)
    at = np.minimum(7, np.round(np.arange(8) * share).astype(int))
    noise = np.full((8, 8), NOISY * keeper.noise, np.float32)
    if not keeper.coding or not keeper.coding.tables:
        return [noise, noise]
    return [noise + share * table[np.ix_(at, at)] / 2 for table in (keeper.coding.tables * 2)[:2]]


# --- the whole ---


def psnr_between(one: Image.Image, other: Image.Image) -> float:
    """dB over all channels, alpha included; inf for equal pixels."""
    a, b = np.asarray(one), np.asarray(other)
    total = 0.0
    for top in range(0, a.shape[0], STRIP):
        total += float(((a[top : top + STRIP].astype(np.float32) - b[top : top + STRIP]) ** 2).sum(dtype=np.float64))
    return float("inf") if not total else float(10 * np.log10(255.0**2 * a.size / total))


def needed_to_be_similar(pixels: np.ndarray) -> float:
    """dB at which two pictures are much the same on the whole: SIMILAR, or more where there is little in them."""
    spread = float(np.mean(np.var(pixels.reshape(-1, pixels.shape[2] if pixels.ndim == 3 else 1), axis=0)))
    return max(SIMILAR, 10 * np.log10(255.0**2 / max(spread, 1e-6)) + FLAT_MARGIN)


def same_alpha(keeper: Image.Image, member: Image.Image, box: Box | None) -> bool:
    """Whether the member's alpha is the keeper's, by one of the filters where it was resized (within 2 levels)."""
    mine, own = keeper.getchannel("A"), np.asarray(member.getchannel("A"), np.int16)
    if box is None and mine.size == member.size:
        return bool(np.array_equal(np.asarray(mine), own))
    return any(np.abs(np.asarray(mine.resize(member.size, one, box=box)) - own).max() <= 2 for one in FILTERS)


def on_grey(image: Image.Image) -> Image.Image:
    """L or RGB: as shown on a grey of 128, so that what alpha hides is not compared."""
    alpha = image.getchannel("A")
    plain = image.convert("L" if image.mode == "LA" else "RGB")
    return Image.composite(plain, Image.new(plain.mode, plain.size, 128 if plain.mode == "L" else (128,) * 3), alpha)
