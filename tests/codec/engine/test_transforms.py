"""The networks as they are used agree with the networks as they are trained: floats to rounding, bins to the bit."""

import numpy as np
import pytest
import torch

from codec.engine import blocks, elementwise, scale_indices, transforms
from codec.engine.checkerboard import around, around_on_device, pack, taps_of, unpack
from codec.engine.scale_indices import FloatIndices, IntegerIndices, indices_of
from codec.engine.transforms import Inference, _fusing, _Layer, inference_of
from codec.format import EVEN, ODD, ODD_STATES
from codec.network import lapping
from codec.network.layers import native_bfloat16


@pytest.fixture
def model(small):
    return small


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """float32 [1,3,height,width] in 0..1."""
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


def first(t: torch.Tensor) -> torch.Tensor:
    """Channels first, as model.py has them."""
    return t.permute(0, 3, 1, 2)


def last(t: torch.Tensor) -> torch.Tensor:
    return t.permute(0, 2, 3, 1).contiguous()


def blocks_of(x: torch.Tensor, model) -> torch.Tensor:
    """Pixels [B,3,H,W] -> what Inference.analysis takes."""
    batch, _, height, width = x.shape
    x = lapping.lapped(x * 255 - 127.5, model.lap_analysis)
    t = x.view(batch, 3, height // 16, 16, width // 16, 16).permute(0, 2, 4, 1, 3, 5)
    return t.reshape(batch, height // 16, width // 16, 768)[..., blocks.block_order()]


def pixels_of(inference: Inference, *synthesis) -> torch.Tensor:
    """What Inference.synthesis gives -> [B,3,H,W] in 0..1."""
    summed = inference.summed(*synthesis)
    batch, height, width, _ = summed.shape
    of_blocks = torch.empty_like(summed)
    of_blocks[..., blocks.block_order()] = summed
    t = of_blocks.view(batch, height, width, 3, 16, 16).permute(0, 3, 1, 4, 2, 5)
    return t.reshape(batch, 3, 16 * height, 16 * width) / 255 + 0.5


def test_elementwise_functions_are_torchs():
    x = torch.randn(2, 5, 7, 33, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 4, 33)
    x[0, 0, 0, :3] = torch.tensor([0.0, -0.0, 1e-30])
    for part in (x, x[..., 5:20], x[:, 1:, ::2]):
        assert (elementwise.asinh(part, torch.float32) - torch.asinh(part.double())).abs().max() < 2e-6
        coarse = elementwise.asinh(part, torch.bfloat16)
        assert coarse.dtype == torch.bfloat16
        assert torch.allclose(coarse.float(), torch.asinh(part), rtol=2**-8, atol=1e-6)
    for part in (x, x.bfloat16()):
        assert (elementwise.limited(part) - 8 * torch.tanh(part.double() / 8)).abs().max() < 5e-6
    symbols = torch.randint(-2000, 2000, (2, 6, 3, 4)).short().permute(0, 2, 3, 1)
    table = torch.arange(1024).float()
    tables = torch.where(torch.arange(6) % 2 > 0, 20 + ODD_STATES, 20).to(torch.uint8).expand(symbols.shape)
    halves = 2 * symbols.abs().int() - ((tables > ODD_STATES) & (symbols != 0)).int()
    assert torch.equal(elementwise.looked_up(symbols, tables, table), halves.clamp(max=1023).float())
    extreme = torch.full((1, 1, 1, 1), -32768, dtype=torch.int16)
    assert elementwise.looked_up(extreme, torch.zeros_like(extreme).byte(), table).item() == 1023


def test_fused_layers_are_plain_ones(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    t = torch.randn(2, 9, 11, 48, generator=generator)
    weight, bias = torch.randn(32, 48, 3, 3, generator=generator) / 20, torch.randn(32, generator=generator)
    layer = _Layer(weight, bias)
    results = []
    for fusing in (_fusing(torch.float32), False):
        monkeypatch.setattr(transforms, "_fusing", lambda dtype, fusing=fusing: fusing)
        sums = torch.ones(2, 9, 11, 32)
        layer.add_to(sums, t)
        results.append((layer(t), layer.leaky(t), sums))
    for fused, plain in zip(*results, strict=True):
        assert torch.allclose(fused, plain, atol=1e-4)
    assert torch.allclose(results[1][0] + 1, results[1][2], atol=1e-5) and (results[1][1] < 0).any()


def test_analysis_and_synthesis(model):
    x = torch.cat((picture(96, 80), picture(96, 80, seed=1)))
    levels = torch.tensor([120, 870])
    inference = inference_of(model)
    y = model.analysis(x)
    assert torch.allclose(first(inference.analysis(blocks_of(x, model))), y, atol=1e-2)  # of 255
    shown = pixels_of(inference, *inference.synthesis(last(y), levels))
    assert torch.allclose(shown, model.synthesis(y, levels), atol=1e-4)
    whole, inner = inference.synthesis(last(y), levels), (slice(1, 5), slice(0, 4))
    for part, cut, size in zip(whole, inference.synthesis(last(y), levels, inner), (1, 1, 2), strict=True):
        rows, columns = (slice(size * one.start, size * one.stop) for one in inner)
        assert cut is part is None or torch.allclose(cut, part[:, rows, columns], atol=1e-4)


@pytest.mark.parametrize("kind", [FloatIndices, IntegerIndices])
@pytest.mark.parametrize("size", [(96, 80), (16, 16), (112, 144)])
def test_symbols(model, size, kind):
    """Hyper-analysis, means and bins on one window that is the whole latent, of even and odd sides."""
    levels = torch.tensor([640])
    inference = inference_of(model)
    indices = kind(model)
    scaled = model.scale(model.analysis(picture(*size)), levels)
    height, width = scaled.shape[2:]
    z = model.hyper_analysis(scaled, levels)
    assert torch.allclose(first(inference.hyper_analysis(last(scaled), levels)), z, atol=1e-3)
    z = torch.round(z * 4)
    place = slice(0, height), slice(0, width)
    inner = (0, -(-height // 2), 0, -(-width // 2))
    anchors = model.anchors(height, width)
    everything = torch.round(scaled * 3)  # symbols of even states, which stand for themselves
    first_group, *later = model.config.slices
    symbols = everything[:, first_group] * anchors

    features = indices.index_features(last(z), levels, place, place)
    if kind is FloatIndices:
        assert torch.equal(first(features), model.index_features(z, levels, height, width))
    else:
        assert torch.equal((first(features).float() + 128) / 16, model.index_features(z, levels, height, width))
    bins = torch.zeros(1, height, width, symbols.shape[1], dtype=torch.uint8)
    unpack(indices.bins_first(pack(features, EVEN)), EVEN, bins)
    symbols_of_first = last(symbols).to(torch.int16)
    even = torch.full_like(symbols_of_first, 20).to(torch.uint8)
    unpack(indices.bins_second(pack(features, ODD), symbols_of_first, even, inner), ODD, bins)
    of_model = model.index_features(z, levels, height, width)
    expected = torch.where(anchors, model.bins_first(of_model), model.bins_second(of_model, symbols))
    assert torch.equal(first(bins).float(), expected)
    for number, part in enumerate(later, 1):
        before = everything[:, : part.start]
        even = torch.full(last(before).shape, 20, dtype=torch.uint8)
        bins = indices.bins_group(number, features, last(before).to(torch.int16), even)
        assert torch.equal(first(bins).float(), model.bins_group(number, of_model, before))

    features = inference.mean_features(last(z), place, place)
    of_model = model.mean_features(z, height, width)
    assert torch.allclose(first(features), of_model, rtol=1e-4, atol=1e-4)
    means = torch.zeros(1, height, width, symbols.shape[1])
    unpack(inference.mean_first(pack(features, EVEN)), EVEN, means)
    unpack(inference.mean_second(pack(features, ODD), pack(last(symbols), EVEN), inner), ODD, means)
    expected = torch.where(anchors, model.mean_first(of_model), model.mean_second(of_model, symbols))
    assert torch.allclose(first(means), expected, atol=1e-3)
    for number, part in enumerate(later, 1):
        before = everything[:, : part.start]
        expected = model.mean_group(number, of_model, before)
        assert torch.allclose(first(inference.mean_group(number, features, last(before))), expected, atol=1e-3)


def test_integers_are_taken_only_where_they_hold(model, monkeypatch):
    monkeypatch.setattr(scale_indices, "wanted", lambda: True)
    assert isinstance(indices_of(model), IntegerIndices)
    plain = torch._int_mm

    monkeypatch.setattr(torch, "_int_mm", lambda a, b: plain(a, b).clamp(-(2**15), 2**15 - 1))  # sums that saturate
    assert isinstance(indices_of(model), FloatIndices)
    monkeypatch.setattr(torch, "_int_mm", plain)
    monkeypatch.setattr(scale_indices, "wanted", lambda: False)
    assert isinstance(indices_of(model), FloatIndices)


def test_bfloat16_stays_near(model):
    x = picture(64, 64)
    y, levels = model.analysis(x), torch.tensor([500])
    try:
        model.set_precision("bfloat16")
        inference = Inference(model)
        for mine, theirs in (
            (first(inference.analysis(blocks_of(x, model))), model.analysis(x)),
            (pixels_of(inference, *inference.synthesis(last(y), levels)) * 255, model.synthesis(y, levels) * 255),
        ):
            assert (mine - theirs).square().mean().sqrt() < 0.01 * theirs.std()
    finally:
        model.set_precision("float32")


def test_packed_cells_and_their_neighbours():
    t = torch.arange(5 * 7).view(1, 5, 7, 1).float()
    again = torch.zeros_like(t)
    for parity in (EVEN, ODD):
        unpack(pack(t, parity), parity, again)
    assert torch.equal(again, t)
    near = around(pack(t, EVEN), taps_of(3), (0, 3, 0, 4))
    assert near[0, 1, 1, :, 0].tolist() == [10, 16, 18, 24]  # above, left, right and below of row 2, column 3
    assert near[1, 1, 0, :, 0].tolist() == [14, 0, 22, 28]  # row 3, column 0: nothing on the left
    assert len(taps_of(5)) == 12


@pytest.mark.parametrize(("dtype", "beyond"), [(torch.float32, 0), (torch.bfloat16, 0), (torch.int8, -128)])
@pytest.mark.parametrize("gather", [around, around_on_device])
def test_each_neighbour_is_gathered(dtype, beyond, gather):
    t = torch.randint(-100, 100, (2, 10, 12, 3)).to(dtype)
    padded = torch.nn.functional.pad(t, (0, 0, 2, 2, 2, 2), value=beyond)
    near = gather(pack(t, EVEN), taps_of(5), (1, 4, 2, 6), beyond)
    for plane, row, column in np.ndindex(4, 3, 4):
        r = 2 * (1 + row) + plane % 2
        k = 2 * (2 + column) + (r + 1) % 2
        expected = torch.stack([padded[plane // 2, 2 + r + dr, 2 + k + dc] for dr, dc in taps_of(5)])
        assert torch.equal(near[plane, row, column], expected)


def test_it_follows_the_models_precision(model):
    kept = inference_of(model)
    assert inference_of(model) is kept
    try:
        assert inference_of(model.set_precision("bfloat16")) is not kept
        fastest = torch.bfloat16 if native_bfloat16("cpu") else torch.float32
        assert model.set_precision("auto").precision == fastest
        with pytest.raises(KeyError):
            model.set_precision("int8")
    finally:
        model.set_precision("float32")
