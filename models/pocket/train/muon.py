"""An optimiser for matrices and kernels that needs fewer steps than AdamW, and hardly longer ones."""

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal, for convolutions' kernels as (out, in * taps).

    After <https://kellerjordan.github.io/posts/muon/>; `torch.optim.Muon` takes
    plain matrices only.
    """

    def __init__(self, params, momentum: float = 0.95, decay: float = 0.01):
        super().__init__(params, {"lr": 0.0, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for param in (p for p in group["params"] if p.grad is not None):
                mean = self.state[param].setdefault("mean", torch.zeros_like(param))
                mean.lerp_(param.grad, 1 - group["momentum"])
                ahead = param.grad.lerp(mean, group["momentum"]).flatten(1)
                # As large as AdamW's steps are, about, so that both take the same rate.
                scale = 0.2 * max(ahead.shape) ** 0.5
                param.mul_(1 - group["lr"] * group["decay"])
                step = orthogonal(ahead).view(param.shape)
                param.add_(step, alpha=-group["lr"] * scale)


def orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrix whose singular values are all about 1, by five Newton-Schulz steps."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T).T
    xs = matrix / (matrix.norm() + 1e-7)
    for _ in range(5):
        squares = xs @ xs.T
        xs = 3.4445 * xs + (-4.7750 * squares + 2.0315 * squares @ squares) @ xs
    return xs
