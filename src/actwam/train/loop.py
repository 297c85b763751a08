"""The one training loop: every stage of every recipe runs through `train_stage`."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actwam.checkpoint import TRAIN_STATE, Checkpoint, checkpoints, load, save
from actwam.data.loader import Mixture
from actwam.data.partial import locked
from actwam.memory import device_of, require
from actwam.model.files import read_safetensors
from actwam.train.adapt import adapt, published
from actwam.train.config import Precision, Recipe, StageConfig
from actwam.train.datasets import open_datasets, require_sound
from actwam.train.distill import Teacher
from actwam.train.memory import recipe_need
from actwam.train.metrics import Tracker, open_metrics
from actwam.train.prepare import Progress, initial, mixture, require_recipe
from actwam.train.state import TrainState, learning_rate
from actwam.train.step import train_step
from actwam.types import Batch

KEPT = 2
"""Checkpoints kept of a stage: the newest, and one before it."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a training run lives and how it is watched."""

    out: Path
    cache: Path
    device: str = "cpu"
    tracker: Tracker = "none"
    resume: bool = False
    progress: Progress = lambda what, done, total: None
    say: Callable[[str], None] = lambda text: None
    """Told what is suspicious in the data, and once per stage, before anything large is allocated, how much memory it
    needs."""


def train(recipe: Recipe, data: Mapping[str, Path], run: Run, *, only: str | None = None) -> Path:
    """Train the stages of a recipe one after another, or `only` one; each starts from the stage before it.

    Returns the folder of the last stage, which `Policy.load` opens. Raises ValueError on an unknown device, on
    data that does not fit the recipe, on a model that does not fit in memory, on a folder that already holds a
    run (unless `run.resume`), and on a loss that is not finite.
    """
    device = device_of(run.device)
    datasets = open_datasets(recipe, data)
    require_sound(recipe, datasets, run.say)
    wanted = range(len(recipe.stages)) if only is None else [recipe.stage(only)]
    require_memory(recipe, [recipe.stages[i] for i in wanted], run)
    folders = [run.out / f"{i + 1}-{stage.name}" for i, stage in enumerate(recipe.stages)]
    for i in wanted:
        stage, done = recipe.stages[i], checkpoints(folders[i])
        if done and not run.resume:
            raise ValueError(f"{folders[i]}: holds checkpoints already; resume with --resume, or choose another folder")
        if done or i:
            source = done[-1] if done else finished(folders[i - 1], recipe.stages[i - 1], stage)
            start = load(source)
            require_recipe(start, recipe, source)
        else:
            start = initial(recipe, datasets, run.cache, run.progress, device)
        if done:
            require_stage(start, stage, done[-1])
        if done and step_of(done[-1]) == stage.steps:
            continue
        batches = mixture(stage, start, datasets, run.cache, run.progress, device)
        folders[i].mkdir(parents=True, exist_ok=True)
        with locked(folders[i]):
            train_stage(recipe, stage, start, batches, folders[i], run, done[-1] if done else None)
    return folders[wanted[-1]]


def require_memory(recipe: Recipe, stages: Sequence[StageConfig], run: Run) -> None:
    """Say what the stages need. Raises ValueError when one does not fit on the device of the run."""
    device = device_of(run.device)
    for stage in stages:
        need = recipe_need(recipe, stage, device, resolve_precision(stage, device))
        run.say(f"memory of stage {stage.name}\n{need.table()}")
        require(need, device)


def finished(folder: Path, stage: StageConfig, following: StageConfig) -> Path:
    """The last checkpoint of a stage. Raises ValueError when the stage has not come to its end."""
    done = checkpoints(folder)
    if not done or step_of(done[-1]) < stage.steps:
        raise ValueError(
            f"stage {following.name} starts from {folder}, which is not finished: train {stage.name} first"
        )
    return done[-1]


def require_stage(start: Checkpoint, stage: StageConfig, source: Path) -> None:
    """Raises ValueError, naming them, when the settings of a stage have changed since its checkpoint was written."""
    before, now = start.trained["config"], json.loads(json.dumps(stage.to_json()))
    changed = [key for key in now if before.get(key) != now[key]]
    if changed:
        raise ValueError(f"{source}: {', '.join(changed)} of stage {stage.name} changed since; train in another folder")


