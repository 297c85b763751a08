"""The law of the data: against a search over a grid, on data with a known law, and where there is none."""

from __future__ import annotations

import json

import numpy as np
import pytest

from actwam.study.power_law import FAILURE_RANGE, PowerLaw, _fit, data_multiplier, fit_power_laws
from actwam.study.statistics import Episodes, Verdict

DEMOS = (5, 10, 25, 50)


def cell(failure: float, seed: int, starts: int) -> Episodes:
    rng = np.random.default_rng(seed)
    keys = [(f"task-{t}", s, e) for t in range(4) for s in range(3) for e in range(starts)]
    return Episodes({key: bool(rng.random() >= failure) for key in keys})


def curve(a: float, b: float, starts: int = 20, seed: int = 0) -> dict[int, Episodes]:
    return {x: cell(a * x**-b, 100 * seed + i, starts) for i, x in enumerate(DEMOS)}


def exact(a: float, b: float, draws: np.ndarray | None = None) -> PowerLaw:
    draws = np.array([[np.log(a), b]] * 3) if draws is None else draws
    low, high = np.quantile(draws[:, 1], (0.025, 0.975)).tolist()
    return PowerLaw(a, b, low, high, DEMOS, draws)


@pytest.mark.parametrize("counts", [(18, 15, 9, 4), (20, 18, 1, 0), (20, 20, 20, 3), (3, 2, 2, 1), (2, 5, 9, 12)])
def test_the_fit_against_a_search(counts: tuple[int, ...]) -> None:
    log_x, k, n = np.log(np.array(DEMOS)), np.array([counts], dtype=float), np.full((1, 4), 20.0)
    (found,) = _fit(log_x, k, n)
    ends = -np.log(np.array(FAILURE_RANGE))
    first, last = np.meshgrid(*[np.linspace(ends[1], ends[0], 800)] * 2, indexing="ij")
    b = (last - first) / (log_x[-1] - log_x[0])
    laws = np.stack([b * log_x[0] - first, b], axis=-1)

    def likelihood(law: np.ndarray) -> np.ndarray:
        eta = np.minimum(law[..., :1] - law[..., 1:] * log_x, np.log(FAILURE_RANGE[1]))
        return (k * eta + (n - k) * np.log(-np.expm1(eta))).sum(-1)

    searched = likelihood(laws)
    assert likelihood(found)[()] >= searched.max() - 1e-6
    assert found == pytest.approx(laws.reshape(-1, 2)[searched.argmax()], abs=0.03)


def test_rows_are_fitted_one_by_one() -> None:
    rng = np.random.default_rng(0)
    n = np.full((50, 4), 60.0)
    k = rng.binomial(60, np.sort(rng.random((50, 4)))[:, ::-1]).astype(float)
    together = _fit(np.log(np.array(DEMOS)), k, n)
    alone = np.concatenate([_fit(np.log(np.array(DEMOS)), k[i : i + 1], n[i : i + 1]) for i in range(50)])
    assert together == pytest.approx(alone, abs=1e-5)


def test_a_known_law_is_found() -> None:
    law = fit_power_laws({"": curve(1.2, 0.5, starts=800)})[""]
    assert (law.a, law.b) == pytest.approx((1.2, 0.5), rel=0.06)
    assert law.b_low < 0.5 < law.b_high
    assert law.falls
    at = np.array([5.0, 20.0, 50.0])
    assert law.success(at) == pytest.approx(1 - 1.2 * at**-0.5, abs=0.02)
    low, high = law.band(at)
    assert (low < law.success(at)).all()
    assert (law.success(at) < high).all()
    assert law.success(np.array([1e-3])).tolist() == [0.0]


def test_rates_of_nothing_and_of_all() -> None:
    full = {x: cell(0.0, i, 5) for i, x in enumerate(DEMOS)}
    none = {x: cell(1.0, i, 5) for i, x in enumerate(DEMOS)}
    laws = fit_power_laws({"full": full, "none": none, "step": {5: none[5], 50: full[50]}}, resamples=50)
    assert not laws["full"].falls
    assert not laws["none"].falls
    assert laws["step"].falls
    at = np.array([5.0, 50.0])
    assert laws["full"].success(at) == pytest.approx([1, 1], abs=1e-3)
    assert laws["none"].success(at) == pytest.approx([0, 0], abs=1e-3)
    assert laws["step"].success(at) == pytest.approx([0, 1], abs=1e-3)
    for law in laws.values():
        json.dumps(law.to_json(), allow_nan=False)


