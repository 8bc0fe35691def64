"""Bytes and money: hand-made tables whose bills can be worked out on paper."""

import math
import re

import numpy as np
import pyarrow as pa
import pytest

from tasks.report import savings
from tasks.report.schema import SCHEMA

RUN = "20260101T020000Z-ab12"
MANIFEST = {"run_id": RUN, "source": "s3://photos"}


def table(*rows: dict) -> pa.Table:
    base = dict.fromkeys(SCHEMA.names) | {"first_run": RUN, "stored_bytes": 0, "source_bytes": 0}
    return pa.Table.from_pylist([base | row for row in rows], schema=SCHEMA)


def pressed(key: str, before: int, after: int, pack: str = "objects/p", **more) -> dict:
    return {
        "key": key, "status": "compressed", "source_bytes": before, "stored_bytes": after, "format": "JPEG",
        "output_key": pack, "output_offset": 0, "output_length": after, "psnr": 38.0, "bpp": 0.5, **more,
    }  # fmt: skip


def night() -> pa.Table:
    """Two packed bitstreams, one alone, two duplicates (one of a kept keeper), kept, failed, skipped."""
    return table(
        pressed("a/1.jpg", 1000, 200),
        pressed("a/2.jpg", 2000, 300),
        pressed("b/big.png", 500_000, 100_000, "objects/big.npi", format="PNG"),
        {"key": "b/copy.jpg", "status": "duplicate", "source_bytes": 900, "output_key": "objects/p", "format": "JPEG",
         "keeper_key": "a/1.jpg", "duplicate_kind": "near", "hamming_distance": 2},
        {"key": "b/kept copy.tif", "status": "duplicate", "source_bytes": 700, "keeper_key": "c.tif", "format": "TIFF",
         "duplicate_kind": "exact"},
        {"key": "c.tif", "status": "kept", "source_bytes": 700, "format": "TIFF", "reason": "CMYK"},
        {"key": "d/bad.jpg", "status": "failed", "source_bytes": 10, "error": "BrokenPicture: cut off"},
        {"key": "d/notes.txt", "status": "skipped", "source_bytes": 5},
    )  # fmt: skip


def test_totals_add_up():
    totals = savings.totals(night())
    assert totals.objects == 8
    assert totals.counts == {"compressed": 3, "duplicate": 2, "kept": 1, "failed": 1, "skipped": 1}
    assert totals.source_bytes == sum(totals.bytes_of.values()) == 505_315
    assert totals.stored_bytes == 100_500
    assert totals.stored_objects == 2  # the pack once, the large one
    assert totals.removable_objects == 4  # compressed, and the duplicate whose keeper lies under DEST
    assert totals.removable_bytes == 503_900
    assert totals.remaining_bytes == 700 + 700 + 10 + 5
    assert totals.after_bytes == 100_500 + 1415
    assert totals.removable_bytes + totals.remaining_bytes == totals.source_bytes


def test_groups_cover_every_object_once():
    for groups in (savings.by_prefix(night()), savings.by_format(night())):
        assert sum(group.objects for group in groups) == 8
        assert sum(group.source_bytes for group in groups) == 505_315
        assert sum(group.after_bytes for group in groups) == 101_915
        assert [g.source_bytes for g in groups] == sorted((g.source_bytes for g in groups), reverse=True)
    assert {group.name for group in savings.by_prefix(night())} == {"a/", "b/", "d/", "./"}
    assert {group.name for group in savings.by_format(night())} == {"JPEG", "PNG", "TIFF", "not a picture"}


@pytest.mark.parametrize(
    "keys, names",
    [
        (["x/y/1", "x/z/2"], {"x/y/", "x/z/"}),  # below what all share
        (["x/y/1", "x/2"], {"x/y/", "x/"}),
        (["x/y/1", "x/y/2"], {"x/y/"}),  # one folder: its name
        (["1", "2"], {"./"}),
        (["a//b", "a/c"], {"a//", "a/"}),
        (["/a", "b"], {"/", "./"}),
        (["new\nline/1", "other/2"], {"new\nline/", "other/"}),
    ],
)
def test_folders(keys, names):
    groups = savings.by_prefix(table(*(pressed(key, 10, 1) for key in keys)))
    assert {group.name for group in groups} == names
    assert sum(group.objects for group in groups) == len(keys)


