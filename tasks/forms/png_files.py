"""PNG files taken apart and put together again: all chunks as they are, samples instead of their deflate stream.

    file -> Png: chunks before the samples, samples, bytes behind them (chunks, whatever follows IEND)
    Png  -> file with the same chunks, the same samples at the same depth, not interlaced, deflated anew

PNG specification, third edition: chunks (5), interlacing (8), filters (9). Nothing is converted: palette indices stay
indices, 16 bits stay 16 bits. Which pictures come here, and how samples are coded, is lossless.py's.
"""

import struct
import zlib
from dataclasses import dataclass

import numba
import numpy as np

from tasks.forms.base import DamagedData, Declined
from tasks.forms.samples import join_bits, spread_bits

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
COLOUR_TYPES = {"L": 0, "RGB": 2, "LA": 4, "RGBA": 6}  # by Pillow's mode
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
_DROPPED = b"iDOT"  # Apple's hint where the deflate stream can be cut
_REFUSED = {
    b"caBX": "a signed record of its origin (C2PA), which counts for the very file alone",
    b"CgBI": "it is Apple's own kind of PNG",
}
_IDAT = 1 << 20  # bytes of a chunk that is written


@dataclass(frozen=True)
class Header:
    """IHDR. depth: bits a sample; colour: colour type."""

    width: int
    height: int
    depth: int
    colour: int
    interlaced: bool = False

    @classmethod
    def of(cls, content: bytes) -> "Header":
        """From IHDR's 13 bytes. Raises ValueError."""
        width, height, depth, colour, packing, filtering, interlace = struct.unpack(">IIBBBBB", content)
        if not 0 < width < 1 << 31 or not 0 < height < 1 << 31 or depth not in _DEPTHS.get(colour, ()):
            raise ValueError("IHDR is not that of a PNG")
        if packing or filtering or interlace > 1:
            raise ValueError("IHDR names methods that PNG does not have")
        return cls(width, height, depth, colour, bool(interlace))

    @property
    def channels(self) -> int:
        return _CHANNELS[self.colour]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels

    @property
    def type(self) -> np.dtype:
        return np.dtype(">u2" if self.depth == 16 else "u1")

    def row_bytes(self, width: int) -> int:
        return (width * self.channels * self.depth + 7) // 8

    def chunk(self) -> bytes:
        """IHDR of the same picture, not interlaced."""
        return chunk(b"IHDR", struct.pack(">IIBBBBB", self.width, self.height, self.depth, self.colour, 0, 0, 0))


@dataclass(frozen=True)
class Png:
    """before: chunks between IHDR and the samples; samples [H,W,C], those under 8 bits as numbers; after: the rest."""

    header: Header
    before: bytes
    samples: np.ndarray
    after: bytes


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def chunks(data: bytes, at: int = 0):
    """(kind, start, end) of each chunk that is whole, up to IEND; start and end include length and checksum."""
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            return
        yield kind, at, end
        if kind == b"IEND":
            return
        at = end


