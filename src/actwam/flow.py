"""Flow matching as Wan, FLUX and GigaWorld-Policy write it in code: sigma 1 is noise, velocity is noise -
clean.

The GigaWorld-Policy-0.5 report runs time the other way round (eq. 4-7: data at 1); its released trainer, like
diffusers, does what stands here. The two are not a relabelling: with a shift of 5 the mean noise level is
0.75 here and would be 0.25 there.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def broadcast(sigma: Float[Tensor, "B"], like: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
    """Sigma with as many trailing axes of length 1 as `like` has."""
    return sigma.reshape(-1, *[1] * (like.ndim - 1))


def interpolate(
    clean: Float[Tensor, "B ..."], noise: Float[Tensor, "B ..."], sigma: Float[Tensor, "B"]
) -> Float[Tensor, "B ..."]:
    """The noisy value at level sigma: (1 - sigma) * clean + sigma * noise."""
    level = broadcast(sigma, clean)
    return (1 - level) * clean + level * noise


def velocity(clean: Float[Tensor, "..."], noise: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """d noisy / d sigma, which the model predicts: noise - clean."""
    return noise - clean


def shift(sigma: Float[Tensor, "..."], flow_shift: float) -> Float[Tensor, "..."]:
    """Push noise levels towards 1 by k*s / (1 + (k-1)*s); 0 and 1 stay, and k = 1 changes nothing."""
    if flow_shift <= 0:
        raise ValueError(f"flow_shift must be positive, not {flow_shift}")
    return flow_shift * sigma / (1 + (flow_shift - 1) * sigma)


def sample_sigma(n: int, flow_shift: float, generator: torch.Generator) -> Float[Tensor, "n"]:
    """Training noise levels: uniform, then shifted."""
    return shift(torch.rand(n, generator=generator), flow_shift)


def schedule(num_steps: int, flow_shift: float) -> Float[Tensor, "{num_steps}+1"]:
    """Sampling noise levels from 1 down to 0: evenly spaced, then shifted."""
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, not {num_steps}")
    return shift(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64), flow_shift).float()


def euler(
    noisy: Float[Tensor, "..."], velocity: Float[Tensor, "..."], sigma: float, next_sigma: float
) -> Float[Tensor, "..."]:
    """One Euler step from `sigma` down to `next_sigma`."""
    return noisy + (next_sigma - sigma) * velocity
