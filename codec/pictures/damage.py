"""Damage that decoders pass over: JPEG scans that are cut, zeroed or corrupt although the file ends in EOI, PNG chunks
with wrong checksums, files without their end.

libjpeg shows such pictures with grey or shifted parts and at most warns. Here every scan of a Huffman-coded JPEG is
walked code by code: each block must be there, no code may be impossible, no run may leave its block, no mean may
leave the range of 8-bit samples, and the data must end where the blocks do; a progressive file must bring all bits of
all coefficients. That is stricter than libjpeg's warnings. Nothing is decoded to pixels. ITU-T T.81, annexes B, F
and G; PNG specification, third edition. Files whose coding is not walked (arithmetic, lossless, 12 bits) are
obstacles.py's.
"""

import struct
import zlib
from functools import lru_cache

import numpy as np
from numba import njit

from codec.pictures.jpeg_huffman import dc_code, huffman_table, refill, skip_ac

_ENDED, _CORRUPT, _TOO_LONG = 1, 2, 3  # what a walk stops for; 0: it was whole
_MOST_BLOCKS = 1 << 26
_MOST_SCANS = 200  # ordinary encoders write up to about 70; more cost time out of proportion
_PNG_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS")


def damage(data: bytes, format: str) -> str | None:
    """What is damaged in a file that may decode all the same, in words; None where nothing is found.

    data: the whole file; format: as Pillow names it. Only JPEG, PNG, GIF and WebP are looked at.
    """
    look = {"JPEG": jpeg_damage, "MPO": jpeg_damage, "PNG": png_damage, "GIF": _gif_damage, "WEBP": _webp_damage}
    return look[format](data) if format in look else None


# -- PNG, GIF, WebP


def png_damage(data: bytes) -> str | None:
    """Wrong checksums of chunks that make the picture, a missing end; None where there is no such damage."""
    position = 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        if kind in _PNG_CRITICAL:
            (expected,) = struct.unpack_from(">I", data, end - 4)
            if zlib.crc32(memoryview(data)[position + 4 : end - 4]) != expected:
                return f"the checksum of its {kind.decode()} data is wrong: the file was altered or damaged"
        if kind == b"IEND":
            return None
        position = end
    return "the file is cut: its end is missing"


def _gif_damage(data: bytes) -> str | None:
    from codec.pictures.trailing import gif_end

    try:
        return None if gif_end(data) is not None else "its blocks are corrupt"
    except IndexError:
        return "the file is cut: its end is missing"


def _webp_damage(data: bytes) -> str | None:
    return "the file is cut: its end is missing" if 8 + int.from_bytes(data[4:8], "little") > len(data) else None


# -- JPEG: markers


def jpeg_damage(data: bytes) -> str | None:
    """What is damaged in the first image of a JPEG file, in words; None where it is whole or its coding not walked."""
    try:
        return _Walk(data).run()
    except (struct.error, IndexError):
        return "its header is damaged"


