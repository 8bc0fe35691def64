"""What lies behind a picture is found and named; padding, and what the format itself puts there, is not."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from codec.pictures.trailing import jpeg_end, size_in_words, trailing_data

VIDEO = struct.pack(">I4s4sI", 24, b"ftyp", b"mp42", 0) + b"mp42isom" + struct.pack(">I4s", 1000, b"moov") + bytes(992)


def photo(mode: str = "RGB") -> Image.Image:
    y, x = np.mgrid[0:48, 0:64]
    noise = np.random.default_rng(1).integers(0, 40, (48, 64))
    planes = np.stack([x * 3 + noise, y * 4 + noise, (x + y) * 2 + noise], 2).clip(0, 255).astype(np.uint8)
    return Image.fromarray(planes).convert(mode)


def file(format: str, **options) -> bytes:
    out = io.BytesIO()
    photo().save(out, format, **options)
    return out.getvalue()


FORMATS = {
    "JPEG": {"exif": b"Exif\0\0" + bytes(40)}, "PNG": {}, "GIF": {}, "WEBP": {"lossless": True}, "BMP": {}, "TIFF": {},
    "PPM": {}, "AVIF": {}, "JPEG2000": {}, "SGI": {},
}  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("behind", "words"),
    [
        (VIDEO, "a video"),
        (file("JPEG"), "second JPEG"),
        (b"PK\x03\x04" + bytes(60), "zip"),
        (b"\0\0" + b"MotionPhoto_Data" + VIDEO + b"SEFH" + bytes(20) + b"SEFT", "Samsung motion photo"),
        (b"a note that somebody wrote behind it", "text"),
        (bytes(range(1, 200)), "other data"),
    ],
)
def test_what_is_behind_a_picture_is_named(format, behind, words):
    data = file(format, **FORMATS[format])
    found = trailing_data(data + behind, format)
    assert found is not None and words in found.what
    assert len(data) <= found.offset + 1 and found.offset + found.length == len(data) + len(behind)
    assert "behind the picture" in str(found)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("padding", [b"", bytes(4096), b"\xff" * 7, b"\r\n", b"\0\xff\n"])
def test_padding_means_nothing(format, padding):
    assert trailing_data(file(format, **FORMATS[format]) + padding, format) is None


def test_the_end_of_a_jpeg_is_its_own_eoi():
    thumbnail = file("JPEG", quality=20)
    for options in ({}, {"progressive": True}, {"comment": thumbnail}):
        data = file("JPEG", **options)
        assert jpeg_end(data) == len(data) and jpeg_end(data + thumbnail) == len(data)
    assert jpeg_end(file("JPEG")[:-200]) is None


def test_a_tiff_ends_where_its_last_tag_or_strip_does():
    out = io.BytesIO()
    photo().save(out, "TIFF", save_all=True, append_images=[photo().rotate(90)], compression="tiff_deflate")
    assert trailing_data(out.getvalue(), "TIFF") is None
    assert trailing_data(out.getvalue() + b"x" * 10, "TIFF").length in (10, 11)  # the last strip may be padded


@pytest.mark.parametrize("format", FORMATS)
def test_cut_and_mangled_files_end_in_an_answer(format):
    data = file(format, **FORMATS[format])
    rng = np.random.default_rng(7)
    for _ in range(200):
        bad = bytearray(data[: rng.integers(20, len(data) + 1)])
        for place in rng.integers(12, len(bad), 4):
            bad[place] = rng.integers(256)
        found = trailing_data(bytes(bad), format)
        assert found is None or 0 < found.length <= len(bad)


def test_sizes_in_words():
    assert [size_in_words(n) for n in (1, 999, 1000, 41_400, 999_499, 1_200_000)] == [
        "1 byte", "999 bytes", "1 kB", "41.4 kB", "999 kB", "1.2 MB",
    ]  # fmt: skip
