"""GWP-0.5 at its full width with random weights: does it load, act in bfloat16, and how far is that from float32?

    python benchmarks/full_width.py [OUT.json] [--layers N] [--device cuda]

On a GPU all 30 layers (12 GB in bfloat16), on a CPU 2 of them, with the codec at full size. A checkpoint is written in
float32, read in both precisions, and asked for the same action chunk of the same observation. Weights are drawn so that
every layer matters; the deviation is over normalised actions, whose scale is 1.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actwam.bench.shapes import random_observation, random_policy, shape_named
from actwam.checkpoint import save
from actwam.policy import Policy
from actwam.provenance import provenance


def act(folder: Path, precision: Any, device: str) -> tuple[np.ndarray, dict[str, float]]:
    """The normalised actions, and what they cost. The first call is not timed."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    policy = Policy.load(folder, device=device, precision=precision)
    loaded = time.perf_counter() - start
    seen = random_observation(policy.robot.embodiment)
    chunk = policy.act(seen)
    start = time.perf_counter()
    policy.act(seen)
    seconds = time.perf_counter() - start
    actions = policy.robot.model_action(chunk.actions, seen.state)
    costs = {"load_s": round(loaded, 2), "act_s": round(seconds, 3)}
    if device != "cpu":  # a CPU process has made the model before, and its peak is that
        costs["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return actions, costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layers", type=int, default=30 if torch.cuda.is_available() else 2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = random_policy(shape_named("gwp05", options.layers)).checkpoint
        save(made, Path(folder) / "checkpoint")
        parameters = sum(p.numel() for p in made.model.parameters())
        del made
        half, half_cost = act(Path(folder) / "checkpoint", "bf16", options.device)
        whole, whole_cost = act(Path(folder) / "checkpoint", "fp32", options.device)
    deviation = np.abs(half - whole)
    results = {
        "layers": options.layers,
        "parameters": parameters,
        "device": options.device,
        "bf16": half_cost,
        "fp32": whole_cost,
        "largest_deviation": float(deviation.max()),
        "mean_deviation": float(deviation.mean()),
        "largest_action": float(np.abs(whole).max()),
        "provenance": provenance(),
    }
    text = json.dumps(results, indent=2) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
