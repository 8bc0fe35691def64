"""What the trainings step with: Muon for convolution kernels, Adam for everything else.

Muon (Jordan et al. 2024) replaces a kernel's momentum by the nearest matrix with all singular values about one, so that
directions that the loss hardly curves in learn as fast as the others. Torch's version takes matrices alone: kernels
[out,in,k,k] are handed to it as views [out,in k k] on the same memory. Its steps are as large as Adam's would be
(Liu et al. 2025), so that one learning rate serves both. Needs torch alone.
"""

import torch
from torch import Tensor, nn


def _matrix(kernel: Tensor) -> Tensor:
    """[out,in,k,k] -> [out,in k k] on the same memory, whichever of the two layouts it has."""
    if not kernel.is_contiguous():
        kernel = kernel.permute(0, 2, 3, 1)
    return kernel.flatten(1)


def _is_wide(parameter: Tensor) -> bool:
    """Kernels that mix channels and are more than a few vectors; others have no directions to even out."""
    return parameter.ndim == 4 and parameter.shape[1] > 1 and parameter.shape[0] >= 8


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
        self.adam = torch.optim.Adam(groups, lr=rate, betas=betas)
        self.muon = None
        if self.kernels:
            self.views = [nn.Parameter(_matrix(p.detach())) for p in self.kernels]
            self.muon = torch.optim.Muon(self.views, lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        self.set_rate(rate)

    def set_rate(self, rate: float) -> None:
        for group in self.adam.param_groups:
            group["lr"] = rate * group["factor"]
        if self.muon is not None:
            self.muon.param_groups[0]["lr"] = rate

    def zero_grad(self) -> None:
        self.adam.zero_grad(set_to_none=True)
        for kernel in self.kernels:
            kernel.grad = None

    def step(self) -> None:
        """Kernels without a gradient (frozen ones) stay as they are."""
        self.adam.step()
        if self.muon is not None:
            for kernel, view in zip(self.kernels, self.views, strict=True):
                gradient = kernel.grad
                if gradient is not None and not kernel.is_contiguous():
                    gradient = gradient.permute(0, 2, 3, 1)
                view.grad = None if gradient is None else gradient.flatten(1)
            self.muon.step()

    def state_dict(self) -> dict:
        return {"adam": self.adam.state_dict(), **({"muon": self.muon.state_dict()} if self.muon else {})}

    def load_state_dict(self, state: dict) -> None:
        self.adam.load_state_dict(state["adam"])
        if self.muon is not None and "muon" in state:
            self.muon.load_state_dict(state["muon"])
