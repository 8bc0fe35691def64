"""A night and a restore over drawn pictures of the kinds that people lose: what comes back says what it said; what
cannot come back keeps its original.
"""

import csv
import io
import struct
import zlib

import numpy as np
import pytest
import skimage.data
from PIL import Image, PngImagePlugin

from codec.pictures.metadata import same_facts
from codec.pictures.metadata_readers import bare_png, read_metadata

pytestmark = pytest.mark.server

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF>'
    b"</x:xmpmeta>"
)
VIDEO = struct.pack(">I4s4sI", 24, b"ftyp", b"mp42", 0) + b"mp42isom" + np.random.default_rng(1).bytes(30_000)


def photograph(place: int) -> Image.Image:
    """A different part of a photograph for each place."""
    image = Image.fromarray((skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea())[place % 3])
    return image.crop((20 + 40 * (place // 3), 20, 240 + 40 * (place // 3), 200))


def file(image: Image.Image, format: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def jpeg(place: int, *segments: tuple[int, bytes], **options) -> bytes:
    data = file(photograph(place), "JPEG", quality=92, **options)
    added = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in segments)
    return data[:20] + added + data[20:]


def png(place: int, *chunks: tuple[bytes, bytes], wrong: bool = False) -> bytes:
    data = file(photograph(place), "PNG")
    added = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ wrong)
        for kind, body in chunks
    )
    return data[:33] + added + data[33:]


def with_exif(place: int, caption: str | None) -> bytes:
    exif = Image.Exif()
    if caption:
        exif[0x010E], exif[34853] = caption, {1: "N", 2: (38.0, float(len(caption)), 0.0)}
    return file(photograph(place), "PNG", **({"exif": exif} if caption else {}))


def damaged(place: int) -> bytes:
    data = jpeg(place)
    start = data.index(b"\xff\xda") + 2000
    return data[:start] + bytes(len(data) - start - 2) + b"\xff\xd9"


def labels() -> bytes:
    numbers = np.repeat(np.repeat(np.random.default_rng(2).integers(0, 9, (8, 9), np.uint8), 24, 0), 24, 1)
    return file(Image.fromarray(numbers), "PNG")


def tiff_with_a_fifth_band() -> bytes:
    data = file(photograph(10).convert("RGBA"), "TIFF")
    return data.replace(struct.pack("<HHIHH", 338, 3, 1, 2, 0), struct.pack("<HHIHH", 338, 3, 1, 0, 0))


IPTC = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x12\x1c\x02\x78\x00\x0dHafen, 1972. "
# Each comes back with all that it says
SPEAK = {
    "iptc.jpg": jpeg(0, (0xED, IPTC)),
    "comment.jpg": jpeg(1, (0xFE, b"negative 1972-114, box 7")),
    "dense.jpg": jpeg(2, dpi=(300, 300)),
    "padded.jpg": jpeg(3) + bytes(4096),
    "turned by xmp.jpg": jpeg(4, (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)),
    "colours.png": png(5, (b"gAMA", struct.pack(">I", 45455)), (b"cHRM", struct.pack(">8I", *range(30000, 30008)))),
    "text.png": png(
        6, (b"tEXt", b"parameters\0a harbour, seed 7"), (b"iTXt", b"Copyright\0\0\0\0\0" + "© José".encode())
    ),
    "large text.png": png(7, (b"zTXt", b"log\0\0" + zlib.compress(b"line of a log\n" * 150_000)), wrong=True),
    "lisbon.png": with_exif(8, "Lisbon"),
    "porto.png": with_exif(8, "Porto by night"),
    "nowhere.png": with_exif(8, None),
}
# None of these may be removed at SOURCE, unless its own bytes or pixels come back
STAY = {
    "motion.jpg": jpeg(9) + VIDEO,
    "depth.jpg": jpeg(9) + jpeg(0),
    "archive.png": png(9) + b"PK\x03\x04" + bytes(range(200)),
    "damaged.jpg": damaged(9),
    "labels.png": labels(),
    "five bands.tif": tiff_with_a_fifth_band(),
}


@pytest.fixture(scope="module")
def night(tmp_path_factory, machinery):
    """(rows by key, removable keys, folder of what was restored)."""
    from flows.nightly import run_night
    from flows.settings import RunSettings
    from tasks.night.catalog import read_report
    from tasks.night.runs import find_run
    from tasks.recovery.restore import restore
    from tasks.stores.open import open_store

    folder = tmp_path_factory.mktemp("night")
    source, dest, out = (folder / name for name in ("source", "dest", "out"))
    source.mkdir()
    for key, data in (SPEAK | STAY).items():
        (source / key).write_bytes(data)
    options = {"source": str(source), "dest": str(dest), "target": "psnr=34", "dask": machinery, "min_gain": 0.0}
    run_id = run_night(RunSettings.from_parameters(options))["run_id"]
    store = open_store(str(dest))
    rows = {row["key"]: row for row in read_report(store, find_run(store, run_id)).to_pylist()}
    with open(dest / "runs" / run_id / "removable.csv", newline="") as lines:
        removable = {line[1] for line in csv.reader(lines)}
    assert not restore(str(dest), str(out)).failures
    return rows, removable, out


def restored(out, key: str) -> bytes:
    return next(path for path in (out / key, out / f"{key}.png") if path.exists()).read_bytes()


def said(data: bytes):
    return read_metadata(data, "PNG" if data[:4] == b"\x89PNG" else "JPEG")


@pytest.mark.parametrize("key", SPEAK)
def test_what_a_file_says_comes_back(night, key):
    rows, _, out = night
    assert rows[key]["status"] in ("compressed", "duplicate"), rows[key]["reason"]
    data = restored(out, key)
    assert same_facts(said(SPEAK[key]), said(data))
    shown, source = (
        Image.open(io.BytesIO(bare_png(each) if each[1:4] == b"PNG" else each)) for each in (data, SPEAK[key])
    )
    assert shown.size == source.size


@pytest.mark.parametrize("key", STAY)
def test_what_cannot_come_back_keeps_its_original(night, key):
    rows, removable, out = night
    row = rows[key]
    assert row["status"] == "kept" or row.get("gives_back") in ("bytes", "pixels")
    assert key.replace(" ", "%20") not in removable or row.get("gives_back") in ("bytes", "pixels")
    if row["status"] == "kept":
        assert row["reason"] and restored(out, key) == STAY[key]


def test_pictures_of_one_look_keep_their_own_places(night):
    rows, _, out = night
    assert sorted(rows[key]["status"] for key in ("lisbon.png", "porto.png", "nowhere.png"))[0] == "compressed"
    captions = [
        Image.open(io.BytesIO(restored(out, key))).getexif().get(0x010E)
        for key in ("lisbon.png", "porto.png", "nowhere.png")
    ]
    assert captions == ["Lisbon", "Porto by night", None]
    assert PngImagePlugin.is_cid(b"eXIf") and b"eXIf" not in restored(out, "nowhere.png")
