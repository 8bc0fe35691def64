"""The demo's bucket holds what it says; the server lives and dies with us; the whole demo runs (slow)."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from flows.demo import Planted, bucket, fill, surprises
from flows.embedded_s3 import SOURCE_BUCKET, embedded_s3


@pytest.fixture(scope="module")
def planted() -> dict[str, Planted]:
    return {item.key: item for item in bucket()}


def pixels(data: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(image if size is None else image.resize(size, Image.LANCZOS), np.float64)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(np.mean((a - b) ** 2), 1e-9))


def test_bucket_is_like_a_real_one(planted):
    assert 60 <= len(planted) <= 90
    kinds = Counter(item.kind for item in planted.values())
    assert set(kinds) == {
        *(
            "photo",
            "small",
            "text",
            "exact",
            "pixel",
            "reencoded",
            "resized",
            "noisy",
            "odd",
            "broken",
            "other",
        )
    }
    assert min(kinds.values()) >= 3
    assert max(len(key.encode()) for key in planted) == 900
    assert max(len(part.encode()) for key in planted for part in key.split("/")) <= 255
    assert {"shop/a.jpg", "shop/a.png"} <= set(planted)
    assert len({item.data for item in planted.values()}) == len(planted) - kinds["exact"]


def test_copies_are_copies(planted):
    for item in planted.values():
        if item.of is None:
            continue
        original = planted[item.of]
        assert original.of is None and "duplicate" in original.statuses and item.key > original.key
        if item.kind == "exact":
            assert item.data == original.data
        elif item.kind == "pixel":
            assert item.data != original.data
            assert np.array_equal(pixels(item.data), pixels(original.data)), item.key
        else:
            copy = pixels(item.data)
            assert psnr(copy, pixels(original.data, copy.shape[1::-1])) > 31, item.key


def test_odd_and_broken_files_are_what_they_claim(planted):
    def mode(key):
        return Image.open(io.BytesIO(planted[key].data)).mode

    assert [mode(f"odd/{name}") for name in ("print.jpg", "palette.png", "silhouette.png")] == [
        "CMYK",
        "P",
        "1",
    ]
    assert [mode(f"odd/{name}") for name in ("cut-out.png", "moon-fading.png", "heights.tif")] == [
        "RGBA",
        "LA",
        "F",
    ]
    assert planted["odd/deep.png"].data[24] == 16  # IHDR's bit depth
    assert Image.open(io.BytesIO(planted["odd/moving.gif"].data)).n_frames > 1
    assert Image.open(io.BytesIO(planted["odd/two-pages.tif"].data)).n_frames == 2
    assert Image.open(io.BytesIO(planted["icons/dot.png"].data)).size == (1, 1)
    assert Image.open(io.BytesIO(planted["icons/ribbon.png"].data)).size == (7, 900)
    for item in planted.values():
        if item.kind == "broken":
            with pytest.raises((OSError, Image.DecompressionBombError, SyntaxError)):
                Image.open(io.BytesIO(item.data)).load()
    assert len(planted["broken/bomb.png"].data) < 1000


def test_the_codecs_reader_agrees(planted):
    """What opens, what the codec cannot carry, what is broken and what is no picture, as planted."""
    from codec.pictures import files

    expected = {("kept", "compressed"): "UncarriedPicture", ("failed",): "BrokenPicture", ("skipped",): "NotAPicture"}
    for item in planted.values():
        try:
            files.open_picture(item.data)
            found = "a picture"
        except files.PictureError as error:
            found = type(error).__name__
        if item.data:  # zero bytes are named, whichever of the two they count as
            assert found == expected.get(item.statuses, "a picture"), item.key


def test_orientation_icc_exif_xmp_are_in(planted):
    turned = Image.open(io.BytesIO(planted["2021/06/IMG_2042.JPG"].data))
    assert turned.getexif()[0x0112] == 6 and turned.height > turned.width
    first = Image.open(io.BytesIO(planted["2021/06/IMG_2041.JPG"].data))
    assert first.info["icc_profile"] and first.getexif()[0x0110] == "Demo camera" and first.info["xmp"]


def test_fill_a_local_folder_with_the_same_every_time(tmp_path, planted):
    from tasks.stores.open import open_store

    store = open_store(str(tmp_path / "bucket"))
    assert fill(store) == planted
    assert {info.key: info.size for info in store.list()} == {k: len(v.data) for k, v in planted.items()}


@pytest.mark.server
def test_server_holds_the_bucket_and_restores_the_environment(monkeypatch):
    import boto3

    monkeypatch.setenv("AWS_PROFILE", "somebody-elses")
    before = dict(os.environ)
    with embedded_s3() as url:
        assert url.startswith("http://127.0.0.1:") and os.environ["AWS_ENDPOINT_URL"] == url
        client = boto3.client("s3")
        client.put_object(Bucket=SOURCE_BUCKET, Key="a b/ü%.jpg", Body=b"x", IfNoneMatch="*")
        with pytest.raises(client.exceptions.ClientError, match="PreconditionFailed"):
            client.put_object(Bucket=SOURCE_BUCKET, Key="a b/ü%.jpg", Body=b"y", IfNoneMatch="*")
        assert [o["Key"] for o in client.list_objects_v2(Bucket=SOURCE_BUCKET)["Contents"]] == ["a b/ü%.jpg"]
    assert dict(os.environ) == before


@pytest.mark.server
def test_server_dies_with_its_starter():
    code = (
        "import os, time\nfrom flows.embedded_s3 import embedded_s3\n"
        "with embedded_s3() as url:\n    print(url, flush=True); time.sleep(60)"
    )
    starter = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    port = int(starter.stdout.readline().strip().rpartition(":")[2])
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    starter.stdout.close()

    import socket

    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.1)
    raise AssertionError(f"a server still answers on port {port}")


def test_surprises_are_told(planted):
    blank = {"reason": None, "keeper_key": None, "denoised": False, "noise_sigma": 1.0}
    rows = []
    for item in planted.values():
        row = blank | {"key": item.key, "status": item.statuses[0], "denoised": item.kind == "noisy"}
        if row["status"] == "duplicate":
            row["keeper_key"] = item.of
        rows.append(row)
    assert surprises(planted, rows) == []
    by_key = {row["key"]: row for row in rows}
    by_key["broken/cut-off.jpg"]["status"] = "compressed"
    by_key["backup/2022/hubble.jpg"]["keeper_key"] = "2022/sky/north.jpg"
    by_key["night/cat-iso12800.png"]["denoised"] = False
    told = surprises(planted, [row for row in rows if row["key"] != "icons/dot.png"])
    assert len(told) == 4
    for key in ("icons/dot.png", "broken/cut-off.jpg", "backup/2022/hubble.jpg", "night/cat-iso12800.png"):
        assert any(key in line for line in told), key


@pytest.mark.slow
@pytest.mark.server
def test_the_whole_demo(tmp_path):
    """Two nights through the command line: objects end as planted, the second night finds nothing new."""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment = {name: value for name, value in environment.items() if name != "PREFECT_API_URL"}
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "demo", "--out", str(tmp_path / "out")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = re.search(r"objects ended as they were planted\.\n((?:  .*\n)*)", done.stdout)[1].splitlines()
    assert not told, told
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<html" in page and len(page) > 50_000
    assert "0 of them new or changed" in done.stderr and "second night" in done.stdout
