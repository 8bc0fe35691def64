"""Contexts: the tables that neighbours choose, as FORMAT.md says it; streams and files of version 3; how they are
found."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from codec.bitstream.segments import coding_of, order_of_passes
from codec.decoder import decode, decode_batch, info
from codec.encoder import encode, encode_batch
from codec.entropy import contexts, rans, trellis
from codec.entropy.context_kernels import corrected_pass, empty_scores
from codec.entropy.trellis import tables_with
from codec.format import FIRST_BIN, NEXT, ODD, ODD_STATES, bin_scales
from codec.network.files import load_model, read_model_file
from codec.training import fit_contexts
from codec.training.fit_contexts import with_contexts


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth structure with a little noise, RGB."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((pixels + rng.normal(size=pixels.shape) * 3).clip(0, 255).astype(np.uint8))


def symbols_like(seed: int, latent: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Symbols int16, the tables that a trellis codes them with, and their bins [latent,h,w], cell by cell of changing
    loudness."""
    rng = np.random.default_rng(seed)
    bins = rng.integers(0, 40, (latent, height, width)) * (rng.random((latent, height, width)) < 0.8)
    louder = np.exp(rng.normal(size=(1, height, width)))
    symbols = np.rint(rng.normal(size=bins.shape) * np.exp(bins / 8 - 2.5) * louder).astype(np.int16) * (bins > 0)
    tables, states = bins.copy(), np.zeros((height, width), int)
    for c in range(latent):
        moving = bins[c] >= FIRST_BIN
        tables[c] += ODD_STATES * (states & 1) * moving
        states = np.where(moving, NEXT[states, symbols[c] & 1], states)
    return symbols.astype(np.int16), tables.astype(np.uint8), bins.astype(np.uint8)


def by_the_book(found: contexts.Contexts, symbols, tables, passes) -> list[tuple[int, int]]:
    """(table, symbol as coded) of all that is coded, in order: FORMAT.md's text, number by number."""
    latent, height, width = symbols.shape
    scale, side = np.zeros(symbols.shape, int), np.zeros(symbols.shape, int)
    count, coded = found.channels.shape[2], []

    def there(scores, c, r, k):
        return int(scores[c, r, k]) if 0 <= r < height and 0 <= k < width else 0

    for part, parity in passes:
        second = int(parity == ODD)
        for c in range(part.start, part.stop):
            for r in range(height):
                columns = [k for k in range(width) if parity < 0 or (r + k) % 2 == parity]
                if parity < 0:
                    columns.sort(key=lambda k: k % 2)
                for k in columns:
                    table = int(tables[c, r, k])
                    if table == 0:
                        continue
                    if parity == 0:
                        around = [(-1, -1), (-1, 1), (-2, 0)]
                    elif parity == ODD:
                        around = [(-1, 0), (1, 0), (0, -1), (0, 1)]
                    elif k % 2 == 0:
                        around = [(-1, -1), (-1, 0), (-1, 1), (-2, 0)]
                    else:
                        around = [None] * 4 + [(0, -1), (0, 1), (-1, 0), (-2, 0)]
                    weights, leaning = found.scale_weights[second, c], found.location_weights[second, c]
                    loud = sum(int(weights[j]) * int(scale[found.channels[second, c, j], r, k]) for j in range(count))
                    lean = 0
                    for j, offset in enumerate(around):
                        if offset:
                            place = c, r + offset[0], k + offset[1]
                            loud += int(weights[count + j]) * there(scale, *place)
                            lean += int(leaning[j]) * there(side, *place)
                    bin_, odd = table % 64, table // 64
                    low, high = (1, 13) if bin_ < 14 else (14, 63)
                    bin_ = min(max(bin_ + ((loud + 8192) >> 14), low), high)
                    step = sum(abs(lean) >= edge for edge in (819, 3277, 6390))
                    symbol = int(symbols[c, r, k])
                    coded.append((bin_ + 64 * odd + 128 * step, -symbol if step and lean < 0 else symbol))
                    scale[c, r, k] = found.scale_scores[table, min(abs(symbol), 63)]
                    side[c, r, k] = found.location_scores[table, min(abs(symbol), 63)] * np.sign(symbol)
    return coded


