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

TRAINING_LEVELS = 1000
"""Wan, diffusers and GigaWorld-Policy count noise levels in thousandths, and call them timesteps."""


def broadcast(sigma: Float[Tensor, "B ..."], like: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
    """Sigma, (B,) or of the first axes of `like`, with trailing axes of length 1 until it has as many."""
    return sigma.reshape(*sigma.shape, *[1] * (like.ndim - sigma.ndim))


def interpolate(
    clean: Float[Tensor, "B ..."], noise: Float[Tensor, "B ..."], sigma: Float[Tensor, "B ..."]
) -> Float[Tensor, "B ..."]:
    """The noisy value at level sigma, of a sample or of each of its tokens: (1 - sigma) * clean + sigma * noise."""
    level = broadcast(sigma, clean)
    return (1 - level) * clean + level * noise


def velocity(clean: Float[Tensor, "..."], noise: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """d noisy / d sigma, which the model predicts: noise - clean."""
    return noise - clean


def precondition(sigma: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """(skip, scale) such that velocity = skip * noisy + scale * network, with a network target of unit variance.

    The analogue for this flow of EDM's preconditioning (arXiv 2206.00364, eq. 7 and appendix B.6), for clean values of
    unit variance: skip is the best linear guess cov(velocity, noisy) / var(noisy) = (2s - 1) / ((1-s)^2 + s^2), and
    scale the deviation that remains, 1 / sqrt((1-s)^2 + s^2). At sigma 1 the network predicts -clean, at sigma 0 the
    noise; it never has to carry noise from its input to its output, which a small one does badly.
    """
    variance = (1 - sigma) ** 2 + sigma**2
    return (2 * sigma - 1) / variance, variance.rsqrt()


def shift(sigma: Float[Tensor, "..."], flow_shift: float) -> Float[Tensor, "..."]:
    """Push noise levels towards 1 by k*s / (1 + (k-1)*s); 0 and 1 stay, and k = 1 changes nothing."""
    if flow_shift <= 0:
        raise ValueError(f"flow_shift must be positive, not {flow_shift}")
    return flow_shift * sigma / (1 + (flow_shift - 1) * sigma)


def schedule(num_steps: int, flow_shift: float) -> Float[Tensor, "{num_steps}+1"]:
    """Sampling noise levels from 1 down to 0: evenly spaced, then shifted."""
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, not {num_steps}")
    return shift(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64), flow_shift).float()


def diffusers_schedule(num_steps: int, flow_shift: float) -> Float[Tensor, "{num_steps}+1"]:
    """The sampling noise levels of diffusers' `FlowMatchEulerDiscreteScheduler`, with which GWP was released.

    It shifts its 1000 training levels, spaces the steps evenly between the first and the last of them, and shifts
    those again, so that the end point is shifted twice: with 10 steps and a shift of 5 the last step goes from .02441
    to 0. `schedule` shifts once, and would leave .357 to the last step.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, not {num_steps}")
    last = shift(torch.tensor(1 / TRAINING_LEVELS, dtype=torch.float64), flow_shift).item()
    levels = shift(torch.linspace(1, last, num_steps, dtype=torch.float64), flow_shift)
    return torch.cat([levels, torch.zeros(1, dtype=torch.float64)]).float()


def mean_velocity(
    velocity: Float[Tensor, "..."],
    before: Float[Tensor, "..."],
    sigma_before: float,
    sigma: float,
    next_sigma: float,
) -> Float[Tensor, "..."]:
    """The mean velocity of the step from `sigma` down to `next_sigma`, on the straight line in sigma through that at
    `sigma_before` and that at `sigma`: a step with it is one of the two-step Adams-Bashforth method with variable steps
    (Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, 1993, section III.5).
    """
    return velocity + (next_sigma - sigma) / (2 * (sigma - sigma_before)) * (velocity - before)


def euler(
    noisy: Float[Tensor, "..."], velocity: Float[Tensor, "..."], sigma: float, next_sigma: float
) -> Float[Tensor, "..."]:
    """One Euler step from `sigma` down to `next_sigma`."""
    return noisy + (next_sigma - sigma) * velocity
