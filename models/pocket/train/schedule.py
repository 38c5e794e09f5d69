"""The few steps that a block is denoised in, as the plugin makes them."""

import torch
from torch import Tensor

STEPS = (1000, 750, 500, 250)
SHIFT = 5.0
WINDOW = 2  # clean blocks that a block looks back at
FRAMES_PER_BLOCK = 3


def shifted(u):
    """Sigma of a share `u` of the untrained schedule, 0..1."""
    return SHIFT * u / (1 + (SHIFT - 1) * u)


SIGMAS = tuple(shifted(step / 1000) for step in STEPS)
PASSES = len(STEPS) + 1  # the last one is of the clean block


def mix(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """`(1 - sigma) x0 + sigma noise`; `sigma` (B, slots)."""
    sigma = sigma[..., None, None, None, None]
    return (1 - sigma) * x0 + sigma * noise


def in_flight(stagger: int, phase: int) -> list[int]:
    """The passes that a full cascade makes in one tick, oldest block first."""
    return list(range(phase, PASSES, stagger))[::-1]