def in_blocks(model, near, symbols, tables) -> list[tuple[int, int]]:
    """The same from corrected_pass."""
    found = []
    for part, cells in order_of_passes(model.config):
        signed, numbers = corrected_pass(symbols[part], tables[part], near, part.start, cells, cells)
        coded = numbers.ravel() > 0
        found += zip(numbers.ravel()[coded].tolist(), signed.ravel()[coded].tolist(), strict=True)
    return found


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 7), width=st.integers(1, 9), level=st.integers(0, 1000))
def test_tables_are_chosen_as_the_format_says(small, seed, height, width, level):
    symbols, tables, _ = symbols_like(seed, small.config.latent, height, width)
    found = contexts.contexts_at(coding_of(small).contexts, level)
    mine = in_blocks(small, empty_scores(found, height, width), symbols, tables)
    assert mine == by_the_book(found, symbols, tables, order_of_passes(small.config))


def test_contexts_change_bins_and_lean(small):
    """Else the test above would show nothing."""
    symbols, tables, _ = symbols_like(3, small.config.latent, 12, 15)
    found = contexts.contexts_at(coding_of(small).contexts, 500)
    coded = in_blocks(small, empty_scores(found, 12, 15), symbols, tables)
    plain = [int(t) for part, parity in order_of_passes(small.config) for t in _in_order(tables[part], parity)]
    assert np.mean([a % 128 != b for (a, _), b in zip(coded, plain, strict=True)]) > 0.3
    assert {a // 128 for a, _ in coded} >= {0, 1, 2}


def _in_order(tables: np.ndarray, parity: int) -> np.ndarray:
    if parity < 0:
        tables = np.concatenate((tables[:, :, ::2], tables[:, :, 1::2]), 2)
        return tables[tables > 0]
    cells = np.add.outer(np.arange(tables.shape[1]), np.arange(tables.shape[2])) % 2 == parity
    return (tables * cells)[tables * cells > 0]


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), height=st.integers(1, 12), width=st.integers(1, 12), left=st.integers(0, 3),
    level=st.integers(0, 1000),
)  # fmt: skip
def test_a_decoder_finds_the_tables_from_the_bins(small, seed, height, width, left, level):
    """Symbols, states and the tables that later passes look at, of a window within a band."""
    latent, left = small.config.latent, 2 * left
    found = contexts.contexts_at(coding_of(small).contexts, level)
    symbols, tables, bins = symbols_like(seed, latent, height, left + width)
    window, y = (0, height, left, left + width), coding_of(small).y
    inside, scores, blocks = symbols[:, :, left:], empty_scores(found, height, width), []
    for part, cells in order_of_passes(small.config):
        pair = corrected_pass(inside[part], tables[part, :, left:], scores, part.start, cells, cells)
        blocks.append(rans.Block(*pair, y))
    stream = rans.encode(blocks, rans.checksum(inside), 2)
    out, index, states = np.zeros_like(symbols), bins.copy(), np.zeros((height, left + width), np.uint8)
    decoder, scores = rans.Decoder(stream, 2), empty_scores(found, height, width)
    for part, cells in order_of_passes(small.config):
        decoder.read_pass(rans.Pass(out[part], index[part], states, window, cells, scores, part.start), y)
    decoder.finish(rans.checksum(out[:, :, left:]))
    assert np.array_equal(out[:, :, left:], inside) and not out[:, :, :left].any()
    assert np.array_equal(index[:, :, left:], tables[:, :, left:])


@pytest.fixture(scope="module")
def without(small_bytes):
    """The model before its contexts were found: such as correct nothing."""
    arrays, _ = read_model_file(small_bytes)
    latent, tables = arrays["log_gain"].shape[1], load_model(small_bytes).tables()
    return load_model(with_contexts(small_bytes, contexts.without_weights(latent, tables_with(tables.y_freq))))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (16, 33), (250, 190), (1700, 40)])
@pytest.mark.parametrize("quality", [0, 45, 100])
def test_contexts_change_no_symbol(small, without, width, height, quality):
    image = photo(width, height)
    data, plain = encode(image, quality, model=small), encode(image, quality, model=without)
    assert np.array_equal(np.asarray(decode(data, model=small)), np.asarray(decode(plain, model=without)))
    assert width * height < 10_000 or len(data) < len(plain)


