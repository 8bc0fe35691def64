"""Whole nights on local folders: every kind of object, second nights, limits, aborts, budgets, lost keepers.

One Prefect server and one Dask cluster (used through --dask) serve all tests of this file: conftest.py's. Kills are
test_night_kills.py's, S3 is test_night_s3.py's.
"""

import hashlib
import io
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from codec.metrics import psnr
from flows.console import WorkFailed, WrongUsage
from flows.settings import RunSettings
from tasks.forms.stored import picture_of
from tasks.night.catalog import read_catalog, read_report
from tasks.night.runs import find_run
from tasks.report.schema import SCHEMA
from tasks.stores.open import open_store

pytestmark = pytest.mark.server


@pytest.fixture
def night(machinery):
    """night(source, dest, **options) -> (manifest, rows by key)."""
    from flows.nightly import run_night

    def run(source, dest, **options):
        options = {"target": "psnr=34", "dask": machinery} | options
        manifest = run_night(RunSettings.from_parameters({"source": str(source), "dest": str(dest), **options}))
        return manifest, rows_of(dest, manifest["run_id"])

    return run


def rows_of(dest, run_id):
    table = read_report(open_store(str(dest)), find_run(open_store(str(dest)), run_id))
    assert table.schema.equals(SCHEMA)
    return {row["key"]: row for row in table.to_pylist()}


