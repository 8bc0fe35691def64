"""Pictures whose content looks like noise to a filter, and that no denoiser may touch: drawn, or made of skimage's.

`textured(seed)` yields (name, picture): star fields, halftones, dithering, sand, textures, weaves, static, film grain,
engraving, stippling, snow, drawings and text. Names begin with the kind. Numbers in a name say what was varied: pitch
and angle, noise of the sky, share. test_noise.py, test_impulses.py and bench_denoise_default.py use it.
"""

from collections.abc import Iterator

import numpy as np
import skimage.data
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter, zoom

SIDE = 384
BAYER = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]) / 16 + 1 / 32
FAMILIES = (
    "stars", "halftone", "dither", "sand", "texture", "fabric", "static", "grain", "lines", "points", "drawing",
)  # fmt: skip


def textured(seed: int = 0, families: tuple[str, ...] = FAMILIES) -> Iterator[tuple[str, Image.Image]]:
    """All pictures of the families, each of at most 512x512; the same for the same seed."""
    for family in families:
        rng = np.random.default_rng([seed, FAMILIES.index(family)])
        for name, samples in globals()[f"_{family}"](rng):
            image = samples if isinstance(samples, Image.Image) else _picture(samples)
            yield f"{family} {name}", image


def _picture(samples: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(samples), 0, 255).astype(np.uint8))


def _grey(name: str) -> np.ndarray:
    """float [SIDE, SIDE] of a photograph of skimage."""
    image = Image.fromarray(getattr(skimage.data, name)()).convert("L")
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), float)


def _colour(name: str) -> np.ndarray:
    image = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), float)


def _grid() -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(float)
    return rows, columns


def _unit(field: np.ndarray) -> np.ndarray:
    return (field - field.mean()) / field.std()


def _sky(rng, count: int, spread: float, noise: float, level: float, saturated: bool = False) -> np.ndarray:
    """A star field: brightness falls by a power law, colours vary; `spread` is the profile's sigma (0: one pixel)."""
    stars = np.zeros((SIDE, SIDE, 3))
    flux = np.full(count, 255.0) if saturated else np.minimum(40 * rng.pareto(1.2, count) + 40, 255 * (1 + 12 * spread))
    tint = 1 if saturated else rng.uniform(0.75, 1.0, (count, 3))
    np.add.at(stars, (rng.integers(0, SIDE, count), rng.integers(0, SIDE, count)), flux[:, None] * tint)
    if spread:
        stars = gaussian_filter(stars, (spread, spread, 0)) * (1 + 4 * spread**2)
    sky = np.array([0.8, 0.9, 1.2]) * level * np.linspace(0.6, 1.4, SIDE)[:, None, None]
    return sky + stars + rng.normal(0, noise, stars.shape)


