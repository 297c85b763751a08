"""Exact statistics in two looks, against all numbers sorted in memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from actwam.data.quantiles import compute_stats, look, look_closer, sought, stats_of

NUMBERS = st.floats(-1e6, 1e6, width=32)


def plain(values: np.ndarray) -> dict[str, np.ndarray]:
    exact = values.astype(np.float64)
    q01, q99 = np.quantile(exact, [0.01, 0.99], axis=0)
    return {"min": exact.min(0), "q01": q01, "q99": q99, "max": exact.max(0)}


@given(arrays(np.float32, st.tuples(st.integers(1, 300), st.just(2)), elements=NUMBERS))
def test_ranks_are_found_without_sorting(values: np.ndarray) -> None:
    stats = compute_stats(values, ("x", "y"))
    for name, expected in plain(values).items():
        assert np.array_equal(getattr(stats, name), expected), name


def test_many_equal_numbers_and_close_ones() -> None:
    """A gripper that is open or closed, a joint that hardly moves, signs, zeros of both signs, tiny numbers."""
    random = np.random.default_rng(0)
    values = np.stack(
        [
            random.integers(0, 2, 20_011),
            1000 + random.normal(0, 1e-3, 20_011),
            random.normal(size=20_011),
            random.choice([0.0, -0.0, 1.0], 20_011, p=[0.5, 0.49, 0.01]),
            random.normal(0, 1e-42, 20_011),
        ],
        axis=1,
    ).astype(np.float32)
    stats = compute_stats(values, tuple("abcde"))
    for name, expected in plain(values).items():
        assert np.array_equal(getattr(stats, name), expected), name


@pytest.mark.parametrize("cuts", [(1,), (2, 3, 700), (500,)])
def test_parts_add_up_to_the_whole(cuts: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).normal(size=(1003, 3)).astype(np.float32)
    names = ("x", "y", "z")
    parts = [[part[: len(part) // 2], part[len(part) // 2 :]] for part in np.split(values, cuts)]
    first, *others = (look(part, names) for part in parts)
    for other in others:
        first += other
    aim = sought(first, names)
    second, *others = (look_closer(part, aim) for part in parts)
    for other in others:
        second += other
    found, whole = stats_of(names, first, second), compute_stats(values, names)
    for column in ("min", "max", "q01", "q99", "count"):
        assert getattr(found, column) == getattr(whole, column)
    assert np.allclose(found.mean, whole.mean, rtol=1e-13)
    assert np.allclose(found.std, whole.std, rtol=1e-13)


def test_a_robot_that_feels_nothing_has_statistics_of_nothing() -> None:
    stats = compute_stats(np.empty((7, 0), np.float32), ())
    assert (stats.count, stats.names, stats.q01) == (7, (), ())
