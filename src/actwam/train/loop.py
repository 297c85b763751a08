"""The one training loop: every stage of every recipe runs through `train_stage`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from actwam.checkpoint import Checkpoint, checkpoints, load
from actwam.data.dataset import Footage
from actwam.data.loader import Mixture
from actwam.data.partial import locked
from actwam.memory import require
from actwam.train.adapt import adapt, published
from actwam.train.config import Precision, Recipe, StageConfig
from actwam.train.datasets import open_datasets, short_episodes
from actwam.train.distill import Teacher
from actwam.train.encode import mixture
from actwam.train.feed import Feed
from actwam.train.memory import own_need
from actwam.train.metrics import Tracker, Watch, open_metrics
from actwam.train.mixtures import resolve
from actwam.train.parallel import World, joined
from actwam.train.prepare import initial, require_recipe
from actwam.train.saving import LATEST, Saver, newest_whole, read_state
from actwam.train.sound import require_sound
from actwam.train.state import TrainState, learning_rate
from actwam.train.step import NotFinite, train_step
from actwam.types import Progress


def _unseen(what: str, done: int, total: int) -> None:
    """Shows no progress."""


def _unheard(text: str) -> None:
    """Says nothing."""


Examine = Callable[[Path], Mapping[str, float]]
"""Numbers of a checkpoint, which are logged. The one with the highest `score` is kept, of equal ones the first."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a training run lives and how it is watched."""

    out: Path
    cache: Path
    device: str = "cpu"
    shard: int | None = None
    """Among how many processes one copy of the model is cut; among all if not given."""
    micro_batch: int | None = None
    """How many samples a process computes at once; all that are its own if not given."""
    tracker: Tracker = "none"
    resume: bool = False
    examine: Examine | None = None
    """Asked about checkpoints, by the first process while the others wait."""
    examine_every: int = 1
    """Of how many checkpoints one is examined; the last one always is."""
    progress: Progress = _unseen
    say: Callable[[str], None] = _unheard
    """Told what a person should know: how much memory a stage needs, before anything large is allocated, and what looks
    wrong.
    """


def train(recipe: Recipe, data: Mapping[str, Path], run: Run, *, only: str | None = None) -> Path:
    """Train the stages of a recipe one after another, or `only` one; each starts from the stage before it. `data` are
    folders, datasets of the Hub and mixtures, by the names that the recipe gives them (`train.mixtures.resolve`).

    Where `torchrun` started several processes, they train together (`train.parallel`), and all call this.

    Returns the folder of the last stage, which `Policy.load` opens. Raises ValueError on an unknown device, on
    data that does not fit the recipe, on a model that does not fit in memory, on a batch that does not divide among the
    processes, on a folder that already holds a run (unless `run.resume`), and on a loss that is not finite.
    """
    with joined(run.device, run.shard) as (world, device):
        here = Here(run if world.first else replace(run, progress=_unseen, say=_unheard), world, device)
        recipe, data = resolve(recipe, data, here.run.say)
        datasets = open_datasets(recipe, data, run.cache)
        if world.first:
            require_sound(recipe, datasets, run.cache, run.say)
        wanted = range(len(recipe.stages)) if only is None else [recipe.stage(only)]
        require_memory(recipe, [recipe.stages[i] for i in wanted], here)
        folders = [run.out / f"{i + 1}-{stage.name}" for i, stage in enumerate(recipe.stages)]
        for i in wanted:
            _train_one(recipe, i, datasets, folders, here)
    return folders[wanted[-1]]


def _train_one(
    recipe: Recipe, number: int, datasets: Mapping[str, Footage], folders: Sequence[Path], here: Here
) -> None:
    """A stage from where it was left, from the end of the one before, or from the beginning."""
    run, world, stage, folder = here.run, here.world, recipe.stages[number], folders[number]
    if checkpoints(folder) and not run.resume:
        raise ValueError(f"{folder}: holds checkpoints already; resume with --resume, or choose another folder")
    resumed = newest_whole(folder, world, run.say)
    if resumed:
        source, start = resumed
        require_recipe(start, recipe, source)
        require_stage(start, stage, source)
        if step_of(source) == stage.steps:
            return
    elif number:
        source = finished(folders[number - 1], recipe.stages[number - 1], stage)
        start = load(source)
        require_recipe(start, recipe, source)
    else:
        if run.resume:
            run.say(f"{folder}: no checkpoint to go on from; training begins")
        start = initial(recipe, datasets, run.cache, run.progress, here.device)
        world.require_same(fitted(start))
    for name, short in short_episodes(stage, datasets, start.window, start.codec.time_stride).items():
        run.say(f"{name}: {short} of {len(datasets[name].episodes)} episodes are too short and left out")
    batches = mixture(stage, start, datasets, run.cache, run.progress, here.device)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) if world.first else nullcontext():
        train_stage(recipe, stage, start, batches, folder, here, resumed and resumed[0])
        world.wait()


