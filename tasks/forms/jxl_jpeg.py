"""A JPEG file recompressed by JPEG XL (ISO/IEC 18181-2, annex A): 10 to 20 % smaller, and the same file comes back.

    JPEG XL file of the first JPEG, openable by any decoder
    box "npsg"  segments that libjxl stumbles over (a colour profile it does not understand), each behind its offset
    box "npjp"  a further JPEG behind it (depth map, gain map, preview), the same way
    box "nptl"  what else lies behind (a video, padding), packed by packing.py; the boxes stand in the file's order

What libjxl refuses (CMYK, arithmetic coding, 12 bits, lossless JPEG, damaged scans) is declined. A file is only taken
when decoding has given its bytes back.
"""

import contextlib

import imagecodecs

from codec.pictures.files import Picture
from codec.pictures.trailing import boxes, jpeg_end
from tasks.forms.base import DamagedData, Declined, Goal, Reader, number, verify_same_bytes
from tasks.forms.packing import pack, unpack

_SEGMENTS, _FURTHER, _TAIL = b"npsg", b"npjp", b"nptl"
_MOST_JPEGS = 8  # in one file; what lies behind is tail
_SIGNATURE = b"\0\0\0\x0cJXL \r\n\x87\n"


class JxlJpeg:
    name, gives_back, suffix = "jxl-jpeg", "bytes", ".jxl"

    def encode(self, file_bytes: bytes, picture: Picture | None = None, goal: Goal | None = None) -> bytes:
        if file_bytes[:2] != b"\xff\xd8":
            raise Declined("only JPEG files can be recompressed as JPEGs")
        pieces = _pieces(file_bytes)
        data = _first(pieces[0])
        data += b"".join(map(_box_of, pieces[1:]))
        if len(pieces) > 1:
            with contextlib.suppress(RuntimeError):  # libjxl keeps short tails itself
                data = min(data, _transcoded(file_bytes), key=len)
        self.verify(data, file_bytes, picture)
        return data

    def verify(self, data: bytes, file_bytes: bytes, picture: Picture | None = None) -> None:
        verify_same_bytes(self, data, file_bytes)

    def decode(self, data: bytes) -> bytes:
        if not data.startswith(_SIGNATURE):
            raise DamagedData("no JPEG XL file")
        ours = [(kind, start, end) for kind, start, end in boxes(data) if kind in (_SEGMENTS, _FURTHER, _TAIL)]
        out = [_jpeg_of(data[: ours[0][1] - 8] if ours else data)]
        for kind, start, end in ours:
            if kind == _SEGMENTS:
                out[0] = _with_segments(out[0], unpack(data[start:end]))
            else:
                out.append(_jpeg_of(data[start:end]) if kind == _FURTHER else unpack(data[start:end]))
        return b"".join(out)


def is_jxl_jpeg(data: bytes) -> bool:
    """Whether a JPEG XL file holds what gives a JPEG back."""
    return data.startswith(_SIGNATURE) and any(kind == b"jbrd" for kind, _, _ in boxes(data))


def _pieces(data: bytes) -> list[bytes]:
    """The JPEGs of a file one after the other, and what lies behind the last one."""
    pieces, rest = [], data
    while rest[:2] == b"\xff\xd8" and len(pieces) < _MOST_JPEGS:
        end = jpeg_end(rest)
        if end is None:
            break
        pieces.append(rest[:end])
        rest = rest[end:]
    if rest:
        pieces.append(rest)
    return pieces


def _transcoded(jpeg: bytes) -> bytes:
    return bytes(imagecodecs.jpegxl_encode_jpeg(jpeg, usecontainer=True, numthreads=1))


def _first(jpeg: bytes) -> bytes:
    """The JPEG XL file of a JPEG, where need be with its metadata in a box. Raises Declined."""
    try:
        return _transcoded(jpeg)
    except RuntimeError:
        bare, segments = _without_segments(jpeg)
    try:
        if segments:
            return _transcoded(bare) + _box(_SEGMENTS, pack(segments))
    except RuntimeError:
        pass
    raise Declined("JPEG XL does not take this kind of JPEG (CMYK, arithmetic, damaged ...)")


def _without_segments(jpeg: bytes) -> tuple[bytes, bytes]:
    """A JPEG without the APP1..13, APP15 and COM segments before its first scan, and these, each behind its offset."""
    kept, segments, at = [jpeg[:2]], [], 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF and jpeg[at + 1] not in (0xDA, 0xD9, 0xFF):
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])
        if jpeg[at + 1] == 0xFE or (0xE1 <= jpeg[at + 1] <= 0xEF and jpeg[at + 1] != 0xEE):
            segments.append(number(at) + number(end - at) + jpeg[at:end])
        else:
            kept.append(jpeg[at:end])
        at = end
    return b"".join([*kept, jpeg[at:]]), b"".join(segments)


def _with_segments(bare: bytes, segments: bytes) -> bytes:
    """The inverse. Raises DamagedData."""
    out, at, reader = [], 0, Reader(segments)
    length = 0
    while reader.at < len(segments):
        place, segment = reader.number(), reader.string()
        if place < length:
            raise DamagedData("segments out of order")
        out += [bare[at : at + place - length], segment]
        at += place - length
        length = place + len(segment)
    return b"".join([*out, bare[at:]])


def _box_of(piece: bytes) -> bytes:
    kind, content = _TAIL, b""
    if piece[:2] == b"\xff\xd8":
        try:
            coded = _transcoded(piece)
            if _jpeg_of(coded) == piece:
                kind, content = _FURTHER, coded
        except (RuntimeError, DamagedData):
            pass
    return _box(kind, content or pack(piece))


def _box(kind: bytes, content: bytes) -> bytes:
    length = 8 + len(content)
    if length >= 1 << 32:
        raise Declined("more lies behind its picture than a box holds")
    return length.to_bytes(4) + kind + content


def _jpeg_of(data: bytes) -> bytes:
    try:
        return bytes(imagecodecs.jpegxl_decode_jpeg(data, numthreads=1))
    except (RuntimeError, ValueError, MemoryError) as error:
        raise DamagedData(f"the JPEG cannot be rebuilt: {error}") from error
