"""The .npi file: fields come back, every damaged or hostile one is refused with the documented error."""

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec import format
from codec.bitstream import container
from codec.bitstream.container import Bitstream, read, write
from codec.errors import BadBitstream, UnknownVersion
from codec.format import edges
from codec.pictures.metadata import Metadata


def small(**changes) -> Bitstream:
    fields = {
        "model": "0123456789abcdef", "level": 437, "width": 100, "height": 60, "mode": "RGB",
        "streams": [b"\1\2" * 10],
    }  # fmt: skip
    return Bitstream(**{**fields, **changes})


def sealed(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def test_header_bytes_are_pinned():
    """Literal bytes: a change here changes the format."""
    data = write(small(metadata=Metadata.of(("icc", b"\0" * 40)), mode="RGBA", alpha=b"\xff"))
    assert data[:15].hex() == "4e504901" + "0123456789abcdef" + "0b" + "b509"
    assert data[15:17].hex() == "633b"  # width - 1, height - 1
    assert data[17:20].hex() == "2a0701"  # 42 bytes with an ICC of 40, deflated to 7; alpha 1 byte


@settings(max_examples=100, deadline=None)
@given(
    level=st.integers(0, 1000), width=st.integers(1, 5000), height=st.integers(1, 5000),
    mode=st.sampled_from(format.MODES), segment=st.sampled_from(format.SEGMENTS),
    icc=st.binary(max_size=400), text=st.lists(st.binary(max_size=40), max_size=3), alpha=st.binary(max_size=40),
    achromatic=st.booleans(),
)  # fmt: skip
def test_fields_come_back(level, width, height, mode, segment, icc, text, alpha, achromatic):
    metadata = Metadata.of(("icc", icc), *(("png", part) for part in text))
    stream = small(
        level=level, width=width, height=height, mode=mode, segment=segment, metadata=metadata,
        alpha=alpha if "A" in mode else b"", achromatic=achromatic and mode[0] == "R",
    )  # fmt: skip
    stream.streams = [bytes([i % 256]) * (8 + 2 * (i % 7)) for i in range(container.segment_count(stream))]
    back = read(write(stream))
    assert back.streams == stream.streams and back.metadata == stream.metadata and back.alpha == stream.alpha
    for name in ("model", "level", "width", "height", "mode", "segment", "achromatic"):
        assert getattr(back, name) == getattr(stream, name)


def test_segments_cover_a_side_without_slivers():
    assert edges(1, 64) == [0, 1]
    assert edges(64, 64) == [0, 64]
    assert edges(95, 64) == [0, 95]
    assert edges(96, 64) == [0, 64, 96]
    assert edges(200, 64) == [0, 64, 128, 200]
    for cells in range(1, 300):
        for segment in format.SEGMENTS:
            cuts = edges(cells, segment)
            widths = [b - a for a, b in zip(cuts, cuts[1:], strict=False)]
            assert cuts[-1] == cells and all(w == segment for w in widths[:-1])
            assert len(widths) == 1 or segment // 2 <= widths[-1] < 1.5 * segment


def test_each_truncation_and_each_flipped_bit_is_refused():
    data = write(small(metadata=Metadata.of(("exif", b"II*\0")), mode="RGBA", alpha=b"\xff"))
    for length in range(len(data)):
        with pytest.raises(BadBitstream):
            read(data[:length])
    for bit in range(8 * len(data)):
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises((BadBitstream, UnknownVersion)):
            read(bytes(bad))


def test_versions_and_other_files_are_told_apart():
    data = write(small())
    with pytest.raises(UnknownVersion, match="version 7"):
        read(data[:3] + b"\x07" + data[4:])
    for other in (b"", b"N", b"NPI", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n" + b"\0" * 50):
        with pytest.raises(BadBitstream):
            read(other)


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (13, b"\xff\xff", "reserved"),  # level and segment
        (15, b"\xff\xff\xff\xff\x7f", "exceeds"),  # width
        (15, b"\x80\x80\x80\x80\x80\x80", "not a number"),
        (15, b"\x80\x00", "needless"),
        (12, b"\x80", "reserved"),  # flags
        (12, b"\x10", "reserved"),
        (12, b"\x04", "grey"),
        (12, b"\x0a", "metadata|ends"),  # announced and not there
    ],
)
def test_sealed_nonsense_is_refused(at, value, words):
    body = bytearray(write(small())[:-4])
    body[at : at + len(value)] = value
    with pytest.raises(BadBitstream, match=words):
        read(sealed(bytes(body)))


def test_a_bomb_in_the_metadata_is_not_inflated():
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = deflater.compress(bytes(50_000_000)) + deflater.flush()
    data = write(small(metadata=Metadata.of(("icc", b"x" * 100))))[:-4]
    start = data.index(b"\1\2" * 10)
    for announced in (100, 1 << 20):
        head = data[:12] + b"\x0a" + data[13:17] + container._varint(announced) + container._varint(len(bomb))
        with pytest.raises(BadBitstream, match="not the .* bytes announced"):
            read(sealed(head + bomb + data[start:]))
    head = data[:12] + b"\x0a" + data[13:17] + container._varint(1 << 26) + container._varint(len(bomb))
    with pytest.raises(BadBitstream, match="exceeds"):
        read(sealed(head + bomb + data[start:]))


def test_more_segments_than_bytes_is_refused():
    body = write(small())[:15] + container._varint(13999) + container._varint(13999) + b"\1\2" * 10
    with pytest.raises(BadBitstream, match="too few"):
        read(sealed(body))
    with pytest.raises(BadBitstream, match="limit"):
        read(sealed(body), max_pixels=1_000_000)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120))
def test_any_bytes_end_in_a_bitstream_or_one_error(data):
    for body in (data, sealed(b"NPI\1" + data)):
        try:
            read(body)
        except (BadBitstream, UnknownVersion):
            pass


def test_metadata_that_is_none_is_refused():
    body = write(small(metadata=Metadata.of(("icc", b"x" * 100))))[:-4]
    for nonsense in (b"\x09\x01x", b"\x01\x05abc", b"\x02\x01a\x01\x01a", b"\x01\x00"):
        coder = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed = coder.compress(nonsense) + coder.flush()
        head = body[:17] + container._varint(len(nonsense)) + container._varint(len(packed))
        with pytest.raises(BadBitstream, match="metadata"):
            read(sealed(head + packed + b"\1\2" * 10))
