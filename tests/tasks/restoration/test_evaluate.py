"""The evaluation's conditions and tables, on small pictures and at known values."""

import argparse
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import skimage.data
import torch
from PIL import Image

from flows.commands import restoration as command
from flows.console import WrongUsage
from tasks.restoration import apply as restoration
from tasks.restoration import evaluate as evaluation
from tasks.restoration import networks


@pytest.fixture
def folder(tmp_path):
    where = tmp_path / "cats"
    where.mkdir()
    Image.fromarray(skimage.data.chelsea()).crop((100, 60, 229, 171)).save(where / "a.png")
    Image.fromarray(skimage.data.coffee()).crop((200, 100, 330, 220)).save(where / "b.png")
    (where / "notes.txt").write_text("no picture")
    return where


@pytest.fixture(autouse=True)
def small_weights(tmp_path, monkeypatch):
    """An untrained network of each task: figures mean nothing, the way there is what is tested."""
    torch.set_num_threads(1)
    weights = tmp_path / "weights"
    weights.mkdir()
    denoiser = networks.NightDenoiser(networks.NightDenoiserConfig(channels=(8, 8, 8), down=(1, 1, 1), up=(1, 1)))
    networks.save_network(denoiser, "denoise", "night", weights / "denoise-night.safetensors")
    upscaler = networks.NightUpscaler(networks.NightUpscalerConfig(scale=2, width=8, depth=1))
    networks.save_network(upscaler.merge(), "superres", "night", weights / "superres-night-x2.safetensors")
    monkeypatch.setattr(restoration, "WEIGHTS", weights)


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    args = parser.parse_args(["evaluate-restoration", *map(str, arguments)])
    return args.handler(args)


def test_matlab_luma_and_psnr():
    colours = Image.new("RGB", (4, 4), (255, 255, 255))
    assert (evaluation.matlab_luma(colours) == 235).all()
    assert (evaluation.matlab_luma(Image.new("RGB", (4, 4))) == 16).all()
    assert (evaluation.matlab_luma(Image.new("RGB", (4, 4), (255, 0, 0))) == 81).all()
    grey = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    assert (evaluation.matlab_luma(grey) == np.asarray(grey)).all()
    zeros = np.zeros((8, 8))
    assert evaluation.psnr(zeros, zeros + 5) == pytest.approx(34.1514, abs=1e-3)


def test_noise_is_the_same_in_every_run():
    clean = np.full((40, 40, 3), 128, np.uint8)
    first = evaluation.noisy_samples(clean, 25, "a")
    assert (first == evaluation.noisy_samples(clean, 25, "a")).all()
    assert (first != evaluation.noisy_samples(clean, 25, "b")).any()
    assert first.std() == pytest.approx(25, rel=0.05)


def test_command_writes_every_table(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(folder, "--out", out, "--codec", "webp", "--scales", "2,3", "--json") == 0
    means = json.loads(capsys.readouterr().out)
    assert {m["table"] for m in means} == set(command.TABLES)
    by = {(m["table"], m["condition"], m["method"]): m for m in means}
    assert by["denoise", "sigma 25", "noisy (8 bit)"]["psnr"] == pytest.approx(20.3, abs=0.4)
    assert by["denoise", "sigma 25", "nlm"]["psnr"] > 26
    assert by["decision", "sigma 15", ""]["touched"] == 1.0 and by["decision", "clean", ""]["touched"] == 0.0
    assert by["superres", "x2", "night"]["psnr"] > 15 and by["superres", "x2, 8-bit files", "night"]["psnr"] > 15
    assert 0 < by["superres", "x2", "bicubic"]["psnr"] - by["superres", "x2, 8-bit files", "bicubic"]["psnr"] < 0.3
    assert ("superres", "x3", "night") not in by
    assert by["denoise", "sigma 25", "night"]["pictures"] == 2
    assert {m["condition"] for m in means if m["table"] == "camera"} == {
        f"{electrons} e-, JPEG {quality}" for electrons, _, quality in evaluation.CAMERAS
    }
    table = pq.read_table(out / "restoration.parquet")
    assert {"table", "psnr", "ssim", "touched", "saved"} <= set(table.column_names)
    text = (out / "restoration.md").read_text()
    assert "## saving" in text and "| cats | sigma 25 | nlm | 2 |" in text
    names = {path.name for path in (out / "strips").iterdir()}
    assert {"denoise-a-25.png", "superres-b-x2.png", "camera-a-100.png"} <= names
    with Image.open(out / "strips" / "denoise-a-25.png") as sheet:
        assert sheet.width > 6 * 200


def test_denoising_saves_bytes(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(restoration, "WEIGHTS", tmp_path / "none")
    rows = list(evaluation.saving_rows(folder, "webp", limit=1, sigmas=(25,)))
    assert rows[0]["saved"] > 0.2 and rows[0]["best_psnr"] > rows[0]["psnr"]


def test_wrong_use_is_named(folder, tmp_path):
    for extra, match in (
        (["--tables", "denoise,magic"], "--tables"),
        (["--scales", "5"], "--scales 5"),
        (["--limit", "0"], "--limit 0"),
        (["--superres-images", tmp_path / "missing"], "missing is not a folder"),
    ):
        with pytest.raises(WrongUsage, match=match):
            run(folder, "--out", tmp_path / "out", *extra)
    with pytest.raises(FileNotFoundError, match="no pictures"):
        evaluation.pictures(tmp_path / "weights")
