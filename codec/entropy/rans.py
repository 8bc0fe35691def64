"""Entropy coding: integer symbols and their table numbers <-> bytes. Nothing here is float, nothing is learned.

Range asymmetric numeral systems (Duda 2013) in the interleaved form (Giesen 2014): 32-bit states, 16-bit words,
14-bit frequencies. Which bin a symbol has is decided by the index network in exact integers; how a segment's symbols
become blocks is bitstream/segments.py's, what surrounds the streams in a file is container.py's.

A stream holds one segment: blocks of symbols one after the other, each symbol with the table that an array of the same
shape names; table 0 means "not coded, zero". Operation i uses state i mod n. z is a block as it is. y comes in passes
(EVEN, ODD, EVERYWHERE): there every cell has a state of the trellis (trellis.py), which the parity of each symbol with
a bin from FIRST_BIN on moves on, and in an odd state the table is the one ODD_STATES further on; what is named so far
is corrected by the symbols coded nearby (contexts.py). An encoder knows all of that ahead and codes passes as blocks.

A symbol outside its table's range is the table's last entry (escape) followed by its sign and by the distance to the
range in an Exp-Golomb code of order 0, as bits of probability one half.

States start (at the end of the stream, since encoding runs backwards) from 2^16 + 16 bits of a checksum of the
symbols: the first state carries its low half, the second its high half, which costs nothing, and the others zero. A
decoder that ends elsewhere has met damage or has other tables, indices or symbols than the encoder.
"""

import zlib
from typing import NamedTuple

import numba
import numpy as np

from codec.entropy import context_kernels
from codec.entropy.contexts import LATER
from codec.format import EVERYWHERE, FIRST_BIN, NEXT, ODD_STATES, PRECISION

TOTAL = 1 << PRECISION
LOWEST = 1 << 16  # states stay in [LOWEST, 2**32)
COARSE_BITS = 7  # slots are looked up by their top bits, then searched
MOST_TABLES = 512


class EntropyError(ValueError):
    """A stream that these tables and indices cannot have produced."""


class _Tables(NamedTuple):
    """What compiled loops see of a TableSet."""

    starts: np.ndarray  # int32, of each table in `cumulative`
    radius: np.ndarray  # int32
    cumulative: np.ndarray  # uint32
    coarse: np.ndarray  # uint16 [tables, 2**COARSE_BITS]: where to begin to look


