"""Bottlenecks in 8-bit integers: as model.py defines them, near what they round, and nothing that symbols notice."""

import numpy as np
import pytest
import torch
from PIL import Image

from codec.decoder import decode
from codec.encoder import prepare
from codec.engine import int8
from codec.engine.blocks import block_order
from codec.engine.transforms import Inference
from codec.network import lapping
from codec.network.layers import Bottleneck, native_int8
from codec.network.night_codec import NightCodec

needs_int8 = pytest.mark.skipif(not int8.works(torch.float32), reason="no such products on this processor")


def made(channels: int = 48, inner: int = 20, seed: int = 1, fine=False) -> tuple[Bottleneck, torch.Tensor]:
    """A block with steps measured on the input that comes with it."""
    torch.manual_seed(seed)
    block, x = Bottleneck(channels, inner, fine=fine), torch.randn(2, channels, 13, 7)
    block.largest = []
    with torch.no_grad():
        block(x)
    block.set_steps()
    return block, x


def test_steps_are_needed_and_rounding_is_small():
    assert not Bottleneck(8, 4).measured
    errors = []
    for fine in (False, True):
        block, x = made(fine=fine)
        assert block.measured and block.largest is None and len(block.steps) == 3 - fine
        with torch.no_grad():
            plain = block(x) - x
            block.rounded = True
            rounded = block(x) - x
        errors.append((rounded - plain).square().mean().sqrt() / plain.std())
    assert 0 < errors[1] < 0.95 * errors[0] and errors[0] < 0.03


@pytest.mark.parametrize("fine", [False, True])
def test_gradients_pass_through_rounding_and_stop_where_it_clips(fine):
    block, x = made(fine=fine)
    block.rounded = True
    x[0, 0, 0, 0] = 1000.0
    x.requires_grad_()
    for step in block.steps:
        step.requires_grad_(True)
    (block(x) - x).square().sum().backward()
    assert (x.grad[0, 0, 0, 0] == 0 or fine) and (x.grad != 0).float().mean() > 0.9
    assert all(part.grad is not None and part.grad.abs().sum() > 0 for part in [*block.parameters(), *block.steps])


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 9), (1, 40, 33)])
@pytest.mark.parametrize("fine", [False, True])
def test_it_is_what_the_model_defines(dtype, shape, fine):
    block, _ = made(fine=fine)
    block.rounded = True
    t = torch.randn(*shape, 48).to(dtype)
    with torch.inference_mode():
        expected = block(t.float().permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        found = int8.EightBitBlock(block)(t.clone())
    assert found.dtype == dtype and found.shape == t.shape
    scale = (expected - t.float()).std()
    difference = (found.float() - expected).abs() / scale
    # a value on an edge of rounding may fall to small side, and bfloat16 holds sums to a 512th
    assert difference.max() < 0.12 and difference.mean() < 0.01


@needs_int8
def test_broken_products_are_not_used(monkeypatch):
    original = int8._Product.to_steps
    monkeypatch.setattr(int8._Product, "to_steps", lambda self, t: original(self, t) // 2)
    assert not int8.works.__wrapped__(torch.float32)

    def absent(self, weight):
        raise AttributeError("no such operation")

    monkeypatch.undo()
    monkeypatch.setattr(int8._Product, "_packed", absent)
    assert not int8.works.__wrapped__(torch.float32)


def test_precisions(small):
    fresh = NightCodec(small.config)
    try:
        assert small.has_eight_bits and not fresh.has_eight_bits
        assert small.set_precision("int8").eight_bit and not fresh.set_precision("int8").eight_bit
        assert small.set_precision("auto").eight_bit == native_int8("cpu")
        assert small.set_precision("int8").precision_name.endswith(" and int8")
        assert not small.set_precision("bfloat16").eight_bit and small.precision_name == "bfloat16"
        with pytest.raises(KeyError):
            small.set_precision("int4")
    finally:
        small.set_precision("float32")


def picture() -> Image.Image:
    from skimage import data

    return Image.fromarray(data.astronaut()[100:275, 150:340])


def psnr(a, b) -> float:
    return 10 * np.log10(255**2 / np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2))


def test_files_of_either_precision_are_read_with_the_other(small):
    image = picture()
    shown = {}
    try:
        for one in ("int8", "float32"):
            data = prepare(image, small.set_precision(one)).code(700)
            for other in ("int8", "float32"):
                shown[one, other] = psnr(image, decode(data, model=small.set_precision(other)))
    finally:
        small.set_precision("float32")
    assert max(shown.values()) - min(shown.values()) < 0.1
    # Where the processor has no such products, both are computed in float32.
    assert (shown["int8", "int8"] != shown["int8", "float32"]) == int8.works(torch.float32)


@needs_int8
def test_networks_in_use_take_the_integers(small):
    x = torch.rand(1, 3, 64, 80)
    filtered = lapping.lapped(x * 255 - 127.5, small.lap_analysis)
    cells = filtered.view(1, 3, 4, 16, 5, 16).permute(0, 2, 4, 1, 3, 5).reshape(1, 4, 5, 768)[..., block_order()]
    try:
        small.set_precision("float32").round_blocks(True)
        with torch.inference_mode():
            used = Inference(small)
            assert used.encoder.eight_bit and all(part.eight_bit for part in used.decoder if part.layers)
            mine, defined = used.analysis(cells).permute(0, 3, 1, 2), small.analysis(x)
            small.round_blocks(False)
            plain = small.analysis(x)
        assert (mine - defined).abs().mean() < 0.2 * (defined - plain).abs().mean()
    finally:
        small.set_precision("float32")
