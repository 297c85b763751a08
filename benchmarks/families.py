"""How long each family takes to act, at one model size with 256 future tokens, all timed in one run.

    python benchmarks/families.py [--device cuda] [OUT.json]

Weights are random: time hangs on shapes and tables alone. Ten Euler steps, 16 actions, 64 tokens a picture, four
future pictures; one expert, as GWP-0, and two, as GWP-0.5.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

from actwam.bench.latency import time_policies
from actwam.bench.shapes import Shape, random_observation, random_policy
from actwam.data.loader import Window
from actwam.data.transforms import t_layout
from actwam.model.config import one_expert, two_experts
from actwam.provenance import provenance
from actwam.recipes.families import FAMILIES
from actwam.recipes.metaworld import compare
from actwam.sampler import Sampling
from actwam.train.compute import parameters
from actwam.train.config import Recipe

LAYERS = 8
EXPERTS = {"one": one_expert(256, 1024), "two": two_experts(visual=(256, 1024), action=(128, 512))}
LAYOUT = t_layout(128, 64, 64)
OFFSETS = (6, 12, 18, 24)
REPEATS, WARMUP = 30, 5


def recipe(family: str, experts: str) -> Recipe:
    """The family at the size of this benchmark."""
    small = compare(family)
    window = small.window
    return replace(
        small,
        model=replace(small.model, layers=LAYERS, heads=4, experts=EXPERTS[experts]),
        layouts=(LAYOUT,),
        window=Window(
            action_horizon=16,
            future_offsets=OFFSETS if window.future_offsets else (),
            history_offsets=window.history_offsets,
        ),
        sampling=Sampling(num_steps=10, action_shift=1.0, future_shift=1.0),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="write the results here as JSON")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    results = {}
    for experts in EXPERTS:
        recipes = {family: recipe(family, experts) for family in FAMILIES}
        shapes = {family: Shape.of(each) for family, each in recipes.items()}
        policies = {family: random_policy(shape, device=given.device) for family, shape in shapes.items()}
        observation = random_observation(shapes["ACTION_CENTERED"].robot)
        latencies = time_policies(policies, [observation], repeats=REPEATS, warmup=WARMUP)
        fastest = latencies["ACTION_CENTERED"].p50
        rows = {
            family: {**latency.to_json(), "times_action_centered": latency.p50 / fastest}
            for family, latency in latencies.items()
        }
        results[experts] = {"parameters": parameters(recipes["ACTION_CENTERED"].model), "families": rows}
        print(f"{experts}: {results[experts]['parameters']:,} parameters")
        for family, row in rows.items():
            print(
                f"  {family:<16} {row['tokens_denoised']:4d} tokens denoised  p50 {row['p50']:8.1f} ms  "
                f"{row['times_action_centered']:5.1f} x"
            )
    if given.out:
        settings = {"layers": LAYERS, "experts": {name: [asdict(e) for e in each] for name, each in EXPERTS.items()},
                    "offsets": OFFSETS, "repeats": REPEATS, "warmup": WARMUP}  # fmt: skip
        found = {"results": results, "settings": settings, "provenance": provenance()}
        given.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
