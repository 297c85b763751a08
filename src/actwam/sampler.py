"""One sampler for every family: what to encode, what to denoise and in which order is read from the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actwam import flow
from actwam.model.transformer import GroupInput, TextContext, WorldActionTransformer
from actwam.tokens import Table, plan
from actwam.types import Context, Group


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Euler steps, and the flow shift of each noisy group."""

    num_steps: int
    action_shift: float
    future_shift: float

    def levels(self, group: Group) -> list[float]:
        """The noise levels of a group, from 1 to 0."""
        shift = self.action_shift if group is Group.ACTION else self.future_shift
        return flow.schedule(self.num_steps, shift).tolist()


@torch.inference_mode()
def sample(
    model: WorldActionTransformer,
    table: Table,
    *,
    given: Mapping[Group, Float[Tensor, "B ..."]],
    noise: Mapping[Group, Float[Tensor, "B ..."]],
    wanted: Iterable[Group],
    text: TextContext,
    embodiment: Int[Tensor, "B"],
    sampling: Sampling,
    context: Context | None = None,
) -> tuple[dict[Group, Float[Tensor, "B ..."]], Context | None]:
    """Sample the wanted groups: their values, those of the groups that had to be denoised for them, and the context.

    `given` are clean groups; those already in `context` are not encoded again. `noise` holds the starting noise of
    every group that `plan` denoises. A returned context may be handed to the next call.
    """
    values = dict(given)
    for stage in plan(table, wanted, given):
        new = [group for group in Group if group in stage.encode - set(context.groups if context else ())]
        if new:
            clean = [GroupInput(group, values[group], _level(0.0, values[group])) for group in new]
            context = model.encode(clean, text, embodiment, table, context)
        along = [group for group in Group if group in stage.recompute | stage.denoise]
        levels = {group: sampling.levels(group) for group in stage.denoise}
        values |= {group: noise[group] for group in stage.denoise}
        for step in range(sampling.num_steps):
            inputs = [
                GroupInput(group, values[group], _level(levels[group][step] if group in levels else 0.0, values[group]))
                for group in along
            ]
            velocities = model(inputs, text, embodiment, table, context)
            for group, (now, then) in ((g, levels[g][step : step + 2]) for g in levels):
                values[group] = flow.euler(values[group], velocities[group], now, then)
    return {group: values[group] for group in values if group not in given}, context


def _level(sigma: float, value: Float[Tensor, "B ..."]) -> Float[Tensor, "B 1"]:
    return torch.full((len(value), 1), sigma, device=value.device)
