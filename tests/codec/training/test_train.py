"""Training: it learns, stops on time, goes on from its checkpoint, exports a model that works."""

import dataclasses
import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from codec.format import lambda_of
from codec.network.config import Config
from codec.network.files import load_model, save_model
from codec.network.night_codec import NightCodec
from codec.training.device_crops import DeviceCrops
from codec.training.samples import batch, crop, load_pictures, rendered_page
from codec.training.splits import held_out, picture_files
from codec.training.train import NOISY, REAL, THRESHOLDS, Recipe, main, train

SMALL = Config(
    channels=16, latent=40, hyper=8, encoder_blocks=1, decoder_blocks=1, mean_channels=16, index_channels=16,
    groups=(6, 10, 24), encoder_inner=8, decoder_inner=6,
)  # fmt: skip
QUICK = Recipe(batch=2, size=64, table_crops=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from skimage import data

    path = tmp_path_factory.mktemp("pictures")
    for name in ("astronaut", "coffee", "chelsea"):
        Image.fromarray(getattr(data, name)()).save(path / f"{name}.png")
    (path / "broken.png").write_bytes(b"no picture")
    return path


def test_pictures_are_found_and_broken_ones_left_out(folder):
    assert len(load_pictures([folder], 128)) == 3
    with pytest.raises(FileNotFoundError, match="no picture of at least 5000 pixels"):
        load_pictures([folder], 5000)


def test_samples_are_varied_and_in_range(folder):
    rng = random.Random(0)
    x = batch(load_pictures([folder], 128), 6, 64, rng)
    assert x.shape == (6, 3, 64, 64) and 0 <= x.min() and x.max() <= 1 and x.std() > 0.05
    assert rendered_page(64, rng).std() > 0
    assert crop([np.zeros((64, 64, 3), np.uint8)], 64, rng).shape == (64, 64, 3)


@pytest.mark.slow
def test_training_learns_resumes_and_exports(folder, tmp_path):
    common = dict(recipe=Recipe(batch=4, size=64, table_crops=32), config=SMALL, say=lambda line: None)
    train([folder], tmp_path, steps=150, **common)
    assert {"trunk.pt", "state.pt", "log.jsonl"} <= {path.name for path in tmp_path.iterdir()}
    path = train([folder], tmp_path, steps=100, resume=True, **common)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [50, 100, 150, 100, 150]  # from the trunk on, at 60
    assert lines[-1]["bpp"] < 0.9 * lines[0]["bpp"]
    assert all(np.isfinite(line["loss"]) for line in lines)
    model = load_model(path)
    assert model.config == SMALL and int(model.metadata["steps"]) >= lines[-1]["step"]
    x = batch(load_pictures([folder], 64), 16, 64, random.Random(1))
    torch.manual_seed(1)
    assert cost(model, x) < cost(NightCodec(SMALL), x)
    with pytest.raises(ValueError, match="resume with the same"):
        train([folder], tmp_path, steps=1, resume=True, **common | {"config": dataclasses.replace(SMALL, hyper=12)})


def test_a_training_ends_with_its_time(folder, tmp_path):
    assert int(load_model(train([folder], tmp_path, 0.0, recipe=QUICK, config=SMALL, say=str)).metadata["steps"]) == 0


def test_phases_and_rates_follow_each_other():
    recipe = Recipe(rate=1.0, decay=0.6, finish=0.1)
    assert [recipe.phase(p) for p in (0, 0.39, 0.41, 0.89, 0.91)] == [NOISY, NOISY, THRESHOLDS, THRESHOLDS, REAL]
    rates = [recipe.rate_at(p, 1.0) for p in np.linspace(0, 0.899, 50)]
    assert rates[0] == rates[20] == 1 and all(b <= a for a, b in zip(rates, rates[1:], strict=False))
    assert rates[-1] < 0.001 and recipe.rate_at(0.91, 1.0) == pytest.approx(0.225)
    assert Recipe(finish=1.0).phase(0.001) == REAL


@torch.no_grad()
def cost(model: NightCodec, x: torch.Tensor) -> float:
    """What training minimises, on pictures x at levels all over the range."""
    level = torch.linspace(0, 999, len(x))
    x_hat, y_bits, z_bits = model.training_pass(x, level)
    weight = lambda_of(level)
    error = (x_hat - x).square().mean((1, 2, 3)) * 255.0**2
    return float((((y_bits + z_bits) / x[0, 0].numel() + weight * error) / weight.sqrt()).mean())


def test_held_out_originals_are_not_trained_on(tmp_path):
    names = [f"original-{i}.jpg" for i in range(60)]
    held = [name for name in names if held_out(name)]
    assert 0 < len(held) < 20
    (tmp_path / "tiles").mkdir()
    lines = ["file,original"]
    for i, name in enumerate(names):
        for tile in ("a", "b"):
            shade = np.full((40, 40, 3), 255 if name in held else 90, np.uint8)
            Image.fromarray(shade).save(tmp_path / "tiles" / f"{i}{tile}.png")
            lines.append(f"{i}{tile}.png,{name}")
    (tmp_path / "tiles" / "INDEX.csv").write_text("\n".join(lines))
    Image.new("RGB", (40, 40)).save(tmp_path / "unlisted.png")
    pictures = load_pictures([tmp_path], 32)
    assert len(pictures) == 2 * (60 - len(held)) + 1 and max(p.max() for p in pictures) == 90
    assert sum(out for *_, out in picture_files([tmp_path])) == 2 * len(held)


def begun(path) -> NightCodec:
    """A model whose every parameter does something, written to a file."""
    torch.manual_seed(3)
    model = NightCodec(SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def test_a_start_is_trained_on_real_symbols(folder, tmp_path):
    """All of it learns."""
    save_model(begun(tmp_path), tmp_path / "start.safetensors")
    recipe = dataclasses.replace(QUICK, rate=0.05, decay=1.0, finish=1.0)
    path = train([folder], tmp_path / "out", steps=12, recipe=recipe, start=tmp_path / "start.safetensors", say=str)
    old, new = load_model(tmp_path / "start.safetensors").state_dict(), load_model(path).state_dict()
    changed = {name for name, value in new.items() if not torch.equal(value, old[name])}
    names = {"linear_analysis", "linear_synthesis", "lap_synthesis", "means.first.weight", "hyper_leave.weight"}
    assert names | {f"{side}_network.blocks.0.narrow.weight" for side in ("analysis", "synthesis")} <= changed


def test_sizes_are_options(folder, tmp_path):
    save_model(begun(tmp_path), tmp_path / "start.safetensors")
    files = ["--data", str(folder), "--out", str(tmp_path), "--start", str(tmp_path / "start.safetensors")]
    options = ["--decoder-blocks=2", "--groups", "8", "10", "22", "--steps=2", "--batch=2", "--size=64", "--device=cpu"]
    main([*files, *options, "--table-crops=8"])
    config = load_model(tmp_path / "codec.safetensors").config
    assert config == dataclasses.replace(SMALL, decoder_blocks=2, groups=(8, 10, 22))
    with pytest.raises(SystemExit):
        main([*files, "--groups", "1", "2", "3"])


def test_training_needs_torch_numpy_and_pillow_alone():
    code = "import sys, codec.training.train; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numba", "scipy", "skimage", "pyarrow", "constriction", "prefect", "boto3"} & set(loaded)


def test_a_device_cuts_the_same_kinds_of_samples():
    torch.manual_seed(4)
    places = np.stack(np.meshgrid(np.arange(90), np.arange(70), indexing="ij"), 2)  # each pixel says where it is
    first = np.concatenate((places, np.full((90, 70, 1), 200)), 2).astype(np.uint8)
    second = np.full((40, 33, 3), 7, np.uint8)
    page = np.full((64, 64, 3), 99, np.uint8)
    crops = DeviceCrops([first, second], [page], 0.25, 0.0, "cpu")
    x = (crops.batch(400, 32) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert x.shape == (400, 32, 32, 3)
    kinds = x[:, 0, 0, 2]
    assert (kinds == 99).sum() in (100, 101) and 100 < (kinds == 200).sum() < 200 and (kinds == 7).sum() > 100
    ways = set()
    for piece in x[kinds == 200].astype(int):
        steps = piece[1, 0, :2] - piece[0, 0, :2], piece[0, 1, :2] - piece[0, 0, :2]
        ways.add(tuple(np.concatenate(steps)))
        grid = piece[0, 0, :2] + np.arange(32)[:, None, None] * steps[0] + np.arange(32)[None, :, None] * steps[1]
        assert np.array_equal(piece[..., :2], grid) and grid.min() >= 0 and (grid.max((0, 1)) < (90, 70)).all()
    assert len(ways) == 8

    reduced = DeviceCrops([first, second], [], 0.0, 1.0, "cpu").batch(50, 32)
    assert reduced.shape == (50, 3, 32, 32) and 0 <= reduced.min() and reduced.max() <= 1
    smooth = reduced[(reduced[:, 2, 0, 0] * 255).round() == 200]
    assert (smooth[:, 2] * 255 - 200).abs().max() < 1  # what is even stays even


def test_training_takes_samples_cut_on_the_device(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("codec.training.train.PAGES", 4)
    path = train([folder], tmp_path, steps=2, on_device=True, recipe=QUICK, config=SMALL, say=str)
    assert load_model(path).metadata["steps"] == "2"
