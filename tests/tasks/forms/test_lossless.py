"""The lossless form: PNGs of all depths, palettes and chunks; other formats as the PNG they come back as; refusals."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from codec.pictures.errors import PictureError
from codec.pictures.files import open_picture, pixel_sha256
from tasks.forms.base import DamagedData, Declined
from tasks.forms.choose import FORMS
from tasks.forms.lossless import stored_header
from tasks.forms.png_files import Header, Png, chunk, read_png, write_png

LOSSLESS = FORMS["lossless"]


def picture_of(file: bytes):
    try:
        return open_picture(file)
    except PictureError:
        return None


def png(samples: np.ndarray, depth: int, colour: int, before: bytes = b"", after: bytes = b"") -> bytes:
    header = Header(samples.shape[1], samples.shape[0], depth, colour)
    return write_png(Png(header, before, samples, chunk(b"IEND", b"") + after))


def drawing(colours: int) -> np.ndarray:
    """Flat regions with `colours` numbers: uint8 [H,W,1]."""
    y, x = np.mgrid[:120, :160]
    return ((x // 20 + y // 15) % colours).astype(np.uint8)[:, :, None]


@pytest.mark.parametrize("depth, colour", [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2), (1, 3), (2, 3),
                                           (4, 3), (8, 3), (8, 4), (16, 4), (8, 6), (16, 6)])  # fmt: skip
def test_pngs_of_every_kind_keep_samples_depth_and_chunks(depth, colour, scene):
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    samples = drawing(2) if depth < 8 or colour == 3 else scene(channels=channels)
    samples = samples.astype(np.uint16) * 257 if depth == 16 else samples
    palette = chunk(b"PLTE", bytes([10, 20, 30, 200, 100, 50])) if colour == 3 else b""
    before = (
        chunk(b"gAMA", struct.pack(">I", 45455))
        + palette
        + chunk(b"tEXt", b"Author\0somebody")
        + chunk(b"prVt", b"private")
    )
    file = png(samples, depth, colour, before, b"a tail that a phone left")
    file = file[: file.index(b"IDAT") - 4] + chunk(b"IDAT", zlib.compress(zlib.decompress(idat(file)), 0)) + file[
        file.index(b"IEND") - 4 :
    ]  # fmt: skip
    data = LOSSLESS.encode(file, picture_of(file))
    back, source = read_png(LOSSLESS.decode(data), 10**6), read_png(file, 10**6)
    assert np.array_equal(back.samples, source.samples)
    assert back.samples.dtype == source.samples.dtype
    assert (back.header, back.before, back.after) == (source.header, source.before, source.after)
    assert len(data) < len(file)
    assert stored_header(data)["bits"] == depth


def idat(file: bytes) -> bytes:
    start = file.index(b"IDAT")
    length = int.from_bytes(file[start - 4 : start])
    return file[start + 4 : start + 4 + length]


def test_interlaced_pngs_come_back(scene):
    """Sizes at which some of the seven passes are empty, too; made by hand, since Pillow writes none."""
    for height, width in ((1, 1), (2, 3), (5, 4), (8, 9), (61, 97)):
        samples = scene(height, width)
        raw = b""
        for y, x, dy, dx in ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
                             (1, 0, 2, 1)):  # fmt: skip
            part = samples[y::dy, x::dx]
            if part.size:
                raw += b"".join(b"\0" + row.tobytes() for row in part)
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1))
        stream = chunk(b"IDAT", zlib.compress(raw))
        file = b"\x89PNG\r\n\x1a\n" + header + stream + chunk(b"IEND", b"")
        parts = read_png(file, 10**6)
        assert np.array_equal(parts.samples, samples)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(write_png(parts)))), samples)


def test_a_drawing_with_a_palette_keeps_its_numbers_and_transparency():
    palette = chunk(b"PLTE", bytes(range(30))) + chunk(b"tRNS", bytes([0, 128]))
    file = png(drawing(9), 8, 3, palette)
    file = file.replace(chunk(b"IDAT", idat(file)), chunk(b"IDAT", zlib.compress(zlib.decompress(idat(file)), 0)))
    back = LOSSLESS.decode(LOSSLESS.encode(file, picture_of(file)))
    image = Image.open(io.BytesIO(back))
    assert image.mode == "P"
    assert np.array_equal(np.asarray(image)[:, :, None], drawing(9))
    assert image.info["transparency"] == bytes([0, 128])


def test_a_palette_whose_entries_repeat_keeps_its_numbers():
    palette = chunk(b"PLTE", bytes([5, 5, 5]) * 9)
    file = png(drawing(9), 8, 3, palette)
    file = file.replace(chunk(b"IDAT", idat(file)), chunk(b"IDAT", zlib.compress(zlib.decompress(idat(file)), 0)))
    back = LOSSLESS.decode(LOSSLESS.encode(file, picture_of(file)))
    assert np.array_equal(read_png(back, 10**6).samples, drawing(9))


OTHERS = {
    "webp": ("WEBP", 3, {"lossless": True}), "tiff": ("TIFF", 3, {"compression": "tiff_lzw"}),
    "tiff alpha": ("TIFF", 4, {"compression": "tiff_adobe_deflate"}), "bmp": ("BMP", 3, {}),
    "gif": ("GIF", 1, {}), "tga": ("TGA", 4, {}), "grey": ("PPM", 1, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_come_back_as_png_with_the_same_pixels(name, scene, file_of):
    format, channels, options = OTHERS[name]
    file = file_of(scene(200, 240, channels), format, **options)
    picture = open_picture(file)
    data = LOSSLESS.encode(file, picture)
    back = open_picture(LOSSLESS.decode(data))
    assert back.format == "PNG"
    assert pixel_sha256(back.image) == pixel_sha256(picture.image)


def test_metadata_of_other_formats_comes_along(scene, file_of):
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "a caption", 6
    file = file_of(scene(200, 240), "WEBP", lossless=True, exif=exif, icc_profile=b"profile" * 40)
    picture = open_picture(file)
    back = open_picture(LOSSLESS.decode(LOSSLESS.encode(file, picture)))
    assert back.image.size == (200, 240)  # upright
    assert (back.exif, back.icc) == (picture.exif, picture.icc)
    assert pixel_sha256(back.image) == pixel_sha256(picture.image)


def test_a_png_that_exif_turns_comes_back_as_shown(scene, file_of):
    exif = Image.Exif()
    exif[0x0112] = 8
    file = file_of(scene(200, 240), "PNG", exif=exif, compress_level=0)
    back = open_picture(LOSSLESS.decode(LOSSLESS.encode(file, open_picture(file))))
    assert back.image.size == (200, 240)
    assert pixel_sha256(back.image) == pixel_sha256(open_picture(file).image)


def test_what_gains_nothing_or_is_damaged_is_declined(scene, file_of):
    info = PngImagePlugin.PngInfo()
    info.add(b"caBX", b"signed")
    sound = file_of(scene(), "PNG", compress_level=0)
    wrong_sum = sound[:-20] + bytes([sound[-20] ^ 1]) + sound[-19:]
    for file in (file_of(scene(), "JPEG", quality=90), file_of(scene(), "AVIF"), file_of(scene(), "WEBP"), wrong_sum,
                 sound[:-40], file_of(scene(), "PNG", pnginfo=info)):  # fmt: skip
        with pytest.raises(Declined):
            LOSSLESS.encode(file, picture_of(file))


def test_a_forged_palette_number_is_damage():
    palette = chunk(b"PLTE", bytes(range(30)))
    file = png(drawing(9), 8, 3, palette)
    file = file.replace(chunk(b"IDAT", idat(file)), chunk(b"IDAT", zlib.compress(zlib.decompress(idat(file)), 0)))
    data = LOSSLESS.encode(file, None)
    with pytest.raises(DamagedData):
        LOSSLESS.decode(data[:30] + data[31:])
