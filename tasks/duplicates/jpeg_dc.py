"""A baseline JPEG's luma at 1/8 size, from the DC coefficients alone.

At 1/8 size a block is one pixel, its mean, and that is its DC coefficient (libjpeg's 1 x 1 inverse DCT: dequantised,
divided by 8 with rounding, plus 128). So the AC coefficients need not be decoded, only skipped: a table says for each
window of bits how many whole coefficients lie in it and how many bits they take, several at a step. The result is the
one that libjpeg gives at scale 1/8, bit for bit, sooner.

Anything out of the ordinary (progressive, arithmetic, 12 bits, several scans, RGB or CMYK, odd sampling, any damage)
gives None, and the caller takes libjpeg's way, errors included. ITU-T T.81, annexes B, C and F.
"""

import numpy as np
from numba import njit

from codec.pictures.jpeg_huffman import dc_code, huffman_table, refill, skip_ac

_MOST_BLOCKS = 1 << 26


@njit(nogil=True, cache=True)
def _scan(data, at, units_x, units_y, blocks, restart, dc, ac, dc_others, ac_others, out):
    """Decode the DC coefficients of the first component into out int32[rows, columns]; returns the place behind the
    scan's last byte, or -1 at anything irregular.

    blocks: int64[components, 2] across and down in a unit; dc and ac: tables of the luma and of the others.
    """
    held, bits, previous, left = np.uint64(0), 0, 0, restart
    dc_l, dc_s, dc_w = dc
    ac_l, ac_s, ac_m, ac_1 = ac
    dc_ol, dc_os, dc_ow = dc_others
    ac_ol, ac_os, ac_om, ac_o1 = ac_others
    across, down = blocks[0]
    others = 0
    for component in range(1, blocks.shape[0]):
        others += blocks[component, 0] * blocks[component, 1]
    for unit_y in range(units_y):
        for unit_x in range(units_x):
            if restart > 0:
                if left == 0:
                    if bits >= 8 or at + 1 >= data.size or data[at] != 0xFF or data[at + 1] & 0xF8 != 0xD0:
                        return -1
                    at += 2
                    held, bits, previous, left = np.uint64(0), 0, 0, restart
                left -= 1
            for y in range(down):
                for x in range(across):
                    if bits <= 32:
                        at, held, bits = refill(data, at, held, bits)
                    length, size = dc_code(held, dc_l, dc_s, dc_w)
                    if length + size > bits:
                        return -1
                    if size > 0:
                        value = np.int64(held << np.uint64(length) >> np.uint64(64 - size))
                        previous += value - (((1 << size) - 1) if value < 1 << (size - 1) else 0)
                    out[unit_y * down + y, unit_x * across + x] = previous
                    held <<= np.uint64(length + size)
                    at, held, bits = skip_ac(data, at, held, bits - length - size, ac_l, ac_s, ac_m, ac_1)
                    if bits < 0:
                        return -1
            for _ in range(others):
                if bits <= 32:
                    at, held, bits = refill(data, at, held, bits)
                length, size = dc_code(held, dc_ol, dc_os, dc_ow)
                if length + size > bits:
                    return -1
                held <<= np.uint64(length + size)
                bits -= length + size
                at, held, bits = skip_ac(data, at, held, bits, ac_ol, ac_os, ac_om, ac_o1)
                if bits < 0:
                    return -1
    return at if bits < 8 else -1


def _segments(data: bytes) -> dict | None:
    """What the markers before the first scan say; None where it is nothing for the quick way."""
    found: dict = {"quantisation": {}, "tables": {}, "restart": 0, "jfif": False, "adobe": None, "frame": None}
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if length < 2 or len(body) != length - 2:
            return None
        at += 2 + length
        if marker in (0xC0, 0xC1):
            if found["frame"] is not None:
                return None
            found["frame"] = body
        elif marker == 0xC4:
            while body:
                n = 17 + sum(body[1:17])
                if len(body) < n or n > 17 + 256:
                    return None
                found["tables"][body[0]] = body[1:n]
                body = body[n:]
        elif marker == 0xDB:
            while body:
                n = 129 if body[0] >> 4 else 65
                if len(body) < n or body[0] >> 4 > 1:
                    return None
                found["quantisation"][body[0] & 15] = int.from_bytes(body[1:3], "big") if n == 129 else body[1]
                body = body[n:]
        elif marker == 0xDD:
            if len(body) != 2:
                return None
            found["restart"] = int.from_bytes(body, "big")
        elif marker == 0xE0:
            found["jfif"] = found["jfif"] or body[:5] == b"JFIF\0"
        elif marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:
            found["adobe"] = body[11]
        elif marker == 0xDA:
            return found | {"scan": body, "at": at}
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            return None  # other frames (progressive, arithmetic), other structure
    return None


def luma_eighth(data: bytes) -> np.ndarray | None:
    """uint8[ceil(h/8), ceil(w/8)]: what libjpeg decodes at scale 1/8 as grey; None where that has to be asked."""
    found = _segments(data)
    if found is None or found["frame"] is None:
        return None
    frame, scan = found["frame"], found["scan"]
    n = frame[5] if len(frame) >= 6 else 0
    if n not in (1, 3) or len(frame) != 6 + 3 * n or frame[0] != 8 or len(scan) != 4 + 2 * n or scan[0] != n:
        return None
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    identities = [frame[6 + 3 * c] for c in range(n)]
    if [scan[1 + 2 * c] for c in range(n)] != identities or scan[-3:] != b"\0\x3f\0" or not width or not height:
        return None
    if n == 3 and (found["adobe"] not in (None, 1) or (not found["jfif"] and bytes(identities) == b"RGB")):
        return None
    blocks = np.array([[frame[7 + 3 * c] >> 4, frame[7 + 3 * c] & 15] for c in range(n)], np.int64)
    if n == 1:
        blocks[:] = 1  # a scan of one component has one block a unit, whatever its sampling says
    if (blocks < 1).any() or (blocks > 4).any() or (blocks[0] < blocks.max(axis=0)).any():
        return None
    steps = [found["quantisation"].get(frame[8 + 3 * c]) for c in range(n)]
    numbers = [scan[2 + 2 * c] for c in range(n)]
    if None in steps or len(set(numbers[1:])) > 1:
        return None
    tables = []
    for number in (numbers[0], numbers[-1]):
        for place in (number >> 4, 16 | number & 15):
            raw = found["tables"].get(place)
            table = huffman_table(raw, place < 16) if raw is not None else None
            if table is None:
                return None
            tables.append(table)
    units_x, units_y = -(-width // (8 * blocks[0, 0])), -(-height // (8 * blocks[0, 1]))
    if units_x * units_y * blocks[0].prod() > min(_MOST_BLOCKS, 4 * len(data)):  # a block takes two bits at least
        return None
    out = np.empty((units_y * blocks[0, 1], units_x * blocks[0, 0]), np.int32)
    stream = np.frombuffer(data, np.uint8)
    end = _scan(stream, found["at"], units_x, units_y, blocks, found["restart"], *tables, out)
    if end < 0 or data[end : end + 2] != b"\xff\xd9":
        return None
    means = (out[: -(-height // 8), : -(-width // 8)] * steps[0] + 4) >> 3
    if means.min() < -512 or means.max() > 511:  # libjpeg wraps around there
        return None
    return np.clip(means + 128, 0, 255).astype(np.uint8)
