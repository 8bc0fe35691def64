"""Exact pixels: the samples by JPEG XL or WebP, everything else that the file says beside them; a PNG comes back.

    "NPL1"  8 bytes of sha256 over what follows, IHDR's content (13 bytes)
            palette (1 byte): samples are as in the file, or colours of its palette (3 or 4 channels)
            chunks before and behind the samples, packed, behind their length
            the samples (samples.py)

A PNG keeps its depth, palette, chunks and what lies behind IEND. Any other picture comes back as a PNG of the pixels
as shown, with the chunks that codec/pictures/metadata.py makes of its metadata. Samples of what a lossy codec wrote
(JPEG, AVIF, lossy WebP) are never fewer bytes this way: declined without trying.
"""

import hashlib
import struct

import numpy as np

from codec.pictures.files import Picture
from codec.pictures.metadata import Metadata, orientation, png_chunks
from tasks.forms.base import DamagedData, Declined, Goal, Reader, number
from tasks.forms.packing import pack, unpack
from tasks.forms.png_files import (
    COLOUR_TYPES,
    SIGNATURE,
    Header,
    Png,
    checked_header,
    chunk,
    chunks,
    palette_of,
    read_png,
    write_png,
)
from tasks.forms.samples import decode_array, encode_array

MAGIC = b"NPL1"
MAX_PIXELS = 1 << 40  # the night's own limit is checked before a file comes here
_DIGEST = 8
_DIRECT, _RGB, _RGBA = 0, 3, 4  # what the samples are; else channels of palette colours


class Lossless:
    name, gives_back, suffix = "lossless", "pixels", ".npl"

    def encode(self, file_bytes: bytes, picture: Picture | None, goal: Goal | None = None) -> bytes:
        png = _as_png(file_bytes, picture)
        text = pack(number(len(png.before)) + png.before + png.after)
        way, samples = _coded(png)
        body = b"".join([png.header.chunk()[8:21], bytes([way]), number(len(text)), text, samples])
        data = MAGIC + hashlib.sha256(body).digest()[:_DIGEST] + body
        if len(data) >= len(file_bytes):
            raise Declined("its exact pixels take more bytes than it has")
        self.verify(data, file_bytes, picture)
        return data

    def verify(self, data: bytes, file_bytes: bytes, picture: Picture | None) -> None:
        """Declined unless all samples and all other chunks of the file are in what is given back."""
        png = _as_png(file_bytes, picture)
        try:
            again = read_png(self.decode(data), MAX_PIXELS)
        except DamagedData as error:
            raise Declined(f"lossless could not be decoded again ({error})") from error
        same = (again.before, again.after) == (png.before, png.after) and again.samples.shape == png.samples.shape
        if not same or not np.array_equal(again.samples, png.samples):
            raise Declined("lossless does not give these samples back")

    def decode(self, data: bytes) -> bytes:
        if not data.startswith(MAGIC):
            raise DamagedData("it does not begin as a lossless form does")
        reader = Reader(data, len(MAGIC))
        digest = reader.take(_DIGEST)
        if hashlib.sha256(data[reader.at :]).digest()[:_DIGEST] != digest:
            raise DamagedData("its checksum is wrong")
        header, way = checked_header(reader.take(13)), reader.take(1)[0]
        text = Reader(unpack(reader.string()))
        before = text.string()
        png = Png(header, before, np.empty(0, np.uint8), text.data[text.at :])
        channels = way if way in (_RGB, _RGBA) else header.channels
        samples = decode_array(data[reader.at :], (header.height, header.width, channels), header.type)
        if way in (_RGB, _RGBA):
            samples = _indices(samples, palette_of(png))
        return write_png(Png(header, before, samples, png.after))


def _as_png(file_bytes: bytes, picture: Picture | None) -> Png:
    """The file itself where it is a PNG that is shown as it lies, else a PNG of the picture as shown."""
    if file_bytes.startswith(SIGNATURE) and not _is_turned(file_bytes):
        return read_png(file_bytes, MAX_PIXELS)
    if picture is None:
        raise Declined("it cannot be shown as one picture of 8 bits a sample")
    if picture.format in ("JPEG", "MPO", "AVIF") or (picture.format == "WEBP" and b"VP8 " in file_bytes[12:4096]):
        raise Declined("a lossy codec wrote it: its samples take more bytes than it has")
    image = picture.image
    header = Header(image.width, image.height, 8, COLOUR_TYPES[image.mode])
    before = b"".join(chunk(kind, content) for kind, content in png_chunks(picture.metadata))
    return Png(header, before, np.asarray(image).reshape(header.shape), chunk(b"IEND", b""))


def _is_turned(png: bytes) -> bool:
    """Whether EXIF says that viewers turn it; EXIF in a text chunk counts as if it did."""
    for kind, start, end in chunks(png, 8):
        content = png[start + 8 : end - 4]
        if kind == b"eXIf" and orientation(Metadata.of(("exif", content.removeprefix(b"Exif\0\0")))) > 1:
            return True
        if kind in (b"zTXt", b"tEXt") and content.startswith(b"Raw profile type exif"):
            return True
    return False


def _coded(png: Png) -> tuple[int, bytes]:
    """(what the samples are, the samples), the smaller way for a palette."""
    direct = encode_array(png.samples)
    table = palette_of(png)
    if table is None:
        return _DIRECT, direct
    used = np.unique(png.samples)
    if used[-1] >= len(table) or len(np.unique(table[used], axis=0)) < len(used):
        return _DIRECT, direct
    way = _RGB if (table[used, 3] == 255).all() else _RGBA
    colours = encode_array(table[png.samples[:, :, 0], :way])
    return min((_DIRECT, direct), (way, colours), key=lambda each: len(each[1]))


def _indices(colours: np.ndarray, table: np.ndarray | None) -> np.ndarray:
    """[H,W,3|4] -> [H,W,1]: where in the palette each colour stands, the first time. Raises DamagedData."""
    if table is None:
        raise DamagedData("it has lost its palette")
    known = np.ascontiguousarray(table)
    if colours.shape[2] == _RGB:
        known, colours = known[known[:, 3] == 255], np.dstack([colours, np.full(colours.shape[:2], 255, np.uint8)])
    numbers = np.flatnonzero(table[:, 3] == 255) if len(known) < len(table) else np.arange(len(table))
    packed, first = np.unique(known.view(np.uint32).ravel(), return_index=True)
    wanted = np.ascontiguousarray(colours).view(np.uint32)[:, :, 0]
    places = np.minimum(np.searchsorted(packed, wanted), max(len(packed) - 1, 0))
    if not len(packed) or not np.array_equal(packed[places], wanted):
        raise DamagedData("it has colours that are not in its palette")
    return numbers[first[places]].astype(np.uint8)[:, :, None]


def stored_header(data: bytes) -> dict:
    """Width, height, bits and channels of a lossless form without decoding it. Raises DamagedData."""
    if not data.startswith(MAGIC):
        raise DamagedData("it does not begin as a lossless form does")
    try:
        header = Header.of(data[len(MAGIC) + _DIGEST :][:13])
    except (ValueError, struct.error) as error:
        raise DamagedData(str(error)) from error
    return {"width": header.width, "height": header.height, "bits": header.depth, "channels": header.channels}
