"""Image files to upright 8-bit pictures and back: what the codec can carry, what it cannot, and what comes along.

Decides by content, never by file name: a file is a picture when its first bytes say so. Takes from it the pixels as
shown (orientation applied), alpha, ICC profile, EXIF and XMP. What 8-bit grey or RGB with alpha cannot hold (more
bits, CMYK, several frames, gain maps, HDR signalling) is refused with a reason rather than flattened. Coding the
pixels is coder.py's; whether two pictures look alike is decided elsewhere.
"""

import dataclasses
import hashlib
import io
import re
import struct

from PIL import Image, PngImagePlugin

# Sizes are checked below, from the header, against the caller's limit; Pillow's own limit is lower and global.
Image.MAX_IMAGE_PIXELS = None

METADATA_LIMIT = 16 << 20  # bytes of ICC + EXIF + XMP that a bitstream may carry

# TIFF tags that describe the photograph rather than the file's layout (TIFF 6.0, EXIF 2.32)
_TIFF_KEPT = (270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 33432, 34665, 34853)
_IJG_LUMINANCE_SUM = 485  # sum of the 24 smallest entries of the JPEG standard's luminance table (T.81, table K.1)

# Pictures that are recognised but not read here: (offset, bytes, name)
_UNREAD = (
    (0, b"8BPS", "Photoshop"),
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (0, b"DDS ", "DDS"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"#?RGBE", "Radiance HDR"),
    (0, b"icns", "icon"),
    (0, b"IIRO", "camera raw"),
    (0, b"IIRS", "camera raw"),
    (0, b"MMOR", "camera raw"),
    (0, b"IIU\x00", "camera raw"),
    (0, b"FUJIFILMCCD-RAW", "camera raw"),
    (0, b"AT&TFORM", "DjVu"),
    (0, b"BPG\xfb", "BPG"),
    (0, b"FLIF", "FLIF"),
    (0, b"gimp xcf", "GIMP"),
    (0, b"SIMPLE  =", "FITS"),
    (128, b"DICM", "DICOM"),
    (8, b"CR\x02\x00", "camera raw"),
)
_UNREAD_BRANDS = {
    b"heic": "HEIF", b"heix": "HEIF", b"heim": "HEIF", b"heis": "HEIF", b"hevc": "HEIF", b"hevx": "HEIF",
    b"mif1": "HEIF", b"msf1": "HEIF", b"mif2": "HEIF", b"crx ": "camera raw",
}  # fmt: skip


class PictureError(ValueError):
    """A file that gives no picture. `reason` in words; width, height, format, mode where they are known, else None."""

    def __init__(self, reason: str, *, width=None, height=None, format=None, mode=None):
        super().__init__(reason)
        self.reason = reason
        self.width, self.height, self.format, self.mode = width, height, format, mode

    def __reduce__(self):
        return _rebuild, (type(self), self.reason, self.width, self.height, self.format, self.mode)


class NotAPicture(PictureError):
    """The bytes are no picture of any kind known here."""


class BrokenPicture(PictureError):
    """A picture that cannot be decoded: truncated, corrupt, empty or too large."""


class UncarriedPicture(PictureError):
    """A sound picture that the codec cannot carry without loss of something other than precision of 8-bit samples."""


