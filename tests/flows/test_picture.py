"""nightpress encode, decode, info and evaluate as a user calls them: files, output, exit codes."""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from codec import metrics
from flows.cli import main

TINY = Path(__file__).parents[1] / "data" / "small.safetensors.xz"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    path.write_bytes(lzma.decompress(TINY.read_bytes()))
    return path


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(data.astronaut()[:200, 100:300]).save(path, icc_profile=b"p" * 200)
    return path


def run(capsys, *words):
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_there_and_back(capsys, photo, model, tmp_path):
    file = tmp_path / "photo.npi"
    code, out, _ = run(capsys, "encode", photo, file, "--quality", 30, "--model", model)
    assert code == 0 and "200x200" in out and "quality 30" in out
    code, out, _ = run(capsys, "decode", file, tmp_path / "back.png", "--models", model.parent)
    assert code == 0 and out == f"{tmp_path / 'back.png'}: 200x200 RGB\n"
    back = Image.open(tmp_path / "back.png")
    assert back.size == (200, 200) and back.info["icc_profile"] == b"p" * 200
    assert metrics.psnr(back, Image.open(photo)) > 12
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back.png", "photo.npi", "photo.png"]  # nothing left lying
    assert file.stat().st_mode & 0o777 == photo.stat().st_mode & 0o777


@pytest.mark.parametrize("form", ["jxl-jpeg", "lossless", "exact", "avif"])
def test_other_forms_there_and_back(capsys, photo, tmp_path, form):
    Image.open(photo).save(tmp_path / "photo.jpg", quality=90)
    Image.open(photo).save(tmp_path / "photo.bmp")
    source = tmp_path / {"jxl-jpeg": "photo.jpg", "exact": "photo.bmp"}.get(form, "photo.png")
    stored, back = tmp_path / "stored", tmp_path / f"back{source.suffix}"
    target = ("--target", "ssimulacra2=70") if form == "avif" else ()
    code, out, _ = run(capsys, "encode", source, stored, "--form", form, *target, "--json")
    assert code == 0 and json.loads(out)["bytes"] == stored.stat().st_size < source.stat().st_size
    code, out, _ = run(capsys, "info", stored, "--json")
    assert code == 0 and json.loads(out)["form"] == form
    code, out, _ = run(capsys, "decode", stored, back)
    assert code == 0
    if form in ("jxl-jpeg", "exact"):
        assert back.read_bytes() == source.read_bytes()
    elif form == "lossless":
        assert np.array_equal(np.asarray(Image.open(back)), np.asarray(Image.open(source)))
    else:
        assert 25 < metrics.psnr(Image.open(back), Image.open(source)) < 60


def test_forms_refuse_what_does_not_belong_to_them(capsys, photo, tmp_path):
    assert run(capsys, "encode", photo, tmp_path / "x", "--form", "lossless", "--quality", 5)[0] == 2
    assert run(capsys, "encode", photo, tmp_path / "x", "--form", "avif")[0] == 2
    code, _, err = run(capsys, "encode", photo, tmp_path / "x", "--form", "jxl-jpeg")
    assert code == 1 and "JPEG" in err and not (tmp_path / "x").exists()


def test_json_and_info(capsys, photo, model, tmp_path):
    file = tmp_path / "photo.npi"
    code, out, _ = run(capsys, "encode", photo, file, "--max-bytes", 2500, "--model", model, "--json")
    result = json.loads(out)
    assert code == 0 and result["metric"] == "bytes" and result["passes"] <= 8
    assert 0.98 * 2500 <= result["bytes"] == file.stat().st_size <= 2500
    code, out, _ = run(capsys, "info", file, "--json")
    facts = json.loads(out)
    assert facts["quality"] == result["quality"] and facts["bytes"] == result["bytes"] and facts["width"] == 200
    code, out, _ = run(capsys, "info", file)
    assert code == 0 and f"model           {facts['model']}" in out


