"""Listing: folder markers, the comparison with an earlier state, orphaned duplicates, shards."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from tasks.night import listing
from tasks.night.catalog import CATALOG_SCHEMA, table_of
from tasks.stores.base import ObjectInfo

THEN = datetime(2024, 5, 6, tzinfo=UTC)


def info(key, size=100, etag=None, version=None):
    return ObjectInfo(key, size, etag or f"e-{key}", THEN, version)


def listed(*keys, selects=lambda key: True, **changed):
    return listing.list_source([info(key, **changed.get(key, {})) for key in keys], selects)


def catalog(*rows):
    full = [
        {"key": key, "size": 100, "etag": f"e-{key}", "status": "compressed", "output_key": f"objects/{key}"} | more
        for key, more in rows
    ]
    return table_of(full, CATALOG_SCHEMA)


def state_of(table):
    return dict(zip(table["key"].to_pylist(), table["known"].to_pylist(), strict=True))


def test_listing_is_sorted_and_without_folder_markers():
    infos = [info("b/x"), info("b/", size=0), info("a"), info("ü %20"), info("b/full/", size=3)]
    table = listing.list_source(infos, lambda key: key != "a")
    assert table["key"].to_pylist() == ["a", "b/full/", "b/x", "ü %20"]
    assert table["selected"].to_pylist() == [False, True, True, True]


def test_empty_source():
    table = listing.with_shards(listing.compare(listed(), CATALOG_SCHEMA.empty_table()))
    assert table.num_rows == 0
    assert table.schema.equals(listing.LISTING_SCHEMA)


def test_unchanged_is_carried_changed_and_new_are_not():
    before = catalog(("a", {}), ("b", {}), ("c", {"retry": True}), ("gone", {}), ("v", {"version": "1"}))
    table = listing.compare(listed("a", "b", "c", "new", "v", b={"etag": "other"}, v={"version": "2"}), before)
    assert state_of(table) == {"a": 0, "b": -1, "c": -1, "new": -1, "v": -1}
    assert listing.vanished(table, before).tolist() == [3]


def test_a_version_on_one_side_alone_tells_nothing():
    before = catalog(("a", {"version": "1"}))
    assert state_of(listing.compare(listed("a"), before)) == {"a": 0}


def test_filters_choose_new_work_and_keep_what_is_known():
    before = catalog(("a.jpg", {}), ("b.jpg", {}))
    changed = {"b.jpg": {"size": 7}}
    there = listed("a.jpg", "b.jpg", "c.jpg", "c.png", selects=lambda key: key.endswith(".png"), **changed)
    assert state_of(listing.compare(there, before)) == {"a.jpg": 0, "c.png": -1}


def test_max_objects_counts_new_ones():
    before = catalog(("b", {}))
    table = listing.compare(listed("a", "b", "c", "d"), before, max_objects=2)
    assert state_of(table) == {"a": -1, "b": 0, "c": -1}


@pytest.mark.parametrize(
    "keeper, there, stays",
    [
        ({"status": "compressed"}, {}, True),
        ({"status": "compressed"}, {"size": 5}, False),  # other content under the keeper's key
        ({"status": "compressed"}, None, True),  # the original was removed: its bitstream is here
        ({"status": "kept", "output_key": None}, {}, True),
        ({"status": "kept", "output_key": None}, None, False),  # the only copy is gone
    ],
)
def test_duplicates_follow_their_keeper(keeper, there, stays):
    before = catalog(("k", keeper), ("m", {"status": "duplicate", "keeper_key": "k", "output_key": None}))
    table = listed("m") if there is None else listed("k", "m", k=there)
    assert (state_of(listing.compare(table, before))["m"] >= 0) == stays


def test_removed_originals_stay_in_the_state_only_where_dest_has_them():
    before = catalog(("a", {}), ("b", {"status": "kept", "output_key": None}), ("c", {"status": "duplicate"}))
    assert listing.vanished(listing.compare(listed(), before), before).tolist() == [0, 2]


def test_shards_are_bounded_by_objects_and_bytes_and_cover_what_is_new():
    keys = [f"{i:03d}" for i in range(50)]
    sizes = {"010": {"size": listing.SHARD_BYTES}, "011": {"size": 3 * listing.SHARD_BYTES}}
    table = listing.with_shards(listing.compare(listed(*keys, **sizes), catalog(("005", {}))), 8)
    shard, size = table["shard"].to_numpy(), table["size"].to_numpy()
    assert shard[5] == -1
    new = shard[shard >= 0]
    assert (np.diff(new) >= 0).all() and set(new) == set(range(new.max() + 1))
    for number in set(new.tolist()):
        members = shard == number
        assert members.sum() <= 8
        assert members.sum() == 1 or size[members].sum() <= listing.SHARD_BYTES + 100
    assert shard[11] != shard[10] != shard[9]


def test_shard_size_grows_with_the_bucket():
    small = listing.with_shards(listing.compare(listed(*map(str, range(10))), catalog()))
    assert small["shard"].to_pylist() == [0] * 8 + [1] * 2
    table = pa.table({"shard": np.zeros(64_000, np.int32), "size": np.ones(64_000, np.int64)})
    assert np.bincount(listing.with_shards(table)["shard"].to_numpy()).max() == listing.SHARD_OBJECTS[1]
