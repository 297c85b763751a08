"""What a study may conclude: success rates, and paired differences with their uncertainty.

A study evaluates several policies ("cells") on the same tasks, training seeds and evaluation seeds. An episode or
a window is named by (task, training seed, evaluation seed); two cells are compared where both have the name.

Everything here resamples in one way, `resample`. One policy of one training seed acts in all tasks, so training
seeds are crossed with tasks; an evaluation seed is a start of one task, and every policy meets it. Therefore tasks
are drawn with replacement; training seeds are drawn with replacement, the same draw for all tasks; and inside every
drawn task its evaluation seeds are drawn with replacement, the same draw for all training seeds. Source: Owen, The
pigeonhole bootstrap, Annals of Applied Statistics 1 (2007); Owen and Eckles, ibid. 6 (2012), who show that it errs
by too wide intervals, not by too narrow ones. Two other ways were tried and cover too little, because they take a
training seed's luck for as many independent pieces of luck as there are tasks: drawing tasks alone (Cameron and
Miller, Journal of Human Resources 50, 2015) and drawing training seeds anew in every task (Davison and Hinkley,
Bootstrap Methods, 1997, section 3.8).

How often the 95 % interval of a difference held the truth in 400 simulations (3 training seeds, 20 episodes; normal
effects of training seeds, of starts and of tasks on the log-odds, with standard deviation 0.3, of tasks as given):

    tasks   task effect   this one   seeds anew in every task   tasks alone
      3       0 .. 1.0   0.95..0.98         0.89..0.96          0.65..0.74
      4       0 .. 1.0   0.96..0.99         0.89..0.95          0.68..0.76
     10       0 .. 1.0   0.94..0.96         0.86..0.87          0.65..0.79
     20       0 .. 1.0   0.92..0.94         0.79..0.86          0.57..0.80

Where nothing but chance separates episodes it covers too much, 1.00: it misses small differences then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from actwam.sim.results import wilson_interval

Key: TypeAlias = tuple[str, int, int]
"""Task, training seed, and evaluation seed of an episode or index of a held-out window."""
TAILS = (0.025, 0.975)
"""Every interval here is the central 95 % of the resamples."""
ROUNDING = 1e-9
FEW_TASKS = 10
"""Below this many tasks a difference carries a warning."""


class Verdict(StrEnum):
    """What an interval says: all of it above the neutral value, all of it below, or neither."""

    BETTER = "better"
    WORSE = "worse"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Episodes:
    """Which episodes of one cell succeeded. Crashes say nothing of the policy: they are counted and left out."""

    success: Mapping[Key, bool]
    n_crashes: int = 0

    @property
    def n(self) -> int:
        return len(self.success)

    @property
    def rate(self) -> float | None:
        """Share of successes, None without episodes."""
        return sum(self.success.values()) / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval: of these policies in these tasks, not of new training seeds or tasks."""
        return wilson_interval(sum(self.success.values()), self.n)

    def to_json(self) -> dict[str, Any]:
        """`success`, `per_task` and `per_seed` (rates in the order of the training seeds) of a study's results."""
        tasks = dict.fromkeys(key[0] for key in self.success)
        seeds = sorted({key[1] for key in self.success})
        return {
            "success": {**self._summary(), "crashes": self.n_crashes},
            "per_task": {task: self._part(0, task)._summary() for task in tasks},
            "per_seed": [self._part(1, seed).rate for seed in seeds],
        }

    def _part(self, position: int, value: str | int) -> Episodes:
        return Episodes({key: success for key, success in self.success.items() if key[position] == value})

    def _summary(self) -> dict[str, Any]:
        low, high = self.interval
        return {"rate": self.rate, "n": self.n, "low": low, "high": high}


