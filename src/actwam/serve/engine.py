"""One worker thread that answers what clients ask, together what came together."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from actwam.policy import Policy
from actwam.serve import asked
from actwam.serve.asked import Answer, Ask, Refused

log = logging.getLogger("actwam.serve")

GATHER = 0.25
"""Of the time that a call took, for its clients to ask again: without, the first of them is answered alone, and the
others together after it, again and again.
"""

LookAhead = Callable[[Ask, Answer], asked.Future]
"""The video that the actions of an answer will cause."""


@dataclass(frozen=True)
class Acting:
    """What the worker does: `policy.act_batch`, and `look_ahead` for those who asked for the future."""

    policy: Policy
    look_ahead: LookAhead | None = None

    def answer(self, asks: Sequence[Ask]) -> list[Answer | Refused]:
        """One outcome for each. Where a batch fails, each is asked alone, so that one bad request spoils no other."""
        try:
            return list(self._answered(asks))
        except Exception as error:
            if len(asks) > 1:
                return [self.answer([ask])[0] for ask in asks]
            if isinstance(error, ValueError):
                return [Refused("bad_request", " ".join(str(error).split()))]
            log.exception("a request failed")
            return [Refused("internal", "the server failed; its log says how")]

    def _answered(self, asks: Sequence[Ask]) -> list[Answer]:
        start = time.perf_counter()
        chunks, memories = self.policy.act_batch(
            [ask.observation for ask in asks],
            [ask.seed for ask in asks],
            [ask.memory for ask in asks],
            [ask.previous for ask in asks],
        )
        took = 1e3 * (time.perf_counter() - start)
        answers = [Answer(*pair, infer_ms=took, batch=len(asks)) for pair in zip(chunks, memories, strict=True)]
        return [self._with_future(ask, answer) for ask, answer in zip(asks, answers, strict=True)]

    def _with_future(self, ask: Ask, answer: Answer) -> Answer:
        if not ask.future:
            return answer
        if self.look_ahead is None:
            raise ValueError("this policy predicts no future that sees its actions: ask for none")
        return replace(answer, future=self.look_ahead(ask, answer))


@dataclass
class _Waiting:
    ask: Ask
    since: float
    future: Future[Answer]


class Engine:
    """A bounded queue in front of `answer`, and the thread that empties it.

    Of every client at most one request waits: a newer one takes its place, for an old observation is of no use. Up to
    `max_batch` that wait are answered together, those first that waited longest. Before, those that were answered last
    and those that wait already are given a little time to be complete: `gather` times as long as that call took, from
    its end. So a client that asks alone is never kept waiting.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Ask]], Sequence[Answer | Refused]],
        *,
        max_batch: int,
        max_waiting: int,
        gather: float = GATHER,
    ) -> None:
        self._answer, self._max_batch, self._max_waiting, self._gather = answer, max_batch, max_waiting, gather
        self._expected, self._until = 1, 0.0  # how many may be complete soon, and until when they are waited for
        self._waiting: OrderedDict[Hashable, _Waiting] = OrderedDict()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="acting", daemon=True)
        self._thread.start()

    def submit(self, client: Hashable, ask: Ask) -> Future[Answer]:
        """The answer to come, or Refused. Never waits."""
        mine = _Waiting(ask, time.perf_counter(), Future())
        with self._changed:
            older = self._waiting.get(client)
            if self._stopping:
                refused = Refused("stopping", "the server ends")
            elif older is None and len(self._waiting) >= self._max_waiting:
                refused = Refused("busy", f"{self._max_waiting} requests wait already: ask again later")
            else:
                self._waiting[client] = mine  # in the place of the older one, so that nobody waits longer for it
                self._changed.notify()
                refused = None
        if refused is not None:
            _refuse(mine, refused)
        elif older is not None:
            _refuse(older, Refused("superseded", "a newer observation of this client took its place"))
        return mine.future

    def forget(self, client: Hashable) -> None:
        """The client is gone: nobody wants its answer."""
        with self._changed:
            self._waiting.pop(client, None)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def stop(self) -> None:
        """Refuse what waits, and return when the worker has ended: no answer comes after that."""
        with self._changed:
            self._stopping = True
            left = list(self._waiting.values())
            self._waiting.clear()
            self._changed.notify()
        for waiting in left:
            _refuse(waiting, Refused("stopping", "the server ends"))
        self._thread.join()

    def _work(self) -> None:
        while (taken := self._next()) is not None:
            batch = [each for each in taken if each.future.set_running_or_notify_cancel()]
            if not batch:
                continue
            began = time.perf_counter()
            outcomes = self._answer([each.ask for each in batch])
            now = time.perf_counter()
            self._expected, self._until = len(batch) + self.waiting, now + self._gather * (now - began)
            for waiting, outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, Refused):
                    waiting.future.set_exception(outcome)
                else:
                    waiting.future.set_result(replace(outcome, queue_ms=1e3 * (began - waiting.since)))

    def _next(self) -> list[_Waiting] | None:
        """Those to be answered together; None when the server ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            most = min(self._max_batch, self._expected)
            left = max(0.0, self._until - time.perf_counter())
            self._changed.wait_for(lambda: len(self._waiting) >= most or self._stopping, left)
            if self._stopping:
                return None
            count = min(self._max_batch, len(self._waiting))
            return [self._waiting.popitem(last=False)[1] for _ in range(count)]


def _refuse(waiting: _Waiting, refused: Refused) -> None:
    if waiting.future.set_running_or_notify_cancel():  # nobody waits for one that was cancelled
        waiting.future.set_exception(refused)
