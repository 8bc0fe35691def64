"""Evaluation: real files, means, BD-rates, merging with earlier rows, plots and references."""

import json
import xml.etree.ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage import data

from codec import metrics
from codec.evaluation.codecs import OURS, STANDARD, codec_named
from codec.evaluation.curves import at_equal_quality, bytes_at
from codec.evaluation.points import measure, thinned
from codec.evaluation.report import write_comparison
from codec.evaluation.run import evaluate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pictures")
    Image.fromarray(data.astronaut()[40:240, 120:320]).save(place / "face.png")
    (place / "below").mkdir()
    Image.fromarray(data.camera()[:176, 100:300]).save(place / "below" / "grey.png")
    Image.fromarray(data.astronaut()).convert("RGBA").save(place / "alpha.png")
    (place / "notes.txt").write_text("no picture")
    return place


@pytest.fixture(scope="module")
def standard(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    steps = []
    content = evaluate(
        folder,
        out,
        tuple(STANDARD),
        points=4,
        progress=lambda codec, done, total: steps.append((codec, done, total)),
    )
    assert [s for s in steps if s[0] == "jpeg"] == [("jpeg", n, 8) for n in range(1, 9)]
    return out, content


def test_every_codec_is_measured(standard):
    out, content = standard
    assert set(content["curves"]) == set(STANDARD)
    assert content["pictures"] == 2 and content["incomplete"] == []
    assert set(content["left_out"]) == {"alpha.png", "notes.txt"}
    rows = pq.read_table(out / "points.parquet").to_pylist()
    assert len(rows) == 2 * 4 * 7
    for row in rows:
        assert row["bpp"] == pytest.approx(8 * row["bytes"] / (row["width"] * row["height"]))
        assert 15 < row["psnr"] < 60 and 0.3 < row["ssim"] <= 1 and 0.5 < row["ms_ssim"] <= 1
        assert row["encode_seconds"] > 0 and row["decode_seconds"] > 0 and row["version"] and row["model"] is None
    for points in content["curves"].values():
        assert len(points) == 4
        for key in ("bpp", "psnr", "ms_ssim", "ssim", "ssimulacra2"):
            assert np.all(np.diff([p[key] for p in points]) > 0), key


def test_figures_are_those_of_the_file(folder):
    image = Image.open(folder / "face.png")
    row = measure(codec_named("jpeg"), "face", image, 50)
    image.save(folder.parent / "face.jpg", quality=50, subsampling="4:2:0")
    assert row["bytes"] == (folder.parent / "face.jpg").stat().st_size
    assert row["psnr"] == metrics.psnr(image, Image.open(folder.parent / "face.jpg"))


def test_bd_rates_are_against_the_mean_curves(standard):
    _, content = standard
    figures = content["bd_rate"]
    assert figures["jpeg"]["psnr vs jpeg"] == pytest.approx(0) and figures["hevc"]["ms_ssim vs hevc"] == pytest.approx(
        0
    )
    for name in ("avif", "hevc", "webp"):
        assert figures[name]["psnr vs jpeg"] < -10
    jpeg, avif = (content["curves"][name] for name in ("jpeg", "avif"))
    axes = [[p[key] for p in points] for points in (jpeg, avif) for key in ("bpp", "psnr")]
    assert figures["avif"]["psnr vs jpeg"] == pytest.approx(metrics.bd_rate(*axes))


def test_files_that_are_written(standard):
    out, content = standard
    assert json.loads((out / "curves.json").read_text()) == content
    text = (out / "curves.md").read_text()
    assert "| JPEG 4:2:0 | +0.0 % |" in text and "## HEVC 4:4:4" in text
    for metric, label in (("psnr", "PSNR (dB, RGB)"), ("ms-ssim", "MS-SSIM (dB"), ("ssimulacra2", "SSIMULACRA2 (80")):
        with Image.open(out / f"rd-{metric}.png") as plot:
            assert plot.size == (1350, 900)
        root = xml.etree.ElementTree.parse(out / f"rd-{metric}.svg").getroot()
        assert root.tag.endswith("svg")
        assert f"<!-- {label}" in (out / f"rd-{metric}.svg").read_text()  # matplotlib leaves texts as comments
        assert "bits per pixel" in (out / f"rd-{metric}.svg").read_text()


def test_one_codec_again_beside_old_rows(standard, folder, small, tmp_path):
    old, before = standard
    (tmp_path / "points.parquet").write_bytes((old / "points.parquet").read_bytes())
    content = evaluate(folder, tmp_path, [OURS], points=3, model=small)
    assert set(content["curves"]) == {*STANDARD, OURS}
    assert content["model"] == small.identity and len(content["curves"][OURS]) == 3
    assert content["curves"]["webp"] == before["curves"]["webp"]
    again = evaluate(folder, tmp_path, [OURS], points=2, model=small)  # replaces, does not add
    assert len(again["curves"][OURS]) == 2
    redrawn = evaluate(folder, tmp_path, [])
    assert redrawn["curves"] == again["curves"]


def test_rows_of_other_pictures_do_not_count(standard, folder, tmp_path):
    old, _ = standard
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "points.parquet").write_bytes((old / "points.parquet").read_bytes())
    (tmp_path / "in").mkdir()
    Image.open(folder / "face.png").save(tmp_path / "in" / "face.png")
    Image.open(folder / "face.png").save(tmp_path / "in" / "new.png")
    content = evaluate(tmp_path / "in", tmp_path / "out", ["jpeg"], points=2)
    assert set(content["curves"]) == {"jpeg"} and "webp" in content["incomplete"]


