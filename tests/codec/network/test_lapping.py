"""Filters across the borders of blocks: what they gain, that both forms agree, and models that have them."""

import numpy as np
import pytest
import torch
from PIL import Image

from codec.decoder import decode
from codec.encoder import encode
from codec.engine import blocks as pixel_blocks
from codec.engine.render import _paint_from
from codec.network import lapping
from codec.network.night_codec import NightCodec
from codec.network.reference import quantised


def coding_gain(p: torch.Tensor, correlation: float = 0.95, blocks: int = 7) -> float:
    """Decibels that a 16-point DCT after the filter p [16,16] gains over single samples of a first-order process: the
    means of variances times squared norms of what puts coefficients back."""
    k = torch.arange(16).double()
    dct = torch.cos(np.pi * (2 * k[None] + 1) * k[:, None] / 32) * np.sqrt(1 / 8)
    dct[0] /= np.sqrt(2)
    size = 16 * blocks
    covariance = correlation ** (torch.arange(size)[:, None] - torch.arange(size)[None]).abs().double()
    forward, back = torch.eye(size).double(), torch.eye(size).double()
    for start in range(8, size - 8, 16):
        forward[start : start + 16, start : start + 16] = p
        back[start : start + 16, start : start + 16] = torch.linalg.inv(p)
    middle = slice(16 * (blocks // 2), 16 * (blocks // 2 + 1))
    transform = torch.block_diag(*[dct] * blocks)
    rows, columns = (transform @ forward)[middle], (back @ transform.t())[:, middle]
    variances = ((rows @ covariance) * rows).sum(1)
    return float(-10 * torch.log10(variances * columns.square().sum(0)).mean())


def test_it_begins_as_the_published_transform():
    v, _ = lapping.initial()
    assert coding_gain(torch.eye(16).double()) == pytest.approx(9.455, abs=0.001)  # the DCT alone
    assert coding_gain(lapping.filter_of(v.double())) == pytest.approx(9.926, abs=0.001)


def test_one_filter_undoes_the_other_and_edges_stay():
    x = torch.rand(2, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    v, back = lapping.initial()
    y = lapping.lapped(x, v)
    assert torch.allclose(lapping.lapped(y, back), x, atol=1e-5)
    assert torch.equal(y[:, :, :8, :8], x[:, :, :8, :8]) and torch.equal(y[:, :, -8:, -8:], x[:, :, -8:, -8:])
    assert (y - x)[:, :, 8:-8, 8:-8].abs().max() > 0.1
    assert torch.allclose(lapping.lapped(torch.full_like(x, 0.3), v), torch.tensor(0.3))
    for size in ((16, 16), (16, 64), (64, 16)):
        part = x[:, :, :1, :1].expand(-1, -1, *size) + torch.linspace(0, 1, size[1])
        assert torch.allclose(lapping.lapped(lapping.lapped(part, v), back), part, atol=1e-5)


def in_blocks(x: torch.Tensor) -> torch.Tensor:
    """Pixels [B,3,H,W] -> turned cells, by the definition of the order."""
    batch, _, height, width = x.shape
    t = x.view(batch, 3, height // 16, 16, width // 16, 16).permute(0, 2, 4, 1, 3, 5)
    return t.reshape(batch, height // 16, width // 16, 768)[..., pixel_blocks.block_order()]


def test_the_parts_of_cells_are_in_their_order():
    of_pixels = torch.arange(768).view(3, 16, 16)
    for part, place in enumerate(pixel_blocks.block_order().view(4, 192)):
        block = of_pixels[:, 8 * (part // 2) :, 8 * (part % 2) :][:, :8, :8].flatten()
        assert torch.equal(place, block[pixel_blocks.part_order()])


@pytest.mark.parametrize("shape", [(16, 16), (16, 48), (64, 16), (48, 80)])
def test_cells_are_filtered_as_pixels_are(shape):
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() - 127.5
    v = lapping.initial()[0] + 0.1 * torch.randn(8, 8, generator=torch.Generator().manual_seed(2))
    expected, found = in_blocks(lapping.lapped(x, v)), torch.empty(1, shape[0] // 16, shape[1] // 16, 768)
    assert torch.allclose(pixel_blocks.lap_blocks(in_blocks(x), v), expected, atol=1e-3)
    pixel_blocks.spread(pixels, pixel_blocks.weights_of(v), found[0].numpy())
    assert torch.allclose(found, expected, atol=1e-3)


UNFILTERED = np.zeros(64, np.float32)  # adds nothing


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(32, 48), (17, 33), (30, 5), (1, 1)])
def test_cells_repeat_the_edge(shape, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, channels)).astype(np.uint8)
    found = torch.empty(-(-shape[0] // 16), -(-shape[1] // 16), 768)
    pixel_blocks.spread(pixels, UNFILTERED, found.numpy())
    colours = pixels[:, :, :3] if channels >= 3 else np.repeat(pixels[:, :, :1], 3, 2)
    padded = np.pad(colours, ((0, -shape[0] % 16), (0, -shape[1] % 16), (0, 0)), mode="edge")
    assert torch.equal(found[None], in_blocks(torch.from_numpy(padded).permute(2, 0, 1)[None].float() - 127.5))
    if channels == 3:
        assert torch.equal(pixel_blocks.turned_of(torch.from_numpy(pixels)[None], *found.shape[:2])[0], found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("top", "left", "shape"),
    [(0, 0, (96, 112)), (2, 3, (32, 24)), (1, 0, (48, 64)), (3, 4, (48, 48)), (4, 5, (30, 21))],
)
def test_rows_in_the_cache_are_the_whole(top, left, shape, dtype):
    """Windows of 6x7 blocks, at its edges and inside, painted row by row as from all cells filtered at once."""
    generator = torch.Generator().manual_seed(4)
    linear, added = (40 * torch.randn(*size, generator=generator) for size in ((6, 7, 768), (12, 14, 192)))
    linear, added, means = linear.to(dtype), added.to(dtype), 20 * torch.randn(6, 7, 12, generator=generator)
    halves = dtype == torch.bfloat16
    means = means if halves else means[..., :0]
    v = lapping.initial()[1].contiguous()
    sums = linear.float().clone()
    if halves:
        sums += means.view(6, 7, 4, 1, 3, 1).expand(6, 7, 4, 8, 3, 8).reshape(6, 7, 768)
    sums += added.float().view(6, 2, 7, 2, 192).transpose(1, 2).reshape(6, 7, 768)
    pixel_blocks.lap_blocks(sums[None], v)
    parts = [part.view(torch.int16).numpy().view(np.uint16) if halves else part.numpy() for part in (linear, added)]
    weights = pixel_blocks.weights_of(v)
    lines = torch.empty_like(sums)
    lines[..., pixel_blocks.block_order()] = sums
    picture = lines.view(6, 7, 3, 16, 16).permute(0, 3, 1, 4, 2).reshape(96, 112, 3) + 127.5
    expected = picture[16 * top : 16 * top + shape[0], 16 * left : 16 * left + shape[1]].numpy()
    for channels, grey in ((3, False), (4, False), (3, True), (1, True), (2, True)):
        wanted = np.repeat(expected.mean(2, keepdims=True), 3, 2) if grey else expected
        painted = [np.zeros((*shape, channels), np.uint8) for _ in range(2)]
        _paint_from(sums[None], top, left)(0, painted[0], grey)
        pixel_blocks.gather(parts[0], means.numpy(), parts[1], weights, top, left, painted[1], grey)
        colours = 3 if channels >= 3 else 1
        for one in painted:
            assert one[..., :colours].std() > 20 and not one[..., colours:].any()
            assert np.abs(one[..., :colours] - wanted[..., :colours].clip(0, 255)).max() <= 0.51


def photograph(height: int, width: int) -> Image.Image:
    rng = np.random.default_rng(height)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3)).astype(np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + rng.integers(-6, 7, smooth.shape)).clip(0, 255).astype(np.uint8))


@torch.no_grad()
def defined(model: NightCodec, image: Image.Image, level: int) -> np.ndarray:
    """The whole picture as model.py has it, through the same symbols, before rounding to 8 bits."""
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    height, width = x.shape[2:]
    x = torch.nn.functional.pad(x, (0, -width % 16, 0, -height % 16), mode="replicate")
    *_, values = quantised(model, model.analysis(x), level)
    shown = model.synthesis(model.unscale(values, level), level)
    return 255 * shown[0, :, :height, :width].clamp(0, 1).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [(200, 331), (40, 1500)])
def test_windows_show_what_the_whole_picture_is(small, size, threads):
    image = photograph(*size)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        small.set_precision("float32")
        shown = np.asarray(decode(encode(image, 60, model=small), model=small)).astype(float)
    finally:
        torch.set_num_threads(before)
    # A symbol here and there rounds the other way where windows' sums end in other last digits.
    assert np.abs(shown - defined(small, image, 600)).mean() < 0.27
    assert np.quantile(np.abs(shown - defined(small, image, 600)), 0.999) < 1.01


def test_other_precisions_and_modes_agree(small):
    image = photograph(100, 150)
    small.set_precision("float32")
    data = encode(image, 70, model=small)
    exact = np.asarray(decode(data, model=small)).astype(float)
    shown = np.asarray(decode(data, model=small.set_precision("bfloat16"))).astype(float)
    assert np.abs(shown - exact).mean() < 1.0
    small.set_precision("float32")
    grey = image.convert("L")
    assert decode(encode(grey, 70, model=small), model=small).mode == "L"
    noise = np.abs(np.asarray(decode(encode(grey, 70, model=small), model=small)).astype(float) - np.asarray(grey))
    assert noise.mean() < 20
