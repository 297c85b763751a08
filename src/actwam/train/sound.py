"""What the quick part of `actwam check` finds, before anything is computed: once for each dataset and what is in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from actwam.data.check import check
from actwam.data.dataset import Footage, LeRobotDataset
from actwam.data.digest import write_whole
from actwam.data.embodiment import Embodiment
from actwam.data.problem import Problem, refuse
from actwam.data.shelf import HERE
from actwam.train.config import Recipe
from actwam.types import Mode


def require_sound(recipe: Recipe, datasets: Mapping[str, Footage], cache: Path, say: Callable[[str], None]) -> None:
    """What tables and the ends of videos tell of the LeRobot datasets in folders: `say` is told the first suspicion of
    each kind. Passed over is what is not learned from: the numbers of video alone, and dimensions that never move, of
    which the normaliser judges. In `cache` is kept what was found, until the dataset changes.

    Raises ValueError with the first error.
    """
    acting = {source.dataset for stage in recipe.stages for source in stage.sources if source.mode != Mode.VIDEO}
    robots = {robot.name: robot for robot in recipe.robots}
    for name, dataset in datasets.items():
        if isinstance(dataset, LeRobotDataset) and dataset.shelf is HERE:
            for line in _suspicions(dataset, robots.get(dataset.robot_type), name in acting, cache):
                say(f"dataset {name}: {line}")


def _suspicions(dataset: LeRobotDataset, robot: Embodiment | None, acting: bool, cache: Path) -> list[str]:
    """A line for each kind."""
    key = hashlib.sha256(f"{dataset.digest} {robot} {acting}".encode()).hexdigest()
    sheet = cache / "checked" / f"{key}.json"
    if sheet.is_file():
        return list(json.loads(sheet.read_text(encoding="utf-8")))
    found: dict[str, list[Problem]] = {}
    for problem in check(dataset.folder, decode="none", robot=robot).problems:
        if problem.kind != "range" and (acting or problem.of_files):
            refuse(problem)
            found.setdefault(problem.kind, []).append(problem)
    lines = [
        f"{first}" + (f" ({len(more)} more of this kind: actwam check {dataset.folder})" if more else "")
        for first, *more in found.values()
    ]
    sheet.parent.mkdir(parents=True, exist_ok=True)
    write_whole(sheet, json.dumps(lines))
    return lines
