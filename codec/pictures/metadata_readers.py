"""Reading what image files say beside their pixels, format by format, from their bytes.

Nothing here is bounded by Pillow's limits; METADATA_LIMIT bounds what is inflated and what is carried. What cannot be
given back raises NotCarried, in words. What the parts are and how they are written is metadata.py's; which pictures
are not carried for other reasons is obstacles.py's. Sources: T.81 annex B, JFIF, EXIF 2.32, XMP specification part 3,
ICC.1 annex B.4, PNG third edition, RFC 9649, GIF89a, TIFF 6.0, BITMAPV5HEADER.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from xml.etree import ElementTree

from PIL import Image

from codec.format import METADATA_LIMIT
from codec.pictures.metadata import MOST_PARTS, PNG_COLOURS, XMP_KEYWORD, Metadata, NotCarried
from codec.pictures.trailing import tiff_directories, tiff_numbers

_INCHES = 39.370078740157  # in a metre

_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_XMP_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"
_PHOTOSHOP = b"Photoshop 3.0\0"
_IPTC_RESOURCE = b"8BIM\x04\x04\0\0"

# PNG chunks that make the picture or only help to decode it: nothing of them is lost
_PNG_PICTURE = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"hIST", b"sPLT", b"sBIT", b"bKGD", b"iDOT", b"acTL")
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PNG_CARRIED = (*PNG_COLOURS, b"tIME", b"oFFs", b"sCAL", b"pCAL", b"sTER", b"caNv", b"vpAg", b"orNT")
_PNG_REFUSED = {
    b"caBX": "a signed record of its origin (C2PA), which no new file can keep",
    b"mkBF": "Fireworks' layers", b"mkTS": "Fireworks' layers", b"mkBS": "Fireworks' layers",
    b"npTc": "an Android nine-patch", b"CgBI": "Apple's own kind of PNG",
}  # fmt: skip
# APP segments that say how this JPEG was coded, or show it small: of no use beside other pixels
_APP_DROPPED = (
    (0, b"JFXX"), (2, b"MPF\0"), (12, b"Ducky"), (14, b"Adobe"), (8, b"SPIFF"), (10, b"AROT"),
)  # fmt: skip
_APP_REFUSED = (
    (1, b"FLIR\0", "thermal measurements (FLIR)"),
    (3, b"_JPSJPS_", "a stereo pair (JPS)"),
    (11, b"HDR_RI", "an HDR picture beside the visible one (JPEG-HDR)"),
    (11, b"JP", "a signed record of its origin or other JUMBF data (C2PA), which no new file can keep"),
    (2, b"FPXR", "FlashPix data"),
)
_XMP_DATA = (b"GDepth:Data", b"GImage:Data", b"GAudio:Data", b"depthmap:", b"Profile:")


# Tags that come back with the picture: through EXIF, XMP, ICC, IPTC (metadata_readers.py)
TIFF_DESCRIPTION = (
    269, 270, 271, 272, 282, 283, 285, 296, 305, 306, 315, 316, 18246, 33432, 34665, 34853, 40091, 40092, 40093, 40094,
    40095,
)  # fmt: skip


def read_metadata(data: bytes, format: str, image: Image.Image | None = None) -> Metadata:
    """What an image file says beside its pixels, as it stands there (orientation too); raises NotCarried.

    data: the whole file; format: as Pillow names it. `image` is the same file opened by Pillow: TIFF's description
    tags, and whatever else it knows of formats that are not read here (AVIF, JPEG 2000 ...), come from there.
    """
    read = {
        "JPEG": _of_jpeg, "MPO": _of_jpeg, "PNG": _of_png, "WEBP": _of_webp, "GIF": _of_gif, "BMP": _of_bmp,
        "PPM": _of_netpbm,
    }.get(format)  # fmt: skip
    if format == "TIFF":
        metadata = _of_tiff(data, _exif_of_tags(image) if image is not None else None)
    elif read:
        metadata = read(data)
    else:
        metadata = metadata_of_image(image) if image is not None else Metadata()
    return _within_limits(metadata)


def _within_limits(metadata: Metadata) -> Metadata:
    if sum(len(part) for _, part in metadata.parts) > METADATA_LIMIT or len(metadata.parts) > MOST_PARTS:
        raise NotCarried(f"more than {METADATA_LIMIT >> 20} MB of metadata")
    return metadata


# -- JPEG


def jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker 0xC0..0xFE, content) of the segments before the first scan and between scans, SOS itself left out."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF or 0xD0 <= marker <= 0xD8 or marker in (0x00, 0x01):
            position += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4])
        if marker in (0xD9, 0xDA) or length < 2:
            return
        yield marker, data[position + 4 : position + 2 + length]
        position += 2 + length


def _of_jpeg(data: bytes) -> Metadata:
    parts: list[tuple[str, bytes | None]] = []
    joined: dict[str, bytes] = {}
    profile: dict[int, bytes] = {}
    extended: dict[bytes, dict[int, bytes]] = {}
    for marker, body in jpeg_segments(data):
        number = marker - 0xE0
        if marker == 0xFE:
            parts.append(("comment", body.rstrip(b"\0")))
        elif not 0 <= number <= 15:
            continue
        elif number == 0 and body.startswith(b"JFIF\0"):
            parts.append(("density", _jfif_density(body)))
        elif number == 1 and body.startswith(_EXIF):
            joined["exif"] = joined.get("exif", b"") + body[6:]
        elif number == 1 and body.startswith(_XMP):
            joined.setdefault("xmp", body[len(_XMP) :])
        elif number == 1 and body.startswith(_XMP_EXTENSION) and len(body) >= 75:
            extended.setdefault(body[35:67], {})[int.from_bytes(body[71:75])] = body[75:]
        elif number == 2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14:
            profile.setdefault(body[12], body[14:])
        elif number == 13 and body.startswith(_PHOTOSHOP):
            joined["photoshop"] = joined.get("photoshop", b"") + body[len(_PHOTOSHOP) :]
        else:
            parts.append(("app", _app_segment(number, body)))
    if extended:
        joined["xmp"] = _joined_xmp(joined.get("xmp"), extended)
    icc = b"".join(profile[i] for i in sorted(profile))
    return Metadata.of(
        *parts, ("exif", joined.get("exif")), ("icc", icc), ("xmp", joined.get("xmp")),
        ("photoshop", joined.get("photoshop")),
    )  # fmt: skip


def _app_segment(number: int, body: bytes) -> bytes | None:
    for where, start, words in _APP_REFUSED:
        if number == where and body.startswith(start):
            raise NotCarried(words)
    if not body.strip(b"\0") or any(number == where and body.startswith(start) for where, start in _APP_DROPPED):
        return None
    return bytes([number]) + body


def _jfif_density(body: bytes) -> bytes | None:
    if len(body) < 12:
        return None
    unit, across, down = struct.unpack_from(">BHH", body, 7)
    if not across or not down or unit > 2 or (unit == 0 and across == down):
        return None
    factor = (1, _INCHES, 100)[unit]
    return struct.pack(">IIB", round(across * factor), round(down * factor), unit > 0)


def _joined_xmp(main: bytes | None, extended: dict[bytes, dict[int, bytes]]) -> bytes:
    """One packet of the standard and the extended one (XMP specification, part 3): its descriptions side by side."""
    guid = next((each for each in extended if main and each in main), None)
    rest = b"".join(extended[guid][offset] for offset in sorted(extended[guid])) if guid else b""
    if any(mark in rest for mark in _XMP_DATA):
        raise NotCarried("depth, sound or panorama data in extended XMP")
    inner = re.search(rb"<rdf:RDF[^>]*>(.*)</rdf:RDF>", rest, re.S)
    end = (main or b"").rfind(b"</rdf:RDF>")
    if not inner or end < 0:
        raise NotCarried("extended XMP that does not belong to its XMP")
    joined = main[:end] + inner[1] + main[end:]
    joined = re.sub(rb"\s*xmpNote:HasExtendedXMP\s*=\s*[\"'][0-9A-Fa-f]*[\"']", b"", joined)
    joined = re.sub(rb"<xmpNote:HasExtendedXMP>[^<]*</xmpNote:HasExtendedXMP>", b"", joined)
    try:
        if b"<!" in joined.replace(b"<!--", b""):
            raise ElementTree.ParseError("declarations")
        ElementTree.fromstring(re.sub(rb"<\?xpacket[^>]*\?>", b"", joined).strip(b"\0 \t\r\n"))
    except ElementTree.ParseError as error:
        raise NotCarried(f"extended XMP that cannot be joined to its XMP ({error})") from None
    return joined


# -- PNG


def png_parts(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """(type, data, whether its checksum holds) of a PNG's chunks up to IEND."""
    position = 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        body = data[position + 8 : position + 8 + length]
        if len(body) != length:
            return
        checksum = data[position + 8 + length : position + 12 + length]
        yield kind, body, len(checksum) == 4 and zlib.crc32(body, zlib.crc32(kind)) == int.from_bytes(checksum)
        position += 12 + length
        if kind == b"IEND":
            return


