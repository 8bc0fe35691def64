"""Trellis-coded quantisation: the search finds the cheapest way, decoders follow it, files of version 2 hold it."""

import itertools
import lzma
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from codec import entropy, trellis, trellis_search
from codec.coder import decode, decode_batch, encode, encode_batch, info, prepare
from codec.container import BadBitstream
from codec.latents import quantise
from codec.model import BINS, bin_scales, load_model, loudness, parametric_tables, rounding_thresholds, scale_of
from codec.states import FIRST_BIN, NEXT, ODD_STATES, STATES
from codec.windows import Bands, Grid, Window


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth structure with a little noise, RGB."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((pixels + rng.normal(size=pixels.shape) * 3).clip(0, 255).astype(np.uint8))


def apart(a, b) -> int:
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max())


DATA = Path(__file__).parents[1] / "data"
THRESHOLDS = rounding_thresholds()


def drawn(seed: int, cells: int, channels: int, lowest: int = 0, highest: int = BINS) -> tuple:
    """Residuals of cells, in their bins."""
    rng = np.random.default_rng(seed)
    bins = rng.integers(lowest, highest, (cells, channels)).astype(np.uint8)
    residual = rng.normal(size=bins.shape) * bin_scales()[bins]
    return torch.from_numpy(residual.astype(np.float32)), torch.from_numpy(bins)


def settled(residual, bins, states=None):
    states = torch.zeros(len(bins), dtype=torch.uint8) if states is None else states
    return *trellis_search.settle(residual, bins, states, THRESHOLDS), states


def cost(residual: np.ndarray, symbols, bins: np.ndarray, state: int) -> tuple[float, int]:
    """Bits and weighted error of one chain of symbols, and the state that it ends in."""
    total = 0.0
    for value, k, bin_ in zip(residual, symbols, bins, strict=True):
        odd = state & 1
        shown = abs(k) - 0.5 * odd * (k != 0)
        total += float(trellis.WEIGHT) * (abs(value) - shown) ** 2
        total += float(trellis.costs()[bin_ + ODD_STATES * odd, abs(k)])
        state = int(NEXT[state, k & 1])
    return total, state


def test_the_search_finds_the_cheapest_way():
    residual, bins = drawn(0, 12, 4, FIRST_BIN, 30)
    start = torch.arange(12, dtype=torch.uint8) % STATES
    symbols, _, ends = settled(residual, bins, start.clone())
    for cell in range(12):
        values, numbers = residual[cell].numpy(), bins[cell].numpy()
        near = [range(max(0, int(abs(v)) - 1), int(abs(v)) + 4) for v in values]
        ways = itertools.product(*({0, *choices} for choices in near))
        least = min(cost(values, way, numbers, int(start[cell]))[0] for way in ways)
        mine, end = cost(values, symbols[cell].abs().tolist(), numbers, int(start[cell]))
        assert mine == pytest.approx(least, rel=1e-4) and end == ends[cell]
        assert (symbols[cell] * residual[cell] >= 0).all()


def test_both_searches_find_the_same(grouped):
    residual, bins = drawn(7, 200, 60)
    start = torch.arange(200, dtype=torch.uint8) % STATES
    mine, his = start.clone(), start.clone()
    symbols, tables = trellis_search.settle(residual, bins, mine, grouped.thresholds)
    pair = trellis.settle(residual, bins, his, grouped.round(residual, bins))
    same = ((symbols == pair[0]) & (tables == pair[1])).all(1)
    assert same.float().mean() > 0.97  # the others chose between two ways of one cost
    assert torch.equal(mine[same], his[same]) and (mine != start).any()
    plain = bins < FIRST_BIN
    assert torch.equal(symbols[plain], pair[0][plain]) and torch.equal(tables[plain], bins[plain])
    for cell in torch.nonzero(~same)[:, 0].tolist():
        values, numbers = residual[cell][~plain[cell]].numpy(), bins[cell][~plain[cell]].numpy()
        sums = [
            cost(values, k[cell][~plain[cell]].abs().tolist(), numbers, int(start[cell]))[0] for k in (symbols, pair[0])
        ]
        assert sums[0] == pytest.approx(sums[1], rel=1e-5)


def test_what_is_too_large_or_no_number_gets_the_largest_symbol(grouped):
    residual = torch.tensor([[40000.0, -1e30, float("nan"), float("-inf"), 31999.4]])
    bins = torch.full(residual.shape, 63, dtype=torch.uint8)
    one, other = torch.zeros(1, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8)
    for symbols, _ in (
        trellis_search.settle(residual, bins, one, THRESHOLDS),
        trellis.settle(residual, bins, other, residual.nan_to_num()),
    ):
        assert (symbols.abs() - 32000).abs().max() <= 1 and symbols[0, 1] < 0 < symbols[0, 0]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), cells=st.integers(1, 40), channels=st.integers(1, 30))
