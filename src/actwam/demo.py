"""The whole way on one machine: collect -> check -> three stages -> evaluate -> imagine -> report.

Every step leaves `steps/<name>.json` behind, with its settings, seconds and result. A second run reuses a finished
step when its settings are the same, and goes on inside an interrupted one where that is possible (training and
evaluation).
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from actwam.bench.latency import group_lengths, measure_latency
from actwam.data.check import check
from actwam.data.dataset import LeRobotDataset
from actwam.policy import Policy
from actwam.provenance import provenance
from actwam.recipes.metaworld import IMAGE_SIZE, laptop
from actwam.report.page import write_report
from actwam.sim.collect import Collection
from actwam.sim.results import Score, evaluate
from actwam.sim.rollout import rollout
from actwam.sim.scene import Scene
from actwam.train.config import Recipe
from actwam.train.loop import Run, train
from actwam.types import Observation, Progress
from actwam.world.imagine import imagine_dataset, observation_at

TARGETS = ("drawer-open-v3", "button-press-topdown-v3", "door-open-v3")
GENERAL = (
    "reach-v3", "push-v3", "pick-place-v3", "drawer-close-v3", "window-open-v3", "window-close-v3",
    "door-close-v3", "faucet-open-v3", "button-press-v3", "handle-press-v3", "plate-slide-v3", "coffee-button-v3",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Everything that decides what the demo does."""

    collections: Mapping[str, Collection]
    steps: tuple[int, int, int]
    tasks: tuple[str, ...]
    eval_episodes: int
    randomized_episodes: int
    first_eval_seed: int
    execute_horizon: int
    max_steps: int
    windows: int
    latency_repeats: int

    def recipe(self) -> Recipe:
        return laptop(*self.steps)


DEMO = DemoSettings(
    collections={
        "general": Collection(tasks=GENERAL, episodes=1, first_seed=0),
        "adapt": Collection(tasks=TARGETS, episodes=6, first_seed=1_000, action_noise=0.3),
        "demos": Collection(tasks=TARGETS, episodes=30, first_seed=2_000),
        "heldout": Collection(tasks=TARGETS, episodes=2, first_seed=3_000),
    },
    steps=(90, 110, 720),
    tasks=TARGETS,
    eval_episodes=20,
    randomized_episodes=10,
    first_eval_seed=1_000_000,
    execute_horizon=8,
    max_steps=500,
    windows=64,
    latency_repeats=50,
)

SMOKE = DemoSettings(
    collections={
        "general": Collection(tasks=("reach-v3",), episodes=1, first_seed=0),
        "adapt": Collection(tasks=TARGETS[:1], episodes=1, first_seed=1_000, action_noise=0.3),
        "demos": Collection(tasks=TARGETS[:2], episodes=1, first_seed=2_000),
        "heldout": Collection(tasks=TARGETS[:1], episodes=1, first_seed=3_000),
    },
    steps=(4, 4, 8),
    tasks=TARGETS[:1],
    eval_episodes=2,
    randomized_episodes=1,
    first_eval_seed=1_000_000,
    execute_horizon=8,
    max_steps=24,
    windows=4,
    latency_repeats=3,
)


def run_demo(out: Path, settings: DemoSettings, progress: Progress) -> Path:
    """Run every step that is not finished, write results.json and report.html, and return the page.

    Raises ValueError when `out` was made with other settings, and when a dataset does not pass its check.
    """
    way = Way(out, settings, progress)
    recipe = settings.recipe()
    data = {name: out / "data" / name for name in settings.collections}
    for name, collection in settings.collections.items():
        way.step(f"collect {name}", partial(_collect, data[name], name, collection, progress))
    for name, folder in data.items():
        way.step(f"check {name}", partial(_check, folder, name, recipe.window.action_horizon, progress))
    run = Run(out=out / "train", cache=out / "cache", resume=True, progress=progress)
    for stage in recipe.stages:
        way.step(f"train {stage.name}", partial(_train, recipe, data, run, stage.name))
    policy = Policy.load(out / "train" / f"{len(recipe.stages)}-{recipe.stages[-1].name}")
    heldout = LeRobotDataset.open(data["heldout"])
    for scene, episodes in ((Scene.CLEAN, settings.eval_episodes), (Scene.RANDOMIZED, settings.randomized_episodes)):
        way.step(f"evaluate {scene}", partial(_evaluate, policy, out, settings, scene, episodes, progress))
    way.step("imagine", partial(_imagine, policy, heldout, out / "imagine", settings.windows, progress))
    way.step("latency", partial(_latency, policy, heldout, settings.latency_repeats, progress))
    observation = observation_at(heldout, policy.robot, 0, 0)
    _write(out / "results.json", _results(way, policy, observation, settings, recipe))
    return write_report(out)


