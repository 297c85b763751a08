"""How long a training step takes, against one as the released trainers take it, in turns within one run.

    python benchmarks/training_step.py [--shapes tiny small] [--layers 4] [--batch 8] [--device cuda] [OUT.json]

The twin (`tests/train/plain_step.py`) encodes its pictures in the step, the present one twice, embeds a noise level for
every token and every sample's instruction, and sends attention through one dense additive mask. Both compute the same
losses, from the same weights and noise, and both end with the same clipping, AdamW and moving average. Pictures, states
and actions are random, weights too.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from actwam.bench.latency import wait_for
from actwam.bench.shapes import INSTRUCTION, Shape, random_policy, shape_named
from actwam.checkpoint import Checkpoint
from actwam.draws import Draws
from actwam.model.files import DTYPES
from actwam.provenance import provenance
from actwam.recipes.metaworld import laptop
from actwam.train.config import Precision, StageConfig
from actwam.train.state import TrainState
from actwam.train.step import Part, finish_step, train_step
from actwam.types import Batch, Mode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "train"))
from plain_step import plain_losses

Step = Callable[[int], dict[str, Tensor]]


def random_batch(checkpoint: Checkpoint, size: int) -> tuple[Batch, Tensor]:
    """A batch of `size` samples, its latents made beforehand, and the pictures (B, T, H, W, 3) they are of."""
    random, config, layout = np.random.default_rng(0), checkpoint.model.config, checkpoint.robots[0].layout
    frames = 1 + len(checkpoint.window.future_offsets)
    pictures = random.integers(0, 256, (size, frames, layout.height, layout.width, 3), np.uint8)
    latents = checkpoint.future.normalize(checkpoint.codec.encode(torch.from_numpy(pictures)).cpu().numpy())
    horizon = checkpoint.window.action_horizon
    drawn = {"state": (size, config.state_width), "action": (size, horizon, config.action_width)}
    values = {name: torch.from_numpy(random.normal(size=shape).astype(np.float32)) for name, shape in drawn.items()}
    batch = Batch(
        modes=(Mode.POLICY,) * size,
        history=torch.zeros(size, latents.shape[1], 0, *latents.shape[3:]),
        history_valid=torch.ones(size, 0, dtype=torch.bool),
        state_valid=torch.ones(size, dtype=torch.bool),
        future_valid=torch.ones(size, latents.shape[2] - 1, dtype=torch.bool),
        latents=torch.from_numpy(latents),
        action_valid=torch.ones(size, horizon, config.action_width, dtype=torch.bool),
        instructions=(INSTRUCTION,) * size,
        embodiment=torch.zeros(size, dtype=torch.long),
        **values,
    )
    return batch, torch.from_numpy(pictures)


def steps(shape: Shape, stage: StageConfig, precision: Precision, device: str) -> dict[str, Step]:
    """Ours and the plain one, each with weights and an optimizer of its own."""
    ours = random_policy(shape, device=device).checkpoint
    plain = replace(ours, model=copy.deepcopy(ours.model))
    batch, pictures = random_batch(ours, stage.batch_size)
    batch = batch.to(torch.device(device))
    states = [TrainState.start(each.model.train(), stage) for each in (ours, plain)]
    autocast = DTYPES[precision] if precision == "bf16" else None

    def plain_step(step: int) -> dict[str, Tensor]:
        draws = Draws((stage.seed, step), range(stage.batch_size))
        parts = plain_losses(plain, stage.objective, batch, pictures, draws, autocast)
        parts["loss"].backward()
        return finish_step(stage, plain.model, states[1], parts, step)

    parts = [Part(batch, range(stage.batch_size))]
    return {"ours": lambda step: train_step(stage, ours, states[0], parts, step, precision), "plain": plain_step}


def compare(name: str, precision: Precision, given: argparse.Namespace) -> dict[str, object]:
    """Milliseconds of the steps after the first, and by how much the losses differ at most, relative to the plain
    one's.
    """
    stage = laptop().stages[-1]
    objective = replace(stage.objective, future_share=1.0)  # the released trainers never leave the future out
    stage = replace(stage, batch_size=given.batch, steps=given.repeats + 1, objective=objective)
    both = steps(shape_named(name, given.layers), stage, precision, given.device)
    times, differs = {"ours": [], "plain": []}, 0.0
    for step in range(given.repeats + 1):
        losses = {}
        for which, take in both.items():
            start = time.perf_counter()
            losses[which] = take(step)
            wait_for(torch.device(given.device))
            if step:
                times[which].append(1e3 * (time.perf_counter() - start))
        differs = max(
            differs, *(float(abs(losses["ours"][k] / v - 1)) for k, v in losses["plain"].items() if "loss" in k)
        )
    p50 = {which: float(np.median(spent)) for which, spent in times.items()}
    print(f"{name:6} {precision} batch {given.batch}: ours {p50['ours']:8.1f} ms, plain {p50['plain']:8.1f} ms, "
          f"{p50['plain'] / p50['ours']:.2f} times; losses differ by {differs:.1e}")  # fmt: skip
    return {
        "shape": name,
        "layers": given.layers,
        "precision": precision,
        "batch": given.batch,
        "p50": p50,
        "samples_per_second": {which: 1e3 * given.batch / spent for which, spent in p50.items()},
        "times_plain": p50["plain"] / p50["ours"],
        "loss_differs": differs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="write the results here as JSON")
    parser.add_argument("--shapes", nargs="+", default=["tiny", "small"])
    parser.add_argument("--layers", type=int, help="a slice of each shape with so many")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found = [compare(name, precision, given) for name in given.shapes for precision in ("fp32", "bf16")]
    if given.out:
        settings = {"repeats": given.repeats, "device": given.device, "threads": given.threads}
        result = {"steps": found, **settings, "provenance": provenance()}
        given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
