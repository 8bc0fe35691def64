"""What trainings step with: Muon sees kernels as matrices in small layout, frozen ones stay, states are kept;
gradients are clipped without waiting for them; a recorded step is the step itself where there is no GPU."""

import copy

import pytest
import torch
from torch import nn

from codec.training.cuda_graph import Recorded
from codec.training.muon import Optimiser, clipped


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 12, 1), nn.Conv2d(12, 2, 3))


def step(net: nn.Module, optimiser: Optimiser) -> None:
    optimiser.zero_grad()
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    net(x).square().sum().backward()
    optimiser.step()


def test_kernels_take_muons_step_and_the_rest_adams():
    net = network()
    optimiser = Optimiser(net.parameters(), 0.01)
    assert [tuple(p.shape) for p in optimiser.kernels] == [(16, 3, 3, 3), (12, 16, 1, 1)]
    before = [p.detach().clone() for p in net.parameters()]
    step(net, optimiser)
    moved = [new - old for new, old in zip(net.parameters(), before, strict=True)]
    singular = torch.linalg.svdvals(moved[0].flatten(1)) / (0.01 * 0.2 * 27**0.5)
    assert singular.max() < 1.4 and singular.median() > 0.4  # directions alike, as large as Adam's in the mean
    plain = torch.linalg.svdvals(net[0].weight.grad.flatten(1))
    assert singular.median() / singular.max() > 2 * plain.median() / plain.max()
    for change in (moved[1], moved[4]):  # a bias, a kernel of two outputs
        assert torch.allclose(change.abs(), torch.tensor(0.01), rtol=1e-2)


@pytest.mark.parametrize("halves", [True, False])
def test_kernels_of_one_shape_step_as_torchs_muon_does(monkeypatch, halves):
    """Torch computes in bfloat16 on every machine; in float32 the steps, up to 0.05, differ by its rounding."""
    monkeypatch.setattr("codec.training.muon.native_bfloat16", lambda device: halves)
    torch.manual_seed(2)
    net = nn.Sequential(*(nn.Conv2d(16, 16, 3, bias=False) for _ in range(3)), nn.Conv2d(16, 40, 1, bias=False))
    net = net.to(memory_format=torch.channels_last)
    matrices = [nn.Parameter(p.detach().permute(0, 2, 3, 1).flatten(1).clone()) for p in net.parameters()]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    optimiser = Optimiser(net.parameters(), 0.02)
    for number in range(3):
        x = torch.randn(2, 16, 12, 12, generator=torch.Generator().manual_seed(number))
        optimiser.zero_grad()
        net(x).square().mean().backward()
        for matrix, kernel in zip(matrices, net.parameters(), strict=True):
            matrix.grad = kernel.grad.permute(0, 2, 3, 1).flatten(1)
        muon.step()
        optimiser.step()
        for matrix, kernel in zip(matrices, net.parameters(), strict=True):
            assert torch.allclose(kernel.permute(0, 2, 3, 1).flatten(1), matrix, atol=1e-6 if halves else 2e-3)


def test_gradients_are_clipped_and_those_without_end_dropped():
    net = network()
    net(torch.randn(2, 3, 16, 16)).square().sum().backward()
    before = [p.grad.clone() for p in net.parameters()]
    whole = torch.cat([g.flatten() for g in before]).norm()
    assert torch.allclose(clipped(net.parameters(), 0.5), whole)
    for parameter, gradient in zip(net.parameters(), before, strict=True):
        assert torch.allclose(parameter.grad, gradient * 0.5 / whole, rtol=1e-4)
    assert torch.allclose(clipped(net.parameters(), torch.tensor(10.0)), torch.tensor(0.5), rtol=1e-4)
    assert torch.allclose(net[0].weight.grad, before[0] * 0.5 / whole, rtol=1e-4)  # a limit above it changes nothing
    for bad in (float("nan"), float("inf")):
        net[1].bias.grad[3] = bad
        assert not torch.isfinite(clipped(net.parameters(), 1.0))
        assert all(not parameter.grad.any() for parameter in net.parameters())


def test_a_recorded_function_runs_itself_on_a_cpu():
    seen = []

    def function(x: torch.Tensor) -> tuple[torch.Tensor]:
        seen.append(x)
        return (x + len(seen),)

    recorded = Recorded(function)
    results = [recorded(key, torch.zeros(2))[0] for key in (True, True, False, None)]
    assert [r.tolist() for r in results] == [[n, n] for n in (1.0, 2.0, 3.0, 4.0)] and recorded.graph is None


def test_layouts_give_the_same_step():
    plain, last = network(), network().to(memory_format=torch.channels_last)
    for net in (plain, last):
        optimiser = Optimiser(net.parameters(), 0.01)
        for _ in range(3):
            step(net, optimiser)
    for a, b in zip(plain.parameters(), last.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-3)  # Muon works in bfloat16


def test_frozen_kernels_stay_and_slow_ones_move_a_twentieth():
    net = network()
    frozen, slow = net[0].weight, net[1].weight
    optimiser = Optimiser(net.parameters(), 0.01, slow=[slow])
    frozen.requires_grad_(False)
    before = frozen.clone(), slow.detach().clone()
    step(net, optimiser)
    assert torch.equal(frozen, before[0])
    assert torch.allclose((slow - before[1]).abs(), torch.tensor(0.0005), rtol=1e-2)


def test_states_are_kept():
    first = network()
    optimiser = Optimiser(first.parameters(), 0.01)
    step(first, optimiser)
    second = network()
    second.load_state_dict(first.state_dict())
    again = Optimiser(second.parameters(), 0.01)
    again.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    step(first, optimiser)
    step(second, again)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert all(momentum.any() for momentum in again.momenta)
    other = network().to(memory_format=torch.channels_last)  # as on a GPU: the same kernels in another layout
    elsewhere = Optimiser(other.parameters(), 0.01)
    elsewhere.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(elsewhere.momenta, optimiser.momenta, strict=True))
    with pytest.raises(ValueError, match="of another network or an older version"):
        again.load_state_dict({"adam": optimiser.state_dict()["adam"]})
    with pytest.raises(ValueError, match="choose muon or adam"):
        Optimiser(first.parameters(), 0.01, kind="sgd")