class _Walk:
    """One pass over a JPEG file's markers and scans."""

    def __init__(self, data: bytes):
        self.data, self.stream = data, np.frombuffer(data, np.uint8)
        self.quantisation: dict[int, int] = {}  # table -> step of the DC coefficient
        self.huffman: dict[int, bytes] = {}  # 16 * class + number -> as in the file
        self.restart = 0
        self.frame: _Frame | None = None
        self.scans = 0

    def run(self) -> str | None:
        position, data = 2, self.data
        while position + 2 <= len(data):
            if data[position] != 0xFF:
                return "bytes that belong to nothing lie between its parts"
            marker = data[position + 1]
            if marker == 0xFF:
                position += 1
                continue
            if marker == 0xD9:
                return self.incomplete()
            if marker == 0x01 or 0xD0 <= marker <= 0xD8 or marker == 0:
                return "its data is corrupt: a marker stands where none belongs"
            length = int.from_bytes(data[position + 2 : position + 4])
            body = data[position + 4 : position + 2 + length]
            if length < 2 or len(body) != length - 2:
                return "the file is cut: it ends within its header"
            position += 2 + length
            if marker == 0xDA:
                reason, position = self.scan(body, position)
                if reason or self.frame is None:
                    return reason
            elif not self.segment(marker, body):
                return None if self.frame is None else "it holds two frames"
        return "the file is cut: its end is missing"

    def segment(self, marker: int, body: bytes) -> bool:
        """Take up a marker segment; False for a frame that is not walked here (or a second one)."""
        if marker == 0xC4:
            while body:
                n = 17 + sum(body[1:17])
                self.huffman[body[0]], body = body[1:n], body[n:]
        elif marker == 0xDB:
            while body:
                wide = body[0] >> 4
                self.quantisation[body[0] & 15] = int.from_bytes(body[1:3]) if wide else body[1]
                body = body[129 if wide else 65 :]
        elif marker == 0xDD:
            self.restart = int.from_bytes(body)
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC8, 0xCC):
            if self.frame is not None or marker > 0xC2 or body[0] != 8:
                return False
            self.frame = _Frame(marker == 0xC2, body)
            return self.frame.sound
        return True

    def scan(self, header: bytes, position: int) -> tuple[str | None, int]:
        """Walk one scan: (damage in words or None, offset of the marker behind it)."""
        frame = self.frame
        if frame is None:
            return "its header is damaged", position
        self.scans += 1
        if self.scans > _MOST_SCANS:
            return f"it has more than {_MOST_SCANS} scans", position
        count = header[0]
        chosen = [frame.place.get(header[1 + 2 * i], -1) for i in range(count)]
        selectors = [header[2 + 2 * i] for i in range(count)]
        first, last, bits = header[1 + 2 * count : 4 + 2 * count]
        if -1 in chosen or not chosen or len(set(chosen)) != count or last > 63 or first > last:
            return "its header is damaged", position
        if not frame.take(chosen, first, last, bits >> 4, bits & 15):
            return "its scans do not follow from each other", position
        try:
            code, position, done, total = self.kernel(chosen, selectors, first, last, bits >> 4, position)
        except KeyError:
            return "a Huffman table is missing or impossible", position
        if code == _ENDED:
            return f"its data ends early: {100 * done // max(total, 1)} % of a scan are there", position
        if code == _CORRUPT:
            return f"its data is corrupt from {100 * done // max(total, 1)} % of a scan on", position
        if code == _TOO_LONG:
            return "its data does not end where the picture does: part of it is corrupt", position
        return None, position

    def tables(self, selectors: list[int], shift: int, base: int) -> tuple:
        """Huffman tables of the components, stacked; KeyError where one is missing or impossible."""
        return _stacked(tuple(self.huffman[base | selector >> shift & 15] for selector in selectors), base == 0)

    def kernel(self, chosen: list[int], selectors: list[int], first: int, last: int, high: int, position: int):
        """(what a walk stopped for, offset, units done, units in all) of one scan."""
        frame = self.frame
        columns, rows, blocks = frame.units(chosen)
        where = (self.stream, position, columns * rows, self.restart)
        if first == 0 and high:
            return _dc_refinement(*where, int(blocks.sum()))
        if first == 0:
            steps = np.array([self.quantisation.get(frame.quantiser[c], 1) for c in chosen], np.int64)
            dc = self.tables(selectors, 4, 0)
            ac = _stacked((_NO_AC,), False) if frame.progressive else self.tables(selectors, 0, 16)
            return _sequential(*where, blocks, steps, *dc, *ac, not frame.progressive, frame.shift)
        lengths, symbols = (each[0] for each in self.tables(selectors, 0, 16)[:2])
        seen = frame.seen(chosen[0])
        walk = _ac_refinement if high else _ac_first
        return walk(*where, lengths, symbols, first, last, seen, columns, frame.strides[chosen[0]])

    def incomplete(self) -> str | None:
        if self.frame is None or not self.scans:
            return "it has no picture data"
        return None if self.frame.complete() else "part of its scans is missing: it would be shown coarser than it was"


_NO_AC = bytes([1] + [0] * 15) + b"\0"


@lru_cache(maxsize=32)
def _stacked(raw: tuple[bytes, ...], dc: bool) -> tuple[np.ndarray, ...]:
    """huffman_table's arrays for several components, along a first axis. Raises KeyError for an impossible table."""
    found = [huffman_table(each, dc) for each in raw]
    if None in found:
        raise KeyError("impossible table")
    return tuple(np.stack(arrays) for arrays in zip(*found, strict=True))


def _up(value: int, step: int) -> int:
    return (value + step - 1) // step


