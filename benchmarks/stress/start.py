"""How soon training begins on the datasets of the demo, and what part of the time it then waits for data."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from actwam.demo import DEMO
from actwam.recipes.metaworld import IMAGE_SIZE, laptop
from actwam.train.loop import Run, train
from actwam.train.metrics import read_metrics
from benchmarks.stress.host import figure

STEPS = 60
SOON, WAITING = 20.0, 0.05
"""Seconds from starting a process to its first step, with nothing cached; and the share of the time of later steps."""


def run(n: int, seed: int) -> dict[str, Any]:
    """`n` times from nothing, and as often with everything cached; first the data are collected."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = {name: root / name for name in DEMO.collections}
        for name, collection in DEMO.collections.items():
            collection.collect(data[name], IMAGE_SIZE)
        seconds: dict[str, list[float]] = {"nothing cached": [], "cached": []}
        shares = []
        for turn in range(n):
            for way, times in seconds.items():
                out = root / f"{way} {turn}"
                times.append(_first_step(data, out, root / f"cache {turn}"))
                rows = read_metrics(out / "1-general" / "metrics.jsonl")
                shares += [row["data_wait_share"] for row in rows[1:]]  # the first began with nothing made beforehand
    return {
        "n": n,
        "seed": seed,
        "steps": STEPS,
        "first_step_s": {way: [round(each, 2) for each in times] for way, times in seconds.items()},
        "data_wait_share": {"mean": round(float(np.mean(shares)), 4), "most": round(float(np.max(shares)), 4)},
        "figures": {
            "seconds to the first step, the slowest": figure(max(seconds["nothing cached"]), at_most=SOON),
            "share of the time that data were waited for": figure(float(np.mean(shares)), at_most=WAITING),
        },
    }


def _first_step(data: dict[str, Path], out: Path, cache: Path) -> float:
    """Train the first stage in a new process: seconds until its first step was done."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=_train, args=(data, out, cache, sending))
    begun = time.perf_counter()
    child.start()
    receiving.recv()
    took = time.perf_counter() - begun
    child.join()
    if child.exitcode:
        raise RuntimeError(f"training ended with exit code {child.exitcode}")
    return took


def _train(data: dict[str, Path], out: Path, cache: Path, sending: Any) -> None:
    def progress(sending: Any, what: str, done: int, total: int) -> None:
        if what.startswith("train") and done == 1:
            sending.send(done)

    where = Run(out=out, cache=cache, progress=partial(progress, sending))
    train(laptop(STEPS, 1, 1), data, where, only="general")
