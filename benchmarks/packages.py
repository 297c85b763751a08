"""A policy in PyTorch against its package in OpenVINO, taking turns in one run.

    python benchmarks/packages.py [OUT.json] [--shapes tiny small] [--layers N] [--threads 1 2]

Random weights; from pictures of the cameras to actions in the robot's units, in float32 and bfloat16. The deviation is
the largest difference from PyTorch in float32 with the same noise, as a share of the largest action.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actwam.bench.shapes import random_observation, random_policy, shape_named
from actwam.deploy.package import write_package
from actwam.model.files import DTYPES
from actwam.policy import Policy
from actwam.provenance import provenance
from actwam.types import Group
from actwam_runner import Runner

WARMUP, REPEATS = 5, 50


def measure(policies: dict[str, Policy], folder: Path, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    first = policies["fp32"]
    seen = random_observation(first.robot.embodiment)
    noise = {g.value: each.numpy() for g, each in first.noise([Group.ACTION], first.encode([seen]), [0]).items()}
    acts: dict[str, Callable[[], np.ndarray]] = {
        f"policy {name}": lambda policy=policy: policy.act(seen).actions for name, policy in policies.items()
    }
    for name in policies:
        runner = Runner(folder, precision=name, threads=threads)
        acts[f"package {name}"] = lambda runner=runner: runner.act(
            seen.images, seen.state, seen.instruction, noise=noise
        )
    times: dict[str, list[float]] = {name: [] for name in acts}
    for call in range(WARMUP + REPEATS):
        for name, act in acts.items():
            start = time.perf_counter()
            act()
            if call >= WARMUP:
                times[name].append(1e3 * (time.perf_counter() - start))
    expected = acts["policy fp32"]()
    rows = {}
    for name, act in acts.items():
        p50, p95, p99 = (float(value) for value in np.percentile(times[name], [50, 95, 99]))
        deviation = float(np.abs(act() - expected).max() / np.abs(expected).max())
        rows[name] = {"p50": p50, "p95": p95, "p99": p99, "deviation": deviation}
        print(
            f"  {threads} threads  {name:<14} p50 {p50:8.2f} ms  p99 {p99:8.2f}  deviation {deviation:.1e}", flush=True
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--shapes", nargs="+", default=["tiny", "small"])
    parser.add_argument("--layers", type=int)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for name in options.shapes:
        shape = shape_named(name, options.layers)
        policies = {precision: random_policy(shape, dtype=dtype) for precision, dtype in DTYPES.items()}
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            write_package(policies["fp32"], [random_observation(shape.robot).instruction], Path(folder) / "package")
            written = time.perf_counter() - start
            size = sum(path.stat().st_size for path in (Path(folder) / "package").iterdir()) / 1e6
            rows = {threads: measure(policies, Path(folder) / "package", threads) for threads in options.threads}
        results[name] = {"write_s": written, "package_mb": size, "threads": rows}
    found = {
        "results": results,
        "layers": options.layers,
        "repeats": REPEATS,
        "warmup": WARMUP,
        "provenance": provenance(),
    }
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
