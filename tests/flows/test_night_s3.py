"""The same night from S3 as from folders: moto's mock, and Ceph's real radosgw with a real kill."""

import gzip
import io
import json
import os
import time
from email.header import decode_header
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from flows.settings import RunSettings
from tasks.night.catalog import read_report
from tasks.stores.open import open_store

pytestmark = pytest.mark.server
VARYING = ("first_run", "seconds")
LATER = "copy.png"  # younger than what it is a copy of; S3 tells ages in whole seconds


def bucket_files():
    """Photographs, copies, noise, broken files; keys as people really have them."""

    def saved(image, format, **options):
        out = io.BytesIO()
        image.save(out, format, **options)
        return out.getvalue()

    cat = Image.open(Path(skimage.data.__file__).with_name("chelsea.png")).convert("RGB")
    files = {}
    for i in range(4):
        crop = cat.crop((i * 50, i * 20, i * 50 + 220, i * 20 + 200))
        files[f"photos/{i} ü %2F.png"] = saved(crop, "PNG")
        files[f"photos/{i} ü %2F.jpg"] = saved(crop, "JPEG", quality=93)
    noisy = np.asarray(cat.crop((0, 0, 200, 200))) + np.random.default_rng(0).normal(0, 25, (200, 200, 3))
    files |= {
        LATER: files["photos/1 ü %2F.png"],
        "noisy.png": saved(Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)), "PNG"),
        "cut.jpg": files["photos/0 ü %2F.jpg"][:3000],
        "zero": b"",
        "words.txt": b"hello",
    }
    return files


def a_night(source, dest, **options):
    from flows.nightly import run_night

    parameters = {"source": source.url, "dest": dest.url, "target": "psnr=32", "workers": 2, "shard_size": 4} | options
    manifest = run_night(RunSettings.from_parameters(parameters))
    return manifest, read_report(dest, manifest).to_pylist()


def plain(rows, run_id):
    return [
        {name: value.replace(run_id, "RUN") if isinstance(value, str) else value for name, value in row.items()}
        | dict.fromkeys(VARYING)
        for row in rows
    ]


@pytest.fixture(scope="module")
def from_folders(tmp_path_factory, machinery):
    """Manifest and rows of the night between two folders."""
    folder = tmp_path_factory.mktemp("night")
    source, dest = open_store(str(folder / "source")), open_store(str(folder / "dest"))
    for key, data in bucket_files().items():
        source.write(key, data)
        age = 1_700_000_000 + 10 * (key == LATER)
        os.utime(folder / "source" / key, (age, age))
    return a_night(source, dest, workers=None, dask=machinery)


def same_night(from_folders, source, dest):
    for key, data in sorted(bucket_files().items(), key=lambda item: item[0] == LATER):
        if key == LATER:
            time.sleep(1.1)
        source.write(key, data, content_type="image/x-test", metadata={"owner": "ü"})
    manifest, rows = a_night(source, dest)
    expected, expected_rows = from_folders
    assert plain(rows, manifest["run_id"]) == plain(expected_rows, expected["run_id"])
    assert manifest["counts"] == expected["counts"] and manifest["stored_bytes"] == expected["stored_bytes"]
    lines = dest.read(f"runs/{manifest['run_id']}/removable.csv").decode().splitlines()
    assert len(lines) == manifest["removable"]["objects"] > 5
    assert all(line.startswith(f"{source.bucket},pre%20fix/") for line in lines)
    again, rows_again = a_night(source, dest)
    assert rows_again == rows and again["workers"] == 0
    return manifest


def test_a_night_on_moto(from_folders, moto_stores):
    source, dest = moto_stores
    manifest = same_night(from_folders, source, dest)
    from tasks.night.catalog import read_catalog

    catalog = read_catalog(dest, manifest).to_pylist()
    pressed = next(row for row in catalog if row["status"] == "compressed")
    owner = decode_header(json.loads(pressed["metadata"])["owner"])  # as S3 gives back what is not ASCII: RFC 2047
    assert pressed["content_type"] == "image/x-test" and owner == [("ü".encode(), "utf-8")]


@pytest.mark.slow
def test_a_night_on_radosgw(from_folders, radosgw_stores):
    same_night(from_folders, *radosgw_stores)


def test_what_objects_say_of_themselves_on_moto(with_prefect, moto_stores):
    """Tags, Expires, redirects, a name in another script: on what is decoded, on a duplicate of it, on what is kept."""
    from tasks.recovery.restore import restore

    source, dest = moto_stores
    said = {
        "CacheControl": "max-age=60", "ContentDisposition": 'attachment; filename="写真 Übung.jpg"',
        "ContentEncoding": "identity", "ContentLanguage": "de", "Expires": "Wed, 21 Oct 2026 07:28:00 GMT",
        "WebsiteRedirectLocation": "/pictures/other.jpg", "Tagging": "project=North%20%2B%20Co",
    }  # fmt: skip
    photo = bucket_files()["photos/1 ü %2F.png"]
    packed = said | {"ContentEncoding": "gzip", "Tagging": "kept=yes"}
    objects = {
        "a.png": (photo, said), "b.png": (photo, said | {"Tagging": "copy=1"}), "c.jpg": (gzip.compress(photo), packed)
    }  # fmt: skip
    for key, (data, headers) in objects.items():
        source.write(key, data, content_type="image/png", headers=headers)
    _, rows = a_night(source, dest)
    outcome = {row["key"]: row for row in rows}
    assert sorted(row["status"] for row in rows) == ["compressed", "duplicate", "kept"]
    assert "gzip" in outcome["c.jpg"]["reason"]
    out = open_store(f"s3://{dest.bucket}/restored")
    assert not restore(dest.url, out.url).failures
    for key, (_, headers) in objects.items():
        assert out.fetch(key)[1].headers == headers, key
