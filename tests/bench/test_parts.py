"""The parts of a call: which there are, how often each comes, and that nothing is left behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch

from actwam.bench.parts import REST, time_parts
from actwam.bench.ways import NOTHING
from actwam.policy import Policy
from actwam.sampler import Exact

STEPS = tiny.SAMPLING.num_steps
AROUND = {"picture and state": 2, "codec": 1, "actions": 1, REST: 1}
"""Two observations are seen one by one, and encoded together."""


def policy() -> Policy:
    checkpoint = tiny.checkpoint()
    return Policy(checkpoint, checkpoint.robot("robot_0"), checkpoint.table, torch.device("cpu"))


@pytest.mark.parametrize(
    ("exact", "expected"),
    [
        (Exact(), {"context and first step": 1, "steps": STEPS - 1}),
        (Exact(first_step=False), {"context": 1, "steps": STEPS}),
        (NOTHING, {"steps": STEPS}),
    ],
)
def test_a_call_has_these_parts(exact: Exact, expected: dict[str, int]) -> None:
    parts = time_parts(replace(policy(), exact=exact), [tiny.observation()] * 2, repeats=3, warmup=1)
    assert {name: part["times"] for name, part in parts.items()} == AROUND | expected
    assert all(0 < part["p50"] <= part["p95"] <= part["p99"] for part in parts.values())


def test_nothing_watches_afterwards() -> None:
    made = policy()
    owners = (made.robot, made.checkpoint.codec, made.checkpoint.model)
    before = [set(vars(owner)) for owner in owners]
    time_parts(made, [tiny.observation()], repeats=1, warmup=1)
    with pytest.raises(ValueError, match="state must be"):
        time_parts(made, [replace(tiny.observation(), state=tiny.observation().state[:1])], repeats=1, warmup=1)
    assert [set(vars(owner)) for owner in owners] == before
