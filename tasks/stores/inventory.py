"""An S3 Inventory as a listing: what S3 itself writes down about a bucket every day, instead of asking page by page.

Reads `manifest.json` and the data files it names, in Parquet or (gzipped) CSV, and yields the same ObjectInfo that
Store.list does. An inventory is up to two days old: objects that changed or vanished since are noticed when they are
read (their etag is no longer the one listed), new ones are left to a later night. ORC is refused.
Format: Amazon S3 User Guide, "Locating your inventory list".
"""

import contextlib
import csv
import gzip
import hashlib
import io
import json
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import unquote_plus

import pyarrow.parquet as pq

from tasks.stores.base import NotFound, ObjectInfo, Store, StoreError
from tasks.stores.local import LocalStore
from tasks.stores.open import open_store
from tasks.stores.s3 import S3Store, standard_is_none

COLUMNS = {  # the manifest's names for CSV -> the columns of a Parquet file
    "Bucket": "bucket",
    "Key": "key",
    "VersionId": "version_id",
    "IsLatest": "is_latest",
    "IsDeleteMarker": "is_delete_marker",
    "Size": "size",
    "LastModifiedDate": "last_modified_date",
    "ETag": "e_tag",
    "StorageClass": "storage_class",
}
NEEDED = ("key", "size", "last_modified_date", "e_tag")
BATCH = 20_000  # rows of Parquet decoded at a time


class BadInventory(StoreError):
    """The inventory cannot stand for the listing; says what is wrong with which file."""


def read_inventory(manifest_url: str, source: Store | None = None, prefix: str = "") -> Iterator[ObjectInfo]:
    """Objects of `source` (an S3 store) whose key starts with `prefix`, as the inventory knew them.

    manifest_url: `s3://.../manifest.json`, or the path of a local copy (data files then lie beside it as downloaded:
    at the path that the manifest names, beside the manifest or in `../data`). `source` None: keys are the bucket's own.
    Superseded versions and delete markers are left out. Streams one data file at a time, through a temporary file,
    checked against its MD5.
    """
    folder, _, name = manifest_url.rpartition("/")
    home = open_store(folder or ".")
    manifest = read_manifest(home, name)
    if isinstance(source, S3Store) and manifest["sourceBucket"] != source.bucket:
        raise BadInventory(
            f"{manifest_url} lists the bucket {manifest['sourceBucket']}, SOURCE is in {source.bucket}; "
            "give the inventory of that bucket"
        )
    if source is not None and not isinstance(source, S3Store):
        raise BadInventory(f"{manifest_url} lists an S3 bucket, SOURCE {source.url} is a folder; leave --inventory out")
    base = source.prefix if source is not None else ""
    rows = csv_rows if manifest["fileFormat"] == "CSV" else parquet_rows
    schema = [COLUMNS.get(column.strip()) for column in manifest["fileSchema"].split(",")]
    for data_file in manifest["files"]:
        with fetched(home, manifest, data_file) as file:
            for row in rows(file, schema, data_file["key"]):
                key = row["key"]
                if is_true(row.get("is_delete_marker")) or not is_true(row.get("is_latest"), default=True):
                    continue
                if not key.startswith(base + prefix) or len(key) == len(base):
                    continue
                yield ObjectInfo(
                    key=key[len(base) :],
                    size=int(row["size"]),
                    etag=row["e_tag"].strip('"'),
                    modified=moment(row["last_modified_date"]),
                    version=None if row.get("version_id") in (None, "", "null") else row["version_id"],
                    storage_class=standard_is_none(row.get("storage_class")),
                )


def read_manifest(home: Store, name: str) -> dict:
    where = home.place(name)
    try:
        manifest = json.loads(home.read(name))
        manifest["sourceBucket"], manifest["files"], manifest["fileSchema"], manifest["fileFormat"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInventory(f"{where} is no manifest.json of an S3 Inventory ({error!r})") from error
    if manifest["fileFormat"] not in ("CSV", "Parquet"):
        raise BadInventory(
            f"{where}: the inventory is in {manifest['fileFormat']}; only CSV and Parquet are read. "
            "Set the inventory's output format to Apache Parquet"
        )
    if manifest["fileFormat"] == "CSV":
        check_columns([COLUMNS.get(c.strip()) for c in manifest["fileSchema"].split(",")], where)
    return manifest


def check_columns(columns, where: str) -> None:
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        wanted = [name for name, column in COLUMNS.items() if column in missing]
        raise BadInventory(
            f"{where}: the inventory lacks {', '.join(wanted)} (it has {', '.join(filter(None, columns))}); "
            "add these optional fields to its configuration"
        )


def fetched(home: Store, manifest: dict, data_file: dict):
    """A data file as an open temporary file, its MD5 checked."""
    key = data_file["key"]
    if isinstance(home, LocalStore):
        bare = key.rpartition("/")[2]
        places = [(home, key), (home, bare), (open_store(f"{home.root}/../data"), bare)]
    else:
        bucket = str(manifest.get("destinationBucket") or home.url.split("/")[2]).rpartition(":")[2]
        places = [(open_store(f"s3://{bucket}"), key)]
    for store, name in places:
        with contextlib.suppress(NotFound):
            size = store.head(name).size
            break
    else:
        raise BadInventory(f"{places[0][0].place(key)}: the manifest names this data file, which is not there")
    file, digest = tempfile.TemporaryFile(), hashlib.md5(usedforsecurity=False)
    try:
        for chunk in store.chunks(name, size):
            digest.update(chunk)
            file.write(chunk)
        expected = data_file.get("MD5checksum")
        if expected and digest.hexdigest() != expected:
            raise BadInventory(f"{store.place(name)}: its MD5 is not the one in the manifest; fetch it again")
        file.seek(0)
        return file
    except BaseException:
        file.close()
        raise


def csv_rows(file, schema: list[str | None], where: str) -> Iterator[dict]:
    """Rows of a CSV data file (no header, keys URL-encoded, gzipped as S3 writes them)."""
    plain = file.read(2) != b"\x1f\x8b"
    file.seek(0)
    with io.TextIOWrapper(file if plain else gzip.GzipFile(fileobj=file), encoding="utf-8", newline="") as text:
        for number, fields in enumerate(csv.reader(text), 1):
            if len(fields) != len(schema):
                raise BadInventory(f"{where}, line {number}: {len(fields)} fields instead of {len(schema)}")
            row = {name: value for name, value in zip(schema, fields, strict=True) if name}
            row["key"] = unquote_plus(row["key"])
            if row["size"] == "" and not is_true(row.get("is_delete_marker")):
                raise BadInventory(f"{where}, line {number}: {row['key']!r} has no size")
            yield row


def parquet_rows(file, schema: list[str | None], where: str) -> Iterator[dict]:
    table = pq.ParquetFile(file)
    there = [name for name in COLUMNS.values() if name in table.schema_arrow.names]
    check_columns(there, where)
    for batch in table.iter_batches(BATCH, columns=there):
        yield from batch.to_pylist()


def is_true(value, default: bool = False) -> bool:
    if value is None or value == "":
        return default
    return value if isinstance(value, bool) else str(value).strip().lower() == "true"


def moment(value) -> datetime:
    """`2024-01-31T02:00:00.000Z` or a timestamp; UTC where it says nothing."""
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value / 1000, UTC)
    when = datetime.fromisoformat(value) if isinstance(value, str) else value
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
