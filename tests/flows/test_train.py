"""`nightpress train`: what it makes is a codec that codes, and what it cannot do is said."""

from functools import partial

import numpy as np
import pytest
from PIL import Image

from codec.decoder import decode, info
from codec.encoder import encode
from codec.models import get_model
from codec.network.config import Config
from codec.network.files import read_model_file, save_model
from codec.network.night_codec import NightCodec
from codec.training import train as training
from flows.cli import main

SMALL = Config(16, 32, 8, 1, 1, 8, 8, (4, 8, 20), 8, 8)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(5)
    (tmp_path / "photos").mkdir()
    for number in range(3):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
        coarse.resize((224, 224), Image.Resampling.BICUBIC).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


@pytest.mark.slow
def test_a_codec_is_trained_and_gets_contexts(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, "train", partial(training.train, steps=2))
    save_model(NightCodec(SMALL), tmp_path / "start.safetensors")
    options = ["--start", str(tmp_path / "start.safetensors"), "--device", "cpu"]
    assert main(["train", "codec", "--data", str(folder), "--out", str(tmp_path / "out"), *options]) == 0
    path = capsys.readouterr().out.strip()
    arrays, _ = read_model_file(path)
    assert "contexts.frequencies" in arrays
    model, image = get_model(path), Image.open(folder / "0.png")
    data = encode(image, 60, model=model)
    assert info(data)["model"] == model.identity and decode(data, model=model).size == image.size


def test_what_is_not_there_is_named(folder, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    assert main(["train", "codec", "--data", str(tmp_path / "none"), *out]) == 2
    assert f"--data {tmp_path / 'none'} is not a folder" in capsys.readouterr().err
    assert main(["train", "codec", "--data", str(folder), "--start", str(tmp_path / "x"), *out]) == 2
    assert f"--start {tmp_path / 'x'} is not there" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["train", "codec", "--data", str(tmp_path / "empty"), "--minutes", "0.01", *out]) == 1
    assert "empty" in capsys.readouterr().err
