"""Policies with random weights: as large as they are named, and every part of them shapes the actions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actwam.bench.latency import group_lengths
from actwam.bench.shapes import SHAPES, Shape, need, random_observation, random_policy, shape_named
from actwam.recipes import metaworld
from actwam.train.compute import parameters
from actwam.types import Group

SMALLEST = shape_named("tiny", layers=1)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("tiny", 3.3e6, 3.4e6), ("small", 2.5e7, 4.5e7), ("gwp0", 5.0e9, 5.1e9), ("gwp05", 6.0e9, 6.1e9)],
)
def test_shapes_are_as_large_as_the_models(name: str, least: float, most: float) -> None:
    assert least < parameters(shape_named(name).model) < most


@pytest.mark.parametrize("name", ["gwp0", "gwp05"])
def test_official_shapes_have_the_released_picture_and_schedule(name: str) -> None:
    shape = shape_named(name)
    assert (shape.layout.height, shape.layout.width) == (384, 320)
    assert (shape.window.action_horizon, shape.sampling.num_steps) == (48, 10)


def test_a_slice_differs_in_its_layers_alone() -> None:
    whole, two = shape_named("gwp05"), shape_named("gwp05", layers=2)
    assert replace(two.model, layers=whole.model.layers) == whole.model
    assert replace(two, model=whole.model) == whole


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=f"huge is no shape and no folder: there are {', '.join(SHAPES)}"):
        shape_named("huge")


def test_a_slice_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 layer, not 0"):
        shape_named("tiny", layers=0)


def test_small_has_the_tokens_of_the_official_models() -> None:
    policy = random_policy(shape_named("small", layers=1))
    lengths = group_lengths(policy, random_observation(policy.robot.embodiment))
    assert lengths == {Group.OBSERVATION: 120, Group.STATE: 1, Group.ACTION: 48, Group.FUTURE: 480}


def test_weights_are_the_same_in_every_dtype_but_rounded() -> None:
    whole, half = (random_policy(SMALLEST, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    again = random_policy(SMALLEST)
    pairs = zip(*(policy.checkpoint.model.state_dict().items() for policy in (whole, half, again)), strict=True)
    for (name, weight), (_, rounded), (_, same) in pairs:
        assert torch.equal(weight.bfloat16(), rounded), name
        assert torch.equal(weight, same), name


@pytest.mark.parametrize("part", ["patch_embedding", "state_encoder", "action_encoder", "blocks", "action_decoder"])
def test_every_part_shapes_the_actions(part: str) -> None:
    policy = random_policy(SMALLEST)
    seen = random_observation(policy.robot.embodiment)
    before = policy.act(seen).actions
    with torch.no_grad():
        for parameter in getattr(policy.checkpoint.model, part).parameters():
            parameter.copy_(parameter.flip(0))
    assert np.abs(policy.act(seen).actions - before).max() > 1e-3


def test_what_is_seen_shapes_the_actions() -> None:
    policy = random_policy(SMALLEST)
    one, other = (policy.act(random_observation(policy.robot.embodiment, seed)).actions for seed in (0, 1))
    assert np.abs(one - other).max() > 1e-3


def test_a_recipe_that_starts_from_a_checkpoint_has_no_shape_of_its_own() -> None:
    recipe = replace(metaworld.laptop(), codec=None, start=Path("somewhere"))
    with pytest.raises(ValueError, match="starts from a checkpoint: time that"):
        Shape.of(recipe)


@pytest.mark.parametrize(("name", "layers", "least", "most"), [("gwp05", 1, 4e9, 6e9), ("tiny", None, 13e6, 1e9)])
def test_what_a_shape_needs_is_known_before_it_is_made(
    name: str, layers: int | None, least: float, most: float
) -> None:
    shape = shape_named(name, layers)
    assert least < need(shape).total < most
    assert need(shape, dtype=torch.bfloat16).weights * 2 == need(shape).weights