class Way:
    """The steps of one demo folder."""

    def __init__(self, out: Path, settings: DemoSettings, progress: Progress) -> None:
        """Raises ValueError if the folder was begun with other settings."""
        self.folder, self.progress = out / "steps", progress
        self.folder.mkdir(parents=True, exist_ok=True)
        self.done: dict[str, dict[str, Any]] = {}
        self.provenance = provenance()  # of the code that runs now, whatever is checked out at the end
        wanted = json.loads(json.dumps(asdict(settings)))
        path = self.folder / "settings.json"
        if path.exists() and json.loads(path.read_text(encoding="utf-8")) != wanted:
            raise ValueError(f"{out}: was made with other settings; choose another folder or delete this one")
        _write(path, wanted)

    def step(self, name: str, work: Callable[[], Any]) -> None:
        """Do the work, or read what it gave when it was done before."""
        path = self.folder / f"{name.replace(' ', '-')}.json"
        if not path.exists():
            self.progress(name, 0, 1)  # the bar of the step appears, and its clock starts, with the work
            start = time.perf_counter()
            result = work()
            seconds = time.perf_counter() - start
            _write(path, {"result": result, "seconds": seconds, "commit": self.provenance["commit"]})
        self.done[name] = json.loads(path.read_text(encoding="utf-8"))

    def result(self, name: str) -> Any:
        return self.done[name]["result"]


def _collect(folder: Path, name: str, collection: Collection, progress: Progress) -> dict[str, Any]:
    return asdict(collection.collect(folder, IMAGE_SIZE, progress=partial(progress, f"collect {name}")))


def _check(folder: Path, name: str, action_horizon: int, progress: Progress) -> dict[str, Any]:
    report = check(
        folder,
        action_horizon=action_horizon,
        decode="ends",
        constant="center",
        progress=partial(progress, f"check {name}"),
    )
    errors = [problem for problem in report.problems if problem.severity == "error"]
    if errors:
        raise ValueError(f"{errors[0]} ({len(errors)} errors in all: actwam check {folder})")
    return report.to_json()


def _train(recipe: Recipe, data: Mapping[str, Path], run: Run, stage: str) -> str:
    return train(recipe, data, run, only=stage).name


def _evaluate(
    policy: Policy, out: Path, settings: DemoSettings, scene: Scene, episodes: int, progress: Progress
) -> dict[str, Any]:
    results = rollout(
        policy,
        tasks=settings.tasks,
        episodes_per_task=episodes,
        execute_horizon=settings.execute_horizon,
        first_seed=settings.first_eval_seed,
        scene=scene,
        image_size=IMAGE_SIZE,
        max_steps=settings.max_steps,
        out=out / "eval" / scene,
        resume=True,
        provenance={"policy": policy.checkpoint.digest},
        videos_per_task=1,
        progress=partial(progress, f"evaluate {scene}"),
    )
    scores = evaluate(results)
    return {
        **_score(scores.overall),
        "per_task": {task: _score(score) for task, score in scores.per_task.items()},
    }


def _score(score: Score) -> dict[str, Any]:
    return {
        "success_rate": score.success_rate,
        "n_episodes": score.n_episodes,
        "wilson_low": score.wilson_low,
        "wilson_high": score.wilson_high,
        "n_crashes": score.n_crashes,
    }


def _imagine(policy: Policy, heldout: LeRobotDataset, out: Path, windows: int, progress: Progress) -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)  # whole, but from a run that stopped before it was noted as done
    bar = partial(progress, "imagine")
    return imagine_dataset(policy, heldout, windows=windows, seed=0, out=out, progress=bar).to_json()


def _latency(policy: Policy, heldout: LeRobotDataset, repeats: int, progress: Progress) -> dict[str, Any]:
    observation = observation_at(heldout, policy.robot, 0, 0)
    cases = measure_latency(policy, observation, repeats=repeats, warmup=5)
    progress("latency", 1, 1)
    return {name: case.to_json() for name, case in cases.items()}


def _results(
    way: Way, policy: Policy, observation: Observation, settings: DemoSettings, recipe: Recipe
) -> dict[str, Any]:
    imagined = way.result("imagine")
    model = policy.checkpoint.model
    return {
        **way.result("evaluate clean"),
        "randomized": way.result("evaluate randomized"),
        "psnr": imagined["psnr"],
        "ssim": imagined["ssim"],
        "imagine": imagined,
        "latency_ms": way.result("latency"),
        "seconds": {name: done["seconds"] for name, done in way.done.items()},
        "settings": {"recipe": recipe.name, **json.loads(json.dumps(asdict(settings)))},
        "model": {
            "parameters": int(sum(np.prod(p.shape) for p in model.parameters())),
            "table": policy.table.name,
            "tokens": group_lengths(policy, observation),
        },
        "provenance": {**way.provenance, "commits": sorted({str(done["commit"]) for done in way.done.values()})},
    }


def _write(path: Path, data: Mapping[str, Any]) -> None:
    """Whole or not at all: a step is finished when its file is there."""
    new = path.with_suffix(".partial")
    new.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    new.replace(path)
