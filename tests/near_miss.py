"""Pairs of image files that a duplicate rule is tried on: near misses that are two pictures, true copies that are one.

`near_misses` gives at least 300 pairs of nineteen kinds that differ by what a person would miss (a digit, a shade, a
lesion, an eye, a clock); `true_copies` at least 300 where the second is the first re-encoded, resized or put into
another format. Built from skimage's photographs and drawings, deterministic by seed but for the codecs' versions.
What a rule makes of them is for the tests that use them; nothing is decoded or judged here.
"""

import io
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from skimage import data

PER_KIND = 17  # near misses of each kind
FILTERS = Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.BOX


class Pair(NamedTuple):
    kind: str
    detail: str  # what was changed, or how the copy was made
    first: bytes  # image files
    second: bytes
    quality: int | None = None  # of a copy that is coded with loss
    scale: float = 1.0  # the second's size over the first's


def encoded(picture: Image.Image, form: str, quality: int | None = None, **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options, **({} if quality is None else {"quality": quality}))
    return out.getvalue()


# Photographs and drawings


@cache
def _photograph(name: str) -> Image.Image:
    return Image.fromarray(getattr(data, name)()).convert("RGB")


PHOTOGRAPHS = "astronaut", "coffee", "chelsea", "rocket", "camera", "brick", "grass", "gravel", "coins", "retina"
SCENES = PHOTOGRAPHS[:5]


