"""What a file's own structure holds that one 8-bit grey or RGB picture with alpha cannot: more bits, bands, pictures,
positions on the ground, layers, HDR.

Looks at bytes alone, before anything is decoded; decoders pass over most of this in silence. Reasons are words that a
person without this program's source understands. Sources: ITU-T T.81, CIPA DC-007 (MPF), ISO 21496-1 and Adobe's gain
map specification, PNG third edition, TIFF 6.0 with its supplements and OGC's GeoTIFF, RFC 9649, AVIF 1.1 (ISO 23008-12
items), T.800. What lies behind a picture is trailing.py's, its metadata metadata_readers.py's.
"""

import re
import struct

from codec.pictures.metadata_readers import TIFF_DESCRIPTION, jpeg_segments, png_parts
from codec.pictures.trailing import boxes, tiff_directories, tiff_numbers

GAIN_MAP = "a gain map beside the picture (HDR)"
SEVERAL = "several pictures in one file"


def obstacle(data: bytes, format: str) -> str | None:
    """Why a sound file cannot be carried as one 8-bit picture, in words; None where its structure says nothing of it.

    data: the whole file; format: as Pillow names it.
    """
    look = {
        "JPEG": _jpeg, "MPO": _jpeg, "PNG": _png, "TIFF": _tiff, "AVIF": _avif, "JPEG2000": _jpeg2000, "PPM": _netpbm,
        "SGI": _sgi, "WEBP": _webp, "GIF": _gif,
    }.get(format)  # fmt: skip
    try:
        return look(data) if look else None
    except (struct.error, IndexError):
        return None  # damaged: decoding it will tell


def bits_reason(bits: int) -> str:
    return f"{bits} bits per sample (the codec has 8)"


# -- JPEG

_FRAMES = {
    0xC3: "lossless JPEG coding", 0xC5: "hierarchical JPEG coding", 0xC6: "hierarchical JPEG coding",
    0xC7: "hierarchical JPEG coding", 0xC9: "arithmetic JPEG coding", 0xCA: "arithmetic JPEG coding",
    0xCB: "lossless JPEG coding", 0xCD: "hierarchical JPEG coding", 0xCE: "hierarchical JPEG coding",
    0xCF: "hierarchical JPEG coding",
}  # fmt: skip


def _jpeg(data: bytes) -> str | None:
    for marker, body in jpeg_segments(data):
        if marker in _FRAMES:
            return f"{_FRAMES[marker]}, in which damage cannot be told"
        if marker in (0xC0, 0xC1, 0xC2) and body[:1] not in (b"\x08", b""):
            return bits_reason(body[0])
        if marker == 0xE2 and (body.startswith(b"urn:iso:std:iso:ts:21496") or b"hdrgm" in body[:200]):
            return GAIN_MAP
        if marker == 0xE1 and (b"http://ns.adobe.com/hdr-gain-map/" in body or b"hdrgainmap" in body.lower()):
            return GAIN_MAP
        if marker == 0xE2 and body.startswith(b"MPF\0") and _mpf_images(body[4:]) > 1:
            return f"{SEVERAL} (MPF: views, depth or large previews)"
    return None


def _mpf_images(tiff: bytes) -> int:
    """Number of images that a Multi-Picture Format index names; 1 where it cannot be read."""
    try:
        tags = tiff_directories(tiff)[0]
        return (tiff_numbers(tiff, tags[0xB001]) or (1,))[0]
    except (ValueError, KeyError, struct.error):
        return 1


# -- PNG, WebP, GIF


def _png(data: bytes) -> str | None:
    if len(data) > 24 and data[24] == 16:
        return bits_reason(16)
    for kind, body, _ in png_parts(data):
        if kind == b"acTL" and int.from_bytes(body[:4]) != 1:
            return f"{SEVERAL} (an animation)"
        if kind in (b"mDCV", b"mDCv", b"cLLI", b"cLLi"):
            return "colours of an HDR screen"
        if kind == b"cICP" and body[:2] not in (b"\x01\x0d", b"\x01\x01", b"\x02\x02"):
            return "colours described by a cICP chunk (wide gamut or HDR)"
        if kind == b"IDAT":
            return None
    return None


def _webp(data: bytes) -> str | None:
    if data[12:16] == b"VP8X" and data[20] & 0x02:
        return f"{SEVERAL} (an animation)"
    return None


def _gif(data: bytes) -> str | None:
    position, pictures = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0), 0
    while data[position] != 0x3B:
        if data[position] == 0x2C:
            pictures += 1
            if pictures > 1:
                return f"{SEVERAL} (an animation)"
            local = data[position + 9]
            position += 11 + (3 << (local & 7) + 1 if local & 0x80 else 0)
        else:
            position += 2
        while data[position]:
            position += 1 + data[position]
        position += 1
    return None


