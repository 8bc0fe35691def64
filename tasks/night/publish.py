"""The last step: one table of everything, written as report, catalog, removable.csv and page; the manifest at the end.

Here: putting the rows of the night and those carried forward together, and writing what a run leaves behind in the
order that makes it safe: everything else first, the manifest last, by a conditional write where the store has them.
What the figures mean is report/savings.py's, the page is report/page.py's, the terminal text report/summary.py's.

removable.csv is a manifest for S3 Batch Operations (format S3BatchOperations_CSV_20180820): no header, URL-encoded
keys, columns bucket, key, version id, etag. Fields to name when the job is made, also in manifest.json under
`removable`: Bucket,Key,VersionId,Ignore where every object has a version id; else Bucket,Key,Ignore,Ignore, since
Batch Operations wants a version id for all objects or for none. Amazon has no batch delete: tag the objects by the
list and let a lifecycle rule expire the tag, or call a function that deletes if the etag still matches. For a
SOURCE folder, `bucket` is its path.
"""

import csv
import hashlib
import io
from collections import Counter
from importlib import metadata
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.night.catalog import CATALOG_SCHEMA, conform, write_parts
from tasks.night.runs import write_json
from tasks.report.savings import is_removable
from tasks.report.schema import SCHEMA, SCHEMA_VERSION, STATUSES
from tasks.stores.base import Store

REMOVABLE_FORMAT = "S3BatchOperations_CSV_20180820"
VERSIONED = ("nightpress", "torch", "numpy", "pillow", "prefect", "distributed", "pyarrow")


class Incomplete(RuntimeError):
    """The rows do not add up to the listing: nothing was committed."""


def whole_state(listing: pa.Table, decided: pa.Table, catalog: pa.Table, gone: np.ndarray) -> tuple[pa.Table, pa.Table]:
    """(report rows, catalog rows), both in CATALOG_SCHEMA and sorted by key.

    listing: listing.LISTING_SCHEMA, one row each object of the run. decided: rows of this night, one each new object,
    and those of earlier nights that it decided anew. catalog: the state before; `gone`: its rows whose originals were
    removed from SOURCE and that come back from DEST: they are part of the state, not of the report. Raises Incomplete.
    """
    known = listing["known"].to_numpy()
    carried = conform(catalog.take(pa.array(known[known >= 0])), CATALOG_SCHEMA)
    carried = carried.filter(pc.invert(pc.is_in(carried["key"], value_set=decided["key"].combine_chunks())))
    there = pa.array(np.ones(len(carried), bool))
    carried = carried.set_column(carried.schema.get_field_index("at_source"), "at_source", there)
    here = pa.concat_tables([carried, conform(decided, CATALOG_SCHEMA)])
    here = here.take(pc.sort_indices(here, [("key", "ascending")]))
    if not here["key"].combine_chunks().equals(listing["key"].combine_chunks()):
        raise Incomplete(
            f"{here.num_rows} rows for {listing.num_rows} listed objects: this is a bug, nothing was committed"
        )
    away = conform(catalog.take(pa.array(gone)), CATALOG_SCHEMA)
    nowhere = pa.array(np.zeros(len(away), bool))
    away = away.set_column(away.schema.get_field_index("at_source"), "at_source", nowhere)
    state = pa.concat_tables([here, away])
    return here, state.take(pc.sort_indices(state, [("key", "ascending")]))


def check_state(state: pa.Table) -> None:
    """What must hold before a commit: every duplicate's keeper is there and no duplicate itself. Raises Incomplete."""
    duplicates = state.filter(pc.equal(state["status"], "duplicate"))
    keepers = state.filter(pc.is_in(state["status"], pa.array(["compressed", "kept"])))
    lonely = pc.invert(pc.is_in(duplicates["keeper_key"], value_set=keepers["key"].combine_chunks()))
    if pc.any(lonely).as_py():
        key = duplicates.filter(lonely)["key"][0].as_py()
        raise Incomplete(f"the duplicate {key!r} has no keeper in the state: this is a bug, nothing was committed")
    compressed = state.filter(pc.equal(state["status"], "compressed"))
    if compressed["output_key"].null_count:
        raise Incomplete("a compressed row names no bitstream: this is a bug, nothing was committed")


def report_table(rows: pa.Table) -> pa.Table:
    return rows.select(SCHEMA.names).cast(SCHEMA)


def removable(rows: pa.Table, source: Store) -> tuple[bytes, list[str]]:
    """(removable.csv, its fields): the originals whose content is safe under DEST, in order of key."""
    safe = rows.filter(is_removable(rows))
    bucket, prefix = getattr(source, "bucket", source.url), getattr(source, "prefix", "")
    versions = safe["version"].to_pylist()
    versioned = bool(versions) and all(versions)
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    for key, version, etag in zip(safe["key"].to_pylist(), versions, safe["etag"].to_pylist(), strict=True):
        writer.writerow([bucket, quote(prefix + key), version or "", etag])
    return out.getvalue().encode(), ["Bucket", "Key", "VersionId" if versioned else "Ignore", "Ignore"]


def manifest_of(
    *, run_id: str, source: str, started: str, finished: str, config: dict, rows: pa.Table, state: pa.Table, **more
) -> dict:
    """manifest.json: what the run was, what it counted, where its tables are."""
    counts = Counter(rows["status"].to_pylist())
    away = state.filter(pc.invert(state["at_source"]))
    total = lambda table, name: pc.sum(table[name]).as_py() or 0  # noqa: E731
    return {
        "run_id": run_id,
        "source": source,
        "started": started,
        "finished": finished,
        "objects": rows.num_rows,
        "source_bytes": total(rows, "source_bytes"),
        "stored_bytes": total(rows, "stored_bytes"),
        "counts": {status: counts.get(status, 0) for status in STATUSES},
        "config": config,
        "versions": versions(),
        "schema_version": SCHEMA_VERSION,
        "catalog": f"catalog/{run_id}/",
        "removed_at_source": {
            "objects": away.num_rows,
            "source_bytes": total(away, "source_bytes"),
            "stored_bytes": total(away, "stored_bytes"),
        },
        **more,
    }


def versions() -> dict[str, str]:
    found = {}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_tables(dest: Store, run_id: str, rows: pa.Table, state: pa.Table, source: Store) -> dict:
    """Report, catalog and removable.csv of a run; what the manifest says about the last."""
    write_parts(dest, f"runs/{run_id}/report/", report_table(rows))
    write_parts(dest, f"catalog/{run_id}/", state)
    data, fields = removable(rows, source)
    dest.write(f"runs/{run_id}/removable.csv", data, content_type="text/csv")
    return {
        "format": REMOVABLE_FORMAT, "fields": fields, "objects": data.count(b"\n"),
        "sha256": hashlib.sha256(data).hexdigest(),
    }  # fmt: skip


def write_page(dest: Store, run_id: str, html: str) -> None:
    dest.write(f"runs/{run_id}/report.html", html.encode(), content_type="text/html; charset=utf-8")


def commit(dest: Store, manifest: dict) -> None:
    """The manifest, last; from here on the run exists. Raises AlreadyExists where somebody else committed it."""
    conditional = {"if_absent": True} if dest.honours_conditional_write() else {}
    write_json(dest, f"runs/{manifest['run_id']}/manifest.json", manifest, **conditional)
