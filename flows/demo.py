"""The demo: a small bucket such as people really have, and an S3 server of our own to keep it in.

Here: `fill` (the bucket's objects, photographs that ship inside scikit-image's wheel, and what is planted
among them), `embedded_s3` (moto's server as a process of its own that dies with us). The night itself is
nightly.py's; what the demo does with both, and its command line, are commands/demo.py's.
"""

import io
import json
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageCms, ImageDraw, ImageFilter, ImageFont, ImageOps

COMPRESSED, DUPLICATE, KEPT, FAILED, SKIPPED = "compressed", "duplicate", "kept", "failed", "skipped"
OWN = (COMPRESSED, KEPT)  # a picture that counts for itself: kept where no form gains enough
EXACT = (KEPT, COMPRESSED)  # what no lossy form carries: stored without loss where that gains enough


@dataclass(frozen=True)
class Planted:
    """One object of the demo's bucket and what a night may decide about it.

    kind: photo, small, text, exact, pixel, reencoded, resized, noisy, odd, broken, other.
    of: the key that a copy was made from (the group's keeper is chosen by the night, not here).
    statuses: the report's statuses that are right for it.
    """

    key: str
    kind: str
    data: bytes
    statuses: tuple[str, ...]
    of: str | None = None
    content_type: str | None = None
    metadata: dict | None = None


PHOTOGRAPHS = {
    "astronaut": "astronaut.png", "coffee": "coffee.png", "cat": "chelsea.png", "left": "motorcycle_left.png",
    "right": "motorcycle_right.png", "rocket": "rocket.jpg", "hubble": "hubble_deep_field.jpg",
    "retina": "retina.jpg", "camera": "camera.png", "coins": "coins.png", "moon": "moon.png", "tissue": "ihc.png",
    "colours": "color.png",
}  # fmt: skip


def photograph(name: str) -> Image.Image:
    """One of the pictures in scikit-image's wheel, never downloaded; FileNotFoundError if not there."""
    import skimage.data

    with Image.open(Path(skimage.data.__file__).with_name(name)) as image:
        image.load()
    return image


def saved(image: Image.Image, format: str, **options) -> bytes:
    """The picture's file bytes as Pillow writes them."""
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def scaled(image: Image.Image, factor: float) -> Image.Image:
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.LANCZOS)


def noisy(image: Image.Image, sigma: float, seed: int, shot: bool = False) -> Image.Image:
    """White Gaussian noise of `sigma` (0..255), or noise that grows with the light as a sensor's does."""
    pixels = np.asarray(image.convert("RGB"), np.float32)
    noise = np.random.default_rng(seed).normal(0.0, 1.0, pixels.shape).astype(np.float32)
    spread = sigma * np.sqrt(0.25 + 1.5 * pixels / 255) if shot else sigma
    return Image.fromarray(np.clip(np.rint(pixels + noise * spread), 0, 255).astype(np.uint8))


def screenshot() -> Image.Image:
    """A window with a table and a chart: flat areas, hard edges, small type."""
    image = Image.new("RGB", (900, 560), "#f3f4f6")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 900, 44), fill="#1f2937")
    draw.text((18, 12), "Storage by prefix, last seven nights", font=ImageFont.load_default(17), fill="white")
    small = ImageFont.load_default(13)
    for row in range(14):
        top = 60 + row * 34
        draw.rectangle((16, top, 430, top + 30), fill="white" if row % 2 else "#e5e7eb")
        cells = (
            f"uploads/2024/{row % 12 + 1:02d}/",
            f"{(row * 7919) % 950 + 12:,} objects",
            f"{row * 3.7 + 1.2:.1f} GB",
        )
        for text, left in zip(cells, (24, 200, 340), strict=True):
            draw.text((left, top + 8), text, font=small, fill="#111827")
    for night in range(7):
        height = 90 + (night * 53) % 260
        left = 470 + night * 58
        draw.rectangle((left, 520 - height, left + 40, 520), fill=("#2563eb", "#059669", "#d97706")[night % 3])
        draw.text((left + 4, 526), f"night {night + 1}", font=ImageFont.load_default(10), fill="#374151")
    draw.line([(490 + 58 * n, 480 - (n * 97) % 300) for n in range(7)], fill="#dc2626", width=3)
    return image