def test_batches_of_several_levels(small):
    images, qualities = [photo(120, 90, seed) for seed in range(3)], [5, 50, 95]
    files = encode_batch(images, qualities, model=small)
    assert files == [encode(image, q, model=small) for image, q in zip(images, qualities, strict=True)]
    for file, shown in zip(files, decode_batch(files, model=small), strict=True):
        assert np.array_equal(np.asarray(shown), np.asarray(decode(file, model=small)))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("scale_weights", lambda a: a[:, :, :-1], "do not fit"),
        ("channels", lambda a: a + 1, "not coded yet"),
        ("channels", lambda a: a - 60, "not coded yet"),
        ("location_weights", lambda a: a + (1 << 22), "overflow"),
        ("sizes", lambda a: a[:-1], "511 tables"),
    ],
)
def test_contexts_that_make_no_sense_are_refused(small_bytes, name, change, message):
    arrays, _ = read_model_file(small_bytes)
    found = {key: array for key, array in arrays.items() if key.startswith("contexts.")}
    found[f"contexts.{name}"] = change(found[f"contexts.{name}"])
    with pytest.raises(ValueError, match=message):
        load_model(with_contexts(small_bytes, found))


def test_weights_are_found_again(small):
    """Cells whose loudness a bin does not know, and a channel that repeats the one above: fitted contexts see both."""
    tables = trellis.tables_with(small.tables().y_freq)
    latent, rng = small.config.latent, np.random.default_rng(2)
    sums = fit_contexts.Sums(small.config.groups, tables)

    def piece():
        louder = np.exp2(rng.normal(size=(1, 16, 16)) * 0.8)
        bins = np.full((latent, 16, 16), 12)
        symbols = np.rint(rng.normal(size=bins.shape) * 0.5 * louder)
        drift = np.rint(np.cumsum(rng.normal(size=(16, 16)), 0)).clip(-2, 2)
        symbols[20] = np.where(rng.random((16, 16)) < 0.7, drift, symbols[20])
        return 500, symbols.astype(np.int16), bins.astype(np.uint8)

    for _ in range(40):
        sums.add(*piece())
    found = sums.weights(latent)
    assert len(found) == fit_contexts.RANGES
    weights = contexts.contexts_at(found, 500)
    assert (weights.channels[0, 40] < 40).all() and (weights.scale_weights[0, 40, : fit_contexts.CHANNELS] > 0).all()
    assert weights.location_weights[0, 20, 1] > 5 * np.abs(weights.location_weights[0, 30]).max() > 0
    prior = fit_contexts.prior_tables(tables)
    _, before, after = fit_contexts.counted(small, found, prior, (piece() for _ in range(10)))
    assert after < 0.96 * before


def test_shifted_tables_are_those_of_a_moved_gaussian():
    tables = [None] * contexts.TABLES
    for number, table in enumerate(trellis.gaussian_tables()):
        tables[number] = table
    found = fit_contexts.prior_tables(tables)
    for mean, number in zip(contexts.SHIFT_MEANS, range(40, 4 * 128, 128), strict=True):
        table = found[number][:-1].astype(float)
        k = np.arange(len(table)) - len(table) // 2
        scale = bin_scales()[40]
        assert (table * k).sum() / table.sum() / scale == pytest.approx(mean, abs=0.03)


def test_contexts_are_added_to_a_model_file(small_bytes, tmp_path):
    (tmp_path / "pictures").mkdir()
    for seed in range(3):
        photo(200, 150, seed).save(tmp_path / "pictures" / f"{seed}.png")
    latent, tables = load_model(small_bytes).config.latent, load_model(small_bytes).tables()
    none = contexts.without_weights(latent, tables_with(tables.y_freq))
    (tmp_path / "plain.safetensors").write_bytes(with_contexts(small_bytes, none))
    found = tmp_path / "with.safetensors"
    identity = fit_contexts.add(tmp_path / "plain.safetensors", [tmp_path / "pictures"], found, 3, 4)
    image = photo(200, 150, 9)
    with_them = encode(image, 60, model=found)
    assert info(with_them)["model"] == identity
    assert len(with_them) < 0.9 * len(encode(image, 60, model=tmp_path / "plain.safetensors"))
    again = fit_contexts.add(found, [tmp_path / "pictures"], tmp_path / "again.safetensors", 3, 4)
    assert again == identity  # what was there before is replaced
