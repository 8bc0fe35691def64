"""What a picture says beside its pixels, as one section of a bitstream, and as chunks of the PNG that is given back.

    JPEG, PNG, WebP, GIF, TIFF ...  ->  Metadata  ->  the bitstream's metadata section, or beside a duplicate
                                                  ->  chunks of PNG (picture_bytes in files.py)

Carried: EXIF, ICC, XMP (its extended part joined), Photoshop's resources with IPTC, comments, pixel density, all that
PNG chunks say (text of any kind, gamma, primaries, time ...) and unknown APP segments of JPEG. In PNG each has the
place where exiftool, exiv2, ImageMagick and Pillow look for it: `eXIf`, `iCCP`, `iTXt` XML:com.adobe.xmp, `pHYs`; IPTC
and APP segments as `zTXt` "Raw profile type ...", comments as text `Comment`. Reading files of each format is
metadata_readers.py's.
"""

import dataclasses
import re
import struct
import zlib

from codec.format import METADATA_LIMIT

MOST_PARTS = 4096
MOST_BYTES = METADATA_LIMIT + 6 * MOST_PARTS  # of Metadata.to_bytes

# Kinds of parts in their order, as numbered from 1 in the bitstream
KINDS = (
    "exif",  # from its TIFF header on, orientation 1
    "icc",
    "xmp",  # one packet, tiff:Orientation 1
    "photoshop",  # image resources ("8BIM" blocks), IPTC among them
    "comment",  # of a JPEG, GIF or Netpbm file
    "density",  # as in PNG's pHYs: pixels a unit across and down (big-endian uint32), unit 1 metre or 0 unknown
    "png",  # a chunk: its type and data
    "app",  # a JPEG application segment: its number 0..15 and data
)
PNG_COLOURS = (b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"mDCv", b"cLLi")
XMP_KEYWORD = b"XML:com.adobe.xmp"


class NotCarried(ValueError):
    """The file says or holds something that cannot be given back; the message is the reason, in words."""


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Of one picture: (kind of KINDS, bytes), sorted by kind, in the file's order within a kind."""

    parts: tuple[tuple[str, bytes], ...] = ()

    @classmethod
    def of(cls, *parts: tuple[str, bytes | None]) -> "Metadata":
        """From parts in any order; None and empty ones are left out."""
        return cls(tuple(sorted(((kind, part) for kind, part in parts if part), key=lambda each: KINDS.index(each[0]))))

    def first(self, kind: str) -> bytes | None:
        return next((part for name, part in self.parts if name == kind), None)

    def size(self, kind: str) -> int:
        """Bytes of all parts of a kind."""
        return sum(len(part) for name, part in self.parts if name == kind)

    def with_parts(self, **parts: bytes | None) -> "Metadata":
        """The same with all parts of the named kinds replaced by one each (None: by none)."""
        rest = [(kind, part) for kind, part in self.parts if kind not in parts]
        return Metadata.of(*rest, *parts.items())

    def to_bytes(self) -> bytes:
        """Each part: its kind's number from 1, its length (LEB128), its bytes. b"" for no parts."""
        out = bytearray()
        for kind, part in self.parts:
            out.append(KINDS.index(kind) + 1)
            length = len(part)
            while length > 0x7F:
                out.append(0x80 | length & 0x7F)
                length >>= 7
            out.append(length)
            out += part
        return bytes(out)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Metadata":
        """The inverse of to_bytes. Raises ValueError for other bytes."""
        parts: list[tuple[str, bytes]] = []
        at, lowest = 0, 1
        while at < len(data):
            number, at = data[at], at + 1
            if not lowest <= number <= len(KINDS) or len(parts) >= MOST_PARTS:
                raise ValueError(f"part {len(parts)} is of kind {number}, which does not belong there")
            length = shift = 0
            while True:
                if at >= len(data) or shift > 28:
                    raise ValueError("a part's length is no number")
                byte, at = data[at], at + 1
                length |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    break
            if byte == 0 and shift > 7:
                raise ValueError("a part's length is written with needless bytes")
            if not length or at + length > len(data):
                raise ValueError("a part reaches beyond the end")
            parts.append((KINDS[number - 1], data[at : at + length]))
            at, lowest = at + length, number
        return cls(tuple(parts))


def same_facts(a: Metadata, b: Metadata) -> bool:
    """Whether two files say the same, whatever format each is in: a JPEG and the PNG that was made of it.

    Orientation aside: what is given back is upright.
    """
    return sorted(png_chunks(upright(a))) == sorted(png_chunks(upright(b)))


# -- orientation: pixels are upright when they are coded


