"""`nightpress dedup` and `similar` on a folder with planted copies."""

import io
import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import skimage.data
from PIL import Image

from flows.cli import main
from tasks.duplicates.scan import GROUPS_SCHEMA


def photograph(name: str) -> Image.Image:
    return Image.open(Path(skimage.data.__file__).parent / name).convert("RGB")


def encoded(image: Image.Image, format: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A folder of pictures, which is only read."""
    folder = tmp_path_factory.mktemp("photos")
    cat, coffee = photograph("chelsea.png"), photograph("coffee.png")
    files = {
        "cat.png": encoded(cat, "PNG"),
        "same/cat again.png": encoded(cat, "PNG"),
        "cat.webp": encoded(cat, "WEBP", lossless=True),
        "cat small.jpg": encoded(cat.resize((225, 150), Image.Resampling.BICUBIC), "JPEG", quality=90),
        "cat q80.jpg": encoded(cat, "JPEG", quality=80),
        "cat big.png": encoded(cat.resize((902, 600), Image.Resampling.BICUBIC), "PNG"),
        "cat mirrored.jpg": encoded(cat.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "JPEG"),
        "<b>coffee & cream.jpg": encoded(coffee, "JPEG", quality=90),
        "<b>coffee & cream copy.jpg": encoded(coffee, "JPEG", quality=90),
        "white.png": encoded(Image.new("RGB", (300, 200), (255, 255, 255)), "PNG"),
        "grey.png": encoded(Image.new("RGB", (300, 200), (250, 250, 250)), "PNG"),
        "notes.txt": b"no picture",
        "broken.jpg": encoded(coffee, "JPEG")[:5000],
        "empty.jpg": b"",
        "empty too.jpg": b"",
    }
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def test_groups_parquet_page_and_json(source, tmp_path, capsys):
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    assert main(["dedup", str(source), "--out", str(tmp_path / "out"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before

    groups = {group["keeper"]: group for group in result["group_list"]}
    assert len(groups) == 2 and result["objects"] == len(before) and result["unreadable"] == 4
    cats = next(group for key, group in groups.items() if "cat" in key)
    assert cats["keeper"] in ("cat.png", "same/cat again.png")
    kinds = {member["key"]: member["duplicate_kind"] for member in cats["members"]}
    kinds.pop("same/cat again.png" if cats["keeper"] == "cat.png" else "cat.png")
    assert kinds == {
        "cat.webp": "pixel",
        "cat small.jpg": "near",
        "cat q80.jpg": "near",
        "cat big.png": "near",
    }
    reasons = {member["key"]: member["reason"] for member in cats["members"]}
    assert "less lossy format: PNG against JPEG" in reasons["cat q80.jpg"]
    assert "larger" in reasons["cat small.jpg"] and "as much detail in fewer pixels" in reasons["cat big.png"]

    table = pq.read_table(tmp_path / "out" / "groups.parquet")
    assert table.schema.equals(GROUPS_SCHEMA)
    rows = table.to_pylist()
    assert sum(row["freed_bytes"] for row in rows) == result["freed_bytes"]
    assert all((row["keeper_key"] == row["key"]) == (row["duplicate_kind"] is None) for row in rows)
    keepers = {row["keeper_key"] for row in rows}
    assert not keepers & {row["key"] for row in rows if row["duplicate_kind"]}

    page = (tmp_path / "out" / "duplicates.html").read_text()
    assert "<b>coffee" not in page and "&lt;b&gt;coffee &amp; cream.jpg" in page
    assert page.count("data:image/webp;base64,") == len(rows)
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and "<script" not in page


def test_altered_copies_are_shown_and_free_nothing(source, tmp_path, capsys):
    command = ["dedup", str(source), "--dedup-embedding", "copy", "--out", str(tmp_path / "out"), "--json"]
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out)
    (cats,) = result["altered_list"]
    (mirrored,) = cats["members"]
    assert cats["keeper"] in ("cat.png", "same/cat again.png") and cats["freed_bytes"] == 0
    assert mirrored["key"] == "cat mirrored.jpg" and mirrored["duplicate_kind"] == "altered"
    assert mirrored["similarity"] > 0.5 and mirrored["inliers"] > 50 and "a mirror image" in mirrored["reason"]
    assert result["duplicates"]["altered"] == 1 and len(result["group_list"]) == result["groups"] == 2

    rows = pq.read_table(tmp_path / "out" / "groups.parquet").to_pylist()
    assert sum(row["freed_bytes"] for row in rows) == result["freed_bytes"]
    (row,) = (row for row in rows if row["duplicate_kind"] == "altered")
    assert (row["inliers"], row["freed_bytes"]) == (mirrored["inliers"], 0)
    assert row["similarity"] == pytest.approx(mirrored["similarity"])
    page = (tmp_path / "out" / "duplicates.html").read_text()
    assert page.count("data:image/webp;base64,") == len(rows) and "Altered copies" in page
    assert f"similarity {row['similarity']:.2f}, {row['inliers']} points" in page


def test_an_altered_copy_may_have_copies_of_its_own(tmp_path, capsys):
    cat = photograph("chelsea.png")
    part = cat.crop((60, 40, 400, 290))
    cat.save(tmp_path / "cat.png")
    part.save(tmp_path / "part.png")
    part.save(tmp_path / "part.jpg", quality=80)
    assert main(["dedup", str(tmp_path), "--dedup-embedding", "copy", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    found = {
        name: [(group["keeper"], [row["key"] for row in group["members"]]) for group in result[name]]
        for name in ("group_list", "altered_list")
    }
    assert found == {"group_list": [("part.png", ["part.jpg"])], "altered_list": [("cat.png", ["part.png"])]}
    assert result["freed_bytes"] == (tmp_path / "part.jpg").stat().st_size
    assert main(["dedup", str(tmp_path), "--dedup-embedding", "copy"]) == 0
    assert "cat.png  has altered copies, which stay\n  part.png  similarity 0." in capsys.readouterr().out


def test_exact_only_and_plain_output(source, capsys):
    assert main(["dedup", str(source), "--kind", "exact"]) == 0
    out = capsys.readouterr()
    assert "2 groups, duplicates: 2 exact" in out.out and "nothing was deleted" in out.out
    assert "notes.txt: NotAPicture" in out.err


def test_similar_finds_the_copies_first(source, tmp_path, capsys):
    page = tmp_path / "top.html"
    asked = tmp_path / "asked.jpg"
    asked.write_bytes(encoded(photograph("chelsea.png"), "JPEG", quality=85))
    assert main(["similar", str(asked), str(source), "--top", "5", "--json", "--html", str(page)]) == 0
    found = json.loads(capsys.readouterr().out)["similar"]
    assert len(found) == 5
    assert all("cat" in row["key"] and row["verdict"] == "a copy" for row in found)
    text = page.read_text()
    assert text.count("data:image/webp;base64,") == 6 and "cat small.jpg" in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["dedup", "SOURCE", "--distance", "40"], 2, "--distance 40"),
        (["dedup", "gs://bucket"], 2, "neither s3:// nor a local folder"),
        (["dedup", "SOURCE", "--dedup-embedding", "vgg16"], 2, "--dedup-embedding no embedding 'vgg16'"),
        (["dedup", "SOURCE", "--dedup-embedding", "copy", "--kind", "exact"], 2, "exclude each other"),
        (["similar", "nowhere.jpg", "SOURCE"], 2, "not a file"),
        (["similar", "SOURCE/notes.txt", "SOURCE"], 1, "can't be read as a picture"),
        (["dedup", "SOURCE/missing"], 1, "can't list"),
    ],
)
def test_wrong_use_is_named(source, capsys, arguments, code, message):
    assert main([text.replace("SOURCE", str(source)) for text in arguments]) == code
    assert message in capsys.readouterr().err
