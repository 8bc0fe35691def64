"""Image files of every kind: what is carried comes through whole, what is not is refused with the reason."""

import gzip
import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from codec.pictures.errors import BrokenPicture, DamagedPicture, NotAPicture, UncarriedPicture
from codec.pictures.files import (
    jpeg_quality,
    open_picture,
    picture_bytes,
    picture_from_image,
    pixel_sha256,
)
from codec.pictures.metadata import png_chunks


def photo(width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 6, y * 8, (x + y) * 3, 255 - x * 4][: {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]]
    pixels = np.stack(planes, 2).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels[:, :, 0] if mode == "L" else pixels)


def file(image: Image.Image, format: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def exif_with(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif[0x0112] = orientation
    raw = exif.tobytes()
    return raw.removeprefix(b"Exif\0\0")


PLAIN = [(format, mode) for format in ("PNG", "TIFF") for mode in ("L", "LA", "RGB", "RGBA")]
PLAIN += [("WEBP", "RGB"), ("WEBP", "RGBA")]  # which has no grey


@pytest.mark.parametrize("format, mode", PLAIN)
def test_plain_modes_come_through(mode, format):
    image = photo(mode=mode)
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    picture = open_picture(file(image, format, **options))
    assert (picture.image.mode, picture.format, picture.mode) == (mode, format, mode)
    assert np.array_equal(np.asarray(picture.image), np.asarray(image))
    assert pixel_sha256(picture.image) == pixel_sha256(image)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied_once(orientation, format):
    image = photo()
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Maker"
    data = file(image, format, exif=exif, **options)
    picture = open_picture(data)
    from PIL import ImageOps

    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(np.asarray(picture.image), np.asarray(expected))
    assert (picture.width, picture.height) == expected.size
    restored = Image.open(io.BytesIO(picture_bytes(picture)))
    assert restored.size == expected.size
    assert restored.getexif().get(0x0112, 1) == 1 and restored.getexif()[0x010F] == "Maker"
    assert np.array_equal(np.asarray(ImageOps.exif_transpose(restored)), np.asarray(expected))


def test_orientation_in_xmp_alone_turns_nothing():
    """Browsers read EXIF's alone; afterwards both say 1, so that every program shows it as they do."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    for format in ("JPEG", "WEBP"):
        picture = open_picture(file(photo(), format, xmp=xmp))
        assert (picture.width, picture.height) == (40, 30)
        assert b'tiff:Orientation="1"' in picture.xmp


def test_profiles_survive_to_the_byte():
    icc, xmp = bytes(range(256)) * 3, b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>\xc3\xa9</x:xmpmeta>"
    exif = exif_with(3)
    for format in ("JPEG", "PNG", "WEBP", "TIFF"):
        options = {"icc_profile": icc}
        if format != "TIFF":
            options["exif"] = b"Exif\0\0" + exif
        if format == "PNG":
            info = PngImagePlugin.PngInfo()
            info.add_itxt("XML:com.adobe.xmp", xmp.decode())
            options["pnginfo"] = info
        elif format == "TIFF":
            options["tiffinfo"] = {700: xmp}
        else:
            options["xmp"] = xmp
        picture = open_picture(file(photo(), format, **options))
        assert picture.icc == icc and picture.xmp.rstrip(b"\0") == xmp, format
        if format != "TIFF":
            assert picture.exif == exif_with(1), format
        again = open_picture(picture_bytes(picture))
        assert (again.icc, again.exif, again.xmp) == (picture.icc, picture.exif, picture.xmp), format
        tiff = open_picture(picture_bytes(picture, "TIFF"))
        assert (tiff.icc, tiff.xmp) == (picture.icc, picture.xmp), format


def test_palettes_and_bilevel_become_plain_pictures():
    palette = photo().quantize(16)
    opened = open_picture(file(palette, "PNG"))
    assert (opened.mode, opened.image.mode) == ("P", "RGB")
    assert np.array_equal(np.asarray(opened.image), np.asarray(palette.convert("RGB")))
    clear = open_picture(file(palette, "PNG", transparency=3))
    assert clear.image.mode == "RGBA"
    assert ((np.asarray(clear.image)[:, :, 3] == 0) == (np.asarray(palette) == 3)).all()
    assert open_picture(file(palette, "GIF"), checked=False).image.mode == "RGB"
    bilevel = photo(mode="L").convert("1")
    opened = open_picture(file(bilevel, "PNG"))
    assert (opened.mode, opened.image.mode) == ("1", "L")
    assert np.array_equal(np.asarray(opened.image), np.asarray(bilevel).astype(np.uint8) * 255)
    assert open_picture(file(photo(mode="L"), "PNG", transparency=7)).image.mode == "LA"


def test_values_that_are_names_are_told():
    labels = Image.fromarray(np.repeat(np.repeat(np.arange(12, dtype=np.uint8).reshape(3, 4), 20, 0), 20, 1))
    assert "exact values" in open_picture(file(labels, "PNG")).exact
    assert open_picture(file(labels, "PNG"), checked=False).exact is None
    assert open_picture(file(labels, "JPEG")).exact is None
    numbers = labels.copy()
    numbers.putpalette(bytes(range(256)) * 3)
    assert open_picture(file(numbers, "PNG")).exact
    for format in ("GIF", "TIFF", "BMP"):  # of which only a PNG of colours would come back
        with pytest.raises(UncarriedPicture, match="numbers of a palette"):
            open_picture(file(numbers, format))
    assert open_picture(file(photo(), "PNG")).exact is None


def test_damage_is_told_where_the_decoder_passes_over_it():
    data = file(photo(300, 200), "JPEG", quality=95)
    start = data.index(b"\xff\xda") + 200
    broken = data[:start] + bytes(len(data) - start - 2) + b"\xff\xd9"
    with pytest.raises(DamagedPicture) as caught:
        open_picture(broken)
    assert (caught.value.width, caught.value.height, caught.value.format) == (300, 200, "JPEG")
    assert open_picture(broken, checked=False).width == 300


def test_text_that_pillow_does_not_open():
    raw = file(photo(), "PNG")
    text = b"zTXtlog\0\0" + zlib.compress(b"line of a log\n" * 200_000)
    wrong = struct.pack(">I", len(text) - 4) + text + b"\0\0\0\0"
    picture = open_picture(raw[:33] + wrong + raw[33:])
    assert np.array_equal(np.asarray(picture.image), np.asarray(photo()))
    assert png_chunks(picture.metadata) == [(b"zTXt", text[4:])]


def test_gamma_of_a_png_is_carried():
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", struct.pack(">I", 100000))
    picture = open_picture(file(photo(), "PNG", pnginfo=info))
    assert picture.colour == b"gAMA" + struct.pack(">I", 100000)
    assert Image.open(io.BytesIO(picture_bytes(picture))).info["gamma"] == 1.0


def png_of_16_bits(colour: int = 2) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + bytes(4 * (6 if colour == 2 else 2)) for _ in range(4))
    header = struct.pack(">IIBBBBB", 4, 4, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def jpeg_with(marker: int, body: bytes) -> bytes:
    data = file(photo(), "JPEG")
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + data[2:]


def frames(format: str) -> bytes:
    return file(photo(), format, save_all=True, append_images=[photo().rotate(90).resize((40, 30))])


UNCARRIED = {
    "16-bit colour PNG": (png_of_16_bits(2), "16 bits"),
    "16-bit grey PNG": (png_of_16_bits(0), "16 bits"),
    "16-bit TIFF": (file(Image.fromarray(np.zeros((4, 4), np.uint16)), "TIFF"), "16 bits"),
    "float TIFF": (file(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "32 bits"),
    "CMYK JPEG": (file(photo().convert("CMYK"), "JPEG"), "CMYK"),
    "CMYK TIFF": (file(photo().convert("CMYK"), "TIFF"), "CMYK"),
    "LAB TIFF": (file(photo().convert("LAB"), "TIFF"), "LAB"),
    "animated GIF": (frames("GIF"), "animation"),
    "animated PNG": (frames("PNG"), "animation"),
    "animated WebP": (frames("WEBP"), "animation"),
    "pages": (frames("TIFF"), "pages"),
    "MPO": (frames("MPO"), "several pictures"),
    "Ultra HDR": (jpeg_with(0xE1, b"http://ns.adobe.com/xap/1.0/\0'http://ns.adobe.com/hdr-gain-map/'"), "gain map"),
    "ISO gain map": (jpeg_with(0xE2, b"urn:iso:std:iso:ts:21496:-1\0\0\0\0\0"), "gain map"),
    "extended XMP": (jpeg_with(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(60)), "extended XMP"),
    "12-bit JPEG": (file(photo(), "JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"), "12 bits"),
    "arithmetic JPEG": (file(photo(), "JPEG").replace(b"\xff\xc0\0\x11", b"\xff\xc9\0\x11"), "arithmetic"),
    "gzipped": (gzip.compress(file(photo(), "JPEG")), "gzip"),
    "motion photo": (file(photo(), "JPEG") + b"\0\0\0\x18ftypmp42" + bytes(5000), "a video .* behind the picture"),
    "further bands": (
        file(Image.merge("LA", [photo(mode="L")] * 2), "TIFF").replace(
            struct.pack("<HHIHH", 338, 3, 1, 2, 0), struct.pack("<HHIHH", 338, 3, 1, 0, 0)
        ),
        "further bands",
    ),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIF"),
    "JPEG XL": (b"\xff\x0a" + bytes(20), "JPEG XL"),
    "SVG": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    "16-bit PPM": (b"P6\n2 2\n65535\n" + bytes(24), "16 bits"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNCARRIED)
def test_what_cannot_be_carried_is_kept_with_a_reason(name):
    data, words = UNCARRIED[name]
    with pytest.raises(UncarriedPicture, match=words) as caught:
        open_picture(data)
    assert caught.value.format


def test_broken_files_are_named():
    for data, words in (
        (b"", "zero bytes"),
        (file(photo(), "JPEG")[:300], "cannot be decoded"),
        (file(photo(), "PNG")[:60], "cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "cannot be decoded"),
        (file(photo(), "PNG").replace(b"\r\n", b"\n", 1), "signature is damaged"),
    ):
        with pytest.raises(BrokenPicture, match=words):
            open_picture(data)
    with pytest.raises(BrokenPicture, match="more than the limit") as caught:
        open_picture(file(photo(), "PNG"), max_pixels=1000)
    assert (caught.value.width, caught.value.height, caught.value.format) == (40, 30, "PNG")
    bomb = bytearray(file(photo(), "PNG"))
    bomb[16:24] = struct.pack(">II", 60000, 60000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bytes(bomb[12:29])))
    with pytest.raises(BrokenPicture, match="more than the limit"):
        open_picture(bytes(bomb))


def test_other_files_are_no_pictures():
    for data in (b"hello\n", b"{}", b"PK\x03\x04" + bytes(100), b"\x7fELF" + bytes(100), bytes(1000), b"P5 is a name"):
        with pytest.raises(NotAPicture):
            open_picture(data)


def test_errors_travel_between_processes():
    with pytest.raises(UncarriedPicture) as caught:
        open_picture(png_of_16_bits())
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is UncarriedPicture and copy.reason == caught.value.reason and copy.width == 4


def test_damaged_exif_does_not_cost_the_picture():
    for raw in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"):
        picture = open_picture(jpeg_with(0xE1, raw))
        assert picture.exif == raw[6:]


def test_jpeg_quality_is_estimated():
    for quality in (10, 50, 75, 90, 95, 100):
        assert abs(open_picture(file(photo(), "JPEG", quality=quality)).jpeg_quality - quality) <= 2
    assert jpeg_quality(photo()) is None


def test_images_in_memory():
    picture = picture_from_image(photo(mode="RGBA"))
    assert picture.image.mode == "RGBA" and picture.format is None
    with pytest.raises(UncarriedPicture):
        picture_from_image(photo().convert("CMYK"))
    with pytest.raises(ValueError, match="alpha"):
        picture_bytes(picture, "JPEG")


def test_pixel_hash_sees_mode_size_and_alpha():
    image = photo(mode="RGBA")
    other = image.copy()
    other.putpixel((3, 3), (*image.getpixel((3, 3))[:3], 1))
    hashes = {pixel_sha256(i) for i in (image, other, image.convert("RGB"), image.transpose(Image.Transpose.ROTATE_90))}
    assert len(hashes) == 4
