"""Entropy coding: integer symbols and their table numbers <-> bytes. Nothing here is float, nothing is learned.

Range asymmetric numeral systems (Duda 2013) in the interleaved form (Giesen 2014): 32-bit states, 16-bit words,
14-bit frequencies. Which table codes which symbol is decided by model.py in exact integers; what surrounds the
streams in a file is container.py's.

A stream holds one segment: blocks of symbols [C,h,w] coded one after the other in C order, each symbol with the table
that a uint8 array of the same shape names; table 0 means "not coded, zero". A block may be limited to one colour of
the checkerboard (row + column even: the first pass, odd: the second). Operation i uses state i mod n.

In a stream of trellis-coded quantisation (trellis.py) every cell has a state, 0 at first. The parity of each symbol
with a table from FIRST_BIN on moves its cell's state on; in an odd state the table is the one ODD_STATES further on.
Where there are contexts (contexts.py), what is named so far is corrected by the symbols coded nearby, and a row of a
block without checkerboard is coded in its even columns first.

A symbol outside its table's range is the table's last entry (escape) followed by its sign and by the distance to the
range in an Exp-Golomb code of order 0, as bits of probability one half.

States start (at the end of the stream, since encoding runs backwards) from 2^16 + 16 bits of a checksum of the
symbols: the first state carries its low half, the second its high half, which costs nothing, and the others zero. A
decoder that ends elsewhere has met damage or has other tables, indices or symbols than the encoder.
"""

import zlib

import numba
import numpy as np

from codec import contexts
from codec.states import FIRST_BIN, NEXT, ODD_STATES

PRECISION = 14  # frequencies of a table sum to 2**PRECISION
TOTAL = 1 << PRECISION
LOWEST = 1 << 16  # states stay in [LOWEST, 2**32)
COARSE_BITS = 7  # slots are looked up by their top bits, then searched
EVERYWHERE, EVEN, ODD = -1, 0, 1  # which cells of a block are coded

_OK, _RAN_OUT, _BAD_ESCAPE = 0, 1, 2


class EntropyError(ValueError):
    """A stream that these tables and indices cannot have produced."""


class TableSet:
    """Frequency tables laid out for the coder. Table 0 is "not coded"; others hold symbols -R..R and escape.

    `tables`: arrays of integer frequencies of odd-plus-one length (2R+1 symbols, then escape), each at least 1,
    sum 2**PRECISION; entry 0 is ignored. Raises ValueError naming the table that breaks this.
    """

    def __init__(self, tables: list[np.ndarray]):
        if not 2 <= len(tables) <= 512:
            raise ValueError(f"{len(tables)} tables; there can be 2 to 512")
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
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.starts, self.radius, self.cumulative, self.coarse

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


# -- encoding


@numba.njit(cache=True, nogil=True)
def _count(symbols, index, radius, top, bottom, left, right, parity):
    """Operations that a block needs."""
    operations = 0
    step = 1 if parity < 0 else 2
    for c in range(symbols.shape[0]):
        for r in range(top, bottom):
            first = left if parity < 0 else left + ((left + r + parity) & 1)
            for k in range(first, right, step):
                table = index[c, r, k]
                if table != 0:
                    operations += 1
                    beyond = abs(np.int64(symbols[c, r, k])) - radius[table]
                    if beyond > 0:
                        operations += 2
                        while beyond > 1:
                            operations += 2
                            beyond >>= 1
    return operations


@numba.njit(cache=True, nogil=True)
def _list(symbols, index, starts, radius, cumulative, top, bottom, left, right, parity, begin, width, at):
    """Append a block's operations (interval begin and width) from position `at`; returns the position after."""
    step = 1 if parity < 0 else 2
    for c in range(symbols.shape[0]):
        for r in range(top, bottom):
            first = left if parity < 0 else left + ((left + r + parity) & 1)
            for k in range(first, right, step):
                table = index[c, r, k]
                if table == 0:
                    continue
                reach = radius[table]
                value = np.int64(symbols[c, r, k])
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
                    for i in range(-1, 2 * bits + 1):
                        if i < 0:
                            bit = 1 if value < 0 else 0
                        elif i < bits:
                            bit = 0
                        else:
                            bit = (beyond >> (2 * bits - i)) & 1
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


