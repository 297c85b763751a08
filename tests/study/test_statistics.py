"""Paired differences against a slow twin, against known effects, and how often their intervals hold the truth."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from actwam.sim.results import wilson_interval
from actwam.study.statistics import Episodes, Key, Verdict, paired_difference, paired_difference_values, resample


def keys(tasks: int, seeds: int, starts: int) -> list[Key]:
    return [(f"task-{t}", s, 1_000_000 + e) for t in range(tasks) for s in range(seeds) for e in range(starts)]


def episodes(rate: float, seed: int, tasks: int = 4, seeds: int = 3, starts: int = 20) -> Episodes:
    rng = np.random.default_rng(seed)
    return Episodes({key: bool(rng.random() < rate) for key in keys(tasks, seeds, starts)})


def simulated(rng: np.random.Generator, tasks: int, effect: float) -> tuple[Episodes, Episodes]:
    """Two cells of three training seeds whose log-odds differ by `effect` on average, and by luck of every kind."""
    seeds, starts = 3, 20
    base = rng.normal(0.5, 1, (tasks, 1, 1)) + rng.normal(0, 1, (tasks, 1, starts))

    def cell(shift: np.ndarray | float) -> Episodes:
        luck = rng.normal(0, 0.3, (1, seeds, 1)) + rng.normal(0, 0.3, (tasks, seeds, 1))
        odds = base + shift + luck + rng.normal(0, 0.3, (tasks, 1, starts))
        succeeded = rng.random(odds.shape) < 1 / (1 + np.exp(-odds))
        return Episodes(dict(zip(keys(tasks, seeds, starts), succeeded.ravel().tolist(), strict=True)))

    return cell(effect + rng.normal(0, 0.5, (tasks, 1, 1))), cell(0.0)


def test_episodes_of_a_cell() -> None:
    success = {("open", 0, 1): True, ("open", 1, 1): False, ("close", 0, 1): True, ("close", 1, 1): True}
    cell = Episodes(success, n_crashes=2)
    assert (cell.n, cell.rate, cell.interval) == (4, 0.75, wilson_interval(3, 4))
    data = json.loads(json.dumps(cell.to_json()))
    low, high = wilson_interval(3, 4)
    assert data["success"] == {"rate": 0.75, "n": 4, "low": low, "high": high, "crashes": 2}
    assert list(data["per_task"]) == ["open", "close"]
    assert (data["per_task"]["open"]["rate"], data["per_task"]["open"]["n"]) == (0.5, 2)
    assert data["per_seed"] == [1.0, 0.5]
    assert (Episodes({}, 3).rate, Episodes({}, 3).interval) == (None, (0.0, 1.0))


def test_the_resampling_against_its_slow_twin() -> None:
    rng = np.random.default_rng(0)
    values = {key: float(rng.normal(int(key[0][-1]) + key[1], 1)) for key in keys(4, 3, 5)}
    del values["task-0", 0, 1_000_000], values["task-2", 1, 1_000_003]
    sums, counts = resample([values], 8_000, seed=1)
    slow = []
    for _ in range(8_000):
        seeds = rng.integers(0, 3, 3)
        drawn = []
        for task in rng.integers(0, 4, 4):
            for start in rng.integers(0, 5, 5):
                drawn += [values.get((f"task-{task}", int(seed), 1_000_000 + int(start))) for seed in seeds]
        slow.append(np.mean([value for value in drawn if value is not None]))
    fast = sums[0] / counts[0]
    assert fast.mean() == pytest.approx(np.mean(slow), abs=0.04)
    assert fast.std() == pytest.approx(np.std(slow), rel=0.03)
    at = [0.025, 0.25, 0.5, 0.75, 0.975]
    assert np.quantile(fast, at) == pytest.approx(np.quantile(slow, at), abs=0.08)


def test_columns_are_drawn_alike() -> None:
    values = {key: float(i) for i, key in enumerate(keys(3, 2, 4))}
    sums, counts = resample([values, {key: 2 * value for key, value in values.items()}], 50, seed=0)
    assert sums[1] == pytest.approx(2 * sums[0])
    assert (counts == 3 * 2 * 4).all()
    assert sums[0].std() > 0


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [(0.9, 0.3, Verdict.BETTER), (0.3, 0.9, Verdict.WORSE), (0.6, 0.58, Verdict.INCONCLUSIVE)],
)
def test_verdicts_of_known_differences(a: float, b: float, verdict: Verdict) -> None:
    one, other = episodes(a, 1), episodes(b, 2)
    difference = paired_difference(one, other)
    assert difference.verdict is verdict
    assert one.rate is not None
    assert other.rate is not None
    assert difference.mean == pytest.approx(one.rate - other.rate)
    assert difference.low < difference.mean < difference.high
    assert (difference.n_pairs, difference.n_dropped) == (240, 0)
    assert (difference.n_tasks, difference.n_training_seeds) == (4, 3)
    json.dumps(difference.to_json(), allow_nan=False)


def test_it_is_deterministic_and_antisymmetric() -> None:
    a, b = episodes(0.7, 1), episodes(0.5, 2)
    there, back = paired_difference(a, b, seed=3), paired_difference(b, a, seed=3)
    shuffled = Episodes(dict(reversed(a.success.items())))
    assert paired_difference(shuffled, b, seed=3) == there
    assert (back.mean, back.low, back.high) == pytest.approx((-there.mean, -there.high, -there.low))
    other = paired_difference(a, b, seed=4)
    assert (other.low, other.high) != (there.low, there.high)
    assert (other.low, other.high) == pytest.approx((there.low, there.high), abs=0.02)


def test_equal_cells_differ_by_nothing() -> None:
    a = episodes(0.5, 1)
    difference = paired_difference(a, a)
    assert (difference.mean, difference.low, difference.high) == (0, 0, 0)
    assert difference.verdict is Verdict.INCONCLUSIVE


def test_pairing_takes_out_what_the_starts_have_in_common() -> None:
    rng = np.random.default_rng(0)
    hard = {key[2]: rng.normal(0, 5) for key in keys(1, 1, 20)}
    a = {key: hard[key[2]] + 1.0 for key in keys(4, 3, 20)}
    b = {key: hard[key[2]] for key in keys(4, 3, 20)}
    difference = paired_difference_values(a, b)
    assert (difference.low, difference.high) == pytest.approx((1, 1))


def test_a_training_seed_counts_once_however_many_tasks_it_acts_in() -> None:
    """One seed of three is lucky in all 20 tasks: the interval must reach from no luck to nothing but luck."""
    a = {key: float(key[1] == 0) for key in keys(20, 3, 5)}
    difference = paired_difference_values(a, dict.fromkeys(a, 0.0))
    assert difference.mean == pytest.approx(1 / 3)
    assert (difference.low, difference.high) == pytest.approx((0, 1))
    assert difference.verdict is Verdict.INCONCLUSIVE


def test_unpaired_episodes_are_dropped_and_counted() -> None:
    a, b = dict(episodes(0.9, 1).success), dict(episodes(0.3, 2).success)
    first, second = list(a)[:2]
    del a[first], b[second]
    b["task-0", 0, 5] = True
    difference = paired_difference(Episodes(a), Episodes(b))
    assert (difference.n_pairs, difference.n_dropped) == (238, 3)
    common = [key for key in a if key in b]
    assert difference.mean == pytest.approx(np.mean([a[key] - b[key] for key in common]))


def test_few_tasks_and_seeds_are_noted() -> None:
    def note(tasks: int, seeds: int) -> str:
        return paired_difference(episodes(0.5, 1, tasks, seeds, 4), episodes(0.5, 2, tasks, seeds, 4)).note

    assert note(10, 2) == ""
    assert "4 tasks" in note(4, 2)
    assert "coarse" in note(4, 2)
    assert "one task" in note(1, 2)
    assert "one training seed" in note(10, 1)


def test_what_cannot_be_compared_is_refused() -> None:
    a = episodes(0.5, 1)
    with pytest.raises(ValueError, match="tasks differ"):
        paired_difference(a, episodes(0.5, 1, tasks=3))
    with pytest.raises(ValueError, match="no common episode"):
        paired_difference(a, Episodes({(t, s + 3, e): ok for (t, s, e), ok in a.success.items()}))
    holed = Episodes({key: ok for key, ok in a.success.items() if key[:2] != ("task-1", 2)})
    with pytest.raises(ValueError, match="task-1 has no common episode of training seed 2"):
        paired_difference(a, holed)
    with pytest.raises(ValueError, match="task-0, training seed 0, seed 1000000 has a value that is not finite"):
        paired_difference_values(a.success, {**a.success, keys(1, 1, 1)[0]: math.nan})


@pytest.mark.parametrize(("tasks", "least", "most"), [(10, 0.88, 0.99), (4, 0.92, 1.0)])
def test_how_often_the_interval_holds_the_truth(tasks: int, least: float, most: float) -> None:
    """The table at the top of the module, again with its own code: task effect 0.5, fewer resamples."""
    rng = np.random.default_rng(0)
    pairs = [simulated(rng, 200, 0.5) for _ in range(20)]
    truth = np.mean([np.mean(list(a.success.values())) - np.mean(list(b.success.values())) for a, b in pairs])
    held = 0
    for i in range(300):
        difference = paired_difference(*simulated(np.random.default_rng(i), tasks, 0.5), resamples=400, seed=i)
        held += difference.low <= truth <= difference.high
    print(f"{tasks} tasks: {held / 300:.3f} of the intervals hold {truth:.3f}")
    assert least <= held / 300 <= most
