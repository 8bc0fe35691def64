"""Arrays of samples coded without loss, each the smallest way: JPEG XL, WebP, or general coders over byte planes.

    way (1 byte), then   JPEG XL files of up to four channels each, each behind its length
                         WebP file
                         byte planes, packed (packing.py)
                         offset and step (LEB128) of 16-bit samples that take 256 values, which follow as 8 bits

JPEG XL is best for what a camera or a scanner made (8 and 16 bits), WebP for text, line art and screenshots, byte
planes for floats, 32 bits and what repeats. Which samples a file has, and what else is in it, is rasters.py's and
png_files.py's.
"""

import imagecodecs
import numpy as np

from tasks.forms.base import DamagedData, Reader, number
from tasks.forms.packing import pack, unpack

_JXL, _WEBP, _PLANES, _EVEN = 0, 1, 2, 3
_SLOW_UP_TO = 12 << 20  # samples; beyond it JPEG XL works at its quick effort
_SLOW, _QUICK = 6, 3  # libjxl's efforts: about 1.2 and 9 million samples a second on one core
_FLAT = 0.3  # share of pixels equal to the one on their left, from which on WebP is tried
_WEBP_SIDE = 16383
_HOPELESS = 1.3  # times the best size by Zstandard's quick level, above which xz does not win either