_NO_STATES = np.zeros((0, 0), np.uint8)
_NOTHING = contexts.nothing()


class Block:
    """Symbols of one block: int16 and uint8 arrays [C,H,W], the window of them that is meant, and which cells."""

    __slots__ = ("symbols", "index", "tables", "window", "parity", "states", "near", "first")

    def __init__(
        self, symbols, index, tables: TableSet, window=None, parity: int = EVERYWHERE, states=None, near=None, first=0
    ):
        """`window`: (top, bottom, left, right), all of it when None. Parity refers to the arrays' own coordinates.
        states: uint8 [H,W], of a trellis, where one is decoded: `index` then comes with the tables of even states, and
        leaves with those that were used (which an encoder's has from the beginning).
        near: contexts.Nearby of the window's segment, for streams that have them; first: its number of the first
        channel. What contexts correct does not appear in `index`."""
        self.symbols, self.index, self.tables, self.parity = symbols, index, tables, parity
        self.states = _NO_STATES if states is None else states
        self.window = window or (0, symbols.shape[1], 0, symbols.shape[2])
        self.near, self.first = _NOTHING if near is None else near, first

    def settled(self) -> "Block":
        """As its tables code it: itself, or with contexts its window, corrected. Once, in the order of coding."""
        if not self.near.scale.size:
            return self
        top, bottom, left, right = self.window
        parity = self.parity if self.parity < 0 else self.parity ^ ((top + left) & 1)
        parts = (part[:, top:bottom, left:right] for part in (self.symbols, self.index))
        return Block(*contexts.corrected_block(*parts, self.near, self.first, self.parity, parity), self.tables,
                     parity=parity)  # fmt: skip


def encode(blocks: list[Block], check: int, states: int) -> bytes:
    """Blocks in decoding order -> one stream. `states`: 2, 4 or 8."""
    blocks = [block.settled() for block in blocks]
    sizes = [_count(b.symbols, b.index, b.tables.radius, *b.window, b.parity) for b in blocks]
    begin = np.empty(sum(sizes), np.uint16)
    width = np.empty(sum(sizes), np.uint16)
    at = 0
    for b in blocks:
        at = _list(b.symbols, b.index, *b.tables.arrays[:3], *b.window, b.parity, begin, width, at)
    state = np.full(states, LOWEST, np.uint32)
    state[0] += check & 0xFFFF
    state[1] += check >> 16
    words = np.empty(begin.size, np.uint16)
    first = _push(begin, width, state, words)
    return state.astype("<u4").tobytes() + words[first:].astype("<u2").tobytes()


@numba.njit(cache=True, nogil=True)
def _bits(symbols, index, starts, radius, cumulative, top, bottom, left, right, parity, cost):
    """Sum of `cost[width]` over a block's operations."""
    total = 0.0
    step = 1 if parity < 0 else 2
    for c in range(symbols.shape[0]):
        for r in range(top, bottom):
            first = left if parity < 0 else left + ((left + r + parity) & 1)
            for k in range(first, right, step):
                table = index[c, r, k]
                if table == 0:
                    continue
                reach = radius[table]
                value = np.int64(symbols[c, r, k])
                beyond = abs(value) - reach
                entry = starts[table] + (value + reach if beyond <= 0 else 2 * reach + 1)
                total += cost[cumulative[entry + 1] - cumulative[entry]]
                if beyond > 0:
                    total += 2.0
                    while beyond > 1:
                        total += 2.0
                        beyond >>= 1
    return total


