"""One sampler for every family: what to encode, what to denoise and in which order is read from the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actwam import flow
from actwam.model.transformer import GroupInput, TextContext, WorldActionTransformer
from actwam.tokens import MAY_BE_ABSENT, Table, plan
from actwam.types import Context, Group


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Euler steps, the flow shift of each noisy group, and how the steps are spaced (`flow.schedule`, or
    `flow.diffusers_schedule` as in the released GWP).
    """

    num_steps: int
    action_shift: float
    future_shift: float
    schedule: Literal["even", "diffusers"] = "even"

    def levels(self, group: Group) -> list[float]:
        """The noise levels of a group, from 1 to 0."""
        shift = self.action_shift if group is Group.ACTION else self.future_shift
        spaced = flow.schedule if self.schedule == "even" else flow.diffusers_schedule
        return spaced(self.num_steps, shift).tolist()


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
    """Sample the wanted groups: their values, those of the groups that had to be denoised for them, and a
    context of given groups, which may be handed to the next call that is given the same.

    `given` are clean groups; those already in `context` are not encoded again. `noise` holds the starting
    noise of every group that `plan` denoises. Raises ValueError when some is missing, on a context that does not fit
    what is given, and on one that the table does not let stand because it sees what is not finished.
    """
    stages, values, reusable = plan(table, wanted, given), dict(given), context
    missing = {group for stage in stages for group in stage.denoise} - set(noise)
    if missing:
        raise ValueError(f"table {table.name}: {', '.join(sorted(missing))} must be denoised, but has no noise")
    _require_fitting(context, table, given)
    for stage in stages:
        new = [group for group in Group if group in stage.encode - set(context.groups if context else ())]
        if new:
            clean = [GroupInput(group, values[group], _level(0.0, values[group])) for group in new]
            context = model.encode(clean, text, embodiment, table, context)
            reusable = context if set(new) <= set(given) else reusable
        along = [group for group in Group if group in stage.recompute | stage.denoise]
        levels = {group: sampling.levels(group) for group in stage.denoise}
        values |= {group: noise[group] for group in stage.denoise}
        for step in range(sampling.num_steps):
            inputs = [
                GroupInput(
                    group,
                    values[group],
                    _level(levels[group][step] if group in levels else 0.0, values[group]),
                )
                for group in along
            ]
            velocities = model(inputs, text, embodiment, table, context)
            for group, (now, then) in ((g, levels[g][step : step + 2]) for g in levels):
                values[group] = flow.euler(values[group], velocities[group], now, then)
    return {group: values[group] for group in values if group not in given}, reusable


def _require_fitting(context: Context | None, table: Table, given: Mapping[Group, Tensor]) -> None:
    """Every group of the context must be given, must have been encoded with all given groups that it sees, and must see
    nothing that is not given: such a group changes while the other is denoised.
    """
    groups, absent = set(context.groups if context else ()), MAY_BE_ABSENT - set(given)
    seen = frozenset[Group]().union(*(table.reach(group, absent) for group in groups))
    wrong = (groups - set(given)) | (seen & set(given) - groups)
    if wrong:
        raise ValueError(
            f"table {table.name}: the context and what is given differ in {', '.join(sorted(wrong))}; "
            "sample without a context, or give the groups it was made from"
        )
    if unfinished := seen - set(given):
        raise ValueError(
            f"table {table.name}: no context of {', '.join(sorted(groups))} can be reused, because it sees "
            f"{', '.join(sorted(unfinished))}, which is not given; sample without a context"
        )


@torch.inference_mode()
def look_back(
    model: WorldActionTransformer,
    table: Table,
    history: Float[Tensor, "B Z R h w"],
    text: TextContext,
    embodiment: Int[Tensor, "B"],
    before: Context | None,
) -> Context:
    """The context of what was seen, oldest first, one moment from each to the next and to the present.

    `before` is what this returned a moment ago, for all of `history` but its last: then that alone is encoded.
    """
    if before is not None:
        before, history = model.advance(before), history[:, :, -1:]
    return model.encode([GroupInput(Group.HISTORY, history, _level(0.0, history))], text, embodiment, table, before)


def _level(sigma: float, value: Float[Tensor, "B ..."]) -> Float[Tensor, "B 1"]:
    return torch.full((len(value), 1), sigma, device=value.device)
