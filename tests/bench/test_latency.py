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
from actwam.tokens import ACTION_CENTERED, ACTION_ONLY, BIDIRECTIONAL, JOINT, UNCOUPLED, VIDEO_FIRST, Table
from actwam.types import Group, Memory

OBS = Group.OBSERVATION


@cache
def tiny_policy(
    offsets: tuple[int, ...] = tiny.OFFSETS, table: Table = ACTION_CENTERED, history: tuple[int, ...] = ()
) -> Policy:
    window = Window(action_horizon=tiny.HORIZON, future_offsets=offsets, history_offsets=history)
    checkpoint = tiny.checkpoint(window=window, table=table)
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
    act = Policy.act_batch

    def recorded(self: Policy, *args: object, **kwargs: object) -> object:
        calls.append((self.table.name, self.checkpoint is policy.checkpoint))
        return act(self, *args, **kwargs)

    monkeypatch.setattr(Policy, "act_batch", recorded)
    measure_latency(policy, observation(), repeats=2, warmup=1)
    assert calls == [("ACTION_CENTERED", True), (JOINT.name, True)] * 3


def test_percentiles_leave_out_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    times: Iterator[float] = iter([900.0, 900.0, *(float(i // 2) for i in range(2, 204))])
    monkeypatch.setattr(latency, "_time", lambda act, call, device: next(times))
    found = measure_latency(tiny_policy(), observation(), repeats=101, warmup=1)
    assert (found["joint"].p50, found["joint"].p95, found["joint"].p99) == (51.0, 96.0, 100.0)
    assert found["joint"].mean == pytest.approx(51.0)


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one repeat"):
        measure_latency(tiny_policy(), observation(), repeats=0, warmup=1)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (ACTION_CENTERED, {"action_only": 4, "joint": 20}),
        (UNCOUPLED, {"action_only": 4, "joint": 20}),
        (JOINT, {"joint": 20}),
        (VIDEO_FIRST, {"video_first": 20, "joint": 20}),
        (BIDIRECTIONAL, {"bidirectional": 29, "joint": 20}),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_case_is_called_what_it_is(table: Table, expected: dict[str, int]) -> None:
    found = measure_latency(tiny_policy(table=table), observation(), repeats=1, warmup=1)
    assert {name: case.tokens_denoised for name, case in found.items()} == expected


@pytest.mark.parametrize("table", [ACTION_ONLY, ACTION_CENTERED], ids=lambda table: table.name)
def test_without_a_future_there_is_action_only_decoding_alone(table: Table) -> None:
    found = measure_latency(tiny_policy((), table), observation(), repeats=2, warmup=1)
    assert {name: case.tokens_denoised for name, case in found.items()} == {"action_only": 4}
    assert set(group_lengths(tiny_policy((), table), observation())) == {OBS, Group.STATE, Group.ACTION}


def test_a_policy_that_looks_back_is_handed_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, lengths = tiny_policy(table=JOINT, history=(-4, -2)), []
    act = Policy.act_batch

    def recorded(self: Policy, observations: object, seeds: object, memories: list[Memory | None]) -> object:
        lengths.append(0 if memories[0] is None else memories[0].seen.shape[2])
        return act(self, observations, seeds, memories)

    monkeypatch.setattr(Policy, "act_batch", recorded)
    found = measure_latency(policy, observation(), repeats=4, warmup=1)
    assert lengths == [0, 1, 2, 3, 2]  # of three the newer half of what training showed is kept: one, and the present
    assert {name: case.tokens_denoised for name, case in found.items()} == {"joint": 20}  # history is not denoised
    assert group_lengths(policy, observation())[Group.HISTORY] == 2 * 8
