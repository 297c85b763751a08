"""Every way to act with the same weights, timed in one run and held against what the machine could do at best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from actwam.bench.latency import group_lengths, time_policies
from actwam.bench.parts import time_parts
from actwam.bench.roofline import Rates, floor, measure_rates, products_of
from actwam.bench.shapes import random_observation
from actwam.policy import Policy
from actwam.sampler import Exact
from actwam.tokens import JOINT, VIDEO_FIRST, Table
from actwam.types import Group, Observation

NOTHING = Exact(context=False, first_step=False, levels=False, room=False)


@dataclass(frozen=True)
class Way:
    """How a policy is decoded: with a table other than its own, or with fewer of the exact speed-ups."""

    name: str
    table: Table | None = None
    exact: Exact | None = None

    def of(self, policy: Policy) -> Policy:
        return replace(policy, table=self.table or policy.table, exact=self.exact or policy.exact)


OWN = Way("own")
RELEASED = Way("own, as released", exact=NOTHING)
"""As the released code of GWP-0 does it: the context is computed again at every step."""
JOINTLY = (Way("joint", JOINT), Way("video first", VIDEO_FIRST))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`batches` are how many observations one call takes; the first is that of all ways, the others of the policy's own
    alone. Warm-up calls come before the timed ones of every case.
    """

    batches: tuple[int, ...] = (1,)
    repeats: int = 50
    warmup: int = 5

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1:
            raise ValueError(
                f"a call takes at least one observation, not {', '.join(map(str, self.batches)) or 'none'}"
            )


def time_ways(
    policies: Mapping[str, Policy], settings: Settings, progress: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """Time one policy's weights, in the precisions that name its versions. The JSON object of `actwam bench`:

    `cases`: way, precision, `latency` (`Latency.to_json`), `floor_ms` and `times_floor`, and for the policy's own
    decoding `deviation`, by how much a normalised action differs at most from the first precision's, decoded as
    released, as a share of the largest one. By precision `parts`, what `time_parts` says, and `rates`. And
    `parameters`, `tokens`, `num_steps`, `settings`.
    """
    first = next(iter(policies.values()))
    seen = [random_observation(first.robot.embodiment, seed) for seed in range(max(settings.batches))]
    one = seen[: settings.batches[0]]
    bench = _Bench(
        policies, settings, _actions(RELEASED.of(first), seen), {p: _rates(policies[p], one) for p in policies}
    )
    jointly = JOINTLY if Group.FUTURE in group_lengths(first, seen[0]) else ()
    cases, total = bench.cases((OWN, RELEASED, *jointly), one), len(settings.batches) + 1
    progress("bench", 1, total)
    for done, batch in enumerate(settings.batches[1:], 2):
        cases += bench.cases((OWN,), seen[:batch])
        progress("bench", done, total)
    parts = {
        precision: time_parts(policy, one, repeats=settings.repeats, warmup=settings.warmup)
        for precision, policy in policies.items()
    }
    progress("bench", total, total)
    return {
        "cases": cases,
        "parts": parts,
        "rates": {precision: rates.to_json() for precision, rates in bench.rates.items()},
        "parameters": sum(parameter.numel() for parameter in first.checkpoint.model.parameters()),
        "tokens": {group.value: length for group, length in group_lengths(first, seen[0]).items()},
        "num_steps": first.checkpoint.sampling.num_steps,
        "settings": asdict(settings),
    }


@dataclass(frozen=True)
class _Bench:
    """What all cases have in common; `reference` are normalised actions."""

    policies: Mapping[str, Policy]
    settings: Settings
    reference: Float[np.ndarray, "B K A"]
    rates: Mapping[str, Rates]

    def cases(self, ways: Sequence[Way], seen: Sequence[Observation]) -> list[dict[str, Any]]:
        """These ways in all precisions, which take turns."""
        each = {(precision, way): way.of(policy) for precision, policy in self.policies.items() for way in ways}
        named = {f"{precision} {way.name}": policy for (precision, way), policy in each.items()}
        latencies = time_policies(named, seen, repeats=self.settings.repeats, warmup=self.settings.warmup)
        cases = []
        for (precision, way), policy in each.items():
            latency = latencies[f"{precision} {way.name}"]
            best = floor(products_of(policy, seen), self.rates[precision])
            expected = self.reference[: len(seen)]
            differs = np.abs(_actions(policy, seen) - expected).max() / np.abs(expected).max()
            cases.append(
                {
                    "way": way.name,
                    "precision": precision,
                    "latency": latency.to_json(),
                    "floor_ms": best,
                    "times_floor": latency.p50 / best,
                    "deviation": float(differs) if way.table is None else None,
                }
            )
        return cases


def _rates(policy: Policy, seen: Sequence[Observation]) -> Rates:
    nbytes = sum(product.bytes for product in products_of(policy, seen))
    return measure_rates(policy.device, next(policy.checkpoint.model.parameters()).dtype, nbytes)


def _actions(policy: Policy, seen: Sequence[Observation]) -> Float[np.ndarray, "B K A"]:
    """Normalised, from the same noise."""
    chunks, _ = policy.act_batch(seen, range(len(seen)))
    states = np.stack([observation.state for observation in seen])
    return policy.robot.model_action(np.stack([chunk.actions for chunk in chunks]), states)
