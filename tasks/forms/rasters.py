"""Where uncompressed samples lie in an image file, so that they can be coded as the picture that they are.

    file bytes -> Raster (place, shape and type of samples) -> array -> samples.py, and back by the same description

Found in BMP, TIFF (strips and tiles of any page, also camera raw), Netpbm with PFM and PAM, TGA, SGI, FITS and DICOM.
A description need not be right to be safe, since only what decodes to the same bytes is used (exact.py). Formats: BMP
(Microsoft), TIFF 6.0, Netpbm's manual pages, TGA 2.0, SGI 1.0, FITS 4.0, DICOM PS3.5.
"""

import re
import struct
from dataclasses import dataclass, replace

import numpy as np

from codec.pictures.trailing import tiff_directories, tiff_numbers
from tasks.forms.base import MAX_FILE_BYTES, DamagedData, Reader, number
from tasks.forms.samples import decode_array, encode_array, join_bits, spread_bits

TYPES = ("u1", "<u2", ">u2", "<u4", ">u4", "<f4", ">f4", "<f8", ">f8")
LEAST = 1024  # bytes of samples that are worth a coding of their own
MOST = 1024  # rasters of a file


@dataclass(frozen=True)
class Raster:
    """Samples [height, width, channels] of TYPES in the file: rows `stride` bytes apart from `offset` on.

    bits: less than 8 where a byte of type u1 holds several samples; width and channels count bytes all the same.
    """

    offset: int
    height: int
    width: int
    channels: int
    type: str
    stride: int
    bits: int = 8

    @property
    def row_bytes(self) -> int:
        return self.width * self.channels * np.dtype(self.type).itemsize

    @property
    def end(self) -> int:
        return self.offset + self.stride * (self.height - 1) + self.row_bytes

    def to_bytes(self) -> bytes:
        values = (self.offset, self.height, self.width, self.channels, TYPES.index(self.type), self.stride, self.bits)
        return b"".join(map(number, values))

    @classmethod
    def read(cls, reader: Reader) -> "Raster":
        offset, height, width, channels, kind, stride, bits = (reader.number() for _ in range(7))
        if kind >= len(TYPES) or not height * width * channels or bits not in (1, 2, 4, 8):
            raise DamagedData("a raster of no known kind")
        if bits < 8 and (channels > 1 or kind):
            raise DamagedData("a raster of no known kind")
        raster = cls(offset, height, width, channels, TYPES[kind], stride, bits)
        if stride < raster.row_bytes:
            raise DamagedData("a raster whose rows overlap")
        return raster

    def rows_of(self, data) -> np.ndarray:
        """The raster's bytes [height, row_bytes], a view of the file."""
        return np.lib.stride_tricks.as_strided(
            np.frombuffer(data, np.uint8)[self.offset :], (self.height, self.row_bytes), (self.stride, 1)
        )


# -- coding


def encode_samples(raster: Raster, data: bytes) -> bytes:
    """The raster's samples of a file, coded by samples.py."""
    rows = np.ascontiguousarray(raster.rows_of(data))
    if raster.bits < 8:
        return encode_array(spread_bits(rows, raster.bits)[:, :, None])
    return encode_array(rows.view(raster.type).reshape(raster.height, raster.width, raster.channels))


def decode_samples(raster: Raster, coded: bytes) -> np.ndarray:
    """The inverse: bytes [height, row_bytes]. Raises DamagedData."""
    if raster.bits < 8:
        shape = raster.height, raster.width * 8 // raster.bits, 1
        return join_bits(decode_array(coded, shape, np.dtype("u1"))[:, :, 0], raster.bits)
    samples = decode_array(coded, (raster.height, raster.width, raster.channels), np.dtype(raster.type))
    return samples.view(np.uint8).reshape(raster.height, raster.row_bytes)


# -- finding


def find_rasters(data: bytes) -> list[Raster]:
    """Rasters of a file in order, without overlap; [] where nothing is found. Never raises for odd files."""
    for finder in _FINDERS:
        try:
            found = finder(data)
        except (struct.error, ValueError, IndexError, KeyError, OverflowError, ZeroDivisionError):
            continue
        if found:
            return _sound(found, len(data))
    return []


