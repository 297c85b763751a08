"""Training that is killed at random moments, again and again, until it ends: what is lost, and what comes of it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from actwam.checkpoint import checkpoints, load, newest
from actwam.recipes.metaworld import compare
from actwam.sim.collect import collect
from actwam.train.config import Recipe
from actwam.train.loop import Run, train
from actwam.train.saving import LATEST
from benchmarks.stress.host import figure

CONTEXT = multiprocessing.get_context("forkserver")
STEPS, EVERY = 60, 10
"""Of a run, and from one checkpoint to the next."""
LONGEST = 4.0
"""Seconds after its start at which a process is killed at the latest, if it has not ended."""


def run(n: int, seed: int) -> dict[str, Any]:
    """Kill `n` processes, at moments drawn from `seed`; the last run is let come to its end. Runs that do are compared
    with one that nobody touched.
    """
    counts, lost = Counter[str](), list[int]()
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        collect(root / "demos", tasks=("drawer-open-v3",), episodes_per_task=2, image_size=(128, 128), workers=1)
        done = CONTEXT.Value("i", 0)
        _child(root, "whole", done).join()
        expected = load(root / "whole").model.state_dict()
        number, ended = 0, True
        while (counts["killed"] < n or not ended) and not counts["failed"]:
            name = f"run{number}"
            ended, here = _killed(root, name, draw.uniform(0, LONGEST) if counts["killed"] < n else None)
            counts.update(here)
            lost += [here["lost"]] if here["killed"] else []
            if ended:
                found = load(root / name).model.state_dict()
                same = all(torch.equal(found[each], value) for each, value in expected.items())
                counts.update({"runs that ended": 1, "runs that came out otherwise": not same})
                number += 1
    return {
        "n": n,
        "seed": seed,
        "steps": STEPS,
        "checkpoint_every": EVERY,
        "counts": {name: count for name, count in counts.items() if name != "lost"},
        "lost_steps": {"most": max(lost), "mean": round(sum(lost) / len(lost), 2)},
        "figures": {
            "killed": figure(counts["killed"], at_least=n),
            "runs that did not go on": figure(counts["failed"], at_most=0),
            "checkpoints that were not whole": figure(counts["not whole"], at_most=0),
            "runs that came out otherwise": figure(counts["runs that came out otherwise"], at_most=0),
            "steps lost at most, in intervals": figure(max(lost) / EVERY, at_most=2),
        },
    }


def made(root: Path, name: str) -> tuple[Recipe, dict[str, Path], Run]:
    """A small run that always goes on."""
    recipe = compare(visual_width=64, action_width=64, align_steps=STEPS, precision="fp32")
    (stage,) = recipe.stages
    stage = replace(stage, checkpoint_every=EVERY, log_every=1, batch_size=4)
    assert recipe.codec is not None
    codec = replace(recipe.codec, fit_frames=50, datasets=("demos",))
    return (
        replace(recipe, stages=(stage,), codec=codec),
        {"demos": root / "demos"},
        Run(out=root / name, cache=root / "cache", resume=True),
    )


def _train(root: Path, name: str, done: Any) -> None:
    torch.set_num_threads(1)

    def progress(what: str, step: int, total: int) -> None:
        if what.startswith("train"):
            done.value = step

    recipe, data, where = made(root, name)
    train(recipe, data, replace(where, progress=progress))


def _child(root: Path, name: str, done: Any) -> multiprocessing.process.BaseProcess:
    CONTEXT.set_forkserver_preload(["benchmarks.stress.kills"])
    child = CONTEXT.Process(target=_train, args=(root, name, done))
    child.start()
    return child


def _killed(root: Path, name: str, after: float | None) -> tuple[bool, Counter[str]]:
    """Train, and kill it if it has not ended after so many seconds, if any are given. Whether it has, and what was
    seen.
    """
    done = CONTEXT.Value("i", 0)
    child = _child(root, name, done)
    child.join(after)
    counts = Counter[str]()
    if child.is_alive():
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    if child.exitcode == 0:
        return True, counts
    counts.update({"killed": child.exitcode == -signal.SIGKILL, "failed": child.exitcode != -signal.SIGKILL})
    stage = root / name / "1-align"
    counts["in a write"] += any(stage.glob("*.partial"))
    for path in checkpoints(stage):
        try:
            load(path)
        except ValueError:
            counts["not whole"] += 1
    with contextlib.suppress(ValueError):
        kept = int(newest(stage).name.removeprefix("step_"))
        counts["lost"] = max(0, done.value - kept)
        counts["not whole"] += (stage / LATEST).is_symlink() and not (stage / LATEST).exists()
    return False, counts
