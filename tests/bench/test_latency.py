"""What is timed and counted. No test says how long anything may take."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import tiny
import torch
from tiny import observation

from actwam.bench import latency
from actwam.bench.latency import group_lengths, measure_latency
from actwam.data.loader import Window
from actwam.policy import Policy
from actwam.tokens import JOINT
from actwam.types import Group


@cache
def tiny_policy(offsets: tuple[int, ...] = tiny.OFFSETS) -> Policy:
    window = Window(action_horizon=tiny.HORIZON, future_offsets=offsets)
    checkpoint = tiny.checkpoint(window=window)
    return Policy(checkpoint, checkpoint.robot("robot_0"), checkpoint.table, torch.device("cpu"))


def test_both_cases_are_measured_and_their_tokens_counted() -> None:
    found = measure_latency(tiny_policy(), observation(), repeats=7, warmup=1)
    assert list(found) == ["action_only", "joint"]
    for case in found.values():
        assert 0 < case.p50 <= case.p95 <= case.p99
        assert case.n == 7
        assert case.threads == torch.get_num_threads()
        assert case.device == "cpu"
    assert found["action_only"].tokens_denoised == 4
    assert found["joint"].tokens_denoised == 4 + 2 * 8
    assert set(found["joint"].to_json()) >= {"p50", "p95", "p99", "mean", "n", "tokens_denoised"}


def test_group_lengths_count_tokens() -> None:
    expected = {Group.OBSERVATION: 8, Group.STATE: 1, Group.ACTION: 4, Group.FUTURE: 16}
    assert group_lengths(tiny_policy(), observation()) == expected


def test_cases_take_turns_on_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, calls = tiny_policy(), []
    act = Policy.act

    def recorded(self: Policy, *args: object, **kwargs: object) -> object:
        calls.append((self.table.name, self.checkpoint is policy.checkpoint))
        return act(self, *args, **kwargs)

    monkeypatch.setattr(Policy, "act", recorded)
    measure_latency(policy, observation(), repeats=2, warmup=1)
    assert calls == [("ACTION_CENTERED", True), (JOINT.name, True)] * 3


def test_percentiles_leave_out_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    times: Iterator[float] = iter([900.0, 900.0, *(float(i // 2) for i in range(2, 204))])
    monkeypatch.setattr(latency, "_time_act", lambda policy, observation, seed: next(times))
    found = measure_latency(tiny_policy(), observation(), repeats=101, warmup=1)
    assert (found["joint"].p50, found["joint"].p95, found["joint"].p99) == (51.0, 96.0, 100.0)
    assert found["joint"].mean == pytest.approx(51.0)


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one repeat"):
        measure_latency(tiny_policy(), observation(), repeats=0, warmup=1)
    with pytest.raises(ValueError, match="predicts no future"):
        measure_latency(tiny_policy(()), observation(), repeats=1, warmup=1)
