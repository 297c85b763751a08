"""How long the parts of a call take: the picture, the codec, the context, every step, the way back to actions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from actwam.bench.latency import acting, launched_one_by_one, wait_for
from actwam.policy import Policy
from actwam.types import Observation

REST = "the rest"
"""What is in no part: noise, schedules, the instruction's keys and values, Euler steps, Python between the parts."""


def time_parts(
    policy: Policy, observations: Sequence[Observation], *, repeats: int, warmup: int
) -> dict[str, dict[str, float]]:
    """`p50`, `p95` and `p99` of the milliseconds that each part takes in a call, and how many `times` it comes in one.

    The device is waited for at the ends of every part, so that on a GPU the sum is more than a call takes otherwise.
    """
    calls: list[dict[str, list[float]]] = []
    act = acting(launched_one_by_one(policy), observations)
    for call in range(warmup + repeats):
        start = time.perf_counter()
        with _watched(policy) as spent:
            act(call)
        total = 1e3 * (time.perf_counter() - start)
        spent[REST] = [total - sum(sum(each) for each in spent.values())]
        calls.append(spent)
    names = dict.fromkeys(name for spent in calls[warmup:] for name in spent)
    return {name: _percentiles([spent[name] for spent in calls[warmup:] if name in spent]) for name in names}


def _percentiles(spent: list[list[float]]) -> dict[str, float]:
    p50, p95, p99 = np.percentile([sum(each) for each in spent], [50, 95, 99])
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "times": len(spent[0])}


@contextmanager
def _watched(policy: Policy) -> Iterator[dict[str, list[float]]]:
    """While this is entered, the milliseconds of every part are noted as they pass."""
    spent: dict[str, list[float]] = {}
    checkpoint = policy.checkpoint
    parts: list[tuple[Any, str, str]] = [
        (policy.robot, "observe", "picture and state"),
        (checkpoint.codec, "encode", "codec"),
        (checkpoint.model, "encode", "context"),
        (checkpoint.model, "begin", "context and first step"),
        (checkpoint.model, "forward", "steps"),
        (policy.robot, "robot_action", "actions"),
    ]

    def timed(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            wait_for(policy.device)
            start = time.perf_counter()
            result = method(*arguments, **named)
            wait_for(policy.device)
            spent.setdefault(name, []).append(1e3 * (time.perf_counter() - start))
            return result

        return call

    for owner, method, name in parts:
        vars(owner)[method] = timed(name, getattr(owner, method))  # which stands before the one of its class
    try:
        yield spent
    finally:
        for owner, method, _ in parts:
            del vars(owner)[method]
