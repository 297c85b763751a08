"""Intervals against published values, crashes beside the rate, and a log that resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from actwam.sim.results import EpisodeOutcome, EpisodeResult, ResultLog, evaluate, wilson_interval

RESULT = EpisodeResult("door-open-v3", "clean", 1_000_000, "open", EpisodeOutcome.SUCCESS, 70)


def results(success: int, timeout: int, crash: int) -> list[EpisodeResult]:
    outcomes = [EpisodeOutcome.SUCCESS] * success + [EpisodeOutcome.TIMEOUT] * timeout
    outcomes += [EpisodeOutcome.CRASH] * crash
    return [replace(RESULT, env_seed=1_000_000 + i, outcome=outcome) for i, outcome in enumerate(outcomes)]


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe (1998), table I: method 3 (Wilson's score without continuity correction).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_of_the_literature(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_interval_at_the_edges() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(5, 5)[1] == 1.0
    narrow, wide = wilson_interval(3, 9, confidence=0.5), wilson_interval(3, 9, confidence=0.99)
    assert wide[0] < narrow[0] < 3 / 9 < narrow[1] < wide[1]
    for bad in ((3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)):
        with pytest.raises(ValueError, match="no interval"):
            wilson_interval(*bad)


def test_crashes_are_beside_the_success_rate() -> None:
    other = [replace(result, task="soccer-v3") for result in results(0, 0, 2)]
    evaluation = evaluate(results(3, 1, 4) + other)
    assert (evaluation.overall.success_rate, evaluation.overall.n_episodes) == (0.75, 4)
    assert evaluation.overall.n_crashes == 6
    assert (evaluation.overall.wilson_low, evaluation.overall.wilson_high) == wilson_interval(3, 4)
    assert list(evaluation.per_task) == ["door-open-v3", "soccer-v3"]
    assert evaluation.per_task["soccer-v3"].success_rate is None
    assert evaluation.to_json()["per_task"]["door-open-v3"]["n_successes"] == 3
    with pytest.raises(ValueError, match="no episodes"):
        evaluate([])


def test_the_log_resumes_after_an_interruption(tmp_path: Path) -> None:
    first, second = results(1, 1, 0)
    with ResultLog(tmp_path, {"scene": "clean"}, resume=False) as log:
        log.add(first)
    log.path.write_text(log.path.read_text() + '{"task": "door-op')
    with pytest.raises(ValueError, match="resume it"):
        ResultLog(tmp_path, {"scene": "clean"}, resume=False)
    with pytest.raises(ValueError, match="scene was clean, is randomized"):
        ResultLog(tmp_path, {"scene": "randomized"}, resume=True)
    with ResultLog(tmp_path, {"scene": "clean"}, resume=True) as log:
        assert list(log.earlier.values()) == [first]
        log.add(first)
        log.add(second)
        with pytest.raises(ValueError, match="now ends with timeout"):
            log.add(replace(first, outcome=EpisodeOutcome.TIMEOUT))
    assert len(log.path.read_text().splitlines()) == 2
    with ResultLog(tmp_path, {"scene": "clean"}, resume=True) as log:
        assert list(log.earlier.values()) == [first, second]


def test_a_damaged_log_is_named(tmp_path: Path) -> None:
    with ResultLog(tmp_path, {}, resume=False) as log:
        log.add(RESULT)
    log.path.write_text("not json\n" + log.path.read_text())
    with pytest.raises(ValueError, match=r"episodes\.jsonl: line 1 is damaged"):
        ResultLog(tmp_path, {}, resume=True)
