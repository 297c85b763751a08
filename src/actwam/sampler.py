"""One sampler for every family: what to encode, what to denoise and in which order is read from the table."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actwam import flow
from actwam.model.block import Level
from actwam.model.transformer import GroupInput, TextContext, WorldActionTransformer
from actwam.realtime import Guide, Prefix
from actwam.tokens import MAY_BE_ABSENT, Stage, Table, denoised, plan
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

    def levels(self, group: Group) -> tuple[float, ...]:
        """The noise levels of a group, from 1 to 0."""
        return _spaced(self, self.action_shift if group is Group.ACTION else self.future_shift)


@lru_cache(maxsize=64)
def _spaced(sampling: Sampling, shift: float) -> tuple[float, ...]:
    spaced = flow.schedule if sampling.schedule == "even" else flow.diffusers_schedule
    return tuple(spaced(sampling.num_steps, shift).tolist())


@dataclass(frozen=True, kw_only=True)
class Exact:
    """What makes sampling faster and changes no value, but for the last bits. All is on; off is for comparison."""

    context: bool = True
    """Finished groups are encoded once, and not again at every step, as the released code of GWP-0 does."""
    first_step: bool = True
    """They are encoded in the same pass of the model as the first step: it reads its weights once less."""
    levels: bool = True
    """What the model makes of the noise levels of a schedule is kept from call to call (`Levels`)."""
    room: bool = True
    """Keys and values of the groups that are denoised have their place behind the context: nothing is concatenated."""
    graph: bool = True
    """On a GPU, a policy replays the whole of a call as one CUDA graph (`graphs.Graphs`), where its shapes are always
    the same: it does not look back, and denoises actions alone.
    """


ALL = Exact()


@dataclass(frozen=True, kw_only=True)
class Approximate:
    """What makes sampling faster and changes what comes of it: all is off. `benchmarks/approximate.py` measures what
    each costs, and a distilled checkpoint (recipe `distill.few_steps`) needs none of it.

    A velocity that is held for some steps instead of computed anew is missing on purpose: Euler steps with one velocity
    are one longer step with it, and so are those towards a clean value or a noise that is held. On schedules that are
    evenly spaced before the shift that is `num_steps` divided.
    """

    num_steps: int | None = None
    """Steps in place of the checkpoint's own, for all that is denoised."""
    extrapolate: bool = False
    """Every step but the first also uses the velocity before, and follows the line through both (`flow.mean_velocity`).
    """
    warm_steps: int | None = None
    """Where the chunk before is handed over (`Previous`), actions begin as what remains of it, noised to where the last
    so many steps of the schedule begin, and only those run. As many as there are begin at pure noise: a cold start.
    """

    def __post_init__(self) -> None:
        for name, value in (("num_steps", self.num_steps), ("warm_steps", self.warm_steps)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, or None, not {value}")

    def sampling(self, own: Sampling) -> Sampling:
        """The schedule in place of the checkpoint's `own`."""
        return own if self.num_steps is None else replace(own, num_steps=self.num_steps)

    def require_fitting(self, sampling: Sampling, table: Table) -> None:
        """Raises ValueError on more warm steps than the schedule has, and where actions are denoised together with a
        future, which no previous chunk knows.
        """
        if self.warm_steps is None:
            return
        if self.warm_steps > sampling.num_steps:
            raise ValueError(f"warm_steps is {self.warm_steps}, and the schedule has only {sampling.num_steps} steps")
        if Group.FUTURE in table.reach(Group.ACTION) and Group.ACTION in table.reach(Group.FUTURE):
            raise ValueError(
                f"table {table.name} denoises actions together with a future, which no previous chunk knows: set "
                "warm_steps to None"
            )


NOTHING = Approximate()


@dataclass(frozen=True)
class Start:
    """Where the denoising of some groups begins, in place of pure noise: at guesses of their clean values, noised to
    the level at which the last `steps` of the schedule begin.
    """

    guesses: Mapping[Group, Float[Tensor, "B ..."]]
    steps: int

    @property
    def name(self) -> Hashable:
        """What a CUDA graph is captured for."""
        return "start", tuple(self.guesses), self.steps

    @property
    def leaves(self) -> list[Tensor]:
        """All tensors, one after another."""
        return list(self.guesses.values())

    def of_leaves(self, leaves: Sequence[Tensor]) -> Start:
        """The same of other tensors."""
        return replace(self, guesses=dict(zip(self.guesses, leaves, strict=True)))


Onward = Start | Prefix | Guide
"""How actions go on from a previous chunk: begin at what remains of it, begin with some of it, or be pulled to it."""

Ready = dict[tuple[Group, bool], tuple[Level, ...]]
"""By group and whether it is noisy: a level for every step, or the only one of a clean group."""


class Levels:
    """The noise levels of schedules as a model takes them, made once for all calls.

    They are made anew when the model is another than before, or weights were changed in place.
    """

    def __init__(self) -> None:
        self._made_for: tuple[Any, ...] = ()
        self._weights: list[torch.UntypedStorage] = []  # kept, so that no others ever stand at their addresses
        self._made: dict[Sampling, Ready] = {}

    def ready(self, model: WorldActionTransformer, sampling: Sampling) -> Ready:
        """Those that are made already. What is added to them is kept."""
        parameters = model.level_parameters()
        made_for = tuple(map(_version, parameters))
        if made_for != self._made_for:
            self._made_for, self._made = made_for, {}
            self._weights = [parameter.untyped_storage() for parameter in parameters]
        return self._made.setdefault(sampling, {})


def _version(parameter: Tensor) -> tuple[int, int]:
    """Another one when the parameter is exchanged, moved or changed in place."""
    return parameter.untyped_storage()._cdata, 0 if parameter.is_inference() else parameter._version


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
    exact: Exact = ALL,
    levels: Ready | None = None,
    extrapolate: bool = False,
    start: Onward | None = None,
) -> tuple[dict[Group, Float[Tensor, "B ..."]], Context | None]:
    """Sample the wanted groups: their values, those of the groups that had to be denoised for them, and a
    context of given groups, which may be handed to the next call that is given the same.

    `given` are clean groups; those already in `context` are not encoded again. `noise` holds the starting noise of
    every group that `plan` denoises, and `levels` what earlier calls have made of the schedule, to which is added what
    this one makes. `extrapolate` is that of `Approximate`. `start` says how actions go on from previous chunks: a
    `Start` counts where they are denoised with no other group, and a `Guide` takes a backward pass a step. Raises
    ValueError when some noise is missing, on a context that does not fit what is given, and on one that the table does
    not let stand because it sees what is not finished.
    """
    stages, values, reusable = plan(table, wanted, given), dict(given), context
    if missing := denoised(stages) - set(noise):
        raise ValueError(f"table {table.name}: {', '.join(sorted(missing))} must be denoised, but has no noise")
    _require_fitting(context, table, given)
    ready, prefix = ({} if levels is None else levels), start if isinstance(start, Prefix) else None
    items = _Items(model, sampling, ready if exact.levels else None, prefix)
    carried: frozenset[Group] = frozenset()  # finished, and recomputed at every step all the same
    for stage in stages:
        new = stage.encode - set(context.groups if context else ()) - carried
        if not exact.context:
            carried, new = carried | new, frozenset()
        first, begun = items.begun(stage, noise, start)
        values, before = values | begun, dict[Group, Tensor]()
        clean = [items.clean(group, values[group]) for group in Group if group in new]
        guide = start if isinstance(start, Guide) and Group.ACTION in stage.denoise else None
        if clean and (guide or not exact.first_step):
            context, clean = model.encode(clean, text, embodiment, table, context), []
        along = [group for group in Group if group in stage.recompute | stage.denoise | carried]
        seen = context
        for step in range(first, sampling.num_steps):
            noisy = items.along(along, stage.denoise, values, step)
            if guide:
                beside = _Beside(text, embodiment, table, seen)
                velocities = _pulled(guide, items, along, stage.denoise, values, step, beside)
            elif clean and step == first:
                context, velocities = model.begin(clean, noisy, text, embodiment, table, context)
                seen = context
            else:
                velocities = model(noisy, text, embodiment, table, seen)
            if seen and step == first and exact.room and not guide:  # through what is overwritten goes no gradient
                seen = seen.with_room(model.tokens(noisy))
            values |= items.stepped(stage.denoise, values, velocities, before, step)
            before = velocities if extrapolate else {}
        reusable = context if new and new <= set(given) else reusable
    return {group: values[group] for group in values if group not in given}, reusable