def read_png(data: bytes, max_pixels: int) -> Png:
    """A PNG file -> its parts. Declined where it is damaged, or more than a PNG can hold when it is written anew."""
    found = list(chunks(data, 8)) if data.startswith(SIGNATURE) else []
    if not found or found[0][0] != b"IHDR" or found[-1][0] != b"IEND":
        raise Declined("it is no whole PNG file")
    for kind, _, _ in found:
        if kind in _REFUSED:
            raise Declined(f"it holds {_REFUSED[kind]}" if kind == b"caBX" else _REFUSED[kind])
    try:
        header = Header.of(data[found[0][1] + 8 : found[0][2] - 4])
    except (ValueError, struct.error) as error:
        raise Declined(f"it is no sound PNG file: {error}") from error
    if header.width * header.height > max_pixels:
        raise Declined(f"{header.width}x{header.height} is more than the limit of {max_pixels} pixels")
    places = [i for i, (kind, _, _) in enumerate(found) if kind == b"IDAT"]
    if not places or places[-1] - places[0] + 1 != len(places):
        raise Declined("its samples do not lie in one piece")
    last = found[places[-1]]
    before = b"".join(data[start:end] for kind, start, end in found[1 : places[0]] if kind != _DROPPED)
    stream = []
    for _, start, end in found[places[0] : places[-1] + 1]:
        if zlib.crc32(data[start + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise Declined("a checksum over its samples is wrong: it is damaged")
        stream.append(data[start + 8 : end - 4])
    return Png(header, before, _samples(header, b"".join(stream)), data[last[2] :])


def write_png(png: Png) -> bytes:
    """The inverse of read_png, up to how the samples are filtered, interlaced and deflated."""
    rows = _rows(png.header, png.samples)
    pixel = max(1, png.header.channels * png.header.depth // 8)
    stream = zlib.compress(_filtered(rows, pixel, png.header), 6)
    idats = [chunk(b"IDAT", stream[at : at + _IDAT]) for at in range(0, len(stream), _IDAT)]
    return b"".join([SIGNATURE, png.header.chunk(), png.before, *idats, png.after])


def palette_of(png: Png) -> np.ndarray | None:
    """uint8 [n,4] RGBA of a palette picture's PLTE and tRNS; None without a palette."""
    plain, alpha = None, b""
    for kind, start, end in chunks(png.before):
        if kind == b"PLTE":
            plain = png.before[start + 8 : end - 4]
        elif kind == b"tRNS":
            alpha = png.before[start + 8 : end - 4]
    if png.header.colour != 3 or plain is None or len(plain) % 3 or not plain:
        return None
    table = np.full((len(plain) // 3, 4), 255, np.uint8)
    table[:, :3] = np.frombuffer(plain, np.uint8).reshape(-1, 3)
    table[: len(alpha), 3] = np.frombuffer(alpha[: len(table)], np.uint8)
    return table


# -- samples


def _samples(header: Header, stream: bytes) -> np.ndarray:
    """Inflated, unfiltered, put into their places: [H,W,C]."""
    passes = _ADAM7 if header.interlaced else ((0, 0, 1, 1),)
    sizes = [(-(-max(header.height - y, 0) // dy), -(-max(header.width - x, 0) // dx)) for y, x, dy, dx in passes]
    length = sum(height * (1 + header.row_bytes(width)) for height, width in sizes if height and width)
    decoder = zlib.decompressobj()
    try:
        raw = decoder.decompress(stream, length + 1)
    except zlib.error as error:
        raise Declined(f"its samples cannot be inflated: {error}") from error
    if len(raw) != length or not decoder.eof:
        raise Declined("it has more or fewer samples than its size asks for: it is damaged")
    samples, at = np.zeros(header.shape, header.type), 0
    pixel = max(1, header.channels * header.depth // 8)
    for (y, x, dy, dx), (height, width) in zip(passes, sizes, strict=True):
        if not height or not width:
            continue
        size = height * (1 + header.row_bytes(width))
        lines = np.frombuffer(raw, np.uint8, size, at).reshape(height, -1).copy()
        at += size
        if not _unfilter(lines, pixel):
            raise Declined("a row has a filter that PNG does not have: it is damaged")
        samples[y::dy, x::dx] = _numbers(header, np.ascontiguousarray(lines[:, 1:]), width)
    return samples


def _numbers(header: Header, rows: np.ndarray, width: int) -> np.ndarray:
    if header.depth < 8:
        return spread_bits(rows, header.depth)[:, :width, None]
    return rows.view(header.type).reshape(len(rows), width, header.channels)


def _rows(header: Header, samples: np.ndarray) -> np.ndarray:
    """uint8 [H,row_bytes]"""
    if header.depth < 8:
        return join_bits(samples[:, :, 0], header.depth)
    return np.ascontiguousarray(samples.astype(header.type)).view(np.uint8).reshape(header.height, -1)


def _filtered(rows: np.ndarray, pixel: int, header: Header) -> bytes:
    """Rows behind their filters' numbers: none for palettes and few bits, else the one of least absolute sum (12.8)."""
    if header.depth < 8 or header.colour == 3:
        return np.concatenate([np.zeros((len(rows), 1), np.uint8), rows], 1).tobytes()
    out = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
    _filter(rows, pixel, out)
    return out.tobytes()


@numba.njit(cache=True, nogil=True)
def _paeth(a, b, c):
    p = a + b - c
    pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
    if pa <= pb and pa <= pc:
        return a
    return b if pb <= pc else c


@numba.njit(cache=True, nogil=True)
def _unfilter(lines, pixel):
    """uint8 [H,1+n] in place; False for an unknown filter."""
    for i in range(lines.shape[0]):
        kind = lines[i, 0]
        if kind > 4:
            return False
        for j in range(1, lines.shape[1]):
            a = np.int64(lines[i, j - pixel]) if j > pixel else np.int64(0)
            b = np.int64(lines[i - 1, j]) if i > 0 else np.int64(0)
            c = np.int64(lines[i - 1, j - pixel]) if i > 0 and j > pixel else np.int64(0)
            add = np.int64(0)
            if kind == 1:
                add = a
            elif kind == 2:
                add = b
            elif kind == 3:
                add = (a + b) >> 1
            elif kind == 4:
                add = _paeth(a, b, c)
            lines[i, j] = np.uint8((np.int64(lines[i, j]) + add) & 255)
    return True


@numba.njit(cache=True, nogil=True)
def _filter(rows, pixel, out):
    """uint8 [H,n] -> out [H,1+n]"""
    line = np.empty((5, rows.shape[1]), np.uint8)
    for i in range(rows.shape[0]):
        sums = np.zeros(5, np.int64)
        for j in range(rows.shape[1]):
            x = np.int64(rows[i, j])
            a = np.int64(rows[i, j - pixel]) if j >= pixel else np.int64(0)
            b = np.int64(rows[i - 1, j]) if i > 0 else np.int64(0)
            c = np.int64(rows[i - 1, j - pixel]) if i > 0 and j >= pixel else np.int64(0)
            left = (np.int64(0), a, b, (a + b) >> 1, _paeth(a, b, c))
            for k in range(5):
                value = (x - left[k]) & 255
                line[k, j] = np.uint8(value)
                sums[k] += min(value, 256 - value)
        best = np.argmin(sums)
        out[i, 0] = best
        out[i, 1:] = line[best]


def checked_header(content: bytes) -> Header:
    """A header from stored bytes. Raises DamagedData."""
    try:
        return Header.of(content)
    except (ValueError, struct.error) as error:
        raise DamagedData(str(error)) from error
