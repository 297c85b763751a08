from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actwam.data.normalize import Normalizer, NormStats
from actwam.data.quantiles import compute_stats

NAMES = ("x", "y", "gripper")


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal([1, -20, 300], [0.1, 5, 70], (1001, 3)).astype(np.float32)


def with_constant(values: np.ndarray) -> np.ndarray:
    still = values.copy()
    still[:, 1] = 0.1
    return still


def test_statistics_are_exact(values: np.ndarray) -> None:
    stats = compute_stats(values, NAMES)
    exact = values.astype(np.float64)
    assert stats.count == 1001
    assert np.allclose(stats.mean, exact.mean(0), rtol=1e-14)
    assert np.allclose(stats.std, exact.std(0), rtol=1e-14)
    assert stats.min == tuple(exact.min(0))
    assert stats.max == tuple(exact.max(0))
    order = np.sort(exact, axis=0)
    assert np.allclose(stats.q01, order[10])  # 1 % of 1000 intervals
    assert np.allclose(stats.q99, order[990])


def test_statistics_do_not_lose_small_motion_on_a_large_offset() -> None:
    values = (1e4 + np.random.default_rng(0).normal(0, 0.01, (50_000, 1))).astype(np.float32)
    assert compute_stats(values, ("x",)).std[0] == pytest.approx(values.astype(np.float64).std(), rel=1e-12)


def test_quantiles_map_to_one_and_nothing_is_clamped(values: np.ndarray) -> None:
    stats = compute_stats(values, NAMES)
    normalizer = Normalizer(stats)
    rows = np.array([stats.q01, stats.q99, stats.min, stats.max])
    low, high, smallest, largest = normalizer.normalize(rows)
    assert np.allclose(low, -1)
    assert np.allclose(high, 1)
    assert (smallest < -1).all()
    assert (largest > 1).all()


def test_other_modes(values: np.ndarray) -> None:
    stats = compute_stats(values, NAMES)
    ends = Normalizer(stats, "min_max").normalize(values)
    assert np.allclose(ends.min(0), -1, atol=1e-5)
    assert np.allclose(ends.max(0), 1, atol=1e-5)
    unit = Normalizer(stats, "mean_std").normalize(values)
    assert np.allclose(unit.mean(0), 0, atol=1e-4)
    assert np.allclose(unit.std(0), 1, atol=1e-5)


@pytest.mark.parametrize("mode", ["quantile", "min_max", "mean_std"])
def test_torch_equals_numpy_and_the_inverse_returns(values: np.ndarray, mode: str) -> None:
    normalizer = Normalizer(compute_stats(values, NAMES), mode)
    there = normalizer.normalize(values)
    assert there.dtype == np.float32
    assert np.array_equal(normalizer.normalize(torch.from_numpy(values)).numpy(), there)
    back = normalizer.denormalize(there)
    assert np.allclose(back, values, rtol=1e-6, atol=1e-4)
    assert np.array_equal(normalizer.denormalize(torch.from_numpy(there)).numpy(), back)
    chunks = values[:1000].reshape(10, 100, 3)
    assert np.array_equal(normalizer.normalize(chunks), there[:1000].reshape(10, 100, 3))


def test_float64_stays_float64_and_half_becomes_float32(values: np.ndarray) -> None:
    normalizer = Normalizer(compute_stats(values, NAMES))
    assert normalizer.normalize(values.astype(np.float64)).dtype == np.float64
    assert normalizer.denormalize(torch.zeros(2, 3, dtype=torch.bfloat16)).dtype == torch.float32


def test_zero_range_is_refused_by_name(values: np.ndarray) -> None:
    stats = compute_stats(with_constant(values), NAMES)
    for mode in ("quantile", "min_max", "mean_std"):
        with pytest.raises(ValueError, match=r'y \(dimension 1\) is 0\.1 in all 1001 rows.*constant="center"'):
            Normalizer(stats, mode)


