"""Forms that give the same bytes back: JPEG by JPEG XL, any file by its samples and general coders; damaged data."""

import io
import random
import struct

import numpy as np
import pytest
from PIL import Image

from tasks.forms.base import DamagedData, Declined, Reader, number
from tasks.forms.choose import FORMS
from tasks.forms.packing import pack, unpack
from tasks.forms.rasters import find_rasters
from tasks.forms.samples import decode_array, encode_array, join_bits, spread_bits

JXL_JPEG, EXACT = FORMS["jxl-jpeg"], FORMS["exact"]


JPEGS = {
    "baseline": {"quality": 85},
    "progressive": {"quality": 85, "progressive": True},
    "4:4:4": {"quality": 95, "subsampling": 0},
    "restarts": {"quality": 75, "restart_marker_blocks": 4},
    "metadata": {"quality": 80, "comment": b"said by hand", "icc_profile": bytes(4000), "dpi": (300, 300)},
}


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
def test_a_jpeg_comes_back_to_the_byte_and_is_smaller(options, scene, file_of):
    file = file_of(scene(), "JPEG", **options)
    data = JXL_JPEG.encode(file)
    assert JXL_JPEG.decode(data) == file
    assert len(data) < len(file)


def test_what_lies_behind_a_jpeg_comes_back_whatever_its_size(scene, file_of):
    jpeg = file_of(scene(), "JPEG", quality=85)
    second = file_of(scene(seed=1), "JPEG", quality=85)
    noise = random.Random(1).randbytes
    for tail in (b"\0" * 7, noise(300), second, second + noise(50), noise(5 << 20), second + second + b"end"):
        data = JXL_JPEG.encode(jpeg + tail)
        assert JXL_JPEG.decode(data) == jpeg + tail
    assert len(JXL_JPEG.encode(jpeg + second)) < 0.97 * len(jpeg + second)  # the second one is recompressed too


def test_what_jpeg_xl_refuses_is_declined(scene, file_of):
    cmyk = io.BytesIO()
    Image.fromarray(scene(channels=4), "CMYK").save(cmyk, "JPEG")
    jpeg = file_of(scene(), "JPEG")
    for file in (cmyk.getvalue(), jpeg[: len(jpeg) // 2], jpeg[:200], b"\xff\xd8", file_of(scene(), "PNG"), b""):
        with pytest.raises(Declined):
            JXL_JPEG.encode(file)


def tiff(samples: np.ndarray, order: str = "<", rows_per_strip: int = 16, kind: int = 1) -> bytes:
    """An uncompressed TIFF with strips, of any type and number of channels (tags as in TIFF 6.0)."""
    height, width, channels = samples.shape
    raw = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    row = len(raw) // height
    offsets = [8 + i * row for i in range(0, height, rows_per_strip)]
    counts = [min(rows_per_strip, height - i) * row for i in range(0, height, rows_per_strip)]
    out = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 0) + raw
    places = []
    bits = [8 * samples.dtype.itemsize] * channels
    for values, code in ((offsets, "I"), (counts, "I"), (bits, "H")):
        out += b"\0" * (len(out) % 2)
        places.append(len(out))
        out += struct.pack(f"{order}{len(values)}{code}", *values)
    out += b"\0" * (len(out) % 2)
    start = len(out)
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, places[2] if channels > 2 else None),
        (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, len(offsets), places[0]), (277, 3, 1, channels),
        (278, 4, 1, rows_per_strip), (279, 4, len(counts), places[1]), (339, 3, 1, kind),
    ]  # fmt: skip
    out += struct.pack(order + "H", len(entries))
    for tag, type, count, value in entries:
        if value is None:
            value = struct.pack(f"{order}{count}H", *bits).ljust(4, b"\0")
        else:
            value = struct.pack(order + ("I" if type == 4 or count > 1 else "HH"), *((value,) if type == 4 or count > 1
                                else (value, 0)))  # fmt: skip
        out += struct.pack(order + "HHI", tag, type, count) + value
    out += bytes(4)
    return out[:4] + struct.pack(order + "I", start) + out[8:]


