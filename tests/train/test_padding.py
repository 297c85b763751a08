"""Noise in the dimensions that a robot lacks: heard before `silence_padding`, without any effect after it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from torch import Tensor

from actwam.model.transformer import WorldActionTransformer
from actwam.tokens import ACTION_CENTERED
from actwam.train.padding import silence_padding
from actwam.types import Group

SMALL = tiny.robot(1, state_names=("x", "y"))
"""Robot 1 has two state and two action dimensions, the model is three wide."""
ROBOTS = (tiny.robot(0), SMALL)


def velocities(made: WorldActionTransformer, padding: dict[Group, float], index: int = 1) -> dict[Group, Tensor]:
    """Of a batch of one robot, with this number in the last dimension of state and action."""
    given = dict(tiny.inputs())
    for group, number in padding.items():
        value = given[group].value.clone()
        value[..., 2] = number
        given[group] = replace(given[group], value=value)
    return made(list(given.values()), tiny.text(made), torch.full((3,), index), ACTION_CENTERED)


def differ(made: WorldActionTransformer, group: Group, index: int = 1) -> bool:
    quiet, loud = (velocities(made, {group: number}, index) for number in (0.0, 7.0))
    used = 2 if index else 3
    same = torch.equal(quiet[Group.ACTION][..., :used], loud[Group.ACTION][..., :used])
    return not (same and torch.equal(quiet[Group.FUTURE], loud[Group.FUTURE]))


@pytest.mark.parametrize("experts", ["one", "two"])
@pytest.mark.parametrize("group", [Group.ACTION, Group.STATE])
def test_what_stands_in_padding_changes_nothing_that_the_robot_uses(experts: str, group: Group) -> None:
    made = tiny.model(experts)
    assert differ(made, group)
    silence_padding(made, ROBOTS)
    assert not differ(made, group)
    assert not velocities(made, {group: 7.0})[Group.ACTION][..., 2].any()


def test_real_dimensions_and_other_robots_keep_their_weights() -> None:
    made, before = tiny.model(), tiny.model()
    silence_padding(made, ROBOTS)
    quiet = {Group.ACTION: 0.0, Group.STATE: 0.0}
    now, then = (velocities(each, quiet)[Group.ACTION][..., :2] for each in (made, before))
    assert torch.equal(now, then)
    now, then = (velocities(each, {}, index=0)[Group.ACTION] for each in (made, before))
    assert torch.equal(now, then)


def test_no_gradient_reaches_padding_and_training_leaves_it_silent() -> None:
    made = tiny.model()
    silence_padding(made, ROBOTS)
    out = velocities(made, {Group.ACTION: 0.0, Group.STATE: 0.0})
    (out[Group.ACTION][..., :2].square().sum() + out[Group.FUTURE].square().sum()).backward()
    first, last = made.action_encoder.first, made.action_decoder.last
    assert made.state_encoder is not None
    for gradient in (first.weight.grad, made.state_encoder.first.weight.grad):
        assert gradient is not None
        assert gradient[1, :2].any()
        assert not gradient[1, 2:].any()
    assert last.weight.grad is not None
    assert last.bias.grad is not None
    assert not last.weight.grad[1, :, 2:].any()
    assert not last.bias.grad[1, 2:].any()


@pytest.mark.parametrize(("states", "heard"), [(("x", "y"), False), (("x", "y", "grip"), True)])
def test_a_shared_encoder_stays_open_where_one_of_both_is_real(states: tuple[str, ...], heard: bool) -> None:
    made = tiny.model(share_state_encoder=True)
    before = made.action_encoder.first.weight.clone()
    silence_padding(made, (tiny.robot(1, state_names=states),))
    assert torch.equal(made.action_encoder.first.weight[1, 2], before[1, 2]) == heard
    assert differ(made, Group.STATE) == heard
    assert not velocities(made, {Group.ACTION: 7.0})[Group.ACTION][..., 2].any()


def test_robots_of_one_index_keep_the_dimensions_of_either() -> None:
    made = tiny.model()
    twin = replace(tiny.robot(0), name="twin", index=1)
    before = tiny.weights_of(made)
    silence_padding(made, (SMALL, twin))
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.weights_of(made).items())
