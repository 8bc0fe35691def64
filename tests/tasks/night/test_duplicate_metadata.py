"""Duplicates keep what their own files say; nothing is written for those that say what their keeper says."""

import io

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from codec.pictures.files import open_picture
from codec.pictures.metadata import Metadata
from tasks.night import fingerprint
from tasks.night.catalog import CATALOG_SCHEMA, table_of
from tasks.night.duplicate_metadata import keep_metadata, metadata_hash, read_metadata_of, save_shard, unpacked
from tasks.night.runs import Night, store_of
from tasks.night.shards import Step, read_ahead
from tasks.recovery.rows import own_metadata
from tasks.stores.base import StoreError

LISTED = ("key", "size", "etag", "modified", "version", "storage_class")
STEP = Step("fingerprint", "tasks.night.fingerprint", "inspect_object")


def png(**texts: str) -> bytes:
    y, x = np.mgrid[0:40, 0:50]
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    out = io.BytesIO()
    Image.fromarray(np.stack([x * 5, y * 6, x + y], 2).astype(np.uint8)).save(out, "PNG", pnginfo=info)
    return out.getvalue()


FILES = {
    "a.png": png(Author="Ann", Place="Lisbon"),
    "b.png": png(Author="Ben"),
    "c.png": png(),
    "d.png": png(Author="Ann", Place="Lisbon"),
}


@pytest.fixture
def inspected(tmp_path):
    """(night, rows as the fingerprint step leaves them, by key)."""
    source = tmp_path / "source"
    source.mkdir()
    for key, data in FILES.items():
        (source / key).write_bytes(data)
    night = Night("20260101T000000Z-0000", str(source), str(tmp_path / "dest"))
    listed = sorted(store_of(str(source)).list(), key=lambda info: info.key)
    items = [{name: getattr(info, name) for name in LISTED} for info in listed]
    results = [fingerprint.inspect_object(night, *pair) for pair in read_ahead(STEP, night, items)]
    return night, {row["key"]: row for row in fingerprint.gather(night, "000000", results).to_pylist()}


def after_the_plan(rows: dict[str, dict], kind: str = "pixel") -> list[dict]:
    """a.png compressed, the others its duplicates."""
    copies = {"status": "duplicate", "keeper_key": "a.png", "duplicate_kind": kind}
    return [rows["a.png"] | {"status": "compressed"}, *(rows[key] | copies for key in ("b.png", "c.png", "d.png"))]


def test_each_duplicate_gets_its_own_back(inspected):
    night, rows = inspected
    dest = store_of(night.dest)
    decided = table_of(after_the_plan(rows), CATALOG_SCHEMA)
    kept = keep_metadata(dest, night, decided, CATALOG_SCHEMA.empty_table()).to_pylist()
    keeper = open_picture(FILES["a.png"])
    assert [row["metadata_key"] is not None for row in kept] == [False, True, False, False]
    assert kept[1]["metadata_key"].startswith(f"objects/{night.run_id}/")
    for row in kept:
        assert own_metadata(dest, row, keeper) == open_picture(FILES[row["key"]]).metadata, row["key"]
    again = keep_metadata(dest, night, decided, CATALOG_SCHEMA.empty_table()).to_pylist()
    assert again == kept, "the same objects after a crash"


def test_an_exact_duplicate_has_its_keepers(inspected):
    night, rows = inspected
    keeper = open_picture(FILES["a.png"])
    for row in after_the_plan(rows, "exact"):
        assert own_metadata(store_of(night.dest), row, keeper) == keeper.metadata


def test_keepers_of_earlier_nights_count(inspected):
    night, rows = inspected
    known = table_of([rows["a.png"] | {"status": "compressed"}], CATALOG_SCHEMA)
    decided = table_of(after_the_plan(rows)[1:], CATALOG_SCHEMA)
    kept = keep_metadata(store_of(night.dest), night, decided, known).to_pylist()
    assert [row["metadata_key"] is not None for row in kept] == [True, False, False]


def test_damage_is_an_error_with_the_key(inspected):
    night, rows = inspected
    dest = store_of(night.dest)
    decided = table_of(after_the_plan(rows), CATALOG_SCHEMA)
    row = keep_metadata(dest, night, decided, CATALOG_SCHEMA.empty_table()).to_pylist()[1]
    data = dest.read(row["metadata_key"])
    for bad in (bytes(len(data)), data[:-1] + bytes([data[-1] ^ 1]), data[::-1]):
        dest.write(row["metadata_key"], bad)
        with pytest.raises(StoreError, match=r"b\.png"):
            read_metadata_of(dest, row)
    with pytest.raises(StoreError, match="something else now"):
        own_metadata(dest, row | {"metadata_key": None}, open_picture(FILES["a.png"]))


def test_silence_takes_no_room(inspected):
    night, _ = inspected
    assert metadata_hash(Metadata()) is None
    assert save_shard(store_of(night.dest), night, "000009", [None, Metadata()]) == [{}, {}]
    assert not store_of(night.dest).exists(f"{night.folder}work/metadata/000009.bin")
    with pytest.raises(ValueError):
        unpacked(b"no zlib")


def test_a_keeper_that_is_succeeded_keeps_what_its_bitstream_said(inspected):
    """A better original takes the place of an earlier night's keeper, whose row is decided anew."""
    from codec.bitstream import container

    night, rows = inspected
    dest = store_of(night.dest)
    old = open_picture(FILES["a.png"])
    data = container.write(
        container.Bitstream("0" * 16, 500, 50, 40, "RGB", metadata=old.metadata, streams=[b"\1\2" * 10])
    )
    dest.write("objects/earlier.npi", data)
    place = {"output_key": "objects/earlier.npi", "output_offset": 0, "output_length": len(data), "metadata_key": None}
    known = table_of([rows["a.png"] | place | {"status": "compressed"}], CATALOG_SCHEMA)
    again = rows["a.png"] | place | {"status": "duplicate", "keeper_key": "b.png", "duplicate_kind": "near"}
    decided = table_of([again, rows["b.png"] | {"status": "compressed"}], CATALOG_SCHEMA)
    kept = keep_metadata(dest, night, decided, known).to_pylist()
    assert own_metadata(dest, kept[0], open_picture(FILES["b.png"])) == old.metadata
    settled = keep_metadata(dest, night, table_of(kept, CATALOG_SCHEMA), known).to_pylist()
    assert settled == kept, "what lies under objects/ stays there"