# -- TIFF

_TIFF_LAYOUT = {
    *range(254, 267), *range(273, 285), 274, 277, *range(288, 294), 296, 297, 317, 320, 321, 322, 323, 324, 325, 332,
    333, 334, 336, 337, 338, 339, 340, 341, 342, 347, *range(512, 522), 529, 530, 531, 532,
}  # fmt: skip
_TIFF_METADATA = {700, 33723, 34377, 34675, 40965}
_TIFF_HARMLESS = {18249, 34016, 50341, 59932, 59933}  # rating in percent, print matching, Windows' padding
_TIFF_REFUSED = {
    50706: "a camera raw file", 33421: "a camera raw file", 37724: "Photoshop's layers",
    301: "its own description of colours", 318: "its own description of colours", 319: "its own description of colours",
    50838: "ImageJ's data", 50839: "ImageJ's data",
}  # fmt: skip
_TIFF_GEO = (33550, 33920, 33922, 34263, 34264, 34735, 34736, 34737, 42112, 42113, 50844)
_TIFF_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 6: 3}  # photometric interpretation: bands of colour
_TIFF_OTHER_COLOURS = {
    4: "a mask of transparency alone", 5: "colours of print (CMYK)", 8: "CIELAB colours", 9: "CIELAB colours",
    10: "CIELAB colours", 32803: "a camera raw file", 32844: "HDR colours (LogLuv)", 32845: "HDR colours (LogLuv)",
    34892: "a camera raw file",
}  # fmt: skip


