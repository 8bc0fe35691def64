"""The networks: what coder.py relies on (symbols, exact indices, halos) and the model file."""

import json
import struct

import numpy as np
import pytest
import torch

from codec.entropy import trellis
from codec.entropy.tables import integer_frequencies, rounding_thresholds
from codec.format import FIRST_BIN, LAMBDA_RANGE, LEVELS, ODD_STATES, PRECISION, STEP, lambda_of
from codec.network.config import Config
from codec.network.exact import ACCUMULATOR_LIMIT, ExactConv2d, quantise_activation
from codec.network.files import load_model, save_model
from codec.network.layers import opponent_dct
from codec.network.night_codec import NightCodec
from codec.network.reference import quantised

SMALL = Config(
    channels=16, latent=40, hyper=8, encoder_blocks=5, decoder_blocks=7, mean_channels=16, index_channels=16,
    encoder_inner=8, decoder_inner=8, groups=(6, 10, 24),
)  # fmt: skip


def shaken(config: Config = SMALL, seed: int = 3) -> NightCodec:
    """A model whose every branch matters: random initialisation with the last layers made large."""
    torch.manual_seed(seed)
    model = NightCodec(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("leave.weight", "last.weight")) or name.startswith("means."):
                parameter.mul_(3.0)
            if name.startswith("means.groups") and name.endswith("last.weight"):
                parameter.normal_(std=0.3)
            if name.startswith("indices.") and name.endswith("weight"):
                parameter.mul_(1.5)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> NightCodec:
    return shaken()


def bins_of(model: NightCodec, z: torch.Tensor, level: int, values: torch.Tensor) -> torch.Tensor:
    """uint8 [B,latent,h,w]: the bins that a decoder finds for values without means as it reads them."""
    found = model.passes(z, level, *values.shape[2:], lambda channels, *_: values[:, channels])[2]
    return found.to(torch.uint8)


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth structure with some noise, float32 [1,3,height,width] in 0..1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 16 + 2, width // 16 + 2, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    return (smooth + 0.03 * torch.randn(1, 3, height, width, generator=generator)).clamp(0, 1)


def test_dct_rows_are_orthonormal():
    rows = opponent_dct((192, 64, 64), 16)
    assert rows.shape == (320, 768)
    assert torch.allclose(rows @ rows.t(), torch.eye(320), atol=1e-5)


def test_lambda_spans_its_range_geometrically():
    assert lambda_of(0) == pytest.approx(LAMBDA_RANGE[0])
    assert lambda_of(LEVELS) == pytest.approx(LAMBDA_RANGE[1])
    assert lambda_of(LEVELS / 2) == pytest.approx((LAMBDA_RANGE[0] * LAMBDA_RANGE[1]) ** 0.5)


def test_decoder_finds_the_encoders_indices(model):
    y = model.analysis(picture(240, 208))
    for level in (0, 333, 1000):
        found = quantised(model, y, level)
        assert found.symbols.shape[2:] == (15, 13)
        values = trellis.values_of(found.symbols, found.tables)
        assert torch.equal(bins_of(model, found.z, level, values), found.tables % ODD_STATES)
        assert not found.symbols[found.tables == 0].any()
    assert found.symbols.any() and len(found.tables.unique()) > 3


def test_a_pass_reads_earlier_passes_only(model):
    """What a pass codes does not change the bins or means of its own or of earlier passes; later ones see it."""
    z, symbols, tables, _ = quantised(model, model.analysis(picture(96, 96)), 700)
    values = trellis.values_of(symbols, tables)
    anchors = model.anchors(6, 6)
    first, *later = model.config.slices

    def predicted(y: torch.Tensor) -> torch.Tensor:
        """[2,latent,h,w]: bins and means that a decoder finds beside values y."""
        _, mean, index = model.passes(z, 700, 6, 6, lambda channels, *_: y[:, channels])
        return torch.cat((index, mean))

    places = [(first, anchors), (first, ~anchors), *((part, torch.ones_like(anchors)) for part in later)]
    plain = predicted(values)
    for number, (part, cells) in enumerate(places):
        spoilt = values.clone()
        spoilt[:, part] = torch.where(cells, torch.tensor(9.0), spoilt[:, part])
        changed = predicted(spoilt) != plain
        for other, (channels, where) in enumerate(places):
            seen = bool((changed[:, channels] & where).any())
            assert seen == (other > number), (number, other)


