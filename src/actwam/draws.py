"""Random numbers of the samples of a batch, each from a generator of its own.

So a sample has the same ones whoever else is in the batch, and whichever process computes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class Draws:
    """Of the samples that are `rows` of a batch, all from `seed`; one after another in the order that they are asked
    for, on the CPU.
    """

    def __init__(self, seed: Sequence[int], rows: Sequence[int]) -> None:
        self._whole = _generator(*seed, 0)
        self._own = [_generator(*seed, row + 1) for row in rows]

    def normal(self, shape: Sequence[int]) -> Float[Tensor, "B ..."]:
        """Standard normal, of this shape for each sample."""
        return torch.stack([torch.randn(tuple(shape), generator=own) for own in self._own])

    def uniform(self) -> Float[Tensor, "B"]:
        """From 0 to 1, one for each sample."""
        return torch.cat([torch.rand(1, generator=own) for own in self._own])

    def integers(self, high: int) -> Int[Tensor, "B"]:
        """From 0 to `high` - 1, one for each sample."""
        return torch.cat([torch.randint(high, (1,), generator=own) for own in self._own])

    def once(self) -> float:
        """From 0 to 1, one for the whole batch, whatever of it is drawn here."""
        return float(torch.rand((), generator=self._whole))


def _generator(*seed: int) -> torch.Generator:
    (mixed,) = np.random.SeedSequence(seed).generate_state(1, np.uint64).tolist()
    return torch.Generator().manual_seed(mixed)
