"""The SQL of docs/queries.md, run by DuckDB on reports as a night writes them."""

import re
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.report.schema import SCHEMA

PAGE = (Path(__file__).parents[2] / "docs" / "queries.md").read_text("utf-8")
QUERIES = re.findall(r"```sql\n(.*?)```", PAGE, re.S)
RUNS = {"20251231T020000Z-0000": True, "20260101T020000Z-ab12": True, "20260102T020000Z-zzzz": False}  # id: complete
NEWEST = "20260101T020000Z-ab12"


def night(run: str) -> pa.Table:
    """A row of each status, two kept and given up in one folder."""
    rows = [
        {"key": "a/1.jpg", "status": "compressed", "source_bytes": 1000, "stored_bytes": 200, "output_key": "objects/p",
         "psnr": 38.0, "ssimulacra2": 82.0, "bpp": 0.5, "worst_tile": 0.9, "form": "npi", "gives_back": "seen"},
        {"key": "a/2.jpg", "status": "compressed", "source_bytes": 2000, "stored_bytes": 300, "output_key": "objects/p",
         "psnr": 31.0, "ssimulacra2": 80.1, "bpp": 0.7, "worst_tile": 0.8, "form": "npi", "gives_back": "seen",
         "not_removable": "its caption is not carried"},
        {"key": "b/copy.jpg", "status": "duplicate", "source_bytes": 900, "stored_bytes": 0, "output_key": "objects/p",
         "keeper_key": "a/1.jpg", "duplicate_kind": "near", "hamming_distance": 2, "psnr_source": 33.0},
        {"key": "c.tif", "status": "kept", "source_bytes": 700, "stored_bytes": 0, "reason": "CMYK"},
        {"key": "d/bad.jpg", "status": "failed", "source_bytes": 10, "stored_bytes": 0, "error": "BrokenPicture: cut",
         "reason": "the file is cut off"},
        {"key": "d/notes.txt", "status": "skipped", "source_bytes": 5, "stored_bytes": 0},
    ]  # fmt: skip
    empty = dict.fromkeys(SCHEMA.names) | {"first_run": run}
    return pa.Table.from_pylist([empty | row for row in rows], schema=SCHEMA)


@pytest.fixture
def connection(tmp_path):
    """DuckDB, and DEST with two complete runs and one that was never committed; `photos-pressed` stands for it."""
    for run, complete in RUNS.items():
        folder = tmp_path / "runs" / run / "report"
        folder.mkdir(parents=True)
        pq.write_table(night(run), folder / "part-0000.parquet")
        if complete:
            (folder.parent / "manifest.json").write_text("{}")
    with duckdb.connect() as connection:
        yield lambda query: connection.execute(query.replace("photos-pressed/runs/", f"{tmp_path}/runs/")).fetchall()


def test_every_query_of_the_page_answers(connection):
    assert len(QUERIES) >= 6
    for query in QUERIES:
        answer = connection(query)
        assert answer or query.startswith("CREATE"), query


def test_the_view_is_the_newest_complete_run(connection):
    connection(QUERIES[0])
    assert connection("SELECT count(*), min(first_run), max(first_run) FROM report") == [(6, NEWEST, NEWEST)]


def test_what_the_bucket_still_costs(connection):
    connection(QUERIES[0])
    after = {status: round(mb * 1e6) for status, _, _, mb in connection(QUERIES[1])}
    assert after == {"compressed": 500, "duplicate": 0, "kept": 700, "failed": 10, "skipped": 5}
