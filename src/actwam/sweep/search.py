"""`actwam sweep`: short trials of a stage over its settings, losers stopped early, winners trained long.

Optuna proposes settings and keeps a journal of everything in the folder of the sweep. A trial is an ordinary training
run there. Whatever happens follows from the settings of the sweep and from values that come out the same every time,
so that one which was killed goes on to the table that it would have had.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from optuna import create_study, logging
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from actwam.checkpoint import checkpoints
from actwam.data.dataset import LeRobotDataset
from actwam.data.partial import locked
from actwam.heldout import held_out
from actwam.memory import device_of, require
from actwam.model.files import read_json
from actwam.policy import Policy
from actwam.provenance import commit
from actwam.recipes.metaworld import EXECUTE_HORIZON, IMAGE_SIZE
from actwam.sweep.halving import Halving
from actwam.sweep.plan import PARTS, Sweep, lasting
from actwam.train.config import Recipe
from actwam.train.loop import Run, resolve_precision, train
from actwam.train.memory import recipe_need
from actwam.train.settings import numbers, with_settings
from actwam.train.step import NotFinite

JOURNAL, SETTINGS, BEFORE = "journal.log", "settings.json", "before"
"""In the folder of a sweep: what Optuna keeps, what must not change, and the stages that all trials start from."""
RANDOM = 4
"""Trials before the sampler looks at what came of earlier ones."""
COMPLETE, STOPPED, DIVERGED = "complete", "stopped", "diverged"
"""How a trial ended: at its last step, stopped as a loser, or with a loss or an error that is not finite."""


@dataclass(frozen=True)
class Done:
    """A sweep that came to its end: its trials, those that were promoted (whose attribute `trial` is the number of the
    trial), and the instruction of each held-out episode.
    """

    trials: tuple[FrozenTrial, ...]
    promoted: tuple[FrozenTrial, ...]
    instructions: Mapping[int, str]


class Stopped(Exception):
    """A loser is not trained on."""


def run_sweep(sweep: Sweep) -> Done:
    """Do what is not done yet.

    Raises ValueError, beside what `train` raises, when the folder holds a sweep of other settings or another process
    is at it, on a batch that does not fit in memory, and when every trial diverges.
    """
    sweep.out.mkdir(parents=True, exist_ok=True)
    with locked(sweep.out):
        return _Sweeping(sweep).run()


class _Sweeping:
    """A sweep under way, whose folder is held."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.heldout = LeRobotDataset.open(sweep.held_out)
        self.recipe = self._settled()
        self.stage_folder = f"{sweep.index + 1}-{sweep.swept.name}"
        logging.set_verbosity(logging.WARNING)
        self.storage = _journal(sweep.out / JOURNAL)

    def run(self) -> Done:
        sweep = self.sweep
        sweep.say(sweep.outlook())
        before = Run(out=sweep.out / BEFORE, cache=sweep.cache, device=sweep.device, resume=True)
        for stage in self.recipe.stages[: sweep.index]:
            train(self.recipe, sweep.data, replace(before, progress=sweep.progress), only=stage.name)
        trials = self._trials()
        promoted = self._promoted(trials)
        instructions = {episode.index: episode.instruction for episode in self.heldout.episodes}
        return Done(tuple(trials), tuple(promoted), instructions)

    def _settled(self) -> Recipe:
        """The recipe with all stages in one precision, the one that was chosen when the sweep began: "auto" tries the
        machine's speed, and could choose differently from trial to trial.
        """
        sweep = self.sweep
        path, device = sweep.out / SETTINGS, device_of(sweep.device)
        wanted = lasting(sweep, self.heldout)
        if path.exists():
            begun = read_json(path)
            other = [name for name in wanted if begun["sweep"].get(name) != wanted[name]]
            if other:
                raise ValueError(f"{sweep.out}: was begun with another {', '.join(other)}; choose another folder")
        else:
            chosen = [resolve_precision(stage, device) for stage in sweep.recipe.stages]
            begun = {"sweep": wanted, "precision": chosen}
            new = path.with_suffix(".partial")
            new.write_text(json.dumps(begun, indent=2) + "\n", encoding="utf-8")
            new.replace(path)
        stages = zip(sweep.recipe.stages, begun["precision"], strict=True)
        recipe = replace(sweep.recipe, stages=tuple(replace(stage, precision=found) for stage, found in stages))
        batch = sweep.axes.get("batch_size")
        largest = with_settings(recipe, sweep.swept.name, {"batch_size": batch.high} if batch else {})
        stage = largest.stages[sweep.index]
        require(recipe_need(largest, stage, device, stage.precision), device)
        return recipe

    def _trials(self) -> list[FrozenTrial]:
        """Run short trials until there are as many as are wanted. The first has the recipe's own settings, as far as
        they lie in the space.
        """
        sweep, every = self.sweep, self.sweep.pilot_steps // PARTS
        study = self._study("trials", Halving((every, 2 * every)))
        if not study.get_trials(deepcopy=False):
            own = numbers(sweep.swept)
            study.enqueue_trial({name: own[name] for name, axis in sweep.axes.items() if own[name] in axis})
        while trial := _next(study, sweep.trials):
            trial.set_user_attr("settings", _suggest(sweep, study, trial))
            if self._follow(study, trial, sweep.pilot_steps, f"trials/{trial.number}"):
                study.tell(trial, _values(study, trial)[sweep.pilot_steps])
            sweep.progress("trials", len(_ended(study)), sweep.trials)
        return _ended(study)[: sweep.trials]

    def _promoted(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Train the best trials long, and measure them."""
        sweep, study = self.sweep, self._study("promoted", NopPruner())
        complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
        if not complete:
            raise ValueError(f"{sweep.out}: all {sweep.trials} trials diverged; sweep lower learning rates elsewhere")
        best = sorted(complete, key=lambda trial: (trial.value, trial.number))[: sweep.promote]
        for one in best:
            if one.number not in {each.user_attrs["trial"] for each in study.get_trials(deepcopy=False)}:
                study.enqueue_trial({}, {"trial": one.number, "settings": one.user_attrs["settings"]})
        while trial := _next(study, wanted := len(study.get_trials(deepcopy=False))):
            place = f"promoted/{trial.user_attrs['trial']}"
            if checkpoint := self._follow(study, trial, sweep.steps, place):
                for name, value in self._measured(checkpoint, place).items():
                    trial.set_user_attr(name, value)
                study.tell(trial, _values(study, trial)[sweep.steps])
            sweep.progress("promoted", len(_ended(study)), wanted)
        return [one for one in _ended(study) if one.user_attrs["trial"] in {each.number for each in best}]

    def _follow(self, study: Study, trial: Trial, steps: int, place: str) -> Path | None:
        """Train a trial to its last step, from where it was left, and return its last checkpoint. If it is stopped,
        tell the study, and return None.
        """
        sweep, folder = self.sweep, self.sweep.out / place / self.stage_folder
        recipe = with_settings(self.recipe, sweep.swept.name, {**trial.user_attrs["settings"], "steps": steps})
        stages = [replace(stage, checkpoint_every=max(1, stage.steps // PARTS)) for stage in recipe.stages]
        begun, start = folder.exists(), time.perf_counter()
        run = Run(
            out=sweep.out / place,
            cache=sweep.cache,
            device=sweep.device,
            resume=True,
            examine=partial(self._examine, study, trial),
            progress=lambda what, done, total: sweep.progress(f"{place}: {what}", done, total),
        )
        self._share(run.out)
        ended = COMPLETE
        try:
            for newest in checkpoints(folder)[-1:]:
                self._examine(study, trial, newest)  # it may have been killed between writing and measuring
            train(replace(recipe, stages=tuple(stages)), sweep.data, run, only=sweep.swept.name)
        except Stopped as reason:
            ended = str(reason)
        except ValueError as error:
            if not isinstance(error.__cause__, NotFinite):
                raise
            sweep.say(f"{place}: {error}")
            ended = DIVERGED
        last = checkpoints(folder)[-1:]
        attributes = {
            "ended": ended,
            "seconds": None if begun else time.perf_counter() - start,
            "checkpoint": last[0].relative_to(sweep.out).as_posix() if last else None,
            "commit": commit(Path(__file__).parent)["commit"],
        }
        for name, value in attributes.items():
            trial.set_user_attr(name, value)
        if ended == COMPLETE:
            return last[0]
        study.tell(trial, state=TrialState.PRUNED)
        return None

    def _examine(self, study: Study, trial: Trial, checkpoint: Path) -> dict[str, float]:
        """Report the held-out error of a checkpoint. Raises Stopped when the trial is to end here."""
        policy = Policy.load(checkpoint, device=self.sweep.device)
        error, step = held_out(policy, self.heldout).action_error, policy.checkpoint.trained["step"]
        if not math.isfinite(error):
            raise Stopped(DIVERGED)
        if step not in _values(study, trial):
            trial.report(error, step)
        if trial.should_prune():
            raise Stopped(STOPPED)
        return {"heldout_action_error": error, "score": -error}

    def _measured(self, checkpoint: Path, place: str) -> dict[str, Any]:
        """Of a checkpoint the errors of all held-out windows, and the outcomes of its episodes by task and seed."""
        sweep = self.sweep
        policy = Policy.load(checkpoint, device=sweep.device)
        error = held_out(policy, self.heldout)
        found: dict[str, Any] = {"windows": [list(window) for window in error.by_window], "psnr": error.psnr}
        if not sweep.closed_loop:
            return found
        from actwam.sim.rollout import rollout  # which needs a simulator

        results = rollout(
            policy,
            tasks=sweep.closed_loop,
            episodes_per_task=sweep.episodes,
            execute_horizon=EXECUTE_HORIZON,
            first_seed=sweep.first_seed,
            image_size=IMAGE_SIZE,
            out=sweep.out / place / "eval",
            resume=True,
            provenance={"policy": policy.checkpoint.digest},
            progress=partial(sweep.progress, f"{place}: episodes"),
        )
        return {**found, "episodes": [[result.task, result.env_seed, result.outcome] for result in results]}

    def _share(self, folder: Path) -> None:
        """Let the stages before the one that is swept be found in a trial's folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, stage in enumerate(self.recipe.stages[: self.sweep.index], 1):
            link = folder / f"{number}-{stage.name}"
            if not link.is_symlink():
                link.symlink_to(Path("..", "..", BEFORE, link.name))

    def _study(self, name: str, pruner: BasePruner) -> Study:
        return create_study(
            storage=self.storage, study_name=name, pruner=pruner, direction="minimize", load_if_exists=True
        )


def _journal(path: Path) -> JournalStorage:
    """What Optuna keeps in a file, without what a process left that was killed: its lock, and half a line."""
    Path(f"{path}.lock").unlink(missing_ok=True)  # nobody else can be at it: the folder is held
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    return JournalStorage(JournalFileBackend(str(path)))


def _next(study: Study, wanted: int) -> Trial | None:
    """The trial that a killed process was at, or a new one; None when as many as are wanted came to an end."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    if running:
        return Trial(study, running[0]._trial_id)
    return study.ask() if len(_ended(study)) < wanted else None


def _ended(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _values(study: Study, trial: Trial) -> dict[int, float]:
    """Held-out errors by step."""
    return study.get_trials(deepcopy=False)[trial.number].intermediate_values


def _suggest(sweep: Sweep, study: Study, trial: Trial) -> dict[str, int | float]:
    """The settings of a trial. Each hangs on the seed, the number of the trial, its name and earlier trials only: one
    that was killed in the middle gives the same.
    """
    settings = {}
    for name, axis in sweep.axes.items():
        seed = int(hashlib.sha256(f"{sweep.seed} {trial.number} {name}".encode()).hexdigest()[:8], 16)
        study.sampler = TPESampler(seed=seed, n_startup_trials=RANDOM, multivariate=False, constant_liar=False)
        settings[name] = axis.suggest(trial, name)
    return settings
