"""Fingerprints against the imagehash package, bit for bit, and the reduced decode against the full one."""

import hashlib
import io
from pathlib import Path

import imagehash
import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageOps

from tasks.duplicates.jpeg_dc import luma_eighth
from tasks.duplicates.lanczos import equal_to_pillow, reduce_plane
from tasks.duplicates.perceptual_hash import HASHES, codes_to_hex, fingerprints, hashes_of, hex_to_codes

PHOTOGRAPHS = sorted(
    path for path in Path(skimage.data.__file__).parent.iterdir() if path.suffix in (".png", ".jpg", ".gif")
)


def expected(image: Image.Image) -> dict:
    return {
        "ahash": str(imagehash.average_hash(image)),
        "dhash": str(imagehash.dhash(image)),
        "phash": str(imagehash.phash(image)),
    }


def encoded(image: Image.Image, format: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def photograph(name: str, size: int | None = None) -> Image.Image:
    path = next(path for path in PHOTOGRAPHS if path.stem == name)
    image = Image.open(path).convert("RGB")
    return image.resize((size, size * image.height // image.width), Image.Resampling.BICUBIC) if size else image


def apart(a: dict, b: dict) -> list[int]:
    return [int(np.bitwise_count(hex_to_codes([a[name]]) ^ hex_to_codes([b[name]]))[0]) for name in HASHES]


@pytest.mark.filterwarnings("ignore:Palette images")
@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.name)
def test_equal_to_imagehash_on_real_pictures(path):
    facts = fingerprints([path.read_bytes()], fast=False)[0]
    with Image.open(path) as image:
        assert hashes_of(image) == expected(image)
        assert {name: facts[name] for name in HASHES} == expected(image)
        assert (facts["width"], facts["height"], facts["hash_method"]) == (*image.size, "full")


def test_equal_to_imagehash_on_flat_small_and_odd_pictures():
    random = np.random.default_rng(7)
    for value in (0, 1, 128, 255):
        for size in ((1, 1), (3, 5), (32, 32), (64, 9)):
            image = Image.new("L", size, value)
            assert hashes_of(image) == expected(image)
    for mode, channels in (("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4), ("CMYK", 4)):
        for size in ((1, 7), (9, 8), (33, 47), (200, 11)):
            pixels = random.integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
            image = Image.frombytes(mode, size, pixels.tobytes())
            assert hashes_of(image) == expected(image)


def test_batch_threads_and_single_agree():
    blobs = [encoded(photograph("chelsea", 100 + 40 * n), "JPEG") for n in range(7)]
    together = fingerprints(blobs, threads=3)
    assert together == [fingerprints([blob], threads=1)[0] for blob in blobs]
    assert [facts["sha256"] for facts in together] == [hashlib.sha256(blob).hexdigest() for blob in blobs]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"optimize": True}])
@pytest.mark.parametrize("size", [64, 150, 333, 800])
def test_reduced_hashes_are_imagehash_of_the_reduced_decode(size, options):
    data = encoded(photograph("astronaut", size), "JPEG", quality=85, **options)
    facts = fingerprints([data])[0]
    method, scale = facts["hash_method"].split("/")
    assert method == "jpeg"
    reduced = Image.open(io.BytesIO(data))
    reduced.draft("L", (reduced.width // int(scale), reduced.height // int(scale)))
    assert {name: facts[name] for name in HASHES} == expected(reduced)
    assert min(reduced.size) >= min(64, size)


def test_reduced_and_full_decode_agree_closely():
    blobs = [
        encoded(photograph(name, size), "JPEG", quality=quality)
        for name in ("astronaut", "chelsea", "coffee", "rocket", "motorcycle_left")
        for size in (700, 1500)
        for quality in (60, 92)
    ]
    full, fast = fingerprints(blobs, fast=False), fingerprints(blobs)
    assert all(facts["hash_method"].startswith("jpeg/") for facts in fast)
    assert {facts["hash_method"] for facts in full} == {"full"}
    distances = np.array([apart(a, b) for a, b in zip(full, fast, strict=True)])
    assert distances.max() <= 4
    assert distances.mean() <= 0.8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_on_both_paths(orientation):
    image = photograph("rocket", 640)
    exif = Image.Exif()
    exif[0x0112] = orientation
    back = {6: Image.Transpose.ROTATE_90, 3: Image.Transpose.ROTATE_180, 8: Image.Transpose.ROTATE_270}
    stored = image.transpose(back[orientation]) if orientation in back else image
    data = encoded(stored, "JPEG", quality=95, subsampling=0, exif=exif)
    fast, full = (fingerprints([data], fast=fast)[0] for fast in (True, False))
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert {name: full[name] for name in HASHES} == expected(shown)
    assert (full["width"], full["height"]) == shown.size
    assert (fast["width"], fast["height"]) == (full["width"], full["height"])
    assert max(apart(fast, full)) <= 4
    if orientation in (1, 3, 6, 8):
        assert (full["width"], full["height"]) == image.size
        assert max(apart(full, hashes_of(image))) <= 2


def test_what_cannot_be_read_becomes_an_error_and_spares_the_others():
    good = encoded(photograph("coffee", 300), "JPEG")
    rows = fingerprints([b"", good, b"no picture at all", good[: len(good) // 2], b"\xff\xd8\xff\xe0", good])
    assert [("error" in row) for row in rows] == [True, False, True, True, True, False]
    assert rows[1] == rows[5]
    assert all(set(row) == {"sha256", "error"} for row in rows if "error" in row)
    assert "empty" in rows[0]["error"]


def test_pictures_above_the_limit_are_refused_before_decoding():
    row = fingerprints([encoded(Image.new("L", (3000, 2000)), "PNG")], max_pixels=5_000_000)[0]
    assert "3000 x 2000 pixels are more than the limit" in row["error"]


def test_hex_and_codes_are_inverse():
    codes = np.array([0, 1, 2**63, 2**64 - 1, 0x0123456789ABCDEF], dtype=np.uint64)
    assert codes_to_hex(codes)[-1] == "0123456789abcdef"
    np.testing.assert_array_equal(hex_to_codes(codes_to_hex(codes)), codes)
    with pytest.raises(ValueError, match="16 hex digits"):
        hex_to_codes(["abc"])


def test_reductions_are_pillows():
    random = np.random.default_rng(3)
    assert equal_to_pillow()
    shapes = [(1, 1), (8, 8), (9, 8), (7, 9), (33, 31), (500, 3), (3, 500), (640, 480), (300, 700), (100, 193)]
    shapes += [tuple(random.integers(1, 300, 2).tolist()) for _ in range(40)]
    for width, height in shapes:
        for top in (2, 256):  # extremes alone overshoot most
            plane = random.integers(0, top, (height, width), dtype=np.uint8) * np.uint8(255 // (top - 1))
            for size in ((8, 8), (9, 8), (32, 32)):
                wanted = np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.LANCZOS))
                np.testing.assert_array_equal(reduce_plane(plane, *size), wanted, f"{width} x {height} to {size}")


def libjpeg_eighth(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    image.draft("L", (image.width // 8, image.height // 8))
    assert image.decoderconfig[0] == 8
    image.load()
    return np.asarray(image)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "options",
    [
        {"quality": 20},
        {"quality": 97, "subsampling": 0},
        {"subsampling": 1, "optimize": True},
        {"quality": 100, "optimize": True},
        {"restart_marker_blocks": 5},
        {"restart_marker_rows": 1, "quality": 92},
    ],
)
def test_luma_from_dc_coefficients_is_libjpegs(options, mode):
    for name, width, height in (("astronaut", 512, 512), ("coffee", 333, 127), ("rocket", 65, 201)):
        data = encoded(photograph(name).resize((width, height)).convert(mode), "JPEG", **options)
        np.testing.assert_array_equal(luma_eighth(data), libjpeg_eighth(data))


def test_luma_from_dc_coefficients_leaves_the_odd_to_libjpeg():
    image = photograph("astronaut", 400)
    assert luma_eighth(encoded(image, "JPEG", progressive=True)) is None
    assert luma_eighth(encoded(image.convert("CMYK"), "JPEG")) is None
    assert luma_eighth(encoded(image, "JPEG", keep_rgb=True)) is None
    data = encoded(image, "JPEG")
    assert all(luma_eighth(data[:length]) is None for length in (0, 2, 3, 30, 300, 700, len(data) - 1, len(data) - 40))


def test_luma_from_dc_coefficients_of_damaged_files_is_libjpegs_or_nothing():
    random = np.random.default_rng(11)
    data = np.frombuffer(encoded(photograph("chelsea", 200), "JPEG", quality=80), np.uint8)
    answered = 0
    for turn in range(600):
        damaged = data.copy()
        end = data.size if turn % 2 else 640  # the whole file, or its headers
        damaged[random.integers(2, end, size=1 + turn % 3)] = random.integers(0, 256, size=1 + turn % 3)
        plane = luma_eighth(damaged.tobytes())
        if plane is not None:
            answered += 1
            np.testing.assert_array_equal(plane, libjpeg_eighth(damaged.tobytes()), f"turn {turn}")
    assert 50 < answered < 600
