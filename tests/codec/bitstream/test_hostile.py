"""Files that nobody encoded: each ends in the documented error or in the very picture, within bounded memory.

`make bench` runs 100,000 of them and times the slowest (bench_hostile.py); here are some of each kind, and the
constructed attacks.
"""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest

from codec.bitstream import container
from codec.decoder import decode, decode_batch
from codec.errors import CodecError


def sealed(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One of: a flipped bit, a random byte, a stretch of noise, zeros, a cut, a repeat, an insertion."""
    bad = bytearray(data)
    at = int(rng.integers(len(bad)))
    kind = int(rng.integers(7))
    length = int(rng.integers(1, 17))
    if kind == 0:
        bad[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        bad[at] = int(rng.integers(256))
    elif kind == 2:
        bad[at : at + length] = rng.bytes(len(bad[at : at + length]))
    elif kind == 3:
        bad[at : at + length] = bytes(len(bad[at : at + length]))
    elif kind == 4:
        del bad[at:]
    elif kind == 5:
        bad[at:at] = bad[at : at + length]
    else:
        bad[at:at] = rng.bytes(length)
    return bytes(bad)


NAMES = ["rgb", "rgba", "grey-alpha", "labelled", "pixel", "segments"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("resealed", [False, True])
def test_mutants_end_in_an_error_or_the_same_picture(small, golden, name, resealed):
    """With the checksum as it was: error or the exact picture. With a forged checksum: error or some picture."""
    data = (golden / f"{name}.npi").read_bytes()
    original = np.asarray(decode(data, model=small))
    rng = np.random.default_rng(17)
    refused = 0
    for _ in range(40):
        bad = mutated(data, rng)
        if resealed:
            bad = sealed(bad[:-4])
        try:
            shown = np.asarray(decode(bad, model=small))
        except CodecError:
            refused += 1
        else:
            assert resealed or np.array_equal(shown, original)
    assert refused >= 20


def test_a_flipped_symbol_bit_behind_a_forged_checksum_is_noticed(small, golden):
    """The symbols' own checksum: no bit of a stream can be changed unnoticed, even when the file's is made to fit."""
    data = (golden / "rgb-low.npi").read_bytes()
    start = len(data) - 4 - len(container.read(data).streams[0])
    for bit in range(8 * start, 8 * (len(data) - 4), 3):
        bad = bytearray(data[:-4])
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CodecError):
            decode(sealed(bytes(bad)), model=small)


def test_a_huge_picture_in_a_small_file_is_refused_before_it_costs_memory(small, golden):
    data = (golden / "rgb.npi").read_bytes()
    head, streams = data[:15], container.read(data).streams[0]
    for width, height in ((14000, 14000), (1 << 23, 20), (20, 1 << 23), (4000, 3000)):
        stream = container.Bitstream(small.identity, 500, width, height, "RGB")
        lengths = b"\4" * (container.segment_count(stream) - 1)
        body = head + container._varint(width - 1) + container._varint(height - 1) + lengths + bytes(streams)
        for padding in (0, 8 * len(lengths)):
            tracemalloc.start()
            with pytest.raises(CodecError):
                decode(sealed(body + b"\x55" * padding), model=small)
            assert tracemalloc.get_traced_memory()[1] < 50e6
            tracemalloc.stop()


def test_escapes_without_end_are_refused(small, golden):
    """Streams of zeros and of ones, which decode to the longest escapes there are."""
    data = (golden / "rgb.npi").read_bytes()
    stream = container.read(data)
    for filler in (b"\0", b"\xff", b"\0\1"):
        stream.streams = [(filler * 4000)[:4000]]
        with pytest.raises(CodecError):
            decode(container.write(stream), model=small)


@pytest.mark.parametrize("field", ["alpha", "side"])
def test_swapped_parts_are_refused(small, golden, field):
    stream = container.read((golden / "rgba.npi").read_bytes())
    if field == "alpha":
        other = container.read((golden / "grey-alpha.npi").read_bytes())
        stream.alpha = bytes(other.alpha)[:-3]
    else:
        stream.width += 64
    with pytest.raises(CodecError):
        decode(container.write(stream), model=small)


def test_random_bytes_behind_a_valid_header(small, golden):
    rng = np.random.default_rng(3)
    head = (golden / "rgb.npi").read_bytes()[:17]
    for length in (0, 1, 8, 9, 30, 300, 3000):
        for _ in range(5):
            with pytest.raises(CodecError):
                decode(sealed(head + rng.bytes(length)), model=small)


def test_one_bad_file_in_a_batch_is_the_same_error(small, golden):
    good = (golden / "rgb.npi").read_bytes()
    with pytest.raises(CodecError):
        decode_batch([good, good[:-9]], model=small)
