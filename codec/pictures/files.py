"""Image files to upright 8-bit pictures and back: pixels as shown, alpha, ICC profile, EXIF and XMP.

Decides by content, never by file name (recognise.py). What 8-bit grey or RGB with alpha cannot hold is refused with a
reason rather than flattened (obstacles.py); what comes along is metadata.py's. Coding the pixels is encoder.py's;
whether two pictures look alike is decided elsewhere.
"""

import dataclasses
import hashlib
import io

from PIL import Image, PngImagePlugin

from codec.format import METADATA_LIMIT
from codec.pictures.errors import BrokenPicture, PictureError, UncarriedPicture
from codec.pictures.metadata import colour_chunks, exif_of, jpeg_quality, orientation_of, upright, xmp_of
from codec.pictures.obstacles import PLAIN_MODES, mode_reason, obstacle_of
from codec.pictures.recognise import recognised

# Sizes are checked below, from the header, against the caller's limit; Pillow's own limit is lower and global.
Image.MAX_IMAGE_PIXELS = None


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
    format = recognised(data)
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
        obstacle = obstacle_of(image, data)
        if obstacle:
            if orientation_of(image) >= 5:
                known.update(width=image.height, height=image.width)
            raise UncarriedPicture(obstacle, **known)
        image.load()  # before anything reads EXIF: that may decode too, and swallow what it finds broken
        orientation = orientation_of(image)
        if orientation >= 5:
            known.update(width=image.height, height=image.width)
        icc, xmp = image.info.get("icc_profile"), xmp_of(image)
        exif = exif_of(image)
        colour = colour_chunks(image)
        quality = jpeg_quality(image)
        own_mode = known["mode"]
        image = _plain(image)
        if orientation > 1:
            image = upright(image, orientation)
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
    if mode not in PLAIN_MODES:
        raise UncarriedPicture(mode_reason(mode), width=image.width, height=image.height, format=format, mode=mode)
    if image.width < 1 or image.height < 1:
        raise BrokenPicture("the picture has no pixels", width=image.width, height=image.height, mode=mode)
    orientation = orientation_of(image)
    icc, xmp, exif = image.info.get("icc_profile"), xmp_of(image), exif_of(image)
    colour, quality = colour_chunks(image), jpeg_quality(image)
    plain = _plain(image)
    if orientation > 1:
        plain = upright(plain, orientation)
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


def _plain(image: Image.Image) -> Image.Image:
    """A loaded image in one of PLAIN_MODES -> L, LA, RGB or RGBA with the same pixels and transparency."""
    clear = image.has_transparency_data
    if image.mode in ("1", "L"):
        target = "LA" if clear else "L"
    elif image.mode in ("P", "PA", "RGB"):
        target = "RGBA" if clear else "RGB"
    else:
        target = image.mode
    return image if image.mode == target else image.convert(target)
