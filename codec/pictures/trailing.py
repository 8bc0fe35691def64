"""Where the image in a file ends, and what lies behind it: videos of motion photos, second pictures, archives.

A decoder stops at the image's end, so what follows is lost with the file unless somebody looks. Padding that means
nothing (zeros, 0xFF, white space) is passed over. Where the end cannot be told from a damaged or unusual file, nothing
is claimed: damage is damage.py's. Formats: JPEG (ITU-T T.81, annex B), PNG, GIF89a, WebP (RFC 9649), TIFF 6.0, BMP,
Netpbm, JPEG 2000 (T.800, annexes A and I), ISO base media files (AVIF), SGI.
"""

import dataclasses
import re
import struct

_PADDING = b"\0\xff \t\r\n"
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # in entropy-coded data: anything but stuffing and restarts
_MAX_DIRECTORIES = 64
_PHONES_BOXES = (b"sefd", b"mpvd")  # Samsung's data block, Google's motion photo: behind the picture's own boxes

# What data behind an image starts with, in words
_KINDS = (
    (b"\xff\xd8\xff", "a second JPEG"),
    (b"\x89PNG\r\n", "a PNG"),
    (b"PK\x03\x04", "a zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"\x1f\x8b", "gzipped data"),
    (b"%PDF", "a PDF"),
    (b"RIFF", "RIFF data (sound or a picture)"),
    (b"ID3", "sound (MP3)"),
    (b"OggS", "sound (Ogg)"),
    (b"GIF8", "a GIF"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"<?xml", "XML text"),
)
# Anywhere in it: data of phones that put their own blocks around what they append
_INSIDE = (
    (b"MotionPhoto_Data", "a video of a Samsung motion photo"),
    (b"moov", "a video"),
    (b"DualShot_DepthMap", "a depth map (Samsung)"),
    (b"SoundShot", "sound (Samsung)"),
    (b"SEFT", "Samsung's data block (SEF)"),
    (b"\xff\xd8\xff", "a further JPEG"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x89PNG\r\n", "a PNG"),
)


@dataclasses.dataclass(frozen=True)
class Trailing:
    """Data behind an image: from `offset` on, `length` bytes up to the end of the file; `what` in words."""

    offset: int
    length: int
    what: str

    def __str__(self) -> str:
        return f"{self.what} behind the picture ({size_in_words(self.length)})"


def size_in_words(length: int) -> str:
    """Bytes as people write them: 37 bytes, 41 kB, 1.2 MB."""
    if length < 1000:
        return f"{length} bytes" if length != 1 else "1 byte"
    return f"{length / 1000:.3g} kB" if length < 999_500 else f"{length / 1e6:.3g} MB"


def trailing_data(data: bytes, format: str) -> Trailing | None:
    """What lies behind the image of a file; None where there is nothing but padding, or no end can be told.

    data: the whole file. format: as Pillow names it; formats without a rule here give None.
    """
    find_end = _ENDS.get(format)
    if find_end is None:
        return None
    try:
        end = find_end(data)
    except (struct.error, IndexError, ValueError):
        return None
    if end is None or end >= len(data):
        return None
    behind = data[end:]
    rest = behind.strip(_PADDING)
    return Trailing(end, len(behind), _what(behind, rest)) if rest else None


def _what(behind: bytes, rest: bytes) -> str:
    """Words for data behind an image; rest: without the padding around it."""
    plain = behind.lstrip(b"\0 \t\r\n")
    if b"ftyp" in rest[:8] or behind[4:8] == b"ftyp":  # a box's length starts with zeros, as padding does
        return "a video (motion photo)"
    for signature, words in _KINDS:
        if plain.startswith(signature) or behind.startswith(signature):
            return words
    for signature, words in _INSIDE:
        if signature in rest:
            return words
    printable = sum(32 <= byte < 127 or byte in (9, 10, 13) for byte in rest[:512])
    return "text" if printable > 0.95 * len(rest[:512]) else "other data"


# -- where each format ends: byte offset behind the image, None where that cannot be told


def jpeg_end(data: bytes) -> int | None:
    """Offset behind the EOI marker of the first image in a JPEG file; None where there is no EOI."""
    position = 2
    while position + 2 <= len(data):
        if data[position] != 0xFF:
            found = _MARKER.search(data, position)
            if not found:
                return None
            position = found.end() - 2
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
        elif marker == 0xD9:
            return position + 2
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8 or marker == 0:
            position += 2
        else:
            position += 2 + max(2, int.from_bytes(data[position + 2 : position + 4]))
            if marker == 0xDA:
                found = _MARKER.search(data, position)
                if not found:
                    return None
                position = found.end() - 2
    return None


def _png_end(data: bytes) -> int | None:
    position = 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        position += 12 + length
        if kind == b"IEND":
            return position
    return None


def gif_end(data: bytes) -> int | None:
    position = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    while True:
        kind = data[position]
        if kind == 0x3B:
            return position + 1
        if kind == 0x21:
            position += 2
        elif kind == 0x2C:
            local = data[position + 9]
            position += 11 + (3 << (local & 7) + 1 if local & 0x80 else 0)
        else:
            return None
        while data[position]:
            position += 1 + data[position]
        position += 1


def _riff_end(data: bytes) -> int | None:
    size = int.from_bytes(data[4:8], "little")
    return 8 + size + (size & 1)


def _bmp_end(data: bytes) -> int | None:
    start, header = struct.unpack_from("<II", data, 10)
    if header < 40:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = stored = 0
    else:
        width, height, _, bits, compression, stored = struct.unpack_from("<iiHHII", data, 18)
    if compression in (0, 3, 6):
        stored = (width * bits + 31) // 32 * 4 * abs(height)
    elif not stored:
        return None
    end = start + stored
    if header >= 124:  # BITMAPV5HEADER: the profile's offset counts from the header
        profile, length = struct.unpack_from("<II", data, 14 + 112)
        if length:
            end = max(end, 14 + profile + length)
    return end


_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TIFF_POINTERS = {273: 279, 324: 325, 288: 289, 513: 514}  # offsets: their byte counts
_TIFF_DIRECTORIES = (330, 34665, 34853, 40965)


def tiff_directories(data: bytes) -> list[dict[int, tuple[int, int, int]]]:
    """All directories of a TIFF (or BigTIFF) structure in the order of the file: tag -> (type, count, value's offset).

    The value's offset is that of its first byte, in the entry itself or elsewhere. Raises ValueError, struct.error.
    """
    return [directory for directory, _ in _tiff_walk(data)]


def _tiff_walk(data: bytes) -> list[tuple[dict[int, tuple[int, int, int]], int]]:
    """Directories, each with the offset behind its last byte. Loops and damage end the walk with ValueError."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        raise ValueError("no TIFF structure")
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    word, count_format, entry = ("Q", "Q", 20) if big else ("I", "H", 12)
    inline = 8 if big else 4
    waiting = [struct.unpack_from(order + word, data, 8 if big else 4)[0]]
    found, seen = [], set()
    while waiting:
        at = waiting.pop(0)
        if at == 0 or at in seen:
            continue
        seen.add(at)
        if len(seen) > _MAX_DIRECTORIES:
            raise ValueError("too many directories")
        (count,) = struct.unpack_from(order + count_format, data, at)
        base = at + struct.calcsize(count_format)
        if base + count * entry > len(data):
            raise ValueError("a directory lies outside the file")
        tags: dict[int, tuple[int, int, int]] = {}
        for i in range(count):
            tag, kind, number = struct.unpack_from(order + "HH" + word, data, base + i * entry)
            place = base + i * entry + entry - inline
            if number * _TIFF_SIZES.get(kind, 1) > inline:
                (place,) = struct.unpack_from(order + word, data, place)
            tags[tag] = (kind, number, place)
            if tag in _TIFF_DIRECTORIES and number <= _MAX_DIRECTORIES:
                waiting.extend(tiff_numbers(data, tags[tag]))
        end = base + count * entry
        waiting.insert(0, struct.unpack_from(order + word, data, end)[0])
        found.append((tags, end + inline))
    return found


def tiff_numbers(data: bytes, entry: tuple[int, int, int]) -> tuple[int, ...]:
    """The integers of a directory's entry as `tiff_directories` gives it; () for other types. Raises struct.error."""
    kind, count, place = entry
    letter = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}.get(kind)
    if letter is None or count * _TIFF_SIZES[kind] > len(data):
        return ()
    return struct.unpack_from(f"{'<' if data[:2] == b'II' else '>'}{count}{letter}", data, place)


def _tiff_end(data: bytes) -> int | None:
    end = 8
    for tags, behind in _tiff_walk(data):
        end = max(end, behind)
        for tag, (kind, count, place) in tags.items():
            end = max(end, place + count * _TIFF_SIZES.get(kind, 1))
            if tag in _TIFF_POINTERS and _TIFF_POINTERS[tag] in tags:
                offsets, counts = tiff_numbers(data, tags[tag]), tiff_numbers(data, tags[_TIFF_POINTERS[tag]])
                end = max([end, *(a + b for a, b in zip(offsets, counts, strict=False))])
    return end


_NETPBM = re.compile(rb"P([1-6])(?:(?:\s|#[^\n]*\n)+(\d+))(?:(?:\s|#[^\n]*\n)+(\d+))")
_NETPBM_MAXIMUM = re.compile(rb"(?:\s|#[^\n]*\n)+(\d+)")


def _ppm_end(data: bytes) -> int | None:
    found = _NETPBM.match(data)
    if not found or found[1] in b"123":
        return None  # plain variants are text: their rest is read as samples
    width, height, end = int(found[2]), int(found[3]), found.end()
    if found[1] == b"4":
        return end + 1 + (width + 7) // 8 * height
    maximum = _NETPBM_MAXIMUM.match(data, end)
    if not maximum:
        return None
    depth = (3 if found[1] == b"6" else 1) * (2 if int(maximum[1]) > 255 else 1)
    return maximum.end() + 1 + width * height * depth


def boxes(data: bytes, start: int = 0, end: int | None = None):
    """(kind, first byte of the content, end) of ISO base media / JPEG 2000 boxes, as far as they are well-formed."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        length, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if length == 1 and start + 16 <= end:
            (length,) = struct.unpack_from(">Q", data, start + 8)
            head = 16
        elif length == 0:
            length = end - start
        if length < head or start + length > end or not all(32 <= byte < 127 or byte == 0xA9 for byte in kind):
            return
        yield kind, start + head, start + length
        start += length


def _boxes_end(data: bytes) -> int | None:
    end = None
    for kind, _, behind in boxes(data):
        if kind in _PHONES_BOXES or (kind == b"ftyp" and end and end > 32):  # a second file begins
            break
        end = behind
    return end


def _jpeg2000_end(data: bytes) -> int | None:
    if data[:4] != b"\xff\x4f\xff\x51":
        return _boxes_end(data)
    position = 2
    while position + 4 <= len(data):
        marker, length = struct.unpack_from(">HH", data, position)
        if marker == 0xFFD9:
            return position + 2
        if marker == 0xFF90:
            (part,) = struct.unpack_from(">I", data, position + 6)
            if part == 0:
                return None  # the last tile part reaches to the end
            position += part
        else:
            position += 2 + length
    return position + 2 if data[position : position + 2] == b"\xff\xd9" else None


def _sgi_end(data: bytes) -> int | None:
    packed, depth, _, width, height, channels = struct.unpack_from(">BBHHHH", data, 2)
    if not packed:
        return 512 + depth * width * height * channels
    rows = height * channels
    offsets = struct.unpack_from(f">{rows}I", data, 512)
    lengths = struct.unpack_from(f">{rows}I", data, 512 + 4 * rows)
    return max(a + b for a, b in zip(offsets, lengths, strict=True))


_ENDS = {
    "JPEG": jpeg_end, "MPO": jpeg_end, "PNG": _png_end, "GIF": gif_end, "WEBP": _riff_end, "BMP": _bmp_end,
    "TIFF": _tiff_end, "PPM": _ppm_end, "AVIF": _boxes_end, "JPEG2000": _jpeg2000_end, "SGI": _sgi_end,
}  # fmt: skip
