"""What comes along with a picture's pixels: orientation, EXIF, XMP, a PNG's colour chunks; each turned upright."""

import re
import struct

from PIL import Image

# TIFF tags that describe the photograph rather than the file's layout (TIFF 6.0, EXIF 2.32)
_TIFF_KEPT = (270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 33432, 34665, 34853)
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation 1..8 still to be applied; 1 where it is absent or makes no sense."""
    if image.format == "TIFF":
        return 1  # Pillow turns TIFF files itself
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF must not cost the picture
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TRANSPOSES[orientation])


def exif_of(image: Image.Image) -> bytes | None:
    """The file's EXIF from its TIFF header on, byte for byte but for an orientation of 1; None without one."""
    if image.format == "TIFF" or (image.info.get("exif") is None and image._exif is not None):
        return _exif_from_tags(image)
    raw = image.info.get("exif")
    if isinstance(raw, Image.Exif):
        raw = raw.tobytes()
    if not raw:
        text = image.info.get("Raw profile type exif")  # ImageMagick's way of putting EXIF into PNG
        return _exif_from_tags(image) if text else None
    while raw.startswith(b"Exif\0\0"):
        raw = raw[6:]
    return upright_exif(raw)


def _exif_from_tags(image: Image.Image) -> bytes | None:
    """EXIF made from the tags Pillow reads: for TIFF files, whose own directory holds them beside the layout's."""
    try:
        source = image.getexif()
        kept = Image.Exif()
        for tag in _TIFF_KEPT:
            if tag in (34665, 34853):
                directory = source.get_ifd(tag)
                if directory:
                    kept[tag] = dict(directory)
            elif tag in source:
                kept[tag] = source[tag]
        if not len(kept):
            return None
        raw = kept.tobytes()
    except Exception:  # a tag of a type Pillow cannot write back; the picture itself is sound
        return None
    return raw[6:] if raw.startswith(b"Exif\0\0") else raw


def upright_exif(raw: bytes) -> bytes:
    """EXIF bytes (from the TIFF header on) with the orientation in the first directory set to 1, the rest untouched."""
    try:
        order = {b"II": "<", b"MM": ">"}[raw[:2]]
        (start,) = struct.unpack_from(order + "I", raw, 4)
        (count,) = struct.unpack_from(order + "H", raw, start)
        for i in range(count):
            entry = start + 2 + 12 * i
            tag, kind, length = struct.unpack_from(order + "HHI", raw, entry)
            if tag == 0x0112 and length == 1 and kind in (3, 4):
                value = struct.pack(order + "HH", 1, 0) if kind == 3 else struct.pack(order + "I", 1)
                return raw[: entry + 8] + value + raw[entry + 12 :]
    except (KeyError, struct.error):
        pass  # not a TIFF structure: nothing in it turns the picture
    return raw

_SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)


def colour_chunks(image: Image.Image) -> bytes | None:
    """gAMA and cHRM chunks of a PNG that says neither sRGB nor ICC, where they differ from sRGB's; else None."""
    info = image.info
    if image.format != "PNG" or "srgb" in info or info.get("icc_profile"):
        return None
    chunks = b""
    gamma, primaries = info.get("gamma"), info.get("chromaticity")
    if gamma is not None and abs(gamma - 1 / 2.2) > 0.01:
        chunks += b"gAMA" + struct.pack(">I", round(gamma * 100000))
    if primaries and any(abs(a - b) > 0.005 for a, b in zip(primaries, _SRGB_PRIMARIES, strict=True)):
        chunks += b"cHRM" + struct.pack(">8I", *(round(value * 100000) for value in primaries))
    return chunks or None


def xmp_of(image: Image.Image) -> bytes | None:
    """XMP packet with any tiff:Orientation set to 1; None without one."""
    raw = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    if raw is None and image.format == "TIFF":
        raw = image.tag_v2.get(700)
    if isinstance(raw, tuple):
        raw = bytes(raw)
    if isinstance(raw, str):
        raw = raw.encode()
    if not isinstance(raw, bytes) or not raw:
        return None
    return re.sub(rb"(tiff:Orientation\s*(?:=\s*[\"']|>))[2-8]", rb"\g<1>1", raw)

_IJG_LUMINANCE_SUM = 485  # sum of the 24 smallest entries of the JPEG standard's luminance table (T.81, table K.1)


def jpeg_quality(image: Image.Image) -> int | None:
    """IJG quality 1..100 that the luminance quantisation table comes closest to; None without one."""
    tables = getattr(image, "quantization", None)
    if not tables or not isinstance(tables, dict):
        return None
    table = tables.get(0) or next(iter(tables.values()))
    scale = 100.0 * sum(sorted(table)[:24]) / _IJG_LUMINANCE_SUM  # the larger entries are clipped at low quality
    quality = (200.0 - scale) / 2 if scale <= 100 else 5000.0 / scale
    return int(min(100, max(1, round(quality)))) if sum(table) > 64 else 100