class _Frame:
    """What SOF says, and what the scans have brought so far."""

    def __init__(self, progressive: bool, body: bytes):
        self.progressive = progressive
        height, width, count = struct.unpack_from(">HHB", body, 1)
        parts = [body[6 + 3 * i : 9 + 3 * i] for i in range(count)]
        self.place = {part[0]: i for i, part in enumerate(parts)}
        self.sampling = [(part[1] >> 4, part[1] & 15) for part in parts]
        self.quantiser = [part[2] for part in parts]
        self.sound = bool(height and width and parts) and all(1 <= a <= 4 and 1 <= b <= 4 for a, b in self.sampling)
        self.shift = 0  # of the DC values in the scan at hand
        # bits still to come of each coefficient; -1: none has come
        self.lowest = [[-1] * 64 for _ in parts]
        self._seen: dict[int, np.ndarray] = {}
        if not self.sound:
            return
        across, down = max(a for a, _ in self.sampling), max(b for _, b in self.sampling)
        self.mcus = _up(width, 8 * across), _up(height, 8 * down)
        self.size = [
            (_up(_up(width * a, across), 8), _up(_up(height * b, down), 8)) for a, b in self.sampling
        ]  # blocks across and down of each component
        self.strides = [self.mcus[0] * a for a, _ in self.sampling]
        self.sound = self.mcus[0] * self.mcus[1] * sum(a * b for a, b in self.sampling) <= _MOST_BLOCKS

    def units(self, chosen: list[int]) -> tuple[int, int, np.ndarray]:
        """Units across and down of a scan of these components, and blocks of each in a unit (int64)."""
        if len(chosen) == 1:
            return *self.size[chosen[0]], np.ones(1, np.int64)
        return *self.mcus, np.array([self.sampling[c][0] * self.sampling[c][1] for c in chosen], np.int64)

    def seen(self, component: int) -> np.ndarray:
        """uint64 for each block: which coefficients are not zero so far."""
        if component not in self._seen:
            rows = self.mcus[1] * self.sampling[component][1]
            self._seen[component] = np.zeros(rows * self.strides[component], np.uint64)
        return self._seen[component]

    def take(self, chosen: list[int], first: int, last: int, high: int, low: int) -> bool:
        """Note what a scan brings; False where it does not follow from those before it."""
        self.shift = low
        if not self.progressive:
            first, last, high, low = 0, 63, 0, 0
        elif (first == 0) != (last == 0) or (first > 0 and len(chosen) > 1) or (high and high != low + 1) or low > 13:
            return False
        for component in chosen:
            for k in range(first, last + 1):
                if self.lowest[component][k] != (high if high else -1):
                    return False
                self.lowest[component][k] = low
        return True

    def complete(self) -> bool:
        return all(low == 0 for lowest in self.lowest for low in lowest)


# -- JPEG: the scans' bits. Every walk gives (what it stopped for, offset, units done, units in all).


@njit(nogil=True, cache=True, inline="always")
def _next_interval(data, at, bits, number):
    """Behind the restart marker that ends interval `number`; -1 where it is not there."""
    if bits >= 8 or at + 1 >= data.size or data[at] != 0xFF or data[at + 1] != 0xD0 + (number & 7):
        return -1
    return at + 2


@njit(nogil=True, cache=True, inline="always")
def _at_marker(data, at):
    return at >= data.size or (data[at] == 0xFF and (at + 1 >= data.size or data[at + 1] != 0))


@njit(nogil=True, cache=True, inline="always")
def _outcome(data, at, bits):
    """How a scan ends behind its last unit."""
    return 0 if bits < 8 and _at_marker(data, at) else _TOO_LONG


@njit(nogil=True, cache=True)
def _sequential(
    data,
    at,
    units,
    restart,
    blocks,
    steps,
    dc_lengths,
    dc_symbols,
    dc_starts,
    lengths,
    symbols,
    many,
    one,
    with_ac,
    shift,
):
    """Baseline scans, and the first DC scan of progressive ones. blocks: of each component in a unit; steps: of DC."""
    held, bits, intervals = np.uint64(0), 0, 0
    means = np.zeros(blocks.size, np.int64)
    for unit in range(units):
        if restart > 0 and unit > 0 and unit % restart == 0:
            behind = _next_interval(data, at, bits, intervals)
            if behind < 0:
                return _CORRUPT, at, unit, units
            at, held, bits, intervals = behind, np.uint64(0), 0, intervals + 1
            means[:] = 0
        for c in range(blocks.size):
            for _ in range(blocks[c]):
                if bits <= 32:
                    at, held, bits = refill(data, at, held, bits)
                length, size = dc_code(held, dc_lengths[c], dc_symbols[c], dc_starts[c])
                if length + size > bits:
                    return (_ENDED if _at_marker(data, at) else _CORRUPT), at, unit, units
                if size > 0:
                    value = np.int64(held << np.uint64(length) >> np.uint64(64 - size))
                    means[c] += value - (((1 << size) - 1) if value < 1 << (size - 1) else 0)
                    if abs(means[c] << shift) * steps[c] > 1024 + 2 * (steps[c] << shift):
                        return _CORRUPT, at, unit, units
                held <<= np.uint64(length + size)
                bits -= length + size
                if with_ac:
                    at, held, bits = skip_ac(data, at, held, bits, lengths[c], symbols[c], many[c], one[c])
                    if bits < 0:
                        return (_ENDED if _at_marker(data, at) else _CORRUPT), at, unit, units
    return _outcome(data, at, bits), at, units, units


