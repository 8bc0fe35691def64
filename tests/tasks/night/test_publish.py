"""Putting the state together, removable.csv as S3 Batch Operations reads it, the manifest as the commit."""

import csv
import io
from urllib.parse import unquote

import numpy as np
import pytest

from tasks.night import listing, publish
from tasks.night.catalog import CATALOG_SCHEMA, conform, read_catalog, read_report, table_of
from tasks.night.runs import RUN_ID, latest_manifest, new_run_id, unfinished_run, write_json
from tasks.report.schema import SCHEMA
from tasks.stores.base import AlreadyExists
from tasks.stores.open import open_store


def row(key, status="compressed", **more):
    output = {"output_key": "objects/x.pack", "output_offset": 0, "output_length": 5} if status == "compressed" else {}
    return {
        "key": key, "status": status, "size": 10, "source_bytes": 10, "stored_bytes": 5 if output else 0,
        "etag": f"e-{key}", "at_source": True, **output, **more,
    }  # fmt: skip


def table(*rows):
    return table_of(list(rows), CATALOG_SCHEMA)


def listed(**known):
    rows = [{"key": key, "size": 10, "etag": "e", "known": place, "shard": 0} for key, place in sorted(known.items())]
    return table_of(rows, listing.LISTING_SCHEMA)


def test_whole_state_puts_carried_new_and_removed_together():
    before = table(row("b", first_run="1"), row("gone", at_source=True), row("away", status="kept"))
    rows, whole = publish.whole_state(listed(a=-1, b=0, c=-1), table(row("c"), row("a", "kept")), before, np.array([1]))
    assert rows["key"].to_pylist() == ["a", "b", "c"]
    assert whole["key"].to_pylist() == ["a", "b", "c", "gone"]
    assert whole["at_source"].to_pylist() == [True, True, True, False]
    assert rows["first_run"].to_pylist() == [None, "1", None]
    assert publish.report_table(rows).schema.equals(SCHEMA)


def test_a_row_too_few_is_not_committed():
    with pytest.raises(publish.Incomplete):
        publish.whole_state(listed(a=-1, b=-1), table(row("a")), table(), np.array([], np.int64))


def test_a_duplicate_without_its_keeper_is_not_committed():
    publish.check_state(table(row("a"), row("b", "duplicate", keeper_key="a")))
    for other in (row("a", "failed"), row("a", "duplicate", keeper_key="b")):
        with pytest.raises(publish.Incomplete, match="has no keeper"):
            publish.check_state(table(other, row("b", "duplicate", keeper_key="a")))
    with pytest.raises(publish.Incomplete):
        publish.check_state(table(row("a", output_key=None)))


def removable(url, *rows):
    data, fields = publish.removable(table(*rows), open_store(url))
    return list(csv.reader(io.StringIO(data.decode()))), fields


def test_removable_lists_what_is_safe_under_dest_with_encoded_keys():
    odd = 'ü, "quoted"/100% +.jpg'
    safe_copy = row("copy", "duplicate", output_key="objects/x.pack")
    kept_copy = row("kept copy", "duplicate")
    others = (row("k", "kept"), row("f", "failed"))
    lines, fields = removable("s3://photos/pre fix", row(odd), safe_copy, kept_copy, *others)
    assert [line[0] for line in lines] == ["photos", "photos"]
    assert [unquote(line[1]) for line in lines] == [f"pre fix/{odd}", "pre fix/copy"]
    assert lines[0][1].isascii() and "," not in lines[0][1] and " " not in lines[0][1]
    assert [line[2:] for line in lines] == [["", f"e-{odd}"], ["", "e-copy"]]
    assert fields == ["Bucket", "Key", "Ignore", "Ignore"]


def test_removable_names_versions_only_where_all_have_one():
    lines, fields = removable("s3://photos", row("a", version="1"), row("b", version="2"))
    assert [line[2] for line in lines] == ["1", "2"] and fields == ["Bucket", "Key", "VersionId", "Ignore"]
    assert removable("s3://photos", row("a", version="1"), row("b"))[1] == ["Bucket", "Key", "Ignore", "Ignore"]


def test_the_manifest_is_written_once(local_stores):
    source, dest = local_stores
    rows = table(row("a"), row("b", "duplicate", keeper_key="a"), row("c", "failed"))
    about = publish.write_tables(dest, "20260101T000000Z-0000", rows, rows, source)
    manifest = publish.manifest_of(
        run_id="20260101T000000Z-0000", source=source.url, started="s", finished="f", config={}, rows=rows, state=rows,
        removable=about,
    )  # fmt: skip
    assert manifest["objects"] == 3 and manifest["source_bytes"] == 30 and manifest["stored_bytes"] == 5
    assert manifest["counts"] == {"compressed": 1, "duplicate": 1, "kept": 0, "failed": 1, "skipped": 0}
    assert manifest["versions"]["torch"]
    publish.commit(dest, manifest)
    with pytest.raises(AlreadyExists):
        publish.commit(dest, manifest)
    assert latest_manifest(dest)["run_id"] == manifest["run_id"]
    assert read_catalog(dest, manifest).num_rows == 3
    assert read_report(dest, manifest).schema.equals(SCHEMA)


def test_unfinished_runs_are_found_by_what_they_were_asked(local_stores):
    _, dest = local_stores
    begin = {"fingerprint": "f", "base": None}
    ids = ["20260101T000000Z-0000", "20260102T000000Z-0000"]
    for run_id in ids:
        write_json(dest, f"runs/{run_id}/work/settings.json", begin | {"run_id": run_id})
    assert unfinished_run(dest, "f", None)["run_id"] == ids[1]
    assert unfinished_run(dest, "other", None) is None
    assert unfinished_run(dest, "f", ids[0]) is None
    write_json(dest, f"runs/{ids[1]}/manifest.json", {"run_id": ids[1]})
    assert unfinished_run(dest, "f", None) is None
    assert latest_manifest(dest)["run_id"] == ids[1]


def test_run_ids_sort_by_time():
    assert RUN_ID.fullmatch(new_run_id())
    assert new_run_id()[:14] >= "20250101T00000"


def test_tables_refuse_unknown_columns_and_old_catalogs_are_fitted():
    with pytest.raises(KeyError, match="nonsense"):
        table_of([{"nonsense": 1}], CATALOG_SCHEMA)
    old = table(row("a")).drop_columns(["derived_key", "at_source"])
    fitted = conform(old, CATALOG_SCHEMA)
    assert fitted.schema.equals(CATALOG_SCHEMA) and fitted["at_source"].to_pylist() == [None]