def _stars(rng):
    for count in (200, 1500, 6000):
        for spread in (0.0, 0.6, 1.2):
            for noise, level in ((0.0, 4), (3.0, 10), (8.0, 24), (14.0, 50)):
                yield f"{count} of {spread:g}, sky {level} +- {noise:g}", _sky(rng, count, spread, noise, level)
    for level in (3, 20, 60, 90):
        yield f"saturated points, sky {level}", _sky(rng, 3000, 0.0, 1.5, level, saturated=True)
    for noise in (1.0, 9.0):  # above a landscape
        sky, ground = _sky(rng, 1500, 0.0, noise, 20, noise < 2), _colour("coffee")
        sky[SIDE * 2 // 3 :] = ground[SIDE * 2 // 3 :] * 0.5 + rng.normal(0, noise, (SIDE - SIDE * 2 // 3, SIDE, 3))
        yield f"over a landscape +- {noise:g}", sky
    yield "hubble", Image.fromarray(skimage.data.hubble_deep_field()).crop((200, 200, 712, 712))
    yield "rocket at night", Image.fromarray(skimage.data.rocket()).crop((0, 0, 512, 427))


def _screen(pitch: float, angle: float) -> np.ndarray:
    """A cosine dot screen, 0..1, of `pitch` pixels at `angle` degrees."""
    rows, columns = _grid()
    turn = np.deg2rad(angle)
    u = (columns * np.cos(turn) + rows * np.sin(turn)) * 2 * np.pi / pitch
    v = (rows * np.cos(turn) - columns * np.sin(turn)) * 2 * np.pi / pitch
    return (2 + np.cos(u) + np.cos(v)) / 4


def _halftone(rng):
    face, cup = _grey("astronaut"), _colour("coffee")
    for pitch in (2.5, 3, 4, 5.7, 8):
        for angle in (0, 15, 45, 75):
            yield f"pitch {pitch:g} at {angle}", 255.0 * (face / 255 > _screen(pitch, angle))
    for pitch in (3.3, 4.6, 7):
        rosette = np.stack([255.0 * (cup[..., c] / 255 > _screen(pitch, 15 + 30 * c)) for c in range(3)], -1)
        yield f"colour, pitch {pitch:g}", rosette
        scanned = gaussian_filter(rosette, (0.7, 0.7, 0)) * 0.85 + 20
        yield f"colour, scanned, pitch {pitch:g}", scanned + rng.normal(0, 4, rosette.shape)
    scanned = gaussian_filter(255.0 * (face / 255 > _screen(5, 45)), 0.8) * 0.8 + 25
    yield "scanned with noise", scanned + rng.normal(0, 9, scanned.shape)


def _dither(rng):
    for name in ("astronaut", "coffee", "chelsea"):
        photograph = _picture(_colour(name))
        yield f"{name}, black and white", photograph.convert("1").convert("L")
        for colours in (8, 16, 64, 256):
            palette = photograph.quantize(colours)
            yield f"{name}, {colours} colours", photograph.quantize(palette=palette, dither=1).convert("RGB")
        yield f"{name}, web palette", photograph.convert("P").convert("RGB")
        yield f"{name}, palette", photograph.convert("P")
        levels = np.tile(BAYER, (SIDE // 4, SIDE // 4))
        grey = np.asarray(photograph.convert("L")) / 255
        yield f"{name}, ordered", 255.0 * (grey > levels)
        yield f"{name}, ordered, four levels", 85.0 * np.floor(grey * 3 + levels)
        yield f"{name}, white noise", 255.0 * (grey > rng.random(grey.shape))


def _sand(rng):
    rows, columns = _grid()
    dunes = 150 + 35 * np.sin(rows / 90 + columns / 200) + 15 * np.sin(columns / 60)
    base = np.array([1.08, 0.95, 0.72])
    for blur in (0.0, 0.5, 0.8, 1.5):
        for depth in (10, 22):
            grain = _unit(gaussian_filter(rng.normal(size=(SIDE, SIDE)), blur))
            yield f"grey, grain {blur:g}, depth {depth}", dunes + depth * grain
            yield f"grain {blur:g}, depth {depth}", (dunes + depth * grain)[..., None] * base
    coloured = gaussian_filter(rng.normal(size=(SIDE, SIDE, 3)), (0.4, 0.4, 0)) * 25
    yield "coloured grains", dunes[..., None] * base + coloured
    yield "coloured grains, white", dunes[..., None] * base + rng.normal(0, 14, (SIDE, SIDE, 3))
    shell = (rows - 190) ** 2 / 90**2 + (columns - 200) ** 2 / 120**2 < 1
    smooth = np.stack([215 - columns / 8, 190 - rows / 10, 180 - rows / 8], -1)
    beach = (dunes + rng.normal(0, 14, (SIDE, SIDE)))[..., None] * base
    yield "with a shell", np.where(shell[..., None], smooth, beach)
    yield "with a shell, grey", np.where(shell, smooth[..., 0], dunes + rng.normal(0, 14, (SIDE, SIDE)))
    for size in (2, 4):
        pebbles = zoom(rng.uniform(60, 220, (SIDE // size, SIDE // size)), size, order=1)
        yield f"pebbles of {size}", pebbles[..., None] * base


def _texture(rng):
    for name in ("brick", "grass", "gravel"):
        whole = Image.fromarray(getattr(skimage.data, name)())
        yield name, whole
        for part in (2, 3):
            yield f"{name}, reduced {part}", whole.resize((512 // part,) * 2, Image.Resampling.LANCZOS)
        sharp = 2.0 * np.asarray(whole, float) - gaussian_filter(np.asarray(whole, float), 1.5)
        yield f"{name}, sharpened", sharp
    for name in ("cell", "moon", "coins"):
        yield name, Image.fromarray(getattr(skimage.data, name)()).crop((0, 0, 384, 300))
    for name in ("immunohistochemistry", "retina"):
        yield name, Image.fromarray(getattr(skimage.data, name)()).crop((300, 300, 812, 812))
    for blur in (0.6, 1.0):  # paper and plaster: rough, over a drawing's smooth shapes
        paper = _unit(gaussian_filter(rng.normal(size=(SIDE, SIDE)), blur))
        yield f"paper {blur:g}", gaussian_filter(_colour("coffee"), (3, 3, 0)) * 0.5 + 110 + 8 * paper[..., None]


def _fabric(rng):
    rows, columns = _grid()
    fold = 130 + 40 * np.sin(columns / 70 + rows / 130)
    for pitch in (2, 3, 4, 6):
        over = (rows // pitch + columns // pitch) % 2
        thread = np.where(over > 0, np.sin(np.pi * (rows % pitch + 0.5) / pitch),
                          np.sin(np.pi * (columns % pitch + 0.5) / pitch))  # fmt: skip
        uneven = rng.normal(0, 6, (SIDE, 1)) + rng.normal(0, 6, (1, SIDE))
        plain = fold + 30 * (thread - 0.6) + 18 * (over - 0.5) + uneven
        yield f"plain weave {pitch}", plain
        yield (
            f"plain weave {pitch}, coloured",
            plain[..., None] * np.array([0.6, 0.75, 1.1]) + rng.normal(0, 3, (SIDE, SIDE, 3)),
        )
        twill = fold + 25 * np.sign(np.sin((rows + columns) * np.pi / pitch)) + uneven
        yield f"twill {pitch}", twill + rng.normal(0, 5, twill.shape)
    denim = (
        fold + 20 * ((rows + 2 * columns) % 4 < 2) + 12 * _unit(gaussian_filter(rng.normal(size=fold.shape), (4, 0.4)))
    )
    yield "denim", denim[..., None] * np.array([0.45, 0.6, 1.0])
    felt = fold + 14 * _unit(gaussian_filter(rng.normal(size=fold.shape), (0.4, 1.2)))
    yield "felt", felt[..., None] * np.array([1.0, 0.5, 0.5])


def _static(rng):
    shape = (SIDE, SIDE)
    yield "binary", 255.0 * (rng.random(shape) > 0.5)
    yield "uniform", rng.uniform(0, 255, shape)
    yield "coloured", rng.uniform(0, 255, (*shape, 3))
    yield "dim", rng.uniform(60, 190, shape)
    yield "Gaussian", 128 + rng.normal(0, 40, shape)
    yield "Gaussian, weak", 120 + rng.normal(0, 12, (*shape, 3))
    lines = rng.uniform(0, 255, (SIDE // 2, SIDE)).repeat(2, 0)
    yield "lines doubled", lines
    yield "rolling bar", np.clip(rng.uniform(20, 200, shape) + 50 * np.sin(_grid()[0] / 40), 0, 255)
    title = _picture(128 + rng.normal(0, 40, (*shape, 3)))
    draw = ImageDraw.Draw(title)
    draw.rectangle((100, 150, 280, 210), fill=(20, 20, 120))
    draw.text((120, 170), "NO SIGNAL", fill="white")
    yield "with a caption", title
    room = _colour("coffee")
    room[60:260, 80:330] = rng.uniform(0, 255, (200, 250, 1))
    yield "on a television in a room", room


def _grain(rng):
    """Film: grain of the emulsion is the same in all layers of a scanned black-and-white film, and soft in colour."""
    for name in ("astronaut", "coffee"):
        for blur in (0.6, 0.9):
            for depth in (9, 16):
                grain = _unit(gaussian_filter(rng.normal(size=(SIDE, SIDE)), blur)) * depth
                yield f"{name}, {blur:g}, depth {depth}, black and white", _grey(name) + grain
                yield f"{name}, {blur:g}, depth {depth}", _colour(name) + grain[..., None]
        sharp = rng.normal(0, 12, (SIDE, SIDE, 1))
        yield f"{name}, sharp", _colour(name) + sharp
        soft = gaussian_filter(rng.normal(size=(SIDE, SIDE, 3)), (0.7, 0.7, 0))
        yield f"{name}, three layers", _colour(name) + 14 * soft / soft.std()


def _lines(rng):
    rows, columns = _grid()
    face = _grey("astronaut") / 255
    for pitch in (3, 4, 6):
        wave = (1 + np.sin((rows + 6 * np.sin(columns / 40)) * 2 * np.pi / pitch)) / 2
        yield f"engraving {pitch}", 255.0 * (face > wave)
        crossed = (wave + (1 + np.sin((rows + columns) * 2 * np.pi / pitch)) / 2) / 2
        yield f"cross-hatched {pitch}", gaussian_filter(255.0 * (face > crossed), 0.5)
    strokes = Image.new("L", (SIDE, SIDE), 235)
    draw = ImageDraw.Draw(strokes)
    for x, y, turn in zip(*rng.uniform(0, SIDE, (2, 5000)), rng.uniform(0, 3, 5000), strict=True):
        draw.line((x, y, x + 7 * np.cos(turn), y + 7 * np.sin(turn)), fill=int(rng.integers(40, 160)))
    yield "strokes", strokes
    hair = _unit(gaussian_filter(rng.normal(size=(SIDE, SIDE)), (3, 0.3)))
    yield "fur", (_grey("chelsea") * 0.7 + 25 * hair)[..., None] * np.array([1.0, 0.85, 0.7])


def _points(rng):
    """Single bright or dark points that are content."""
    face = _grey("astronaut")
    yield "stippling", 255.0 - 255.0 * (rng.random(face.shape) < 0.35 * (1 - face / 255) ** 2)
    paper = 225 + rng.normal(0, 2, face.shape)
    yield "stippling on paper", np.where(rng.random(face.shape) < 0.25 * (1 - face / 255) ** 2, 40, paper)
    for count in (400, 4000):
        flakes = _colour("coffee") * 0.6
        spots = np.zeros((SIDE, SIDE))
        spots[tuple(rng.integers(0, SIDE, (2, count)))] = rng.uniform(80, 255, count)
        yield f"snow, {count} flakes", flakes + spots[..., None]
        yield f"snow, {count} soft flakes", flakes + gaussian_filter(spots, 0.7)[..., None] * 3
    glitter = _colour("rocket")
    sparks = (rng.random((SIDE, SIDE)) < 0.02) & (_grid()[0] > 250)
    glitter[sparks] = 255
    yield "glitter in a corner", glitter
    rows, columns = _grid()
    grid = 90 + 40 * np.sin(columns / 60) + rng.normal(0, 2, (SIDE, SIDE))
    grid[::12, ::12] = 255
    yield "perforated", grid
    night = _colour("coffee") * 0.15
    night[tuple(rng.integers(0, SIDE, (2, 900)))] = 255
    yield "lights at night", night
    meadow = gaussian_filter(rng.normal(size=(SIDE, SIDE, 3)), (2, 2, 0)) * 60 + np.array([70, 120, 50])
    meadow[tuple(rng.integers(0, 180, (2, 700)))] = (255, 255, 255)
    yield "daisies", meadow


def _drawing(rng):
    page = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(page)
    for row in range(6, SIDE - 10, 12):
        words = "".join(rng.choice(list("abcdefgh ijklmnop,.:;'-")) for _ in range(60))
        draw.text((8, row), words, fill=(20, 20, 30))
    yield "text", page
    yield "text, grey", page.convert("L")
    scan = np.asarray(page.convert("L"), float) * 0.8 + 30
    yield "text, scanned", gaussian_filter(scan, 0.6) + rng.normal(0, 2, scan.shape)
    screen = Image.new("RGB", (SIDE, SIDE), (40, 42, 54))
    draw = ImageDraw.Draw(screen)
    for row in range(6, SIDE - 10, 13):
        draw.text((10 + 12 * int(rng.integers(0, 4)), row), "def f(x): return x . y", fill=(248, 248, 242))
    screen.paste(_picture(_colour("coffee")).resize((120, 90)), (250, 20))
    yield "screenshot", screen
    art = Image.new("L", (SIDE, SIDE), 255)
    draw = ImageDraw.Draw(art)
    for _ in range(60):
        draw.line(tuple(rng.uniform(0, SIDE, 4)), fill=0)
        draw.point(tuple(rng.uniform(0, SIDE, 2)), fill=0)
    yield "line art", art
    for x in range(0, SIDE, 4):
        draw.point([(x, y) for y in range(0, SIDE, 4)], fill=0)
    yield "dotted", art
    scatter = Image.new("RGB", (SIDE, SIDE), (250, 250, 250))
    draw = ImageDraw.Draw(scatter)
    for x, y in rng.normal(SIDE / 2, 60, (3000, 2)):
        draw.point((x, y), fill=tuple(int(v) for v in rng.integers(0, 255, 3)))
    yield "scatter plot", scatter
    for name in ("page", "text", "horse", "logo"):
        image = Image.fromarray(getattr(skimage.data, name)())
        yield name, image if image.mode != "RGBA" else image.convert("RGB")