@njit(nogil=True, cache=True)
def _dc_refinement(data, at, units, restart, blocks):
    """One bit for each block."""
    held, bits, intervals = np.uint64(0), 0, 0
    for unit in range(units):
        if restart > 0 and unit > 0 and unit % restart == 0:
            behind = _next_interval(data, at, bits, intervals)
            if behind < 0:
                return _CORRUPT, at, unit, units
            at, held, bits, intervals = behind, np.uint64(0), 0, intervals + 1
        if bits <= 32:
            at, held, bits = refill(data, at, held, bits)
        if bits < blocks:
            return _ENDED, at, unit, units
        held <<= np.uint64(blocks)
        bits -= blocks
    return _outcome(data, at, bits), at, units, units


@njit(nogil=True, cache=True)
def _ac_first(data, at, units, restart, lengths, symbols, first, last, seen, columns, stride):
    """First AC scan of a band; notes in `seen` which coefficients it sets."""
    held, bits, intervals, run = np.uint64(0), 0, 0, 0
    for unit in range(units):
        if restart > 0 and unit > 0 and unit % restart == 0:
            behind = _next_interval(data, at, bits, intervals)
            if behind < 0 or run > 0:
                return _CORRUPT, at, unit, units
            at, held, bits, intervals = behind, np.uint64(0), 0, intervals + 1
        if run > 0:
            run -= 1
            continue
        k, marks = first, np.uint64(0)
        while k <= last:
            if bits <= 32:
                at, held, bits = refill(data, at, held, bits)
            length, symbol = np.int64(lengths[held >> np.uint64(48)]), np.int64(symbols[held >> np.uint64(48)])
            skip, size = symbol >> 4, symbol & 15
            extra = size if size > 0 or skip == 15 else skip
            if length == 0 or length + extra > bits:
                return (_ENDED if _at_marker(data, at) and length + extra > bits else _CORRUPT), at, unit, units
            if size == 0 and skip < 15:
                run = (1 << skip) - 1
                if skip > 0:
                    run += np.int64(held << np.uint64(length) >> np.uint64(64 - skip))
                k = 64
            else:
                k += skip
                if k > last:
                    return _CORRUPT, at, unit, units
                if size > 0:
                    marks |= np.uint64(1) << np.uint64(k)
                k += 1
            held <<= np.uint64(length + extra)
            bits -= length + extra
        seen[unit // columns * stride + unit % columns] |= marks
    return (_CORRUPT if run > 0 else _outcome(data, at, bits)), at, units, units


@njit(nogil=True, cache=True)
def _ac_refinement(data, at, units, restart, lengths, symbols, first, last, seen, columns, stride):
    """A later AC scan: new coefficients, and a bit for each that is there already."""
    held, bits, intervals, run = np.uint64(0), 0, 0, 0
    for unit in range(units):
        if restart > 0 and unit > 0 and unit % restart == 0:
            behind = _next_interval(data, at, bits, intervals)
            if behind < 0 or run > 0:
                return _CORRUPT, at, unit, units
            at, held, bits, intervals = behind, np.uint64(0), 0, intervals + 1
        place = unit // columns * stride + unit % columns
        marks, new, k = seen[place], np.uint64(0), first
        while k <= last and run == 0:
            if bits <= 32:
                at, held, bits = refill(data, at, held, bits)
            length, symbol = np.int64(lengths[held >> np.uint64(48)]), np.int64(symbols[held >> np.uint64(48)])
            skip, size = symbol >> 4, symbol & 15
            extra = size if size > 0 or skip == 15 else skip
            if length == 0 or size > 1 or length + extra > bits:
                return (_ENDED if _at_marker(data, at) and length + extra > bits else _CORRUPT), at, unit, units
            if size == 0 and skip < 15:
                run = 1 << skip
                if skip > 0:
                    run += np.int64(held << np.uint64(length) >> np.uint64(64 - skip))
            held <<= np.uint64(length + extra)
            bits -= length + extra
            if run > 0:
                break
            while k <= last:  # over coefficients that are there, and `skip` zeros
                if marks >> np.uint64(k) & np.uint64(1):
                    if bits == 0:
                        at, held, bits = refill(data, at, held, bits)
                    if bits == 0:
                        return _ENDED, at, unit, units
                    held <<= np.uint64(1)
                    bits -= 1
                elif skip == 0:
                    break
                else:
                    skip -= 1
                k += 1
            if size > 0:
                if k > last:
                    return _CORRUPT, at, unit, units
                new |= np.uint64(1) << np.uint64(k)
            k += 1
        if run > 0:
            for rest in range(k, last + 1):
                if marks >> np.uint64(rest) & np.uint64(1):
                    if bits == 0:
                        at, held, bits = refill(data, at, held, bits)
                    if bits == 0:
                        return _ENDED, at, unit, units
                    held <<= np.uint64(1)
                    bits -= 1
            run -= 1
        seen[place] = marks | new
    return (_CORRUPT if run > 0 else _outcome(data, at, bits)), at, units, units