_COST = np.append(64.0, PRECISION - np.log2(np.arange(1, TOTAL + 1)))


def ideal_bits(blocks: list[Block]) -> float:
    """Bits that the tables ask for, before any overhead of states and words."""
    blocks = [block.settled() for block in blocks]
    return float(sum(_bits(b.symbols, b.index, *b.tables.arrays[:3], *b.window, b.parity, _COST) for b in blocks))


# -- decoding


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _pull(
    words,
    at,
    states,
    operation,
    index,
    symbols,
    starts,
    radius,
    cumulative,
    coarse,
    cells,
    top,
    bottom,
    left,
    right,
    parity,
    near,
    channel,
):
    """Decode one block into `symbols`; words: with one more behind the last; cells: Block.states, channel: Block.first.
    Returns (next word, next operation, _OK or another)."""
    mask = states.size - 1
    slot_mask = np.uint32(TOTAL - 1)
    limit = words.size - 1
    trellis, correcting = cells.size > 0, near.scale.size > 0
    lowest = np.uint32(LOWEST)
    kind = contexts.LATER if parity < 0 else parity
    columns = right - left
    base, loud, lean = np.zeros(columns, np.int32), np.zeros(columns, np.int32), np.zeros(columns, np.int32)
    numbers, signs, ahead, none = np.zeros(columns, np.int32), np.zeros(columns, np.int32), False, np.int32(0)
    swapped, plain, at_k = False, np.int32(0), np.uint64(0)
    found, scales, locations = near
    scores, places, flat = found[3].ravel(), found[4].ravel(), contexts.flattened(near)
    scale, location = scores, places  # a row's, where there are any
    halves = 2 if correcting and parity < 0 else 1  # a row's even columns, then its odd ones
    step = halves if parity < 0 else 2
    for c in range(symbols.shape[0]):
        run, side, last = np.int32(0), np.int32(0), (np.int32(0), np.int32(0), np.int32(0), np.int32(0), np.int32(0))
        newer, nearer = run, side
        if correcting:
            last = contexts.last_weights(near, channel + c, kind)
            ahead = contexts.known_ahead(last)
        for half in range(halves * (bottom - top)):
            r = top + half // halves
            first = left if parity < 0 else left + ((left + r + parity) & 1)
            if correcting:
                first += half % halves
                if not index[c, r, left:right].any():
                    continue
                contexts.sum_row(*flat, channel + c, r - top, kind + half % halves, base, loud, lean)
                at_row = r - top + contexts.ABOVE
                scale, location = scales[channel + c, at_row], locations[channel + c, at_row]
                if ahead:
                    contexts.correct_row(index[c, r, left:right], loud, lean, numbers, signs)
            for k in range(np.uint64(first), np.uint64(right), np.uint64(step)):
                table = np.int32(index[c, r, k])
                if table == 0:
                    continue
                moving = trellis and table >= FIRST_BIN
                if moving:
                    table += ODD_STATES * np.int32(cells[r, k] & 1)
                    index[c, r, k] = table
                if correcting:
                    plain, at_k = table, k - np.uint64(left)
                    if ahead:
                        table = numbers[at_k] + (plain & ODD_STATES)
                    else:
                        sums = contexts.sums_at(scale, location, at_k, last, run, side, loud[at_k], lean[at_k])
                        table, swapped = contexts.corrected(plain, sums[0], sums[1])
                x = states[operation & mask]
                slot = x & slot_mask
                start = starts[table]
                entry = start + np.int32(coarse[table, slot >> np.uint32(PRECISION - COARSE_BITS)])
                high = cumulative[entry + 1]
                while high <= slot:
                    entry += 1
                    high = cumulative[entry + 1]
                low = cumulative[entry]
                x = (high - low) * (x >> np.uint32(PRECISION)) + slot - low
                short = x < lowest  # no branch, which would be guessed wrongly
                if short and at >= limit:
                    return at, operation, _RAN_OUT
                x = (x << np.uint32(16)) | np.uint32(words[at]) if short else x
                at += np.int64(short)
                states[operation & mask] = x
                operation += 1
                reach = radius[table]
                value = entry - start - reach
                if value > reach:  # escape
                    negative = 0
                    bits = -1
                    beyond = 0
                    left_over = 1
                    stage = 0  # 0 sign, 1 zeros, 2 the value below its leading one
                    while left_over > 0:
                        x = states[operation & mask]
                        bit = (x >> np.uint32(13)) & np.uint32(1)
                        x = (x >> np.uint32(14) << np.uint32(13)) + (x & np.uint32(0x1FFF))
                        if x < lowest:
                            if at >= limit:
                                return at, operation, _RAN_OUT
                            x = (x << np.uint32(16)) | np.uint32(words[at])
                            at += 1
                        states[operation & mask] = x
                        operation += 1
                        if stage == 0:
                            negative = bit
                            stage = 1
                            bits = 0
                        elif stage == 1:
                            if bit == 0:
                                bits += 1
                                if bits > 15:
                                    return at, operation, _BAD_ESCAPE
                            else:
                                beyond = 1
                                left_over = bits
                                stage = 2
                        else:
                            beyond = 2 * beyond + np.int64(bit)
                            left_over -= 1
                    value = reach + beyond
                    if value > 32767:
                        return at, operation, _BAD_ESCAPE
                    if negative:
                        value = -value
                if ahead:
                    value *= signs[at_k]
                    contexts.leave(scores, places, scale, location, at_k, plain, value, none, none)
                elif correcting:
                    value = -value if swapped else value
                    run, side = newer, nearer
                    newer, nearer = contexts.leave(scores, places, scale, location, at_k, plain, value, run, side)
                symbols[c, r, k] = value
                if moving:
                    cells[r, k] = NEXT[cells[r, k], value & 1]
    return at, operation, _OK


