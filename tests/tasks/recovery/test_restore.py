"""Restoring a run written down by hand: every status, every odd name, damage, interruption. The run's bitstreams are
made with a small model that restore has to fetch from DEST/models."""

import csv
import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from flows import cli
from flows.cli import main
from tasks.night.catalog import CATALOG_SCHEMA, table_of, write_parts
from tasks.recovery import originals
from tasks.recovery import out as out_module
from tasks.recovery.journal import JOURNAL
from tasks.recovery.names import ODD, restored_names
from tasks.recovery.restore import CannotRestore, PlacesOverlap, restore
from tasks.stores.open import open_store

RUN = "20260101T020000Z-ab12"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(path, bytes, id) of a small untrained model (a DCT codec), in a folder where only the test itself looks."""
    import torch

    from codec.network.config import Config
    from codec.network.files import save_model
    from codec.network.night_codec import NightCodec
    from codec.tensors import model_id

    torch.manual_seed(0)
    sizes = {"channels": 16, "latent": 320, "hyper": 8, "mean_channels": 16, "index_channels": 16}
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_model(NightCodec(Config(encoder_blocks=1, decoder_blocks=1, **sizes)).eval(), path)
    return path, path.read_bytes(), model_id(path)


def picture(seed, size=(96, 64), mode="RGB", **info):
    """Smooth blobs, so that a weak model shows them well. `info`: format and what save() takes."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(30, 225, (4, 5, 3), np.uint8))
    image = coarse.resize(size, Image.Resampling.BICUBIC).convert(mode)
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(rng.integers(0, 256, size[::-1], np.uint8)))
    out = io.BytesIO()
    image.save(out, **({"format": "PNG"} | info))
    return out.getvalue()


class Run:
    """A run being written down as the night does: objects at SOURCE, bitstreams packed under DEST, the catalog."""

    def __init__(self, source, dest, model):
        self.source, self.dest, self.model = source, dest, model
        self.rows, self.pack = [], b""
        self.pack_key = f"objects/{RUN}/00000.pack"

    def add(self, key, data, status, *, content_type="image/jpeg", metadata=None, **columns):
        etag = self.source.write(key, data, content_type=content_type, metadata=metadata)
        row = {
            "key": key,
            "status": status,
            "first_run": RUN,
            "source_bytes": len(data),
            "stored_bytes": 0,
            "sha256": hashlib.sha256(data).hexdigest(),
            "etag": etag,
            "size": len(data),
            "content_type": content_type,
            "metadata": json.dumps(metadata or {}),
            "headers": "{}",
            "at_source": True,
        } | columns
        self.rows.append(row)
        return row

    def compressed(self, key, data, packed=True, **description):
        from codec.encoder import encode
        from codec.pictures.files import open_picture

        path, _, identity = self.model
        shown = open_picture(data)
        stream = encode(data, quality=80, model=path)
        if packed:
            where = {"output_key": self.pack_key, "output_offset": len(self.pack), "output_length": len(stream)}
            self.pack += stream
        else:
            name = f"objects/{RUN}/00000-{len(self.rows)}.npi"
            self.dest.write(name, stream)
            where = {"output_key": name, "output_offset": None, "output_length": None}
        return self.add(
            key, data, "compressed", **description, **where, output_sha256=hashlib.sha256(stream).hexdigest(),
            stored_bytes=len(stream), width=shown.width, height=shown.height, mode=shown.mode, format=shown.format,
            model=identity,
        )  # fmt: skip

    def duplicate(self, key, data, keeper, kind, **description):
        image = Image.open(io.BytesIO(data))
        same = {name: keeper.get(name) for name in ("output_key", "output_offset", "output_length", "output_sha256")}
        return self.add(
            key, data, "duplicate", **description, **same, keeper_key=keeper["key"], duplicate_kind=kind,
            width=image.width, height=image.height, mode=image.mode, model=keeper.get("model"),
        )  # fmt: skip

    def commit(self, run_id=RUN):
        self.dest.write(self.pack_key, self.pack)
        self.dest.write(f"models/{self.model[2]}.safetensors", self.model[1])
        write_parts(self.dest, f"catalog/{run_id}/", table_of(self.rows, CATALOG_SCHEMA))
        manifest = {"run_id": run_id, "source": self.source.url, "catalog": f"catalog/{run_id}/"}
        self.dest.write(f"runs/{run_id}/manifest.json", json.dumps(manifest).encode())