def _rebuild(kind, reason, width, height, format, mode):
    return kind(reason, width=width, height=height, format=format, mode=mode)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture as shown. `exif` starts at its TIFF header and says orientation 1, as does `xmp`."""

    image: Image.Image  # L, LA, RGB or RGBA, upright
    format: str | None = None  # the file's own, as Pillow names it
    mode: str | None = None  # the file's own, as Pillow names it
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    colour: bytes | None = None  # a PNG's gAMA and cHRM (kind and data each) where they are not sRGB's
    jpeg_quality: int | None = None  # estimate on the IJG scale, JPEG only

    @property
    def width(self) -> int:
        return self.image.width

    @property
    def height(self) -> int:
        return self.image.height


def open_picture(data: bytes, max_pixels: int = 200_000_000) -> Picture:
    """Bytes of an image file -> Picture.

    Raises NotAPicture, BrokenPicture or UncarriedPicture (all PictureError).
    """
    data = bytes(data)
    format = _recognise(data)
    known: dict = {"format": format}
    try:
        image = Image.open(io.BytesIO(data), formats=[format])
        known.update(format=image.format, mode=image.mode, width=image.width, height=image.height)
        if image.width * image.height > max_pixels:
            raise BrokenPicture(
                f"{image.width}x{image.height} is more than the limit of {max_pixels} pixels; raise --max-pixels "
                "to take it",
                **known,
            )
        obstacle = _obstacle(image, data)
        if obstacle:
            if _orientation(image) >= 5:
                known.update(width=image.height, height=image.width)
            raise UncarriedPicture(obstacle, **known)
        image.load()  # before anything reads EXIF: that may decode too, and swallow what it finds broken
        orientation = _orientation(image)
        if orientation >= 5:
            known.update(width=image.height, height=image.width)
        icc, xmp = image.info.get("icc_profile"), _xmp(image)
        exif = _exif(image)
        colour = _colour(image)
        quality = jpeg_quality(image)
        own_mode = known["mode"]
        image = _plain(image)
        if orientation > 1:
            image = _upright(image, orientation)
    except PictureError:
        raise
    except MemoryError as error:
        raise BrokenPicture(f"not enough memory to decode this {format}", **known) from error
    except Exception as error:  # Pillow's plugins raise nearly every built-in class on damaged input
        text = str(error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            text = "its header is damaged or of a kind that Pillow does not read"
        raise BrokenPicture(f"this {format} cannot be decoded: {text}", **known) from error
    if sum(len(part) for part in (icc, exif, xmp) if part) > METADATA_LIMIT:
        raise UncarriedPicture(f"its ICC, EXIF and XMP exceed {METADATA_LIMIT >> 20} MiB", **known)
    image.info = {}
    return Picture(image, known["format"], own_mode, icc or None, exif or None, xmp or None, colour, quality)


def picture_from_image(image: Image.Image) -> Picture:
    """A PIL image in memory -> Picture, with the ICC, EXIF and XMP in its `info`; orientation is applied.

    Raises UncarriedPicture for modes that 8-bit grey or RGB with alpha cannot hold.
    """
    mode, format = image.mode, image.format
    if mode not in _PLAIN_MODES:
        raise UncarriedPicture(_mode_reason(mode), width=image.width, height=image.height, format=format, mode=mode)
    if image.width < 1 or image.height < 1:
        raise BrokenPicture("the picture has no pixels", width=image.width, height=image.height, mode=mode)
    orientation = _orientation(image)
    icc, xmp, exif = image.info.get("icc_profile"), _xmp(image), _exif(image)
    colour, quality = _colour(image), jpeg_quality(image)
    plain = _plain(image)
    if orientation > 1:
        plain = _upright(plain, orientation)
    if plain is image or plain.info:
        plain = plain.copy()
        plain.info = {}
    return Picture(plain, format, mode, icc or None, exif or None, xmp or None, colour, quality)


def picture_bytes(picture: Picture, format: str = "PNG") -> bytes:
    """Picture -> bytes of an image file with its ICC, EXIF and XMP. Lossless in PNG, TIFF; WebP is told to be.

    Raises ValueError where the format cannot hold the picture (JPEG and alpha).
    """
    options: dict = {}
    if picture.icc:
        options["icc_profile"] = picture.icc
    if picture.exif:
        options["exif"] = b"Exif\0\0" + picture.exif if format == "JPEG" else picture.exif
    if format == "PNG":
        options["pnginfo"] = chunks = PngImagePlugin.PngInfo()
        if picture.xmp:
            chunks.add_itxt("XML:com.adobe.xmp", picture.xmp.decode("utf-8", "replace"))
        for kind, length in ((b"gAMA", 4), (b"cHRM", 32)):
            start = (picture.colour or b"").find(kind) + 4
            if start >= 4:
                chunks.add(kind, picture.colour[start : start + length])
    elif picture.xmp:
        options["xmp"] = picture.xmp
    if format == "WEBP":
        options.update(lossless=True, exact=True)
    elif format == "JPEG":
        options.update(quality=95, subsampling=0)
        if picture.image.mode in ("LA", "RGBA"):
            raise ValueError(f"JPEG holds no alpha channel (mode {picture.image.mode}); take PNG, WebP or TIFF")
    if format == "TIFF":
        options["compression"] = "tiff_adobe_deflate"
        if picture.exif:
            exif = Image.Exif()
            exif.load(picture.exif)
            options["exif"] = exif
        if picture.xmp:
            options["tiffinfo"] = {700: options.pop("xmp")}
    out = io.BytesIO()
    picture.image.save(out, format, **options)
    return out.getvalue()


def pixel_sha256(image: Image.Image) -> str:
    """sha256 (hex) of mode, size and pixels, alpha included. Equal for equal pictures whatever file they came in."""
    digest = hashlib.sha256(f"{image.mode} {image.width} {image.height}\n".encode())
    rows = max(1, (1 << 22) // max(1, image.width))
    for top in range(0, image.height, rows):  # in strips, since tobytes() would copy all of it
        digest.update(image.crop((0, top, image.width, min(image.height, top + rows))).tobytes())
    return digest.hexdigest()


def jpeg_quality(image: Image.Image) -> int | None:
    """IJG quality 1..100 that the luminance quantisation table comes closest to; None without one."""
    tables = getattr(image, "quantization", None)
    if not tables or not isinstance(tables, dict):
        return None
    table = tables.get(0) or next(iter(tables.values()))
    scale = 100.0 * sum(sorted(table)[:24]) / _IJG_LUMINANCE_SUM  # the larger entries are clipped at low quality
    quality = (200.0 - scale) / 2 if scale <= 100 else 5000.0 / scale
    return int(min(100, max(1, round(quality)))) if sum(table) > 64 else 100


# -- what kind of file


def _recognise(data: bytes) -> str:
    """Pillow's name of the format by its first bytes, or an error that says what it is instead."""
    if not data:
        raise BrokenPicture("the object has zero bytes")
    for offset, signature, name in _UNREAD:
        if data.startswith(signature, offset):
            raise UncarriedPicture(f"{name} files are not read here", format=name)
    if data[4:8] == b"ftyp":
        brands = {data[8:12]} | {data[i : i + 4] for i in range(16, min(int.from_bytes(data[:4]), 256), 4)}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        for brand in sorted(brands & set(_UNREAD_BRANDS)):
            name = _UNREAD_BRANDS[brand]
            raise UncarriedPicture(f"{name} files are not read here", format=name)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    for signature, name in (
        (b"\xff\xd8", "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"GIF87a", "GIF"),
        (b"GIF89a", "GIF"),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"II+\0", "TIFF"),
        (b"MM\0+", "TIFF"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
        (b"\xff\x4f\xff\x51", "JPEG2000"),
        (b"qoif", "QOI"),
    ):
        if data.startswith(signature):
            return name
    if data[:2] == b"BM" and len(data) >= 18 and data[14] in (12, 16, 40, 52, 56, 64, 108, 124):
        return "BMP"
    if data[:2] == b"\x01\xda" and len(data) > 12 and data[2] < 2 and data[3] in (1, 2):
        return "SGI"
    if re.match(rb"P[1-6][ \t\r\n]+(#[^\n]*\n|[ \t\r\n])*\d", data[:512]):
        return "PPM"
    if re.match(rb"P[fF][ \t\r\n]+\d", data[:64]):
        raise UncarriedPicture("float samples (PFM)", format="PPM", mode="F")
    if data[-18:-1] == b"TRUEVISION-XFILE.":
        return "TGA"
    if b"IHDR" in data[8:24]:
        raise BrokenPicture("a PNG whose signature is damaged (was it transferred as text?)", format="PNG")
    if data[:4] in (b"\0\0\1\0", b"\0\0\2\0") and len(data) > 22 and 0 < data[4] + 256 * data[5] < 256 and data[9] == 0:
        raise UncarriedPicture("an icon holds several sizes", format="ICO")
    if re.match(rb"\s*(<\?xml[^>]*>|<!--.*?-->|<!DOCTYPE[^>]*>|\s)*<svg[\s>]", data[:4096], re.S):
        raise UncarriedPicture("SVG is a drawing without pixels", format="SVG")
    raise NotAPicture("not an image by its first bytes")


_PLAIN_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")


def _mode_reason(mode: str) -> str:
    names = {
        "CMYK": "CMYK colours", "YCbCr": "YCbCr samples kept as such", "LAB": "CIELAB colours", "F": "float samples",
        "I": "32-bit samples", "RGBa": "premultiplied alpha", "La": "premultiplied alpha",
    }  # fmt: skip
    return names.get(mode, "16 bits per sample" if mode.startswith("I;16") else f"mode {mode} is not carried")


def _obstacle(image: Image.Image, data: bytes) -> str | None:
    """Why 8-bit grey or RGB with alpha cannot hold this (opened, not loaded) picture; None when it can."""
    look = {
        "JPEG": _jpeg_obstacle, "MPO": _jpeg_obstacle, "PNG": _png_obstacle, "TIFF": _tiff_obstacle,
        "AVIF": _avif_obstacle, "JPEG2000": _jpeg2000_obstacle, "PPM": _ppm_obstacle, "SGI": _sgi_obstacle,
    }.get(image.format)  # fmt: skip
    reason = look(image, data) if look else None
    if reason:
        return reason
    if image.mode not in _PLAIN_MODES:
        return _mode_reason(image.mode)
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


# -- pixels


def _plain(image: Image.Image) -> Image.Image:
    """A loaded image in one of _PLAIN_MODES -> L, LA, RGB or RGBA with the same pixels and transparency."""
    clear = image.has_transparency_data
    if image.mode in ("1", "L"):
        target = "LA" if clear else "L"
    elif image.mode in ("P", "PA", "RGB"):
        target = "RGBA" if clear else "RGB"
    else:
        target = image.mode
    return image if image.mode == target else image.convert(target)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8 still to be applied; 1 where it is absent or makes no sense."""
    if image.format == "TIFF":
        return 1  # Pillow turns TIFF files itself
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF must not cost the picture
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TRANSPOSES[orientation])


# -- what comes along


def _exif(image: Image.Image) -> bytes | None:
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


def _colour(image: Image.Image) -> bytes | None:
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


def _xmp(image: Image.Image) -> bytes | None:
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
