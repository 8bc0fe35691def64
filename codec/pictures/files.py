"""Image files to upright 8-bit pictures and back: what the codec can carry, what it cannot, and what comes along.

Decides by content, never by file name: a file is a picture when its first bytes say so (recognise.py). Takes from it
the pixels as shown (EXIF's orientation applied, as browsers do), alpha, and what it says beside them (metadata.py).
What would be lost is refused with a reason: more than one 8-bit grey or RGB picture with alpha holds (obstacles.py),
data behind the picture (trailing.py), damage that decoders pass over (damage.py). Values that are names (labels.py)
are told. Coding the pixels is the engine's; whether two pictures look alike is decided elsewhere.
"""

import dataclasses
import hashlib
import io
import struct

from PIL import Image

from codec.pictures.damage import damage
from codec.pictures.errors import BrokenPicture, DamagedPicture, PictureError, UncarriedPicture
from codec.pictures.labels import exact_values
from codec.pictures.metadata import Metadata, NotCarried, orientation, upright, with_metadata
from codec.pictures.metadata_readers import bare_png, metadata_of_image, read_metadata
from codec.pictures.obstacles import PLAIN_MODES, SEVERAL, mode_reason, obstacle
from codec.pictures.recognise import recognised
from codec.pictures.trailing import trailing_data

# Sizes are checked below, from the header, against the caller's limit; Pillow's own limit is lower and global.
Image.MAX_IMAGE_PIXELS = None

_IJG_LUMINANCE_SUM = 485  # sum of the 24 smallest entries of the JPEG standard's luminance table (T.81, table K.1)
_EXACT = ("PNG", "GIF", "BMP", "TIFF", "PPM", "QOI", "SGI", "TGA", "WEBP")  # formats whose values may be exact
_SRGB_PRIMARIES = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)  # as in cHRM


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture as shown, upright in pixels and metadata."""

    image: Image.Image  # L, LA, RGB or RGBA
    format: str | None = None  # the file's own, as Pillow names it
    mode: str | None = None  # the file's own, as Pillow names it
    metadata: Metadata = Metadata()
    jpeg_quality: int | None = None  # estimate on the IJG scale, JPEG only
    exact: str | None = None  # why its values have to come back exactly, in words (labels.py)

    @property
    def width(self) -> int:
        return self.image.width

    @property
    def height(self) -> int:
        return self.image.height

    @property
    def icc(self) -> bytes | None:
        return self.metadata.first("icc")

    @property
    def exif(self) -> bytes | None:
        """From its TIFF header on; its orientation is 1."""
        return self.metadata.first("exif")

    @property
    def xmp(self) -> bytes | None:
        return self.metadata.first("xmp")

    @property
    def colour(self) -> bytes | None:
        """A PNG's gAMA and cHRM (type and data each) where they say other colours than sRGB's, and no profile does."""
        chunks = {part[:4]: part for kind, part in self.metadata.parts if kind == "png"}
        if self.icc or b"sRGB" in chunks:
            return None
        gamma, primaries = chunks.get(b"gAMA", b""), chunks.get(b"cHRM", b"")
        if len(gamma) == 8 and abs(int.from_bytes(gamma[4:]) - 45455) <= 1000:
            gamma = b""
        if len(primaries) == 36:
            values = struct.unpack(">8I", primaries[4:])
            if all(abs(a - b) <= 500 for a, b in zip(values, _SRGB_PRIMARIES, strict=True)):
                primaries = b""
        return gamma + primaries or None


def open_picture(data: bytes, max_pixels: int = 200_000_000, *, checked: bool = True) -> Picture:
    """Bytes of an image file -> Picture.

    checked: look for damage that the decoder passes over, for data behind the picture and for values that are names;
    False for bytes that have passed before, and where nothing is to be given up for the picture.
    Raises NotAPicture, BrokenPicture, DamagedPicture or UncarriedPicture (all PictureError).
    """
    data = bytes(data)
    format = recognised(data)
    known: dict = {"format": format}
    try:
        opened = io.BytesIO(bare_png(data) if format == "PNG" else data)
        image: Image.Image = Image.open(opened, formats=[format])
        known.update(format=image.format, mode=image.mode, width=image.width, height=image.height)
        if image.width * image.height > max_pixels:
            raise BrokenPicture(
                f"{image.width}x{image.height} is more than the limit of {max_pixels} pixels; raise --max-pixels "
                "to take it",
                **known,
            )
        _refuse_uncarried(image, data, known, checked)
        image.load()
        quality = jpeg_quality(image)
        metadata = _metadata(image, data, known)
        exact = exact_values(image) if checked and _may_be_exact(image, data) else None
        if exact and image.mode == "P" and format != "PNG":
            raise UncarriedPicture(f"numbers of a palette that are codes: {exact}", **known)
        image = _upright(_plain(image), orientation(metadata))
    except PictureError:
        raise
    except MemoryError as error:
        raise BrokenPicture(f"not enough memory to decode this {format}", **known) from error
    except Exception as error:  # Pillow's plugins raise nearly every built-in class on damaged input
        if "width" not in known and (reason := obstacle(data, format)):  # a kind that Pillow does not even open
            raise UncarriedPicture(reason, **known) from error
        text = str(error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            text = "its header is damaged or of a kind that is not read"
        raise BrokenPicture(f"this {format} cannot be decoded: {text}", **known) from error
    known.update(width=image.width, height=image.height)
    if checked and (reason := damage(data, format)):
        raise DamagedPicture(reason, **known)
    image.info = {}
    return Picture(image, known["format"], known["mode"], upright(metadata), quality, exact)


def _refuse_uncarried(image: Image.Image, data: bytes, known: dict, checked: bool) -> None:
    """Raise UncarriedPicture for an opened file that would lose something; `known` then says its size as shown."""
    reason = obstacle(data, image.format or "")
    if not reason and image.mode not in PLAIN_MODES:
        reason = mode_reason(image.mode)
    if not reason and getattr(image, "is_animated", False):
        reason = SEVERAL
    if not reason and checked and (behind := trailing_data(data, image.format or "")):
        reason = str(behind)
    if reason:
        try:
            if orientation(read_metadata(data, image.format or "", image)) >= 5:
                known.update(width=image.height, height=image.width)
        except NotCarried:
            pass
        raise UncarriedPicture(reason, **known)


def _metadata(image: Image.Image, data: bytes, known: dict) -> Metadata:
    try:
        return read_metadata(data, image.format or "", image)
    except NotCarried as error:
        raise UncarriedPicture(str(error), **known) from None


def _may_be_exact(image: Image.Image, data: bytes) -> bool:
    """Whether nothing lossy has been at the file's values as far as its format tells."""
    if image.format == "WEBP":
        return b"VP8L" in data[12:64]
    return image.format in _EXACT and "jpeg" not in str(image.info.get("compression"))


