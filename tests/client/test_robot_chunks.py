"""Chunks become actions by executed steps. Each defect that other projects reported has a test here."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actwam.sim.chunks import ENSEMBLE_RATE, Execution, Merge, Timing
from actwam.types import ActionChunk
from actwam_client.chunks import Delay, Executor, Request
from actwam_client.contract import Previous

K = 10


def chunk_at(step: int, width: int = 1, slope: float = 1.0) -> np.ndarray:
    """A chunk whose actions are the steps that they are for."""
    return np.repeat(slope * np.arange(step, step + K, dtype=np.float32)[:, None], width, 1)


def play(executor: Executor, delays: list[int], steps: int) -> list[float | None]:
    """The action of each control step; answers come after so many of them, the last delay again and again."""
    actions: list[float | None] = []
    under_way: tuple[Request, int] | None = None
    for tick in range(steps):
        if under_way is not None and tick >= under_way[1]:
            request = under_way[0]
            executor.offer(request, chunk_at(request.step))
            under_way = None
        request = executor.need()
        if request is not None:
            under_way = (request, tick + (delays.pop(0) if len(delays) > 1 else delays[0]))
        action = executor.next()
        actions.append(None if action is None else float(action[0]))
    return actions


@pytest.mark.parametrize("strategy", ["switch", "ensemble", "rtc"])
@given(st.lists(st.integers(1, 14), min_size=1, max_size=20))
def test_every_action_is_the_one_of_its_step(strategy: str, delays: list[int]) -> None:
    """lerobot PR 4223: a slow first answer cost 21 of 30 actions. strands 725: alignment by the clock."""
    executor = Executor(K, strategy=strategy)
    executed = [action for action in play(executor, delays, 150) if action is not None]
    assert np.allclose(executed, np.arange(len(executed))), "no action is skipped and none is repeated"
    assert executor.step == len(executed)
    assert executor.seams.inside is None or executor.seams.inside <= 1 + 1e-6
    assert executor.seams.between is None or executor.seams.between <= 1 + 1e-6


def test_a_cold_start_skips_nothing_and_is_no_delay() -> None:
    executor = Executor(K, strategy="rtc")
    actions = play(executor, [40, 2], 80)
    assert actions[:40] == [None] * 40
    assert actions[40:] == list(range(40))
    assert executor.waits[0] == 40
    assert set(executor.waits[1:]) == {2}
    assert not executor.events, "the cold start is not taken for the usual delay"


def test_a_late_chunk_loses_what_was_executed_meanwhile_and_nothing_else() -> None:
    executor = Executor(K, execute_horizon=5)
    first = executor.need()
    assert first is not None
    executor.offer(first, chunk_at(0))
    taken = [executor.next() for _ in range(5)]
    second = executor.need()
    assert second is not None
    assert second.step == 5
    taken += [executor.next() for _ in range(3)]
    executor.offer(second, chunk_at(5) + 100)
    assert [float(action[0]) for action in taken if action is not None] == list(range(8))
    action = executor.next()
    assert action is not None
    assert action[0] == 108


def test_the_second_chunk_too_is_executed() -> None:
    """strands 780: a crash on the second chunk; lerobot 2356: one chunk only."""
    for strategy in ("switch", "ensemble", "rtc"):
        executor = Executor(K, strategy=strategy)
        assert play(executor, [1], 50)[1:] == pytest.approx(list(range(49)))


def test_a_spike_is_forgotten() -> None:
    """lerobot PR 4223: a running maximum never forgets."""
    delay = Delay(window=4)
    assert delay.steps() is None
    for steps in (2, 9, 2, 2, 2):
        delay.add(steps)
    assert delay.steps() == 9
    delay.add(2)
    assert delay.steps() == 2
    median = Delay(window=5, quantile=0.5)
    for steps in (1, 9, 2, 9, 3):
        median.add(steps)
    assert median.steps() == 3


def test_what_is_committed_is_what_can_be_executed() -> None:
    """lerobot PR 4454: the delay is clamped to what remains."""
    executor = Executor(K, strategy="rtc", execute_horizon=K)
    play(executor, [1, 3, 3], 60)
    seen: list[Previous] = []
    for _ in range(40):
        request = executor.need()
        if request is not None and request.previous is not None:
            seen.append(request.previous)
            executor.offer(request, chunk_at(request.step))
        executor.next()
    assert seen
    for previous in seen:
        assert 0 <= previous.committed <= K - previous.executed
        assert previous.actions.shape == (K, 1), "never padded"


def test_the_prefix_of_rtc_is_what_was_executed() -> None:
    executor = Executor(K, strategy="rtc", execute_horizon=6)
    actions, requests, under_way = [], [], None
    for tick in range(60):
        if under_way is not None and tick == under_way[1]:
            executor.offer(under_way[0], chunk_at(under_way[0].step))
            under_way = None
        request = executor.need()
        if request is not None:
            requests.append(request)
            under_way = (request, tick + 3)
        action = executor.next()
        if action is not None:
            actions.append(float(action[0]))
    for request in requests[1:]:
        assert request.previous is not None
        start = request.previous.executed
        told = request.previous.actions[start : start + request.previous.committed, 0].tolist()
        assert actions[request.step :][: len(told)] == told[: len(actions) - request.step]
    assert [request.previous.committed for request in requests[2:] if request.previous] == [3] * len(requests[2:])


def test_a_delay_beyond_the_prefix_holds_and_says_so() -> None:
    """lerobot PR 4056: what to do when the delay exceeds the trained maximum."""
    executor = Executor(K, strategy="rtc", max_prefix=2)
    actions = play(executor, [1, 5], 60)
    executed = [action for action in actions if action is not None]
    assert executed == list(range(len(executed)))
    assert executor.events["delay above prefix"] > 0
    assert executor.events["late"] > 0
    slow = Executor(K, strategy="rtc")
    play(slow, [1, 2 * K], 120)
    assert slow.events["delay above chunk"] > 0
    with pytest.raises(ValueError, match="takes no committed actions"):
        Executor(K, strategy="rtc", max_prefix=0)


def test_running_out_and_dropping() -> None:
    executor = Executor(K)
    play(executor, [1, 1000], 30)
    assert executor.starved
    assert executor.events["starved"] == 1
    executor.drop()
    assert not executor.starved
    assert executor.waiting
    again = executor.need()
    assert again is not None
    assert again.step == K, "what was executed counts, not what was held"


def test_an_answer_after_a_drop_is_discarded() -> None:
    executor = Executor(K)
    old = executor.need()
    assert old is not None
    executor.drop()
    new = executor.need()
    assert new is not None
    assert new.step == old.step
    assert not executor.offer(old, chunk_at(0) + 50)
    assert executor.next() is None
    assert executor.events["discarded"] == 1
    assert executor.offer(new, chunk_at(0))
    executor.failed(old)
    assert executor.next() == 0


def test_a_failed_request_is_asked_again() -> None:
    executor = Executor(K)
    request = executor.need()
    assert request is not None
    assert executor.need() is None
    executor.failed(request)
    again = executor.need()
    assert again is not None
    assert again.number > request.number


def test_a_chunk_that_is_past_is_not_executed() -> None:
    executor = Executor(K, strategy="ensemble")
    first = executor.need()
    assert first is not None
    executor.offer(first, chunk_at(0))
    second = executor.need()
    assert second is not None
    for _ in range(K):
        executor.next()
    assert not executor.offer(second, chunk_at(0))
    assert executor.events["past"] == 1


def test_ensembling_weighs_as_in_act() -> None:
    executor = Executor(K, strategy="ensemble", decay=0.5)
    values = [1.0, 2.0, 4.0]
    for value in values:
        request = executor.need()
        assert request is not None
        executor.offer(request, np.full((K, 1), value, np.float64))
        action = executor.next()
    weights = np.exp(-0.5 * np.arange(3))
    assert action is not None
    assert action[0] == pytest.approx(np.dot(weights, values) / weights.sum())


def test_seams_are_measured_apart() -> None:
    executor = Executor(K, execute_horizon=K)
    for value in (0.0, 5.0):
        request = executor.need()
        assert request is not None
        executor.offer(request, chunk_at(0, slope=0.1) + value)
        for _ in range(K):
            executor.next()
    assert executor.seams.inside == pytest.approx(0.1, rel=1e-4)
    assert executor.seams.between == pytest.approx(4.1, rel=1e-4)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="strategy is one of"):
        Executor(K, strategy="blend")
    with pytest.raises(ValueError, match="execute_horizon 11"):
        Executor(K, execute_horizon=11)
    with pytest.raises(ValueError, match="quantile"):
        Delay(quantile=0)
    with pytest.raises(ValueError, match="some must remain"):
        Previous(chunk_at(0), K, 0)
    with pytest.raises(ValueError, match="some must remain"):
        Previous(chunk_at(0), 8, 3)
    executor = Executor(K)
    request = executor.need()
    assert request is not None
    for wrong in (np.zeros((0, 1)), np.zeros(K), np.zeros((3, 1))):  # an empty answer is an error, never no action
        with pytest.raises(ValueError, match="rows of actions"):
            executor.offer(request, wrong)


class TestAsInTheSimulator:
    """What `actwam eval --delay --merge` measured is what a robot executes: its two rules agree, action by action."""

    @pytest.mark.parametrize("merge", ["switch", "rtc"])
    @pytest.mark.parametrize(("every", "late"), [(1, 0), (3, 0), (3, 2), (4, 4), (2, 1)])
    def test_one_chunk_at_a_time(self, merge: Merge, every: int, late: int) -> None:
        delay, timing = Delay(), Timing(every, late, merge)
        delay.add(late)
        executor = Executor(K, strategy=merge, execute_horizon=every + late, delay=delay)
        told, under_way = [], list[Request]()
        for step, expected in enumerate(self.simulated(timing)):
            if under_way and step == under_way[0].step + late:
                executor.offer(under_way[0], self.named(under_way.pop().step // every))
            if (request := executor.need()) is not None:
                assert request.step % every == 0
                told.append(request.previous and (request.previous.executed, request.previous.committed))
                under_way.append(request)
            if under_way and (step == 0 or late == 0):
                executor.offer(under_way[0], self.named(under_way.pop().step // every))
            assert np.array_equal(self.executed(executor), expected), step
        before = timing.previous(ActionChunk(self.named(0)))
        as_told = before and (before.executed, before.committed)
        assert merge == "switch" or told[1:] == [as_told] * (len(told) - 1)

    def test_an_ensemble_of_every_step(self) -> None:
        executor, simulated = Executor(K, strategy="ensemble", decay=ENSEMBLE_RATE), Timing(1, 0, "ensemble")
        for step, expected in enumerate(self.simulated(simulated)):
            request = executor.need()
            assert request is not None
            assert request.step == step
            executor.offer(request, self.named(step))
            assert np.allclose(self.executed(executor), expected), step

    @staticmethod
    def named(call: int) -> np.ndarray:
        """Every action says from which call it is, and which of its chunk."""
        return np.stack([np.array([call, i, 0, 0], np.float32) for i in range(K)])

    @staticmethod
    def executed(executor: Executor) -> np.ndarray:
        action = executor.next()
        assert action is not None
        return action

    def simulated(self, timing: Timing) -> np.ndarray:
        execution = Execution(timing, "here")
        return np.concatenate([execution.go_on(ActionChunk(self.named(call))) for call in range(8)])