def saved(image, format, **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def photograph(name):
    image = Image.open(Path(skimage.data.__file__).with_name(name)).convert("RGB")
    image.info.clear()  # some have a profile, which not every format below keeps
    return image


def small_bucket(folder):
    """A few objects of every kind; {key: bytes}."""
    cat, cup = photograph("chelsea.png").crop((40, 20, 300, 240)), photograph("coffee.png").crop((100, 50, 360, 270))
    rng = np.random.default_rng(3)
    noisy = np.clip(np.asarray(cup) + rng.normal(0, 22, (220, 260, 3)), 0, 255).astype(np.uint8)
    with_alpha = cup.copy()
    with_alpha.putalpha(Image.linear_gradient("L").resize(cup.size))
    files = {
        "cat/cat.png": saved(cat, "PNG"),
        "cat/cat copy ü %20.png": saved(cat, "PNG"),
        "cat/cat.tiff": saved(cat, "TIFF"),
        "cat/cat.jpg": saved(cat, "JPEG", quality=88),
        "cat/cat small.jpg": saved(cat.resize((182, 154), Image.LANCZOS), "JPEG", quality=92),
        "cup/noisy.png": saved(Image.fromarray(noisy), "PNG"),
        "cup/alpha.png": saved(with_alpha, "PNG"),
        "cup/a.png": saved(cup.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "PNG"),
        "cup/a.jpg": saved(cup.rotate(90), "JPEG", quality=96),
        "odd/one.png": saved(Image.new("RGB", (1, 1)), "PNG"),
        "odd/cmyk.jpg": saved(cat.convert("CMYK"), "JPEG"),
        "odd/cmyk copy.jpg": saved(cat.convert("CMYK"), "JPEG"),
        "odd/cut.jpg": saved(cup, "JPEG")[:3000],
        "odd/empty.jpg": b"",
        "odd/words.txt": b"not a picture at all",
    }
    put(folder, files)
    return files


def put(folder, files):
    for key, data in files.items():
        path = Path(folder, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


EXPECTED = {
    "cat/cat copy ü %20.png": ("duplicate", "pixel"),  # of the TIFF, as cat.png is
    "cat/cat small.jpg": ("duplicate", "near"),
    "cat/cat.jpg": ("duplicate", "near"),
    "cat/cat.png": ("duplicate", "pixel"),
    "cat/cat.tiff": ("compressed", None),
    "cup/a.jpg": ("compressed", None),
    "cup/a.png": ("compressed", None),
    "cup/alpha.png": ("compressed", None),
    "cup/noisy.png": ("compressed", None),
    "odd/cmyk copy.jpg": ("duplicate", "exact"),
    "odd/cmyk.jpg": ("kept", None),
    "odd/cut.jpg": ("failed", None),
    "odd/empty.jpg": ("failed", None),
    "odd/one.png": ("compressed", None),
    "odd/words.txt": ("skipped", None),
}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bucket")
    return folder, small_bucket(folder)


@pytest.fixture(scope="module")
def first(machinery, bucket, tmp_path_factory):
    """DEST after the first night over the bucket, its manifest and rows. Not to be written to."""
    from flows.nightly import run_night

    dest = tmp_path_factory.mktemp("nights") / "dest"
    parameters = {"source": str(bucket[0]), "dest": str(dest), "target": "psnr=34", "dask": machinery}
    parameters |= {"denoise": "auto"}
    manifest = run_night(RunSettings.from_parameters(parameters | {"shard_size": 4}))
    return dest, manifest, rows_of(dest, manifest["run_id"])


@pytest.fixture
def second(first, bucket, tmp_path):
    """(source, dest): copies of the bucket and of DEST after the first night, with equal times."""
    source, dest = tmp_path / "source", tmp_path / "dest"
    shutil.copytree(bucket[0], source, copy_function=shutil.copy2)
    shutil.copytree(first[0], dest, copy_function=shutil.copy2)
    for manifest in dest.glob("runs/*/manifest.json"):  # the same nights, of a bucket that has moved
        content = json.loads(manifest.read_text())
        manifest.write_text(json.dumps(content | {"source": str(source)}))
    return source, dest


def test_every_object_has_its_row(first):
    rows = first[2]
    assert {key: (row["status"], row["duplicate_kind"]) for key, row in rows.items()} == EXPECTED
    assert rows["cup/noisy.png"]["denoised"] and rows["cup/noisy.png"]["psnr_source"] < 30
    assert rows["cat/cat.jpg"]["keeper_key"] == "cat/cat.tiff" == rows["cat/cat small.jpg"]["keeper_key"]
    assert all(row["reason"] for row in rows.values() if row["status"] != "compressed")
    assert all(row["error"] for row in rows.values() if row["status"] == "failed")


def test_what_is_stored_is_what_the_rows_say(first):
    dest, manifest, rows = first
    store = open_store(str(dest))
    catalog = {row["key"]: row for row in read_catalog(store, manifest).to_pylist()}
    assert set(catalog) == set(rows)
    for key, row in rows.items():
        keeper = rows.get(row["keeper_key"])
        if row["status"] == "duplicate":
            assert keeper["status"] in ("compressed", "kept")
            assert row["output_key"] == keeper["output_key"] and row["stored_bytes"] == 0
        if row["output_key"]:
            data = store.read_range(row["output_key"], row["output_offset"], row["output_length"])
            assert hashlib.sha256(data).hexdigest() == catalog[key]["output_sha256"]
            image, own = picture_of(data).image, keeper or row
            assert image.size == (own["width"], own["height"])
            assert row["psnr_source"] >= 30 or own["denoised"]
        else:
            assert row["stored_bytes"] == 0
    stored = sum(info.size for info in store.list("objects/"))
    assert stored == manifest["stored_bytes"] == sum(row["stored_bytes"] for row in rows.values())
    assert manifest["source_bytes"] == sum(row["source_bytes"] for row in rows.values())
    assert store.exists(f"models/{rows['cup/a.png']['model']}.safetensors")


def test_what_a_run_leaves_behind(first, bucket):
    dest, manifest, rows = first
    run = dest / "runs" / manifest["run_id"]
    assert {path.name for path in run.iterdir()} == {
        "manifest.json", "report", "report.html", "removable.csv", "log.jsonl",
    }  # fmt: skip
    assert json.loads((run / "manifest.json").read_text()) == json.loads(json.dumps(manifest))
    assert manifest["counts"] == {"compressed": 6, "duplicate": 5, "kept": 1, "failed": 2, "skipped": 1}
    removable = (run / "removable.csv").read_text().splitlines()
    assert len(removable) == sum(bool(row["output_key"]) for row in rows.values())
    events = [json.loads(line)["event"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert events[0] == "begun" and events[-1] == "committed"
    assert "<html" in (run / "report.html").read_text()
    assert not (dest / "catalog" / "lease.json").exists()
    files = [path for path in bucket[0].rglob("*") if path.is_file()]
    found = {path.relative_to(bucket[0]).as_posix(): path.read_bytes() for path in files}
    assert found == bucket[1], "SOURCE is only read"


def test_prefect_knows_the_night(first):
    from prefect.client.orchestration import SyncPrefectClient

    expected = {"list", "fingerprint", "compress", "check", "commit"}
    patience = time.monotonic() + 60.0  # the server writes down the events of task runs some time after they came
    with SyncPrefectClient(os.environ["PREFECT_API_URL"]) as client:  # not what Prefect's settings say since its import
        while True:
            runs, tasks, artifacts = client.read_flow_runs(), client.read_task_runs(), client.read_artifacts()
            names = {task.name.split(" ")[0] for task in tasks}
            if expected <= names or time.monotonic() > patience:
                break
            time.sleep(0.5)
    assert any(run.state_name == "Completed" for run in runs)
    assert expected <= names
    assert all("nightpress" in task.tags for task in tasks)
    assert {"nightpress-summary", "nightpress-largest-savings", "nightpress-report"} <= {a.key for a in artifacts}


def test_a_second_night_costs_a_listing(night, first, second):
    manifest, rows = night(*second, workers=1, dask=None)
    assert manifest["workers"] == 0, "no workers are started for nothing"
    assert [stage["stage"] for stage in manifest["stages"]] == ["list", "report", "page"]
    assert rows == first[2]
    assert {row["first_run"] for row in rows.values()} == {first[1]["run_id"]}
    assert manifest["base"] == first[1]["run_id"] and manifest["run_id"] > first[1]["run_id"]


def test_new_changed_and_removed_objects(night, first, second, bucket):
    source, dest = second
    (source / "cat/cat.tiff").unlink()  # a keeper: what lies under DEST gives it back
    (source / "odd/cmyk.jpg").unlink()  # a kept keeper: its copy must be decided anew
    (source / "odd/words.txt").unlink()
    put(source, {"new/cat again.png": bucket[1]["cat/cat.png"], "cup/a.png": bucket[1]["cup/alpha.png"]})
    manifest, rows = night(source, dest)
    before = first[2]
    changed = {key for key in rows if rows[key] != before.get(key)}
    assert changed == {"new/cat again.png", "cup/a.png", "odd/cmyk copy.jpg"}
    assert rows["new/cat again.png"]["keeper_key"] == "cat/cat.tiff" not in rows
    assert rows["new/cat again.png"]["output_key"] == before["cat/cat.tiff"]["output_key"]
    assert (rows["cup/a.png"]["status"], rows["cup/a.png"]["keeper_key"]) == ("duplicate", "cup/alpha.png")
    assert rows["odd/cmyk copy.jpg"]["status"] == "kept"
    catalog = {row["key"]: row for row in read_catalog(open_store(str(dest)), manifest).to_pylist()}
    assert set(catalog) - set(rows) == {"cat/cat.tiff"} and not catalog["cat/cat.tiff"]["at_source"]
    assert manifest["removed_at_source"]["objects"] == 1
    again, rows_again = night(source, dest)
    assert rows_again == rows and again["removed_at_source"] == manifest["removed_at_source"]


def test_fresh_does_everything_again(night, first, second):
    manifest, rows = night(*second, fresh=True, exclude=["odd/*", "cat/*"])
    assert set(rows) == {key for key in EXPECTED if key.startswith("cup/")}
    assert all(row["first_run"] == manifest["run_id"] for row in rows.values())
    assert len(list(second[1].glob("runs/*/manifest.json"))) == 2


def test_too_far_from_the_keepers_bitstream_is_compressed_itself(night, bucket, tmp_path):
    manifest, rows = night(bucket[0], tmp_path / "dest", target=None, quality=0, include=["cat/*"], superres="auto")
    keeper = rows["cat/cat.tiff"]
    assert keeper["status"] == "compressed" and keeper["psnr"] < 30
    assert rows["cat/cat.png"]["duplicate_kind"] == "pixel"
    assert rows["cat/cat copy ü %20.png"]["keeper_key"] == "cat/cat.tiff"
    for key in ("cat/cat.jpg", "cat/cat small.jpg"):
        assert rows[key]["duplicate_kind"] != "near" or rows[key]["psnr_source"] >= 30
    alone = [row for row in rows.values() if row["status"] == "compressed"]
    assert len({row["output_key"] for row in alone}) >= 2 and all(row["upscaled"] for row in alone)
    assert manifest["stored_bytes"] == sum(info.size for info in open_store(str(tmp_path / "dest")).list("objects/"))


def test_a_budget_for_the_run(night, bucket, tmp_path):
    manifest, rows = night(bucket[0], tmp_path / "dest", target=None, budget="15%", dedup="exact")
    pressed = [row for row in rows.values() if row["status"] == "compressed"]
    allowed = 0.15 * sum(row["source_bytes"] for row in pressed)
    assert len(pressed) >= 4  # at the highest quality these take 19 %
    assert 0.975 * allowed <= manifest["stored_bytes"] <= allowed
    assert rows["cat/cat small.jpg"]["status"] != "duplicate"


def test_limits(night, bucket, tmp_path):
    manifest, rows = night(bucket[0], tmp_path / "dest", max_objects=3)
    assert list(rows) == sorted(EXPECTED)[:3]
    manifest, rows = night(bucket[0], tmp_path / "dest", deadline="2001-01-01T00:00:00")
    assert set(rows) == set(EXPECTED) and manifest["deadline_reached"]
    late = [row for row in rows.values() if row["status"] == "kept"]
    assert len(late) == len(EXPECTED) - 3 and all("deadline" in row["reason"] for row in late)
    manifest, rows = night(bucket[0], tmp_path / "dest")
    assert {key: row["status"] for key, row in rows.items()}["cup/a.png"] == "compressed"
    assert not any("deadline" in (row["reason"] or "") for row in rows.values())


def test_an_abort_commits_nothing_and_is_taken_up(night, bucket, tmp_path):
    dest = tmp_path / "dest"
    with pytest.raises(WorkFailed, match="--max-failed 5"):
        night(bucket[0], dest, max_failed=5, denoise="auto")
    assert not list(dest.glob("runs/*/manifest.json")) and len(list(dest.glob("runs/*"))) == 1
    manifest, rows = night(bucket[0], dest, max_failed=50, denoise="auto")
    assert len(list(dest.glob("runs/*"))) == 1
    assert next(stage for stage in manifest["stages"] if stage["stage"] == "fingerprint")["resumed"] >= 1
    assert {key: (row["status"], row["duplicate_kind"]) for key, row in rows.items()} == EXPECTED


def test_refusals(night, first, second, bucket, tmp_path):
    with pytest.raises(WrongUsage, match="DEST of its own"):
        night(tmp_path, first[0])
    with pytest.raises(WrongUsage, match="overlap"):
        night(bucket[0], bucket[0] / "dest")


@pytest.fixture(scope="module")
def mean_colour(tmp_path_factory):
    """A user's own network: a picture's mean colour. It proposes nearly every pair; the second look has to choose."""
    import onnx
    from onnx import helper, numpy_helper

    shape = ["n", 3, 16, 16]
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)], "mean",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.array([2, 3], np.int64), "axes")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    for name, values in {"mean": "0 0 0", "std": "1 1 1"}.items():
        model.metadata_props.add(key=name, value=values)
    path = tmp_path_factory.mktemp("network") / "mean.onnx"
    onnx.save(model, path)
    return str(path)


def test_embeddings_find_crops_and_turned_copies_that_come_back(night, mean_colour, tmp_path):
    from tasks.recovery.restore import restore

    cat, cup = photograph("chelsea.png"), photograph("coffee.png")
    part = cat.crop((70, 40, 370, 270))
    source, dest = tmp_path / "source", tmp_path / "dest"
    originals = {"cat.png": cat, "cup.png": cup}
    copies = {"part.png": part, "mirror.jpg": cup.transpose(Image.Transpose.FLIP_LEFT_RIGHT)}
    files = {key: saved(image, "PNG") for key, image in originals.items()}
    files |= {"part.png": saved(part, "PNG"), "mirror.jpg": saved(copies["mirror.jpg"], "JPEG", quality=90)}
    put(source, files | {"leaning.png": saved(cat.rotate(8, Image.Resampling.BICUBIC), "PNG")})
    manifest, rows = night(source, dest, dedup_embedding=mean_colour)
    assert {key: row["keeper_key"] for key, row in rows.items()} == {
        "cat.png": None, "cup.png": None, "part.png": "cat.png", "mirror.jpg": "cup.png", "leaning.png": None,
    }  # fmt: skip
    assert rows["part.png"]["reason"].startswith("cut from cat.png, which stays: larger")
    assert rows["mirror.jpg"]["reason"].startswith("cut from cup.png, mirrored, which stays")
    catalog = {row["key"]: row for row in read_catalog(open_store(str(dest)), manifest).to_pylist()}
    assert catalog["part.png"]["keeper_box"] == [70.0, 40.0, 370.0, 270.0] and catalog["mirror.jpg"]["keeper_turn"] == 2
    assert (dest / f"models/{catalog['cat.png']['embedding_id']}.onnx").read_bytes() == Path(mean_colour).read_bytes()
    put(source, {"new part.jpg": saved(cat.crop((10, 30, 300, 280)), "JPEG", quality=95)})  # of what was there before
    manifest, rows = night(source, dest, dedup_embedding=mean_colour)
    assert rows["new part.jpg"]["keeper_key"] == "cat.png" and "cut from cat.png" in rows["new part.jpg"]["reason"]
    outcome = restore(str(dest), str(tmp_path / "out"))
    assert not outcome.failures
    for key in ("part.png", "mirror.jpg", "new part.jpg"):
        name = key if key.endswith(".png") else key + ".png"
        own, back = Image.open(source / key).convert("RGB"), Image.open(tmp_path / "out" / name)
        assert back.size == own.size and psnr(back, own) == pytest.approx(rows[key]["psnr_source"], abs=0.05)
        assert rows[key]["psnr_source"] >= 30
    shutil.rmtree(dest / "catalog")  # the report alone does not say where a part was cut from: it is refused, not wrong
    outcome = restore(str(dest), str(tmp_path / "again"))
    assert [key for key, _ in outcome.failures] == ["mirror.jpg", "new part.jpg", "part.png"]
    assert all("catalog" in why for _, why in outcome.failures)


def test_embedding_networks_are_tried_before_anything_is_read(night, bucket, tmp_path):
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(WrongUsage, match="can't be loaded as an ONNX network"):
        night(bucket[0], tmp_path / "dest", dedup_embedding=str(tmp_path / "text.onnx"))
    assert not list(tmp_path.glob("dest/runs/*/manifest.json"))
    manifest, rows = night(bucket[0], tmp_path / "dest", dedup_embedding="copy", include=["cat/*"])
    catalog = read_catalog(open_store(str(tmp_path / "dest")), manifest)
    assert all(len(vector.as_py()) == 256 for vector in catalog["embedding"])
    assert {key: row["keeper_key"] for key, row in rows.items()} == {
        key: None if key == "cat/cat.tiff" else "cat/cat.tiff" for key in EXPECTED if key.startswith("cat/")
    }


def test_one_night_at_a_time(night, bucket, tmp_path):
    from tasks.stores.lease import Lease

    dest = tmp_path / "dest"
    with Lease(open_store(str(dest)), "20260101T000000Z-ab12"):
        with pytest.raises(WorkFailed, match="20260101T000000Z-ab12"):
            night(bucket[0], dest)
    assert not (dest / "runs").exists()


def test_strict_json_and_the_summary(machinery, first, second, capsys):
    from flows.cli import main

    arguments = ["run", *map(str, second), "--target", "psnr=32", "--dask", machinery]
    assert main(arguments) == 0
    assert "compressed" in capsys.readouterr().out
    assert main([*arguments, "--strict", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["counts"]["failed"] == 2


def test_dry_run_writes_nothing(bucket, tmp_path, capsys):
    from flows.cli import main

    dest = tmp_path / "dest"
    assert main(["run", str(bucket[0]), str(dest), "--dry-run", "--target", "psnr=32", "--workers", "2"]) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert not dest.exists() or not os.listdir(dest)


def test_a_dest_that_cannot_be_written(night, tmp_path):
    put(tmp_path / "photos", {"cat.png": saved(photograph("chelsea.png").crop((0, 0, 64, 64)), "PNG")})
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WorkFailed, match="Nothing was begun"):
        night(tmp_path / "photos", tmp_path / "file" / "pressed")


def test_a_better_original_of_a_later_night_takes_the_keepers_place(night, tmp_path):
    """A thumbnail and its copy first, then the full size: one bitstream serves all; earlier runs keep their own."""
    from tasks.recovery.restore import restore

    source, dest = tmp_path / "source", tmp_path / "dest"
    cat = photograph("chelsea.png")
    small = cat.resize((225, 150), Image.Resampling.LANCZOS)
    thumb = saved(small, "JPEG", quality=85)
    put(source, {"a/thumb.jpg": thumb, "a/thumb copy.jpg": thumb, "a/low.jpg": saved(small, "JPEG", quality=50)})
    first, rows = night(source, dest)
    assert rows["a/thumb copy.jpg"]["keeper_key"] and rows["a/low.jpg"]["status"] == "duplicate"
    old = next(row["output_key"] for row in rows.values() if row["status"] == "compressed")
    put(source, {"b/full.png": saved(cat, "PNG")})
    second, rows = night(source, dest)
    assert rows["b/full.png"]["status"] == "compressed" and rows["b/full.png"]["first_run"] == second["run_id"]
    for key in ("a/thumb.jpg", "a/thumb copy.jpg", "a/low.jpg"):
        row = rows[key]
        assert (row["status"], row["keeper_key"], row["duplicate_kind"]) == ("duplicate", "b/full.png", "near")
        assert row["output_key"] == rows["b/full.png"]["output_key"] != old and row["stored_bytes"] == 0
        assert row["first_run"] == second["run_id"] and row["psnr_source"] > 25
    assert (dest / old).exists(), "the first run still names it"
    for run in (first["run_id"], None):
        outcome = restore(str(dest), str(tmp_path / f"out {run}"), run_id=run)
        assert not outcome.failures
    back = Image.open(tmp_path / "out None/a/low.jpg.png").convert("RGB")
    own = Image.open(source / "a/low.jpg").convert("RGB")
    assert back.size == own.size and psnr(back, own) == pytest.approx(rows["a/low.jpg"]["psnr_source"], abs=0.05)
    third, again = night(source, dest)
    assert again == rows


def test_near_misses_are_stored_each_and_named(night, tmp_path):
    cat = photograph("chelsea.png")
    marked = cat.copy()
    marked.paste(tuple(np.asarray(cat)[100, 200] // 2), (200, 100, 212, 108))
    source = tmp_path / "source"
    put(source, {"cat.png": saved(cat, "PNG"), "marked.jpg": saved(marked, "JPEG", quality=92)})
    _, rows = night(source, tmp_path / "dest")
    assert {row["status"] for row in rows.values()} == {"compressed"}
    assert rows["marked.jpg"]["similar_to"] == "cat.png" and rows["cat.png"]["similar_to"] is None


def test_a_night_without_loss_gives_no_near_duplicate_up(night, tmp_path):
    cat, source = photograph("chelsea.png"), tmp_path / "source"
    files = {"cat.png": saved(cat, "PNG"), "same.tif": saved(cat, "TIFF")}
    put(source, files | {"cat.jpg": saved(cat, "JPEG", quality=80)})
    _, rows = night(source, tmp_path / "dest", codec="lossless", target=None)
    assert rows["cat.jpg"]["status"] == "compressed" and rows["cat.jpg"]["gives_back"] == "bytes"
    assert rows["cat.jpg"]["similar_to"] in ("cat.png", "same.tif")
    assert {rows["cat.png"]["duplicate_kind"], rows["same.tif"]["duplicate_kind"]} == {None, "pixel"}


def test_without_loss_every_original_comes_back_as_it_was(night, bucket, tmp_path):
    from tasks.recovery.restore import restore

    source, files = bucket
    _, rows = night(source, tmp_path / "dest", codec="lossless")
    stored = {key: row for key, row in rows.items() if row["output_key"]}
    assert {row["gives_back"] for row in stored.values()} == {"bytes", "pixels"}
    assert "near" not in {row["duplicate_kind"] for row in rows.values()}
    assert stored["cup/a.jpg"]["form"] == "jxl-jpeg"
    outcome = restore(str(tmp_path / "dest"), str(tmp_path / "out"), workers=1)
    assert [key for key, _ in outcome.failures] == []
    for key, row in stored.items():
        if row["gives_back"] == "bytes":
            assert Path(tmp_path, "out", key).read_bytes() == files[key]
        else:
            name = key if key.endswith(".png") else f"{key}.png"
            shown, original = Image.open(tmp_path / "out" / name), Image.open(io.BytesIO(files[key]))
            assert np.array_equal(np.asarray(shown), np.asarray(original)), key
