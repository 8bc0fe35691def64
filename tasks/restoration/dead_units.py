"""Units of rectifiers that never fire: found while a training runs, and set to work again.

A unit whose input is below zero on every picture passes nothing (ReLU) or is linear (PReLU, and so is one that is
above zero everywhere); it costs what a living one costs. In a ReLU it gets no gradient either and stays so: after
rounds of Muon at 2e-3 eleven of the denoiser's fifteen blocks were in this state. Recycling them in the course of a
training is ReDo (Sokar et al., 2023); what a unit gets here is drawn so that half of what it sees is above zero.
"""

import torch
from torch import Tensor, nn

from tasks.restoration.networks import Fsrcnn, MergingConv, NightDenoiser, NightUpscaler, Residual

SELDOM = 0.001  # share of places above zero below which a unit is dormant
SLOPE = 0.6  # of a PReLU's unit that is set to work: near enough to linear that the network hardly changes


class Watch:
    """Counts, between `start` and `recycle`, how often the units of `network`'s rectifiers fire."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.seen: dict[nn.Module, list[tuple[Tensor, Tensor, Tensor]]] = {}
        self.handles: list = []

    def layers(self) -> list[tuple[nn.Module, Tensor | None, nn.Module]]:
        """(layer before a rectifier, the rectifier's slopes or None, layer after it)"""
        if isinstance(self.network, NightDenoiser):
            blocks = [part for part in self.network.modules() if isinstance(part, Residual)]
            return [(block.first, None, block.second) for block in blocks]
        if isinstance(self.network, NightUpscaler):
            chain = [self.network.head, *self.network.body, self.network.tail]
            return list(zip(chain, list(self.network.slopes), chain[1:], strict=False))
        if isinstance(self.network, Fsrcnn):
            # Not the units before the deconvolution: what a shift of theirs adds differs from phase to phase.
            chain = [part for part in self.network.layers if isinstance(part, nn.Conv2d)]
            slopes = [part.weight for part in self.network.layers if isinstance(part, nn.PReLU)]
            return list(zip(chain, slopes, chain[1:], strict=False))
        return []

    def start(self) -> None:
        """From here on every forward pass is counted."""

        def keep(layer: nn.Module, arguments: tuple[Tensor], output: Tensor) -> None:
            x, y = arguments[0].detach().float(), output.detach().float()
            self.seen[layer].append((x.mean((0, 2, 3)), (y > 0).float().mean((0, 2, 3)), y.mean((0, 2, 3))))

        for layer, _, _ in self.layers():
            self.seen[layer] = []
            self.handles.append(layer.register_forward_hook(keep))

    @property
    def watching(self) -> bool:
        return bool(self.handles)

    @torch.no_grad()
    def recycle(self, average: dict[str, Tensor] | None = None) -> int:
        """Ends the watch and sets dormant units to work; returns how many these were.

        average: running averages of the network's parameters by name, in which the same values change.
        """
        for handle in self.handles:
            handle.remove()
        self.handles = []
        names = {id(value): name for name, value in self.network.named_parameters()}
        count = 0
        for layer, slopes, following in self.layers():
            x_mean, share, y_mean = (torch.stack(parts).mean(0) for parts in zip(*self.seen.pop(layer), strict=True))
            dormant = share < SELDOM if slopes is None else (share < SELDOM) | (share > 1 - SELDOM)
            if not dormant.any():
                continue
            count += int(dormant.sum())
            if slopes is None:
                changed = self._redrawn(layer, following, dormant, x_mean)
            else:
                changed = self._recentred(layer, slopes, following, dormant, share, y_mean)
            for parameter, places in changed if average is not None else []:
                average[names[id(parameter)]][places] = parameter[places]
        return count

    @staticmethod
    def _redrawn(layer: nn.Conv2d, following: nn.Conv2d, dormant: Tensor, x_mean: Tensor) -> list:
        """New kernels at right angles to the mean of what they see, nothing of it added at first: the network
        computes what it did."""
        kernel = torch.empty_like(layer.weight)
        nn.init.kaiming_normal_(kernel)
        direction = x_mean[:, None, None].expand_as(kernel[0])
        along = (kernel * direction).sum((1, 2, 3), keepdim=True) / direction.square().sum().clamp_min(1e-12)
        layer.weight[dormant] = (kernel - along * direction)[dormant]
        following.weight[:, dormant] = 0.0
        return [(layer.weight, dormant), (following.weight, (slice(None), dormant))]

    @staticmethod
    def _recentred(
        layer: nn.Module, slopes: Tensor, following: nn.Module, dormant: Tensor, share: Tensor, y_mean: Tensor
    ) -> list:
        """The bias moves to where half of what a unit sees is above zero; the next layer takes up its new slope
        and the shift: the network computes nearly what it did."""
        slope = torch.where(share > 0.5, 1.0, slopes)
        factor = torch.where(dormant, slope / ((1 + SLOPE) / 2), 1.0)
        shift = torch.where(dormant, slope * y_mean, 0.0)
        kernel = following.kernel() if isinstance(following, MergingConv) else following.weight.clone()
        following.bias += kernel.sum((2, 3)) @ shift
        following.weight += kernel * (factor - 1)[:, None, None]
        layer.bias -= torch.where(dormant, y_mean, 0.0)
        slopes.copy_(torch.where(dormant, SLOPE, slopes))
        every = slice(None)
        return [
            (layer.bias, dormant), (slopes, dormant), (following.bias, every), (following.weight, (every, dormant)),
        ]  # fmt: skip
