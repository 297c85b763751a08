"""Few-step distillation: actions that a frozen teacher samples in many steps, learned as one straight line each.

From the same noise the student learns the velocity that leads straight to the teacher's actions, `noise - actions`, at
the noise levels that its own short schedule visits and at no others (the distillation of Liu, Gong and Liu, arXiv
2209.03003, section 2.1, for few steps instead of one). With one step it learns the teacher's map from noise to actions
alone; every further step corrects what the first could not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actwam.checkpoint import Checkpoint, load
from actwam.draws import Draws
from actwam.model.context import Instructions, TextContext
from actwam.objective import NoisyBatch, towards
from actwam.sampler import Sampling, sample
from actwam.train.config import Recipe
from actwam.types import Batch, Group


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The checkpoint that training starts from, frozen, the schedule that it samples with, and the student's."""

    checkpoint: Checkpoint
    sampling: Sampling
    student: Sampling

    @classmethod
    def of(cls, recipe: Recipe, device: torch.device) -> Teacher | None:
        """That of a recipe, None where it has none. It computes in what its weights are stored in, as it acts."""
        if recipe.teacher is None:
            return None
        assert recipe.start is not None  # a recipe without one has no teacher
        made = load(recipe.start)
        made.model.requires_grad_(False).to(device)
        return cls(checkpoint=made, sampling=recipe.teacher, student=recipe.sampling)

    def to_json(self) -> dict[str, Any]:
        """What the lessons depend on beside batch and seed."""
        return {
            "checkpoint": self.checkpoint.digest,
            "sampling": asdict(self.sampling),
            "student": asdict(self.student),
        }

    def lesson(self, batch: Batch, text: Instructions, draws: Draws) -> NoisyBatch:
        """Noise, what the teacher makes of it, and a level of the student's schedule for each sample. All random
        numbers come from `draws`, in a fixed order.
        """
        noise = draws.normal(batch.action.shape[1:]).to(batch.action.device)
        levels = torch.tensor(self.student.levels(Group.ACTION)[:-1])
        sigma = levels[draws.integers(len(levels))].to(noise.device)
        if not self.checkpoint.model.config.noisy_padding:
            noise = noise * batch.action_valid[:, :1]  # zero in the dimensions that a robot lacks, as in acting
        with torch.inference_mode():
            context = self.checkpoint.model.text_context(text.embedded).select(text.rows)
        return towards(batch, self._actions(batch, noise, context), noise, sigma)

    def _actions(self, batch: Batch, noise: Float[Tensor, "B K A"], text: TextContext) -> Float[Tensor, "B K A"]:
        """What the teacher would do, all steps of the horizon, from this noise."""
        actions = torch.empty_like(noise)
        for which, moments, felt in _alike(batch):
            given = {Group.OBSERVATION: batch.latents[which, :, :1]}
            if moments:
                given[Group.HISTORY] = batch.history[which, :, -moments:]
            if felt:
                given[Group.STATE] = batch.state[which, None]
            values, _ = sample(
                self.checkpoint.model,
                self.checkpoint.table,
                given=given,
                noise={Group.ACTION: noise[which]},
                wanted=[Group.ACTION],
                text=text.select(which),
                embodiment=batch.embodiment[which],
                sampling=self.sampling,
            )
            actions[which] = values[Group.ACTION]
        return actions


def _alike(batch: Batch) -> Iterator[tuple[Int[Tensor, "n"], int, bool]]:
    """The samples that look back on as many moments and have a state or not: which, how many moments, whether."""
    kinds = torch.stack([batch.history_valid.sum(1), batch.state_valid.long()], dim=1)
    for moments, felt in kinds.unique(dim=0).tolist():
        which = (kinds == torch.tensor([moments, felt], device=kinds.device)).all(1).nonzero()[:, 0]
        yield which, moments, bool(felt)