def photograph(rng: np.random.Generator, names=PHOTOGRAPHS, width=(280, 420)) -> Image.Image:
    """A cut of a photograph, of another size each time."""
    whole = _photograph(names[int(rng.integers(len(names)))])
    side = int(rng.integers(*width))
    wide, high = min(side, whole.width), min(side * 3 // 4, whole.height)
    left, top = int(rng.integers(whole.width - wide + 1)), int(rng.integers(whole.height - high + 1))
    return whole.crop((left, top, left + wide, top + high))


def font(size: float):
    return ImageFont.load_default(size)


def write(picture: Image.Image, place, words: str, size: float, colour=(30, 30, 30)) -> None:
    ImageDraw.Draw(picture).text(place, words, fill=colour, font=font(size))


def other_digit(rng, words: str) -> str:
    """The same words with one digit changed for one that looks like it, where there is one."""
    alike = {"0": "869", "1": "74", "2": "7", "3": "8", "4": "1", "5": "6", "6": "58", "7": "1", "8": "306", "9": "80"}
    places = [i for i, letter in enumerate(words) if letter.isdigit()]
    at = places[int(rng.integers(len(places)))]
    choice = alike[words[at]]
    return words[:at] + choice[int(rng.integers(len(choice)))] + words[at + 1 :]


def price(rng) -> str:
    return f"{int(rng.integers(1, 2000)):,}.{int(rng.integers(100)):02d}"


def blended(picture: Image.Image, mask: np.ndarray, colour, strength: float) -> Image.Image:
    """Towards a colour where mask [H,W], 0..1, says so."""
    pixels, share = np.asarray(picture, np.float64), (mask * strength)[:, :, None]
    return Image.fromarray(np.rint(pixels * (1 - share) + np.asarray(colour, np.float64) * share).astype(np.uint8))


def spot(shape, x: float, y: float, width: float, height: float | None = None, softness=0.15) -> np.ndarray:
    """[H,W], 0..1: an ellipse with soft edges."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    distance = np.hypot((columns - x) / width, (rows - y) / (height or width))
    return np.clip((1 + softness - distance) / (2 * softness), 0, 1)


def sky(rng, size=(360, 240)) -> Image.Image:
    top, bottom = rng.integers((60, 110, 170), (130, 170, 230)), rng.integers((150, 170, 200), (220, 225, 245))
    down = np.linspace(0, 1, size[1])[:, None, None]
    plain = top * (1 - down) + bottom * down + np.zeros((size[1], size[0], 3))
    return Image.fromarray(np.clip(plain + rng.normal(0, 1.2, plain.shape), 0, 255).astype(np.uint8))


def paper(rng, size=(420, 540)) -> Image.Image:
    return Image.new("RGB", size, tuple(int(v) for v in rng.integers(236, 256, 3)))


def written(blank: Image.Image, lines: list[str], size: float = 15) -> Image.Image:
    picture = blank.copy()
    for number, line in enumerate(lines):
        write(picture, (28, 24 + int(1.7 * size) * number), line, size)
    return picture


def textured(rng, colour, shape: tuple[int, int]) -> np.ndarray:
    """float64 [H,W,3]: cloth of about a colour."""
    whole = np.asarray(_photograph(("grass", "gravel", "brick")[int(rng.integers(3))]).convert("L"), np.float64)
    top, left = (int(rng.integers(side - length + 1)) for side, length in zip(whole.shape, shape, strict=True))
    cut = whole[top : top + shape[0], left : left + shape[1]]
    return np.asarray(colour, np.float64) + ((cut - cut.mean()) * rng.uniform(0.03, 0.12))[:, :, None]


def shirt(cloth: np.ndarray) -> Image.Image:
    """A shirt of a cloth, on white."""
    height, width = cloth.shape[:2]
    right = [(58, 12), (70, 8), (95, 30), (84, 44), (74, 36), (74, 90)]
    outline = right + [(100 - x, y) for x, y in reversed(right)]  # of 100 x 100
    mask = Image.new("L", (4 * width, 4 * height), 0)
    ImageDraw.Draw(mask).polygon([(x * width / 25, y * height / 25) for x, y in outline], fill=255)
    share = np.asarray(mask.resize((width, height), Image.Resampling.BOX), np.float64)[:, :, None] / 255
    return Image.fromarray(np.clip(np.rint(255 + share * (cloth - 255)), 0, 255).astype(np.uint8))


def face(rng, closed: bool) -> Image.Image:
    """A drawn face, with its left eye open or closed; `rng` must stand at the same place for both."""
    skin = tuple(int(v) for v in rng.integers((150, 100, 70), (240, 200, 170)))
    iris = tuple(int(v) for v in rng.integers(20, 140, 3))
    picture = photograph(rng, width=(320, 330)).filter(ImageFilter.GaussianBlur(4)).resize((320, 300))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((70, 30, 250, 280), fill=skin)
    for x, shut in ((120, closed), (200, False)):
        if shut:
            draw.arc((x - 18, 108, x + 18, 128), 10, 170, fill=(60, 40, 30), width=3)
        else:
            draw.ellipse((x - 18, 108, x + 18, 130), fill=(250, 250, 250), outline=(60, 40, 30))
            draw.ellipse((x - 8, 110, x + 8, 128), fill=iris)
            draw.ellipse((x - 3, 115, x + 3, 123), fill=(10, 10, 10))
    draw.arc((110, 190, 210, 240), 20, 160, fill=(150, 60, 60), width=5)
    return picture


def screen(rng, clock: str, unread: str, size=(400, 300)) -> Image.Image:
    """A telephone's or a desk's screen: bars, a list of messages, a picture."""
    picture = Image.new("RGB", size, tuple(int(v) for v in rng.integers(225, 250, 3)))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, size[0], 22), fill=tuple(int(v) for v in rng.integers(20, 90, 3)))
    write(picture, (size[0] - 46, 4), clock, 12, (240, 240, 240))
    write(picture, (8, 4), f"Inbox ({unread})", 12, (240, 240, 240))
    picture.paste(photograph(rng, SCENES).resize((120, 90)), (270, 40))
    for row in range(8):
        words = rng.permutation(["hello", "minutes", "of", "the", "meeting", "tomorrow", "photographs", "roof"])
        write(picture, (10, 34 + 30 * row), " ".join(words[:4]), 12)
        draw.line((10, 56 + 30 * row, 255, 56 + 30 * row), fill=(200, 200, 200))
    return picture


# Near misses: each gives (first, second, what was changed)


def digit(rng):
    """A product with its capacity below: 32 GB and 38 GB."""
    picture = shirt(textured(rng, rng.integers(30, 220, 3), (280, 300)))
    words = f"{int(rng.integers(12, 99))} {('GB', 'ml', 'mm', 'W')[int(rng.integers(4))]}"
    changed, size = other_digit(rng, words), int(rng.integers(12, 22))
    first, second = picture.copy(), picture
    for one, what in ((first, words), (second, changed)):
        write(one, (150 - 2 * size, 278 - size), what, size)
    return first, second, f"{words}, {changed}"


def price_tag(rng):
    picture, words = photograph(rng), "$" + price(rng)
    changed, size = "$" + other_digit(rng, words[1:]), int(rng.integers(13, 20))
    x, y = int(rng.integers(10, picture.width - 120)), int(rng.integers(10, picture.height - 50))
    ImageDraw.Draw(picture).rectangle((x - 6, y - 4, x + size * 5, y + size + 8), fill=(244, 238, 214))
    first, second = picture.copy(), picture
    write(first, (x, y), words, size)
    write(second, (x, y), changed, size)
    return first, second, f"{words}, {changed}"


def _invoice(rng) -> list[str]:
    goods = ["Slate, 12 pieces", "Gutter, 4 m", "Nails", "Work, 6 h", "Way there and back", "Lead flashing"]
    lines = ["J. Miller & Sons, roofers", f"Invoice {int(rng.integers(1000, 9999))}", "12.03.2024", ""]
    lines += [f"{what}   {price(rng)}" for what in rng.permutation(goods)]
    return [*lines, "", f"Total due   {price(rng)}", "", "To be paid within 14 days"]


def _changed_line(rng, number: int):
    lines, blank, size = _invoice(rng), paper(rng), int(rng.integers(12, 17))
    changed = [*lines]
    changed[number] = other_digit(rng, lines[number])
    return written(blank, lines, size), written(blank, changed, size), f"{lines[number]}, {changed[number]}"


def invoice_total(rng):
    return _changed_line(rng, -3)


def invoice_date(rng):
    return _changed_line(rng, 2)


def shade(rng):
    """The same shirt in the next colour of the catalogue."""
    colour = rng.integers(25, 215, 3)
    step = np.zeros(3)
    step[int(rng.integers(3))] = rng.choice([-1, 1]) * rng.integers(14, 26)
    if rng.random() < 0.5:
        step[:] = step.sum() * 0.8
    seed = int(rng.integers(1 << 30))
    first, second = (shirt(textured(np.random.default_rng(seed), tint, (280, 300))) for tint in (colour, colour + step))
    return first, second, f"{colour.tolist()}, {np.rint(step).tolist()}"


def paint(rng):
    """A plain swatch with its number, and the next number's."""
    colour = rng.integers(90, 250, 3)
    other = np.clip(colour + rng.choice([-1, 1], 3) * rng.integers(5, 9, 3), 0, 255)
    first, second = (Image.new("RGB", (300, 260), tuple(int(v) for v in tint)) for tint in (colour, other))
    return first, second, f"{colour.tolist()}, {other.tolist()}"


def small_object(rng):
    """A ball, a mug, a bird that lies there in one of the two."""
    picture = photograph(rng)
    size, x = rng.uniform(4, 9), rng.uniform(20, picture.width - 20)
    mask = spot((picture.height, picture.width), x, rng.uniform(20, picture.height - 20), size, size * 0.8)
    here = np.asarray(picture, np.float64)[mask > 0.5].mean(0)
    return picture, blended(picture, mask, np.where(here > 127, here - 90, here + 90), 1), f"radius {size:.0f}"


def sky_object(rng):
    """An aeroplane, a balloon in the sky."""
    picture = sky(rng)
    x, y, size = rng.uniform(30, 330), rng.uniform(20, 200), rng.uniform(3, 7)
    mask = np.maximum(spot((240, 360), x, y, size, size / 3), spot((240, 360), x, y, size / 3, size))
    return picture, blended(picture, mask, (60, 60, 70), rng.uniform(0.35, 0.9)), f"span {2 * size:.0f}"


def lesion(rng):
    """A retina with and without a soft spot."""
    whole = _photograph("retina").crop((250, 250, 1150, 1150)).resize((450, 450), Image.Resampling.LANCZOS)
    left, top = (int(v) for v in rng.integers(0, 100, 2))
    picture = whole.crop((left, top, left + 350, top + 350))
    size = rng.uniform(9, 22)
    mask = spot((350, 350), rng.uniform(60, 290), rng.uniform(60, 290), size, softness=0.5)
    return picture, blended(picture, mask, (70, 20, 10), rng.uniform(0.15, 0.4)), f"radius {size:.0f}"


def watermark(rng):
    picture = photograph(rng, SCENES, (360, 420))
    mask = Image.new("L", picture.size, 0)
    words, size = ("PROOF", "sample", "(c) J. Doe")[int(rng.integers(3))], int(rng.integers(26, 60))
    ImageDraw.Draw(mask).text((picture.width // 10, picture.height // 3), words, fill=255, font=font(size))
    strength = rng.uniform(0.1, 0.4)
    return picture, blended(picture, np.asarray(mask) / 255, (255, 255, 255), strength), f"{words} {strength:.2f}"


def logo(rng):
    """A small mark in a corner."""
    picture = photograph(rng)
    second = picture.copy()
    x, y = picture.width - 44, picture.height - 24
    ImageDraw.Draw(second).ellipse((x, y, x + 16, y + 16), outline=(250, 250, 250), width=2)
    write(second, (x + 19, y + 2), "tv", 12, (250, 250, 250))
    return picture, second, "corner"


def closed_eye(rng):
    """A drawn face that winks, or a photograph's eye painted over."""
    if rng.random() < 0.5:
        seed = int(rng.integers(1 << 30))
        first, second = (face(np.random.default_rng(seed), closed) for closed in (False, True))
        return first, second, "drawn"
    left, top = (int(v) for v in rng.integers(0, 60, 2))
    picture = _photograph("astronaut").crop((80 + left, top, 340 + left, 220 + top))
    x, y = (202, 247)[int(rng.integers(2))] - 80 - left, 102 - top
    skin = np.asarray(picture, np.float64)[y + 14 : y + 18, x - 4 : x + 4].mean((0, 1))
    second = blended(picture, spot((220, 260), x, y, 15, 8, 0.3), skin, 1)
    ImageDraw.Draw(second).arc((x - 12, y - 6, x + 12, y + 5), 10, 170, fill=(90, 60, 50), width=2)
    return picture, second, "photograph"


def clock(rng):
    """A screenshot a minute or an hour later."""
    seed, unread = int(rng.integers(1 << 30)), str(int(rng.integers(1, 99)))
    now = f"{int(rng.integers(10, 24))}:{int(rng.integers(60)):02d}"
    later = other_digit(rng, now)
    first, second = (screen(np.random.default_rng(seed), time, unread) for time in (now, later))
    return first, second, f"{now}, {later}"


def unread_count(rng):
    seed, unread = int(rng.integers(1 << 30)), str(int(rng.integers(1, 99)))
    other = other_digit(rng, unread)
    first, second = (screen(np.random.default_rng(seed), "10:24", count) for count in (unread, other))
    return first, second, f"{unread}, {other}"


def signature(rng):
    """A page before and after it was signed."""
    first = written(paper(rng), _invoice(rng), 14)
    second = first.copy()
    x, y = int(rng.integers(40, 250)), int(rng.integers(420, 480))
    points = [(x + 5 * k, y + float(rng.normal(0, 9))) for k in range(22)]
    ImageDraw.Draw(second).line(points, fill=(30, 40, 120), width=2, joint="curve")
    return first, second, "signed"


def number_plate(rng):
    picture, words = photograph(rng, ("coffee", "chelsea", "rocket", "gravel")), f"RK {int(rng.integers(100, 9999))}"
    changed = other_digit(rng, words)
    x, y = int(rng.integers(10, picture.width - 90)), int(rng.integers(10, picture.height - 30))
    ImageDraw.Draw(picture).rectangle((x - 4, y - 3, x + 66, y + 17), fill=(245, 245, 245), outline=(20, 20, 20))
    first, second = picture.copy(), picture
    write(first, (x, y), words, 13)
    write(second, (x, y), changed, 13)
    return first, second, f"{words}, {changed}"


def star(rng):
    """A night sky with one star more: a supernova, a satellite."""
    rows, columns = np.mgrid[:240, :320]
    night = rng.normal(14, 2, (240, 320))
    for _ in range(60):
        x, y, light = rng.uniform(5, 315), rng.uniform(5, 235), rng.exponential(60)
        night += light * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 1.2)
    x, y = rng.uniform(20, 300), rng.uniform(20, 220)
    more = night + rng.uniform(60, 160) * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 1.5)
    first, second = (np.clip(np.rint(one), 0, 255).astype(np.uint8) for one in (night, more))
    return Image.fromarray(first), Image.fromarray(second), f"at {x:.0f}, {y:.0f}"


def crack(rng):
    """A wall, a coin, a road surface with a crack."""
    picture = photograph(rng, ("brick", "gravel", "coins", "grass"))
    second = picture.copy()
    x, y = rng.uniform(30, picture.width - 110), rng.uniform(30, picture.height - 60)
    points = [(x + 9 * k, y + 3 * k + float(rng.normal(0, 4))) for k in range(8)]
    ImageDraw.Draw(second).line(points, fill=(15, 15, 15), width=2)
    return picture, second, "crack"


def moved(rng):
    """A game piece, a pin, a cursor in another place."""
    picture = photograph(rng)
    colour, size = tuple(int(v) for v in rng.choice([20, 235], 3)), int(rng.integers(5, 10))
    x, y = int(rng.integers(30, picture.width - 60)), int(rng.integers(30, picture.height - 40))
    first, second = picture.copy(), picture
    for one, shift in ((first, 0), (second, int(rng.integers(size, 3 * size)))):
        ImageDraw.Draw(one).ellipse((x + shift - size, y - size, x + shift + size, y + size), fill=colour)
    return first, second, f"radius {size}"


KINDS: tuple[Callable, ...] = (
    digit, price_tag, invoice_total, invoice_date, shade, paint, small_object, sky_object, lesion, watermark, logo,
    closed_eye, clock, unread_count, signature, number_plate, star, crack, moved,
)  # fmt: skip


def clean_pair(kind: Callable, number: int, seed: int = 0) -> tuple[Image.Image, Image.Image, str]:
    """One near miss before it is coded: two pictures of one size, RGB or L."""
    return kind(np.random.default_rng([seed, KINDS.index(kind), number]))


def near_misses(seed: int = 0, per_kind: int = PER_KIND) -> Iterator[Pair]:
    """Pairs that must both be kept. The second is often coded coarser, every fifth is reduced too: as the copies of
    true_copies are, so that no rule can tell them by the coding alone."""
    for kind in KINDS:
        for number in range(per_kind):
            first, second, detail = clean_pair(kind, number, seed)
            rng = np.random.default_rng([seed + 1, KINDS.index(kind), number])
            if rng.random() < 0.5:  # which of the two came first, or is the larger file
                first, second = second, first
            scale = float(rng.choice([0.7, 0.85])) if number % 5 == 4 else 1.0
            if scale < 1:
                second = second.resize([round(side * scale) for side in second.size], Image.Resampling.LANCZOS)
            quality = int(rng.integers(75, 96))
            form = ("PNG", "JPEG", "JPEG", "WEBP")[number % 4]
            coarser = None if form == "PNG" else quality - int(rng.integers(0, 25))
            data = encoded(first, "JPEG", quality) if number % 3 else encoded(first, "PNG")
            yield Pair(kind.__name__, detail, data, encoded(second, form, coarser), coarser, scale)


# True copies


def _bases(rng) -> list[Image.Image]:
    """What is copied: photographs, pages, screens, products, the night sky."""
    drawn = [
        written(paper(rng), _invoice(rng), 15),
        screen(rng, "10:24", "7"),
        shirt(textured(rng, rng.integers(30, 220, 3), (280, 300))),
        sky(rng),
        star(rng)[0],
        face(rng, False),
    ]
    return [photograph(rng, (name,)) for name in PHOTOGRAPHS] + drawn


def _copies(rng, picture: Image.Image) -> Iterator[Pair]:
    original = encoded(picture, "PNG")
    as_jpeg = encoded(picture, "JPEG", int(rng.integers(88, 97)))
    decoded = Image.open(io.BytesIO(as_jpeg))
    for quality in (30, 40, 50, 65, 80, 95):
        options = {"subsampling": int(rng.integers(3)), "progressive": bool(rng.integers(2))}
        of_jpeg = bool(rng.integers(2))
        data = encoded(decoded if of_jpeg else picture, "JPEG", quality, **options)
        yield Pair(
            "jpeg", f"q{quality} of {'JPEG' if of_jpeg else 'PNG'}", as_jpeg if of_jpeg else original, data, quality
        )
    for form, qualities in (("WEBP", (40, 60, 80, 95)), ("AVIF", (40, 60, 80))):
        for quality in qualities:
            data = encoded(picture, form, quality, **({"speed": 9} if form == "AVIF" else {}))
            yield Pair(form.lower(), f"q{quality}", original, data, quality)
    for form in ("PNG", "TIFF", "BMP"):
        yield Pair("format", f"JPEG to {form}", as_jpeg, encoded(decoded, form))
    for scale in (0.25, 0.5, 0.75, float(rng.uniform(0.3, 0.9))):
        yield _resized("reduced", rng, picture, original, scale)
    for scale in (1.5, 2.0, 4.0):
        yield _resized("enlarged", rng, picture.resize([side // 2 for side in picture.size]), None, scale)


def _resized(kind, rng, picture, original, scale) -> Pair:
    size = [max(round(side * scale), 8) for side in picture.size]
    quality, how = int(rng.integers(75, 96)), FILTERS[int(rng.integers(len(FILTERS)))]
    data = encoded(picture.resize(size, how), "JPEG", quality)
    detail = f"{scale:.2f} {how.name.lower()} q{quality}"
    return Pair(kind, detail, original or encoded(picture, "PNG"), data, quality, scale)


def true_copies(seed: int = 0) -> Iterator[Pair]:
    """Pairs of which one may be given up for the other, `first` being the original."""
    rng = np.random.default_rng([seed, 77])
    for picture in _bases(rng):
        yield from _copies(rng, picture)
