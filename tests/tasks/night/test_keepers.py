"""What becomes of duplicates once their keepers are decided."""

import pyarrow as pa
import pytest

from tasks.night import keepers
from tasks.night.catalog import CATALOG_SCHEMA, table_of
from tasks.night.plan import Answer

PLACE = {"output_key": "objects/p.pack", "output_offset": 8, "output_length": 90, "output_sha256": "aa", "codec": "1"}


def rows(*some: dict):
    return table_of([dict.fromkeys(CATALOG_SCHEMA.names) | row for row in some], CATALOG_SCHEMA)


def copy(kind: str, keeper: str = "a", **more) -> dict:
    return {
        "key": f"{kind} of {keeper}", "status": "duplicate", "keeper_key": keeper, "duplicate_kind": kind,
        "sha256": kind, "reason": "larger", "hamming_distance": 2, "psnr_source": 40.0, "keeper_turn": 3,
        "keeper_box": [0.0, 0, 1, 1],
    } | more  # fmt: skip


KEEPER = {"key": "a", "status": "compressed", "psnr_source": 36.0, "model": "m", **PLACE}


def follow(*some: dict, known=(), answers=None):
    check = None if answers is None else (lambda members, kept: answers)
    return {row["key"]: row for row in keepers.follow(rows(*some), rows(*known), check).to_pylist()}


def test_copies_take_their_keeper_s_place_and_measure():
    found = follow(KEEPER, copy("exact"), copy("near"), answers={("a", "near"): Answer(True, 33.0)})
    for row in (found["exact of a"], found["near of a"]):
        assert {name: row[name] for name in PLACE} == PLACE and row["stored_bytes"] == 0 and row["model"] == "m"
    assert (found["exact of a"]["psnr_source"], found["near of a"]["psnr_source"]) == (36.0, 33.0)
    assert follow(KEEPER, copy("near"))["near of a"]["psnr_source"] == 40.0  # compared before


def test_copies_of_what_lost_structure_are_as_little_removable_as_it_is():
    found = follow(KEEPER | {"not_removable": "a part keeps 0.2 of its structure"}, copy("exact"), copy("near"))
    assert {row["not_removable"] for row in found.values()} == {"a part keeps 0.2 of its structure"}
    assert follow(KEEPER, copy("exact"))["exact of a"]["not_removable"] is None


def test_what_differs_too_much_or_has_no_keeper_stands_for_itself():
    alone = follow(KEEPER, copy("near"), answers={("a", "near"): Answer(False, 50.0)})["near of a"]
    assert {name: alone[name] for name in keepers.STANDALONE} == keepers.STANDALONE and alone["similar_to"] == "a"
    figures = Answer(True, 29.0, ssimulacra2=61.0)
    coarse = follow(KEEPER, copy("near"), answers={("a", "near"): figures})["near of a"]
    assert (coarse["status"], coarse["psnr_source"], coarse["ssimulacra2"]) == ("duplicate", 29.0, 61.0)
    assert follow(copy("exact", "gone"))["exact of gone"]["status"] is None
    failed = {"key": "a", "status": "failed"}
    assert follow(failed, copy("exact"))["exact of a"]["status"] is None


def test_copies_of_a_kept_picture_have_no_bitstream_and_wait_with_it():
    for retry in (True, False):
        row = follow({"key": "a", "status": "kept", "retry": retry}, copy("pixel"))["pixel of a"]
        assert row["status"] == "duplicate" and row["output_key"] is None and row["retry"] is retry
        assert row["psnr_source"] is None and row["keeper_turn"] == 3


def test_tonight_s_row_goes_before_an_earlier_one():
    old = KEEPER | {"output_key": "objects/old.pack"}
    assert follow(KEEPER, copy("exact"), known=[old])["exact of a"]["output_key"] == PLACE["output_key"]
    assert follow(copy("exact"), known=[old])["exact of a"]["output_key"] == "objects/old.pack"
    assert keepers.follow(rows(KEEPER), rows()).equals(rows(KEEPER))


THUMB = KEEPER | {
    "key": "thumb",
    "output_key": "objects/old.pack",
    "quality": 70.0,
    "stored_bytes": 90,
    "first_run": "1",
}
KNOWN = [THUMB, copy("exact", "thumb", output_key="objects/old.pack"), THUMB | {"key": "other"}]
FULL = {"key": "full", "status": "compressed", "psnr_source": 41.0, "model": "m", **PLACE}


def taken_up(*planned):
    """Planned rows with `thumb` and its copy as duplicates of `full`."""
    change = {"status": "duplicate", "keeper_key": "full", "duplicate_kind": "near", "psnr_source": 38.0}
    table = rows(*planned)
    table = table.append_column("shard", pa.array([0] * len(planned), pa.int32()))
    succeeded = {"thumb": change, "exact of thumb": change}
    return keepers.reopened(table, rows(*KNOWN), succeeded, "2")


def test_a_succeeded_keeper_and_its_copies_become_duplicates_of_the_better_one():
    table = taken_up(FULL)
    assert table["key"].to_pylist() == ["exact of thumb", "full", "thumb"] and table["shard"].to_pylist() == [-1, 0, -1]
    table = keepers.follow(table.drop_columns("shard"), rows(*KNOWN), lambda members, kept: {})
    assert keepers.reverted(table, rows(*KNOWN)).equals(table)
    thumb = table.to_pylist()[2]
    assert (thumb["keeper_key"], thumb["output_key"], thumb["first_run"]) == ("full", PLACE["output_key"], "2")
    assert (thumb["stored_bytes"], thumb["quality"], thumb["psnr_source"]) == (0, None, 38.0)
    assert keepers.reopened(table, rows(*KNOWN), {}, "2") is table


@pytest.mark.parametrize("full", [FULL | {"status": "kept", "output_key": None, "retry": True}, FULL])
def test_a_keeper_stays_where_the_better_one_does_not_serve_all(full):
    """The better one was not compressed, or its bitstream gives one of the copies back too badly."""
    answers = {("full", "exact"): Answer(full is not FULL, 30.0)}
    table = keepers.follow(taken_up(full).drop_columns("shard"), rows(*KNOWN), lambda members, kept: answers)
    left = keepers.reverted(table, rows(*KNOWN))
    assert left["key"].to_pylist() == ["full"]


@pytest.mark.parametrize("gives_back, exact, pixel", [("bytes", "bytes", "pixels"), ("pixels", "pixels", "pixels"),
                                                      ("seen", "seen", "seen")])  # fmt: skip
def test_a_duplicate_gives_back_what_its_keepers_form_does_for_it(gives_back, exact, pixel):
    keeper = KEEPER | {"form": "f", "gives_back": gives_back}
    found = follow(keeper, copy("exact"), copy("pixel"), copy("near"))
    assert [found[f"{kind} of a"]["gives_back"] for kind in ("exact", "pixel", "near")] == [exact, pixel, "seen"]
    assert found["pixel of a"]["form"] == "f"
