"""What a night knows and where it is written down: run ids, work in progress, the catalog, resumption.

    runs/<run id>/work/settings.json     the run has begun: what was asked for, on which state it builds
    runs/<run id>/work/<stage>/<shard>.parquet   a shard of a stage is done; written after everything it describes
    runs/<run id>/work/aborted.json      too many failures: transient ones are tried again by the next attempt
    catalog/<run id>/part-*.parquet      the whole state after the run, read by the next night
    runs/<run id>/manifest.json          the run exists; written last (publish.py)

An unfinished run is taken up again when it was asked for the same things and builds on the same state; every
shard whose file is there is read instead of done. What the steps do is theirs; which step follows which is
flows/nightly.py's.
"""

import io
import json
import re
import secrets
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.rows import SCHEMA
from tasks.stores import NotFound, Store, open_store

READERS = 16  # small files read at once
PART_ROWS = 250_000  # rows in one file of the catalog or the report

CATALOG_SCHEMA = pa.schema(
    list(SCHEMA)
    + [
        ("size", pa.int64()),
        ("etag", pa.string()),
        ("modified", pa.timestamp("us", "UTC")),
        ("version", pa.string()),  # S3 version id, where the bucket has them
        ("storage_class", pa.string()),
        ("content_type", pa.string()),
        ("metadata", pa.string()),  # user metadata as JSON
        ("headers", pa.string()),  # Cache-Control and the like as JSON
        ("output_sha256", pa.string()),  # of this key's bytes under output_key (of the slice, in a pack)
        ("derived_key", pa.string()),  # the enlarged picture beside the bitstream
        ("derived_bytes", pa.int64()),
        ("colour_sha256", pa.string()),  # of what says how the pixels' numbers are to be seen (ICC and the like)
        ("exif_bytes", pa.int64()),
        ("true_pixels", pa.int64()),  # less than width * height where the picture is an enlargement
        ("jpeg_quality", pa.int32()),
        ("keeper_turn", pa.int32()),  # how a near duplicate is cut from its keeper (views.py); null: it shows the whole
        ("keeper_box", pa.list_(pa.float64())),  # left, top, right, bottom in pixels of the turned keeper
        ("embedding", pa.binary()),  # float16, of length 1, by the network embedding_id; null: none was asked for
        ("embedding_id", pa.string()),
        ("at_source", pa.bool_()),  # false: removed there since; what lies under DEST still gives it back
        ("retry", pa.bool_()),  # the next night tries again although the object is unchanged
    ]
)


@dataclass(frozen=True)
class Night:
    """What a worker needs to know of the run. Small and picklable; stores are opened where they are used."""

    run_id: str
    source: str
    dest: str
    quality: float | None = None  # one of quality, (metric, target) and budget
    metric: str | None = None  # psnr, ms-ssim
    target: float | None = None
    dedup: str = "near"
    embedding: str | None = None  # copy, classifier, autoencoder, or the key under DEST of a user's own network
    denoise: bool = True
    superres: bool = False
    min_gain: float = 10.0  # percent
    effort: int = 0  # of the encoder, 0..3
    max_pixels: int = 200_000_000
    device: str = "auto"
    model: str | None = None  # id of the codec's model, 16 hex digits

    @property
    def folder(self) -> str:
        return f"runs/{self.run_id}/"


@lru_cache(8)
def store_of(url: str) -> Store:
    """One store object per URL and process."""
    return open_store(url)


def new_run_id(now: datetime | None = None) -> str:
    """`20260101T020000Z-1f3c`: sorts by time."""
    return f"{(now or datetime.now(UTC)):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{4}")


# --- finding the run to build on, and the run to go on with ---


def latest_manifest(dest: Store, before: str | None = None) -> dict | None:
    """The newest complete run's manifest, None where there is none; `before`: of the runs older than this id."""
    for run_id in run_ids(dest):
        if before is None or run_id < before:
            manifest = read_json(dest, f"runs/{run_id}/manifest.json")
            if manifest is not None:
                return manifest
    return None


def run_ids(dest: Store) -> list[str]:
    """Runs begun under DEST, newest first, complete or not."""
    names = [prefix.rstrip("/").rpartition("/")[2] for prefix in dest.list_prefixes("runs/")]
    return sorted((name for name in names if RUN_ID.fullmatch(name)), reverse=True)


