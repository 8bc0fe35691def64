"""Damaged scans are found although they decode; sound files of every kind of coding are not suspected."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from codec.pictures.damage import damage, jpeg_damage, png_damage
from codec.pictures.trailing import _MARKER


def photo(width: int = 150, height: int = 110) -> Image.Image:
    """Smooth shapes and fine noise, as a photograph has."""
    rng = np.random.default_rng(3)
    base = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.normal(0, 6, (height, width, 3))
    return Image.fromarray((np.asarray(base) + noise).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image | None = None, **options) -> bytes:
    out = io.BytesIO()
    (image or photo()).save(out, "JPEG", **options)
    return out.getvalue()


KINDS = {
    "baseline": {}, "4:4:4": {"subsampling": 0}, "4:2:2": {"subsampling": 1}, "low": {"quality": 8},
    "high": {"quality": 100, "subsampling": 0}, "optimised": {"optimize": True}, "progressive": {"progressive": True},
    "progressive high": {"progressive": True, "quality": 98, "subsampling": 0},
    "restarts": {"restart_marker_blocks": 3}, "progressive restarts": {"progressive": True, "restart_marker_rows": 1},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(150, 110), (8, 8), (1, 1), (17, 33), (300, 9)])
def test_sound_files_are_not_suspected(kind, size):
    for image in (photo(*size), photo(*size).convert("L"), Image.new("RGB", size, "white")):
        assert jpeg_damage(jpeg(image, **KINDS[kind])) is None
    assert jpeg_damage(jpeg(photo(*size).convert("CMYK"), **KINDS[kind])) is None
    assert jpeg_damage(jpeg(photo(*size), **KINDS[kind]) + b"behind it") is None


def scan_of(data: bytes) -> tuple[int, int]:
    """Where the entropy-coded data of the longest scan begins and ends."""
    scans, position = [], data.index(b"\xff\xda")
    while position >= 0:
        start = position + 2 + struct.unpack_from(">H", data, position + 2)[0]
        end = _MARKER.search(data, start).end() - 2
        scans.append((start, end))
        position = data.find(b"\xff\xda", end)
    return max(scans, key=lambda scan: scan[1] - scan[0])


@pytest.mark.parametrize("kind", KINDS)
def test_cut_and_zeroed_scans_are_damage(kind):
    data = jpeg(**KINDS[kind])
    start, end = scan_of(data)
    length = end - start
    for part in (0.3, 0.6, 0.9):
        place = start + int(part * length)
        cut = data[:place].rstrip(b"\xff") + b"\xff\xd9"
        assert Image.open(io.BytesIO(cut)).load(), "libjpeg shows it all the same"
        assert jpeg_damage(cut)
        assert jpeg_damage(data[:place])
        assert jpeg_damage(data[:place] + bytes(end - place) + data[end:])
        assert jpeg_damage(data[:place].rstrip(b"\xff") + bytes(4096) + b"\xff\xd9")


@pytest.mark.parametrize("kind", ["baseline", "progressive", "restarts"])
def test_overwritten_parts_are_damage(kind):
    """Nonsense in a scan: codes fall out of step, and the end seldom fits. What fits by chance (more often, the fewer
    bytes are hit), libjpeg would not warn of either."""
    data, rng = jpeg(photo(600, 450), **KINDS[kind]), np.random.default_rng(5)
    start, end = scan_of(data)
    found = 0
    for _ in range(40):
        place = int(rng.integers(start, end - 400))
        nonsense = rng.integers(0, 255, 400, np.uint8).tobytes()
        found += jpeg_damage(data[:place] + nonsense + data[place + 400 :]) is not None
    assert found >= 36


def test_missing_scans_of_a_progressive_file_are_damage():
    data = jpeg(progressive=True)
    last = data.rindex(b"\xff\xda")
    before = data.rindex(b"\xff\xc4", 0, last)
    assert "scans" in jpeg_damage(data[:before] + b"\xff\xd9")


def test_restart_markers_must_count_up():
    data = jpeg(restart_marker_blocks=3)
    place = data.index(b"\xff\xd1")
    assert jpeg_damage(data[:place] + b"\xff\xd3" + data[place + 2 :])


def test_any_bytes_end_in_an_answer():
    rng = np.random.default_rng(9)
    for options in KINDS.values():
        data = jpeg(**options)
        for _ in range(150):
            bad = bytearray(data[: rng.integers(2, len(data) + 1)])
            for place in rng.integers(2, max(3, len(bad)), 3):
                if place < len(bad):
                    bad[place] = rng.integers(256)
            assert jpeg_damage(bytes(bad)) is None or isinstance(jpeg_damage(bytes(bad)), str)


def test_a_claim_of_many_blocks_costs_nothing():
    data = bytearray(jpeg(photo(16, 16), progressive=True))
    place = data.index(b"\xff\xc2")
    data[place + 5 : place + 9] = b"\xff\xff\xff\xff"
    jpeg_damage(bytes(data))


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_png_checksums_and_ends():
    data = png(photo())
    assert png_damage(data) is None and png_damage(data + b"behind") is None
    place = data.index(b"IDAT") + 50
    flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    assert "checksum" in png_damage(flipped)
    assert "cut" in png_damage(data[:-12]) and "cut" in png_damage(data[:-300])
    text = struct.pack(">I", 3) + b"tEXta\0b" + struct.pack(">I", 1)
    assert png_damage(data[:33] + text + data[33:]) is None, "what is not the picture is not judged here"
    assert zlib.crc32(b"tEXta\0b") != 1


def test_other_formats():
    for format in ("GIF", "WEBP", "BMP"):
        out = io.BytesIO()
        photo().save(out, format)
        assert damage(out.getvalue(), format) is None
        assert format == "BMP" or "cut" in damage(out.getvalue()[:-40], format)
