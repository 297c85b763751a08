"""What came of a sweep, as JSON: every trial, the order of those that were promoted, and how sure it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from actwam.provenance import provenance, version_of
from actwam.sim.results import EpisodeOutcome
from actwam.study.statistics import (
    TAILS,
    Difference,
    Episodes,
    Key,
    Verdict,
    paired_difference,
    paired_difference_values,
    resample,
    tasks_of,
)
from actwam.sweep.plan import Sweep
from actwam.sweep.search import Done
from actwam.train.settings import numbers

RESAMPLES = 10_000
BY_ERROR = "Of the promoted, the one with the lowest held-out action error after its last step."
BY_SUCCESS = (
    "Of the promoted, the one with the highest success rate after its last step; of those that cannot be told from it, "
    "the one with the lowest held-out action error."
)


def summarise(sweep: Sweep, done: Done) -> dict[str, Any]:
    """Of a finished sweep. Paths are relative to its folder, errors in standard deviations of the trained action.

    Intervals are of 95 %, by the bootstrap of `study.statistics`: they speak of other tasks and held-out episodes, and
    not of training again.
    """
    promoted = [_promoted(sweep, one, done.instructions) for one in done.promoted]
    made = provenance()
    by_number = {one.user_attrs["trial"]: one for one in done.promoted}
    order = _ordered(promoted, by_number)
    best = by_number[order[0]["trial"]]
    for one in order[1:]:
        one["against_best"] = _against(by_number[one["trial"]], best, done.instructions)
    return {
        "recipe": sweep.recipe.name,
        "stage": sweep.swept.name,
        "settings": {
            "space": sweep.texts,
            "trials": sweep.trials,
            "pilot_steps": sweep.pilot_steps,
            "promote": sweep.promote,
            "long_steps": sweep.steps,
            "closed_loop": {"tasks": list(sweep.closed_loop), "episodes": sweep.episodes, "seed": sweep.first_seed},
            "seed": sweep.seed,
            "training_seed": sweep.swept.seed,
            "held_out": {"episodes": len(done.instructions), "windows": len(done.promoted[0].user_attrs["windows"])},
        },
        "own": {name: numbers(sweep.swept)[name] for name in sweep.axes},
        "rule": BY_SUCCESS if sweep.closed_loop else BY_ERROR,
        "trials": [_trial(one) for one in done.trials],
        "promoted": order,
        "winner": {"trial": order[0]["trial"], "settings": order[0]["settings"] | {"steps": sweep.steps}},
        "sure": _sure(order),
        "provenance": {**made, "versions": {**made["versions"], "optuna": version_of("optuna")}},
    }


def _trial(one: FrozenTrial) -> dict[str, Any]:
    values = {str(step): value for step, value in sorted(one.intermediate_values.items())}
    settings, noted = one.user_attrs["settings"], one.user_attrs
    return {
        "trial": one.number,
        "settings": settings,
        "ended": noted["ended"],
        "held_out_action_error": values,
        "seconds": noted["seconds"],
        "checkpoint": noted["checkpoint"],
        "commit": noted["commit"],
    }


def _promoted(sweep: Sweep, one: FrozenTrial, instructions: Mapping[int, str]) -> dict[str, Any]:
    found = {**_trial(one), "trial": one.user_attrs["trial"]}
    windows = one.user_attrs["windows"]
    low, high = _interval(windows, instructions)
    found["held_out"] = {
        "windows": len(windows),
        "action_error": float(np.mean([error for _, error in windows])),
        "low": low,
        "high": high,
        "psnr": one.user_attrs["psnr"],
    }
    found["success"] = _episodes(one).to_json() if sweep.closed_loop else None
    return found


def _ordered(promoted: Sequence[dict[str, Any]], trials: Mapping[int, FrozenTrial]) -> list[dict[str, Any]]:
    """The winner first. A success rate counts as lower than the highest one only where that is beyond chance."""
    by_error = sorted(promoted, key=lambda one: (one["held_out"]["action_error"], one["trial"]))
    if promoted[0]["success"] is None:
        return by_error
    episodes = {one["trial"]: _episodes(trials[one["trial"]]) for one in by_error}
    highest = max(episodes.values(), key=lambda each: each.rate or 0.0)

    def lower(one: Mapping[str, Any]) -> bool:
        difference = _paired(episodes[one["trial"]], highest)
        return difference is not None and difference.verdict is Verdict.WORSE

    return sorted(by_error, key=lower)


def _keyed(windows: Sequence[Sequence[int | float]], instructions: Mapping[int, str]) -> dict[Key, list[float]]:
    """The errors of an episode's windows."""
    found: defaultdict[Key, list[float]] = defaultdict(list)
    for episode, error in windows:
        found[instructions[int(episode)], 0, int(episode)].append(error)
    return found


