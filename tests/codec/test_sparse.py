"""Products with what is mostly zero: the dense product's results, wherever the split lies."""

import pytest
import torch

from codec import sparse

STARTS = [3, 8]


def layer(weight, bias):
    return lambda t: torch.nn.functional.linear(t, weight, bias)


def latents(share: float, height: int = 9, width: int = 7, channels: int = 21) -> torch.Tensor:
    torch.manual_seed(0)
    y = torch.randn(1, height, width, channels)
    y[..., STARTS[0] :] *= torch.rand(1, height, width, channels - STARTS[0]) < share
    return y


@pytest.mark.parametrize("first", [3, 8, 21])
@pytest.mark.parametrize("inner", [(slice(None), slice(None)), (slice(1, 9), slice(0, 6)), (slice(2, 5), slice(3, 7))])
def test_products_are_the_dense_ones(first, inner):
    y = latents(0.2)
    weight, bias = torch.randn(13, 21), torch.randn(13)
    product = sparse.Product(weight, bias, STARTS, layer)
    cells = None if first == 21 else sparse.listed(y.view(-1, 21), first)
    expected = torch.nn.functional.linear(y[:, *inner], weight, bias)
    assert torch.allclose(product(y, [cells], inner), expected, atol=1e-5)


def test_nothing_at_all_leaves_the_bias():
    y = torch.zeros(1, 4, 5, 21)
    product = sparse.Product(torch.randn(13, 21), torch.arange(13.0), STARTS, layer)
    found = product(y, [sparse.listed(y.view(-1, 21), 3)])
    assert torch.equal(found, torch.arange(13.0).expand(1, 4, 5, 13))


def test_the_split_follows_what_is_zero():
    assert sparse.split_of(latents(0.0, 40, 40)[0], STARTS) == 3
    assert sparse.split_of(latents(1.0, 40, 40)[0], STARTS) == 21
    y = latents(1.0, 40, 40)[0]
    y[..., STARTS[1] :] = 0
    assert sparse.split_of(y, STARTS) == 8


def test_pictures_of_a_batch_have_splits_of_their_own():
    y = torch.cat((latents(0.05, 20, 30), latents(1.0, 20, 30)))
    product = sparse.Product(torch.randn(13, 21), torch.randn(13), STARTS, layer)
    cells = [sparse.worth_listing(one, STARTS) for one in y]
    assert cells[0] is not None and cells[1] is None
    assert torch.allclose(product(y, cells), product(y, [None, None]), atol=1e-5)
