"""The HTML page: self-contained, safe from hostile keys, bounded, and its pictures really those of the bitstreams."""

import base64
import hashlib
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tasks.report import page, savings, sections, thumbnails
from tasks.report.schema import SCHEMA

RUN = "20260101T020000Z-ab12"
VOID = {"meta", "link", "img", "input", "br"}
EVIL = "\"><script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>'\x1b\u202e"


class Box:
    """A store in memory, as far as the page needs one."""

    def __init__(self, url: str):
        self.url, self.objects = url, {}

    def read(self, key, *, etag=None, max_bytes=None):
        return self.objects[key]

    def read_range(self, key, offset, length, *, etag=None):
        return self.objects[key][offset : offset + length]


class Checker(HTMLParser):
    """Counts elements, insists that every one is closed, collects what could make a request or run."""

    def __init__(self):
        super().__init__()
        self.open, self.count, self.addresses, self.handlers = [], {}, [], []

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data", "poster", "background"):
                self.addresses.append(value)
            if name.startswith("on"):
                self.handlers.append((tag, name))

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()
        elif tag not in ("line", "rect", "circle"):
            raise AssertionError(f"</{tag}> closes nothing; open: {self.open[-4:]}")


def checked(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    assert all(address.startswith(("data:", "#")) for address in checker.addresses)
    assert checker.handlers == [] and checker.count["script"] == 1
    assert not re.search(r"url\(|@import|https?://(?!aws)", re.sub(r"<(bdi|dd).*?</\1>", "", html).split("<body>")[0])
    return checker


def photo(seed: int, width: int = 480, height: int = 360) -> Image.Image:
    """Smooth colours with some texture."""
    noise = np.random.default_rng(seed)
    small = Image.fromarray(noise.integers(0, 255, (6, 8, 3), np.uint8)).resize((width, height), Image.BICUBIC)
    grain = noise.normal(0, 6, (height, width, 1))
    return Image.fromarray(np.clip(np.asarray(small) + grain, 0, 255).astype(np.uint8))


def coded(image: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def decode(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def table(*rows: dict) -> pa.Table:
    base = dict.fromkeys(SCHEMA.names) | {"first_run": RUN, "stored_bytes": 0, "source_bytes": 0}
    return pa.Table.from_pylist([base | row for row in rows], schema=SCHEMA)


def manifest(rows: pa.Table, **more) -> dict:
    return {
        "run_id": RUN, "source": "s3://photos", "started": "2026-01-01T02:00:00+00:00", "objects": rows.num_rows,
        "finished": "2026-01-01T02:00:30+00:00", "config": {"target": "ms-ssim=0.98"}, "versions": {"torch": "2"},
    } | more  # fmt: skip


@pytest.fixture(scope="module")
def night():
    """(table, source, dest): 23 pictures packed, duplicates of each kind, failures, hostile names everywhere."""
    source, dest = Box("s3://photos"), Box("s3://photos-pressed")
    rows, pack = [], b""
    for i in range(23):
        image = photo(i) if i % 5 else photo(i, 90, 70).convert("L")
        key = f"album {i % 3}/{i:02d}.png"
        out = io.BytesIO()
        image.save(out, "PNG")
        source.objects[key], bits = out.getvalue(), coded(image, 10 + 3 * i)
        error = np.asarray(image, float) - np.asarray(decode(bits), float)
        rows.append({
            "key": key, "status": "compressed", "source_bytes": len(source.objects[key]), "stored_bytes": len(bits),
            "output_key": "objects/p.pack", "output_offset": len(pack), "output_length": len(bits), "format": "PNG",
            "mode": image.mode, "width": image.width, "height": image.height, "quality": 10.0 + 3 * i,
            "psnr": 10 * math.log10(255**2 / np.mean(error**2)), "ms_ssim": 0.98 + i / 5000 if i % 5 else None,
            "bpp": 8 * len(bits) / image.width / image.height, "codec": "1", "model": "ab" * 8, "seconds": 0.5,
            "denoised": i == 7, "similar_to": {3: "album 1/01.png", 8: f"gone{EVIL}"}.get(i),
        })  # fmt: skip
        pack += bits
    dest.objects["objects/p.pack"] = pack
    for i, kind in enumerate(("exact", "pixel", "near", "near")):
        source.objects[f"copy {i}{EVIL}"] = source.objects["album 1/01.png"]
        rows.append({
            "key": f"copy {i}{EVIL}", "status": "duplicate", "source_bytes": 500, "output_key": "objects/p.pack",
            "keeper_key": "album 1/01.png", "duplicate_kind": kind, "hamming_distance": i, "format": "PNG",
            "width": 480, "height": 360, "reason": f"larger true resolution {EVIL}", "psnr_source": 32.0,
        })  # fmt: skip
    rows.append({"key": EVIL, "status": "failed", "source_bytes": 9, "reason": EVIL, "error": f"{EVIL}: {EVIL}"})
    rows.append({"key": "cmyk.jpg", "status": "kept", "source_bytes": 10, "reason": "CMYK", "format": EVIL})
    rows.append({"key": "x.txt", "status": "skipped", "source_bytes": 3, "reason": "not a picture"})
    return table(*rows), source, dest


@pytest.fixture(scope="module")
def html(night):
    rows, source, dest = night
    return page.build(rows, manifest(rows, source=EVIL, config={EVIL: EVIL}), source, dest, decode=decode)


def test_opens_offline_and_escapes_everything(html):
    checker = checked(html)
    assert "<script>alert" not in html and "onerror=alert(2)>" not in html.replace("&gt;", ">").split("<body>")[0]
    assert "\x1b" not in html and "\u202e" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert checker.count["svg"] == 3 and checker.count["section"] == 10
    html.encode()


def test_policy_allows_nothing_but_its_own_script(html):
    script = re.search(r"<script>(.*)</script>", html, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.replace("style-src 'unsafe-inline'", "")
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|WebSocket|eval\(", script)


def test_pictures_come_from_the_codec_s_own_bitstreams(tmp_path):
    """With a small untrained model that only DEST holds, as after an upgrade of the package."""
    import codec
    from codec.network.config import Config
    from codec.network.files import save_model
    from codec.network.night_codec import NightCodec
    from codec.tensors import model_id

    model = tmp_path / "small.safetensors"
    sizes = dict(channels=16, latent=48, hyper=8, encoder_blocks=1, decoder_blocks=1, groups=(8, 16, 24))
    save_model(NightCodec(Config(**sizes)), model)
    image, source, dest = photo(3), Box("s3://photos"), Box("s3://photos-pressed")
    source.objects["a.png"] = codec.picture_bytes(codec.picture_from_image(image))
    bits = dest.objects["objects/a.npi"] = codec.encode(image, 60, model=model)
    row = {
        "key": "a.png", "status": "compressed", "source_bytes": len(source.objects["a.png"]), "psnr": 30.0, "bpp": 1.0,
        "stored_bytes": len(bits), "output_key": "objects/a.npi", "width": 480, "height": 360,
        "model": model_id(model.read_bytes()),
    }  # fmt: skip
    rows = table(row)
    alone = page.build(rows, manifest(rows), source, dest)
    assert "could not be decoded" in alone and '<div class="compare' not in alone
    dest.objects[f"models/{row['model']}.safetensors"] = model.read_bytes()
    html = page.build(rows, manifest(rows), source, dest)
    sides = re.findall(r'base64,([^"]+)" alt="(original|decoded)"', html)
    before, after = (np.asarray(decode(base64.b64decode(side)).convert("RGB"), float) for side, _ in sides)
    truth = np.asarray(codec.decode(bits, model=model), float)
    assert before.shape == after.shape == (300, 400, 3)
    x, y, wide, high = thumbnails.worst_place(np.asarray(image), truth.astype(np.uint8), thumbnails.CROP)
    assert np.abs(after - truth[y : y + high, x : x + wide]).mean() < 4
    dest.objects[f"models/{row['model']}.safetensors"] = b"damaged"
    assert "under DEST is damaged" in page.build(rows, manifest(rows), source, dest)


def test_twenty_worst_with_both_sides(html, night):
    rows, source, dest = night
    pairs = re.findall(r'<div class="compare[^>]*><img src="data:image/[a-z]+;base64,([^"]+)".*?base64,([^"]+)"', html)
    assert len(pairs) == 20
    worst = sections.worst_rows(rows)[0]
    before, after = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(side))).convert("RGB"), float) for side in pairs[0]
    )
    truth = np.asarray(thumbnails.flat(decode(thumbnails.Album(source, dest)._bitstream(worst))), float)
    x, y, wide, high = thumbnails.worst_place(
        np.asarray(thumbnails.flat(Image.open(io.BytesIO(source.objects[worst["key"]])))),
        truth.astype(np.uint8),
        thumbnails.CROP,
    )
    assert before.shape == (high, wide, 3)
    assert np.abs(after - truth[y : y + high, x : x + wide]).mean() < 4  # the embedded crop is the decoded bitstream
    assert np.abs(after - before).mean() > np.abs(after - truth[y : y + high, x : x + wide]).mean()
    values = [row["psnr"] for row in sections.worst_rows(rows)]
    assert values == sorted(values) and len(values) == 20


def test_figures_points_groups_and_causes_are_there(html):
    assert html.count('class="dot') == 23 and html.count("<title>") >= 23 + 2 + 1
    duplicates, similar = html.split('id="duplicates"')[1].split('id="similar"')
    assert duplicates.count('<div class="group">') == 1 and "4 copies of" in duplicates
    similar = similar.split("</section>")[0]
    assert similar.count('<div class="group">') == 2 and "2 pictures look much like another one" in similar
    assert similar.count("by hand</b>") == 2 and similar.count("much like it</b>") == 1  # the other's row is gone
    assert "distance 3, 32.0 dB" in html and "same bytes" in html and "same pixels" in html
    assert "larger true resolution" in html and "CMYK" in html and "not a picture" in html
    assert "After removing 27 originals" in html and "list prices of" in html
    assert "identical" not in html.split("<main>")[1].split('id="quality"')[0]


def test_space_for_pictures_is_bounded(night):
    rows, source, dest = night
    for bound in (400_000, 60_000, 1_000):
        small = page.build(rows, manifest(rows), source, dest, decode=decode, picture_bytes=bound)
        assert sum(map(len, re.findall(r"data:image/[a-z]+;base64,[^\"]+", small))) <= bound
        checked(small)
    assert "space for pictures was used up" in small


def test_time_for_pictures_is_bounded(night):
    rows, source, dest = night
    late = page.build(rows, manifest(rows), source, dest, decode=decode, seconds=-1)
    assert "data:image" not in late and "time for pictures was used up" in late


def test_originals_gone_or_no_stores(night):
    rows, _, dest = night
    gone = page.build(rows, manifest(rows), Box("s3://empty"), dest, decode=decode)
    assert gone.count("the original could not be read: KeyError") >= 20
    assert gone.count('<img src="data:image/webp') == 4  # the keeper and three similar ones, from their bitstreams
    checked(page.build(rows, manifest(rows), None, None))


def test_broken_bitstream_is_a_sentence(night):
    rows, source, dest = night

    def refuse(data):
        raise ValueError("checksum <b>wrong</b>")

    broken = page.build(rows, manifest(rows), source, dest, decode=refuse)
    assert broken.count("could not be decoded: ValueError: checksum &lt;b&gt;wrong") == 20
    checked(broken)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"key": "x", "status": "failed"}],
        [{"key": "x", "status": "compressed", "source_bytes": 10, "stored_bytes": 20, "output_key": "o", "bpp": 1.0,
          "psnr": math.inf}],
        [{"key": "x", "status": "compressed", "source_bytes": 10, "stored_bytes": 2, "output_key": "o", "bpp": 1.0,
          "psnr": 40.0, "width": 1, "height": 1}],
        [{"key": "x", "status": "duplicate", "source_bytes": 10, "keeper_key": "gone", "duplicate_kind": "exact"}],
    ],
    ids=["nothing", "failed", "larger and exact", "one point", "keeper gone"],
)  # fmt: skip
def test_odd_nights(rows):
    rows = table(*rows)
    html = page.build(rows, manifest(rows), None, None)
    checked(html)
    assert "Nightpress" in html and "nan" not in re.sub(
        r"<style>.*?</style>|<script>.*?</script>", "", html, flags=re.S
    )


