"""How long acting takes: a policy's own decoding against joint decoding, of the same weights in the same run.

Inside the timer is everything between an observation and an action chunk: composing the picture, the codec,
the normalisation, encoding the context, all Euler steps, and the inverse transforms. Outside it are
rendering, and the embedding of the instruction, which a policy does once per sentence and the warm-up has
done. A policy that looks back is handed its memory from call to call, as in an episode that does not end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from actwam.policy import Policy
from actwam.tokens import JOINT, NEVER_NOISY, Stage, plan, tokens_denoised
from actwam.types import Group, Memory, Observation


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call over `n` calls, each with `batch` observations, the tokens of one of them that pass
    through the model at every Euler step, and what it ran on."""

    p50: float
    p95: float
    p99: float
    mean: float
    n: int
    batch: int
    tokens_denoised: int
    threads: int
    device: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_latency(
    policy: Policy, observation: Observation, *, repeats: int = 200, warmup: int = 10
) -> dict[str, Latency]:
    """Time acting on one observation: `action_only`, or whatever the policy's own table is called that denoises more
    than actions, and `joint` with `JOINT`, if there is a future to denoise jointly. Raises as `time_policies` does.
    """
    lengths = group_lengths(policy, observation)
    cases = {_name(policy, lengths): policy}
    if Group.FUTURE in lengths:
        cases |= {"joint": replace(policy, table=JOINT)}
    return time_policies(cases, [observation], repeats=repeats, warmup=warmup)


def time_policies(
    policies: Mapping[str, Policy], observations: Sequence[Observation], *, repeats: int, warmup: int
) -> dict[str, Latency]:
    """Time acting of several policies on the same observations, all in one call, by name. Raises as `take_turns`."""
    acts = {name: acting(policy, observations) for name, policy in policies.items()}
    device = next(iter(policies.values())).device
    times = take_turns(acts, device, repeats=repeats, warmup=warmup)
    return {name: summary(policy, times[name], observations) for name, policy in policies.items()}


def launched_one_by_one(policy: Policy) -> Policy:
    """The same policy without a CUDA graph, so that its parts can be told apart."""
    return replace(policy, exact=replace(policy.exact, graph=False))


Act = Callable[[int], object]
"""The n-th call of something that acts."""


def acting(policy: Policy, observations: Sequence[Observation]) -> Act:
    """Call after call of an episode in which nothing ever happens: the memory is handed on, the noise is another."""
    memories: list[Memory | None] = [None] * len(observations)

    def act(call: int) -> None:
        seeds = range(call * len(observations), (call + 1) * len(observations))
        memories[:] = policy.act_batch(observations, seeds, memories)[1]

    return act


def take_turns(acts: Mapping[str, Act], device: torch.device, *, repeats: int, warmup: int) -> dict[str, list[float]]:
    """Milliseconds of the calls after the warm-up, by name. A machine that gets slower or faster meanwhile does it to
    all. Raises ValueError when there is nothing to repeat.
    """
    if repeats < 1 or warmup < 1:
        raise ValueError(f"latency needs at least one repeat and one warm-up call, not {repeats} and {warmup}")
    times: dict[str, list[float]] = {name: [] for name in acts}
    for call in range(warmup + repeats):
        for name, act in acts.items():
            elapsed = _time(act, call, device)
            if call >= warmup:
                times[name].append(elapsed)
    return times


def group_lengths(policy: Policy, observation: Observation) -> dict[Group, int]:
    """How many tokens of each group this policy's sequence has at most: what is remembered, observed, felt, done and
    imagined.
    """
    checkpoint = policy.checkpoint
    given = policy.encode([observation]).given
    latents = given[Group.OBSERVATION]
    height, width = checkpoint.model.config.patch
    frame = (latents.shape[3] // height) * (latents.shape[4] // width)
    window = checkpoint.window
    lengths = {
        Group.HISTORY: len(window.history_offsets) * frame,
        Group.OBSERVATION: latents.shape[2] * frame,
        Group.STATE: int(Group.STATE in given),
        Group.ACTION: window.action_horizon,
        Group.FUTURE: window.latent_frames(checkpoint.codec.time_stride) * frame,
    }
    return {group: length for group, length in lengths.items() if length}


def _stages(policy: Policy, lengths: Mapping[Group, int]) -> tuple[Stage, ...]:
    """What acting consists of."""
    return plan(policy.table, [Group.ACTION], NEVER_NOISY & lengths.keys())


def _name(policy: Policy, lengths: Mapping[Group, int]) -> str:
    denoised = frozenset[Group]().union(*(stage.denoise | stage.recompute for stage in _stages(policy, lengths)))
    return "action_only" if denoised == {Group.ACTION} else policy.table.name.lower()


def _time(act: Act, call: int, device: torch.device) -> float:
    """Milliseconds of one call, with the device idle before and after."""
    wait_for(device)
    start = time.perf_counter()
    act(call)
    wait_for(device)
    return 1e3 * (time.perf_counter() - start)


def wait_for(device: torch.device) -> None:
    """Until it has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summary(policy: Policy, times: list[float], observations: Sequence[Observation]) -> Latency:
    """Of the times of this policy's calls with these observations."""
    p50, p95, p99 = (float(value) for value in np.percentile(times, [50, 95, 99]))
    lengths = group_lengths(policy, observations[0])
    return Latency(
        p50=p50,
        p95=p95,
        p99=p99,
        mean=float(np.mean(times)),
        n=len(times),
        batch=len(observations),
        tokens_denoised=tokens_denoised(_stages(policy, lengths), lengths),
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name(policy.device) if policy.device.type == "cuda" else policy.device.type,
    )