def _tiff(data: bytes) -> str | None:
    try:
        directories = tiff_directories(data)
    except ValueError:
        return None
    tags = directories[0]

    def numbers(tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
        return tiff_numbers(data, tags[tag]) or default if tag in tags else default

    for tag, words in _TIFF_REFUSED.items():
        if tag in tags:
            return words
    if any(tag in tags for tag in _TIFF_GEO):
        return "its place on the ground (GeoTIFF)"
    if 330 in tags:
        return f"{SEVERAL} (sub-directories of a TIFF)"
    pages = sum(256 in each and (273 in each or 324 in each) for each in directories)
    if pages > 1:
        return f"{SEVERAL} ({pages} pages)"
    bits = max(numbers(258, (1,)))
    if bits > 8:
        return bits_reason(bits)
    kinds = set(numbers(339, (1,))) - {1, 4}
    if kinds:
        return {2: "samples with a sign", 3: "samples with fractions (float)"}.get(min(kinds), "complex samples")
    return _tiff_bands(numbers) or _tiff_private(tags)


def _tiff_bands(numbers) -> str | None:
    colours = numbers(262, (1,))[0]
    if colours not in _TIFF_COLOURS:
        return _TIFF_OTHER_COLOURS.get(colours, "colours of a kind that the codec does not have")
    extra = numbers(277, (1,))[0] - _TIFF_COLOURS[colours]
    if extra < 0:
        return None
    meaning = numbers(338, ())
    if extra > 1 or (extra == 1 and (meaning or (0,))[0] not in (1, 2)) or len(meaning) > 1:
        return "further bands beside the colours (infrared, masks, spot colours)"
    if extra == 1 and meaning[0] == 1:
        return "colours multiplied by their transparency, which 8 bits cannot undo"
    return None


def _tiff_private(tags: dict) -> str | None:
    known = _TIFF_LAYOUT | set(TIFF_DESCRIPTION) | _TIFF_METADATA | _TIFF_HARMLESS
    other = sorted(set(tags) - known)
    if not other:
        return None
    return f"data that only some program knows (TIFF tag{'s' * (len(other) > 1)} {', '.join(map(str, other[:4]))})"


# -- AVIF, JPEG 2000


def _avif(data: bytes) -> str | None:
    head = data[: 1 << 16]
    for found in re.finditer(rb"av1C\x81", head):
        if head[found.end() + 1 : found.end() + 2] and head[found.end() + 1] & 0x40:
            return "more than 8 bits per sample"
    for kind, start, end in boxes(data):
        if kind == b"meta":
            reason = _items(data, start + 4, end)
            if reason:
                return reason
        elif kind == b"uuid":
            return "private data beside the picture (a box of its own)"
        elif kind == b"moov":
            return f"{SEVERAL} (an animation)"
    found = re.search(rb"colrnclx(..)(..)", head, re.S)
    if found and b"colrprof" not in head and b"colrrICC" not in head:
        primaries, transfer = (int.from_bytes(part) for part in found.groups())
        if primaries not in (1, 2, 5, 6, 7) or transfer not in (1, 2, 6, 13, 14, 15):
            return "colours described by CICP codes (wide gamut or HDR)"
    return None


def _items(data: bytes, start: int, end: int) -> str | None:
    """Pictures beside the primary one that are neither its tiles nor its alpha nor its thumbnail."""
    inner = {kind: (a, b) for kind, a, b in boxes(data, start, end)}
    if b"iinf" not in inner or b"pitm" not in inner:
        return None
    kinds = _item_kinds(data, *inner[b"iinf"])
    a, _ = inner[b"pitm"]
    primary = int.from_bytes(data[a + 4 : a + (8 if data[a] else 6)])
    if b"tmap" in kinds.values():
        return GAIN_MAP
    links = _item_links(data, *inner[b"iref"]) if b"iref" in inner else []
    tiles = {to for kind, origin, targets in links if kind == b"dimg" for to in targets}
    small = {origin for kind, origin, _ in links if kind == b"thmb"}
    auxiliary = {origin for kind, origin, _ in links if kind == b"auxl"}
    others = {
        item for item, kind in kinds.items() if kind in (b"av01", b"grid", b"iovl", b"iden", b"hvc1", b"jpeg", b"uri ")
    } - tiles - small - {primary}  # fmt: skip
    if others - auxiliary:
        return SEVERAL
    start, end = inner.get(b"iprp", (0, 0))
    alpha = sum(data[at : at + 64].count(b"alpha") for at in _found(data, b"auxC", start, end))
    if len(list(_found(data, b"auxC", start, end))) > alpha:
        return "a further picture beside it (depth or gain map)"
    return None


def _found(data: bytes, mark: bytes, start: int, end: int):
    while (start := data.find(mark, start, end)) >= 0:
        yield start
        start += len(mark)


def _item_kinds(data: bytes, start: int, end: int) -> dict[int, bytes]:
    """Item number -> its type, from an item information box's content."""
    found = {}
    for kind, a, _ in boxes(data, start + (8 if data[start] else 6), end):
        if kind == b"infe" and data[a] in (2, 3):
            wide = 4 if data[a] == 3 else 2
            found[int.from_bytes(data[a + 4 : a + 4 + wide])] = data[a + 6 + wide : a + 10 + wide]
    return found


def _item_links(data: bytes, start: int, end: int) -> list[tuple[bytes, int, list[int]]]:
    """(kind, item, items it refers to) of an item reference box's content."""
    wide = 4 if data[start] else 2
    found = []
    for kind, a, _ in boxes(data, start + 4, end):
        count = int.from_bytes(data[a + wide : a + wide + 2])
        targets = [
            int.from_bytes(data[a + wide + 2 + i * wide : a + 2 * wide + 2 + i * wide]) for i in range(min(count, 4096))
        ]
        found.append((kind, int.from_bytes(data[a : a + wide]), targets))
    return found


def _jpeg2000(data: bytes) -> str | None:
    if data[4:8] == b"jP  ":
        for kind, _, _ in boxes(data):
            if kind not in (b"jP  ", b"ftyp", b"jp2h", b"jp2c", b"free", b"rreq"):
                name = kind.decode("ascii", "replace").strip()
                return f"metadata in a {name} box of JPEG 2000"
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0 or len(data) < start + 42:
        return None
    components = int.from_bytes(data[start + 40 : start + 42])
    depths = [data[i] for i in range(start + 42, min(len(data), start + 42 + 3 * components), 3)]
    if any(depth & 0x80 for depth in depths):
        return "samples with a sign"
    if components > 4:
        return "further bands beside the colours (infrared, masks, spot colours)"
    highest = max(((depth & 0x7F) + 1 for depth in depths), default=8)
    return bits_reason(highest) if highest > 8 else None


# -- Netpbm, SGI


def _netpbm(data: bytes) -> str | None:
    if data[:2] in (b"P1", b"P4"):
        return None
    fields = re.sub(rb"#[^\n]*\n", b"\n", data[:4096]).split(maxsplit=4)
    maximum = int(fields[3]) if len(fields) > 3 and fields[3].isdigit() else 255
    return bits_reason(16) if maximum > 255 else None


def _sgi(data: bytes) -> str | None:
    if int.from_bytes(data[10:12]) > 4:
        return "further bands beside the colours (infrared, masks, spot colours)"
    return bits_reason(16) if data[3] == 2 else None


# -- what Pillow makes of it

PLAIN_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")


def mode_reason(mode: str) -> str:
    """Why pixels of one of Pillow's other modes are not carried."""
    names = {
        "CMYK": "colours of print (CMYK)", "YCbCr": "YCbCr samples kept as such", "LAB": "CIELAB colours",
        "F": "samples with fractions (float)", "I": "32-bit samples", "HSV": "HSV colours",
        "RGBa": "colours multiplied by their transparency, which 8 bits cannot undo",
        "La": "grey multiplied by its transparency, which 8 bits cannot undo",
    }  # fmt: skip
    return names.get(mode) or (bits_reason(16) if mode.startswith("I;16") else "pixels of a kind that the codec lacks")