def _uncompressed(scene, file_of) -> dict[str, bytes]:
    colour, grey = scene(), scene(channels=1)
    deep = (scene(channels=3).astype(np.uint16) << 6) + np.random.default_rng(0).integers(0, 9, (96, 128, 3), np.uint16)
    files = {
        "bmp": file_of(colour, "BMP"), "bmp grey, padded rows": file_of(grey[:, :101], "BMP"),
        "ppm": file_of(colour, "PPM"), "tga": file_of(colour, "TGA"), "sgi": file_of(colour, "SGI"),
        "tiff": file_of(colour, "TIFF"), "tiff 16 bits": tiff(deep), "tiff 16 bits, big-endian": tiff(deep, ">"),
        "tiff 5 bands": tiff(scene(channels=5)), "tiff float": tiff(deep.astype("f4") / 7, kind=3),
        "ppm 16 bits": b"P6 128 96 65535\n" + deep.astype(">u2").tobytes(),
        "pfm": b"PF\n128 96\n-1.0\n" + (deep / 9).astype("<f4").tobytes(),
        "pam": b"P7\nWIDTH 128\nHEIGHT 96\nDEPTH 2\nMAXVAL 255\nENDHDR\n" + scene(channels=2).tobytes(),
    }  # fmt: skip
    card = lambda text: text.ljust(80).encode()  # noqa: E731
    head = b"".join(map(card, ("SIMPLE  =    T", "BITPIX  =   16", "NAXIS   =    2", "NAXIS1  =  128", "NAXIS2  =   96",
                               "END")))  # fmt: skip
    files["fits"] = head.ljust(2880) + deep[:, :, 0].astype(">u2").tobytes()
    files["tiff with a tail"] = files["tiff 16 bits"] + b"layers" * 50
    return files


UNCOMPRESSED = (
    "bmp",
    "bmp grey, padded rows",
    "ppm",
    "tga",
    "sgi",
    "tiff",
    "tiff 16 bits",
    "tiff 16 bits, big-endian",
    "tiff 5 bands",
    "tiff float",
    "ppm 16 bits",
    "pfm",
    "pam",
    "fits",
    "tiff with a tail",
)


@pytest.fixture(scope="session")
def uncompressed(scene, file_of):
    files = _uncompressed(scene, file_of)
    assert tuple(files) == UNCOMPRESSED
    return files


@pytest.mark.parametrize("name", UNCOMPRESSED)
def test_uncompressed_files_come_back_to_the_byte_by_their_samples(name, uncompressed):
    file = uncompressed[name]
    assert sum(raster.height * raster.row_bytes for raster in find_rasters(file)) > 0.9 * len(file) - 3000
    data = EXACT.encode(file)
    assert EXACT.decode(data) == file
    assert len(data) < 0.85 * len(file)


def test_bilevel_rasters_are_coded_as_pixels():
    page = np.full((200, 300), 255, np.uint8)
    page[20:180:9, 10:290] = 0
    out = io.BytesIO()
    Image.fromarray(page).convert("1").save(out, "PPM")
    [raster] = find_rasters(out.getvalue())
    assert (raster.bits, raster.width, raster.height) == (1, 38, 200)
    data = EXACT.encode(out.getvalue())
    assert EXACT.decode(data) == out.getvalue()
    assert len(data) < 300


def test_any_other_file_comes_back_too_and_compressed_ones_are_declined():
    text = b"<svg xmlns='http://www.w3.org/2000/svg'>" + b"<path d='M 1 2 L 3 4'/>" * 200
    data = EXACT.encode(text)
    assert EXACT.decode(data) == text
    assert len(data) < len(text) / 10
    for file in (random.Random(0).randbytes(10_000), b"", b"x"):
        with pytest.raises(Declined):
            EXACT.encode(file)