def test_groups_are_ordered_by_frequency():
    order = Config().order
    assert sorted(order) == list(range(320)) and order[0] == 0
    for wrong in ({"latent": 100}, {"groups": (160, 160)}):
        with pytest.raises(ValueError, match="are not three that make up"):
            Config(**wrong)


def test_loudness_is_an_activation_that_grows():
    values = NightCodec.seen(torch.tensor([0.0, 1, 2, 15, 500, 1023, 30000])) * 16
    assert values.tolist() == [0, 24, 38, 96, 215, 240, 240]


def test_quality_buys_fidelity():
    torch.manual_seed(0)
    model = NightCodec().eval().requires_grad_(False)
    for network in (model.analysis_network, model.synthesis_network):
        network.leave.weight.zero_()  # the DCT alone
    x = picture(128, 128)
    y = model.analysis(x)
    errors = []
    for level in range(0, LEVELS + 1, 100):
        x_hat = model.synthesis(model.unscale(quantised(model, y, level).values, level), level)
        errors.append(float((x_hat - x).square().mean()))
    assert all(later <= earlier * 1.02 for earlier, later in zip(errors, errors[1:], strict=False))
    assert errors[-1] < errors[0] / 2


def test_analysis_halo_suffices(model):
    x, halo = picture(320, 320), model.analysis_halo
    whole = model.analysis(x)
    tile = model.analysis(x[:, :, 128 - halo : 192 + halo, 128 - halo : 192 + halo])
    inner = tile[:, :, halo // 16 : -halo // 16, halo // 16 : -halo // 16]
    assert torch.allclose(inner, whole[:, :, 8:12, 8:12], atol=1e-3)


def test_synthesis_halo_suffices(model):
    y, halo = model.analysis(picture(320, 320)), model.synthesis_halo
    whole = model.synthesis(y, 500)
    tile = model.synthesis(y[:, :, 8 - halo : 12 + halo, 8 - halo : 12 + halo], 500)
    inner = tile[:, :, 16 * halo : -16 * halo, 16 * halo : -16 * halo]
    assert torch.allclose(inner, whole[:, :, 128:192, 128:192], atol=1e-5)


def test_latent_halo_suffices_for_means_and_indices(model):
    found, halo = quantised(model, model.analysis(picture(512, 512)), 800), model.latent_halo
    values = trellis.values_of(found.symbols, found.tables)
    low, high = 12 - halo, 16 + halo  # cells 12..16 of 32, halo of 8: rows 4..24
    z, y = found.z[:, :, low // 4 : high // 4, low // 4 : high // 4], values[:, :, low:high, low:high]
    inner = (slice(None), slice(None), slice(halo, -halo), slice(halo, -halo))
    outer = (slice(None), slice(None), slice(12, 16), slice(12, 16))
    assert torch.equal(bins_of(model, z, 800, y)[inner], bins_of(model, found.z, 800, values)[outer])
    of_tile, of_whole = (
        model.passes(part, 800, *v.shape[2:], lambda channels, *_, v=v: v[:, channels])[1]
        for part, v in ((z, y), (found.z, values))
    )
    assert torch.allclose(of_tile[inner], of_whole[outer], atol=1e-2)


def test_exact_layer_equals_integer_arithmetic():
    torch.manual_seed(1)
    layer = ExactConv2d(24, 40, 3).requires_grad_(False)
    torch.nn.init.normal_(layer.bias)
    x = quantise_activation(torch.rand(2, 24, 9, 11) * 20)
    weight, bias = layer.integers()
    expected = torch.nn.functional.conv2d((x * 16).double(), weight.double(), bias.double(), padding=1)
    assert torch.equal((layer(x).double() * 8192), expected)
    assert expected.abs().max() <= layer.accumulator_bound() < ACCUMULATOR_LIMIT


def test_weights_that_could_round_are_refused():
    layer = ExactConv2d(64, 4, 3)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    with pytest.raises(ValueError, match="float32 is exact below"):
        layer.check()


def test_model_file_round_trip(model, tmp_path):
    path = tmp_path / "model.safetensors"
    identity = save_model(model, path, steps="0")
    loaded = load_model(path)
    assert loaded.identity == identity and loaded.metadata["steps"] == "0" and loaded.config == model.config
    for ours, theirs in zip(model.tables().y_freq, loaded.tables().y_freq, strict=True):
        assert np.array_equal(ours, theirs)
    assert save_model(loaded, tmp_path / "again.safetensors", steps="0") == identity
    from safetensors import safe_open

    with safe_open(path, "np") as file:  # the real library reads what we write
        assert file.get_tensor("linear_analysis").shape == (40, 768)


def test_broken_model_files_are_named(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(model, path)
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    for broken in (b"", data[:5], data[:1000], b"\xff" * 64, data[: len(data) // 2]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="model.safetensors"):
            load_model(path)
    assert "tables.y" in header


def test_frequencies_sum_and_never_vanish():
    rng = np.random.default_rng(0)
    for n in (3, 64, 511):
        freq = integer_frequencies(rng.random(n) ** 20)
        assert freq.sum() == 1 << PRECISION and freq.min() >= 1
    tables = shaken().tables()
    assert len(tables.y_freq) == FIRST_BIN
    assert all(f.sum() == 1 << PRECISION for f in tables.y_freq)


def test_rounding_favours_cheap_symbols():
    thresholds = rounding_thresholds()
    assert (thresholds[:, 1:] >= torch.arange(0, thresholds.shape[1] - 1) + 0.5 - 1e-6).all()
    model = NightCodec()
    residual = torch.tensor([0.2, -0.55, 0.95, -3.7, 700.4, -40000.0])
    likely, unlikely = model.round(residual, torch.full((6,), 63)), model.round(residual, torch.full((6,), 8))
    assert likely.tolist() == [0, -1, 1, -4, 700, -32767]
    assert unlikely.tolist()[:3] == [0, 0, 1]
    tables = [table.copy() for table in model.tables().y_freq]
    assert torch.allclose(rounding_thresholds(y_freq=tables)[12:50, 1], thresholds[12:50, 1], atol=0.03)
    middle = (len(tables[12]) - 2) // 2
    tables[12][[middle, middle + 1, middle - 1]] = 1 << 12, 1 << 8, 1 << 8  # a one costs four bits more than nothing
    dearer = rounding_thresholds(1.0, tables)
    assert dearer[12, 1] == pytest.approx(0.5 + 4 / (2 * STEP**2 / 3), abs=1e-6)
    assert (dearer[11] - rounding_thresholds(1.0, model.tables().y_freq)[11]).abs().max() == 0


def test_limit_makes_weights_pass_the_check():
    layer = ExactConv2d(64, 4, 3)
    with torch.no_grad():
        layer.weight[0].fill_(1.0)
        before = layer.weight.clone()
    layer.limit()
    layer.check()
    assert torch.equal(layer.weight[1:], before[1:]) and (layer.weight[0] > 0.1).all()


def test_large_batches_are_exact_without_onednn():
    torch.manual_seed(2)
    layer = ExactConv2d(24, 40, 3).requires_grad_(False)
    x = quantise_activation(torch.rand(33, 24, 9, 11) * 20)
    expected = torch.cat([layer(one[None]) for one in x])
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(layer(x), expected)