def _sound(rasters: list[Raster], size: int) -> list[Raster]:
    """Those that lie in the file and do not overlap; rows that a file breaks off are left out."""
    sound: list[Raster] = []
    behind = 0
    for raster in sorted(rasters, key=lambda each: each.offset)[: 4 * MOST]:
        if min(raster.height, raster.width, raster.channels, raster.offset) < 1 or raster.stride < raster.row_bytes:
            continue
        room = size - raster.offset - raster.row_bytes
        height = min(raster.height, room // raster.stride + 1) if room >= 0 else 0
        if height < 1 or raster.offset < behind or raster.row_bytes * height < LEAST or raster.channels > 256:
            continue
        if max(height, raster.width) >= 1 << 18:
            continue
        raster = replace(raster, height=height)
        sound.append(raster)
        behind = raster.end
    return sound[:MOST]


def _bmp(data: bytes) -> list[Raster]:
    if data[:2] != b"BM":
        return []
    start, header = struct.unpack_from("<II", data, 10)
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    if header < 40 or compression not in (0, 3, 6) or bits not in (1, 4, 8, 16, 24, 32):
        return []
    stride = (width * bits + 31) // 32 * 4
    if bits < 8:
        return [Raster(start, abs(height), (width * bits + 7) // 8, 1, "u1", stride, bits)]
    channels, type = {8: (1, "u1"), 16: (1, "<u2"), 24: (3, "u1"), 32: (4, "u1")}[bits]
    return [Raster(start, abs(height), width, channels, type, stride)]


def _tiff(data: bytes) -> list[Raster]:
    if data[:2] not in (b"II", b"MM"):
        return []
    order = "<" if data[:2] == b"II" else ">"
    found: list[Raster] = []
    for tags in tiff_directories(data):
        values = {tag: tiff_numbers(data, tags[tag]) for tag in _TIFF_TAGS if tag in tags}
        found += _of_directory(values, order)
        if len(found) > 4 * MOST:
            break
    return found


_TIFF_TAGS = (256, 257, 258, 259, 273, 277, 278, 279, 284, 322, 323, 324, 325, 339)


def _of_directory(values: dict[int, tuple[int, ...]], order: str) -> list[Raster]:
    """Uncompressed strips or tiles of one page; strips that follow each other are one raster."""
    first = {tag: numbers[0] for tag, numbers in values.items() if numbers}
    if first.get(259, 1) != 1 or len(set(values.get(258, (1,)))) > 1:
        return []
    bits, kind = first.get(258, 1), first.get(339, 1)
    channels = first.get(277, 1) if first.get(284, 1) == 1 else 1
    names = {8: "u1", 16: order + "u2", 32: order + ("f4" if kind == 3 else "u4"), 64: order + "f8"}
    packed = bits if bits in (1, 2, 4) and channels == 1 else 8  # samples of so many bits share a byte
    type = "u1" if bits < 8 else names[bits]

    def raster(offset: int, height: int, pixels: int) -> Raster:
        width = (pixels * channels * bits + 7) // 8 if bits < 8 else pixels
        samples = 1 if bits < 8 else channels
        return Raster(offset, height, width, samples, type, width * samples * np.dtype(type).itemsize, packed)

    if 324 in values:
        return [raster(offset, first[323], first[322]) for offset in values[324]]
    per_strip = min(first.get(278, first[257]), first[257])
    found: list[Raster] = []
    for offset, length in zip(values[273], values.get(279) or (MAX_FILE_BYTES,), strict=False):
        strip = raster(offset, per_strip, first[256])
        strip = replace(strip, height=min(length // strip.stride, per_strip))
        if found and found[-1].offset + found[-1].height * strip.stride == offset:
            found[-1] = replace(found[-1], height=found[-1].height + strip.height)
        else:
            found.append(strip)
    return found


_NETPBM = re.compile(rb"P([4-6Ff])(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)")
_MAXIMUM = re.compile(rb"(?:\s|#[^\n]*\n)+(-?[\d.]+)\s")
_PAM = re.compile(rb"P7\n(?:(?:#[^\n]*|[A-Z_]+ [^\n]*)\n)*?ENDHDR\n")


def _netpbm(data: bytes) -> list[Raster]:
    head = data[:4096]
    if pam := _PAM.match(head):
        fields = dict(line.split(None, 1) for line in pam[0].split(b"\n")[1:-2] if line and line[:1] != b"#")
        width, height, depth, maximum = (int(fields[name]) for name in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL"))
        type = "u1" if maximum < 256 else ">u2"
        return [Raster(pam.end(), height, width, depth, type, width * depth * np.dtype(type).itemsize)]
    if not (found := _NETPBM.match(head)):
        return []
    width, height = int(found[2]), int(found[3])
    if found[1] == b"4":
        return [Raster(found.end() + 1, height, (width + 7) // 8, 1, "u1", (width + 7) // 8, 1)]
    if not (maximum := _MAXIMUM.match(head, found.end())):
        return []
    channels = 3 if found[1] in b"6F" else 1
    if found[1] in b"Ff":
        type = "<f4" if maximum[1][:1] == b"-" else ">f4"
    else:
        type = "u1" if int(maximum[1]) < 256 else ">u2"
    return [Raster(maximum.end(), height, width, channels, type, width * channels * np.dtype(type).itemsize)]


def _tga(data: bytes) -> list[Raster]:
    length, has_map, kind, _, entries, depth, _, _, width, height, bits = struct.unpack_from("<BBBHHBHHHHB", data, 0)
    if kind not in (1, 2, 3) or has_map > 1 or bits not in (8, 16, 24, 32) or not width * height:
        return []
    start = 18 + length + (entries * ((depth + 7) // 8) if has_map else 0)
    channels, type = {8: (1, "u1"), 16: (1, "<u2"), 24: (3, "u1"), 32: (4, "u1")}[bits]
    return [Raster(start, height, width, channels, type, width * bits // 8)]


def _sgi(data: bytes) -> list[Raster]:
    magic, packed, depth, dimensions, width, height, channels = struct.unpack_from(">HBBHHHH", data, 0)
    if magic != 0x01DA or packed or depth not in (1, 2):
        return []
    channels = channels if dimensions == 3 else 1
    size, type = width * depth, "u1" if depth == 1 else ">u2"
    return [Raster(512 + i * height * size, height, width, 1, type, size) for i in range(min(channels, MOST))]


def _fits(data: bytes) -> list[Raster]:
    if not data.startswith(b"SIMPLE  ="):
        return []
    cards = {}
    for at in range(0, min(len(data), 1 << 20), 80):
        card = data[at : at + 80]
        if card[:8] == b"END     ":
            break
        cards[card[:8].strip()] = card[10:].split(b"/")[0].strip()
    start = (at // 2880 + 1) * 2880
    type = {b"8": "u1", b"16": ">u2", b"32": ">u4", b"-32": ">f4", b"-64": ">f8"}[cards[b"BITPIX"]]
    sides = [int(cards[b"NAXIS%d" % (i + 1)]) for i in range(int(cards[b"NAXIS"]))]
    width, height = sides[0], int(np.prod(sides[1:], dtype=np.int64))
    return [Raster(start, height, width, 1, type, width * np.dtype(type).itemsize)]


def _dicom(data: bytes) -> list[Raster]:
    """Native pixel data in explicit little-endian files: the last element of most."""
    if data[128:132] != b"DICM":
        return []
    at = data.rfind(b"\xe0\x7f\x10\x00O")
    (length,) = struct.unpack_from("<I", data, at + 8)
    if at < 0 or length == 0xFFFFFFFF:
        return []
    rows, columns, bits = (
        struct.unpack_from("<H", data, data.index(tag + b"US\x02\x00") + 8)[0]
        for tag in (b"\x28\0\x10\0", b"\x28\0\x11\0", b"\x28\0\x00\x01")
    )
    type = {8: "u1", 16: "<u2"}[bits]
    row = columns * np.dtype(type).itemsize
    channels = 3 if length % (3 * rows * row) == 0 and bits == 8 and b"RGB" in data[:at] else 1
    return [Raster(at + 12, length // (row * channels), columns, channels, type, row * channels)]


_FINDERS = (_bmp, _tiff, _netpbm, _sgi, _fits, _dicom, _tga)