def test_headers_that_lie_cost_nothing_but_the_gain(uncompressed):
    """Sizes, offsets and counts out of all proportion: the file comes back or is declined."""
    rng = random.Random(4)
    for name, file in uncompressed.items():
        for _ in range(6):
            bad = bytearray(file)
            place = rng.randrange(min(len(bad) - 4, 200))
            bad[place : place + 4] = rng.choice((b"\xff" * 4, bytes(4), b"\xff\xff\xff\x7f", rng.randbytes(4)))
            try:
                data = EXACT.encode(bytes(bad))
            except Declined:
                continue
            assert EXACT.decode(data) == bad, name


@pytest.mark.parametrize("name", ["jxl-jpeg", "lossless", "exact"])
def test_damaged_data_is_called_so_or_gives_the_file_all_the_same(name, scene, file_of):
    form = FORMS[name]
    file = file_of(scene(), "JPEG" if name == "jxl-jpeg" else "PNG" if name == "lossless" else "BMP")
    data, rng = form.encode(file, None), random.Random(2)
    whole = form.decode(data)
    for _ in range(150):
        bad = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        if rng.random() < 0.3:
            bad = bad[: rng.randrange(len(bad))]
        try:
            back = form.decode(bytes(bad))
        except DamagedData:
            continue
        assert back == whole or name == "jxl-jpeg"  # JPEG XL has no checksum: restore compares the sha256 of the object


def test_packed_bytes_come_back_and_lengths_are_believed_up_to_the_limit():
    for data in (b"", b"a", bytes(100), bytes(range(256)) * 50, random.Random(0).randbytes(5000)):
        for distances in ((), (1, 3)):
            assert unpack(pack(data, distances)) == data
    packed = pack(bytes(100_000))
    assert len(packed) < 100
    with pytest.raises(DamagedData):
        unpack(packed, 99_999)
    for bad in (b"", b"\7\5abcde", packed[:-3], packed[:1] + number(50) + packed[4:]):
        with pytest.raises(DamagedData):
            unpack(bad)


def test_numbers_are_read_as_they_were_written():
    for value in (0, 1, 127, 128, 300, 1 << 29):
        reader = Reader(number(value))
        assert reader.number() == value
        reader.end()
    for bad in (b"", b"\x80", b"\xff" * 9):
        with pytest.raises(DamagedData):
            Reader(bad).number()


@pytest.mark.parametrize("type", ["u1", "<u2", ">u2", "<u4", "<f4", ">f8"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_arrays_of_any_type_come_back(type, channels, scene):
    samples = (scene(31, 17, channels).astype("f8") * 3.7).astype(type)
    back = decode_array(encode_array(samples), samples.shape, np.dtype(type))
    assert back.dtype == np.dtype(type)
    assert back.tobytes() == samples.tobytes()


@pytest.mark.parametrize("offset, step", [(0, 257), (77, 256), (1000, 1), (5, 0)])
def test_16_bits_that_were_8_once_take_as_little(scene, offset, step):
    samples = scene().astype(np.uint16) * step + offset
    for type in ("<u2", ">u2"):
        coded = encode_array(samples.astype(type))
        assert np.array_equal(decode_array(coded, samples.shape, np.dtype(type)), samples)
        assert len(coded) <= len(encode_array(scene())) + 8
    with pytest.raises(DamagedData):
        decode_array(b"\3" * 60, samples.shape, np.dtype("<u2"))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_bits_are_spread_and_joined(bits):
    packed = np.random.default_rng(0).integers(0, 256, (5, 7), np.uint8)
    spread = spread_bits(packed, bits)
    assert spread.shape == (5, 7 * 8 // bits)
    assert spread.max() < 1 << bits
    assert spread[0, 0] == packed[0, 0] >> (8 - bits)
    assert np.array_equal(join_bits(spread, bits), packed)