def test_a_decoder_follows_the_states(seed, cells, channels):
    """From the bins alone it finds the same tables, symbols and last states."""
    residual, bins = drawn(seed, cells, channels)
    symbols, tables, states = settled(residual, bins)
    planes = [t.numpy().T[:, None].copy() for t in (symbols, tables)]
    coding = entropy.TableSet(trellis.with_own(parametric_tables_of_bins()))
    stream = entropy.encode([entropy.Block(*planes, coding)], entropy.checksum(planes[0]), 2)
    out, index, reached = np.zeros_like(planes[0]), bins.numpy().T[:, None].copy(), np.zeros((1, cells), np.uint8)
    decoder = entropy.Decoder(stream, 2)
    decoder.read(entropy.Block(out, index, coding, states=reached))
    decoder.finish(entropy.checksum(out))
    assert np.array_equal(out, planes[0]) and np.array_equal(index, planes[1])
    assert np.array_equal(reached[0], states.numpy())
    assert ((planes[1] >= ODD_STATES) <= (bins.numpy().T[:, None] >= FIRST_BIN)).all()


def parametric_tables_of_bins() -> list:
    from codec.model import Config, NightCodec

    small = Config(channels=16, latent=8, hyper=4, encoder_blocks=1, decoder_blocks=1, groups=(2, 2, 4))
    return parametric_tables(NightCodec(small)).y_freq


def test_low_bins_are_quantised_as_ever(grouped):
    residual, bins = drawn(3, 300, 20, 0, FIRST_BIN)
    states = torch.full((300,), 5, dtype=torch.uint8)
    symbols, tables = trellis_search.settle(residual, bins, states, grouped.thresholds)
    assert torch.equal(symbols.float(), grouped.round(residual, bins) * (bins > 0))
    assert torch.equal(tables, bins) and (states == 5).all()
    assert torch.equal(trellis.values_of(symbols, tables), symbols.float())


def test_at_high_rates_the_same_bits_leave_less_error():
    """A Gaussian of 8 steps: granular gain of eight states, of 1.53 dB that there are (Marcellin and Fischer 1990)."""
    bin_ = int(np.argmin(np.abs(bin_scales() - 8)))
    scale = bin_scales()[bin_]
    rng = np.random.default_rng(1)
    residual = torch.from_numpy((rng.normal(size=(400, 300)) * scale).astype(np.float32))
    bins = torch.full(residual.shape, bin_, dtype=torch.uint8)
    symbols, tables, _ = settled(residual, bins)
    error = (trellis.values_of(symbols, tables) - residual).square().mean().item()
    bits = 0.0
    for number in (bin_, bin_ + ODD_STATES):
        counts = np.unique(symbols[tables == number].numpy(), return_counts=True)[1]
        bits += -(counts * np.log2(counts / counts.sum())).sum() / symbols.numel()
    step = scale * np.sqrt(2 * np.pi * np.e) / 2**bits  # of the uniform quantiser with as many bits
    assert 0.6 < 10 * np.log10(step**2 / 12 / error) < 1.2


def test_what_the_index_network_sees_is_never_near_a_half():
    size = 24 * np.log2(1 + np.arange(trellis.LOUDEST + 1) / 2)
    assert np.abs(size - np.floor(size) - 0.5).min() > 1e-5
    table = trellis.loudness(torch.device("cpu"))
    assert np.array_equal(table.numpy() * 16, np.rint(size))
    assert torch.equal(table[::2], loudness(torch.arange(1024)))
    symbols = torch.tensor([0, 1, -1, 3, -3, 2000, -30000], dtype=torch.int16)
    for number, expected in ((20, [0, 2, -2, 6, -6, 4000, -60000]), (20 + ODD_STATES, [0, 1, -1, 5, -5, 3999, -59999])):
        tables = torch.full(symbols.shape, number, dtype=torch.uint8)
        assert [trellis_search.halves(np.int16(k), np.uint8(number)) for k in symbols.tolist()] == expected
        assert (2 * trellis.values_of(symbols, tables)).tolist() == expected
        assert trellis.halves_of(symbols, tables).tolist() == [min(abs(k), trellis.LOUDEST) for k in expected]