def test_the_interval_of_the_slope_holds_the_truth() -> None:
    laws = [fit_power_laws({"": curve(1.2, 0.5, seed=i)}, resamples=200)[""] for i in range(60)]
    held = np.mean([law.b_low <= 0.5 <= law.b_high for law in laws])
    print(f"{held:.2f} of the intervals hold the slope")
    assert held >= 0.9


def test_the_json_draws_the_curve() -> None:
    data = fit_power_laws({"": curve(1.2, 0.5)}, resamples=100)[""].to_json(points=5)["curve"]
    assert data["demonstrations"] == pytest.approx(np.geomspace(5, 50, 5).tolist())
    assert all(low <= s <= high for low, s, high in zip(data["low"], data["success"], data["high"], strict=True))


def test_how_many_times_fewer_demonstrations() -> None:
    # Half the failures at every number, slope 1/2: a quarter of the demonstrations.
    half, whole = exact(0.75, 0.5), exact(1.5, 0.5)
    found = data_multiplier(half, whole, 50)
    assert (found.value, found.low, found.high) == pytest.approx((4, 4, 4))
    assert found.success == pytest.approx(1 - 1.5 * 50**-0.5)
    assert (found.verdict, found.note) == (Verdict.BETTER, "")
    back = data_multiplier(whole, half, 50)
    assert back.value == pytest.approx(1 / 4)
    assert back.verdict is Verdict.WORSE
    assert "extrapolated to 200 demonstrations" in back.note
    assert data_multiplier(whole, whole, 50).verdict is Verdict.INCONCLUSIVE


def test_no_multiplier_where_the_curve_may_be_flat() -> None:
    flat = exact(1.0, 0.1, np.array([[0.0, 0.1], [0.0, -0.1], [0.0, 0.2]]))
    assert not flat.falls
    found = data_multiplier(flat, exact(1.5, 0.5), 50)
    assert (found.value, found.low, found.high) == (None, None, None)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "may be 0" in found.note


def test_a_draw_that_never_falls_needs_infinitely_many() -> None:
    draws = np.array([[0.0, 0.5]] * 99 + [[0.0, -0.5]])
    assert data_multiplier(exact(1.0, 0.5, draws), exact(1.0, 0.5, draws[::-1]), 50).low == pytest.approx(1)
    rare = np.array([[0.0, 0.5]] * 79 + [[0.0, 1e-9]])
    law = exact(1.0, 0.5, np.concatenate([rare, rare[-1:]]))
    low = data_multiplier(law, exact(2.0, 0.5, np.full((81, 2), 0.5)), 50).low
    assert low is not None
    assert np.isfinite(low)


def test_two_curves_share_their_draws() -> None:
    laws = fit_power_laws({"a": curve(1.2, 0.5), "b": curve(1.2, 0.5)}, resamples=100)
    assert (laws["a"].draws == laws["b"].draws).all()
    found = data_multiplier(laws["a"], laws["b"], 50)
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))
    other = fit_power_laws({"a": curve(1.2, 0.5)}, resamples=50)["a"]
    with pytest.raises(ValueError, match="in one call"):
        data_multiplier(other, laws["b"], 50)


def test_what_is_no_curve_is_refused() -> None:
    some = curve(1.2, 0.5, starts=2)
    assert fit_power_laws({}) == {}
    with pytest.raises(ValueError, match="short: a law needs two or more"):
        fit_power_laws({"short": {5: some[5]}})
    with pytest.raises(ValueError, match="above 0"):
        fit_power_laws({"zero": {0: some[5], 5: some[5]}})
    with pytest.raises(ValueError, match="task-0 has no common episode of training seed 0"):
        fit_power_laws({"": {5: some[5], 10: Episodes({})}})
