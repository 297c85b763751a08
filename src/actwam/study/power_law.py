"""Success as a law of the number of demonstrations, and how many fewer of them one policy needs than another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from actwam.study.statistics import TAILS, Episodes, Verdict, check_crossed, listed, resample, tasks_of, verdict_of

FAILURE_RANGE = (1e-4, 1 - 1e-6)
"""Fitted failure rates at the least and the most data stay inside: without a failure there is no best law."""
MULTIPLIER_RANGE = (1e-6, 1e6)


@dataclass(frozen=True)
class PowerLaw:
    """Failure rate = a * demonstrations^(-b), never above 1 (Hestness et al. 2017, arXiv 1712.00409, for errors).

    `b` is the slope on two logarithmic axes: the failure rate is halved by 2^(1/b) times the demonstrations.
    """

    a: float
    b: float
    b_low: float
    b_high: float
    demonstrations: tuple[int, ...]
    """Where success was measured, rising."""
    draws: Float[np.ndarray, "resamples 2"] = field(repr=False, compare=False)
    """(log a, b) of every resample; laws of one `fit_power_laws` were fitted to the same draws."""

    @property
    def falls(self) -> bool:
        """Whether failures are known to get fewer: the interval of b lies above 0."""
        return self.b_low > 0

    def success(self, demonstrations: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        return 1 - np.minimum(1, self.a * demonstrations**-self.b)

    def band(self, demonstrations: Float[np.ndarray, "n"]) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
        """Lower and upper end of the 95 % interval of success at each number of demonstrations."""
        log_a, b = self.draws[:, :1], self.draws[:, 1:]
        low, high = np.quantile(1 - np.exp(np.minimum(0, log_a - b * np.log(demonstrations))), TAILS, axis=0)
        return low, high

    def to_json(self, points: int = 60) -> dict[str, Any]:
        """The numbers, and the curve with its band over the measured range, for a figure."""
        grid = np.geomspace(self.demonstrations[0], self.demonstrations[-1], points)
        low, high = self.band(grid)
        curve = {"demonstrations": grid, "success": self.success(grid), "low": low, "high": high}
        return {
            "a": self.a,
            "b": self.b,
            "b_low": self.b_low,
            "b_high": self.b_high,
            "curve": {name: values.tolist() for name, values in curve.items()},
        }


def fit_power_laws(
    curves: Mapping[str, Mapping[int, Episodes]], *, resamples: int = 2_000, seed: int = 0
) -> dict[str, PowerLaw]:
    """The law of each curve (episodes by number of demonstrations), by maximum binomial likelihood.

    With k failures of n episodes, failure rate f = exp(log a - b log demonstrations), it maximises the sum of
    k log f + (n-k) log(1-f): a binomial model with logarithmic link (McCullagh and Nelder, Generalized Linear
    Models, 1989, chapter 4), which takes rates of 0 and 1 as they are. b's interval comes from resampling tasks,
    training seeds and starts, the same draws at all numbers of demonstrations and for all curves.

    Raises ValueError for fewer than two numbers of demonstrations, one that is not positive, or a task or training
    seed that is missing somewhere.
    """
    for name, curve in curves.items():
        if len(curve) < 2 or min(curve) <= 0:
            raise ValueError(f"{name}: a law needs two or more numbers of demonstrations above 0, not {listed(curve)}")
    points = [(name, demonstrations) for name, curve in curves.items() for demonstrations in sorted(curve)]
    columns = [{k: float(not s) for k, s in curves[name][x].success.items()} for name, x in points]
    if not columns:
        return {}
    tasks, seeds = set().union(*map(tasks_of, columns)), {key[1] for column in columns for key in column}
    for column in columns:
        check_crossed(column, tasks, seeds)
    failures, trials = resample(columns, resamples, seed)
    laws = {}
    for name in curves:
        mine = [i for i, point in enumerate(points) if point[0] == name]
        measured = tuple(points[i][1] for i in mine)
        exact = np.array([[sum(columns[i].values()) for i in mine], [len(columns[i]) for i in mine]])
        log_a, b = _fit(np.log(measured), exact[:1], exact[1:])[0].tolist()
        draws = _fit(np.log(measured), failures[mine].T, trials[mine].T)
        b_low, b_high = np.quantile(draws[:, 1], TAILS).tolist()
        laws[name] = PowerLaw(float(np.exp(log_a)), b, b_low, b_high, measured, draws)
    return laws


@dataclass(frozen=True)
class Multiplier:
    """How many times fewer demonstrations a cell needs; all None where its curve does not tell."""

    value: float | None
    low: float | None
    high: float | None
    success: float
    """The rate that has to be reached."""
    verdict: Verdict
    note: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def data_multiplier(law_a: PowerLaw, law_b: PowerLaw, demonstrations: int) -> Multiplier:
    """How many times fewer demonstrations A needs to reach the success that B has with `demonstrations`.

    A reaches B's failure rate f at (a_A / f)^(1 / b_A) demonstrations; the multiplier is `demonstrations` divided by
    that (as "effective data" in Hernandez et al. 2021, arXiv 2102.01293), 95 % interval from the common draws. A
    draw whose curve never falls needs infinitely many, a multiplier of 0. Where the interval of b_A includes 0 there
    is no answer. Raises ValueError unless both laws come from the same `fit_power_laws`.
    """
    if len(law_a.draws) != len(law_b.draws):
        raise ValueError("the two laws have other resamples: fit them in one call of fit_power_laws")
    x = np.array([float(demonstrations)])
    success = float(law_b.success(x)[0])
    if not law_a.falls:
        return Multiplier(None, None, None, success, Verdict.INCONCLUSIVE, "the slope of its curve may be 0")
    (value,) = _times_fewer(_line(law_a), _line(law_b), x)
    low, high = np.quantile(_times_fewer(law_a.draws, law_b.draws, x), TAILS).tolist()
    needed = demonstrations / value
    inside = law_a.demonstrations[0] <= needed <= law_a.demonstrations[-1]
    note = "" if inside else f"its curve is extrapolated to {needed:.3g} demonstrations, where nothing was measured"
    return Multiplier(float(value), low, high, success, verdict_of(low, high, neutral=1.0), note)


def _line(law: PowerLaw) -> Float[np.ndarray, "1 2"]:
    return np.array([[np.log(law.a), law.b]])


def _times_fewer(
    a: Float[np.ndarray, "r 2"], b: Float[np.ndarray, "r 2"], demonstrations: Float[np.ndarray, "1"]
) -> Float[np.ndarray, "r"]:
    log_x = np.log(demonstrations)
    log_failure = np.minimum(0, b[:, 0] - b[:, 1] * log_x)
    falls = a[:, 1] > 0
    log_needed = (a[:, 0] - log_failure) / np.where(falls, a[:, 1], 1)
    log_low, log_high = np.log(MULTIPLIER_RANGE)
    return np.where(falls, np.exp(np.clip(log_x - log_needed, log_low, log_high)), 0)


def _fit(
    log_x: Float[np.ndarray, "p"], failures: Float[np.ndarray, "r p"], trials: Float[np.ndarray, "r p"]
) -> Float[np.ndarray, "r 2"]:
    """(log a, b) of maximum likelihood for each row of counts.

    The unknowns are minus the log failure rates at the first and the last point. The likelihood is concave in them
    and they are bounded by `FAILURE_RANGE`: Newton steps projected on a box (Bertsekas, SIAM Journal on Control
    and Optimization 20, 1982), halved where they do not climb.
    """
    place = (log_x - log_x[0]) / (log_x[-1] - log_x[0])
    basis = np.stack([1 - place, place], axis=1)
    high, low = -np.log(FAILURE_RANGE)
    n = np.maximum(trials.sum(1, keepdims=True), 1)
    k, s = failures / n, (trials - failures) / n

    def likelihood(theta: Float[np.ndarray, "r 2"]) -> Float[np.ndarray, "r"]:
        eta = -theta @ basis.T
        return (k * eta + s * np.log(-np.expm1(eta))).sum(1)

    theta = np.full((len(k), 2), np.log(2))
    best = likelihood(theta)
    for _ in range(200):
        failure = np.exp(-theta @ basis.T)
        odds = failure / (1 - failure)
        gradient = (s * odds - k) @ basis
        curvature = np.einsum("rp,pi,pj->rij", s * odds / (1 - failure), basis, basis) + 1e-9 * np.eye(2)
        held = ((theta <= low) & (gradient < 0)) | ((theta >= high) & (gradient > 0))
        gradient = np.where(held, 0, gradient)
        curvature[(held[:, :, None] | held[:, None, :]) & ~np.eye(2, dtype=bool)] = 0
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        size = np.ones(len(k))
        for _ in range(40):
            tried = np.clip(theta + size[:, None] * step, low, high)
            reached = likelihood(tried)
            if (reached >= best).all():
                break
            size = np.where(reached >= best, size, size / 2)
        better = reached > best
        moved = np.abs(tried - theta)[better].max(initial=0)
        theta, best = np.where(better[:, None], tried, theta), np.where(better, reached, best)
        if moved < 1e-8:
            break
    b = (theta[:, 1] - theta[:, 0]) / (log_x[-1] - log_x[0])
    return np.stack([b * log_x[0] - theta[:, 0], b], axis=1)