def everything(run):
    """One of each kind."""
    exif = Image.Exif()
    exif[0x0110] = "Testcam"
    photo = picture(1, format="JPEG", quality=95, exif=exif, icc_profile=b"no real profile, 40 bytes or a little so")
    keeper = run.compressed("photos/a.jpg", photo, metadata={"owner": "ann"})
    run.compressed("photos/a.png", picture(2), content_type="image/png", packed=False)
    run.compressed("grey scan.png", picture(3, mode="L"), content_type="image/png")
    run.compressed("clear.webp", picture(4, mode="RGBA", format="WEBP", lossless=True), content_type="image/webp")
    run.compressed("no-type", picture(5, size=(1, 1)), content_type="application/octet-stream")
    run.duplicate("copy of a.jpg", photo, keeper, "exact")
    run.duplicate("small/a.png", picture(1, size=(48, 32)), keeper, "near", content_type="image/png")
    run.duplicate("small/grey.png", picture(1, size=(48, 32), mode="L"), keeper, "near", content_type="image/png")
    kept = run.add("kept/b.gif", picture(6, format="GIF"), "kept", content_type="image/gif", metadata={"k": "v"})
    run.duplicate("kept/b again.gif", picture(6, format="GIF"), kept, "exact", content_type="image/gif")
    run.add("notes.txt", b"no picture", "skipped", content_type="text/plain")
    run.add("empty.jpg", b"", "failed", reason="zero bytes")
    run.add("broken.jpg", photo[:200], "failed", reason="truncated")
    run.commit()
    return {row["key"]: row for row in run.rows}


def psnr(a, b):
    a, b = (np.asarray(image.convert("RGB"), float) for image in (a, b))
    return 10 * np.log10(255**2 / max(np.mean((a - b) ** 2), 1e-9))


def opened(store, name):
    return Image.open(io.BytesIO(store.read(name)))


@pytest.fixture
def out(stores, tmp_path):
    source, _ = stores
    if source.url.startswith("s3://"):
        return open_store(f"s3://{source.bucket}-out/restored") if ensure(source) else None
    return open_store(str(tmp_path / "out"))


def ensure(source):
    source.client.create_bucket(Bucket=source.bucket + "-out")
    return True


def test_every_key_comes_back(stores, out, model):
    source, dest = stores
    rows = everything(Run(source, dest, model))
    outcome = restore(dest.url, out.url, workers=2)
    assert outcome.failures == []
    assert (outcome.decoded, outcome.copied, outcome.there, outcome.unusual) == (8, 5, 0, 0)
    names = {
        "photos/a.jpg": "photos/a.jpg.png", "photos/a.png": "photos/a.png", "grey scan.png": "grey scan.png",
        "clear.webp": "clear.webp.png", "no-type": "no-type.png", "copy of a.jpg": "copy of a.jpg.png",
        "small/a.png": "small/a.png", "small/grey.png": "small/grey.png",
    }  # fmt: skip
    copied = {"kept/b.gif", "kept/b again.gif", "notes.txt", "empty.jpg", "broken.jpg"}
    assert {info.key for info in out.list()} == copied | set(names.values())
    for key in copied:
        assert out.read(key) == source.read(key)
    for key, name in names.items():
        original, restored = opened(source, key), opened(out, name)
        assert restored.format == "PNG" and restored.size == original.size == (rows[key]["width"], rows[key]["height"])
        assert psnr(original, restored) > 28, key
    assert opened(out, "grey scan.png").mode == opened(out, "small/grey.png").mode == "L"
    clear = opened(out, "clear.webp.png")
    assert np.array_equal(np.asarray(clear)[..., 3], np.asarray(opened(source, "clear.webp"))[..., 3])
    photo = opened(out, "photos/a.jpg.png")
    assert photo.getexif()[0x0110] == "Testcam" and photo.info["icc_profile"].startswith(b"no real profile")
    assert out.read("photos/a.jpg.png") == out.read("copy of a.jpg.png")
    if out.url.startswith("s3://"):
        head = out.head("photos/a.jpg.png")
        assert head.content_type == "image/png" and head.metadata["owner"] == "ann"
        assert head.metadata["nightpress-content-type"] == "image/jpeg"
        assert out.head("photos/a.png").content_type == "image/png"
        assert out.head("no-type.png").content_type == "application/octet-stream"
        assert out.head("kept/b.gif").content_type == "image/gif" and out.head("kept/b.gif").metadata["k"] == "v"
    before = {info.key: (info.etag, info.modified) for info in out.list()}
    again = restore(dest.url, out.url, workers=2)
    assert (again.decoded, again.copied, again.there, again.failures) == (0, 0, 13, [])
    assert {info.key: (info.etag, info.modified) for info in out.list()} == before