def bare_png(data: bytes) -> bytes:
    """The PNG with the chunks alone that make the picture: what opens although its metadata is damaged or large."""
    out, position = [data[:8]], 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind[0] < 0x60 or kind in (b"tRNS", b"acTL", b"fcTL", b"fdAT"):
            out.append(data[position : position + 12 + length])
        position += 12 + length
        if kind == b"IEND":
            break
    return b"".join(out)


def _of_png(data: bytes) -> Metadata:
    parts: list[tuple[str, bytes | None]] = []
    single: dict[str, bytes | None] = {}
    for kind, body, sound in png_parts(data):
        if kind in _PNG_PICTURE or kind[0] < 0x60 or kind in (b"fcTL", b"fdAT"):
            if kind == b"bKGD":
                parts.append(("png", _background(data, body)))
            continue
        if kind in _PNG_REFUSED:
            raise NotCarried(_PNG_REFUSED[kind])
        if not sound and kind not in _PNG_TEXTS:
            raise NotCarried(f"its {kind.decode('ascii', 'replace')} chunk is damaged (its checksum is wrong)")
        if kind in _PNG_TEXTS:
            keyword = body.partition(b"\0")[0]
            if keyword == XMP_KEYWORD and "xmp" not in single:
                single["xmp"] = _text_of(kind, body)
            elif keyword in (b"Raw profile type exif", b"Raw profile type APP1") and (
                raw := _raw_profile(_text_of(kind, body))
            ):
                if raw.startswith(_XMP):
                    single.setdefault("xmp", raw[len(_XMP) :])
                else:
                    single.setdefault("exif", raw.removeprefix(_EXIF))
            else:
                parts.append(("png", kind + body))
        elif kind == b"eXIf":
            single["exif"] = body.removeprefix(_EXIF)
        elif kind == b"iCCP":
            single["icc"] = _inflated(body[body.index(b"\0") + 2 :] if b"\0" in body else b"", "ICC profile")
        elif kind == b"pHYs" and len(body) == 9:
            single["density"] = body
        elif kind in _PNG_CARRIED or kind[3] >= 0x60:
            parts.append(("png", kind + body))
        else:
            raise NotCarried(f"a private chunk ({kind.decode('ascii', 'replace')}) that no other program may copy")
    return Metadata.of(*parts, *single.items())


