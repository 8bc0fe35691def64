"""Training: it learns, stops on time, goes on from its checkpoint, exports a model that works."""

import json
import random

import numpy as np
import pytest
from PIL import Image

from codec.model import Config, load_model
from codec.train import batch, crop, load_pictures, rendered_page, train

SMALL = Config(channels=16, latent=40, hyper=8, encoder_blocks=1, decoder_blocks=1, mean_channels=16, index_channels=16)


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
    common = dict(batch_size=4, size=64, config=SMALL, say=lambda line: None)
    train([folder], tmp_path, minutes=0.15, **common)
    path = train([folder], tmp_path, minutes=0.1, resume=True, **common)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(lines) >= 4
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all(np.isfinite(line["loss"]) for line in lines)
    model = load_model(path)
    assert model.config == SMALL and int(model.metadata["steps"]) >= lines[-1]["step"]