def picture_from_image(image: Image.Image) -> Picture:
    """A PIL image in memory -> Picture, with the ICC, EXIF and XMP in its `info`; EXIF's orientation is applied.

    Raises UncarriedPicture for modes that 8-bit grey or RGB with alpha cannot hold.
    """
    mode, format = image.mode, image.format
    if mode not in PLAIN_MODES:
        raise UncarriedPicture(mode_reason(mode), width=image.width, height=image.height, format=format, mode=mode)
    if image.width < 1 or image.height < 1:
        raise BrokenPicture("the picture has no pixels", width=image.width, height=image.height, mode=mode)
    try:
        metadata = metadata_of_image(image)
    except NotCarried as error:
        raise UncarriedPicture(str(error), width=image.width, height=image.height, format=format, mode=mode) from None
    plain = _upright(_plain(image), orientation(metadata))
    if plain is image or plain.info:
        plain = plain.copy()
        plain.info = {}
    return Picture(plain, format, mode, upright(metadata), jpeg_quality(image))


def picture_bytes(picture: Picture, format: str = "PNG") -> bytes:
    """Picture -> bytes of an image file: PNG with all its metadata, other formats with ICC, EXIF and XMP.

    Lossless in PNG, TIFF; WebP is told to be. Raises ValueError where the format cannot hold the picture (JPEG and
    alpha).
    """
    out = io.BytesIO()
    if format == "PNG":
        picture.image.save(out, format)
        return with_metadata(out.getvalue(), picture.metadata)
    picture.image.save(out, format, **_options(picture, format))
    return out.getvalue()


def _options(picture: Picture, format: str) -> dict:
    """What Pillow's `save` is to be told for a format other than PNG."""
    given = {"icc_profile": picture.icc, "exif": picture.exif, "xmp": picture.xmp}
    options: dict = {name: value for name, value in given.items() if value}
    if format == "WEBP":
        options.update(lossless=True, exact=True)
    elif format == "JPEG":
        options.update(quality=95, subsampling=0)
        if picture.exif:
            options["exif"] = b"Exif\0\0" + picture.exif
        if picture.image.mode in ("LA", "RGBA"):
            raise ValueError(f"JPEG holds no alpha channel (mode {picture.image.mode}); take PNG, WebP or TIFF")
    elif format == "TIFF":
        options["compression"] = "tiff_adobe_deflate"
        if picture.exif:
            exif = Image.Exif()
            exif.load(picture.exif)
            options["exif"] = exif
        if picture.xmp:
            options["tiffinfo"] = {700: options.pop("xmp")}
    return options


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


_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def _upright(image: Image.Image, turn: int) -> Image.Image:
    """The image with EXIF's orientation `turn` applied."""
    return image.transpose(_TRANSPOSES[turn]) if turn > 1 else image
