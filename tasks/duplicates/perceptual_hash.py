"""Fingerprints: three perceptual hashes, a checksum and the size of each picture, at the speed of decoding.

The hashes are average_hash, dhash and phash as the imagehash package defines them (hash_size 8), bit for bit on
the same decoded pixels: luma, Pillow's antialiased Lanczos resize, scipy's DCT-II on 32 x 32, median rule.
A JPEG takes the fast path: only its luma is decoded, at 1/2, 1/4 or 1/8 size (by libjpeg, or at 1/8 by jpeg_dc.py with
the same result), and all three hashes share that one decode. `hash_method` records which way a row went: `full`, or
`jpeg/1` .. `jpeg/8` (luma, reduced).

Sizes are checked against a limit before anything is decoded. Comparing hashes stands in hamming_pairs.py; what counts
as a duplicate in rules.py.
"""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.fft
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from tasks.duplicates.jpeg_dc import luma_eighth
from tasks.duplicates.lanczos import reduce_plane
from tasks.machine import cores

Image.MAX_IMAGE_PIXELS = None  # the check is ours, by the caller's limit; Pillow's own is lower and global

MAX_PIXELS = 200_000_000
REDUCED_SIDE = 64  # a reduced decode keeps at least this many pixels on the shorter side
Thumbnails = tuple[bytes, bytes, bytes]
HASHES = ("ahash", "dhash", "phash")

_ORIENTATION = 0x0112
_UPRIGHT = {  # EXIF orientation -> how the plane is turned upright
    2: lambda plane: plane[:, ::-1],
    3: lambda plane: plane[::-1, ::-1],
    4: lambda plane: plane[::-1],
    5: lambda plane: plane.T,
    6: lambda plane: plane.T[:, ::-1],
    7: lambda plane: plane[::-1, ::-1].T,
    8: lambda plane: plane.T[::-1],
}


def luma(image: Image.Image) -> np.ndarray:
    """The 8-bit luma plane uint8[h,w] that every hash starts from; alpha is ignored, as imagehash does."""
    return np.asarray(image if image.mode == "L" else image.convert("L"))


def thumbnails(plane: np.ndarray) -> Thumbnails:
    """8 x 8, 9 x 8 and 32 x 32 Lanczos reductions of one luma plane uint8[h,w], as raw bytes in row order."""
    eight, nine, thirty_two = (reduce_plane(plane, *size).tobytes() for size in ((8, 8), (9, 8), (32, 32)))
    return eight, nine, thirty_two