def _background(data: bytes, body: bytes) -> bytes | None:
    """bKGD for the 8-bit grey or RGB picture that is given back; None where its depth makes it another number."""
    depth, colour = data[24], data[25]
    if colour == 3:
        palette = next((part for kind, part, _ in png_parts(data) if kind == b"PLTE"), b"")
        entry = palette[3 * body[0] : 3 * body[0] + 3] if body else b""
        return b"bKGD" + bytes([0, entry[0], 0, entry[1], 0, entry[2]]) if len(entry) == 3 else None
    return b"bKGD" + body if depth == 8 else None


def _text_of(kind: bytes, body: bytes) -> bytes | None:
    """The text of a tEXt, zTXt or iTXt chunk in its own encoding; None where it cannot be read."""
    try:
        if kind == b"tEXt":
            return body.split(b"\0", 1)[1]
        if kind == b"zTXt":
            return _inflated(body[body.index(b"\0") + 2 :], "text")
        keyword, rest = body.split(b"\0", 1)
        packed, text = rest[0], rest[2:].split(b"\0", 2)[2]
        return _inflated(text, "text") if packed else text
    except (IndexError, ValueError):
        return None


def _inflated(packed: bytes, what: str) -> bytes:
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(packed, METADATA_LIMIT + 1)
    except zlib.error as error:
        raise NotCarried(f"its {what} is damaged ({error})") from None
    if len(raw) > METADATA_LIMIT:
        raise NotCarried(f"its {what} is larger than {METADATA_LIMIT >> 20} MB")
    return raw


