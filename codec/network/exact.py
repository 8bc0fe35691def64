"""Integer-valued convolutions: the arithmetic that both sides of the entropy coder must agree on to the bit.

Activations are multiples of 1/16 in [0, 255/16] (inputs may be signed, same magnitude), weights are multiples of
1/512, biases multiples of 1/8192. Scaled by these powers of two, every product and every partial sum is an integer
in float32; as long as the largest possible sum stays below 2^24, float32 adds such numbers without rounding, so the
order of summation (threads, layouts, libraries, devices) cannot change the result. `accumulator_bound` is that
largest possible sum; `ExactConv2d.check` refuses weights that could exceed it.

Training runs the same arithmetic and passes gradients straight through the rounding (Bengio et al. 2013), so that
there is no gap between the trained and the exported network. What is computed with it stands in
night_codec.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATION_STEPS = 16  # an activation a stands for the integer 16 a
WEIGHT_STEPS = 512  # a weight w stands for the integer 512 w
ACTIVATION_MAX = 255  # largest |integer| an activation may have
ACCUMULATOR_LIMIT = 2**24  # float32 holds every integer below this
LARGEST_BATCH = 15  # from 16 on torch may take NNPACK where oneDNN is off: Winograd, which rounds


def round_through(x: Tensor) -> Tensor:
    """Nearest integer (ties to even); the gradient is the identity's."""
    return x + (torch.round(x) - x).detach() if x.requires_grad else torch.round(x)


def quantise_activation(x: Tensor, low: int = 0) -> Tensor:
    """Clamp to [low/16, 255/16] and round to multiples of 1/16 (halves upwards); gradients pass inside the range."""
    x = torch.clamp(x, low / ACTIVATION_STEPS, ACTIVATION_MAX / ACTIVATION_STEPS)
    q = torch.floor(x.detach() * ACTIVATION_STEPS + 0.5) / ACTIVATION_STEPS
    return x + (q - x).detach() if x.requires_grad else q


def exact_conv2d(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
    """conv2d, stride 1, as a sum of products in float32 with nothing reordered into other arithmetic.

    On CUDA: unfold and matmul with TF32 off, since cuDNN may choose Winograd or FFT, which round.
    """
    if x.is_cuda and not torch.is_grad_enabled():
        allowed = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            batch, _, height, width = x.shape
            kernel = weight.shape[2]
            columns = x.flatten(2) if kernel == 1 else F.unfold(x, kernel, padding=padding)
            y = torch.matmul(weight.flatten(1), columns) + bias[:, None]
            return y.view(batch, -1, height, width)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = allowed
    if len(x) > LARGEST_BATCH and not torch.is_grad_enabled():
        return torch.cat([F.conv2d(part, weight, bias, padding=padding) for part in x.split(LARGEST_BATCH)])
    return F.conv2d(x, weight, bias, padding=padding)


class ExactConv2d(nn.Module):
    """Stride-1 "same" convolution on exact activations. Input [B, in, h, w] -> unclamped output [B, out, h, w]."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, gain: float = 1.0):
        super().__init__()
        std = gain * (2.0 / (inputs * kernel * kernel)) ** 0.5
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel) * std)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.padding = kernel // 2

    def integers(self) -> tuple[Tensor, Tensor]:
        """(weight, bias) as integers: 512 w and 8192 b, rounded."""
        return (
            torch.round(self.weight.detach() * WEIGHT_STEPS).to(torch.int32),
            torch.round(self.bias.detach() * (WEIGHT_STEPS * ACTIVATION_STEPS)).to(torch.int32),
        )

    def accumulator_bound(self) -> int:
        """Largest |partial sum| any input can cause, in units of 1/8192."""
        weight, bias = self.integers()
        return int((weight.abs().flatten(1).long().sum(1) * ACTIVATION_MAX + bias.abs().long()).max())

    def check(self) -> None:
        """Raise ValueError where float32 sums could round."""
        bound = self.accumulator_bound()
        if bound >= ACCUMULATOR_LIMIT:
            raise ValueError(
                f"exact convolution of {tuple(self.weight.shape)}: sums may reach {bound}, float32 is exact below "
                f"{ACCUMULATOR_LIMIT}; train with smaller weights before export"
            )

    @torch.no_grad()
    def limit(self, share: float = 0.95) -> None:
        """Shrink output channels whose sums could pass `share` of the limit; for training, after a step."""
        sums = self.weight.abs().flatten(1).sum(1) * (WEIGHT_STEPS * ACTIVATION_MAX)
        self.weight.mul_((share * ACCUMULATOR_LIMIT / sums).clamp(max=1.0)[:, None, None, None])

    def forward(self, x: Tensor) -> Tensor:
        weight = round_through(self.weight * WEIGHT_STEPS) / WEIGHT_STEPS
        scale = WEIGHT_STEPS * ACTIVATION_STEPS
        bias = round_through(self.bias * scale) / scale
        return exact_conv2d(x, weight, bias, self.padding)
