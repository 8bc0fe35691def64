import pytest
import torch

from tasks.restoration import dead_units
from tasks.restoration.dead_units import Watch
from tasks.restoration.networks import (
    Dncnn,
    Fsrcnn,
    FsrcnnConfig,
    NightDenoiser,
    NightDenoiserConfig,
    NightUpscaler,
    NightUpscalerConfig,
)


def test_dead_units_of_the_denoiser_work_again_and_change_nothing_at_first():
    torch.manual_seed(1)
    network = NightDenoiser(NightDenoiserConfig(channels=(8, 8, 8), down=(1, 1, 1), up=(1, 1)))
    block = network.down[1][0]
    noisy, sigma = torch.rand(2, 3, 32, 32), torch.full((2, 1, 1, 1), 0.1)
    with torch.no_grad():
        block.first.weight[:3] = 0.0  # never above zero
        block.second.weight.normal_()
        before = network(noisy, sigma)
        average = {name: value.clone() for name, value in network.state_dict().items()}
        watch = Watch(network)
        watch.start()
        assert watch.watching
        network(noisy, sigma)
        assert watch.recycle(average) >= 3
        assert not watch.watching and not watch.seen
        assert torch.allclose(network(noisy, sigma), before, atol=1e-6)
        assert all(torch.equal(average[name], value) for name, value in network.state_dict().items())
        fired = []
        block.first.register_forward_hook(lambda layer, x, y: fired.append((y > 0).float().mean((0, 2, 3))))
        network(noisy, sigma)
    assert ((fired[0][:3] > 0.2) & (fired[0][:3] < 0.8)).all()


@pytest.mark.parametrize(
    "kind, config", [(NightUpscaler, NightUpscalerConfig(width=8, depth=2)), (Fsrcnn, FsrcnnConfig(width=8, depth=1))]
)
@pytest.mark.parametrize("bend", [0.999, dead_units.SLOPE])
def test_linear_units_of_enlargers_bend_again(kind, config, bend, monkeypatch):
    monkeypatch.setattr(dead_units, "SLOPE", bend)
    torch.manual_seed(2)
    network, luma = kind(config), torch.rand(2, 1, 24, 24)
    watch = Watch(network)
    (first, slopes, _), *_ = watch.layers()
    with torch.no_grad():
        first.bias[:2], first.bias[2] = -4.0, 4.0  # two always below, one always above
        slopes[:2] = 0.9
        before = network(luma)
        average = {name: value.clone() for name, value in network.state_dict().items()}
        watch.start()
        network(luma)
        assert watch.recycle(average) >= 3
        after = network(luma)
        assert all(torch.equal(average[name], value) for name, value in network.state_dict().items())
        fired = []
        first.register_forward_hook(lambda layer, x, y: fired.append((y > 0).float().mean((0, 2, 3))))
        network(luma)
    assert ((fired[0][:3] > 0.2) & (fired[0][:3] < 0.8)).all()
    inner = (slice(None), slice(None), slice(16, -16), slice(16, -16))  # a border of zeros is not moved with the rest
    error = (after - before)[inner].square().mean().sqrt() / before[inner].std()
    assert error < (0.01 if bend > 0.99 else 0.5)


def test_networks_without_such_units_are_left_alone():
    network = Dncnn()
    watch = Watch(network)
    watch.start()
    assert not watch.watching
    assert watch.recycle() == 0
