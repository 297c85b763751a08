"""Which trials are stopped early: asynchronous successive halving (Li et al., A System for Massively Parallel
Hyperparameter Tuning, MLSys 2020).
"""

from __future__ import annotations

from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial

REDUCTION = 2
"""Of so many trials that came to a rung one goes on."""


class Halving(BasePruner):
    """At each of `rungs`, in steps, a trial goes on that is among the best `1 / REDUCTION` of those that came there
    before it and itself; of fewer than `REDUCTION` the best one.

    What it says follows from the reported values alone. Optuna's own halving also notes what it has compared, in the
    journal but apart from the verdict: a trial that was killed between the two would go on.
    """

    def __init__(self, rungs: tuple[int, ...]) -> None:
        self._rungs = rungs

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial is to be stopped at the step that it reported last."""
        step = trial.last_step
        if step not in self._rungs:
            return False
        came = [other for other in study.get_trials(deepcopy=False) if other.number < trial.number]
        values = sorted(other.intermediate_values[step] for other in came if step in other.intermediate_values)
        own = trial.intermediate_values[step]
        better = sum(value < own for value in values)
        return better >= max(1, (len(values) + 1) // REDUCTION)
