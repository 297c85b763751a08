"""The queue in front of the policy: who waits, who is answered together, who is refused. No test here sleeps."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import tiny
from served import policy_of

from actwam.serve.asked import Answer, Ask, Refused
from actwam.serve.asked import Future as Video
from actwam.serve.engine import Acting, Engine
from actwam.types import ActionChunk

ANSWER = Answer(ActionChunk(np.zeros((4, 3), np.float32)), None, infer_ms=1.0, batch=1)


def ask(seed: int) -> Ask:
    return Ask(tiny.observation(), seed)


class Gate:
    """An `answer` that waits to be let through, and says what it was asked together."""

    def __init__(self, outcome: Answer | Refused = ANSWER) -> None:
        self.outcome = outcome
        self.entered, self._open = threading.Semaphore(0), threading.Semaphore(0)
        self.asked: list[list[int]] = []

    def __call__(self, asks: Sequence[Ask]) -> list[Answer | Refused]:
        self.asked.append([each.seed for each in asks])
        self.entered.release()
        self._open.acquire()
        return [self.outcome for _ in asks]

    def wait(self) -> None:
        assert self.entered.acquire(timeout=30)

    def let(self, count: int = 1) -> None:
        self._open.release(count)


@pytest.fixture
def gate() -> Gate:
    return Gate()


def engine_of(answer: Any, max_batch: int = 2, max_waiting: int = 3, gather: float = 0.0) -> Engine:
    return Engine(answer, max_batch=max_batch, max_waiting=max_waiting, gather=gather)


def code(future: Future[Answer]) -> str:
    error = future.exception(timeout=30)
    assert isinstance(error, Refused)
    return error.code


def test_those_that_waited_longest_are_answered_together_first(gate: Gate) -> None:
    engine = engine_of(gate)
    first = engine.submit("a", ask(0))
    gate.wait()
    rest = [engine.submit(name, ask(seed)) for seed, name in enumerate("bcd", 1)]
    assert engine.waiting == 3
    gate.let(3)
    assert all(future.result(timeout=30).chunk is ANSWER.chunk for future in (first, *rest))
    assert gate.asked == [[0], [1, 2], [3]]
    engine.stop()


def test_a_newer_request_takes_the_place_of_the_older_in_the_queue(gate: Gate) -> None:
    engine = engine_of(gate, max_batch=1)
    engine.submit("z", ask(0))
    gate.wait()
    old, other = engine.submit("a", ask(1)), engine.submit("b", ask(2))
    new = engine.submit("a", ask(3))
    assert code(old) == "superseded"
    gate.let(3)
    assert new.result(timeout=30).queue_ms >= 0
    assert other.result(timeout=30)
    assert gate.asked == [[0], [3], [2]]  # where the older stood, and not behind b
    engine.stop()


def test_one_client_that_asks_without_end_keeps_nobody_waiting(gate: Gate) -> None:
    engine = engine_of(gate, max_batch=1)
    engine.submit("greedy", ask(0))
    gate.wait()
    modest = engine.submit("modest", ask(1))
    for seed in range(2, 50):
        engine.submit("greedy", ask(seed))
    gate.let(2)
    assert modest.result(timeout=30)
    assert gate.asked[1] == [1]
    gate.let()
    engine.stop()


class TestGathering:
    """Those who will ask together are waited for: here, where nothing else is told, without end."""

    def test_those_that_were_answered_together_are_again(self, gate: Gate) -> None:
        engine = engine_of(gate, gather=1e9)
        engine.submit("z", ask(0))
        gate.wait()
        together = [engine.submit(name, ask(1)) for name in "ab"]
        gate.let(2)
        assert all(future.result(timeout=30) for future in together)
        first = engine.submit("a", ask(2))
        second = engine.submit("b", ask(3))
        gate.let()
        assert first.result(timeout=30)
        assert second.result(timeout=30)
        assert gate.asked == [[0], [1, 1], [2, 3]]
        engine.stop()

    def test_who_asks_alone_is_answered_at_once(self, gate: Gate) -> None:
        engine = engine_of(gate, gather=1e9)
        gate.let(3)
        for seed in range(3):
            assert engine.submit("a", ask(seed)).result(timeout=30)
        assert gate.asked == [[0], [1], [2]]
        engine.stop()

    def test_those_that_do_not_come_are_not_waited_for_long(self, gate: Gate) -> None:
        engine = engine_of(gate, gather=1e-9)
        engine.submit("z", ask(0))
        gate.wait()
        together = [engine.submit(name, ask(1)) for name in "ab"]
        gate.let(3)
        assert all(future.result(timeout=30) for future in together)
        assert engine.submit("a", ask(2)).result(timeout=30)
        engine.stop()

    def test_stopping_waits_for_nobody(self, gate: Gate) -> None:
        engine = engine_of(gate, gather=1e9)
        engine.submit("z", ask(0))
        gate.wait()
        together = [engine.submit(name, ask(1)) for name in "ab"]
        gate.let(2)
        assert all(future.result(timeout=30) for future in together)
        waiting = engine.submit("a", ask(2))
        engine.stop()
        assert code(waiting) == "stopping"


def test_a_full_queue_says_so_but_still_takes_newer_ones(gate: Gate) -> None:
    engine = engine_of(gate, max_waiting=2)
    engine.submit("a", ask(0))
    gate.wait()
    waiting = [engine.submit(name, ask(1)) for name in "bc"]
    assert code(engine.submit("d", ask(2))) == "busy"
    assert code(engine.submit("e", ask(3))) == "busy"
    newer = engine.submit("b", ask(4))
    assert code(waiting[0]) == "superseded"
    gate.let(2)
    assert newer.result(timeout=30)
    engine.stop()


def test_whose_client_is_gone_and_who_was_cancelled_is_not_answered(gate: Gate) -> None:
    engine = engine_of(gate, max_batch=4)
    engine.submit("a", ask(0))
    gate.wait()
    engine.submit("gone", ask(1))
    cancelled, wanted = engine.submit("b", ask(2)), engine.submit("c", ask(3))
    engine.forget("gone")
    assert cancelled.cancel()
    gate.let(2)
    assert wanted.result(timeout=30)
    assert gate.asked == [[0], [3]]
    engine.stop()


def test_a_batch_of_cancelled_ones_is_no_call(gate: Gate) -> None:
    engine = engine_of(gate)
    engine.submit("a", ask(0))
    gate.wait()
    assert engine.submit("b", ask(1)).cancel()
    gate.let()
    last = engine.submit("c", ask(2))
    gate.let()
    assert last.result(timeout=30)
    assert [1] not in gate.asked
    engine.stop()


def test_stopping_refuses_what_waits_and_whatever_comes_after(gate: Gate) -> None:
    engine = engine_of(gate)
    first = engine.submit("a", ask(0))
    gate.wait()
    waiting = engine.submit("b", ask(1))
    stopped = threading.Thread(target=engine.stop)
    stopped.start()
    assert code(waiting) == "stopping"
    gate.let()  # what was being computed is still given
    stopped.join(timeout=30)
    assert not stopped.is_alive()
    assert first.done()
    assert first.result()
    assert code(engine.submit("c", ask(2))) == "stopping"
    assert gate.asked == [[0]]


def test_a_refusal_reaches_the_one_it_is_for() -> None:
    def odd_are_refused(asks: Sequence[Ask]) -> list[Answer | Refused]:
        return [Refused("bad_request", str(each.seed)) if each.seed % 2 else ANSWER for each in asks]

    engine = engine_of(odd_are_refused)
    futures = [engine.submit(seed, ask(seed)) for seed in range(3)]
    assert [future.exception(timeout=30) is not None for future in futures] == [False, True, False]
    engine.stop()


@pytest.fixture(scope="module")
def acting() -> Acting:
    return Acting(policy_of())


def test_a_batch_gives_what_each_alone_is_given(acting: Acting) -> None:
    asks = [Ask(tiny.observation(seed), seed) for seed in range(3)]
    together = acting.answer(asks)
    for each, answer in zip(asks, together, strict=True):
        assert isinstance(answer, Answer)
        assert answer.batch == 3
        alone = acting.policy.act(each.observation, seed=each.seed).actions
        np.testing.assert_allclose(answer.chunk.actions, alone, rtol=1e-4, atol=1e-5)


def test_one_bad_request_spoils_no_other(acting: Acting) -> None:
    good, bad = tiny.observation(1), tiny.observation(2)
    bad = type(bad)(bad.images, np.full(3, np.nan, np.float32), bad.instruction)
    first, wrong, last = acting.answer([Ask(good, 1), Ask(bad, 2), Ask(good, 3)])
    assert isinstance(wrong, Refused)
    assert wrong.code == "bad_request"
    assert "\n" not in wrong.message
    for answer, seed in ((first, 1), (last, 3)):
        assert isinstance(answer, Answer)
        assert np.array_equal(answer.chunk.actions, acting.policy.act(good, seed=seed).actions)


def test_a_fault_of_the_server_says_nothing_of_the_machine(caplog: pytest.LogCaptureFixture) -> None:
    def fails(*_: Any) -> Video:
        raise RuntimeError("/secret/path")

    (refused,) = Acting(policy_of(), fails).answer([Ask(tiny.observation(), 0, future=True)])
    assert isinstance(refused, Refused)
    assert (refused.code, "secret" in str(refused)) == ("internal", False)
    assert "/secret/path" in caplog.text


def test_a_future_is_only_for_those_who_ask_and_a_policy_that_has_one(acting: Acting) -> None:
    video = Video(b"mp4", 10.0, None)
    with_future = Acting(acting.policy, lambda *_: video)
    plain, asked = with_future.answer([ask(0), Ask(tiny.observation(), 0, future=True)])
    assert isinstance(plain, Answer)
    assert isinstance(asked, Answer)
    assert (plain.future, asked.future) == (None, video)
    (refused,) = acting.answer([Ask(tiny.observation(), 0, future=True)])
    assert isinstance(refused, Refused)
    assert refused.code == "bad_request"