def test_bill_on_paper():
    gb = 2**30
    bucket = table(
        *(pressed(f"{i}.jpg", 10 * gb, gb, f"objects/{i}") for i in range(10)),
        {"key": "kept", "status": "kept", "source_bytes": 5 * gb},
    )
    bill = savings.bill(bucket, MANIFEST, region="us-east-1")
    listing = 30 * 0.005 / 1000  # one LIST a night
    assert bill.before == pytest.approx(105 * 0.023)
    assert bill.now == pytest.approx(115 * 0.023 + listing)
    assert bill.after == pytest.approx(15 * 0.023 + listing)
    assert (bill.gets, bill.puts) == (21, 10)  # everything read once, compressed ones twice
    assert bill.run_requests == pytest.approx(21 * 0.0004 / 1000 + 10 * 0.005 / 1000)
    assert bill.payback_days == pytest.approx(30 * bill.run_requests / (bill.before - bill.after))
    assert bill.now > bill.before > bill.after


def test_small_objects_lose_their_saving_in_infrequent_access():
    bucket = table(*(pressed(f"{i}.jpg", 100_000, 10_000, f"objects/{i}") for i in range(1000)))
    packed = table(*(pressed(f"{i}.jpg", 100_000, 10_000, f"objects/{i // 100}") for i in range(1000)))
    one, other = (
        savings.bill(rows, MANIFEST, region="us-east-1", storage_class="STANDARD_IA", dest_class="STANDARD_IA")
        for rows in (bucket, packed)
    )
    assert one.before == pytest.approx(1000 * 131072 / 2**30 * 0.0125)  # 100 kB bills 128 KB
    assert one.source_padding == pytest.approx(1000 * 31072 / 2**30 * 0.0125)
    assert one.after - one.listing_after == pytest.approx(one.before)  # 10 kB bills 128 KB too: nothing saved
    assert one.saved < 0 and one.payback_days is None
    assert other.after - other.listing_after == pytest.approx(1e7 / 2**30 * 0.0125)
    assert other.dest_padding == 0
    retrieval = 2 * 1000 * 100_000 / 2**30 * 0.01
    assert one.run_requests == pytest.approx(retrieval + 2000 * 0.001 / 1000 + 1000 * 0.01 / 1000)
    assert one.minimum_days == 30


def test_archive_overhead_and_tiers():
    assert savings.tiered(60_000, [[51_200, 0.023], [512_000, 0.022], [math.inf, 0.021]]) == pytest.approx(
        51_200 * 0.023 + 8_800 * 0.022
    )
    cost, bare = savings.storage([(np.array([0, 2**20]), "DEEP_ARCHIVE")], "us-east-1")
    assert bare == pytest.approx(2**20 / 2**30 * 0.00099)
    assert cost == pytest.approx((2**20 + 2 * 32768) / 2**30 * 0.00099 + 2 * 8192 / 2**30 * 0.023)
    # one class shares its tiers over both buckets
    half = np.array([40_000 * 2**30])
    together, _ = savings.storage([(half, "STANDARD"), (half, "STANDARD")], "us-east-1")
    assert together == pytest.approx(51_200 * 0.023 + 28_800 * 0.022)


def test_carried_rows_cost_no_requests_again():
    old = [pressed(f"{i}.jpg", 10**6, 10**5, first_run="20251231T020000Z-0000") for i in range(5)]
    bill = savings.bill(table(*old, pressed("new.jpg", 10**6, 10**5, "objects/q")), MANIFEST)
    assert (bill.gets, bill.puts) == (2, 1)


def test_removed_originals_count_before_and_their_bitstreams_after():
    gb = 2**30
    away = {"removed_at_source": {"objects": 4, "source_bytes": 40 * gb, "stored_bytes": 4 * gb}}
    bucket = table(pressed("a.jpg", 10 * gb, gb))
    bill = savings.bill(bucket, MANIFEST | away, region="us-east-1")
    assert bill.before == pytest.approx(50 * 0.023) and bill.removed_objects == 4
    assert bill.now - bill.listing == pytest.approx((10 + 5) * 0.023)
    assert bill.after - bill.listing_after == pytest.approx(5 * 0.023)
    assert bill.dest == pytest.approx(5 * 0.023)