def test_a_large_bucket_makes_no_larger_page():
    n = 200_000
    random = np.random.default_rng(0)
    status = np.array(["compressed", "duplicate", "kept", "failed", "skipped"])[random.integers(0, 5, n)]
    pressed, copy = status == "compressed", status == "duplicate"
    columns = {name: pa.nulls(n, SCHEMA.field(name).type) for name in SCHEMA.names}
    columns |= {
        "key": pa.array([f"{i % 997:03d}/{i}.jpg" for i in range(n)]),
        "status": pa.array(status),
        "first_run": pa.array([RUN] * n),
        "source_bytes": pa.array(random.integers(1, 10**6, n)),
        "stored_bytes": pa.array(np.where(pressed, 1000, 0)),
        "output_key": pa.array([f"o/{i // 50}" for i in range(n)], mask=~(pressed | copy)),
        "output_length": pa.array(np.full(n, 1000), mask=~pressed),
        "psnr": pa.array(random.normal(36, 2, n), mask=~pressed),
        "ms_ssim": pa.array(random.uniform(0.98, 0.99, n), mask=~pressed),
        "bpp": pa.array(random.lognormal(-1, 0.5, n), mask=~pressed),
        "keeper_key": pa.array([f"{i % 5000}" for i in range(n)], mask=~copy),
        "duplicate_kind": pa.array(["near"] * n, mask=~copy),
        "reason": pa.array(
            [f"cause number {chr(97 + i % 26)}{chr(97 + i // 26 % 26)}" for i in range(n)], mask=pressed
        ),
        "model": pa.array(["ab" * 8] * n),
        "similar_to": pa.array(["0/0.jpg"] * n, mask=~pressed),
    }
    rows = pa.table([columns[name].cast(SCHEMA.field(name).type) for name in SCHEMA.names], schema=SCHEMA)
    html = page.build(rows, manifest(rows), None, None)
    checked(html)
    assert len(html) < 800_000
    assert html.count('class="dot') == sections.POINTS and html.count("dot low") == 20
    assert "more such pictures" in html and "more folders" in html and "more groups" in html and "more causes" in html


