"""Reading the Huffman-coded bits of a JPEG: tables of its codes, a bit buffer, steps over whole coefficients.

Kernels that a walk over a scan is made of (damage.py's, and the DC decoder of tasks/duplicates): they see bits, not
pictures. A table says for each window of bits how many whole AC coefficients lie in it and how many bits they take, so
that several are passed at a step. ITU-T T.81, annexes C and F.
"""

from functools import lru_cache

import numpy as np
from numba import njit

WINDOW = 13  # bits looked up at a time
END = 1 << 15  # in a skip: the block ends here


@njit(cache=True)
def codes(counts, values):
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
def skips(lengths, symbols):
    """What lies at the start of each window of AC bits: places advanced << 8 | bits taken, and END.

    First all whole coefficients in it, then the first alone; 0: not even one fits, or it is no code.
    """
    many, one = np.zeros(1 << WINDOW, np.uint16), np.zeros(1 << WINDOW, np.uint16)
    for window in range(1 << WINDOW):
        bits = places = 0
        while places < 64:
            rest = ((window << (16 - WINDOW)) << bits) & 0xFFFF
            length, run, size = lengths[rest], symbols[rest] >> 4, symbols[rest] & 15
            if length == 0 or bits + length + size > WINDOW or (size == 0 and run != 0 and run != 15):
                break
            bits += length + size
            ends = size == 0 and run == 0
            places += 0 if ends else run + 1
            many[window] = places << 8 | bits | (END if ends else 0)
            if one[window] == 0:
                one[window] = many[window]
            if ends:
                break
    return many, one


@njit(cache=True)
def starts_of(lengths, symbols):
    """The DC code at the start of each window: size << 8 | length, 0 where it is longer."""
    starts = np.zeros(1 << WINDOW, np.uint16)
    for window in range(1 << WINDOW):
        length, size = lengths[window << (16 - WINDOW)], symbols[window << (16 - WINDOW)]
        if length <= WINDOW and size <= 11:
            starts[window] = size << 8 | length
    return starts


@lru_cache(maxsize=64)
def huffman_table(raw: bytes, dc: bool):
    """Tables of a Huffman code as the file has it (16 counts, then values): (lengths, symbols, starts) for DC,
    (lengths, symbols, many, one) for AC; None: impossible."""
    counts, values = np.frombuffer(raw[:16], np.uint8).astype(np.int64), np.frombuffer(raw[16:], np.uint8)
    lengths, symbols, possible = codes(counts, values)
    if not possible or (dc and values.max(initial=0) > 15):
        return None
    return (lengths, symbols, starts_of(lengths, symbols)) if dc else (lengths, symbols, *skips(lengths, symbols))


@njit(nogil=True, cache=True, inline="always")
def refill(data, at, held, bits):
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
def dc_code(held, lengths, symbols, starts):
    """Bits of the DC code at the front and of the difference behind it; (65, 0), more than there are, for no code."""
    start = np.int64(starts[np.int64(held >> np.uint64(64 - WINDOW))])
    if start != 0:
        return start & 255, start >> 8
    length, size = np.int64(lengths[held >> np.uint64(48)]), np.int64(symbols[held >> np.uint64(48)])
    if length == 0 or size > 11:
        return np.int64(65), np.int64(0)
    return length, size


@njit(nogil=True, cache=True, inline="always")
def skip_ac(data, at, held, bits, lengths, symbols, many, one):
    """Pass over a block's AC coefficients: (at, held, bits) behind them; bits below 0 at anything irregular."""
    place = 1
    while place < 64:
        if bits <= 32:
            at, held, bits = refill(data, at, held, bits)
        skip = np.int64(many[np.int64(held >> np.uint64(64 - WINDOW))])
        if skip == 0 or place + (skip >> 8 & 127) + (skip >> 15) > 64:
            skip = np.int64(one[np.int64(held >> np.uint64(64 - WINDOW))])  # the window reaches into the next block
            if skip == 0:
                symbol, length = np.int64(symbols[held >> np.uint64(48)]), np.int64(lengths[held >> np.uint64(48)])
                run, size = symbol >> 4, symbol & 15
                if length == 0 or (size == 0 and run != 0 and run != 15):
                    return at, held, -1
                skip = END | length if symbol == 0 else run + 1 << 8 | length + size
            if place + (skip >> 8 & 127) + (skip >> 15) > 64:
                return at, held, -1
        held <<= np.uint64(skip & 31)
        bits -= skip & 31
        place += skip >> 8  # END makes it more than 64
    return at, held, bits
