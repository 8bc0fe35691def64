"""What kind of file it is, by its first bytes: Pillow's name of the format, or an error that says what else it is."""

import re
import zlib

from codec.pictures.errors import BrokenPicture, NotAPicture, UncarriedPicture

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


def recognised(data: bytes) -> str:
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
    if data[:3] == b"\x1f\x8b\x08":
        _refuse_gzipped(data)
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


def _refuse_gzipped(data: bytes) -> None:
    """Raise UncarriedPicture where gzip holds a picture; anything else in it is none of ours."""
    try:
        start = zlib.decompressobj(31).decompress(data[:4096], 1024)
        inside = recognised(start)
    except (zlib.error, NotAPicture, BrokenPicture):
        return
    except UncarriedPicture as error:
        inside = error.format
    raise UncarriedPicture(f"a {inside} packed by gzip: unpack it, and the next night takes it up", format=inside)