def letter() -> Image.Image:
    """A typed page as a scanner gives it: grey, slightly turned, soft, with paper grain."""
    image = Image.new("L", (620, 800), 246)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    words = "the night was quiet and every picture that went in came out again measured and found whole".split()
    for line in range(34):
        text = " ".join(words[(line * 5 + k * 3) % len(words)] for k in range(9))
        draw.text((60, 60 + line * 20), text[: 62 - (line % 7 == 6) * 30], font=font, fill=38)
    image = image.rotate(0.7, Image.BICUBIC, fillcolor=246).filter(ImageFilter.GaussianBlur(0.6))
    grain = np.random.default_rng(5).normal(0, 1.2, (800, 620))
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG of a few hundred bytes whose header claims `width` × `height` pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def deep_png(image: Image.Image) -> bytes:
    """The picture as a 16-bit RGB PNG whose low bytes carry something."""
    import imagecodecs

    pixels = np.asarray(image.convert("RGB")).astype(np.uint16) * 257
    ramp = np.arange(pixels.shape[1], dtype=np.uint16)[None, :, None] % 128
    return imagecodecs.png_encode(np.where(pixels > 60_000, pixels, pixels + ramp))


def camera_exif(orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Nightpress", "Demo camera"
    exif[0x0112] = orientation
    exif[0x0132] = "2021:06:05 21:14:03"
    return exif.tobytes()


XMP = (
    b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    b'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:subject>demo</dc:subject></rdf:Description></rdf:RDF>'
    b'</x:xmpmeta><?xpacket end="w"?>'
)

CONTENT_TYPES = {
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "avif": "image/avif",
    "tif": "image/tiff",
    "gif": "image/gif",
    "bmp": "image/bmp",
    "txt": "text/plain",
    "json": "application/json",
}
LONG_FOLDER = "a-folder-whose-name-says-everything-about-what-lies-in-it-and-then-goes-on-for-a-while-"


def long_key(name: str, length: int = 900) -> str:
    """A key of exactly `length` bytes, in path components that a local file system takes too."""
    key = ""
    while length - len(key) > len(name) + len(LONG_FOLDER) + 40:
        key += LONG_FOLDER + "/"
    return key + "x" * (length - len(key) - len(name) - 1) + "/" + name


class Planting:
    """What is in the bucket so far, in the order in which it was planted."""

    def __init__(self):
        self.planted: list[Planted] = []

    def plant(self, key: str, kind: str, data: bytes, statuses=OWN, of: str | None = None, **metadata: str) -> None:
        content_type = CONTENT_TYPES.get(key.rpartition(".")[2].lower(), "application/octet-stream")
        self.planted.append(Planted(key, kind, data, tuple(statuses), of, content_type, metadata or None))


def bucket() -> list[Planted]:
    """Every object of the demo's bucket, the same bytes on every call with the same libraries."""
    planting, pictures = Planting(), SimpleNamespace(**{name: photograph(file) for name, file in PHOTOGRAPHS.items()})
    for plant in (
        plant_photographs, plant_text, plant_copies, plant_noise, plant_small, plant_odd, plant_broken,
    ):  # fmt: skip
        plant(planting, pictures)
    copied = {item.of for item in planting.planted}
    return [
        replace(item, statuses=(*item.statuses, DUPLICATE)) if item.key in copied else item for item in planting.planted
    ]


def shipped(name: str) -> bytes:
    """A file of scikit-image's wheel as it is."""
    import skimage.data

    return Path(skimage.data.__file__).with_name(name).read_bytes()


def plant_photographs(planting: Planting, p: SimpleNamespace) -> None:
    """Photographs as they come in: a camera's folders, a web shop's, a laboratory's."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = struct.pack(">6H", 2021, 6, 5, 21, 14, 3)  # the header's date, else that of this call
    portrait = saved(p.astronaut, "JPEG", quality=95, icc_profile=bytes(profile), exif=camera_exif(), xmp=XMP)
    planting.plant("2021/06/IMG_2041.JPG", "photo", portrait, uploaded_by="demo", album="portraits")
    sideways = p.left.transpose(Image.ROTATE_90)  # orientation 6 turns it upright again
    planting.plant("2021/06/IMG_2042.JPG", "photo", saved(sideways, "JPEG", quality=93, exif=camera_exif(6)))
    planting.plant("2021/06/IMG_2043.JPG", "photo", saved(p.right, "JPEG", quality=93, exif=camera_exif()))
    planting.plant("2021/07/coffee.jpg", "photo", saved(p.coffee, "JPEG", quality=92))
    planting.plant("2021/07/cat.png", "photo", saved(p.cat, "PNG"))
    planting.plant("2021/07/rocket.jpg", "photo", shipped("rocket.jpg"))
    planting.plant("2022/sky/hubble.jpg", "photo", shipped("hubble_deep_field.jpg"))
    planting.plant("2022/eye/retina.jpg", "photo", shipped("retina.jpg"))
    planting.plant("2022/lab/tissue.png", "photo", shipped("ihc.png"))
    planting.plant("2022/lab/cell.png", "photo", shipped("cell.png"))
    planting.plant("2022/grey/camera.jpg", "photo", saved(p.camera, "JPEG", quality=90))
    planting.plant("2022/grey/coins.png", "photo", shipped("coins.png"))
    planting.plant("2022/grey/moon.webp", "photo", saved(p.moon, "WEBP", quality=90))
    planting.plant("textures/grass.jpg", "photo", saved(photograph("grass.png"), "JPEG", quality=85))
    planting.plant("textures/gravel.jpg", "photo", saved(photograph("gravel.png"), "JPEG", quality=85))
    planting.plant("textures/brick.jpg", "photo", saved(photograph("brick.png"), "JPEG", quality=88))
    planting.plant("2022/clock.png", "photo", shipped("clock_motion.png"))
    planting.plant("shop/colour-wheel.png", "photo", saved(p.colours, "PNG"))
    for name, box in {"north": (120, 60, 620, 420), "south": (330, 480, 940, 860)}.items():
        planting.plant(f"2022/sky/{name}.jpg", "photo", saved(p.hubble.crop(box), "JPEG", quality=90))
    for name, box in {"disc": (820, 470, 1330, 950), "vessels": (330, 330, 830, 760)}.items():
        planting.plant(f"2022/eye/{name}.webp", "photo", saved(p.retina.crop(box), "WEBP", quality=92))
    # Mirrored, a picture has other hashes: contents of its own for what follows.
    planting.plant(
        "shop/coffee-other-side.jpg",
        "photo",
        saved(ImageOps.mirror(p.coffee).crop((40, 0, 600, 360)), "JPEG", quality=80),
    )
    planting.plant("user uploads/Café Übung 100%.jpeg", "photo", saved(ImageOps.mirror(p.right), "JPEG", quality=75))
    planting.plant(
        "user uploads/写真 1.jpg",
        "photo",
        saved(ImageOps.mirror(p.rocket), "JPEG", quality=70, progressive=True),
    )
    planting.plant("user uploads/a+b&c=d.jpg", "photo", saved(p.left.crop((20, 120, 420, 480)), "JPEG", quality=88))
    planting.plant(long_key("picture.jpg"), "photo", saved(ImageOps.mirror(p.camera), "JPEG", quality=88))
    # The same stem twice, other contents.
    planting.plant("shop/a.jpg", "photo", saved(ImageOps.flip(p.cat), "JPEG", quality=90))
    planting.plant("shop/a.png", "photo", saved(ImageOps.flip(p.coffee).crop((0, 0, 320, 300)), "PNG"))


def plant_text(planting: Planting, p: SimpleNamespace) -> None:
    """Text: screens and scans must reach the target or stay as they are."""
    planting.plant("screens/storage.png", "text", saved(screenshot(), "PNG", optimize=True))
    planting.plant("screens/storage-shared.jpg", "text", saved(ImageOps.mirror(screenshot()), "JPEG", quality=70))
    planting.plant("scans/letter.jpg", "text", saved(letter(), "JPEG", quality=80))
    planting.plant("scans/page.png", "text", shipped("page.png"))
    planting.plant("scans/handwriting.png", "text", shipped("text.png"))


def plant_copies(planting: Planting, p: SimpleNamespace) -> None:
    """Copies of what was planted before, of all kinds."""
    by_key = {item.key: item.data for item in planting.planted}
    for key, of in {
        "backup/2021-06/IMG_2041.JPG": "2021/06/IMG_2041.JPG",
        "backup/2021-07/coffee.jpg": "2021/07/coffee.jpg",
        "backup/2022/hubble.jpg": "2022/sky/hubble.jpg",
        "shop/old/cat copy.png": "2021/07/cat.png",
        "shop/old/tissue.png": "2022/lab/tissue.png",
        "screens/storage_1.png": "screens/storage.png",
    }.items():
        planting.plant(key, "exact", by_key[of], (DUPLICATE,), of)
    decoded_coffee = Image.open(io.BytesIO(by_key["2021/07/coffee.jpg"]))
    # Any of a group may be the keeper; what its bitstream would give below 30 dB is compressed itself.
    near = (DUPLICATE, COMPRESSED, KEPT)
    planting.plant("shop/cat.png", "pixel", saved(p.cat, "PNG", compress_level=9), near, "2021/07/cat.png")
    planting.plant("shop/coffee.png", "pixel", saved(decoded_coffee, "PNG"), near, "2021/07/coffee.jpg")
    planting.plant("shop/tissue.webp", "pixel", saved(p.tissue, "WEBP", lossless=True), near, "2022/lab/tissue.png")
    planting.plant(
        "cache/portrait-q75.jpg",
        "reencoded",
        saved(p.astronaut, "JPEG", quality=75),
        near,
        "2021/06/IMG_2041.JPG",
    )
    planting.plant(
        "cache/portrait.webp", "reencoded", saved(p.astronaut, "WEBP", quality=80), near, "2021/06/IMG_2041.JPG"
    )
    planting.plant("cache/coffee-q60.jpg", "reencoded", saved(p.coffee, "JPEG", quality=60), near, "2021/07/coffee.jpg")
    planting.plant("cache/cat-q85.jpg", "reencoded", saved(p.cat, "JPEG", quality=85), near, "2021/07/cat.png")
    planting.plant(
        "cache/rocket.avif",
        "reencoded",
        saved(p.rocket, "AVIF", quality=75, speed=8),
        near,
        "2021/07/rocket.jpg",
    )
    planting.plant(
        "cache/retina-q70.jpg", "reencoded", saved(p.retina, "JPEG", quality=70), near, "2022/eye/retina.jpg"
    )
    planting.plant(
        "thumbs/portrait@50.jpg",
        "resized",
        saved(scaled(p.astronaut, 0.5), "JPEG", quality=90),
        near,
        "2021/06/IMG_2041.JPG",
    )
    planting.plant(
        "thumbs/coffee@75.jpg",
        "resized",
        saved(scaled(p.coffee, 0.75), "JPEG", quality=92),
        near,
        "2021/07/coffee.jpg",
    )
    planting.plant(
        "thumbs/rocket@60.png",
        "resized",
        saved(scaled(p.rocket, 0.6), "PNG"),
        near,
        "2021/07/rocket.jpg",
    )
    planting.plant(
        "thumbs/hubble@40.jpg",
        "resized",
        saved(scaled(p.hubble, 0.4), "JPEG", quality=92),
        near,
        "2022/sky/hubble.jpg",
    )
    planting.plant(
        "print/cat@150.jpg", "resized", saved(scaled(p.cat, 1.5), "JPEG", quality=90), near, "2021/07/cat.png"
    )
    planting.plant(
        "thumbs/retina@33.webp",
        "resized",
        saved(scaled(p.retina, 0.33), "WEBP", quality=90),
        near,
        "2022/eye/retina.jpg",
    )


def plant_noise(planting: Planting, p: SimpleNamespace) -> None:
    """Noise, on contents that are not elsewhere in the bucket."""
    planting.plant(
        "night/hall-iso3200.png",
        "noisy",
        saved(noisy(ImageOps.mirror(p.astronaut).crop((0, 60, 480, 460)), 15, 1), "PNG"),
    )
    planting.plant(
        "night/table-iso6400.jpg",
        "noisy",
        saved(noisy(ImageOps.flip(p.coffee).crop((150, 0, 600, 400)), 22, 2), "JPEG", quality=95),
    )
    planting.plant("night/cat-iso12800.png", "noisy", saved(noisy(ImageOps.mirror(p.cat), 30, 3), "PNG"))
    planting.plant(
        "night/engine-iso3200.jpg",
        "noisy",
        saved(noisy(p.right.crop((330, 60, 741, 440)), 16, 4, shot=True), "JPEG", quality=95),
    )


def plant_small(planting: Planting, p: SimpleNamespace) -> None:
    """Small ones."""
    planting.plant("icons/face.png", "small", saved(p.astronaut.crop((180, 60, 276, 156)), "PNG"))
    planting.plant("icons/eye.jpg", "small", saved(p.cat.crop((120, 80, 200, 140)), "JPEG", quality=90))
    planting.plant("icons/beans.png", "small", saved(p.coffee.crop((20, 20, 84, 84)), "PNG"))
    planting.plant("icons/dot.png", "small", saved(Image.new("RGB", (1, 1), (200, 30, 30)), "PNG"))
    planting.plant("icons/ribbon.png", "small", saved(p.hubble.resize((1000, 900)).crop((500, 0, 507, 900)), "PNG"))
    planting.plant("icons/aneurysms.png", "small", shipped("microaneurysms.png"))


def plant_odd(planting: Planting, p: SimpleNamespace) -> None:
    """Modes and containers beyond RGB: carried, or kept with a reason."""
    mask = Image.new("L", p.coffee.size, 0)
    ImageDraw.Draw(mask).ellipse((60, 30, 540, 370), fill=255)
    cut_out = ImageOps.mirror(ImageOps.flip(p.coffee))
    cut_out.putalpha(mask.filter(ImageFilter.GaussianBlur(4)))
    planting.plant("odd/cut-out.png", "odd", saved(cut_out, "PNG"))
    planting.plant("odd/logo.png", "odd", shipped("logo.png"))
    grey_alpha = Image.merge("LA", (ImageOps.flip(p.moon), Image.linear_gradient("L").resize(p.moon.size)))
    planting.plant("odd/moon-fading.png", "odd", saved(grey_alpha, "PNG"))
    planting.plant("odd/palette.png", "odd", saved(ImageOps.flip(p.astronaut).quantize(64), "PNG"))
    planting.plant("odd/silhouette.png", "odd", saved(photograph("horse.png").convert("L").convert("1"), "PNG"))
    planting.plant("odd/bitmap.bmp", "odd", saved(ImageOps.flip(p.rocket).crop((0, 0, 400, 300)), "BMP"))
    planting.plant("odd/print.jpg", "odd", saved(ImageOps.flip(p.right).convert("CMYK"), "JPEG", quality=90), EXACT)
    planting.plant("odd/deep.png", "odd", deep_png(p.left.crop((300, 0, 700, 300))), EXACT)
    deep_grey = Image.fromarray(np.asarray(p.coins).astype(np.uint16) * 256 + 77)
    planting.plant("odd/deep-grey.png", "odd", saved(deep_grey, "PNG"), EXACT)
    heights = Image.fromarray(np.asarray(p.camera.resize((200, 200)), np.float32) / 255)
    planting.plant("odd/heights.tif", "odd", saved(heights, "TIFF"), EXACT)
    planting.plant("odd/moving.gif", "odd", shipped("no_time_for_that_tiny.gif"), EXACT)
    pages = [letter().resize((310, 400)), ImageOps.flip(letter()).resize((310, 400))]
    planting.plant("odd/two-pages.tif", "odd", saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]), EXACT)


def plant_broken(planting: Planting, p: SimpleNamespace) -> None:
    """Broken files, and files that are no pictures."""
    planting.plant(
        "broken/cut-off.jpg", "broken", saved(ImageOps.mirror(p.hubble), "JPEG", quality=85)[:40_000], (FAILED,)
    )
    planting.plant("broken/cut-off.png", "broken", saved(ImageOps.mirror(p.tissue), "PNG")[:90_000], (FAILED,))
    planting.plant("broken/empty.jpg", "broken", b"", (FAILED, SKIPPED))
    flipped = bytearray(saved(ImageOps.flip(p.tissue), "PNG"))
    flipped[60_000:60_016] = bytes(byte ^ 0x5A for byte in flipped[60_000:60_016])
    planting.plant("broken/flipped-bits.png", "broken", bytes(flipped), (FAILED,))
    planting.plant("broken/bomb.png", "broken", bomb(), (FAILED,))
    planting.plant(
        "broken/renamed.jpg",
        "other",
        b"<!doctype html><title>404</title><p>No such picture here.\n",
        (SKIPPED,),
    )
    planting.plant("notes/readme.txt", "other", b"Pictures from the demo. Nothing here is needed.\n" * 20, (SKIPPED,))
    planting.plant("notes/albums.json", "other", json.dumps({"portraits": ["IMG_2041"]}).encode(), (SKIPPED,))


def fill(store) -> dict[str, Planted]:
    """Write the bucket into `store` (tasks.stores.base.Store) and say what is in it, by key.

    Copies are written after what they were made from, whose keys sort before theirs: of two equal files the
    original is the older one or, within the same second, the first by key, on every store.
    """
    planted = bucket()

    def write(item: Planted) -> None:
        store.write(item.key, item.data, content_type=item.content_type, metadata=item.metadata)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, [item for item in planted if item.of is None]))
        list(pool.map(write, [item for item in planted if item.of is not None]))
    return {item.key: item for item in planted}


def surprises(planted: dict[str, Planted], rows: list[dict]) -> list[str]:
    """What a night's report says otherwise than was planted, a sentence each; empty where all is as it should be."""
    by_key = {row["key"]: row for row in rows}
    out = [f"{key} has no row" for key in planted if key not in by_key]
    out += [f"{key} has a row and was never planted" for key in by_key if key not in planted]
    for item in planted.values():
        row = by_key.get(item.key)
        if row is None:
            continue
        if row["status"] not in item.statuses:
            wanted = " or ".join(item.statuses)
            out.append(f"{item.key} ({item.kind}) is {row['status']} instead of {wanted}: {row['reason']}")
        keeper = planted.get(row["keeper_key"]) if row["status"] == DUPLICATE else None
        if row["status"] == DUPLICATE and (keeper is None or (keeper.of or keeper.key) != (item.of or item.key)):
            out.append(f"{item.key} counts as a duplicate of {row['keeper_key']}, another picture")
        if item.kind == "noisy" and row["status"] == COMPRESSED and not row["denoised"]:
            out.append(f"{item.key} is noisy and was not denoised (sigma estimated as {row['noise_sigma']})")
        if row["denoised"] and item.kind != "noisy":
            out.append(f"{item.key} ({item.kind}) was denoised (sigma estimated as {row['noise_sigma']})")
    return out
