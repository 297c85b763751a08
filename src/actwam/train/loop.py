"""The one training loop: every stage of every recipe runs through `train_stage`."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from actwam.checkpoint import TRAIN_STATE, Checkpoint, checkpoints, load, read_tensors, save
from actwam.data.loader import Mixture
from actwam.model.transformer import GroupInput
from actwam.objective import add_noise, losses
from actwam.train.config import Precision, Recipe, StageConfig
from actwam.train.metrics import Tracker, open_metrics
from actwam.train.prepare import Progress, initial, mixture, open_datasets, require_recipe
from actwam.train.state import TrainState, learning_rate
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


def train(recipe: Recipe, data: Mapping[str, Path], run: Run, *, only: str | None = None) -> Path:
    """Train the stages of a recipe one after another, or `only` one; each starts from the stage before it.

    Returns the folder of the last stage, which `Policy.load` opens. Raises ValueError on data that does not
    fit the recipe, on a folder that already holds a run (unless `run.resume`), and on a loss that is not
    finite.
    """
    datasets = open_datasets(recipe, data)
    wanted = range(len(recipe.stages)) if only is None else [recipe.stage(only)]
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
            start = initial(recipe, datasets, run.cache, run.progress)
        if done:
            require_stage(start, stage, done[-1])
        if done and step_of(done[-1]) == stage.steps:
            continue
        batches = mixture(stage, start, datasets, run.cache, run.progress)
        train_stage(recipe, stage, start, batches, folders[i], run, done[-1] if done else None)
    return folders[wanted[-1]]


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
    device = torch.device(run.device)
    model = start.model.train().to(device)
    state, first = TrainState.start(model, stage), 0
    if resumed is not None:
        first = step_of(resumed)
        state.restore(read_tensors(resumed / TRAIN_STATE / "state.safetensors"))
    precision = start.trained["precision"] if resumed else resolve_precision(stage.precision, device)
    if stage.compile:
        for block in model.blocks:
            block.compile(dynamic=False)
    sinks = open_metrics(folder, run.tracker, first)
    trained = {"recipe": recipe.name, "stage": stage.name, "config": stage.to_json(), "precision": precision}
    clock, seen = time.perf_counter(), 0
    try:
        for step in range(first, stage.steps):
            metrics = train_step(stage, start, state, to_device(batches.batch(step), device), step, precision)
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
                checkpoint = replace(start, sampling=recipe.sampling, trained={**trained, "step": step + 1})
                target = folder / f"step_{step + 1:08d}"
                save(checkpoint, target, weights=state.average, train_state=state.tensors())
                forget(folder)
    finally:
        for sink in sinks:
            sink.close()


def train_step(
    stage: StageConfig,
    checkpoint: Checkpoint,
    state: TrainState,
    batch: Batch,
    step: int,
    precision: Precision,
) -> dict[str, Float[Tensor, ""]]:
    """One optimizer step. Its noise is a function of (seed, step). Raises ValueError if it is not finite."""
    device = batch.latents.device
    generator = torch.Generator().manual_seed(stage.seed * 1_000_003 + step)
    noisy = add_noise(batch, stage.objective, generator)
    inputs = [GroupInput(group, value, noisy.sigmas[group][:, None]) for group, value in noisy.values.items()]
    distinct = list(dict.fromkeys(batch.instructions))
    rows = torch.tensor([distinct.index(instruction) for instruction in batch.instructions], device=device)
    embedded = checkpoint.text.encode(distinct).to(device)
    model = checkpoint.model
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        text = model.text_context(embedded).select(rows)
        velocities = model(inputs, text, batch.embodiment, checkpoint.table, valid=noisy.present)
        parts = losses(velocities, noisy, stage.objective)
    parts["loss"].backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), stage.grad_clip)
    if not bool(torch.isfinite(norm)):
        raise ValueError(
            f"stage {stage.name}: loss {parts['loss'].item()} with gradient norm {norm.item()} at step {step} "
            f"(seed {stage.seed}); the weights are unchanged; check the data or lower the learning rate"
        )
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(stage, step)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.update_average(step, stage.ema_decay)
    return {**{name: value.detach() for name, value in parts.items()}, "grad_norm": norm}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    if device.type == "cpu":
        return batch
    moved: dict[str, Any] = {name: value.to(device) for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, **moved)


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """What "auto" means here: bfloat16 on a GPU; on a CPU whichever multiplies matrices faster, tried for a
    moment.
    """
    if precision != "auto":
        return precision
    if device.type != "cpu":
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
