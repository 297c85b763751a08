"""What a sweep is: which settings of which stage, how many trials, how long."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from actwam.data.dataset import LeRobotDataset
from actwam.recipes.metaworld import IMAGE_SIZE
from actwam.sim.robot import metaworld_embodiment
from actwam.sweep.space import Axis, read_space, usual_space
from actwam.train.config import Recipe, StageConfig
from actwam.train.datasets import open_datasets
from actwam.train.mixtures import resolve

PARTS = 4
"""A trial is measured after each of so many parts of its steps; losers are stopped after one and after two of them."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What to search and where. The stage is the recipe's last if it has no name, the space the usual one if it has no
    axis, `long_steps` those of the recipe if not given. Of each task of `closed_loop` the promoted play `episodes`.
    """

    recipe: Recipe
    data: Mapping[str, Path]
    held_out: Path
    out: Path
    cache: Path
    stage: str | None = None
    space: Mapping[str, str] | None = None
    trials: int = 12
    pilot_steps: int = 120
    promote: int = 2
    long_steps: int | None = None
    closed_loop: tuple[str, ...] = ()
    episodes: int = 10
    first_seed: int = 1_900_000
    seed: int = 0
    device: str = "cpu"
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    say: Callable[[str], None] = lambda text: None

    def __post_init__(self) -> None:
        """Raises ValueError on numbers that make no sweep, and as `Recipe.stage` and `read_space` do."""
        for name in ("trials", "promote", "episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.promote > self.trials:
            raise ValueError(f"of {self.trials} trials {self.promote} cannot be promoted")
        if not PARTS <= self.pilot_steps <= self.steps:
            raise ValueError(f"pilot_steps must be from {PARTS} to the {self.steps} long ones, not {self.pilot_steps}")
        if self.closed_loop:
            _require_playable(self)
        assert self.axes  # refused here, if at all

    @property
    def index(self) -> int:
        """The place of the stage that is swept."""
        return len(self.recipe.stages) - 1 if self.stage is None else self.recipe.stage(self.stage)

    @property
    def swept(self) -> StageConfig:
        """The stage as the recipe has it."""
        return self.recipe.stages[self.index]

    @property
    def steps(self) -> int:
        """Of those that are promoted."""
        return self.swept.steps if self.long_steps is None else self.long_steps

    @cached_property
    def texts(self) -> dict[str, str]:
        """What each axis was given as."""
        return usual_space(self.recipe, self.swept) if self.space is None else dict(self.space)

    @cached_property
    def axes(self) -> dict[str, Axis]:
        return read_space(self.texts, self.swept)

    def outlook(self) -> str:
        """How much it will train, in one line."""
        before = sum(stage.steps for stage in self.recipe.stages[: self.index])
        most = self.trials * self.pilot_steps + self.promote * self.steps
        after = f", after {before} of the stages before it" if before else ""
        return (
            f"{self.trials} trials of at most {self.pilot_steps} steps and {self.promote} of {self.steps}: at most "
            f"{most} steps of stage {self.swept.name}{after}"
        )


def _require_playable(sweep: Sweep) -> None:
    """Raises ValueError on a task that MetaWorld has not, and when the recipe has not its robot."""
    from actwam.sim.metaworld import check_task  # which needs the simulator

    for task in sweep.closed_loop:
        check_task(task)
    if metaworld_embodiment(IMAGE_SIZE) not in sweep.recipe.robots:
        raise ValueError(f"recipe {sweep.recipe.name} has no robot that plays in MetaWorld: leave closed_loop out")


def lasting(sweep: Sweep, heldout: LeRobotDataset) -> dict[str, Any]:
    """What must not change while a sweep goes on, as JSON. There may be more trials, and more may be promoted."""
    recipe, folders = resolve(sweep.recipe, sweep.data, sweep.say)
    parts = {
        "name": recipe.name,
        "table": recipe.table.name,
        "model": recipe.model.to_json(),
        "window": asdict(recipe.window),
        "sampling": asdict(recipe.sampling),
        "codec": recipe.codec and asdict(recipe.codec),
        "stages": [stage.to_json() for stage in recipe.stages],
    }
    datasets = open_datasets(recipe, folders, sweep.cache)
    return {
        "recipe": hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest(),
        "stage": sweep.swept.name,
        "space": sweep.texts,
        "pilot_steps": sweep.pilot_steps,
        "long_steps": sweep.steps,
        "closed_loop": [*sweep.closed_loop],
        "episodes": sweep.episodes,
        "first_seed": sweep.first_seed,
        "seed": sweep.seed,
        "data": {name: dataset.digest for name, dataset in datasets.items()},
        "held_out": heldout.digest,
    }