class TableSet:
    """Frequency tables laid out for the coder. Table 0 is "not coded"; others hold symbols -R..R and escape.

    `tables`: arrays of integer frequencies of odd-plus-one length (2R+1 symbols, then escape), each at least 1,
    sum 2**PRECISION; entry 0 is ignored. Raises ValueError naming the table that breaks this.
    """

    def __init__(self, tables: list[np.ndarray]):
        if not 2 <= len(tables) <= MOST_TABLES:
            raise ValueError(f"{len(tables)} tables; there can be 2 to {MOST_TABLES}")
        sizes = [0] + [len(table) for table in tables[1:]]
        self.starts = np.zeros(len(tables) + 1, np.int32)
        self.starts[1:] = np.cumsum([size + 1 for size in sizes])
        self.radius = np.array([(size - 2) // 2 for size in sizes], np.int32)
        self.cumulative = np.zeros(self.starts[-1], np.uint32)
        self.coarse = np.zeros((len(tables), 1 << COARSE_BITS), np.uint16)
        slots = np.arange(1 << COARSE_BITS) << (PRECISION - COARSE_BITS)
        for number, table in enumerate(tables):
            if number == 0:
                continue
            table = np.asarray(table).astype(np.int64)
            if len(table) < 2 or len(table) % 2 or table.min() < 1 or table.sum() != TOTAL:
                raise ValueError(
                    f"table {number}: {len(table)} frequencies from {table.min()} with sum {table.sum()}; needs an "
                    f"even count, each at least 1, sum {TOTAL}"
                )
            ends = np.cumsum(table)
            self.cumulative[self.starts[number] + 1 : self.starts[number + 1]] = ends
            self.coarse[number] = np.searchsorted(ends, slots, side="right")

    @property
    def arrays(self) -> "_Tables":
        return _Tables(self.starts, self.radius, self.cumulative, self.coarse)

    def least_bits(self, number: int) -> float:
        """Fewest bits that one symbol of this table can cost."""
        largest = np.diff(self.cumulative[self.starts[number] : self.starts[number + 1]].astype(np.int64)).max()
        return float(PRECISION - np.log2(largest))


def state_count(cells: int) -> int:
    """Interleaved states of a segment of that many latent cells: few where every byte counts, more for speed."""
    return 2 if cells < 1024 else 4


def checksum(*blocks: np.ndarray) -> int:
    """CRC-32 of int16 symbols, little-endian, blocks one after the other in C order."""
    value = 0
    for block in blocks:
        value = zlib.crc32(np.ascontiguousarray(block, dtype="<i2").data, value)
    return value


class Block(NamedTuple):
    """Symbols in the order of coding, and what codes each."""

    symbols: np.ndarray  # int16, C-contiguous
    numbers: np.ndarray  # unsigned, of the same shape: tables, 0 for what is not coded
    tables: TableSet


# -- encoding


@numba.njit(cache=True, nogil=True)
def _count(symbols, numbers, radius):
    """Operations that a block [n] needs."""
    operations = 0
    for i in range(symbols.size):
        if numbers[i] != 0:
            operations += 1
            beyond = abs(np.int64(symbols[i])) - radius[numbers[i]]
            if beyond > 0:
                operations += 2
                while beyond > 1:
                    operations += 2
                    beyond >>= 1
    return operations


@numba.njit(cache=True, nogil=True)
def _list(symbols, numbers, tables, begin, width, at):
    """Append a block's operations (interval begin and width) from position `at`; returns the position after."""
    starts, radius, cumulative, _ = tables
    for i in range(symbols.size):
        table = numbers[i]
        if table == 0:
            continue
        reach, value = radius[table], np.int64(symbols[i])
        beyond = abs(value) - reach
        entry = starts[table] + (value + reach if beyond <= 0 else 2 * reach + 1)
        begin[at] = cumulative[entry]
        width[at] = cumulative[entry + 1] - cumulative[entry]
        at += 1
        if beyond > 0:
            bits = 0
            while (beyond >> (bits + 1)) > 0:
                bits += 1
            # sign, then `bits` zeros, then `beyond` from its leading one downwards
            for j in range(-1, 2 * bits + 1):
                if j < 0:
                    bit = 1 if value < 0 else 0
                elif j < bits:
                    bit = 0
                else:
                    bit = (beyond >> (2 * bits - j)) & 1
                begin[at] = bit << 13
                width[at] = 1 << 13
                at += 1
    return at


@numba.njit(cache=True, nogil=True)
def _push(begin, width, states, words):
    """Encode operations backwards; fills `words` from its end and returns where they begin."""
    at = words.size
    mask = states.size - 1
    for i in range(begin.size - 1, -1, -1):
        x = np.uint64(states[i & mask])
        w = np.uint64(width[i])
        if x >= (w << np.uint64(18)):
            at -= 1
            words[at] = np.uint16(x & np.uint64(0xFFFF))
            x >>= np.uint64(16)
        q = np.uint32(x) // np.uint32(w)
        states[i & mask] = (q << np.uint32(14)) + (np.uint32(x) - q * np.uint32(w)) + np.uint32(begin[i])
    return at


def encode(blocks: list[Block], check: int, states: int) -> bytes:
    """Blocks in decoding order -> one stream. `states`: 2, 4 or 8."""
    flat = [(block.symbols.reshape(-1), block.numbers.reshape(-1), block.tables.arrays) for block in blocks]
    size = sum(_count(symbols, numbers, tables.radius) for symbols, numbers, tables in flat)
    begin, width, at = np.empty(size, np.uint16), np.empty(size, np.uint16), 0
    for symbols, numbers, tables in flat:
        at = _list(symbols, numbers, tables, begin, width, at)
    state = _last_states(check, states)
    words = np.empty(begin.size, np.uint16)
    first = _push(begin, width, state, words)
    return state.astype("<u4").tobytes() + words[first:].astype("<u2").tobytes()


def _last_states(check: int, states: int) -> np.ndarray:
    """What a decoder's states end with, which an encoder's begin with."""
    state = np.full(states, LOWEST, np.uint32)
    state[0] += check & 0xFFFF
    state[1] += check >> 16
    return state


# -- decoding


class Pass(NamedTuple):
    """One pass of y as a decoder reads it, a window of arrays [C,H,W]."""

    symbols: np.ndarray  # int16, written to
    index: np.ndarray  # uint8: bins; what codes in an odd state gets its table's number. Not what contexts correct
    states: np.ndarray  # uint8 [H,W]: of the trellis, moved on
    window: tuple[int, int, int, int]  # top, bottom, left, right
    cells: int  # EVEN, ODD (by row + column in these arrays) or EVERYWHERE
    scores: context_kernels.Scores  # of the window's segment
    first: int  # the latent's channel that is the arrays' first


class _Stream(NamedTuple):
    """A stream being read."""

    words: np.ndarray  # uint16, with two zeros behind the last
    states: np.ndarray  # uint32
    position: np.ndarray  # int64 [2]: next word, next operation


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _pull_bit(words, position, states):
    """A bit of probability one half."""
    at, operation = position
    i = operation & (states.size - 1)
    x = states[i]
    bit = (x >> np.uint32(13)) & np.uint32(1)
    x = (x >> np.uint32(14) << np.uint32(13)) + (x & np.uint32(0x1FFF))
    if x < np.uint32(LOWEST):
        x = (x << np.uint32(16)) | np.uint32(words[at])
        at = min(at + 1, words.size - 1)
    states[i] = x
    position[0], position[1] = at, operation + 1
    return np.int64(bit)


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _pull_escaped(words, position, states, reach):
    """What follows an escape: the symbol, or 1 << 16 for none that there can be."""
    sign = 1 - 2 * _pull_bit(words, position, states)
    bits = 0
    while _pull_bit(words, position, states) == 0:
        bits += 1
        if bits > 15:
            return 1 << 16
    beyond = 1
    for _ in range(bits):
        beyond = 2 * beyond + _pull_bit(words, position, states)
    return sign * (reach + beyond) if reach + beyond <= 32767 else 1 << 16


@numba.njit(cache=True, nogil=True, boundscheck=False, inline="always")
def _pull_one(words, at, states, operation, starts, cumulative, coarse, table):
    """Which entry of that table comes next -> (entry, next word). Behind the end of the words stand two zeros; a reader
    that has got to the second has read too far."""
    i = operation & (states.size - 1)
    x = states[i]
    slot = x & np.uint32(TOTAL - 1)
    entry = starts[table] + np.int32(coarse[table, slot >> np.uint32(PRECISION - COARSE_BITS)])
    high = cumulative[entry + 1]
    while high <= slot:
        entry += 1
        high = cumulative[entry + 1]
    low = cumulative[entry]
    x = (high - low) * (x >> np.uint32(PRECISION)) + slot - low
    short = x < np.uint32(LOWEST)  # no branch, which would be guessed wrongly
    x = (x << np.uint32(16)) | np.uint32(words[at]) if short else x
    states[i] = x
    return entry, min(at + np.int64(short), words.size - 1)


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _pull_block(stream, tables, numbers, symbols):
    """Decode a block [n] into `symbols`; returns whether all of them can be."""
    words, states, position = stream
    starts, radius, cumulative, coarse = tables
    at, operation = position
    for i in range(symbols.size):
        table = numbers[i]
        if table == 0:
            continue
        entry, at = _pull_one(words, at, states, operation, starts, cumulative, coarse, table)
        operation += 1
        value = np.int64(entry - starts[table] - radius[table])
        if value > radius[table]:  # escape
            position[0], position[1] = at, operation
            value = _pull_escaped(words, position, states, np.int64(radius[table]))
            at, operation = position
            if value == 1 << 16:
                return False
        symbols[i] = value
    position[0], position[1] = at, operation
    return True


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _pull_pass(stream, tables, given):
    """Decode a Pass; returns whether all of its symbols can be."""
    words, states, position = stream
    starts, radius, cumulative, coarse = tables
    symbols, index, cells, (top, bottom, left, right), parity, near, channel = given
    at, operation = position
    later = parity == EVERYWHERE
    kind, halves, columns = LATER if later else parity, 2 if later else 1, right - left
    # Each allocated for itself, or LLVM would not prove them apart and sum one symbol at a time.
    base, numbers, signs = np.empty(columns, np.int32), np.empty(columns, np.int32), np.empty(columns, np.int32)
    scale_shift, location_shift = np.empty(columns, np.int32), np.empty(columns, np.int32)
    found, scales, locations = near
    of_scale, of_location, flat = found[3].ravel(), found[4].ravel(), context_kernels.flattened(near)
    for c in range(symbols.shape[0]):
        for half in range(halves * (bottom - top)):
            r = top + half // halves
            if not index[c, r, left:right].any():
                continue
            at_row = r - top + context_kernels.ABOVE
            scale, location = scales[channel + c, at_row], locations[channel + c, at_row]
            context_kernels.sum_row(
                *flat, channel + c, r - top, kind + half % halves, base, scale_shift, location_shift
            )
            context_kernels.correct_row(index[c, r, left:right], scale_shift, location_shift, numbers, signs)
            first = left + half % halves if later else left + ((left + r + parity) & 1)
            for k in range(np.uint64(first), np.uint64(right), np.uint64(2)):
                plain, column = np.int32(index[c, r, k]), k - np.uint64(left)
                if plain == 0:
                    continue
                moving, table = plain >= FIRST_BIN, numbers[column]
                if moving:
                    odd = ODD_STATES * np.int32(cells[r, k] & 1)
                    table, plain = table + odd, plain + odd
                    index[c, r, k] = plain
                entry, at = _pull_one(words, at, states, operation, starts, cumulative, coarse, table)
                operation += 1
                reach = radius[table]
                value = np.int64(entry - starts[table] - reach)
                if value > reach:  # escape
                    position[0], position[1] = at, operation
                    value = _pull_escaped(words, position, states, np.int64(reach))
                    at, operation = position
                    if value == 1 << 16:
                        return False
                value *= signs[column]
                context_kernels.leave(of_scale, of_location, scale, location, column, plain, value)
                symbols[c, r, k] = value
                if moving:
                    cells[r, k] = NEXT[cells[r, k], value & 1]
    position[0], position[1] = at, operation
    return True


class Decoder:
    """One stream being read: each block and pass in the order of encoding, then `finish` with the symbols' checksum."""

    def __init__(self, stream, states: int):
        """`stream`: bytes-like. Raises EntropyError when it is too short or starts from an impossible state."""
        stream = memoryview(stream)
        if len(stream) < 4 * states or len(stream) % 2:
            raise EntropyError(f"a stream of {len(stream)} bytes; needs {4 * states} or more, an even number")
        first = np.frombuffer(stream[: 4 * states], "<u4").astype(np.uint32)
        words = np.append(np.frombuffer(stream[4 * states :], "<u2"), np.zeros(2, np.uint16)).astype(np.uint16)
        if first.min() < LOWEST:
            raise EntropyError("a state below its range at the start of a stream")
        self.stream = _Stream(words, first, np.zeros(2, np.int64))

    def read(self, block: Block) -> None:
        """Fills block.symbols where block.numbers is not 0.

        Raises EntropyError when the stream runs out or an escape makes no sense.
        """
        arrays = block.numbers.reshape(-1), block.symbols.reshape(-1)
        self._check(_pull_block(self.stream, block.tables.arrays, *arrays))

    def read_pass(self, given: Pass, tables: TableSet) -> None:
        """Fills given.symbols where given.index is not 0 (other cells are left alone). Errors as `read`."""
        self._check(_pull_pass(self.stream, tables.arrays, given))

    def _check(self, possible: bool) -> None:
        at, operation = self.stream.position
        if at == len(self.stream.words) - 1:
            raise EntropyError(f"the stream ends after about {operation} operations, more are needed")
        if not possible:
            raise EntropyError(f"an escaped symbol out of range at operation {operation}")

    def finish(self, check: int) -> None:
        """Raises EntropyError unless the stream is used up and its states name this checksum."""
        left = len(self.stream.words) - 2 - self.stream.position[0]
        if left:
            raise EntropyError(f"{left} words of the stream are left over")
        if not np.array_equal(self.stream.states, _last_states(check, len(self.stream.states))):
            raise EntropyError("the symbols' checksum differs: damaged, or decoded with other indices than encoded")
