"""A baseline JPEG's luma at 1/8 size, from the DC coefficients alone.

At 1/8 size a block is one pixel, its mean, and that is its DC coefficient (libjpeg's 1 x 1 inverse DCT: dequantised,
divided by 8 with rounding, plus 128). So the AC coefficients need not be decoded, only skipped: a table says for each
window of bits how many whole coefficients lie in it and how many bits they take, several at a step. The result is the
one that libjpeg gives at scale 1/8, bit for bit, sooner.

Anything out of the ordinary (progressive, arithmetic, 12 bits, several scans, RGB or CMYK, odd sampling, any damage)
gives None, and the caller takes libjpeg's way, errors included. ITU-T T.81, annexes B, C and F.
"""

from functools import lru_cache

import numpy as np
from numba import njit

_WINDOW = 13  # bits looked up at a time
_END = 1 << 15  # in a skip: the block ends here
_MOST_BLOCKS = 1 << 26


@njit(cache=True)
def _codes(counts, values):
    """Length (0: none) and symbol of the code that each 16-bit window starts with; False for an impossible table."""
    lengths, symbols = np.zeros(1 << 16, np.uint8), np.zeros(1 << 16, np.uint8)
    code = place = 0
    for length in range(1, 17):
        for _ in range(counts[length - 1]):
            if code >= 1 << length:
                return lengths, symbols, False
            first = code << (16 - length)
            lengths[first : first + (1 << (16 - length))] = length
            symbols[first : first + (1 << (16 - length))] = values[place]
            code += 1
            place += 1
        code <<= 1
    return lengths, symbols, True


@njit(cache=True)
def _skips(lengths, symbols):
    """What lies at the start of each window of AC bits: places advanced << 8 | bits taken, and _END.

    First all whole coefficients in it, then the first alone; 0: not even one fits, or it is no code.
    """
    many, one = np.zeros(1 << _WINDOW, np.uint16), np.zeros(1 << _WINDOW, np.uint16)
    for window in range(1 << _WINDOW):
        bits = places = 0
        while places < 64:
            rest = ((window << (16 - _WINDOW)) << bits) & 0xFFFF
            length, run, size = lengths[rest], symbols[rest] >> 4, symbols[rest] & 15
            if length == 0 or bits + length + size > _WINDOW or (size == 0 and run != 0 and run != 15):
                break
            bits += length + size
            ends = size == 0 and run == 0
            places += 0 if ends else run + 1
            many[window] = places << 8 | bits | (_END if ends else 0)
            if one[window] == 0:
                one[window] = many[window]
            if ends:
                break
    return many, one


@njit(cache=True)
def _starts(lengths, symbols):
    """The DC code at the start of each window: size << 8 | length, 0 where it is longer."""
    starts = np.zeros(1 << _WINDOW, np.uint16)
    for window in range(1 << _WINDOW):
        length, size = lengths[window << (16 - _WINDOW)], symbols[window << (16 - _WINDOW)]
        if length <= _WINDOW and size <= 11:
            starts[window] = size << 8 | length
    return starts


@lru_cache(maxsize=64)
def _table(raw: bytes, dc: bool):
    """Tables of a Huffman code as the file has it (16 counts, then values): (lengths, symbols, starts) for DC,
    (lengths, symbols, many, one) for AC; None: impossible."""
    counts, values = np.frombuffer(raw[:16], np.uint8).astype(np.int64), np.frombuffer(raw[16:], np.uint8)
    lengths, symbols, possible = _codes(counts, values)
    if not possible or (dc and values.max(initial=0) > 15):
        return None
    return (lengths, symbols, _starts(lengths, symbols)) if dc else (lengths, symbols, *_skips(lengths, symbols))


@njit(nogil=True, cache=True, inline="always")
def _refill(data, at, held, bits):
    """More bits for the buffer (left-aligned, at most 32 left in it); stuffed zeros are dropped, a marker stops."""
    if at + 4 <= data.size:
        four = (
            np.uint32(data[at]) << np.uint32(24)
            | np.uint32(data[at + 1]) << np.uint32(16)
            | np.uint32(data[at + 2]) << np.uint32(8)
            | np.uint32(data[at + 3])
        )
        if (~four - np.uint32(0x01010101)) & four & np.uint32(0x80808080) == 0:  # no byte is 255
            return at + 4, held | np.uint64(four) << np.uint64(32 - bits), bits + 32
    while bits <= 48 and at < data.size:
        byte = data[at]
        if byte == 0xFF:
            if at + 1 >= data.size or data[at + 1] != 0:
                break
            at += 1
        at += 1
        held |= np.uint64(byte) << np.uint64(56 - bits)
        bits += 8
    return at, held, bits


@njit(nogil=True, cache=True, inline="always")
def _dc_code(held, lengths, symbols, starts):
    """Bits of the DC code at the front and of the difference behind it; (65, 0), more than there are, for no code."""
    start = np.int64(starts[np.int64(held >> np.uint64(64 - _WINDOW))])
    if start != 0:
        return start & 255, start >> 8
    length, size = np.int64(lengths[held >> np.uint64(48)]), np.int64(symbols[held >> np.uint64(48)])
    if length == 0 or size > 11:
        return np.int64(65), np.int64(0)
    return length, size


@njit(nogil=True, cache=True, inline="always")
def _skip_ac(data, at, held, bits, lengths, symbols, many, one):
    """Pass over a block's AC coefficients: (at, held, bits) behind them; bits below 0 at anything irregular."""
    place = 1
    while place < 64:
        if bits <= 32:
            at, held, bits = _refill(data, at, held, bits)
        skip = np.int64(many[np.int64(held >> np.uint64(64 - _WINDOW))])
        if skip == 0 or place + (skip >> 8 & 127) + (skip >> 15) > 64:
            skip = np.int64(one[np.int64(held >> np.uint64(64 - _WINDOW))])  # the window reaches into the next block
            if skip == 0:
                symbol, length = np.int64(symbols[held >> np.uint64(48)]), np.int64(lengths[held >> np.uint64(48)])
                run, size = symbol >> 4, symbol & 15
                if length == 0 or (size == 0 and run != 0 and run != 15):
                    return at, held, -1
                skip = _END | length if symbol == 0 else run + 1 << 8 | length + size
            if place + (skip >> 8 & 127) + (skip >> 15) > 64:
                return at, held, -1
        held <<= np.uint64(skip & 31)
        bits -= skip & 31
        place += skip >> 8  # _END makes it more than 64
    return at, held, bits


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
                        at, held, bits = _refill(data, at, held, bits)
                    length, size = _dc_code(held, dc_l, dc_s, dc_w)
                    if length + size > bits:
                        return -1
                    if size > 0:
                        value = np.int64(held << np.uint64(length) >> np.uint64(64 - size))
                        previous += value - (((1 << size) - 1) if value < 1 << (size - 1) else 0)
                    out[unit_y * down + y, unit_x * across + x] = previous
                    held <<= np.uint64(length + size)
                    at, held, bits = _skip_ac(data, at, held, bits - length - size, ac_l, ac_s, ac_m, ac_1)
                    if bits < 0:
                        return -1
            for _ in range(others):
                if bits <= 32:
                    at, held, bits = _refill(data, at, held, bits)
                length, size = _dc_code(held, dc_ol, dc_os, dc_ow)
                if length + size > bits:
                    return -1
                held <<= np.uint64(length + size)
                bits -= length + size
                at, held, bits = _skip_ac(data, at, held, bits, ac_ol, ac_os, ac_om, ac_o1)
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
            table = _table(raw, place < 16) if raw is not None else None
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
