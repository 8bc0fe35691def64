"""Byte strings made smaller whatever they are: the best of a few general coders, bounded in time and memory.

    method (1 byte), length (LEB128), coded bytes

xz (LZMA2) where that is affordable, Zstandard for what is larger, a delta between bytes 1 to 4 (or a sample's width)
apart where the caller knows of samples. What pictures need beyond that is rasters.py's and the forms'.
"""

import lzma
from collections.abc import Sequence

import imagecodecs

from tasks.forms.base import MAX_FILE_BYTES, DamagedData, Reader, number

STORED, ZSTD, XZ, XZ_DELTA = 0, 1, 2, 3  # XZ_DELTA is followed by the distance, a byte
XZ_UP_TO = 16 << 20  # bytes; about 2 s a MB beyond what zstd takes
_DICTIONARY = 8 << 20  # bytes; the decoder needs as much memory
_INCOMPRESSIBLE = 0.99  # of Zstandard's quick level, from which on nothing slower is tried
_DECODER_MEMORY = 64 << 20


def pack(data: bytes, distances: Sequence[int] = ()) -> bytes:
    """The smallest coding found. distances: bytes from one sample to its like, for which a delta is tried (1..255)."""
    stored = bytes([STORED]) + number(len(data)) + data
    if len(data) < 16:
        return stored
    quick = imagecodecs.zstd_encode(data, 3)
    head = number(len(data))
    best = min(stored, bytes([ZSTD]) + head + quick, key=len)
    if not distances and len(quick) > _INCOMPRESSIBLE * len(data):
        return best
    if len(data) > XZ_UP_TO:
        return min(best, bytes([ZSTD]) + head + imagecodecs.zstd_encode(data, 9), key=len)
    for filters, mark in [(_filters(0), bytes([XZ])), *((_filters(d), bytes([XZ_DELTA, d])) for d in distances)]:
        coded = lzma.compress(data, lzma.FORMAT_RAW, filters=filters)
        best = min(best, mark[:1] + head + mark[1:] + coded, key=len)
    return best


def unpack(packed: bytes, limit: int = MAX_FILE_BYTES) -> bytes:
    """The inverse of pack; raises DamagedData, also where more than `limit` bytes would come out."""
    reader = Reader(packed)
    method = reader.take(1)[0]
    length = reader.number(limit)
    distance = reader.take(1)[0] if method == XZ_DELTA else 0
    coded = packed[reader.at :]
    try:
        if method == STORED:
            data = coded
        elif method == ZSTD:
            data = bytes(imagecodecs.zstd_decode(coded, out=length)) if length else b""
        elif method in (XZ, XZ_DELTA):
            decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(distance))
            data = decoder.decompress(coded, max_length=length + 1)
        else:
            raise DamagedData(f"no method of packing has the number {method}")
    except (lzma.LZMAError, RuntimeError, ValueError) as error:
        raise DamagedData(f"packed bytes cannot be unpacked: {error}") from error
    if len(data) != length:
        raise DamagedData(f"{len(data):,} bytes were unpacked where {length:,} were announced")
    return data


def _filters(distance: int) -> list[dict]:
    """LZMA's filter chain, written out, since nothing of it stands in the raw stream."""
    last = {
        "id": lzma.FILTER_LZMA2, "dict_size": _DICTIONARY, "lc": 3, "lp": 0, "pb": 0 if distance else 2,
        "mode": lzma.MODE_NORMAL, "nice_len": 64, "mf": lzma.MF_BT4, "depth": 0,
    }  # fmt: skip
    return [{"id": lzma.FILTER_DELTA, "dist": distance}, last] if distance else [last]
