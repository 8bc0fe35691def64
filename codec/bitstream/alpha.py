"""The alpha plane, without loss: uint8 [H,W] <-> bytes.

A plane of one value is one byte. Others are cut into tiles of at most 2048x2048, row by row; each tile is the
smallest of three codes: 0, one value; 1, deflate (RFC 1951) of the differences to the sample above (0 above the
first row), modulo 256; 2, a WebP lossless image (RFC 9649, the VP8L chunk's payload) whose channels are all the
plane. Codes 1 and 2 follow their length as a 32-bit little-endian integer. Decoding never takes more memory than the
plane and one tile.
"""

import io
import zlib

import numpy as np
from PIL import Image

from codec.errors import BadBitstream

TILE = 2048
_CONSTANT, _DEFLATE, _WEBP = 0, 1, 2
_SMALL = 1 << 14  # samples up to which deflate is worth a try beside WebP


def encode(plane: np.ndarray) -> bytes:
    """uint8 [H,W] -> bytes."""
    if plane.min() == plane.max():
        return bytes([plane[0, 0]])
    out = []
    for top in range(0, plane.shape[0], TILE):
        for left in range(0, plane.shape[1], TILE):
            out.append(_encode_tile(np.ascontiguousarray(plane[top : top + TILE, left : left + TILE])))
    return b"".join(out)


def _encode_tile(tile: np.ndarray) -> bytes:
    if tile.min() == tile.max():
        return bytes([_CONSTANT, tile[0, 0]])
    file = io.BytesIO()
    Image.fromarray(tile).convert("RGB").save(file, "WEBP", lossless=True, quality=75, method=4)
    webp = file.getvalue()
    code, body = _WEBP, webp[20 : 20 + int.from_bytes(webp[16:20], "little")]
    if tile.size <= _SMALL:
        differences = np.diff(tile, axis=0, prepend=np.uint8(0))
        deflater = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
        deflated = deflater.compress(differences.tobytes()) + deflater.flush()
        if len(deflated) < len(body):
            code, body = _DEFLATE, deflated
    return bytes([code]) + len(body).to_bytes(4, "little") + body


def decode(data, height: int, width: int) -> np.ndarray:
    """Bytes -> uint8 [H,W]. Raises BadBitstream when they are no alpha plane of that size."""
    data = memoryview(data)
    if len(data) == 1:
        return np.full((height, width), data[0], np.uint8)
    tiles = -(-height // TILE) * -(-width // TILE)
    if len(data) < 2 * tiles:
        raise BadBitstream(f"{len(data)} bytes are too few for an alpha plane of {width}x{height}")
    plane = np.empty((height, width), np.uint8)
    at = 0
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            target = plane[top : top + TILE, left : left + TILE]
            at = _decode_tile(data, at, target)
    if at != len(data):
        raise BadBitstream(f"{len(data) - at} bytes are left over behind the alpha plane")
    return plane


def _decode_tile(data: memoryview, at: int, target: np.ndarray) -> int:
    if at + 2 > len(data):
        raise BadBitstream("the alpha plane ends early")
    code = data[at]
    if code == _CONSTANT:
        target[:] = data[at + 1]
        return at + 2
    length = int.from_bytes(data[at + 1 : at + 5], "little")
    body = data[at + 5 : at + 5 + length]
    if len(body) != length:
        raise BadBitstream("the alpha plane ends early")
    if code == _DEFLATE:
        inflater = zlib.decompressobj(-15)
        try:
            raw = inflater.decompress(body, target.size + 1)
        except zlib.error as error:
            raise BadBitstream(f"an alpha tile cannot be inflated: {error}") from error
        if len(raw) != target.size or not inflater.eof or inflater.unused_data:
            raise BadBitstream("an alpha tile has another size than announced")
        np.cumsum(np.frombuffer(raw, np.uint8).reshape(target.shape), axis=0, dtype=np.uint8, out=target)
    elif code == _WEBP:
        target[:] = _decode_webp(bytes(body), *target.shape)
    else:
        raise BadBitstream(f"alpha code {code} is not of this format")
    return at + 5 + length


def _decode_webp(body: bytes, height: int, width: int) -> np.ndarray:
    # The size stands in the first 28 bits after the signature: looked at before anything is allocated for it.
    size = int.from_bytes(body[1:5], "little")
    if body[:1] != b"\x2f" or (size & 0x3FFF) + 1 != width or (size >> 14 & 0x3FFF) + 1 != height:
        raise BadBitstream("an alpha tile has another size than announced")
    padded = body + b"\0" * (len(body) & 1)
    chunk = b"WEBPVP8L" + len(body).to_bytes(4, "little") + padded
    try:
        with Image.open(io.BytesIO(b"RIFF" + len(chunk).to_bytes(4, "little") + chunk), formats=["WEBP"]) as image:
            if image.size != (width, height):
                raise BadBitstream("an alpha tile has another size than announced")
            image.load()
            return np.asarray(image.getchannel("G"))
    except BadBitstream:
        raise
    except Exception as error:  # Pillow's plugin raises many classes on damaged input
        raise BadBitstream(f"an alpha tile cannot be decoded: {error}") from error
