"""S3 Inventory as a listing: Parquet and CSV as S3 writes them, and what is wrong with them in words."""

import csv
import gzip
import hashlib
import io
import json
from datetime import UTC, datetime
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.stores.base import NotFound, ObjectInfo
from tasks.stores.inventory import BadInventory, read_inventory
from tasks.stores.open import open_store

SCHEMA = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag, StorageClass"
WHEN = datetime(2024, 1, 31, 2, 0, 0, 123000, tzinfo=UTC)
OBJECTS = [
    # key, version, latest, delete marker, size, etag, class
    ("photos/a b+c%.jpg", "v1", True, False, 12, "e1", "STANDARD"),
    ("photos/日本.png", None, True, False, 0, "e2-3", "GLACIER"),
    ("photos/old.jpg", "v2", False, False, 5, "e3", "STANDARD"),
    ("photos/gone.jpg", "v3", True, True, None, "", None),
    ("other/x.jpg", "v4", True, False, 7, "e4", "STANDARD"),
    ("photos/", None, True, False, 0, "e5", "STANDARD"),
]
EXPECTED = [
    ObjectInfo("a b+c%.jpg", 12, "e1", WHEN, "v1", None),
    ObjectInfo("日本.png", 0, "e2-3", WHEN, None, "GLACIER"),
]


def csv_data(rows):
    text = io.StringIO()
    out = csv.writer(text, quoting=csv.QUOTE_ALL)
    for key, version, latest, marker, size, etag, storage in rows:
        row = ["bucket", quote_plus(key, safe="/"), version or "", str(latest).lower(), str(marker).lower()]
        out.writerow([*row, "" if size is None else size, "2024-01-31T02:00:00.123Z", etag, storage or ""])
    return gzip.compress(text.getvalue().encode())


def parquet_data(rows):
    names = "bucket key version_id is_latest is_delete_marker size last_modified_date e_tag storage_class".split()
    columns = list(zip(*[("bucket", r[0], r[1], r[2], r[3], r[4], WHEN, r[5], r[6]) for r in rows], strict=True))
    table = pa.table(dict(zip(names, map(list, columns), strict=True)))
    table = table.set_column(6, "last_modified_date", table["last_modified_date"].cast(pa.timestamp("ms", "UTC")))
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def write_inventory(store, kind, home="inv/2024-01-31T01-00Z/", data_folder="inv/data/", rows=OBJECTS, **changes):
    """Two data files and their manifest; the manifest's URL."""
    encode = csv_data if kind == "CSV" else parquet_data
    files = []
    for number, part in enumerate((rows[:3], rows[3:])):
        data = encode(part)
        key = f"{data_folder}part {number}"
        store.write(key, data)
        files.append({"key": store.prefix + key, "size": len(data), "MD5checksum": hashlib.md5(data).hexdigest()})
    manifest = {
        "sourceBucket": "bucket",
        "destinationBucket": f"arn:aws:s3:::{store.bucket}",
        "fileFormat": kind,
        "fileSchema": SCHEMA,
        "files": files,
    } | changes
    store.write(f"{home}manifest.json", json.dumps(manifest).encode())
    return f"{store.url}/{home}manifest.json"


@pytest.fixture
def folder(local_stores):
    """A downloaded inventory's place: like an S3 store as far as the writer above is concerned."""
    store, _ = local_stores
    store.prefix, store.bucket = "", "inventories"
    return store


@pytest.mark.server
@pytest.mark.parametrize("kind", ["CSV", "Parquet"])
def test_inventory_on_s3_is_a_listing(kind, moto_stores):
    home, _ = moto_stores
    url = write_inventory(home, kind)
    assert list(read_inventory(url, open_store("s3://bucket/photos"))) == EXPECTED
    assert [info.key for info in read_inventory(url, open_store("s3://bucket"), prefix="other/")] == ["other/x.jpg"]


@pytest.mark.parametrize("kind", ["CSV", "Parquet"])
def test_downloaded_inventory(kind, folder):
    url = write_inventory(folder, kind)
    assert list(read_inventory(url, open_store("s3://bucket/photos"))) == EXPECTED


def test_large_inventory_streams(folder):
    rows = [(f"photos/{i:06d}.jpg", None, True, False, i, f"{i:x}", "STANDARD") for i in range(50_000)]
    url = write_inventory(folder, "Parquet", rows=rows)
    infos = read_inventory(url, open_store("s3://bucket/photos"))
    assert next(infos).key == "000000.jpg"
    assert sum(1 for _ in infos) == 49_999


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fileFormat": "ORC"}, "ORC; only CSV and Parquet"),
        ({"sourceBucket": "elsewhere"}, "lists the bucket elsewhere, SOURCE is in bucket"),
        ({"fileSchema": "Bucket, Key, Size"}, "lacks LastModifiedDate, ETag"),
        ({"files": [{"key": "inv/data/none", "size": 1, "MD5checksum": ""}]}, "which is not there"),
        ({"fileSchema": SCHEMA.replace("VersionId, ", "")}, "line 1: 9 fields instead of 8"),
    ],
)
def test_what_is_wrong_is_said(changes, words, folder):
    url = write_inventory(folder, "CSV", **changes)
    with pytest.raises(BadInventory, match=words):
        list(read_inventory(url, open_store("s3://bucket/photos")))


def test_damaged_data_and_wrong_places(folder):
    url = write_inventory(folder, "CSV")
    with pytest.raises(BadInventory, match="is a folder; leave --inventory out"):
        list(read_inventory(url, folder))
    with pytest.raises(NotFound):
        list(read_inventory(url + ".gone", open_store("s3://bucket")))
    folder.write("inv/data/part 1", csv_data(OBJECTS))
    with pytest.raises(BadInventory, match="part 1: its MD5"):
        list(read_inventory(url, open_store("s3://bucket")))
    folder.write("inv/manifest.json", b"[]")
    with pytest.raises(BadInventory, match="no manifest.json"):
        list(read_inventory(f"{folder.url}/inv/manifest.json", open_store("s3://bucket")))
