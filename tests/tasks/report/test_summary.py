"""The words of the report: figures, proofs, causes, the terminal text; keys and messages are hostile."""

import math

import pyarrow as pa
import pytest

from tasks.report import summary
from tasks.report.schema import SCHEMA

RUN = "20260101T020000Z-ab12"
MANIFEST = {
    "run_id": RUN, "source": "s3://photos", "started": "2026-01-01T02:00:00+00:00",
    "finished": "2026-01-01T03:04:05+00:00", "config": {"target": "ms-ssim=0.98", "budget": None},
}  # fmt: skip


def table(*rows: dict) -> pa.Table:
    base = dict.fromkeys(SCHEMA.names) | {"first_run": RUN, "stored_bytes": 0, "source_bytes": 0}
    return pa.Table.from_pylist([base | row for row in rows], schema=SCHEMA)


def pressed(key: str, before: int = 1000, after: int = 100, psnr: float = 38.0, ms_ssim: float = 0.98) -> dict:
    return {
        "key": key, "status": "compressed", "source_bytes": before, "stored_bytes": after, "output_key": "objects/p",
        "output_offset": 0, "output_length": after, "psnr": psnr, "ms_ssim": ms_ssim, "bpp": 0.5,
    }  # fmt: skip


def test_how_long_it_took():
    assert summary.took(MANIFEST) == "1 h 04 min"
    assert summary.took({"started": "yesterday"}) == ""


def test_quality_measures_the_compressed_only():
    near = {"key": "n", "status": "duplicate", "duplicate_kind": "near", "psnr_source": 31.5, "keeper_key": "a"}
    rows = [pressed(str(i), psnr=30.0 + i, ms_ssim=0.9 + i / 1000) for i in range(11)]
    quality = summary.quality(table(*rows, pressed("same", psnr=math.inf, ms_ssim=1.0), near))
    assert quality.measured == 12 and quality.exact == 1
    assert (quality.psnr_median, quality.psnr_worst) == (35.0, 30.0)
    assert quality.ms_ssim_worst == pytest.approx(0.9)
    assert (quality.restored_worst, quality.restored_worst_key) == (31.5, "n")
    nothing = summary.quality(table({"key": "x", "status": "failed"}))
    assert nothing.psnr_median is None and summary.quality_words(nothing) == []


def test_proofs_hold_and_break():
    copy = {"key": "c", "status": "duplicate", "keeper_key": "a", "output_key": "objects/p", "duplicate_kind": "exact"}
    assert all(holds for holds, _ in summary.proofs(table(pressed("a"), copy)))
    for broken in (
        table(pressed("a") | {"psnr": None}),  # never measured
        table(pressed("a") | {"output_key": None}),  # nowhere
        table(copy),  # keeper not there
        table(pressed("a"), copy, copy | {"key": "d", "keeper_key": "c"}),  # keeper is itself a duplicate
        table(pressed("a"), {"key": "x", "status": "vanished"}),
    ):
        assert not all(holds for holds, _ in summary.proofs(broken))
    assert all(holds for holds, _ in summary.proofs(table()))
    away = {"removed_at_source": {"objects": 1, "source_bytes": 5000, "stored_bytes": 400}}
    removed = summary.proofs(table(copy), away)  # the keeper's original was removed, its bitstream is there
    assert all(holds for holds, _ in removed) and "5.0 kB" in removed[-2][1]
    assert not all(holds for holds, _ in summary.proofs(table(copy | {"output_key": None}), away))


def test_causes_are_grouped_without_their_figures():
    rows = [
        {"key": f"k{i}", "status": "kept", "source_bytes": 10, "reason": f"gain {i}.5 % is below 10 %"}
        for i in range(5)
    ] + [
        {"key": "p/q", "status": "kept", "source_bytes": 1, "reason": "'p/q' is CMYK"},
        {"key": "p/r", "status": "kept", "source_bytes": 1, "reason": "'p/r' is CMYK"},
        {"key": "f", "status": "failed", "error": "BrokenPicture: cut off after 10 bytes"},
        {"key": "g", "status": "failed", "error": "AccessDenied: cut off after 10 bytes"},
        {"key": "h", "status": "failed"},
    ]
    kept = summary.causes(table(*rows), "kept")
    assert [(cause.objects, cause.source_bytes) for cause in kept] == [(5, 50), (2, 2)]
    assert kept[0].examples == ("k0", "k1", "k2") and kept[0].text == "gain 0.5 % is below 10 %"
    failed = summary.causes(table(*rows), "failed")
    assert [cause.error for cause in failed] == ["AccessDenied", "BrokenPicture", None]
    assert failed[2].text == "no reason recorded"


def test_largest_savings_in_order():
    rows = [pressed(f"{i:02d}", before=1000 + 10 * (i // 2)) for i in range(30)]
    rows.append({"key": "kept", "status": "kept", "source_bytes": 10**9})
    top = summary.largest(table(*rows), 4)
    assert [row["key"] for row in top] == ["28", "29", "26", "27"]
    assert top[0] == {
        "key": "28", "status": "compressed", "source_bytes": 1140, "stored_bytes": 100, "saved_bytes": 1040,
    }  # fmt: skip
    assert summary.largest(table(), 10) == []


def test_text_tells_it_all():
    rows = [pressed(f"a/{i}.jpg", 10**6, 10**5) for i in range(1200)]
    rows.append({"key": "evil\x1b[2J.jpg", "status": "failed", "source_bytes": 7, "reason": "cut \x1b[31moff",
                 "error": "BrokenPicture: x"})  # fmt: skip
    text = summary.text(table(*rows), MANIFEST, region="eu-central-1")
    for words in ("1.2 GB in 1,201 objects", "120 MB", "MS-SSIM", "eu-central-1", "after removing 1,200 originals",
                  "1,200 of 1,200 bitstreams", "now: originals still there too", "1 h 04 min"):  # fmt: skip
        assert words in text, words
    assert "\x1b" not in text and text.endswith("\n")
    assert max(map(len, text.splitlines())) <= 120
    assert "0 objects" in summary.text(table(), MANIFEST)


def test_similar_pictures_and_what_removing_them_by_hand_frees():
    rows = [pressed("a"), pressed("b", after=300) | {"similar_to": "a"}]
    rows += [{"key": "c", "status": "kept", "source_bytes": 5000, "similar_to": "a", "reason": "r"}]
    assert summary.similar_rows(table(*rows))[1] == 5300
    text = summary.text(table(*rows), MANIFEST)
    assert "2 pictures look much like another one" in text and "could free 5.3 kB by hand" in text
    assert "1 picture looks" in summary.text(table(*rows[:2]), MANIFEST)
    assert "similar:" not in summary.text(table(rows[0]), MANIFEST)


def test_the_aim_in_words():
    assert summary.target_words({"target": "psnr=38"}) == "PSNR at least 38 dB"
    assert summary.target_words({"target": "ms-ssim=0.98", "quality": None}) == "MS-SSIM at least 0.98"
    assert summary.target_words({"quality": 40}) == "quality 40"
    assert summary.target_words({}) == ""
