"""The .npi file: writing it, and reading it without trusting a byte. FORMAT.md describes it for other decoders.

Parsing here touches the container alone: fields, lengths, checksum, metadata. What the streams mean is segments.py's,
the alpha plane's code is alpha.py's. No field leads to an allocation before it is bounded by the bytes that are there.
"""

import dataclasses
import struct
import zlib

from codec.errors import BadBitstream, UnknownVersion
from codec.format import LEVELS, MODES, SEGMENTS, VERSION, edges
from codec.pictures.metadata import MOST_BYTES, Metadata

MAGIC = b"NPI"
MAX_SIDE = (1 << 24) - 1  # pixels; together with max_pixels in `read`
_FIXED = struct.Struct("<3sB8sBH")


@dataclasses.dataclass
class Bitstream:
    """All that a .npi file says. Streams are in segment order; `metadata` is of the upright picture."""

    model: str  # 16 hex digits
    level: int  # 0..1000
    width: int
    height: int
    mode: str  # of MODES
    achromatic: bool = False  # RGB with three equal channels
    segment: int = 64  # side of a segment in latent cells
    metadata: Metadata = Metadata()
    alpha: bytes | memoryview = b""
    streams: list = dataclasses.field(default_factory=list)

    @property
    def cells(self) -> tuple[int, int]:
        """Height and width of the latent."""
        return -(-self.height // 16), -(-self.width // 16)


def segment_count(stream: Bitstream) -> int:
    height, width = stream.cells
    return (len(edges(height, stream.segment)) - 1) * (len(edges(width, stream.segment)) - 1)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(0x80 | value & 0x7F)
        value >>= 7
    out.append(value)
    return bytes(out)


def write(stream: Bitstream) -> bytes:
    """Bitstream -> bytes of a .npi file."""
    flags = MODES.index(stream.mode) | stream.achromatic << 2
    packed = b""
    head = []
    if metadata := stream.metadata.to_bytes():
        flags |= 8
        coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
        packed = coder.compress(metadata) + coder.flush()
        head += [_varint(len(metadata)), _varint(len(packed))]
    if "A" in stream.mode:
        head.append(_varint(len(stream.alpha)))
    head.extend(_varint(len(part) // 2) for part in stream.streams[:-1])
    body = b"".join(
        (
            _FIXED.pack(
                MAGIC,
                VERSION,
                bytes.fromhex(stream.model),
                flags,
                stream.level | SEGMENTS.index(stream.segment) << 10,
            ),
            _varint(stream.width - 1),
            _varint(stream.height - 1),
            *head,
            packed,
            stream.alpha,
            *stream.streams,
        )
    )
    return body + struct.pack("<I", zlib.crc32(body))


class _Reader:
    """Reads fields in order; every one of them within the bytes that are there."""

    def __init__(self, data: memoryview, at: int):
        self.data, self.at = data, at

    def varint(self, what: str, limit: int) -> int:
        value = shift = 0
        while True:
            if self.at >= len(self.data):
                raise BadBitstream(f"the file ends within its {what}")
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift > 28:
                raise BadBitstream(f"its {what} is not a number of this format")
        if byte == 0 and shift > 7:
            raise BadBitstream(f"its {what} is written with needless bytes")
        if value > limit:
            raise BadBitstream(f"its {what} of {value} exceeds {limit}")
        return value

    def take(self, length: int, what: str) -> memoryview:
        there = len(self.data) - self.at
        if length > there:
            raise BadBitstream(f"the file ends within its {what}: {length} bytes announced, {there} there")
        self.at += length
        return self.data[self.at - length : self.at]


def read(data, max_pixels: int = 200_000_000) -> Bitstream:
    """Bytes of a .npi file -> Bitstream.

    Raises BadBitstream or UnknownVersion. Streams and alpha are views of `data`.
    """
    data = _checked(memoryview(data).cast("B").toreadonly())
    _, _, model, flags, packed = _FIXED.unpack_from(data)
    level, segment = packed & 0x3FF, packed >> 10
    if flags & 0xF0 or segment >= len(SEGMENTS) or level > LEVELS:
        raise BadBitstream("reserved bits of the header are set")
    reader = _Reader(data, _FIXED.size)
    width = reader.varint("width", MAX_SIDE - 1) + 1
    height = reader.varint("height", MAX_SIDE - 1) + 1
    if width * height > max_pixels:
        raise BadBitstream(f"{width}x{height} is more than the limit of {max_pixels} pixels")
    stream = Bitstream(bytes(model).hex(), level, width, height, MODES[flags & 3], bool(flags & 4), SEGMENTS[segment])
    if stream.achromatic and stream.mode[0] == "L":
        raise BadBitstream("a grey picture marked as RGB without colours")
    size = reader.varint("metadata length", MOST_BYTES) if flags & 8 else 0
    if flags & 8 and not size:
        raise BadBitstream("metadata of no bytes is announced")
    packed_length = reader.varint("packed metadata length", len(data)) if size else 0
    alpha_length = reader.varint("alpha length", len(data)) if "A" in stream.mode else 0
    count = segment_count(stream)
    if 8 * count > len(data):
        raise BadBitstream(f"{len(data)} bytes are too few for a picture of {width}x{height}")
    lengths = [2 * reader.varint("segment length", len(data)) for _ in range(count - 1)]
    packed_metadata = reader.take(packed_length, "metadata")
    stream.alpha = reader.take(alpha_length, "alpha plane")
    stream.streams = [reader.take(length, f"segment {i}") for i, length in enumerate(lengths)]
    stream.streams.append(reader.take(len(data) - reader.at, "last segment"))
    if size:
        stream.metadata = _metadata(packed_metadata, size)
    return stream


def _checked(data: memoryview) -> memoryview:
    """The file without its checksum, once magic, version, size and that have been looked at."""
    if bytes(data[:3]) != MAGIC:
        raise BadBitstream(f"not a .npi file: it starts with {bytes(data[:4])!r}" if len(data) else "an empty file")
    if len(data) < 4:
        raise BadBitstream("the file ends within its header")
    if data[3] != VERSION:
        raise UnknownVersion(f"format version {data[3]}; this program reads version {VERSION}: take a newer Nightpress")
    if len(data) < _FIXED.size + 2 + 8 + 4:
        raise BadBitstream(f"{len(data)} bytes are too few for any picture")
    if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise BadBitstream("the file's checksum differs: it is damaged or truncated")
    return data[:-4]


def _metadata(packed: memoryview, size: int) -> Metadata:
    """What is deflated there, `size` bytes."""
    inflater = zlib.decompressobj(-15)
    try:
        raw = inflater.decompress(packed, size + 1)
    except zlib.error as error:
        raise BadBitstream(f"its metadata cannot be inflated: {error}") from error
    if len(raw) != size or not inflater.eof or inflater.unused_data or inflater.unconsumed_tail:
        raise BadBitstream(f"its metadata is not the {size} bytes announced")
    try:
        return Metadata.from_bytes(raw)
    except ValueError as error:
        raise BadBitstream(f"its metadata cannot be read: {error}") from error