def encode_array(samples: np.ndarray) -> bytes:
    """[H,W,C] of any byte order, uint8 to float64 -> bytes. The type and shape are not in them."""
    if samples.dtype.itemsize > 2 or samples.dtype.kind != "u":
        return bytes([_PLANES]) + _packed_planes(samples)
    if samples.dtype.itemsize == 2 and (even := _evenly_spaced(samples)):
        offset, step = even
        small = ((samples.astype(np.uint32) - offset) // step).astype(np.uint8)
        return bytes([_EVEN]) + number(offset) + number(step) + encode_array(small)
    best = _jxl(samples)
    if samples.dtype == np.uint8 and _fits_webp(samples) and _flatness(samples) >= _FLAT:
        best = min(best, _webp(samples), key=len)
    if len(imagecodecs.zstd_encode(np.ascontiguousarray(samples), 3)) <= _HOPELESS * len(best):
        best = min(best, bytes([_PLANES]) + _packed_planes(samples), key=len)
    return best


def decode_array(coded: bytes, shape: tuple[int, int, int], type: np.dtype) -> np.ndarray:
    """The inverse, contiguous. Raises DamagedData."""
    way, coded = coded[:1], coded[1:]
    if way == bytes([_PLANES]):
        return _unpacked_planes(coded, shape, type)
    if way == bytes([_EVEN]) and type.itemsize == 2:
        reader = Reader(coded)
        offset, step = reader.number(0xFFFF), reader.number(0xFFFF)
        if coded[reader.at : reader.at + 1] == way:
            raise DamagedData("samples coded in no known way")
        small = decode_array(coded[reader.at :], shape, np.dtype(np.uint8)).astype(np.uint32)
        return (small * step + offset).astype(np.uint16).astype(type)
    if way not in (bytes([_JXL]), bytes([_WEBP])):
        raise DamagedData("samples coded in no known way")
    samples = _of_jxl(coded, shape) if way == bytes([_JXL]) else _of_webp(coded, shape)
    if samples.dtype.itemsize != type.itemsize or samples.dtype.kind != type.kind:
        raise DamagedData("samples of another type than announced")
    return np.ascontiguousarray(samples.astype(type))


def _evenly_spaced(samples: np.ndarray) -> tuple[int, int] | None:
    """(lowest, step) where all values of 16-bit samples lie a whole number of steps, at most 255, above the lowest:
    what was 8 bits once, or less. None where they do not."""
    values = np.flatnonzero(np.bincount(samples.ravel(), minlength=1))
    step = int(np.gcd.reduce(values - values[0])) if len(values) > 1 else 1
    return (int(values[0]), step) if values[-1] - values[0] <= 255 * step else None


def _flatness(samples: np.ndarray) -> float:
    rows = samples[:: max(1, samples.shape[0] // 256)]
    return float((rows[:, 1:] == rows[:, :-1]).all(2).mean()) if samples.shape[1] > 1 else 0.0


def _jxl(samples: np.ndarray) -> bytes:
    effort = _SLOW if samples.size <= _SLOW_UP_TO else _QUICK
    native, channels = samples.astype(samples.dtype.newbyteorder("=")), samples.shape[2]
    groups = [native] if channels <= 4 else [native[:, :, i : i + 1] for i in range(channels)]
    out = [bytes([_JXL])]
    for part in groups:
        part = np.ascontiguousarray(part[:, :, 0] if part.shape[2] == 1 else part)
        coded = imagecodecs.jpegxl_encode(part, lossless=True, effort=effort, numthreads=1)
        out += [number(len(coded)), bytes(coded)]
    return b"".join(out)


def _of_jxl(coded: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    reader, parts = Reader(coded), []
    while reader.at < len(coded):
        try:
            part = imagecodecs.jpegxl_decode(reader.string(), numthreads=1, keeporientation=True)
        except (RuntimeError, ValueError, MemoryError) as error:
            raise DamagedData(f"samples cannot be decoded: {error}") from error
        if part.shape[:2] != shape[:2]:
            raise DamagedData("samples of another shape than announced")
        parts.append(part.reshape(*shape[:2], -1))
    if sum(part.shape[2] for part in parts) != shape[2] or len({part.dtype for part in parts}) != 1:
        raise DamagedData("samples of another shape than announced")
    return np.concatenate(parts, 2)


def _fits_webp(samples: np.ndarray) -> bool:
    return samples.shape[2] in (1, 3, 4) and max(samples.shape[:2]) <= _WEBP_SIDE


def _webp(samples: np.ndarray) -> bytes:
    pixels = np.ascontiguousarray(np.broadcast_to(samples, (*samples.shape[:2], max(3, samples.shape[2]))))
    return bytes([_WEBP]) + bytes(imagecodecs.webp_encode(pixels, 75, lossless=True, method=6, numthreads=1))


def _of_webp(coded: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    try:
        pixels = imagecodecs.webp_decode(coded, hasalpha=shape[2] == 4)
    except (RuntimeError, ValueError, MemoryError) as error:
        raise DamagedData(f"samples cannot be decoded: {error}") from error
    if pixels.shape != (*shape[:2], max(3, shape[2])):
        raise DamagedData("samples of another shape than announced")
    return pixels[:, :, : shape[2]]


def _packed_planes(samples: np.ndarray) -> bytes:
    """Bytes of equal rank together, those of 8 bits as they lie; the general coders find what repeats."""
    height, width, channels = samples.shape
    samples, itemsize = np.ascontiguousarray(samples), samples.dtype.itemsize
    if itemsize == 1:
        return pack(samples.tobytes(), [channels])
    planes = samples.reshape(height, -1).view(np.uint8).reshape(height, width * channels, itemsize)
    return pack(planes.transpose(2, 0, 1).tobytes(), [channels])


def _unpacked_planes(packed: bytes, shape: tuple[int, int, int], type: np.dtype) -> np.ndarray:
    height, width, channels = shape
    size = height * width * channels * type.itemsize
    data = unpack(packed, size)
    if len(data) != size:
        raise DamagedData("samples of another number than announced")
    if type.itemsize == 1:
        return np.frombuffer(data, type).reshape(shape)
    planes = np.frombuffer(data, np.uint8).reshape(type.itemsize, height, width * channels)
    return np.ascontiguousarray(planes.transpose(1, 2, 0)).view(type).reshape(shape)


# -- samples of 1, 2 or 4 bits


def spread_bits(packed: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [H,n] of `bits` a sample, the first in the highest bits -> uint8 [H,n * 8 / bits], a sample in each."""
    if bits == 8:
        return packed
    single = np.unpackbits(packed, axis=1).reshape(len(packed), -1, bits)
    return single @ (1 << np.arange(bits - 1, -1, -1)).astype(np.uint8)


def join_bits(samples: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of spread_bits; rows are filled up with zeros to whole bytes."""
    if bits == 8:
        return samples
    single = (samples[:, :, None] >> np.arange(bits - 1, -1, -1).astype(np.uint8)) & np.uint8(1)
    return np.packbits(single.reshape(len(samples), -1), axis=1)
