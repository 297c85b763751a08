"""What a sweep searches: for each setting of a stage a range of numbers, or a choice of some."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from optuna.trial import Trial

from actwam.train.config import Recipe, StageConfig
from actwam.train.settings import changed, numbers
from actwam.types import Mode

DIGITS = 3
"""Significant digits of a sampled number: what a table shows is what was trained."""


@dataclass(frozen=True)
class Axis:
    """Of a setting: either `choices`, or all numbers from `low` to `high`, evenly by their logarithm."""

    low: int | float
    high: int | float
    choices: tuple[int | float, ...] = ()
    whole: bool = False

    def suggest(self, trial: Trial, name: str) -> int | float:
        """What the sampler of the trial's study makes of it, and what it said before where it was asked already."""
        if self.choices:
            chosen: int | float = trial.suggest_categorical(name, self.choices)
            return chosen
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=True)
        return float(f"{trial.suggest_float(name, self.low, self.high, log=True):.{DIGITS}g}")

    def __contains__(self, value: int | float) -> bool:
        return value in self.choices if self.choices else self.low <= value <= self.high


Space = Mapping[str, Axis]


def usual_space(recipe: Recipe, stage: StageConfig) -> dict[str, str]:
    """Learning rate, batch size, and, where both are learned, the action's loss weight around the future's."""
    space = {"learning_rate": "1e-4:3e-3", "batch_size": "16,32,64"}
    weight = stage.objective.future_weight
    modes = {source.mode for source in stage.sources}
    if recipe.window.future_offsets and Mode.POLICY in modes and weight:
        space["action_weight"] = f"{weight / 5:g}:{weight * 10:g}"
    return space


def read_space(texts: Mapping[str, str], stage: StageConfig) -> dict[str, Axis]:
    """Axes from LOW:HIGH or A,B,C, by the names of the stage's settings.

    Raises ValueError on a name that is no number of the stage, on values that it cannot have, and on a text of another
    form.
    """
    if not texts:
        raise ValueError("there is nothing to sweep: give --space learning_rate 1e-4:3e-3, or leave it out")
    return {name: _axis(name, text, stage) for name, text in texts.items()}


def _axis(name: str, text: str, stage: StageConfig) -> Axis:
    if name in ("steps", "seed"):
        raise ValueError(f"--space {name}: is the same for all trials of a round; leave it out")
    parts = text.split(":") if ":" in text else text.split(",")
    try:
        values = tuple(float(part) for part in parts)
    except ValueError as error:
        raise ValueError(f"--space {name}: {text!r} is neither LOW:HIGH nor A,B,C") from error
    for value in values:
        changed(stage, {name: value})
    whole = isinstance(numbers(stage)[name], int)
    if ":" not in text:
        choices = tuple(int(value) if whole else value for value in values)
        return Axis(min(choices), max(choices), choices, whole)
    if len(values) != 2 or not 0 < values[0] < values[1]:
        raise ValueError(f"--space {name}: of {text!r} the low end must be above 0 and below the high one")
    return Axis(*values, whole=whole)
