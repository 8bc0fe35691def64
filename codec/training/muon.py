"""What the trainings step with: Muon for convolution kernels, Adam for everything else.

Muon (Jordan et al. 2024) replaces a kernel's momentum by the nearest matrix with all singular values about one, so that
directions that the loss hardly curves in learn as fast as the others; kernels [out,in,k,k] are matrices [out,in k k].
Its steps are as large as Adam's would be (Liu et al. 2025), so that one learning rate serves both. It computes what
torch.optim.Muon does, but for all kernels of one shape at once. Needs torch alone.
"""

import torch
from torch import Tensor

from codec.network.layers import native_bfloat16

MOMENTUM = 0.95
QUINTIC = (3.4445, -4.7750, 2.0315)  # coefficients of one Newton-Schulz step
STEPS = 5  # how many of these


def _matrix(kernel: Tensor) -> Tensor:
    """[out,in,k,k] -> [out,in k k] on the same memory, whichever of the two layouts it has."""
    if not kernel.is_contiguous():
        kernel = kernel.permute(0, 2, 3, 1)
    return kernel.flatten(1)


def _is_wide(parameter: Tensor) -> bool:
    """Kernels that mix channels and are more than a few vectors; others have no directions to even out."""
    return parameter.ndim == 4 and parameter.shape[1] > 1 and parameter.shape[0] >= 8


def evened(matrices: Tensor) -> Tensor:
    """[n,rows,columns] -> matrices of the same singular vectors, all singular values about one: Newton-Schulz steps of
    Jordan et al. 2024, as torch.optim.Muon has them, for all matrices at once. In bfloat16 where the device multiplies
    it itself: emulated it takes three times as long as all the rest of a training's step."""
    x = matrices.bfloat16() if native_bfloat16(matrices.device.type) else matrices.float()
    upright = x.shape[1] > x.shape[2]
    if upright:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    a, b, c = QUINTIC
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if upright else x


class Optimiser:
    """Steps all `parameters` at `rate`; those in `slow` by Adam at a twentieth of it. kind: muon | adam (for all)."""

    def __init__(self, parameters, rate: float, slow=(), kind: str = "muon", betas: tuple[float, float] = (0.9, 0.999)):
        if kind not in ("muon", "adam"):
            raise ValueError(f"optimiser {kind!r}: choose muon or adam")
        parameters, chosen = list(parameters), {id(p) for p in slow}
        self.kernels = [p for p in parameters if kind == "muon" and _is_wide(p) and id(p) not in chosen]
        taken = chosen | {id(p) for p in self.kernels}
        groups = [{"params": [p for p in parameters if id(p) not in taken], "factor": 1.0}]
        if chosen:
            groups.append({"params": [p for p in parameters if id(p) in chosen], "factor": 0.05})
        device = parameters[0].device
        self.on_gpu = device.type == "cuda"
        self.adam = torch.optim.Adam(groups, lr=self._number(rate, device), betas=betas, capturable=self.on_gpu)
        self.momenta = [torch.zeros_like(p.detach()) for p in self.kernels]
        self.rate = self._number(rate, device)
        for group in self.adam.param_groups:
            group["lr"] = self._number(rate, device)
        self.set_rate(rate)

    def _number(self, value: float, device: torch.device) -> float | Tensor:
        """On a GPU in its memory, where recorded steps (cuda_graph.py) find what it is now."""
        return torch.tensor(value, device=device) if self.on_gpu else value

    def set_rate(self, rate: float) -> None:
        if self.on_gpu:
            self.rate.fill_(rate)
            for group in self.adam.param_groups:
                group["lr"].fill_(rate * group["factor"])
            return
        self.rate = rate
        for group in self.adam.param_groups:
            group["lr"] = rate * group["factor"]

    def zero_grad(self) -> None:
        self.adam.zero_grad(set_to_none=True)
        for kernel in self.kernels:
            kernel.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Kernels without a gradient (frozen ones) stay as they are. Those of one shape are stepped together: on a GPU
        the many small products of each alone would take as long as the rest of a training's step."""
        self.adam.step()
        alike: dict[torch.Size, list[tuple[Tensor, Tensor, Tensor]]] = {}
        for kernel, momentum in zip(self.kernels, self.momenta, strict=True):
            if kernel.grad is not None:
                gradient = kernel.grad if kernel.is_contiguous() else kernel.grad.permute(0, 2, 3, 1)
                of_kernel = _matrix(kernel), gradient.flatten(1), _matrix(momentum)
                alike.setdefault(of_kernel[0].shape, []).append(of_kernel)
        for (rows, columns), members in alike.items():
            kernels, gradients, momenta = map(list, zip(*members, strict=True))
            torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
            updates = evened(torch.stack(torch._foreach_lerp(gradients, momenta, MOMENTUM)))
            moves = updates.float() * (self.rate * (-0.2 * max(rows, columns) ** 0.5))
            torch._foreach_add_(kernels, list(moves.unbind()))

    def state_dict(self) -> dict:
        return {"adam": self.adam.state_dict(), "momenta": self.momenta}

    def load_state_dict(self, state: dict) -> None:
        """Of a training on any device. Raises ValueError for one whose kernels were others."""
        if len(state.get("momenta", ())) != len(self.momenta):
            raise ValueError("the checkpoint's optimiser is of another network or an older version: start from weights")
        own = [(group["lr"], group["capturable"]) for group in self.adam.param_groups]
        self.adam.load_state_dict(state["adam"])
        for group, (rate, capturable) in zip(self.adam.param_groups, own, strict=True):
            group["lr"], group["capturable"] = rate, capturable
        for parameter, moments in self.adam.state.items():
            moments["step"] = moments["step"].to(parameter.device if self.on_gpu else "cpu")
        for momentum, saved in zip(self.momenta, state["momenta"], strict=True):
            momentum.copy_(saved)


def clipped(parameters, limit: float | Tensor) -> Tensor:
    """Scales the gradients down to a norm of `limit` and returns the norm that they had; gradients whose norm is not
    finite become zero, and a step then follows what the optimiser remembers. Nothing waits for a GPU."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, torch.where(torch.isfinite(norm), scale, 0.0))
    for gradient in gradients:
        gradient.nan_to_num_(0.0, 0.0, 0.0)
    return norm