def test_single_keys_and_the_command(local_stores, tmp_path, model, capsys, monkeypatch):
    monkeypatch.setattr(cli, "COMMANDS", ("restore",))
    source, dest = local_stores
    everything(Run(source, dest, model))
    out = open_store(str(tmp_path / "out"))
    command = ["restore", dest.url, out.url, "--key", "photos/a.jpg", "--key", "notes.txt", "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["decoded"] == 1
    assert {info.key for info in out.list()} == {"photos/a.jpg.png", "notes.txt"}
    assert main(command) == 0
    assert main(["restore", dest.url, out.url]) == 0
    assert "7 decoded, 4 copied" in (text := capsys.readouterr().out) and "2 there already" in text
    assert main(["restore", dest.url, out.url, "--key", "photos/A.jpg"]) == 1
    assert "did you mean 'photos/a.jpg'" in capsys.readouterr().err
    assert main(["restore", dest.url, out.url, "--run", "20250101T000000Z-0000"]) == 1
    assert f"the newest there: {RUN}" in capsys.readouterr().err
    assert main(["restore", source.url, out.url]) == 1
    assert main(["restore", dest.url, str(Path(dest.url) / "x")]) == 2
    assert main(["restore", dest.url, source.url]) == 2
    assert main(["restore", "gs://x", source.url]) == 2


def test_names_depend_on_nothing_but_run_and_kind_of_place(local_stores):
    folder, _ = local_stores
    keys = [
        ("a.jpg", False), ("a.jpg.png", False), ("a.png", False), ("A.PNG", False), ("kept.jpg", True),
        ("kept.jpg.png", True), ("dir", True), ("dir/below.jpg", False), ("/lead.jpg", False), ("x//y.png", False),
        ("n" * 252 + ".jpg", False), ("trail/", True), (ODD + "mine.txt", True),
    ]  # fmt: skip
    names = restored_names(keys, folder)
    assert names == restored_names(keys[::-1], folder)
    assert len(set(names.values())) == len(keys)
    assert names["a.jpg"] == "a.jpg.png.png" and names["a.jpg.png"] == "a.jpg.png" and names["A.PNG"] == "A.PNG"
    odd = {key for key, name in names.items() if name.startswith(ODD)}
    assert odd == {"dir", "/lead.jpg", "x//y.png", "n" * 252 + ".jpg", "trail/", ODD + "mine.txt"}
    assert all(folder.refusal(name) is None for name in names.values())
    on_s3 = restored_names(keys, open_store("s3://bucket"))
    assert {key for key, name in on_s3.items() if name.startswith(ODD)} == {ODD + "mine.txt"}
    assert on_s3["dir"] == "dir" and on_s3["/lead.jpg"] == "/lead.jpg.png"


@pytest.mark.server
def test_what_a_folder_cannot_hold_is_not_lost(moto_stores, tmp_path, model):
    source, dest = moto_stores
    run = Run(source, dest, model)
    keys = ["a", "a/b.txt", "/lead.txt", "trail/", "x//y.txt", "é" * 400 + ".txt", "normal.txt", "..", "q\\xff"]
    for key in keys:
        run.add(key, key.encode(), "skipped", content_type="text/plain")
    run.compressed("deep/" + "k" * 255, picture(1))
    run.commit()
    out = open_store(str(tmp_path / "out"))
    outcome = restore(dest.url, out.url)
    assert outcome.failures == [] and outcome.unusual == 7
    with open(tmp_path / "out" / ODD / "names.csv", encoding="utf-8", newline="") as file:
        table = {row["key"]: row["name"] for row in csv.DictReader(file)}
    assert set(table) == {"a", "/lead.txt", "trail/", "x//y.txt", "é" * 400 + ".txt", "..", "deep/" + "k" * 255}
    for key in keys:
        assert out.read(table.get(key, key)) == key.encode()
    assert psnr(opened(out, table["deep/" + "k" * 255]), Image.open(io.BytesIO(picture(1)))) > 28
    assert restore(dest.url, out.url).there == len(keys) + 1


def test_damage_and_changes_fail_their_key_only(local_stores, tmp_path, model):
    source, dest = local_stores
    run = Run(source, dest, model)
    run.compressed("good.png", picture(1))
    run.compressed("bad.png", picture(2), packed=False)
    run.compressed("gone.png", picture(3), packed=False)
    for key in ("changed.txt", "vanished.txt", "same.txt"):
        run.add(key, key.encode(), "skipped")
    run.commit()
    rows = {row["key"]: row for row in run.rows}
    data = bytearray(dest.read(rows["bad.png"]["output_key"]))
    data[-10] ^= 1
    dest.write(rows["bad.png"]["output_key"], bytes(data))
    dest.delete(rows["gone.png"]["output_key"])
    os.utime(source.place("changed.txt"), ns=(5, 5))
    source.delete("vanished.txt")
    out = open_store(str(tmp_path / "out"))
    outcome = restore(dest.url, out.url)
    assert {info.key for info in out.list()} == {"good.png", "same.txt"}
    reasons = dict(outcome.failures)
    assert set(reasons) == {"bad.png", "gone.png", "changed.txt", "vanished.txt"}
    assert "sha256 is not the one recorded" in reasons["bad.png"]
    assert "no such file" in reasons["gone.png"] and "changed since" in reasons["changed.txt"]


def test_same_etag_other_bytes_are_not_given_back(local_stores, tmp_path, model):
    source, dest = local_stores
    run = Run(source, dest, model)
    run.add("a.txt", b"12345", "skipped")
    run.commit()
    status = os.stat(source.place("a.txt"))
    Path(source.place("a.txt")).write_bytes(b"54321")
    os.utime(source.place("a.txt"), ns=(status.st_atime_ns, status.st_mtime_ns))
    outcome = restore(dest.url, str(tmp_path / "out"))
    assert "sha256" in dict(outcome.failures)["a.txt"] and not list(open_store(str(tmp_path / "out")).list())


def test_nothing_is_overwritten(local_stores, tmp_path, model):
    source, dest = local_stores
    run = Run(source, dest, model)
    run.compressed("a.png", picture(1))
    run.compressed("b.png", picture(2))
    run.add("c.txt", b"ours", "skipped")
    run.add("d.txt", b"same", "skipped")
    run.commit()
    out = open_store(str(tmp_path / "out"))
    out.write("a.png", picture(9))
    out.write("c.txt", b"theirs")
    out.write("d.txt", b"same")
    outcome = restore(dest.url, out.url)
    assert [key for key, _ in outcome.failures] == ["a.png", "c.txt"]
    assert all("nothing is overwritten" in why for _, why in outcome.failures)
    assert out.read("a.png") == picture(9) and out.read("c.txt") == b"theirs" and out.exists("b.png")


def test_goes_on_where_it_was_cut_off(local_stores, tmp_path, model, monkeypatch):
    source, dest = local_stores
    everything(Run(source, dest, model))
    out = open_store(str(tmp_path / "out"))
    whole = open_store(str(tmp_path / "whole"))
    restore(dest.url, whole.url, workers=1)

    class Killed(BaseException):
        pass

    written = []
    note = out_module.Out._note

    def dies(self, row, etag):
        if len(written) == 5:
            raise Killed  # after the file, before the journal's line
        written.append(row["key"])
        note(self, row, etag)

    monkeypatch.setattr(out_module.Out, "_note", dies)
    with pytest.raises(Killed):
        restore(dest.url, out.url, workers=1)
    monkeypatch.undo()
    with open(Path(out.root) / JOURNAL, "a") as file:
        file.write('{"name": "cut sh')
    outcome = restore(dest.url, out.url, workers=2)
    assert outcome.failures == [] and outcome.there == 5
    assert {i.key: out.read(i.key) for i in out.list()} == {i.key: whole.read(i.key) for i in whole.list()}


def test_duplicates_of_a_kept_keeper_whose_own_object_is_gone(local_stores, tmp_path, model):
    source, dest = local_stores
    run = Run(source, dest, model)
    kept = run.add("kept.png", picture(1), "kept", width=96, height=64, mode="RGB")
    run.duplicate("exact.png", picture(1), kept, "exact")
    run.duplicate("near.jpg", picture(1, size=(48, 32), format="JPEG"), kept, "near")
    run.commit()
    for key in ("exact.png", "near.jpg"):
        source.delete(key)
    out = open_store(str(tmp_path / "out"))
    assert restore(dest.url, out.url).failures == []
    assert out.read("exact.png") == picture(1)
    assert opened(out, "near.jpg.png").size == (48, 32)


def test_newest_state_or_the_one_asked_for(local_stores, tmp_path, model):
    source, dest = local_stores
    for number in (1, 2):
        run = Run(source, dest, model)
        run.add(f"only in {number}.txt", b"x", "skipped")
        run.commit(f"2026010{number}T020000Z-0000")
    dest.write("runs/20260103T020000Z-0000/work/settings.json", b"{}")  # unfinished
    out = tmp_path / "out"
    assert restore(dest.url, str(out)).run_id == "20260102T020000Z-0000"
    restore(dest.url, str(out), run_id="20260101T020000Z-0000")
    assert {info.key for info in open_store(str(out)).list()} == {"only in 1.txt", "only in 2.txt"}
    with pytest.raises(CannotRestore, match="no complete run 20260103T"):
        restore(dest.url, str(out), run_id="20260103T020000Z-0000")
    with pytest.raises(PlacesOverlap):
        restore(dest.url, source.url)


def test_report_stands_in_for_a_lost_catalog(local_stores, tmp_path, model):
    from tasks.night.catalog import conform, parquet
    from tasks.report.schema import SCHEMA

    source, dest = local_stores
    run = Run(source, dest, model)
    run.compressed("a.jpg", picture(1, format="JPEG"))
    run.add("b.txt", b"b", "skipped")
    run.commit()
    report = conform(pa.Table.from_pylist(run.rows, schema=CATALOG_SCHEMA), SCHEMA)
    dest.write(f"runs/{RUN}/report/part-00000.parquet", parquet(report))
    for info in list(dest.list("catalog/")):
        dest.delete(info.key)
    outcome = restore(dest.url, str(tmp_path / "out"))
    assert outcome.failures == [] and (outcome.decoded, outcome.copied) == (1, 1)


def test_large_copies_stream(stores, out, model, monkeypatch):
    from tasks.stores import base, s3

    monkeypatch.setattr(s3, "WHOLE_UP_TO", 6 << 20)
    monkeypatch.setattr(originals, "WHOLE_UP_TO", 6 << 20)
    for module in (base, s3):
        monkeypatch.setattr(module, "PART", 5 << 20)
    source, dest = stores
    run = Run(source, dest, model)
    data = os.urandom(11 << 20)
    run.add("large.bin", data, "skipped", content_type="video/mp4", metadata={"k": "v"})
    run.add("wrong.bin", data[::-1], "skipped")["sha256"] = "0" * 64
    run.commit()
    outcome = restore(dest.url, out.url)
    assert [key for key, _ in outcome.failures] == ["wrong.bin"]
    assert out.read("large.bin") == data and not out.exists("wrong.bin")
    assert restore(dest.url, out.url, keys=["large.bin"]).failures == []


def stored(run, key, data, name, **description):
    """A row of what one of the forms without loss, or an open one, made of `data`."""
    from codec.pictures.errors import PictureError
    from codec.pictures.files import open_picture
    from tasks.forms.base import Goal
    from tasks.forms.choose import FORMS

    form = FORMS[name]
    try:
        shown = open_picture(data, checked=False)
    except PictureError:
        shown = None
    made = form.encode(data, shown, Goal("psnr", 30.0))
    where = {"output_key": run.pack_key, "output_offset": len(run.pack), "output_length": len(made)}
    run.pack += made
    image = Image.open(io.BytesIO(data))
    return run.add(
        key, data, "compressed", **description, **where, output_sha256=hashlib.sha256(made).hexdigest(),
        stored_bytes=len(made), width=image.width, height=image.height, mode=image.mode, form=name,
        gives_back=form.gives_back,
    )  # fmt: skip


def test_forms_without_loss_come_back_under_their_own_names(local_stores, tmp_path, model):
    source, dest = local_stores
    out = open_store(str(tmp_path / "out"))
    run = Run(source, dest, model)
    jpeg = picture(1, format="JPEG", quality=95) + b"a video behind it" * 20
    bitmap, drawing = picture(2, format="BMP"), picture(3, compress_level=0)
    lzw = picture(4, format="TIFF", compression="tiff_lzw")
    deep = io.BytesIO()
    Image.fromarray(np.arange(96 * 64, dtype=np.uint16).reshape(64, 96)).save(deep, "PNG", compress_level=0)
    keeper = stored(run, "a.jpg", jpeg, "jxl-jpeg", metadata={"owner": "ann"})
    stored(run, "b.bmp", bitmap, "exact", content_type="image/bmp")
    pixels = stored(run, "c.png", drawing, "lossless", content_type="image/png")
    stored(run, "d.tif", lzw, "lossless", content_type="image/tiff")
    stored(run, "deep.png", deep.getvalue(), "lossless", content_type="image/png")
    stored(run, "e.png", picture(5), "avif", content_type="image/png")
    copy = {"form": "jxl-jpeg", "gives_back": "bytes"}
    run.duplicate("a copy.jpg", jpeg, keeper, "exact", **copy)
    run.duplicate("a small.png", picture(1, size=(48, 32)), keeper, "near", form="jxl-jpeg", gives_back="seen")
    run.duplicate("c.gif", drawing, pixels, "pixel", form="lossless", gives_back="pixels", content_type="image/gif")
    run.commit()
    outcome = restore(dest.url, out.url)
    assert outcome.failures == [] and outcome.decoded == len(run.rows)
    assert {info.key for info in out.list()} == {
        "a.jpg", "b.bmp", "c.png", "d.tif.png", "deep.png", "e.png", "a copy.jpg", "a small.png", "c.gif.png",
        *(name for name in (JOURNAL,) if out.exists(name)),
    }  # fmt: skip
    assert out.read("a.jpg") == out.read("a copy.jpg") == jpeg
    assert out.read("b.bmp") == bitmap
    for name, data in (("c.png", drawing), ("c.gif.png", drawing), ("d.tif.png", lzw), ("deep.png", deep.getvalue())):
        assert np.array_equal(np.asarray(opened(out, name)), np.asarray(Image.open(io.BytesIO(data)))), name
    assert opened(out, "a small.png").size == (48, 32)
    assert psnr(opened(out, "e.png"), Image.open(io.BytesIO(picture(5)))) >= 30
    assert restore(dest.url, out.url).there == len(run.rows)


def test_a_form_that_no_longer_gives_the_bytes_fails_its_key(local_stores, tmp_path, model):
    source, dest = local_stores
    run = Run(source, dest, model)
    row = stored(run, "b.bmp", picture(2, format="BMP"), "exact")
    row["sha256"] = hashlib.sha256(b"other bytes").hexdigest()
    run.commit()
    outcome = restore(dest.url, str(tmp_path / "out"))
    assert [key for key, _ in outcome.failures] == ["b.bmp"]
    assert "does not come back to the byte" in outcome.failures[0][1]