@pytest.mark.parametrize("mode", ["quantile", "min_max", "mean_std"])
def test_zero_range_can_be_centered(values: np.ndarray, mode: str) -> None:
    still = with_constant(values)
    normalizer = Normalizer(compute_stats(still, NAMES), mode, constant="center")
    there = normalizer.normalize(still)
    assert (there[:, 1] == 0).all()
    assert np.isfinite(there).all()
    there[:, 1] = 7  # whatever the model says
    assert (normalizer.denormalize(there)[:, 1] == np.float32(0.1)).all()


@pytest.mark.parametrize("constant", ["error", "center"])
def test_a_rare_switch_is_not_taken_for_a_constant(constant: str) -> None:
    values = np.zeros((1000, 1), np.float32)
    values[3] = 1
    stats = compute_stats(values, ("gripper",))
    with pytest.raises(ValueError, match=r'gripper .* so rarely .* choose mode="min_max"'):
        Normalizer(stats, "quantile", constant)
    assert Normalizer(stats, "min_max", constant).normalize(values).max() == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_refused(values: np.ndarray, bad: float) -> None:
    normalizer = Normalizer(compute_stats(values, NAMES))
    values[5, 2] = bad
    with pytest.raises(ValueError, match=r"gripper is -?(nan|inf) in row 5"):
        compute_stats(values, NAMES)
    for action in (normalizer.normalize, normalizer.denormalize):
        with pytest.raises(ValueError, match=r"gripper is -?(nan|inf) at index \(5, 2\)"):
            action(values)
        with pytest.raises(ValueError, match=r"gripper is -?(nan|inf) at index \(5, 2\)"):
            action(torch.from_numpy(values))


def test_wrong_widths_and_no_rows_are_refused(values: np.ndarray) -> None:
    normalizer = Normalizer(compute_stats(values, NAMES))
    with pytest.raises(ValueError, match=r"shape \(1001, 2\) does not end in the 3"):
        normalizer.normalize(values[:, :2])
    with pytest.raises(ValueError, match="2 names"):
        compute_stats(values, NAMES[:2])
    with pytest.raises(ValueError, match="no rows"):
        compute_stats(values[:0], NAMES)


floats = st.floats(allow_nan=False, allow_infinity=False, width=32)


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.tuples(floats, floats, floats), min_size=1, max_size=8))
def test_json_round_trip_is_bit_equal(rows: list[tuple[float, ...]]) -> None:
    stats = compute_stats(np.array(rows, np.float32), NAMES)
    assert NormStats.from_json(json.loads(json.dumps(stats.to_json(), allow_nan=False))) == stats


def test_normaliser_round_trip(values: np.ndarray) -> None:
    normalizer = Normalizer(compute_stats(values, NAMES), "min_max", constant="center")
    again = Normalizer.from_json(json.loads(json.dumps(normalizer.to_json())))
    assert again == normalizer
    assert np.array_equal(again.normalize(values), normalizer.normalize(values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": [1.0]}, "mean has 1 numbers for 3"),
        ({"std": [1.0, float("nan"), 1.0]}, "std has NaN"),
        ({"q01": [1e9, 1e9, 1e9]}, "min <= q01 <= q99 <= max"),
        ({"count": 0}, "count is 0"),
        ({"count": 1.5}, "count is 1.5, expected a whole number"),
        ({"mean": ["1", "2", "3"]}, "mean is .* expected a list"),
        ({"names": None}, "names is None, expected a list"),
        ({"surprise": 1}, "expected"),
    ],
)
def test_damaged_statistics_are_refused(values: np.ndarray, change: dict, message: str) -> None:
    data = compute_stats(values, NAMES).to_json() | change
    with pytest.raises(ValueError, match=message):
        NormStats.from_json(data)


def test_unknown_mode_is_refused(values: np.ndarray) -> None:
    data = Normalizer(compute_stats(values, NAMES)).to_json() | {"mode": "log"}
    with pytest.raises(ValueError, match="mode is 'log'; choose one of"):
        Normalizer.from_json(data)