def require_teacher(start: Checkpoint, teacher: Teacher | None, source: Path) -> None:
    """Raises ValueError when a checkpoint was taught by another teacher or none, or for or by another schedule."""
    if start.trained.get("teacher") != (teacher and json.loads(json.dumps(teacher.to_json()))):
        raise ValueError(f"{source}: the teacher or a schedule changed since; train in another folder")


def train_stage(
    recipe: Recipe,
    stage: StageConfig,
    start: Checkpoint,
    batches: Mixture,
    folder: Path,
    run: Run,
    resumed: Path | None,
) -> None:
    """Train one stage to its last step, leaving checkpoints `step_*` in `folder`."""
    device = device_of(run.device)
    teacher = Teacher.of(recipe, device)
    if resumed is not None:
        require_teacher(start, teacher, resumed)
    model = start.model.train()
    adapt(model, stage, device)
    state, first = TrainState.start(model, stage), 0
    if resumed is not None:
        first = step_of(resumed)
        state.restore(read_safetensors(resumed / TRAIN_STATE / "state.safetensors"))
    precision = start.trained["precision"] if resumed else resolve_precision(stage, device)
    if stage.compile:
        for block in model.blocks:
            block.compile(dynamic=False)
    sinks = open_metrics(folder, run.tracker, first)
    trained = {"recipe": recipe.name, "stage": stage.name, "config": stage.to_json(), "precision": precision}
    trained |= {"teacher": teacher.to_json()} if teacher else {}
    clock, seen = time.perf_counter(), 0
    try:
        for step in range(first, stage.steps):
            metrics = train_step(stage, start, state, to_device(batches.batch(step), device), step, precision, teacher)
            seen += stage.batch_size
            run.progress(f"train {stage.name}", step + 1, stage.steps)
            if (step + 1) % stage.log_every == 0 or step + 1 == stage.steps:
                now = time.perf_counter()
                speed = {
                    "learning_rate": learning_rate(stage, step),
                    "samples_per_second": seen / (now - clock),
                }
                for sink in sinks:
                    sink.log(step, {name: float(value) for name, value in metrics.items()} | speed)
                clock, seen = now, 0
            if (step + 1) % stage.checkpoint_every == 0 or step + 1 == stage.steps:
                checkpoint = replace(
                    start,
                    sampling=recipe.sampling,
                    action_prefix=stage.action_prefix,
                    trained={**trained, "step": step + 1},
                )
                target = folder / f"step_{step + 1:08d}"
                save(checkpoint, target, weights=published(model, state.average), train_state=state.tensors())
                forget(folder)
    finally:
        for sink in sinks:
            sink.close()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    if device.type == "cpu":
        return batch
    moved: dict[str, Any] = {name: value.to(device) for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, **moved)


def resolve_precision(stage: StageConfig, device: torch.device) -> Precision:
    """What "auto" means here: bfloat16 on a GPU, and where weights are stored in it; on a CPU else whichever multiplies
    matrices faster, tried for a moment.
    """
    if stage.precision != "auto":
        return stage.precision
    if device.type != "cpu" or stage.in_bf16:
        return "bf16"
    seconds = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = torch.ones(4096, 256, dtype=dtype), torch.ones(256, 512, dtype=dtype)
        seconds[name] = min(_timed(partial(torch.matmul, a, b)) for _ in range(20))
    return "bf16" if seconds["bf16"] < seconds["fp32"] else "fp32"


def step_of(checkpoint: Path) -> int:
    """Steps of its stage that a checkpoint folder has seen, from its name."""
    return int(checkpoint.name.removeprefix("step_"))


def forget(folder: Path) -> None:
    """Delete all but the newest checkpoints, and what a process left that was killed while deleting them.

    The newest has been renamed into place before. An old one is renamed away first: no half of it is ever
    seen.
    """
    for old in checkpoints(folder)[:-KEPT]:
        old.rename(old.with_suffix(".partial"))
    for left in folder.glob("step_*.partial"):
        shutil.rmtree(left)


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
