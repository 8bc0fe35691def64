"""Why 8-bit grey or RGB with alpha cannot hold a picture: more bits, other colours, several frames, gain maps, HDR.

It is looked for in an opened picture and its file's bytes, before any pixel is decoded.
"""

import re
import struct

from PIL import Image

PLAIN_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")


def mode_reason(mode: str) -> str:
    names = {
        "CMYK": "CMYK colours", "YCbCr": "YCbCr samples kept as such", "LAB": "CIELAB colours", "F": "float samples",
        "I": "32-bit samples", "RGBa": "premultiplied alpha", "La": "premultiplied alpha",
    }  # fmt: skip
    return names.get(mode, "16 bits per sample" if mode.startswith("I;16") else f"mode {mode} is not carried")


def obstacle_of(image: Image.Image, data: bytes) -> str | None:
    """Why 8-bit grey or RGB with alpha cannot hold this (opened, not loaded) picture; None when it can."""
    look = {
        "JPEG": _jpeg_obstacle, "MPO": _jpeg_obstacle, "PNG": _png_obstacle, "TIFF": _tiff_obstacle,
        "AVIF": _avif_obstacle, "JPEG2000": _jpeg2000_obstacle, "PPM": _ppm_obstacle, "SGI": _sgi_obstacle,
    }.get(image.format)  # fmt: skip
    reason = look(image, data) if look else None
    if reason:
        return reason
    if image.mode not in PLAIN_MODES:
        return mode_reason(image.mode)
    if getattr(image, "is_animated", False):
        return "several frames"
    return None


def _jpeg_obstacle(image: Image.Image, data: bytes) -> str | None:
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if 0xD0 <= marker <= 0xD8 or marker == 0x01:
            position += 2
            continue
        if marker in (0xD9, 0xDA):
            break
        length = int.from_bytes(data[position + 2 : position + 4])
        body = data[position + 4 : position + 2 + length]
        if marker in (0xC0, 0xC1, 0xC2) and body[:1] not in (b"\x08", b""):
            return f"{body[0]} bits per sample"
        if marker == 0xE2 and (body.startswith(b"urn:iso:std:iso:ts:21496") or b"hdrgm" in body[:200]):
            return "a gain map (HDR)"
        if marker == 0xE1 and (b"http://ns.adobe.com/hdr-gain-map/" in body or b"hdrgainmap" in body.lower()):
            return "a gain map (HDR)"
        if marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xmp/extension/"):
            return "extended XMP (depth or panorama data beside the picture)"
        if marker == 0xE2 and body.startswith(b"MPF\0") and _mpf_images(body[4:]) > 1:
            return "several pictures in one file (MPF)"
        position += 2 + length
    return "several pictures in one file (MPO)" if getattr(image, "n_frames", 1) > 1 else None


def _mpf_images(tiff: bytes) -> int:
    """Number of images that a Multi-Picture Format index (CIPA DC-007) names; 1 where it cannot be read."""
    try:
        order = "<" if tiff[:2] == b"II" else ">"
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for i in range(count):
            tag, _, _, value = struct.unpack_from(order + "HHII", tiff, start + 2 + 12 * i)
            if tag == 0xB001:
                return value
    except struct.error:
        pass
    return 1


def _png_obstacle(image: Image.Image, data: bytes) -> str | None:
    if len(data) > 24 and data[24] == 16:
        return "16 bits per sample"
    position = 8
    while position + 10 <= len(data):
        length, kind, colours = struct.unpack_from(">I4s2s", data, position)
        if kind == b"IDAT":
            break
        if kind == b"cICP" and colours not in (b"\x01\x0d", b"\x01\x01", b"\x02\x02"):
            return "colours described by a cICP chunk (wide gamut or HDR)"
        position += 12 + length
    return None


def _tiff_obstacle(image: Image.Image, data: bytes) -> str | None:
    tags = image.tag_v2
    if 50706 in tags or 33421 in tags:
        return "a camera raw file"
    if 330 in tags:
        return "several pictures in one file (sub-IFDs)"
    bits = tags.get(258, (1,))
    if max(bits if isinstance(bits, tuple) else (bits,)) > 8:
        return f"{max(bits if isinstance(bits, tuple) else (bits,))} bits per sample"
    if getattr(image, "n_frames", 1) > 1:
        return f"{image.n_frames} pages"
    return None


def _avif_obstacle(image: Image.Image, data: bytes) -> str | None:
    head = data[: 1 << 16]
    for found in re.finditer(rb"av1C\x81", head):
        if head[found.end() + 1 : found.end() + 2] and head[found.end() + 1] & 0x40:
            return "more than 8 bits per sample"
    if b"tmap" in head[:256] or re.search(rb"infe.{8}tmap", head, re.S):
        return "a gain map (HDR)"
    found = re.search(rb"colrnclx(..)(..)", head, re.S)
    if found and not image.info.get("icc_profile"):
        primaries, transfer = (int.from_bytes(part) for part in found.groups())
        if primaries not in (1, 2, 5, 6, 7) or transfer not in (1, 2, 6, 13, 14, 15):
            return "colours described by CICP codes (wide gamut or HDR)"
    return None


def _jpeg2000_obstacle(image: Image.Image, data: bytes) -> str | None:
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0 or len(data) < start + 42:
        return None
    components = int.from_bytes(data[start + 40 : start + 42])
    depths = [(data[i] & 0x7F) + 1 for i in range(start + 42, min(len(data), start + 42 + 3 * components), 3)]
    return f"{max(depths)} bits per sample" if depths and max(depths) > 8 else None


def _ppm_obstacle(image: Image.Image, data: bytes) -> str | None:
    if data[:2] in (b"P1", b"P4"):
        return None
    fields = re.sub(rb"#[^\n]*\n", b"\n", data[:4096]).split(maxsplit=4)
    maximum = int(fields[3]) if len(fields) > 3 and fields[3].isdigit() else 255
    return "16 bits per sample" if maximum > 255 else None


def _sgi_obstacle(image: Image.Image, data: bytes) -> str | None:
    return "16 bits per sample" if data[3] == 2 else None
