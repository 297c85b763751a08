"""What the tables promise, measured on models of one and two experts: independence, caching, absence."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace

import pytest
import tiny
import torch
from tiny import difference, run

from actwam.model.transformer import GroupInput, TextContext, WorldActionTransformer
from actwam.tokens import (
    ACTION_CENTERED,
    ACTION_ONLY,
    BIDIRECTIONAL,
    JOINT,
    TABLES,
    UNCOUPLED,
    VIDEO_FIRST,
    Table,
)
from actwam.types import Context, Group

HIST, OBS, STATE, ACT, FUT = Group.HISTORY, Group.OBSERVATION, Group.STATE, Group.ACTION, Group.FUTURE
CLEAN = (OBS, STATE)


@pytest.fixture(params=["one", "two"], scope="module")
def model(request: pytest.FixtureRequest) -> WorldActionTransformer:
    return tiny.model(request.param)


def encode(
    model: WorldActionTransformer, table: Table, inputs: Iterable[GroupInput], context: Context | None = None
) -> Context:
    return model.encode(list(inputs), tiny.text(model), tiny.embodiments(), table, context)


def changed(inputs: dict[Group, GroupInput], group: Group) -> dict[Group, GroupInput]:
    """The same inputs with other values, and another noise level, in one group."""
    item = inputs[group]
    other = replace(item, value=item.value.flip(0) * 3 + 1, sigma=1 - item.sigma)
    return {**inputs, group: other}


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_a_group_depends_on_what_its_row_reaches_and_on_nothing_else(
    model: WorldActionTransformer, table: Table
) -> None:
    inputs = {group: item for group, item in tiny.inputs().items() if group in table.groups}
    before = run(model, table, inputs.values())
    for cause in inputs:
        after = run(model, table, changed(inputs, cause).values())
        for effect in after:
            if cause in table.reach(effect):
                assert difference(before[effect], after[effect]) > 1e-3
            else:
                assert torch.equal(before[effect], after[effect])


def test_future_changed_or_deleted_actions_stay(model: WorldActionTransformer) -> None:
    inputs = tiny.inputs()
    action = run(model, ACTION_CENTERED, inputs.values())[ACT]
    assert difference(action, run(model, ACTION_CENTERED, changed(inputs, FUT).values())[ACT]) == 0
    without = [item for group, item in inputs.items() if group is not FUT]
    assert difference(action, run(model, ACTION_CENTERED, without)[ACT]) < 1e-6


def test_no_gradient_flows_from_actions_to_the_future(model: WorldActionTransformer) -> None:
    inputs = tiny.inputs()
    for item in inputs.values():
        item.value.requires_grad_()
    out = run(model, ACTION_CENTERED, inputs.values())
    of_action = torch.autograd.grad(out[ACT].square().sum(), inputs[FUT].value, retain_graph=True)[0]
    assert of_action.count_nonzero() == 0
    for group in (OBS, STATE, ACT):
        of_future = torch.autograd.grad(out[FUT].square().sum(), inputs[group].value, retain_graph=True)[0]
        assert of_future.abs().max() > 1e-4


def test_uncoupled_futures_ignore_actions_and_joint_actions_see_the_future(
    model: WorldActionTransformer,
) -> None:
    for table, cause, effect in ((UNCOUPLED, ACT, FUT), (UNCOUPLED, FUT, ACT), (VIDEO_FIRST, ACT, FUT)):
        inputs = tiny.inputs()
        inputs[cause].value.requires_grad_()
        out = run(model, table, inputs.values())[effect]
        assert torch.autograd.grad(out.sum(), inputs[cause].value)[0].count_nonzero() == 0
    for table in (JOINT, VIDEO_FIRST, BIDIRECTIONAL):
        inputs = tiny.inputs()
        inputs[FUT].value.requires_grad_()
        out = run(model, table, inputs.values())[ACT]
        assert torch.autograd.grad(out.square().sum(), inputs[FUT].value)[0].abs().max() > 1e-4


def test_cached_equals_uncached(model: WorldActionTransformer) -> None:
    inputs = tiny.inputs()
    whole = run(model, ACTION_CENTERED, inputs.values())
    context = encode(model, ACTION_CENTERED, [inputs[group] for group in CLEAN])
    assert difference(whole[ACT], run(model, ACTION_CENTERED, [inputs[ACT]], context)[ACT]) < 1e-6
    longer = encode(model, ACTION_CENTERED, [inputs[ACT]], context)
    assert difference(whole[FUT], run(model, ACTION_CENTERED, [inputs[FUT]], longer)[FUT]) < 1e-6
    both = run(model, ACTION_CENTERED, [inputs[ACT], inputs[FUT]], context)
    assert max(difference(whole[group], both[group]) for group in both) < 1e-6


def test_a_context_is_not_changed_by_what_is_appended_or_asked(model: WorldActionTransformer) -> None:
    inputs = tiny.inputs()
    with torch.no_grad():
        context = encode(model, ACTION_CENTERED, [inputs[group] for group in CLEAN])
        copied = copy.deepcopy(context)
        encode(model, ACTION_CENTERED, [inputs[ACT]], context)
        run(model, ACTION_CENTERED, [inputs[ACT]], context)
    assert (context.groups, context.lengths) == (copied.groups, copied.lengths)
    assert all(torch.equal(a, b) for a, b in zip(context.keys, copied.keys, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(context.values, copied.values, strict=True))


def history(model: WorldActionTransformer, frames: slice) -> GroupInput:
    value = tiny.noise_of(77, 3, tiny.CHANNELS, 3, 2, 4)[:, :, frames]
    return GroupInput(HIST, value, torch.zeros(3, 1))


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_everybody_sees_history_and_history_sees_its_past_only(model: WorldActionTransformer, table: Table) -> None:
    inputs = {group: item for group, item in tiny.inputs().items() if group in table.groups}
    item = history(model, slice(None))
    before = run(model, table, [item, *inputs.values()])
    last_changed = item.value.clone()
    last_changed[:, :, -1] += 1
    after = run(model, table, [replace(item, value=last_changed), *inputs.values()])
    assert torch.equal(before[HIST][:, :, :-1], after[HIST][:, :, :-1])
    assert all(difference(before[group], after[group]) > 1e-4 for group in before)
    alone = run(model, table, [item])
    assert difference(alone[HIST], before[HIST]) < 1e-5


def test_a_moment_is_appended_to_a_history_whose_frames_do_not_divide(model: WorldActionTransformer) -> None:
    context = encode(model, JOINT, [history(model, slice(0, 1))])
    context = encode(model, JOINT, [history(model, slice(1, 3))], context)
    assert context.groups == (HIST, HIST)
    assert context.lengths == (8, 16)


def step_by_step(model: WorldActionTransformer, frames: int = 3) -> Context:
    """The history encoded as it comes: a frame at a time, each a moment after the one before."""
    context = encode(model, JOINT, [history(model, slice(0, 1))])
    for i in range(1, frames):
        context = encode(model, JOINT, [history(model, slice(i, i + 1))], model.advance(context))
    return context


@pytest.mark.parametrize("changes", [{}, {"patch": (2, 2), "head_width": 20}], ids=["plain", "patches"])
@pytest.mark.parametrize("experts", ["one", "two"])
def test_history_moves_on_by_a_turn_of_its_keys(experts: str, changes: dict[str, object]) -> None:
    """As if all of it had been encoded now, at the places where it stands now."""
    model = tiny.model(experts, **changes)
    with torch.no_grad():
        whole, moved = encode(model, JOINT, [history(model, slice(None))]), step_by_step(model)
        for now, then in ((whole.keys, moved.keys), (whole.values, moved.values)):
            assert max(difference(a, b) for a, b in zip(now, then, strict=True)) < 1e-5
        inputs = tiny.inputs()
        clean, noisy = [inputs[group] for group in CLEAN], [inputs[group] for group in (ACT, FUT)]
        expected = run(model, JOINT, [history(model, slice(None)), *inputs.values()])
        found = run(model, JOINT, noisy, encode(model, JOINT, clean, moved))
        assert max(difference(expected[group], found[group]) for group in found) < 1e-5
        unmoved = encode(model, JOINT, [history(model, slice(1, 3))], encode(model, JOINT, [history(model, slice(1))]))
        wrong = run(model, JOINT, noisy, encode(model, JOINT, clean, unmoved))
        assert difference(expected[ACT], wrong[ACT]) > 1e-4


def test_two_moments_are_one_and_one_and_the_values_stand_still(model: WorldActionTransformer) -> None:
    with torch.no_grad():
        context = step_by_step(model)
        once, twice = model.advance(context, 2), model.advance(model.advance(context))
    assert (once.groups, once.lengths) == (context.groups, context.lengths)
    assert all(a is b for a, b in zip(context.values, once.values, strict=True))
    assert max(difference(a, b) for a, b in zip(once.keys, twice.keys, strict=True)) < 1e-6
    assert min(difference(a, b) for a, b in zip(once.keys, context.keys, strict=True)) > 0.1


def test_in_bfloat16_keys_stay_bfloat16_and_near() -> None:
    model = tiny.model().to(torch.bfloat16)
    with torch.no_grad():
        whole, moved = encode(model, JOINT, [history(model, slice(None))]), step_by_step(model)
    for now, then in zip(whole.keys, moved.keys, strict=True):
        assert then.dtype == torch.bfloat16
        assert float((now - then).float().norm() / now.float().norm()) < 0.02


def test_what_is_no_history_does_not_move_on(model: WorldActionTransformer) -> None:
    inputs = tiny.inputs()
    context = encode(model, JOINT, [history(model, slice(None)), inputs[OBS], inputs[STATE]])
    with pytest.raises(ValueError, match="only history moves on, and this context holds history, observation, state"):
        model.advance(context)


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_moments_that_a_sample_lacks_are_as_if_left_out(model: WorldActionTransformer, table: Table) -> None:
    """Training hides the oldest of three places; acting has fewer, and they stand at the newest ones."""
    inputs = [item for group, item in tiny.inputs().items() if group in table.groups]
    item = history(model, slice(None))
    valid = torch.tensor([[False, False, True], [True, True, True], [False, False, False]])
    garbage = replace(item, value=torch.where(valid[:, None, :, None, None], item.value, 1e3))
    masked = run(model, table, [garbage, *inputs], valid={HIST: valid})
    for sample, frames in enumerate((slice(2, 3), slice(0, 3), None)):
        shown = [] if frames is None else [history(model, frames)]
        expected = run(model, table, [*shown, *inputs])
        for group in (ACT, FUT):
            if group in table.groups:
                assert difference(masked[group][sample], expected[group][sample]) < 1e-5
    assert all(value.isfinite().all() for value in masked.values())


def test_a_moment_that_is_not_there_gives_no_nan_in_any_precision() -> None:
    """It may see nothing that is there: attention to nothing at all is not a number where it is written out."""
    model = tiny.model().to(torch.bfloat16)
    valid = torch.tensor([[False, True, True], [False, False, False], [True, True, True]])
    out = run(model, JOINT, [history(model, slice(None)), *tiny.inputs().values()], valid={HIST: valid})
    assert all(value.isfinite().all() for value in out.values())
    sum(out[group].square().mean() for group in (ACT, FUT)).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_stacked_and_split_contexts_are_those_of_the_samples(model: WorldActionTransformer) -> None:
    with torch.no_grad():
        whole = step_by_step(model)
    alone = whole.split()
    assert [len(context.keys[0]) for context in alone] == [1, 1, 1]
    assert all(context.groups == whole.groups and context.lengths == whole.lengths for context in alone)
    for side in ("keys", "values"):
        for one, k in zip(getattr(alone[1], side), getattr(whole, side), strict=True):
            assert torch.equal(one, k[1:2])
            assert one.untyped_storage().nbytes() == one.numel() * one.element_size()  # nobody else's is kept
        again = getattr(Context.stack(alone), side)
        assert all(torch.equal(a, b) for a, b in zip(again, getattr(whole, side), strict=True))


def test_the_embodiment_changes_the_actions(model: WorldActionTransformer) -> None:
    inputs, text = list(tiny.inputs().values()), tiny.text(model)
    first, second = (model(inputs, text, torch.full((3,), i), ACTION_CENTERED) for i in range(2))
    assert difference(first[ACT], second[ACT]) > 1e-3
    mixed = model(inputs, text, torch.tensor([0, 1, 0]), ACTION_CENTERED)
    assert difference(mixed[ACT][[0, 2]], first[ACT][[0, 2]]) < 1e-5
    assert difference(mixed[ACT][1], second[ACT][1]) < 1e-5


def test_the_instruction_and_the_noise_level_change_everything(model: WorldActionTransformer) -> None:
    inputs = list(tiny.inputs().values())
    rolled = tiny.text(model).select(torch.tensor([1, 2, 0]))
    before = run(model, ACTION_CENTERED, inputs)
    after = model(inputs, rolled, tiny.embodiments(), ACTION_CENTERED)
    louder = run(model, ACTION_CENTERED, tiny.inputs(sigma=0.9).values())
    for group in (ACT, FUT):
        assert difference(before[group], after[group]) > 1e-3
        assert difference(before[group], louder[group]) > 1e-3


def test_a_level_per_token_equals_a_level_per_group(model: WorldActionTransformer) -> None:
    inputs = tiny.inputs()
    tokens = {OBS: 8, STATE: 1, ACT: tiny.HORIZON, FUT: 16}
    spread = [replace(item, sigma=item.sigma.expand(3, tokens[group])) for group, item in inputs.items()]
    grouped, each = run(model, ACTION_CENTERED, inputs.values()), run(model, ACTION_CENTERED, spread)
    assert all(difference(grouped[group], each[group]) < 1e-5 for group in grouped)
    other = spread[2].sigma.clone()
    other[:, 0] = 0.1
    uneven = run(model, ACTION_CENTERED, [*spread[:2], replace(spread[2], sigma=other), spread[3]])
    assert difference(grouped[ACT], uneven[ACT]) > 1e-3


@pytest.mark.parametrize("table", [ACTION_CENTERED, JOINT, BIDIRECTIONAL], ids=lambda table: table.name)
def test_an_absent_group_is_as_if_left_out(model: WorldActionTransformer, table: Table) -> None:
    inputs = tiny.inputs()
    absent = torch.tensor([False, True, False])  # True: this sample has neither state nor action
    masked = run(model, table, inputs.values(), valid={STATE: ~absent, ACT: ~absent})
    whole = run(model, table, inputs.values())
    video = run(model, table, [inputs[OBS], inputs[FUT]])
    assert difference(masked[FUT][1], video[FUT][1]) < 1e-5
    for sample in (0, 2):
        assert difference(masked[FUT][sample], whole[FUT][sample]) < 1e-5
        assert difference(masked[ACT][sample], whole[ACT][sample]) < 1e-5
    assert difference(masked[FUT][1], whole[FUT][1]) > 1e-3


def test_absence_hides_encoded_groups_too(model: WorldActionTransformer) -> None:
    inputs = tiny.inputs()
    context = encode(model, ACTION_CENTERED, [inputs[group] for group in CLEAN])
    none = torch.zeros(3, dtype=torch.bool)
    hidden = run(model, ACTION_CENTERED, [inputs[ACT]], context, valid={OBS: none, STATE: none})
    assert difference(hidden[ACT], run(model, ACTION_CENTERED, [inputs[ACT]])[ACT]) < 1e-5


def test_forward_depends_on_neither_mode_nor_history_of_calls(model: WorldActionTransformer) -> None:
    inputs = tiny.inputs()
    first = run(model, ACTION_CENTERED, inputs.values())
    run(model, JOINT, tiny.inputs(seed=5).values())
    encode(model, ACTION_CENTERED, [inputs[group] for group in CLEAN])
    model.train()
    second = run(model, ACTION_CENTERED, inputs.values())
    model.eval()
    assert all(torch.equal(first[group], second[group]) for group in first)


def test_inputs_are_not_changed(model: WorldActionTransformer) -> None:
    inputs = tiny.inputs()
    copied = copy.deepcopy(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        run(model, ACTION_CENTERED, inputs.values(), valid={ACT: torch.tensor([True, False, True])})
    run(model, ACTION_CENTERED, inputs.values())
    for group, item in inputs.items():
        assert torch.equal(item.value, copied[group].value)
        assert torch.equal(item.sigma, copied[group].sigma)


def test_the_order_of_the_inputs_does_not_matter(model: WorldActionTransformer) -> None:
    inputs = list(tiny.inputs().values())
    forward, backward = run(model, ACTION_CENTERED, inputs), run(model, ACTION_CENTERED, inputs[::-1])
    assert all(difference(forward[group], backward[group]) < 1e-5 for group in forward)


def test_samples_of_a_batch_do_not_touch_one_another(model: WorldActionTransformer) -> None:
    inputs = tiny.inputs()
    whole = run(model, ACTION_CENTERED, inputs.values())
    for i in range(3):
        one = [replace(x, value=x.value[i : i + 1], sigma=x.sigma[i : i + 1]) for x in inputs.values()]
        text = tiny.text(model).select(torch.tensor([i]))
        alone = model(one, text, tiny.embodiments()[i : i + 1], ACTION_CENTERED)
        assert all(difference(alone[group][0], whole[group][i]) < 1e-5 for group in alone)


def test_selected_and_stacked_instructions_equal_encoding_them(model: WorldActionTransformer) -> None:
    sentences = ["push the square", "lift it", "push the square"]
    direct = model.text_context(tiny.TEXT.encode(sentences))
    distinct = model.text_context(tiny.TEXT.encode(sentences[:2]))
    single = [model.text_context(tiny.TEXT.encode([sentence])) for sentence in sentences]
    for other in (distinct.select(torch.tensor([0, 1, 0])), TextContext.stack(single)):
        assert all(difference(a, b) < 1e-6 for a, b in zip(direct.leaves, other.leaves, strict=True))
    again = TextContext.of_leaves(direct.leaves, len(model.config.experts))
    assert [len(layer) for layer in again.layers] == [len(layer) for layer in direct.layers]
    assert all(a is b for a, b in zip(again.leaves, direct.leaves, strict=True))


def test_text_of_another_width_is_refused(model: WorldActionTransformer) -> None:
    with pytest.raises(ValueError, match="text is 13 wide, this model reads 12"):
        model.text_context(torch.zeros(1, 6, 13))


def test_a_table_without_future_refuses_future_tokens(model: WorldActionTransformer) -> None:
    with pytest.raises(ValueError, match="ACTION_ONLY has no group future"):
        run(model, ACTION_ONLY, tiny.inputs().values())


def test_patches_of_two_by_two_see_and_answer_pixel_by_pixel() -> None:
    model, inputs = tiny.model(patch=(2, 2)), tiny.inputs()
    out = run(model, ACTION_CENTERED, inputs.values())
    assert out[FUT].shape == inputs[FUT].value.shape
    context = encode(model, ACTION_CENTERED, [inputs[OBS]])
    assert context.lengths == (2,)  # 2 x 4 latents are 1 x 2 tokens
    # a head that answers a different number for every place of the patch: each lands at its own place
    with torch.no_grad():
        model.patch_head.weight.zero_()
        channels = torch.arange(tiny.CHANNELS)
        numbers = torch.arange(4.0).repeat_interleave(tiny.CHANNELS) * 100 + channels.repeat(4)
        model.patch_head.bias.copy_(numbers)
    out = run(model, ACTION_CENTERED, inputs.values())[FUT]
    tile = torch.tensor([[0.0, 100.0], [200.0, 300.0]]).repeat(1, 2)
    expected = tile + channels[:, None, None]
    assert torch.equal(out[0, :, 0], expected)


def test_a_patch_is_read_in_one_order(model: WorldActionTransformer) -> None:
    """Channel by channel, then row by row: the order of a convolution's weight."""
    wide = tiny.model(patch=(2, 2))
    value = tiny.noise_of(3, 1, tiny.CHANNELS, 1, 2, 4)
    conv = torch.nn.functional.conv2d(
        value[:, :, 0],
        wide.patch_embedding.weight.unflatten(1, (tiny.CHANNELS, 2, 2)),
        wide.patch_embedding.bias,
        stride=2,
    )
    ours = wide._embed(GroupInput(OBS, value, torch.zeros(1, 1)), torch.zeros(1, dtype=torch.long))
    assert torch.allclose(ours, conv.flatten(2).mT, atol=1e-5)


def test_one_encoder_may_serve_state_and_action() -> None:
    model = tiny.model(share_state_encoder=True)
    assert not any(name.startswith("state_encoder") for name, _ in model.named_parameters())
    inputs = tiny.inputs()
    before = run(model, ACTION_CENTERED, inputs.values())
    after = run(model, ACTION_CENTERED, changed(inputs, STATE).values())
    assert difference(before[ACT], after[ACT]) > 1e-3
