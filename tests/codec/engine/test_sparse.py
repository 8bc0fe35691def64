"""Products with what is mostly zero: the dense product's results, wherever the zeros are."""

import numpy as np
import pytest
import torch

from codec.engine import sparse
from codec.entropy import trellis
from codec.format import FIRST_BIN, ODD_STATES

FIRST, CHANNELS = 8, 21


def layer(weight, bias):
    return lambda t: torch.nn.functional.linear(t, weight, bias)


def planes(share: float, height: int = 9, width: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Symbols and tables [C,h,w] of a trellis, of which about that share is not zero."""
    generator = torch.Generator().manual_seed(0)
    symbols = torch.randint(-5, 6, (CHANNELS, height, width), generator=generator).to(torch.int16)
    symbols *= torch.rand(CHANNELS, height, width, generator=generator) < share
    odd = torch.randint(0, 2, symbols.shape, generator=generator)
    return symbols, (FIRST_BIN + ODD_STATES * odd).to(torch.uint8)


def in_rows(symbols, tables, rows, columns, cut: int | None = None) -> list[sparse.Planes]:
    """A window of these, or its two parts where the planes are cut at a row, as between bands."""
    if cut is None:
        return [sparse.Planes(symbols.numpy(), tables.numpy(), rows, columns)]
    halves = [(symbols[:, :cut], tables[:, :cut]), (symbols[:, cut:], tables[:, cut:])]
    ranges = [(rows[0], cut), (0, rows[1] - cut)]
    return [
        sparse.Planes(*(part.contiguous().numpy() for part in pair), range_, columns)
        for pair, range_ in zip(halves, ranges, strict=True)
    ]


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("cut", [None, 4])
@pytest.mark.parametrize("inner", [(slice(None), slice(None)), (slice(1, 7), slice(0, 4)), (slice(2, 5), slice(3, 5))])
def test_products_are_the_dense_ones(share, cut, inner):
    symbols, tables = planes(share)
    gain = torch.rand(CHANNELS) + 0.5
    rows, columns = (1, 8), (2, 7)
    values = (trellis.values_of(symbols, tables) * gain[:, None, None]).permute(1, 2, 0)[1:8, 2:7]
    y = torch.cat((torch.randn(7, 5, FIRST), values[..., FIRST:]), -1)
    weight, bias = torch.randn(13, CHANNELS), torch.randn(13)
    parts = in_rows(symbols, tables, rows, columns, cut)
    cells = sparse.worth_listing(parts, FIRST, gain.numpy(), always=True)
    found = sparse.Product(weight, bias, FIRST, layer)(y[None, ..., :FIRST], [cells], inner)
    expected = torch.nn.functional.linear(y[None][:, *inner], weight, bias)
    assert torch.allclose(found, expected, atol=1e-4)
    rest = np.empty((7, 5, CHANNELS - FIRST), np.float32)
    sparse.dense(parts, FIRST, gain.numpy(), rest)
    assert np.allclose(rest, values[..., FIRST:], atol=1e-6)


def test_what_is_mostly_there_is_not_listed():
    gain = np.ones(CHANNELS, np.float32)
    for share, listed in ((0.05, True), (0.3, True), (0.6, False), (1.0, False)):
        parts = in_rows(*planes(share, 40, 40), (0, 40), (0, 40))
        assert (sparse.worth_listing(parts, FIRST, gain) is not None) == listed


def test_pictures_of_a_batch_have_lists_of_their_own():
    gain, lists, wanted = np.ones(CHANNELS, np.float32), [], []
    y = torch.randn(2, 9, 7, FIRST)
    weight = torch.randn(13, CHANNELS)
    for first, share in zip(y, (0.05, 0.3), strict=True):
        symbols, tables = planes(share)
        lists.append(sparse.worth_listing(in_rows(symbols, tables, (0, 9), (0, 7)), FIRST, gain, always=True))
        rest = trellis.values_of(symbols, tables).permute(1, 2, 0)[..., FIRST:]
        wanted.append(torch.nn.functional.linear(torch.cat((first, rest), -1), weight))
    found = sparse.Product(weight, None, FIRST, layer)(y, lists)
    assert torch.allclose(found, torch.stack(wanted), atol=1e-4)