class Decoder:
    """One stream being read: `read` each block in the order of encoding, then `finish` with the symbols' checksum."""

    def __init__(self, stream, states: int):
        """`stream`: bytes-like. Raises EntropyError when it is too short or starts from an impossible state."""
        stream = memoryview(stream)
        if len(stream) < 4 * states or len(stream) % 2:
            raise EntropyError(f"a stream of {len(stream)} bytes; needs {4 * states} or more, an even number")
        self.states = np.frombuffer(stream[: 4 * states], "<u4").astype(np.uint32)
        self.words = np.append(np.frombuffer(stream[4 * states :], "<u2"), np.uint16(0)).astype(np.uint16)
        if self.states.min() < LOWEST:
            raise EntropyError("a state below its range at the start of a stream")
        self.at = self.operation = 0

    def read(self, block: Block) -> None:
        """Fill block.symbols where block.index is not 0 (other cells are left alone).

        Raises EntropyError when the stream runs out or an escape makes no sense.
        """
        self.at, self.operation, status = _pull(
            self.words, self.at, self.states, self.operation, block.index, block.symbols, *block.tables.arrays,
            block.states, *block.window, block.parity, block.near, block.first,
        )  # fmt: skip
        if status == _RAN_OUT:
            raise EntropyError(f"the stream ends after {self.operation} operations, more are needed")
        if status == _BAD_ESCAPE:
            raise EntropyError(f"an escaped symbol out of range at operation {self.operation}")

    def finish(self, check: int) -> None:
        """Raises EntropyError unless the stream is used up and its states name this checksum."""
        expected = np.full(self.states.size, LOWEST, np.uint32)
        expected[0] += check & 0xFFFF
        expected[1] += check >> 16
        if self.at != self.words.size - 1:
            raise EntropyError(f"{self.words.size - 1 - self.at} words of the stream are left over")
        if not np.array_equal(self.states, expected):
            raise EntropyError("the symbols' checksum differs: damaged, or decoded with other indices than encoded")
