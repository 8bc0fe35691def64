"""Compress step on folders: targets, gains, denoising, enlarging, packs; and sharing a budget."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageDraw

from codec import decode, info, metrics
from codec.metrics import local_loss
from codec.pictures.files import open_picture, pixel_sha256
from codec.pictures.metadata import Metadata
from tasks.forms.stored import file_of
from tasks.night import budget, compress, fingerprint, rate_points
from tasks.night.catalog import CATALOG_SCHEMA, table_of
from tasks.night.model_files import codec_model
from tasks.night.runs import Night, store_of
from tasks.night.shards import Step, read_ahead

RUN = "20260101T000000Z-0000"
LISTED = ("key", "size", "etag", "modified", "version", "storage_class")
LOOK = Step("fingerprint", "tasks.night.fingerprint", "inspect_object")
STEP = Step("compress", "tasks.night.compress", "compress_object")


def saved(image, format, **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def photograph():
    return Image.open(Path(skimage.data.__file__).with_name("chelsea.png")).convert("RGB").crop((60, 40, 300, 240))


@pytest.fixture
def press(tmp_path):
    """press({name: data}, options) -> (rows, dest) of one shard."""

    def many(files, change=lambda rows, night: None, **options):
        source = tmp_path / "source"
        source.mkdir(exist_ok=True)
        for name, data in files.items():
            (source / name).write_bytes(data)
        options = {"model": codec_model().identity, "device": "cpu", **options}
        night = Night(RUN, str(source), str(tmp_path / "dest"), **options)
        listed = sorted((info for info in store_of(str(source)).list() if info.key in files), key=lambda i: i.key)
        items = [{name: getattr(i, name) for name in LISTED} for i in listed]
        looked = [fingerprint.inspect_object(night, *pair).row for pair in read_ahead(LOOK, night, items)]
        rows = table_of(looked, CATALOG_SCHEMA).to_pylist()
        change(rows, night)
        results = [compress.compress_object(night, *pair) for pair in read_ahead(STEP, night, rows)]
        return compress.gather(night, "000003", results).to_pylist(), store_of(night.dest), night

    return many


def bitstream(row, dest):
    return dest.read_range(row["output_key"], row["output_offset"], row["output_length"])


def test_a_target_is_met_from_above_by_what_was_stored(press, photograph):
    (row,), dest, _ = press({"a.png": saved(photograph, "PNG")}, metric="psnr", target=37.0)
    assert row["status"] == "compressed" and row["reason"] is None
    data = bitstream(row, dest)
    assert metrics.psnr(photograph, decode(data)) == pytest.approx(row["psnr"])
    assert 37.0 <= row["psnr"] <= 37.1 and row["psnr_source"] == row["psnr"]
    assert row["stored_bytes"] == row["output_length"] == len(data)
    assert row["bpp"] == pytest.approx(8 * len(data) / (240 * 200))
    assert (row["quality"], row["model"]) == (info(data)["quality"], codec_model().identity) and row["codec"] == "npi/1"


def test_ms_ssim_and_small_pictures(press, photograph):
    files = {"large.png": saved(photograph, "PNG"), "small.png": saved(photograph.crop((0, 0, 150, 200)), "PNG")}
    (large, small), _, _ = press(files, metric="ms-ssim", target=0.99)
    assert 0.99 <= large["ms_ssim"] <= 1 - (1 - 0.99) * 10**-0.01 + 1e-4
    assert small["ms_ssim"] is None
    assert small["status"] == "kept" or 40.0 <= small["psnr"] <= 40.1


def test_ssimulacra2_is_met_and_reported(press, photograph):
    files = {"large.png": saved(photograph, "PNG"), "strip.png": saved(photograph.crop((0, 0, 150, 7)), "PNG")}
    (large, strip), _, _ = press(files, metric="ssimulacra2", target=80.0)
    assert large["reason"] is None and 80.0 <= large["ssimulacra2"] <= 80.5
    assert local_loss.LEAST_SHARE <= large["worst_tile"] <= 1 and large["not_removable"] is None
    assert strip["ssimulacra2"] is None
    assert strip["psnr"] >= 40.0  # by PSNR, or without loss


def test_a_part_that_would_lose_its_structure_is_coded_finer(press, photograph):
    (row,), _, _ = press({"a.png": saved(photograph, "PNG")}, metric="psnr", target=30.0)
    assert row["status"] == "compressed" and "finer than the target asks" in row["reason"]
    assert row["psnr"] > 30.1 and row["worst_tile"] >= local_loss.LEAST_SHARE and row["not_removable"] is None


def test_what_lost_structure_at_a_given_quality_is_not_removable(press, photograph):
    (low,), _, _ = press({"a.png": saved(photograph, "PNG")}, quality=15.0)
    assert low["status"] == "compressed" and low["worst_tile"] < local_loss.LEAST_SHARE
    assert "keeps 0." in low["not_removable"] or "flat colour" in low["not_removable"]


def test_quality_is_taken_as_it_is(press, photograph):
    (row,), _, _ = press({"a.png": saved(photograph, "PNG")}, quality=37.0)
    assert row["quality"] == 37.0 and row["status"] == "compressed"


def test_small_gains_and_missed_targets_are_kept(press, photograph):
    files = {"a.jpg": saved(photograph, "JPEG", quality=20), "b.png": saved(photograph, "PNG")}
    (jpeg, png), dest, _ = press(files, metric="psnr", target=60.0, min_gain=50.0)
    assert png["status"] == "kept" and "target" in png["reason"]
    assert jpeg["status"] == "kept"
    assert (png["stored_bytes"], png["output_key"], png["quality"], png["psnr"]) == (0, None, None, None)
    assert (png["form"], png["gives_back"]) == (None, None)
    assert not list(dest.list("objects/"))
    (jpeg, _), _, _ = press(files, quality=80.0, min_gain=20.0)
    assert jpeg["status"] == "kept" and "--min-gain asks for 20 %" in jpeg["reason"]


def given_back(row, dest):
    return file_of(bitstream(row, dest))


def test_what_misses_its_target_is_stored_without_loss_where_that_gains(press, photograph):
    files = {"a.jpg": saved(photograph, "JPEG", quality=60), "b.png": saved(photograph, "PNG")}
    (jpeg, png), dest, _ = press(files, metric="psnr", target=60.0, min_gain=3.0)
    assert (jpeg["form"], jpeg["gives_back"], jpeg["status"]) == ("jxl-jpeg", "bytes", "compressed")
    assert "without loss" in jpeg["reason"] and "target" in jpeg["reason"]
    assert given_back(jpeg, dest) == files["a.jpg"]
    assert (png["form"], png["gives_back"]) == ("lossless", "pixels")
    assert png["psnr"] == png["psnr_source"] == float("inf") and png["worst_tile"] == 1.0
    assert pixel_sha256(open_picture(given_back(png, dest)).image) == png["pixel_sha256"]


def test_what_no_lossy_form_carries_comes_back_to_the_byte(press, photograph):
    deep = (np.asarray(photograph.convert("L")).astype(np.uint16) << 4) | 5
    labels = np.kron(np.arange(60).reshape(6, 10) % 7, np.ones((30, 30))).astype(np.uint8)
    files = {
        "deep.png": saved(Image.fromarray(deep), "PNG", compress_level=1), "labels.bmp": saved(Image.fromarray(labels),
        "BMP"), "motion.jpg": saved(photograph, "JPEG") + b"\0\0\0\x18ftypmp42" + bytes(900),
        "raw.tif": saved(Image.fromarray(deep), "TIFF"),
    }  # fmt: skip
    rows, dest, _ = press(files)
    by_key = {row["key"]: row for row in rows}
    assert {key: row["form"] for key, row in by_key.items()} == {
        "deep.png": "lossless", "labels.bmp": "lossless", "motion.jpg": "jxl-jpeg", "raw.tif": "exact",
    }  # fmt: skip
    for key, row in by_key.items():
        assert row["status"] == "compressed" and row["exact_only"], key
        if row["gives_back"] == "bytes":
            assert given_back(row, dest) == files[key]
    again = np.asarray(Image.open(io.BytesIO(given_back(by_key["deep.png"], dest))))
    assert np.array_equal(again, deep)


def test_graphics_go_lossless_and_photographs_do_not(press, photograph):
    page = Image.new("RGB", (500, 300), "white")
    draw = ImageDraw.Draw(page)
    for line in range(20):
        draw.text((10, 4 + 14 * line), "an invoice over 1,284.00, to be paid at once " * 2, fill=(20, 20, 90))
    (shot, photo), dest, _ = press(
        {"a.png": saved(page, "PNG"), "b.png": saved(photograph, "PNG")}, metric="ssimulacra2", target=80.0
    )
    assert shot["content"] in ("text", "graphics") and shot["form"] == "lossless" and shot["reason"] is None
    assert photo["content"] == "photograph" and (photo["form"], photo["gives_back"]) == ("npi", "seen")


@pytest.mark.parametrize("codec, forms", [("lossless", {"jxl-jpeg", "lossless"}), ("avif", {"avif"}), ("jxl", {"jxl"})])
def test_policies_take_their_forms(press, photograph, codec, forms):
    files = {"a.jpg": saved(photograph, "JPEG", quality=95), "b.png": saved(photograph, "PNG")}
    rows, dest, _ = press(files, codec=codec, metric="ssimulacra2", target=75.0)
    assert {row["form"] for row in rows} == forms
    for row in rows:
        assert row["status"] == "compressed" and row["ssimulacra2"] >= 75.0
        if row["gives_back"] == "bytes":
            assert given_back(row, dest) == files[row["key"]]
        else:
            shown = open_picture(given_back(row, dest)).image
            assert row["psnr"] == pytest.approx(metrics.psnr(open_picture(files[row["key"]]).image, shown))


def test_the_smallest_form_wins(press, photograph):
    files = {"b.png": saved(photograph, "PNG")}
    sizes = {}
    for codec in ("learned", "avif", "jxl", "lossless", "smallest"):
        (row,), _, _ = press(files, codec=codec, metric="ssimulacra2", target=75.0)
        sizes[codec] = row["stored_bytes"]
    assert sizes["smallest"] == min(sizes.values())


def test_alpha_grey_palette_and_profiles(press, photograph):
    with_alpha = photograph.copy()
    with_alpha.putalpha(Image.linear_gradient("L").resize(photograph.size))
    files = {
        "alpha.png": saved(with_alpha, "PNG"), "grey.png": saved(photograph.convert("L"), "PNG"),
        "palette.png": saved(photograph.quantize(256), "PNG"),
    }  # fmt: skip
    rows, dest, _ = press(files, quality=30.0, min_gain=0.0)
    modes = {}
    for row in rows:
        assert row["status"] == "compressed", row["reason"]
        modes[row["key"]] = decode(bitstream(row, dest))
    assert {key: image.mode for key, image in modes.items()} == {
        "alpha.png": "RGBA", "grey.png": "L", "palette.png": "RGB",
    }  # fmt: skip
    assert modes["alpha.png"].getchannel("A").tobytes() == with_alpha.getchannel("A").tobytes()


def test_noisy_pictures_are_encoded_clean(press, photograph):
    rng = np.random.default_rng(2)
    pixels = np.clip(np.asarray(photograph) + rng.normal(0, 22, (200, 240, 3)), 0, 255).astype(np.uint8)
    data = saved(Image.fromarray(pixels), "PNG")
    (row,), dest, _ = press({"n.png": data}, quality=50.0, denoise=True)
    assert row["denoised"] and row["psnr_source"] < row["psnr"] and row["reason"].startswith("cleaned: ")
    decoded = decode(bitstream(row, dest))
    assert row["psnr_source"] == pytest.approx(metrics.psnr(Image.fromarray(pixels), decoded))
    assert metrics.psnr(photograph, decoded) > metrics.psnr(photograph, Image.fromarray(pixels))


def test_enlarged_pictures_lie_beside_the_bitstream(press, photograph):
    (row,), dest, _ = press({"a.png": saved(photograph, "PNG")}, quality=30.0, superres=True)
    assert row["upscaled"] and row["derived_key"] == f"objects/derived/{RUN}/000003-0.webp"
    image = Image.open(io.BytesIO(dest.read(row["derived_key"])))
    assert image.size == (480, 400)
    assert row["sha256"].encode() in image.info["xmp"] and b'syntheticDetail="true"' in image.info["xmp"]
    assert row["stored_bytes"] == row["output_length"] + row["derived_bytes"]


def test_packs_hold_small_bitstreams_in_order_of_key(press, photograph, monkeypatch):
    monkeypatch.setattr(compress, "PACKED_BELOW", 6000)
    names = [f"{i}.png" for i in range(4)]
    files = {name: saved(photograph.crop((i * 10, 0, 100 + i * 10, 100)), "PNG") for i, name in enumerate(names)}
    files["2.png"] = saved(photograph, "PNG")
    rows, dest, _ = press(files, quality=70.0)
    pack, own = f"objects/{RUN}/000003.pack", f"objects/{RUN}/000003-2.npi"
    assert [row["output_key"] for row in rows] == [pack, pack, own, pack]
    places = [(row["output_offset"], row["output_length"]) for row in rows if row["output_key"] == pack]
    assert places[0][0] == 0 and all(b[0] == a[0] + a[1] for a, b in zip(places, places[1:], strict=False))
    assert dest.head(pack).size == sum(length for _, length in places)
    assert all(info(bitstream(row, dest))["width"] == row["width"] for row in rows)
    again, dest, _ = press(files, quality=70.0)
    varying = {"seconds", "modified", "etag"}
    for one, other in zip(rows, again, strict=True):
        assert {name for name in one if one[name] != other[name]} <= varying


def test_other_bytes_than_fingerprinted_fail_and_bugs_are_rows(press, photograph, monkeypatch):
    data = saved(photograph, "PNG")
    (row,), dest, _ = press({"a.png": data}, change=lambda rows, night: rows[0].update(sha256="0" * 64), quality=30.0)
    assert row["status"] == "failed" and row["error"].startswith("Changed") and row["retry"]

    def broken(*_, **__):
        raise RuntimeError("boom")

    monkeypatch.setattr(compress.decoder, "decode_picture", broken)
    (row,), dest, _ = press({"b.png": data}, quality=30.0)
    assert row["status"] == "failed" and "boom" in row["reason"] and row["output_key"] is None
    assert not list(dest.list("objects/"))


def test_what_a_file_says_is_compared_before_it_counts(press, photograph, monkeypatch):
    whole = compress.decoder.decode_picture

    def silent(*arguments, **options):
        return dataclasses.replace(whole(*arguments, **options), metadata=Metadata())

    data = saved(photograph, "JPEG", quality=95, comment=b"box 7")
    (row,), dest, _ = press({"a.jpg": data}, quality=30.0)
    assert row["status"] == "compressed"
    monkeypatch.setattr(compress.decoder, "decode_picture", silent)
    (row,), dest, _ = press({"b.jpg": data}, quality=30.0)
    assert row["status"] == "failed" and "all that the file said" in row["reason"]


def test_a_budget_is_met_within_two_percent(press, photograph):
    crops = {f"{i}.png": saved(photograph.crop((i * 20, 0, 120 + i * 20, 160)), "PNG") for i in range(5)}
    sizes = {name: len(data) for name, data in crops.items()}
    points = []

    class Percent:
        def limit(self, source_bytes):
            return int(source_bytes * 0.12)

    def give(rows, night):
        points.extend(rate_points.sample(night, *pair) for pair in read_ahead(STEP, night, rows))
        given = budget.share(rate_points.gather(night, "0", points), Percent(), sizes)
        for row in rows:
            row.update(given.changes[row["key"]])
        rows[:] = [row for row in rows if row["status"] is None]

    rows, dest, _ = press(crops, change=give)
    assert {row["key"] for row in rows} == {f"{i}.png" for i in range(5)}
    assert all(row["status"] == "compressed" for row in rows), [row["reason"] for row in rows]
    allowed = 0.12 * sum(size for size in sizes.values())
    stored = sum(row["stored_bytes"] for row in rows)
    assert 0.98 * allowed - 60 <= stored <= allowed
    assert [point.get("status") for point in points] == [None] * 5


def test_a_budget_that_is_too_small_keeps_what_saves_least():
    rows = [{"key": str(i), "bytes": [100 * (i + 1), 900], "mse": [50.0, 5.0], "pixels": 100} for i in range(4)]

    class Bytes:
        def limit(self, source_bytes):
            return 320

    given = budget.share(table_of(rows, budget.SCHEMA), Bytes(), {str(i): 1000 for i in range(4)})
    assert [key for key, change in sorted(given.changes.items()) if change.get("status") == "kept"] == ["2", "3"]
    assert given.changes["0"]["stored_bytes"] + given.changes["1"]["stored_bytes"] <= 320


def test_lost_objects_fit_the_schema(tmp_path):
    night = Night(RUN, str(tmp_path), str(tmp_path))
    lost = compress.killed_row(night, dict.fromkeys(CATALOG_SCHEMA.names) | {"key": "a"}, "four workers died")
    (row,) = compress.gather(night, "1", [lost]).to_pylist()
    assert row["status"] == "failed" and "four workers" in row["reason"]
    json.dumps(row, default=str)


def test_rates_say_what_cannot_gain(press, photograph):
    points = []

    def look(rows, night):
        points.extend(rate_points.sample(night, *pair) for pair in read_ahead(STEP, night, rows))
        rows.clear()

    press({"a.png": saved(photograph, "PNG")}, change=look, min_gain=99.9)
    assert points[0]["status"] == "kept" and "--min-gain" in points[0]["reason"]
