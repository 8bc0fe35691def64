"""Files that nobody encoded: each ends in the documented error or in the very picture, soon, within bounded memory.

`make bench` runs 100,000 of them (bench_hostile.py); here are some of each kind, and the constructed attacks.
"""

import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest

from codec import container
from codec.coder import decode, decode_batch
from codec.container import CodecError


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


NAMES = [
    "rgb", "rgba", "grey-alpha", "labelled", "pixel", "segments", "trellis-rgb", "trellis-segments", "contexts-rgb",
    "contexts-segments",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("resealed", [False, True])
def test_mutants_end_in_an_error_or_the_same_picture(tiny, grouped, contextual, golden, name, resealed):
    """With the checksum as it was: error or the exact picture. With a forged checksum: error or some picture."""
    data = (golden / f"{name}.npi").read_bytes()
    model = {"trellis": grouped, "contexts": contextual}.get(name.split("-")[0], tiny)
    original = np.asarray(decode(data, model=model))
    rng = np.random.default_rng(17)
    refused = 0
    for _ in range(40):
        bad = mutated(data, rng)
        if resealed:
            bad = sealed(bad[:-4])
        begun = time.perf_counter()
        try:
            shown = np.asarray(decode(bad, model=model))
        except CodecError:
            refused += 1
        else:
            assert resealed or np.array_equal(shown, original)
        assert time.perf_counter() - begun < 5
    assert refused >= 20


def test_a_flipped_symbol_bit_behind_a_forged_checksum_is_noticed(tiny, golden):
    """The symbols' own checksum: no bit of a stream can be changed unnoticed, even when the file's is made to fit."""
    data = (golden / "rgb-low.npi").read_bytes()
    start = len(data) - 4 - len(container.read(data).streams[0])
    for bit in range(8 * start, 8 * (len(data) - 4), 3):
        bad = bytearray(data[:-4])
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CodecError):
            decode(sealed(bytes(bad)), model=tiny)


def test_a_huge_picture_in_a_small_file_is_refused_before_it_costs_memory(tiny, golden):
    data = (golden / "rgb.npi").read_bytes()
    head, streams = data[:15], container.read(data).streams[0]
    for width, height in ((14000, 14000), (1 << 23, 20), (20, 1 << 23), (4000, 3000)):
        stream = container.Bitstream(tiny.identity, 500, width, height, "RGB")
        lengths = b"\4" * (container.segment_count(stream) - 1)
        body = head + container._varint(width - 1) + container._varint(height - 1) + lengths + bytes(streams)
        for padding in (0, 8 * len(lengths)):
            tracemalloc.start()
            begun = time.perf_counter()
            with pytest.raises(CodecError):
                decode(sealed(body + b"\x55" * padding), model=tiny)
            assert time.perf_counter() - begun < 1
            assert tracemalloc.get_traced_memory()[1] < 50e6
            tracemalloc.stop()


def test_escapes_without_end_are_refused(tiny, golden):
    """Streams of zeros and of ones, which decode to the longest escapes there are."""
    data = (golden / "rgb.npi").read_bytes()
    stream = container.read(data)
    for filler in (b"\0", b"\xff", b"\0\1"):
        stream.streams = [(filler * 4000)[:4000]]
        with pytest.raises(CodecError):
            decode(container.write(stream), model=tiny)


@pytest.mark.parametrize("field", ["alpha", "side"])
def test_swapped_parts_are_refused(tiny, golden, field):
    stream = container.read((golden / "rgba.npi").read_bytes())
    if field == "alpha":
        other = container.read((golden / "grey-alpha.npi").read_bytes())
        stream.alpha = bytes(other.alpha)[:-3]
    else:
        stream.width += 64
    with pytest.raises(CodecError):
        decode(container.write(stream), model=tiny)


def test_random_bytes_behind_a_valid_header(tiny, golden):
    rng = np.random.default_rng(3)
    head = (golden / "rgb.npi").read_bytes()[:17]
    for length in (0, 1, 8, 9, 30, 300, 3000):
        for _ in range(5):
            with pytest.raises(CodecError):
                decode(sealed(head + rng.bytes(length)), model=tiny)


def test_one_bad_file_in_a_batch_is_the_same_error(tiny, golden):
    good = (golden / "rgb.npi").read_bytes()
    with pytest.raises(CodecError):
        decode_batch([good, good[:-9]], model=tiny)


def test_one_bad_file_can_cost_only_itself(tiny, golden):
    good = (golden / "rgb.npi").read_bytes()
    stream = container.read(good)
    words = np.frombuffer(bytes(stream.streams[0]), np.uint16).copy()
    words[len(words) // 2 :] ^= 0x5A5A
    stream.streams[0] = words.tobytes()
    damaged = container.write(stream)  # its checksum fits: found out only in the batch
    stranger = container.read(good)
    stranger.model = "0123456789abcdef"
    files = [good, damaged, b"no picture", good, container.write(stranger)]
    outcomes = decode_batch(files, model=tiny, errors="return")
    kinds = [type(one).__name__ for one in outcomes]
    assert kinds == ["Image", "BadBitstream", "BadBitstream", "Image", "UnknownModel"]
    assert np.array_equal(np.asarray(outcomes[0]), np.asarray(outcomes[3]))
    assert np.abs(np.asarray(outcomes[0]).astype(int) - np.asarray(decode(good, model=tiny))).max() <= 1
    with pytest.raises(CodecError):
        decode_batch(files[:2], model=tiny)
    with pytest.raises(ValueError, match="'raise' or 'return'"):
        decode_batch([good], model=tiny, errors="ignore")
