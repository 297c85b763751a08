"""Every way to act with the same weights, timed in one run and held against what the machine could do at best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from actwam.bench.latency import Act, acting, group_lengths, launched_one_by_one, summary, take_turns
from actwam.bench.parts import time_parts
from actwam.bench.roofline import Rates, floor, measure_rates, products_of
from actwam.bench.shapes import random_observation
from actwam.policy import Policy
from actwam.sampler import Exact
from actwam.tokens import JOINT, VIDEO_FIRST, denoised, plan
from actwam.types import Group, Observation

OWN, RELEASED, PACKAGED = "own", "own, as released", "own, packaged"
"""What a policy does; what the released code of GWP-0 does, which computes the context again at every step; and what
the runner of `actwam package` does, for one observation at a time.
"""
COMPILED, NO_GRAPH = "own, compiled", "own, no graph"
"""With blocks from `torch.compile`; and on a GPU, where a policy's own way is one CUDA graph, kernel by kernel."""
NOTHING = Exact(context=False, first_step=False, levels=False, room=False, graph=False)
JOINTLY = {"joint": JOINT, "video first": VIDEO_FIRST}

Actions = Float[np.ndarray, "B K A"]
"""Normalised."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`batches` are how many observations one call takes; the first is that of all ways, the others of the policy's own
    alone. Warm-up calls come before the timed ones of every case.
    """

    batches: tuple[int, ...] = (1,)
    repeats: int = 50
    warmup: int = 5
    compiled: bool = False
    """Also as `Policy.compiled` does it, which takes minutes to compile."""

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1:
            given = ", ".join(map(str, self.batches)) or "none"
            raise ValueError(f"a call takes at least one observation, not {given}")


@dataclass(frozen=True)
class Case:
    """A way to act, by name, with weights in a precision. `policy` does the same in PyTorch; `actions` computes what
    should be the same in every way, from the same noise, where this is one of those.
    """

    way: str
    precision: str
    policy: Policy
    act: Act
    actions: Callable[[], Actions] | None


def time_ways(
    policies: Mapping[str, Policy],
    settings: Settings,
    progress: Callable[[str, int, int], None],
    runners: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Time one policy's weights, in the precisions that name its versions, and its package's `runners` where there are
    any. The JSON object of `actwam bench`:

    `cases`: way, precision, `latency` (`Latency.to_json`), `floor_ms` and `times_floor`, and for the policy's own
    decoding `deviation`, by how much a normalised action differs at most from the first precision's, decoded as
    released, as a share of the largest one. By precision `parts`, what `time_parts` says, and `rates`. And
    `parameters`, `tokens`, `num_steps`, `settings`.
    """
    first = next(iter(policies.values()))
    seen = [random_observation(first.robot.embodiment, seed) for seed in range(max(settings.batches))]
    one, total = seen[: settings.batches[0]], len(settings.batches) + 1
    rates = {precision: _rates(policy, one) for precision, policy in policies.items()}
    reference = _actions(replace(first, exact=NOTHING), seen)
    found = _measured(_all_ways(policies, one, runners or {}, settings.compiled), one, settings, rates, reference)
    progress("bench", 1, total)
    for done, batch in enumerate(settings.batches[1:], 2):
        own = [_case(OWN, precision, policy, seen[:batch]) for precision, policy in policies.items()]
        found += _measured(own, seen[:batch], settings, rates, reference)
        progress("bench", done, total)
    repeats = {"repeats": settings.repeats, "warmup": settings.warmup}
    parts = {precision: time_parts(policy, one, **repeats) for precision, policy in policies.items()}
    progress("bench", total, total)
    return {
        "cases": found,
        "parts": parts,
        "rates": {precision: each.to_json() for precision, each in rates.items()},
        "parameters": sum(parameter.numel() for parameter in first.checkpoint.model.parameters()),
        "tokens": {group.value: length for group, length in group_lengths(first, seen[0]).items()},
        "num_steps": first.sampling.num_steps,
        "settings": asdict(settings),
    }


def _all_ways(
    policies: Mapping[str, Policy], seen: Sequence[Observation], runners: Mapping[str, Any], compiled: bool
) -> list[Case]:
    cases = []
    for precision, policy in policies.items():
        cases.append(_case(OWN, precision, policy, seen))
        if policy.device.type == "cuda":
            cases.append(_case(NO_GRAPH, precision, launched_one_by_one(policy), seen))
        if compiled:
            other = policy.compiled()
            cases.append(Case(COMPILED, precision, policy, acting(other, seen), partial(_actions, other, seen)))
        if precision in runners and len(seen) == 1:
            cases.append(_packaged(runners[precision], precision, policy, seen[0]))
        cases.append(_case(RELEASED, precision, replace(policy, exact=NOTHING), seen))
        if Group.FUTURE in group_lengths(policy, seen[0]):
            jointly = {way: replace(policy, table=table) for way, table in JOINTLY.items()}
            cases += [Case(way, precision, other, acting(other, seen), None) for way, other in jointly.items()]
    return cases


def _case(way: str, precision: str, policy: Policy, seen: Sequence[Observation]) -> Case:
    return Case(way, precision, policy, acting(policy, seen), partial(_actions, policy, seen))


def _packaged(runner: Any, precision: str, policy: Policy, seen: Observation) -> Case:
    asked = seen.images, seen.state, seen.instruction

    def actions() -> Actions:
        encoded = policy.encode([seen])
        noise = policy.noise(denoised(plan(policy.table, [Group.ACTION], encoded.given)), encoded, [0])
        found = runner.act(*asked, noise={group.value: value.cpu().numpy() for group, value in noise.items()})
        return policy.robot.model_action(found[None], seen.state[None])

    return Case(PACKAGED, precision, policy, lambda call: runner.act(*asked, seed=call), actions)


def _measured(
    cases: Sequence[Case],
    seen: Sequence[Observation],
    settings: Settings,
    rates: Mapping[str, Rates],
    reference: Actions,
) -> list[dict[str, Any]]:
    """These cases, which take turns."""
    acts = {f"{case.precision} {case.way}": case.act for case in cases}
    times = take_turns(acts, cases[0].policy.device, repeats=settings.repeats, warmup=settings.warmup)
    expected, found = reference[: len(seen)], []
    for case in cases:
        latency = summary(case.policy, times[f"{case.precision} {case.way}"], seen)
        best = floor(products_of(case.policy, seen), rates[case.precision])
        differs = None if case.actions is None else np.abs(case.actions() - expected).max() / np.abs(expected).max()
        found.append(
            {
                "way": case.way,
                "precision": case.precision,
                "latency": latency.to_json(),
                "floor_ms": best,
                "times_floor": latency.p50 / best,
                "deviation": None if differs is None else float(differs),
            }
        )
    return found


def _rates(policy: Policy, seen: Sequence[Observation]) -> Rates:
    nbytes = sum(product.bytes for product in products_of(policy, seen))
    return measure_rates(policy.device, next(policy.checkpoint.model.parameters()).dtype, nbytes)


def _actions(policy: Policy, seen: Sequence[Observation]) -> Actions:
    chunks, _ = policy.act_batch(seen, range(len(seen)))
    states = np.stack([observation.state for observation in seen])
    return policy.robot.model_action(np.stack([chunk.actions for chunk in chunks]), states)
