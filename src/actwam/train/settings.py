"""Numbers of a stage by name, as a command line and a sweep give them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from actwam.train.config import Recipe, StageConfig


def with_settings(recipe: Recipe, stage: str | None, settings: Mapping[str, int | float]) -> Recipe:
    """The recipe with other numbers in the stage of this name, or in its last one.

    Raises ValueError on an unknown stage, and as `changed` does.
    """
    index = len(recipe.stages) - 1 if stage is None else recipe.stage(stage)
    stages = list(recipe.stages)
    stages[index] = changed(stages[index], settings)
    return replace(recipe, stages=tuple(stages))


def changed(stage: StageConfig, settings: Mapping[str, int | float]) -> StageConfig:
    """The stage with these numbers, which are its own or those of its objective. Where they are not given too, the
    final learning rate keeps its ratio to the learning rate, and the warm-up its share of the steps.

    Raises ValueError on a name that is no number of the stage, and on a number that it cannot have.
    """
    given: dict[str, Any] = {name: _whole(stage, name, value) for name, value in settings.items()}
    if "learning_rate" in given and stage.learning_rate:
        ratio = stage.final_learning_rate / stage.learning_rate
        given.setdefault("final_learning_rate", given["learning_rate"] * ratio)
    if "steps" in given and stage.warmup_steps:
        given.setdefault("warmup_steps", max(1, round(stage.warmup_steps * given["steps"] / stage.steps)))
    names = {field.name for field in fields(stage)}
    own = {name: value for name, value in given.items() if name in names}
    loss = {name: value for name, value in given.items() if name not in names}
    return replace(stage, objective=replace(stage.objective, **loss), **own)


def numbers(stage: StageConfig) -> dict[str, int | float]:
    """All numbers of a stage and of its objective, by name. What is None or no number is left out."""
    found = {field.name: getattr(part, field.name) for part in (stage, stage.objective) for field in fields(part)}
    return {name: value for name, value in found.items() if type(value) in (int, float)}


def _whole(stage: StageConfig, name: str, value: int | float) -> int | float:
    """The value, as the type that the stage has."""
    known = numbers(stage)
    if name not in known:
        raise ValueError(f"stage {stage.name} has no number {name!r}; it has {', '.join(known)}")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"stage {stage.name}: {name} must be a number of at least 0, not {value:g}")
    if isinstance(known[name], int):
        if value != int(value):
            raise ValueError(f"stage {stage.name}: {name} must be a whole number, not {value:g}")
        return int(value)
    return float(value)
