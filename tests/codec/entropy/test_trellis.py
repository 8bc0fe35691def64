"""Trellis-coded quantisation: the search finds the cheapest way, decoders follow it, trainings see what is coded."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from codec.engine.passes import quantise
from codec.engine.windows import Bands, Grid, Window
from codec.entropy import rans, trellis, trellis_cpu, trellis_search
from codec.entropy.context_kernels import empty_scores
from codec.entropy.contexts import of_arrays, without_weights
from codec.entropy.tables import parametric_tables, rounding_thresholds, scale_of
from codec.entropy.trellis import STATES
from codec.format import BINS, EVERYWHERE, FIRST_BIN, NEXT, ODD_STATES, bin_scales
from codec.network.files import load_model
from codec.network.reference import quantised


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth structure with a little noise, RGB."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((pixels + rng.normal(size=pixels.shape) * 3).clip(0, 255).astype(np.uint8))


def apart(a, b) -> int:
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max())


THRESHOLDS = rounding_thresholds()


def drawn(seed: int, cells: int, channels: int, lowest: int = 0, highest: int = BINS) -> tuple:
    """Residuals of cells, in their bins."""
    rng = np.random.default_rng(seed)
    bins = rng.integers(lowest, highest, (cells, channels)).astype(np.uint8)
    residual = rng.normal(size=bins.shape) * bin_scales()[bins]
    return torch.from_numpy(residual.astype(np.float32)), torch.from_numpy(bins)


def settled(residual, bins, states=None):
    states = torch.zeros(len(bins), dtype=torch.uint8) if states is None else states
    return *trellis_cpu.viterbi_quantise(residual, bins, states, THRESHOLDS), states


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


def test_both_searches_find_the_same(small):
    residual, bins = drawn(7, 200, 60)
    start = torch.arange(200, dtype=torch.uint8) % STATES
    mine, his = start.clone(), start.clone()
    symbols, tables = trellis_cpu.viterbi_quantise(residual, bins, mine, small.thresholds)
    pair = trellis_search.viterbi_quantise(residual, bins, his, small.round(residual, bins))
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


def test_what_is_too_large_or_no_number_gets_the_largest_symbol(small):
    residual = torch.tensor([[40000.0, -1e30, float("nan"), float("-inf"), 31999.4]])
    bins = torch.full(residual.shape, 63, dtype=torch.uint8)
    one, other = torch.zeros(1, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8)
    for symbols, _ in (
        trellis_cpu.viterbi_quantise(residual, bins, one, THRESHOLDS),
        trellis_search.viterbi_quantise(residual, bins, other, residual.nan_to_num()),
    ):
        assert (symbols.abs() - 32000).abs().max() <= 1 and symbols[0, 1] < 0 < symbols[0, 0]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), cells=st.integers(1, 40), channels=st.integers(1, 30))
def test_a_decoder_follows_the_states(seed, cells, channels):
    """From the bins alone it finds the same tables, symbols and last states."""
    residual, bins = drawn(seed, cells, channels)
    symbols, tables, states = settled(residual, bins)
    planes = [t.numpy().T[:, None].copy() for t in (symbols, tables)]
    y_freq = parametric_tables(np.zeros((11, 1)), np.zeros((11, 1))).y_freq
    (plain,), numbered = of_arrays(without_weights(channels, trellis.tables_with(y_freq)), channels)
    coding = rans.TableSet([None, *(numbered[1] if table is None else table for table in numbered[1:])])
    halves = [np.concatenate((plane[:, :, ::2], plane[:, :, 1::2]), 2) for plane in planes]  # even columns first
    stream = rans.encode([rans.Block(*halves, coding)], rans.checksum(planes[0]), 2)
    out, index, reached = np.zeros_like(planes[0]), bins.numpy().T[:, None].copy(), np.zeros((1, cells), np.uint8)
    decoder = rans.Decoder(stream, 2)
    window, scores = (0, 1, 0, cells), empty_scores(plain, 1, cells)
    decoder.read_pass(rans.Pass(out, index, reached, window, EVERYWHERE, scores, 0), coding)
    decoder.finish(rans.checksum(out))
    assert np.array_equal(out, planes[0]) and np.array_equal(index, planes[1])
    assert np.array_equal(reached[0], states.numpy())
    assert ((planes[1] >= ODD_STATES) <= (bins.numpy().T[:, None] >= FIRST_BIN)).all()


def test_low_bins_are_quantised_as_ever(small):
    residual, bins = drawn(3, 300, 20, 0, FIRST_BIN)
    states = torch.full((300,), 5, dtype=torch.uint8)
    symbols, tables = trellis_cpu.viterbi_quantise(residual, bins, states, small.thresholds)
    assert torch.equal(symbols.float(), small.round(residual, bins) * (bins > 0))
    assert torch.equal(tables, bins) and (states == 5).all()
    assert torch.equal(trellis.values_of(symbols, tables), symbols.float())


def test_at_high_rates_the_same_bits_leave_less_error():
    """A Gaussian of 8 steps: granular gain of small states, of 1.53 dB that there are (Marcellin and Fischer 1990)."""
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
    symbols = torch.tensor([0, 1, -1, 3, -3, 2000, -30000], dtype=torch.int16)
    for number, expected in ((20, [0, 2, -2, 6, -6, 4000, -60000]), (20 + ODD_STATES, [0, 1, -1, 5, -5, 3999, -59999])):
        tables = torch.full(symbols.shape, number, dtype=torch.uint8)
        assert [trellis_cpu.halves(np.int16(k), np.uint8(number)) for k in symbols.tolist()] == expected
        assert (2 * trellis.values_of(symbols, tables)).tolist() == expected
        assert trellis.halves_of(symbols, tables).tolist() == [min(abs(k), trellis.LOUDEST) for k in expected]


def test_the_tables_of_the_search():
    tables = trellis.search_tables()
    assert [table is not None for table in tables] == [i % ODD_STATES >= FIRST_BIN for i in range(2 * BINS)]
    for table in filter(lambda table: table is not None, tables):
        assert table.sum() == rans.TOTAL and table.min() >= 1
        assert np.allclose(table[:-1], table[-2::-1].astype(float), rtol=0, atol=1)  # small sign alike
    # Odd states have points at half a step: they find zero less often.
    for bin_ in range(FIRST_BIN, 40):
        even, odd = tables[bin_], tables[bin_ + ODD_STATES]
        assert odd[len(odd) // 2 - 1] < even[len(even) // 2 - 1]


@pytest.mark.parametrize("segment", [16, 64])
def test_windows_code_what_the_definition_says(small, segment):
    pixels = torch.from_numpy(np.array(photo(528, 416))).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        y = small.analysis(pixels)
        z, symbols, tables, values = quantised(small, y, 700)
        grid = Grid(*y.shape[2:], segment)
        rows = Bands(grid.rows)
        for band in range(grid.bands):
            rows.parts[band] = y.permute(0, 2, 3, 1)[:, grid.rows[band] : grid.rows[band + 1]].contiguous()
        latents = quantise(small, rows, torch.tensor([700]), grid)
    assert torch.equal(latents.z.permute(0, 3, 1, 2), z)
    assert len(np.unique(tables)) > 60
    for bands, whole in ((latents.symbols, symbols), (latents.index, tables)):
        assert (torch.cat(bands.parts, 1).permute(0, 3, 1, 2) != whole).float().mean() < 2e-3  # ties of the search
    whole = Window(0, grid.height, 0, grid.width, tuple(y.shape[2:]))
    off = (latents.all_values(whole).permute(0, 3, 1, 2) - values).abs()
    assert (off > 1e-3).float().mean() < 2e-3


def test_a_real_training_pass_sees_what_is_coded(small_bytes):
    """Its bits are near those of the tables, its picture is the decoder's, and all that can learn from them does."""
    model = load_model(small_bytes).requires_grad_(True)
    x = torch.from_numpy(np.array(photo(192, 160))).permute(2, 0, 1)[None].float() / 255
    level = torch.tensor([600])
    shown, bits, _ = model.training_pass(x, level, real=True)
    with torch.no_grad():
        _, symbols, tables, values = quantised(model, model.analysis(x), level)
        assert torch.allclose(shown, model.synthesis(model.unscale(values, level), level), atol=1e-5)
        index = tables % ODD_STATES
        coded = -torch.log2(trellis.interval_mass(symbols, tables, scale_of(index.float()))[index > 0]).sum().item()
        assert coded * 0.999 <= bits.item() <= coded * 1.5  # and what bin 0 suppresses
    encoder, bins = (model.linear_analysis, model.log_gain), (model.indices.first.weight, model.indices.second.weight)
    last = model.indices.groups[-1].last.weight
    for part, learning in (
        (bits.sum(), (*encoder, *bins, last, model.means.first.weight)), ((shown - x).square().mean(), encoder),
    ):  # fmt: skip
        gradients = torch.autograd.grad(part, learning, retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_the_cells_of_a_quantiser_fill_the_line():
    k = torch.arange(-400, 401, dtype=torch.int16)
    for number in (30, 30 + ODD_STATES):
        mass = trellis.interval_mass(k, torch.full(k.shape, number, dtype=torch.uint8), torch.tensor(3.0))
        assert mass.sum().item() == pytest.approx(1, abs=2e-4)  # each at least 1e-7