def test_originals_in_several_classes():
    gb = 2**30
    bucket = table(*(pressed(f"{i}.jpg", gb, 0, f"objects/{i}") for i in range(4)))
    mixed = bucket.append_column("storage_class", pa.array([None, "STANDARD_IA", "INTELLIGENT_TIERING", "GLACIER_IR"]))
    bill = savings.bill(mixed, MANIFEST, region="us-east-1")
    assert bill.before == pytest.approx(0.023 + 0.0125 + 0.023 + 0.004)
    assert bill.originals == {"STANDARD": 1, "STANDARD_IA": 1, "INTELLIGENT_TIERING": 1, "GLACIER_IR": 1}
    assert bill.unpriced == ("INTELLIGENT_TIERING",) and bill.minimum_days == 90
    requests = 2 * (0.0004 + 0.001 + 0.0004 + 0.01) / 1000 + 4 * 0.005 / 1000 + 2 * (0.01 + 0.03)
    assert bill.run_requests == pytest.approx(requests)
    forced = savings.bill(mixed, MANIFEST, region="us-east-1", storage_class="STANDARD_IA")
    assert forced.before == pytest.approx(4 * 0.0125) and forced.storage_class == "STANDARD_IA"


def test_derived_pictures_are_objects_of_their_own():
    bucket = table(pressed("s.png", 5000, 1000 + 7000, upscaled=True) | {"output_length": 1000})
    assert sorted(savings.stored_sizes(bucket)) == [1000, 7000]
    assert savings.totals(bucket).stored_objects == 2


def test_prices_are_complete_and_dated():
    book = savings.prices()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", book["as_of"]) and book["currency"] == "USD"
    for region in book["regions"]:
        for name in book["regions"][region]["prices"]:
            rules = savings.tariff(region, name)
            assert rules["storage"][-1][0] == math.inf
            bounds = [bound for bound, _ in rules["storage"]]
            assert bounds == sorted(bounds) and all(0 < price < 1 for _, price in rules["storage"])
            assert rules["put"] > 0 and rules["get"] > 0 and rules["retrieval"] >= 0
    classes = {bill.storage_class for bill in savings.bills_by_class(night(), MANIFEST, region="us-east-1")}
    assert "STANDARD" in classes and "GLACIER_IR" in classes and "DEEP_ARCHIVE" not in classes


def test_unknown_prices_name_the_known_ones():
    with pytest.raises(savings.UnknownPrice, match="eu-west-1"):
        savings.bill(night(), MANIFEST, region="mars-north-1")
    with pytest.raises(savings.UnknownPrice, match="STANDARD_IA"):
        savings.bill(night(), MANIFEST, storage_class="GOLD")


def test_nothing_at_all():
    empty = table()
    totals, bill = savings.totals(empty), savings.bill(empty, MANIFEST)
    assert totals.after_bytes == 0 and totals.saved_share == 0
    assert bill.before == 0 and bill.now == bill.after == bill.listing and bill.payback_days is None
    assert savings.by_prefix(empty) == savings.by_format(empty) == []


def test_many_files_as_one_table():
    parts = pa.concat_tables([night().slice(i, 1) for i in range(8)])
    assert savings.totals(parts) == savings.totals(night())
    assert savings.by_prefix(parts) == savings.by_prefix(night())
    assert savings.bill(parts, MANIFEST) == savings.bill(night(), MANIFEST)


def test_forms_and_what_comes_back_are_counted():
    kept = {"status": "kept", "source_bytes": 50}
    stored = {"status": "compressed", "output_key": "o", "output_offset": 0, "output_length": 10, "stored_bytes": 10}
    rows = table(
        stored | {"key": "a", "source_bytes": 100, "form": "npi", "gives_back": "seen"},
        stored | {"key": "b", "source_bytes": 40, "form": "lossless", "gives_back": "pixels"},
        stored | {"key": "c", "source_bytes": 70, "form": "exact", "gives_back": "bytes"},
        stored | {"key": "d", "source_bytes": 30, "form": "exact", "gives_back": "bytes"},
        kept | {"key": "e"},
    )
    found = {group.name: (group.objects, group.source_bytes, group.after_bytes) for group in savings.by_form(rows)}
    assert found == {
        "npi, as seen": (1, 100, 10), "exact, to the byte": (2, 100, 20), "lossless, to the pixel": (1, 40, 10),
        "stays at SOURCE": (1, 50, 50),
    }  # fmt: skip
    assert savings.given_back(rows) == {"to the byte": (2, 100), "to the pixel": (1, 40), "as seen": (1, 100)}
