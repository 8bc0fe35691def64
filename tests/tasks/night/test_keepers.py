"""What becomes of duplicates once their keepers are decided."""

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


def test_what_differs_too_much_or_has_no_keeper_stands_for_itself():
    for answer in (Answer(False, 50.0), Answer(True, 29.9), Answer(True, None)):
        alone = follow(KEEPER, copy("near"), answers={("a", "near"): answer})["near of a"]
        assert all(alone[name] is None for name in keepers.STANDALONE)
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
