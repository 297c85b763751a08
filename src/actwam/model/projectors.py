"""State and action in and out of the model: three-layer MLPs whose outermost layer belongs to the embodiment.

Formula and widths: the official GigaWorld-Policy projectors (in -> 128 -> 256 -> D with exact GELU between).
Only the layer that touches the robot's own numbers differs from robot to robot, the rest is shared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class EmbodimentLinear(nn.Module):
    """One linear layer for each embodiment: weight (embodiments, in, out), bias (embodiments, out)."""

    def __init__(self, embodiments: int, width_in: int, width_out: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width_in)
        self.weight = nn.Parameter(torch.empty(embodiments, width_in, width_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(embodiments, width_out).uniform_(-bound, bound))

    def forward(self, x: Float[Tensor, "B n i"], embodiment: Int[Tensor, "B"]) -> Float[Tensor, "B n o"]:
        return torch.baddbmm(self.bias[embodiment][:, None], x, self.weight[embodiment])

    def take(self, rows: Sequence[int]) -> None:
        """Let embodiment i begin as embodiment `rows[i]` was, in place; there are as many as rows then."""
        for name in ("weight", "bias"):
            old: nn.Parameter = getattr(self, name)
            setattr(self, name, nn.Parameter(old.detach()[list(rows)], old.requires_grad))


class VectorEncoder(nn.Module):
    """States or actions (B, n, A) to tokens (B, n, D)."""

    def __init__(self, embodiments: int, width_in: int, hidden: tuple[int, int], width: int) -> None:
        super().__init__()
        self.first = EmbodimentLinear(embodiments, width_in, hidden[0])
        self.middle = nn.Linear(*hidden)
        self.last = nn.Linear(hidden[1], width)

    def forward(self, x: Float[Tensor, "B n A"], embodiment: Int[Tensor, "B"]) -> Float[Tensor, "B n D"]:
        return self.last(F.gelu(self.middle(F.gelu(self.first(x, embodiment)))))


class VectorDecoder(nn.Module):
    """Tokens (B, n, D) to action velocities (B, n, A)."""

    def __init__(self, embodiments: int, width: int, hidden: tuple[int, int], width_out: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, hidden[1])
        self.middle = nn.Linear(hidden[1], hidden[0])
        self.last = EmbodimentLinear(embodiments, hidden[0], width_out)

    def forward(self, x: Float[Tensor, "B n D"], embodiment: Int[Tensor, "B"]) -> Float[Tensor, "B n A"]:
        return self.last(F.gelu(self.middle(F.gelu(self.first(x)))), embodiment)