@dataclass(frozen=True)
class Difference:
    """How much better a cell is than a reference, with a 95 % interval over new tasks, training seeds and starts."""

    mean: float
    """Over all pairs alike, so it is the difference of the two rates on the common episodes."""
    low: float
    high: float
    n_pairs: int
    n_dropped: int
    """Episodes that only one of the two has, because the other's crashed or was not run."""
    n_tasks: int
    n_training_seeds: int
    verdict: Verdict
    note: str
    """What the small number of tasks and training seeds means, "" where they are enough."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def paired_difference(a: Episodes, b: Episodes, *, resamples: int = 10_000, seed: int = 0) -> Difference:
    """Success rate of `a` less that of `b`, over the episodes that both have; method and coverage at the top.

    With 3 or 4 tasks the interval is coarse: a third of the 256 equally likely draws of 4 tasks hold only one or two
    of them, and with 3 tasks one draw in nine holds a single one, so one odd task decides where the interval ends.
    What it says of tasks that nobody tried then rests on their being like these. `note` says so.

    Raises ValueError if the tasks differ, nothing is common, or a task lacks a training seed that another has.
    """
    return paired_difference_values(a.success, b.success, resamples=resamples, seed=seed)


def paired_difference_values(
    a: Mapping[Key, int | float], b: Mapping[Key, int | float], *, resamples: int = 10_000, seed: int = 0
) -> Difference:
    """`paired_difference` of a measure where more is better, as PSNR and SSIM of windows; negate one where less is.

    Windows of one episode are alike: give their mean as one value, or take one window an episode.
    """
    tasks = tasks_of(a)
    if tasks != tasks_of(b):
        raise ValueError(
            f"the tasks differ, {listed(tasks)} and {listed(tasks_of(b))}: compare cells of the same tasks"
        )
    differences = {key: float(a[key]) - float(b[key]) for key in a if key in b}
    if not differences:
        raise ValueError("no common episode: compare cells of the same training seeds and evaluation seeds")
    bad = next((key for key, value in differences.items() if not np.isfinite(value)), None)
    if bad is not None:
        raise ValueError(f"{_named(bad)} has a value that is not finite: leave it out of both, or measure it again")
    seeds = {key[1] for key in differences}
    check_crossed(differences, tasks, seeds)
    sums, counts = resample([differences], resamples, seed)
    drawn = counts[0] > 0  # a draw of nothing but missing pairs says nothing
    low, high = np.quantile(sums[0, drawn] / counts[0, drawn], TAILS).tolist()
    return Difference(
        mean=float(np.mean(list(differences.values()))),
        low=low,
        high=high,
        n_pairs=len(differences),
        n_dropped=len(a) + len(b) - 2 * len(differences),
        n_tasks=len(tasks),
        n_training_seeds=len(seeds),
        verdict=verdict_of(low, high, neutral=0.0),
        note=_note(len(tasks), len(seeds)),
    )


def resample(
    columns: Sequence[Mapping[Key, float]], resamples: int, seed: int
) -> tuple[Float[np.ndarray, "columns resamples"], Float[np.ndarray, "columns resamples"]]:
    """Sums and counts of each column's values in every resample. All columns are drawn alike.

    A task that is drawn m times has its E starts drawn m times E times, which is the same as E each time.
    """
    rng = np.random.default_rng(seed)
    keys = set().union(*columns)
    tasks, seeds = sorted({key[0] for key in keys}), sorted({key[1] for key in keys})
    drawn_tasks = rng.multinomial(len(tasks), np.full(len(tasks), 1 / len(tasks)), size=resamples)
    drawn_seeds = rng.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=resamples)
    totals = np.zeros((2, len(columns), resamples))
    for t, task in enumerate(tasks):
        starts = sorted({key[2] for key in keys if key[0] == task})
        table = np.array(
            [[[c.get((task, s, start), np.nan) for c in columns] for s in seeds] for start in starts]
        )  # starts, training seeds, columns
        drawn = rng.multinomial(drawn_tasks[:, t] * len(starts), np.full(len(starts), 1 / len(starts)))
        for total, values in zip(totals, (np.nan_to_num(table), np.isfinite(table)), strict=True):
            by_seed = (drawn @ values.reshape(len(starts), -1).astype(float)).reshape(resamples, len(seeds), -1)
            total += np.einsum("rsc,rs->cr", by_seed, drawn_seeds)
    return totals[0], totals[1]


def verdict_of(low: float, high: float, *, neutral: float) -> Verdict:
    """An end that differs from `neutral` by rounding alone is on it."""
    if low > neutral + ROUNDING:
        return Verdict.BETTER
    return Verdict.WORSE if high < neutral - ROUNDING else Verdict.INCONCLUSIVE


def _note(n_tasks: int, n_seeds: int) -> str:
    """What the numbers of tasks and of training seeds leave open."""
    parts = []
    if n_tasks == 1:
        parts.append("one task: nothing is said of others")
    elif n_tasks < FEW_TASKS:
        parts.append(f"{n_tasks} tasks: the interval is coarse, and one odd task can decide it")
    if n_seeds == 1:
        parts.append("one training seed: training again may give another difference")
    return "; ".join(parts)


def check_crossed(keys: Iterable[Key], tasks: set[str], seeds: set[int]) -> None:
    """Every task with every training seed: otherwise a draw of training seeds would be one of tasks too."""
    present = {key[:2] for key in keys}
    missing = sorted({(task, seed) for task in tasks for seed in seeds} - present)
    if missing:
        task, seed = missing[0]
        raise ValueError(
            f"{task} has no common episode of training seed {seed}: evaluate it, or leave the training seed out"
        )


def tasks_of(values: Mapping[Key, Any]) -> set[str]:
    return {key[0] for key in values}


def listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, sorted(values))) or "none"


def _named(key: Key) -> str:
    return f"{key[0]}, training seed {key[1]}, seed {key[2]}"