def test_a_broken_proof_changes_the_heading(night):
    rows, _, dest = night
    assert "<h2>Nothing lost</h2>" in page.build(rows, manifest(rows), None, dest)
    lost = table({"key": "x", "status": "compressed", "source_bytes": 10, "output_key": None})
    html = page.build(lost, manifest(lost), None, None)
    assert "Nothing lost" not in html and "<h2>Look at this before" in html and "class=broken" in html


def test_a_later_night_with_originals_removed_and_classes(night):
    rows, source, dest = night
    away = {"removed_at_source": {"objects": 3, "source_bytes": 9 * 10**9, "stored_bytes": 10**9}}
    classes = pa.array(["STANDARD_IA", None, "INTELLIGENT_TIERING"] * 10)
    mixed = rows.append_column("storage_class", classes.slice(0, rows.num_rows))
    html = page.build(mixed, manifest(rows, **away), None, dest, decode=decode)
    checked(html)
    for words in ("and 3 removed since", "3 originals were removed already", "9.0 GB", "S3 Standard-IA (10 objects)",
                  "INTELLIGENT_TIERING at S3 Standard’s prices"):  # fmt: skip
        assert words in html, words


def test_unknown_region_is_an_error(night):
    with pytest.raises(savings.UnknownPrice):
        page.build(night[0], manifest(night[0]), None, None, region="nowhere")
