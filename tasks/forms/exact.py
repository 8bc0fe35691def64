"""Any image file's own bytes: uncompressed samples as JPEG XL, the rest by general coders; the same file comes back.

    "NPX1"  length (LEB128), 8 bytes of sha256, number of rasters
            for each raster its description, and the coded samples behind their length
            the file without its rasters, packed (packing.py)

What is compressed already (JPEG, PNG, WebP ...) gains nothing here. Where samples lie is rasters.py's.
"""

import hashlib

from codec.pictures.files import Picture
from tasks.forms.base import MAX_FILE_BYTES, DamagedData, Declined, Goal, Reader, number, verify_same_bytes
from tasks.forms.packing import pack, unpack
from tasks.forms.rasters import MOST, Raster, decode_samples, encode_samples, find_rasters

MAGIC = b"NPX1"
_DIGEST = 8  # bytes of sha256


class Exact:
    name, gives_back, suffix = "exact", "bytes", ".npx"

    def encode(self, file_bytes: bytes, picture: Picture | None = None, goal: Goal | None = None) -> bytes:
        if len(file_bytes) > MAX_FILE_BYTES:
            raise Declined(f"its {len(file_bytes):,} bytes are more than the {MAX_FILE_BYTES:,} that are others")
        rasters = find_rasters(file_bytes)
        data = _file_of(file_bytes, rasters)
        if 0 < sum(raster.end - raster.offset for raster in rasters) < len(file_bytes) / 2:
            data = min(data, _file_of(file_bytes, []), key=len)
        if len(data) >= len(file_bytes):
            raise Declined("its bytes do not become fewer")
        self.verify(data, file_bytes, picture)
        return data

    def verify(self, data: bytes, file_bytes: bytes, picture: Picture | None = None) -> None:
        verify_same_bytes(self, data, file_bytes)

    def decode(self, data: bytes) -> bytes:
        if not data.startswith(MAGIC):
            raise DamagedData("it does not begin as an exact form does")
        reader = Reader(data, len(MAGIC))
        length, digest, count = reader.number(), reader.take(_DIGEST), reader.number(MOST)
        rasters, coded, behind = [], [], 0
        for _ in range(count):
            raster = Raster.read(reader)
            if raster.offset < behind or raster.end > length:
                raise DamagedData("a raster lies outside the file")
            rasters.append(raster)
            coded.append(reader.string())
            behind = raster.end
        out, others = bytearray(length), _others(length, rasters)
        rest = unpack(data[reader.at :])
        if len(rest) != length - sum(raster.height * raster.row_bytes for raster in rasters):
            raise DamagedData("the file's other bytes are of another number than announced")
        _put(out, others, rest)
        for raster, samples in zip(rasters, coded, strict=True):
            raster.rows_of(out)[:] = decode_samples(raster, samples)
        if hashlib.sha256(out).digest()[:_DIGEST] != digest:
            raise DamagedData("the bytes that come back are not those of the file")
        return bytes(out)


def _file_of(data: bytes, rasters: list[Raster]) -> bytes:
    head = MAGIC + number(len(data)) + hashlib.sha256(data).digest()[:_DIGEST] + number(len(rasters))
    parts = [head]
    for raster in rasters:
        samples = encode_samples(raster, data)
        parts += [raster.to_bytes(), number(len(samples)), samples]
    return b"".join([*parts, pack(_rest(data, rasters))])


def _others(length: int, rasters: list[Raster]) -> list[tuple[int, int]]:
    """What is left of a file without its rasters: (start, end) in order, gaps between rows included."""
    left, at = [], 0
    for raster in rasters:
        left.append((at, raster.offset))
        at = raster.end
        if raster.stride > raster.row_bytes:
            starts = range(raster.offset + raster.row_bytes, raster.end, raster.stride)
            left += [(start, start + raster.stride - raster.row_bytes) for start in starts]
    left.append((at, length))
    return [(start, end) for start, end in left if end > start]


def _rest(data: bytes, rasters: list[Raster]) -> bytes:
    return b"".join(data[start:end] for start, end in _others(len(data), rasters))


def _put(out: bytearray, spans: list[tuple[int, int]], rest: bytes) -> None:
    at = 0
    for start, end in spans:
        out[start:end] = rest[at : at + end - start]
        at += end - start