@dataclass(frozen=True)
class Here:
    """The run that a process trains in, the processes of it, and the device of this one."""

    run: Run
    world: World
    device: torch.device


def require_memory(recipe: Recipe, stages: Sequence[StageConfig], here: Here) -> None:
    """Say what the stages need of one process. Raises ValueError when one does not fit on its device, when its batch
    does not divide among the processes, and when it cannot be cut among them.
    """
    for stage in stages:
        rows = here.world.rows(stage.batch_size, here.run.micro_batch)
        precision = resolve_precision(stage, here.device)
        if here.world.size > 1 and stage.optimizer == "adamw8bit":
            raise ValueError(
                f"stage {stage.name}: moments in 8 bits are not cut among processes: take optimizer adamw, whose "
                "moments are, or one process"
            )
        need = own_need(recipe, stage, here.device, precision, len(rows[0]), here.world.pieces)
        here.run.say(f"memory of stage {stage.name}\n{need.table()}")
        require(need, here.device)


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
    here: Here,
    resumed: Path | None,
) -> None:
    """Train one stage to its last step, leaving checkpoints `step_*` in `folder`."""
    run, world = here.run, here.world
    teacher, precision, first = Teacher.of(recipe, here.device), resolve_precision(stage, here.device), 0
    trained: dict[str, Any] = {"recipe": recipe.name, "stage": stage.name, "config": stage.to_json()}
    if resumed is not None:
        require_teacher(start, teacher, resumed)
        precision, first = start.trained["precision"], step_of(resumed)
    trained |= {"precision": precision} | ({"teacher": teacher.to_json()} if teacher else {})
    state = begin(stage, start, here, resumed)
    with ExitStack() as stack:
        sinks = open_metrics(folder, run.tracker, first) if world.first else []
        for sink in sinks:
            stack.enter_context(closing(sink))
        feed = stack.enter_context(
            closing(Feed(batches, world.rows(stage.batch_size, run.micro_batch), first, stage.steps, run.say))
        )
        saver = stack.enter_context(closing(Saver(folder, world)))
        watch = Watch(world, sinks, stage.batch_size, stage.log_every, run.say)
        for step in range(first, stage.steps):
            parts, last = feed.next(), step + 1 == stage.steps
            try:
                metrics = train_step(stage, start, state, parts, step, precision, teacher, world)
            except NotFinite as error:
                raise ValueError(_with_places(error, batches, step)) from error
            saver.check()
            run.progress(f"train {stage.name}", step + 1, stage.steps)
            watch.step(step, metrics, learning_rate(stage, step), feed.waited, last)
            if (step + 1) % stage.checkpoint_every == 0 or last:
                made = replace(
                    start,
                    sampling=recipe.sampling,
                    action_prefix=stage.action_prefix,
                    trained={**trained, "step": step + 1},
                )
                weights = world.gathered(state.weights())
                saver.save(made, step + 1, published(start.model, weights) if world.first else {}, state.tensors())
            if run.examine and ((step + 1) % (run.examine_every * stage.checkpoint_every) == 0 or last):
                saver.wait()
                if world.first:
                    found = run.examine(folder / LATEST)
                    saver.judge(step + 1, found)
                    for sink in sinks:
                        sink.log(step, found)
                world.wait()
                watch.restart(feed.waited)
        saver.wait()


def fitted(start: Checkpoint) -> dict[str, str]:
    """What was fitted on the data, for comparison."""
    statistics = json.dumps([robot.norm_stats() for robot in start.robots], default=str)
    return {"statistics": statistics, "codec": start.codec.digest(), "scale of change": str(start.future.scale)}


def begin(stage: StageConfig, start: Checkpoint, here: Here, resumed: Path | None) -> TrainState:
    """The model of `start` as the stage trains it, on the devices of all processes, and what it is trained with."""
    model, world = start.model.train(), here.world
    adapt(model, stage, here.device if world.mesh is None else torch.device("cpu"))
    if stage.compile:
        for block in model.blocks:
            block.compile(dynamic=False)
    world.share(model)
    state = TrainState.start(model, stage)
    if resumed is not None:
        read_state(world, state.tensors(), resumed)
    return state


def _with_places(error: NotFinite, batches: Mixture, step: int) -> str:
    """The message, and where the samples come from."""
    if not error.rows:
        return f"{error}; no sample alone has such a loss"
    places = batches.places(step, error.rows)
    more = f" and {len(places) - 5} more" if len(places) > 5 else ""
    return f"{error}; of these samples: {', '.join(places[:5])}{more}"


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


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
