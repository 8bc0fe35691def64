"""The code for GPUs gives the CPU's symbols and pixels, on tensors that pose as a GPU's (posing.py).

Where there is one, its search finds what the definition says."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codec import decode, decode_batch, default_model, encode_batch, get_model
from codec.entropy import trellis, trellis_cuda, trellis_search
from codec.entropy.trellis import STATES
from codec.network.files import load_model
from codec.network.night_codec import NightCodec
from codec.training import cuda_graph
from codec.training.train import Recipe, train


@pytest.fixture(scope="session")
def posing():
    """Once: what is kept by device is kept as its tensors."""
    spec = importlib.util.spec_from_file_location("posing", Path(__file__).with_name("posing.py"))
    module = sys.modules["posing"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["posing"]


@pytest.fixture
def gpu(monkeypatch, posing):
    with posing.gpu(monkeypatch):
        yield


def moved(data: bytes, precision: str = "float32") -> NightCodec:
    return load_model(data).to("cuda").set_precision(precision)


def pixels_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def picture(seed: int, width: int = 150, height: int = 90) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 12, width // 12, 3)).astype(np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def test_what_poses_keeps_apart_from_the_rest(gpu):
    there, here = torch.ones(3, device="cuda"), torch.ones(3)
    assert there.is_cuda and (there + 1).is_cuda and not there.cpu().is_cuda and not here.is_cuda
    assert (there * here.to(there.device)).is_cuda
    with pytest.raises(RuntimeError, match="both devices"):
        there + here
    with pytest.raises(TypeError, match="no array"):
        there.numpy()


@pytest.mark.parametrize("name", ["rgb", "rgb-high", "segments", "grey-alpha", "pixel"])
def test_golden_files_on_a_gpu(small_bytes, gpu, golden, name):
    network = moved(small_bytes)
    shown = decode((golden / f"{name}.npi").read_bytes(), model=network)  # fails where an index is another
    assert abs(pixels_of(shown) - pixels_of(Image.open(golden / f"{name}.png"))).max() <= 1


def test_the_package_s_model_on_a_gpu(gpu):
    """In all modes."""
    here, colour = get_model(None, device="cpu", precision="float32"), picture(3)
    network = moved(default_model().read_bytes())
    clear = Image.fromarray(np.linspace(0, 255, colour.width * colour.height).astype(np.uint8).reshape(90, 150))
    grey, several = colour.convert("L"), colour.copy()
    several.putalpha(clear)
    images = [colour, several, grey, Image.merge("LA", (grey, clear)), Image.merge("RGB", (grey, grey, grey))]
    files = encode_batch(images, 60, model=network)
    for image, mine, theirs in zip(images, decode_batch(files, model=network), files, strict=True):
        shown = decode(theirs, model=here)
        assert mine.mode == shown.mode == image.mode
        assert abs(pixels_of(mine) - pixels_of(shown)).max() <= 1
        assert abs(pixels_of(mine) - pixels_of(image)).mean() < 6


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_s_bitstreams_are_read_by_the_cpu(gpu, small_bytes, small, precision):
    network, images = moved(small_bytes, precision), [picture(seed) for seed in range(3)]
    files = encode_batch(images, [10.0, 50.0, 90.0], model=network)
    for image, data in zip(images, files, strict=True):
        mine, theirs = pixels_of(decode(data, model=network)), pixels_of(decode(data, model=small))
        assert abs(mine - theirs).max() <= (1 if precision == "float32" else 4)
        assert abs(theirs - pixels_of(image)).mean() < 40


def test_a_training_step_on_a_gpu(gpu, small, small_bytes, monkeypatch, tmp_path):
    """On real symbols: what it needs lies on one device, and the exported file is a model."""
    for seed in range(2):
        picture(seed, 128, 128).save(tmp_path / f"{seed}.png")
    start, out = tmp_path / "start.safetensors", tmp_path / "out"
    start.write_bytes(small_bytes)
    taken = []
    monkeypatch.setattr(
        cuda_graph.Recorded, "__call__", lambda self, key, *t: taken.append(key) or self.function(*t)
    )  # there is no graph to record
    recipe = Recipe(batch=2, size=64, decay=1, finish=1, table_crops=4)
    path = train([tmp_path], out, steps=3, recipe=recipe, device="cuda", start=start, say=lambda _: None)
    assert taken == ["real"] * 3 and load_model(path).config == small.config
    assert path.read_bytes() != small_bytes


def test_without_a_compiler_the_definition_is_taken(gpu):
    assert trellis_search.search_on(torch.ones(1, device="cuda").device) is trellis_search.viterbi_quantise


def test_the_kernel_names_the_definition_s_numbers():
    """Its source is text: what it takes from trellis.py stands in it."""
    assert f"#define STATES {STATES}\n" in trellis_cuda.SOURCE
    assert f"#define WEIGHT {float(trellis.WEIGHT).hex()}f\n" in trellis_cuda.SOURCE


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("channels", [1, 24, 224])
def test_the_gpu_s_search_is_the_definition(channels):
    torch.manual_seed(channels)
    device = torch.device("cuda", 0)
    bins = torch.randint(0, 64, (3000, channels), dtype=torch.uint8)
    residual = torch.randn(3000, channels) * 0.08 * torch.exp(bins.float() * 0.117)
    residual[0, 0], residual[1, 0] = float("nan"), -float("inf")
    states = torch.randint(0, STATES, (3000,), dtype=torch.uint8)
    uniform = torch.round(residual).nan_to_num(0).clamp(-32000, 32000)
    given = [[part.to(device) for part in (residual, bins, states, uniform)] for _ in range(2)]
    assert trellis_search.search_on(device) is trellis_cuda.viterbi_quantise
    mine, his = trellis_cuda.viterbi_quantise(*given[0]), trellis_search.viterbi_quantise(*given[1])
    assert all(torch.equal(*pair) for pair in zip(mine, his, strict=True))
    assert torch.equal(given[0][2], given[1][2])
