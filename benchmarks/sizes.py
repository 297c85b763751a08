"""Model sizes on this machine: training speed, and the time to act against joint decoding. Random weights.

    python benchmarks/sizes.py [OUT.json]

Every row is one model with the token counts of `recipes/metaworld.py` but for its number of future frames. Times are
medians of calls of the sampler at batch 1 (no picture, no codec); training is fp32, batch 64, best of several steps.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from actwam.model.config import ExpertConfig, one_expert, two_experts
from actwam.model.transformer import GroupInput, WorldActionTransformer
from actwam.provenance import provenance
from actwam.recipes.metaworld import laptop
from actwam.sampler import sample
from actwam.tokens import ACTION_CENTERED, JOINT, Table
from actwam.types import Group

BATCH = 64
SIZES: dict[str, tuple[int, tuple[ExpertConfig, ...], int]] = {
    "one expert, 6 layers of 128, 2 frames": (6, one_expert(128, 512), 2),
    "one expert, 6 layers of 128, 8 frames": (6, one_expert(128, 512), 8),
    "two experts, 4 layers of 160 and 96, 8 frames": (4, two_experts((160, 640), (96, 384)), 8),
    "two experts, 4 layers of 192 and 96, 4 frames": (4, two_experts((192, 768), (96, 384)), 4),
    "two experts, 4 layers of 192 and 96, 8 frames": (4, two_experts((192, 768), (96, 384)), 8),
    "two experts, 4 layers of 256 and 96, 4 frames": (4, two_experts((256, 1024), (96, 384)), 4),
}


def median_ms(work: Callable[[], object], repeats: int = 30, warmup: int = 5) -> float:
    """Median milliseconds of a call."""
    times = []
    for i in range(warmup + repeats):
        start = time.perf_counter()
        work()
        if i >= warmup:
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def inputs(frames: int, batch: int) -> list[GroupInput]:
    """Random groups of the laptop recipe, with `frames` future frames."""
    recipe = laptop()
    channels, grid = recipe.codec.channels, (6, 4)
    shapes = {
        Group.OBSERVATION: (channels, 1, *grid),
        Group.STATE: (1, recipe.model.state_width),
        Group.ACTION: (recipe.window.action_horizon, recipe.model.action_width),
        Group.FUTURE: (channels, frames, *grid),
    }
    noisy = (Group.ACTION, Group.FUTURE)
    return [
        GroupInput(group, torch.randn(batch, *shape), torch.full((batch, 1), 0.5 if group in noisy else 0.0))
        for group, shape in shapes.items()
        if frames or group is not Group.FUTURE
    ]


def samples_per_second(model: WorldActionTransformer, frames: int) -> float:
    """Training steps of 64 samples with three distinct instructions, the best of six."""
    items, robots = inputs(frames, BATCH), torch.zeros(BATCH, dtype=torch.long)
    text = torch.randn(3, model.config.text_tokens, model.config.text_width)
    rows = torch.randint(0, 3, (BATCH,))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        velocities = model(items, model.text_context(text).select(rows), robots, ACTION_CENTERED)
        torch.stack([v.square().mean() for v in velocities.values()]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        best = min(best, time.perf_counter() - start)
    return BATCH / best


def decoding_ms(model: WorldActionTransformer, frames: int) -> dict[str, float]:
    """Milliseconds to obtain a chunk: actions alone, and actions with the future."""
    items = inputs(frames, 1)
    with torch.inference_mode():
        text = model.text_context(torch.randn(1, model.config.text_tokens, model.config.text_width))

    def act(table: Table) -> None:
        sample(
            model,
            table,
            given={item.group: item.value for item in items[:2]},
            noise={item.group: item.value for item in items[2:]},
            wanted=[Group.ACTION],
            text=text,
            embodiment=torch.zeros(1, dtype=torch.long),
            sampling=laptop().sampling,
        )

    return {
        "action_only": median_ms(lambda: act(ACTION_CENTERED)),
        "joint": median_ms(lambda: act(JOINT)),
    }


def main() -> None:
    rows = {}
    for name, (layers, experts, frames) in SIZES.items():
        torch.manual_seed(0)
        model = WorldActionTransformer(replace(laptop().model, layers=layers, experts=experts))
        speed = {f"train_{what}": samples_per_second(model, n) for what, n in (("with", frames), ("without", 0))}
        times = decoding_ms(model.eval(), frames)
        parameters = sum(p.numel() for p in model.parameters())
        ratio = times["joint"] / times["action_only"]
        rows[name] = {"parameters": parameters, **speed, **times, "ratio": ratio}
        print(name, {key: round(value, 2) for key, value in rows[name].items()}, flush=True)
    if len(sys.argv) > 1:
        result = {"rows": rows, "threads": torch.get_num_threads(), "provenance": provenance()}
        Path(sys.argv[1]).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