def test_formats_to_decode_into(capsys, photo, model, tmp_path):
    file = tmp_path / "photo.npi"
    run(capsys, "encode", photo, file, "--model", model)
    pictures = []
    for ending in ("png", "tiff", "webp"):
        assert run(capsys, "decode", file, tmp_path / f"back.{ending}", "--models", model.parent)[0] == 0
        pictures.append(np.asarray(Image.open(tmp_path / f"back.{ending}").convert("RGB")))
    assert all(np.array_equal(pictures[0], other) for other in pictures[1:])
    code, _, err = run(capsys, "decode", file, tmp_path / "back.xyz")
    assert code == 2 and "'.xyz' names no format" in err


@pytest.mark.parametrize(
    "options, code, words",
    [
        (("--quality", "101"), 2, "outside 0..100"),
        (("--target", "ssim=0.9"), 2, "none of ssimulacra2=V"),
        (("--max-bytes", "0"), 2, "at least 1"),
        (("--target", "psnr=70"), 1, "cannot be reached"),
        (("--max-bytes", "90"), 1, "smallest bitstream"),
        (("--model", "nowhere.safetensors"), 1, "no model file"),
        (("--max-pixels", "1000"), 1, "more than the limit"),
    ],
)
def test_what_encode_refuses(capsys, photo, model, tmp_path, options, code, words):
    if "--model" not in options:
        options = (*options, "--model", model)
    got, _, err = run(capsys, "encode", photo, tmp_path / "x.npi", *options)
    assert (got, words in err) == (code, True), err
    assert not (tmp_path / "x.npi").exists()


def test_files_that_are_not_there_or_broken(capsys, photo, model, tmp_path):
    assert run(capsys, "encode", tmp_path / "no.png", tmp_path / "x.npi")[0] == 2
    code, _, err = run(capsys, "encode", photo, tmp_path / "no" / "x.npi", "--model", model)
    assert code == 2 and "no folder" in err
    (tmp_path / "text.png").write_text("no picture")
    code, _, err = run(capsys, "encode", tmp_path / "text.png", tmp_path / "x.npi", "--model", model)
    assert code == 1 and "text.png" in err
    for command in (("info", photo), ("decode", photo, tmp_path / "x.png")):
        code, _, err = run(capsys, *command)
        assert code == 1 and "photo.png" in err
    with pytest.raises(SystemExit) as stop:
        main(["encode", str(photo), "x.npi", "--quality", "3", "--max-bytes", "9"])
    assert stop.value.code == 2


def test_evaluate(capsys, photo, model, tmp_path):
    (tmp_path / "in").mkdir()
    photo.rename(tmp_path / "in" / "photo.png")
    words = ("evaluate", tmp_path / "in", "--out", tmp_path / "out", "--points", 3, "--model", model)
    code, out, err = run(capsys, *words, "--codecs", "nightpress,jpeg")
    assert code == 0 and "| JPEG 4:2:0 | +0.0 % |" in out and "nightpress: 3/3" in err
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "points.parquet", "curves.json", "curves.md", "rd-psnr.png", "rd-psnr.svg", "rd-ms-ssim.png", "rd-ms-ssim.svg",
        "rd-ssimulacra2.png", "rd-ssimulacra2.svg",
    }  # fmt: skip
    code, out, _ = run(capsys, *words, "--codecs", "webp", "--json")
    assert code == 0 and set(json.loads(out)["curves"]) == {"jpeg", "nightpress", "webp"}
    for options, text in (
        (("--codecs", "flif"), "unknown flif"), (("--points", 1), "at least 2"), (("--threads", 0), "at least 1"),
        (("--reference", tmp_path / "no"), "is not a folder"),
    ):  # fmt: skip
        code, _, err = run(capsys, *words, *options)
        assert code == 2 and text in err
    (tmp_path / "none").mkdir()
    code, _, err = run(capsys, "evaluate", tmp_path / "none", "--out", tmp_path / "out2")
    assert code == 1 and "no picture to compare" in err


@pytest.mark.parametrize("command", ["encode", "decode", "info", "evaluate"])
def test_help_has_an_example(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0 and f"Example: nightpress {command}" in capsys.readouterr().out