def _interval(windows: Sequence[Sequence[int | float]], instructions: Mapping[int, str]) -> tuple[float, float]:
    """Of the mean over all windows, those of an episode drawn together."""
    errors = _keyed(windows, instructions)
    sums = {key: sum(several) for key, several in errors.items()}
    counts = {key: float(len(several)) for key, several in errors.items()}
    (total, count), _ = resample([sums, counts], RESAMPLES, seed=0)
    low, high = np.quantile(total / count, TAILS).tolist()
    return low, high


def _episodes(one: FrozenTrial) -> Episodes:
    outcomes = {(task, 0, seed): EpisodeOutcome(outcome) for task, seed, outcome in one.user_attrs["episodes"]}
    crashes = [key for key, outcome in outcomes.items() if outcome is EpisodeOutcome.CRASH]
    success = {key: outcome is EpisodeOutcome.SUCCESS for key, outcome in outcomes.items() if key not in crashes}
    return Episodes(success, len(crashes))


def _against(one: FrozenTrial, best: FrozenTrial, instructions: Mapping[int, str]) -> dict[str, Any]:
    """How much larger the error of `one` is than that of the best, by held-out episodes, and how much higher its
    success rate.
    """

    def less_is_better(trial: FrozenTrial) -> dict[Key, float]:
        return {key: -float(np.mean(own)) for key, own in _keyed(trial.user_attrs["windows"], instructions).items()}

    error = paired_difference_values(less_is_better(one), less_is_better(best), resamples=RESAMPLES)
    success = _paired(_episodes(one), _episodes(best)) if "episodes" in one.user_attrs else None
    return {"action_error": _turned(error), "success": success and success.to_json()}


def _paired(one: Episodes, other: Episodes) -> Difference | None:
    """None where crashes left a task without episodes to compare."""
    common = tasks_of({key: 1 for key in one.success if key in other.success})
    if not common or common != tasks_of(one.success) | tasks_of(other.success):
        return None
    return paired_difference(one, other, resamples=RESAMPLES)


def _turned(difference: Difference) -> dict[str, Any]:
    """A difference of negated values as one of the values; its verdict stays."""
    found = difference.to_json()
    return {**found, "mean": -difference.mean, "low": -difference.high, "high": -difference.low}


def _sure(order: Sequence[Mapping[str, Any]]) -> str:
    """Whether the first of the promoted is told from the second, and what that leaves open."""
    if len(order) == 1:
        return "Only one trial was promoted, so nothing was compared after long training."
    error, success = (order[1]["against_best"][what] for what in ("action_error", "success"))
    said = [f"its held-out error {_told(error, 'lower', 'higher')}"]
    said += [f"its success rate {_told(success, 'higher', 'lower')}"] if success else []
    return f"Against trial {order[1]['trial']}, the second, {', and '.join(said)} ({error['note']})."


def _told(second: Mapping[str, Any], better: str, worse: str) -> str:
    """What the verdict on the second says of the first."""
    if second["verdict"] == Verdict.INCONCLUSIVE:
        return "cannot be told apart"
    return f"is {better if second['verdict'] == Verdict.WORSE else worse} beyond chance"