@dataclass(frozen=True)
class _Items:
    """Groups as the model takes them, at the noise levels of a schedule; actions of the `prefix` at none."""

    model: WorldActionTransformer
    sampling: Sampling
    ready: Ready | None
    prefix: Prefix | None = None

    def begun(
        self, stage: Stage, noise: Mapping[Group, Tensor], start: Onward | None
    ) -> tuple[int, dict[Group, Float[Tensor, "B ..."]]]:
        """The first step of a stage that runs, and the noisy values that it begins with."""
        if not isinstance(start, Start) or not stage.denoise <= start.guesses.keys():
            return 0, {group: self._held(group, noise[group]) for group in stage.denoise}
        first, values = self.sampling.num_steps - start.steps, {}
        for group in stage.denoise:
            sigma = torch.full((len(noise[group]),), self.sampling.levels(group)[first], device=noise[group].device)
            values[group] = flow.interpolate(start.guesses[group], noise[group], sigma)
        return first, values

    def stepped(
        self,
        groups: Set[Group],
        values: Mapping[Group, Float[Tensor, "B ..."]],
        velocities: Mapping[Group, Float[Tensor, "B ..."]],
        before: Mapping[Group, Float[Tensor, "B ..."]],
        step: int,
    ) -> dict[Group, Float[Tensor, "B ..."]]:
        """`values` after a step along their velocities; extrapolated, given those of the step `before`."""
        after = {}
        for group in groups:
            levels, velocity = self.sampling.levels(group), velocities[group]
            now, then = levels[step : step + 2]
            if group in before:
                velocity = flow.mean_velocity(velocity, before[group], levels[step - 1], now, then)
            after[group] = self._held(group, flow.euler(values[group], velocity, now, then))
        return after

    def along(
        self, groups: Sequence[Group], denoised: Set[Group], values: Mapping[Group, Tensor], step: int
    ) -> list[GroupInput]:
        """All `groups`, those that are `denoised` as noisy as they are at this step."""
        return [
            self.noisy(group, values[group], step) if group in denoised else self.clean(group, values[group])
            for group in groups
        ]

    def noisy(self, group: Group, value: Float[Tensor, "B ..."], step: int) -> GroupInput:
        item = self._at(group, value, self.sampling.levels(group)[:-1], step, noisy=True)
        if self.prefix is None or group is not Group.ACTION:
            return item
        clean = self.clean(group, value).level
        if item.level is None or clean is None:
            return GroupInput(group, value, self.prefix.sigma(item.sigma))
        level = self.prefix.level(item.level, clean)
        return GroupInput(group, value, level.sigma, level)

    def clean(self, group: Group, value: Float[Tensor, "B ..."]) -> GroupInput:
        return self._at(group, value, (0.0,), 0, noisy=False)

    def _held(self, group: Group, value: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """A noisy value with what is known of it in its place."""
        return self.prefix.held(value) if self.prefix and group is Group.ACTION else value

    def _at(
        self, group: Group, value: Float[Tensor, "B ..."], sigmas: tuple[float, ...], step: int, noisy: bool
    ) -> GroupInput:
        if self.ready is None:
            return GroupInput(group, value, _level(sigmas[step], value))
        if (group, noisy) not in self.ready:
            self.ready[group, noisy] = self.model.levels(group, sigmas)
        level = self.ready[group, noisy][step]
        return GroupInput(group, value, level.sigma, level)


@dataclass(frozen=True)
class _Beside:
    """What the model is handed with noisy groups."""

    text: TextContext
    embodiment: Int[Tensor, "B"]
    table: Table
    seen: Context | None

    def outside_inference(self) -> _Beside:
        """A copy that gradients may be computed with."""
        text = TextContext.of_leaves([leaf.clone() for leaf in self.text.leaves], len(self.text.layers[0]))
        seen = self.seen and replace(
            self.seen,
            keys=tuple(key.clone() for key in self.seen.keys),
            values=tuple(value.clone() for value in self.seen.values),
        )
        return _Beside(text, self.embodiment.clone(), self.table, seen)


def _pulled(
    guide: Guide,
    items: _Items,
    along: Sequence[Group],
    denoised: Set[Group],
    values: Mapping[Group, Float[Tensor, "B ..."]],
    step: int,
    beside: _Beside,
) -> dict[Group, Float[Tensor, "B ..."]]:
    """The velocities of a step, those of the actions steered. That takes gradients, and these take copies of all that
    was made in inference mode; levels that are ready are not used.
    """
    with torch.inference_mode(False):
        items, own = replace(items, ready=None), beside.outside_inference()

        def velocities_of(values: Mapping[Group, Tensor]) -> dict[Group, Tensor]:
            inputs = items.along(along, denoised, values, step)
            return items.model(inputs, own.text, own.embodiment, own.table, own.seen)

        copies = {group: values[group].clone() for group in along}
        return guide.steered(velocities_of, copies, items.sampling.levels(Group.ACTION)[step])


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
