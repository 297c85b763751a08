"""Sampling by plan and context, against a slow twin that knows neither and recomputes everything."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from actwam import flow
from actwam.model.transformer import GroupInput, WorldActionTransformer
from actwam.sampler import Approximate, Exact, Levels, Sampling, Start, sample
from actwam.tokens import ACTION_CENTERED, BIDIRECTIONAL, JOINT, TABLES, UNCOUPLED, VIDEO_FIRST, Table
from actwam.types import Context, Group

HIST, OBS, STATE, ACT, FUT = Group.HISTORY, Group.OBSERVATION, Group.STATE, Group.ACTION, Group.FUTURE
Values = dict[Group, Tensor]

# Which noisy groups are denoised together, and in which order, when all are wanted: read off the pictures.
ORDER = {
    "ACTION_CENTERED": [[ACT], [FUT]],
    "JOINT": [[ACT, FUT]],
    "VIDEO_FIRST": [[FUT], [ACT]],
    "UNCOUPLED": [[ACT], [FUT]],
    "ACTION_ONLY": [[ACT]],
    "BIDIRECTIONAL": [[ACT, FUT]],
}


@pytest.fixture(params=["one", "two"], scope="module")
def model(request: pytest.FixtureRequest) -> WorldActionTransformer:
    return tiny.model(request.param)


def clean(seed: int = 0) -> Values:
    return {group: tiny.inputs(seed=seed)[group].value for group in (OBS, STATE)}


def noise(seed: int = 3) -> Values:
    return {group: tiny.inputs(seed=seed)[group].value for group in (ACT, FUT)}


def draw(
    model: WorldActionTransformer,
    table: Table,
    wanted: list[Group],
    given: Mapping[Group, Tensor] | None = None,
    start: Mapping[Group, Tensor] | None = None,
    context: Context | None = None,
    begin: Start | None = None,
    **options: Any,
) -> tuple[Values, Context | None]:
    settings: dict[str, Any] = {"sampling": tiny.SAMPLING, **options}
    return sample(
        model,
        table,
        given=clean() if given is None else given,
        noise=noise() if start is None else start,
        wanted=wanted,
        text=tiny.text(model),
        embodiment=tiny.embodiments(),
        context=context,
        start=begin,
        **settings,
    )


@torch.no_grad()
def slowly(
    model: WorldActionTransformer, table: Table, order: list[list[Group]], given: Values, start: Values
) -> Values:
    """Every step passes all tokens that are there through the model, with no context at all."""
    values = dict(given)
    for together in order:
        values |= {group: start[group] for group in together}
        levels = {ACT: flow.schedule(3, 5.0).tolist(), FUT: flow.schedule(3, 2.0).tolist()}
        for step in range(3):
            sigmas = {group: levels[group][step] if group in together else 0.0 for group in values}
            inputs = [GroupInput(g, v, torch.full((len(v), 1), sigmas[g])) for g, v in values.items()]
            velocities = model(inputs, tiny.text(model), tiny.embodiments(), table)
            for group in together:
                change = levels[group][step + 1] - levels[group][step]
                values[group] = values[group] + change * velocities[group]
    return {group: values[group] for together in order for group in together}


def largest_difference(a: Values, b: Values) -> float:
    assert set(a) == set(b)
    return max(float((a[group] - b[group]).abs().max()) for group in a)


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_sampling_with_contexts_equals_recomputing_everything(model: WorldActionTransformer, table: Table) -> None:
    order = ORDER[table.name]
    fast, _ = draw(model, table, [group for together in order for group in together])
    assert largest_difference(fast, slowly(model, table, order, clean(), noise())) < 1e-5


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_acting_equals_the_actions_of_sampling_everything(model: WorldActionTransformer, table: Table) -> None:
    order = ORDER[table.name]
    everything, _ = draw(model, table, [group for together in order for group in together])
    acting, _ = draw(model, table, [ACT])
    assert float((acting[ACT] - everything[ACT]).abs().max()) < 1e-5


@pytest.mark.parametrize("table", [ACTION_CENTERED, JOINT, BIDIRECTIONAL], ids=lambda table: table.name)
def test_given_actions_shape_the_future_and_are_not_sampled(model: WorldActionTransformer, table: Table) -> None:
    given = {**clean(), ACT: tiny.inputs(seed=8)[ACT].value}
    before = given[ACT].clone()
    future, _ = draw(model, table, [FUT], given)
    assert set(future) == {FUT}
    assert torch.equal(given[ACT], before)
    assert largest_difference(future, slowly(model, table, [[FUT]], given, noise())) < 1e-5
    other, _ = draw(model, table, [FUT], {**given, ACT: before + 1})
    assert largest_difference(future, other) > 1e-3


def test_actions_are_inferred_from_a_given_future(model: WorldActionTransformer) -> None:
    given = {**clean(), FUT: tiny.inputs(seed=8)[FUT].value}
    actions, _ = draw(model, VIDEO_FIRST, [ACT], given)
    assert largest_difference(actions, slowly(model, VIDEO_FIRST, [[ACT]], given, noise())) < 1e-5


def test_history_is_encoded_with_the_rest(model: WorldActionTransformer) -> None:
    given = {HIST: tiny.noise_of(5, 3, tiny.CHANNELS, 2, 2, 4), **clean()}
    fast, context = draw(model, ACTION_CENTERED, [ACT, FUT], given)
    assert largest_difference(fast, slowly(model, ACTION_CENTERED, [[ACT], [FUT]], given, noise())) < 1e-5
    assert context is not None
    assert set(context.groups) == {HIST, OBS, STATE}


Passes = list[tuple[set[Group], set[Group]]]


def seen_groups(model: WorldActionTransformer, table: Table, wanted: list[Group], **options: Any) -> Passes:
    """What is encoded and what is denoised or recomputed, in every pass of the model while sampling."""
    with tiny.watched(model) as passes:
        draw(model, table, wanted, **options)
    return [(set(each.encoded), set(each.along)) for each in passes]


def test_acting_never_shows_the_model_what_the_table_does_not_need(model: WorldActionTransformer) -> None:
    clean: set[Group] = {OBS, STATE}
    alone: Passes = [(clean, {ACT}), *[(set(), {ACT})] * 2]
    future = [({ACT}, {FUT}), *[(set[Group](), {FUT})] * 2]
    assert seen_groups(model, ACTION_CENTERED, [ACT]) == alone
    assert seen_groups(model, UNCOUPLED, [ACT]) == alone
    assert seen_groups(model, JOINT, [ACT]) == [(clean, {ACT, FUT}), *[(set(), {ACT, FUT})] * 2]
    assert seen_groups(model, VIDEO_FIRST, [ACT]) == [
        (clean, {FUT}), *[(set(), {FUT})] * 2, ({FUT}, {ACT}), *[(set(), {ACT})] * 2
    ]  # fmt: skip
    assert seen_groups(model, BIDIRECTIONAL, [ACT]) == [(set(), {OBS, STATE, ACT, FUT})] * 3
    assert seen_groups(model, ACTION_CENTERED, [ACT, FUT]) == [*alone, *future]


def test_what_makes_it_faster_can_be_switched_off_one_by_one(model: WorldActionTransformer) -> None:
    """Encoding and first step apart; and every step over everything, as the released code of GWP-0 does it."""
    clean: set[Group] = {OBS, STATE}
    apart = seen_groups(model, ACTION_CENTERED, [ACT], exact=Exact(first_step=False))
    assert apart == [(clean, set()), *[(set(), {ACT})] * 3]
    plain = seen_groups(model, ACTION_CENTERED, [ACT], exact=Exact(context=False))
    assert plain == [(set(), clean | {ACT})] * 3


@pytest.mark.parametrize("off", [field.name for field in fields(Exact)])
@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_nothing_exact_changes_a_value(model: WorldActionTransformer, table: Table, off: str) -> None:
    wanted = [group for together in ORDER[table.name] for group in together]
    slow, _ = draw(model, table, wanted, exact=Exact(**{off: False}))
    assert largest_difference(draw(model, table, wanted)[0], slow) < 1e-5
    small = copy.deepcopy(model).bfloat16()
    rounded, slow = (draw(small, table, wanted, exact=exact)[0] for exact in (Exact(), Exact(**{off: False})))
    for group in wanted:
        assert float((rounded[group] - slow[group]).norm() / slow[group].norm()) < 2e-2


def test_levels_are_kept_until_weights_or_schedule_change() -> None:
    model, levels = tiny.model("two"), Levels()
    made: list[Group] = []
    make = model.levels

    def noted(group: Group, sigmas: Sequence[float]) -> Any:
        made.append(group)
        return make(group, sigmas)

    def acting(sampling: Sampling = tiny.SAMPLING) -> Tensor:
        made.clear()
        options: dict[str, Any] = {"sampling": sampling}
        kept = draw(model, ACTION_CENTERED, [ACT], levels=levels.ready(model, sampling), **options)[0][ACT]
        assert torch.equal(kept, draw(model, ACTION_CENTERED, [ACT], **options)[0][ACT])
        return kept

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "levels", noted)
        first = acting()
        assert sorted(made) == sorted(2 * [OBS, STATE, ACT])
        assert torch.equal(first, acting())
        assert sorted(made) == sorted([OBS, STATE, ACT])  # by the call alone that was handed none
        other = acting(sampling=replace(tiny.SAMPLING, num_steps=2))
        assert len(made) == 6
        assert largest_difference({ACT: first}, {ACT: other}) > 1e-3
        with torch.no_grad():
            model.blocks[1].experts[0].table.add_(0.1)
        acting()
        assert len(made) == 6


@pytest.mark.parametrize("table", [ACTION_CENTERED, VIDEO_FIRST, UNCOUPLED, JOINT], ids=lambda table: table.name)
def test_a_context_is_reused_and_holds_nothing_that_was_sampled(model: WorldActionTransformer, table: Table) -> None:
    first, context = draw(model, table, [ACT, FUT])
    assert context is not None
    assert set(context.groups) == {OBS, STATE}
    again, _ = draw(model, table, [ACT, FUT], context=context)
    assert largest_difference(first, again) < 1e-5
    passes = seen_groups(model, table, [ACT, FUT], context=context)
    assert not any({OBS, STATE} & (encoded | denoised) for encoded, denoised in passes)


def test_a_context_that_does_not_fit_what_is_given_is_refused(model: WorldActionTransformer) -> None:
    _, context = draw(model, ACTION_CENTERED, [ACT])
    assert context is not None
    with pytest.raises(ValueError, match="differ in state; sample without a context"):
        draw(model, ACTION_CENTERED, [ACT], {OBS: clean()[OBS]}, context=context)
    alone = model.encode([replace(tiny.inputs()[OBS])], tiny.text(model), tiny.embodiments(), ACTION_CENTERED)
    with pytest.raises(ValueError, match="differ in state"):
        draw(model, ACTION_CENTERED, [ACT], context=alone)


def test_a_context_that_sees_what_is_denoised_is_refused(model: WorldActionTransformer) -> None:
    """Of the clean groups of BIDIRECTIONAL none stands still while another is denoised."""
    _, context = draw(model, ACTION_CENTERED, [ACT])
    with pytest.raises(ValueError, match="context of observation, state can be reused, because it sees action, future"):
        draw(model, BIDIRECTIONAL, [ACT], context=context)
    given = {**clean(), ACT: noise()[ACT]}
    _, context = draw(model, ACTION_CENTERED, [FUT], given)
    assert context is not None
    assert set(context.groups) == {OBS, STATE, ACT}
    with pytest.raises(ValueError, match="because it sees future, which is not given"):
        draw(model, JOINT, [FUT], given, context=context)
    assert draw(model, BIDIRECTIONAL, [ACT])[1] is None


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_a_video_has_no_state(model: WorldActionTransformer, table: Table) -> None:
    """What is sampled without one is what is sampled where nobody sees it, step by step."""
    given = {OBS: clean()[OBS]}
    fast, _ = draw(model, table, [ACT], given)
    order = [[ACT]] if ORDER[table.name][0] == [ACT] else ORDER[table.name]
    assert largest_difference(fast, slowly(model, table, order, given, noise())) < 1e-5
    assert largest_difference(fast, {**draw(model, table, [ACT])[0]}) > 1e-3


def test_missing_noise_is_refused(model: WorldActionTransformer) -> None:
    with pytest.raises(ValueError, match="future must be denoised, but has no noise"):
        draw(model, JOINT, [ACT], start={ACT: noise()[ACT]})


def test_neither_noise_nor_given_values_are_changed(model: WorldActionTransformer) -> None:
    given, start = clean(), noise()
    draw(model, ACTION_CENTERED, [ACT, FUT], given, start)
    assert largest_difference(given, clean()) == 0
    assert largest_difference(start, noise()) == 0


def test_levels_are_the_schedule_of_the_group() -> None:
    sampling = Sampling(num_steps=4, action_shift=5.0, future_shift=1.0)
    assert sampling.levels(FUT) == (1.0, 0.75, 0.5, 0.25, 0.0)
    assert sampling.levels(ACT) == tuple(flow.schedule(4, 5.0).tolist())


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_extrapolation_is_two_step_adams_bashforth(model: WorldActionTransformer, table: Table) -> None:
    """Against the formula written out, for what is denoised first; one step has nothing to extrapolate from."""
    one = replace(tiny.SAMPLING, num_steps=1)
    assert (
        largest_difference(
            draw(model, table, [ACT], sampling=one)[0], draw(model, table, [ACT], sampling=one, extrapolate=True)[0]
        )
        == 0
    )
    values, before = {**clean(), **{group: noise()[group] for group in ORDER[table.name][0]}}, None
    with torch.no_grad():
        for step in range(3):
            levels = {group: tiny.SAMPLING.levels(group) for group in (ACT, FUT)}
            sigmas = {g: levels[g][step] if g in ORDER[table.name][0] else 0.0 for g in values}
            inputs = [GroupInput(g, v, torch.full((len(v), 1), sigmas[g])) for g, v in values.items()]
            found = model(inputs, tiny.text(model), tiny.embodiments(), table)
            for group in ORDER[table.name][0]:
                old, now, then = levels[group][max(step - 1, 0)], *levels[group][step : step + 2]
                ratio = 0.0 if before is None else (then - now) / (now - old) / 2
                mean = found[group] + ratio * (found[group] - (before or found)[group])
                values[group] = values[group] + (then - now) * mean
            before = found
    wanted = ORDER[table.name][0]
    fast, _ = draw(model, table, wanted, extrapolate=True)
    assert largest_difference({g: fast[g] for g in wanted}, {g: values[g] for g in wanted}) < 1e-5
    assert largest_difference(fast, draw(model, table, wanted)[0]) > 1e-4


@pytest.mark.parametrize("table", [ACTION_CENTERED, VIDEO_FIRST], ids=lambda table: table.name)
def test_a_start_runs_the_last_steps_from_its_noised_guess(model: WorldActionTransformer, table: Table) -> None:
    guess = tiny.inputs(seed=8)[ACT].value
    warm, _ = draw(model, table, [ACT], begin=Start({ACT: guess}, 2))
    given = clean() | ({} if table is ACTION_CENTERED else {FUT: draw(model, table, [FUT])[0][FUT]})
    levels = tiny.SAMPLING.levels(ACT)
    value = (1 - levels[1]) * guess + levels[1] * noise()[ACT]
    with torch.no_grad():
        for now, then in pairwise(levels[1:]):
            values = {**given, ACT: value}
            inputs = [GroupInput(g, v, torch.full((3, 1), now if g is ACT else 0.0)) for g, v in values.items()]
            value = value + (then - now) * model(inputs, tiny.text(model), tiny.embodiments(), table)[ACT]
    assert largest_difference({ACT: warm[ACT]}, {ACT: value}) < 1e-5


def test_a_start_at_pure_noise_is_no_start(model: WorldActionTransformer) -> None:
    for exact in (Exact(), Exact(first_step=False), Exact(context=False)):
        cold, _ = draw(model, ACTION_CENTERED, [ACT, FUT], exact=exact)
        warm, _ = draw(
            model, ACTION_CENTERED, [ACT, FUT], exact=exact, begin=Start({ACT: tiny.inputs(seed=8)[ACT].value}, 3)
        )
        assert largest_difference(cold, warm) == 0
        guess = Start({ACT: tiny.inputs(seed=8)[ACT].value}, 1)
        slow, _ = draw(model, ACTION_CENTERED, [ACT], exact=Exact(first_step=False, room=False), begin=guess)
        assert largest_difference(draw(model, ACTION_CENTERED, [ACT], exact=exact, begin=guess)[0], slow) < 1e-5


def test_a_start_spares_passes_of_the_model(model: WorldActionTransformer) -> None:
    guess = Start({ACT: tiny.inputs(seed=8)[ACT].value}, 1)
    assert seen_groups(model, ACTION_CENTERED, [ACT], begin=guess) == [({OBS, STATE}, {ACT})]


@pytest.mark.parametrize(
    ("settings", "table", "said"),
    [
        ({"num_steps": 0}, ACTION_CENTERED, "num_steps must be at least 1, or None, not 0"),
        ({"warm_steps": -1}, ACTION_CENTERED, "warm_steps must be at least 1, or None, not -1"),
        ({"warm_steps": 4}, ACTION_CENTERED, "warm_steps is 4, and the schedule has only 3 steps"),
        ({"num_steps": 1, "warm_steps": 2}, ACTION_CENTERED, "the schedule has only 1 steps"),
        ({"warm_steps": 1}, JOINT, "table JOINT denoises actions together with a future"),
        ({"warm_steps": 1}, BIDIRECTIONAL, "set warm_steps to None"),
    ],
)
def test_approximations_that_cannot_be_are_refused(settings: dict[str, int], table: Table, said: str) -> None:
    def use() -> None:
        made = Approximate(**settings)
        made.require_fitting(made.sampling(tiny.SAMPLING), table)

    with pytest.raises(ValueError, match=said):
        use()
