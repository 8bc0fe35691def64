"""The catalog, what a night knows of every object of the bucket, and the Parquet tables that it is written in.

    catalog/<run id>/part-*.parquet      the whole state after the run, read by the next night

Which runs there are is runs.py's; what goes into a row is the steps' and plan.py's.
"""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.report.schema import SCHEMA
from tasks.stores.base import NotFound, Store, StoreError

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
        ("metadata_sha256", pa.string()),  # of all that the file says (duplicate_metadata.py); null: nothing
        ("metadata_key", pa.string()),  # under DEST: of duplicates that say something other than their keeper
        ("metadata_offset", pa.int64()),
        ("metadata_length", pa.int64()),
        ("true_pixels", pa.int64()),  # less than width * height where the picture is an enlargement
        ("jpeg_quality", pa.int32()),
        ("keeper_turn", pa.int32()),  # how a near duplicate is cut from its keeper; null: it shows the whole
        ("keeper_box", pa.list_(pa.float64())),  # left, top, right, bottom in pixels of the turned keeper
        ("embedding", pa.binary()),  # float16, of length 1, by the network embedding_id; null: none was asked for
        ("embedding_id", pa.string()),
        ("at_source", pa.bool_()),  # false: removed there since; what lies under DEST still gives it back
        ("exact_only", pa.bool_()),  # sound, but more than 8-bit grey or RGB with alpha: forms without loss alone
        ("retry", pa.bool_()),  # the next night tries again although the object is unchanged
    ]
)


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


def read_parts(store: Store, folder: str, wanted: Callable[[str], bool] = bool) -> pa.Table | None:
    """The Parquet files of a folder as one table, None without any; `wanted`: by its name, whether a column is read.

    A column that only some of the files have is null in the rows of the others.
    """

    def read(key: str) -> pa.Table:
        file = pq.ParquetFile(io.BytesIO(store.read(key)))
        return file.read([column for column in file.schema_arrow.names if wanted(column)])

    keys = sorted(info.key for info in store.list(folder) if info.key.endswith(".parquet"))
    with ThreadPoolExecutor(READERS) as pool:
        tables = list(pool.map(read, keys))
    return pa.concat_tables(tables, promote_options="default") if tables else None


def read_catalog(dest: Store, manifest: dict | None) -> pa.Table:
    """The state after a run, in CATALOG_SCHEMA; empty without a run. Raises NotFound where its files are gone."""
    if manifest is None:
        return CATALOG_SCHEMA.empty_table()
    folder = manifest["catalog"].rstrip("/") + "/"
    table = read_parts(dest, folder)
    if table is None:
        raise NotFound(
            f"{dest.url}: run {manifest.get('run_id')} names the catalog {folder}, which is not there; "
            "restore it, or start over with --fresh"
        )
    return conform(table, CATALOG_SCHEMA)


def read_report(dest: Store, manifest: dict, wanted: Callable[[str], bool] = bool) -> pa.Table:
    """The report of a run, all parts; `wanted`: by its name, whether a column is read. Raises NotFound without any."""
    run_id = manifest["run_id"]
    table = read_parts(dest, f"runs/{run_id}/report/", wanted)
    if table is None:
        raise NotFound(f"runs/{run_id}/report/ under {dest.url} holds no Parquet file; the run's report was removed")
    if table.num_rows != manifest.get("objects", table.num_rows):
        raise StoreError(
            f"run {run_id}: the manifest counts {manifest['objects']:,} objects, its report has {table.num_rows:,} "
            "rows; a file of the report is missing or does not belong there"
        )
    return table


def with_storage_classes(dest: Store, manifest: dict, report: pa.Table) -> pa.Table:
    """The report with the column `storage_class` from the run's catalog, where that is still there and agrees."""
    catalog = read_parts(dest, f"catalog/{manifest['run_id']}/", ("key", "storage_class", "at_source").__contains__)
    if catalog is None or not {"storage_class", "at_source"} <= set(catalog.column_names):
        return report
    listed = catalog.filter(pc.fill_null(catalog["at_source"], True))
    if not listed["key"].combine_chunks().equals(report["key"].combine_chunks()):
        return report
    return report.append_column("storage_class", listed["storage_class"])


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
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
