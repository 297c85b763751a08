"""Counted operations: against a count by hand, and how they follow from what a stage teaches."""

from __future__ import annotations

import pytest
import tiny

from actwam.objective import ObjectiveConfig
from actwam.tokens import VIDEO_FIRST
from actwam.train.compute import parameters, step_flops
from actwam.train.config import Recipe, SourceConfig, StageConfig
from actwam.types import Mode


def stage(*modes: Mode, **changes: object) -> StageConfig:
    sources = tuple(SourceConfig(dataset="squares", mode=mode) for mode in modes or (Mode.POLICY,))
    return tiny.stage(sources=sources, **changes)


def count(wanted: StageConfig, **changes: object) -> float:
    recipe: Recipe = tiny.recipe(wanted, **changes)
    return step_flops(recipe, wanted)


def test_another_layer_adds_what_a_count_by_hand_gives() -> None:
    """Of one expert. The backward pass takes twice the forward pass, as all that goes into a layer has a gradient."""
    step = stage(batch_size=2)
    one, two, three = (count(step, model=tiny.config("one", layers=layers)) for layers in (1, 2, 3))
    config = tiny.config("one")
    (expert,) = config.experts
    inner, L, M = config.heads * config.head_width, 8 + 1 + 4 + 16, config.text_tokens
    itself = 4 * expert.width * inner * L + 2 * L * L * inner
    across = 2 * expert.width * inner * (L + M) + 2 * L * M * inner
    forward = 2 * (itself + across + 2 * expert.width * expert.ffn_width * L)
    assert three - two == two - one == pytest.approx(3 * 2 * forward)


def test_twice_the_samples_are_twice_the_work() -> None:
    assert count(stage(batch_size=8)) == pytest.approx(2 * count(stage(batch_size=4)))


def test_batches_without_the_future_are_cheaper() -> None:
    whole, never, half = (count(stage(objective=ObjectiveConfig(future_share=share))) for share in (1.0, 0.0, 0.5))
    assert never < 0.6 * whole
    assert half == pytest.approx((whole + never) / 2)
    mixed = stage(Mode.POLICY, Mode.WORLD, objective=ObjectiveConfig(future_share=0.0))
    assert count(mixed) == pytest.approx(whole)  # a sample that is taught the future alone brings it back


def test_video_alone_has_no_actions() -> None:
    assert count(stage(Mode.VIDEO)) < count(stage(Mode.WORLD))
    taught = count(stage(Mode.WORLD, Mode.INVERSE), table=VIDEO_FIRST)
    assert taught == pytest.approx(count(stage()))


def test_parameters_are_those_of_the_model() -> None:
    for experts in ("one", "two"):
        assert parameters(tiny.config(experts)) == sum(p.numel() for p in tiny.model(experts).parameters())
