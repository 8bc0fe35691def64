"""What one 8-bit picture cannot hold is found in the file's structure and said in plain words."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from codec.pictures.obstacles import mode_reason, obstacle
from codec.pictures.trailing import boxes


def photo(mode: str = "RGB", size: tuple[int, int] = (32, 24)) -> Image.Image:
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    return Image.fromarray(np.stack([x * 6 % 256, y * 8 % 256, (x + y) % 256], 2).astype(np.uint8)).convert(mode)


def file(format: str, image: Image.Image | None = None, **options) -> bytes:
    out = io.BytesIO()
    (image or photo()).save(out, format, **options)
    return out.getvalue()


def jpeg_with(marker: int, body: bytes) -> bytes:
    data = file("JPEG")
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + data[2:]


def jpeg_coded_as(marker: int, bits: int = 8) -> bytes:
    data = bytearray(file("JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 1], data[place + 4] = marker, bits
    return bytes(data)


def tiff(samples: int, photometric: int, bits: int = 8, **tags) -> bytes:
    """An uncompressed TIFF with the entries tag_N=(type, values) beside those of its layout."""
    raster = bytes(24 * 32 * samples * bits // 8)
    entries = {
        256: (3, [32]), 257: (3, [24]), 258: (3, [bits] * samples), 259: (3, [1]), 262: (3, [photometric]),
        273: (4, [8]), 277: (3, [samples]), 278: (3, [24]), 279: (4, [len(raster)]),
    } | {int(name[4:]): value for name, value in tags.items()}  # fmt: skip
    body, directory, extra = b"II*\0" + struct.pack("<I", 8 + len(raster)) + raster, b"", b""
    base = len(body) + 2 + 12 * len(entries) + 4
    for tag, (kind, values) in sorted(entries.items()):
        packed = struct.pack(f"<{len(values)}{ {1: 'B', 2: 'B', 3: 'H', 4: 'I', 12: 'd'}[kind] }", *values)
        place = packed.ljust(4, b"\0")
        if len(packed) > 4:
            place, extra = struct.pack("<I", base + len(extra)), extra + packed + bytes(len(packed) & 1)
        directory += struct.pack("<HHI", tag, kind, len(values)) + place
    return body + struct.pack("<H", len(entries)) + directory + bytes(4) + extra


def png_with(*chunks: tuple[bytes, bytes]) -> bytes:
    data = file("PNG")
    added = b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return data[:33] + added + data[33:]


def animated(format: str) -> bytes:
    return file(format, save_all=True, append_images=[photo().rotate(180)])


def mpf(images: int) -> bytes:
    return jpeg_with(0xE2, b"MPF\0II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 0xB001, 4, 1, images) + bytes(4))


def clear() -> Image.Image:
    image = photo("RGBA")
    image.putalpha(image.getchannel("R"))
    return image


def avif_saying(old: bytes, new: bytes) -> bytes:
    data = file("AVIF", clear())
    assert old in data and len(old) == len(new)
    return data.replace(old, new)


OBSTACLES = {
    "JPEG": [
        (jpeg_coded_as(0xC1, 12), "12 bits"), (jpeg_coded_as(0xC3), "lossless JPEG"), (mpf(2), "several pictures"),
        (jpeg_coded_as(0xC9), "arithmetic"), (jpeg_coded_as(0xCA), "arithmetic"), (jpeg_coded_as(0xC5), "hierarchical"),
        (jpeg_with(0xE1, b"http://ns.adobe.com/xap/1.0/\0'http://ns.adobe.com/hdr-gain-map/'"), "gain map"),
        (jpeg_with(0xE1, b"http://ns.adobe.com/xap/1.0/\0urn:com:apple:photo:2020:aux:hdrgainmap"), "gain map"),
        (jpeg_with(0xE2, b"urn:iso:std:iso:ts:21496-1\0\0\0\0\0"), "gain map"),
    ],
    "PNG": [
        (animated("PNG"), "animation"), (png_with((b"cICP", b"\x09\x10\0\1")), "cICP"),
        (png_with((b"cLLI", bytes(8))), "HDR"),
        (file("PNG", Image.fromarray(np.zeros((9, 9), np.uint16))), "16 bits per sample"),
    ],
    "GIF": [(animated("GIF"), "animation")],
    "WEBP": [(animated("WEBP"), "animation")],
    "TIFF": [
        (animated("TIFF"), "2 pages"), (tiff(2, 1, tag_338=(3, [0])), "further bands"), (tiff(4, 2), "further bands"),
        (tiff(4, 2, tag_338=(3, [0])), "further bands"), (tiff(5, 2, tag_338=(3, [2, 0])), "further bands"),
        (tiff(4, 2, tag_338=(3, [1])), "transparency"), (tiff(1, 1, tag_339=(3, [2])), "with a sign"),
        (tiff(1, 1, bits=32, tag_339=(3, [3])), "32 bits"), (tiff(1, 1, bits=16), "16 bits"), (tiff(4, 5), "CMYK"),
        (tiff(1, 1, tag_33550=(12, [1.0, 1.0, 0.0])), "GeoTIFF"), (tiff(1, 1, tag_42113=(2, b"-9999\0")), "GeoTIFF"),
        (tiff(1, 1, tag_34735=(3, [1, 1, 0, 0])), "GeoTIFF"), (tiff(3, 2, tag_37724=(1, [1] * 8)), "layers"),
        (tiff(3, 2, tag_65000=(2, b"private\0")), "65000"), (tiff(1, 32803), "raw"), (tiff(1, 4), "mask"),
        (tiff(3, 2, tag_319=(4, [1, 2, 3, 4])), "colours"), (tiff(3, 8), "CIELAB"),
        (tiff(3, 2, tag_330=(4, [8])), "several"),
    ],
    "AVIF": [
        (animated("AVIF"), "animation"), (avif_saying(b"alpha", b"depth"), "further picture"),
        (avif_saying(b"auxl", b"base"), "several pictures"),
        (file("AVIF") + struct.pack(">I4s", 40, b"uuid") + bytes(32), "private"),
    ],
    "PPM": [(b"P6\n2 2\n65535\n" + bytes(24), "16 bits")],
}  # fmt: skip


@pytest.mark.parametrize(("format", "place"), [(f, i) for f, cases in OBSTACLES.items() for i in range(len(cases))])
def test_obstacles_are_named(format, place):
    data, words = OBSTACLES[format][place]
    assert words in obstacle(data, format)


def test_ordinary_files_have_none():
    for format in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "PPM", "JPEG2000", "SGI"):
        assert obstacle(file(format), format) is None, format
    for mode in ("L", "LA", "RGBA"):
        for format in ("PNG", "TIFF"):
            assert obstacle(file(format, photo(mode)), format) is None
    exif = Image.Exif()
    exif[0x0112] = 6
    assert obstacle(file("AVIF", clear(), exif=exif, xmp=b"<x/>", icc_profile=b"p" * 200), "AVIF") is None
    for bits, colours in ((1, 1), (4, 1), (8, 3)):
        assert obstacle(tiff(1, colours, bits=8 if bits == 8 else bits), "TIFF") is None
    assert obstacle(tiff(4, 2, tag_338=(3, [2])), "TIFF") is None
    assert obstacle(tiff(2, 1, tag_338=(3, [2])), "TIFF") is None
    assert obstacle(mpf(1), "JPEG") is None
    for options in (
        {"compression": "tiff_lzw"},
        {"compression": "jpeg"},
        {"dpi": (300, 300)},
        {"tiffinfo": {270: "a"}},
    ):
        assert obstacle(file("TIFF", **options), "TIFF") is None, options


def test_large_avif_in_tiles_is_one_picture():
    data = file("AVIF", photo(size=(640, 480)), speed=10)
    assert obstacle(data, "AVIF") is None and any(kind == b"meta" for kind, _, _ in boxes(data))


def test_modes_have_names():
    for mode in ("CMYK", "I;16", "I;16B", "F", "I", "LAB", "RGBa", "BGR;15"):
        assert mode not in mode_reason(mode) or mode in ("CMYK", "LAB", "F", "I")


def test_reasons_need_no_knowledge_of_this_program():
    for format, cases in OBSTACLES.items():
        for data, _ in cases:
            reason = obstacle(data, format)
            assert "I;16" not in reason and "mode" not in reason.lower() and "None" not in reason


@pytest.mark.parametrize("format", OBSTACLES)
def test_mangled_files_end_in_an_answer(format):
    rng = np.random.default_rng(2)
    for data, _ in OBSTACLES[format]:
        for _ in range(60):
            bad = bytearray(data[: rng.integers(20, len(data) + 1)])
            for place in rng.integers(4, len(bad), 4):
                bad[place] = rng.integers(256)
            assert obstacle(bytes(bad), format) is None or len(obstacle(bytes(bad), format)) > 5


def test_our_tiff_is_one():
    image = Image.open(io.BytesIO(tiff(3, 2, tag_270=(2, b"note\0"))))
    image.load()
    assert image.size == (32, 24) and image.tag_v2[TiffImagePlugin.IMAGEDESCRIPTION] == "note"