def hash_bits(small: np.ndarray, wide: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """Hash codes of a batch of reductions.

    small uint8[n,8,8], wide uint8[n,8,9], middle uint8[n,32,32] -> uint64[n,3] (ahash, dhash, phash), the first
    bit (top left) highest. The DCT is the unnormalised DCT-II along rows, then columns, in float64, by the same
    library that imagehash uses, so that ties and rounding fall the same way.
    """
    flat = small.reshape(-1, 64)
    average = flat > flat.mean(axis=1, keepdims=True)
    gradient = wide[:, :, 1:] > wide[:, :, :-1]
    columns = scipy.fft.dct(middle.astype(np.float64), axis=1)[:, :8, :]
    low = scipy.fft.dct(columns, axis=2)[:, :, :8].reshape(-1, 64)
    frequency = low > np.median(low, axis=1, keepdims=True)
    bits = np.stack([average, gradient.reshape(-1, 64), frequency], axis=1)
    return np.packbits(bits, axis=2).view(">u8")[:, :, 0].astype(np.uint64)


def codes_to_hex(codes: np.ndarray) -> list[str]:
    """uint64[n] -> 16 lower-case hex digits each, as `str(imagehash.ImageHash)` prints them."""
    return [f"{code:016x}" for code in np.asarray(codes, dtype=np.uint64).tolist()]


def hex_to_codes(digits: list[str]) -> np.ndarray:
    """16 hex digits each -> uint64[n]; ValueError for anything else."""
    wrong = next((text for text in digits if len(text) != 16), None)
    if wrong is not None:
        raise ValueError(f"a hash has 16 hex digits, not {wrong!r}")
    return np.frombuffer(bytes.fromhex("".join(digits)), dtype=">u8").astype(np.uint64)


def _hash_batch(reductions: list[Thumbnails]) -> list[dict]:
    if not reductions:
        return []
    n = len(reductions)
    planes = [
        np.frombuffer(b"".join(r[place] for r in reductions), dtype=np.uint8).reshape(n, *shape)
        for place, shape in enumerate(((8, 8), (8, 9), (32, 32)))
    ]
    columns = [codes_to_hex(column) for column in hash_bits(*planes).T]
    return [dict(zip(HASHES, row, strict=True)) for row in zip(*columns, strict=True)]


def hashes_of(image: Image.Image) -> dict:
    """ahash, dhash, phash (16 hex digits each) of a fully decoded picture that stands upright."""
    return _hash_batch([thumbnails(luma(image))])[0]


def reduced_luma(data: bytes, image: JpegImagePlugin.JpegImageFile, side: int = REDUCED_SIDE) -> tuple[np.ndarray, str]:
    """Only the luma of a JPEG (its bytes, and opened), at the smallest of 1/8, 1/4, 1/2, 1 that keeps `side` pixels on
    each side, as libjpeg decodes it. Returns the plane as stored (not yet upright) and the method (`jpeg/8`)."""
    if min(image.size) >= 8 * side and (plane := luma_eighth(data)) is not None:
        return plane, "jpeg/8"
    image.draft("L", (side, side))
    scale = image.decoderconfig[0] if image.decoderconfig else 1
    image.load()
    return luma(image), f"jpeg/{scale}"


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none or it makes no sense."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF must not cost the picture
        return 1


def _read_one(data: bytes, fast: bool, side: int, max_pixels: int) -> tuple[dict, Thumbnails | None]:
    """Facts and reductions of one file; facts carry `error` (and there are no reductions) where it can't be read."""
    facts: dict[str, object] = {"sha256": hashlib.sha256(data).hexdigest()}
    try:
        jpeg = data[:3] == b"\xff\xd8\xff"
        opened = io.BytesIO(data)
        image: Image.Image = JpegImagePlugin.JpegImageFile(opened) if jpeg else Image.open(opened)
        width, height, mode = *image.size, image.mode
        if width * height > max_pixels:
            raise ValueError(f"{width} x {height} pixels are more than the limit of {max_pixels}")
        exif = image.info.get("exif")
        orientation = _orientation(image) if exif or not jpeg else 1
        if fast and isinstance(image, JpegImagePlugin.JpegImageFile):
            plane, method = reduced_luma(data, image, side)
        else:
            plane, method = luma(image), "full"
        if orientation in _UPRIGHT:
            plane = np.ascontiguousarray(_UPRIGHT[orientation](plane))
            width, height = (height, width) if orientation >= 5 else (width, height)
        reductions = thumbnails(plane)
    except (UnidentifiedImageError, SyntaxError):
        facts["error"] = "NotAPicture: no picture is recognised in these bytes" if data else "NoBytes: it is empty"
        return facts, None
    except MemoryError:
        raise
    except Exception as error:  # a decoder may raise anything on a hostile file; it becomes the row's error
        facts["error"] = f"{type(error).__name__}: {error}"
        return facts, None
    facts |= {"hash_method": method, "width": width, "height": height}
    facts |= {"format": image.format, "mode": mode, "exif_bytes": len(exif) if isinstance(exif, bytes) else 0}
    return facts, reductions


def fingerprints(
    blobs: list[bytes],
    *,
    threads: int | None = None,
    fast: bool = True,
    side: int = REDUCED_SIDE,
    max_pixels: int = MAX_PIXELS,
) -> list[dict]:
    """Fingerprint encoded pictures: a dict each, in the order given.

    Keys: ahash, dhash, phash (16 hex digits, of the picture as shown), hash_method, sha256 (of the bytes), width,
    height (as shown, after the orientation tag), format, mode (the file's own, as Pillow names them), exif_bytes. A
    blob that can't be read has sha256 and `error` (exception
    class and message) alone. `fast=False` decodes every picture fully. `threads` defaults to the cores this
    process may use; Pillow decodes and resizes outside the interpreter's lock.
    """
    threads = threads or cores()
    if threads > 1 and len(blobs) > 1:
        with ThreadPoolExecutor(threads) as pool:
            read = list(pool.map(lambda data: _read_one(data, fast, side, max_pixels), blobs))
    else:
        read = [_read_one(data, fast, side, max_pixels) for data in blobs]
    hashes = iter(_hash_batch([reductions for _, reductions in read if reductions is not None]))
    return [facts if reductions is None else next(hashes) | facts for facts, reductions in read]
