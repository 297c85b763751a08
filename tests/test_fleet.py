"""Robots act together as each would alone, whatever the others are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from actwam.fleet import act_together
from actwam.policy import Policy
from actwam.sampler import Approximate
from actwam.tokens import ACTION_CENTERED, JOINT, Table
from actwam.types import Observation


def policy(table: Table = ACTION_CENTERED) -> Policy:
    checkpoint = tiny.checkpoint("two", table=table)
    return Policy(checkpoint, checkpoint.robot("robot_0"), table, torch.device("cpu"))


def asked() -> tuple[list[Policy], list[Observation], list[int]]:
    """Two robots in turns, one with an action fewer, which learns some relative to its state; three instructions."""
    names = ["robot_0", "robot_1", "robot_1", "robot_0", "robot_1"]
    first = policy()
    seen = [tiny.observation(i, tiny.robot(int(name[-1]))) for i, name in enumerate(names)]
    return [first.of_robot(name) for name in names], seen, [5, 7, 7, 1, 0]


def test_each_acts_as_it_would_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    policies, seen, seeds = asked()
    expected = [one.act(o, seed=s).actions for one, o, s in zip(policies, seen, seeds, strict=True)]
    with tiny.watched(policies[0].checkpoint.model) as passes:
        found = [chunk.actions for chunk in act_together(policies, seen, seeds)]
    assert len(passes) == tiny.SAMPLING.num_steps  # one call for all
    assert [each.shape for each in found] == [(tiny.HORIZON, n) for n in (3, 2, 2, 3, 2)]
    assert all(np.abs(a - b).max() < 1e-5 for a, b in zip(found, expected, strict=True))
    assert np.abs(found[1] - found[2]).max() > 1e-3  # the same robot and seed, another picture


def test_what_cannot_act_together_is_refused() -> None:
    policies, seen, seeds = asked()
    for other in (policy(), replace(policies[0], approximate=Approximate(num_steps=2))):
        with pytest.raises(ValueError, match="share a checkpoint, a table, a device and a schedule"):
            act_together([*policies[:4], other], seen, seeds)
    robot = policies[0].robot
    larger = replace(policies[0], robot=replace(robot, layout=replace(robot.layout, height=64)))
    unfelt = replace(policies[0], robot=replace(robot, embodiment=replace(robot.embodiment, state_names=())))
    for other in (larger, unfelt):
        with pytest.raises(ValueError, match="all or none have a state"):
            act_together([*policies[:4], other], seen, seeds)
    with pytest.raises(ValueError, match="5 policies, 4 observations and 5 seeds"):
        act_together(policies, seen[:4], seeds)
    with pytest.raises(ValueError, match="0 policies"):
        act_together([], [], [])
    with pytest.raises(ValueError, match="looks back, or imagines to act"):
        act_together([policy(JOINT)], seen[:1], [0])
    with pytest.raises(ValueError, match="cameras"):
        act_together(policies, [*seen[:4], Observation({}, seen[4].state, "push")], seeds)