def orientation(metadata: Metadata) -> int:
    """EXIF's orientation, 1..8; 1 where it is absent or makes no sense. XMP's does not count: no browser reads it."""
    raw = metadata.first("exif") or b""
    entry = _orientation_entry(raw)
    if entry is None:
        return 1
    order = "<" if raw[:2] == b"II" else ">"
    kind, _, value, _ = struct.unpack_from(order + "HIHH", raw, entry + 2)
    value = value if kind == 3 else struct.unpack_from(order + "I", raw, entry + 8)[0]
    return value if 1 <= value <= 8 else 1


def upright(metadata: Metadata) -> Metadata:
    """The metadata of the picture as shown: orientation 1 in EXIF and XMP, density with its axes as they are then."""
    exif, xmp, density = (metadata.first(kind) for kind in ("exif", "xmp", "density"))
    entry = _orientation_entry(exif or b"")
    if entry is not None:
        order = "<" if exif[:2] == b"II" else ">"
        wide = struct.unpack_from(order + "H", exif, entry + 2)[0] == 4
        value = struct.pack(order + "I", 1) if wide else struct.pack(order + "HH", 1, 0)
        exif_1 = exif[: entry + 8] + value + exif[entry + 12 :]
    else:
        exif_1 = exif
    xmp_1 = re.sub(rb"(tiff:Orientation\s*(?:=\s*[\"']|>))[2-8]", rb"\g<1>1", xmp) if xmp else None
    if density and orientation(metadata) >= 5:
        density = density[4:8] + density[:4] + density[8:]
    return metadata.with_parts(exif=exif_1, xmp=xmp_1, density=density)


def _orientation_entry(raw: bytes) -> int | None:
    """Offset of the orientation's entry in the first directory of EXIF (from its TIFF header on)."""
    order = {b"II": "<", b"MM": ">"}.get(raw[:2])
    try:
        if order is None:
            return None
        (start,) = struct.unpack_from(order + "I", raw, 4)
        (count,) = struct.unpack_from(order + "H", raw, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, length = struct.unpack_from(order + "HHI", raw, entry)
            if tag == 0x0112:
                return entry if length == 1 and kind in (3, 4) and entry + 12 <= len(raw) else None
    except struct.error:
        pass  # not a TIFF structure: nothing in it turns the picture
    return None


# -- writing PNG


def with_metadata(png: bytes, metadata: Metadata) -> bytes:
    """The PNG with the metadata's chunks behind its header."""
    start = 8 + 12 + 13
    chunks = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))
        for kind, body in png_chunks(metadata)
        if not (kind == b"bKGD" and len(body) != (6 if png[25] & 2 else 2))
    )
    return png[:start] + chunks + png[start:]


def png_chunks(metadata: Metadata) -> list[tuple[bytes, bytes]]:
    """(type, data) of the chunks that say what it says, in an order that PNG permits before PLTE and IDAT."""
    chunks = []
    for kind, part in metadata.parts:
        if kind == "png":
            chunks.append((part[:4], part[4:]))
        elif kind == "icc":
            chunks.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(part, 9)))
        elif kind == "exif":
            chunks.append((b"eXIf", part))
        elif kind == "xmp":
            chunks.append((b"iTXt", XMP_KEYWORD + b"\0\0\0\0\0" + part))
        elif kind == "density":
            chunks.append((b"pHYs", part))
        elif kind == "comment":
            chunks.append(_comment_chunk(part))
        elif kind == "photoshop":
            chunks.append(_raw_profile_chunk("iptc", part))
        else:
            chunks.append(_raw_profile_chunk(f"app{part[0]}", part[1:]))
    first = [*PNG_COLOURS, b"iCCP"]  # colours go first: the rest may be said anywhere
    return sorted(chunks, key=lambda chunk: chunk[0] not in first)


def _comment_chunk(text: bytes) -> tuple[bytes, bytes]:
    if b"\0" in text:
        return _raw_profile_chunk("com", text)
    try:
        text.decode("ascii")
    except UnicodeDecodeError:
        try:
            text.decode("utf-8")
            return b"iTXt", b"Comment\0\0\0\0\0" + text
        except UnicodeDecodeError:
            pass  # some other encoding: Latin-1 as far as PNG is concerned, byte for byte
    return b"tEXt", b"Comment\0" + text


def _raw_profile_chunk(name: str, raw: bytes) -> tuple[bytes, bytes]:
    """A profile in ImageMagick's form: hexadecimal lines of 36 bytes, deflated."""
    digits = raw.hex()
    lines = "".join(digits[i : i + 72] + "\n" for i in range(0, len(digits), 72))
    text = f"\n{name}\n{len(raw):8}\n{lines}".encode()
    return b"zTXt", f"Raw profile type {name}".encode() + b"\0\0" + zlib.compress(text, 9)
