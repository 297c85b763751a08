"""How long acting takes: action-only against joint decoding, of the same weights in the same run.

Inside the timer is everything between an observation and an action chunk: composing the picture, the codec,
the normalisation, encoding the context, all Euler steps, and the inverse transforms. Outside it are
rendering, and the embedding of the instruction, which a policy does once per sentence and the warm-up has
done.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from actwam.policy import Policy
from actwam.tokens import JOINT, plan, tokens_denoised
from actwam.types import Group, Observation


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call over `n` calls, the tokens that pass through the model at every Euler step,
    and what it ran on."""

    p50: float
    p95: float
    p99: float
    mean: float
    n: int
    tokens_denoised: int
    threads: int
    device: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_latency(
    policy: Policy, observation: Observation, *, repeats: int = 200, warmup: int = 10
) -> dict[str, Latency]:
    """Time `policy.act` on one observation: `action_only` with the policy's own table, `joint` with `JOINT`.

    The cases take turns, so that a machine that gets slower or faster meanwhile does it to both. Raises
    ValueError when there is nothing to repeat, and when the checkpoint has no future to denoise jointly.
    """
    if repeats < 1 or warmup < 1:
        raise ValueError(f"latency needs at least one repeat and one warm-up call, not {repeats} and {warmup}")
    if not policy.checkpoint.window.future_offsets:
        raise ValueError("this checkpoint predicts no future frames: there is no joint decoding to compare with")
    cases = {"action_only": policy, "joint": replace(policy, table=JOINT)}
    times: dict[str, list[float]] = {name: [] for name in cases}
    for call in range(warmup + repeats):
        for name, case in cases.items():
            elapsed = _time_act(case, observation, seed=call)
            if call >= warmup:
                times[name].append(elapsed)
    lengths = group_lengths(policy, observation)
    return {name: _summary(case, times[name], lengths) for name, case in cases.items()}


def group_lengths(policy: Policy, observation: Observation) -> dict[Group, int]:
    """How many tokens of each group this policy's sequence has: what is observed, felt, done and imagined."""
    checkpoint = policy.checkpoint
    latents = policy.encode([observation]).given[Group.OBSERVATION]
    height, width = checkpoint.model.config.patch
    frame = (latents.shape[3] // height) * (latents.shape[4] // width)
    return {
        Group.OBSERVATION: latents.shape[2] * frame,
        Group.STATE: 1,
        Group.ACTION: checkpoint.window.action_horizon,
        Group.FUTURE: checkpoint.window.latent_frames(checkpoint.codec.time_stride) * frame,
    }


def _time_act(policy: Policy, observation: Observation, seed: int) -> float:
    """Milliseconds of one call, with the device idle before and after."""
    _wait_for(policy.device)
    start = time.perf_counter()
    policy.act(observation, seed=seed)
    _wait_for(policy.device)
    return 1e3 * (time.perf_counter() - start)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _summary(policy: Policy, times: list[float], lengths: Mapping[Group, int]) -> Latency:
    stages = plan(policy.table, [Group.ACTION], [Group.OBSERVATION, Group.STATE])
    p50, p95, p99 = (float(value) for value in np.percentile(times, [50, 95, 99]))
    return Latency(
        p50=p50,
        p95=p95,
        p99=p99,
        mean=float(np.mean(times)),
        n=len(times),
        tokens_denoised=tokens_denoised(stages, lengths),
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name(policy.device) if policy.device.type == "cuda" else policy.device.type,
    )