def unfinished_run(dest: Store, fingerprint: str, base: str | None) -> dict | None:
    """settings.json of the newest run without a manifest, if it is the same work on the same state, else None."""
    for run_id in run_ids(dest):
        if read_json(dest, f"runs/{run_id}/manifest.json") is not None:
            return None
        begun = read_json(dest, f"runs/{run_id}/work/settings.json")
        if begun and begun.get("fingerprint") == fingerprint and begun.get("base") == base:
            return begun
    return None


def read_json(store: Store, key: str) -> dict | None:
    """A JSON object, None where there is none (or where it is no JSON: a crash cannot leave that, a person can)."""
    try:
        content = json.loads(store.read(key))
    except (NotFound, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_json(store: Store, key: str, content: dict, **conditions) -> None:
    data = json.dumps(content, indent=1, ensure_ascii=False, default=str).encode()
    store.write(key, data, content_type="application/json", **conditions)


# --- work in progress ---


def work_key(night: Night, stage: str, shard: str) -> str:
    return f"{night.folder}work/{stage}/{shard}.parquet"


def finished_shards(dest: Store, night: Night, stage: str) -> set[str]:
    """Shards of a stage whose file is there."""
    prefix = f"{night.folder}work/{stage}/"
    keys = (info.key for info in dest.list(prefix))
    return {key[len(prefix) :].removesuffix(".parquet") for key in keys if key.endswith(".parquet")}


def read_shards(dest: Store, night: Night, stage: str, shards: Iterable[str]) -> Iterator[tuple[str, pa.Table]]:
    """(shard, table) in the order given, several being read at once."""
    shards = list(shards)
    with ThreadPoolExecutor(READERS) as pool:
        tables = pool.map(lambda shard: read_table(dest, work_key(night, stage, shard)), shards)
        yield from zip(shards, tables, strict=True)


def clear_work(dest: Store, night: Night) -> None:
    """Remove the run's work in progress; it means nothing once the manifest is there."""
    keys = [info.key for info in dest.list(f"{night.folder}work/")]
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(dest.delete, keys))


# --- tables ---


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def read_table(store: Store, key: str, columns: list[str] | None = None) -> pa.Table:
    return pq.read_table(io.BytesIO(store.read(key)), columns=columns)


def write_table(store: Store, key: str, table: pa.Table) -> None:
    store.write(key, parquet(table), content_type="application/vnd.apache.parquet")


def write_parts(store: Store, folder: str, table: pa.Table) -> None:
    """The table as `folder`part-00000.parquet, ...; one file where it is empty, so that the schema is there."""
    for number, start in enumerate(range(0, max(table.num_rows, 1), PART_ROWS)):
        write_table(store, f"{folder}part-{number:05d}.parquet", table.slice(start, PART_ROWS))


def read_catalog(dest: Store, manifest: dict | None) -> pa.Table:
    """The state after a run, in CATALOG_SCHEMA (columns that an older version did not have are null)."""
    if manifest is None:
        return CATALOG_SCHEMA.empty_table()
    folder = manifest["catalog"].rstrip("/") + "/"
    keys = sorted(info.key for info in dest.list(folder) if info.key.endswith(".parquet"))
    if not keys:
        raise NotFound(
            f"{dest.url}: run {manifest.get('run_id')} names the catalog {folder}, which is not there; "
            "restore it, or start over with --fresh"
        )
    with ThreadPoolExecutor(READERS) as pool:
        tables = list(pool.map(lambda key: fitted(read_table(dest, key), CATALOG_SCHEMA), keys))
    return pa.concat_tables(tables)


def fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table's columns in the order and types of `schema`; missing ones null, others dropped."""
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def table_of(rows: list[dict], schema: pa.Schema) -> pa.Table:
    """Rows as a table; KeyError-free: what a row lacks is null, what the schema lacks is refused."""
    unknown = {name for row in rows for name in row} - set(schema.names)
    if unknown:
        raise KeyError(f"columns {sorted(unknown)} are not in the schema; it has {schema.names}")
    return pa.Table.from_pylist(rows, schema=schema)