def _raw_profile(text: bytes | None) -> bytes | None:
    """Bytes of ImageMagick's "Raw profile" text: newline, name, newline, length, newline, hexadecimal digits."""
    found = re.match(rb"\s*\S+\s+(\d+)\s+([0-9A-Fa-f\s]*)$", text or b"")
    if not found:
        return None
    raw = bytes.fromhex(b"".join(found[2].split()).decode()[: 2 * int(found[1])])
    return raw if len(raw) == int(found[1]) else None


# -- WebP, GIF, BMP, Netpbm, TIFF, others


def _of_webp(data: bytes) -> Metadata:
    parts: dict[str, bytes | None] = {}
    position, end = 12, min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while position + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, position)
        body = data[position + 8 : position + 8 + length]
        position += 8 + length + (length & 1)
        if kind == b"ICCP":
            parts["icc"] = body
        elif kind == b"EXIF":
            parts["exif"] = body.removeprefix(_EXIF)
        elif kind == b"XMP ":
            parts["xmp"] = body
        elif kind not in (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"):
            raise NotCarried(f"a private part ({kind.decode('ascii', 'replace').strip()}) beside the picture")
    return Metadata.of(*parts.items())


def _of_gif(data: bytes) -> Metadata:
    parts: list[tuple[str, bytes | None]] = []
    position = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    try:
        while data[position] != 0x3B:
            kind = data[position]
            label = data[position + 1] if kind == 0x21 else None
            if kind == 0x2C:
                local = data[position + 9]
                position += 11 + (3 << (local & 7) + 1 if local & 0x80 else 0)
            else:
                position += 2
            start, blocks = position, []
            while data[position]:
                blocks.append(data[position + 1 : position + 1 + data[position]])
                position += 1 + data[position]
            position += 1
            if label == 0xFE:
                parts.append(("comment", b"".join(blocks).rstrip(b"\0")))
            elif label == 0x01:
                raise NotCarried("text that a GIF viewer is to draw over the picture")
            elif label == 0xFF and blocks[:1] == [b"XMP DataXMP"]:
                raw = data[start + 12 : position - 1]  # the packet lies there as it is, with a trailer of 258 bytes
                parts.append(("xmp", raw[:-257]))
            elif label == 0xFF and blocks[:1] == [b"ICCRGBG1012"]:
                parts.append(("icc", b"".join(blocks[1:])))
    except IndexError:
        pass  # a cut file is damage.py's
    return Metadata.of(*parts)


def _of_bmp(data: bytes) -> Metadata:
    if len(data) < 46 or int.from_bytes(data[14:18], "little") < 40:
        return Metadata()
    across, down = struct.unpack_from("<ii", data, 38)
    icc = None
    if int.from_bytes(data[14:18], "little") >= 124 and data[70:74] == b"DEBM":  # PROFILE_EMBEDDED
        start, length = struct.unpack_from("<II", data, 126)
        icc = data[14 + start : 14 + start + length]
    density = struct.pack(">IIB", across, down, 1) if across > 0 and down > 0 else None
    return Metadata.of(("density", density), ("icc", icc))


def _of_netpbm(data: bytes) -> Metadata:
    head = re.match(rb"P\d(?:(?:\s|#[^\n]*\n)+\d+){2,3}", data)
    return Metadata.of(*(("comment", line.strip()) for line in re.findall(rb"#([^\n]*)\n", head[0] if head else b"")))


def _of_tiff(data: bytes, exif: bytes | None) -> Metadata:
    try:
        tags = tiff_directories(data)[0]
    except (ValueError, IndexError, struct.error) as error:
        raise NotCarried(f"its directory cannot be read ({error})") from None

    def raw(tag: int) -> bytes | None:
        kind, count, place = tags.get(tag, (0, 0, 0))
        return data[place : place + count * {3: 2, 4: 4}.get(kind, 1)] or None

    resources = raw(34377) or b""
    iptc = raw(33723)
    if iptc and _IPTC_RESOURCE not in resources:
        resources += _IPTC_RESOURCE + struct.pack(">I", len(iptc)) + iptc + bytes(len(iptc) & 1)
    density = None
    across, down = (_rational(data, tags.get(tag)) for tag in (282, 283))
    unit = (tiff_numbers(data, tags[296]) or (2,))[0] if 296 in tags else 2
    if across and down and unit in (2, 3) and max(across, down) < 1e6 and (across, down) != (1, 1):
        factor = _INCHES if unit == 2 else 100
        density = struct.pack(">IIB", round(across * factor), round(down * factor), 1)
    xmp = raw(700)
    return Metadata.of(
        ("exif", exif), ("icc", raw(34675)), ("xmp", xmp.rstrip(b"\0") if xmp else None),
        ("photoshop", resources), ("density", density),
    )  # fmt: skip


def _rational(data: bytes, entry: tuple[int, int, int] | None) -> float | None:
    if entry is None or entry[0] != 5:
        return None
    above, below = struct.unpack_from(("<" if data[:2] == b"II" else ">") + "II", data, entry[2])
    return above / below if below else None


def _exif_of_tags(image: Image.Image) -> bytes | None:
    """EXIF made from a TIFF's tags that describe the photograph rather than the file's layout.

    Orientation is left out: Pillow turns TIFF files itself.
    """
    try:
        source, kept = image.getexif(), Image.Exif()
        for tag in TIFF_DESCRIPTION:
            if tag in (34665, 34853):
                directory = source.get_ifd(tag)
                if directory:
                    kept[tag] = dict(directory)
            elif tag in source:
                kept[tag] = source[tag]
        return kept.tobytes().removeprefix(_EXIF) if len(kept) else None
    except Exception as error:  # a tag of a type that Pillow cannot write back
        raise NotCarried(f"tags that cannot be written anew ({type(error).__name__})") from None


def metadata_of_image(image: Image.Image) -> Metadata:
    """From what Pillow holds beside an image: icc_profile, exif, xmp, a PNG's gamma, chromaticity and sRGB.

    Raises NotCarried.
    """
    info = image.info
    exif, xmp = info.get("exif"), info.get("xmp") or info.get("XML:com.adobe.xmp")
    exif = exif.tobytes() if isinstance(exif, Image.Exif) else exif
    if image.format == "TIFF":
        exif = _exif_of_tags(image)
    while isinstance(exif, bytes) and exif.startswith(_EXIF):
        exif = exif[len(_EXIF) :]
    xmp = xmp.encode() if isinstance(xmp, str) else xmp
    parts = [("exif", exif), ("icc", info.get("icc_profile")), ("xmp", xmp)]
    if info.get("gamma") is not None:
        parts.append(("png", b"gAMA" + struct.pack(">I", round(info["gamma"] * 100_000))))
    if info.get("chromaticity"):
        parts.append(("png", b"cHRM" + struct.pack(">8I", *(round(x * 100_000) for x in info["chromaticity"]))))
    if info.get("srgb") is not None:
        parts.append(("png", b"sRGB" + bytes([info["srgb"]])))
    return _within_limits(Metadata.of(*((kind, part) for kind, part in parts if isinstance(part, bytes))))