def test_the_tables_of_the_format():
    tables = trellis.frequencies()
    assert [table is not None for table in tables] == [i % ODD_STATES >= FIRST_BIN for i in range(2 * BINS)]
    for table in filter(lambda table: table is not None, tables):
        assert table.sum() == entropy.TOTAL and table.min() >= 1
        assert np.allclose(table[:-1], table[-2::-1].astype(float), rtol=0, atol=1)  # either sign alike
    # Odd states have points at half a step: they find zero less often.
    for bin_ in range(FIRST_BIN, 40):
        even, odd = tables[bin_], tables[bin_ + ODD_STATES]
        assert odd[len(odd) // 2 - 1] < even[len(even) // 2 - 1]


@pytest.mark.parametrize("segment", [16, 64])
def test_windows_code_what_the_definition_says(grouped, segment):
    pixels = torch.from_numpy(np.array(photo(528, 416))).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        y = grouped.analysis(pixels)
        z, symbols, tables, values = trellis.quantised(grouped, y, 700)
        grid = Grid(*y.shape[2:], segment)
        rows = Bands(grid.rows)
        for band in range(grid.bands):
            rows.parts[band] = y.permute(0, 2, 3, 1)[:, grid.rows[band] : grid.rows[band + 1]].contiguous()
        latents = quantise(grouped, rows, torch.tensor([700]), grid)
    assert torch.equal(latents.z.permute(0, 3, 1, 2), z)
    assert len(np.unique(tables)) > 60
    for bands, whole in ((latents.symbols, symbols), (latents.index, tables)):
        assert (torch.cat(bands.parts, 1).permute(0, 3, 1, 2) != whole).float().mean() < 2e-3  # ties of the search
    whole = Window(0, grid.height, 0, grid.width, tuple(y.shape[2:]))
    off = (latents.all_values(whole).permute(0, 3, 1, 2) - values).abs()
    assert (off > 1e-3).float().mean() < 2e-3


def test_files_of_version_2(grouped, tiny):
    image = photo(300, 200)
    for model, level, version in ((grouped, 0, 2), (grouped, 500, 2), (grouped, 1000, 2), (tiny, 500, 1)):
        prepared = prepare(image, model, 16)
        data = prepared.code(level)
        assert info(data)["version"] == version == data[3]
        assert apart(decode(data, model=model), prepared.reconstruct(level)) <= 1


def test_a_file_of_the_other_version_is_refused(grouped):
    """The version says how the symbols are read: a forged one leads to other symbols, which their checksum notices."""
    data = bytearray(encode(photo(120, 90), 60, model=grouped))
    data[3] = 1
    with pytest.raises(BadBitstream):
        decode(bytes(data[:-4]) + zlib.crc32(data[:-4]).to_bytes(4, "little"), model=grouped)


def test_format_2_is_refused_for_a_model_without_groups(tiny, golden):
    data = bytearray((golden / "rgb.npi").read_bytes())
    data[3] = 2
    with pytest.raises(BadBitstream, match="no groups"):
        decode(bytes(data[:-4]) + zlib.crc32(data[:-4]).to_bytes(4, "little"), model=tiny)


def test_batches_of_both_versions(grouped, golden):
    images = [photo(97, 61, seed) for seed in range(3)]
    files = encode_batch(images, [10, 80, 30], model=grouped)
    files.insert(1, (golden / "grouped-rgb.npi").read_bytes())  # of the same size
    assert [info(data)["version"] for data in files] == [2, 1, 2, 2]
    for data, shown in zip(files, decode_batch(files, model=grouped), strict=True):
        assert apart(shown, decode(data, model=grouped)) <= 1
    assert files[2] == encode(images[1], 80, model=grouped)


def test_a_finishing_pass_sees_what_is_coded(grouped):
    """Its bits are near those of the tables, its picture is the decoder's, and the scale bins learn from both."""
    model = load_model(lzma.decompress((DATA / "grouped.safetensors.xz").read_bytes())).requires_grad_(True)
    x = torch.from_numpy(np.array(photo(192, 160))).permute(2, 0, 1)[None].float() / 255
    level = torch.tensor([600])
    shown, bits = model.finishing_pass(x, level)
    with torch.no_grad():
        y = model.analysis(x)
        _, symbols, tables, values = trellis.quantised(model, y, level)
        assert torch.allclose(shown, model.synthesis(model.unscale(values, level), level), atol=1e-5)
        index = tables % ODD_STATES
        coded = -torch.log2(trellis.cell_mass(symbols, tables, scale_of(index.float()))[index > 0]).sum().item()
        assert coded * 0.999 <= bits.item() <= coded * 1.5  # and what bin 0 suppresses
    bits.sum().backward()
    assert model.indices.groups[-1].last.weight.grad.abs().sum() > 0
    assert grouped.seen.__self__ is grouped  # nothing of it stays on a model


@pytest.mark.parametrize("name", ["tiny", "grouped"])
def test_a_real_training_pass_is_a_finishing_one_that_the_encoder_learns_from(name):
    model = load_model(lzma.decompress((DATA / f"{name}.safetensors.xz").read_bytes())).requires_grad_(True)
    x = torch.from_numpy(np.array(photo(192, 160))).permute(2, 0, 1)[None].float() / 255
    level = torch.tensor([600])
    shown, bits, _ = model.training_pass(x, level, real=True)
    with torch.no_grad():
        finished, of_finished = model.finishing_pass(x, level)
    assert torch.allclose(shown, finished, atol=1e-5) and torch.allclose(bits, of_finished, rtol=1e-5)
    encoder, bins = (model.linear_analysis, model.log_gain), (model.indices.first.weight, model.indices.second.weight)
    for part, learning in (
        (bits.sum(), (*encoder, *bins, model.means.first.weight)), ((shown - x).square().mean(), encoder),
    ):  # fmt: skip
        gradients = torch.autograd.grad(part, learning, retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_the_cells_of_a_quantiser_fill_the_line():
    k = torch.arange(-400, 401, dtype=torch.int16)
    for number in (30, 30 + ODD_STATES):
        mass = trellis.cell_mass(k, torch.full(k.shape, number, dtype=torch.uint8), torch.tensor(3.0))
        assert mass.sum().item() == pytest.approx(1, abs=2e-4)  # each at least 1e-7
