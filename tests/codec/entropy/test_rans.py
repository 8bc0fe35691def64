"""The entropy coder: exact round trips, literal bytes, cost near the tables' own, and streams nobody wrote."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec.entropy.rans import TOTAL, Block, Decoder, EntropyError, TableSet, checksum, encode
from codec.format import PRECISION


def ideal_bits(blocks: list[Block]) -> float:
    """Bits that the tables ask for, before any overhead of states and words."""
    total = 0.0
    for symbols, numbers, tables in blocks:
        for k, number in zip(symbols.ravel().tolist(), numbers.ravel().tolist(), strict=True):
            if number:
                beyond = abs(k) - int(tables.radius[number])
                reach = tables.radius[number]
                entry = tables.starts[number] + (2 * reach + 1 if beyond > 0 else k + reach)
                total += PRECISION - np.log2(float(tables.cumulative[entry + 1] - tables.cumulative[entry]))
                total += 2 * beyond.bit_length() if beyond > 0 else 0
    return total


def gaussian_tables(count: int = 63) -> list:
    tables: list = [None]
    for scale in np.geomspace(0.1, 128, count):
        radius = int(min(255, np.ceil(4 * scale) + 2))
        mass = np.exp(-0.5 * (np.arange(-radius, radius + 1) / scale) ** 2)
        freq = np.maximum(1, np.floor(np.append(mass, 0) / mass.sum() * (TOTAL - 2 * radius - 2))).astype(np.int64)
        freq[radius] += TOTAL - freq.sum()
        tables.append(freq.astype(np.uint32))
    return tables


TABLES = TableSet(gaussian_tables())


def field(seed: int, shape=(6, 9, 11), skipped: float = 0.3, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    index = rng.integers(1, 64, shape).astype(np.uint8)
    index[rng.random(shape) < skipped] = 0
    scale = np.geomspace(0.1, 128, 63)[index.astype(int) - 1] * spread
    symbols = np.clip(np.round(rng.normal(size=shape) * scale), -32767, 32767).astype(np.int16)
    symbols[index == 0] = 0
    return symbols, index


def decoded(stream: bytes, symbols, index, states: int, check: int) -> np.ndarray:
    out = np.zeros_like(symbols)
    decoder = Decoder(stream, states)
    decoder.read(Block(out, index, TABLES))
    decoder.finish(check)
    return out


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    channels=st.integers(1, 4),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    skipped=st.sampled_from([0.0, 0.5, 1.0]),
    spread=st.sampled_from([0.0, 1.0, 30.0, 10000.0]),
    states=st.sampled_from([2, 4, 8]),
)
def test_every_symbol_comes_back(seed, channels, height, width, skipped, spread, states):
    symbols, index = field(seed, (channels, height, width), skipped, spread)
    check = checksum(symbols)
    stream = encode([Block(symbols, index, TABLES)], check, states)
    assert np.array_equal(decoded(stream, symbols, index, states, check), symbols)


def test_extreme_symbols_escape_and_return():
    symbols = np.array([0, 1, -1, 32767, -32767, 300, -300, 4, -4, 16384], np.int16).reshape(1, 2, 5)
    for table in (1, 5, 63):
        index = np.full(symbols.shape, table, np.uint8)
        stream = encode([Block(symbols, index, TABLES)], checksum(symbols), 2)
        assert np.array_equal(decoded(stream, symbols, index, 2, checksum(symbols)), symbols)


def test_bytes_are_pinned():
    """Literal bytes: a change here changes the format."""
    table = np.array([100, 3000, 10000, 3000, 200, 84], np.uint32)  # symbols -2..2, escape
    tables = TableSet([None, table])
    symbols = np.array([[[0, 1, -1, 0], [2, 0, -5, 7]]], np.int16)
    index = np.array([[[1, 1, 1, 0], [1, 1, 1, 1]]], np.uint8)
    stream = encode([Block(symbols, index, tables)], 0x12345678, 2)
    assert stream.hex() == "5ea9010068bb2b006455e03f"


def test_cost_is_the_tables_own():
    symbols, index = field(3, (64, 32, 32), 0.2)
    blocks = [Block(symbols, index, TABLES)]
    size = len(encode(blocks, checksum(symbols), 4))
    assert ideal_bits(blocks) / 8 <= size <= ideal_bits(blocks) / 8 * 1.001 + 16


def test_wrong_table_checksum_or_end_is_noticed():
    symbols, index = field(11)
    check = checksum(symbols)
    stream = encode([Block(symbols, index, TABLES)], check, 2)
    for bit in range(0, 8 * len(stream), 5):
        bad = bytearray(stream)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(EntropyError):
            out = np.zeros_like(symbols)
            decoder = Decoder(bytes(bad), 2)
            decoder.read(Block(out, index, TABLES))
            decoder.finish(checksum(out))
    with pytest.raises(EntropyError, match="checksum"):
        decoded(stream, symbols, index, 2, check ^ 1)
    other = index.copy()
    other[0, 0, index[0, 0] > 1] -= 1
    with pytest.raises(EntropyError):
        out = np.zeros_like(symbols)
        decoder = Decoder(stream, 2)
        decoder.read(Block(out, other, TABLES))
        decoder.finish(checksum(out))
    with pytest.raises(EntropyError, match="left over"):
        decoded(stream + b"\0\0", symbols, index, 2, check)
    with pytest.raises(EntropyError):
        decoded(stream[:-2], symbols, index, 2, check)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200), states=st.sampled_from([2, 4, 8]))
def test_any_bytes_end_in_symbols_or_one_error(data, states):
    _, index = field(5)
    out = np.zeros(index.shape, np.int16)
    try:
        decoder = Decoder(data, states)
        decoder.read(Block(out, index, TABLES))
        decoder.finish(checksum(out))
    except EntropyError:
        pass


def test_tables_are_checked():
    with pytest.raises(ValueError, match="table 1"):
        TableSet([None, np.array([1, 2, 3, 4])])
    with pytest.raises(ValueError, match="table 2"):
        TableSet([None, np.array([TOTAL - 1, 1]), np.array([TOTAL, 0])])
    assert TableSet([None, np.array([TOTAL - 1, 1])]).least_bits(1) == pytest.approx(1 / TOTAL / np.log(2), rel=0.01)