def test_bytes_at_equal_ssimulacra2_are_compared_picture_by_picture(standard):
    out, content = standard
    found = content["at_equal_ssimulacra2"]
    assert set(found) == {"avif", "jxl"}
    for one in found["avif"]["avif"]:
        assert one["mean"] is None or one["mean"] == pytest.approx(1) == one["worst"]
    text = (out / "curves.md").read_text()
    assert "Bytes at equal SSIMULACRA2 against AVIF" in text and "Bytes at equal SSIMULACRA2 against JPEG XL" in text


def test_ratios_of_made_up_curves():
    def rows(codec, factor, pictures, best):
        return [
            {"codec": codec, "picture": picture, "bytes": int(factor * size), "ssimulacra2": float(value)}
            for picture in pictures
            for size, value in ((1000, 60), (2000, 75), (4000, 85), (8000, best))
        ]

    table = pa.Table.from_pylist(rows("avif", 1, "abc", 92) + rows("mine", 0.5, "ab", 88))
    seventy, _, _, ninety = at_equal_quality(table, "avif")["mine"]
    assert seventy["mean"] == pytest.approx(0.5) == seventy["median"]
    assert (seventy["reached"], seventy["compared"]) == (2, 2)
    assert ninety == {"value": 90.0, "reached": 0, "compared": 0, "mean": None, "median": None, "worst": None}
    assert bytes_at([(1000, 60.0), (4000, 80.0)], 70) == pytest.approx(2000, rel=0.05)
    assert bytes_at([(1000, 60.0)], 60) is None and bytes_at([(1000, 60.0), (2000, 70.0)], 71) is None


def test_references_are_compared_and_drawn(standard, tmp_path):
    out, content = standard
    jpeg = content["curves"]["jpeg"]
    half = {
        "name": "Half of JPEG",
        "results": {"bpp": [p["bpp"] / 2 for p in jpeg], "psnr-rgb": [p["psnr"] for p in jpeg]},
    }
    (tmp_path / "half.json").write_text(json.dumps(half))
    (tmp_path / "other.json").write_text("[1, 2]")
    table = pq.read_table(out / "points.parquet")
    found = write_comparison(table, tmp_path, reference=tmp_path)
    assert found["published_bd_rate"]["Half of JPEG"]["psnr vs jpeg"] == pytest.approx(-50)
    assert found["published_bd_rate"]["Half of JPEG"]["ms_ssim vs jpeg"] is None
    assert "Half of JPEG" in (tmp_path / "rd-psnr.svg").read_text()
    assert "Half of JPEG" not in (tmp_path / "rd-ms-ssim.svg").read_text()
    assert "| Half of JPEG | -50.0 % |  |  |" in (tmp_path / "curves.md").read_text()


def test_refusals(folder, tmp_path):
    with pytest.raises(ValueError, match="unknown codec flif"):
        evaluate(folder, tmp_path, ["flif"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no picture to compare"):
        evaluate(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_thinned_settings_keep_both_ends():
    assert thinned((1, 2, 3, 4, 5, 6), 3) == (1, 3, 6) and thinned((1, 2), None) == (1, 2)
    assert thinned((1, 2, 3), 2) == (1, 3)
