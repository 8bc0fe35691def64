"""Who is whose duplicate: exact, pixel, near; earlier keepers; chains; the outcome whatever the order."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from tasks.night import plan
from tasks.night.catalog import CATALOG_SCHEMA, table_of

THEN = datetime(2024, 5, 6, tzinfo=UTC)


def row(key, sha=None, pixels=None, phash="0" * 16, **more):
    return {
        "key": key, "size": 100, "source_bytes": 100, "etag": f"e-{key}", "modified": THEN, "sha256": sha or f"s-{key}",
        "pixel_sha256": pixels or f"p-{key}", "phash": phash, "width": 100, "height": 100, "format": "JPEG",
        "true_pixels": 10_000, "exif_bytes": 0, "at_source": True, **more,
    }  # fmt: skip


def yes(pairs):
    return [plan.Answer(True, 40.0)] * len(pairs)


def no(pairs):
    return [plan.Answer(False, 20.0)] * len(pairs)


def found(rows, known=(), dedup="near", confirm=yes):
    result = decided(rows, known, dedup, confirm)
    return {one["key"]: briefly(change) for one, change in zip(rows, result.changes, strict=True)}


def decided(rows, known=(), dedup="near", confirm=yes):
    return plan.find_duplicates(
        table_of(list(rows), CATALOG_SCHEMA), table_of(list(known), CATALOG_SCHEMA), dedup, confirm
    )


def briefly(change):
    return (change["keeper_key"], change["duplicate_kind"], change["hamming_distance"]) if change else None


def far(i):
    """A pHash far from those of other i."""
    return f"{int(np.random.default_rng(i).integers(0, 2**63)):016x}"


def test_exact_copies_keep_the_older_one():
    rows = [row("b", "s"), row("a", "s", modified=THEN - timedelta(1)), row("c", "s", modified=THEN - timedelta(2))]
    assert found(rows) == {"a": ("c", "exact", 0), "b": ("c", "exact", 0), "c": None}


def test_off_finds_nothing_and_exact_nothing_near():
    rows = [row("a", "s"), row("b", "s"), row("c", phash="0" * 16)]
    assert set(found(rows, dedup="off").values()) == {None}
    assert found(rows, dedup="exact") == {"a": None, "b": ("a", "exact", 0), "c": None}


def test_pixel_copies_need_equal_colours():
    rows = [row("a", pixels="p", colour_sha256="x"), row("b", pixels="p", colour_sha256="x", source_bytes=500)]
    rows += [row("c", pixels="p", phash=far(3))]
    assert found(rows, confirm=no) == {"a": ("b", "pixel", 0), "b": None, "c": None}


def test_kept_objects_have_exact_copies_only():
    rows = [row("a", "s", status="kept"), row("b", "s", status="kept"), row("c", "z", status="failed")]
    assert found(rows) == {"a": None, "b": ("a", "exact", 0), "c": None}


def test_near_copies_are_confirmed_or_not():
    rows = [row("big", width=200, true_pixels=40_000, phash="f" * 16), row("small", phash="f" * 15 + "8")]
    assert found(rows) == {"big": None, "small": ("big", "near", 3)}
    assert found(rows, confirm=no) == {"big": None, "small": None}


def test_no_chains():
    """a~b and b~c but not a~c: c is compared with its keeper alone."""
    a, b, c = "0" * 16, "0" * 15 + "7", "0" * 14 + "77"
    rows = [row("a", phash=a, source_bytes=300), row("b", phash=b, source_bytes=200), row("c", phash="f" + c[1:])]
    distance = int(c, 16).bit_count() + 4
    assert distance > plan.NEAR_DISTANCE
    assert found(rows) == {"a": None, "b": ("a", "near", 3), "c": None}


def test_copies_of_a_copy_belong_to_the_last_keeper():
    rows = [
        row("x", "s1", "p1", phash="f" * 16),
        row("x copy", "s1", "p1", phash="f" * 16),
        row("y", "s2", "p1", phash="f" * 16, source_bytes=200),
        row("z", phash="f" * 15 + "e", true_pixels=90_000),
    ]
    got = found(rows)
    assert got == {"x": ("z", "near", 1), "x copy": ("z", "near", 1), "y": ("z", "near", 1), "z": None}
    assert found(rows, confirm=no) == {"x": ("y", "pixel", 0), "x copy": ("y", "pixel", 0), "y": None, "z": None}


def test_keepers_of_earlier_nights_stay_keepers():
    known = [row("old", "s", "p", phash="f" * 16, status="compressed", output_key="objects/1")]
    rows = [row("new", "s", "p", true_pixels=90_000), row("pix", "t", "p", phash="f" * 16)]
    rows += [row("near", phash="f" * 15 + "e", source_bytes=120)]
    got = found(rows, known)
    assert got == {"new": ("old", "exact", 0), "pix": ("old", "pixel", 0), "near": ("old", "near", 1)}
    assert decided(rows, known).succeeded == {}, "hardly better is no reason to store it anew"


SMALL = {"phash": "f" * 16, "status": "compressed", "output_key": "objects/1"}
COPIES = [  # of the thumbnail, found in the same earlier night
    row("thumb copy", "s-thumb", "p-thumb", "f" * 16, status="duplicate", keeper_key="thumb", duplicate_kind="exact"),
    row("thumb q30", phash="f" * 15 + "c", status="duplicate", keeper_key="thumb", duplicate_kind="near"),
]


def test_a_better_original_of_a_later_night_takes_the_keepers_place():
    known = [row("thumb", **SMALL), *COPIES]
    rows = [row("full", phash="f" * 15 + "e", true_pixels=40_000, width=200, height=200)]
    rows += [row("thumb again", "s-thumb", "p-thumb", phash="f" * 16)]
    result = decided(rows, known)
    assert briefly(result.changes[0]) is None
    assert briefly(result.changes[1]) == ("full", "near", 1) and "the same as thumb" in result.changes[1]["reason"]
    assert {key: briefly(change) for key, change in result.succeeded.items()} == {
        "thumb": ("full", "near", 1), "thumb copy": ("full", "near", 1), "thumb q30": ("full", "near", 1),
    }  # fmt: skip
    assert "larger: 200 × 200 against 100 × 100" in result.succeeded["thumb"]["reason"]


@pytest.mark.parametrize(
    ("known", "refused"),
    [
        ([row("thumb", **SMALL | {"at_source": False})], ()),
        ([row("thumb", **SMALL), COPIES[1] | {"at_source": False}], ()),
        ([row("thumb", **SMALL), *COPIES], ("thumb q30",)),
        ([row("thumb", **SMALL)], ("thumb",)),
        ([row("thumb", **SMALL | {"status": "kept", "output_key": None})], ()),
    ],
    ids=["removed", "its copy removed", "its copy is another picture", "is another picture", "kept"],
)
def test_what_stays_with_its_keeper_although_a_better_one_came(known, refused):
    """Then both are stored: the better one is never given up for the thumbnail."""

    def confirm(pairs):
        return [plan.Answer(member["key"] not in refused, 35.0) for _, member in pairs]

    result = decided([row("full", phash="f" * 16, true_pixels=40_000)], known, confirm=confirm)
    assert result.changes == [None] and result.succeeded == {}


def test_what_only_looks_alike_is_named():
    rows = [row("a", source_bytes=300), row("b", source_bytes=200), row("c"), row("far", phash="f" * 16)]
    result = decided(rows, confirm=lambda pairs: [plan.Answer(False, 31.0, similar=True)] * len(pairs))
    assert result.changes == [None] * 4 and result.similar == [None, "a", "a", None]
    result = decided(rows, confirm=no)
    assert result.similar == [None] * 4
    known = [row("old", status="compressed", output_key="objects/1", at_source=False, source_bytes=900)]
    result = decided(rows, known, confirm=lambda pairs: [plan.Answer(False, 31.0, similar=True)] * len(pairs))
    assert result.similar == ["old", "old", "old", None]


def test_earlier_duplicates_are_no_keepers_and_compressed_ones_go_first():
    known = [
        row("copy", "s", status="duplicate", keeper_key="k"),
        row("kept", "t", status="kept"),
        row("pressed", "t", status="compressed"),
    ]
    got = found([row("a", "s", phash=far(1)), row("b", "t", phash=far(2))], known, confirm=no)
    assert got == {"a": None, "b": ("pressed", "exact", 0)}


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_rows_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    base = [int(rng.integers(0, 2**63)) for _ in range(6)]
    rows = []
    for i in range(60):
        code = base[rng.integers(6)]
        for bit in rng.integers(0, 64, rng.integers(0, 4)):
            code ^= 1 << int(bit)
        size = int(rng.integers(9))
        rows.append(row(f"{i:02d}", f"s{rng.integers(30)}", f"p{rng.integers(40)}", f"{code:016x}", source_bytes=size))
    by_sha = {one["sha256"]: one for one in rows}  # equal bytes have equal pixels and hashes
    rows = [{**by_sha[one["sha256"]], "key": one["key"], "modified": THEN} for one in rows]

    def confirm(pairs):
        return [plan.Answer(hash((a["sha256"], b["sha256"])) % 3 > 0, 35.0) for a, b in pairs]

    expected = found(rows, confirm=confirm)
    keepers = {one[0] for one in expected.values() if one}
    assert keepers and all(expected[keeper] is None for keeper in keepers)
    shuffled = [rows[i] for i in rng.permutation(len(rows))]
    assert found(shuffled, confirm=confirm) == expected


def test_look_items_group_by_keeper_and_stay_small():
    keeper = row("k")
    pairs = [(keeper, row(f"{i:03d}")) for i in range(70)] + [(row("a"), row("m"))]
    items = plan.look_items(pairs[::-1])
    assert [item["keeper"]["key"] for item in items] == ["a", "k", "k", "k"]
    assert [len(item["members"]) for item in items] == [1, 32, 32, 6]
    assert items[1]["members"][0]["key"] == "000"


def test_with_columns_sets_and_clears():
    table = table_of([row("a"), row("b", reason="old")], CATALOG_SCHEMA)
    table = plan.with_columns(table, [{"status": "kept"}, {"reason": None}])
    assert table["status"].to_pylist() == ["kept", None]
    assert table["reason"].to_pylist() == [None, None]
    assert table.schema.equals(CATALOG_SCHEMA)
    assert isinstance(table, pa.Table)


def test_another_colour_profile_is_no_near_copy():
    plain, tagged = row("a.png"), row("b.jpg", colour_sha256="c" * 64)
    assert found([plain, tagged]) == {"a.png": None, "b.jpg": None}
    assert found([plain | {"colour_sha256": "c" * 64}, tagged])["b.jpg"] is not None


def embedded(key, angle, **columns):
    """A row whose embedding points in this direction, far from all others by its hash."""
    vector = np.array([np.cos(angle), np.sin(angle)], np.float16)
    name = columns.pop("network", "net")
    return row(key, phash=far(ord(key[0])), embedding=vector.tobytes(), embedding_id=name, **columns)


def test_embeddings_propose_what_hashes_miss():
    rows = [embedded("a", 0.0, source_bytes=5000), embedded("b", 0.1), embedded("c", 1.5)]
    asked = []

    def confirm(pairs):
        asked.extend((keeper["key"], member["key"], member["by_embedding"]) for keeper, member in pairs)
        return [plan.Answer(True, 33.0, 2, [1.0, 2.0, 30.0, 40.0])] * len(pairs)

    table = table_of(rows, CATALOG_SCHEMA)
    a, b, c = plan.find_duplicates(table, CATALOG_SCHEMA.empty_table(), "near", confirm, 0.8).changes
    assert a is None and c is None and asked == [("a", "b", True)]
    assert (b["keeper_key"], b["duplicate_kind"], b["psnr_source"]) == ("a", "near", 33.0)
    assert (b["keeper_turn"], b["keeper_box"]) == (2, [1.0, 2.0, 30.0, 40.0])
    assert b["hamming_distance"] == (int(rows[0]["phash"], 16) ^ int(rows[1]["phash"], 16)).bit_count() > 7
    assert b["reason"].startswith("cut from a, mirrored, which stays: more bytes")


def test_embeddings_of_earlier_nights_count_if_the_network_is_the_same():
    known = table_of([embedded("k", 0.0), embedded("o", 0.0, network="another")], CATALOG_SCHEMA)
    known = plan.with_columns(known, [{"status": "compressed"}] * 2)
    new = table_of([embedded("a", 0.05)], CATALOG_SCHEMA)
    (change,) = plan.find_duplicates(new, known, "near", yes, 0.8).changes
    assert change["keeper_key"] == "k" and "earlier night" in change["reason"]
    apart = table_of([embedded("a", 1.0)], CATALOG_SCHEMA)
    (change,) = plan.find_duplicates(apart, known, "near", yes, 0.8).changes
    assert change is None


def test_drawings_are_proposed_by_their_gradients():
    """pHash is unsure of large flat parts; dHash and aHash together propose what both say is close."""
    hashes = {"dhash": "00ff00ff00ff00ff", "ahash": "0" * 16}
    rows = [row("a", phash=far(1), source_bytes=300, **hashes), row("b", phash=far(2), **hashes)]
    rows += [row("c", phash=far(3), **hashes | {"ahash": "f" * 16}), row("d", phash=far(4))]
    got = found(rows)
    assert got["b"][:2] == ("a", "near") and got["a"] is got["c"] is got["d"] is None
    assert set(found(rows, confirm=no).values()) == {None}
