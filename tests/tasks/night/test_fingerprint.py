"""Fingerprint step on folders: every kind of object becomes the right row; nothing raises."""

import hashlib
import io
from pathlib import Path

import imagehash
import numpy as np
import pytest
import skimage.data
from PIL import Image

from tasks.night import fingerprint
from tasks.night.catalog import CATALOG_SCHEMA
from tasks.night.runs import Night, store_of
from tasks.night.shards import Step, read_ahead
from tasks.stores.base import Changed

LISTED = ("key", "size", "etag", "modified", "version", "storage_class")
STEP = Step("fingerprint", "tasks.night.fingerprint", "inspect_object")


def saved(image, format, **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def photograph():
    return Image.open(Path(skimage.data.__file__).with_name("astronaut.png")).convert("RGB").resize((320, 240))


@pytest.fixture
def look(tmp_path):
    """look(name, data) -> row of an object of SOURCE; `before` runs between listing and reading."""

    def one(name, data, before=lambda path: None, **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        night = Night("20260101T000000Z-0000", str(tmp_path), str(tmp_path / "dest"), **options)
        (item,) = [{name: getattr(i, name) for name in LISTED} for i in store_of(str(tmp_path)).list() if i.key == name]
        before(path)
        ((item, fetched),) = read_ahead(STEP, night, [item])
        seen = fingerprint.inspect_object(night, item, fetched)
        fingerprint.gather(night, "0", [seen])  # fits the schema
        return seen.row

    return one


def test_a_photograph(look, photograph):
    data = saved(photograph, "JPEG", quality=90)
    row = look("a/photo.jpg", data)
    decoded = Image.open(io.BytesIO(data))
    assert row.get("status") is None and row["format"] == "JPEG" and row["mode"] == "RGB"
    assert (row["width"], row["height"], row["size"]) == (320, 240, len(data))
    assert row["sha256"] == hashlib.sha256(data).hexdigest() and len(row["pixel_sha256"]) == 64
    assert row["phash"] == str(imagehash.phash(decoded)) and row["hash_method"] == "full"
    assert row["denoised"] is False and row["noise_sigma"] < 6 and row["jpeg_quality"] == 90
    assert row["seconds"] > 0 and set(row) <= set(CATALOG_SCHEMA.names)


def test_equal_pixels_in_other_files_have_equal_pixel_hashes(look, photograph):
    rows = [look(f"{kind}", saved(photograph, kind)) for kind in ("PNG", "BMP", "TIFF")]
    assert len({row["pixel_sha256"] for row in rows}) == 1 and len({row["sha256"] for row in rows}) == 3


def test_orientation_counts_in_size_and_hashes(look, photograph):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = look("turned.png", saved(photograph, "PNG", exif=exif))
    assert (turned["width"], turned["height"]) == (240, 320)
    upright = look("upright.png", saved(photograph.transpose(Image.Transpose.ROTATE_270), "PNG"))
    assert turned["phash"] == upright["phash"] and turned["pixel_sha256"] == upright["pixel_sha256"]


def test_a_colour_profile_tells_equal_pixels_apart(look, photograph):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    plain, other = look("a.png", saved(photograph, "PNG")), look("b.png", saved(photograph, "PNG", icc_profile=profile))
    assert plain["pixel_sha256"] == other["pixel_sha256"] and plain["colour_sha256"] != other["colour_sha256"]
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert look("c.png", saved(photograph, "PNG", icc_profile=srgb))["colour_sha256"] == plain["colour_sha256"]


def test_noise_is_planned_to_be_removed_only_where_asked(look, photograph):
    rng = np.random.default_rng(1)
    noisy = np.clip(np.asarray(photograph) + rng.normal(0, 25, (240, 320, 3)), 0, 255).astype(np.uint8)
    data = saved(Image.fromarray(noisy), "PNG")
    row = look("n.png", data, denoise=True)
    assert row["denoised"] is True and row["reason"].startswith("cleaned: noise of sigma 2")
    row = look("n.png", data)
    assert row["denoised"] is False and row["noise_sigma"] > 10 and not row.get("reason")
    dusty = np.array(photograph)
    dusty[rng.integers(0, 240, 900), rng.integers(0, 320, 900)] = 255
    data = saved(Image.fromarray(dusty), "PNG")
    row = look("d.png", data, denoise=True)
    assert row["denoised"] is True and "pixels" in row["reason"] and "impulses" in row["reason"]
    assert look("d.png", data)["denoised"] is False


@pytest.mark.parametrize(
    "name, make, status, words",
    [
        ("zero.jpg", lambda p: b"", "failed", "zero bytes"),
        ("text.jpg", lambda p: b"no picture at all, just words", "skipped", "not an image"),
        ("cut.jpg", lambda p: saved(p, "JPEG")[:4000], "failed", "truncated"),
        ("cmyk.jpg", lambda p: saved(p.convert("CMYK"), "JPEG"), "kept", "CMYK"),
        ("film.gif", lambda p: saved(p, "GIF", save_all=True, append_images=[p.rotate(90)]), "kept", "no lossy form"),
    ],
)
def test_what_is_no_sound_picture(look, photograph, name, make, status, words):
    row = look(name, make(photograph))
    assert row["status"] == status and words in row["reason"]
    assert bool(row.get("error")) == (status == "failed")
    assert row["stored_bytes"] == 0 and row["sha256"] and not row["retry"]


def test_too_many_pixels_fail_before_they_are_decoded(look, photograph):
    row = look("big.png", saved(photograph, "PNG"), max_pixels=1000)
    assert row["status"] == "failed" and "--max-pixels" in row["reason"] and row["width"] == 320


def test_changed_and_vanished_objects_are_tried_again_next_night(look, photograph):
    data = saved(photograph, "PNG")
    changed = look("c.png", data, before=lambda path: path.write_bytes(data[:-1] + b"!"))
    gone = look("g.png", data, before=lambda path: path.unlink())
    for row, kind in ((changed, "Changed"), (gone, "NotFound")):
        assert row["status"] == "failed" and row["error"].startswith(kind) and row["retry"]


def test_large_files_that_are_no_pictures_are_not_read_whole(look, monkeypatch, photograph):
    monkeypatch.setattr(fingerprint, "PEEK_ABOVE", 10_000)
    row = look("film.mp4", b"\0\0\0\x18ftypmp42" + bytes(50_000))
    assert row["status"] == "skipped" and row.get("sha256") is None
    row = look("large.png", saved(photograph, "PNG"))
    assert row.get("status") is None and row["sha256"]


def test_a_bug_in_a_decoder_is_a_row(look, photograph, monkeypatch):
    def broken(*_):
        raise RuntimeError("boom")

    monkeypatch.setattr(fingerprint, "open_picture", broken)
    row = look("a.png", saved(photograph, "PNG"))
    assert row["status"] == "failed" and "boom" in row["reason"]


def test_reading_ahead_keeps_order_and_hands_over_errors(tmp_path):
    for i in range(20):
        (tmp_path / f"{i:02d}").write_bytes(bytes([i]))
    night = Night("20260101T000000Z-0000", str(tmp_path), str(tmp_path / "dest"))
    items = [{"key": f"{i:02d}", "size": 1, "etag": "wrong" if i == 7 else None, "modified": None} for i in range(20)]
    got = list(read_ahead(STEP, night, items))
    assert [item["key"] for item, _ in got] == [f"{i:02d}" for i in range(20)]
    assert isinstance(got[7][1], Changed) and got[8][1][0] == b"\x08"
